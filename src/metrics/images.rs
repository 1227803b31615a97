//! Images: who asked for them, and how pulls went.

use std::time::Duration;

use super::{Counter, Gauge, Histogram, Instruments, SECONDS};

static PULL_DURATION: Histogram<1> = Histogram::new(
    "kubelet_image_pull_duration_seconds",
    "How long pulls took that succeeded, by the size of the image.",
    ["image_size_in_bytes"],
    &[
        1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0,
        2700.0, 3600.0,
    ],
);
static REQUESTS: Counter<3> = Counter::new(
    "kubelet_image_manager_ensure_image_requests_total",
    "Containers and volumes that asked for an image.",
    ["pull_policy", "present_locally", "pull_required"],
);
static MUST_PULL_CHECKS: Counter<1> = Counter::new(
    "kubelet_imagemanager_image_mustpull_checks_total",
    "Whether pods may use an image that is on the node.",
    ["result"],
);
static PROVIDER_DURATION: Histogram<1> = Histogram::new(
    "kubelet_credential_provider_plugin_duration",
    "How long credential providers took, in seconds.",
    ["plugin_name"],
    SECONDS,
);
static PROVIDER_ERRORS: Counter<1> = Counter::new(
    "kubelet_credential_provider_plugin_errors_total",
    "Credential providers that gave no answer.",
    ["plugin_name"],
);
pub static VOLUMES_REQUESTED: Counter<0> =
    Counter::new("kubelet_image_volume_requested_total", "Image volumes that containers asked for.", []);
pub static VOLUMES_MOUNTED: Counter<0> =
    Counter::new("kubelet_image_volume_mounted_succeed_total", "Image volumes that were mounted.", []);
pub static VOLUMES_ERRORS: Counter<0> =
    Counter::new("kubelet_image_volume_mounted_errors_total", "Image volumes that could not be mounted.", []);

static RECORDS: Gauge<0> =
    Gauge::new("kubelet_imagemanager_ondisk_pulledrecords", "Records of images that were pulled.", []);
static INTENTS: Gauge<0> = Gauge::new(
    "kubelet_imagemanager_ondisk_pullintents",
    "Records of pulls that have begun, and of which nobody knows that they ended.",
    [],
);

pub(super) const ALL: Instruments = &[
    &RECORDS,
    &INTENTS,
    &PULL_DURATION,
    &REQUESTS,
    &MUST_PULL_CHECKS,
    &PROVIDER_DURATION,
    &PROVIDER_ERRORS,
    &VOLUMES_REQUESTED,
    &VOLUMES_MOUNTED,
    &VOLUMES_ERRORS,
];

/// What was found out of a request for an image. `None` is unknown.
pub fn requested(policy: &str, is_present: Option<bool>, must_pull: Option<bool>) {
    let policy = match policy {
        "Always" => "always",
        "Never" => "never",
        _ => "ifnotpresent",
    };
    let word = |known: Option<bool>| match known {
        Some(true) => "true",
        Some(false) => "false",
        None => "unknown",
    };
    REQUESTS.add([policy, word(is_present), word(must_pull)]);
}

/// What somebody's right to use an image came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Policy,
    Record,
    MustAuthenticate,
    Unknown,
}

pub fn access_checked(access: Access) {
    MUST_PULL_CHECKS.add([match access {
        Access::Policy => "credentialPolicyAllowed",
        Access::Record => "credentialRecordFound",
        Access::MustAuthenticate => "mustAuthenticate",
        Access::Unknown => "error",
    }]);
}

/// So many records there are.
pub fn recorded(pulled: usize, intended: usize) {
    RECORDS.set([], pulled as f64);
    INTENTS.set([], intended as f64);
}

pub fn pulled(bytes: u64, took: Duration) {
    PULL_DURATION.took([size(bytes)], took);
}

pub fn provider_asked(name: &str, took: Duration, is_ok: bool) {
    PROVIDER_DURATION.took([name], took);
    if !is_ok {
        PROVIDER_ERRORS.add([name]);
    }
}

/// Upstream's classes of sizes.
fn size(bytes: u64) -> &'static str {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    const CLASSES: [(u64, &str); 11] = [
        (10 * MIB, "0-10MB"),
        (100 * MIB, "10MB-100MB"),
        (500 * MIB, "100MB-500MB"),
        (GIB, "500MB-1GB"),
        (5 * GIB, "1GB-5GB"),
        (10 * GIB, "5GB-10GB"),
        (20 * GIB, "10GB-20GB"),
        (30 * GIB, "20GB-30GB"),
        (40 * GIB, "30GB-40GB"),
        (60 * GIB, "40GB-60GB"),
        (100 * GIB, "60GB-100GB"),
    ];
    match bytes {
        0 => "N/A",
        bytes => CLASSES.iter().find(|(below, _)| bytes < *below).map_or("GT100GB", |(_, class)| class),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_by_class() {
        for (bytes, class) in [
            (0, "N/A"),
            (1, "0-10MB"),
            (10 << 20, "10MB-100MB"),
            ((1 << 30) - 1, "500MB-1GB"),
            (1 << 30, "1GB-5GB"),
            (100 << 30, "GT100GB"),
        ] {
            assert_eq!(size(bytes), class, "{bytes}");
        }
    }
}
