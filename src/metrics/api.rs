//! Requests to the API server.

use std::time::Duration;

use super::{Counter, Histogram, Instruments};

const LATENCIES: &[f64] = &[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
const SIZES: &[f64] =
    &[64.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0];
/// What stands for the status where there was no answer.
const NO_ANSWER: &str = "<error>";

static REQUESTS: Counter<3> = Counter::new(
    "rest_client_requests_total",
    "Requests to the API server, by the status of the answer.",
    ["code", "method", "host"],
);
static DURATION: Histogram<2> = Histogram::new(
    "rest_client_request_duration_seconds",
    "From a request to the API server to the head of its answer.",
    ["verb", "host"],
    LATENCIES,
);
static RATE_LIMITED: Histogram<2> = Histogram::new(
    "rest_client_rate_limiter_duration_seconds",
    "How long requests waited here for their turn.",
    ["verb", "host"],
    LATENCIES,
);
static REQUEST_BYTES: Histogram<2> =
    Histogram::new("rest_client_request_size_bytes", "Sizes of requests to the API server.", ["verb", "host"], SIZES);
static RESPONSE_BYTES: Histogram<2> = Histogram::new(
    "rest_client_response_size_bytes",
    "Sizes of the API server's answers, but for watches.",
    ["verb", "host"],
    SIZES,
);

pub(super) const ALL: Instruments = &[&REQUESTS, &DURATION, &RATE_LIMITED, &REQUEST_BYTES, &RESPONSE_BYTES];

/// A request has an answer, or none is to be hoped for.
pub fn answered(method: &str, host: &str, status: Option<u16>, took: Duration) {
    let code = status.map(|status| status.to_string());
    REQUESTS.add([code.as_deref().unwrap_or(NO_ANSWER), method, host]);
    DURATION.took([method, host], took);
}

/// A request of so many bytes has had its turn.
pub fn admitted(method: &str, host: &str, waited: Duration, bytes: usize) {
    RATE_LIMITED.took([method, host], waited);
    REQUEST_BYTES.observe([method, host], bytes as f64);
}

/// The answer was read to its end.
pub fn read(method: &str, host: &str, bytes: usize) {
    RESPONSE_BYTES.observe([method, host], bytes as f64);
}
