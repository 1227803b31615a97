//! Whole pages from a machine in a temporary directory; in `odd.rs`, from one that is not as it should be.

mod odd;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Duration, Instant};

use super::cgroup::Detail;
use super::disks::{FileSystem, PodDisk, PodLogs, Volume};
use super::machine::Topology;
use super::places::Places;
use super::remembered::Moment;
use super::summary::{self, OfDisks};
use super::survey::{Order, PodView, Survey, Surveyor};
use super::{StatsConfig, cadvisor, resource};
use crate::cri::testing::{container, running, sandbox};
use crate::cri::{Container, ContainerId, FilesystemUsage, SandboxState};
use crate::host::disk_usage::DiskUsage;
use crate::host::{MachineFacts, Roots};
use crate::pleg::PodRuntime;
use crate::pod::PodUid;

const UID: &str = "a-1";
const POD: &str = "kubepods/burstable/poda-1";

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("it is below the root")).expect("a directory");
    fs::write(path, text).expect("a file");
}

fn config(root: &Path) -> StatsConfig {
    let at = |name: &str| root.join(name);
    let [proc, sys, cgroup, etc, var_lib] = ["proc", "sys", "cgroup", "etc", "lib"].map(at);
    StatsConfig {
        node_name: "node-1".into(),
        roots: Roots { proc, sys, cgroup, run: at("run"), etc, var_lib, root_dir: at("kubelet") },
        pod_logs_dir: at("logs"),
        cgroup_root: "/".into(),
        cgroups_per_qos: true,
        kubelet_cgroups: String::new(),
        runtime_cgroups: "/runtime.slice".into(),
        system_cgroups: "/none".into(),
        volume_period: None,
    }
}

fn cgroup(root: &Path, id: &str, microseconds: u64, anonymous: u64) {
    write(root, &format!("cgroup/{id}/cpu.stat"), &format!("usage_usec {microseconds}\n"));
    write(root, &format!("cgroup/{id}/memory.stat"), &format!("anon {anonymous}\nfile 0\ninactive_file 0\n"));
    write(root, &format!("cgroup/{id}/memory.current"), &format!("{anonymous}\n"));
    write(root, &format!("cgroup/{id}/memory.swap.current"), "0\n");
    write(root, &format!("cgroup/{id}/memory.max"), "max\n");
    write(root, &format!("cgroup/{id}/cgroup.controllers"), "cpu memory\n");
}

/// The pod, and what is around it, count what happens in its containers.
fn pod_counts(root: &Path, microseconds: u64, bytes: u64) {
    for id in ["kubepods", "kubepods/burstable", POD] {
        write(root, &format!("cgroup/{id}/cpu.stat"), &format!("usage_usec {microseconds}\n"));
        write(root, &format!("cgroup/{id}/memory.current"), &format!("{bytes}\n"));
    }
}

/// A node with one pod of one container.
fn machine() -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let root = directory.path();
    write(root, "cgroup/cgroup.controllers", "cpu memory\n");
    write(root, "cgroup/cpu.stat", "usage_usec 9000000\n");
    write(root, "cgroup/memory.stat", "anon 3000\nfile 2000\ninactive_file 1000\n");
    for (id, microseconds, bytes) in
        [("kubepods", 500_000, 900), ("kubepods/burstable", 400_000, 800), (POD, 300_000, 700), ("runtime.slice", 7, 7)]
    {
        cgroup(root, id, microseconds, bytes);
    }
    for (name, pid, microseconds, bytes) in [("s", 6, 1000, 50), ("c", 7, 250_000, 600)] {
        cgroup(root, &format!("{POD}/{name}"), microseconds, bytes);
        write(root, &format!("cgroup/{POD}/{name}/cgroup.procs"), &format!("{pid}\n"));
    }
    write(root, &format!("cgroup/{POD}/c/memory.max"), "1000\n");
    write(root, &format!("cgroup/{POD}/c/memory.swap.max"), "64\n");
    write(root, &format!("cgroup/{POD}/c/cpu.max"), "50000 100000\n");
    write(root, "proc/6/net/dev", "eth0: 11 2 3 4 0 0 0 0 15 6 7 8 0 0 0 0\n");
    write(root, "proc/7/limits", "Max open files   1024   4096   files\n");
    write(root, "proc/meminfo", "MemTotal: 10 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n");
    write(root, "proc/stat", "btime 1700000000\n");
    write(root, "proc/diskstats", "254 0 vda 1 2 3 4 5 6 7 8 9 10 11\n");
    directory
}

