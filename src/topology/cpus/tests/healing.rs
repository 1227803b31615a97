//! What is made of a record and of what runs.

use super::*;

fn entries(of: &[(&str, &str)]) -> Entries {
    let entry = |(uid, cpus): &(&str, &str)| (PodUid::new(*uid), BTreeMap::from([("web".to_owned(), list(cpus))]));
    of.iter().map(entry).collect()
}

/// Records and what runs, as pod and CPUs of its container `web`; what is made of them, and the
/// pods about which is warned, `+` adopted, `>` moved, `-` dropped.
fn check(recorded: &[(&str, &str)], run: &[Running], expected: &[(&str, &str)], warned: &[&str]) {
    let (state, warnings) = heal(small().ground, entries(recorded), run);
    let told = |warning: &Warning| match warning {
        Warning::Adopted { uid, .. } => format!("+{uid}"),
        Warning::Moved { uid, .. } => format!(">{uid}"),
        Warning::Dropped { uid, .. } => format!("-{uid}"),
    };
    assert_eq!(*state.entries(), entries(expected), "{recorded:?} {run:?}");
    assert_eq!(warnings.iter().map(told).collect::<Vec<_>>(), warned, "{recorded:?} {run:?}");
    let given = expected.iter().fold(CpuSet::default(), |all, (_, cpus)| all.union(&list(cpus)));
    assert_eq!(*state.shared(), list("0-15").difference(&given));
}

#[test]
fn entries_stay_whether_their_pods_are_known_or_not() {
    check(&[("p", "4,12"), ("q", "5")], &[], &[("p", "4,12"), ("q", "5")], &[]);
    let run = [running("p", "web", "4,12", 2), running("other", "web", "0-3,6-11,13-15", 1)];
    check(&[("p", "4,12"), ("q", "5")], &run, &[("p", "4,12"), ("q", "5")], &[]);
}

#[test]
fn what_runs_alone_is_taken_for_what_it_has() {
    let shares = || running("other", "web", "0-3,6-11,13-15", 1);
    check(&[], &[running("p", "web", "4,12", 2), shares()], &[("p", "4,12")], &["+p"]);
    check(&[("p", "5,13")], &[running("p", "web", "4,12", 2), shares()], &[("p", "4,12")], &[">p"]);
    // Another's record is wrong then.
    check(&[("q", "4,12")], &[running("p", "web", "4,12", 2), shares()], &[("p", "4,12")], &["+p", "-q"]);
}

#[test]
fn what_shares_is_not_taken_for_what_is_alone() {
    // Two pods share the pool, which is as small as what one of them weighs.
    check(&[], &[running("p", "web", "4,12", 2), running("q", "web", "4,12", 2)], &[], &[]);
    check(&[], &[running("p", "web", "4,12", 2), running("q", "web", "0-15", 1)], &[], &[]);
    // Alone in the pool, but of another weight; anywhere; of no whole weight.
    check(&[], &[running("p", "web", "0-15", 2)], &[], &[]);
    check(&[], &[running("p", "web", "", 2)], &[], &[]);
    check(&[], &[running("p", "web", "4,12", 0)], &[], &[]);
}

#[test]
fn what_cannot_be_given_is_dropped() {
    check(&[("p", "0,8")], &[], &[], &["-p"]);
    check(&[("p", "15-16")], &[], &[], &["-p"]);
    check(&[("p", "4,12"), ("q", "4")], &[], &[("p", "4,12")], &["-q"]);
    check(&[], &[running("p", "web", "0,8", 2)], &[], &["-p"]);
    check(&[], &[running("p", "web", "16", 1)], &[], &["-p"]);
}

#[test]
fn containers_of_one_pod_may_have_the_same_cpus() {
    let mut state = small();
    assert_eq!(state.place("p", &pod("i 2 | web 2"), at(&[1])), Ok(()));
    let (healed, warnings) = heal(small().ground, state.entries().clone(), &[running("p", "web", "4,12", 2)]);
    assert_eq!((write(&healed), warnings), (write(&state), Vec::new()));
}

#[test]
fn strictly_reserved_cpus_are_dropped_from_records() {
    let strict = Options { strict_reservation: true, ..Options::default() };
    let (state, warnings) = heal(ground(SMALL, "0,8", strict), entries(&[("p", "8"), ("q", "9")]), &[]);
    assert_eq!((state.show("p").as_str(), state.show("q").as_str()), ("", "web 9"));
    assert_eq!(*state.shared(), list("1-7,10-15"));
    assert_eq!(warnings.len(), 1);
    let text = warnings[0].to_string();
    assert!(text.contains("container web of pod p cannot have CPUs 8"), "{text}");
}
