//! What gives pods places on the machine, from the operator's settings and the machine itself.

use std::collections::BTreeMap;

use crate::config::{
    self, CpuManagerPolicy, Gate, MemoryManagerPolicy, Quantity, Settings, Signal, TopologyManagerPolicy,
};
use crate::host::MachineFacts;
use crate::node::NodeConfig;
use crate::pod::resources::Amounts;
use crate::topology::TopologyConfig;
use crate::topology::affinity::Aligner;
use crate::topology::cpus::{Ground, Options, Reservation};
use crate::topology::memory::{Layout, Reservations};

pub fn topology(settings: &Settings, node: &NodeConfig, facts: &MachineFacts) -> anyhow::Result<TopologyConfig> {
    let kubelet = &settings.kubelet;
    let machine = &facts.machine;
    let cpus = match kubelet.cpu_manager_policy {
        CpuManagerPolicy::None => None,
        CpuManagerPolicy::Static => Some(Ground::new(
            machine.clone(),
            &reserved_cpus(settings, node),
            options(&kubelet.cpu_manager_policy_options),
        )?),
    };
    let memory = match kubelet.memory_manager_policy {
        MemoryManagerPolicy::None => None,
        MemoryManagerPolicy::Static => Some(Layout::new(
            machine,
            &Reservations {
                per_node: &kubelet.reserved_memory,
                kube: &kubelet.kube_reserved,
                system: &kubelet.system_reserved,
                eviction_bytes: eviction_bytes(node, facts),
            },
        )?),
    };
    let has_provider = cpus.is_some() || memory.is_some();
    // Checked on every machine, as upstream does, though only places need it.
    let aligner = Aligner::new(
        kubelet.topology_manager_policy,
        kubelet.topology_manager_scope,
        &kubelet.topology_manager_policy_options,
        machine,
    )?;
    let is_used = has_provider || kubelet.topology_manager_policy != TopologyManagerPolicy::None;
    Ok(TopologyConfig {
        dir: settings.flags.root_dir.clone(),
        aligner: is_used.then_some(aligner),
        cpus,
        memory,
        lift_quotas: settings.gates.enabled(Gate::DisableCPUQuotaWithExclusiveCPUs),
        all_cpus: machine.cpus.iter().map(|cpu| cpu.id).collect(),
    })
}

fn reserved_cpus(settings: &Settings, node: &NodeConfig) -> Reservation {
    let explicit = &settings.kubelet.reserved_system_cpus;
    if !explicit.is_empty() {
        return Reservation::Cpus(explicit.clone());
    }
    let of = |amounts: &Amounts| amounts.get("cpu").copied().unwrap_or(Quantity::ZERO);
    Reservation::Amount(of(&node.reserved.system) + of(&node.reserved.kube))
}

/// Their gates and values were looked at before.
fn options(options: &BTreeMap<String, String>) -> Options {
    let is_on = |name: &str| options.get(name).is_some_and(|value| config::flags::boolean(value) == Ok(true));
    Options {
        full_cores_only: is_on("full-pcpus-only"),
        across_nodes: is_on("distribute-cpus-across-numa"),
        across_cores: is_on("distribute-cpus-across-cores"),
        align_by_socket: is_on("align-by-socket"),
        strict_reservation: is_on("strict-cpu-reservation"),
        by_cache: is_on("prefer-align-cpus-by-uncorecache"),
    }
}

fn eviction_bytes(node: &NodeConfig, facts: &MachineFacts) -> u64 {
    let memory = i64::try_from(facts.memory_bytes).unwrap_or(i64::MAX);
    let limit = node.reserved.eviction.get(&Signal::MemoryAvailable).map_or(0, |limit| limit.of(memory));
    u64::try_from(limit).unwrap_or(0)
}
