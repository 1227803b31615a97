//! Conditions, and since when they hold.

use super::*;

#[track_caller]
fn check_conditions(case: &Case, expected: [&str; 4]) {
    let status = case.compute().status;
    let kinds = ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"];
    assert_eq!(kinds.map(|kind| condition(&status, kind)), expected);
    assert_eq!(condition(&status, "PodScheduled"), "True");
}

#[test]
fn conditions_follow_the_containers() {
    let check = |spec: &str, runtime: &[&str], expected| check_conditions(&Case::new(spec, runtime), expected);
    let unready = "False ContainersNotReady: containers with unready status: [web]";
    check(ONE, &[], ["False", "True", unready, unready]);
    check(ONE, &["sandbox"], ["True", "True", unready, unready]);
    check(ONE, &["sandbox notready"], ["False", "True", unready, unready]);
    check(ONE, &["sandbox", "web/0 running"], ["True", "True", "True", "True"]);
    check(ONE, &["sandbox", "web/0 exited 1"], ["True", "True", unready, unready]);
    let both = "False ContainersNotReady: containers with unready status: [web log]";
    check(TWO, &["sandbox"], ["True", "True", both, both]);
    check(
        NEVER,
        &["web/0 exited 0", "log/0 exited 0"],
        ["False", "True PodCompleted", "False PodCompleted", "False PodCompleted"],
    );
    check(NEVER, &["web/0 exited 0", "log/0 exited 1"], ["False", "True", "False PodFailed", "False PodFailed"]);
    check(
        INIT,
        &["sandbox", "one/0 exited 0", "two/0 running"],
        ["True", "False ContainersNotInitialized: containers with incomplete status: [two]", unready, unready],
    );
    check(INIT, &["sandbox", "one/0 exited 0", "two/0 exited 0"], ["True", "True", unready, unready]);
    check(SIDECAR, &["sandbox", "proxy/0 running", "web/0 running"], ["True", "True", "True", "True"]);
    let unready_proxy = "False ContainersNotReady: containers with unready status: [proxy]";
    check(SIDECAR, &["sandbox", "proxy/0 exited 1", "web/0 running"], ["True", "True", unready_proxy, unready_proxy]);
}

#[test]
fn a_sandbox_without_an_address_is_usable_on_the_host_network_only() {
    let check = |host_network: bool, expected: &str| {
        let mut case =
            Case::new(&format!("{{hostNetwork: {host_network}, containers: [{{name: web, image: a}}]}}"), &["sandbox"]);
        case.runtime.sandboxes[0].ips.clear();
        assert_eq!(condition(&case.compute().status, "PodReadyToStartContainers"), expected);
    };
    check(true, "True");
    check(false, "False");
}

#[test]
fn readiness_gates_close_the_ready_condition() {
    let spec = "{readinessGates: [{conditionType: lb/a}, {conditionType: lb/b}], containers: [{name: web, image: a}]}";
    let check = |api: &[(&str, &str)], expected: &str| {
        let mut case = Case::new(spec, &["sandbox", "web/0 running"]);
        let conditions = api
            .iter()
            .map(|(kind, status)| PodCondition {
                type_: (*kind).into(),
                status: (*status).into(),
                ..PodCondition::default()
            })
            .collect();
        case.pod.status = Some(PodStatus { conditions: Some(conditions), ..PodStatus::default() });
        let status = case.compute().status;
        assert_eq!(condition(&status, "Ready"), expected);
        assert_eq!(condition(&status, "ContainersReady"), "True");
    };
    check(&[("lb/a", "True"), ("lb/b", "True")], "True");
    check(
        &[("lb/a", "False")],
        "False ReadinessGatesNotReady: the status of pod readiness gate \"lb/a\" is not \"True\", but False, \
         corresponding condition of pod readiness gate \"lb/b\" does not exist.",
    );
}

#[test]
fn transition_times_move_with_the_status_only() {
    let time = |case: &Case, kind: &str| {
        let status = case.compute().status;
        let condition = status.conditions.into_iter().flatten().find(|condition| condition.type_ == kind);
        condition.and_then(|condition| condition.last_transition_time).map(|time| time.0)
    };
    let starting = Case::new(TWO, &["sandbox"]);
    assert_eq!(time(&starting, "Ready"), Some(at(100)));
    let half = starting.then(&["sandbox", "web/0 running"]);
    assert_eq!(time(&half, "Ready"), Some(at(100)), "another message is no transition");
    let ready = half.then(&["sandbox", "web/0 running", "log/0 running"]);
    assert_eq!(time(&ready, "Ready"), Some(at(300)));
    assert_eq!(time(&ready, "PodScheduled"), Some(at(100)));
}
