//! What is to be done so that the containers of a pod have what is allocated to it: a pure
//! function from the pod, what the runtime reports of it, and what was done before.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::config::quantity::parse;
use crate::config::{Gate, Quantity};
use crate::cri::{Container, ContainerId, ContainerState, LinuxResources};
use crate::host::CgroupSettings;
use crate::host::cgroup_math::{CPU_QUOTA_UNLIMITED, quota_to_milli_cpu, shares_to_milli_cpu};
use crate::pleg::PodRuntime;
use crate::pod::containers::{Role, workload_containers};
use crate::pod::{self, allocation};
use crate::sync::launch::{self, LaunchConfig};
use crate::topology::Places;

/// What stands between a pod and its allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resize {
    /// The pod's cgroup is to be set to this, before anything else.
    pub pod_cgroup: Option<CgroupSettings>,
    /// That may take memory from the pod.
    pub lowers_pod_memory: bool,
    pub updates: Vec<Update>,
    /// Instances made with other resources that cannot change: those that end, and those
    /// whose owner wants them restarted.
    pub outgrown: BTreeSet<ContainerId>,
    /// Some running container does not have what it shall have.
    pub is_under_way: bool,
}

/// One change of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    pub name: String,
    pub id: ContainerId,
    pub kind: UpdateKind,
    /// Only what changes is in it.
    pub resources: LinuxResources,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UpdateKind {
    LessMemory,
    MoreMemory,
    LessCpu,
    MoreCpu,
}

impl Resize {
    pub fn is_action(&self) -> bool {
        self.pod_cgroup.is_some() || !self.updates.is_empty()
    }
}

/// What is to be done for `pod`, which has its allocated resources in it. `written` is what its
/// cgroup was set to, `given` what instances were given that may not report it.
pub fn decide(
    pod: &Pod,
    runtime: &PodRuntime,
    given: &BTreeMap<ContainerId, LinuxResources>,
    written: Option<&CgroupSettings>,
    places: &Places,
    config: &LaunchConfig,
) -> Resize {
    let mut resize = Resize::default();
    if !may_be_resized(pod) {
        return resize;
    }
    let wanted = pod_cgroup(pod, runtime, places, config);
    // What was not written for certain may be anything.
    let before = written.and_then(|written| written.memory_limit_bytes);
    resize.lowers_pod_memory = wanted.memory_limit_bytes < Some(before.unwrap_or(u64::MAX));
    resize.pod_cgroup = Some(wanted).filter(|wanted| written.is_some_and(|written| written != wanted));
    let resizes_init = config.gates.enabled(Gate::InPlacePodVerticalScalingInitContainers);
    for (_, spec) in workload_containers(pod).filter(|(role, _)| *role != Role::Init || resizes_init) {
        let Some(newest) = runtime.newest(&spec.name) else { continue };
        let target = launch::container_resources(pod, spec, places, config);
        let Some(has) = newest.resources.as_ref().or_else(|| given.get(&newest.id)) else { continue };
        let Difference { memory, cpu } = Difference::of(has, &target);
        // A runtime may report in other figures what it was given.
        if (!memory && !cpu) || given.get(&newest.id).is_some_and(|given| Difference::of(given, &target).is_none()) {
            continue;
        }
        let restarts = (memory && restarts_for(spec, "memory")) || (cpu && restarts_for(spec, "cpu"));
        match newest.state {
            ContainerState::Running { .. } if !restarts => {
                resize.is_under_way = true;
                resize.updates.extend(updates(newest, has, &target));
            }
            ContainerState::Running { .. } => {
                resize.is_under_way = true;
                // Its successor may need the room.
                if resize.pod_cgroup.is_none() && written.is_some() {
                    resize.outgrown.insert(newest.id.clone());
                }
            }
            ContainerState::Created | ContainerState::Exited(_) => {
                resize.outgrown.insert(newest.id.clone());
            }
            ContainerState::Unknown => {}
        }
    }
    if written.is_none() {
        resize.updates.clear();
    }
    resize.updates.sort_by_key(|update| update.kind);
    resize
}

