//! Requests and limits as the runtime takes them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::{LaunchConfig, MemoryQos};
use crate::admission::is_critical;
use crate::config::quantity::{self, Quantity};
use crate::cri::LinuxResources;
use crate::host::cgroup_math::{SHARES_MIN, hugepage_size_name, milli_cpu_to_quota, milli_cpu_to_shares};
use crate::host::{CgroupVersion, page_bytes};
use crate::pod::containers::{is_sidecar, regular_containers, workload_containers};
use crate::pod::qos::{self, QosClass};
use crate::pod::resources::{Amounts, Resources, amounts, pod_resources_without_overhead};
use crate::pod::{self, Source, spec};
use crate::topology::Places;

const OOM_SCORE_GUARANTEED: i64 = -997;
const OOM_SCORE_BEST_EFFORT: i64 = 1000;
/// What is left between the other two for Burstable containers.
const OOM_SCORE_BURSTABLE_MIN: i64 = 1000 + OOM_SCORE_GUARANTEED;
const OOM_SCORE_BURSTABLE_MAX: i64 = OOM_SCORE_BEST_EFFORT - 1;

pub(super) fn sandbox_resources(pod: &Pod, config: &LaunchConfig) -> LinuxResources {
    let sum = pod_resources_without_overhead(pod);
    linux_resources(&sum.requests, &sum.limits, config)
}

pub(super) fn overhead_resources(pod: &Pod, config: &LaunchConfig) -> LinuxResources {
    let Some(overhead) = &spec(pod).overhead else {
        return LinuxResources::default();
    };
    let overhead = amounts(Some(overhead));
    linux_resources(&overhead, &overhead, config)
}

pub fn container_resources(pod: &Pod, container: &Container, places: &Places, config: &LaunchConfig) -> LinuxResources {
    let mut own = Resources::of_container(container);
    let pod_limits = amounts(spec(pod).resources.as_ref().and_then(|resources| resources.limits.as_ref()));
    // A container without a limit of its own is held to the pod's.
    for (name, limit) in pod_limits {
        let unset = own.limits.get(&name).is_none_or(|limit| limit.is_zero());
        if unset {
            own.limits.insert(name, limit);
        }
    }
    let mut resources = linux_resources(&own.requests, &own.limits, config);
    resources.oom_score_adj = oom_score_adj(pod, container, config.memory_bytes);
    resources.hugepage_limits = hugepage_limits(&own.limits, &config.cgroups.hugepage_sizes);
    limit_swap(&mut resources, pod, &own, config);
    if let Some(qos) = config.cgroups.memory_qos {
        let kept = if qos.is_tiered { qos::class(pod) } else { QosClass::BestEffort };
        resources.unified.extend(memory_qos(&own, kept, qos, config.cgroups.memory_allocatable_bytes));
    }
    places.put_into(&container.name, &mut resources);
    resources
}

fn linux_resources(requests: &Amounts, limits: &Amounts, config: &LaunchConfig) -> LinuxResources {
    let milli_cpu = |amounts: &Amounts| amounts.get("cpu").map(|cpu| positive(cpu.milli_value()));
    let cpu_limit = milli_cpu(limits).unwrap_or(0);
    let shares = milli_cpu(requests).or(milli_cpu(limits)).map_or(SHARES_MIN, milli_cpu_to_shares);
    let mut resources = LinuxResources {
        cpu_shares: capped(shares),
        memory_limit_bytes: limits.get("memory").map_or(0, |memory| memory.value().max(0)),
        ..LinuxResources::default()
    };
    let cgroups = &config.cgroups;
    if cgroups.cpu_cfs_quota {
        resources.cpu_quota = milli_cpu_to_quota(cpu_limit, cgroups.cpu_cfs_quota_period_us);
        resources.cpu_period = capped(cgroups.cpu_cfs_quota_period_us);
    }
    if cgroups.version == CgroupVersion::V2 && !config.single_process_oom_kill {
        resources.unified = BTreeMap::from([("memory.oom.group".to_owned(), "1".to_owned())]);
    }
    resources
}

/// Swap is for containers that could be told how much of it is theirs, where it is for anybody.
fn limit_swap(resources: &mut LinuxResources, pod: &Pod, own: &Resources, config: &LaunchConfig) {
    match config.cgroups.version {
        _ if !config.swap_controller => {}
        // On v1 the limit is one of memory and swap together.
        CgroupVersion::V1 => resources.memory_swap_limit_bytes = resources.memory_limit_bytes,
        CgroupVersion::V2 => {
            let swap = swap_bytes(pod, own, config).to_string();
            resources.unified.insert("memory.swap.max".into(), swap);
        }
    }
}

