//! Cgroups of the agent's own levels (kubepods, QoS, pod), cgroupfs driver, v1 and v2.
//!
//! A machine has version 2 if the root itself is a cgroup; otherwise the root holds one
//! directory for each version 1 hierarchy, co-mounted ones included. Values are read before
//! they are written: a pass that changes nothing writes nothing.

mod v1;
mod v2;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, getpid, sysconf};

use super::{CgroupPath, CgroupSettings, CgroupVersion, HostError, Result};
use crate::pod::PodUid;

const POD_PREFIX: &str = "pod";
/// Levels below kubepods that hold pods of one class; guaranteed pods are beside them.
const QOS_LEVELS: [&str; 2] = ["burstable", "besteffort"];

#[derive(Clone, Debug)]
pub struct Cgroups {
    root: PathBuf,
}

impl Cgroups {
    pub fn new(root: PathBuf) -> Self {
        Cgroups { root }
    }

    pub fn version(&self) -> CgroupVersion {
        if self.root.join("cgroup.controllers").exists() { CgroupVersion::V2 } else { CgroupVersion::V1 }
    }

    pub fn ensure(&self, cgroup: &CgroupPath, settings: &CgroupSettings) -> Result<()> {
        let levels = levels(cgroup)?;
        match self.version() {
            CgroupVersion::V1 => v1::ensure(&v1::Hierarchies::find(&self.root)?, &levels, settings),
            CgroupVersion::V2 => v2::ensure(&self.root, &levels, settings),
        }
    }

    /// Kills all processes in the cgroup and below, then removes what is empty. False if
    /// something is still there: the dead take a moment to leave.
    pub fn destroy_round(&self, cgroup: &CgroupPath) -> Result<bool> {
        if levels(cgroup)?.is_empty() {
            return Err(HostError::Refused("the root cgroup is not ours to destroy".to_owned()));
        }
        let directories = self.directories(cgroup)?;
        for directory in &directories {
            kill_all(directory)?;
        }
        let mut gone = true;
        for directory in &directories {
            gone &= remove_levels(directory).map_err(io_error("remove cgroup", directory))?;
        }
        Ok(gone)
    }

    /// The processes that keep a cgroup from going, for the error text.
    pub fn processes(&self, cgroup: &CgroupPath) -> Result<BTreeSet<i32>> {
        let mut all = BTreeSet::new();
        for directory in self.directories(cgroup)? {
            collect_processes(&directory, &mut all).map_err(io_error("list processes of cgroup", &directory))?;
        }
        Ok(all)
    }

    /// A pod half created or half removed may be in some hierarchies only; any counts.
    pub fn list_pods(&self, root: &CgroupPath) -> Result<Vec<(PodUid, CgroupPath)>> {
        let mut found = BTreeMap::new();
        for directory in self.directories(root)? {
            let mut look = |at: &Path, prefix: &str| -> Result<()> {
                for name in sub_directories(at).map_err(io_error("list cgroup", at))? {
                    if let Some(uid) = name.strip_prefix(POD_PREFIX).filter(|uid| !uid.is_empty()) {
                        found.insert(PodUid::new(uid), CgroupPath(format!("{prefix}/{name}")));
                    }
                }
                Ok(())
            };
            let prefix = root.0.trim_end_matches('/');
            look(&directory, prefix)?;
            for level in QOS_LEVELS {
                look(&directory.join(level), &format!("{prefix}/{level}"))?;
            }
        }
        Ok(found.into_iter().collect())
    }

    /// Where the cgroup is, or would be, in each hierarchy.
    fn directories(&self, cgroup: &CgroupPath) -> Result<Vec<PathBuf>> {
        let below: PathBuf = levels(cgroup)?.iter().collect();
        Ok(match self.version() {
            CgroupVersion::V2 => vec![self.root.join(below)],
            CgroupVersion::V1 => {
                let hierarchies = v1::Hierarchies::find(&self.root)?;
                // The runtime makes a pod's level in a hybrid machine's unified tree too, and
                // takes only its own level away.
                let unified = hierarchies.unified();
                hierarchies.all().chain(unified.as_ref()).map(|hierarchy| hierarchy.join(&below)).collect()
            }
        })
    }
}

