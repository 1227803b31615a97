//! Scenarios: what a pod and its runtime look like, and the plan that follows, as text.

mod actions;
mod hooks;
mod past;
mod restart_all;
mod texts;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod, PodSpec};
use tokio::time::Instant;

use super::hooks::{BegunHooks, PostStart, PostStarts};
use super::plan::{self, BACKOFF_ANNOTATION, BackoffLimits, Plan, RESTART_ALL_ANNOTATION, Snapshot};
use super::resize::{Resize, Update, UpdateKind};
use super::{DeadContainers, DeadLimits, HostResolver, Wakes};
use crate::cri::testing::noon;
use crate::cri::{
    self, Container, ContainerId, ContainerState, Exit, NamespaceMode, Sandbox, SandboxId, SandboxState, annotations,
};
use crate::pleg::PodRuntime;
use crate::pod::{self, PodUid};
use crate::probes::{ProbeKind, Standing, Standings};
use crate::status::Restarts;

const LIMITS: BackoffLimits = BackoffLimits {
    initial: Duration::from_secs(10),
    max: Duration::from_secs(300),
    reset_after: Duration::from_secs(600),
};

fn spec(name: &str) -> ContainerSpec {
    ContainerSpec { name: name.into(), image: Some("img:1".into()), ..ContainerSpec::default() }
}

fn pod(policy: &str, containers: &[&str]) -> Pod {
    Pod {
        spec: Some(PodSpec {
            restart_policy: Some(policy.into()),
            containers: containers.iter().map(|name| spec(name)).collect(),
            ..PodSpec::default()
        }),
        ..Pod::default()
    }
}

fn with_init(mut pod: Pod, init: &[(&str, bool)]) -> Pod {
    let containers = init
        .iter()
        .map(|(name, sidecar)| ContainerSpec { restart_policy: sidecar.then(|| "Always".into()), ..spec(name) });
    pod.spec.as_mut().expect("made with a spec").init_containers = Some(containers.collect());
    pod
}

/// A runtime described step by step.
#[derive(Default)]
struct Scene(PodRuntime, Standings, Resize, PostStarts, NoRestartsOfAll, BTreeSet<String>);

/// Whether rules may not restart all containers.
type NoRestartsOfAll = bool;

impl Scene {
    fn sandbox(mut self, attempt: u32, state: SandboxState) -> Self {
        // A runtime tells the address of a sandbox until that is stopped.
        let address = (state == SandboxState::Ready).then(|| "10.0.0.1".parse().expect("a literal address"));
        self.0.sandboxes.push(Sandbox {
            ips: address.into_iter().collect(),
            network_mode: Some(NamespaceMode::Pod),
            ..cri::testing::sandbox(&format!("s{attempt}"), attempt, state)
        });
        self
    }

    /// One that died by itself: its network is still there.
    fn dead_sandbox(self, attempt: u32) -> Self {
        let mut scene = self.sandbox(attempt, SandboxState::Ready);
        scene.0.sandboxes.last_mut().expect("just described").state = SandboxState::NotReady;
        scene
    }

    fn container(mut self, name: &str, sandbox: u32, attempt: u32, state: ContainerState) -> Self {
        let hash = pod::container_hash(&spec(name));
        self.0.containers.push(Container {
            id: ContainerId::new(format!("{name}{attempt}")),
            sandbox_id: SandboxId::new(format!("s{sandbox}")),
            created_at: noon() - SignedDuration::from_secs(60),
            annotations: BTreeMap::from([(annotations::CONTAINER_HASH.to_owned(), hash)]),
            ..cri::testing::container(name, attempt, state)
        });
        self
    }

    fn running(self, name: &str, sandbox: u32, attempt: u32) -> Self {
        self.container(name, sandbox, attempt, ContainerState::Running { started_at: noon() })
    }

    fn exited(self, name: &str, sandbox: u32, attempt: u32, code: i32) -> Self {
        self.ended(name, sandbox, attempt, code, 1, 0)
    }

