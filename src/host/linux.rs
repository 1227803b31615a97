//! The real machine: each call goes to the blocking pool on the lane of what it is about.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{fs, io};

use async_trait::async_trait;
use nix::unistd::Gid;
use tokio::time::timeout;

use super::cgroup::Cgroups;
use super::lanes::Lanes;
use super::tree::GroupAccess;
use super::writes::Writes;
use super::{
    CgroupDriver, CgroupPath, CgroupSettings, DirMedium, Durability, Host, HostError, HostPathKind, MachineFacts,
    PayloadFile, Result, Tuned, Written, atomic_writer, beneath, facts, files, host_path, kernel, mounts, sub_path,
    tree,
};
use crate::clock::Clock;
use crate::pod::PodUid;

/// Where the machine is found. A temporary directory is a machine too.
#[derive(Clone, Debug)]
pub struct Roots {
    pub proc: PathBuf,
    pub sys: PathBuf,
    pub cgroup: PathBuf,
    /// Has the sockets of systemd.
    pub run: PathBuf,
    pub etc: PathBuf,
    /// Holds the machine id of systems that have it from D-Bus only.
    pub var_lib: PathBuf,
    /// The agent's own tree, `--root-dir`.
    pub root_dir: PathBuf,
}

impl Roots {
    pub fn machine(root_dir: PathBuf) -> Self {
        Roots {
            proc: "/proc".into(),
            sys: "/sys".into(),
            cgroup: "/sys/fs/cgroup".into(),
            run: "/run".into(),
            etc: "/etc".into(),
            var_lib: "/var/lib".into(),
            root_dir,
        }
    }
}

/// A name server that is away must not hold the node up for long.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(2);
const POD_DIR_MODE: u32 = 0o750;
const EMPTY_DIR_MODE: u32 = 0o777;

/// Waits between rounds of killing: processes die within one, unless a device holds them.
const KILL_PAUSES: [Duration; 5] = [
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(80),
    Duration::from_millis(200),
    Duration::from_millis(400),
];

pub struct LinuxHost {
    machine: Arc<Machine>,
    lanes: Lanes,
    clock: Clock,
    writes: Writes,
}

/// What the work on the blocking pool needs of us.
struct Machine {
    roots: Roots,
    cgroups: Cgroups,
    /// The root dir without symlinks, as the kernel's mount table names it.
    real_root_dir: OnceLock<PathBuf>,
    makeup: OnceLock<Arc<super::Machine>>,
}

impl LinuxHost {
    /// `deadline` is for each single call.
    pub fn new(roots: Roots, deadline: Duration, clock: Clock) -> Self {
        let cgroups = Cgroups::new(roots.cgroup.clone(), roots.run.clone());
        let machine = Arc::new(Machine { roots, cgroups, real_root_dir: OnceLock::new(), makeup: OnceLock::new() });
        LinuxHost { machine, lanes: Lanes::new(deadline), clock, writes: Writes::default() }
    }

    /// Moves the agent itself into a cgroup, which is made if need be.
    pub async fn join_cgroup(&self, cgroup: &CgroupPath) -> Result<()> {
        self.on_cgroup("join cgroup", cgroup, Cgroups::take_in_self).await
    }

    /// Moves processes of the root cgroup into another one, and says how many.
    pub async fn gather_unplaced(&self, cgroup: &CgroupPath) -> Result<usize> {
        let proc = self.machine.roots.proc.clone();
        self.on_cgroup("move processes into", cgroup, move |cgroups, cgroup| cgroups.take_in_unplaced(cgroup, &proc))
            .await
    }

    /// Settings of the kernel that were not as a node needs them.
    pub async fn tune_kernel(&self, may_change: bool) -> Result<Vec<Tuned>> {
        let proc = self.machine.roots.proc.clone();
        let settings = proc.join("sys");
        self.lanes.run(&settings, "tune", &settings, move || kernel::tune(&proc, may_change)).await
    }

    /// Runs `work` on the lane of `path`, and says what it was about if it fails.
    async fn at<T: Send + 'static>(
        &self,
        what: &'static str,
        path: &Path,
        work: impl FnOnce(&Machine, &Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (machine, owned) = (self.machine.clone(), path.to_owned());
        self.lanes
            .run(&self.lane(path), what, path, move || {
                work(&machine, &owned).map_err(|source| HostError::Io { what, path: owned, source })
            })
            .await
    }

    /// All of a pod's directory is one lane: whatever hangs in there holds up that pod.
    /// Everything else is a lane of its own.
    fn lane(&self, path: &Path) -> PathBuf {
        let pods = self.machine.pods();
        match path.strip_prefix(&pods).ok().and_then(|below| below.iter().next()) {
            Some(uid) => pods.join(uid),
            None => path.to_owned(),
        }
    }

