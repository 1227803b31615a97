//! `/checkpoint/`: a running container as it is, written to a file by the runtime.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use http::{Response, StatusCode};
use jiff::Zoned;
use jiff::tz::TimeZone;
use serde_json::json;
use tokio::sync::Semaphore;

use super::body::{self, Body};
use super::front::Exhibits;
use super::query;
use super::routes::{self, NOT_FOUND};
use crate::clock::Clock;
use crate::cri::Runtime;
use crate::host::Host;
use crate::pleg::Pleg;
use crate::pod::containers;
use crate::sync::Known;

/// Each writes the memory of all processes of a container to the node's disk.
const AT_ONCE_MAX: usize = 4;
/// Whoever reads it reads the container's secrets.
const DIR_MODE: u32 = 0o700;

pub struct CheckpointDesk {
    /// `checkpoints` in the agent's root directory.
    dir: PathBuf,
    host: Arc<dyn Host>,
    clock: Clock,
    places: Arc<Semaphore>,
    busy: Arc<Busy>,
}

/// Containers of which a checkpoint is being written. Files are told apart by seconds, so that two
/// at once would be one file.
#[derive(Default)]
struct Busy(Mutex<BTreeSet<String>>);

/// One of those, until this is dropped.
struct Turn {
    busy: Arc<Busy>,
    container: String,
}

/// Why there is no checkpoint; in upstream's words where it has some.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("{}", NOT_FOUND.words)]
    NoPath,
    #[error("pod does not exist")]
    NoPod,
    #[error("container {0} does not exist")]
    NoContainer(String),
    #[error("cannot parse value of timeout parameter")]
    BadTimeout,
    #[error("a checkpoint of {0} is being written already")]
    Busy(String),
    #[error("{AT_ONCE_MAX} checkpoints are being written, which is the most there may be")]
    TooMany,
    #[error("checkpointing of {container} failed ({why})")]
    Failed { container: String, why: String },
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Refusal::NoPath => NOT_FOUND.status,
            Refusal::NoPod | Refusal::NoContainer(_) => StatusCode::NOT_FOUND,
            // Upstream says 404, as if the container were not there.
            Refusal::BadTimeout => StatusCode::BAD_REQUEST,
            Refusal::TooMany | Refusal::Busy(_) => StatusCode::TOO_MANY_REQUESTS,
            Refusal::Failed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl CheckpointDesk {
    pub fn new(dir: PathBuf, host: Arc<dyn Host>, clock: Clock) -> Self {
        CheckpointDesk { dir, host, clock, places: Arc::new(Semaphore::new(AT_ONCE_MAX)), busy: Arc::default() }
    }

    /// `/checkpoint/{namespace}/{pod}/{container}`.
    pub async fn answer(&self, path: &str, query: &str, exhibits: &Exhibits) -> Response<Body> {
        match self.write(path, query, exhibits).await {
            Ok(file) => body::json(body::full(json!({ "items": [file] }).to_string())),
            Err(refusal) => body::text(refusal.status(), refusal.to_string()),
        }
    }

    async fn write(&self, path: &str, query: &str, exhibits: &Exhibits) -> Result<PathBuf, Refusal> {
        let [namespace, pod, container] = routes::three_names(path).ok_or(Refusal::NoPath)?;
        let known = exhibits.roster.find(namespace, pod).ok_or(Refusal::NoPod)?;
        if containers::find(&known.pod, container).is_none() {
            return Err(Refusal::NoContainer(container.to_owned()));
        }
        let timeout = timeout(query)?;
        let full_name = format!("{namespace}/{pod}/{container}");
        let turn = self.busy.begin(&full_name).ok_or_else(|| Refusal::Busy(full_name.clone()))?;
        let place = self.places.clone().try_acquire_owned().map_err(|_| Refusal::TooMany)?;
        let failed = |why: String| Refusal::Failed { container: full_name.clone(), why };
        let name = file_name(namespace, pod, container, &self.clock.wall().to_zoned(TimeZone::system()));
        let file = self.dir.join(name);
        let job = Job {
            known,
            container: container.to_owned(),
            file: file.clone(),
            timeout,
            host: self.host.clone(),
            pleg: exhibits.pleg.clone(),
            runtime: exhibits.runtime.clone(),
        };
        // Goes on when the caller leaves, and so do its place and its turn.
        let written = tokio::spawn(async move {
            let _kept = (turn, place);
            job.run().await
        });
        let written = written.await.unwrap_or_else(|panicked| Err(panicked.to_string()));
        written.map(|()| file).map_err(failed)
    }
}