    /// Ended `ago` seconds before noon, after `lasted` seconds.
    fn ended(self, name: &str, sandbox: u32, attempt: u32, code: i32, lasted: i64, ago: i64) -> Self {
        let finished = noon() - SignedDuration::from_secs(ago);
        let exit = Exit {
            started_at: Some(finished - SignedDuration::from_secs(lasted)),
            finished_at: Some(finished),
            exit_code: code,
            reason: String::new(),
            message: String::new(),
        };
        self.container(name, sandbox, attempt, ContainerState::Exited(exit))
    }

    /// The newest described container carries this back-off.
    fn carrying(mut self, seconds: u64) -> Self {
        let newest = self.0.containers.last_mut().expect("a container was described");
        newest.annotations.insert(BACKOFF_ANNOTATION.to_owned(), seconds.to_string());
        self
    }

    /// All described containers carry this back-off for a restart of all.
    fn all_carrying(mut self, seconds: u64) -> Self {
        for container in &mut self.0.containers {
            container.annotations.insert(RESTART_ALL_ANNOTATION.to_owned(), seconds.to_string());
        }
        self
    }

    /// Rules may not restart all containers.
    fn without_restarts_of_all(mut self) -> Self {
        self.4 = true;
        self
    }

    /// One that is over, of which nothing is left.
    fn lost(mut self, name: &str) -> Self {
        self.5.insert(name.to_owned());
        self
    }

    /// The newest described container has not got over its postStart hook.
    fn hooked(mut self, post_start: PostStart) -> Self {
        let newest = self.0.containers.last().expect("a container was described");
        self.3.insert(newest.id.clone(), post_start);
        self
    }

    /// A probe has given the newest described container up.
    fn given_up(mut self, probe: ProbeKind) -> Self {
        let newest = self.0.containers.last().expect("a container was described");
        self.1.insert(newest.id.clone(), Standing { failed: Some(probe), ..Standing::default() });
        self
    }

    /// The startup probe of the newest described container has said so much.
    fn started(mut self, started: bool) -> Self {
        let newest = self.0.containers.last().expect("a container was described");
        self.1.insert(newest.id.clone(), Standing { started: Some(started), ..Standing::default() });
        self
    }

    /// The newest described container was made with other resources.
    fn outgrown(mut self) -> Self {
        let newest = self.0.containers.last().expect("a container was described");
        self.2.outgrown.insert(newest.id.clone());
        self
    }

    /// The newest described container was made from another image.
    fn outdated(mut self) -> Self {
        let newest = self.0.containers.last_mut().expect("a container was described");
        newest.annotations.insert(annotations::CONTAINER_HASH.to_owned(), "0".into());
        self
    }
}

fn ready() -> Scene {
    Scene::default().sandbox(0, SandboxState::Ready)
}

fn plan_of(pod: &Pod, scene: Scene, prepared: bool, network_ready: bool) -> Plan {
    plan_seen_for(Duration::ZERO, pod, scene, prepared, network_ready)
}

/// The plan of a worker that saw all exits so long ago.
fn plan_seen_for(seen: Duration, pod: &Pod, scene: Scene, prepared: bool, network_ready: bool) -> Plan {
    let Scene(runtime, standings, resize, post_starts, no_restarts_of_all, lost) = scene;
    let runtime = runtime.sorted();
    let now = Instant::now() + seen;
    let exits_seen = runtime.containers.iter().map(|container| (container.id.clone(), now - seen)).collect();
    let dead = DeadContainers::new(DeadLimits::default());
    let condemned = dead.look(&PodUid::new("u"), &runtime, false, noon(), &Wakes::default()).containers;
    plan::sync(&Snapshot {
        pod,
        runtime: &runtime,
        prepared,
        restarts: Restarts { pod, all_may: !no_restarts_of_all },
        lost: &lost,
        network_ready,
        backoff: &LIMITS,
        exits_seen: &exits_seen,
        restart_all_wait: Duration::ZERO,
        standings: &standings,
        post_starts: &post_starts,
        condemned: &condemned,
        stopped: &BTreeSet::new(),
        resize: &resize,
        now,
        wall: noon(),
    })
}

