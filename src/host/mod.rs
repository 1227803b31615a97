//! The machine as the agent sees it: files under the roots, mounts, cgroups, facts.
//!
//! `linux.rs` is the real one; every method of it runs on the blocking pool under a
//! deadline, because a dead NFS server or a full disk must hold up one pod only, and
//! `lanes.rs` bounds how many threads one such place can take. The simulation has a machine
//! in memory behind the same trait.
//!
//! Everything happens within a call, but for one task, which reads from inotify what the
//! `watch_writes` of all callers wait for.
//!
//! Always true: paths come in as parameters, every operation is idempotent, files are
//! replaced atomically, and no path that a pod can influence is walked by name: those go
//! through directory descriptors and follow no symlink.

mod atomic_writer;
mod below;
mod beneath;
mod cgroup;
pub mod cgroup_math;
mod dir_lock;
pub mod disk_usage;
mod facts;
mod files;
mod host_path;
mod kernel;
mod lanes;
mod linux;
mod machine;
mod mounts;
mod sub_path;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tree;
mod writes;

pub use below::{Below, open_below};
pub use cgroup::{configured_name, page_bytes, systemd_name};
pub use dir_lock::DirLock;
pub use files::open_regular;
pub use kernel::Tuned;
pub use lanes::Lanes;
pub use linux::{LinuxHost, Roots};
pub use machine::{Cpu, Machine, NumaNode};

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;

use crate::pod::PodUid;

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("failed to {what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The operation did not come back; it may still be going on in the kernel.
    #[error("could not {what} {} within {after:?}", path.display())]
    Timeout { what: &'static str, path: PathBuf, after: Duration },
    /// An earlier operation on the same place has not come back; no thread was spent on
    /// this one.
    #[error("cannot {what} {}: {doing} has been stuck there for {stuck:?}", path.display())]
    Busy { what: &'static str, path: PathBuf, doing: &'static str, stuck: Duration },
    /// What is there is not what the pod asked for; the text is upstream's.
    #[error("{0}")]
    Refused(String),
}

impl HostError {
    /// Nothing is known of what is there: it may well be whole.
    pub fn is_silence(&self) -> bool {
        matches!(self, HostError::Timeout { .. } | HostError::Busy { .. })
    }
}

pub type Result<T> = std::result::Result<T, HostError>;

/// Figures of the machine for the Node object and for resource arithmetic.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MachineFacts {
    pub hostname: String,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel_version: String,
    pub os_image: String,
    /// Go's name for it (`amd64`, `arm64`), as the API has it.
    pub architecture: String,
    pub cpus: u32,
    /// The same CPUs in their places, as they were when first asked; empty if /sys does not tell.
    pub machine: Arc<Machine>,
    pub memory_bytes: u64,
    pub swap_bytes: u64,
    /// The kernel counts swap by cgroup, so it can be kept from containers.
    pub swap_controller: bool,
    /// The kernel counts processes by cgroup, so there can be a limit.
    pub pids_controller: bool,
    /// Page size as the resource name has it (`2Mi`), and bytes of all its pages.
    pub hugepages: Vec<(String, u64)>,
    /// Size of the file system that holds the root dir.
    pub root_fs_bytes: u64,
    pub max_pids: u64,
    /// Addresses on up interfaces, loopback and link-local left out, default route's first.
    pub addresses: Vec<IpAddr>,
    pub cgroup_version: CgroupVersion,
    /// The kernel confines by AppArmor profiles.
    pub app_armor: bool,
    /// `thermal_throttle` directories of the CPUs, which tell how busy the whole machine is.
    pub thermal_throttle_dirs: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupVersion {
    V1,
    #[default]
    V2,
}

/// Who makes cgroups, which also decides their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Whoever needs one makes a directory.
    Cgroupfs,
    /// systemd, which is asked for slices.
    Systemd,
}

/// As settings name it.
impl fmt::Display for CgroupDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CgroupDriver::Cgroupfs => "cgroupfs",
            CgroupDriver::Systemd => "systemd",
        })
    }
}

/// A cgroup by its path from the cgroup root, in cgroupfs form: `/kubepods/burstable/pod…`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CgroupPath(pub String);

/// What is written to a cgroup of our own levels. `None` leaves the kernel's value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupSettings {
    pub cpu_shares: Option<u64>,
    /// Microseconds of `cpu_period`; −1 is no quota.
    pub cpu_quota: Option<i64>,
    pub cpu_period: Option<u64>,
    pub memory_limit_bytes: Option<u64>,
    /// Where more than the limit is in use already, that much is the limit: nobody is killed for it.
    pub memory_limit_yields: bool,
    /// Kept from being reclaimed, whatever happens, or while others have more than their part. Version 2
    /// only.
    pub memory_min_bytes: Option<u64>,
    pub memory_low_bytes: Option<u64>,
    pub pids_max: Option<u64>,
    /// Page size (`2MB`) and bytes.
    pub hugepage_limits: Vec<(String, u64)>,
}

/// One file of a volume made from API content.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PayloadFile {
    /// Relative, no `..`.
    pub path: String,
    pub data: Vec<u8>,
    pub mode: u32,
    /// Owner of token files; `None` is the agent's own.
    pub uid: Option<u32>,
}

/// Keeps secrets and tokens out of logs.
impl fmt::Debug for PayloadFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes, mode {:o})", self.path, self.data.len(), self.mode)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirMedium {
    Disk,
    /// tmpfs of at most so many bytes; `None` is the kernel's default.
    Memory {
        size_bytes: Option<u64>,
    },
    HugePages {
        page_size: String,
        size_bytes: Option<u64>,
    },
}