fn view(of: PodRuntime) -> PodView {
    PodView { uid: PodUid::new(UID), runtime: Arc::new(of), sandbox_image: Some("pause:1".into()) }
}

fn pod() -> PodView {
    view(PodRuntime {
        sandboxes: vec![sandbox("s", 0, SandboxState::Ready)],
        containers: vec![Container {
            id: ContainerId::new("c"),
            image: "busybox:1".into(),
            ..container("c", 0, running())
        }],
    })
}

fn order(pods: Vec<PodView>, detail: Detail, after: Duration) -> Order {
    let moment = Moment { wall: wall(), now: Instant::now() + after };
    Order { pods, detail, moment: Box::new(move || moment) }
}

fn wall() -> Timestamp {
    Timestamp::from_second(1_700_000_100).expect("a time")
}

fn surveyor(machine: &TempDir) -> Surveyor {
    Surveyor::new(Places::of(&config(machine.path())))
}

fn survey(machine: &TempDir, detail: Detail) -> Survey {
    surveyor(machine).read(order(vec![pod()], detail, Duration::ZERO))
}

fn file_system() -> FileSystem {
    FileSystem { capacity: 1000, available: 400, used: 500, inodes: 100, inodes_free: 60, device: (254, 0) }
}

fn facts() -> MachineFacts {
    MachineFacts { machine_id: "m".into(), cpus: 2, ..MachineFacts::default() }
}

fn page(survey: &Survey) -> String {
    page_of(Some(survey), Some(&facts()))
}

fn page_of(survey: Option<&Survey>, facts: Option<&MachineFacts>) -> String {
    let context = cadvisor::Context {
        survey,
        facts,
        topology: Some(Topology { cores: 2, sockets: 1 }),
        file_systems: vec![file_system()],
        unix_millis: 1_700_000_100_000,
    };
    let mut page = String::new();
    cadvisor::write(&context, |piece| page.push_str(&piece));
    page
}

fn value_of(value: &Value, path: &str) -> Value {
    value.pointer(path).cloned().unwrap_or(Value::Null)
}

#[track_caller]
fn expect_lines(page: &str, expected: &[&str]) {
    for line in expected {
        assert!(page.lines().any(|found| found == *line), "no {line:?} in\n{page}");
    }
}

#[tokio::test]
async fn what_metrics_server_reads_is_told_of_node_pods_and_containers() {
    let page = resource::page(Some(&survey(&machine(), Detail::Usage)));
    expect_lines(
        &page,
        &[
            "node_cpu_usage_seconds_total 9 1700000100000",
            "node_memory_working_set_bytes 4000 1700000100000",
            "node_swap_usage_bytes 0 1700000100000",
            r#"pod_cpu_usage_seconds_total{namespace="shop",pod="web-0"} 0.3 1700000100000"#,
            r#"container_cpu_usage_seconds_total{container="c",namespace="shop",pod="web-0"} 0.25 1700000100000"#,
            r#"container_memory_working_set_bytes{container="c",namespace="shop",pod="web-0"} 600 1700000100000"#,
            r#"container_swap_limit_bytes{container="c",namespace="shop",pod="web-0"} 64 1700000100000"#,
            "resource_scrape_error 0",
        ],
    );
    let started = r#"container_start_time_seconds{container="c",namespace="shop",pod="web-0"} "#;
    assert!(page.lines().any(|line| line.starts_with(started) && line.split(' ').count() == 2), "{page}");
    let failed = resource::page(None);
    assert!(failed.ends_with("resource_scrape_error 1\n") && !failed.contains("node_cpu"), "{failed}");
}

