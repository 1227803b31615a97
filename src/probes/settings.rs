//! A probe's fields with their defaults.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};

use super::ProbeKind;

/// When a probe runs and what decides. The API server fills defaults in and refuses what is
/// out of range; a static manifest comes as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub initial_delay: Duration,
    pub period: Duration,
    pub timeout: Duration,
    pub success_threshold: u32,
    pub failure_threshold: u32,
}

impl Settings {
    pub fn of(probe: &Probe) -> Self {
        let at_least_one = |value: Option<i32>, default: u32| match value.and_then(|value| u32::try_from(value).ok()) {
            None | Some(0) => default,
            Some(value) => value,
        };
        let seconds = |value, default| Duration::from_secs(at_least_one(value, default).into());
        Settings {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            success_threshold: at_least_one(probe.success_threshold, 1),
            failure_threshold: at_least_one(probe.failure_threshold, 3),
        }
    }
}

impl ProbeKind {
    /// The container's probe of this kind.
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            ProbeKind::Startup => container.startup_probe.as_ref(),
            ProbeKind::Liveness => container.liveness_probe.as_ref(),
            ProbeKind::Readiness => container.readiness_probe.as_ref(),
        }
    }
}
