//! Machines for tests: a short description, from which come the files that its kernel would
//! show and what should be read off them.
//!
//! They have fewer cores than real ones: each CPU is a dozen files. The files follow from who
//! shares what, the expected answer from the description itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Cpu, Machine, NumaNode};
use crate::config::CpuSet;

pub(crate) const GIB: u64 = 1 << 30;

/// A hardware thread. Equal numbers mean the same core, or the same cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thread {
    pub id: u32,
    pub core: u32,
    pub socket: u32,
    pub node: u32,
    pub l2: u32,
    pub l3: Option<u32>,
    /// Any CPU of the group that upstream would see it in.
    pub group: u32,
    pub is_online: bool,
}

/// What a kernel or a board leaves out of the files.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gaps {
    /// Kernels before 5.3 call it `thread_siblings_list` only.
    pub core_lists: bool,
    pub packages: bool,
    pub topology: bool,
    pub caches: bool,
    pub nodes: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub threads: Vec<Thread>,
    pub nodes: Vec<NumaNode>,
    pub gaps: Gaps,
}

/// A machine all of whose sockets are alike.
pub(crate) struct Regular {
    pub sockets: u32,
    pub nodes_per_socket: u32,
    pub cores_per_node: u32,
    pub threads_per_core: u32,
    pub cores_per_l3: u32,
    /// Of each node.
    pub memory_bytes: u64,
    pub hugepages: Vec<(u64, u64)>,
}

impl Regular {
    /// Numbered as Linux does on most machines: first all cores, then their second threads.
    pub fn tree(&self) -> Tree {
        let nodes = self.sockets * self.nodes_per_socket;
        let cores = nodes * self.cores_per_node;
        let cores_per_socket = cores / self.sockets;
        let thread = |id: u32| {
            let core = id % cores;
            let socket = core / cores_per_socket;
            let l3 = core / self.cores_per_l3;
            // A cache of the whole node does not count.
            let is_smaller_or_larger = self.cores_per_l3 != self.cores_per_node;
            let group = if is_smaller_or_larger { l3 * self.cores_per_l3 } else { socket * cores_per_socket };
            let node = core / self.cores_per_node;
            Thread { id, core, socket, node, l2: core, l3: Some(l3), group, is_online: true }
        };
        let distance =
            |from: u32, to: u32| match (from == to, from / self.nodes_per_socket == to / self.nodes_per_socket) {
                (true, _) => 10,
                (_, true) => 12,
                (_, false) => 32,
            };
        let node = |id| NumaNode {
            id,
            memory_bytes: self.memory_bytes,
            hugepages: self.hugepages.clone(),
            distances: (0..nodes).map(|to| distance(id, to)).collect(),
        };
        Tree {
            threads: (0..cores * self.threads_per_core).map(thread).collect(),
            nodes: (0..nodes).map(node).collect(),
            gaps: Gaps::default(),
        }
    }
}

/// Four large cores of two threads, two clusters of four small ones with an L2 each.
pub(crate) fn laptop() -> Tree {
    let thread = |id: u32| {
        let (core, l2) = if id < 8 { (id / 2 * 2, id / 2 * 2) } else { (id, id / 4 * 4) };
        Thread { id, core, socket: 0, node: 0, l2, l3: Some(0), group: 0, is_online: true }
    };
    Tree { threads: (0..16).map(thread).collect(), nodes: vec![only_node(16 * GIB)], gaps: Gaps::default() }
}

/// Two threads a core, the last-level cache is the socket's, each socket is two nodes.
pub(crate) fn server() -> Tree {
    let hugepages = vec![(2 << 20, 512), (1 << 30, 4)];
    let (sockets, nodes_per_socket, cores_per_node, threads_per_core) = (2, 2, 3, 2);
    let (cores_per_l3, memory_bytes) = (6, 64 * GIB);
    Regular { sockets, nodes_per_socket, cores_per_node, threads_per_core, cores_per_l3, memory_bytes, hugepages }
        .tree()
}

/// Four last-level caches in each of two nodes.
pub(crate) fn split_l3() -> Tree {
    let hugepages = vec![(2 << 20, 0), (1 << 30, 0)];
    let (sockets, nodes_per_socket, cores_per_node, threads_per_core) = (2, 1, 8, 2);
    let (cores_per_l3, memory_bytes) = (2, 128 * GIB);
    Regular { sockets, nodes_per_socket, cores_per_node, threads_per_core, cores_per_l3, memory_bytes, hugepages }
        .tree()
}

/// One thread a core, the last-level cache is the node's.
pub(crate) fn arm_server() -> Tree {
    let hugepages = vec![(64 << 10, 0), (2 << 20, 16), (32 << 20, 0), (1 << 30, 1)];
    let (sockets, nodes_per_socket, cores_per_node, threads_per_core) = (2, 1, 6, 1);
    let (cores_per_l3, memory_bytes) = (6, 32 * GIB);
    Regular { sockets, nodes_per_socket, cores_per_node, threads_per_core, cores_per_l3, memory_bytes, hugepages }
        .tree()
}

/// Four small cores and two large ones, and a kernel that says little of them.
pub(crate) fn board() -> Tree {
    let thread =
        |id: u32| Thread { id, core: id, socket: 0, node: 0, l2: id / 4 * 4, l3: None, group: 0, is_online: true };
    let gaps = Gaps { nodes: true, packages: true, core_lists: true, ..Gaps::default() };
    Tree { threads: (0..6).map(thread).collect(), nodes: vec![only_node(4 * GIB)], gaps }
}

