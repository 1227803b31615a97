use std::collections::BTreeMap;

use super::*;
use crate::host::NumaNode;

mod place;
mod random;

fn machine(nodes: &[u32]) -> Machine {
    let far = |from: &u32| nodes.iter().map(|to| if from == to { 10 } else { 20 }).collect();
    let node = |id: &u32| NumaNode { id: *id, distances: far(id), ..NumaNode::default() };
    Machine { nodes: nodes.iter().map(node).collect(), ..Machine::default() }
}

fn options(options: &[(&str, &str)]) -> BTreeMap<String, String> {
    options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn aligner(policy: Policy, scope: Scope, nodes: &[u32]) -> Aligner {
    Aligner::new(policy, scope, &options(&[]), &machine(nodes)).expect("a policy for this machine")
}

/// Hints as `0* 0,1 any`, a star for those that are preferred.
fn hints(text: &str) -> Vec<Hint> {
    let hint = |word: &str| {
        let nodes = word.trim_end_matches('*');
        let ids = |nodes: &str| nodes.split(',').map(|id| id.parse::<u32>().expect("a node")).collect();
        Hint { nodes: (nodes != "any").then(|| ids(nodes)), preferred: word.ends_with('*') }
    };
    text.split_whitespace().map(hint).collect()
}

fn of_resources(lists: &[&str]) -> Vec<ResourceHints> {
    let of = |(n, list): (usize, &&str)| ResourceHints { resource: format!("r{n}"), hints: hints(list) };
    lists.iter().enumerate().map(of).collect()
}

fn show(hint: Hint) -> String {
    let nodes = hint.nodes.map_or("any".to_owned(), |nodes| nodes.to_string());
    format!("{nodes}{}", if hint.preferred { "*" } else { "" })
}

fn check(aligner: &Aligner, lists: &[&str], expected: &str) {
    let (affinity, admitted) = aligner.decide(&of_resources(lists));
    let verdict = if admitted { "" } else { ", refused" };
    assert_eq!(format!("{}{verdict}", show(affinity)), expected, "{:?} of {lists:?}", aligner.policy);
}

#[test]
fn without_a_policy_any_place_will_do() {
    let none = aligner(Policy::None, Scope::Container, &[0, 1]);
    check(&none, &["0*", "1*"], "any");
    check(&none, &[""], "any");
    check(&none, &[], "any");
}

#[test]
fn best_effort_takes_the_best_place_and_refuses_nobody() {
    let best_effort = aligner(Policy::BestEffort, Scope::Container, &[0, 1, 2, 3]);
    let check = |lists: &[&str], expected| check(&best_effort, lists, expected);
    check(&[], "0,1,2,3*");
    check(&["any*"], "0,1,2,3*");
    check(&["1* 0* 0,1"], "0*");
    check(&["0* 1*", "1* 0,1"], "1*");
    check(&["0,1* 2,3* 0,1,2", "2,3*"], "2,3*");
    check(&["0*", "1*"], "0,1,2,3");
    check(&["0*", ""], "0");
    check(&["0*", "any"], "0");
    check(&["0 1", "1"], "1");
    check(&["0* 0,1", "0,1* 2,3*"], "0,1");
    check(&["0,1,2", "1,2,3"], "1,2");
}

#[test]
fn what_is_not_preferred_is_as_large_as_the_hungriest_resource_needs() {
    let best_effort = aligner(Policy::BestEffort, Scope::Container, &[0, 1, 2, 3]);
    let check = |lists: &[&str], expected| check(&best_effort, lists, expected);
    check(&["0 1 0,1 0,1,2", "0,1 0,1,2"], "0,1");
    check(&["0 0,1,2,3", "0,1,2 1,2,3"], "0,1,2");
    // Too large a place only if there is none that can still be added to.
    check(&["0 0,1,2", "1,2 0,1,2,3"], "1,2");
    check(&["0,1,2,3", "any"], "0,1,2,3");
}

#[test]
fn restricted_refuses_what_nobody_prefers() {
    let restricted = aligner(Policy::Restricted, Scope::Container, &[0, 1, 2, 3]);
    let check = |lists: &[&str], expected| check(&restricted, lists, expected);
    check(&["0,1* 2,3*", "2,3* 0,1,2,3"], "2,3*");
    check(&["0* 1*", "any*"], "0*");
    check(&["0* 1*", "0,1*"], "0, refused");
    check(&["0* 1*", ""], "0, refused");
    check(&["0*", "1*"], "0,1,2,3, refused");
    check(&[], "0,1,2,3*");
}

#[test]
fn single_numa_node_refuses_what_needs_more_than_one() {
    let single = aligner(Policy::SingleNumaNode, Scope::Container, &[0, 1]);
    check(&single, &["0* 1* 0,1", "1* 0,1"], "1*");
    check(&single, &["0,1*"], "any, refused");
    check(&single, &["0*", "1*"], "any, refused");
    check(&single, &["0", "0*"], "any, refused");
    check(&single, &["0*", ""], "any, refused");
    check(&single, &["any*"], "any*");
    check(&single, &[], "any*");
    let small = aligner(Policy::SingleNumaNode, Scope::Container, &[0]);
    check(&small, &["0*", "0*"], "any*");
}

#[test]
fn nodes_need_not_be_numbered_in_a_row() {
    let check =
        |policy, expected| check(&aligner(policy, Scope::Container, &[0, 8, 63]), &["8* 0,8", "8* 63*"], expected);
    check(Policy::BestEffort, "8*");
    check(Policy::Restricted, "8*");
    check(Policy::SingleNumaNode, "8*");
}

#[test]
fn if_told_so_nodes_close_to_each_other_go_before_low_numbers() {
    let distances = [[10, 30, 20, 30], [30, 10, 30, 12], [20, 30, 10, 30], [30, 12, 30, 10]];
    let mut machine = machine(&[0, 1, 2, 3]);
    for (node, distances) in machine.nodes.iter_mut().zip(distances) {
        node.distances = distances.to_vec();
    }
    let aligner = |policy, value| {
        Aligner::new(policy, Scope::Container, &options(&[(PREFER_CLOSEST, value)]), &machine).expect("known distances")
    };
    check(&aligner(Policy::BestEffort, "false"), &["0,1* 0,2* 1,3*"], "0,1*");
    check(&aligner(Policy::BestEffort, "true"), &["0,1* 0,2* 1,3*"], "1,3*");
    check(&aligner(Policy::BestEffort, "true"), &["0,1 0,2 1,2,3"], "0,2");
    check(&aligner(Policy::BestEffort, "true"), &["0,1* 1,2*"], "0,1*");
    check(&aligner(Policy::Restricted, "true"), &["0,1* 0,2*"], "0,2*");
    check(&aligner(Policy::SingleNumaNode, "true"), &["1* 0* 1,3*"], "0*");
}

#[test]
fn what_makes_alignment_impossible_is_said_with_its_setting() {
    let check = |set: &[(&str, &str)], machine: &Machine, expected: &str| {
        let error = Aligner::new(Policy::BestEffort, Scope::Pod, &options(set), machine).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    };
    let large = machine(&(0..9).collect::<Vec<_>>());
    check(&[], &large, "topologyManagerPolicyOptions[\"max-allowable-numa-nodes\"] is 8, but the machine has 9");
    check(&[(NODES_MAX, "many")], &large, "\"max-allowable-numa-nodes\"]: \"many\"");
    check(&[(PREFER_CLOSEST, "perhaps")], &machine(&[0]), "\"prefer-closest-numa-nodes\"]: \"perhaps\"");
    check(&[], &machine(&[64]), "NUMA node 64");
    let huge = machine(&(0..17).collect::<Vec<_>>());
    check(&[(NODES_MAX, "17")], &huge, "17 NUMA nodes; beyond 16 set topologyManagerPolicy to none");
    let mut silent = machine(&[0, 1]);
    silent.nodes[1].distances.clear();
    check(&[(PREFER_CLOSEST, "true")], &silent, "\"prefer-closest-numa-nodes\"] needs the distances");
    assert!(Aligner::new(Policy::Restricted, Scope::Pod, &options(&[(NODES_MAX, "9")]), &large).is_ok());
    assert!(Aligner::new(Policy::None, Scope::Pod, &options(&[]), &large).is_ok());
}

#[test]
fn the_scope_is_a_label_where_alignment_is_counted() {
    let label = |policy, scope| aligner(policy, scope, &[0]).scope_label();
    assert_eq!(label(Policy::None, Scope::Pod), None);
    assert_eq!(label(Policy::Restricted, Scope::Pod), Some("pod"));
    assert_eq!(label(Policy::SingleNumaNode, Scope::Container), Some("container"));
}
