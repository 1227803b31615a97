//! Which CPUs are chosen. The answers are those that upstream gives.

use std::collections::BTreeSet;

use super::*;

fn packed() -> Options {
    Options::default()
}

/// Of these free CPUs, for each count the ones that are chosen.
fn check(shape: Shape, options: Options, free: &str, expected: &[(usize, &str)]) {
    let machine = shape.machine();
    for (count, cpus) in expected {
        let chosen = choose(&machine, &list(free), *count, &options).expect("there are as many");
        assert_eq!(chosen.to_string(), *cpus, "{count} of {free}, {options:?}");
    }
}

#[test]
fn packed_cpus_are_whole_units_and_of_those_the_most_used() {
    check(
        SMALL,
        packed(),
        "0-15",
        &[
            (1, "0"),
            (2, "0,8"),
            (3, "0-1,8"),
            (4, "0-1,8-9"),
            (8, "0-3,8-11"),
            (9, "0-4,8-11"),
            (12, "0-5,8-13"),
            (16, "0-15"),
        ],
    );
    check(
        SMALL,
        packed(),
        "1-15",
        &[
            (1, "8"),
            (2, "1,9"),
            (3, "1,8-9"),
            (7, "1-3,8-11"),
            (8, "4-7,12-15"),
            (9, "4-8,12-15"),
            (10, "1,4-7,9,12-15"),
            (15, "1-15"),
        ],
    );
    check(
        SMALL,
        packed(),
        "0-5,8-12",
        &[(1, "5"), (2, "4,12"), (3, "4-5,12"), (4, "0,4,8,12"), (6, "0-1,4,8-9,12"), (8, "0-3,8-11")],
    );
    check(SMALL, packed(), "1-3,6-7,9-15", &[(1, "1"), (2, "1,9"), (3, "1-2,9"), (5, "1-3,9-10"), (6, "1-3,9-11")]);
    check(GUEST, packed(), "0-7", &[(1, "0"), (4, "0-3"), (5, "0-4")]);
    check(GUEST, packed(), "1-7", &[(1, "1"), (4, "4-7"), (5, "1,4-7")]);
    check(
        QUARTERS,
        packed(),
        "0-15",
        &[(1, "0"), (4, "0-1,8-9"), (5, "0-2,8-9"), (8, "0-3,8-11"), (9, "0-4,8-11"), (12, "0-5,8-13")],
    );
    check(
        QUARTERS,
        packed(),
        "1-15",
        &[
            (1, "8"),
            (3, "1,8-9"),
            (4, "2-3,10-11"),
            (5, "2-3,8,10-11"),
            (8, "4-7,12-15"),
            (10, "1,4-7,9,12-15"),
            (12, "2-7,10-15"),
        ],
    );
    check(QUARTERS, packed(), "2-7,10-15", &[(2, "2,10"), (4, "2-3,10-11"), (8, "4-7,12-15")]);
}

#[test]
fn whole_cores_are_given_before_threads_that_are_nearer() {
    let options = Options { full_cores_only: true, ..packed() };
    check(
        SMALL,
        options,
        "1-7,9-15",
        &[(2, "1,9"), (4, "1-2,9-10"), (6, "1-3,9-11"), (8, "4-7,12-15"), (10, "1,4-7,9,12-15")],
    );
}

#[test]
fn across_cores_gives_each_cpu_a_core_of_its_own() {
    let options = Options { across_cores: true, ..packed() };
    check(
        SMALL,
        options,
        "0-15",
        &[(2, "0-1"), (3, "0-2"), (4, "0-3"), (5, "0-3,8"), (8, "0-3,8-11"), (9, "0-4,8-11"), (10, "0-5,8-11")],
    );
    check(SMALL, options, "1-15", &[(2, "1-2"), (4, "1-3,8"), (8, "4-7,12-15")]);
    check(QUARTERS, options, "2-7,10-15", &[(3, "2-3,10"), (4, "2-3,10-11"), (5, "2-4,10-11")]);
}

