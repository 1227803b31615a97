//! Resizes of pods: what was wished for, and how long it took.

use std::time::Duration;

use super::{Counter, Histogram, Instruments};

/// What a resize asked for.
pub static REQUESTED: Counter<3> = Counter::new(
    "kubelet_container_requested_resizes_total",
    "Changes of containers' resources that were asked for.",
    ["resource", "requirement", "operation"],
);
static DURATION: Histogram<1> = Histogram::new(
    "kubelet_pod_resize_duration_milliseconds",
    "How long it took to give a pod other resources.",
    ["success"],
    &[
        10.0, 50.0, 100.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0, 30000.0, 60000.0, 120000.0, 300000.0,
        600000.0,
    ],
);

pub(super) const ALL: Instruments = &[&REQUESTED, &DURATION];

pub fn carried_out(took: Duration, is_ok: bool) {
    DURATION.observe([if is_ok { "true" } else { "false" }], took.as_secs_f64() * 1000.0);
}
