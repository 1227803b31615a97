//! Machines of all kinds, written as their kernels would show them and read back.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::testing::{GIB, Gaps, Regular, Thread, Tree, arm_server, board, laptop, only_node, server, split_l3, trees};
use super::{Cpu, Machine, NumaNode, read};
use crate::host::testing::machines;

/// In memory, where it can be: thousands of small files keep a busy disk for half a minute.
fn written(tree: &Tree) -> TempDir {
    let sys = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory");
    tree.write(sys.path());
    sys
}

fn found(sys: &Path, tree: &Tree) -> Machine {
    read(sys, tree.memory_bytes()).expect("a machine")
}

/// Written and read, it is what its description says.
fn check(name: &str, tree: &Tree) {
    let sys = written(tree);
    assert_eq!(found(sys.path(), tree), tree.machine(), "{name}");
}

fn put(sys: &TempDir, path: &str, text: &str) {
    let path = sys.path().join("devices/system").join(path);
    fs::create_dir_all(path.parent().expect("it is below the root")).expect("a directory");
    fs::write(path, text).expect("a file");
}

#[test]
fn machines_are_read_as_they_were_described() {
    for (name, tree) in trees() {
        check(name, &tree);
    }
}

/// Against the descriptions themselves being wrong.
#[test]
fn descriptions_are_of_the_machines_they_name() {
    let check = |tree: Tree, cpus: usize, cpu: Cpu| {
        let machine = tree.machine();
        assert_eq!((machine.cpus.len(), machine.cpus[cpu.id as usize]), (cpus, cpu));
    };
    check(laptop(), 16, Cpu { id: 7, core: 6, socket: 0, node: 0, cache: 0 });
    check(laptop(), 16, Cpu { id: 13, core: 13, socket: 0, node: 0, cache: 0 });
    check(server(), 24, Cpu { id: 10, core: 10, socket: 1, node: 3, cache: 6 });
    check(server(), 24, Cpu { id: 16, core: 4, socket: 0, node: 1, cache: 0 });
    check(split_l3(), 32, Cpu { id: 13, core: 13, socket: 1, node: 1, cache: 12 });
    check(split_l3(), 32, Cpu { id: 19, core: 3, socket: 0, node: 0, cache: 2 });
    check(arm_server(), 12, Cpu { id: 8, core: 8, socket: 1, node: 1, cache: 6 });
    check(board(), 6, Cpu { id: 5, core: 5, socket: 0, node: 0, cache: 0 });
    assert_eq!(server().machine().nodes[2].distances, [32, 32, 10, 12]);
}

#[test]
fn ids_name_the_lowest_of_their_group() {
    for (name, machine) in machines() {
        for cpu in &machine.cpus {
            for first in [cpu.core, cpu.cache] {
                let of = machine.cpus.iter().find(|other| other.id == first).expect(name);
                assert!(of.id <= cpu.id && of.cache == cpu.cache, "{name}: {cpu:?} and {of:?}");
            }
            assert!(machine.nodes.iter().any(|node| node.id == cpu.node), "{name}: {cpu:?}");
        }
    }
}

#[test]
fn offline_cpus_are_not_there_and_leave_their_names_to_others() {
    check("second threads off", &server().without(&(12..24).collect::<Vec<_>>()));
    check("a hole", &server().without(&[1, 7, 8, 15]));
    check("a whole node", &server().without(&[(3..6), (15..18)].into_iter().flatten().collect::<Vec<_>>()));

    let tree = split_l3().without(&[0, 2, 3]);
    check("first of its core, and all but threads of a cache", &tree);
    let machine = found(written(&tree).path(), &tree);
    let cpu = |id| *machine.cpus.iter().find(|cpu| cpu.id == id).expect("it is online");
    assert_eq!((cpu(16).core, cpu(1).cache), (16, 1));
    assert_eq!((cpu(18).core, cpu(19).cache), (18, 18));
}

#[test]
fn offline_cpus_that_a_kernel_still_lists_do_not_count() {
    let tree = split_l3().without(&[2]);
    let sys = written(&tree);
    put(&sys, "node/node0/cpulist", "0-7,16-23");
    put(&sys, "cpu/cpu18/topology/core_cpus_list", "2,18");
    put(&sys, "cpu/cpu18/cache/index3/shared_cpu_list", "2-3,18-19");
    assert_eq!(found(sys.path(), &tree), tree.machine());
}

#[test]
fn nodes_of_memory_only_are_nodes() {
    let mut tree = arm_server();
    tree.nodes.push(NumaNode { id: 4, memory_bytes: 256 * GIB, hugepages: vec![], distances: vec![20, 40, 10] });
    tree.nodes[0].distances.push(20);
    tree.nodes[1].distances.push(40);
    check("a node of CXL memory with a gap before it", &tree);

    tree.nodes[2].memory_bytes = 0;
    check("the same before its memory is online", &tree);
}

