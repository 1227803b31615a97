//! Version 1: one hierarchy for each controller, or for a few that are mounted together.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::{io_error, make_level, missing_controller, sub_directories, write_at, write_bytes_at, write_value};
use crate::host::cgroup_math::CPU_QUOTA_UNLIMITED;
use crate::host::{CgroupSettings, Result};

/// The version 2 tree of a hybrid machine; systemd's own, without controllers.
const UNIFIED: &str = "unified";

/// The hierarchies of this machine.
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

    fn get(&self, controller: &str) -> Result<&Path> {
        self.find_controller(controller).ok_or_else(|| missing_controller(controller, &self.root))
    }

    fn find_controller(&self, controller: &str) -> Option<&Path> {
        self.by_controller.get(controller).map(PathBuf::as_path)
    }
}

/// A pod's cgroup is made in every hierarchy there is, as the runtime does for containers:
/// one that is missing somewhere would leave the container's at that hierarchy's root.
pub fn ensure(hierarchies: &Hierarchies, levels: &[&str], settings: &CgroupSettings) -> Result<()> {
    let below: PathBuf = levels.iter().collect();
    let own = |controller| Ok(hierarchies.get(controller)?.join(&below));
    // A controller that is needed and absent is named before anything is made.
    for controller in ["cpu", "memory"] {
        hierarchies.get(controller)?;
    }
    for hierarchy in hierarchies.all() {
        let is_cpuset = hierarchies.find_controller("cpuset") == Some(hierarchy);
        make_levels(hierarchy, levels, is_cpuset)?;
    }
    if let Some(shares) = settings.cpu_shares {
        write_at("set shares in", &own("cpu")?, "cpu.shares", &shares.to_string())?;
    }
    set_quota(&own("cpu")?, settings)?;
    if let Some(bytes) = settings.memory_limit_bytes {
        write_bytes_at("set memory limit in", &own("memory")?, "memory.limit_in_bytes", bytes)?;
    }
    if let Some(max) = settings.pids_max {
        write_at("set process limit in", &own("pids")?, "pids.max", &max.to_string())?;
    }
    if let Some(hugetlb) = hierarchies.find_controller("hugetlb") {
        let directory = hugetlb.join(&below);
        for (size, bytes) in &settings.hugepage_limits {
            limit_hugepages(&directory, size, *bytes)?;
        }
    }
    Ok(())
}

fn make_levels(hierarchy: &Path, levels: &[&str], is_cpuset: bool) -> Result<()> {
    let mut directory = hierarchy.to_owned();
    for level in levels {
        let parent = directory.clone();
        directory.push(level);
        make_level(&directory)?;
        if is_cpuset {
            inherit(&parent, &directory, "cpuset.cpus")?;
            inherit(&parent, &directory, "cpuset.mems")?;
        }
    }
    Ok(())
}

/// A new cpuset is empty and then takes no process, so it starts as its parent is.
fn inherit(parent: &Path, directory: &Path, file: &str) -> Result<()> {
    let path = directory.join(file);
    let present = fs::read_to_string(&path).map_err(io_error("read", &path))?;
    if !present.trim().is_empty() {
        return Ok(());
    }
    let above = parent.join(file);
    let inherited = fs::read_to_string(&above).map_err(io_error("read", &above))?;
    fs::write(&path, inherited.trim()).map_err(io_error("set", &path))
}

/// The kernel checks quota and period against the parent's at each write, so the order
/// that works depends on which of them grows.
fn set_quota(directory: &Path, settings: &CgroupSettings) -> Result<()> {
    const PERIOD: &str = "cpu.cfs_period_us";
    const QUOTA: &str = "cpu.cfs_quota_us";
    // 0 is how a conversion says that there is no limit; the kernel wants −1 for that.
    let quota = settings.cpu_quota.map(|quota| if quota == 0 { CPU_QUOTA_UNLIMITED } else { quota }.to_string());
    if let Some(period) = settings.cpu_period {
        let period = period.to_string();
        match (write_value(directory, PERIOD, &period), &quota) {
            (Err(error), Some(quota)) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {
                write_at("set quota in", directory, QUOTA, quota)?;
                write_at("set period in", directory, PERIOD, &period)?;
            }
            (written, _) => written.map_err(io_error("set period in", &directory.join(PERIOD)))?,
        }
    }
    match &quota {
        Some(quota) => write_at("set quota in", directory, QUOTA, quota),
        None => Ok(()),
    }
}

fn limit_hugepages(directory: &Path, size: &str, bytes: u64) -> Result<()> {
    write_bytes_at("set huge page limit in", directory, &format!("hugetlb.{size}.limit_in_bytes"), bytes)?;
    // Reservations are counted apart since Linux 5.7.
    let reserved = format!("hugetlb.{size}.rsvd.limit_in_bytes");
    if directory.join(&reserved).exists() {
        write_bytes_at("set huge page limit in", directory, &reserved, bytes)?;
    }
    Ok(())
}
