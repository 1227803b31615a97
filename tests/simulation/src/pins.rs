//! Worlds in which pods may have CPUs of their own: the machine, the agent's settings, and which pods do.
//!
//! All of it is drawn from a chance of its own: it came late, and seeds keep their stories in worlds without.

use std::collections::BTreeMap;
use std::sync::Arc;

use ferrolet::config::{CpuSet, TopologyManagerPolicy, TopologyManagerScope};
use ferrolet::host::{Cpu, Machine, NumaNode};
use ferrolet::topology::TopologyConfig;
use ferrolet::topology::affinity::Aligner;
use ferrolet::topology::cpus::{Ground, Options, Reservation};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::agent::ROOT_DIR;
use crate::pods;

/// Two sockets of two NUMA nodes, with two threads a core: more than all pods together ask for, so
/// that whoever is refused is refused without a cause.
const SOCKETS: u32 = 2;
const NODES: u32 = 4;
const CORES: u32 = 64;
pub const THREADS: u32 = 2 * CORES;
/// However pods are resized: a static pod that finds no room ends others for it.
pub const MEMORY_BYTES: u64 = 256 << 30;
/// A core.
pub const RESERVED: [u32; 2] = [0, CORES];
pub const STATE_FILE: &str = "/var/lib/kubelet/cpu_manager_state";

#[derive(Clone, Debug)]
pub struct Pins {
    pub options: Options,
    policy: TopologyManagerPolicy,
    scope: TopologyManagerScope,
}

impl Pins {
    pub fn draw(random: &mut fastrand::Rng) -> Self {
        let none = Options::default();
        let options = [
            none,
            Options { strict_reservation: true, ..none },
            Options { across_nodes: true, ..none },
            Options { across_cores: true, ..none },
            Options { by_cache: true, strict_reservation: true, ..none },
            Options { align_by_socket: true, ..none },
        ];
        // Neither refuses a pod for where it would be.
        let policies = [TopologyManagerPolicy::None, TopologyManagerPolicy::BestEffort];
        let scopes = [TopologyManagerScope::Container, TopologyManagerScope::Pod];
        Pins {
            options: options[random.usize(..options.len())],
            policy: policies[random.usize(..policies.len())],
            scope: scopes[random.usize(..scopes.len())],
        }
    }

    pub fn hardware() -> Machine {
        let cpu = |id| {
            let core = id % CORES;
            let node = core / (CORES / NODES);
            Cpu { id, core, socket: core / (CORES / SOCKETS), node, cache: node * (CORES / NODES) }
        };
        let node = |id| NumaNode { id, ..NumaNode::default() };
        Machine { cpus: (0..THREADS).map(cpu).collect(), nodes: (0..NODES).map(node).collect() }
    }

    pub fn topology(&self) -> TopologyConfig {
        let hardware = Arc::new(Pins::hardware());
        let aligner = Aligner::new(self.policy, self.scope, &BTreeMap::new(), &hardware);
        let reservation = Reservation::Cpus(CpuSet::from_iter(RESERVED));
        let ground = Ground::new(hardware.clone(), &reservation, self.options);
        TopologyConfig {
            dir: ROOT_DIR.into(),
            aligner: Some(aligner.expect("no options")),
            cpus: Some(ground.expect("a core of the machine is reserved")),
            memory: None,
            lift_quotas: false,
            all_cpus: hardware.cpus.iter().map(|cpu| cpu.id).collect(),
        }
    }

    /// Makes some pods Guaranteed, most of them with whole CPUs. They are never resized.
    pub fn give(random: &mut fastrand::Rng, pod: &mut Pod) {
        if random.bool() || pods::is_refused(pod) || pods::spec(pod).resources.is_some() {
            return;
        }
        let spec = pod.spec.as_mut().expect("every drawn pod has a spec");
        for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
            let cpu = ["1", "1", "2", "500m"][random.usize(..4)];
            let amounts = [("cpu", cpu), ("memory", "16Mi")];
            let amounts: BTreeMap<_, _> = amounts.map(|(name, text)| (name.to_owned(), Quantity(text.into()))).into();
            let (limits, requests) = (Some(amounts.clone()), Some(amounts));
            container.resources = Some(ResourceRequirements { limits, requests, ..ResourceRequirements::default() });
        }
    }
}

/// Of a pod that was made Guaranteed.
pub fn is_guaranteed(pod: &Pod) -> bool {
    pods::spec(pod).containers.iter().all(|container| cpu_limit(container).is_some())
}

/// How many CPUs the container has for itself.
pub fn own_cpus(container: &Container) -> usize {
    cpu_limit(container).and_then(|Quantity(text)| text.parse().ok()).unwrap_or(0)
}

fn cpu_limit(container: &Container) -> Option<&Quantity> {
    container.resources.as_ref()?.limits.as_ref()?.get("cpu")
}
