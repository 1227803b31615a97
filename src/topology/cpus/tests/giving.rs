//! Who gets CPUs of their own, hints, and what becomes of the CPUs of init containers.

use super::*;

#[test]
fn guaranteed_containers_with_whole_cpus_have_them_alone_and_others_share_the_rest() {
    let mut state = small();
    assert_eq!(state.place("p", &pod("web 2, half 500m, log 1500m"), any()), Ok(()));
    assert_eq!(state.show("p"), "web 1,9");
    assert_eq!(*state.shared(), list("0,2-8,10-15"));
    assert_eq!(state.pinning(), Pinning { requests: 1, errors: 0 });
    assert_eq!(state.exclusive(), BTreeMap::from([(0, 2), (1, 0)]));
}

#[test]
fn other_pods_share_and_say_nothing_of_where() {
    let mut state = small();
    let mut check = |text: &str| {
        let pod = pod_yaml(text);
        assert_eq!(state.show_hints("p", &pod, Some("c")), "-", "{text}");
        assert_eq!(state.show_hints("p", &pod, None), "-", "{text}");
        assert_eq!(state.place("p", &pod, any()), Ok(()));
        assert_eq!(state.show("p"), "", "{text}");
    };
    check("spec: {containers: [{name: c, image: a}]}");
    check("spec: {containers: [{name: c, image: a, resources: {requests: {cpu: 1, memory: 1Gi}}}]}");
    check("spec: {containers: [{name: c, image: a, resources: {limits: {cpu: 1}}}]}");
    check("spec: {containers: [{name: c, image: a, resources: {limits: {cpu: 1500m, memory: 1Gi}}}]}");
    let full = "resources: {limits: {cpu: 1, memory: 1Gi}}";
    check(&format!("spec: {{{full}, containers: [{{name: c, image: a, {full}}}]}}"));
    assert_eq!(state.pinning(), Pinning::default());
}

#[test]
fn cpus_are_given_where_it_was_decided_and_only_the_rest_elsewhere() {
    let check = |count: u32, near: Affinity, expected: &str| {
        let mut state = small();
        assert_eq!(state.place("p", &pod(&format!("web {count}")), near), Ok(()));
        assert_eq!(state.show("p"), format!("web {expected}"), "{count} {near:?}");
    };
    check(2, at(&[1]), "4,12");
    check(8, at(&[1]), "4-7,12-15");
    check(8, at(&[0]), "1-4,8-11");
    check(2, at(&[0, 1]), "1,9");
}

#[test]
fn hints_are_the_nodes_with_enough_and_the_fewest_are_preferred() {
    let mut state = small();
    let check = |state: &Static, containers: &str, expected: &str| {
        assert_eq!(state.show_hints("p", &pod(containers), None), expected, "{containers}");
    };
    check(&state, "web 2", "0* 1* 0,1");
    check(&state, "web 8", "1* 0,1");
    check(&state, "web 9", "0,1*");
    check(&state, "web 16", "");
    check(&state, "web 4, log 4", "1* 0,1");
    check(&state, "setup 8 | web 2", "1* 0,1");
    check(&state, "proxy* 2, setup 7 | web 6", "0,1*");
    assert_eq!(state.place("other", &pod("web 6"), at(&[1])), Ok(()));
    check(&state, "web 2", "0* 1* 0,1");
    check(&state, "web 3", "0* 0,1");
    check(&state, "web 8", "0,1");
}

#[test]
fn with_align_by_socket_nodes_of_one_socket_are_as_good_as_one() {
    let options = Options { align_by_socket: true, ..Options::default() };
    let mut state = Static::new(ground(QUARTERS, "0", options));
    assert_eq!(state.show_hints("p", &pod("web 3"), None).split(' ').filter(|hint| hint.ends_with('*')).count(), 6);
    assert_eq!(state.place("p", &pod("web 6"), at(&[2])), Ok(()));
    assert_eq!(state.show("p"), "web 4-6,12-14");
}