#[tokio::test]
async fn each_cgroup_is_told_with_what_it_belongs_to() {
    let page = page(&survey(&machine(), Detail::All));
    let labels = |container: &str, id: &str, image: &str, name: &str| {
        let (namespace, pod) = if id.contains("poda") { ("shop", "web-0") } else { ("", "") };
        format!(
            r#"container="{container}",id="/{id}",image="{image}",name="{name}",namespace="{namespace}",pod="{pod}""#
        )
    };
    let root = labels("", "", "", "");
    let leaf = labels("c", &format!("{POD}/c"), "busybox:1", "c");
    let sandbox = labels("", &format!("{POD}/s"), "pause:1", "s");
    for (id, seconds) in
        [("kubepods", "0.5"), ("kubepods/burstable", "0.4"), (POD, "0.3"), ("runtime.slice", "0.000007")]
    {
        let line = format!(
            "container_cpu_usage_seconds_total{{{},cpu=\"total\"}} {seconds} 1700000100000",
            labels("", id, "", "")
        );
        expect_lines(&page, &[&line]);
    }
    expect_lines(
        &page,
        &[
            &format!("container_memory_working_set_bytes{{{leaf}}} 600 1700000100000"),
            &format!("container_spec_cpu_quota{{{leaf}}} 50000"),
            &format!("container_spec_memory_limit_bytes{{{leaf}}} 1000"),
            &format!("container_spec_memory_limit_bytes{{{root}}} 10240"),
            &format!("container_processes{{{leaf}}} 1 1700000100000"),
            &format!("container_ulimits_soft{{{leaf},ulimit=\"max_open_files\"}} 1024 1700000100000"),
            &format!("container_network_receive_bytes_total{{{sandbox},interface=\"eth0\"}} 11 1700000100000"),
            &format!("container_network_transmit_errors_total{{{sandbox},interface=\"eth0\"}} 7 1700000100000"),
            &format!("container_fs_usage_bytes{{{root},device=\"/dev/vda\"}} 500 1700000100000"),
            &format!("container_fs_reads_total{{{root},device=\"/dev/vda\"}} 1 1700000100000"),
            r#"machine_cpu_cores{boot_id="",machine_id="m",system_uuid=""} 2"#,
            "container_scrape_error 0",
        ],
    );
    // Networks are the sandbox's, and no family comes twice.
    assert_eq!(page.lines().filter(|line| line.starts_with("container_network_receive_bytes_total")).count(), 1);
    let mut families: Vec<&str> = page.lines().filter(|line| line.starts_with("# TYPE")).collect();
    let all = families.len();
    families.dedup();
    assert!(families.len() == all && all > 30, "{families:?}");
}

