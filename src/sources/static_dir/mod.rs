//! The static-pod directory: one manifest a file, and a pod for as long as its file is there.
//!
//! One task looks at the whole directory when inotify (`watch.rs`) says that something
//! happened in it, and each rescan period whatever inotify says: it misses changes behind
//! symlinks and on network file systems. What it finds (`scan.rs`) goes through the pure
//! state of manifests and their pods. The path may be a single file, and may be absent.
//!
//! In: the directory. Out: `SourceEvent::Listed` when a pod changed.
//!
//! Always true: the directory is read off the shared executor, because it may be on a file
//! system that hangs.

mod scan;
#[cfg(test)]
mod tests;
mod watch;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use self::scan::scan;
use self::watch::Watch;
use super::SourceEvent;
use super::manifests::{Manifests, Missing, Place, tell};
use crate::clock::Clock;
use crate::pod::Source;

/// A file that is being written tells several times; this long it is left alone.
const SETTLE: Duration = Duration::from_millis(20);
/// A directory that takes longer is told of. It is waited for all the same.
const SCAN_SLOW: Duration = Duration::from_secs(10);

/// Where manifests lie, and how they become pods of this node.
#[derive(Clone, Debug)]
pub struct StaticDir {
    /// A directory, or a single manifest.
    pub path: PathBuf,
    pub node_name: String,
    pub may_need_api: bool,
    pub rescan_period: Duration,
}

/// Runs until the dispatcher is gone.
pub async fn run(dir: StaticDir, clock: Clock, events: mpsc::Sender<SourceEvent>) {
    let mut task = Task {
        watch: Watch::new(),
        manifests: Some(Manifests::new(Place::Files, &dir.node_name, dir.may_need_api)),
        dir,
        clock,
        last_error: None,
    };
    let mut listed: Option<Vec<Arc<Pod>>> = None;
    loop {
        if let Some(pods) = task.look().await
            && listed.as_ref() != Some(&pods)
        {
            info!(pods = pods.len(), path = %task.dir.path.display(), "static pods changed");
            listed = Some(pods.clone());
            if events.send(SourceEvent::Listed { source: Source::File, pods }).await.is_err() {
                return;
            }
        }
        tokio::select! {
            biased;
            // Nobody listens any more. Cancel-safe: it only waits.
            () = events.closed() => return,
            // Cancel-safe: an event that is not read stays with the kernel.
            () = task.watch.changed() => {
                sleep(SETTLE).await;
                task.watch.drain();
            }
            // Cancel-safe: a sleep.
            () = sleep(task.dir.rescan_period) => {}
        }
    }
}

struct Task {
    dir: StaticDir,
    clock: Clock,
    watch: Watch,
    /// Away only while a look is under way.
    manifests: Option<Manifests>,
    /// Why the last look failed; said once.
    last_error: Option<String>,
}

impl Task {
    /// The pods that the directory describes, or `None` if it cannot be read.
    async fn look(&mut self) -> Option<Vec<Arc<Pod>>> {
        let path = self.dir.path.clone();
        let placer = self.watch.placer();
        let seen = self.clock.wall();
        let mut manifests = self.manifests.take().expect("a look gives the manifests back");
        let mut looking = tokio::task::spawn_blocking(move || {
            // The watch comes first, so that no change falls between the two.
            let watched = placer.place(&path);
            let found = scan(&path);
            let notes = found.map(|found| manifests.update(found, Missing::AreGone, seen));
            (manifests, notes, watched)
        });
        let outcome = loop {
            match timeout(SCAN_SLOW, &mut looking).await {
                Ok(outcome) => break outcome,
                Err(_) => {
                    warn!(path = %self.dir.path.display(), "static-pod directory does not answer, still waiting")
                }
            }
        };
        let (manifests, notes, watched) = outcome.expect("reading manifests does not panic");
        self.watch.placed(watched);
        let manifests = self.manifests.insert(manifests);
        let failure = notes.as_ref().err().map(io::Error::to_string);
        if self.last_error != failure
            && let Some(failure) = &failure
        {
            error!(path = %self.dir.path.display(), error = failure, "static-pod directory is unreadable, its pods stay as they are");
        }
        self.last_error = failure;
        notes.ok()?.iter().for_each(tell);
        Some(manifests.pods())
    }
}
