//! Single actions against a runtime that refuses them: what is told of it, and what is tried again.

use std::sync::Arc;

use super::super::cgroups::Cgroups;
use super::super::launch::CgroupConfig;
use super::super::plan::{Action, Kind, StopWhy, Waits};
use super::super::report::Reporter;
use super::super::testing::Bed;
use super::super::worker::Stage;
use super::*;
use crate::config::{FeatureGates, Gate};
use crate::kube::fake::FakeCluster;
use crate::kube::{Cluster, ObjectState};
use crate::objects::Objects;
use crate::pod::Source;
use crate::probes::Told;
use crate::status;

const ONE: &str = "{containers: [{name: c, image: own, imagePullPolicy: IfNotPresent}]}";

fn start(name: &str, kind: Kind) -> Action {
    Action::StartContainer { name: name.into(), kind, attempt: Some(0), waits: Waits::default() }
}

fn stop(name: &str) -> Action {
    Action::StopContainer { name: name.into(), id: ContainerId::new(format!("{name}-0")), why: StopWhy::PodStops }
}

#[tokio::test(start_paused = true)]
async fn of_a_sandbox_that_fails_the_runtimes_own_words_are_told() {
    let bed = Bed::new(ONE);
    bed.runtime.refuse("RunPodSandbox", "no address is left");
    let failure = bed.carry_out(Action::CreateSandbox { attempt: 0, replaces: false }).await.expect_err("refused");
    assert_eq!(failure.message, "no address is left", "without the call's name");
    assert_eq!(bed.told(), ["FailedCreatePodSandBox: Failed to create pod sandbox: no address is left"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_pod_cannot_have_on_the_node_is_told_until_it_has_it() {
    let not_made = |place: &str| format!("failed to make directory {place}: Not a directory (os error 20)");
    // What is there in place of a directory, what the pod is to have in it, and what is told.
    let cases = [
        ("root/pods", "root/pods/u", ("Failed", "error making pod data directories: ")),
        (
            "pods",
            "pods/shop_web-0_u",
            ("FailedCreatePodSandBox", "Failed to create pod sandbox: cannot make the pod's log directory: "),
        ),
    ];
    for (place, wanted, (reason, message)) in cases {
        let mut bed = Bed::new(ONE);
        let cgroups = CgroupConfig { per_qos: false, ..bed.context.config.launch.cgroups.clone() };
        bed.context.cgroups = Cgroups::new(bed.context.host.clone(), cgroups);
        let place = bed.dir.path().join(place);
        std::fs::create_dir_all(place.parent().expect("it is in the scratch directory")).expect("a scratch directory");
        std::fs::write(&place, "").expect("a scratch directory");
        let wanted = bed.dir.path().join(wanted);
        let message = format!("{message}{}", not_made(&wanted.display().to_string()));
        let failure = bed.carry_out(Action::Prepare).await.expect_err("there is a file");
        assert_eq!(failure.to_string(), format!("{reason}: {message}"));
        assert_eq!(bed.told(), [failure.to_string()]);
        std::fs::remove_file(&place).expect("it was there");
        bed.carry_out(Action::Prepare).await.expect("it is prepared");
        assert!(wanted.is_dir());
        assert_eq!(bed.told().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_its_cgroup_is_not_prepared() {
    let bed = Bed::new(ONE);
    let failure = bed.carry_out(Action::Prepare).await.expect_err("this machine has no cgroups");
    assert_eq!(failure.reason, "FailedCreatePodContainer");
    let cgroups = bed.dir.path().join("cgroup");
    let why = format!("cgroup controller \"cpu\" is not available below {}", cgroups.display());
    assert_eq!(failure.message, format!("unable to ensure pod container exists: {why}"));
    assert_eq!(bed.told(), [failure.to_string()]);
    assert!(!bed.dir.path().join("root/pods").exists(), "nothing else was done");
}

#[tokio::test(start_paused = true)]
async fn pull_secrets_that_are_missing_are_named_and_hold_up_nobody() {
    let told = |names: &str| {
        format!(
            "FailedToRetrieveImagePullSecret: Unable to retrieve some image pull secrets ({names}); \
             attempting to pull the image may not succeed."
        )
    };
    let cases = [
        ("[{name: gone}]", Some("gone")),
        ("[{name: gone}, {name: held}, {name: lost}]", Some("gone, lost")),
        ("[{name: held}]", None),
        // The API server takes these.
        ("[{}, {name: ''}]", None),
        ("[{}, {name: gone}]", Some("gone")),
    ];
    for (references, missing) in cases {
        let container = "{name: c, image: own, imagePullPolicy: IfNotPresent}";
        let mut bed = Bed::new(&format!("{{containers: [{container}], imagePullSecrets: {references}}}"));
        let cluster = FakeCluster::default();
        let edge: Arc<dyn Cluster> = Arc::new(cluster.clone());
        bed.context.objects = Objects::new(Some(edge), Arc::new(|_| {}));
        bed.context.objects.register(&bed.wish.pod);
        for name in ["gone", "held", "lost"].into_iter().filter(|name| references.contains(name)) {
            let state = match name {
                "held" => ObjectState::Present(Box::default()),
                _ => ObjectState::Absent,
            };
            cluster.send_secret("shop", name, state);
        }
        bed.carry_out(start("c", Kind::Regular)).await.expect("the image is there");
        let events = bed.told();
        let events: Vec<_> = events.iter().filter(|event| event.contains("Secret")).collect();
        assert_eq!(events, Vec::from_iter(missing.map(told).as_ref()), "{references}");
    }
}

#[tokio::test(start_paused = true)]
async fn another_sandbox_is_told_of_and_a_first_one_is_not() {
    let changed = "SandboxChanged: Pod sandbox changed, it will be killed and re-created.";
    let cases = [
        (Scene::default(), None),
        (Scene::default().sandbox(0, SandboxState::NotReady), Some(changed)),
        (Scene::default().sandbox(0, SandboxState::NotReady).exited("a", 0, 0, 1), Some(changed)),
    ];
    for (scene, told) in cases {
        let plan = plan_of(&pod("Always", &["a"]), scene, true, true);
        let create = plan.actions.into_iter().find(|action| matches!(action, Action::CreateSandbox { .. }));
        let bed = Bed::new(ONE);
        bed.carry_out(create.expect("there is none to use")).await.expect("it is made");
        assert_eq!(bed.told(), Vec::from_iter(told));
    }
}

#[tokio::test(start_paused = true)]
async fn events_of_a_failed_start_name_the_container_so_that_they_count_as_the_same() {
    let bed = Bed::new(ONE);
    bed.runtime.refuse("StartContainer", "cannot start id-of-c: no such program");
    let failure = bed.carry_out(start("c", Kind::Regular)).await.expect_err("refused");
    assert_eq!(failure.reason, "RunContainerError");
    assert_eq!(failure.message, "cannot start id-of-c: no such program");
    let told = bed.told();
    assert_eq!(told.last().map(String::as_str), Some("Failed: Error: cannot start c: no such program"));
}

#[tokio::test(start_paused = true)]
async fn images_that_are_volumes_come_before_the_containers_own() {
    let spec = "{containers: [{name: c, image: own, imagePullPolicy: IfNotPresent, volumeMounts: [{name: v, mountPath: /v}]}], \
                volumes: [{name: v, image: {reference: mounted, pullPolicy: IfNotPresent}}, \
                {name: w, image: {reference: unused, pullPolicy: IfNotPresent}}]}";
    let bed = Bed::new(spec);
    bed.carry_out(start("c", Kind::Regular)).await.expect("it starts");
    let calls = bed.runtime.calls();
    let asked: Vec<_> = calls.iter().filter_map(|call| call.strip_prefix("ImageStatus ")).collect();
    assert_eq!(asked, ["mounted", "own"]);
}

#[tokio::test(start_paused = true)]
async fn who_debugs_a_container_that_is_not_there_is_told() {
    let spec = "{containers: [{name: c, image: own}], ephemeralContainers: \
                [{name: e, image: own, imagePullPolicy: IfNotPresent, targetContainerName: c}]}";
    let mut bed = Bed::new(spec);
    let failure = bed.carry_out(start("e", Kind::Ephemeral)).await.expect_err("there is no target");
    assert_eq!((failure.reason.as_str(), failure.message.as_str()), NO_TARGET);
    assert_eq!(bed.told().last().map(String::as_str), Some("Failed: Error: unable to find target container c"));
    // One in a sandbox that is gone is no target either.
    let elsewhere =
        Container { sandbox_id: SandboxId::new("old"), ..cri::testing::container("c", 0, cri::testing::running()) };
    bed.seen.containers = vec![elsewhere];
    assert_eq!(bed.carry_out(start("e", Kind::Ephemeral)).await.expect_err("nor here").message, NO_TARGET.1);
    bed.seen.containers = vec![cri::testing::container("c", 0, cri::testing::running())];
    bed.carry_out(start("e", Kind::Ephemeral)).await.expect("it starts");
    let created: Vec<_> = bed.runtime.calls().into_iter().filter(|call| call.starts_with("CreateContainer")).collect();
    assert_eq!(created, ["CreateContainer e in the processes of c-0"]);
}

const NO_TARGET: (&str, &str) = ("CreateContainerConfigError", "unable to find target container c");

#[tokio::test(start_paused = true)]
async fn a_stop_that_is_tried_again_runs_no_hook_again_and_has_the_rest_of_the_grace() {
    let mut bed = Bed::new(
        "{terminationGracePeriodSeconds: 30, \
         containers: [{name: c, image: own, lifecycle: {preStop: {sleep: {seconds: 10}}}}]}",
    );
    bed.seen.containers = vec![cri::testing::container("c", 0, cri::testing::running())];
    let began = Instant::now();
    bed.runtime.refuse("StopContainer", "not now");
    bed.carry_out(stop("c")).await.expect_err("refused");
    assert_eq!(began.elapsed().as_secs(), 10);
    tokio::time::sleep(Duration::from_secs(3)).await;
    bed.carry_out(stop("c")).await.expect("it stops");
    assert_eq!(began.elapsed().as_secs(), 13, "the hook is through");
    assert_eq!(bed.runtime.calls(), ["StopContainer c-0 within 20s", "StopContainer c-0 within 20s"]);
}

#[tokio::test(start_paused = true)]
async fn containers_of_a_crowded_pod_are_stopped_a_few_at_a_time_with_their_whole_grace() {
    let names: Vec<_> = (0..20).map(|number| format!("c{number}")).collect();
    let specs: Vec<_> = names.iter().map(|name| format!("{{name: {name}, image: own}}")).collect();
    let mut bed = Bed::new(&format!("{{terminationGracePeriodSeconds: 30, containers: [{}]}}", specs.join(", ")));
    let running = |name| cri::testing::container(name, 0, cri::testing::running());
    bed.seen.containers = names.iter().map(|name| running(name)).collect();
    let stops: Vec<_> = names.iter().map(|name| stop(name)).collect();
    let all = bed.carry_out_all(&stops);
    let asked = async {
        let mut asked = Vec::new();
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            asked.push(bed.runtime.calls().len());
        }
        asked
    };
    let (done, asked) = tokio::join!(all, asked);
    assert_eq!(asked, [8, 16, 20]);
    assert!(done.iter().all(|done| done.result.is_ok()));
    assert!(bed.runtime.calls().iter().all(|call| call.ends_with("within 30s")));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_stopped_is_told() {
    let bed = Bed::new(ONE);
    bed.runtime.refuse("StopPodSandbox", "the network plugin is away");
    bed.carry_out(Action::StopSandbox { id: SandboxId::new("s") }).await.expect_err("refused");
    assert_eq!(bed.told(), ["FailedKillPod: error killing pod: StopPodSandbox: the network plugin is away"]);
    bed.carry_out(Action::StopSandbox { id: SandboxId::new("s") }).await.expect("it stops");
    assert_eq!(bed.told().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_waits_for_the_network_is_told_once_each_time() {
    let bed = Bed::new(ONE);
    let mut reporter = Reporter::new(&bed.context);
    let mut publish = |waits_for_network: bool| {
        let plan = Plan { waits_for_network, ..Plan::default() };
        bed.publish(&mut reporter, Stage::Syncing, &plan);
        bed.told()
    };
    let told = "NetworkNotReady: network is not ready: network state unknown";
    assert_eq!(publish(true), [told]);
    assert_eq!(publish(true), [told], "it is known");
    assert_eq!(publish(false), [told]);
    assert_eq!(publish(true), [told, told], "and has gone again");
}

#[tokio::test(start_paused = true)]
async fn an_end_is_told_to_nobody_while_something_may_still_be_started() {
    let mut bed = Bed::new("{restartPolicy: Never, containers: [{name: c, image: own}]}");
    let mut reporter = Reporter::new(&bed.context);
    let mut publish = |bed: &Bed, stage: Stage| {
        let phase = bed.publish(&mut reporter, stage, &Plan::default());
        let told = reporter.earlier(&bed.wish.pod).and_then(|told| told.phase.clone());
        (phase, told.unwrap_or_default())
    };
    bed.seen.containers = vec![cri::testing::container("c", 0, cri::testing::running())];
    assert_eq!(publish(&bed, Stage::Syncing), (status::Phase::Running, "Running".to_owned()));
    bed.seen.containers.clear();
    assert_eq!(publish(&bed, Stage::Syncing), (status::Phase::Failed, "Running".to_owned()));
    assert_eq!(publish(&bed, Stage::Cleaning), (status::Phase::Failed, "Failed".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_life_told_of_probes_counts_unless_a_gate_says_otherwise() {
    let mut bed = Bed::new(ONE);
    bed.wish.source = Source::Api;
    let mut pod = Pod::clone(&bed.wish.pod);
    pod.status = Some(crate::pod::testing::yaml("{phase: Running}"));
    bed.wish.pod = Arc::new(pod);
    let mut reporter = Reporter::new(&bed.context);
    reporter.recall(&bed.context, &bed.wish, &bed.seen);
    assert!(matches!(reporter.told(&bed.context, &bed.wish), Told::Known(Some(_))));
    bed.context.config.launch.gates = FeatureGates::with(&[(Gate::ChangeContainerStatusOnKubeletRestart, true)]);
    assert!(matches!(reporter.told(&bed.context, &bed.wish), Told::Known(None)));
}

#[tokio::test(start_paused = true)]
async fn other_name_servers_of_the_node_count_for_the_next_sandbox() {
    let mut bed = Bed::new("{dnsPolicy: Default, containers: []}");
    let file = bed.dir.path().join("resolv.conf");
    bed.context.config.resolver = HostResolver::File(file.clone());
    let create = || bed.carry_out(Action::CreateSandbox { attempt: 0, replaces: false });
    for (text, asked) in [("nameserver 192.0.2.1", "[192.0.2.1]"), ("nameserver 192.0.2.2", "[192.0.2.2]")] {
        std::fs::write(&file, text).expect("a scratch file");
        create().await.expect("it is made");
        assert_eq!(bed.runtime.calls().pop(), Some(format!("RunPodSandbox asking {asked}")));
    }
    assert!(bed.told().is_empty());
    std::fs::remove_file(&file).expect("it was there");
    create().await.expect_err("it waits for the file");
    let missing = format!("Failed to create pod sandbox: open {}: no such file or directory", file.display());
    assert_eq!(bed.told(), [format!("FailedCreatePodSandBox: {missing}")]);
}

#[tokio::test(start_paused = true)]
async fn a_container_starts_again_while_the_node_has_no_name_servers() {
    let mut bed = Bed::new(ONE);
    bed.context.config.resolver = HostResolver::File(bed.dir.path().join("gone"));
    bed.carry_out(start("c", Kind::Regular)).await.expect("its sandbox has them");
}

#[tokio::test(start_paused = true)]
async fn a_dead_instance_that_cannot_be_removed_is_tried_again_by_itself() {
    let bed = Bed::new(ONE);
    bed.runtime.refuse("RemoveContainer", "not now");
    let removal = Action::RemoveContainer { name: "c".into(), id: ContainerId::new("c-0"), keep_log: false };
    bed.carry_out(removal).await.expect_err("refused");
}

const DEBUGGED: &str = "{containers: [{name: c, image: own, imagePullPolicy: IfNotPresent, \
     volumeMounts: [{name: other, mountPath: /other}]}], \
     ephemeralContainers: [{name: e, image: own, imagePullPolicy: IfNotPresent, \
     env: [{name: V, valueFrom: {configMapKeyRef: {name: settings, key: v}}}], \
     volumeMounts: [{name: scratch, mountPath: /scratch}]}], \
     volumes: [{name: scratch, emptyDir: {}}, {name: other, emptyDir: {}}]}";

#[tokio::test(start_paused = true)]
async fn who_debugs_a_running_pod_brings_what_the_pod_had_no_need_of() {
    let mut bed = Bed::new(DEBUGGED);
    let cluster = FakeCluster::default();
    let edge: Arc<dyn Cluster> = Arc::new(cluster.clone());
    bed.context.objects = Objects::new(Some(edge), Arc::new(|_| {}));
    // Nothing was prepared for it.
    let failure = bed.carry_out(start("e", Kind::Ephemeral)).await.expect_err("nobody has answered yet");
    assert!(failure.message.starts_with("config map shop/settings is not known yet"), "{failure}");
    let settings = crate::pod::testing::yaml("{data: {v: '1'}}");
    cluster.send_config_map("shop", "settings", ObjectState::Present(Box::new(settings)));
    tokio::time::sleep(Duration::from_millis(1)).await;
    bed.carry_out(start("e", Kind::Ephemeral)).await.expect("it starts");
    let volumes = bed.dir.path().join("root/pods/u/volumes/kubernetes.io~empty-dir");
    assert!(volumes.join("scratch").is_dir());
    assert!(!volumes.join("other").exists(), "it does not mount this one");
}

#[tokio::test(start_paused = true)]
async fn who_debugs_a_running_pod_waits_for_its_volumes_alone() {
    let bed = Bed::new(&DEBUGGED.replace("scratch, emptyDir: {}", "scratch, hostPath: {path: /nowhere, type: File}"));
    let failure = bed.carry_out(start("e", Kind::Ephemeral)).await.expect_err("there is no such file");
    assert_eq!((failure.reason.as_str(), failure.message.as_str()), ("ContainerCreating", ""));
    let told = bed.told();
    let failed = "FailedMount: MountVolume.SetUp failed for volume \"scratch\" : ";
    assert!(told.iter().any(|event| event.starts_with(failed)), "{told:?}");
    assert!(bed.runtime.calls().iter().all(|call| !call.starts_with("CreateContainer")));
    bed.carry_out(start("c", Kind::Regular)).await.expect("it mounts another");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_was_taken_for_failed_is_followed_by_its_hook() {
    let hooked = ONE.replace("name: c,", "name: c, lifecycle: {postStart: {sleep: {seconds: 5}}},");
    let mut bed = Bed::new(&hooked);
    bed.runtime.refuse("StartContainer", "no answer in time");
    bed.carry_out(start("c", Kind::Regular)).await.expect_err("nobody heard of it");
    let made = |state| Container { id: ContainerId::new("id-of-c"), ..cri::testing::container("c", 0, state) };
    let mut look = |state| {
        bed.seen.containers = vec![made(state)];
        bed.begun_hooks.retain(&bed.seen);
        let late = bed.begin_late_post_starts();
        (late, bed.begun_hooks.post_starts(&bed.seen).into_values().collect::<Vec<_>>())
    };
    assert_eq!(look(ContainerState::Created), (vec![], vec![]), "it may begin yet");
    assert_eq!(look(cri::testing::running()), (vec!["c".to_owned()], vec![PostStart::Running]));
    assert_eq!(look(cri::testing::running()), (vec![], vec![PostStart::Running]), "once");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_was_taken_for_failed_is_forgotten_with_its_instance() {
    let mut bed = Bed::new(ONE);
    bed.seen.containers = vec![cri::testing::container("c", 0, cri::testing::running())];
    for (state, is_late) in [(cri::testing::exited(0), false), (ContainerState::Created, true)] {
        bed.begun_hooks.note_unsure_start(&bed.seen.containers[0].id);
        let ended = PodRuntime { containers: vec![cri::testing::container("c", 0, state)], ..PodRuntime::default() };
        bed.begun_hooks.retain(&ended);
        assert_eq!(bed.begin_late_post_starts().len(), usize::from(is_late));
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_known_to_have_worked_runs_its_hook_once() {
    let hooked = ONE.replace("name: c,", "name: c, lifecycle: {postStart: {sleep: {seconds: 5}}},");
    let mut bed = Bed::new(&hooked);
    bed.runtime.refuse("StartContainer", "not now");
    bed.carry_out(start("c", Kind::Regular)).await.expect_err("refused");
    let id = ContainerId::new("id-of-c");
    bed.seen.containers =
        vec![Container { id: id.clone(), ..cri::testing::container("c", 0, ContainerState::Created) }];
    bed.carry_out(Action::ResumeContainer { name: "c".into(), id }).await.expect("it starts");
    bed.seen.containers[0].state = cri::testing::running();
    bed.begun_hooks.retain(&bed.seen);
    assert!(bed.begin_late_post_starts().is_empty());
    assert_eq!(bed.begun_hooks.post_starts(&bed.seen).len(), 1);
}
