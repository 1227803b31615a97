//! How the task brings to the API what differs from the Node there.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeStatus};
use serde_json::Value;
use tokio::time::Instant;
use tracing::{debug, info};

use super::conditions::{is_ready, transitions};
use super::patch::{metadata_patch, status_patch, with_heartbeat};
use super::task::{Standing, Task, bounded};
use crate::kube::{ApiError, Cluster, Result};
use crate::metrics;

/// Changes that follow each other this fast share one write.
const WRITE_GAP: Duration = Duration::from_millis(500);

impl Task {
    /// Sends what differs from the Node in the API.
    pub(super) async fn update(&mut self, cluster: &dyn Cluster) -> Option<Instant> {
        let desired = self.desired()?;
        let now = self.clock.now();
        let Standing::Registered(registered) = &mut self.standing else {
            return None;
        };
        let metadata = metadata_patch(&registered.node, &desired)
            .filter(|patch| registered.metadata_residue.as_ref() != Some(patch));
        let wanted = desired.status.clone().unwrap_or_default();
        let none = NodeStatus::default();
        let has = registered.node.status.as_ref().unwrap_or(&none);
        let status = status_patch(has, &wanted).filter(|patch| registered.status_residue.as_ref() != Some(patch));
        let is_due = registered.report_at <= now;
        if metadata.is_none() && status.is_none() && !is_due {
            return Some(registered.report_at);
        }
        if registered.write_at > now {
            return Some(registered.write_at);
        }
        let changes = status.is_some();
        let result = match metadata {
            Some(patch) => self.send_metadata(cluster, patch, &desired).await,
            None => Ok(()),
        };
        let result = match result {
            Ok(()) if changes || is_due => self.send_status(cluster, status, &wanted).await,
            other => other,
        };
        self.settle(cluster, result).await
    }

    pub(super) async fn look(&mut self, cluster: &dyn Cluster) -> Result<()> {
        let node = bounded("get node", cluster.get_node()).await?;
        if let Standing::Registered(registered) = &mut self.standing {
            registered.node = Arc::new(node);
            registered.is_doubted = false;
        }
        Ok(())
    }

    async fn send_metadata(&mut self, cluster: &dyn Cluster, patch: Value, desired: &Node) -> Result<()> {
        let answer = bounded("patch node", cluster.patch_node(&patch)).await;
        let Standing::Registered(registered) = &mut self.standing else {
            return Ok(());
        };
        match answer {
            Ok(node) => {
                registered.metadata_residue = metadata_patch(&node, desired);
                registered.node = Arc::new(node);
            }
            // Labels that the API server does not let a node change are not worth its status.
            Err(error @ (ApiError::Refused { .. } | ApiError::Invalid { .. })) => {
                registered.metadata_residue = Some(patch);
                let text = format!("labels of node {} not changed: {error}", self.config.name);
                self.complaints.add(&self.clock, "labels", text);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn send_status(&mut self, cluster: &dyn Cluster, patch: Option<Value>, wanted: &NodeStatus) -> Result<()> {
        let changes = patch.is_some();
        let before = self.registered().and_then(|registered| registered.node.status.clone()).unwrap_or_default();
        let answer = bounded("patch node status", cluster.patch_node_status(&with_heartbeat(patch, wanted))).await?;
        debug!(changes, "node status written");
        self.tell_transitions(&before, answer.status.as_ref());
        let report_in = if changes { self.spread_report() } else { self.config.status_report_frequency };
        let report_at = self.clock.now() + report_in;
        if let Standing::Registered(registered) = &mut self.standing {
            registered.status_residue = answer.status.as_ref().and_then(|status| status_patch(status, wanted));
            registered.report_at = report_at;
            registered.node = Arc::new(answer);
        }
        Ok(())
    }

    /// Takes in how a write went, and says when the next one may be.
    pub(super) async fn settle(&mut self, cluster: &dyn Cluster, result: Result<()>) -> Option<Instant> {
        let now = self.clock.now();
        if matches!(result, Err(ApiError::NotFound { .. })) {
            self.lose("node is gone from the API, will register again");
            return Some(now);
        }
        let fresh = match &result {
            Err(ApiError::Conflict { .. }) => bounded("get node", cluster.get_node()).await.ok(),
            _ => None,
        };
        let failures = self.registered().map_or(0, |registered| registered.failures);
        let delay = self.retry_delay(failures);
        match result {
            Ok(()) => self.complaints.settle("status"),
            Err(ref error) => self.complaints.add(
                &self.clock,
                "status",
                format!("status of node {} not written: {error}", self.config.name),
            ),
        }
        let Standing::Registered(registered) = &mut self.standing else {
            return Some(now);
        };
        if let Some(node) = fresh {
            registered.node = Arc::new(node);
        }
        (registered.failures, registered.write_at) = match result {
            Ok(()) => (0, now + WRITE_GAP),
            Err(_) => (failures + 1, now + delay),
        };
        Some(match result {
            Ok(()) => registered.report_at,
            Err(_) => registered.write_at,
        })
    }

    pub(super) fn tell_transitions(&mut self, before: &NodeStatus, after: Option<&NodeStatus>) {
        let is_ready =
            after.and_then(|status| status.conditions.as_ref()).is_some_and(|conditions| is_ready(conditions));
        if let Some(phases) = self.startup.told(is_ready, self.clock.now()) {
            metrics::node::started(phases);
        }
        let of = |status: Option<&NodeStatus>| status.and_then(|status| status.conditions.clone()).unwrap_or_default();
        for reason in transitions(&of(Some(before)), &of(after)) {
            info!(node = self.config.name, state = reason, "node condition changed");
            self.tell(reason);
        }
    }

    /// Between half of the report period and one and a half, so that nodes that changed
    /// together, as after an outage, do not report together for ever.
    pub(super) fn spread_report(&self) -> Duration {
        self.clock.jitter(self.config.status_report_frequency.mul_f64(0.5), 2.0)
    }
}
