//! Cgroups of the agent's own levels (kubepods, QoS, pod), by both drivers, v1 and v2.
//!
//! A machine has version 2 if the root itself is a cgroup; otherwise the root holds one
//! directory for each version 1 hierarchy, co-mounted ones included. Values are read before
//! they are written: a pass that changes nothing writes nothing.
//!
//! With the systemd driver a cgroup is a slice, which systemd is asked for and told the values
//! of, lest it puts its own in their place. What it does not do (some controllers, huge pages,
//! quotas to the microsecond) is written to the files as with the other driver, afterwards. A pass
//! that finds all as it should be does not talk to systemd.

mod members;
mod names;
mod systemd;
mod v1;
mod v2;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, getpid, sysconf};

use self::systemd::Systemd;
use super::cgroup_math::MEMORY_UNLIMITED;
use super::{CgroupDriver, CgroupPath, CgroupSettings, CgroupVersion, HostError, Result};
use crate::pod::PodUid;

pub use self::names::{configured_name, systemd_name};

/// Levels below kubepods that hold pods of one class; guaranteed pods are beside them.
const QOS_LEVELS: [&str; 2] = ["burstable", "besteffort"];

#[derive(Debug)]
pub struct Cgroups {
    root: PathBuf,
    systemd: Systemd,
    /// Plain directories until somebody chose.
    driver: OnceLock<CgroupDriver>,
    /// They are mounted when the machine boots, and looking for them costs more than what is done in them.
    hierarchies: OnceLock<v1::Hierarchies>,
}

impl Cgroups {
    /// `run` is where systemd has its sockets: `/run`.
    pub fn new(root: PathBuf, run: PathBuf) -> Self {
        Cgroups { root, systemd: Systemd::new(run), driver: OnceLock::new(), hierarchies: OnceLock::new() }
    }

    pub fn version(&self) -> CgroupVersion {
        if self.root.join("cgroup.controllers").exists() { CgroupVersion::V2 } else { CgroupVersion::V1 }
    }

    pub fn use_driver(&self, driver: CgroupDriver) -> Result<()> {
        if driver == CgroupDriver::Systemd {
            self.systemd.check_runs()?;
        }
        match *self.driver.get_or_init(|| driver) {
            chosen if chosen == driver => Ok(()),
            chosen => Err(HostError::Refused(format!("cgroups are made by {chosen} already, not by {driver}"))),
        }
    }

    /// Those of a version 1 machine.
    fn hierarchies(&self) -> Result<&v1::Hierarchies> {
        if let Some(found) = self.hierarchies.get() {
            return Ok(found);
        }
        let found = v1::Hierarchies::find(&self.root)?;
        // One that cannot be used is looked for again.
        found.cpu()?;
        Ok(self.hierarchies.get_or_init(|| found))
    }

    fn driver(&self) -> CgroupDriver {
        self.driver.get().copied().unwrap_or(CgroupDriver::Cgroupfs)
    }

    /// Refuses a cgroup that is not there with all that pods need.
    pub fn check(&self, cgroup: &CgroupPath) -> Result<()> {
        let levels = self.levels(cgroup)?;
        match self.version() {
            CgroupVersion::V1 => v1::check(self.hierarchies()?, &levels),
            CgroupVersion::V2 => v2::check(&self.root, &levels),
        }
    }

    /// True if anything was not so already.
    pub fn ensure(&self, cgroup: &CgroupPath, settings: &CgroupSettings) -> Result<bool> {
        let levels = self.levels(cgroup)?;
        if self.driver() == CgroupDriver::Cgroupfs || levels.is_empty() {
            return self.write(&levels, settings);
        }
        let started = self.start_slices(&levels, settings)?;
        let written = self.write(&levels, settings)?;
        if written && !started {
            self.systemd.set(levels.last().expect("there is a level"), settings, self.version())?;
            self.write(&levels, settings)?;
        }
        Ok(started || written)
    }

    fn write(&self, levels: &[String], settings: &CgroupSettings) -> Result<bool> {
        match self.version() {
            CgroupVersion::V1 => v1::ensure(self.hierarchies()?, levels, settings),
            CgroupVersion::V2 => v2::ensure(&self.root, levels, settings),
        }
    }

