use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::*;
use crate::config::NumaMemory;
use crate::config::quantity::{self, Quantity};
use crate::host::{Machine, NumaNode};
use crate::pod::containers::workload_containers;
use crate::pod::resources::Amounts;
use crate::pod::testing::pod_yaml;

mod healing;
mod properties;
mod reserved;
mod state_file;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn amount(text: &str) -> Quantity {
    quantity::parse(text).expect(text)
}

fn amounts(of: &[(&str, &str)]) -> Amounts {
    of.iter().map(|(name, text)| ((*name).to_owned(), amount(text))).collect()
}

fn set(nodes: &[u32]) -> NumaSet {
    nodes.iter().copied().collect()
}

/// Nodes with so many GiB of memory and so many 2 MiB pages.
fn machine(nodes: &[(u64, u64)]) -> Machine {
    let node = |(id, (gib, pages)): (usize, &(u64, u64))| NumaNode {
        id: id as u32,
        memory_bytes: gib * GIB,
        hugepages: if *pages > 0 { vec![(2 * MIB, *pages)] } else { Vec::new() },
        distances: Vec::new(),
    };
    Machine { cpus: Vec::new(), nodes: nodes.iter().enumerate().map(node).collect() }
}

/// One GiB of node 0 is kept from pods.
fn layout(machine: &Machine) -> Layout {
    let system = amounts(&[("memory", "1Gi")]);
    let per_node = [NumaMemory { numa_node: 0, limits: system.clone() }];
    let kube = Amounts::new();
    let reservations = Reservations { per_node: &per_node, kube: &kube, system: &system, eviction_bytes: 0 };
    Layout::new(machine, &reservations).expect("what is reserved is what is kept from pods")
}

/// Two nodes of which each has 10 GiB to give.
fn two_nodes() -> Static {
    Static::new(layout(&machine(&[(11, 0), (10, 0)])))
}

fn four_nodes() -> Static {
    Static::new(layout(&machine(&[(11, 0), (10, 0), (10, 0), (10, 0)])))
}

/// A Guaranteed pod, from containers such as `web 2Gi`, `web 2Gi+4Mi` with huge pages, and
/// before a bar its init containers, sidecars with a star.
fn pod(containers: &str) -> Pod {
    let (init, regular) = containers.split_once('|').unwrap_or(("", containers));
    let list = |list: &str| list.split(',').filter(|item| !item.trim().is_empty()).map(container).collect();
    let spec = PodSpec { init_containers: Some(list(init)), containers: list(regular), ..PodSpec::default() };
    Pod { spec: Some(spec), ..Pod::default() }
}

fn container(item: &str) -> Container {
    let (name, memory) = item.trim().split_once(' ').expect("a name and its memory");
    let (memory, pages) = memory.split_once('+').map_or((memory, None), |(memory, pages)| (memory, Some(pages)));
    let pages = pages.map(|pages| ("hugepages-2Mi", pages));
    let amounts = [("cpu", "1"), ("memory", memory)].into_iter().chain(pages);
    let amounts: BTreeMap<String, ApiQuantity> =
        amounts.map(|(name, amount)| (name.to_owned(), ApiQuantity(amount.to_owned()))).collect();
    let limits = ResourceRequirements { limits: Some(amounts), ..ResourceRequirements::default() };
    Container {
        name: name.trim_end_matches('*').to_owned(),
        resources: Some(limits),
        restart_policy: name.ends_with('*').then(|| "Always".to_owned()),
        ..Container::default()
    }
}

fn any() -> Affinity {
    Hint { nodes: None, preferred: false }
}

fn at(nodes: &[u32]) -> Affinity {
    Hint { nodes: Some(set(nodes)), preferred: false }
}

impl Static {
    /// Allocates for all containers of a pod; its UID is its name here.
    fn place(&mut self, uid: &str, pod: &Pod, affinity: Affinity) -> Result<(), String> {
        let uid = PodUid::new(uid);
        let mut containers = workload_containers(pod);
        containers
            .try_for_each(|container| self.allocate(&Ask { uid: &uid, pod, container: Some(container) }, affinity))
            .map_err(|failure| format!("{}: {}", failure.reason, failure.message))
    }

