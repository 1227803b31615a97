//! The resources a container's status shows: what the spec grants, as the runtime has it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::config::Quantity;
use crate::config::quantity::parse;
use crate::cri;
use crate::host::cgroup_math::{quota_to_milli_cpu, shares_to_milli_cpu};
use crate::pod::resources::{self, pod_resources};

/// Below these the kernel's own minimum hides what was asked for.
const CPU_LIMIT_VISIBLE_MILLI: u64 = 10;
const CPU_REQUEST_VISIBLE_MILLI: u64 = 2;

type Amounts = BTreeMap<String, ApiQuantity>;

/// What the spec grants, written as the API server writes it: a static pod's manifest may
/// have it in other ways.
pub fn granted(container: &Container) -> ResourceRequirements {
    let canonical = |amounts: &Option<Amounts>| {
        let amounts = amounts.as_ref()?;
        let text = |amount: &ApiQuantity| parse(&amount.0).map_or_else(|_| amount.clone(), api);
        Some(amounts.iter().map(|(name, amount)| (name.clone(), text(amount))).collect())
    };
    let resources = container.resources.clone().unwrap_or_default();
    ResourceRequirements {
        limits: canonical(&resources.limits),
        requests: canonical(&resources.requests),
        claims: resources.claims,
    }
}

/// What the pod as a whole has been given. The API keeps no empty list.
pub(super) fn allocated(pod: &Pod) -> Option<Amounts> {
    some_amounts(pod_resources(pod).requests)
}

/// The same with its limits, told from the spec and not read back from the cgroup: what is small
/// or unlimited is something else there.
pub(super) fn granted_to_pod(pod: &Pod) -> ResourceRequirements {
    let resources = pod_resources(pod);
    ResourceRequirements {
        limits: some_amounts(resources.limits),
        requests: some_amounts(resources.requests),
        claims: None,
    }
}

fn some_amounts(amounts: resources::Amounts) -> Option<Amounts> {
    (!amounts.is_empty()).then(|| amounts.into_iter().map(|(name, amount)| (name, api(amount))).collect())
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
