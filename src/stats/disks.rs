//! What pods take on disks: logs, volumes, and what file systems have left.
//!
//! A pod's volumes are walked at most once a period, each pod on a lane of its own, and who asks
//! waits for them only so long: what has not come by then is told as it was last, or not at all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use std::{fs, io};

use futures::{StreamExt, stream};
use nix::sys::stat::{lstat, major, minor};
use nix::sys::statvfs::statvfs;
use tokio::time::{Instant, timeout};
use tracing::debug;

use crate::host::disk_usage::{self, DiskUsage};
use crate::host::{HostError, Lanes};
use crate::pod::{PodRef, PodUid, log_directory_name};

/// Pods walked at the same time.
const AT_ONCE: usize = 2;
/// How long a walk of one pod's volumes may take.
const WALK_MAX: Duration = Duration::from_secs(20);
/// A walk takes no more than this part of the time, however large the volumes are.
const WALK_SHARE: u32 = 20;
const PATIENCE: Duration = Duration::from_secs(2);
const LOGS_KEPT_FOR: Duration = Duration::from_secs(10);

/// What a file system has, by `statfs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSystem {
    pub capacity: u64,
    pub available: u64,
    pub used: u64,
    pub inodes: u64,
    pub inodes_free: u64,
    /// The number of the device it is on.
    pub device: (u32, u32),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodDisk {
    pub volumes: Vec<Volume>,
    pub etc_hosts: DiskUsage,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    pub name: String,
    pub usage: DiskUsage,
    pub file_system: FileSystem,
    /// It takes what the pod may use of the node's own disk.
    pub is_ephemeral: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodLogs {
    /// Files in the pod's own directory.
    pub own: DiskUsage,
    /// By name; rotated and compressed ones count as well.
    pub containers: BTreeMap<String, DiskUsage>,
}

struct Walked {
    disk: Arc<PodDisk>,
    next: Instant,
}

#[derive(Default)]
struct Table {
    walked: HashMap<PodUid, Walked>,
    under_way: BTreeSet<PodUid>,
}

pub type LogTable = Arc<HashMap<PodUid, PodLogs>>;

pub struct Disks {
    root_dir: PathBuf,
    pod_logs_dir: PathBuf,
    /// `None`: volumes are not walked.
    period: Option<Duration>,
    lanes: Lanes,
    table: Arc<Mutex<Table>>,
    logs: tokio::sync::Mutex<Option<(Instant, LogTable)>>,
}

impl Disks {
    pub fn new(root_dir: PathBuf, pod_logs_dir: PathBuf, period: Option<Duration>, lanes: Lanes) -> Self {
        Disks { root_dir, pod_logs_dir, period, lanes, table: Arc::default(), logs: tokio::sync::Mutex::default() }
    }

    /// What is known of the pods' volumes, walked anew where that is due.
    pub async fn volumes(&self, pods: &[PodUid]) -> HashMap<PodUid, Arc<PodDisk>> {
        self.table().walked.retain(|uid, _| pods.contains(uid));
        let walks = stream::iter(pods).for_each_concurrent(AT_ONCE, |uid| self.walk(uid));
        // Walks that are under way go on and are known next time.
        let _ = timeout(PATIENCE, walks).await;
        let table = self.table();
        table.walked.iter().map(|(uid, walked)| (uid.clone(), walked.disk.clone())).collect()
    }

    async fn walk(&self, uid: &PodUid) {
        let (Some(period), Some(turn)) = (self.period, self.turn(uid)) else { return };
        let directory = self.root_dir.join("pods").join(uid.as_str());
        let work = {
            let directory = directory.clone();
            move || {
                let begun = Instant::now();
                let disk = pod_disk(&directory, || begun.elapsed() < WALK_MAX);
                turn.end(disk, begun, period);
                Ok(())
            }
        };
        if let Err(error) = self.lanes.run(&directory, "measure", &directory, work).await {
            debug!(%error, "volumes of a pod not measured");
        }
    }

    /// Nobody walks the same twice at once, nor before it is due.
    fn turn(&self, uid: &PodUid) -> Option<Turn> {
        let mut table = self.table();
        let is_due = table.walked.get(uid).is_none_or(|walked| walked.next <= Instant::now());
        let is_mine = is_due && table.under_way.insert(uid.clone());
        is_mine.then(|| Turn { table: self.table.clone(), uid: uid.clone() })
    }

    /// The logs of these pods.
    pub async fn logs(&self, pods: Vec<PodRef>) -> Result<LogTable, HostError> {
        let mut kept = self.logs.lock().await;
        if let Some((at, logs)) = &*kept
            && at.elapsed() < LOGS_KEPT_FOR
        {
            return Ok(logs.clone());
        }
        let directory = self.pod_logs_dir.clone();
        let work = move || {
            let all = pods.into_iter().map(|pod| {
                let logs = pod_logs(&directory.join(log_directory_name(&pod)));
                (pod.uid, logs.unwrap_or_default())
            });
            Ok(Arc::new(all.collect::<HashMap<_, _>>()))
        };
        let logs = self.lanes.run(&self.pod_logs_dir, "measure logs in", &self.pod_logs_dir, work).await?;
        *kept = Some((Instant::now(), logs.clone()));
        Ok(logs)
    }

    pub async fn file_system(&self, path: &Path) -> Result<FileSystem, HostError> {
        let owned = path.to_owned();
        let what = "read the size of the file system of";
        let work = move || file_system(&owned).map_err(|source| HostError::Io { what, path: owned, source });
        self.lanes.run(path, what, path, work).await
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nothing that holds the table of walks can panic")
    }
}

/// The walk of one pod. Ends when it is dropped, whoever waited for it.
struct Turn {
    table: Arc<Mutex<Table>>,
    uid: PodUid,
}

impl Turn {
    fn end(&self, disk: io::Result<PodDisk>, begun: Instant, period: Duration) {
        let next = Instant::now() + period.max(begun.elapsed() * WALK_SHARE);
        match disk {
            Ok(disk) => {
                let walked = Walked { disk: Arc::new(disk), next };
                self.table().walked.insert(self.uid.clone(), walked);
            }
            // The pod has gone, or its volume is broken: what was known goes on to be told.
            Err(error) => debug!(pod = %self.uid, %error, "volumes not measured"),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nothing that holds the table of walks can panic")
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.table().under_way.remove(&self.uid);
    }
}

/// Of volumes that a kubelet makes, those that lie in the pod's directory.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";
const CONFIG_MAP: &str = "kubernetes.io~configmap";
const OF_MEMORY: [&str; 3] = ["kubernetes.io~secret", "kubernetes.io~projected", "kubernetes.io~downward-api"];

fn pod_disk(directory: &Path, may_go_on: impl Fn() -> bool) -> io::Result<PodDisk> {
    let mut disk = PodDisk::default();
    let device = lstat(directory)?.st_dev;
    for plugin in [EMPTY_DIR, CONFIG_MAP].into_iter().chain(OF_MEMORY) {
        for (name, path) in sub_directories(&directory.join("volumes").join(plugin))? {
            let Some(usage) = disk_usage::of_tree(&path, &may_go_on)? else {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{} is too large", path.display())));
            };
            // One of memory is a mount, and takes nothing of the disk.
            let is_ephemeral = !OF_MEMORY.contains(&plugin) && lstat(&path)?.st_dev == device;
            disk.volumes.push(Volume { name, usage, file_system: file_system(&path)?, is_ephemeral });
        }
    }
    if let Ok(stat) = lstat(&directory.join("etc-hosts")) {
        disk.etc_hosts = DiskUsage::of(&stat);
    }
    Ok(disk)
}

fn pod_logs(directory: &Path) -> io::Result<PodLogs> {
    let mut logs = PodLogs { own: disk_usage::of_files(directory)?, ..PodLogs::default() };
    for (name, path) in sub_directories(directory)? {
        logs.containers.insert(name, disk_usage::of_files(&path)?);
    }
    Ok(logs)
}

fn sub_directories(directory: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if let (true, Ok(name)) = (entry.file_type()?.is_dir(), entry.file_name().into_string()) {
            found.push((name, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn file_system(path: &Path) -> io::Result<FileSystem> {
    let stat = statvfs(path)?;
    let device = nix::sys::stat::stat(path)?.st_dev;
    let number = |part: u64| u32::try_from(part).unwrap_or(u32::MAX);
    let block = stat.fragment_size();
    Ok(FileSystem {
        capacity: stat.blocks().saturating_mul(block),
        available: stat.blocks_available().saturating_mul(block),
        used: stat.blocks().saturating_sub(stat.blocks_free()).saturating_mul(block),
        inodes: stat.files(),
        inodes_free: stat.files_free(),
        device: (number(major(device)), number(minor(device))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        directory: tempfile::TempDir,
        disks: Disks,
    }

    const PERIOD: Duration = Duration::from_secs(3600);

    impl World {
        fn new(period: Option<Duration>) -> Self {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let at = |name: &str| directory.path().join(name);
            let disks = Disks::new(at("kubelet"), at("logs"), period, Lanes::new(Duration::from_secs(10)));
            World { directory, disks }
        }

        fn write(&self, path: &str, bytes: usize) {
            let path = self.directory.path().join(path);
            fs::create_dir_all(path.parent().expect("it is below the root")).expect("a directory");
            fs::write(path, vec![b'x'; bytes]).expect("a file");
        }

        fn usage(&self, path: &str) -> DiskUsage {
            DiskUsage::of(&lstat(&self.directory.path().join(path)).expect("it is there"))
        }
    }

    fn uid() -> PodUid {
        PodUid::new("a")
    }

    #[tokio::test]
    async fn volumes_are_what_lies_in_them_and_are_walked_once_a_period() {
        let world = World::new(Some(PERIOD));
        let of = |plugin: &str| format!("kubelet/pods/a/volumes/{plugin}/v");
        for plugin in [EMPTY_DIR, CONFIG_MAP, "kubernetes.io~secret", "kubernetes.io~csi"] {
            world.write(&format!("{}/file", of(plugin)), 10_000);
        }
        world.write("kubelet/pods/a/etc-hosts", 100);
        let pods = [uid()];
        let found = world.disks.volumes(&pods).await;
        let disk = &found[&uid()];
        let sum = [world.usage(&of(EMPTY_DIR)), world.usage(&format!("{}/file", of(EMPTY_DIR)))].into_iter().sum();
        let told: Vec<_> = disk.volumes.iter().map(|it| (it.name.as_str(), it.usage, it.is_ephemeral)).collect();
        assert_eq!(told, [("v", sum, true), ("v", sum, true), ("v", sum, false)], "a plugin's own tells otherwise");
        assert!(disk.volumes.iter().all(|it| it.file_system.capacity > 0));
        assert_eq!(disk.etc_hosts, world.usage("kubelet/pods/a/etc-hosts"));

        world.write(&format!("{}/more", of(EMPTY_DIR)), 10_000);
        let again = world.disks.volumes(&pods).await;
        assert_eq!(again[&uid()], *disk, "it is not due");
        assert!(world.disks.volumes(&[PodUid::new("b")]).await.is_empty(), "there is no such pod any more");
        let anew = world.disks.volumes(&pods).await;
        assert_ne!(anew[&uid()], *disk, "what was forgotten is walked anew");
    }

    #[tokio::test]
    async fn nothing_is_walked_where_that_is_off_or_somebody_is_at_it() {
        let off = World::new(None);
        off.write("kubelet/pods/a/etc-hosts", 1);
        assert!(off.disks.volumes(&[uid()]).await.is_empty());
        let busy = World::new(Some(PERIOD));
        busy.write("kubelet/pods/a/etc-hosts", 1);
        let turn = busy.disks.turn(&uid()).expect("it is due");
        assert!(busy.disks.volumes(&[uid()]).await.is_empty());
        drop(turn);
        assert_eq!(busy.disks.volumes(&[uid()]).await.len(), 1);
    }

    #[test]
    fn a_walk_that_takes_too_long_tells_nothing_wrong() {
        let world = World::new(Some(PERIOD));
        world.write("kubelet/pods/a/volumes/kubernetes.io~empty-dir/v/file", 1);
        let error = pod_disk(&world.directory.path().join("kubelet/pods/a"), || false).expect_err("its time is up");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(pod_disk(&world.directory.path().join("kubelet/pods/b"), || true).is_err());
    }

    #[tokio::test]
    async fn logs_are_all_files_of_a_container() {
        let world = World::new(None);
        let pod = PodRef { namespace: "shop".into(), name: "web".into(), uid: uid() };
        for (file, bytes) in [("main/0.log", 5000), ("main/0.log.20260101-120000.gz", 9000), ("own", 10)] {
            world.write(&format!("logs/shop_web_a/{file}"), bytes);
        }
        let gone = PodRef { uid: PodUid::new("b"), ..pod.clone() };
        let logs = world.disks.logs(vec![pod, gone]).await.expect("they can be read");
        let at = |file: &str| world.usage(&format!("logs/shop_web_a/{file}"));
        let main: DiskUsage = [at("main/0.log"), at("main/0.log.20260101-120000.gz")].into_iter().sum();
        let expected = PodLogs { own: at("own"), containers: [("main".to_owned(), main)].into() };
        assert_eq!(logs[&uid()], expected);
        assert_eq!(logs[&PodUid::new("b")], PodLogs::default());
    }
}
