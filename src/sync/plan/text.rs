//! Plans as text, for golden tests and for people.

use std::fmt;

use super::{Action, Plan, StopWhy};
use crate::config::GoDuration;
use crate::probes::ProbeKind;

/// One action a line; this is what golden tests and people read.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for action in &self.actions {
            writeln!(f, "{action}")?;
        }
        for held in &self.held {
            writeln!(f, "hold {} for its back-off of {}", held.name, GoDuration::from(held.backoff))?;
        }
        if self.waits_for_network {
            writeln!(f, "wait for the network")?;
        }
        if self.reached {
            writeln!(f, "done")?;
        }
        Ok(())
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Prepare => write!(f, "prepare directories, cgroup and volumes"),
            Action::CreateSandbox { attempt, .. } => write!(f, "create sandbox {attempt}"),
            Action::StartContainer { name, attempt: None, .. } => write!(f, "start {name}"),
            Action::StartContainer { name, attempt: Some(attempt), .. } => {
                write!(f, "start {name} again, attempt {attempt}")
            }
            Action::ResumeContainer { name, .. } => write!(f, "start {name}, already created"),
            Action::StopContainer { name, why, .. } => write!(
                f,
                "stop {name} because {}",
                match why {
                    StopWhy::PodStops => "the pod stops",
                    StopWhy::DefinitionChanged => "its definition changed",
                    StopWhy::Resized => "it gets other resources",
                    StopWhy::HookFailed => "its postStart hook failed",
                    StopWhy::SandboxReplaced => "its sandbox is replaced",
                    StopWhy::StateUnknown => "its state is unknown",
                    StopWhy::AllRestart => "all containers restart",
                    StopWhy::ProbeFailed { probe: ProbeKind::Startup, .. } => "its startup probe failed",
                    StopWhy::ProbeFailed { .. } => "its liveness probe failed",
                }
            ),
            Action::RemoveContainer { name, keep_log: false, .. } => write!(f, "remove a dead {name}"),
            Action::RemoveContainer { name, keep_log: true, .. } => write!(f, "remove a dead {name} but for its log"),
            Action::Resize(resize) => write!(f, "{resize}"),
            Action::StopSandbox { .. } => write!(f, "stop sandbox"),
            Action::RemoveSandbox { .. } => write!(f, "remove sandbox"),
        }
    }
}
