use super::*;
use crate::status::{Probed, Restarts, deadline};

#[test]
fn phase_follows_the_containers() {
    let check = |spec: &str, runtime: &[&str], expected| check_phase(&Case::new(spec, runtime), expected);
    check(ONE, &[], Phase::Pending);
    check(ONE, &["sandbox"], Phase::Pending);
    check(ONE, &["web/0 created"], Phase::Pending);
    check(ONE, &["web/0 running"], Phase::Running);
    check(ONE, &["web/0 exited 0"], Phase::Running);
    check(ONE, &["web/0 exited 1"], Phase::Running);
    check(ONE, &["web/0 unknown"], Phase::Pending);
    check(TWO, &["web/0 running"], Phase::Pending);
    check(TWO, &["web/0 running", "log/0 exited 1"], Phase::Running);
    check(NEVER, &["web/0 running", "log/0 exited 1"], Phase::Running);
    check(NEVER, &["web/0 exited 0", "log/0 exited 1"], Phase::Failed);
    check(NEVER, &["web/0 exited 0", "log/0 exited 0"], Phase::Succeeded);
    check(NEVER, &["web/0 exited 0"], Phase::Pending);
    let on_failure = "{restartPolicy: OnFailure, containers: [{name: web, image: a}, {name: log, image: a}]}";
    check(on_failure, &["web/0 exited 0", "log/0 exited 1"], Phase::Running);
    check(on_failure, &["web/0 exited 0", "log/1 exited 0", "log/0 exited 1"], Phase::Succeeded);
}

#[test]
fn phase_follows_the_init_containers() {
    let check = |spec: &str, runtime: &[&str], expected| check_phase(&Case::new(spec, runtime), expected);
    check(INIT, &["one/0 running"], Phase::Pending);
    check(INIT, &["one/0 exited 1"], Phase::Pending);
    check(INIT_NEVER, &["one/0 exited 1"], Phase::Failed);
    check(INIT, &["one/0 exited 0", "two/0 running"], Phase::Pending);
    check(INIT, &["one/0 exited 0", "two/0 exited 0"], Phase::Pending);
    check(INIT, &["one/0 exited 0", "two/0 exited 0", "web/0 running"], Phase::Running);
    // Collected init containers of a pod that got past them.
    check(INIT, &["web/0 running"], Phase::Running);
}

#[test]
fn a_sidecar_holds_the_pod_pending_until_it_started_and_running_until_it_ended() {
    let check = |runtime: &[&str], expected| check_phase(&Case::new(SIDECAR, runtime), expected);
    check(&[], Phase::Pending);
    check(&["proxy/0 running"], Phase::Pending);
    check(&["proxy/0 running", "web/0 running"], Phase::Running);
    check(&["proxy/0 running", "web/0 exited 0"], Phase::Running);
    check(&["proxy/0 exited 143", "web/0 exited 0"], Phase::Succeeded);
    check(&["proxy/0 exited 0", "web/0 exited 1"], Phase::Failed);
    check(&["proxy/0 exited 0", "web/0 running"], Phase::Running);
}

#[test]
fn the_container_policy_and_its_rules_overrule_the_pods() {
    let check = |pod_policy: &str, container: &str, exit_code: i32, expected: bool| {
        let pod = pod(&format!("{{restartPolicy: {pod_policy}, containers: [{{name: web, image: a{container}}}]}}"));
        let container = &pod.spec.as_ref().expect("a spec").containers[0];
        assert_eq!(
            Restarts::of(&pod, &FeatureGates::default()).restartable(container, exit_code),
            expected,
            "{pod_policy} {container:?} {exit_code}"
        );
    };
    check("Always", "", 0, true);
    check("OnFailure", "", 0, false);
    check("OnFailure", "", 1, true);
    check("Never", "", 1, false);
    check("Never", ", restartPolicy: OnFailure", 1, true);
    check("Always", ", restartPolicy: Never", 1, false);
    let rule = |operator: &str| {
        format!(
            ", restartPolicy: Never, restartPolicyRules: [{{action: Restart, exitCodes: {{operator: {operator}, values: [42]}}}}]"
        )
    };
    check("Always", &rule("In"), 42, true);
    check("Always", &rule("In"), 1, false);
    check("Always", &rule("NotIn"), 1, true);
    check("Always", &rule("NotIn"), 42, false);
}

