use std::process::{Child, Command};

use super::*;
use crate::host::testing::{Scratch, may_mount};

fn path(path: &str) -> CgroupPath {
    CgroupPath(path.to_owned())
}

#[test]
fn slices_are_named_as_systemd_nests_them() {
    for (cgroup, slice) in [
        ("/", "/-.slice"),
        ("/kubepods", "/kubepods.slice"),
        ("/kubepods/burstable", "/kubepods.slice/kubepods-burstable.slice"),
        (
            "/kubepods/burstable/pod0b1d-2f",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0b1d_2f.slice",
        ),
        ("/my-root/kubepods", "/my_root.slice/my_root-kubepods.slice"),
    ] {
        assert_eq!(systemd_name(&path(cgroup)), slice);
    }
}

#[test]
fn a_path_that_leads_elsewhere_is_refused() {
    for bad in ["/kubepods/../x", "..", "/./a"] {
        assert!(matches!(levels(&path(bad)), Err(HostError::Refused(_))), "{bad}");
    }
    assert_eq!(levels(&path("//kubepods//a/")).unwrap(), ["kubepods", "a"]);
    let nothing = Scratch::new();
    for root in ["", "/", "//"] {
        let refused = Cgroups::new(nothing.root().to_owned()).destroy_round(&path(root));
        assert!(matches!(refused, Err(HostError::Refused(_))), "{root:?}");
    }
}

const SETTINGS_NONE: CgroupSettings = CgroupSettings {
    cpu_shares: None,
    cpu_quota: None,
    cpu_period: None,
    memory_limit_bytes: None,
    pids_max: None,
    hugepage_limits: Vec::new(),
};

fn settings() -> CgroupSettings {
    CgroupSettings {
        cpu_shares: Some(1024),
        cpu_quota: Some(50_000),
        cpu_period: Some(100_000),
        memory_limit_bytes: Some(10 << 20),
        pids_max: Some(100),
        hugepage_limits: vec![("2MB".to_owned(), 0)],
    }
}

/// A version 1 machine without a kernel: the files of each level are there from the start.
fn machine_v1(hierarchies: &[&str], levels: &[&str]) -> Scratch {
    let scratch = Scratch::new();
    for hierarchy in hierarchies {
        for level in levels.iter().map(|level| format!("{hierarchy}/{level}")).chain([hierarchy.to_string()]) {
            let file = |name: &str, text: &str| scratch.file(&format!("{level}/{name}"), text);
            file("cgroup.procs", "");
            let top = level == *hierarchy;
            file("cpuset.cpus", if top { "0-1\n" } else { "\n" });
            file("cpuset.mems", if top { "0\n" } else { "\n" });
            file("cpu.shares", "1024\n");
            file("cpu.cfs_quota_us", "-1\n");
            file("cpu.cfs_period_us", "100000\n");
            file("memory.limit_in_bytes", "9223372036854771712\n");
            file("pids.max", "max\n");
            file("hugetlb.2MB.limit_in_bytes", "9223372036852678656\n");
        }
    }
    scratch
}

fn read(scratch: &Scratch, file: &str) -> String {
    fs::read_to_string(scratch.path(file)).unwrap()
}