    /// Has systemd make what is missing on the way down. True if the last level was.
    fn start_slices(&self, levels: &[String], settings: &CgroupSettings) -> Result<bool> {
        let (mut directory, version) = (self.systemd_tree()?, self.version());
        let (mut parent, mut started) = (None, false);
        for (index, slice) in levels.iter().enumerate() {
            directory.push(slice);
            started = !directory.exists();
            if started {
                let is_last = index + 1 == levels.len();
                let none = CgroupSettings::default();
                self.systemd.start(slice, parent, if is_last { settings } else { &none }, version)?;
            }
            parent = Some(slice.as_str());
        }
        Ok(started)
    }

    /// Where systemd keeps its units.
    fn systemd_tree(&self) -> Result<PathBuf> {
        Ok(match self.version() {
            CgroupVersion::V2 => self.root.clone(),
            CgroupVersion::V1 => self.hierarchies()?.systemd()?.to_owned(),
        })
    }

    /// Kills all processes in the cgroup and below, then removes what is empty. False if
    /// something is still there: the dead take a moment to leave.
    pub fn destroy_round(&self, cgroup: &CgroupPath) -> Result<bool> {
        let levels = self.levels(cgroup)?;
        let Some(last) = levels.last() else {
            return Err(HostError::Refused("the root cgroup is not ours to destroy".to_owned()));
        };
        let mut directories = self.directories(cgroup)?;
        if self.driver() == CgroupDriver::Systemd {
            directories.retain(|directory| directory.exists());
            for directory in &directories {
                kill_all(directory)?;
            }
            // A slice does not end with its directory, and nobody would ask for its end later.
            if !directories.is_empty() {
                self.systemd.stop(last)?;
            }
        }
        let mut gone = true;
        for directory in &directories {
            gone &= remove_with_all(directory)?;
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
        let prefix = root.0.trim_end_matches('/');
        let classes = QOS_LEVELS.map(|level| format!("{prefix}/{level}"));
        for level in [prefix.to_owned()].into_iter().chain(classes).map(CgroupPath) {
            for directory in self.directories(&level)? {
                for name in sub_directories(&directory).map_err(io_error("list cgroup", &directory))? {
                    let Some(uid) = names::pod_of(self.driver(), &level, &name) else { continue };
                    let path = CgroupPath(format!("{}/pod{uid}", level.0));
                    found.insert(PodUid::new(uid), path);
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// The names of the directories on the way down.
    fn levels(&self, cgroup: &CgroupPath) -> Result<Vec<String>> {
        names::levels(self.driver(), cgroup)
    }

    /// Where the cgroup is, or would be, in each hierarchy.
    fn directories(&self, cgroup: &CgroupPath) -> Result<Vec<PathBuf>> {
        let below: PathBuf = self.levels(cgroup)?.iter().collect();
        Ok(match self.version() {
            CgroupVersion::V2 => vec![self.root.join(below)],
            CgroupVersion::V1 => {
                let hierarchies = self.hierarchies()?;
                // The runtime makes a pod's level in a hybrid machine's unified tree too, and
                // takes only its own level away.
                let unified = hierarchies.unified();
                hierarchies.all().chain(unified.as_ref()).map(|hierarchy| hierarchy.join(&below)).collect()
            }
        })
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostError {
    move |source| HostError::Io { what, path: path.to_owned(), source }
}

/// The value must be one the kernel can take, on a machine that has the controller.
fn missing_controller(controller: &str, root: &Path) -> HostError {
    HostError::Refused(format!("cgroup controller {controller:?} is not available below {}", root.display()))
}

/// Writes `value` unless the file shows it already.
fn write_value(directory: &Path, file: &str, value: &str) -> io::Result<bool> {
    let path = directory.join(file);
    if fs::read_to_string(&path)?.trim_end() == value {
        return Ok(false);
    }
    fs::write(&path, value).map(|()| true)
}

/// Of the machine's memory.
pub fn page_bytes() -> u64 {
    sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| u64::try_from(size).ok()).unwrap_or(4096)
}

/// Byte limits read back rounded down to whole pages, and as `max` where there is none.
fn write_bytes(directory: &Path, file: &str, bytes: u64) -> io::Result<bool> {
    let page = page_bytes();
    let path = directory.join(file);
    let present = read_bytes(&path)?;
    if present == Some(bytes) || present == Some(bytes - bytes % page) {
        return Ok(false);
    }
    fs::write(&path, bytes.to_string()).map(|()| true)
}

fn read_bytes(path: &Path) -> io::Result<Option<u64>> {
    Ok(match fs::read_to_string(path)?.trim_end() {
        "max" => Some(MEMORY_UNLIMITED),
        number => number.parse().ok(),
    })
}

fn write_at(what: &'static str, directory: &Path, file: &str, value: &str) -> Result<bool> {
    write_value(directory, file, value).map_err(io_error(what, &directory.join(file)))
}

fn write_bytes_at(what: &'static str, directory: &Path, file: &str, bytes: u64) -> Result<bool> {
    write_bytes(directory, file, bytes).map_err(io_error(what, &directory.join(file)))
}

/// The limit that the settings have, or what cannot be given back if that is more and the limit yields.
/// Pages of files can, and would fill any limit.
fn memory_limit(settings: &CgroupSettings, directory: &Path, files: &MemoryFiles) -> Result<Option<u64>> {
    let Some(limit) = settings.memory_limit_bytes.filter(|_| settings.memory_limit_yields) else {
        return Ok(settings.memory_limit_bytes);
    };
    let usage = directory.join(files.usage);
    let used = read_bytes(&usage).map_err(io_error("read", &usage))?.unwrap_or(0);
    let statistics = directory.join("memory.stat");
    let text = fs::read_to_string(&statistics).map_err(io_error("read", &statistics))?;
    let of = |name: &str| {
        let mut fields = text.lines().filter_map(|line| line.split_once(' '));
        fields.find(|(field, _)| *field == name).and_then(|(_, bytes)| bytes.parse().ok()).unwrap_or(0)
    };
    let of_files: u64 = files.pages_of_files.into_iter().map(of).sum();
    Ok(Some(limit.max(used.saturating_sub(of_files))))
}

/// Where a version has what a cgroup uses.
struct MemoryFiles {
    usage: &'static str,
    /// Lines of `memory.stat`.
    pages_of_files: [&'static str; 2],
}

/// Makes the directory of one level; true if it was not there.
fn make_level(directory: &Path) -> io::Result<bool> {
    match fs::create_dir(directory) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
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
    let mut processes = BTreeSet::new();
    let listed = collect_processes(directory, &mut processes);
    thaw(directory).map_err(io_error("thaw cgroup", directory))?;
    // Version 2 since Linux 5.14: the kernel kills the whole tree, forks included; ourselves too, where
    // somebody put us into it.
    if !processes.remove(&getpid().as_raw()) {
        match fs::write(directory.join("cgroup.kill"), "1") {
            Ok(()) => return Ok(()),
            Err(error) if is_gone(&error) || error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(io_error("kill cgroup", directory)(error)),
        }
    }
    // Those that were found, too, where not all could be listed.
    for pid in processes {
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => {
                return Err(io_error("kill processes of cgroup", directory)(error.into()));
            }
        }
    }
    listed.map_err(io_error("list processes of cgroup", directory))
}

/// Version 1 lets nothing die that is frozen.
fn thaw(directory: &Path) -> io::Result<()> {
    let state = directory.join("freezer.state");
    if !state.exists() {
        return Ok(());
    }
    fs::write(&state, "THAWED").or_else(|error| if is_gone(&error) { Ok(()) } else { Err(error) })?;
    sub_directories(directory)?.iter().try_for_each(|name| thaw(&directory.join(name)))
}

fn collect_processes(directory: &Path, processes: &mut BTreeSet<i32>) -> io::Result<()> {
    match fs::read_to_string(directory.join("cgroup.procs")) {
        Ok(pids) => {
            // 0 is a process of a PID namespace that we cannot see into.
            processes.extend(pids.lines().filter_map(|pid| pid.trim().parse::<i32>().ok()).filter(|pid| *pid > 0));
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

/// Removes the cgroup, and kills what keeps it from going. Most are empty by then: one call tells.
fn remove_with_all(directory: &Path) -> Result<bool> {
    if remove_level(directory).map_err(io_error("remove cgroup", directory))? {
        return Ok(true);
    }
    kill_all(directory)?;
    remove_levels(directory).map_err(io_error("remove cgroup", directory))
}

/// Removes the cgroup from its leaves up; false if one is not empty yet.
fn remove_levels(directory: &Path) -> io::Result<bool> {
    let mut gone = true;
    for name in sub_directories(directory)? {
        gone &= remove_levels(&directory.join(name))?;
    }
    Ok(gone && remove_level(directory)?)
}

/// False if something is in it.
fn remove_level(directory: &Path) -> io::Result<bool> {
    match fs::remove_dir(directory) {
        Ok(()) => Ok(true),
        Err(error) if is_gone(&error) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
