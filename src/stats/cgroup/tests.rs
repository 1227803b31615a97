use std::fs;
use std::path::Path;

use super::tree::Processes;
use super::*;
use crate::stats::reader::Reader;

const V1_MEMORY: &str = "cache 45056\nrss 8192\nmapped_file 4096\nswap 0\npgfault 12\npgmajfault 1\n\
    inactive_file 0\nactive_file 0\nhierarchical_memory_limit 25276514304\ntotal_cache 16384\ntotal_rss 110592\n\
    total_mapped_file 8192\ntotal_swap 512\ntotal_pgfault 3714\ntotal_pgmajfault 3\ntotal_inactive_file 4096\n\
    total_active_file 12288\n";
const V2_CPU: &str = "usage_usec 54057\nuser_usec 12000\nsystem_usec 42057\nnice_usec 0\nnr_periods 30\n\
    nr_throttled 4\nthrottled_usec 250000\nnr_bursts 1\nburst_usec 7\n";
const V2_MEMORY: &str = "anon 110592\nfile 16384\nkernel 274432\nfile_mapped 8192\ninactive_file 4096\n\
    active_file 12288\npgfault 3714\npgmajfault 3\n";
const PRESSURE: &str = "some avg10=1.74 avg60=2.59 avg300=15.18 total=7134320\n\
    full avg10=0.00 avg60=0.01 avg300=0.02 total=17\n";

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("it is below the root")).expect("a directory");
    fs::write(path, text).expect("a file");
}

