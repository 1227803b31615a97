//! What the settings and the machine come to for cgroups.

use std::collections::BTreeMap;

use crate::config::{self, Enforcement, Gate, KubeletConfiguration, MemoryReservationPolicy, Quantity, Settings};
use crate::cri::CgroupDriver;
use crate::host::{CgroupVersion, MachineFacts};
use crate::node::Reserved;
use crate::sync::launch::{CgroupConfig, LevelLimits, MemoryQos, ReservedCgroup, level_settings};

pub fn config(settings: &Settings, reserved: &Reserved, facts: &MachineFacts) -> anyhow::Result<CgroupConfig> {
    let kubelet = &settings.kubelet;
    let hugepages = facts.hugepages.iter().filter_map(|(size, bytes)| {
        let size = config::quantity::parse(size).ok()?.value();
        Some((u64::try_from(size).ok()?, *bytes))
    });
    let hugepages: Vec<(u64, u64)> = hugepages.collect();
    let enforced_on_pods = kubelet.enforce_node_allocatable.contains(&Enforcement::Pods);
    let kept = Kept::of(reserved);
    let memory_qos =
        (settings.gates.enabled(Gate::MemoryQoS) && facts.cgroup_version == CgroupVersion::V2).then(|| {
            let is_tiered = kubelet.memory_reservation_policy == MemoryReservationPolicy::TieredReservation;
            MemoryQos { is_tiered, throttling_factor: kubelet.memory_throttling_factor }
        });
    let of_pods = if enforced_on_pods { kept } else { Kept::default() };
    let limits = LevelLimits {
        milli_cpu: Some((u64::from(facts.cpus) * 1000).saturating_sub(of_pods.milli_cpu)),
        // None where nothing is left: no pod that asks for any comes, and the kernel would kill those that do not.
        memory_bytes: Some(facts.memory_bytes.saturating_sub(of_pods.memory_bytes)).filter(|bytes| *bytes > 0),
        pids: facts.pids_controller.then(|| facts.max_pids.saturating_sub(of_pods.pids)).filter(|pids| *pids > 0),
        hugepages: hugepages.clone(),
    };
    let sizes: Vec<u64> = hugepages.iter().map(|(size, _)| *size).collect();
    Ok(CgroupConfig {
        root: kubelet.cgroup_root.clone(),
        per_qos: kubelet.cgroups_per_qos,
        driver: match kubelet.cgroup_driver {
            config::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
            config::CgroupDriver::Systemd => CgroupDriver::Systemd,
        },
        version: facts.cgroup_version,
        cpu_cfs_quota: kubelet.cpu_cfs_quota,
        cpu_cfs_quota_period_us: u64::try_from(kubelet.cpu_cfs_quota_period.as_micros())?,
        pod_pids_max: kubelet.pod_pids_limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0),
        enforced_on_pods,
        kubepods: level_settings(&limits),
        reserved: reserved_cgroups(kubelet, &sizes, facts.pids_controller, memory_qos.is_some()),
        memory_allocatable_bytes: facts.memory_bytes.saturating_sub(kept.memory_bytes),
        memory_qos,
        memory_reserved_percent: match settings.gates.enabled(Gate::QOSReserved) {
            true => kubelet.qos_reserved.get("memory").copied(),
            false => None,
        },
        hugepage_sizes: sizes,
    })
}

/// What pods are not to have.
#[derive(Clone, Copy, Default)]
struct Kept {
    milli_cpu: u64,
    memory_bytes: u64,
    pids: u64,
}

impl Kept {
    /// What is kept for evictions is not among it: pods may use that, if not for long.
    fn of(reserved: &Reserved) -> Self {
        let sum = |of: fn(&BTreeMap<String, Quantity>) -> Option<u64>| {
            [&reserved.system, &reserved.kube].into_iter().filter_map(of).fold(0, u64::saturating_add)
        };
        Kept {
            milli_cpu: reserved.cpus.map_or_else(|| sum(milli_cpu), |cpus| u64::from(cpus) * 1000),
            memory_bytes: sum(memory),
            pids: sum(pids),
        }
    }
}

fn milli_cpu(amounts: &BTreeMap<String, Quantity>) -> Option<u64> {
    u64::try_from(amounts.get("cpu")?.milli_value()).ok()
}

fn memory(amounts: &BTreeMap<String, Quantity>) -> Option<u64> {
    u64::try_from(amounts.get("memory")?.value()).ok()
}

fn pids(amounts: &BTreeMap<String, Quantity>) -> Option<u64> {
    u64::try_from(amounts.get("pid")?.value()).ok()
}

