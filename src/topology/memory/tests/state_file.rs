//! The state file: upstream's format, and what is not right with one.

use super::*;

/// As upstream writes it, but for the checksum.
const FILE: &str = concat!(
    r#"{"policyName":"Static","machineState":{"#,
    r#""0":{"numberOfAssignments":1,"memoryMap":{"#,
    r#""memory":{"total":11811160064,"systemReserved":1073741824,"allocatable":10737418240,"reserved":2147483648,"free":8589934592}},"#,
    r#""cells":[0]},"#,
    r#""1":{"numberOfAssignments":2,"memoryMap":{"#,
    r#""hugepages-2Mi":{"total":1073741824,"systemReserved":0,"allocatable":1073741824,"reserved":4194304,"free":1069547520},"#,
    r#""memory":{"total":11811160064,"systemReserved":0,"allocatable":10737418240,"reserved":3221225472,"free":7516192768}},"#,
    r#""cells":[1]}},"#,
    r#""entries":{"#,
    r#""p":{"web":[{"numaAffinity":[0],"type":"memory","size":2147483648}]},"#,
    r#""q":{"web":[{"numaAffinity":[1],"type":"hugepages-2Mi","size":4194304},{"numaAffinity":[1],"type":"memory","size":3221225472}]}},"#,
    r#""checksum":0}"#
);

fn this_layout() -> Layout {
    layout(&machine(&[(11, 0), (11, 512)]))
}

fn this_state() -> Static {
    let mut state = Static::new(this_layout());
    assert_eq!(state.place("p", &pod("web 2Gi"), any()), Ok(()));
    assert_eq!(state.place("q", &pod("web 3Gi+4Mi"), any()), Ok(()));
    state
}

#[test]
fn the_file_is_as_upstream_writes_it() {
    assert_eq!(write(&this_state()), FILE);
    let empty = write(&Static::new(this_layout()));
    assert!(!empty.contains("entries"), "{empty}");
}

#[test]
fn what_was_written_is_read_again() {
    let recorded = read(FILE, &this_layout());
    assert_eq!(recorded, Recorded { entries: this_state().entries().clone(), wrong: Vec::new() });
    let empty = read(&write(&Static::new(this_layout())), &this_layout());
    assert_eq!(empty, Recorded::default());
    let never_filled = r#"{"policyName":"Static","machineState":{},"checksum":2147483647}"#;
    assert_eq!(read(never_filled, &this_layout()), Recorded::default());
}

fn check(text: &str, expected: &[&str], usable: &[&str]) {
    let recorded = read(text, &this_layout());
    let wrong: Vec<String> = recorded.wrong.iter().map(ToString::to_string).collect();
    assert_eq!(wrong, expected, "{text}");
    assert_eq!(recorded.entries.keys().map(PodUid::as_str).collect::<Vec<_>>(), usable, "{text}");
}

#[test]
fn garbage_is_told_from_a_state() {
    let garbage = |text: &str| {
        let recorded = read(text, &this_layout());
        assert!(matches!(recorded.wrong[..], [Wrong::Garbage(_)]), "{text}: {:?}", recorded.wrong);
        assert!(recorded.entries.is_empty());
    };
    garbage("");
    garbage("\0\0\0\0");
    garbage(&FILE[..FILE.len() / 2]);
    garbage("{}");
    garbage(&FILE.replace("2147483648}]", "-1}]"));
    garbage(r#"{"policyName":"static","defaultCpuSet":"0-3","entries":{"p":{"web":"1"}},"checksum":1}"#);
}

#[test]
fn entries_of_another_policy_or_machine_are_used_if_they_fit() {
    let policy = FILE.replace("\"Static\"", "\"BestEffort\"");
    check(&policy, &["the file is of the memory manager policy \"BestEffort\", not Static"], &["p", "q"]);
    let none = r#"{"policyName":"None","machineState":{},"checksum":4}"#;
    check(none, &["the file is of the memory manager policy \"None\", not Static"], &[]);
    let smaller =
        FILE.replace("\"total\":11811160064,\"systemReserved\":0", "\"total\":11811160060,\"systemReserved\":0");
    check(&smaller, &["the file is of another machine or reservation: memory of NUMA node 1 has changed"], &["p", "q"]);
    let fewer = FILE.replace("hugepages-2Mi\":{", "hugepages-1Gi\":{");
    check(
        &fewer,
        &[
            "the file is of another machine or reservation: hugepages-2Mi of NUMA node 1 has changed",
            "the file is of another machine or reservation: hugepages-1Gi of NUMA node 1 has changed",
        ],
        &["p", "q"],
    );
}

#[test]
fn sums_that_do_not_follow_from_the_entries_are_noticed() {
    let sums = ["the sums in the file do not follow from its entries"];
    check(&FILE.replace("\"reserved\":2147483648", "\"reserved\":2147483647"), &sums, &["p", "q"]);
    check(&FILE.replace("\"numberOfAssignments\":1", "\"numberOfAssignments\":2"), &sums, &["p", "q"]);
    check(&FILE.replace("\"cells\":[1]", "\"cells\":[0,1]"), &sums, &["p", "q"]);
    check(&FILE.replace("\"free\":8589934592", "\"free\":0"), &sums, &["p", "q"]);
}

#[test]
fn within_a_group_it_does_not_matter_which_node_gives_what() {
    let mut state = Static::new(this_layout());
    assert_eq!(state.place("p", &pod("web 12Gi"), any()), Ok(()));
    let file = write(&state);
    let other =
        file.replace("\"reserved\":10737418240,\"free\":0", "\"reserved\":2147483648,\"free\":8589934592").replacen(
            "\"reserved\":2147483648,\"free\":8589934592}},\"cells\":[0,1]}},",
            "\"reserved\":10737418240,\"free\":0}},\"cells\":[0,1]}},",
            1,
        );
    assert_ne!(file, other);
    check(&file, &[], &["p"]);
    check(&other, &[], &["p"]);
}

#[test]
fn an_entry_that_is_impossible_on_this_machine_is_left_out() {
    let left_out = ["the entry of container web of pod p cannot be used"];
    let check = |affinity: &str, size: &str, resource: &str, expected: Misfit| {
        let text = FILE.replace(
            "[{\"numaAffinity\":[0],\"type\":\"memory\",\"size\":2147483648}]",
            &format!("[{{\"numaAffinity\":{affinity},\"type\":\"{resource}\",\"size\":{size}}}]"),
        );
        check(&text, &left_out, &["q"]);
        let Wrong::Entry { misfit, .. } = &read(&text, &this_layout()).wrong[0] else { panic!("it is an entry") };
        assert_eq!(*misfit, expected, "{text}");
    };
    check("[2]", "1", "memory", Misfit::NoSuchNode);
    check("[-1]", "1", "memory", Misfit::NoSuchNode);
    check("[64]", "1", "memory", Misfit::NoSuchNode);
    check("[]", "1", "memory", Misfit::NoSuchNode);
    check("[0]", "1", "hugepages-1Gi", Misfit::NoSuchMemory("hugepages-1Gi".into()));
    let (resource, free) = ("memory".to_owned(), 10 * GIB);
    check("[0]", "10737418241", "memory", Misfit::TooLittle { nodes: set(&[0]), resource, wanted: free + 1, free });
}

#[test]
fn pods_placed_as_a_whole_are_left_to_what_runs() {
    let text = FILE.replace("\"checksum\"", "\"podEntries\":{\"p\":{\"memoryBlocks\":[]}},\"checksum\"");
    check(&text, &["the file places pod p as a whole, which this agent does not do"], &["q"]);
}