#[test]
fn a_container_is_asked_again_and_keeps_what_it_has() {
    let mut state = small();
    assert_eq!(state.place("p", &pod("web 2"), at(&[1])), Ok(()));
    assert_eq!(state.show_hints("p", &pod("web 2"), Some("web")), "1* 0,1");
    assert_eq!(state.show_hints("p", &pod("web 3"), Some("web")), "", "it has another number");
    assert_eq!(state.place("p", &pod("web 2"), at(&[0])), Ok(()));
    assert_eq!(state.show("p"), "web 4,12");
    assert_eq!(state.place("p", &pod("web 500m"), any()), Ok(()), "no more what it was");
    assert_eq!((state.show("p").as_str(), state.shared()), ("", &list("0-15")));
}

#[test]
fn a_pod_is_asked_as_a_whole_again_and_what_it_has_stays() {
    let check = |has: &[(&str, &str)], containers: &str, expected: &str| {
        let mut state = small();
        let of_pod = has.iter().map(|(name, cpus)| ((*name).to_owned(), list(cpus))).collect();
        state.entries.insert(PodUid::new("p"), of_pod);
        state.settle();
        assert_eq!(state.show_hints("p", &pod(containers), None), expected, "{has:?} {containers}");
    };
    let two = "web 2, log 2";
    check(&[("web", "4,12"), ("log", "5,13")], two, "1* 0,1");
    // One of them has nothing yet.
    check(&[("web", "4,12")], two, "1* 0,1");
    check(&[("web", "3-4")], two, "0,1");
    // The init container's were not used again, so together it is more than is needed at once.
    check(&[("i", "4,12"), ("web", "5,13")], "i 2 | web 2", "1* 0,1");
    check(&[("i", "3,11"), ("web", "5,13")], "i 2 | web 2", "0,1");
    check(&[("web", "4"), ("log", "5,13")], two, "");
    // Of a container that was, or that shares.
    check(&[("old", "4,12")], two, "0* 1* 0,1");
    check(&[("half", "4,12")], "half 500m, web 2", "0* 1* 0,1");
}

#[test]
fn init_containers_lend_and_sidecars_keep() {
    let check = |containers: &str, expected: &str, shared: &str| {
        let mut state = small();
        assert_eq!(state.place("p", &pod(containers), at(&[1])), Ok(()));
        assert_eq!((state.show("p").as_str(), state.shared()), (expected, &list(shared)), "{containers}");
    };
    check("i 2 | web 2", "i 4,12; web 4,12", "0-3,5-11,13-15");
    check("i 2, j 4 | web 2", "i 4,12; j 4-5,12-13; web 4,12", "0-3,6-11,14-15");
    check("i 2 | web 2, log 2", "i 4,12; log 5,13; web 4,12", "0-3,6-11,14-15");
    check("s* 2 | web 2", "s 4,12; web 5,13", "0-3,6-11,14-15");
    check("i 2, s* 2 | web 2", "i 4,12; s 4,12; web 5,13", "0-3,6-11,14-15");
    check("s* 2, i 2 | web 2", "i 5,13; s 4,12; web 5,13", "0-3,6-11,14-15");
}

#[test]
fn who_cannot_be_served_learns_why_and_nothing_changes() {
    let check = |options: Options, reserved: &str, count: u32, expected: &str| {
        let mut state = Static::new(ground(SMALL, reserved, options));
        let before = write(&state);
        assert_eq!(state.place("p", &pod(&format!("web {count}")), any()), Err(expected.to_owned()));
        assert_eq!(write(&state), before);
        assert_eq!(state.pinning(), Pinning { requests: 1, errors: 1 });
    };
    let packed = Options::default();
    let few = "UnexpectedAdmissionError: Allocate failed due to not enough cpus available to satisfy request: \
               requested=16, available=15, which is unexpected";
    check(packed, "0", 16, few);
    let cores = Options { full_cores_only: true, ..packed };
    let odd = "SMTAlignmentError: SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2";
    check(cores, "0", 3, odd);
    let few = "SMTAlignmentError: SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 14, \
               requested CPUs = 16, CPUs per core = 2";
    check(cores, "0", 16, few);
}