    /// A path that a pod's author chose may lie on a file server. If that is dead, every
    /// path on it is, so the mount is the lane. The machine's own file system would be too
    /// wide a lane: one symlink on it that leads to the dead server would close it for all.
    async fn foreign_lane(&self, path: &Path) -> Result<PathBuf> {
        let lane = self.lane(path);
        if lane != path {
            return Ok(lane);
        }
        let table = self
            .at("read", &self.machine.roots.proc.join("self/mountinfo"), |machine, _| {
                mounts::table(&machine.roots.proc)
            })
            .await?;
        let own = mounts::holding(&table, &self.machine.roots.root_dir).map(|mount| mount.point.clone());
        Ok(match mounts::holding(&table, path) {
            Some(mount) if mount.point != Path::new("/") && Some(&mount.point) != own.as_ref() => mount.point.clone(),
            _ => lane,
        })
    }

    async fn on_cgroup<T: Send + 'static>(
        &self,
        what: &'static str,
        cgroup: &CgroupPath,
        work: impl FnOnce(&Cgroups, &CgroupPath) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (machine, cgroup) = (self.machine.clone(), cgroup.clone());
        let path = machine.roots.cgroup.join(cgroup.0.trim_start_matches('/'));
        self.lanes.run(&path, what, &path, move || work(&machine.cgroups, &cgroup)).await
    }
}

impl Machine {
    fn pods(&self) -> PathBuf {
        self.roots.root_dir.join("pods")
    }

    /// `path` as the mount table would have it. Only the root dir itself is resolved: what
    /// is below it was made by us, and may lead to a mount that does not answer.
    fn as_mounted(&self, path: &Path) -> io::Result<PathBuf> {
        let Ok(below) = path.strip_prefix(&self.roots.root_dir) else {
            return Ok(path.to_owned());
        };
        let real = match self.real_root_dir.get() {
            Some(real) => real,
            None => {
                let real = match fs::canonicalize(&self.roots.root_dir) {
                    // Nothing can be mounted below what does not exist.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        return Ok(path.to_owned());
                    }
                    real => real?,
                };
                self.real_root_dir.get_or_init(|| real)
            }
        };
        Ok(real.join(below))
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        let path = self.as_mounted(path)?;
        mounts::unmount_below(&self.roots.proc, &path)?;
        tree::remove(&path)
    }
}

/// Makes the directory of an emptyDir or of a volume that is written, and mounts its
/// medium; true if either was missing.
fn make_medium(path: &Path, medium: &DirMedium) -> io::Result<bool> {
    if let Some(parent) = path.parent() {
        files::make_dir(parent, POD_DIR_MODE)?;
    }
    let made = match fs::symlink_metadata(path) {
        Ok(stat) if stat.is_dir() => false,
        _ => {
            files::make_dir(path, EMPTY_DIR_MODE)?;
            true
        }
    };
    Ok(mounts::mount_medium(path, medium)? || made)
}

fn uids(names: Vec<String>) -> Vec<PodUid> {
    names.into_iter().map(PodUid::new).collect()
}

#[async_trait]
impl Host for LinuxHost {
    async fn facts(&self) -> Result<MachineFacts> {
        let machine = self.machine.clone();
        let path = machine.roots.root_dir.clone();
        let work = move || facts::read(&machine.roots, machine.cgroups.version(), &machine.makeup);
        self.lanes.run(&path, "read the facts of the machine with root dir", &path, work).await
    }

