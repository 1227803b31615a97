//! Volumes: setting them up.

use std::time::Duration;

use super::{Histogram, Instruments};

static OPERATIONS: Histogram<4> = Histogram::new(
    "storage_operation_duration_seconds",
    "How long it took to set up a volume, or to bring it up to date.",
    ["volume_plugin", "operation_name", "status", "migrated"],
    &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0],
);

pub(super) const ALL: Instruments = &[&OPERATIONS];

pub fn mounted(plugin: &str, took: Duration, is_ok: bool) {
    OPERATIONS.took([plugin, "volume_mount", if is_ok { "success" } else { "fail-unknown" }, "false"], took);
}
