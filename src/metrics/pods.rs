//! Pods and their containers: what was done with them.

use super::{Counter, Histogram, Instruments, SECONDS};

pub static CONTAINERS_PER_POD: Histogram<0> = Histogram::new(
    "kubelet_containers_per_pod_count",
    "How many containers pods have that came to this node.",
    [],
    &[1.0, 2.0, 4.0, 8.0, 16.0],
);
pub static WORKER_DURATION: Histogram<1> = Histogram::new(
    "kubelet_pod_worker_duration_seconds",
    "How long one pass over a pod took.",
    ["operation_type"],
    SECONDS,
);
pub static STATUS_SYNC_DURATION: Histogram<0> = Histogram::new(
    "kubelet_pod_status_sync_duration_seconds",
    "From the change of a pod's status to when the API server had it.",
    [],
    &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0],
);
pub static CGROUP_DURATION: Histogram<1> = Histogram::new(
    "kubelet_cgroup_manager_duration_seconds",
    "How long it took to make, change or remove a pod's cgroup.",
    ["operation_type"],
    SECONDS,
);
pub static STARTED_PODS: Counter<0> = Counter::new("kubelet_started_pods_total", "Sandboxes that were asked for.", []);
pub static STARTED_PODS_ERRORS: Counter<0> =
    Counter::new("kubelet_started_pods_errors_total", "Sandboxes that were asked for and not made.", []);
pub static STARTED_PODS_WITH_USERS: Counter<0> = Counter::new(
    "kubelet_started_user_namespaced_pods_total",
    "Sandboxes with users of their own that were asked for.",
    [],
);
pub static STARTED_PODS_WITH_USERS_ERRORS: Counter<0> = Counter::new(
    "kubelet_started_user_namespaced_pods_errors_total",
    "Sandboxes with users of their own that were asked for and not made.",
    [],
);
pub static STARTED_CONTAINERS: Counter<1> =
    Counter::new("kubelet_started_containers_total", "Attempts to start a container.", ["container_type"]);
pub static STARTED_CONTAINERS_ERRORS: Counter<2> = Counter::new(
    "kubelet_started_containers_errors_total",
    "Attempts to start a container that failed, by the reason that its status gives.",
    ["container_type", "code"],
);
pub static TERMINATED_CONTAINERS: Counter<3> = Counter::new(
    "kubelet_terminated_containers_total",
    "Containers that ended.",
    ["container_type", "exit_code", "reason"],
);
pub static ORPHANED_RUNTIME_PODS: Counter<0> = Counter::new(
    "kubelet_orphaned_runtime_pods_total",
    "Pods that only the runtime knew, and that were ended for it.",
    [],
);
pub static RESTARTED_PODS: Counter<1> = Counter::new(
    "kubelet_restarted_pods_total",
    "Pods that came back under their UID while they were ending.",
    ["static"],
);
pub static PREEMPTIONS: Counter<1> = Counter::new(
    "kubelet_preemptions",
    "Pods that were ended for a critical one, by what it lacked.",
    ["preemption_signal"],
);
pub static REJECTIONS: Counter<1> =
    Counter::new("kubelet_admission_rejections_total", "Pods that this node did not take.", ["reason"]);
pub static HTTP_FALLBACKS: Counter<0> = Counter::new(
    "kubelet_lifecycle_handler_http_fallbacks_total",
    "Hooks over HTTPS that were tried again over HTTP.",
    [],
);
pub static SLEEPS_CUT_SHORT: Counter<0> = Counter::new(
    "kubelet_sleep_action_terminated_early_total",
    "Hooks that sleep and were ended before their time.",
    [],
);

pub(super) const ALL: Instruments = &[
    &CONTAINERS_PER_POD,
    &WORKER_DURATION,
    &STATUS_SYNC_DURATION,
    &CGROUP_DURATION,
    &STARTED_PODS,
    &STARTED_PODS_ERRORS,
    &STARTED_PODS_WITH_USERS,
    &STARTED_PODS_WITH_USERS_ERRORS,
    &STARTED_CONTAINERS,
    &STARTED_CONTAINERS_ERRORS,
    &TERMINATED_CONTAINERS,
    &ORPHANED_RUNTIME_PODS,
    &RESTARTED_PODS,
    &PREEMPTIONS,
    &REJECTIONS,
    &HTTP_FALLBACKS,
    &SLEEPS_CUT_SHORT,
];

/// Shows from now on what dashboards divide by.
pub fn begin() {
    [false, true].into_iter().for_each(|is_static| RESTARTED_PODS.begin([static_label(is_static)]));
}

/// The value of `static` in labels.
pub fn static_label(is_static: bool) -> &'static str {
    if is_static { "true" } else { "" }
}
