//! What a stack is to be.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};

use super::{Agent, Stack, part};
use crate::provision::Containerd;

/// What the stack is to be; `start` makes it so.
pub struct Builder {
    pub(super) name: String,
    pub(super) node: String,
    pub(super) detached: bool,
    pub(super) standalone: bool,
    pub(super) containerd: Containerd,
    pub(super) agent: Agent,
    /// Set over the defaults of `agent::configuration`.
    pub(super) config: serde_json::Map<String, serde_json::Value>,
    pub(super) flags: Vec<String>,
    /// Feature gates of the API server that are on, beside those that are anyway.
    pub(super) api_server_gates: Vec<String>,
    /// Further arguments of the controller manager.
    pub(super) controller_arguments: Vec<String>,
    /// The node has no identity of its own to begin with.
    pub(super) joins: bool,
    pub(super) static_pods: BTreeMap<String, String>,
    pub(super) held_back: Vec<part::Name>,
}

impl Builder {
    pub(super) fn new() -> Builder {
        Builder {
            name: format!("pid-{}", std::process::id()),
            node: "ferrolet-0".to_owned(),
            detached: false,
            standalone: false,
            containerd: Containerd::Current,
            agent: Agent::Ferrolet,
            config: serde_json::Map::new(),
            flags: Vec::new(),
            api_server_gates: Vec::new(),
            controller_arguments: Vec::new(),
            joins: false,
            static_pods: BTreeMap::new(),
            held_back: Vec::new(),
        }
    }

    /// The name that `make down` and `status` know it by.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    pub fn node(mut self, node: &str) -> Self {
        self.node = node.to_owned();
        self
    }

    /// It goes on when this program ends, until `stack::down`.
    pub fn detached(mut self) -> Self {
        self.detached = true;
        self
    }

    /// Without a control plane: static pods only.
    pub fn standalone(mut self) -> Self {
        self.standalone = true;
        self
    }

    pub fn containerd(mut self, containerd: Containerd) -> Self {
        self.containerd = containerd;
        self
    }

    pub fn agent(mut self, agent: Agent) -> Self {
        self.agent = agent;
        self
    }

    /// Sets a top-level field of the KubeletConfiguration.
    pub fn config(mut self, field: &str, value: impl Into<serde_json::Value>) -> Self {
        self.config.insert(field.to_owned(), value.into());
        self
    }

    /// Adds a command line flag of the agent.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// Switches a feature gate of the API server on.
    pub fn api_server_gate(mut self, gate: &str) -> Self {
        self.api_server_gates.push(gate.to_owned());
        self
    }

    /// Adds an argument of the controller manager.
    pub fn controller_argument(mut self, argument: &str) -> Self {
        self.controller_arguments.push(argument.to_owned());
        self
    }

    /// The agent is started as `kubeadm join` starts it: with the path of a bootstrap kubeconfig,
    /// which is the case's to write, and of a kubeconfig that is not there yet.
    pub fn joins(mut self) -> Self {
        self.joins = true;
        self
    }

    /// A file in the static-pod directory from the start.
    pub fn static_pod(mut self, file: &str, content: &str) -> Self {
        self.static_pods.insert(file.to_owned(), content.to_owned());
        self
    }

    /// The agent is not started yet; `stack.agent().start()` does.
    pub fn without_agent(mut self) -> Self {
        self.held_back.push(part::Name::Agent);
        self
    }

    pub fn without_containerd(mut self) -> Self {
        self.held_back.push(part::Name::Containerd);
        self
    }

    /// Unlike `standalone`, the agent is meant to have one. Only once it has been started are
    /// there kubeconfigs, so the agent has to be held back too.
    pub fn without_control_plane(mut self) -> Self {
        self.held_back.push(part::Name::ControlPlane);
        self
    }

    /// Whether it is to have all parts, and so a node that becomes Ready.
    pub fn is_complete(&self) -> bool {
        !self.standalone && self.held_back.is_empty()
    }

    /// Starts all parts that are not held back and waits until containerd and the control
    /// plane serve; the agent is only started.
    pub async fn start(self) -> Result<Stack> {
        let stack = Stack::make_world(self).await?;
        match stack.start_parts().await {
            Ok(()) => Ok(stack),
            Err(error) => {
                let logs = stack.log_tails();
                // A detached one would stay half made.
                stack.end().await?;
                Err(anyhow!(
                    "{error:#}
{logs}"
                ))
            }
        }
    }
}