#[test]
fn a_rule_whose_gate_is_off_decides_nothing_and_lets_none_behind_it_decide() {
    let rule = |action: &str| format!("{{action: {action}, exitCodes: {{operator: In, values: [42]}}}}");
    let rules = format!("restartPolicyRules: [{}, {}]", rule("RestartAllContainers"), rule("Restart"));
    let pod = pod(&format!("{{containers: [{{name: web, image: a, restartPolicy: Never, {rules}}}]}}"));
    let off = FeatureGates::with(&[(Gate::RestartAllContainersOnContainerExits, false)]);
    let restartable = |gates: &FeatureGates| {
        Restarts::of(&pod, gates).restartable(&pod.spec.as_ref().expect("a spec").containers[0], 42)
    };
    assert!(restartable(&FeatureGates::default()));
    assert!(!restartable(&off));
    let told = |gates: FeatureGates| {
        let case = Case { pod: pod.clone(), gates, ..Case::new(ONE, &["sandbox", "web/0 exited 42"]) };
        case.compute().status.conditions.into_iter().flatten().any(|it| it.type_ == "AllContainersRestarting")
    };
    assert!(told(FeatureGates::default()) && !told(off));
}

#[test]
fn nothing_of_a_deleted_pod_is_restarted() {
    let case = Case::new(ONE, &["web/0 exited 1"]).deleted();
    let restarts = Restarts::of(&case.pod, &case.gates);
    assert!(!restarts.restartable(&case.pod.spec.as_ref().expect("a spec").containers[0], 1));
}

#[test]
fn container_statuses_show_the_two_newest_instances() {
    let check = |spec: &str, runtime: &[&str], expected: &[&str]| check_lines(&Case::new(spec, runtime), expected);
    check(ONE, &[], &["web ContainerCreating, restarts 0"]);
    check(ONE, &["web/0 created"], &["web ContainerCreating, restarts 0"]);
    check(ONE, &["web/0 running"], &["web running, restarts 0, started, ready"]);
    check(ONE, &["web/0 exited 0"], &["web Completed 0 web-0, restarts 0"]);
    check(ONE, &["web/0 exited 2"], &["web Error 2 web-0, restarts 0"]);
    check(
        ONE,
        &["web/0 exited 1", "web/1 exited 2", "web/2 running"],
        &["web running, last Error 2 web-1, restarts 2, started, ready"],
    );
}

