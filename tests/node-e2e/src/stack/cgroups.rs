//! The stack's own corner in each cgroup hierarchy of the host, which it sees as the root.
//!
//! The host's hierarchies are read off its mount table and mirrored: the same mount points
//! with the same options, so version 1, version 2 and the mixture of both need no cases of
//! their own but for the one rule that version 2 has about processes in inner groups.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use serde::{Deserialize, Serialize};

use super::slot::SlotNumber;
use crate::poll::{self, Look};

const ROOT: &str = "/sys/fs/cgroup";

/// The group that PID 1 and all programs of a stack start in where inner groups must be empty.
const LEAF: &str = "stack";

/// How long killed processes may take to leave their group.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// One mounted hierarchy of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    mount_point: PathBuf,
    /// `cgroup` or `cgroup2`.
    kind: String,
    /// What to mount it with again, such as `cpu,cpuacct` or `none,name=systemd`.
    options: String,
}

/// How the host has its cgroups: all a stack needs to mirror it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Layout {
    hierarchies: Vec<Hierarchy>,
    /// Such as `cpu` → `cpu,cpuacct`, which many hosts have beside the mounts.
    links: Vec<(PathBuf, PathBuf)>,
}

impl Layout {
    pub fn of_host() -> Result<Layout> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
        let hierarchies = hierarchies(&mounts);
        if hierarchies.is_empty() {
            bail!("no cgroup hierarchy is mounted below {ROOT}");
        }
        let mut links = Vec::new();
        for entry in fs::read_dir(ROOT).with_context(|| format!("read {ROOT}"))? {
            let path = entry?.path();
            if let Ok(target) = fs::read_link(&path) {
                links.push((path, target));
            }
        }
        Ok(Layout { hierarchies, links })
    }

    /// Makes the stack's group in each hierarchy.
    pub fn create(&self, slot: SlotNumber) -> Result<()> {
        for hierarchy in &self.hierarchies {
            hierarchy.create(slot)?;
        }
        Ok(())
    }

    /// Moves this process into the stack's groups.
    pub fn join(&self, slot: SlotNumber) -> Result<()> {
        for hierarchy in &self.hierarchies {
            enter(&hierarchy.group(slot))?;
        }
        Ok(())
    }

    /// Moves this process on into a leaf. To be called once the cgroup namespace exists, whose
    /// root is where its first process was at that moment; a version 2 root with a process in
    /// it could not pass its controllers on.
    pub fn join_leaf(&self, slot: SlotNumber) -> Result<()> {
        for hierarchy in self.hierarchies.iter().filter(|hierarchy| hierarchy.kind == "cgroup2") {
            let leaf = hierarchy.group(slot).join(LEAF);
            fs::create_dir(&leaf).with_context(|| format!("create {}", leaf.display()))?;
            enter(&leaf)?;
        }
        Ok(())
    }

    /// Mounts the hierarchies as seen from inside, below a fresh /sys.
    pub fn mount(&self) -> Result<()> {
        if self.hierarchies.iter().all(|hierarchy| hierarchy.mount_point != Path::new(ROOT)) {
            mount(Some("tmpfs"), ROOT, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
                .with_context(|| format!("mount a tmpfs on {ROOT}"))?;
        }
        for Hierarchy { mount_point, kind, options } in &self.hierarchies {
            fs::create_dir_all(mount_point)?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("cgroup"), mount_point, Some(kind.as_str()), flags, Some(options.as_str()))
                .with_context(|| format!("mount {} ({kind} {options})", mount_point.display()))?;
        }
        for (link, target) in &self.links {
            std::os::unix::fs::symlink(target, link).with_context(|| format!("link {}", link.display()))?;
        }
        Ok(())
    }
}

impl Hierarchy {
    fn group(&self, slot: SlotNumber) -> PathBuf {
        self.mount_point.join(slot.cgroup())
    }