/// Whether a file is worth an fsync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Made again after a reboot before anyone reads it (`/etc/hosts`, markers): replaced
    /// atomically, but a power cut may take it.
    UntilReboot,
    /// Read again after a power cut: old or new, and on the disk when the call returns.
    ThroughPowerCut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPathKind {
    Any,
    DirectoryOrCreate,
    Directory,
    FileOrCreate,
    File,
    Socket,
    CharDevice,
    BlockDevice,
}

/// The machine.
#[async_trait]
pub trait Host: Send + Sync + 'static {
    async fn facts(&self) -> Result<MachineFacts>;
    /// The addresses a name resolves to by this machine's own resolver; empty if it does not.
    async fn resolve(&self, name: &str) -> Vec<IpAddr>;

    // Cgroups. The driver's naming is the host's business; the path is cgroupfs form.
    /// Chooses who makes cgroups; said once, before any other word about them. Refuses systemd where it
    /// does not run.
    async fn use_cgroup_driver(&self, driver: CgroupDriver) -> Result<()>;
    /// Refuses a cgroup that is not there, or lacks a controller that the machine has.
    async fn check_cgroup(&self, cgroup: &CgroupPath) -> Result<()>;
    /// Makes the cgroup with all parents and writes the settings. True if anything was not so already.
    async fn ensure_cgroup(&self, cgroup: &CgroupPath, settings: &CgroupSettings) -> Result<bool>;
    /// Kills what is left inside and removes the cgroup and everything below it.
    async fn destroy_cgroup(&self, cgroup: &CgroupPath) -> Result<()>;
    /// Pod cgroups that exist below `root`, with the UID read off their names.
    async fn list_pod_cgroups(&self, root: &CgroupPath) -> Result<Vec<(PodUid, CgroupPath)>>;

    // The pod directory tree, `pods/<uid>` under the root dir.
    async fn list_pod_dirs(&self) -> Result<Vec<PodUid>>;
    /// Volumes found on disk for a pod: plugin (`kubernetes.io~secret`) and volume name.
    async fn list_pod_volumes(&self, uid: &PodUid) -> Result<Vec<(String, String)>>;
    /// Makes the directory and its parents with `mode`, whatever the umask.
    async fn make_dir(&self, path: &Path, mode: u32) -> Result<()>;
    /// An emptyDir, mounted if its medium says so. Present and right: nothing happens and
    /// the answer is false.
    async fn make_empty_dir(&self, path: &Path, medium: &DirMedium) -> Result<bool>;
    /// Writes API content with the atomic-writer layout; true if something changed.
    async fn write_payload(
        &self,
        path: &Path,
        medium: &DirMedium,
        files: &[PayloadFile],
        fs_group: Option<u32>,
    ) -> Result<bool>;
    /// Sets group and group bits of a whole volume.
    async fn apply_fs_group(&self, path: &Path, gid: u32) -> Result<()>;
    async fn check_host_path(&self, path: &Path, kind: HostPathKind) -> Result<()>;
    /// Makes a subPath below a volume and returns the path to mount, free of symlinks.
    async fn prepare_sub_path(&self, volume: &Path, sub_path: &str, target: &Path) -> Result<PathBuf>;
    /// Unmounts what is mounted there and removes the tree; never crosses a live mount.
    async fn remove_tree(&self, path: &Path) -> Result<()>;

    // Single files.
    /// Replaces a file whole; the same content again is not written. One writer per file.
    async fn write_file(&self, path: &Path, data: &[u8], mode: u32, durability: Durability) -> Result<()>;
    /// `None` if it is not there; a file of more than `bytes_max` is refused.
    async fn read_file(&self, path: &Path, bytes_max: usize) -> Result<Option<Vec<u8>>>;
    /// The same of a file in a volume that pods write to: no symlink leads out of it.
    async fn read_file_in(&self, volume: &Path, path: &str, bytes_max: usize) -> Result<Option<Vec<u8>>>;
    /// The last `bytes_max` bytes and at most `lines_max` lines.
    async fn read_tail(&self, path: &Path, bytes_max: usize, lines_max: Option<usize>) -> Result<Option<Vec<u8>>>;
    /// Names in a directory; empty if it is not there.
    async fn list_dir(&self, path: &Path) -> Result<Vec<String>>;
    /// Names of symlinks in a directory that lead nowhere.
    async fn dangling_links(&self, path: &Path) -> Result<Vec<String>>;
    async fn symlink(&self, target: &Path, link: &Path) -> Result<()>;
    async fn remove_file(&self, path: &Path) -> Result<()>;
    /// `None` if it is not there.
    async fn file_size(&self, path: &Path) -> Result<Option<u64>>;
    async fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Renames unless there is something of the new name; false if there was.
    async fn rename_new(&self, from: &Path, to: &Path) -> Result<bool>;
    /// Replaces a file, if it is there, by `<path>.gz`. Cut off, it leaves the file and perhaps `<path>.tmp`,
    /// or both the file and `<path>.gz`, whole.
    async fn gzip(&self, path: &Path) -> Result<()>;
    /// The future ends once somebody has written to the file since this call returned.
    async fn watch_writes(&self, path: &Path) -> Result<Written>;
}

/// See [`Host::watch_writes`]. Dropping it ends the watch.
pub type Written = BoxFuture<'static, ()>;
