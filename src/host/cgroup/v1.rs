//! Version 1: one hierarchy for each controller, or for a few that are mounted together.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::{
    HostError, MemoryFiles, io_error, make_level, memory_limit, missing_controller, sub_directories, write_at,
    write_bytes_at, write_value,
};
use crate::host::cgroup_math::CPU_QUOTA_UNLIMITED;
use crate::host::{CgroupSettings, Result};

/// The version 2 tree of a hybrid machine; systemd's own, without controllers.
const UNIFIED: &str = "unified";

/// The hierarchies of this machine.
#[derive(Debug)]
pub struct Hierarchies {
    root: PathBuf,
    /// `memory`, `cpu`, `systemd` … to the directory it is mounted on.
    by_controller: BTreeMap<String, PathBuf>,
}

impl Hierarchies {
    /// Directories below the root that are cgroups. `cpu` is usually a symlink to
    /// `cpu,cpuacct`, but the joint directory alone will do.
    pub fn find(root: &Path) -> Result<Self> {
        let mut by_controller = BTreeMap::new();
        for name in sub_directories(root).map_err(io_error("list cgroup hierarchies in", root))? {
            let directory = root.join(&name);
            if name != UNIFIED && directory.join("cgroup.procs").exists() {
                by_controller.extend(name.split(',').map(|controller| (controller.to_owned(), directory.clone())));
            }
        }
        Ok(Hierarchies { root: root.to_owned(), by_controller })
    }

    /// Each directory once.
    pub fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.by_controller.values().collect::<BTreeSet<_>>().into_iter()
    }

    /// The version 2 tree of a hybrid machine, which controls nothing.
    pub fn unified(&self) -> Option<PathBuf> {
        let tree = self.root.join(UNIFIED);
        tree.join("cgroup.procs").exists().then_some(tree)
    }

    /// systemd's own, which has all its units; where it is not mounted, what it controls first.
    pub fn systemd(&self) -> Result<&Path> {
        self.find_controller("systemd").map_or_else(|| self.get("cpu"), Ok)
    }

    /// Where it shows which processes have a place.
    pub fn cpu(&self) -> Result<&Path> {
        self.get("cpu")
    }

    fn get(&self, controller: &str) -> Result<&Path> {
        self.find_controller(controller).ok_or_else(|| missing_controller(controller, &self.root))
    }

    fn find_controller(&self, controller: &str) -> Option<&Path> {
        self.by_controller.get(controller).map(PathBuf::as_path)
    }
}

const MEMORY: MemoryFiles =
    MemoryFiles { usage: "memory.usage_in_bytes", pages_of_files: ["total_active_file", "total_inactive_file"] };

/// What a cgroup must have where the machine has it.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "cpuset", "hugetlb", "memory", "pids"];

pub fn check(hierarchies: &Hierarchies, levels: &[String]) -> Result<()> {
    for controller in ["cpu", "memory"] {
        hierarchies.get(controller)?;
    }
    for controller in CONTROLLERS {
        let Some(hierarchy) = hierarchies.find_controller(controller) else { continue };
        let directory = hierarchy.join(levels.iter().collect::<PathBuf>());
        if !directory.is_dir() {
            return Err(HostError::Refused(format!("there is no cgroup {}", directory.display())));
        }
    }
    Ok(())
}

