//! Processes of the node itself that settings want in a cgroup of their own.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::getpid;

use super::{Cgroups, io_error};
use crate::host::{CgroupPath, CgroupSettings, CgroupVersion, Result};

impl Cgroups {
    /// Moves the agent into a cgroup, which is made if need be.
    pub fn take_in_self(&self, cgroup: &CgroupPath) -> Result<()> {
        self.take_in(cgroup, &[getpid().as_raw()])
    }

    /// Moves what is in the root cgroup into another one: all but the first process and the kernel's
    /// own. How many that were.
    pub fn take_in_unplaced(&self, cgroup: &CgroupPath, proc: &Path) -> Result<usize> {
        let root = match self.version() {
            CgroupVersion::V2 => self.root.clone(),
            CgroupVersion::V1 => self.hierarchies()?.cpu()?.to_owned(),
        };
        let list = root.join("cgroup.procs");
        let pids = fs::read_to_string(&list).map_err(io_error("read", &list))?;
        let pids = pids.lines().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid > 1);
        // Threads of the kernel have no program.
        let has_program = |pid: &i32| fs::read_link(proc.join(pid.to_string()).join("exe")).is_ok();
        let pids: Vec<i32> = pids.filter(has_program).collect();
        if !pids.is_empty() {
            self.take_in(cgroup, &pids)?;
        }
        Ok(pids.len())
    }

    /// Always a plain directory, and by its plain name: systemd has its own word on where services are.
    fn take_in(&self, cgroup: &CgroupPath, pids: &[i32]) -> Result<()> {
        let levels = super::names::levels(crate::host::CgroupDriver::Cgroupfs, cgroup)?;
        self.write(&levels, &CgroupSettings::default())?;
        let below: PathBuf = levels.iter().collect();
        let directories: Vec<PathBuf> = match self.version() {
            CgroupVersion::V2 => vec![self.root.join(&below)],
            CgroupVersion::V1 => self.hierarchies()?.all().map(|hierarchy| hierarchy.join(&below)).collect(),
        };
        for directory in directories {
            let list = directory.join("cgroup.procs");
            for pid in pids {
                match fs::write(&list, pid.to_string()) {
                    // It ended meanwhile.
                    Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => {}
                    written => written.map_err(io_error("move a process into", &list))?,
                }
            }
        }
        Ok(())
    }
}
