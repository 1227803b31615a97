//! The task that looks after one log.
//!
//! ```text
//!   arm the watch ─▶ look ─▶ (rotate) ─▶ wait for a write, or the slow poll ─▶ pause ─▶ …
//!   container ended ─▶ take back a rename that was not finished ─▶ end
//! ```
//!
//! The watch is armed before the look, so that a write between the two is not missed. What
//! was rotated is compressed in a task beside this one: a look waits for no compression,
//! neither of this log nor of another's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, debug, info, warn};

use super::rotation::{self, Plan};
use super::{LogsConfig, Reopen};
use crate::clock::Clock;
use crate::cri::{ContainerId, CriError};
use crate::host::{Host, HostError};

/// The least time between two looks at one log, which bounds what a container that logs as
/// fast as it can costs us, and how far its log gets beyond the limit.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The most, once somebody wrote: a trickle may turn into a flood.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Looks per expected time to the limit: the pace may grow in between.
const LOOKS_TO_LIMIT: f64 = 4.0;
/// Between attempts at a rotation that fails.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// A look at a log that is watched is only a precaution, against file systems that do not tell
/// of all writes: it may come so many times later than the slow poll. With 110 silent
/// containers the poll alone would cost more than all the rest of the agent.
const WATCHED_INTERVALS: u32 = 30;

/// What all tasks share.
pub struct Env {
    pub host: Arc<dyn Host>,
    pub clock: Clock,
    pub reopen: Reopen,
    pub config: LogsConfig,
    /// Compressing is the part that costs; everything else waits for nobody, nor for this.
    pub compressing: Semaphore,
}

pub struct Log {
    pub id: ContainerId,
    pub path: PathBuf,
    pub max_bytes: u64,
}

impl Log {
    fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }
}