/// What the cgroup of a pod is to be set to while its containers are as they are.
pub fn pod_cgroup(pod: &Pod, runtime: &PodRuntime, places: &Places, config: &LaunchConfig) -> CgroupSettings {
    let settings = |pod: &Pod| {
        let mut settings = launch::pod_cgroup(pod, &config.cgroups).1;
        places.put_into_pod(&mut settings);
        settings
    };
    if !may_be_resized(pod) {
        return settings(pod);
    }
    let present = allocation::changed(pod, |spec| {
        let running = runtime.newest(&spec.name).filter(|newest| newest.is_running())?;
        Some(present(spec, running.resources.as_ref()?, &launch::container_resources(pod, spec, places, config)))
    });
    let present = allocation::with_pod_level(present, present_of_pod(pod, runtime, places, config));
    let (target, present) = (launch::unlimited(settings(pod)), launch::unlimited(settings(&present)));
    let quota = match (target.cpu_quota, present.cpu_quota) {
        (Some(target), Some(present)) if target > 0 && present > 0 => target.max(present),
        _ => CPU_QUOTA_UNLIMITED,
    };
    launch::unlimited(CgroupSettings {
        cpu_shares: target.cpu_shares.max(present.cpu_shares),
        cpu_quota: Some(quota),
        memory_limit_bytes: target.memory_limit_bytes.max(present.memory_limit_bytes),
        ..target
    })
}

/// What to set it to before anything was done in this life of the agent. Where a limit of the
/// pod as a whole is being lowered, the runtime does not tell how far that came, but the status
/// does: nothing is taken away here, unasked whether it is in use.
pub fn first_pod_cgroup(pod: &Pod, runtime: &PodRuntime, places: &Places, config: &LaunchConfig) -> CgroupSettings {
    let settings = pod_cgroup(pod, runtime, places, config);
    let limited = |resources: &Option<ResourceRequirements>| amount(&resources.as_ref()?.limits, "memory");
    let told = pod.status.as_ref().and_then(|status| limited(&status.resources));
    let told = told.filter(|_| may_be_resized(pod) && limited(&pod::spec(pod).resources).is_some());
    let told = told.and_then(|told| u64::try_from(told.value()).ok());
    CgroupSettings { memory_limit_bytes: settings.memory_limit_bytes.max(told), ..settings }
}

/// What the pod as a whole has while containers that stand under its limits have other ones than
/// they shall have: as much as the one that has most.
fn present_of_pod(
    pod: &Pod,
    runtime: &PodRuntime,
    places: &Places,
    config: &LaunchConfig,
) -> Option<ResourceRequirements> {
    let mut resources = pod::spec(pod).resources.clone()?;
    let limits = resources.limits.iter_mut().flatten();
    let mut limits: BTreeMap<&str, &mut ApiQuantity> = limits.map(|(name, limit)| (name.as_str(), limit)).collect();
    let mut raise = |name: &str, has: Option<Quantity>| {
        if let (Some(limit), Some(has)) = (limits.get_mut(name), has)
            && parse(&limit.0).is_ok_and(|limit| limit < has)
        {
            **limit = ApiQuantity(has.to_string());
        }
    };
    for (_, spec) in workload_containers(pod) {
        let running = runtime.newest(&spec.name).filter(|newest| newest.is_running());
        let Some(has) = running.and_then(|newest| newest.resources.as_ref()) else { continue };
        let target = launch::container_resources(pod, spec, places, config);
        if memory_limit(has) != memory_limit(&target) {
            raise("memory", memory_limit(has).map(Quantity::bytes));
        }
        if quota(has) != quota(&target) {
            raise("cpu", quota(has).map(cpu_limit));
        }
    }
    Some(resources)
}

fn amount(list: &Option<BTreeMap<String, ApiQuantity>>, name: &str) -> Option<Quantity> {
    parse(&list.as_ref()?.get(name)?.0).ok()
}

fn cpu_limit((quota, period): (i64, i64)) -> Quantity {
    let milli = quota_to_milli_cpu(quota, u64::try_from(period).unwrap_or(0));
    Quantity::milli(i64::try_from(milli).unwrap_or(i64::MAX))
}

/// Only a change of its spec makes the API server count a pod's generation on: what is of the
/// first one has what it was made with. Of static pods there are no generations.
pub fn may_be_resized(pod: &Pod) -> bool {
    pod.metadata.generation.is_some_and(|generation| generation > 1)
}

struct Difference {
    memory: bool,
    cpu: bool,
}

