//! Pods come and go at the one handle, and the files follow.

use std::fs;
use std::sync::Arc;

use futures::FutureExt;
use tempfile::TempDir;
use tokio::time::{Duration, sleep};

use super::*;
use crate::changes::Listener;
use crate::clock::Clock;
use crate::config::{CpuSet, TopologyManagerPolicy as Policy, TopologyManagerScope as Scope};
use crate::cri::{self, LinuxResources, labels};
use crate::host::{Cpu, LinuxHost, Machine, NumaNode, Roots};
use crate::pod::testing::pod_yaml;
use crate::sync::testing::FakeRuntime;

use super::affinity::Aligner;

/// Eight CPUs on one node, of which the first is reserved.
struct World {
    dir: TempDir,
    runtime: Arc<FakeRuntime>,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        World { dir, runtime: Arc::default() }
    }

    fn config(&self) -> TopologyConfig {
        let cpu = |id| Cpu { id, core: id, socket: 0, node: 0, cache: 0 };
        let machine = Machine { cpus: (0..8).map(cpu).collect(), nodes: vec![NumaNode::default()] };
        let aligner = Aligner::new(Policy::None, Scope::Container, &Default::default(), &machine);
        let reservation = cpus::Reservation::Cpus(list("0"));
        let ground = cpus::Ground::new(machine.into(), &reservation, cpus::Options::default());
        TopologyConfig {
            dir: self.dir.path().join("root"),
            aligner: Some(aligner.expect("one node")),
            cpus: Some(ground.expect("CPU 0 is there")),
            lift_quotas: true,
            all_cpus: list("0-7"),
            ..TopologyConfig::default()
        }
    }

    /// A life of the agent.
    async fn begin(&self, config: TopologyConfig) -> (Topology, Keeper) {
        let root = self.dir.path().join("root");
        let host = LinuxHost::new(Roots::machine(root), Duration::from_secs(30), Clock::system());
        begin(config, Arc::new(host), self.runtime.clone(), Clock::system()).await
    }

    fn make_dir(&self) {
        fs::create_dir(self.dir.path().join("root")).expect("it is not there yet");
    }

    fn record(&self, text: &str) {
        self.make_dir();
        fs::write(self.dir.path().join("root").join(cpus::FILE), text).expect("the directory is there");
    }

    fn file(&self) -> Option<String> {
        fs::read_to_string(self.dir.path().join("root").join(cpus::FILE)).ok()
    }

    /// A container of this pod runs on these CPUs.
    fn run(&self, uid: &str, cpus: &str, cpu_shares: i64) {
        let resources = LinuxResources { cpuset_cpus: cpus.to_owned(), cpu_shares, ..LinuxResources::default() };
        let mut container = cri::testing::container("web", 0, cri::testing::running());
        container.id = cri::ContainerId::new(uid);
        container.resources = Some(resources);
        container.labels.insert(labels::POD_UID.to_owned(), uid.to_owned());
        self.runtime.hold(container);
    }
}

fn list(text: &str) -> CpuSet {
    CpuSet::parse(text).expect(text)
}

/// Its container `web` has so many CPUs, its container `log` shares.
fn pod(cpu: u32) -> Pod {
    let of = |name: &str, cpu: &str| {
        format!("{{name: {name}, image: a, resources: {{limits: {{cpu: {cpu}, memory: 1Mi}}}}}}")
    };
    pod_yaml(&format!("spec: {{containers: [{}, {}]}}", of("web", &cpu.to_string()), of("log", "100m")))
}

fn uid(name: &str) -> PodUid {
    PodUid::new(name)
}

/// How often it was told since the last time that the pool is another one, at most once.
fn told(moves: &mut Listener) -> usize {
    let has_moved = moves.has_news();
    moves.mark_seen();
    usize::from(has_moved)
}

fn shown(topology: &Topology, name: &str) -> String {
    let places = topology.places(&uid(name));
    let of = |container| places.of(container).cpus.map_or("anywhere".to_owned(), |cpus| cpus.to_string());
    format!("{} {}", of("web"), of("log"))
}