#[test]
fn by_cache_keeps_to_as_few_caches_as_can_be() {
    let options = Options { by_cache: true, ..packed() };
    check(
        CACHES,
        options,
        "0-15",
        &[(1, "0"), (2, "0,8"), (3, "0-1,8"), (4, "0-1,8-9"), (5, "0-2,8-9"), (6, "0-2,8-10"), (8, "0-3,8-11")],
    );
    check(
        CACHES,
        options,
        "1-15",
        &[(1, "8"), (2, "2,10"), (3, "1,8-9"), (4, "2-3,10-11"), (5, "2-3,8,10-11"), (7, "1-3,8-11"), (8, "2-5,10-13")],
    );
    check(
        CACHES,
        options,
        "2-7,9-15",
        &[(2, "2,10"), (3, "2-3,10"), (4, "2-3,10-11"), (5, "2-3,9-11"), (6, "2-4,10-12"), (10, "2-6,10-14")],
    );
}

#[test]
fn across_nodes_takes_the_same_from_each() {
    let options = Options { across_nodes: true, ..packed() };
    check(
        SMALL,
        options,
        "0-15",
        &[
            (1, "0"),
            (2, "0,8"),
            (3, "0-1,8"),
            (8, "0-3,8-11"),
            (9, "0-2,4-5,8-9,12-13"),
            (10, "0-2,4-6,8-9,12-13"),
            (15, "0-14"),
            (16, "0-15"),
        ],
    );
    check(SMALL, options, "1-15", &[(1, "4"), (9, "1-2,4-6,9-10,12-13"), (10, "1-2,4-6,8-10,12-13"), (13, "1-7,9-14")]);
    check(
        QUARTERS,
        options,
        "0-15",
        &[(2, "0,8"), (4, "0-1,8-9"), (5, "0-2,8,10"), (6, "0-3,8,10"), (7, "0-3,8-10"), (12, "0-5,8-13")],
    );
    check(QUARTERS, options, "1,4-15", &[(4, "4-5,12-13"), (5, "4-6,12,14"), (6, "4-7,12,14"), (10, "1,4-9,12-14")]);
}

#[test]
fn across_nodes_takes_whole_cores_where_they_are_asked_for() {
    let options = Options { across_nodes: true, full_cores_only: true, ..packed() };
    check(SMALL, options, "0-15", &[(2, "0,8"), (10, "0-2,4-5,8-10,12-13"), (12, "0-2,4-6,8-10,12-14")]);
    check(QUARTERS, options, "1-7,9-15", &[(4, "2-3,10-11"), (6, "2-4,10-12"), (8, "2-5,10-13"), (10, "2-6,10-14")]);
}

#[test]
fn what_is_not_there_is_refused() {
    let machine = SMALL.machine();
    for across_nodes in [false, true] {
        let options = Options { across_nodes, ..packed() };
        let refused = choose(&machine, &list("1-3"), 4, &options).expect_err("three are free");
        assert_eq!(refused, TooFew { requested: 4, available: 3 });
        let text = "not enough cpus available to satisfy request: requested=4, available=3";
        assert_eq!(refused.to_string(), text);
        assert_eq!(choose(&machine, &list("1-3"), 0, &options), Ok(CpuSet::default()));
    }
}

#[test]
fn many_nodes_share_evenly_too() {
    let machine = Shape { sockets: 2, nodes: 16, caches: 16, cores: 64, threads: 1 }.machine();
    let across = Options { across_nodes: true, ..Options::default() };
    let free: CpuSet = machine.cpus.iter().map(|cpu| cpu.id).filter(|id| *id != 0).collect();
    for count in 1..=63 {
        let given = choose(&machine, &free, count, &across).expect("there are as many");
        assert_eq!((given.len(), given.is_subset(&free)), (count, true), "{count}");
    }
    let given = choose(&machine, &free, 12, &across).expect("there are as many");
    let nodes: Vec<u32> = machine.cpus.iter().filter(|cpu| given.contains(cpu.id)).map(|cpu| cpu.node).collect();
    let of = |node: u32| nodes.iter().filter(|it| **it == node).count();
    let shares: BTreeSet<usize> = nodes.iter().map(|node| of(*node)).collect();
    assert_eq!(shares.len(), 1, "{nodes:?}");
}
