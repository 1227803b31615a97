//! What an operator does on the machine: installs an agent, joins, resets, and swaps agents.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams};

use super::cluster;
use super::payload::DIRECTORY as PAYLOAD;
use super::site::{NODE, Site};
use crate::poll::{self, Look};
use crate::stack::Agent;

/// Where the machine has upstream's package.
const UPSTREAM: &str = "/opt/packages";

impl Site {
    /// A node that has joined with this agent, Ready: made so, unless the last case left it so.
    pub async fn joined(&self, agent: Agent) -> Result<()> {
        if self.installed().await? != Some(agent) {
            self.install(agent).await?;
        }
        if !self.has_joined().await? {
            self.join().await?;
        }
        self.expect_ready().await.map(drop)
    }

    /// A machine that belongs to no cluster.
    pub async fn bare(&self) -> Result<()> {
        if self.has_joined().await? {
            self.reset().await?;
        }
        Ok(())
    }

    pub async fn installed(&self) -> Result<Option<Agent>> {
        let query =
            "dpkg-query --show --showformat='${db:Status-Abbrev}${Package}\\n' ferrolet kubelet 2>/dev/null || true";
        let packages = self.guest.run(query).await?;
        let has = |name: &str| packages.lines().any(|line| line == format!("ii {name}"));
        ensure!(!(has("ferrolet") && has("kubelet")), "both agents are installed: {packages}");
        Ok(match has("ferrolet") {
            true => Some(Agent::Ferrolet),
            false => has("kubelet").then_some(Agent::Kubelet),
        })
    }

    /// Installs an agent's package, in place of whatever agent is there.
    pub async fn install(&self, agent: Agent) -> Result<String> {
        let install = "dpkg --force-unsafe-io --install";
        let script = match agent {
            // dpkg removes upstream's package by itself.
            Agent::Ferrolet => format!("{install} {PAYLOAD}/ferrolet_*.deb 2>&1"),
            // That one knows of no other kubelet, so ours has to go first.
            Agent::Kubelet => {
                format!("dpkg --remove --force-depends ferrolet 2>&1; {install} {UPSTREAM}/kubelet.deb 2>&1")
            }
        };
        self.guest.run(&script).await
    }

    async fn has_joined(&self) -> Result<bool> {
        Ok(self.guest.told("test -e /etc/kubernetes/kubelet.conf", b"").await?.status.success())
    }

    /// `kubeadm join`, with a token made for it. Returns what it said.
    pub async fn join(&self) -> Result<String> {
        let command = cluster::join_command(&self.stack).await?;
        self.guest.run(&format!("{} 2>&1", command.trim())).await
    }

    /// `kubeadm reset`, and the Node is deleted, as its documentation tells operators to.
    pub async fn reset(&self) -> Result<String> {
        let said = self.guest.run("kubeadm reset --force 2>&1").await?;
        let nodes: Api<NodeObject> = Api::all(self.api.client());
        nodes.delete(NODE, &DeleteParams::default()).await?;
        // Else the next join would meet what was left of the last.
        let pods: Api<Pod> = Api::all(self.api.client());
        let of_node = ListParams::default().fields(&format!("spec.nodeName={NODE}"));
        for pod in pods.list(&of_node).await?.items {
            let (name, namespace) = (pod.metadata.name.unwrap_or_default(), pod.metadata.namespace.unwrap_or_default());
            let pods: Api<Pod> = Api::namespaced(self.api.client(), &namespace);
            // It may be collected meanwhile.
            let _ = pods.delete(&name, &DeleteParams::default().grace_period(0)).await;
        }
        poll::until("no pod of the node is left", super::site::WITHIN, async || {
            let left = pods.list(&of_node).await?.items.len();
            Ok(if left == 0 { Look::Done(()) } else { Look::NotYet(format!("{left}")) })
        })
        .await?;
        Ok(said)
    }
}