#[test]
fn version_1_is_set_in_every_hierarchy() {
    let all = ["cpu,cpuacct", "cpuset", "memory", "pids", "hugetlb", "freezer", "systemd"];
    let scratch = machine_v1(&all, &["kubepods", "kubepods/poda"]);
    std::os::unix::fs::symlink("cpu,cpuacct", scratch.path("cpu")).unwrap();
    let cgroups = Cgroups::new(scratch.root().to_owned());
    assert_eq!(cgroups.version(), CgroupVersion::V1);

    cgroups.ensure(&path("/kubepods/poda"), &settings()).unwrap();
    for (file, value) in [
        ("cpu,cpuacct/kubepods/poda/cpu.cfs_quota_us", "50000"),
        ("memory/kubepods/poda/memory.limit_in_bytes", "10485760"),
        ("pids/kubepods/poda/pids.max", "100"),
        ("hugetlb/kubepods/poda/hugetlb.2MB.limit_in_bytes", "0"),
        ("cpuset/kubepods/cpuset.cpus", "0-1"),
        ("cpuset/kubepods/poda/cpuset.cpus", "0-1"),
        ("cpuset/kubepods/poda/cpuset.mems", "0"),
        // Equal already, so never written: the line end is still the kernel's.
        ("cpu,cpuacct/kubepods/poda/cpu.shares", "1024\n"),
        ("cpu,cpuacct/kubepods/poda/cpu.cfs_period_us", "100000\n"),
        // Not asked for.
        ("memory/kubepods/memory.limit_in_bytes", "9223372036854771712\n"),
    ] {
        assert_eq!(read(&scratch, file), value, "{file}");
    }
    let fresh = CgroupSettings { cpu_quota: Some(0), ..SETTINGS_NONE };
    cgroups.ensure(&path("/kubepods/poda"), &fresh).unwrap();
    assert_eq!(read(&scratch, "cpu,cpuacct/kubepods/poda/cpu.cfs_quota_us"), "-1");
}

#[test]
fn a_level_is_made_in_all_hierarchies_even_unused_ones() {
    let scratch = machine_v1(&["cpu", "memory", "freezer", "systemd", "perf_event"], &[]);
    scratch.dir("unified");
    scratch.file("unified/cgroup.procs", "");
    let cgroups = Cgroups::new(scratch.root().to_owned());
    cgroups.ensure(&path("/kubepods"), &SETTINGS_NONE).unwrap();
    for hierarchy in ["cpu", "memory", "freezer", "systemd", "perf_event"] {
        assert!(scratch.path(hierarchy).join("kubepods").is_dir(), "{hierarchy}");
    }
    assert!(!scratch.path("unified/kubepods").exists());
}

#[test]
fn what_the_runtime_left_in_the_unified_tree_is_found_and_removed() {
    let scratch = machine_v1(&["cpu", "memory"], &[]);
    scratch.dir("unified");
    scratch.file("unified/cgroup.procs", "");
    scratch.dir("unified/kubepods/burstable/podleft");
    let cgroups = Cgroups::new(scratch.root().to_owned());
    let found = cgroups.list_pods(&path("/kubepods")).unwrap();
    assert_eq!(found, [(PodUid::new("left"), path("/kubepods/burstable/podleft"))]);
    let killed = || scratch.path("unified/kubepods/burstable/podleft/cgroup.kill").exists();
    assert!(!killed());
    // A plain directory is no cgroup: it cannot be removed with the file that this leaves.
    let _ = cgroups.destroy_round(&path("/kubepods/burstable/podleft"));
    assert!(killed(), "its processes were told to end");
}

#[test]
fn a_missing_controller_is_named() {
    let wants = |settings: CgroupSettings, scratch: &Scratch| {
        let cgroups = Cgroups::new(scratch.root().to_owned());
        cgroups.ensure(&path("/kubepods"), &settings).unwrap_err().to_string()
    };
    let text = |name: &str, scratch: &Scratch| {
        format!("cgroup controller {name:?} is not available below {}", scratch.root().display())
    };
    let pids = CgroupSettings { pids_max: Some(1), ..SETTINGS_NONE };

    let no_memory = machine_v1(&["cpu", "cpuset"], &[]);
    assert_eq!(wants(SETTINGS_NONE, &no_memory), text("memory", &no_memory));
    assert!(!no_memory.path("cpu/kubepods").exists(), "nothing is half made");
    let no_pids = machine_v1(&["cpu", "memory"], &["kubepods"]);
    assert_eq!(wants(pids.clone(), &no_pids), text("pids", &no_pids));

    let v2 = Scratch::new();
    v2.file("cgroup.controllers", "cpu io\n");
    v2.file("cgroup.subtree_control", "cpu\n");
    assert_eq!(wants(SETTINGS_NONE, &v2), text("memory", &v2));
    v2.file("cgroup.controllers", "cpu memory\n");
    assert_eq!(wants(pids, &v2), text("pids", &v2));
}