#[test]
fn regular_containers_stand_by_name_and_init_ones_as_in_the_spec() {
    let spec = "{initContainers: [{name: z, image: a}, {name: a, image: a}], containers: [{name: y, image: a}, {name: b, image: a}]}";
    let names: Vec<String> = lines(&Case::new(spec, &[]).compute().status)
        .iter()
        .map(|line| line.split(' ').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(names, ["z", "a", "b", "y"]);
}

#[test]
fn init_containers_are_ready_once_they_are_done() {
    check_lines(
        &Case::new(INIT, &["one/0 exited 0", "two/1 running", "two/0 exited 1"]),
        &[
            "one Completed 0 one-0, restarts 0, ready",
            "two running, last Error 1 two-0, restarts 1, started",
            "web PodInitializing, restarts 0",
        ],
    );
}

#[test]
fn a_waiting_pod_tells_its_mounts_and_what_it_was_given() {
    let spec = "
      overhead: {cpu: 5m}
      containers:
      - {name: a, resources: {requests: {cpu: 10m}, limits: {memory: 1Mi}}, volumeMounts: [{name: v, mountPath: /v}]}
      - {name: b, resources: {requests: {cpu: 20m, memory: 1536Ki}}}
    ";
    let status = Case::new(spec, &[]).compute().status;
    let mounts = status.container_statuses.as_ref().and_then(|all| all[0].volume_mounts.as_ref());
    assert_eq!(mounts.map(|mounts| mounts[0].mount_path.as_str()), Some("/v"));
    let told = |amounts: Option<&BTreeMap<String, _>>| serde_json::to_value(amounts).expect("it is JSON");
    let requests = serde_json::json!({ "cpu": "35m", "memory": "2560Ki" });
    let resources = status.resources.as_ref().expect("always told");
    assert_eq!(told(status.allocated_resources.as_ref()), requests);
    assert_eq!(told(resources.requests.as_ref()), requests);
    assert_eq!(told(resources.limits.as_ref()), serde_json::json!({ "memory": "1Mi" }));
    // The API would drop an empty list, and have it written again for ever.
    let bare = Case::new("containers: [{name: a}]", &[]).compute().status;
    assert_eq!((bare.allocated_resources, bare.resources.is_some()), (None, true));
}

#[test]
fn the_restart_count_annotation_counts_more_than_the_attempt() {
    let mut case = Case::new(ONE, &["web/0 running"]);
    let annotations = &mut case.runtime.containers[0].annotations;
    annotations.insert(crate::cri::annotations::CONTAINER_RESTART_COUNT.into(), "5".into());
    check_lines(&case, &["web running, restarts 5, started, ready"]);
}

#[test]
fn start_errors_show_on_containers_that_will_start_again() {
    let check = |spec: &str, runtime: &[&str], expected: &[&str]| {
        check_lines(&Case::new(spec, runtime).error("web", "CrashLoopBackOff"), expected);
    };
    check(ONE, &[], &["web CrashLoopBackOff, restarts 0"]);
    check(ONE, &["web/0 created"], &["web CrashLoopBackOff, restarts 0"]);
    check(ONE, &["web/0 exited 1"], &["web CrashLoopBackOff, last Error 1 web-0, restarts 0"]);
    check(ONE, &["web/0 exited 1", "web/1 exited 2"], &["web CrashLoopBackOff, last Error 2 web-1, restarts 1"]);
    check(ONE, &["web/0 running"], &["web running, restarts 0, started, ready"]);
    check(
        "{restartPolicy: Never, containers: [{name: web, image: a}]}",
        &["web/0 exited 1"],
        &["web Error 1 web-0, restarts 0"],
    );
}

#[test]
fn a_finished_init_container_does_not_show_an_old_error() {
    let case = Case::new(INIT, &["one/0 exited 0"]).error("one", "CrashLoopBackOff");
    assert_eq!(lines(&case.compute().status)[0], "one Completed 0 one-0, restarts 0, ready");
}

#[test]
fn an_exit_whose_instance_was_collected_is_remembered() {
    let crashed = || Case::new(ONE, &["web/0 exited 3"]);
    check_lines(&crashed().then(&["web/1 running"]), &["web running, last Error 3 web-0, restarts 1, started, ready"]);
    check_lines(
        &crashed().then(&["web/1 running"]).then(&["web/1 running"]),
        &["web running, last Error 3 web-0, restarts 1, started, ready"],
    );
    check_lines(&crashed().then(&[]), &["web Error 3 web-0, restarts 0"]);
    // The back-off is over: what it hid in the last state is the state again, once.
    let mut back_off = crashed().error("web", "CrashLoopBackOff").then(&["web/0 exited 3"]);
    back_off.start_errors.clear();
    check_lines(&back_off, &["web Error 3 web-0, restarts 0"]);
}

#[test]
fn a_container_that_vanished_while_running_counts_as_stopped() {
    let vanished = Case::new(ONE, &["web/0 running"]).then(&[]);
    check_lines(&vanished, &["web ContainerCreating, last ContainerStatusUnknown 137 web-0, restarts 1"]);
    check_phase(&vanished, Phase::Running);
    let still = vanished.then(&[]);
    check_lines(&still, &["web ContainerCreating, last ContainerStatusUnknown 137 web-0, restarts 1"]);
    check_lines(
        &still.then(&["web/1 running"]),
        &["web running, last ContainerStatusUnknown 137 web-0, restarts 1, started, ready"],
    );
    let deleted = Case::new(ONE, &["web/0 running"]).deleted().then(&[]);
    check_lines(&deleted, &["web ContainerCreating, last ContainerStatusUnknown 137 web-0, restarts 0"]);
    let never = Case::new("{restartPolicy: Never, containers: [{name: web, image: a}]}", &["web/0 running"]).then(&[]);
    check_phase(&never, Phase::Failed);
}

#[test]
fn a_container_that_vanished_and_will_not_be_restarted_waits_for_nothing() {
    let vanished = Case::new(NEVER, &["web/0 running", "log/0 running"]).then(&["log/0 running"]);
    let lost = "web ContainerStatusUnknown 137 ?, last ContainerStatusUnknown 137 web-0, restarts 1";
    check_lines(&vanished, &["log running, restarts 0, started, ready", lost]);
    check_phase(&vanished, Phase::Running);
    let ended = vanished.then(&["log/0 exited 0"]);
    check_lines(&ended, &["log Completed 0 log-0, restarts 0", lost]);
    check_phase(&ended, Phase::Failed);
}

#[test]
fn a_debugger_that_vanished_was_not_restarted() {
    let debugged = "{containers: [{name: web, image: a}], ephemeralContainers: [{name: debug, image: a}]}";
    let vanished = Case::new(debugged, &["web/0 running", "debug/0 running"]).then(&["web/0 running"]);
    let lost = "debug ContainerStatusUnknown 137 ?, last ContainerStatusUnknown 137 debug-0, restarts 0";
    check_lines(&vanished, &["web running, restarts 0, started, ready", lost]);
}

#[test]
fn what_was_told_of_a_container_that_vanished_says_whether_it_is_over() {
    let check = |spec: &str, told: &[&str], runtime: &[&str], over: &[&str]| {
        let case = Case::new(spec, told).then(runtime);
        let told = case.previous.as_ref().expect("there was an earlier one");
        let found = Restarts::of(&case.pod, &case.gates).over_and_lost(told, &case.runtime);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), over, "{spec} {told:#?}");
    };
    check(NEVER, &["web/0 running", "log/0 exited 0"], &[], &["log", "web"]);
    check(NEVER, &["web/0 running", "log/0 exited 0"], &["web/0 running"], &["log"]);
    check(NEVER, &["web/0 created"], &[], &[]);
    check(ONE, &["web/0 running"], &[], &[]);
    let on_failure = "{restartPolicy: OnFailure, containers: [{name: web, image: a}, {name: log, image: a}]}";
    check(on_failure, &["web/0 running", "log/0 exited 0"], &[], &["log"]);
    check(on_failure, &["web/0 exited 1", "log/0 running"], &[], &[]);
    check(INIT_NEVER, &["one/0 running"], &[], &["one"]);
    check(INIT_NEVER, &["one/0 exited 0", "two/0 running"], &[], &["two"]);
    check(INIT, &["one/0 exited 0", "two/0 running"], &[], &[]);
    check(SIDECAR, &["proxy/0 running", "web/0 running"], &[], &["web"]);
    let debugged = "{containers: [{name: web, image: a}], ephemeralContainers: [{name: debug, image: a}]}";
    check(debugged, &["web/0 running", "debug/0 running"], &["web/0 running"], &["debug"]);
    check(debugged, &["web/0 running"], &["web/0 running"], &[]);
    // It may have been removed so that all begin anew.
    let rules = "restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [88]}}]";
    let anew = format!(
        "{{restartPolicy: Never, containers: [{{name: web, image: a}}, {{name: log, image: a, restartPolicy: Never, {rules}}}]}}"
    );
    check(&anew, &["web/0 running", "log/0 running"], &[], &[]);
}