#[track_caller]
fn check(pod: Pod, scene: Scene, expected: &[&str]) {
    let plan = plan_of(&pod, scene, true, true);
    let text = plan.to_string();
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_new_pod_gets_its_surroundings_and_its_sandbox_at_once() {
    let plan = plan_of(&pod("Always", &["a"]), Scene::default(), false, true);
    assert_eq!(plan.to_string(), "prepare directories, cgroup and volumes\ncreate sandbox 0\n");
}

#[test]
fn without_network_only_host_network_pods_start() {
    let mut host = pod("Always", &["a"]);
    let plan = plan_of(&host, Scene::default(), true, false);
    assert_eq!(plan.to_string(), "wait for the network\n");
    host.spec.as_mut().expect("made with a spec").host_network = Some(true);
    let plan = plan_of(&host, Scene::default(), true, false);
    assert_eq!(plan.to_string(), "create sandbox 0\n");
}

#[test]
fn an_adopted_pod_is_prepared_before_anything_else() {
    let plan = plan_of(&pod("Always", &["a"]), ready().exited("a", 0, 0, 1), false, true);
    assert_eq!(plan.to_string(), "prepare directories, cgroup and volumes\n");
}

#[test]
fn all_containers_of_a_fresh_sandbox_start() {
    check(pod("Always", &["a", "b"]), ready(), &["start a", "start b"]);
}

#[test]
fn what_runs_is_left_alone() {
    check(pod("Always", &["a", "b"]), ready().running("a", 0, 0).running("b", 0, 3), &[]);
}

#[test]
fn restart_policies() {
    let both = || ready().exited("a", 0, 0, 0).exited("b", 0, 0, 1);
    check(pod("Always", &["a", "b"]), both(), &["start a again, attempt 1", "start b again, attempt 1"]);
    check(pod("OnFailure", &["a", "b"]), both(), &["start b again, attempt 1"]);
    check(pod("Never", &["a", "b"]), both(), &["done"]);
    check(pod("OnFailure", &["a"]), ready().exited("a", 0, 0, 0), &["done"]);
}

#[test]
fn a_pod_that_never_restarts_still_starts_what_has_not_run() {
    check(pod("Never", &["a", "b"]), ready().exited("a", 0, 0, 0), &["start b"]);
}

#[test]
fn what_is_over_stays_so_although_the_runtime_lost_it() {
    let never = || pod("Never", &["a", "b"]);
    for scene in [ready(), Scene::default()] {
        check(never(), scene.lost("a").lost("b"), &["done"]);
    }
    check(never(), ready().lost("a").exited("b", 0, 0, 0), &["done"]);
    check(never(), ready().lost("a").running("b", 0, 0), &[]);
    check(never(), ready().lost("a"), &["start b"]);
    // With an init container that failed for good the pod has.
    let initialising = || with_init(pod("Never", &["a"]), &[("i", false)]);
    for scene in [ready(), Scene::default()] {
        check(initialising(), scene.lost("i"), &["done"]);
    }
    let mut debugged = pod("Always", &["a"]);
    let ephemeral = crate::pod::testing::yaml("[{name: e, image: 'img:1'}]");
    debugged.spec.as_mut().expect("made with a spec").ephemeral_containers = Some(ephemeral);
    check(debugged, ready().lost("e").running("a", 0, 0), &[]);
}

#[test]
fn created_but_never_started_is_finished() {
    check(pod("Always", &["a"]), ready().container("a", 0, 0, ContainerState::Created), &["start a, already created"]);
    check(
        pod("Always", &["a"]),
        ready().container("a", 0, 0, ContainerState::Created).outdated(),
        &["remove a dead a", "start a again, attempt 1"],
    );
}

#[test]
fn an_unknown_state_is_stopped_first() {
    check(
        pod("Always", &["a"]),
        ready().container("a", 0, 0, ContainerState::Unknown),
        &["stop a because its state is unknown"],
    );
}

#[test]
fn a_changed_image_replaces_the_container_whatever_the_policy() {
    for policy in ["Always", "OnFailure", "Never"] {
        check(
            pod(policy, &["a"]),
            ready().running("a", 0, 0).outdated(),
            &["stop a because its definition changed", "start a again, attempt 1"],
        );
    }
}

#[test]
fn the_first_restart_is_immediate_and_the_next_wait() {
    // Instance 0 carries nothing; each later one carries the wait that follows it.
    check(pod("Always", &["a"]), ready().exited("a", 0, 0, 1), &["start a again, attempt 1"]);
    check(pod("Always", &["a"]), ready().exited("a", 0, 1, 1).carrying(10), &["hold a for its back-off of 10s"]);
    check(pod("Always", &["a"]), ready().ended("a", 0, 1, 1, 1, 9).carrying(10), &["hold a for its back-off of 10s"]);
    check(pod("Always", &["a"]), ready().ended("a", 0, 1, 1, 1, 10).carrying(10), &["start a again, attempt 2"]);
    check(
        pod("Always", &["a"]),
        ready().ended("a", 0, 9, 1, 1, 299).carrying(300),
        &["hold a for its back-off of 5m0s"],
    );
}

#[test]
fn the_back_off_series_doubles_up_to_its_cap() {
    let mut carried = None;
    let mut series = Vec::new();
    for _ in 0..8 {
        let mut scene = ready().ended("a", 0, 1, 1, 1, 1000);
        if let Some(seconds) = carried {
            scene = scene.carrying(seconds);
        }
        let plan = plan_of(&pod("Always", &["a"]), scene, true, true);
        let [plan::Action::StartContainer { waits, .. }] = plan.actions.as_slice() else { panic!("{plan}") };
        series.push(waits.crash.as_secs());
        carried = Some(waits.crash.as_secs());
    }
    assert_eq!(series, [10, 20, 40, 80, 160, 300, 300, 300]);
}

#[test]
fn a_container_that_lasted_long_enough_starts_the_series_afresh() {
    check(pod("Always", &["a"]), ready().ended("a", 0, 5, 1, 601, 0).carrying(300), &["start a again, attempt 6"]);
    check(
        pod("Always", &["a"]),
        ready().ended("a", 0, 5, 1, 600, 0).carrying(300),
        &["hold a for its back-off of 5m0s"],
    );
}

#[test]
fn a_wall_clock_that_jumped_back_cannot_stretch_a_back_off() {
    let plan = plan_of(&pod("Always", &["a"]), ready().ended("a", 0, 1, 1, 1, -86_400).carrying(10), true, true);
    let wait = plan.look_again().expect("the container is held") - Instant::now();
    assert!(wait <= Duration::from_secs(10), "waits {wait:?}");
    let waited = Duration::from_secs(10);
    let plan =
        plan_seen_for(waited, &pod("Always", &["a"]), ready().ended("a", 0, 1, 1, 1, -86_400).carrying(10), true, true);
    assert_eq!(plan.to_string(), "start a again, attempt 2\n");
}

#[test]
fn a_dead_sandbox_is_replaced_after_everything_in_it_has_ended() {
    let dead = || Scene::default().sandbox(0, SandboxState::NotReady);
    check(pod("Always", &["a"]), dead().running("a", 0, 0), &["stop a because its sandbox is replaced"]);
    check(pod("Always", &["a"]), dead().exited("a", 0, 0, 137), &["create sandbox 1"]);
    check(pod("Never", &["a"]), dead().exited("a", 0, 0, 137), &["done"]);
    check(pod("OnFailure", &["a", "b"]), dead().exited("a", 0, 0, 0).exited("b", 0, 0, 0), &["done"]);
    check(pod("OnFailure", &["a", "b"]), dead().exited("a", 0, 0, 0).exited("b", 0, 0, 1), &["create sandbox 1"]);
}

#[test]
fn in_a_new_sandbox_attempts_go_on_and_successes_stay() {
    let replaced = || Scene::default().sandbox(0, SandboxState::NotReady).sandbox(1, SandboxState::Ready);
    check(pod("Always", &["a"]), replaced().exited("a", 0, 4, 137), &["start a again, attempt 5"]);
    check(
        pod("OnFailure", &["a", "b"]),
        replaced().exited("a", 0, 0, 0).exited("b", 0, 0, 1),
        &["start b again, attempt 1"],
    );
}

#[test]
fn two_ready_sandboxes_give_way_to_a_third() {
    let rivals = || ready().sandbox(1, SandboxState::Ready);
    check(pod("Always", &["a"]), rivals().running("a", 0, 0), &["stop a because its sandbox is replaced"]);
    check(pod("Always", &["a"]), rivals(), &["stop sandbox", "stop sandbox"]);
}

#[test]
fn a_sandbox_without_address_or_in_the_wrong_network_is_replaced() {
    let mut scene = ready();
    scene.0.sandboxes[0].ips.clear();
    check(pod("Always", &["a"]), scene, &["stop sandbox"]);
    let mut host = pod("Always", &["a"]);
    host.spec.as_mut().expect("made with a spec").host_network = Some(true);
    check(host, ready(), &["stop sandbox"]);
}

#[test]
fn only_the_newest_dead_instance_is_kept() {
    check(
        pod("Always", &["a"]),
        ready().running("a", 0, 3).exited("a", 0, 2, 1).exited("a", 0, 1, 1).exited("a", 0, 0, 1),
        &["remove a dead a", "remove a dead a"],
    );
}

#[test]
fn a_sandbox_that_died_is_stopped_before_another_is_made() {
    let died = || Scene::default().dead_sandbox(0).exited("a", 0, 0, 137);
    check(pod("Always", &["a"]), died(), &["stop sandbox"]);
    let stopped = || Scene::default().sandbox(0, SandboxState::NotReady).exited("a", 0, 0, 137);
    check(pod("Always", &["a"]), stopped(), &["create sandbox 1"]);
    let replaced = Scene::default().dead_sandbox(0).sandbox(1, SandboxState::Ready).running("a", 1, 1);
    check(pod("Always", &["a"]), replaced, &["stop sandbox"]);

    let runtime = died().0.sorted();
    assert_eq!(plan::stop_pod(&Pod::default(), &runtime, &BTreeSet::new()).to_string(), "stop sandbox\n");
    // Some runtimes go on telling its address.
    let done = BTreeSet::from([runtime.sandboxes[0].id.clone()]);
    assert_eq!(plan::stop_pod(&Pod::default(), &runtime, &done).to_string(), "done\n");
    assert_eq!(plan::remove_pod(&Pod::default(), &runtime, &done).to_string(), "remove a dead a\n");
}

#[test]
fn dead_sandboxes_go_once_nothing_is_in_them() {
    let replaced = || Scene::default().sandbox(0, SandboxState::NotReady).sandbox(1, SandboxState::Ready);
    check(pod("Always", &["a"]), replaced().running("a", 1, 1).exited("a", 0, 0, 1), &[]);
    check(pod("Always", &["a"]), replaced().running("a", 1, 1), &["remove sandbox"]);
}

#[test]
fn init_containers_run_one_after_another_and_then_the_rest() {
    let pod = || with_init(pod("Always", &["a"]), &[("i", false), ("j", false)]);
    check(pod(), ready(), &["start i"]);
    check(pod(), ready().running("i", 0, 0), &[]);
    check(pod(), ready().exited("i", 0, 0, 0), &["start j"]);
    check(pod(), ready().exited("i", 0, 0, 1), &["start i again, attempt 1"]);
    check(pod(), ready().exited("i", 0, 0, 0).exited("j", 0, 0, 0), &["start a"]);
    check(pod(), ready().exited("i", 0, 0, 0).exited("j", 0, 0, 0).running("a", 0, 0), &[]);
}

#[test]
fn an_init_container_that_lost_a_process_for_want_of_memory_has_not_done_its_work() {
    let killed = || {
        let mut scene = ready().exited("i", 0, 0, 0);
        let ContainerState::Exited(exit) = &mut scene.0.containers[0].state else { panic!("just described as ended") };
        exit.reason = "OOMKilled".to_owned();
        scene
    };
    check(with_init(pod("Always", &["a"]), &[("i", false)]), killed(), &["start i again, attempt 1"]);
    check(with_init(pod("OnFailure", &["a"]), &[("i", false)]), killed(), &["done"]);
    check(with_init(pod("Never", &["a"]), &[("i", false)]), killed(), &["done"]);
}

#[test]
fn a_container_that_was_made_late_does_not_prove_that_the_init_containers_ran() {
    let late = || ready().container("a", 0, 0, ContainerState::Created);
    check(with_init(pod("Always", &["a"]), &[("i", false)]), late(), &["start i"]);
    check(with_init(pod("Always", &["a"]), &[("i", false)]), late().running("i", 0, 0), &[]);
    let done = late().exited("i", 0, 0, 0);
    check(with_init(pod("Always", &["a"]), &[("i", false)]), done, &["start a, already created"]);
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    check(with_init(pod("Never", &["a"]), &[("i", false)]), ready().exited("i", 0, 0, 1), &["done"]);
}

#[test]
fn sidecars_start_in_order_and_are_kept_running() {
    let pod = || with_init(pod("Never", &["a"]), &[("s", true), ("i", false)]);
    check(pod(), ready(), &["start s"]);
    check(pod(), ready().running("s", 0, 0), &["start i"]);
    check(pod(), ready().running("s", 0, 0).exited("i", 0, 0, 0), &["start a"]);
    check(pod(), ready().exited("s", 0, 0, 0).exited("i", 0, 0, 0).running("a", 0, 0), &["start s again, attempt 1"]);
    check(pod(), ready().running("s", 0, 0).exited("i", 0, 0, 0).exited("a", 0, 0, 0), &["done"]);
}

#[test]
fn what_has_made_way_once_holds_up_nobody_any_more() {
    let pod = || with_init(pod("Always", &["a"]), &[("s", true), ("i", false), ("t", true)]);
    // It crashes, but the ones after it have begun.
    let crashed = || ready().exited("s", 0, 0, 1);
    check(pod(), crashed().exited("i", 0, 0, 1), &["start s again, attempt 1", "start i again, attempt 1"]);
    check(pod(), crashed().exited("i", 0, 0, 0), &["start s again, attempt 1", "start t"]);
    check(pod(), crashed().running("t", 0, 0), &["start s again, attempt 1", "start a"]);
    check(pod(), crashed().running("t", 0, 0).started(false), &["start s again, attempt 1"]);
    // The runtime has lost it, or somebody removed it.
    check(pod(), ready().running("s", 0, 0).running("t", 0, 0), &["start a"]);
    check(pod(), ready().running("t", 0, 0), &["start s", "start a"]);
    check(pod(), ready().running("i", 0, 0), &["start s"]);
}

#[test]
fn what_follows_a_sidecar_waits_for_its_startup_probe() {
    let pod = || with_init(pod("Always", &["a"]), &[("s", true), ("i", false), ("t", true)]);
    check(pod(), ready().running("s", 0, 0).started(false), &[]);
    check(pod(), ready().running("s", 0, 0).started(true), &["start i"]);
    let late = || ready().running("s", 0, 0).exited("i", 0, 0, 0).running("t", 0, 0);
    check(pod(), late().started(false), &[]);
    check(pod(), late().started(true), &["start a"]);
    // Whoever runs waits for nobody.
    let restarted = ready().running("s", 0, 1).started(false).exited("i", 0, 0, 0).running("a", 0, 0);
    check(pod(), restarted, &["start t"]);
}

#[test]
fn a_stopping_pod_stops_containers_before_its_sandbox() {
    let runtime = ready().running("a", 0, 0).exited("b", 0, 0, 0).0.sorted();
    assert_eq!(
        plan::stop_pod(&Pod::default(), &runtime, &BTreeSet::new()).to_string(),
        "stop a because the pod stops\n"
    );
    let runtime = ready().exited("a", 0, 0, 0).0.sorted();
    assert_eq!(plan::stop_pod(&Pod::default(), &runtime, &BTreeSet::new()).to_string(), "stop sandbox\n");
    let runtime = Scene::default().sandbox(0, SandboxState::NotReady).exited("a", 0, 0, 0).0.sorted();
    assert_eq!(plan::stop_pod(&Pod::default(), &runtime, &BTreeSet::new()).to_string(), "done\n");
}

#[test]
fn an_unwanted_pod_loses_its_containers_before_its_sandbox() {
    let runtime = Scene::default().sandbox(0, SandboxState::NotReady).exited("a", 0, 0, 0).0.sorted();
    let remove = |runtime: &PodRuntime| plan::remove_pod(&Pod::default(), runtime, &BTreeSet::new()).to_string();
    assert_eq!(remove(&runtime), "remove a dead a\n");
    let runtime = Scene::default().sandbox(0, SandboxState::NotReady).0.sorted();
    assert_eq!(remove(&runtime), "remove sandbox\n");
    assert_eq!(remove(&PodRuntime::default()), "done\n");
}

#[test]
fn what_comes_to_life_after_the_end_is_stopped() {
    let check = |scene: Scene, kept: &str, removed: &str| {
        let runtime = scene.0.sorted();
        let condemned = runtime.containers.iter().map(|container| container.id.clone()).collect();
        assert_eq!(plan::keep_ended_pod(&Pod::default(), &runtime, &condemned, &BTreeSet::new()).to_string(), kept);
        assert_eq!(plan::remove_pod(&Pod::default(), &runtime, &BTreeSet::new()).to_string(), removed);
    };
    let late = "stop a because the pod stops\n";
    check(ready().running("a", 0, 1).exited("a", 0, 0, 0), late, late);
    check(ready().exited("a", 0, 0, 0), "stop sandbox\n", "stop sandbox\n");
    let ended = Scene::default().sandbox(0, SandboxState::NotReady).exited("a", 0, 0, 0);
    check(ended, "remove a dead a\n", "remove a dead a\n");
}

#[test]
fn a_container_that_a_probe_gave_up_is_stopped() {
    let scene = || ready().running("a", 0, 0);
    check(pod("Always", &["a"]), scene(), &[]);
    let stopped = ["stop a because its liveness probe failed"];
    check(pod("Always", &["a"]), scene().given_up(ProbeKind::Liveness), &stopped);
    check(pod("Never", &["a"]), scene().given_up(ProbeKind::Liveness), &stopped);
    let stopped = ["stop a because its startup probe failed"];
    check(pod("OnFailure", &["a"]), scene().given_up(ProbeKind::Startup), &stopped);
}

#[test]
fn what_was_killed_for_a_probe_restarts_unless_the_policy_is_never() {
    let scene = || ready().exited("a", 0, 0, 0).given_up(ProbeKind::Liveness);
    check(pod("Always", &["a"]), scene(), &["start a again, attempt 1"]);
    // It ended well of its SIGTERM, and still was not done.
    check(pod("OnFailure", &["a"]), scene(), &["start a again, attempt 1"]);
    check(pod("OnFailure", &["a"]), ready().exited("a", 0, 0, 0), &["done"]);
    check(pod("Never", &["a"]), scene(), &["done"]);
}

#[test]
fn a_container_has_the_last_word_on_its_restarts() {
    let own = |container: &str| -> Pod {
        let spec = format!("{{restartPolicy: Never, containers: [{{name: b, image: 'img:1'}}, {container}]}}");
        Pod { spec: Some(crate::pod::testing::yaml(&spec)), ..Pod::default() }
    };
    let scene = |code| ready().exited("a", 0, 0, code).exited("b", 0, 0, 0);
    let again: &[&str] = &["start a again, attempt 1"];
    check(own("{name: a, image: 'img:1', restartPolicy: Always}"), scene(0), again);
    check(own("{name: a, image: 'img:1', restartPolicy: OnFailure}"), scene(0), &["done"]);
    check(own("{name: a, image: 'img:1', restartPolicy: OnFailure}"), scene(1), again);
    let rules = "restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]";
    let ruled = || own(&format!("{{name: a, image: 'img:1', restartPolicy: Never, {rules}}}"));
    check(ruled(), scene(42), again);
    check(ruled(), scene(1), &["done"]);
    // Where something may start again, a lost sandbox is replaced.
    let dead = || Scene::default().sandbox(0, SandboxState::NotReady).exited("a", 0, 0, 42).exited("b", 0, 0, 0);
    check(ruled(), dead(), &["create sandbox 1"]);
}

#[test]
fn an_init_container_with_a_policy_of_its_own_may_fail_or_try_again() {
    let own = |pod: &str, container: &str| -> Pod {
        let init = format!("{{name: i, image: 'img:1', restartPolicy: {container}}}");
        let spec =
            format!("{{restartPolicy: {pod}, initContainers: [{init}], containers: [{{name: a, image: 'img:1'}}]}}");
        Pod { spec: Some(crate::pod::testing::yaml(&spec)), ..Pod::default() }
    };
    check(own("Always", "Never"), ready().exited("i", 0, 0, 1), &["done"]);
    check(own("Never", "OnFailure"), ready().exited("i", 0, 0, 1), &["start i again, attempt 1"]);
}

#[test]
fn ephemeral_containers_start_once_and_wait_for_nobody() {
    let debugged = || {
        let mut pod = with_init(pod("Always", &["a"]), &[("i", false)]);
        let ephemeral = crate::pod::testing::yaml("[{name: e, image: 'img:1'}]");
        pod.spec.as_mut().expect("made with a spec").ephemeral_containers = Some(ephemeral);
        pod
    };
    check(debugged(), ready().running("i", 0, 0), &["start e"]);
    check(debugged(), ready().running("i", 0, 0).running("e", 0, 0), &[]);
    check(debugged(), ready().running("i", 0, 0).exited("e", 0, 0, 1), &[]);
    let created = ready().running("i", 0, 0).container("e", 0, 0, ContainerState::Created);
    check(debugged(), created, &["start e, already created"]);
    let replaced = Scene::default().sandbox(0, SandboxState::NotReady).sandbox(1, SandboxState::Ready);
    check(debugged(), replaced.running("i", 1, 1).exited("e", 0, 0, 137), &[]);
}

#[test]
fn sidecars_stop_after_all_others_and_the_last_one_first() {
    let pod = with_init(pod("Always", &["a", "b"]), &[("s", true), ("i", false), ("t", true)]);
    let stops = |scene: Scene| plan::stop_pod(&pod, &scene.0.sorted(), &BTreeSet::new()).to_string();
    let all = ready().running("s", 0, 0).running("t", 0, 0).running("a", 0, 0).running("b", 0, 0);
    assert_eq!(stops(all), "stop b because the pod stops\nstop a because the pod stops\n");
    assert_eq!(
        stops(ready().running("s", 0, 0).running("t", 0, 0).running("b", 0, 0)),
        "stop b because the pod stops\n"
    );
    let sidecars = ready().running("s", 0, 0).running("t", 0, 0).exited("a", 0, 0, 0);
    assert_eq!(stops(sidecars), "stop t because the pod stops\n");
    assert_eq!(stops(ready().running("s", 0, 0).exited("t", 0, 0, 0)), "stop s because the pod stops\n");
}

#[test]
fn a_container_that_cannot_take_its_new_resources_is_replaced_at_once() {
    check(
        pod("Always", &["a", "b"]),
        ready().running("b", 0, 0).running("a", 0, 0).outgrown(),
        &["stop a because it gets other resources", "start a again, attempt 1"],
    );
    let crashed = || ready().exited("a", 0, 1, 137).carrying(300);
    check(pod("Always", &["a"]), crashed(), &["hold a for its back-off of 5m0s"]);
    check(pod("Always", &["a"]), crashed().outgrown(), &["start a again, attempt 2"]);
    let created = ready().container("a", 0, 0, ContainerState::Created).outgrown();
    check(pod("Always", &["a"]), created, &["remove a dead a", "start a again, attempt 1"]);
    check(pod("Never", &["a"]), ready().exited("a", 0, 0, 1).outgrown(), &["done"]);
}

#[test]
fn resources_change_before_containers_start() {
    let mut scene = ready().running("a", 0, 0).exited("b", 0, 0, 1);
    scene.2.updates.push(Update {
        name: "a".into(),
        id: ContainerId::new("a0"),
        kind: UpdateKind::LessCpu,
        resources: Default::default(),
    });
    check(pod("Always", &["a", "b"]), scene, &["resize: less CPU for a", "start b again, attempt 1"]);
}

#[test]
fn the_wait_of_sidecars_counts_where_the_sandbox_is_replaced_too() {
    let pod = || with_init(pod("Always", &["a"]), &[("s", true)]);
    let dead = || Scene::default().sandbox(0, SandboxState::NotReady);
    // First the one and then the other: all of it is one end, and under one grace.
    for (scene, stops) in [(dead().running("s", 0, 0).running("a", 0, 0), "a"), (dead().running("s", 0, 0), "s")] {
        let plan = plan_of(&pod(), scene, true, true);
        assert_eq!(plan.to_string(), format!("stop {stops} because its sandbox is replaced\n"));
        assert!(plan.ends_sandbox());
    }
    let changed = plan_of(&pod(), ready().running("s", 0, 0).running("a", 0, 0).outdated(), true, true);
    assert!(!changed.ends_sandbox(), "{changed}");
}
