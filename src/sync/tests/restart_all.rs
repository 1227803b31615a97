use super::*;

const RULES: &str = "restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [88]}}]";

/// An init container, a sidecar, and two regular containers of which the second has a rule.
fn ruled() -> Pod {
    let init = "{name: i, image: 'img:1'}, {name: s, image: 'img:1', restartPolicy: Always}";
    let regular = format!("{{name: a, image: 'img:1'}}, {{name: b, image: 'img:1', restartPolicy: Never, {RULES}}}");
    let spec = format!("{{restartPolicy: Never, initContainers: [{init}], containers: [{regular}]}}");
    Pod { spec: Some(crate::pod::testing::yaml(&spec)), ..Pod::default() }
}

/// A sidecar with a rule, and a regular container.
fn watched() -> Pod {
    let init = format!("{{name: s, image: 'img:1', restartPolicy: Always, {RULES}}}");
    let spec = format!("{{restartPolicy: Never, initContainers: [{init}], containers: [{{name: a, image: 'img:1'}}]}}");
    Pod { spec: Some(crate::pod::testing::yaml(&spec)), ..Pod::default() }
}

#[test]
fn all_are_stopped_and_removed_and_the_source_last() {
    let scene = || ready().exited("i", 0, 0, 0);
    check(
        ruled(),
        scene().running("s", 0, 0).running("a", 0, 0).exited("b", 0, 0, 88),
        &["stop s because all containers restart", "stop a because all containers restart"],
    );
    let stopped = scene().exited("s", 0, 0, 137).exited("a", 0, 0, 137).exited("b", 0, 0, 1).exited("b", 0, 1, 88);
    check(
        ruled(),
        stopped,
        &[
            "remove a dead a but for its log",
            "remove a dead b but for its log",
            "remove a dead i but for its log",
            "remove a dead s but for its log",
        ],
    );
    // Whoever is killed here goes on here.
    check(ruled(), scene().exited("b", 0, 1, 88), &["remove a dead i but for its log"]);
    check(ruled(), ready().exited("b", 0, 1, 88), &["remove a dead b but for its log"]);
    check(ruled(), ready(), &["start i"]);
    // What was created and not yet started goes as well.
    let created = ready().container("a", 0, 0, ContainerState::Created).exited("b", 0, 0, 88);
    check(ruled(), created, &["remove a dead a but for its log"]);
}

#[test]
fn where_its_gate_is_off_no_rule_restarts_all_not_even_in_a_pod_that_has_run_before() {
    let exited = || ready().exited("i", 0, 0, 0).running("s", 0, 0).running("a", 0, 0).exited("b", 0, 0, 88);
    check(ruled(), exited().without_restarts_of_all(), &[]);
    // Cut off in the middle by an agent whose gate was on: what was stopped for it stays down.
    let stopped = ready().exited("i", 0, 0, 0).running("s", 0, 0).exited("a", 0, 0, 137).exited("b", 0, 0, 88);
    check(ruled(), stopped.without_restarts_of_all(), &["done"]);
}

#[test]
fn the_sandbox_stays_unless_it_is_of_no_use() {
    let dead = || Scene::default().sandbox(0, SandboxState::NotReady);
    check(ruled(), dead().exited("a", 0, 0, 0).exited("b", 0, 0, 88), &["create sandbox 1"]);
    check(ruled(), dead().exited("a", 0, 0, 0).exited("b", 0, 0, 1), &["done"]);
    let replaced = dead().sandbox(1, SandboxState::Ready).exited("b", 0, 0, 88);
    check(ruled(), replaced, &["remove a dead b but for its log"]);
    let plan = plan_of(&ruled(), ready().running("a", 0, 0).exited("b", 0, 0, 88), false, true);
    assert_eq!(plan.to_string(), "prepare directories, cgroup and volumes\n");
}

#[test]
fn a_pod_that_was_over_when_its_sidecar_ended_stays_over() {
    let watched_it = ready().ended("a", 0, 0, 137, 9, 3).ended("s", 0, 0, 88, 9, 5);
    check(watched(), watched_it, &["remove a dead a but for its log"]);
    let was_stopped = ready().ended("a", 0, 0, 1, 9, 5).ended("s", 0, 0, 88, 9, 3);
    check(watched(), was_stopped, &["done"]);
    let mut deleted = watched();
    deleted.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(noon()));
    check(deleted, ready().running("a", 0, 0).exited("s", 0, 0, 88), &["start s again, attempt 1"]);
}

#[test]
fn the_first_rule_that_speaks_of_an_exit_decides() {
    let restart = "{action: Restart, exitCodes: {operator: In, values: [88]}}";
    let all = "{action: RestartAllContainers, exitCodes: {operator: NotIn, values: [0]}}";
    let rules = format!("restartPolicyRules: [{restart}, {all}]");
    let regular = format!("{{name: a, image: 'img:1'}}, {{name: b, image: 'img:1', restartPolicy: Never, {rules}}}");
    let spec = format!("{{restartPolicy: Never, containers: [{regular}]}}");
    let pod = || Pod { spec: Some(crate::pod::testing::yaml(&spec)), ..Pod::default() };
    check(pod(), ready().running("a", 0, 0).exited("b", 0, 0, 88), &["start b again, attempt 1"]);
    check(pod(), ready().running("a", 0, 0).exited("b", 0, 0, 7), &["stop a because all containers restart"]);
    check(pod(), ready().running("a", 0, 0).exited("b", 0, 0, 0), &[]);
}

#[test]
fn a_pod_that_restarts_again_and_again_waits_longer_each_time() {
    let source = |lasted| ready().ended("b", 0, 1, 88, lasted, 0);
    let of = |scene: Scene| plan_of(&ruled(), scene, true, true);
    assert_eq!(of(source(1)).restart_all_wait, Some(Duration::from_secs(10)));
    check(ruled(), source(1).all_carrying(10), &["hold b for its back-off of 10s"]);
    // The others do not go on meanwhile.
    let others = source(1).running("a", 0, 1).all_carrying(10);
    check(ruled(), others, &["stop a because all containers restart"]);
    // Whoever debugs does.
    let mut debugged = ruled();
    let debugger = crate::pod::testing::yaml("[{name: d, image: 'img:1'}]");
    debugged.spec.as_mut().expect("made with a spec").ephemeral_containers = Some(debugger);
    check(debugged, source(1).all_carrying(10), &["start d", "hold b for its back-off of 10s"]);
    let waited = ready().ended("b", 0, 1, 88, 1, 10).all_carrying(10);
    assert_eq!(of(waited).restart_all_wait, Some(Duration::from_secs(20)));
    assert_eq!(of(source(601).all_carrying(300)).restart_all_wait, Some(Duration::from_secs(10)));
    // Whoever is made later carries what the first ones carry.
    let plan = of(ready().exited("i", 0, 1, 0).all_carrying(20));
    let [plan::Action::StartContainer { waits, .. }] = plan.actions.as_slice() else { panic!("{plan}") };
    assert_eq!((waits.crash, waits.restart_all), (Duration::ZERO, Duration::from_secs(20)));
}
