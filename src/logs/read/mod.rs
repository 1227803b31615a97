//! Reading container logs: what `kubectl logs` shows, with every option of it.
//!
//! A reader is a stream (`reader.rs`) that reads a piece, shows it (`decoder.rs`) and reads on when
//! its consumer asks for more; so a slow client costs one piece of memory and no work. One that
//! follows waits for inotify (`watch.rs`) and for the end of the container, and looks itself only
//! now and then. Dropping the stream frees all it had.
//!
//! Tasks: one for all who follow, which listens to inotify while there are any.
//! In: the files of the container, what `pleg` knows of it. Out: bytes.
//!
//! Always true: no line is lost or shown twice by rotation, as long as it is there in some file when
//! its reader comes to it; a broken record is left out and ends nothing; the disk is touched on
//! the blocking pool only, by a bounded number of threads, each look under a deadline; memory does
//! not depend on what is in the log.
//!
//! Unlike upstream: who follows goes on with the new log after a rotation *after* all of the old one,
//! parts that were compressed meanwhile included; the tail counts lines, not records; without `follow`
//! a read ends where the log ended when it began.

mod choice;
mod decoder;
mod options;
mod parts;
mod reader;
mod record;
mod source;
mod tail;
#[cfg(test)]
mod tests;
mod watch;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{Stream, stream};
use hyper::body::Bytes;

pub use choice::{Instance, NoLog, choose};
pub use options::{BadOptions, LogOptions, Streams};

use super::disk::Disk;
use super::endings::{Endings, has_ended};
use super::places::Places;
use crate::cri;
use crate::pleg::{Pleg, PodRuntime};
use crate::pod::PodUid;
use parts::Log;
use reader::{Follow, Reader};
use watch::Watcher;

/// Logs that are read at the same time. Each costs some kilobytes and a connection.
const READERS_MAX: usize = 256;

/// What the runtime holds of a pod: all this room needs of `pleg`.
#[async_trait]
pub trait Instances: Send + Sync + 'static {
    async fn current(&self, uid: &PodUid) -> cri::Result<Arc<PodRuntime>>;
    /// What was last read, however old; a display.
    fn cached(&self, uid: &PodUid) -> Option<Arc<PodRuntime>>;
}

#[async_trait]
impl Instances for Pleg {
    async fn current(&self, uid: &PodUid) -> cri::Result<Arc<PodRuntime>> {
        Pleg::current(self, uid).await
    }

    fn cached(&self, uid: &PodUid) -> Option<Arc<PodRuntime>> {
        Pleg::cached(self, uid)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{READERS_MAX} logs are being read, which is as many as can be")]
    TooMany,
    /// The runtime has lost the instance, and so its log. The text is upstream's.
    #[error("unable to retrieve container logs for {full_id}")]
    Gone { full_id: String },
    #[error("unable to retrieve container logs for {full_id}")]
    Runtime {
        full_id: String,
        #[source]
        source: cri::CriError,
    },
    #[error("failed to open log file {path:?}")]
    Open {
        path: String,
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    /// The HTTP status that tells of it.
    pub fn status(&self) -> u16 {
        match self {
            OpenError::TooMany => 429,
            OpenError::Gone { .. } | OpenError::Runtime { .. } | OpenError::Open { .. } => 400,
        }
    }
}

/// How long those who follow wait for what.
#[derive(Clone, Copy, Debug)]
pub struct Paces {
    /// Between looks that are only a precaution: inotify does not tell of all writes on all file systems.
    slow_look: Duration,
    /// Between looks where there is no inotify at all.
    look: Duration,
    /// How long a file is kept open whose writer is done with it as far as names tell, when
    /// nobody saw it being closed.
    linger: Duration,
}

const PACES: Paces =
    Paces { slow_look: Duration::from_secs(10), look: Duration::from_secs(1), linger: Duration::from_secs(1) };

/// Opens logs to read. Clones share the bounds.
#[derive(Clone)]
pub struct LogReads {
    instances: Arc<dyn Instances>,
    endings: Endings,
    disk: Disk,
    watcher: Watcher,
    readers: Places,
    paces: Paces,
}

impl LogReads {
    /// `endings` are those of [`Logs`](super::Logs), which hears from workers.
    pub fn new(instances: Arc<dyn Instances>, endings: Endings, disk: Disk) -> Self {
        let readers = Places::new(READERS_MAX);
        LogReads { instances, endings, disk, watcher: Watcher::default(), readers, paces: PACES }
    }

    /// Opens the log of an instance that was [chosen](choose). The stream ends with the first error.
    pub async fn open(
        &self,
        uid: &PodUid,
        instance: &Instance,
        options: &LogOptions,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static + use<>, OpenError> {
        let place = self.readers.take().ok_or(OpenError::TooMany)?;
        // Before we ask whether it runs, so that no end is missed.
        let ending = self.endings.subscribe(uid, &instance.id);
        let full_id = || instance.full_id.clone();
        let current = self.instances.current(uid).await;
        let runtime = current.map_err(|source| OpenError::Runtime { full_id: full_id(), source })?;
        let container = runtime.containers.iter().find(|container| container.id == instance.id);
        let path = container.map(|container| container.log_path.clone()).unwrap_or_default();
        let log = Log::at(Path::new(&path)).ok_or_else(|| OpenError::Gone { full_id: full_id() })?;

        // Of one that has ended, there is nothing to wait for.
        let follow = if options.follow && !has_ended(&runtime, &instance.id) {
            // Too many watches, or a directory that is gone: then it is looked at.
            let watch = self.watcher.watch(&self.disk, &log.dir, &log.name).await.ok();
            let (instances, uid, id) = (self.instances.clone(), uid.clone(), instance.id.clone());
            let still_runs = move || instances.cached(&uid).is_some_and(|runtime| !has_ended(&runtime, &id));
            let still_runs = Arc::new(still_runs);
            Some(Follow { watch, ending, still_runs, has_ended: false, paces: self.paces, lingers_until: None })
        } else {
            None
        };
        let reader = Reader::open(self.disk.clone(), log, options, follow).await;
        let reader = reader.map_err(|source| OpenError::Open { path, source })?;
        Ok(place.hold(stream::try_unfold(reader, |mut reader| async move {
            let bytes = reader.next().await?;
            Ok(bytes.map(|bytes| (bytes, reader)))
        })))
    }
}
