//! Container logs on disk: no container fills the disk with what it says; `read/` shows them to who asks,
//! and `node/` what the machine itself has logged.
//!
//! The runtime writes `<restart count>.log`; this room looks at its size, and once that has
//! reached the limit moves it aside, has the runtime open a new one, and compresses or
//! removes what is older. Names and formats are upstream's, so that log collectors and the
//! other agent know them.
//!
//! Tasks: one for each running container (`follow.rs`). It sleeps until somebody writes to
//! the log (inotify) and then looks as often as the log's own pace asks for, so that a burst
//! of 100 MB/s is met within a tenth of a second and a silent container costs nothing but
//! one `stat` in each `containerLogMonitorInterval`. While old parts of a log are compressed,
//! a second task does so: a log is looked at whoever compresses what.
//! Everything that reads logs goes through `disk.rs`, which bounds the threads it takes, and has one of
//! the places of `places.rs`, which bound how many read.
//! In: what workers read of their pods (`observe`). Out: renames, `ReopenContainerLog`.
//!
//! Always true: at no moment, kill -9 included, is a line lost that fits within the limits:
//! a log is renamed before the runtime is told, only files that were superseded by an opened
//! one are compressed or removed, and a rename whose second half is missing is either
//! finished (the container runs) or taken back (it does not).

mod disk;
mod endings;
mod follow;
pub mod node;
mod places;
pub mod read;
mod rotation;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::tz::TimeZone;
use tokio::sync::{Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::clock::Clock;
use crate::cri::{self, ContainerId};
use crate::host::Host;
use crate::pleg::PodRuntime;
use crate::pod::PodUid;
pub use disk::Disk;
pub use endings::Endings;
use follow::{Env, Log};

/// The part of the configuration that is about logs.
#[derive(Clone, Debug)]
pub struct LogsConfig {
    /// A log of this size is rotated; `None` turns rotation off.
    pub max_bytes: Option<u64>,
    /// Files of one container instance, the one that is written to included. At least 2.
    pub max_files: usize,
    /// Logs that are compressed at the same time.
    pub workers: usize,
    pub monitor_interval: Duration,
    /// Rotated files carry the node's local time.
    pub time_zone: TimeZone,
}

/// Has the runtime open a container's log anew. The one thing this room needs of it.
pub type Reopen = Arc<dyn Fn(ContainerId) -> BoxFuture<'static, cri::Result<()>> + Send + Sync>;

/// The rotation of all logs. Its tasks end when it is dropped.
pub struct Logs {
    env: Arc<Env>,
    pods: Mutex<BTreeMap<PodUid, BTreeMap<ContainerId, Follower>>>,
    endings: Endings,
}

/// A task that looks after one log.
struct Follower {
    /// Turns true when the container does not run any more.
    ended: watch::Sender<bool>,
    task: AbortOnDropHandle<()>,
}

impl Logs {
    pub fn new(host: Arc<dyn Host>, clock: Clock, reopen: Reopen, config: LogsConfig) -> Self {
        let compressing = Semaphore::new(config.workers.max(1));
        let env = Arc::new(Env { host, clock, reopen, config, compressing });
        Logs { env, pods: Mutex::default(), endings: Endings::default() }
    }

    /// Tells those who read logs which containers have ended, of all that is observed here.
    pub fn endings(&self) -> Endings {
        self.endings.clone()
    }

    /// Takes note of what a pod has in the runtime now. To be called on the agent's tokio.
    pub fn observe(&self, uid: &PodUid, runtime: &PodRuntime) {
        self.endings.observe(uid, runtime);
        let Some(max_bytes) = self.env.config.max_bytes else { return };
        let mut pods = self.pods();
        if runtime.containers.is_empty() {
            pods.remove(uid);
            return;
        }
        let followers = pods.entry(uid.clone()).or_default();
        followers.retain(|id, _| runtime.containers.iter().any(|container| container.id == *id));
        for container in runtime.containers.iter().filter(|container| !container.log_path.is_empty()) {
            let has_ended = container.exit().is_some();
            match followers.get(&container.id) {
                Some(follower) if has_ended => {
                    follower.ended.send_replace(true);
                }
                // What is created or unknown has no log that would grow, or will be known.
                None if container.is_running() || has_ended => {
                    let path = PathBuf::from(&container.log_path);
                    let log = Log { id: container.id.clone(), path, max_bytes };
                    followers.insert(container.id.clone(), self.follower(log, has_ended));
                }
                _ => {}
            }
        }
    }

    /// Returns once nothing here touches the log of this container any more, which has ended.
    pub async fn release(&self, uid: &PodUid, id: &ContainerId) {
        let follower = self.pods().get_mut(uid).and_then(|followers| followers.remove(id));
        if let Some(follower) = follower {
            follower.ended.send_replace(true);
            // A task that panicked has let go as well.
            let _ = follower.task.await;
        }
    }

    fn follower(&self, log: Log, has_ended: bool) -> Follower {
        let (ended, end) = watch::channel(has_ended);
        let task = follow::run(self.env.clone(), log, end);
        Follower { ended, task: AbortOnDropHandle::new(tokio::spawn(task.in_current_span())) }
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<PodUid, BTreeMap<ContainerId, Follower>>> {
        self.pods.lock().expect("nothing that holds the table of followers can panic")
    }
}
