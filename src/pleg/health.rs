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

/// What keeps the node from being Ready; it may be so when both are empty.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Problems {
    pub found: Vec<String>,
    /// What nobody has learnt yet since the agent began.
    pub unknown: Vec<String>,
}

pub const NOT_ASKED_YET: &str = "container runtime status check may not have completed yet";

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

    /// What is wrong, in upstream's words.
    pub fn problems(&self, now: Instant) -> Problems {
        let (mut found, mut unknown) = (Vec::new(), Vec::new());
        match &self.status {
            None => unknown.push(NOT_ASKED_YET.to_owned()),
            // Whether a call has failed since or still hangs makes no difference.
            Some((at, _)) if now.duration_since(*at) > RUNTIME_DOWN_AFTER => {
                found.push("container runtime is down".to_owned());
            }
            Some((_, status)) => {
                for (name, what, condition) in [
                    ("runtime", "RuntimeReady", &status.runtime_ready),
                    ("runtime network", "NetworkReady", &status.network_ready),
                ] {
                    if !condition.ok {
                        found.push(not_ready(name, what, condition));
                    }
                }
            }
        }
        match self.listed_at {
            None => unknown.push("PLEG is not healthy: pleg has yet to be successful".to_owned()),
            Some(at) if now.duration_since(at) > self.list_overdue => found.push(format!(
                "PLEG is not healthy: pleg was last seen active {:?} ago; threshold is {:?}",
                now.duration_since(at),
                self.list_overdue
            )),
            Some(_) => {}
        }
        Problems { found, unknown }
    }
}

fn not_ready(name: &str, what: &str, condition: &RuntimeCondition) -> String {
    let RuntimeCondition { reason, message, .. } = condition;
    format!("container {name} not ready: {what}=false reason:{reason} message:{message}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_runtime_is_down_half_a_minute_after_its_last_good_answer_whether_it_errs_or_hangs() {
        let began = Instant::now();
        let good = RuntimeCondition { ok: true, ..RuntimeCondition::default() };
        let status = RuntimeStatus { runtime_ready: good.clone(), network_ready: good, ..RuntimeStatus::default() };
        for error in [None, Some("deadline exceeded".to_owned())] {
            let health = RuntimeHealth {
                status: Some((began, status.clone())),
                error,
                listed_at: Some(began),
                list_overdue: Duration::from_secs(600),
            };
            assert_eq!(health.problems(began + RUNTIME_DOWN_AFTER), Problems::default(), "{:?}", health.error);
            let later = began + RUNTIME_DOWN_AFTER + Duration::from_secs(1);
            assert_eq!(health.problems(later).found, ["container runtime is down"], "{:?}", health.error);
        }
    }
}
