//! The programs of a stack, each of which can be started, stopped, killed and frozen.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::supervisor::{Program, State};
use super::{Stack, agent, containerd, control_plane, registry};

/// Above the few seconds that each takes to stop in order.
const STOP_WITHIN: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Containerd,
    ControlPlane,
    Agent,
    Registry,
}

impl Name {
    fn text(self) -> &'static str {
        match self {
            Name::Containerd => "containerd",
            Name::ControlPlane => "control-plane",
            Name::Agent => "agent",
            Name::Registry => "registry",
        }
    }
}

/// One part of a stack.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    pub(super) stack: &'a Stack,
    pub(super) name: Name,
}

impl Part<'_> {
    /// Starts it, with its files written anew. containerd and the control plane serve when
    /// this returns; the agent may still be on its way.
    pub async fn start(self) -> Result<()> {
        match self.name {
            Name::Containerd => containerd::start(self).await,
            Name::ControlPlane => control_plane::start(self).await,
            Name::Agent => agent::start(self).await,
            Name::Registry => registry::start(self).await,
        }
        .with_context(|| format!("start {}", self.name.text()))
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(self) -> Result<State> {
        self.end(Signal::SIGTERM).await
    }

    /// SIGKILL to this one process, and waits until it is gone.
    pub async fn kill(self) -> Result<State> {
        self.end(Signal::SIGKILL).await
    }

    /// SIGSTOP: it hangs, with its sockets open and nobody answering.
    pub async fn freeze(self) -> Result<()> {
        self.signal_all(Signal::SIGSTOP).await
    }

    pub async fn thaw(self) -> Result<()> {
        self.signal_all(Signal::SIGCONT).await
    }

    pub async fn state(self) -> Result<State> {
        self.stack.supervisor.look(self.name.text()).await
    }

    /// Its number inside the stack.
    pub async fn pid(self) -> Result<i32> {
        match self.state().await? {
            State::Running { pid } => Ok(pid),
            other => anyhow::bail!("{} does not run: {other:?}", self.name.text()),
        }
    }

    /// What it has logged so far.
    pub fn log(self) -> Result<String> {
        let path = self.log_path();
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    pub(super) fn log_path(self) -> PathBuf {
        self.stack.log_directory().join(format!("{}.log", self.name.text()))
    }

    pub(super) async fn start_program(self, path: PathBuf, args: Vec<String>) -> Result<()> {
        let path_seen = super::world::is_visible(&path);
        ensure!(path_seen, "{} is hidden inside the stack; put it elsewhere", path.display());
        let program = Program {
            name: self.name.text().to_owned(),
            path,
            args,
            env: environment(self.stack)?,
            output: self.log_path(),
            errors: None,
        };
        self.stack.supervisor.start(program).await.map(drop)
    }

    async fn end(self, signal: Signal) -> Result<State> {
        let name = self.name.text();
        self.stack.supervisor.signal(name, signal).await?;
        let ended = tokio::time::timeout(STOP_WITHIN, self.stack.supervisor.wait(name)).await;
        ended.with_context(|| format!("{name} does not end within {STOP_WITHIN:?} of {signal}"))?
    }

    async fn signal_all(self, signal: Signal) -> Result<()> {
        let supervisor = self.stack.supervisor;
        if self.name == Name::ControlPlane {
            // Its own children each are in a process group of their own.
            for component in control_plane::COMPONENTS {
                for pid in self.stack.processes(component)? {
                    supervisor.signal_pid(pid, signal).await?;
                }
            }
        }
        supervisor.signal(self.name.text(), signal).await.map(drop)
    }
}

/// What programs inside have for an environment. The programs of the stack's containerd
/// (its shim, ctr) come first, so that a host's own are never taken for them.
pub(super) fn environment(stack: &Stack) -> Result<BTreeMap<String, String>> {
    let own = stack.spec.containerd.directory()?;
    let path = format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", own.display());
    let mut environment = BTreeMap::from([("PATH".to_owned(), path), ("HOME".to_owned(), "/root".to_owned())]);
    // Installed components that the control plane is to take instead of its own, by the names
    // that users of envtest know, and the log filter of an agent.
    for name in std::env::vars().map(|(name, _)| name) {
        let passed_on = name.starts_with("TEST_ASSET_")
            || ["ETCD", "KUBE_APISERVER", "KUBE_CONTROLLER_MANAGER", "KUBE_SCHEDULER", "RUST_LOG", "RUST_BACKTRACE"]
                .contains(&name.as_str());
        if passed_on {
            environment.insert(name.clone(), std::env::var(&name)?);
        }
    }
    Ok(environment)
}
