//! Calls of the container runtime.

use std::time::Duration;

use super::{Counter, Histogram, Instruments, SECONDS};

static OPERATIONS: Counter<1> =
    Counter::new("kubelet_runtime_operations_total", "Calls of the container runtime.", ["operation_type"]);
static OPERATIONS_DURATION: Histogram<1> = Histogram::new(
    "kubelet_runtime_operations_duration_seconds",
    "How long calls of the container runtime took.",
    ["operation_type"],
    // 0.005 times powers of 2.5, as Go's doubles have them.
    &[
        0.005,
        0.0125,
        0.03125,
        0.078125,
        0.1953125,
        0.48828125,
        1.220703125,
        3.0517578125,
        7.62939453125,
        19.073486328125,
        47.6837158203125,
        119.20928955078125,
        298.0232238769531,
        745.0580596923828,
    ],
);
static OPERATIONS_ERRORS: Counter<1> = Counter::new(
    "kubelet_runtime_operations_errors_total",
    "Calls of the container runtime that failed.",
    ["operation_type"],
);
static RUN_SANDBOX_DURATION: Histogram<1> = Histogram::new(
    "kubelet_run_podsandbox_duration_seconds",
    "How long it took to make sandboxes.",
    ["runtime_handler"],
    SECONDS,
);
static RUN_SANDBOX_ERRORS: Counter<1> =
    Counter::new("kubelet_run_podsandbox_errors_total", "Sandboxes that could not be made.", ["runtime_handler"]);

pub(super) const ALL: Instruments =
    &[&OPERATIONS, &OPERATIONS_DURATION, &OPERATIONS_ERRORS, &RUN_SANDBOX_DURATION, &RUN_SANDBOX_ERRORS];

/// A call of this name in CRI has come back.
pub fn called(call: &str, took: Duration, is_ok: bool) {
    let operation = operation(call);
    OPERATIONS.add([operation]);
    OPERATIONS_DURATION.took([operation], took);
    if !is_ok {
        OPERATIONS_ERRORS.add([operation]);
    }
}

#[cfg(test)]
pub fn failures(call: &str) -> u64 {
    OPERATIONS_ERRORS.count([operation(call)])
}

/// A sandbox was asked for, and is there if that `is_ok`.
pub fn ran_sandbox(handler: &str, took: Duration, is_ok: bool) {
    RUN_SANDBOX_DURATION.took([handler], took);
    if !is_ok {
        RUN_SANDBOX_ERRORS.add([handler]);
    }
}

/// Upstream's name of a call.
fn operation(call: &str) -> &'static str {
    match call {
        "Version" => "version",
        "Status" => "status",
        "RuntimeConfig" => "runtime_config",
        "UpdateRuntimeConfig" => "update_runtime_config",
        "ListPodSandbox" => "list_podsandbox",
        "PodSandboxStatus" => "podsandbox_status",
        "RunPodSandbox" => "run_podsandbox",
        "StopPodSandbox" => "stop_podsandbox",
        "RemovePodSandbox" => "remove_podsandbox",
        "ListContainers" => "list_containers",
        "ContainerStatus" => "container_status",
        "CreateContainer" => "create_container",
        "StartContainer" => "start_container",
        "StopContainer" => "stop_container",
        "RemoveContainer" => "remove_container",
        "UpdateContainerResources" => "update_container",
        "ContainerStats" => "container_stats",
        "ListContainerStats" => "list_container_stats",
        "PodSandboxStats" => "podsandbox_stats",
        "ListPodSandboxStats" => "list_podsandbox_stats",
        "ListMetricDescriptors" => "list_metric_descriptors",
        "ListPodSandboxMetrics" => "list_podsandbox_metrics",
        "CheckpointContainer" => "checkpoint_container",
        "ReopenContainerLog" => "reopen_container_log",
        "ExecSync" => "exec_sync",
        "Exec" => "exec",
        "Attach" => "attach",
        "PortForward" => "port_forward",
        "GetContainerEvents" => "get_container_events",
        "ImageStatus" => "image_status",
        "PullImage" => "pull_image",
        "ListImages" => "list_images",
        "RemoveImage" => "remove_image",
        "ImageFsInfo" => "image_fs_info",
        _ => "other",
    }
}
