//! The cgroups around containers: kubepods, one level for each QoS class but Guaranteed, one
//! for each pod.

use k8s_openapi::api::core::v1::Pod;

use super::resources::{amount, hugepage_limits, positive};
use crate::host::cgroup_math::{
    CPU_QUOTA_UNLIMITED, MEMORY_UNLIMITED, SHARES_MIN, hugepage_size_name, milli_cpu_to_quota, milli_cpu_to_shares,
};
use crate::host::{CgroupDriver, CgroupPath, CgroupSettings, CgroupVersion, configured_name, systemd_name};
use crate::pod::containers::workload_containers;
use crate::pod::qos::{self, QosClass};
use crate::pod::resources::{Resources, is_hugepages, pod_resources};
use crate::pod::{PodRef, PodUid, spec};

/// What the configuration and the machine say about cgroups; fixed at start.
#[derive(Clone, Debug)]
pub struct CgroupConfig {
    /// The configured `cgroupRoot`, in cgroupfs form.
    pub root: String,
    /// Without it there are no levels of ours, and containers go where the runtime likes.
    pub per_qos: bool,
    pub driver: CgroupDriver,
    pub version: CgroupVersion,
    /// CPU limits are enforced.
    pub cpu_cfs_quota: bool,
    pub cpu_cfs_quota_period_us: u64,
    pub pod_pids_max: Option<u64>,
    /// Bytes of each page size that this machine has.
    pub hugepage_sizes: Vec<u64>,
    /// What all pods together are held to is less than the machine has.
    pub enforced_on_pods: bool,
    /// That; see [`level_settings`].
    pub kubepods: CgroupSettings,
    /// Cgroups of the node's own that are held to what is reserved for them.
    pub reserved: Vec<ReservedCgroup>,
    /// The machine's memory less what is reserved, whether or not pods are held to that.
    pub memory_allocatable_bytes: u64,
    /// `memory.min`, `memory.low` and `memory.high` are written.
    pub memory_qos: Option<MemoryQos>,
    /// Percent of what pods of a class ask for that is kept from lower classes (`qosReserved`).
    pub memory_reserved_percent: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryQos {
    /// What is asked for is kept from being reclaimed.
    pub is_tiered: bool,
    /// How much of the way from request to limit a container goes before it is slowed down.
    pub throttling_factor: f64,
}

/// One that the operator made and named.
#[derive(Clone, Debug, PartialEq)]
pub struct ReservedCgroup {
    /// `System` or `Kube`, as events have it.
    pub part: &'static str,
    /// The field that names it.
    pub field: &'static str,
    /// As it is given there; see [`reserved_cgroup`].
    pub name: String,
    pub settings: CgroupSettings,
}

/// What a level that is not a pod's is held to. What is not given is not limited, but for huge pages.
#[derive(Clone, Debug, Default)]
pub struct LevelLimits {
    pub milli_cpu: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub pids: Option<u64>,
    /// Page size and bytes of all its pages, in the bytes both.
    pub hugepages: Vec<(u64, u64)>,
}

pub fn level_settings(limits: &LevelLimits) -> CgroupSettings {
    let hugepages = limits.hugepages.iter().map(|(size, bytes)| (hugepage_size_name(*size), *bytes));
    CgroupSettings {
        cpu_shares: limits.milli_cpu.map(milli_cpu_to_shares),
        memory_limit_bytes: limits.memory_bytes,
        pids_max: limits.pids,
        hugepage_limits: hugepages.collect(),
        ..CgroupSettings::default()
    }
}

/// Where a cgroup of the node's own is, by the name that a setting has for it.
pub fn reserved_cgroup(name: &str, config: &CgroupConfig) -> CgroupPath {
    configured_name(config.driver, name)
}

/// The cgroup under which all is made.
pub fn root(config: &CgroupConfig) -> CgroupPath {
    CgroupPath(format!("/{}", config.root.trim_matches('/')))
}

/// The cgroup that holds all pods.
pub fn kubepods(config: &CgroupConfig) -> CgroupPath {
    CgroupPath(format!("{}/kubepods", config.root.trim_end_matches('/')))
}

/// The levels that all pods share, parents first.
pub fn qos_cgroups<'a>(
    pods: impl Iterator<Item = &'a Pod>,
    config: &CgroupConfig,
) -> Vec<(CgroupPath, CgroupSettings)> {
    let sums = Sums::of(pods);
    let (guaranteed, burstable) = (sums.guaranteed_memory, sums.burstable_memory);
    let mut kubepods_settings = config.kubepods.clone();
    let mut best_effort_settings = shares(SHARES_MIN);
    let mut burstable_settings = shares(milli_cpu_to_shares(sums.burstable_milli_cpu));
    if let Some(MemoryQos { is_tiered, .. }) = config.memory_qos {
        let kept = |bytes| Some(if is_tiered { bytes } else { 0 });
        kubepods_settings.memory_min_bytes = kept(guaranteed.saturating_add(burstable));
        burstable_settings.memory_low_bytes = kept(burstable);
    }
    if let Some(percent) = config.memory_reserved_percent {
        let kept = |bytes: u64| (u128::from(bytes) * u128::from(percent) / 100).try_into().unwrap_or(u64::MAX);
        let for_burstable = config.memory_allocatable_bytes.saturating_sub(kept(guaranteed));
        let for_best_effort = for_burstable.saturating_sub(kept(burstable));
        for (settings, limit) in
            [(&mut burstable_settings, for_burstable), (&mut best_effort_settings, for_best_effort)]
        {
            // Room is made by what ends, not by killing what runs.
            (settings.memory_limit_bytes, settings.memory_limit_yields) = (Some(limit), true);
        }
    }
    vec![
        (kubepods(config), kubepods_settings),
        (qos_cgroup(QosClass::BestEffort, config), best_effort_settings),
        (qos_cgroup(QosClass::Burstable, config), burstable_settings),
    ]
}

