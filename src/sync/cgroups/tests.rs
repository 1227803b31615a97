//! The levels that pods share, on a version 2 machine without a kernel: all files are there from the start.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::clock::Clock;
use crate::host::{LinuxHost, Roots};
use crate::pod::testing::pod_yaml;
use crate::sync::launch::tests::config;

struct Machine {
    dir: tempfile::TempDir,
    told: Vec<String>,
}

impl Machine {
    fn new() -> Self {
        let machine = Machine { dir: tempfile::tempdir().expect("a temporary directory"), told: Vec::new() };
        for level in ["", "kubepods", "kubepods/burstable", "kubepods/besteffort", "kubepods/burstable/podu", "kube"] {
            for (file, text) in [
                ("cgroup.controllers", "cpu memory pids\n"),
                ("cgroup.subtree_control", "cpu memory pids\n"),
                ("cpu.weight", "100\n"),
                ("cpu.max", "max 100000\n"),
                ("memory.max", "max\n"),
                ("pids.max", "max\n"),
            ] {
                let path = machine.path(level).join(file);
                fs::create_dir_all(path.parent().expect("a directory")).expect("a scratch directory");
                fs::write(path, text).expect("a scratch file");
            }
        }
        machine
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).expect("it is there").trim().to_owned()
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.path(file), text).expect("it is there");
    }

    fn cgroups(&self, config: CgroupConfig) -> Cgroups {
        let root_dir = self.path("root");
        let roots = Roots { cgroup: self.dir.path().to_owned(), run: self.path("run"), ..Roots::machine(root_dir) };
        let host = LinuxHost::new(roots, Duration::from_secs(10), Clock::system());
        Cgroups::new(Arc::new(host), config)
    }

    /// What setting up such a node fails with.
    async fn set_up(&mut self, config: CgroupConfig) -> Option<String> {
        let mut told = Vec::new();
        let outcome =
            self.cgroups(config).set_up(|(_, reason, message)| told.push(format!("{reason}: {message}"))).await;
        self.told = told.into_iter().map(|text| text.replace(&self.dir.path().display().to_string(), "")).collect();
        outcome.err().map(|error| chain(&error).replace(&self.dir.path().display().to_string(), ""))
    }
}

fn limited() -> CgroupConfig {
    let kubepods = CgroupSettings { pids_max: Some(1000), ..CgroupSettings::default() };
    CgroupConfig { kubepods, ..config().cgroups }
}

fn with_reserved(name: &str) -> CgroupConfig {
    let settings = CgroupSettings { memory_limit_bytes: Some(1 << 30), ..CgroupSettings::default() };
    let reserved = ReservedCgroup { part: "Kube", field: "kubeReservedCgroup", name: name.to_owned(), settings };
    CgroupConfig { reserved: vec![reserved], ..limited() }
}

#[tokio::test]
async fn the_levels_are_set_and_that_is_told() {
    let mut machine = Machine::new();
    assert_eq!(machine.set_up(with_reserved("/kube")).await, None);
    assert_eq!(machine.read("kubepods/pids.max"), "1000");
    assert_eq!(machine.read("kube/memory.max"), "1073741824");
    assert_eq!(
        machine.told,
        [
            "NodeAllocatableEnforced: Updated Node Allocatable limit across pods",
            "NodeAllocatableEnforced: Updated limits on kube reserved cgroup /kube"
        ]
    );
    let not_enforced = CgroupConfig { enforced_on_pods: false, ..limited() };
    assert_eq!(machine.set_up(not_enforced).await, None);
    assert_eq!(machine.told, [""; 0]);
}

#[tokio::test]
async fn what_the_operator_has_to_see_to_is_told_by_the_name_of_its_setting() {
    let mut machine = Machine::new();
    let root = CgroupConfig { root: "/none".into(), ..limited() };
    let error = machine.set_up(root).await;
    assert_eq!(error.as_deref(), Some("cgroupRoot \"/none\" cannot be used: there is no cgroup /none"));

    let error = machine.set_up(with_reserved("/missing")).await.expect_err_text();
    assert!(
        error.starts_with("kubeReservedCgroup \"/missing\" cannot be held to what enforceNodeAllocatable"),
        "{error}"
    );
    let last = machine.told.last().expect("it is told");
    let expected = "FailedNodeAllocatableEnforcement: Failed to enforce Kube Reserved Cgroup Limits on \"/missing\": \
                    there is no cgroup /missing";
    assert_eq!(last, expected);

    let systemd = CgroupConfig { driver: CgroupDriver::Systemd, ..limited() };
    let error = machine.set_up(systemd).await.expect_err_text();
    assert!(error.contains("cgroupDriver: systemd does not run on this machine"), "{error}");

    machine.write("cgroup.controllers", "cpu pids\n");
    let error = machine.set_up(limited()).await.expect_err_text();
    assert!(error.starts_with("cgroupRoot \"/\" cannot be used: cgroup controller \"memory\""), "{error}");
}