/// A pod's cgroup is made in every hierarchy there is, as the runtime does for containers:
/// one that is missing somewhere would leave the container's at that hierarchy's root.
pub fn ensure(hierarchies: &Hierarchies, levels: &[String], settings: &CgroupSettings) -> Result<bool> {
    let below: PathBuf = levels.iter().collect();
    let own = |controller| Ok(hierarchies.get(controller)?.join(&below));
    // A controller that is needed and absent is named before anything is made.
    for controller in ["cpu", "memory"] {
        hierarchies.get(controller)?;
    }
    let mut changed = false;
    for hierarchy in hierarchies.all() {
        let is_cpuset = hierarchies.find_controller("cpuset") == Some(hierarchy);
        changed |= make_levels(hierarchy, levels, is_cpuset)?;
    }
    if let Some(shares) = settings.cpu_shares {
        changed |= write_at("set shares in", &own("cpu")?, "cpu.shares", &shares.to_string())?;
    }
    changed |= set_quota(&own("cpu")?, settings)?;
    let memory = own("memory")?;
    if let Some(bytes) = memory_limit(settings, &memory, &MEMORY)? {
        changed |= write_bytes_at("set memory limit in", &memory, "memory.limit_in_bytes", bytes)?;
    }
    if let Some(max) = settings.pids_max {
        changed |= write_at("set process limit in", &own("pids")?, "pids.max", &max.to_string())?;
    }
    if let Some(hugetlb) = hierarchies.find_controller("hugetlb") {
        let directory = hugetlb.join(&below);
        for (size, bytes) in &settings.hugepage_limits {
            changed |= limit_hugepages(&directory, size, *bytes)?;
        }
    }
    Ok(changed)
}

/// True if the last of them was missing.
fn make_levels(hierarchy: &Path, levels: &[String], is_cpuset: bool) -> Result<bool> {
    let last = hierarchy.join(levels.iter().collect::<PathBuf>());
    let made = match make_level(&last) {
        // What is above it is there nearly always.
        Err(error) if error.kind() == ErrorKind::NotFound => fs::create_dir_all(&last).map(|()| true),
        made => made,
    };
    let made = made.map_err(io_error("make cgroup", &last))?;
    if is_cpuset {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            inherited(hierarchy, &last, file)?;
        }
    }
    Ok(made)
}

/// A new cpuset is empty and then takes no process, so it starts as its parent is.
fn inherited(hierarchy: &Path, directory: &Path, file: &str) -> Result<String> {
    let path = directory.join(file);
    let present = fs::read_to_string(&path).map_err(io_error("read", &path))?;
    match directory.parent() {
        Some(parent) if present.trim().is_empty() && directory != hierarchy => {
            let above = inherited(hierarchy, parent, file)?;
            fs::write(&path, &above).map_err(io_error("set", &path))?;
            Ok(above)
        }
        _ => Ok(present.trim().to_owned()),
    }
}

/// The kernel checks quota and period against the parent's at each write, so the order
/// that works depends on which of them grows.
fn set_quota(directory: &Path, settings: &CgroupSettings) -> Result<bool> {
    let mut changed = false;
    const PERIOD: &str = "cpu.cfs_period_us";
    const QUOTA: &str = "cpu.cfs_quota_us";
    // 0 is how a conversion says that there is no limit; the kernel wants −1 for that.
    let quota = settings.cpu_quota.map(|quota| if quota == 0 { CPU_QUOTA_UNLIMITED } else { quota }.to_string());
    if let Some(period) = settings.cpu_period {
        let period = period.to_string();
        match (write_value(directory, PERIOD, &period), &quota) {
            (Err(error), Some(quota)) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {
                write_at("set quota in", directory, QUOTA, quota)?;
                changed |= write_at("set period in", directory, PERIOD, &period)?;
            }
            (written, _) => changed |= written.map_err(io_error("set period in", &directory.join(PERIOD)))?,
        }
    }
    if let Some(quota) = &quota {
        changed |= write_at("set quota in", directory, QUOTA, quota)?;
    }
    Ok(changed)
}

fn limit_hugepages(directory: &Path, size: &str, bytes: u64) -> Result<bool> {
    let limit = format!("hugetlb.{size}.limit_in_bytes");
    let mut changed = write_bytes_at("set huge page limit in", directory, &limit, bytes)?;
    // Reservations are counted apart since Linux 5.7.
    let reserved = format!("hugetlb.{size}.rsvd.limit_in_bytes");
    if directory.join(&reserved).exists() {
        changed |= write_bytes_at("set huge page limit in", directory, &reserved, bytes)?;
    }
    Ok(changed)
}