/// The names on the way down; a path that could lead elsewhere is refused.
fn levels(cgroup: &CgroupPath) -> Result<Vec<&str>> {
    let names: Vec<_> = cgroup.0.split('/').filter(|name| !name.is_empty()).collect();
    if names.iter().any(|name| matches!(*name, "." | "..")) {
        return Err(HostError::Refused(format!("invalid cgroup path {:?}", cgroup.0)));
    }
    Ok(names)
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostError {
    move |source| HostError::Io { what, path: path.to_owned(), source }
}

/// The value must be one the kernel can take, on a machine that has the controller.
fn missing_controller(controller: &str, root: &Path) -> HostError {
    HostError::Refused(format!("cgroup controller {controller:?} is not available below {}", root.display()))
}

/// Writes `value` unless the file shows it already.
fn write_value(directory: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = directory.join(file);
    if fs::read_to_string(&path)?.trim_end() == value {
        return Ok(());
    }
    fs::write(&path, value)
}

/// Byte limits read back rounded down to whole pages.
fn write_bytes(directory: &Path, file: &str, bytes: u64) -> io::Result<()> {
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| u64::try_from(size).ok()).unwrap_or(4096);
    let path = directory.join(file);
    let present: Option<u64> = fs::read_to_string(&path)?.trim_end().parse().ok();
    if present == Some(bytes) || present == Some(bytes - bytes % page) {
        return Ok(());
    }
    fs::write(&path, bytes.to_string())
}

fn write_at(what: &'static str, directory: &Path, file: &str, value: &str) -> Result<()> {
    write_value(directory, file, value).map_err(io_error(what, &directory.join(file)))
}

fn write_bytes_at(what: &'static str, directory: &Path, file: &str, bytes: u64) -> Result<()> {
    write_bytes(directory, file, bytes).map_err(io_error(what, &directory.join(file)))
}

/// Makes the directory of one level; true if it was not there.
fn make_level(directory: &Path) -> Result<bool> {
    match fs::create_dir(directory) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(io_error("make cgroup", directory)(error)),
    }
}

/// Sub-cgroups by name; none where the cgroup is not there.
fn sub_directories(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A cgroup that is removed while we look answers with ENODEV.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ENODEV as i32)
}

fn kill_all(directory: &Path) -> Result<()> {
    // Version 2 since Linux 5.14: the kernel kills the whole tree, forks included.
    match fs::write(directory.join("cgroup.kill"), "1") {
        Ok(()) => return Ok(()),
        Err(error) if is_gone(&error) || error.kind() == io::ErrorKind::PermissionDenied => {}
        Err(error) => return Err(io_error("kill cgroup", directory)(error)),
    }
    let mut processes = BTreeSet::new();
    collect_processes(directory, &mut processes).map_err(io_error("list processes of cgroup", directory))?;
    for pid in processes {
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => {
                return Err(io_error("kill processes of cgroup", directory)(error.into()));
            }
        }
    }
    Ok(())
}

fn collect_processes(directory: &Path, processes: &mut BTreeSet<i32>) -> io::Result<()> {
    match fs::read_to_string(directory.join("cgroup.procs")) {
        Ok(pids) => {
            // 0 is a process of a PID namespace that we cannot see into. Ourselves we
            // would only find where someone put the agent into a pod's cgroup.
            let own = getpid().as_raw();
            processes.extend(
                pids.lines().filter_map(|pid| pid.trim().parse::<i32>().ok()).filter(|pid| *pid > 0 && *pid != own),
            );
        }
        // A threaded cgroup has its processes listed further up.
        Err(error) if is_gone(&error) || error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {}
        Err(error) => return Err(error),
    }
    for name in sub_directories(directory)? {
        collect_processes(&directory.join(name), processes)?;
    }
    Ok(())
}

/// Removes the cgroup from its leaves up; false if one is not empty yet.
fn remove_levels(directory: &Path) -> io::Result<bool> {
    let mut gone = true;
    for name in sub_directories(directory)? {
        gone &= remove_levels(&directory.join(name))?;
    }
    if !gone {
        return Ok(false);
    }
    match fs::remove_dir(directory) {
        Ok(()) => Ok(true),
        Err(error) if is_gone(&error) => Ok(true),
        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The path as the systemd driver has it, for the runtime's `cgroup_parent`:
/// `/kubepods/burstable/poda-b` is
/// `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_b.slice`.
///
/// A dash separates levels in a slice's name, so dashes within one become underscores.
pub fn systemd_name(cgroup: &CgroupPath) -> String {
    let mut path = String::new();
    let mut name = String::new();
    for level in cgroup.0.split('/').filter(|level| !level.is_empty()) {
        if !name.is_empty() {
            name.push('-');
        }
        name.push_str(&level.replace('-', "_"));
        path = format!("{path}/{name}.slice");
    }
    if path.is_empty() { "/-.slice".to_owned() } else { path }
}

#[cfg(test)]
mod tests;