    fn show(&self, uid: &str) -> String {
        let containers = self.entries().get(&PodUid::new(uid)).into_iter().flatten();
        let block = |block: &Block| format!("{}@{}", Quantity::bytes(block.bytes as i64), block.nodes);
        let blocks = |blocks: &[Block]| blocks.iter().map(block).collect::<Vec<_>>().join("+");
        containers.map(|(name, of)| format!("{name} {}", blocks(of))).collect::<Vec<_>>().join(", ")
    }

    fn show_hints(&self, uid: &str, pod: &Pod, container: Option<usize>) -> String {
        let uid = PodUid::new(uid);
        let container = container.map(|n| workload_containers(pod).nth(n).expect("so many containers"));
        let hint = |hint: &Hint| format!("{}{}", hint.nodes.expect("a place"), if hint.preferred { "*" } else { "" });
        let list = |of: &ResourceHints| of.hints.iter().map(hint).collect::<Vec<_>>().join(" ");
        let all = self.hints(&Ask { uid: &uid, pod, container });
        all.iter().map(|of| format!("{}: {}", of.resource, list(of))).collect::<Vec<_>>().join("; ")
    }
}

#[test]
fn hints_are_the_places_with_room_and_the_smallest_are_preferred() {
    let state = two_nodes();
    let check = |of: &str, expected: &str| assert_eq!(state.show_hints("p", &pod(of), Some(0)), expected, "{of}");
    check("web 2Gi", "memory: 0* 1* 0,1");
    check("web 10Gi", "memory: 0* 1* 0,1");
    check("web 11Gi", "memory: 0,1*");
    check("web 21Gi", "");
    let check = |of: &str, expected: &str| assert_eq!(state.show_hints("p", &pod(of), None), expected, "{of}");
    check("web 4Gi, log 5Gi", "memory: 0* 1* 0,1");
    check("web 4Gi, log 8Gi", "memory: 0,1*");
    check("setup 8Gi | web 4Gi, log 5Gi", "memory: 0* 1* 0,1");
    check("proxy* 3Gi, setup 8Gi | web 4Gi", "memory: 0,1*");
}

#[test]
fn huge_pages_go_with_the_memory_of_the_same_nodes() {
    let state = Static::new(layout(&machine(&[(11, 0), (11, 512)])));
    let check = |of: &str, expected: &str| assert_eq!(state.show_hints("p", &pod(of), Some(0)), expected, "{of}");
    check("web 2Gi+512Mi", "hugepages-2Mi: 1* 0,1; memory: 1* 0,1");
    check("web 11Gi+512Mi", "hugepages-2Mi: 0,1*; memory: 0,1*");
    check("web 2Gi+2Gi", "");
    let mut state = state;
    assert_eq!(state.place("p", &pod("web 2Gi+512Mi"), any()), Ok(()));
    assert_eq!(state.show("p"), "web 512Mi@1+2Gi@1");
}

#[test]
fn only_guaranteed_pods_are_asked_where_their_memory_is() {
    let mut state = two_nodes();
    let mut check = |text: &str| {
        let pod = pod_yaml(text);
        assert_eq!(state.show_hints("p", &pod, Some(0)), "", "{text}");
        assert_eq!(state.show_hints("p", &pod, None), "", "{text}");
        assert_eq!(state.place("p", &pod, any()), Ok(()));
        assert_eq!(state.nodes_of(&PodUid::new("p"), "c"), None, "{text}");
    };
    check("spec: {containers: [{name: c, image: a}]}");
    check("spec: {containers: [{name: c, image: a, resources: {requests: {memory: 1Gi, cpu: 1}}}]}");
    let full = "resources: {limits: {memory: 1Gi, cpu: 1}}";
    check(&format!("spec: {{{full}, containers: [{{name: c, image: a, {full}}}]}}"));
    assert_eq!(state.pinning(), Pinning::default());
}