#[derive(Debug, thiserror::Error)]
enum RotateError {
    #[error("cannot rotate log")]
    Host(#[from] HostError),
    #[error("runtime does not open a new log")]
    Reopen(#[source] CriError),
    #[error("container ended while its log was rotated")]
    Ended,
}

/// Follows one log until its container has ended.
pub async fn run(env: Arc<Env>, log: Log, mut ended: watch::Receiver<bool>) {
    let mut follower = Follower { env: env.clone(), log: Arc::new(log), compression: None };
    let log = follower.log.clone();
    let mut pace = Pace::default();
    let mut failures = 0;
    while !*ended.borrow() {
        let mut grown = env.host.watch_writes(&log.path).await;
        let wait = match follower.look(&mut ended).await {
            Ok(look) => {
                let size = match look {
                    Look::Same(size) => size,
                    // The watch is on the file that was moved away. What the new one has by now
                    // is little, and its next write is told.
                    Look::Renewed => {
                        grown = env.host.watch_writes(&log.path).await;
                        0
                    }
                };
                failures = 0;
                pace.note(size, env.clock.now());
                pace.pause(log.max_bytes)
            }
            Err(_) if *ended.borrow() => break,
            Err(error) => {
                warn!(container = %log.id, error = &error as &dyn std::error::Error, "log not rotated, will retry");
                failures += 1;
                RETRY_FIRST.saturating_mul(1 << (failures - 1).min(8)).min(env.config.monitor_interval)
            }
        };
        let watched = grown.is_ok() && failures == 0;
        let precaution = env.config.monitor_interval * if watched { WATCHED_INTERVALS } else { 1 };
        let quiet = async {
            // Nothing need be done before the pause is over, and nothing while nobody writes.
            tokio::time::sleep(wait).await;
            match grown {
                _ if failures > 0 => {}
                Ok(grown) => grown.await,
                // Without a watch, the log is looked at as often as its pace asks for.
                Err(_) if pace.is_moving() => {}
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // Cancel-safe: the watch keeps its value.
            _ = ended.wait_for(|ended| *ended) => {}
            // Cancel-safe: a timer and a watch that is armed anew.
            () = quiet => {}
            // Cancel-safe: a timer.
            () = tokio::time::sleep(precaution) => {}
        }
    }
    if let Err(error) = follower.settle().await {
        warn!(container = %log.id, error = &error as &dyn std::error::Error, "log of an ended container not put back");
    }
}

/// What a look found.
enum Look {
    /// The file of before, of this size.
    Same(u64),
    /// Another file has taken its name.
    Renewed,
}

struct Follower {
    env: Arc<Env>,
    log: Arc<Log>,
    /// Of what the last rotations left, as long as it takes.
    compression: Option<AbortOnDropHandle<()>>,
}

impl Follower {
    /// Looks at the log and rotates it if it is time.
    async fn look(&mut self, ended: &mut watch::Receiver<bool>) -> Result<Look, RotateError> {
        match self.env.host.file_size(&self.log.path).await? {
            // An earlier life renamed it and did not come to tell the runtime; or a person
            // removed it, and the container writes to a file without a name.
            None => {
                self.reopen(ended).await?;
                info!(container = %self.log.id, "log was missing, the runtime opened a new one");
                Ok(Look::Renewed)
            }
            Some(size) if size < self.log.max_bytes => Ok(Look::Same(size)),
            Some(size) => {
                self.rotate(ended).await?;
                debug!(container = %self.log.id, size, "log rotated");
                Ok(Look::Renewed)
            }
        }
    }

    async fn rotate(&mut self, ended: &mut watch::Receiver<bool>) -> Result<(), RotateError> {
        let (host, config, log) = (&self.env.host, &self.env.config, &self.log);
        // Before the list, in which a file may be that it finishes meanwhile.
        let is_behind = self.compression.as_ref().is_some_and(|task| !task.is_finished());
        let names = host.list_dir(log.dir()).await?;
        let now = self.env.clock.wall();
        let Plan { remove, rename_to, compress } =
            rotation::plan(log.name(), &names, config.max_files, is_behind, now, &config.time_zone);
        for name in remove {
            host.remove_file(&log.dir().join(name)).await?;
        }
        let renamed = log.dir().join(rename_to);
        host.rename(&log.path, &renamed).await?;
        if let Err(error) = self.reopen(ended).await {
            // If the runtime did open a new one, that stays, and the rotation was done.
            if host.rename_new(&renamed, &log.path).await? {
                return Err(error);
            }
        }
        if !compress.is_empty() {
            let task = compress_all(self.env.clone(), log.clone(), compress, ended.clone());
            self.compression = Some(AbortOnDropHandle::new(tokio::spawn(task.in_current_span())));
        }
        Ok(())
    }

    /// A runtime that hangs must not keep the log of an ended container.
    async fn reopen(&self, ended: &mut watch::Receiver<bool>) -> Result<(), RotateError> {
        tokio::select! {
            biased;
            // Cancel-safe: the call may take effect yet, which does no harm at any time.
            answer = (self.env.reopen)(self.log.id.clone()) => answer.map_err(RotateError::Reopen),
            // Cancel-safe: the watch keeps its value.
            _ = ended.wait_for(|ended| *ended) => Err(RotateError::Ended),
        }
    }

    /// Nobody writes any more. If the log is missing, its last part is where a rename put it
    /// that was not finished; readers look for it under its own name.
    async fn settle(&mut self) -> Result<(), HostError> {
        if let Some(compression) = self.compression.take() {
            // It begins no further file. One that panicked has let go as well.
            let _ = compression.await;
        }
        let (host, log) = (&self.env.host, &self.log);
        if host.file_size(&log.path).await?.is_some() {
            return Ok(());
        }
        let names = host.list_dir(log.dir()).await?;
        if let Some(name) = rotation::unfinished(log.name(), &names) {
            host.rename_new(&log.dir().join(name), &log.path).await?;
        }
        Ok(())
    }
}

/// Compresses these files of a log one after the other, for as long as its container runs.
async fn compress_all(env: Arc<Env>, log: Arc<Log>, names: Vec<String>, mut ended: watch::Receiver<bool>) {
    for name in names {
        let _permit = tokio::select! {
            biased;
            // Cancel-safe: the watch keeps its value.
            _ = ended.wait_for(|ended| *ended) => return,
            // Cancel-safe: only the place in the queue is given up.
            permit = env.compressing.acquire() => permit.expect("the semaphore is never closed"),
        };
        if let Err(error) = compress(&env, &log, &name).await {
            warn!(container = %log.id, name, error = &error as &dyn std::error::Error, "rotated log not compressed");
        }
    }
}

/// Where the log grows faster than this goes, its rotations may have removed the file meanwhile.
async fn compress(env: &Env, log: &Log, name: &str) -> Result<(), HostError> {
    env.host.gzip(&log.dir().join(name)).await?;
    let names = env.host.list_dir(log.dir()).await?;
    for surplus in rotation::surplus(log.name(), &names, env.config.max_files) {
        env.host.remove_file(&log.dir().join(surplus)).await?;
    }
    Ok(())
}

/// How fast a log grows, by the last two looks.
#[derive(Default)]
struct Pace {
    last: Option<(u64, Instant)>,
    bytes_per_second: f64,
}

impl Pace {
    fn note(&mut self, size: u64, now: Instant) {
        if let Some((before, at)) = self.last
            && size >= before
        {
            let elapsed = now.duration_since(at).as_secs_f64().max(0.001);
            self.bytes_per_second = (size - before) as f64 / elapsed;
        }
        // After a rotation the pace is still what it was.
        self.last = Some((size, now));
    }

    fn is_moving(&self) -> bool {
        self.bytes_per_second > 0.0
    }

    /// How long no look is needed, at this pace.
    fn pause(&self, max_bytes: u64) -> Duration {
        let (size, _) = self.last.expect("noted before it is asked");
        let left = max_bytes.saturating_sub(size) as f64;
        let seconds = left / self.bytes_per_second.max(1.0) / LOOKS_TO_LIMIT;
        Duration::from_millis((seconds * 1000.0) as u64).clamp(PAUSE_MIN, PAUSE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_closer_to_the_limit_the_sooner_the_next_look() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::default();
        pace.note(0, at(0));
        assert_eq!(pace.pause(10_000), PAUSE_MAX);
        pace.note(4_000, at(1));
        assert_eq!(pace.pause(10_000), Duration::from_millis(375), "6,000 bytes are 1.5 s away, of which a quarter");
        pace.note(9_900, at(2));
        assert_eq!(pace.pause(10_000), PAUSE_MIN);
        pace.note(0, at(3));
        assert!(pace.is_moving(), "a rotation does not slow it");
    }
}
