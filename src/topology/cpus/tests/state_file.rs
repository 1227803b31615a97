//! What is written is read again, and what is wrong with a file is told.

use super::*;

fn written(entries: &str, shared: &str) -> String {
    format!(r#"{{"policyName":"static","defaultCpuSet":"{shared}","entries":{entries},"checksum":7}}"#)
}

fn entries(of: &[(&str, &str, &str)]) -> Entries {
    let mut entries = Entries::new();
    for (uid, container, cpus) in of {
        entries.entry(PodUid::new(*uid)).or_default().insert((*container).to_owned(), list(cpus));
    }
    entries
}

#[test]
fn what_is_written_is_read_again() {
    let mut state = small();
    let text = r#"{"policyName":"static","defaultCpuSet":"0-15","checksum":0}"#;
    assert_eq!(write(&state), text);
    assert_eq!(state.place("p", &pod("i 2 | web 2, log 1"), at(&[1])), Ok(()));
    let text = r#"{"policyName":"static","defaultCpuSet":"0-3,6-11,13-15","entries":{"p":{"i":"4,12","log":"5","web":"4,12"}},"checksum":0}"#;
    assert_eq!(write(&state), text);
    let recorded = read(text, &state.ground);
    assert_eq!(recorded, Recorded { entries: state.entries().clone(), wrong: Vec::new() });
}

#[test]
fn the_file_of_the_policy_none_is_no_file_of_static() {
    let text = write_none();
    assert_eq!(text, r#"{"policyName":"none","defaultCpuSet":"","checksum":0}"#);
    assert!(!is_static(&text));
    assert!(!is_static("garbage"));
    assert!(is_static(&write(&small())));
    let wrong = vec![Wrong::Policy { found: "none".to_owned() }];
    assert_eq!(read(&text, &small().ground), Recorded { wrong, ..Recorded::default() });
}

#[test]
fn garbage_says_nothing() {
    let ground = small().ground;
    for text in ["", "{", "[]", "null", r#"{"policyName":3}"#, "\u{0}\u{0}\u{0}"] {
        let Recorded { entries, wrong } = read(text, &ground);
        assert!(entries.is_empty());
        assert!(matches!(&wrong[..], [Wrong::Garbage(_)]), "{text:?}: {wrong:?}");
    }
}

#[test]
fn what_is_wrong_with_a_file_is_told_and_the_rest_of_it_is_used() {
    let check = |of: &str, shared: &str, left: &[(&str, &str, &str)], expected: &[Wrong]| {
        let recorded = read(&written(of, shared), &small().ground);
        assert_eq!(recorded, Recorded { entries: entries(left), wrong: expected.to_vec() }, "{of} {shared}");
    };
    let web = r#"{"p":{"web":"4,12"}}"#;
    let is = [("p", "web", "4,12")];
    check(web, "0-3,5-11,13-15", &is, &[]);
    let machine = |recorded: &str| Wrong::Machine { recorded: list(recorded), there: list("0-15") };
    check(web, "0-3,5-11,13-14", &is, &[machine("0-14")]);
    check(web, "0-3,5-11,13-16", &is, &[machine("0-16")]);
    check(web, "0-15", &is, &[Wrong::Overlap { cpus: list("4,12") }]);
    let two = r#"{"p":{"web":"4,12"},"q":{"web":"4"}}"#;
    let are = [("p", "web", "4,12"), ("q", "web", "4")];
    check(two, "0-3,5-11,13-15", &are, &[Wrong::Overlap { cpus: list("4") }]);
    // The reserved CPU is somebody's.
    check(r#"{"p":{"web":"0"}}"#, "1-15", &[("p", "web", "0")], &[machine("0-15")]);
    let entry = |text: &str| Wrong::Entry { uid: PodUid::new("p"), container: "web".to_owned(), text: text.to_owned() };
    check(r#"{"p":{"web":"x"}}"#, "0-15", &[], &[entry("x")]);
    check(r#"{"p":{"web":""}}"#, "0-15", &[], &[entry("")]);
    check(r#"{"p":{"web":"4,16"}}"#, "0-15", &[], &[entry("4,16")]);
    let recorded = read(&written(web, "all"), &small().ground);
    assert_eq!(recorded.entries, entries(&is));
    assert!(matches!(&recorded.wrong[..], [Wrong::Garbage(_)]), "{:?}", recorded.wrong);
}

#[test]
fn pods_that_are_placed_as_a_whole_are_told() {
    let text = r#"{"policyName":"static","defaultCpuSet":"0-15","podEntries":{"p":{"cpuSet":"4"}},"checksum":7}"#;
    assert_eq!(read(text, &small().ground).wrong, [Wrong::PodLevel { uid: PodUid::new("p") }]);
}

#[test]
fn a_strict_reservation_is_in_no_pool() {
    let strict = Options { strict_reservation: true, ..Options::default() };
    let state = Static::new(ground(SMALL, "0,8", strict));
    assert_eq!(read(&write(&state), &state.ground), Recorded::default());
    // Written before the option was set.
    let recorded = read(&write(&small()), &state.ground);
    assert_eq!(recorded.wrong, [Wrong::Machine { recorded: list("0-15"), there: list("1-7,9-15") }]);
}

#[test]
fn a_file_without_pool_and_entries_is_a_new_state() {
    let ground = small().ground;
    for text in
        [r#"{"policyName":"static","defaultCpuSet":"","checksum":0}"#, r#"{"policyName":"static","entries":{}}"#]
    {
        assert_eq!(read(text, &ground), Recorded::default(), "{text}");
    }
    let web = r#"{"policyName":"static","defaultCpuSet":"","entries":{"p":{"web":"4,12"}}}"#;
    assert_eq!(read(web, &ground).wrong, [Wrong::Machine { recorded: list("4,12"), there: list("0-15") }]);
}

#[test]
fn a_strict_reservation_with_all_else_given_is_read_again() {
    let strict = Options { strict_reservation: true, ..Options::default() };
    let mut state = Static::new(ground(SMALL, "0,8", strict));
    assert_eq!(state.place("p", &pod("web 14"), any()), Ok(()));
    assert!(state.shared().is_empty());
    assert_eq!(read(&write(&state), &state.ground), Recorded { entries: state.entries().clone(), wrong: Vec::new() });
}