#[tokio::test]
async fn a_summary_has_what_is_known_and_leaves_out_the_rest() {
    let (machine, uid) = (machine(), PodUid::new(UID));
    let survey = survey(&machine, Detail::Pods);
    let usage = |bytes, inodes| DiskUsage { bytes, inodes };
    let volume = |name: &str, bytes, is_ephemeral| Volume {
        name: name.into(),
        usage: usage(bytes, 1),
        file_system: file_system(),
        is_ephemeral,
    };
    let disk =
        PodDisk { volumes: vec![volume("data", 100, true), volume("secret", 50, false)], etc_hosts: usage(8, 1) };
    let logs = PodLogs { own: Some(usage(3, 1)), containers: [("c".to_owned(), usage(20, 2))].into() };
    let images = FilesystemUsage { mountpoint: "/images".into(), used_bytes: 77, inodes_used: 5 };
    let layer = FilesystemUsage { used_bytes: 30, inodes_used: 4, ..images.clone() };
    let disks = OfDisks {
        node: Some(file_system()),
        images: Some((images, Some(file_system()))),
        layers: Arc::new(HashMap::from([(ContainerId::new("c"), layer)])),
        volumes: HashMap::from([(uid.clone(), Arc::new(disk))]),
        logs: Arc::new(HashMap::from([(uid, logs)])),
    };
    let system = Places::of(&config(machine.path())).system;
    let sources = summary::Sources {
        node_name: "node-1",
        survey: &survey,
        disks: Some(&disks),
        unix_seconds: 1_700_000_100,
        began_unix_seconds: 1_700_000_090,
        system: &system,
    };
    let found = serde_json::to_value(summary::build(&sources)).expect("it is JSON");
    for (path, expected) in [
        ("/node/nodeName", json!("node-1")),
        ("/node/startTime", json!("2023-11-14T22:13:20Z")),
        ("/node/cpu/usageCoreNanoSeconds", json!(9_000_000_000u64)),
        ("/node/cpu/usageNanoCores", Value::Null),
        ("/node/memory/availableBytes", json!(6240)),
        ("/node/fs/inodesUsed", json!(40)),
        ("/node/runtime/imageFs/usedBytes", json!(77)),
        ("/node/systemContainers/0/name", json!("runtime")),
        ("/node/systemContainers/1/name", json!("pods")),
        ("/node/systemContainers/1/memory/workingSetBytes", json!(900)),
        ("/pods/0/podRef", json!({ "name": "web-0", "namespace": "shop", "uid": UID })),
        ("/pods/0/cpu/usageCoreNanoSeconds", json!(300_000_000)),
        ("/pods/0/memory/availableBytes", Value::Null),
        ("/pods/0/network/rxBytes", json!(11)),
        ("/pods/0/network/interfaces/0/name", json!("eth0")),
        ("/pods/0/process_stats/process_count", json!(1)),
        ("/pods/0/volume/0/name", json!("data")),
        ("/pods/0/volume/1/usedBytes", json!(50)),
        // Layer, log, emptyDir, hosts file and the pod's own log; a secret takes memory.
        ("/pods/0/ephemeral-storage/usedBytes", json!(30 + 20 + 100 + 8 + 3)),
        ("/pods/0/ephemeral-storage/inodesUsed", json!(4 + 2 + 1 + 1 + 1)),
        ("/pods/0/containers/0/name", json!("c")),
        ("/pods/0/containers/0/memory/availableBytes", json!(400)),
        (
            "/pods/0/containers/0/swap",
            json!({ "time": "2023-11-14T22:15:00Z", "swapAvailableBytes": 64, "swapUsageBytes": 0 }),
        ),
        ("/pods/0/containers/0/rootfs/capacityBytes", json!(1000)),
        ("/pods/0/containers/0/logs/usedBytes", json!(20)),
        ("/pods/0/containers/1", Value::Null),
    ] {
        assert_eq!(value_of(&found, path), expected, "{path} of {found}");
    }
    let short = serde_json::to_value(summary::build(&summary::Sources { disks: None, ..sources })).expect("it is JSON");
    for part in
        ["/node/network", "/node/fs", "/node/rlimit", "/pods/0/network", "/pods/0/volume", "/pods/0/process_stats"]
    {
        assert_eq!(value_of(&short, part), Value::Null, "{part} of {short}");
    }
    assert_eq!(value_of(&short, "/pods/0/containers/0/memory/rssBytes"), json!(600));
    assert!(value_of(&short, "/pods/0/containers/0/logs").is_null() && !value_of(&short, "/node/startTime").is_null());
}

