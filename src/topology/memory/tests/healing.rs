//! Records against what runs.

use super::*;

fn running(of: &[(&str, &str, &[u32])]) -> Vec<Running> {
    let one = |(uid, container, nodes): &(&str, &str, &[u32])| Running {
        uid: PodUid::new(uid),
        container: (*container).to_owned(),
        nodes: set(nodes),
    };
    of.iter().map(one).collect()
}

/// Pods of one container `web`, with so many GiB.
fn recorded(of: &[(&str, u64, &[u32])]) -> Entries {
    let one = |(uid, gib, nodes): &(&str, u64, &[u32])| {
        let block = Block { nodes: set(nodes), resource: "memory".to_owned(), bytes: gib * GIB };
        (PodUid::new(uid), BTreeMap::from([("web".to_owned(), vec![block])]))
    };
    of.iter().map(one).collect()
}

fn check(
    entries: &[(&str, u64, &[u32])],
    runs: &[(&str, &str, &[u32])],
    expected: &[(&str, &str)],
    warnings: &[&str],
) -> Static {
    let layout = layout(&machine(&[(11, 0), (10, 0), (10, 0), (10, 0)]));
    let (state, said) = heal(layout, recorded(entries), &running(runs));
    let held: Vec<(&str, String)> =
        state.entries().keys().map(|uid| (uid.as_str(), state.show(uid.as_str()))).collect();
    let held: Vec<(&str, &str)> = held.iter().map(|(uid, shown)| (*uid, shown.as_str())).collect();
    assert_eq!(held, expected);
    assert_eq!(said.iter().map(ToString::to_string).collect::<Vec<_>>(), warnings);
    state
}

#[test]
fn records_that_agree_with_what_runs_stay_as_they_are() {
    let entries: &[(&str, u64, &[u32])] = &[("p", 3, &[1]), ("q", 12, &[2, 3])];
    let expected = [("p", "web 3Gi@1"), ("q", "web 12Gi@2,3")];
    check(entries, &[("p", "web", &[1]), ("q", "web", &[2, 3])], &expected, &[]);
    check(entries, &[], &expected, &[]);
    // Who may use all nodes is bound to none.
    check(entries, &[("p", "web", &[0, 1, 2, 3]), ("r", "web", &[0, 1, 2, 3]), ("r", "log", &[])], &expected, &[]);
}

#[test]
fn a_record_follows_its_container() {
    let moved = "container web of pod p was recorded on NUMA nodes 1 and runs on 2";
    check(&[("p", 3, &[1])], &[("p", "web", &[2])], &[("p", "web 3Gi@2")], &[moved]);
}

#[test]
fn a_container_without_a_record_is_counted_once_its_pod_is_asked_for() {
    let adopted = "container web of pod p runs on NUMA nodes 2,3, which was not recorded";
    let mut state = check(&[], &[("p", "web", &[2, 3])], &[("p", "web 0@2,3")], &[adopted]);
    assert_eq!(state.nodes_of(&PodUid::new("p"), "web"), Some(set(&[2, 3])));
    // Nobody else gets in between meanwhile.
    assert_eq!(state.show_hints("q", &pod("web 1Gi"), Some(0)), "memory: 0* 1* 0,1 2,3");
    let again = read(&write(&state), &layout(&machine(&[(11, 0), (10, 0), (10, 0), (10, 0)])));
    assert_eq!(again, Recorded { entries: state.entries().clone(), wrong: Vec::new() });
    assert_eq!(state.place("p", &pod("web 12Gi"), at(&[0])), Ok(()));
    assert_eq!(state.show("p"), "web 12Gi@2,3");
}

#[test]
fn a_container_that_runs_is_not_refused_for_lack_of_room() {
    let adopted = "container web of pod p runs on NUMA nodes 2, which was not recorded";
    let held = [("p", "web 0@2"), ("q", "web 9Gi@2")];
    let mut state = check(&[("q", 9, &[2])], &[("p", "web", &[2]), ("q", "web", &[2])], &held, &[adopted]);
    assert_eq!(state.place("p", &pod("web 3Gi"), any()), Ok(()));
    assert_eq!(state.show("p"), "web 0@2");
    // Once there is room it is counted.
    state.release(&PodUid::new("q"));
    assert_eq!(state.place("p", &pod("web 3Gi"), any()), Ok(()));
    assert_eq!(state.show("p"), "web 3Gi@2");
}

#[test]
fn a_container_that_has_no_memory_of_its_own_is_let_go() {
    let adopted = "container c of pod p runs on NUMA nodes 2, which was not recorded";
    let mut state = check(&[], &[("p", "c", &[2])], &[("p", "c 0@2")], &[adopted]);
    let burstable = pod_yaml("spec: {containers: [{name: c, image: a}]}");
    assert_eq!(state.place("p", &burstable, any()), Ok(()));
    assert_eq!(state.show("p"), "");
}

#[test]
fn what_runs_goes_before_what_was_only_recorded() {
    let dropped = "container web of pod a cannot have memory of NUMA nodes 1: NUMA nodes 1 have 2147483648 bytes of \
                   memory left, not 3221225472";
    check(&[("a", 3, &[1]), ("b", 8, &[1])], &[("b", "web", &[1])], &[("b", "web 8Gi@1")], &[dropped]);
    let mixed =
        "container web of pod a cannot have memory of NUMA nodes 0,1: NUMA nodes 0,1 serve other groups of nodes";
    check(&[("a", 3, &[0, 1]), ("b", 8, &[1])], &[("b", "web", &[1])], &[("b", "web 8Gi@1")], &[mixed]);
}

#[test]
fn records_of_a_larger_machine_are_dropped_where_they_do_not_fit() {
    let entries: &[(&str, u64, &[u32])] = &[("a", 6, &[1]), ("b", 6, &[1]), ("c", 1, &[7])];
    let warnings = [
        "container web of pod b cannot have memory of NUMA nodes 1: NUMA nodes 1 have 4294967296 bytes of memory \
         left, not 6442450944",
        "container web of pod c cannot have memory of NUMA nodes 7: names no nodes, or nodes that the machine does \
         not have",
    ];
    check(entries, &[], &[("a", "web 6Gi@1")], &warnings);
}