/// The part of the node's swap that the request is of the node's memory.
fn swap_bytes(pod: &Pod, own: &Resources, config: &LaunchConfig) -> u64 {
    let source = pod.metadata.annotations.as_ref().map_or(Source::Api, Source::of_annotations);
    let (request, limit) = (positive(amount(&own.requests, "memory").value()), amount(&own.limits, "memory").value());
    if qos::class(pod) != QosClass::Burstable || is_critical(pod, source) || positive(limit) == request {
        return 0;
    }
    let swap = u128::from(request) * u128::from(config.swap_bytes) / u128::from(config.memory_bytes.max(1));
    swap.try_into().unwrap_or(u64::MAX)
}

/// What is kept for a container of the class, and where it is slowed down.
fn memory_qos(own: &Resources, kept: QosClass, qos: MemoryQos, allocatable_bytes: u64) -> Vec<(String, String)> {
    let request = positive(amount(&own.requests, "memory").value());
    let limit = positive(amount(&own.limits, "memory").value());
    let of_class = |class| if class == kept { request } else { 0 };
    let mut files = vec![
        ("memory.min".to_owned(), of_class(QosClass::Guaranteed).to_string()),
        ("memory.low".to_owned(), of_class(QosClass::Burstable).to_string()),
    ];
    if request != limit {
        let top = if limit == 0 { allocatable_bytes } else { limit };
        let way = (top.saturating_sub(request) as f64 * qos.throttling_factor) as u64;
        let page = page_bytes();
        let high = request.saturating_add(way) / page * page;
        if high > request {
            files.push(("memory.high".to_owned(), high.to_string()));
        }
    }
    files
}

/// A limit for every page size of the machine, nothing where nothing was asked for.
pub(super) fn hugepage_limits(limits: &Amounts, sizes: &[u64]) -> Vec<(String, u64)> {
    let asked = |size: u64| {
        let of_size =
            |name: &str| name.strip_prefix("hugepages-").is_some_and(|text| quantity_bytes(text) == Some(size));
        limits.iter().find(|(name, _)| of_size(name)).map_or(0, |(_, limit)| positive(limit.value()))
    };
    sizes.iter().map(|size| (hugepage_size_name(*size), asked(*size))).collect()
}

fn quantity_bytes(text: &str) -> Option<u64> {
    quantity::parse(text).ok().map(|size| positive(size.value()))
}

/// How readily the kernel kills the container when the machine runs out of memory: the less
/// of it a Burstable container asked for, the sooner.
fn oom_score_adj(pod: &Pod, container: &Container, memory_bytes: u64) -> i64 {
    let critical = spec(pod).priority_class_name.as_deref() == Some("system-node-critical");
    match qos::class(pod) {
        _ if critical => return OOM_SCORE_GUARANTEED,
        QosClass::Guaranteed => return OOM_SCORE_GUARANTEED,
        QosClass::BestEffort => return OOM_SCORE_BEST_EFFORT,
        QosClass::Burstable => {}
    }
    let share = unclaimed_memory_share(pod);
    let score = |request: i64| 1000 - (i128::from(request + share) * 1000 / i128::from(memory_bytes.max(1))) as i64;
    let mut own = score(memory_request(container));
    if is_sidecar(container) {
        // A sidecar goes no sooner than the containers it serves.
        let least = regular_containers(pod).iter().map(memory_request).min().unwrap_or(0);
        own = own.min(score(least));
    }
    own.clamp(OOM_SCORE_BURSTABLE_MIN, OOM_SCORE_BURSTABLE_MAX)
}

fn memory_request(container: &Container) -> i64 {
    amount(&Resources::of_container(container).requests, "memory").value()
}

/// What a pod-level request leaves over its containers' requests, divided evenly among them.
fn unclaimed_memory_share(pod: &Pod) -> i64 {
    let pod_level = Resources::of(spec(pod).resources.as_ref());
    let unclaimed = amount(&pod_level.requests, "memory").value()
        - amount(&pod::resources::container_resources(pod).requests, "memory").value();
    let containers = workload_containers(pod).count().max(1);
    unclaimed.max(0) / i64::try_from(containers).unwrap_or(i64::MAX)
}

pub(super) fn positive(amount: i64) -> u64 {
    u64::try_from(amount).unwrap_or(0)
}

fn capped(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

/// The amount of one resource, or nothing.
pub(super) fn amount(amounts: &Amounts, name: &str) -> Quantity {
    amounts.get(name).copied().unwrap_or(Quantity::ZERO)
}