    fn create(&self, slot: SlotNumber) -> Result<()> {
        if self.kind == "cgroup2" {
            self.pass_on_controllers()?;
        }
        let group = self.group(slot);
        fs::create_dir(&group).with_context(|| format!("create {}", group.display()))?;
        // A new cpuset of version 1 has neither CPUs nor memory nodes and takes no process.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if self.kind == "cgroup" && group.join(file).exists() {
                let value = fs::read(self.mount_point.join(file))?;
                fs::write(group.join(file), value).with_context(|| format!("set {file} of {}", group.display()))?;
            }
        }
        Ok(())
    }

    fn pass_on_controllers(&self) -> Result<()> {
        let controllers = fs::read_to_string(self.mount_point.join("cgroup.controllers"))?;
        for controller in controllers.split_whitespace() {
            let file = self.mount_point.join("cgroup.subtree_control");
            fs::write(&file, format!("+{controller}"))
                .with_context(|| format!("enable {controller} in {}", file.display()))?;
        }
        Ok(())
    }
}

/// Removes the stack's groups with all groups below them. Its processes have been killed by
/// now, but the last of them may still be on its way out.
pub async fn remove(slot: SlotNumber) -> Result<()> {
    let hierarchies = Layout::of_host()?.hierarchies;
    // A runtime that was killed while it had a container frozen leaves a process that not
    // even SIGKILL ends.
    for hierarchy in &hierarchies {
        thaw(&hierarchy.group(slot));
    }
    for hierarchy in hierarchies {
        let group = hierarchy.group(slot);
        let goal = format!("remove cgroup {}", group.display());
        poll::until(goal, EMPTY_WITHIN, async || match remove_tree(&group) {
            Ok(()) => Ok(Look::Done(())),
            Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(Look::NotYet(occupants(&group))),
            Err(error) => Err(error.into()),
        })
        .await?;
    }
    Ok(())
}

fn thaw(group: &Path) {
    let state = group.join("freezer.state");
    if state.exists() {
        // What cannot be thawed is told by the removal that fails on it.
        let _ = fs::write(state, "THAWED");
    }
    for child in fs::read_dir(group).into_iter().flatten().flatten() {
        if child.path().is_dir() {
            thaw(&child.path());
        }
    }
}

fn remove_tree(group: &Path) -> std::io::Result<()> {
    let children = match fs::read_dir(group) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        children => children?,
    };
    for child in children {
        let child = child?;
        if child.file_type()?.is_dir() {
            remove_tree(&child.path())?;
        }
    }
    fs::remove_dir(group)
}

fn occupants(group: &Path) -> String {
    let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    format!("processes {} in it", pids.split_whitespace().collect::<Vec<_>>().join(", "))
}

fn enter(group: &Path) -> Result<()> {
    fs::write(group.join("cgroup.procs"), "0").with_context(|| format!("enter {}", group.display()))
}

/// The cgroup mounts of a mount table in the form of /proc/self/mountinfo.
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    mountinfo.lines().filter_map(hierarchy).collect()
}

fn hierarchy(line: &str) -> Option<Hierarchy> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mount_point = PathBuf::from(mount.split(' ').nth(4)?);
    let mut file_system = file_system.split(' ');
    let kind = file_system.next().filter(|kind| matches!(*kind, "cgroup" | "cgroup2"))?;
    let options = file_system.nth(1)?;
    if !mount_point.starts_with(ROOT) {
        return None;
    }
    let mut options: Vec<&str> = options.split(',').filter(|option| !matches!(*option, "rw" | "ro")).collect();
    // A hierarchy that only has a name must be told that it is to have no controllers.
    if kind == "cgroup" && options.iter().all(|option| option.starts_with("name=")) {
        options.insert(0, "none");
    }
    let options = options.join(",");
    Some(Hierarchy { mount_point, kind: kind.to_owned(), options })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: Option<(&str, &str, &str)>) {
        let found = hierarchies(line);
        let found = found.first();
        let found = found.map(|h| (h.mount_point.to_str().unwrap(), &*h.kind, &*h.options));
        assert_eq!(found, expected, "{line}");
    }

    #[test]
    fn hierarchies_are_read_off_the_mount_table() {
        check(
            "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu",
            Some(("/sys/fs/cgroup/cpu", "cgroup", "cpu")),
        );
        check(
            "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd",
            Some(("/sys/fs/cgroup/systemd", "cgroup", "none,name=systemd")),
        );
        check(
            "40 31 0:37 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw,xattr,name=systemd",
            Some(("/sys/fs/cgroup/systemd", "cgroup", "xattr,name=systemd")),
        );
        check(
            "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate",
            Some(("/sys/fs/cgroup", "cgroup2", "nsdelegate")),
        );
        check("31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755", None);
        check("31 23 0:28 / /mnt/cgroup rw,relatime - cgroup2 cgroup2 rw", None);
    }
}