#[tokio::test]
async fn pods_are_given_cpus_and_the_pool_is_told_of_once_a_change() {
    let world = World::new();
    let (topology, _keeper) = world.begin(world.config()).await;
    let mut moves = topology.moves();
    assert_eq!((shown(&topology, "p").as_str(), told(&mut moves)), ("0-7 0-7", 0));
    assert_eq!(topology.take(&uid("p"), &pod(2)), Ok(()));
    assert_eq!((shown(&topology, "p").as_str(), told(&mut moves)), ("1-2 0,3-7", 1));
    assert_eq!(topology.take(&uid("p"), &pod(2)), Ok(()), "again");
    assert_eq!(topology.take(&uid("shares"), &pod(0)), Ok(()));
    assert_eq!(told(&mut moves), 0, "the pool is what it was");
    assert_eq!(topology.take(&uid("q"), &pod(3)), Ok(()));
    assert_eq!((shown(&topology, "p").as_str(), told(&mut moves)), ("1-2 0,6-7", 1));
    let place = topology.places(&uid("q")).of("web");
    assert_eq!(place, Place { cpus: Some(list("3-5")), memory_nodes: None, is_exclusive: true });
    topology.release(&uid("p"));
    assert_eq!((shown(&topology, "q").as_str(), told(&mut moves)), ("3-5 0-2,6-7", 1));
    topology.release(&uid("p"));
    topology.release(&uid("shares"));
    assert_eq!(told(&mut moves), 0);
    topology.retain(|_| false);
    assert_eq!((shown(&topology, "q").as_str(), told(&mut moves)), ("0-7 0-7", 1));
}

#[tokio::test]
async fn a_refused_pod_has_nothing_and_nobody_is_told() {
    let world = World::new();
    let (topology, _keeper) = world.begin(world.config()).await;
    let mut moves = topology.moves();
    assert_eq!(topology.take(&uid("p"), &pod(4)), Ok(()));
    assert_eq!(told(&mut moves), 1);
    let failure = topology.take(&uid("q"), &pod(4)).expect_err("three are free");
    assert_eq!(failure.reason, "UnexpectedAdmissionError");
    assert_eq!((shown(&topology, "q").as_str(), told(&mut moves)), ("0,5-7 0,5-7", 0));
    topology.take_over(&uid("r"), &pod(4));
    assert_eq!((shown(&topology, "r").as_str(), told(&mut moves)), ("0,5-7 0,5-7", 0));
    topology.take_over(&uid("s"), &pod(3));
    assert_eq!((shown(&topology, "s").as_str(), told(&mut moves)), ("5-7 0", 1));
}

#[tokio::test(start_paused = true)]
async fn without_managers_containers_run_anywhere_and_no_file_is_written() {
    let world = World::new();
    world.make_dir();
    let config = TopologyConfig { cpus: None, aligner: None, ..world.config() };
    let (topology, keeper) = world.begin(config).await;
    let mut moves = topology.moves();
    assert_eq!(topology.take(&uid("p"), &pod(2)), Ok(()));
    assert_eq!((shown(&topology, "p").as_str(), told(&mut moves)), ("anywhere anywhere", 0));
    let keeper = tokio::spawn(keeper.run());
    topology.kept().await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.file(), None);
    keeper.abort();
}

