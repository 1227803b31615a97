//! On which NUMA nodes a request for CPUs could be served.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Container;

use super::choose::Options;
use super::{Static, whole_cpus};
use crate::config::CpuSet;
use crate::host::Machine;
use crate::pod::containers::{Role, workload_containers};
use crate::topology::affinity::NODES_SEARCHED_MAX;
use crate::topology::{Ask, Hint, NumaSet, ResourceHints};

pub fn of(state: &Static, ask: &Ask<'_>) -> Vec<ResourceHints> {
    let count = match ask.container {
        Some((Role::Ephemeral, _)) => return Vec::new(),
        Some((_, container)) => whole_cpus(ask.pod, container),
        None => of_whole_pod(ask),
    };
    if count == 0 {
        return Vec::new();
    }
    let hints = match ask.container {
        Some((_, container)) => for_container(state, ask, container, count),
        None => for_pod(state, ask, count),
    };
    vec![ResourceHints { resource: "cpu".to_owned(), hints }]
}

fn for_container(state: &Static, ask: &Ask<'_>, container: &Container, count: usize) -> Vec<Hint> {
    match state.assigned(ask.uid, &container.name) {
        None => {
            let left = state.left_over(ask.uid, ask.pod, Some(&container.name));
            search(state, &state.available(), &left, count)
        }
        // What it has stays where it is.
        Some(has) if has.len() == count => search(state, has, &CpuSet::default(), count),
        Some(_) => Vec::new(),
    }
}

/// What the pod's containers have stays where it is, and those that have nothing yet come to it: after a
/// restart that may be some of them, and together it may be more than is needed at once.
fn for_pod(state: &Static, ask: &Ask<'_>, count: usize) -> Vec<Hint> {
    let mut has = CpuSet::default();
    for (_, container) in workload_containers(ask.pod) {
        let wanted = whole_cpus(ask.pod, container);
        let Some(cpus) = state.assigned(ask.uid, &container.name) else { continue };
        // What a container that shares was found alone on is taken from it when it is asked for.
        if wanted == 0 {
            continue;
        }
        if cpus.len() != wanted {
            return Vec::new();
        }
        has = has.union(cpus);
    }
    match has.len() == count {
        true => search(state, &has, &CpuSet::default(), count),
        false => search(state, &state.available(), &has, count),
    }
}

/// What is needed at once at the most: init containers one after another, each beside the sidecars
/// that began before it.
fn of_whole_pod(ask: &Ask<'_>) -> usize {
    let (mut sidecars, mut most, mut regular) = (0, 0, 0);
    for (role, container) in workload_containers(ask.pod) {
        let count = whole_cpus(ask.pod, container);
        match role {
            Role::Init => most = most.max(sidecars + count),
            Role::Sidecar => {
                sidecars += count;
                most = most.max(sidecars);
            }
            Role::Regular | Role::Ephemeral => regular += count,
        }
    }
    most.max(sidecars + regular)
}

/// The CPUs that count as being on these nodes.
pub fn cpus_near(machine: &Machine, nodes: NumaSet, options: &Options) -> CpuSet {
    let on_nodes = || machine.cpus.iter().filter(|cpu| nodes.contains(cpu.node));
    let sockets: BTreeSet<u32> = on_nodes().map(|cpu| cpu.socket).collect();
    match options.align_by_socket {
        true => machine.cpus.iter().filter(|cpu| sockets.contains(&cpu.socket)).map(|cpu| cpu.id).collect(),
        false => on_nodes().map(|cpu| cpu.id).collect(),
    }
}

fn search(state: &Static, free: &CpuSet, left: &CpuSet, count: usize) -> Vec<Hint> {
    let machine = &*state.ground.machine;
    // With a node of memory alone in a set, it would be as good as without, and there would be twice as many.
    let nodes: BTreeSet<u32> = machine.cpus.iter().map(|cpu| cpu.node).filter(|id| *id < NumaSet::NODES_MAX).collect();
    let nodes: Vec<u32> = nodes.into_iter().collect();
    let on = |cpus: &CpuSet, set: NumaSet| {
        machine.cpus.iter().filter(|cpu| set.contains(cpu.node) && cpus.contains(cpu.id)).count()
    };
    let all = |set: NumaSet| machine.cpus.iter().filter(|cpu| set.contains(cpu.node)).count();
    let sets: Vec<NumaSet> = subsets(&nodes);
    let fewest = sets.iter().filter(|set| all(**set) >= count).map(|set| set.len()).min().unwrap_or(nodes.len());
    let mut hints = Vec::new();
    for set in sets {
        // What is left over is taken first, so it has to be there whole.
        if on(left, set) < left.len() || on(left, set) + on(&free.difference(left), set) < count {
            continue;
        }
        // The option adds to what is preferred. As few nodes as can be stay good enough when they are
        // on two sockets; upstream takes them, too.
        let is_on_socket = state.ground.options.align_by_socket && spans_fewest_sockets(machine, set, fewest);
        let preferred = set.len() == fewest || is_on_socket;
        hints.push(Hint { nodes: Some(set), preferred });
    }
    hints
}

/// By size, then by number. The aligner has seen to it that there are few nodes.
fn subsets(nodes: &[u32]) -> Vec<NumaSet> {
    let bits = u32::try_from(nodes.len()).unwrap_or(u32::MAX).min(NODES_SEARCHED_MAX as u32);
    let mut sets: Vec<NumaSet> = (1u32..1 << bits)
        .map(|mask| {
            nodes.iter().enumerate().filter(|(place, _)| mask & 1 << place != 0).map(|(_, node)| *node).collect()
        })
        .collect();
    sets.sort_by_key(|set| (set.len(), set.mask()));
    sets
}

fn spans_fewest_sockets(machine: &Machine, set: NumaSet, fewest: usize) -> bool {
    let sockets = |cpus: &mut dyn Iterator<Item = u32>| cpus.collect::<BTreeSet<_>>().len();
    // Nodes of memory alone are on no socket.
    let nodes: BTreeSet<u32> = machine.cpus.iter().map(|cpu| cpu.node).collect();
    let per_socket = nodes.len() / sockets(&mut machine.cpus.iter().map(|cpu| cpu.socket)).max(1);
    let spans = sockets(&mut machine.cpus.iter().filter(|cpu| set.contains(cpu.node)).map(|cpu| cpu.socket));
    per_socket > 0 && spans == fewest.div_ceil(per_socket)
}