fn v1(root: &Path) {
    for (file, text) in [
        ("cpu,cpuacct/a/b/cpuacct.usage", "54057647\n"),
        ("cpu,cpuacct/a/b/cpuacct.stat", "user 1\nsystem 4\n"),
        ("cpu,cpuacct/a/b/cpu.stat", "nr_periods 30\nnr_throttled 4\nthrottled_time 250000000\n"),
        ("cpu,cpuacct/a/b/cpu.shares", "2\n"),
        ("cpu,cpuacct/a/b/cpu.cfs_period_us", "100000\n"),
        ("cpu,cpuacct/a/b/cpu.cfs_quota_us", "50000\n"),
        ("memory/a/b/memory.usage_in_bytes", "688128\n"),
        ("memory/a/b/memory.stat", V1_MEMORY),
        ("memory/a/b/memory.max_usage_in_bytes", "700000\n"),
        ("memory/a/b/memory.failcnt", "5\n"),
        ("memory/a/b/memory.kmem.usage_in_bytes", "274432\n"),
        ("memory/a/b/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
        ("memory/a/b/memory.limit_in_bytes", "1048576\n"),
        ("memory/a/b/memory.soft_limit_in_bytes", "9223372036854771712\n"),
        ("memory/a/b/memory.memsw.limit_in_bytes", "3145728\n"),
        ("memory/a/b/cgroup.procs", "7\n0\n12\n"),
        ("memory/a/b/cgroup.clone_children", "0\n"),
        ("pids/a/b/pids.current", "3\n"),
        ("pids/a/b/pids.max", "max\n"),
        (
            "blkio/a/b/blkio.throttle.io_service_bytes_recursive",
            "254:0 Read 4096\n254:0 Write 8192\n254:0 Sync 12288\n254:0 Discard 1\n254:0 Total 12288\nTotal 12288\n",
        ),
        ("blkio/a/b/blkio.throttle.io_serviced_recursive", "254:0 Read 1\n254:0 Write 2\n7:1 Read 3\nTotal 3\n"),
        ("systemd/a/b/cgroup.procs", ""),
    ] {
        write(root, file, text);
    }
}

fn v2(root: &Path) {
    write(root, "cgroup.controllers", "cpu memory io pids\n");
    for (file, text) in [
        ("cpu.stat", V2_CPU),
        ("cpu.weight", "100\n"),
        ("cpu.max", "50000 100000\n"),
        ("memory.current", "688128\n"),
        ("memory.stat", V2_MEMORY),
        ("memory.peak", "700000\n"),
        ("memory.swap.current", "512\n"),
        ("memory.swap.max", "2097152\n"),
        ("memory.max", "1048576\n"),
        ("memory.low", "0\n"),
        ("memory.events", "low 0\nhigh 0\nmax 5\noom 2\noom_kill 2\noom_group_kill 0\n"),
        ("pids.current", "3\n"),
        ("pids.max", "max\n"),
        ("io.stat", "254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=1 dios=0\n7:0 \ngarbage\n"),
        ("cpu.pressure", PRESSURE),
        ("memory.pressure", PRESSURE),
        ("io.pressure", PRESSURE),
        ("cgroup.procs", "7\n0\n12\n"),
        ("cgroup.controllers", "cpu memory\n"),
    ] {
        write(root, &format!("a/b/{file}"), text);
    }
}

/// A machine of that version, with one cgroup of the same life, `/a/b`.
fn tree(make: fn(&Path)) -> (tempfile::TempDir, Tree) {
    let root = tempfile::tempdir().expect("a temporary directory");
    make(root.path());
    let tree = Tree::find(root.path());
    (root, tree)
}

fn read(tree: &Tree, id: &str, detail: Detail) -> Option<Figures> {
    let mut reader = Reader::default();
    let spec = tree.spec(id, &mut reader);
    tree.figures(id, &spec, detail, &mut reader)
}

#[test]
fn both_versions_tell_the_same_of_the_same() {
    for (make, own_faults) in
        [(v1 as fn(&Path), Some(Faults { all: Some(12), major: Some(1) })), (v2 as fn(&Path), None)]
    {
        let (_root, tree) = tree(make);
        let found = read(&tree, "/a/b", Detail::All).expect("it is there");
        let expected = Memory {
            usage: Some(688_128),
            working_set: Some(684_032),
            rss: Some(110_592),
            cache: Some(16_384),
            mapped_file: Some(8192),
            active_file: Some(12_288),
            inactive_file: Some(4096),
            swap: Some(512),
            faults: Faults { all: Some(3714), major: Some(3) },
            own_faults,
            kernel: Some(274_432),
            usage_max: Some(700_000),
            limit_hits: Some(5),
        };
        assert_eq!(found.memory, expected);
        let throttling = found.throttling.expect("it has a quota");
        assert_eq!((throttling.periods, throttling.throttled_periods), (30, 4));
        assert_eq!(throttling.throttled_ns, 250_000_000);
        assert_eq!((found.oom_kills, found.threads), (Some(2), Some(3)));
        let device = &found.devices[0];
        assert_eq!((device.major, device.minor, device.read_bytes, device.write_bytes), (254, 0, 4096, 8192));
        assert_eq!((device.reads, device.writes, device.discard_bytes), (1, 2, 1));
    }
}

#[test]
fn cpu_time_is_told_in_nanoseconds() {
    let (_root, first) = tree(v1);
    let cpu = read(&first, "/a/b", Detail::All).expect("it is there").cpu;
    let expected = Cpu { usage_ns: Some(54_057_647), user_ns: Some(10_000_000), system_ns: Some(40_000_000) };
    assert_eq!(cpu, expected);
    let (_root, second) = tree(v2);
    let cpu = read(&second, "/a/b", Detail::All).expect("it is there").cpu;
    let expected = Cpu { usage_ns: Some(54_057_000), user_ns: Some(12_000_000), system_ns: Some(42_057_000) };
    assert_eq!(cpu, expected);
}

#[test]
fn limits_are_read_and_none_is_none() {
    let (_root, first) = tree(v1);
    let found = first.spec("/a/b", &mut Reader::default());
    let expected = Spec {
        cpu_shares: Some(2),
        cpu_period_us: Some(100_000),
        cpu_quota_us: Some(50_000),
        memory_limit: Some(1 << 20),
        memory_reservation: None,
        // Beside the memory.
        swap_limit: Some(2 << 20),
        memory_and_swap_limit: Some(3 << 20),
        threads_max: None,
    };
    assert_eq!(found, expected);
    let (root, second) = tree(v2);
    let found = second.spec("/a/b", &mut Reader::default());
    let expected =
        Spec { cpu_shares: Some(2597), memory_reservation: Some(0), memory_and_swap_limit: None, ..expected };
    assert_eq!(found, expected);
    for (file, text) in [("cpu.max", "max 100000\n"), ("memory.max", "max\n"), ("memory.swap.max", "\n")] {
        write(root.path(), &format!("a/b/{file}"), text);
    }
    let found = second.spec("/a/b", &mut Reader::default());
    assert_eq!((found.cpu_quota_us, found.cpu_period_us), (None, Some(100_000)));
    assert_eq!((found.memory_limit, found.swap_limit), (None, None));
}

#[test]
fn a_short_look_reads_no_more_than_it_tells() {
    for make in [v1 as fn(&Path), v2] {
        let (_root, tree) = tree(make);
        let found = read(&tree, "/a/b", Detail::Usage).expect("it is there");
        assert_eq!((found.memory.working_set, found.memory.swap), (Some(684_032), Some(512)));
        assert!(found.cpu.usage_ns.is_some());
        assert_eq!((found.memory.usage_max, found.threads, found.devices), (None, None, vec![]));
    }
}

#[test]
fn pressure_is_told_where_the_kernel_counts_it() {
    let (root, second) = tree(v2);
    let pressure = read(&second, "/a/b", Detail::Usage).expect("it is there").pressure.expect("it is counted");
    let some = Waiting { avg10: 1.74, avg60: 2.59, avg300: 15.18, total_us: 7_134_320 };
    let full = Waiting { avg10: 0.0, avg60: 0.01, avg300: 0.02, total_us: 17 };
    assert_eq!(
        pressure,
        Pressure { cpu: Stall { some, full }, memory: Stall { some, full }, io: Stall { some, full } }
    );
    fs::remove_file(root.path().join("a/b/io.pressure")).expect("it was there");
    assert_eq!(read(&second, "/a/b", Detail::Usage).expect("it is there").pressure, None);
    assert_eq!(stall(b"some avg10=x total=-1\n\nnonsense\n"), Stall::default());
}

#[test]
fn a_cgroup_that_vanished_is_none_and_one_half_there_is_told_by_half() {
    for make in [v1 as fn(&Path), v2] {
        let (root, tree) = tree(make);
        assert_eq!(read(&tree, "/a/gone", Detail::All), None);
        assert_eq!((tree.processes("/a/gone", &mut Reader::default()), tree.children("/a/gone")), (None, vec![]));
        for directory in ["memory", "pids", "blkio"] {
            let _ = fs::remove_dir_all(root.path().join(directory));
        }
        for file in ["memory.stat", "memory.current", "io.stat", "pids.current"] {
            let _ = fs::remove_file(root.path().join("a/b").join(file));
        }
        let found = read(&tree, "/a/b", Detail::All).expect("its CPU time is there");
        assert!(found.cpu.usage_ns.is_some());
        assert_eq!((found.memory.usage, found.memory.working_set, found.threads), (None, None, None));
    }
}

#[test]
fn files_of_nonsense_are_no_figures() {
    let (root, second) = tree(v2);
    for file in ["cpu.stat", "memory.stat", "memory.current", "io.stat", "pids.current", "memory.events"] {
        write(root.path(), &format!("a/b/{file}"), "max\nsome thing 3\n-7\n");
    }
    assert_eq!(
        read(&second, "/a/b", Detail::All).map(|found| (found.cpu, found.threads)),
        Some((Cpu::default(), None))
    );
    for file in ["memory.swap.current", "memory.peak"] {
        write(root.path(), &format!("a/b/{file}"), "");
    }
    assert_eq!(read(&second, "/a/b", Detail::All), None);
}

#[test]
fn the_root_of_version_2_uses_what_its_processes_hold() {
    let (root, second) = tree(v2);
    write(root.path(), "memory.stat", V2_MEMORY);
    write(root.path(), "cpu.stat", "usage_usec 54057\nuser_usec 12000\nsystem_usec 42057\n");
    let found = read(&second, "/", Detail::All).expect("it is there");
    assert_eq!((found.memory.usage, found.memory.working_set), (Some(126_976), Some(122_880)));
    assert_eq!(found.throttling, None);
}

#[test]
fn processes_and_cgroups_below_are_listed() {
    for make in [v1 as fn(&Path), v2] {
        let (_root, tree) = tree(make);
        assert_eq!(tree.processes("/a/b", &mut Reader::default()), Some(all(&[7, 12])));
        assert_eq!(tree.children("/a"), ["b"]);
        assert_eq!(tree.children("/a/b"), [""; 0]);
    }
}

fn all(pids: &[u32]) -> Processes {
    Processes { pids: pids.to_vec(), is_all: true }
}

#[test]
fn processes_in_cgroups_below_a_container_are_its_own() {
    for (make, hierarchy) in [(v1 as fn(&Path), "memory/"), (v2 as fn(&Path), "")] {
        let (root, tree) = tree(make);
        let write = |path: &str, text: &str| write(root.path(), &format!("{hierarchy}{path}"), text);
        write("a/b/container/cgroup.procs", "21\n");
        // A threaded one tells none of its own.
        fs::create_dir_all(root.path().join(format!("{hierarchy}a/b/container/threads"))).expect("a directory");
        write("a/b/container/threads/below/cgroup.procs", "22\n");
        assert_eq!(tree.processes("/a/b", &mut Reader::default()), Some(all(&[7, 12, 21, 22])));
        // As systemd and crun leave the first level.
        write("a/b/cgroup.procs", "");
        assert_eq!(tree.processes("/a/b", &mut Reader::default()), Some(all(&[21, 22])));
    }
}

#[test]
fn very_many_cgroups_in_a_container_are_looked_at_up_to_a_bound() {
    let (root, tree) = tree(v2);
    write(root.path(), &format!("a/b/{}cgroup.procs", "deep/".repeat(20)), "1\n");
    let found = tree.processes("/a/b", &mut Reader::default()).expect("it is there");
    assert_eq!(found, Processes { pids: vec![7, 12], is_all: false });
    fs::remove_dir_all(root.path().join("a/b/deep")).expect("it was there");
    for number in 0..300 {
        write(root.path(), &format!("a/b/{number}/cgroup.procs"), "3\n");
    }
    let found = tree.processes("/a/b", &mut Reader::default()).expect("it is there");
    assert_eq!((found.pids.len(), found.is_all), (2 + 256, false));
}

#[test]
fn devices_are_told_apart_also_where_the_kernel_forgets_the_end_of_a_line() {
    let text = b"7:0 7:1 8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:16 \n\
        8:32 rbytes=7 8:48 wbytes=8\n(unknown) rbytes=9\nrbytes=10\n8:64 cost.usage=3\n";
    let found: Vec<_> = v2::devices(text).iter().map(|it| (it.minor, it.read_bytes, it.write_bytes)).collect();
    assert_eq!(found, [(0, 1, 2), (32, 7, 0), (48, 0, 8)]);
}

#[test]
fn a_cgroup_was_made_when_it_was_first_seen_and_another_of_its_name_when_that_was() {
    let (root, tree) = tree(v2);
    let told = tree.created("/a/b").expect("it is there");
    let file = fs::File::open(root.path().join("a/b/cgroup.controllers")).expect("a file");
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(4_000_000_000)).expect("it is ours");
    let jumped = tree.created("/a/b").expect("it is there");
    assert_eq!((jumped.inode, jumped.unix_seconds), (told.inode, 4_000_000_000));
    assert_eq!(jumped.after(Some(told)), told);
    assert_eq!(told.after(Some(jumped)), told, "nor is it younger than it was told once");
    assert_eq!(jumped.after(None), jumped);
    let other = Created { inode: told.inode + 1, ..jumped };
    assert_eq!(other.after(Some(told)), other);
    assert_eq!(tree.created("/a/none"), None);
}
