use std::process::{Child, Command};

use super::*;
use crate::host::testing::{Scratch, may_mount};

fn path(path: &str) -> CgroupPath {
    CgroupPath(path.to_owned())
}

/// With cgroups of its own and no systemd.
fn cgroups_in(scratch: &Scratch) -> Cgroups {
    Cgroups::new(scratch.root().to_owned(), scratch.path("run"))
}

#[test]
fn the_root_is_not_ours_to_destroy() {
    let nothing = Scratch::new();
    for root in ["", "/", "//"] {
        let refused = cgroups_in(&nothing).destroy_round(&path(root));
        assert!(matches!(refused, Err(HostError::Refused(_))), "{root:?}");
    }
}

fn none() -> CgroupSettings {
    CgroupSettings::default()
}

fn settings() -> CgroupSettings {
    CgroupSettings {
        cpu_shares: Some(1024),
        cpu_quota: Some(50_000),
        cpu_period: Some(100_000),
        memory_limit_bytes: Some(10 << 20),
        pids_max: Some(100),
        hugepage_limits: vec![("2MB".to_owned(), 0)],
        ..none()
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
    let cgroups = cgroups_in(&scratch);
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
    let fresh = CgroupSettings { cpu_quota: Some(0), ..none() };
    cgroups.ensure(&path("/kubepods/poda"), &fresh).unwrap();
    assert_eq!(read(&scratch, "cpu,cpuacct/kubepods/poda/cpu.cfs_quota_us"), "-1");
}

#[test]
fn a_level_is_made_in_all_hierarchies_even_unused_ones() {
    let scratch = machine_v1(&["cpu", "memory", "freezer", "systemd", "perf_event"], &[]);
    scratch.dir("unified");
    scratch.file("unified/cgroup.procs", "");
    let cgroups = cgroups_in(&scratch);
    cgroups.ensure(&path("/kubepods"), &none()).unwrap();
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
    scratch.dir("unified/kubepods/burstable/podleft/container");
    let cgroups = cgroups_in(&scratch);
    let found = cgroups.list_pods(&path("/kubepods")).unwrap();
    assert_eq!(found, [(PodUid::new("left"), path("/kubepods/burstable/podleft"))]);
    let killed = || scratch.path("unified/kubepods/burstable/podleft/cgroup.kill").exists();
    assert!(!killed());
    // A plain directory is no cgroup: it cannot be removed with the file that this leaves.
    let _ = cgroups.destroy_round(&path("/kubepods/burstable/podleft"));
    assert!(killed(), "its processes were told to end");
}

#[test]
fn what_is_frozen_is_thawed_to_die() {
    let scratch = machine_v1(&["cpu", "memory", "freezer"], &[]);
    for below in ["", "/container"] {
        scratch.file(&format!("freezer/kubepods/podleft{below}/freezer.state"), "FROZEN");
    }
    // A plain directory is no cgroup: with its files in it, it stays.
    let _ = cgroups_in(&scratch).destroy_round(&path("/kubepods/podleft"));
    for below in ["", "/container"] {
        assert_eq!(read(&scratch, &format!("freezer/kubepods/podleft{below}/freezer.state")), "THAWED");
    }
}

#[test]
fn a_missing_controller_is_named() {
    let wants = |settings: CgroupSettings, scratch: &Scratch| {
        let cgroups = cgroups_in(scratch);
        cgroups.ensure(&path("/kubepods"), &settings).unwrap_err().to_string()
    };
    let text = |name: &str, scratch: &Scratch| {
        format!("cgroup controller {name:?} is not available below {}", scratch.root().display())
    };
    let pids = CgroupSettings { pids_max: Some(1), ..none() };

    let no_memory = machine_v1(&["cpu", "cpuset"], &[]);
    assert_eq!(wants(none(), &no_memory), text("memory", &no_memory));
    assert!(!no_memory.path("cpu/kubepods").exists(), "nothing is half made");
    let no_pids = machine_v1(&["cpu", "memory"], &["kubepods"]);
    assert_eq!(wants(pids.clone(), &no_pids), text("pids", &no_pids));

    let v2 = Scratch::new();
    v2.file("cgroup.controllers", "cpu io\n");
    v2.file("cgroup.subtree_control", "cpu\n");
    assert_eq!(wants(none(), &v2), text("memory", &v2));
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
    let cgroups = cgroups_in(&scratch);
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
        let settings = CgroupSettings { cpu_quota: quota, cpu_period: period, ..none() };
        cgroups.ensure(&path("/kubepods/poda"), &settings).unwrap();
        assert_eq!(read(&scratch, "kubepods/poda/cpu.max"), written);
    }
}

