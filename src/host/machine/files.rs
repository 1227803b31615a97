//! Single files of /sys that say what the machine is made of. `None` is a file that is missing
//! or says something else.

use std::fs;
use std::path::Path;
use std::str::FromStr;

use crate::config::CpuSet;

/// Levels below are a core's own, or a cluster's of small cores, which upstream does not count.
const SHARED_LEVEL_MIN: u32 = 3;

/// The kernel has no more kinds of caches than a few; a directory is not searched further.
const CACHES_MAX: u32 = 16;

pub fn number<T: FromStr>(path: &Path) -> Option<T> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Of CPUs or of nodes, which are written alike.
pub fn list(path: &Path) -> Option<CpuSet> {
    CpuSet::parse(fs::read_to_string(path).ok()?.trim()).ok()
}

/// `MemTotal` of a node, whose lines start with the node's name.
pub fn memory_bytes(meminfo: &Path) -> Option<u64> {
    let text = fs::read_to_string(meminfo).ok()?;
    let value = text.lines().find_map(|line| line.split_once("MemTotal:"))?.1;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// To each node that is online, in their order.
pub fn distances(path: &Path) -> Option<Vec<u32>> {
    fs::read_to_string(path).ok()?.split_whitespace().map(|distance| distance.parse().ok()).collect()
}

/// Page size and number of pages, all sizes the kernel offers, smallest first, those without
/// pages included.
pub fn hugepages(directory: &Path) -> Vec<(u64, u64)> {
    let mut sizes = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let kibibytes =
            name.to_str().and_then(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok());
        let bytes = kibibytes.and_then(|kibibytes: u64| kibibytes.checked_mul(1024));
        if let (Some(bytes), Some(pages)) = (bytes, number(&entry.path().join("nr_hugepages"))) {
            sizes.push((bytes, pages));
        }
    }
    sizes.sort_unstable();
    sizes
}

/// Who shares each of the CPU's outer caches, from the inside out.
pub fn shared_caches(cpu: &Path) -> impl Iterator<Item = CpuSet> {
    let caches = cpu.join("cache");
    let indices = (0..CACHES_MAX).map(move |index| caches.join(format!("index{index}")));
    let present = indices.map_while(|index| Some((number::<u32>(&index.join("level"))?, index)));
    let outer = present.filter(|(level, index)| *level >= SHARED_LEVEL_MIN && holds_data(index));
    outer.filter_map(|(_, index)| list(&index.join("shared_cpu_list")))
}

fn holds_data(cache: &Path) -> bool {
    fs::read_to_string(cache.join("type")).is_ok_and(|kind| matches!(kind.trim(), "Unified" | "Data"))
}