#[tokio::test]
async fn rates_come_with_the_second_reading_and_of_what_went_nothing_is_kept() {
    let machine = machine();
    let mut surveyor = surveyor(&machine);
    let rate = |survey: &Survey| survey.pods[0].containers[0].cgroup.as_ref().and_then(|it| it.cpu_rate);
    let first = surveyor.read(order(vec![pod()], Detail::Usage, Duration::ZERO));
    assert_eq!(rate(&first), None);
    cgroup(machine.path(), &format!("{POD}/c"), 5_250_000, 600);
    pod_counts(machine.path(), 5_300_000, 700);
    let second = surveyor.read(order(vec![pod()], Detail::Usage, Duration::from_secs(10)));
    let found = rate(&second).expect("there are two readings");
    assert!((490_000_000..=500_000_000).contains(&found), "{found}");
    // The container goes between the list and the reading.
    fs::remove_dir_all(machine.path().join(format!("cgroup/{POD}/c"))).expect("it was there");
    pod_counts(machine.path(), 5_300_001, 100);
    let third = surveyor.read(order(vec![pod()], Detail::All, Duration::from_secs(20)));
    assert!(third.pods[0].containers[0].cgroup.is_none() && third.pods[0].cgroup.is_some());
    assert!(resource::page(Some(&third)).contains("pod_cpu_usage_seconds_total{"), "the others are told");
    cgroup(machine.path(), &format!("{POD}/c"), 6_000_000, 600);
    let fourth = surveyor.read(order(vec![pod()], Detail::Usage, Duration::from_secs(30)));
    assert_eq!(rate(&fourth), None, "it is another one");
}

#[tokio::test]
async fn a_pod_without_a_cgroup_uses_what_its_containers_use() {
    let machine = machine();
    let root = machine.path();
    fs::remove_dir_all(root.join("cgroup/kubepods")).expect("it was there");
    for (id, microseconds) in [("k8s.io/c", 1000), ("k8s.io/d", 234)] {
        cgroup(root, id, microseconds, 10);
    }
    let mut both = (*pod().runtime).clone();
    both.containers.push(Container { id: ContainerId::new("d"), ..container("d", 0, running()) });
    let config = StatsConfig { cgroups_per_qos: false, ..config(root) };
    let found = Surveyor::new(Places::of(&config)).read(order(vec![view(both)], Detail::Usage, Duration::ZERO));
    assert!(found.pods[0].cgroup.is_none());
    let page = resource::page(Some(&found));
    for expected in ["pod_cpu_usage_seconds_total{", "pod_memory_working_set_bytes{"] {
        let line = page.lines().find(|line| line.starts_with(expected)).expect("it is told");
        let value = line.rsplit(' ').nth(1).expect("a value before the time");
        assert!(["0.001234", "20"].contains(&value), "{line}");
    }
}

#[tokio::test]
async fn a_container_that_is_new_is_found_once_the_runtime_tells_of_it() {
    let machine = machine();
    let mut surveyor = surveyor(&machine);
    let also = Container { id: ContainerId::new("d"), ..container("d", 0, running()) };
    let mut both = (*pod().runtime).clone();
    both.containers.push(also);
    let mut read = |pod: PodView| {
        let found = surveyor.read(order(vec![pod], Detail::Usage, Duration::ZERO));
        found.pods[0].containers.iter().map(|it| it.cgroup.is_some()).collect::<Vec<_>>()
    };
    assert_eq!(read(pod()), [true]);
    assert_eq!(read(view(both.clone())), [true, false], "its cgroup is not there yet");
    cgroup(machine.path(), &format!("{POD}/d"), 10, 10);
    assert_eq!(read(view(both)), [true, true]);
}

#[tokio::test]
async fn a_pod_that_nobody_knows_is_told_by_its_cgroup_and_one_that_ended_not_at_all() {
    let machine = machine();
    let unknown = surveyor(&machine).read(order(Vec::new(), Detail::Usage, Duration::ZERO));
    assert!(unknown.pods.is_empty());
    assert_eq!(unknown.strays.iter().map(|stray| stray.id.as_str()).collect::<Vec<_>>(), [format!("/{POD}")]);
    let ended = view(PodRuntime { sandboxes: vec![sandbox("s", 0, SandboxState::NotReady)], containers: Vec::new() });
    let found = surveyor(&machine).read(order(vec![ended], Detail::Usage, Duration::ZERO));
    assert!(found.pods.is_empty());
}