/// A version 2 machine without a kernel.
fn machine_v2(levels: &[&str]) -> Scratch {
    let scratch = Scratch::new();
    for level in levels.iter().chain([&"."]) {
        let file = |name: &str, text: &str| scratch.file(&format!("{level}/{name}"), text);
        file("cgroup.controllers", "cpuset cpu io memory pids\n");
        file("cgroup.subtree_control", "cpuset cpu memory hugetlb pids\n");
        file("cpu.weight", "100\n");
        file("cpu.max", "max 100000\n");
        for bytes in ["memory.max", "pids.max"] {
            file(bytes, "max\n");
        }
        for bytes in ["memory.min", "memory.low"] {
            file(bytes, "0\n");
        }
        file("memory.current", "57000000\n");
        file("memory.stat", "anon 49000000\nactive_file 3000000\ninactive_file 4000000\n");
    }
    scratch
}

#[test]
fn a_value_that_somebody_changed_is_put_right_and_told() {
    for scratch in [machine_v1(&["cpu", "memory", "pids"], &["kubepods"]), machine_v2(&["kubepods"])] {
        let cgroups = cgroups_in(&scratch);
        let wanted = CgroupSettings { hugepage_limits: vec![], ..settings() };
        assert!(cgroups.ensure(&path("/kubepods"), &wanted).unwrap());
        assert!(!cgroups.ensure(&path("/kubepods"), &wanted).unwrap());
        let pids = match cgroups.version() {
            CgroupVersion::V1 => "pids/kubepods/pids.max",
            CgroupVersion::V2 => "kubepods/pids.max",
        };
        scratch.file(pids, "5\n");
        assert!(cgroups.ensure(&path("/kubepods"), &wanted).unwrap());
        assert_eq!(read(&scratch, pids), "100");
    }
}

#[test]
fn memory_is_kept_and_a_limit_that_yields_takes_nothing_in_use() {
    let scratch = machine_v2(&["kubepods"]);
    let cgroups = cgroups_in(&scratch);
    let kept = CgroupSettings { memory_min_bytes: Some(4096), memory_low_bytes: Some(8192), ..none() };
    assert!(cgroups.ensure(&path("/kubepods"), &kept).unwrap());
    assert_eq!(read(&scratch, "kubepods/memory.min"), "4096");
    assert_eq!(read(&scratch, "kubepods/memory.low"), "8192");
    for (limit, yields, written) in
        [(40_000_000, true, "50000000"), (60_000_000, true, "60000000"), (40_000_000, false, "40000000")]
    {
        let limited = CgroupSettings { memory_limit_bytes: Some(limit), memory_limit_yields: yields, ..none() };
        cgroups.ensure(&path("/kubepods"), &limited).unwrap();
        assert_eq!(read(&scratch, "kubepods/memory.max"), written);
    }
}

#[test]
fn no_limit_reads_back_as_none() {
    let scratch = machine_v2(&["kubepods"]);
    let unlimited = CgroupSettings { memory_limit_bytes: Some(MEMORY_UNLIMITED), ..none() };
    assert!(!cgroups_in(&scratch).ensure(&path("/kubepods"), &unlimited).unwrap());
}

#[test]
fn a_cgroup_that_must_be_there_is_looked_at() {
    let check =
        |scratch: &Scratch, cgroup: &str| cgroups_in(scratch).check(&path(cgroup)).map_err(|error| error.to_string());
    let v1 = machine_v1(&["cpu", "memory", "pids", "freezer"], &["kube"]);
    assert_eq!(check(&v1, "/kube"), Ok(()));
    assert_eq!(check(&v1, "/"), Ok(()));
    let missing = |directory: &Path| Err(format!("there is no cgroup {}", directory.display()));
    assert_eq!(check(&v1, "/none"), missing(&v1.path("cpu/none")));
    v1.dir("cpu/half");
    assert_eq!(check(&v1, "/half"), missing(&v1.path("memory/half")));

    let v2 = machine_v2(&["kube", "half"]);
    assert_eq!(check(&v2, "/kube"), Ok(()));
    assert_eq!(check(&v2, "/"), Ok(()));
    assert_eq!(check(&v2, "/none"), missing(&v2.path("none")));
    v2.file("half/cgroup.controllers", "cpu io memory\n");
    let half = v2.path("half");
    assert_eq!(check(&v2, "/half"), Err(format!("cgroup {} has not the controllers cpuset, pids", half.display())));
}

