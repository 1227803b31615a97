//! Reads a machine off /sys.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::super::{HostError, Result};
use super::{Cpu, Machine, NumaNode, files};
use crate::config::CpuSet;

/// What shares a cache, before it is known by its lowest CPU.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Cache(u32),
    Socket(u32),
}

/// A node and those of its CPUs that are online.
struct Node {
    node: NumaNode,
    cpus: CpuSet,
}

/// Fails only if nobody says which CPUs are online. `memory_bytes` is that of a machine without
/// NUMA, whose /sys does not tell.
pub fn read(sys: &Path, memory_bytes: u64) -> Result<Machine> {
    let cpu_dir = sys.join("devices/system/cpu");
    let online = online(&cpu_dir.join("online"))?;
    let nodes = nodes(sys, &online, memory_bytes);
    let mut cpus = Vec::with_capacity(online.len());
    let mut groups = Vec::with_capacity(online.len());
    for id in online.iter() {
        let at = cpu_dir.join(format!("cpu{id}"));
        let home = nodes.iter().find(|node| node.cpus.contains(id)).unwrap_or(&nodes[0]);
        let (socket, core) = (socket(&at), first_thread(&at, id, &online));
        groups.push(group(&at, id, socket, &home.cpus, &online));
        cpus.push(Cpu { id, core, socket, node: home.node.id, cache: id });
    }
    name_groups(&mut cpus, &groups);
    Ok(Machine { cpus, nodes: nodes.into_iter().map(|node| node.node).collect() })
}

fn online(path: &Path) -> Result<CpuSet> {
    let text = fs::read_to_string(path);
    let text = text.map_err(|source| HostError::Io { what: "read", path: path.to_owned(), source })?;
    let wrong = |why: String| HostError::Refused(format!("failed to read {}: {why}", path.display()));
    match CpuSet::parse(text.trim()) {
        Ok(online) if online.is_empty() => Err(wrong("no CPU is listed".to_owned())),
        Ok(online) => Ok(online),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// At least one.
fn nodes(sys: &Path, online: &CpuSet, memory_bytes: u64) -> Vec<Node> {
    let directory = sys.join("devices/system/node");
    let listed = files::list(&directory.join("online")).unwrap_or_default();
    if listed.is_empty() {
        let hugepages = files::hugepages(&sys.join("kernel/mm/hugepages"));
        return vec![Node {
            node: NumaNode { id: 0, memory_bytes, hugepages, distances: vec![10] },
            cpus: online.clone(),
        }];
    }
    let untold = if listed.len() == 1 { memory_bytes } else { 0 };
    let read = |id| {
        let at = directory.join(format!("node{id}"));
        let node = NumaNode {
            id,
            memory_bytes: files::memory_bytes(&at.join("meminfo")).unwrap_or(untold),
            hugepages: files::hugepages(&at.join("hugepages")),
            distances: files::distances(&at.join("distance")).unwrap_or_default(),
        };
        // Some kernels go on listing a CPU that was taken down.
        Node { node, cpus: files::list(&at.join("cpulist")).unwrap_or_default().intersection(online) }
    };
    listed.iter().map(read).collect()
}

/// Boards without firmware tables have no such file, or −1 in it: those have one socket.
fn socket(cpu: &Path) -> u32 {
    files::number(&cpu.join("topology/physical_package_id")).unwrap_or(0)
}

/// The second name is that of kernels before 5.3.
fn first_thread(cpu: &Path, id: u32, online: &CpuSet) -> u32 {
    let list = |name| files::list(&cpu.join("topology").join(name));
    let threads = list("core_cpus_list").or_else(|| list("thread_siblings_list")).unwrap_or_default();
    threads.iter().filter(|thread| online.contains(*thread)).min().map_or(id, |first| first.min(id))
}

/// The cache that upstream (cAdvisor's `UncoreCaches`, then `getUncoreCacheID`) groups by: the
/// innermost of level 3 or more that is not just the whole node's. Without one it takes the
/// socket, so that "all in one cache" is then "all in one socket".
fn group(at: &Path, id: u32, socket: u32, of_node: &CpuSet, online: &CpuSet) -> Group {
    let shared = files::shared_caches(at).map(|cpus| cpus.intersection(online));
    let mut inside = shared.filter(|cpus| cpus.contains(id) && cpus != of_node);
    match inside.next().and_then(|cpus| cpus.iter().next()) {
        Some(first) => Group::Cache(first),
        None => Group::Socket(socket),
    }
}

fn name_groups(cpus: &mut [Cpu], groups: &[Group]) {
    let mut firsts = BTreeMap::new();
    for (cpu, group) in cpus.iter_mut().zip(groups) {
        // They come in the order of their ids.
        cpu.cache = *firsts.entry(*group).or_insert(cpu.id);
    }
}