#[tokio::test]
async fn what_is_given_is_on_disk_before_anybody_counts_on_it() {
    let world = World::new();
    world.make_dir();
    let (topology, keeper) = world.begin(world.config()).await;
    assert_eq!(topology.take(&uid("p"), &pod(2)), Ok(()));
    assert!(topology.kept().now_or_never().is_none(), "nobody has written yet");
    let keeper = tokio::spawn(keeper.run());
    topology.kept().await;
    let file = r#"{"policyName":"static","defaultCpuSet":"0,3-7","entries":{"p":{"web":"1-2"}},"checksum":0}"#;
    assert_eq!(world.file().as_deref(), Some(file));
    topology.release(&uid("p"));
    topology.kept().await;
    assert_eq!(world.file().as_deref(), Some(r#"{"policyName":"static","defaultCpuSet":"0-7","checksum":0}"#));
    assert_eq!(topology.take(&uid("q"), &pod(1)), Ok(()));
    topology.kept().await;
    keeper.abort();
    let (topology, _keeper) = world.begin(world.config()).await;
    assert_eq!(shown(&topology, "q"), "0,2-7 0,2-7", "nothing was said of its pod yet");
    topology.take_over(&uid("q"), &pod(1));
    assert_eq!(shown(&topology, "q"), "1 0,2-7");
}

#[tokio::test]
async fn a_broken_file_is_healed_from_what_runs() {
    for text in ["", "garbage", r#"{"policyName":"none","defaultCpuSet":"","checksum":0}"#] {
        let world = World::new();
        world.record(text);
        world.run("p", "5-6", 2048);
        world.run("other", "0-4,7", 1024);
        let (topology, keeper) = world.begin(world.config()).await;
        let mut moves = topology.moves();
        topology.take_over(&uid("p"), &pod(2));
        assert_eq!((shown(&topology, "p").as_str(), told(&mut moves)), ("5-6 0-4,7", 0), "{text:?}");
        let keeper = tokio::spawn(keeper.run());
        assert_eq!(topology.take(&uid("q"), &pod(1)), Ok(()));
        topology.kept().await;
        let entries = r#"{"p":{"web":"5-6"},"q":{"web":"1"}}"#;
        let file = format!(r#"{{"policyName":"static","defaultCpuSet":"0,2-4,7","entries":{entries},"checksum":0}}"#);
        assert_eq!(world.file(), Some(file), "{text:?}");
        keeper.abort();
    }
}

#[tokio::test]
async fn a_file_that_is_right_is_believed_and_nobody_is_asked() {
    let world = World::new();
    world.record(r#"{"policyName":"static","defaultCpuSet":"0,3-7","entries":{"p":{"web":"1-2"}},"checksum":9}"#);
    world.run("p", "5-6", 2048);
    let (topology, _keeper) = world.begin(world.config()).await;
    topology.take_over(&uid("p"), &pod(2));
    assert_eq!(shown(&topology, "p"), "1-2 0,3-7");
}

#[tokio::test(start_paused = true)]
async fn the_policy_none_frees_what_static_had_bound() {
    let world = World::new();
    world.record(r#"{"policyName":"static","defaultCpuSet":"0,3-7","entries":{"p":{"web":"1-2"}},"checksum":9}"#);
    world.run("p", "1-2", 2048);
    let (topology, keeper) = world.begin(TopologyConfig { cpus: None, ..world.config() }).await;
    let mut moves = topology.moves();
    assert_eq!(shown(&topology, "p"), "0-7 0-7");
    let keeper = tokio::spawn(keeper.run());
    assert_eq!(topology.take(&uid("p"), &pod(2)), Ok(()));
    assert_eq!((shown(&topology, "p").as_str(), told(&mut moves)), ("0-7 0-7", 0));
    // The clock of the test goes on by itself when nobody works.
    sleep(Duration::from_secs(25)).await;
    let file = world.file().expect("it was there");
    assert!(cpus::is_static(&file), "the next life has to know who was bound, if this one ends before they are moved");
    world.run("p", "0-7", 2048);
    world.runtime.refuse("ListContainers", "a runtime that says nothing has not said that all have left");
    sleep(Duration::from_secs(10)).await;
    assert!(world.file().is_some_and(|file| cpus::is_static(&file)));
    sleep(Duration::from_secs(15)).await;
    assert_eq!(world.file(), Some(cpus::write_none()));
    keeper.abort();
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_takes_nothing_keeps_no_pod_from_starting_and_is_tried_again() {
    let world = World::new();
    let (topology, keeper) = world.begin(world.config()).await;
    // A file where the directory should be.
    let root = world.dir.path().join("root");
    fs::write(&root, "").expect("a file can be made");
    let keeper = tokio::spawn(keeper.run());
    assert_eq!(topology.take(&uid("p"), &pod(2)), Ok(()));
    topology.kept().await;
    assert_eq!(world.file(), None);
    fs::remove_file(&root).expect("it is there");
    world.make_dir();
    // The clock of the test goes on by itself when nobody works.
    sleep(Duration::from_secs(15)).await;
    assert_eq!(world.file(), topology.texts().0);
    keeper.abort();
}

#[tokio::test]
async fn where_every_cpu_that_can_be_is_given_others_run_on_what_is_reserved() {
    let world = World::new();
    let mut config = world.config();
    let ground = config.cpus.as_mut().expect("it is configured");
    ground.options.strict_reservation = true;
    let (topology, _keeper) = world.begin(config).await;
    assert_eq!(topology.take(&uid("p"), &pod(7)), Ok(()));
    assert_eq!(shown(&topology, "p"), "1-7 0", "no CPUs at all would be read as all of them");
    assert_eq!(shown(&topology, "other"), "0 0");
}
