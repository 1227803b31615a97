use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::*;
use crate::config::quantity;
use crate::host::{Cpu, Machine, NumaNode};
use crate::pod::containers::workload_containers;
use crate::pod::testing::pod_yaml;
use crate::topology::{Hint, NumaSet, Running};

mod choosing;
mod giving;
mod healing;
mod machines;
mod properties;
mod state_file;

/// How a machine is built, from the largest unit down.
#[derive(Clone, Copy, Debug)]
struct Shape {
    sockets: u32,
    nodes: u32,
    /// Last-level caches of the machine.
    caches: u32,
    cores: u32,
    threads: u32,
}

impl Shape {
    /// Numbered as Linux does on most machines: first all cores, then their second threads.
    fn machine(self) -> Machine {
        let Shape { sockets, nodes, caches, cores, threads } = self;
        let part = |core: u32, parts: u32| core * parts / cores;
        let first_of = |core: u32, parts: u32| (part(core, parts) * cores).div_ceil(parts);
        let cpu = |id: u32| {
            let core = id % cores;
            let (socket, node, cache) = (part(core, sockets), part(core, nodes), first_of(core, caches));
            Cpu { id, core, socket, node, cache }
        };
        let node = |id| NumaNode { id, ..NumaNode::default() };
        Machine { cpus: (0..cores * threads).map(cpu).collect(), nodes: (0..nodes).map(node).collect() }
    }
}

/// Two sockets that are one node each, four cores of two threads in each: 0-3,8-11 and 4-7,12-15.
const SMALL: Shape = Shape { sockets: 2, nodes: 2, caches: 2, cores: 8, threads: 2 };
/// One node with four caches of two cores of two threads: 0,1,8,9 and so on.
const CACHES: Shape = Shape { sockets: 1, nodes: 1, caches: 4, cores: 8, threads: 2 };
/// Two sockets of two nodes each, two cores of two threads in a node: 0,1,8,9 and so on.
const QUARTERS: Shape = Shape { sockets: 2, nodes: 4, caches: 2, cores: 8, threads: 2 };
/// One node of two sockets, as guests have it: 0-3 and 4-7.
const GUEST: Shape = Shape { sockets: 2, nodes: 1, caches: 2, cores: 8, threads: 1 };

fn list(text: &str) -> CpuSet {
    CpuSet::parse(text).expect(text)
}

fn ground(shape: Shape, reserved: &str, options: Options) -> Ground {
    let reservation = Reservation::Cpus(list(reserved));
    Ground::new(Arc::new(shape.machine()), &reservation, options).expect("some CPUs of the machine are reserved")
}

/// CPU 0 is reserved.
fn small() -> Static {
    Static::new(ground(SMALL, "0", Options::default()))
}

/// A Guaranteed pod, from containers such as `web 2`, and before a bar its init containers,
/// sidecars with a star.
fn pod(containers: &str) -> Pod {
    let (init, regular) = containers.split_once('|').unwrap_or(("", containers));
    let list = |list: &str| list.split(',').filter(|item| !item.trim().is_empty()).map(container).collect();
    let spec = PodSpec { init_containers: Some(list(init)), containers: list(regular), ..PodSpec::default() };
    Pod { spec: Some(spec), ..Pod::default() }
}

fn container(item: &str) -> Container {
    let (name, cpu) = item.trim().split_once(' ').expect("a name and its CPUs");
    let amounts = [("cpu", cpu), ("memory", "1Mi")];
    let limits: BTreeMap<String, ApiQuantity> =
        amounts.into_iter().map(|(name, amount)| (name.to_owned(), ApiQuantity(amount.to_owned()))).collect();
    Container {
        name: name.trim_end_matches('*').to_owned(),
        resources: Some(ResourceRequirements { limits: Some(limits), ..ResourceRequirements::default() }),
        restart_policy: name.ends_with('*').then(|| "Always".to_owned()),
        ..Container::default()
    }
}

fn any() -> Affinity {
    Hint { nodes: None, preferred: false }
}

fn at(nodes: &[u32]) -> Affinity {
    Hint { nodes: Some(nodes.iter().copied().collect()), preferred: true }
}

fn running(uid: &str, container: &str, cpus: &str, whole_cpus: usize) -> Running {
    Running {
        uid: PodUid::new(uid),
        container: container.to_owned(),
        cpus: list(cpus),
        nodes: NumaSet::default(),
        whole_cpus,
    }
}

impl Static {
    /// Allocates for all containers of a pod until one fails; its UID is its name here.
    fn place(&mut self, uid: &str, pod: &Pod, near: Affinity) -> Result<(), String> {
        let uid = PodUid::new(uid);
        workload_containers(pod)
            .try_for_each(|container| self.allocate(&Ask { uid: &uid, pod, container: Some(container) }, near))
            .map_err(|failure| format!("{}: {}", failure.reason, failure.message))
    }

    fn show(&self, uid: &str) -> String {
        let containers = self.entries().get(&PodUid::new(uid)).into_iter().flatten();
        containers.map(|(name, cpus)| format!("{name} {cpus}")).collect::<Vec<_>>().join("; ")
    }

    /// Of one container, or of the pod; `-` where it does not mind.
    fn show_hints(&self, uid: &str, pod: &Pod, container: Option<&str>) -> String {
        let uid = PodUid::new(uid);
        let named = |name: &str| workload_containers(pod).find(|(_, container)| container.name == name);
        let container = container.map(|name| named(name).expect("the pod has it"));
        let hint = |hint: &Hint| format!("{}{}", hint.nodes.expect("a place"), if hint.preferred { "*" } else { "" });
        let all = self.hints(&Ask { uid: &uid, pod, container });
        let lists = all.iter().map(|of| of.hints.iter().map(hint).collect::<Vec<_>>().join(" "));
        lists.reduce(|one, other| format!("{one}; {other}")).unwrap_or_else(|| "-".to_owned())
    }
}