pub(crate) fn trees() -> Vec<(&'static str, Tree)> {
    vec![
        ("laptop", laptop()),
        ("server", server()),
        ("split L3", split_l3()),
        ("Arm server", arm_server()),
        ("board", board()),
    ]
}

/// The same as they are read, for rooms that have no use for files.
pub fn machines() -> Vec<(&'static str, Machine)> {
    trees().into_iter().map(|(name, tree)| (name, tree.machine())).collect()
}

pub(crate) fn only_node(memory_bytes: u64) -> NumaNode {
    NumaNode { id: 0, memory_bytes, hugepages: vec![(2 << 20, 3)], distances: vec![10] }
}

impl Tree {
    pub fn without(mut self, offline: &[u32]) -> Tree {
        for thread in &mut self.threads {
            thread.is_online &= !offline.contains(&thread.id);
        }
        self
    }

    fn online(&self) -> impl Iterator<Item = &Thread> {
        self.threads.iter().filter(|thread| thread.is_online)
    }

    /// What should be read.
    pub fn machine(&self) -> Machine {
        let first = |of: &dyn Fn(&Thread) -> bool| self.online().find(|other| of(other)).map(|thread| thread.id);
        let cpu = |thread: &Thread| Cpu {
            id: thread.id,
            core: first(&|other| other.core == thread.core).expect("it is one of them"),
            socket: thread.socket,
            node: thread.node,
            cache: first(&|other| other.group == thread.group).expect("it is one of them"),
        };
        Machine { cpus: self.online().map(cpu).collect(), nodes: self.nodes.clone() }
    }

    /// Of a machine whose nodes are not told.
    pub fn memory_bytes(&self) -> u64 {
        self.nodes.iter().map(|node| node.memory_bytes).sum()
    }

    /// The root of /sys.
    pub fn write(&self, sys: &Path) {
        for (path, text) in self.files() {
            let path = sys.join(path);
            fs::create_dir_all(path.parent().expect("it is below the root")).expect("a directory can be made");
            fs::write(path, text).expect("a file can be written");
        }
    }

    fn files(&self) -> BTreeMap<PathBuf, String> {
        let mut files = Files::default();
        files.add("devices/system/cpu/online", self.those(|thread| thread.is_online));
        files.add("devices/system/cpu/possible", self.those(|_| true));
        files.add("devices/system/cpu/cpuidle/current_driver", "none");
        self.threads.iter().for_each(|thread| self.thread(thread, &mut files));
        match self.gaps.nodes {
            true => files.hugepages("kernel/mm/hugepages", &self.nodes[0]),
            false => self.numa(&mut files),
        }
        files.0
    }

    /// CPUs that are down have a directory with little in it.
    fn thread(&self, thread: &Thread, files: &mut Files) {
        let at = format!("devices/system/cpu/cpu{}", thread.id);
        files.add(&format!("{at}/online"), u8::from(thread.is_online));
        if !thread.is_online {
            return;
        }
        let core = self.those(|other| other.is_online && other.core == thread.core);
        if !self.gaps.topology {
            let package = if self.gaps.packages { -1 } else { i64::from(thread.socket) };
            files.add(&format!("{at}/topology/physical_package_id"), package);
            files.add(&format!("{at}/topology/thread_siblings_list"), &core);
            if !self.gaps.core_lists {
                files.add(&format!("{at}/topology/core_cpus_list"), &core);
            }
        }
        if !self.gaps.caches {
            let l2 = self.those(|other| other.is_online && other.l2 == thread.l2);
            let l3 = self.those(|other| other.is_online && other.l3 == thread.l3);
            let mut caches = vec![(1, "Data", &core), (1, "Instruction", &core), (2, "Unified", &l2)];
            caches.extend(thread.l3.map(|_| (3, "Unified", &l3)));
            for (index, (level, kind, shared)) in caches.into_iter().enumerate() {
                files.cache(&at, index, level, kind, shared);
            }
        }
    }

    fn numa(&self, files: &mut Files) {
        let online: CpuSet = self.nodes.iter().map(|node| node.id).collect();
        files.add("devices/system/node/online", online);
        for node in &self.nodes {
            let at = format!("devices/system/node/node{}", node.id);
            let kibibytes = node.memory_bytes / 1024;
            let meminfo = format!("Node {0} MemTotal:  {kibibytes} kB\nNode {0} MemFree:  1 kB", node.id);
            let distances: Vec<_> = node.distances.iter().map(u32::to_string).collect();
            files.add(&format!("{at}/cpulist"), self.those(|thread| thread.is_online && thread.node == node.id));
            files.add(&format!("{at}/meminfo"), meminfo);
            files.add(&format!("{at}/distance"), distances.join(" "));
            files.hugepages(&format!("{at}/hugepages"), node);
        }
    }

    fn those(&self, which: impl Fn(&Thread) -> bool) -> CpuSet {
        self.threads.iter().filter(|thread| which(thread)).map(|thread| thread.id).collect()
    }
}

#[derive(Default)]
struct Files(BTreeMap<PathBuf, String>);

impl Files {
    fn add(&mut self, path: &str, text: impl ToString) {
        self.0.insert(path.into(), text.to_string() + "\n");
    }

    fn cache(&mut self, cpu: &str, index: usize, level: u32, kind: &str, shared: &CpuSet) {
        let at = format!("{cpu}/cache/index{index}");
        self.add(&format!("{at}/level"), level);
        self.add(&format!("{at}/type"), kind);
        self.add(&format!("{at}/shared_cpu_list"), shared);
    }

    fn hugepages(&mut self, at: &str, node: &NumaNode) {
        for (bytes, pages) in &node.hugepages {
            self.add(&format!("{at}/hugepages-{}kB/nr_hugepages", bytes / 1024), pages);
        }
    }
}
