//! A restart of all containers, as the status tells it.

use super::*;

const WATCHED: &str = "{restartPolicy: Never, initContainers: [{name: setup, image: a}], containers: [{name: web, image: a}, \
                       {name: log, image: a, restartPolicy: Never, restartPolicyRules: [{action: RestartAllContainers, \
                       exitCodes: {operator: In, values: [88]}}]}]}";

#[test]
fn a_restart_of_all_containers_is_told_step_by_step() {
    let all = ["sandbox", "setup/0 exited 0", "web/0 running", "log/0 running"];
    let case = Case::new(WATCHED, &all);
    assert_eq!(condition(&case.compute().status, "AllContainersRestarting"), "False");
    let told = "True RestartAllContainersStarted: container exited with restart policy rule";
    // Not yet removed, it looks as if it had failed.
    let case = case.then(&["sandbox", "setup/0 exited 0", "web/0 exited 137", "log/0 exited 88"]);
    assert_eq!(condition(&case.compute().status, "AllContainersRestarting"), told);
    check_phase(&case, Phase::Running);
    let case = case.then(&["sandbox", "log/0 exited 88"]).then(&["sandbox", "log/0 exited 88"]);
    assert_eq!(condition(&case.compute().status, "AllContainersRestarting"), told);
    check_lines(
        &case,
        &[
            "setup RestartingAllContainers, last RestartingAllContainers 137 ?, restarts 1",
            "log Error 88 log-0, restarts 0",
            "web RestartingAllContainers, last RestartingAllContainers 137 ?, restarts 1",
        ],
    );
    check_phase(&case, Phase::Pending);
    // The one that began it shows how it ended.
    let case = case.then(&["sandbox", "setup/1 running"]);
    assert_eq!(condition(&case.compute().status, "AllContainersRestarting"), "False");
    assert_eq!(condition(&case.compute().status, "Initialized"), "True");
    let setup = "setup running, last RestartingAllContainers 137 ?, restarts 1, started";
    let removed = "last RestartingAllContainers 137 ?, restarts 1";
    check_lines(
        &case,
        &[
            setup,
            "log RestartingAllContainers, last Error 88 log-0, restarts 1",
            &format!("web RestartingAllContainers, {removed}"),
        ],
    );
    let case = case.then(&["sandbox", "setup/1 exited 0", "log/1 running"]).error("web", "ErrImagePull");
    check_phase(&case, Phase::Running);
    check_lines(
        &case,
        &[
            "setup Completed 0 setup-1, last RestartingAllContainers 137 ?, restarts 1, ready",
            "log running, last Error 88 log-0, restarts 1, started, ready",
            &format!("web ErrImagePull, {removed}"),
        ],
    );
    // A pod that ends in the middle of it has ended.
    let case = Case { start_errors: BTreeMap::new(), ..case }.then(&["sandbox"]).stage(Stage::Terminated);
    check_phase(&case, Phase::Failed);
    assert_eq!(condition(&case.compute().status, "AllContainersRestarting"), "False PodFailed");
}

#[test]
fn a_restart_of_all_containers_that_nobody_heard_of_is_no_failure() {
    let running = || Case::new(WATCHED, &["sandbox", "setup/0 exited 0", "web/0 running", "log/0 running"]);
    let case = running().then(&["sandbox"]);
    check_phase(&case, Phase::Pending);
    let web = "web RestartingAllContainers, last RestartingAllContainers 137 ?, restarts 1";
    let told = lines(&case.compute().status);
    assert!(told.iter().any(|line| line == web), "{told:?}");
    // Without a sandbox it was no restart in place.
    check_phase(&running().then(&[]), Phase::Failed);
}