    async fn resolve(&self, name: &str) -> Vec<IpAddr> {
        match timeout(LOOKUP_DEADLINE, tokio::net::lookup_host((name, 0))).await {
            Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    }

    async fn use_cgroup_driver(&self, driver: CgroupDriver) -> Result<()> {
        self.machine.cgroups.use_driver(driver)
    }

    async fn check_cgroup(&self, cgroup: &CgroupPath) -> Result<()> {
        self.on_cgroup("look at cgroup", cgroup, Cgroups::check).await
    }

    async fn ensure_cgroup(&self, cgroup: &CgroupPath, settings: &CgroupSettings) -> Result<bool> {
        let settings = settings.clone();
        self.on_cgroup("set up cgroup", cgroup, move |cgroups, cgroup| cgroups.ensure(cgroup, &settings)).await
    }

    async fn destroy_cgroup(&self, cgroup: &CgroupPath) -> Result<()> {
        for pause in KILL_PAUSES {
            if self.on_cgroup("destroy cgroup", cgroup, Cgroups::destroy_round).await? {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
        }
        let left = self.on_cgroup("list processes of cgroup", cgroup, Cgroups::processes).await?;
        let why = match left.is_empty() {
            true => "the kernel keeps it busy".to_owned(),
            false => format!("processes do not die: {left:?}"),
        };
        Err(HostError::Refused(format!("cgroup {} cannot be removed, {why}", cgroup.0)))
    }

    async fn list_pod_cgroups(&self, root: &CgroupPath) -> Result<Vec<(PodUid, CgroupPath)>> {
        self.on_cgroup("list pods of cgroup", root, Cgroups::list_pods).await
    }

    async fn list_pod_dirs(&self) -> Result<Vec<PodUid>> {
        self.at("list", &self.machine.pods(), |_, path| files::list_dir(path)).await.map(uids)
    }

    async fn list_pod_volumes(&self, uid: &PodUid) -> Result<Vec<(String, String)>> {
        let path = self.machine.pods().join(uid.as_str()).join("volumes");
        self.at("list volumes in", &path, |_, path| {
            let mut volumes = Vec::new();
            for plugin in files::list_dir(path)? {
                let names = files::list_dir(&path.join(&plugin))?;
                volumes.extend(names.into_iter().map(|name| (plugin.clone(), name)));
            }
            Ok(volumes)
        })
        .await
    }

    async fn make_dir(&self, path: &Path, mode: u32) -> Result<()> {
        self.at("make directory", path, move |_, path| files::make_dir(path, mode)).await
    }

    async fn make_empty_dir(&self, path: &Path, medium: &DirMedium) -> Result<bool> {
        let medium = medium.clone();
        self.at("set up directory", path, move |_, path| make_medium(path, &medium)).await
    }

    async fn write_payload(
        &self,
        path: &Path,
        medium: &DirMedium,
        files: &[PayloadFile],
        fs_group: Option<u32>,
    ) -> Result<bool> {
        let (medium, files) = (medium.clone(), files.to_owned());
        let stamp = atomic_writer::directory_name(self.clock.wall(), self.clock.with_random(|random| random.u32(..)));
        self.at("write volume", path, move |_, path| {
            make_medium(path, &medium)?;
            let options = atomic_writer::Options { stamp: &stamp, fs_group, durable: medium == DirMedium::Disk };
            atomic_writer::write(path, &files, &options, &mut |_| Ok(()))
        })
        .await
    }

    async fn apply_fs_group(&self, path: &Path, gid: u32) -> Result<()> {
        self.at("give to its fsGroup", path, move |_, path| {
            tree::give_to_group(&beneath::directory(path)?, Gid::from_raw(gid), GroupAccess::ReadWrite)
        })
        .await
    }

    async fn check_host_path(&self, path: &Path, kind: HostPathKind) -> Result<()> {
        let owned = path.to_owned();
        let lane = self.foreign_lane(path).await?;
        self.lanes.run(&lane, "look at", path, move || host_path::check(&owned, kind)).await
    }

    async fn prepare_sub_path(&self, volume: &Path, sub_path: &str, target: &Path) -> Result<PathBuf> {
        let (path, below, owned) = (volume.to_owned(), sub_path.to_owned(), target.to_owned());
        let lane = self.foreign_lane(volume).await?;
        let what = "prepare subPath of";
        let work = move || {
            let prepared = sub_path::prepare(&path, &below, &owned);
            prepared.map_err(|source| HostError::Io { what, path: path.join(below), source })
        };
        self.lanes.run(&lane, what, volume, work).await?;
        Ok(target.to_owned())
    }

    async fn remove_tree(&self, path: &Path) -> Result<()> {
        self.at("remove", path, |machine, path| machine.remove_tree(path)).await
    }

    async fn write_file(&self, path: &Path, data: &[u8], mode: u32, durability: Durability) -> Result<()> {
        let data = data.to_owned();
        self.at("write", path, move |_, path| files::write_file(path, &data, mode, durability)).await
    }

    async fn read_file(&self, path: &Path, bytes_max: usize) -> Result<Option<Vec<u8>>> {
        self.at("read", path, move |_, path| files::read_file(path, bytes_max)).await
    }

    async fn read_file_in(&self, volume: &Path, path: &str, bytes_max: usize) -> Result<Option<Vec<u8>>> {
        let path = path.to_owned();
        self.at("read a file in", volume, move |_, volume| sub_path::read(volume, &path, bytes_max)).await
    }

    async fn read_tail(&self, path: &Path, bytes_max: usize, lines_max: Option<usize>) -> Result<Option<Vec<u8>>> {
        self.at("read the end of", path, move |_, path| files::read_tail(path, bytes_max, lines_max)).await
    }

    async fn list_dir(&self, path: &Path) -> Result<Vec<String>> {
        self.at("list", path, |_, path| files::list_dir(path)).await
    }

    async fn symlink(&self, target: &Path, link: &Path) -> Result<()> {
        let target = target.to_owned();
        self.at("make symlink", link, move |_, link| files::symlink(&target, link)).await
    }

    async fn dangling_links(&self, path: &Path) -> Result<Vec<String>> {
        self.at("look for dangling links in", path, |_, path| files::dangling_links(path)).await
    }

    async fn remove_file(&self, path: &Path) -> Result<()> {
        self.at("remove", path, |_, path| files::remove_file(path)).await
    }

    async fn file_size(&self, path: &Path) -> Result<Option<u64>> {
        self.at("look at", path, |_, path| files::file_size(path)).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let to = to.to_owned();
        self.at("rename", from, move |_, from| fs::rename(from, to)).await
    }

    async fn rename_new(&self, from: &Path, to: &Path) -> Result<bool> {
        let to = to.to_owned();
        self.at("rename", from, move |_, from| files::rename_new(from, &to)).await
    }

    async fn gzip(&self, path: &Path) -> Result<()> {
        self.at("compress", path, |_, path| files::gzip(path)).await
    }

    async fn watch_writes(&self, path: &Path) -> Result<Written> {
        let writes = self.writes.clone();
        self.at("watch", path, move |_, path| writes.watch(path)).await
    }
}