#[test]
fn a_container_the_runtime_lost_track_of_counts_as_killed() {
    let lost = Case::new(ONE, &["web/0 running"]).then(&["web/0 unknown"]);
    check_lines(&lost, &["web ContainerStatusUnknown 137 web-0, restarts 1"]);
    check_lines(&lost.then(&["web/0 unknown"]), &["web ContainerStatusUnknown 137 web-0, restarts 1"]);
    check_lines(&Case::new(ONE, &["web/0 unknown"]), &["web ContainerCreating, restarts 0"]);
}

#[test]
fn an_init_container_collected_after_its_turn_counts_as_completed() {
    let statuses = lines(&Case::new(INIT, &["two/0 exited 0", "web/0 running"]).compute().status);
    assert_eq!(statuses[0], "one Completed 0 ?, restarts 0, ready");
    let known = Case::new(INIT, &["one/2 exited 0", "two/0 running"]).then(&["web/0 running"]);
    assert_eq!(lines(&known.compute().status)[0], "one Completed 0 one-2, restarts 2, ready");
}

#[test]
fn probe_results_decide_started_and_ready_of_their_instance_only() {
    let check = |started, ready, expected: &str| {
        let mut case = Case::new(ONE, &["web/1 running"]);
        case.probes.insert(ContainerId::new("web-1"), Probed { started, ready });
        case.probes.insert(ContainerId::new("web-0"), Probed { started: Some(false), ready: Some(false) });
        check_lines(&case, &[expected]);
    };
    check(None, None, "web running, restarts 1, started, ready");
    check(Some(false), None, "web running, restarts 1");
    check(Some(false), Some(true), "web running, restarts 1");
    check(Some(true), Some(false), "web running, restarts 1, started");
    check(Some(true), Some(true), "web running, restarts 1, started, ready");
}