#[test]
fn threads_of_reserved_cores_are_not_given_as_whole_cores() {
    let cores = Options { full_cores_only: true, ..Options::default() };
    let mut state = Static::new(ground(SMALL, "0,1", cores));
    assert_eq!(state.place("p", &pod("web 2"), at(&[0])), Ok(()));
    assert_eq!(state.show("p"), "web 2,10");
    assert_eq!(state.place("q", &pod("web 4"), at(&[0])), Ok(()));
    assert_eq!(state.show("q"), "web 3-4,11-12");
}

#[test]
fn whole_cores_that_init_containers_lend_count() {
    let cores = Options { full_cores_only: true, ..Options::default() };
    let mut state = Static::new(ground(SMALL, "0,8", cores));
    assert_eq!(state.place("other", &pod("web 10"), any()), Ok(()));
    assert_eq!(state.place("p", &pod("i 4 | web 4"), any()), Ok(()));
    let given = state.entries[&PodUid::new("p")].clone();
    assert_eq!(given["i"], given["web"]);
}

#[test]
fn cores_of_one_and_of_two_threads_are_given_whole() {
    // Two cores of two threads, and four of one.
    let cpu = |(id, core): (u32, u32)| Cpu { id, core, socket: 0, node: 0, cache: 0 };
    let cpus = [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 3), (6, 4), (7, 5)].map(cpu).into();
    let machine = Arc::new(Machine { cpus, nodes: vec![NumaNode::default()] });
    let cores = Options { full_cores_only: true, ..Options::default() };
    let ground = Ground::new(machine.clone(), &Reservation::Cpus(list("7")), cores).expect("one is reserved");
    for count in 1..=7 {
        let mut state = Static::new(ground.clone());
        assert_eq!(state.place("p", &pod(&format!("web {count}")), any()), Ok(()), "{count}");
        let given = &state.entries[&PodUid::new("p")]["web"];
        assert_eq!((given.len(), in_whole_cores(&machine, given)), (count, given.clone()));
    }
    // With no single ones left, an odd number cannot be had.
    let mut state = Static::new(ground);
    assert_eq!(state.place("p", &pod("a 1, b 1, c 1"), any()), Ok(()));
    let refused = state.place("r", &pod("web 1"), any()).expect_err("only a core of two is left");
    assert!(refused.starts_with("SMTAlignmentError: "), "{refused}");
    assert_eq!(state.place("s", &pod("web 2"), any()), Ok(()));
}

#[test]
fn strictly_reserved_cpus_are_not_shared_either() {
    let strict = Options { strict_reservation: true, ..Options::default() };
    let mut state = Static::new(ground(SMALL, "0,8", strict));
    assert_eq!(*state.shared(), list("1-7,9-15"));
    assert_eq!(state.place("p", &pod("web 6"), at(&[0])), Ok(()));
    assert_eq!(*state.shared(), list("4-7,12-15"));
    state.release(&PodUid::new("p"));
    assert_eq!(*state.shared(), list("1-7,9-15"));
}

#[test]
fn what_cannot_work_is_said_at_the_start() {
    let check = |shape: Shape, reservation: Reservation, options: Options, expected: &str| {
        let error = Ground::new(Arc::new(shape.machine()), &reservation, options).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    };
    let packed = Options::default();
    let amount = |text: &str| Reservation::Amount(quantity::parse(text).expect(text));
    check(SMALL, amount("0"), packed, "set reservedSystemCPUs");
    check(SMALL, Reservation::Cpus(CpuSet::default()), packed, "set reservedSystemCPUs");
    check(SMALL, Reservation::Cpus(list("0,16")), packed, "the machine has the CPUs 0-15");
    check(SMALL, amount("16500m"), packed, "17 CPUs reserved of 16");
    let by_socket = Options { align_by_socket: true, ..packed };
    check(GUEST, Reservation::Cpus(list("0")), by_socket, "2 sockets and 1 NUMA nodes");
    let empty = Ground::new(Arc::default(), &amount("1"), packed);
    assert_eq!(empty.expect_err("there are no CPUs"), CpusError::Untold);
    let part = Ground::new(Arc::new(SMALL.machine()), &amount("1500m"), packed).expect("16 CPUs");
    assert_eq!(part.reserved, list("0,8"));
}