impl Difference {
    fn of(has: &LinuxResources, target: &LinuxResources) -> Self {
        Difference {
            memory: memory_limit(has) != memory_limit(target),
            cpu: has.cpu_shares != target.cpu_shares || quota(has) != quota(target),
        }
    }

    fn is_none(&self) -> bool {
        !self.memory && !self.cpu
    }
}

/// Runtimes say 0 or -1 where there is no limit.
fn memory_limit(resources: &LinuxResources) -> Option<i64> {
    Some(resources.memory_limit_bytes).filter(|limit| *limit > 0)
}

fn quota(resources: &LinuxResources) -> Option<(i64, i64)> {
    Some((resources.cpu_quota, resources.cpu_period)).filter(|(quota, _)| *quota > 0)
}

fn restarts_for(spec: &ContainerSpec, resource: &str) -> bool {
    let policies = spec.resize_policy.iter().flatten();
    policies.into_iter().any(|policy| policy.resource_name == resource && policy.restart_policy == "RestartContainer")
}

fn updates(instance: &Container, has: &LinuxResources, target: &LinuxResources) -> Vec<Update> {
    let update = |kind, resources| Update { name: instance.name.clone(), id: instance.id.clone(), kind, resources };
    let Difference { memory, cpu } = Difference::of(has, target);
    let or_none = |limit: i64| if limit > 0 { limit } else { -1 };
    let mut updates = Vec::new();
    if memory {
        let less = memory_limit(target).is_some_and(|target| memory_limit(has).is_none_or(|has| target < has));
        let resources = LinuxResources {
            memory_limit_bytes: or_none(target.memory_limit_bytes),
            memory_swap_limit_bytes: target.memory_swap_limit_bytes,
            ..LinuxResources::default()
        };
        updates.push(update(if less { UpdateKind::LessMemory } else { UpdateKind::MoreMemory }, resources));
    }
    if cpu {
        let quota = |resources| quota(resources).map_or(i64::MAX, |(quota, _)| quota);
        let less = (quota(target), target.cpu_shares) < (quota(has), has.cpu_shares);
        let resources = LinuxResources {
            cpu_shares: target.cpu_shares,
            cpu_quota: or_none(target.cpu_quota),
            cpu_period: target.cpu_period,
            ..LinuxResources::default()
        };
        updates.push(update(if less { UpdateKind::LessCpu } else { UpdateKind::MoreCpu }, resources));
    }
    updates
}

/// What a container may use now, as its spec would say it.
fn present(spec: &ContainerSpec, has: &LinuxResources, target: &LinuxResources) -> ResourceRequirements {
    let mut resources = spec.resources.clone().unwrap_or_default();
    let unsigned = |value: i64| u64::try_from(value).unwrap_or(0);
    let milli = |milli: u64| Quantity::milli(i64::try_from(milli).unwrap_or(i64::MAX));
    let set = |list: &mut Option<BTreeMap<String, ApiQuantity>>, name: &str, amount: Option<Quantity>| {
        let list = list.get_or_insert_default();
        match amount {
            Some(amount) => list.insert(name.to_owned(), ApiQuantity(amount.to_string())),
            None => list.remove(name),
        };
    };
    if memory_limit(has) != memory_limit(target) {
        set(&mut resources.limits, "memory", memory_limit(has).map(Quantity::bytes));
    }
    if quota(has) != quota(target) {
        set(&mut resources.limits, "cpu", quota(has).map(cpu_limit));
    }
    if has.cpu_shares != target.cpu_shares {
        set(&mut resources.requests, "cpu", Some(milli(shares_to_milli_cpu(unsigned(has.cpu_shares)))));
    }
    resources
}

impl fmt::Display for Resize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.updates.iter().map(|Update { name, kind, .. }| match kind {
            UpdateKind::LessMemory => format!("less memory for {name}"),
            UpdateKind::MoreMemory => format!("more memory for {name}"),
            UpdateKind::LessCpu => format!("less CPU for {name}"),
            UpdateKind::MoreCpu => format!("more CPU for {name}"),
        });
        let cgroup = self.pod_cgroup.iter().map(|_| "the pod's cgroup".to_owned());
        write!(f, "resize: {}", cgroup.chain(words).collect::<Vec<_>>().join(", "))
    }
}
