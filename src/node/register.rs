//! How the task comes to a Node in the API: by making it, or by finding it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeStatus};
use tracing::info;

use super::task::{Registered, Standing, Task, bounded};
use crate::config::Gate;
use crate::events::EventType;
use crate::kube::{ApiError, Cluster, Result};

impl Task {
    pub(super) fn why_not_registered(&self, error: &ApiError) -> String {
        let name = &self.config.name;
        match error {
            ApiError::Refused { message, .. } => format!(
                "API server refuses node name {name}: {message} (the credentials in use must be valid and belong to system:node:{name})"
            ),
            ApiError::NotFound { .. } if !self.config.register => {
                format!("node {name} does not exist, and registerNode is false")
            }
            error => format!("node {name} not registered: {error}"),
        }
    }

    /// Creates the Node, or finds the one that is there.
    pub(super) async fn register(&mut self, cluster: &dyn Cluster, desired: &Node) -> Result<()> {
        if self.config.register {
            match bounded("create node", cluster.create_node(desired)).await {
                Ok(node) => {
                    info!(node = self.config.name, "node registered");
                    self.startup.registered(self.clock.now());
                    self.tell_transitions(&NodeStatus::default(), node.status.as_ref());
                    self.enter(node, false);
                    return Ok(());
                }
                // Credentials may allow to use a Node and not to create it.
                Err(ApiError::AlreadyExists { .. }) => {}
                Err(refused @ ApiError::Refused { .. })
                    if !self.config.gates.enabled(Gate::KubeletRegistrationGetOnExistsOnly) =>
                {
                    match bounded("get node", cluster.get_node()).await {
                        Ok(node) => {
                            self.adopt(node);
                            return Ok(());
                        }
                        Err(_) => return Err(refused),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let node = bounded("get node", cluster.get_node()).await?;
        self.adopt(node);
        Ok(())
    }

    fn adopt(&mut self, node: Node) {
        info!(node = self.config.name, uid = node.metadata.uid, "node found in the API");
        if !std::mem::replace(&mut self.boot_was_compared, true) {
            self.tell_of_reboot(&node);
        }
        self.enter(node, true);
    }

    fn tell_of_reboot(&self, node: &Node) {
        let had = node.status.as_ref().and_then(|status| Some(&status.node_info.as_ref()?.boot_id));
        let Some((had, machine)) = had.zip(self.stock.machine.as_ref()) else {
            return;
        };
        if !had.is_empty() && *had != machine.boot_id {
            let text = format!("Node {} has been rebooted, boot id: {}", self.config.name, machine.boot_id);
            self.recorder.node(EventType::Warning, "Rebooted", text);
        }
    }

    fn enter(&mut self, node: Node, report_now: bool) {
        let now = self.clock.now();
        self.boot_was_compared = true;
        self.complaints.settle("registration");
        self.standing = Standing::Registered(Registered {
            node: Arc::new(node),
            is_doubted: false,
            report_at: if report_now { now } else { now + self.spread_report() },
            write_at: now,
            failures: 0,
            status_residue: None,
            metadata_residue: None,
        });
        self.tell_schedulable();
    }
}