#[tokio::test]
async fn slices_and_scopes_are_found_as_well() {
    let machine = machine();
    let root = machine.path();
    fs::remove_dir_all(root.join("cgroup/kubepods")).expect("it was there");
    let pod_slice = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_1.slice";
    for id in ["kubepods.slice", "kubepods.slice/kubepods-burstable.slice", pod_slice] {
        cgroup(root, id, 1000, 10);
    }
    cgroup(root, &format!("{pod_slice}/cri-containerd-c.scope"), 2000, 20);
    let found = survey(&machine, Detail::Usage);
    assert_eq!(found.kubepods().map(|it| it.id.as_str()), Some("/kubepods.slice"));
    let pod = &found.pods[0];
    assert_eq!(pod.cgroup.as_ref().map(|it| it.id.clone()), Some(format!("/{pod_slice}")));
    let container = pod.containers[0].cgroup.as_ref().expect("its scope");
    assert_eq!(container.figures.cpu.usage_ns, Some(2_000_000));
    assert!(pod.sandbox.as_ref().is_some_and(|sandbox| sandbox.cgroup.is_none()));
}

#[tokio::test]
async fn limits_are_read_anew_once_the_runtime_tells_something_new() {
    let machine = machine();
    let mut surveyor = surveyor(&machine);
    let limit = |survey: &Survey| survey.pods[0].containers[0].cgroup.as_ref().and_then(|it| it.spec.memory_limit);
    let same = pod();
    let read = |surveyor: &mut Surveyor, pod: &PodView, after| {
        limit(&surveyor.read(order(vec![pod.clone()], Detail::Usage, Duration::from_secs(after))))
    };
    assert_eq!(read(&mut surveyor, &same, 0), Some(1000));
    write(machine.path(), &format!("cgroup/{POD}/c/memory.max"), "2000\n");
    assert_eq!(read(&mut surveyor, &same, 2), Some(1000));
    assert_eq!(read(&mut surveyor, &pod(), 4), Some(2000));
    write(machine.path(), &format!("cgroup/{POD}/c/memory.max"), "3000\n");
    assert_eq!(read(&mut surveyor, &same, 6), Some(3000), "an older word is another word too");
    write(machine.path(), &format!("cgroup/{POD}/c/memory.max"), "4000\n");
    assert_eq!(read(&mut surveyor, &same, 90), Some(4000), "nobody told, but it was long ago");
}

#[tokio::test]
async fn what_rests_is_told_as_it_was_until_it_stirs_or_some_time_has_passed() {
    let machine = machine();
    let mut surveyor = surveyor(&machine);
    let pod = pod();
    let rss = |survey: &Survey| survey.pods[0].containers[0].cgroup.as_ref().and_then(|it| it.figures.memory.rss);
    let mut read = |after| {
        let found = surveyor.read(order(vec![pod.clone()], Detail::All, Duration::from_secs(after)));
        (rss(&found), found.pods[0].containers[0].cgroup.as_ref().and_then(|it| it.processes))
    };
    let write_stat = |bytes: u64| {
        write(machine.path(), &format!("cgroup/{POD}/c/memory.stat"), &format!("anon {bytes}\n"));
        write(machine.path(), &format!("cgroup/{POD}/c/cgroup.procs"), "7\n8\n");
    };
    assert_eq!(read(0), (Some(600), Some(1)));
    write_stat(500);
    assert_eq!(read(10), (Some(600), Some(1)), "nothing ran in it");
    write(machine.path(), &format!("cgroup/{POD}/c/memory.current"), "599\n");
    assert_eq!(read(15), (Some(600), Some(1)), "its pod holds as much as before, so it was not asked");
    pod_counts(machine.path(), 300_000, 699);
    assert_eq!(read(20), (Some(500), Some(2)), "it holds less");
    write_stat(400);
    pod_counts(machine.path(), 300_001, 699);
    assert_eq!(read(25).0, Some(500), "another one of its pod ran");
    write(machine.path(), &format!("cgroup/{POD}/c/cpu.stat"), "usage_usec 250001\n");
    pod_counts(machine.path(), 300_002, 699);
    assert_eq!(read(30).0, Some(400), "it ran");
    write_stat(300);
    assert_eq!(read(40).0, Some(400));
    assert_eq!(read(91).0, Some(300), "it was long ago");
}
