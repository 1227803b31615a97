//! What must be right with the machine, or is made so, before anything is touched.

use anyhow::{Context as _, bail};
use tracing::{info, warn};

use crate::causes::chain;
use crate::config::{KubeletConfiguration, Settings, SwapBehavior};
use crate::host::{CgroupPath, CgroupVersion, LinuxHost, MachineFacts};
use crate::node::{NodeConfig, check_reservations};

/// Refuses settings that this machine cannot have.
pub fn check(settings: &Settings, node: &NodeConfig, facts: &MachineFacts) -> anyhow::Result<()> {
    let kubelet = &settings.kubelet;
    if facts.cgroup_version == CgroupVersion::V1 {
        check_version_1(settings)?;
    }
    if kubelet.fail_swap_on && facts.swap_bytes > 0 {
        bail!(
            "failSwapOn is true and this machine has {} bytes of swap in use; turn swap off or set failSwapOn to false",
            facts.swap_bytes
        );
    }
    if kubelet.pod_pids_limit.is_some_and(|limit| limit > 0) && !facts.pids_controller {
        bail!("podPidsLimit is set and this machine has no cgroup controller pids");
    }
    check_reservations(facts, node).context("systemReserved, kubeReserved and evictionHard ask for too much")?;
    let reserved_pids: i64 = [&node.reserved.system, &node.reserved.kube]
        .iter()
        .filter_map(|all| all.get("pid"))
        .map(|pid| pid.value())
        .sum();
    let max_pids = i64::try_from(facts.max_pids).unwrap_or(i64::MAX);
    if reserved_pids > max_pids {
        bail!(
            "systemReserved and kubeReserved ask for too much: pid: {reserved_pids} reserved of {max_pids} processes that \
             this machine can have"
        );
    }
    Ok(())
}

fn check_version_1(settings: &Settings) -> anyhow::Result<()> {
    let kubelet = &settings.kubelet;
    if settings.refuses_cgroup_v1() {
        bail!("failCgroupV1 is set to true and this machine runs cgroup v1");
    }
    if kubelet.swap_behavior == SwapBehavior::LimitedSwap {
        bail!("memorySwap.swapBehavior LimitedSwap needs cgroup v2, and this machine runs v1");
    }
    if kubelet.single_process_oom_kill == Some(false) {
        bail!("singleProcessOOMKill false needs cgroup v2, and this machine runs v1");
    }
    Ok(())
}

/// Puts right what the kernel has otherwise than a node needs it, and moves processes of the node
/// where settings want them. Once: what is changed later was changed by somebody.
pub async fn prepare(kubelet: &KubeletConfiguration, host: &LinuxHost) -> anyhow::Result<()> {
    tune_kernel(kubelet.protect_kernel_defaults, host).await?;
    if !kubelet.kubelet_cgroups.is_empty() {
        let cgroup = CgroupPath(kubelet.kubelet_cgroups.clone());
        if let Err(error) = host.join_cgroup(&cgroup).await {
            warn!(error = chain(&error), kubelet_cgroups = cgroup.0, "the agent stays in the cgroup it was started in");
        }
    }
    if !kubelet.system_cgroups.is_empty() {
        let cgroup = CgroupPath(kubelet.system_cgroups.clone());
        match host.gather_unplaced(&cgroup).await {
            Ok(0) => {}
            Ok(processes) => info!(processes, system_cgroups = cgroup.0, "moved processes out of the root cgroup"),
            Err(error) => warn!(error = chain(&error), system_cgroups = cgroup.0, "processes stay in the root cgroup"),
        }
    }
    Ok(())
}

async fn tune_kernel(is_protected: bool, host: &LinuxHost) -> anyhow::Result<()> {
    let differ = match host.tune_kernel(!is_protected).await {
        Ok(differ) => differ,
        Err(error) if is_protected => return Err(error).context("protectKernelDefaults is true"),
        Err(error) => {
            warn!(error = chain(&error), "cannot look at settings of the kernel");
            return Ok(());
        }
    };
    if is_protected && !differ.is_empty() {
        let differ: Vec<_> =
            differ.iter().map(|it| format!("{} is {} and has to be {}", it.name, it.was, it.wanted)).collect();
        bail!(
            "protectKernelDefaults is true, and settings of the kernel are not as a node needs them: {}",
            differ.join(", ")
        );
    }
    for setting in differ {
        let (name, was, wanted) = (setting.name, setting.was, setting.wanted);
        match setting.failure {
            None => info!(name, was, now = wanted, "setting of the kernel changed"),
            // In a container or without the right to it others have to see to that, as with our own limits.
            Some(error) => warn!(error = chain(&error), name, was, wanted, "setting of the kernel stays as it is"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::settings;

    fn refused(version: CgroupVersion, yaml: &str) -> Option<String> {
        let facts = MachineFacts {
            cpus: 2,
            memory_bytes: 4 << 30,
            root_fs_bytes: 100 << 30,
            swap_bytes: 1 << 30,
            max_pids: 1000,
            cgroup_version: version,
            ..MachineFacts::default()
        };
        let settings = settings(yaml);
        let node = NodeConfig::of(&settings, "node-1");
        check(&settings, &node, &facts).err().map(|error| format!("{error:#}"))
    }

    #[test]
    fn what_this_machine_cannot_have_is_refused_by_the_name_of_its_setting() {
        use CgroupVersion::{V1, V2};
        let check = |version, yaml: &str, expected: Option<&str>| {
            let refused = refused(version, yaml);
            match (refused.as_deref(), expected) {
                (None, None) => {}
                (Some(text), Some(named)) => assert!(text.contains(named), "{yaml}: {text}"),
                (refused, _) => panic!("{yaml}: {refused:?}, not {expected:?}"),
            }
        };
        check(V2, "", Some("failSwapOn is true"));
        let swap = "failSwapOn: false\n";
        check(V2, swap, None);
        check(V1, swap, None);
        let with = |more: &str| format!("{swap}{more}\n");
        check(V1, &with("failCgroupV1: true"), Some("failCgroupV1"));
        let limited = with("memorySwap: {swapBehavior: LimitedSwap}");
        check(V1, &limited, Some("memorySwap.swapBehavior LimitedSwap needs cgroup v2"));
        check(V2, &limited, None);
        check(V1, &with("singleProcessOOMKill: false"), Some("singleProcessOOMKill"));
        check(V2, &with("podPidsLimit: 100"), Some("podPidsLimit"));
        check(V2, &with("kubeReserved: {memory: 8Gi}"), Some("systemReserved, kubeReserved and evictionHard"));
        check(V2, &with("kubeReserved: {cpu: '3'}"), Some("cpu: 3 reserved of 2"));
        check(V2, &with("systemReserved: {pid: '2000'}"), Some("pid: 2000 reserved of 1000"));
    }
}
