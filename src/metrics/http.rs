//! Requests to the node's own API.

use std::time::Duration;

use super::{Counter, Gauge, Histogram, InProgress, Instruments, SECONDS};

const LABELS: [&str; 4] = ["method", "path", "server_type", "long_running"];

static REQUESTS: Counter<4> = Counter::new("kubelet_http_requests_total", "Requests to the node's own API.", LABELS);
static DURATION: Histogram<4> = Histogram::new(
    "kubelet_http_requests_duration_seconds",
    "From a request to the node's own API to the end of its answer.",
    LABELS,
    SECONDS,
);
static IN_FLIGHT: Gauge<4> =
    Gauge::new("kubelet_http_inflight_requests", "Requests to the node's own API that are under way.", LABELS);

pub(super) const ALL: Instruments = &[&REQUESTS, &DURATION, &IN_FLIGHT];

/// What a request is counted as; values in the order of the labels.
pub type Labels = [&'static str; 4];

/// A request has come. Its answer keeps the answer of this.
pub fn begun(labels: Labels) -> InProgress<4> {
    REQUESTS.add(labels);
    IN_FLIGHT.in_progress(labels)
}

#[cfg(test)]
pub fn in_flight(labels: Labels) -> f64 {
    IN_FLIGHT.value(labels).unwrap_or_default()
}

pub fn ended(labels: Labels, took: Duration) {
    DURATION.took(labels, took);
}
