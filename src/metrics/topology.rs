//! Places on the machine: what was asked for, and what is given.

use std::time::Duration;

use super::{Counter, Gauge, Histogram, Instruments};

pub static ADMISSION_REQUESTS: Counter<0> = Counter::new(
    "kubelet_topology_manager_admission_requests_total",
    "Pods whose resources were to be aligned at their admission.",
    [],
);
pub static ADMISSION_ERRORS: Counter<0> = Counter::new(
    "kubelet_topology_manager_admission_errors_total",
    "Pods that were refused because their resources could not be aligned.",
    [],
);
static ADMISSION_DURATION: Histogram<0> = Histogram::new(
    "kubelet_topology_manager_admission_duration_ms",
    "How long it took to give a pod its place.",
    [],
    &[0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8, 409.6, 819.2],
);
pub static ALIGNED: Counter<2> = Counter::new(
    "kubelet_container_aligned_compute_resources_count",
    "Containers whose resources are aligned as the policy promises.",
    ["scope", "boundary"],
);
pub static NOT_ALIGNED: Counter<2> = Counter::new(
    "kubelet_container_aligned_compute_resources_failure_count",
    "Containers whose resources could not be aligned.",
    ["scope", "boundary"],
);
pub static CPU_REQUESTS: Counter<0> =
    Counter::new("kubelet_cpu_manager_pinning_requests_total", "Requests for CPUs of one's own.", []);
pub static CPU_ERRORS: Counter<0> =
    Counter::new("kubelet_cpu_manager_pinning_errors_total", "Requests for CPUs of one's own that failed.", []);
pub static SHARED_POOL: Gauge<0> = Gauge::new(
    "kubelet_cpu_manager_shared_pool_size_millicores",
    "Thousandths of CPUs that containers without CPUs of their own share.",
    [],
);
pub static EXCLUSIVE_CPUS: Gauge<0> =
    Gauge::new("kubelet_cpu_manager_exclusive_cpu_allocation_count", "CPUs that belong to one container.", []);
pub static EXCLUSIVE_PER_NODE: Gauge<1> = Gauge::new(
    "kubelet_cpu_manager_allocation_per_numa",
    "CPUs that belong to one container, by NUMA node.",
    ["numa_node"],
);
pub static MEMORY_REQUESTS: Counter<0> =
    Counter::new("kubelet_memory_manager_pinning_requests_total", "Requests for memory of chosen NUMA nodes.", []);
pub static MEMORY_ERRORS: Counter<0> = Counter::new(
    "kubelet_memory_manager_pinning_errors_total",
    "Requests for memory of chosen NUMA nodes that failed.",
    [],
);

pub(super) const ALL: Instruments = &[
    &ADMISSION_REQUESTS,
    &ADMISSION_ERRORS,
    &ADMISSION_DURATION,
    &ALIGNED,
    &NOT_ALIGNED,
    &CPU_REQUESTS,
    &CPU_ERRORS,
    &SHARED_POOL,
    &EXCLUSIVE_CPUS,
    &EXCLUSIVE_PER_NODE,
    &MEMORY_REQUESTS,
    &MEMORY_ERRORS,
];

pub fn admitted(took: Duration) {
    ADMISSION_REQUESTS.add([]);
    ADMISSION_DURATION.observe([], took.as_secs_f64() * 1000.0);
}
