//! Reading what the runtime holds.

use super::{Counter, Histogram, Instruments, SECONDS};

pub static RELIST_DURATION: Histogram<0> = Histogram::new(
    "kubelet_pleg_relist_duration_seconds",
    "How long it took to list all that the runtime holds.",
    [],
    SECONDS,
);
pub static RELIST_INTERVAL: Histogram<0> = Histogram::new(
    "kubelet_pleg_relist_interval_seconds",
    "From one list of all that the runtime holds to the next.",
    [],
    SECONDS,
);
pub static READ_DURATION: Histogram<0> = Histogram::new(
    "kubelet_pleg_pod_relist_duration_seconds",
    "How long it took to read one pod from the runtime.",
    [],
    SECONDS,
);
/// Nothing is ever discarded: events mark a pod, and a pod is marked once.
static DISCARDED: Counter<0> =
    Counter::new("kubelet_pleg_discard_events", "Events of the runtime that were lost here.", []);
pub static STREAMS: Counter<0> =
    Counter::new("kubelet_evented_pleg_connection_success_count", "Event streams of the runtime that were opened.", []);
pub static STREAM_ERRORS: Counter<0> = Counter::new(
    "kubelet_evented_pleg_connection_error_count",
    "Event streams of the runtime that broke, or were refused.",
    [],
);
pub static STREAM_DURATION: Histogram<0> = Histogram::new(
    "kubelet_evented_pleg_connection_latency_seconds",
    "How long event streams of the runtime lasted.",
    [],
    SECONDS,
);

pub(super) const ALL: Instruments =
    &[&RELIST_DURATION, &RELIST_INTERVAL, &READ_DURATION, &DISCARDED, &STREAMS, &STREAM_ERRORS, &STREAM_DURATION];