#[test]
fn version_2_hands_controllers_down_and_sets_its_own_files() {
    let scratch = Scratch::new();
    scratch.file("cgroup.controllers", "cpuset cpu io memory hugetlb pids misc\n");
    // One is missing at each level, so that the last write shows.
    scratch.file("cgroup.subtree_control", "cpuset cpu memory hugetlb\n");
    scratch.file("kubepods/cgroup.subtree_control", "cpuset memory hugetlb pids\n");
    for level in ["kubepods", "kubepods/poda"] {
        scratch.file(&format!("{level}/cpu.weight"), "100\n");
        scratch.file(&format!("{level}/cpu.max"), "max 100000\n");
        scratch.file(&format!("{level}/memory.max"), "max\n");
        scratch.file(&format!("{level}/pids.max"), "max\n");
        scratch.file(&format!("{level}/hugetlb.2MB.max"), "max\n");
        scratch.file(&format!("{level}/hugetlb.2MB.rsvd.max"), "max\n");
    }
    let cgroups = Cgroups::new(scratch.root().to_owned());
    assert_eq!(cgroups.version(), CgroupVersion::V2);
    cgroups.ensure(&path("/kubepods/poda"), &settings()).unwrap();
    for (file, value) in [
        ("cgroup.subtree_control", "+pids"),
        ("kubepods/cgroup.subtree_control", "+cpu"),
        ("kubepods/cpu.weight", "100\n"),
        ("kubepods/poda/cpu.weight", "39"),
        ("kubepods/poda/cpu.max", "50000 100000"),
        ("kubepods/poda/memory.max", "10485760"),
        ("kubepods/poda/pids.max", "100"),
        ("kubepods/poda/hugetlb.2MB.max", "0"),
        ("kubepods/poda/hugetlb.2MB.rsvd.max", "0"),
    ] {
        assert_eq!(read(&scratch, file), value, "{file}");
    }
    for (quota, period, written) in [
        (Some(-1), None, "max 100000"),
        (Some(7000), Some(50_000), "7000 50000"),
        (None, Some(100_000), "7000 100000"),
        (Some(0), None, "max 100000"),
    ] {
        let settings = CgroupSettings { cpu_quota: quota, cpu_period: period, ..SETTINGS_NONE };
        cgroups.ensure(&path("/kubepods/poda"), &settings).unwrap();
        assert_eq!(read(&scratch, "kubepods/poda/cpu.max"), written);
    }
}

#[test]
fn pods_are_found_in_whatever_hierarchy_they_are_left() {
    let scratch = machine_v1(&["cpu", "memory"], &["kubepods/poda", "kubepods/burstable/podb-1"]);
    scratch.dir("memory/kubepods/besteffort/podc");
    scratch.dir("memory/kubepods/besteffort/other");
    scratch.dir("memory/kubepods/podless/podx");
    scratch.dir("memory/kubepods/pod");
    let cgroups = Cgroups::new(scratch.root().to_owned());
    let found = cgroups.list_pods(&path("/kubepods")).unwrap();
    let pod = |uid: &str, at: &str| (PodUid::new(uid), path(at));
    assert_eq!(
        found,
        [
            pod("a", "/kubepods/poda"),
            pod("b-1", "/kubepods/burstable/podb-1"),
            pod("c", "/kubepods/besteffort/podc"),
            pod("less", "/kubepods/podless"),
        ]
    );
    assert_eq!(cgroups.list_pods(&path("/none")).unwrap(), []);
}

/// A process that would live on, and the cgroup it is put into.
struct Lodger(Child);

impl Lodger {
    fn new() -> Self {
        Lodger(Command::new("sleep").arg("600").spawn().expect("sleep can be started"))
    }

    fn was_killed(&mut self) -> bool {
        use std::os::unix::process::ExitStatusExt;
        self.0.wait().expect("it can be waited for").signal() == Some(Signal::SIGKILL as i32)
    }
}

