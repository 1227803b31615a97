//! Of resizes, once faults have stopped: what is told to be allocated fits on the node and is
//! what the runtime has; it is the wish, or else there is no room for that.

use std::collections::BTreeMap;

use ferrolet::config::Quantity;
use ferrolet::config::quantity::parse;
use ferrolet::pod::allocation::{is_allocated, of_status};
use ferrolet::pod::resources::pod_resources;
use ferrolet::sync::launch;
use ferrolet::topology::Places;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::Judge;
use crate::agent::launch_config;
use crate::cluster::{is_mirror, is_terminal, phase};
use crate::invariants::Invariant;
use crate::pods::{self, name};

impl Judge<'_> {
    pub(super) fn resizes(&mut self, api: &[Pod]) {
        let holds = |pod: &&Pod| {
            let ended = pod.status.as_ref().is_some_and(|status| is_terminal(phase(status)));
            !is_mirror(pod) && !ended && !pods::is_refused(pod)
        };
        let statics: Vec<Pod> = self.machine.static_pods().values().map(|pod| (**pod).clone()).collect();
        let statics = statics.iter().filter(|pod| !pods::is_refused(pod)).map(|pod| (pods::uid(pod), memory(pod)));
        let of_api = api.iter().filter(holds).map(|pod| (pods::uid(pod), memory(&of_status(&pod.clone().into()))));
        let allocated: BTreeMap<&str, i64> = of_api.chain(statics).collect();
        let allocatable = self.machine.cluster.node().and_then(|node| node.status?.allocatable?.remove("memory"));
        let allocatable = allocatable.and_then(|text| parse(&text.0).ok()).map_or(0, Quantity::value);
        let sum: i64 = allocated.values().sum();
        if sum > allocatable {
            let what = format!("{allocated:?} are {sum} bytes and there are {allocatable}");
            self.complain(Invariant::AllocationsFit, what);
        }
        for pod in api.iter().filter(holds).filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let Some(status) = &pod.status else { continue };
            let others = sum - allocated.get(pods::uid(pod)).copied().unwrap_or(0);
            self.resize(pod, status, allocatable - others);
        }
    }

    fn resize(&mut self, pod: &Pod, status: &PodStatus, room: i64) {
        let is_told = |kind: &str| status.conditions.iter().flatten().any(|it| it.type_ == kind && it.status == "True");
        let allocated = of_status(&pod.clone().into());
        let is_pending = is_told("PodResizePending");
        if is_told("PodResizeInProgress") {
            self.complain(Invariant::AllocationsAreActual, format!("a resize of {} is not over", name(pod)));
        }
        let is_granted = is_allocated(pod, &allocated);
        if is_granted == is_pending {
            let what = format!("{} has what it wishes for: {is_granted}, and is told to wait: {is_pending}", name(pod));
            self.complain(Invariant::WishesAreAnswered, what);
        }
        if is_pending && memory(pod) <= room {
            let what = format!("{} waits for {} bytes and there are {room}", name(pod), memory(pod));
            self.complain(Invariant::WishesAreAnswered, what);
        }
        if !is_pending {
            self.as_a_whole(pod);
        }
        let config = launch_config();
        let spec = pods::spec(&allocated);
        for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            let target = launch::container_resources(&allocated, container, &Places::default(), &config);
            for id in self.machine.runtime.running(pods::uid(pod), &container.name) {
                let has = self.machine.runtime.resources(&id).unwrap_or_default();
                // No limit was never given, or taken away.
                let (limit, wanted) = (has.memory_limit_bytes.max(0), target.memory_limit_bytes.max(0));
                if (has.cpu_shares, limit) != (target.cpu_shares, wanted) {
                    let what = format!("{}/{} has {has:?} and shall have {target:?}", name(pod), container.name);
                    self.complain(Invariant::AllocationsAreActual, what);
                }
            }
        }
        let wanted = launch::unlimited(launch::pod_cgroup(&allocated, &config.cgroups).1);
        let has = self.machine.host.pod_cgroup(pods::uid(pod)).map(launch::unlimited);
        if has.as_ref().is_some_and(|has| *has != wanted) {
            let what = format!("the cgroup of {} is {has:?} and shall be {wanted:?}", name(pod));
            self.complain(Invariant::AllocationsAreActual, what);
        }
    }

    /// What a pod says of itself as a whole, its cgroup has, and its containers where they say nothing.
    pub(super) fn as_a_whole(&mut self, pod: &Pod) {
        let Some(whole) = &pods::spec(pod).resources else { return };
        let amount =
            |list: &Option<BTreeMap<String, ApiQuantity>>, name: &str| parse(&list.as_ref()?.get(name)?.0).ok();
        let milli = |amount: Quantity| amount.milli_value().unsigned_abs();
        let cpu = amount(&whole.requests, "cpu").map(|cpu| milli(cpu) * 1024 / 1000);
        let quota = amount(&whole.limits, "cpu").map(|cpu| cpu.milli_value() * 100);
        let limit = amount(&whole.limits, "memory").map(|memory| memory.value().unsigned_abs());
        let uid = pods::uid(pod);
        let Some(has) = self.machine.host.pod_cgroup(uid).map(launch::unlimited) else { return };
        let is_so = |limit: Option<u64>, has: Option<u64>| limit.is_none_or(|limit| has == Some(limit));
        if !is_so(cpu, has.cpu_shares)
            || !is_so(limit, has.memory_limit_bytes)
            || quota.is_some_and(|quota| has.cpu_quota != Some(quota))
        {
            let what = format!("{} as a whole shall have {whole:?} and its cgroup is {has:?}", name(pod));
            self.complain(Invariant::AllocationsAreActual, what);
        }
        for container in pods::inits(pod).iter().chain(&pods::spec(pod).containers) {
            let own = container.resources.as_ref().and_then(|own| amount(&own.limits, "memory"));
            for id in self.machine.runtime.running(uid, &container.name) {
                let has = self.machine.runtime.resources(&id).unwrap_or_default().memory_limit_bytes;
                if own.is_none() && has.max(0).unsigned_abs() != limit.unwrap_or(0) {
                    let what = format!("{}/{} has {has} of {limit:?}", name(pod), container.name);
                    self.complain(Invariant::AllocationsAreActual, what);
                }
            }
        }
    }
}

fn memory(pod: &Pod) -> i64 {
    pod_resources(pod).requests.get("memory").copied().unwrap_or(Quantity::ZERO).value()
}