#[test]
fn only_nodes_that_are_online_count() {
    let tree = arm_server();
    let sys = written(&tree);
    put(&sys, "node/node7/meminfo", "Node 7 MemTotal: 1024 kB\n");
    put(&sys, "node/possible", "0-7\n");
    assert_eq!(found(sys.path(), &tree), tree.machine());
}

#[test]
fn a_machine_without_node_directories_is_one_node() {
    let gaps = Gaps { nodes: true, ..Gaps::default() };
    check("one socket", &Tree { gaps, ..laptop() });
    let sockets = Regular {
        sockets: 2,
        nodes_per_socket: 1,
        cores_per_node: 2,
        threads_per_core: 1,
        cores_per_l3: 2,
        memory_bytes: GIB,
        hugepages: vec![],
    };
    let mut tree = Tree { gaps, nodes: vec![only_node(2 * GIB)], ..sockets.tree() };
    tree.threads.iter_mut().for_each(|thread| thread.node = 0);
    check("two sockets", &tree);
}

#[test]
fn without_caches_the_socket_is_the_group() {
    let mut tree = split_l3();
    tree.gaps.caches = true;
    tree.threads.iter_mut().for_each(|thread| thread.group = thread.socket);
    check("no cache told", &tree);
}

#[test]
fn cpus_outside_the_cache_of_their_socket_are_a_group() {
    let mut tree = laptop();
    let small = |id| Thread { id, core: id, socket: 0, node: 0, l2: 16, l3: None, group: 16, is_online: true };
    tree.threads.extend([16, 17].map(small));
    check("small cores with nothing but an L2", &tree);
}

#[test]
fn caches_further_out_and_of_instructions_do_not_group() {
    let tree = split_l3();
    let sys = written(&tree);
    for cpu in 0..32 {
        for (level, kind, index) in [("3", "Instruction", 2), ("4", "Unified", 4)] {
            put(&sys, &format!("cpu/cpu{cpu}/cache/index{index}/level"), level);
            put(&sys, &format!("cpu/cpu{cpu}/cache/index{index}/type"), kind);
            put(&sys, &format!("cpu/cpu{cpu}/cache/index{index}/shared_cpu_list"), "0-31");
        }
    }
    assert_eq!(found(sys.path(), &tree), tree.machine());
}

#[test]
fn cpus_without_topology_are_cores_of_one_socket() {
    let mut tree = server();
    tree.gaps.topology = true;
    for thread in &mut tree.threads {
        (thread.core, thread.socket) = (thread.id, 0);
    }
    check("no topology told", &tree);
}

#[test]
fn figures_a_kernel_does_not_tell_are_left_out() {
    let tree = arm_server();
    let sys = written(&tree);
    for file in ["meminfo", "distance", "hugepages", "cpulist"] {
        let at = sys.path().join("devices/system/node/node1").join(file);
        fs::remove_file(&at).or_else(|_| fs::remove_dir_all(&at)).expect("it was there");
    }
    let machine = found(sys.path(), &tree);
    assert_eq!(machine.nodes[1], NumaNode { id: 1, ..NumaNode::default() });
    // Nobody says where these are, but they run.
    assert_eq!((machine.cpus.len(), machine.cpus[8].node), (12, 0));

    let tree = laptop();
    let sys = written(&tree);
    fs::remove_file(sys.path().join("devices/system/node/node0/meminfo")).expect("it was there");
    assert_eq!(found(sys.path(), &tree), tree.machine(), "the only node has all memory");
}

#[test]
fn a_machine_that_does_not_say_which_cpus_are_online_is_an_error() {
    let sys = tempfile::tempdir().expect("a temporary directory");
    let check = |expected: &str| {
        let error = read(sys.path(), GIB).expect_err(expected).to_string();
        assert!(error.contains("cpu/online") && error.contains(expected), "{error}");
    };
    check("failed to read");
    put(&sys, "cpu/online", "\n");
    check("no CPU is listed");
    put(&sys, "cpu/online", "0-x\n");
    check("expected a list of CPUs");
    put(&sys, "cpu/online", "2\n");
    let machine = read(sys.path(), GIB).expect("a machine");
    assert_eq!(machine.cpus, [Cpu { id: 2, core: 2, socket: 0, node: 0, cache: 2 }]);
    assert_eq!(machine.nodes, [NumaNode { id: 0, memory_bytes: GIB, hugepages: vec![], distances: vec![10] }]);
}