#[test]
fn memory_is_given_where_it_was_decided_or_on_more_nodes_if_it_must_be() {
    let check = |of: &str, near: Affinity, expected: &str| {
        let mut state = two_nodes();
        assert_eq!(state.place("p", &pod(of), near), Ok(()));
        assert_eq!(state.show("p"), expected, "{of} {near:?}");
    };
    check("web 2Gi", any(), "web 2Gi@0");
    check("web 2Gi", at(&[1]), "web 2Gi@1");
    check("web 2Gi", at(&[0, 1]), "web 2Gi@0,1");
    check("web 12Gi", any(), "web 12Gi@0,1");
    check("web 12Gi", at(&[1]), "web 12Gi@0,1");
    check("web 6Gi, log 6Gi", any(), "log 6Gi@1, web 6Gi@0");
}

#[test]
fn a_node_of_a_group_serves_nobody_else() {
    let mut state = four_nodes();
    assert_eq!(state.place("both", &pod("web 12Gi"), at(&[1, 2])), Ok(()));
    assert_eq!(state.show_hints("p", &pod("web 1Gi"), Some(0)), "memory: 0* 3* 1,2 0,3");
    assert_eq!(state.place("one", &pod("web 1Gi"), at(&[3])), Ok(()));
    assert_eq!(state.show_hints("p", &pod("web 1Gi"), Some(0)), "memory: 0* 3* 1,2");
    assert_eq!(state.show_hints("p", &pod("web 12Gi"), Some(0)), "");
    // Decided without regard to the groups: more nodes if that makes it right, or a refusal.
    assert_eq!(state.place("apart", &pod("web 1Gi"), at(&[1])), Ok(()));
    assert_eq!(state.show("apart"), "web 1Gi@1,2");
    let refused = state.place("mixed", &pod("web 1Gi"), at(&[0, 1])).expect_err("node 1 is in a group");
    assert!(refused.contains("preferred hint violates NUMA node allocation"), "{refused}");
    state.release(&PodUid::new("both"));
    state.release(&PodUid::new("apart"));
    assert_eq!(state.show_hints("p", &pod("web 1Gi"), Some(0)), "memory: 0* 1* 2* 3* 0,1 0,2 1,2 0,1,2");
}

#[test]
fn who_cannot_be_served_learns_why() {
    let mut state = two_nodes();
    assert_eq!(state.place("first", &pod("web 8Gi"), at(&[0])), Ok(()));
    let before = state.entries().clone();
    let mut check = |of: &str, near: Affinity, expected: &str| {
        let expected =
            format!("UnexpectedAdmissionError: Allocate failed due to [memorymanager] {expected}, which is unexpected");
        assert_eq!(state.place("p", &pod(of), near), Err(expected), "{of} {near:?}");
        assert_eq!(*state.entries(), before);
    };
    let none = "failed to get the default NUMA affinity, no NUMA nodes with enough memory is available";
    check("web 12Gi", any(), none);
    check("web 3Gi", at(&[0]), "failed to find NUMA nodes to extend the current topology hint");
    check("web 1500m", any(), "failed to represent quantity as int64");
    assert_eq!(state.pinning(), Pinning { requests: 4, errors: 3 });
}

#[test]
fn what_was_preferred_is_not_traded_for_what_is_not() {
    let mut state = four_nodes();
    assert_eq!(state.place("a", &pod("web 5Gi"), at(&[0])), Ok(()));
    assert_eq!(state.place("b", &pod("web 5Gi"), at(&[1])), Ok(()));
    assert_eq!(state.place("c", &pod("web 3Gi"), at(&[2, 3])), Ok(()));
    // On an empty machine one node would do.
    let six = pod("web 6Gi");
    assert_eq!(state.show_hints("p", &six, Some(0)), "memory: 2,3");
    let refused = |state: &mut Static, near: Affinity| {
        state.place("p", &six, Hint { preferred: true, ..near }).expect_err("two nodes are more than one")
    };
    let text = refused(&mut state, any());
    assert!(text.contains("[memorymanager] failed to find the default preferred hint"), "{text}");
    let text = refused(&mut state, at(&[2]));
    assert!(text.contains("[memorymanager] failed to find the extended preferred hint"), "{text}");
    assert_eq!(state.place("p", &six, at(&[2])), Ok(()));
    assert_eq!(state.show("p"), "web 6Gi@2,3");
}

