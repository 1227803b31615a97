//! The cgroups around containers: kubepods, one level for each QoS class but Guaranteed, one
//! for each pod.

use k8s_openapi::api::core::v1::Pod;

use super::resources::{amount, hugepage_limits, positive};
use crate::cri::CgroupDriver;
use crate::host::cgroup_math::{
    CPU_QUOTA_UNLIMITED, MEMORY_UNLIMITED, SHARES_MIN, hugepage_size_name, milli_cpu_to_quota, milli_cpu_to_shares,
};
use crate::host::{CgroupPath, CgroupSettings, CgroupVersion, systemd_name};
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
    /// What all pods together are held to; see [`kubepods_settings`].
    pub kubepods: CgroupSettings,
}

/// What all pods together may use: the machine's capacity, less what is reserved for others
/// if the configuration enforces that.
#[derive(Clone, Debug, Default)]
pub struct KubepodsLimits {
    pub milli_cpu: u64,
    pub memory_bytes: u64,
    pub pids: Option<u64>,
    /// Page size and bytes of all its pages, in the bytes both.
    pub hugepages: Vec<(u64, u64)>,
}

pub fn kubepods_settings(limits: &KubepodsLimits) -> CgroupSettings {
    let hugepages = limits.hugepages.iter().map(|(size, bytes)| (hugepage_size_name(*size), *bytes));
    CgroupSettings {
        cpu_shares: Some(milli_cpu_to_shares(limits.milli_cpu)),
        memory_limit_bytes: Some(limits.memory_bytes),
        pids_max: limits.pids,
        hugepage_limits: hugepages.collect(),
        ..CgroupSettings::default()
    }
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
    let burstable = pods.filter(|pod| qos::class(pod) == QosClass::Burstable);
    let milli_cpu: u64 = burstable.map(|pod| positive(amount(&pod_resources(pod).requests, "cpu").milli_value())).sum();
    let shares = |shares| CgroupSettings { cpu_shares: Some(shares), ..CgroupSettings::default() };
    vec![
        (kubepods(config), config.kubepods.clone()),
        (qos_cgroup(QosClass::BestEffort, config), shares(SHARES_MIN)),
        (qos_cgroup(QosClass::Burstable, config), shares(milli_cpu_to_shares(milli_cpu))),
    ]
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
    let mut hugepages = sum.requests;
    hugepages.retain(|name, _| is_hugepages(name));
    CgroupSettings {
        cpu_shares: Some(shares),
        cpu_quota: cpu_limited.then_some(quota),
        cpu_period: cpu_limited.then_some(config.cpu_cfs_quota_period_us),
        memory_limit_bytes: memory_limited.then(|| positive(amount(&sum.limits, "memory").value())),
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