/// The node's own cgroups that are held to what is reserved for them.
fn reserved_cgroups(
    kubelet: &KubeletConfiguration,
    hugepage_sizes: &[u64],
    has_pids: bool,
    keeps_memory: bool,
) -> Vec<ReservedCgroup> {
    let held = |what: &Enforcement| {
        let (part, field, name, amounts) = match what {
            Enforcement::SystemReserved | Enforcement::SystemReservedCompressible => {
                ("System", "systemReservedCgroup", &kubelet.system_reserved_cgroup, &kubelet.system_reserved)
            }
            Enforcement::KubeReserved | Enforcement::KubeReservedCompressible => {
                ("Kube", "kubeReservedCgroup", &kubelet.kube_reserved_cgroup, &kubelet.kube_reserved)
            }
            Enforcement::Pods | Enforcement::None => return None,
        };
        // What is compressible can be had later: nothing fails for want of it.
        let limits = match what {
            Enforcement::SystemReserved | Enforcement::KubeReserved => LevelLimits {
                milli_cpu: milli_cpu(amounts),
                memory_bytes: memory(amounts),
                pids: pids(amounts).filter(|_| has_pids),
                hugepages: hugepage_sizes.iter().map(|size| (*size, 0)).collect(),
            },
            _ => LevelLimits { milli_cpu: milli_cpu(amounts), ..LevelLimits::default() },
        };
        let mut settings = level_settings(&limits);
        settings.memory_min_bytes = settings.memory_limit_bytes.filter(|_| keeps_memory);
        Some(ReservedCgroup { part, field, name: name.clone(), settings })
    };
    kubelet.enforce_node_allocatable.iter().filter_map(held).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::settings;
    use crate::host::CgroupSettings;
    use crate::node::NodeConfig;

    const GIB: u64 = 1 << 30;

    /// What a configuration comes to on a machine with 4 CPUs, 8 GiB, 30000 processes and huge pages.
    fn configured(version: CgroupVersion, yaml: &str) -> CgroupConfig {
        let facts = MachineFacts {
            cpus: 4,
            memory_bytes: 8 * GIB,
            max_pids: 30_000,
            pids_controller: true,
            hugepages: vec![("2Mi".into(), 64 << 20)],
            cgroup_version: version,
            ..MachineFacts::default()
        };
        let settings = settings(yaml);
        let node = NodeConfig::of(&settings, "node-1");
        config(&settings, &node.reserved, &facts).expect("a good configuration")
    }

    const RESERVED: &str = "systemReserved: {cpu: 500m, memory: 1Gi, pid: '1000'}
kubeReserved: {cpu: 250m, memory: 1Gi, pid: '500'}
systemReservedCgroup: /system
kubeReservedCgroup: /kube
evictionHard: {memory.available: 1Gi}
";

    fn enforcing(what: &str) -> CgroupConfig {
        configured(CgroupVersion::V2, &format!("{RESERVED}enforceNodeAllocatable: [{what}]\n"))
    }

    #[test]
    fn pods_are_held_to_what_is_not_reserved_where_that_is_enforced() {
        let check = |what: &str, shares, memory, pids| {
            let config = enforcing(what);
            let got = config.kubepods;
            assert_eq!(
                (got.cpu_shares, got.memory_limit_bytes, got.pids_max),
                (Some(shares), Some(memory), Some(pids)),
                "{what}"
            );
            assert_eq!(got.hugepage_limits, [("2MB".to_owned(), 64 << 20)]);
            assert_eq!(config.memory_allocatable_bytes, 6 * GIB, "{what}");
        };
        for enforced in ["pods", "pods, system-reserved, kube-reserved", "kube-reserved-compressible, pods"] {
            check(enforced, 3328, 6 * GIB, 28_500);
        }
        for not in ["none", "system-reserved", "system-reserved-compressible, kube-reserved"] {
            check(not, 4096, 8 * GIB, 30_000);
        }
    }

    #[test]
    fn cpus_reserved_by_number_take_the_place_of_amounts() {
        let config = configured(
            CgroupVersion::V2,
            "systemReserved: {cpu: 500m}\nkubeReserved: {cpu: 250m}\nreservedSystemCPUs: 0-1\n",
        );
        assert_eq!(config.kubepods.cpu_shares, Some(2048));
    }

    #[test]
    fn cgroups_of_the_node_get_what_is_reserved_for_them() {
        let whole = |shares, pids| CgroupSettings {
            cpu_shares: Some(shares),
            memory_limit_bytes: Some(GIB),
            pids_max: Some(pids),
            hugepage_limits: vec![("2MB".into(), 0)],
            ..CgroupSettings::default()
        };
        let compressible = |shares| CgroupSettings { cpu_shares: Some(shares), ..CgroupSettings::default() };
        let check = |what: &str, expected: &[(&str, &str, CgroupSettings)]| {
            let got = enforcing(what).reserved;
            let got: Vec<_> = got.iter().map(|it| (it.field, it.name.as_str(), it.settings.clone())).collect();
            assert_eq!(got, expected, "{what}");
        };
        let (system, kube) = (("systemReservedCgroup", "/system"), ("kubeReservedCgroup", "/kube"));
        check("none", &[]);
        check("pods", &[]);
        check("pods, system-reserved", &[(system.0, system.1, whole(512, 1000))]);
        check("kube-reserved", &[(kube.0, kube.1, whole(256, 500))]);
        check("kube-reserved-compressible", &[(kube.0, kube.1, compressible(256))]);
        check(
            "system-reserved-compressible, kube-reserved",
            &[(system.0, system.1, compressible(512)), (kube.0, kube.1, whole(256, 500))],
        );
    }

    #[test]
    fn memory_is_kept_where_the_gate_is_on_and_the_kernel_can() {
        let yaml = format!(
            "{RESERVED}enforceNodeAllocatable: [kube-reserved]
featureGates: {{MemoryQoS: true, QOSReserved: true}}
memoryReservationPolicy: TieredReservation
memoryThrottlingFactor: 0.8
qosReserved: {{memory: 50%}}
"
        );
        let config = configured(CgroupVersion::V2, &yaml);
        assert_eq!(config.memory_qos, Some(MemoryQos { is_tiered: true, throttling_factor: 0.8 }));
        assert_eq!(config.reserved[0].settings.memory_min_bytes, Some(GIB));
        assert_eq!(config.memory_reserved_percent, Some(50));
        let config = configured(CgroupVersion::V1, &yaml);
        assert_eq!(config.memory_qos, None);
        assert_eq!(config.reserved[0].settings.memory_min_bytes, None);
        assert_eq!(enforcing("pods").memory_qos, None);
    }
}