/// One checkpoint.
struct Job {
    known: Known,
    container: String,
    file: PathBuf,
    timeout: Duration,
    host: Arc<dyn Host>,
    pleg: Pleg,
    runtime: Arc<dyn Runtime>,
}

impl Job {
    async fn run(&self) -> Result<(), String> {
        let held = self.pleg.current(&self.known.uid).await.map_err(|error| error.own_words())?;
        let instance = held.instances(&self.container).find(|instance| instance.is_running());
        let id = &instance.ok_or_else(|| format!("container {} not found", self.container))?.id;
        if let Some(dir) = self.file.parent() {
            self.host.make_dir(dir, DIR_MODE).await.map_err(|error| error.to_string())?;
        }
        let written = self.runtime.checkpoint_container(id, &self.file, self.timeout).await;
        written.map_err(|error| error.own_words())
    }
}

impl Busy {
    /// `None` while another one of this container is being written.
    fn begin(self: &Arc<Self>, container: &str) -> Option<Turn> {
        let is_first = self.lock().insert(container.to_owned());
        is_first.then(|| Turn { busy: self.clone(), container: container.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().expect("nothing that holds the list can panic")
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.busy.lock().remove(&self.container);
    }
}

/// Of several the last counts; without one, what calls are given anyway.
fn timeout(query: &str) -> Result<Duration, Refusal> {
    let given = query::pairs(query).into_iter().rfind(|(key, _)| key == "timeout");
    given.map_or(Ok(Duration::ZERO), |(_, seconds)| {
        // Upstream's are signed, and what is beyond them is no number there.
        let seconds = seconds.parse::<i64>().ok().and_then(|seconds| u64::try_from(seconds).ok());
        seconds.map(Duration::from_secs).ok_or(Refusal::BadTimeout)
    })
}

/// As upstream names it, for those who collect them.
fn file_name(namespace: &str, pod: &str, container: &str, at: &Zoned) -> String {
    let zone = if at.offset().is_zero() { "Z" } else { "%:z" };
    let time = at.strftime(&format!("%Y-%m-%dT%H:%M:%S{zone}")).to_string();
    format!("checkpoint-{pod}_{namespace}-{container}-{time}.tar")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn files_are_called_as_upstream_calls_them() {
        let at: Timestamp = "2026-11-22T08:05:09.5Z".parse().expect("a time");
        let check = |zone: TimeZone, expected: &str| {
            assert_eq!(file_name("shop", "web", "main", &at.to_zoned(zone)), expected);
        };
        check(TimeZone::UTC, "checkpoint-web_shop-main-2026-11-22T08:05:09Z.tar");
        let east = TimeZone::fixed(jiff::tz::offset(2));
        check(east, "checkpoint-web_shop-main-2026-11-22T10:05:09+02:00.tar");
    }

    #[test]
    fn two_checkpoints_of_a_container_are_not_written_at_once() {
        let busy = Arc::new(Busy::default());
        let first = busy.begin("shop/web/main");
        assert!(first.is_some());
        assert!(busy.begin("shop/web/main").is_none());
        assert!(busy.begin("shop/web/other").is_some());
        drop(first);
        assert!(busy.begin("shop/web/main").is_some());
        assert_eq!(Refusal::Busy(String::new()).status(), StatusCode::TOO_MANY_REQUESTS);
    }

    #[test]
    fn of_several_timeouts_the_last_counts() {
        for (query, expected) in [
            ("", Ok(0)),
            ("timeout=5", Ok(5)),
            ("timeout=x&timeout=7", Ok(7)),
            ("timeout=7&timeout=x", Err(Refusal::BadTimeout)),
            ("timeout=", Err(Refusal::BadTimeout)),
            ("timeout=-1", Err(Refusal::BadTimeout)),
            ("timeout=9223372036854775808", Err(Refusal::BadTimeout)),
        ] {
            assert_eq!(timeout(query), expected.map(Duration::from_secs), "{query}");
        }
    }
}
