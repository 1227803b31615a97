//! How the node came up, phase by phase. Zero until it has.

use std::time::Duration;

use super::{Gauge, Instruments, process};

static BEFORE_AGENT: Gauge<0> = Gauge::new(
    "kubelet_node_startup_pre_kubelet_duration_seconds",
    "From the start of the machine to that of the agent.",
    [],
);
static BEFORE_REGISTRATION: Gauge<0> = Gauge::new(
    "kubelet_node_startup_pre_registration_duration_seconds",
    "From the start of the agent to its first attempt to register the Node.",
    [],
);
static REGISTRATION: Gauge<0> =
    Gauge::new("kubelet_node_startup_registration_duration_seconds", "How long it took to register the Node.", []);
static AFTER_REGISTRATION: Gauge<0> = Gauge::new(
    "kubelet_node_startup_post_registration_duration_seconds",
    "From the registration of the Node to when it was Ready.",
    [],
);
static ALL_OF_IT: Gauge<0> = Gauge::new(
    "kubelet_node_startup_duration_seconds",
    "From the start of the machine to when its Node was Ready.",
    [],
);

pub(super) const ALL: Instruments =
    &[&BEFORE_AGENT, &BEFORE_REGISTRATION, &REGISTRATION, &AFTER_REGISTRATION, &ALL_OF_IT];

/// The phases of a start that has just come to its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phases {
    pub before_registration: Duration,
    pub registration: Duration,
    pub after_registration: Duration,
}

pub fn started(phases: Phases) {
    let Phases { before_registration, registration, after_registration } = phases;
    let of_agent = before_registration + registration + after_registration;
    let since_boot = process::since_boot().unwrap_or(of_agent);
    let gauges = [
        (&BEFORE_AGENT, since_boot.saturating_sub(of_agent)),
        (&BEFORE_REGISTRATION, before_registration),
        (&REGISTRATION, registration),
        (&AFTER_REGISTRATION, after_registration),
        (&ALL_OF_IT, since_boot.max(of_agent)),
    ];
    gauges.iter().for_each(|(gauge, duration)| gauge.set([], duration.as_secs_f64()));
}