trait ErrorText {
    fn expect_err_text(self) -> String;
}

impl ErrorText for Option<String> {
    fn expect_err_text(self) -> String {
        self.expect("it cannot be set up")
    }
}

#[tokio::test]
async fn a_limit_that_cannot_be_written_keeps_no_node_from_starting() {
    let mut machine = Machine::new();
    fs::remove_file(machine.path("kubepods/pids.max")).expect("it was there");
    fs::create_dir(machine.path("kubepods/pids.max")).expect("a scratch directory");
    assert_eq!(machine.set_up(limited()).await, None);
    let told = machine.told.join("\n");
    assert!(
        told.starts_with("FailedNodeAllocatableEnforcement: Failed to update Node Allocatable Limits \"/\": "),
        "{told}"
    );
}

fn burstable() -> Arc<Pod> {
    Arc::new(pod_yaml(
        "{metadata: {name: p, namespace: n, uid: u}, spec: {containers: [{name: c, image: i, resources: {requests: {cpu: 1}}}]}}",
    ))
}

#[tokio::test]
async fn what_somebody_changed_is_put_right() {
    let machine = Machine::new();
    let cgroups = machine.cgroups(with_reserved("/kube"));
    let pod = burstable();
    let settings = CgroupSettings { cpu_shares: Some(1024), pids_max: Some(77), ..CgroupSettings::default() };
    cgroups.ensure(&PodUid::new("u"), &pod, &settings).await.expect("it can be set");
    let files = [
        ("kubepods/pids.max", "1000"),
        ("kubepods/burstable/cpu.weight", "39"),
        ("kubepods/besteffort/cpu.weight", "1"),
        ("kubepods/burstable/podu/pids.max", "77"),
        ("kube/memory.max", "1073741824"),
    ];
    for (file, _) in files {
        machine.write(file, "5");
    }
    cgroups.put_right().await;
    for (file, value) in files {
        assert_eq!(machine.read(file), value, "{file}");
    }
}

#[tokio::test]
async fn the_next_pod_finds_the_levels_as_they_should_be() {
    let machine = Machine::new();
    let cgroups = machine.cgroups(limited());
    let pod = burstable();
    let (uid, settings) = (PodUid::new("u"), CgroupSettings::default());
    cgroups.ensure(&uid, &pod, &settings).await.expect("it can be set");
    machine.write("kubepods/pids.max", "5");
    cgroups.ensure(&uid, &pod, &settings).await.expect("it can be set");
    assert_eq!(machine.read("kubepods/pids.max"), "1000");
}

#[tokio::test]
async fn the_levels_are_written_once_for_all_changes_before() {
    let machine = Machine::new();
    let cgroups = machine.cgroups(limited());
    let (first, second) = {
        let mut pods = cgroups.pods.lock().await;
        (pods.changed(), pods.changed())
    };
    cgroups.share(first).await;
    assert_eq!(machine.read("kubepods/pids.max"), "1000");
    machine.write("kubepods/pids.max", "5");
    cgroups.share(second).await;
    assert_eq!(machine.read("kubepods/pids.max"), "5", "the first has written for the second");
    let third = cgroups.pods.lock().await.changed();
    cgroups.share(third).await;
    assert_eq!(machine.read("kubepods/pids.max"), "1000");
}

#[tokio::test]
async fn a_pod_takes_its_cgroup_along_and_no_other() {
    let machine = Machine::new();
    let cgroups = machine.cgroups(limited());
    let uid = PodUid::new("u");
    // As a pod of another class would have it.
    fs::create_dir(machine.path("kubepods/podu")).expect("a scratch directory");
    cgroups.ensure(&uid, &burstable(), &CgroupSettings::default()).await.expect("it can be set");
    for file in fs::read_dir(machine.path("kubepods/burstable/podu")).expect("it is there") {
        fs::remove_file(file.expect("a file").path()).expect("the kernel's files go with the directory");
    }
    cgroups.remove(&uid).await.expect("it can go");
    assert!(!machine.path("kubepods/burstable/podu").exists());
    assert!(machine.path("kubepods/podu").exists(), "its class is known");
    cgroups.remove(&uid).await.expect("it can go");
    assert!(!machine.path("kubepods/podu").exists(), "nothing is known of it any more");
}
