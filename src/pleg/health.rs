//! What is known about the runtime's health, for the Ready condition and the network gate.

use std::time::Duration;

use tokio::time::Instant;

use crate::cri::{RuntimeCondition, RuntimeStatus};

/// The runtime as of its last answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuntimeHealth {
    /// The last good answer to the status call, and when it came.
    pub status: Option<(Instant, RuntimeStatus)>,
    /// Why the newest status call failed, if it did.
    pub error: Option<String>,
    /// When everything was last listed.
    pub listed_at: Option<Instant>,
    /// How long a list may be overdue before PLEG counts as stuck.
    pub list_overdue: Duration,
}

/// Upstream's figure: a runtime silent for so long is down.
pub const RUNTIME_DOWN_AFTER: Duration = Duration::from_secs(30);

impl RuntimeHealth {
    pub fn network_ready(&self) -> bool {
        self.status.as_ref().is_some_and(|(_, status)| status.network_ready.ok)
    }

    /// Why pods with a network of their own cannot start, in upstream's words.
    pub fn network_problem(&self) -> String {
        match &self.status {
            None => "network state unknown".to_owned(),
            Some((_, status)) => not_ready("runtime network", "NetworkReady", &status.network_ready),
        }
    }

    /// What is wrong, in upstream's words; empty when the node may be Ready.
    pub fn problems(&self, now: Instant) -> Vec<String> {
        let mut problems = Vec::new();
        match &self.status {
            None => problems.push("container runtime status check may not have completed yet".to_owned()),
            Some((at, _)) if self.error.is_some() && now.duration_since(*at) > RUNTIME_DOWN_AFTER => {
                problems.push("container runtime is down".to_owned());
            }
            Some((_, status)) => {
                for (name, what, condition) in [
                    ("runtime", "RuntimeReady", &status.runtime_ready),
                    ("runtime network", "NetworkReady", &status.network_ready),
                ] {
                    if !condition.ok {
                        problems.push(not_ready(name, what, condition));
                    }
                }
            }
        }
        match self.listed_at {
            None => problems.push("PLEG is not healthy: pleg has yet to be successful".to_owned()),
            Some(at) if now.duration_since(at) > self.list_overdue => problems.push(format!(
                "PLEG is not healthy: pleg was last seen active {:?} ago; threshold is {:?}",
                now.duration_since(at),
                self.list_overdue
            )),
            Some(_) => {}
        }
        problems
    }
}

fn not_ready(name: &str, what: &str, condition: &RuntimeCondition) -> String {
    let RuntimeCondition { reason, message, .. } = condition;
    format!("container {name} not ready: {what}=false reason:{reason} message:{message}")
}