#[test]
fn read_only_cgroups_are_named() {
    if !may_mount("mounting a read-only tree") {
        return;
    }
    let scratch = machine_v1(&["cpu", "memory"], &[]);
    scratch.make_read_only();
    let error = cgroups_in(&scratch).ensure(&path("/kubepods"), &none()).unwrap_err();
    assert!(crate::causes::chain(&error).ends_with("cpu/kubepods: Read-only file system (os error 30)"), "{error}");
}

#[test]
fn with_systemd_pods_are_found_as_slices() {
    let scratch = machine_v2(&[]);
    scratch.dir("run/systemd/system");
    let cgroups = cgroups_in(&scratch);
    cgroups.use_driver(CgroupDriver::Systemd).unwrap();
    for slice in [
        "kubepods.slice/kubepods-poda_1.slice",
        "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podb.slice",
        "kubepods/besteffort/podc",
    ] {
        scratch.dir(slice);
    }
    let found = cgroups.list_pods(&path("/kubepods")).unwrap();
    let pod = |uid: &str, at: &str| (PodUid::new(uid), path(at));
    assert_eq!(found, [pod("a-1", "/kubepods/poda-1"), pod("b", "/kubepods/burstable/podb")]);
}

#[test]
fn a_slice_that_is_right_needs_no_word_to_systemd() {
    let slice = "kubepods.slice/kubepods-burstable.slice";
    let scratch = machine_v2(&["kubepods.slice", slice]);
    scratch.dir("run/systemd/system");
    let cgroups = cgroups_in(&scratch);
    cgroups.use_driver(CgroupDriver::Systemd).unwrap();
    let shares = |shares| CgroupSettings { cpu_shares: Some(shares), ..none() };
    scratch.file(&format!("{slice}/cpu.weight"), "39\n");
    assert!(!cgroups.ensure(&path("/kubepods/burstable"), &shares(1024)).unwrap());
    // Nobody listens here, so any word fails.
    let told = cgroups.ensure(&path("/kubepods/burstable"), &shares(2048)).unwrap_err().to_string();
    assert!(told.starts_with("cannot reach kubepods-burstable.slice by systemd"), "{told}");
    let told = cgroups.ensure(&path("/kubepods/besteffort"), &none()).unwrap_err().to_string();
    assert!(told.starts_with("cannot reach kubepods-besteffort.slice by systemd"), "{told}");
}

#[test]
fn systemd_cannot_be_used_where_it_does_not_run_nor_later() {
    let scratch = machine_v2(&[]);
    let cgroups = cgroups_in(&scratch);
    assert!(cgroups.use_driver(CgroupDriver::Systemd).unwrap_err().to_string().contains("systemd does not run"));
    cgroups.use_driver(CgroupDriver::Cgroupfs).unwrap();
    scratch.dir("run/systemd/system");
    assert!(cgroups.use_driver(CgroupDriver::Systemd).is_err());
}

#[test]
fn pods_are_found_in_whatever_hierarchy_they_are_left() {
    let scratch = machine_v1(&["cpu", "memory"], &["kubepods/poda", "kubepods/burstable/podb-1"]);
    scratch.dir("memory/kubepods/besteffort/podc");
    scratch.dir("memory/kubepods/besteffort/other");
    scratch.dir("memory/kubepods/podless/podx");
    scratch.dir("memory/kubepods/pod");
    let cgroups = cgroups_in(&scratch);
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
    let cgroups = Cgroups::new("/sys/fs/cgroup".into(), "/run".into());
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
    assert!(!cgroups.ensure(&pod, &odd).unwrap(), "nothing is left to be done");
    assert!(cgroups.ensure(&pod, &CgroupSettings { pids_max: Some(99), ..none() }).unwrap());

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
    let cgroups = Cgroups::new(root.into(), "/run".into());
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