#[test]
fn the_api_status_stands_in_for_a_lost_previous_one() {
    let running = Case::new(ONE, &["sandbox", "web/1 running", "web/0 exited 1"]);
    let mut restarted = Case::new(ONE, &["sandbox", "web/1 running"]);
    restarted.pod.status = Some(running.compute().status);
    restarted.now = 500;
    assert_eq!(restarted.compute().status, running.compute().status);
}

#[test]
fn a_terminal_phase_waits_until_nothing_can_run() {
    let check = |stage: Stage, runtime: &[&str], published: &str| {
        let mut case = Case::new(NEVER, &["web/0 running", "log/0 running"]).then(runtime).stage(stage);
        case.verdict = Some(Verdict::deadline_exceeded());
        let computed = case.compute();
        assert_eq!(computed.phase, Phase::Failed);
        assert_eq!(computed.status.phase.as_deref(), Some(published), "{stage:?} {runtime:?}");
        assert_eq!(computed.status.reason.is_some(), published == "Failed");
        assert_eq!(condition(&computed.status, "Ready"), "False PodFailed");
    };
    check(Stage::Syncing, &["web/0 running", "log/0 exited 0"], "Running");
    check(Stage::Syncing, &["web/0 unknown", "log/0 exited 0"], "Running");
    check(Stage::Syncing, &["web/0 created", "log/0 exited 0"], "Running");
    check(Stage::Syncing, &["web/0 exited 1", "log/0 exited 0"], "Failed");
    check(Stage::Terminating, &["web/0 exited 1", "log/0 exited 0"], "Running");
    check(Stage::Terminated, &["web/0 exited 1", "log/0 exited 0"], "Failed");
}

#[test]
fn whoever_would_have_gone_on_did_not_succeed() {
    let ended_by_deadline = |spec: &str| {
        let mut case = Case::new(spec, &["web/0 running"]).then(&["web/0 exited 0"]).stage(Stage::Terminated);
        case.verdict = Some(Verdict::deadline_exceeded());
        // What an agent that was started again knows.
        case.previous = None;
        case.compute().phase
    };
    assert_eq!(ended_by_deadline(ONE), Phase::Failed);
    assert_eq!(ended_by_deadline("{restartPolicy: OnFailure, containers: [{name: web, image: a}]}"), Phase::Succeeded);
}

#[test]
fn a_terminal_phase_is_never_left() {
    let done = Case::new(NEVER, &["web/0 exited 0", "log/0 exited 0"]);
    check_phase(&done.then(&["web/1 running", "log/0 exited 0"]), Phase::Succeeded);
    let mut told = Case::new(ONE, &["web/0 running"]);
    told.pod.status =
        Some(PodStatus { phase: Some("Failed".into()), reason: Some("NodeLost".into()), ..PodStatus::default() });
    told.previous = Some(Case::new(ONE, &["web/0 running"]).compute().status);
    let computed = told.compute();
    assert_eq!(computed.phase, Phase::Failed);
    assert_eq!(computed.status.phase.as_deref(), Some("Failed"));
    assert_eq!(computed.status.reason.as_deref(), Some("NodeLost"));
}

#[test]
fn a_deleted_pod_succeeds_only_if_all_its_containers_did() {
    let check = |source: Source, runtime: &[&str], expected: Phase| {
        let mut case =
            Case::new(TWO, &["web/0 running", "log/0 running"]).deleted().then(runtime).stage(Stage::Terminated);
        case.source = source;
        check_phase(&case, expected);
    };
    check(Source::Api, &["web/0 exited 0", "log/0 exited 0"], Phase::Succeeded);
    check(Source::Api, &["web/0 exited 0", "log/0 exited 143"], Phase::Failed);
    check(Source::Api, &["web/0 exited 0"], Phase::Failed);
}

#[test]
fn every_container_of_a_terminated_pod_has_ended() {
    let check = |spec: &str, before: &[&str], after: &[&str], expected: &[&str]| {
        let case = Case::new(spec, before).deleted().then(after).stage(Stage::Terminated);
        check_lines(&case, expected);
        check_phase(&case, Phase::Failed);
    };
    check(ONE, &[], &[], &["web ContainerStatusUnknown 137 ?, restarts 0"]);
    check(
        TWO,
        &["web/0 running"],
        &["web/0 exited 0"],
        &["log ContainerStatusUnknown 137 ?, restarts 0", "web Completed 0 web-0, restarts 0"],
    );
    check(
        INIT,
        &["one/0 running"],
        &["one/0 exited 1"],
        &["one Error 1 one-0, restarts 0", "two PodInitializing, restarts 0", "web PodInitializing, restarts 0"],
    );
    check(
        INIT,
        &[],
        &[],
        &[
            "one ContainerStatusUnknown 137 ?, restarts 0",
            "two PodInitializing, restarts 0",
            "web PodInitializing, restarts 0",
        ],
    );
}