#[test]
fn what_init_containers_had_is_used_again_by_those_after_them() {
    let check = |of: &str, expected: &str| {
        let mut state = two_nodes();
        assert_eq!(state.place("p", &pod(of), at(&[1])), Ok(()));
        assert_eq!(state.show("p"), expected, "{of}");
    };
    check("i 8Gi | web 9Gi", "i 0@1, web 9Gi@1");
    check("i 8Gi | web 5Gi", "i 3Gi@1, web 5Gi@1");
    check("i 8Gi, j 6Gi | web 7Gi, log 3Gi", "i 0@1, j 0@1, log 3Gi@1, web 7Gi@1");
    check("i 6Gi, j 8Gi | web 5Gi", "i 0@1, j 3Gi@1, web 5Gi@1");
    // A sidecar goes on running.
    check("s* 3Gi, i 7Gi | web 7Gi", "i 0@1, s 3Gi@1, web 7Gi@1");
    check("i 7Gi, s* 3Gi | web 7Gi", "i 0@1, s 3Gi@1, web 7Gi@1");
    let mut state = two_nodes();
    let refused = state.place("p", &pod("s* 3Gi, i 8Gi | web 5Gi"), at(&[1]));
    assert!(refused.is_err(), "11 GiB at once do not fit: {}", state.show("p"));
}

#[test]
fn init_containers_that_another_agent_took_for_done_cost_nothing_again() {
    let mut state = two_nodes();
    let pod = pod("i 8Gi, s* 1Gi | web 5Gi");
    let uid = PodUid::new("p");
    assert_eq!(state.place("p", &pod, at(&[1])), Ok(()));
    assert_eq!(state.show("p"), "i 2Gi@1, s 1Gi@1, web 5Gi@1");
    // As upstream does once a later container starts.
    state.ledger.take(&uid, "i").expect("it has 2 GiB left");
    assert_eq!(state.show("p"), "s 1Gi@1, web 5Gi@1");
    assert_eq!(state.show_hints("p", &pod, Some(0)), "");
    assert_eq!(state.place("p", &pod, any()), Ok(()));
    assert_eq!(state.show("p"), "s 1Gi@1, web 5Gi@1");
}

#[test]
fn who_has_memory_keeps_it_where_it_is() {
    let mut state = two_nodes();
    let pod = pod("i 1Gi | web 6Gi, log 2Gi");
    assert_eq!(state.place("p", &pod, at(&[1])), Ok(()));
    let before = state.show("p");
    assert_eq!(state.show_hints("p", &pod, Some(1)), "memory: 1*");
    assert_eq!(state.show_hints("p", &pod, None), "memory: 1*");
    assert_eq!(state.place("p", &pod, at(&[0])), Ok(()));
    assert_eq!(state.show("p"), before);
    assert_eq!(state.nodes_of(&PodUid::new("p"), "web"), Some(set(&[1])));
    assert_eq!(state.nodes_of(&PodUid::new("p"), "other"), None);
    assert_eq!(state.nodes_of(&PodUid::new("other"), "web"), None);
}

#[test]
fn a_machine_of_many_nodes_is_searched_to_an_end() {
    let nodes = [(11, 0); 20];
    let mut state = Static::new(layout(&machine(&nodes)));
    assert_eq!(state.place("p", &pod("web 12Gi"), any()), Ok(()));
    assert_eq!(state.show("p"), "web 12Gi@0,1");
    assert!(state.place("q", &pod("web 300Gi"), any()).is_err());
    let sets = state.show_hints("q", &pod("web 12Gi"), Some(0));
    assert!(sets.split(' ').count() <= 1 << 16, "{}", sets.len());
}
