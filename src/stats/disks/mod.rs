//! What pods take on disks: logs, volumes, and what file systems have left. `measure.rs` looks.
//!
//! A pod's volumes are walked at most once a period, each pod on a lane of its own, and who asks
//! waits for them only so long. A walk goes on without him and is told to whoever asks next; what is
//! not known by then is told as it was last, or not at all.
//!
//! Always true: nobody walks the same twice at once, and few walk at all.

mod measure;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::kept::Kept;
use crate::host::disk_usage::{self, DiskUsage};
use crate::host::{HostError, Lanes};
use crate::pod::{PodRef, PodUid, log_directory_name};

/// Pods walked at the same time for one who asks, and for all who ever asked: a walk of a disk that
/// hangs may stay for long.
const AT_ONCE: usize = 2;
const AT_ONCE_MAX: usize = 8;
/// How long a walk of one pod's volumes may take. Nobody waits for it that long.
const WALK_MAX: Duration = Duration::from_secs(600);
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
    /// Files in the pod's own directory; `None` where they could not be measured.
    pub own: Option<DiskUsage>,
    /// By name, those that could be measured; rotated and compressed ones count as well.
    pub containers: BTreeMap<String, DiskUsage>,
}

/// What came of the last walk of a pod.
struct Walked {
    /// `None` if none has found anything so far.
    disk: Option<Arc<PodDisk>>,
    next: Instant,
}

#[derive(Default)]
struct Table {
    walked: HashMap<PodUid, Walked>,
    under_way: BTreeSet<PodUid>,
    /// What was found the last time.
    logs: LogTable,
}

pub type LogTable = Arc<HashMap<PodUid, PodLogs>>;

pub struct Disks {
    root_dir: PathBuf,
    pod_logs_dir: PathBuf,
    /// `None`: volumes are not walked.
    period: Option<Duration>,
    lanes: Lanes,
    table: Arc<Mutex<Table>>,
    logs: Arc<Kept<(), Arc<HostError>>>,
}

impl Disks {
    pub fn new(root_dir: PathBuf, pod_logs_dir: PathBuf, period: Option<Duration>, lanes: Lanes) -> Self {
        Disks { root_dir, pod_logs_dir, period, lanes, table: Arc::default(), logs: Arc::new(Kept::new(LOGS_KEPT_FOR)) }
    }

    /// What is known of the pods' volumes, walked anew where that is due.
    pub async fn volumes(&self, pods: &[PodUid]) -> HashMap<PodUid, Arc<PodDisk>> {
        self.table().walked.retain(|uid, _| pods.contains(uid));
        let walks = stream::iter(pods).for_each_concurrent(AT_ONCE, |uid| self.walk(uid));
        // Walks that are under way go on and are known next time.
        let _ = timeout(PATIENCE, walks).await;
        let table = self.table();
        table.walked.iter().filter_map(|(uid, walked)| Some((uid.clone(), walked.disk.clone()?))).collect()
    }

    async fn walk(&self, uid: &PodUid) {
        let (Some(period), Some(turn)) = (self.period, self.turn(uid)) else { return };
        let directory = self.root_dir.join("pods").join(uid.as_str());
        let work = {
            let directory = directory.clone();
            move || {
                let begun = Instant::now();
                let disk = measure::pod_disk(&directory, turn.before.as_deref(), || begun.elapsed() < WALK_MAX);
                turn.end(disk, begun, period);
                Ok(())
            }
        };
        if let Err(error) = self.lanes.run(&directory, "measure", &directory, work).await {
            debug!(%error, "volumes of a pod not measured");
        }
    }

    /// `None` while somebody walks the same, or before that is due, or while too many walk.
    fn turn(&self, uid: &PodUid) -> Option<Turn> {
        let mut table = self.table();
        let walked = table.walked.get(uid);
        let is_due = walked.is_none_or(|walked| walked.next <= Instant::now());
        let before = walked.and_then(|walked| walked.disk.clone());
        let is_mine = is_due && table.under_way.len() < AT_ONCE_MAX && table.under_way.insert(uid.clone());
        is_mine.then(|| Turn { table: self.table.clone(), uid: uid.clone(), before })
    }

    /// The logs of these pods, as far as they are known in time. Who measures them goes on.
    pub async fn logs(&self, pods: Vec<PodRef>) -> LogTable {
        let (kept, lanes, table) = (self.logs.clone(), self.lanes.clone(), self.table.clone());
        let directory = self.pod_logs_dir.clone();
        let measuring = tokio::spawn(async move {
            let read = async {
                let at = directory.clone();
                let work = move || {
                    let all = pods.into_iter().map(|pod| {
                        let logs = measure::pod_logs(&at.join(log_directory_name(&pod)), disk_usage::of_files);
                        (pod.uid, logs)
                    });
                    locked(&table).logs = Arc::new(all.collect());
                    Ok(())
                };
                lanes.run(&directory, "measure logs in", &directory, work).await.map_err(Arc::new)
            };
            kept.get(Instant::now(), |_| true, read).await
        });
        if let Ok(Ok(Err(error))) = timeout(PATIENCE, measuring).await {
            debug!(%error, "logs not measured");
        }
        self.table().logs.clone()
    }

    pub async fn file_system(&self, path: &Path) -> Result<FileSystem, HostError> {
        let owned = path.to_owned();
        let what = "read the size of the file system of";
        let work = move || measure::file_system(&owned).map_err(|source| HostError::Io { what, path: owned, source });
        self.lanes.run(path, what, path, work).await
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        locked(&self.table)
    }
}

fn locked(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().expect("nothing that holds the table of walks can panic")
}

/// The walk of one pod. Ends when it is dropped, whoever waited for it.
struct Turn {
    table: Arc<Mutex<Table>>,
    uid: PodUid,
    /// What was known of it.
    before: Option<Arc<PodDisk>>,
}

impl Turn {
    fn end(&self, disk: io::Result<PodDisk>, begun: Instant, period: Duration) {
        let next = Instant::now() + period.max(begun.elapsed() * WALK_SHARE);
        // The pod has gone, or its disk is broken: what was known goes on to be told.
        let disk = disk.inspect_err(|error| debug!(pod = %self.uid, %error, "volumes not measured"));
        let disk = disk.map(Arc::new).ok().or_else(|| self.before.clone());
        locked(&self.table).walked.insert(self.uid.clone(), Walked { disk, next });
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        locked(&self.table).under_way.remove(&self.uid);
    }
}