#[test]
fn a_refused_pod_has_no_containers_and_no_addresses() {
    let mut case = Case::new(ONE, &[]);
    case.verdict = Some(Verdict::refused("OutOfcpu", "Node didn't have enough resource"));
    let Computed { phase, status } = case.compute();
    assert_eq!(phase, Phase::Failed);
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(status.reason.as_deref(), Some("OutOfcpu"));
    assert_eq!(status.message.as_deref(), Some("Pod was rejected: Node didn't have enough resource"));
    assert_eq!((status.container_statuses, status.conditions, status.pod_ips), (None, None, None));
}

#[test]
fn a_disruption_is_told_together_with_the_end() {
    let disrupted = |runtime: &[&str], stage| {
        let mut case = Case::new(ONE, &["web/0 running"]).then(runtime).stage(stage);
        case.verdict =
            Some(Verdict { cause: crate::status::Cause::Disruption, reason: "Evicted".into(), message: "low".into() });
        condition(&case.compute().status, "DisruptionTarget")
    };
    assert_eq!(disrupted(&["web/0 running"], Stage::Terminating), "absent");
    assert_eq!(disrupted(&["web/0 exited 137"], Stage::Terminated), "True TerminationByKubelet: low");
}

#[test]
fn addresses_come_from_the_sandbox_and_stay() {
    let ips = |case: &Case| {
        let status = case.compute().status;
        let list: Vec<String> = status.pod_ips.into_iter().flatten().map(|ip| ip.ip).collect();
        assert_eq!(status.pod_ip.as_ref(), list.first());
        list
    };
    assert_eq!(ips(&Case::new(ONE, &[])), [""; 0]);
    let dual = Case::new(ONE, &["sandbox ready fd00::7,10.0.0.7"]);
    assert_eq!(ips(&dual), ["10.0.0.7", "fd00::7"]);
    assert_eq!(ips(&dual.then(&["sandbox notready"])), ["10.0.0.7", "fd00::7"]);
    let mut host = Case::new("{hostNetwork: true, containers: [{name: web, image: a}]}", &["sandbox"]);
    assert_eq!(ips(&host), ["192.168.0.1"]);
    host = host.then(&["sandbox"]);
    host.host_ips = vec!["192.168.0.2"];
    assert_eq!(ips(&host), ["192.168.0.1"]);
    assert_eq!(host.compute().status.host_ip.as_deref(), Some("192.168.0.2"));
    host.host_ips = vec!["192.168.0.2", "192.168.0.3"];
    assert_eq!(ips(&host), ["192.168.0.1"]);
    host.host_ips = vec!["192.168.0.2", "fd00::2"];
    assert_eq!(ips(&host), ["192.168.0.1", "fd00::2"], "the node has become dual-stack");
    host = host.then(&["sandbox"]);
    host.host_ips = vec!["192.168.0.2", "fd00::3"];
    assert_eq!(ips(&host), ["192.168.0.1", "fd00::2"]);
}

#[test]
fn the_start_time_and_the_generation_are_told() {
    let mut case = Case::new(ONE, &[]);
    let status = case.compute().status;
    assert_eq!(status.start_time.as_ref().map(|time| time.0), Some(at(0)));
    assert_eq!(status.observed_generation, Some(1));
    assert!(status.conditions.iter().flatten().all(|condition| condition.observed_generation == Some(1)));
    case.previous = Some(PodStatus {
        start_time: status.start_time.map(|_| super::super::conditions::whole_seconds(at(-50))),
        ..PodStatus::default()
    });
    assert_eq!(case.compute().status.start_time.map(|time| time.0), Some(at(-50)));
}

#[test]
fn the_deadline_counts_from_the_start_time() {
    let check = |spec: &str, expected| assert_eq!(deadline(&pod(spec), at(5)), expected);
    check(ONE, None);
    check("{activeDeadlineSeconds: 30, containers: []}", Some(at(35)));
    check(&format!("{{activeDeadlineSeconds: {}, containers: []}}", i64::MAX), Some(Timestamp::MAX));
}

