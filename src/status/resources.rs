//! The resources a container's status shows: what the spec grants, as the runtime has it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::config::Quantity;
use crate::config::quantity::parse;
use crate::cri;
use crate::host::CgroupSettings;
use crate::host::cgroup_math::{MEMORY_UNLIMITED, quota_to_milli_cpu, shares_to_milli_cpu};
use crate::pod::resources::{Resources, pod_resources};
use crate::pod::spec;

/// Below these the kernel's own minimum hides what was asked for.
const CPU_LIMIT_VISIBLE_MILLI: u64 = 10;
const CPU_REQUEST_VISIBLE_MILLI: u64 = 2;

type Amounts = BTreeMap<String, ApiQuantity>;

/// What the spec grants, written as the API server writes it: a static pod's manifest may
/// have it in other ways.
pub fn granted(container: &Container) -> ResourceRequirements {
    container.resources.as_ref().map_or_else(ResourceRequirements::default, canonical)
}

fn canonical(resources: &ResourceRequirements) -> ResourceRequirements {
    let canonical = |amounts: &Option<Amounts>| {
        let amounts = amounts.as_ref()?;
        let text = |amount: &ApiQuantity| parse(&amount.0).map_or_else(|_| amount.clone(), api);
        Some(amounts.iter().map(|(name, amount)| (name.clone(), text(amount))).collect())
    };
    ResourceRequirements {
        limits: canonical(&resources.limits),
        requests: canonical(&resources.requests),
        claims: resources.claims.clone(),
    }
}

/// What the pod takes in all, by its spec: the allocation.
pub(super) fn allocated_of_pod(pod: &Pod) -> Option<Amounts> {
    list(&pod_resources(pod).requests)
}

/// The same with its limits: of a pod that runs or is being resized as its cgroup `has_its_own`.
/// `cgroup` is what that was set to; until this life of the agent has set it, what was told before
/// stands.
pub(super) fn of_pod(
    pod: &Pod,
    has_its_own: bool,
    cgroup: Option<&CgroupSettings>,
    earlier: Option<&ResourceRequirements>,
) -> ResourceRequirements {
    let Resources { requests, limits } = pod_resources(pod);
    let own = spec(pod).resources.as_ref().map(canonical).unwrap_or_default();
    let Some(cgroup) = cgroup.filter(|_| has_its_own) else {
        let by_spec = || ResourceRequirements { limits: list(&limits), requests: list(&requests), claims: own.claims };
        return earlier.filter(|_| has_its_own).cloned().unwrap_or_else(by_spec);
    };
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let has = cri::LinuxResources {
        cpu_shares: cgroup.cpu_shares.map_or(0, signed),
        cpu_quota: cgroup.cpu_quota.unwrap_or(0),
        cpu_period: cgroup.cpu_period.map_or(0, signed),
        memory_limit_bytes: cgroup.memory_limit_bytes.filter(|limit| *limit < MEMORY_UNLIMITED).map_or(0, signed),
        ..cri::LinuxResources::default()
    };
    let mut shown = actual(own, &has);
    if let Some(memory) = requests.get("memory") {
        shown.requests.get_or_insert_default().entry("memory".to_owned()).or_insert_with(|| api(*memory));
    }
    shown
}

fn list(amounts: &crate::pod::resources::Amounts) -> Option<Amounts> {
    Some(amounts.iter().map(|(name, amount)| (name.clone(), api(*amount))).collect())
        .filter(|all: &Amounts| !all.is_empty())
}

/// The same as the runtime enforces it, where it says so.
pub(super) fn actual(granted: ResourceRequirements, running: &cri::LinuxResources) -> ResourceRequirements {
    let ResourceRequirements { mut limits, mut requests, claims } = granted;
    let unsigned = |value: i64| u64::try_from(value).unwrap_or(0);
    let limit = quota_to_milli_cpu(running.cpu_quota, unsigned(running.cpu_period));
    overlay_cpu(&mut limits, limit, CPU_LIMIT_VISIBLE_MILLI);
    overlay_cpu(&mut requests, shares_to_milli_cpu(unsigned(running.cpu_shares)), CPU_REQUEST_VISIBLE_MILLI);
    if running.memory_limit_bytes > 0 {
        overlay(&mut limits, "memory", Quantity::bytes(running.memory_limit_bytes));
    }
    ResourceRequirements { limits, requests, claims }
}

fn overlay_cpu(amounts: &mut Option<Amounts>, milli: u64, visible: u64) {
    let granted = amounts.as_ref().and_then(|amounts| parse(&amounts.get("cpu")?.0).ok());
    let granted = granted.map_or(0, |granted| u64::try_from(granted.milli_value()).unwrap_or(0));
    if milli > 0 && (milli > visible || granted > visible) {
        overlay(amounts, "cpu", Quantity::milli(i64::try_from(milli).unwrap_or(i64::MAX)));
    }
}

/// Equal amounts keep the text they have.
fn overlay(amounts: &mut Option<Amounts>, name: &str, amount: Quantity) {
    let known = amounts.as_ref().and_then(|amounts| parse(&amounts.get(name)?.0).ok());
    if known != Some(amount) {
        amounts.get_or_insert_default().insert(name.to_owned(), api(amount));
    }
}

fn api(amount: Quantity) -> ApiQuantity {
    ApiQuantity(amount.to_string())
}
