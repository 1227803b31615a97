//! Version 2: one tree, in which each level hands controllers down.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{HostError, MemoryFiles, io_error, make_level, memory_limit, missing_controller, write_at, write_bytes_at};
use crate::host::cgroup_math::{CPU_PERIOD_DEFAULT, shares_to_weight};
use crate::host::{CgroupSettings, Result};

/// What pods need handed down to them, as far as the machine has it.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "hugetlb", "memory", "pids"];

const MEMORY: MemoryFiles = MemoryFiles { usage: "memory.current", pages_of_files: ["active_file", "inactive_file"] };

pub fn check(root: &Path, levels: &[String]) -> Result<()> {
    let offered = offered(root)?;
    let directory = root.join(levels.iter().collect::<PathBuf>());
    if !directory.is_dir() {
        return Err(HostError::Refused(format!("there is no cgroup {}", directory.display())));
    }
    let has = read_set(&directory.join("cgroup.controllers"))?;
    let missing: Vec<_> =
        CONTROLLERS.into_iter().filter(|name| offered.contains(*name) && !has.contains(*name)).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(HostError::Refused(format!(
            "cgroup {} has not the controllers {}",
            directory.display(),
            missing.join(", ")
        ))),
    }
}

/// What the machine has, which must be enough for pods.
fn offered(root: &Path) -> Result<BTreeSet<String>> {
    let offered = read_set(&root.join("cgroup.controllers"))?;
    match ["cpu", "memory"].into_iter().find(|needed| !offered.contains(*needed)) {
        None => Ok(offered),
        Some(missing) => Err(missing_controller(missing, root)),
    }
}

/// True if the last level was missing, or any value another.
pub fn ensure(root: &Path, levels: &[String], settings: &CgroupSettings) -> Result<bool> {
    let offered = offered(root)?;
    let mut directory = root.to_owned();
    let mut changed = false;
    for level in levels {
        hand_down(&directory, &offered)?;
        directory.push(level);
        changed = make_level(&directory).map_err(io_error("make cgroup", &directory))?;
    }
    if let Some(shares) = settings.cpu_shares {
        changed |= write_at("set weight in", &directory, "cpu.weight", &shares_to_weight(shares).to_string())?;
    }
    changed |= set_quota(&directory, settings)?;
    for (file, bytes) in [("memory.min", settings.memory_min_bytes), ("memory.low", settings.memory_low_bytes)] {
        if let Some(bytes) = bytes {
            changed |= write_bytes_at("set what is kept in", &directory, file, bytes)?;
        }
    }
    if let Some(bytes) = memory_limit(settings, &directory, &MEMORY)? {
        changed |= write_bytes_at("set memory limit in", &directory, "memory.max", bytes)?;
    }
    if let Some(max) = settings.pids_max {
        if !offered.contains("pids") {
            return Err(missing_controller("pids", root));
        }
        changed |= write_at("set process limit in", &directory, "pids.max", &max.to_string())?;
    }
    if offered.contains("hugetlb") {
        for (size, bytes) in &settings.hugepage_limits {
            changed |= limit_hugepages(&directory, size, *bytes)?;
        }
    }
    Ok(changed)
}

/// Lets the children of `directory` use the controllers. One write each, so that the one
/// that fails can be named.
fn hand_down(directory: &Path, offered: &BTreeSet<String>) -> Result<()> {
    let control = directory.join("cgroup.subtree_control");
    let enabled = read_set(&control)?;
    for controller in CONTROLLERS.into_iter().filter(|controller| offered.contains(*controller)) {
        if !enabled.contains(controller) {
            let what = match controller {
                "cpu" => "enable controller cpu in",
                "cpuset" => "enable controller cpuset in",
                "hugetlb" => "enable controller hugetlb in",
                "memory" => "enable controller memory in",
                _ => "enable controller pids in",
            };
            fs::write(&control, format!("+{controller}")).map_err(io_error(what, &control))?;
        }
    }
    Ok(())
}

fn read_set(path: &PathBuf) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(path).map_err(io_error("read", path))?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// `cpu.max` holds quota and period; one that is not given keeps its present value.
fn set_quota(directory: &Path, settings: &CgroupSettings) -> Result<bool> {
    if settings.cpu_quota.is_none() && settings.cpu_period.is_none() {
        return Ok(false);
    }
    let path = directory.join("cpu.max");
    let present = fs::read_to_string(&path).map_err(io_error("read", &path))?;
    let mut fields = present.split_whitespace();
    let present_quota = fields.next().unwrap_or("max");
    let present_period = fields.next().and_then(|period| period.parse().ok()).unwrap_or(CPU_PERIOD_DEFAULT);

    let quota = match settings.cpu_quota {
        // 0 is how a conversion says that there is no limit.
        Some(quota) if quota <= 0 => "max".to_owned(),
        Some(quota) => quota.to_string(),
        None => present_quota.to_owned(),
    };
    let period = settings.cpu_period.unwrap_or(present_period);
    write_at("set quota in", directory, "cpu.max", &format!("{quota} {period}"))
}

fn limit_hugepages(directory: &Path, size: &str, bytes: u64) -> Result<bool> {
    let limit = format!("hugetlb.{size}.max");
    let mut changed = write_bytes_at("set huge page limit in", directory, &limit, bytes)?;
    // Reservations are counted apart since Linux 5.7.
    let reserved = format!("hugetlb.{size}.rsvd.max");
    if directory.join(&reserved).exists() {
        changed |= write_bytes_at("set huge page limit in", directory, &reserved, bytes)?;
    }
    Ok(changed)
}