impl Drop for Lodger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Rounds until the cgroup is gone; the dead leave it on their own time.
fn destroy(cgroups: &Cgroups, cgroup: &CgroupPath) {
    for _ in 0..10_000 {
        if cgroups.destroy_round(cgroup).unwrap() {
            return;
        }
        std::thread::yield_now();
    }
    panic!("{} is still there with {:?}", cgroup.0, cgroups.processes(cgroup));
}

#[test]
fn the_machines_own_kernel_takes_what_we_write() {
    if !may_mount("making cgroups on this machine") {
        return;
    }
    let cgroups = Cgroups::new("/sys/fs/cgroup".into());
    let root = path(&format!("/ferrolet-test-{}", std::process::id()));
    let pod = path(&format!("{}/burstable/pod1-2", root.0));
    let settings = CgroupSettings { hugepage_limits: vec![], ..settings() };
    if let Err(error) = cgroups.ensure(&pod, &settings) {
        println!("skipped: no cgroups can be made on this machine: {error}");
        return;
    }
    let directories = cgroups.directories(&pod).unwrap();
    let value = |v1: &str, v2: &str| match cgroups.version() {
        CgroupVersion::V1 => {
            let controller = v1.split('.').next().unwrap();
            let hierarchies = v1::Hierarchies::find(Path::new("/sys/fs/cgroup")).unwrap();
            let directory =
                hierarchies.all().find(|dir| dir.to_str().unwrap().contains(controller)).unwrap().join(&pod.0[1..]);
            fs::read_to_string(directory.join(v1)).unwrap().trim().to_owned()
        }
        CgroupVersion::V2 => fs::read_to_string(directories[0].join(v2)).unwrap().trim().to_owned(),
    };
    let seen = [
        value("memory.limit_in_bytes", "memory.max"),
        value("pids.max", "pids.max"),
        value("cpuset.cpus", "cpuset.cpus.effective"),
    ];
    assert_eq!(seen[..2], ["10485760", "100"]);
    assert!(!seen[2].is_empty(), "no process could run there");
    // A second time nothing differs, and odd sizes are the same after rounding.
    let odd = CgroupSettings { memory_limit_bytes: Some((10 << 20) + 7), ..settings };
    cgroups.ensure(&pod, &odd).unwrap();

    let mut lodger = Lodger::new();
    for directory in &directories {
        fs::create_dir_all(directory.join("container")).unwrap();
        if directory.starts_with("/sys/fs/cgroup/cpuset") {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                fs::copy(directory.join(file), directory.join("container").join(file)).unwrap();
            }
        }
        fs::write(directory.join("container/cgroup.procs"), lodger.0.id().to_string()).unwrap();
    }
    assert_eq!(cgroups.list_pods(&root).unwrap(), [(PodUid::new("1-2"), pod.clone())]);
    assert_eq!(cgroups.processes(&pod).unwrap(), BTreeSet::from([lodger.0.id() as i32]));

    assert!(!cgroups.destroy_round(&pod).unwrap() || directories.iter().all(|directory| !directory.exists()));
    assert!(lodger.was_killed());
    destroy(&cgroups, &root);
    assert!(directories.iter().all(|directory| !directory.exists()));
    assert!(cgroups.destroy_round(&root).unwrap(), "gone is fine");
}

#[test]
fn version_2_kills_a_tree_at_once() {
    let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .into_iter()
        .find(|root| Path::new(root).join("cgroup.controllers").exists());
    let Some(root) = root.filter(|_| may_mount("making cgroups on this machine")) else {
        println!("skipped: no version 2 tree to make a cgroup in");
        return;
    };
    let cgroups = Cgroups::new(root.into());
    let top = path(&format!("/ferrolet-kill-test-{}", std::process::id()));
    let leaf = Path::new(root).join(&top.0[1..]).join("a/b");
    fs::create_dir_all(&leaf).unwrap();
    let mut lodger = Lodger::new();
    fs::write(leaf.join("cgroup.procs"), lodger.0.id().to_string()).unwrap();
    let _ = cgroups.destroy_round(&top).unwrap();
    assert!(lodger.was_killed());
    destroy(&cgroups, &top);
    assert!(!leaf.exists());
}