#[test]
fn termination_messages_share_twelve_kibibytes() {
    let check = |containers: usize, expected: usize| {
        let names: Vec<String> = (0..containers).map(|n| format!("c{n}")).collect();
        let spec: String = names.iter().map(|name| format!("{{name: {name}, image: a}},")).collect();
        let states: Vec<String> = names.iter().map(|name| format!("{name}/0 exited 1")).collect();
        let states: Vec<&str> = states.iter().map(String::as_str).collect();
        let mut case = Case::new(&format!("{{containers: [{spec}]}}"), &states);
        for container in &mut case.runtime.containers {
            if let cri::ContainerState::Exited(exit) = &mut container.state {
                exit.message = "é".repeat(2048);
            }
        }
        let status = case.compute().status;
        for status in status.container_statuses.iter().flatten() {
            let exit = status.state.as_ref().and_then(|state| state.terminated.as_ref());
            assert_eq!(exit.and_then(|exit| exit.message.as_ref()).map(String::len), Some(expected));
        }
    };
    check(1, 4096);
    check(3, 4096);
    check(4, 3072);
    check(7, 1754);
}

#[test]
fn mounts_tell_whether_they_are_read_only_all_the_way_down() {
    let spec = "{containers: [{name: web, image: a, volumeMounts: [{name: v, mountPath: /a}, \
                {name: v, mountPath: /b, readOnly: true}, {name: v, mountPath: /c, readOnly: true, recursiveReadOnly: IfPossible}]}]}";
    let mut case = Case::new(spec, &["web/0 running"]);
    case.runtime.containers[0].mounts =
        vec![cri::Mount { container_path: "/c".into(), recursive_read_only: true, ..cri::Mount::default() }];
    let status = case.compute().status;
    let mounts =
        status.container_statuses.into_iter().flatten().flat_map(|status| status.volume_mounts.unwrap_or_default());
    let shown: Vec<_> = mounts.map(|mount| (mount.mount_path, mount.read_only, mount.recursive_read_only)).collect();
    assert_eq!(
        shown,
        [
            ("/a".into(), None, None),
            ("/b".into(), Some(true), Some("Disabled".to_owned())),
            ("/c".into(), Some(true), Some("Enabled".to_owned()))
        ]
    );
}

#[test]
fn the_qos_class_is_told() {
    let class = |spec: &str| Case::new(spec, &[]).compute().status.qos_class;
    assert_eq!(class(ONE).as_deref(), Some("BestEffort"));
    assert_eq!(
        class("{containers: [{name: web, image: a, resources: {requests: {cpu: 1}}}]}").as_deref(),
        Some("Burstable")
    );
}

#[test]
fn a_stop_signal_is_told_where_the_api_knows_of_it() {
    let told = |case: Case| {
        let statuses = case.compute().status.container_statuses.expect("there are containers");
        statuses[0].stop_signal.clone()
    };
    let case = || Case::new(ONE, &["web/0 running"]);
    assert_eq!(told(case()), None);
    let gates = FeatureGates::with(&[(Gate::ContainerStopSignals, true)]);
    assert_eq!(told(Case { gates, ..case() }).as_deref(), Some("SIGUSR1"));
}

#[test]
fn what_the_api_does_not_know_of_is_not_told() {
    let told = |gate| {
        let gates = FeatureGates::with(&[(gate, false)]);
        Case { gates, ..Case::new(&ONE.replace("image: a", "image: a, resources: {requests: {cpu: 1}}"), &["sandbox"]) }
            .compute()
            .status
    };
    let of_resources = |status: &PodStatus| (status.resources.is_some(), status.allocated_resources.is_some());
    let kinds = |status: &PodStatus| -> Vec<String> {
        status.conditions.iter().flatten().map(|condition| condition.type_.clone()).collect()
    };
    let without_resources = told(Gate::InPlacePodLevelResourcesVerticalScaling);
    assert_eq!(of_resources(&without_resources), (false, false));
    let without_condition = told(Gate::PodReadyToStartContainersCondition);
    assert_eq!(of_resources(&without_condition), (true, true));
    let (all, fewer) = (kinds(&without_resources), kinds(&without_condition));
    assert_eq!(all, [&["PodReadyToStartContainers".to_owned()], fewer.as_slice()].concat());
}