fn shares(shares: u64) -> CgroupSettings {
    CgroupSettings { cpu_shares: Some(shares), ..CgroupSettings::default() }
}

/// What the pods of the upper classes ask for.
#[derive(Default)]
struct Sums {
    burstable_milli_cpu: u64,
    burstable_memory: u64,
    guaranteed_memory: u64,
}

impl Sums {
    fn of<'a>(pods: impl Iterator<Item = &'a Pod>) -> Self {
        let mut sums = Sums::default();
        for pod in pods {
            let class = qos::class(pod);
            if class == QosClass::BestEffort {
                continue;
            }
            let requests = pod_resources(pod).requests;
            let memory = positive(amount(&requests, "memory").value());
            if class == QosClass::Guaranteed {
                sums.guaranteed_memory = sums.guaranteed_memory.saturating_add(memory);
                continue;
            }
            let milli_cpu = positive(amount(&requests, "cpu").milli_value());
            sums.burstable_milli_cpu = sums.burstable_milli_cpu.saturating_add(milli_cpu);
            sums.burstable_memory = sums.burstable_memory.saturating_add(memory);
        }
        sums
    }
}

/// A pod's cgroup and its settings.
pub fn pod_cgroup(pod: &Pod, config: &CgroupConfig) -> (CgroupPath, CgroupSettings) {
    let class = qos::class(pod);
    (pod_path(&PodRef::of(pod).uid, class, config), pod_settings(pod, class, config))
}

/// Every place where the cgroup of a pod can be whose class is not known.
pub fn pod_cgroup_candidates(uid: &PodUid, config: &CgroupConfig) -> [CgroupPath; 3] {
    [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort].map(|class| pod_path(uid, class, config))
}

/// What the runtime is told to put a pod's sandbox and containers under.
pub(super) fn cgroup_parent(pod: &Pod, config: &CgroupConfig) -> String {
    if !config.per_qos {
        return String::new();
    }
    let path = pod_path(&PodRef::of(pod).uid, qos::class(pod), config);
    match config.driver {
        CgroupDriver::Cgroupfs => path.0,
        CgroupDriver::Systemd => systemd_name(&path),
    }
}

/// The same settings, with limits that are not there said to be none: a pod that loses a limit
/// loses it only if that is written.
pub fn unlimited(settings: CgroupSettings) -> CgroupSettings {
    let quota = settings.cpu_quota.filter(|quota| *quota > 0);
    CgroupSettings {
        cpu_quota: Some(quota.unwrap_or(CPU_QUOTA_UNLIMITED)),
        cpu_period: settings.cpu_period.filter(|_| quota.is_some()),
        memory_limit_bytes: settings.memory_limit_bytes.or(Some(MEMORY_UNLIMITED)),
        ..settings
    }
}

fn qos_cgroup(class: QosClass, config: &CgroupConfig) -> CgroupPath {
    let kubepods = kubepods(config);
    match class {
        QosClass::Guaranteed => kubepods,
        QosClass::Burstable => CgroupPath(kubepods.0 + "/burstable"),
        QosClass::BestEffort => CgroupPath(kubepods.0 + "/besteffort"),
    }
}

fn pod_path(uid: &PodUid, class: QosClass, config: &CgroupConfig) -> CgroupPath {
    CgroupPath(format!("{}/pod{uid}", qos_cgroup(class, config).0))
}

fn pod_settings(pod: &Pod, class: QosClass, config: &CgroupConfig) -> CgroupSettings {
    let sum = pod_resources(pod);
    let shares = match class {
        QosClass::BestEffort => SHARES_MIN,
        _ => milli_cpu_to_shares(positive(amount(&sum.requests, "cpu").milli_value())),
    };
    let cpu_limited = class != QosClass::BestEffort && is_limited(pod, "cpu");
    let quota = match config.cpu_cfs_quota {
        true => {
            let limit = positive(amount(&sum.limits, "cpu").milli_value());
            milli_cpu_to_quota(limit, config.cpu_cfs_quota_period_us)
        }
        false => CPU_QUOTA_UNLIMITED,
    };
    let memory_limited = class != QosClass::BestEffort && is_limited(pod, "memory");
    let memory_request = positive(amount(&sum.requests, "memory").value());
    let kept = |of: QosClass| {
        let MemoryQos { is_tiered, .. } = config.memory_qos?;
        Some(if is_tiered && of == class { memory_request } else { 0 })
    };
    let (memory_min_bytes, memory_low_bytes) = (kept(QosClass::Guaranteed), kept(QosClass::Burstable));
    let mut hugepages = sum.requests;
    hugepages.retain(|name, _| is_hugepages(name));
    CgroupSettings {
        cpu_shares: Some(shares),
        cpu_quota: cpu_limited.then_some(quota),
        cpu_period: cpu_limited.then_some(config.cpu_cfs_quota_period_us),
        memory_limit_bytes: memory_limited.then(|| positive(amount(&sum.limits, "memory").value())),
        memory_limit_yields: false,
        memory_min_bytes,
        memory_low_bytes,
        pids_max: config.pod_pids_max,
        hugepage_limits: hugepage_limits(&hugepages, &config.hugepage_sizes),
    }
}

/// The sum of the limits holds for the pod only if every part of it has one.
fn is_limited(pod: &Pod, name: &str) -> bool {
    let limits = |resources: &Resources| !amount(&resources.limits, name).is_zero();
    limits(&Resources::of(spec(pod).resources.as_ref()))
        || workload_containers(pod).all(|(_, container)| limits(&Resources::of_container(container)))
}
