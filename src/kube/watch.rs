//! One watch: list, follow, and start over as often as it takes.
//!
//! kube-runtime's watcher is not used: it logs a 403 each time (with us, every pod that
//! starts before the authorizer knows of it), prints answers it cannot decode (with us,
//! Secrets), and stays for ever on a version that the server answers with a plain 410.

use std::time::Duration;

use futures::stream::{BoxStream, StreamExt};
use kube::core::params::{ListParams, WatchParams};
use kube::core::{ObjectList, Request, WatchEvent};
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, info, warn};

use super::errors::{ConnectError, caused_by, classify};
use super::health::{Health, Success};
use super::requester::{Events, Requester};
use super::{ApiError, ApiObject, Change};
use crate::clock::Clock;

/// As client-go: small enough that a page is decoded without a memory spike.
const PAGE_SIZE: u32 = 500;
/// The server ends a watch after this long, less a random part so that those which started
/// together end apart. kube-core refuses 295 and more.
const SERVED_SECONDS: u32 = 290;
const SERVED_SPREAD_SECONDS: u32 = 60;
/// A watch that outlives the server's promise by this much is dead.
const OVERTIME: Duration = Duration::from_secs(15);
/// A server that ends watches faster than this gets the back-off of a failure.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);
/// Failures in a row after which the version itself is doubted: a server restored from a
/// backup may never know it.
const DOUBT_VERSION_AFTER: u32 = 5;

/// What a watch yields next.
pub(super) enum Step<K> {
    Change(Change<K>),
    /// It will be tried again when polled next, after a pause.
    Failed(ApiError),
}

/// What is watched.
pub(super) struct Target {
    /// The collection's path, and which of its objects.
    pub(super) path: String,
    pub(super) fields: Option<String>,
    /// For errors and the log, as `pods of this node`.
    pub(super) what: String,
    /// Whoever wants the object tells why it is not there, so the log need not.
    pub(super) told_by_consumer: bool,
}

pub(super) struct Watch<K> {
    requester: Requester,
    clock: Clock,
    retry_now: Receiver<u64>,
    target: Target,
    phase: Phase<K>,
    backoff: Backoff,
    health: Health,
}

enum Phase<K> {
    /// Nothing is known: list next.
    Fresh,
    /// Everything up to `version` has been passed on: watch from there next.
    Listed {
        version: String,
    },
    Following {
        version: String,
        started: Instant,
        until: Instant,
        events: Events<K>,
    },
}

impl<K: ApiObject> Watch<K> {
    pub(super) fn new(requester: Requester, clock: Clock, target: Target) -> Self {
        let retry_now = requester.retry_now();
        let (phase, backoff) = (Phase::Fresh, Backoff::default());
        Watch { requester, clock, retry_now, target, phase, backoff, health: Health::default() }
    }

    /// Never ends.
    pub(super) fn steps(self) -> BoxStream<'static, Step<K>> {
        futures::stream::unfold(self, |mut watch| async {
            let step = watch.next().await;
            Some((step, watch))
        })
        .boxed()
    }

    async fn next(&mut self) -> Step<K> {
        self.pause().await;
        loop {
            let (act, outcome) = match std::mem::replace(&mut self.phase, Phase::Fresh) {
                Phase::Fresh => ("list", self.list().await.map(Some)),
                Phase::Listed { version } => ("watch", self.follow(version).await.map(|()| None)),
                Phase::Following { version, started, until, events } => {
                    ("watch", self.read(version, started, until, events).await)
                }
            };
            match outcome {
                Ok(Some(change)) => {
                    self.recovered();
                    return Step::Change(change);
                }
                Ok(None) => {}
                Err(error) => return Step::Failed(self.failed(act, &error)),
            }
        }
    }

    async fn list(&mut self) -> kube::Result<Change<K>> {
        let (mut items, mut page) = (Vec::new(), None);
        loop {
            let params = ListParams {
                field_selector: self.target.fields.clone(),
                limit: Some(PAGE_SIZE),
                continue_token: page,
                ..ListParams::default()
            };
            let request = Request::new(&self.target.path).list(&params);
            let list: ObjectList<K> = self.requester.try_fetch(request).await?;
            items.extend(list.items.into_iter().map(slim));
            page = list.metadata.continue_.filter(|token| !token.is_empty());
            if page.is_none() {
                let version = list.metadata.resource_version.unwrap_or_default();
                self.phase = Phase::Listed { version };
                return Ok(Change::Listed(items));
            }
        }
    }

    async fn follow(&mut self, version: String) -> kube::Result<()> {
        let seconds = SERVED_SECONDS - self.clock.with_random(|random| random.u32(0..=SERVED_SPREAD_SECONDS));
        let params = WatchParams {
            field_selector: self.target.fields.clone(),
            timeout: Some(seconds),
            bookmarks: true,
            ..WatchParams::default()
        };
        let request = Request::new(&self.target.path).watch(&params, &version);
        match self.requester.stream(request).await {
            Ok(events) => {
                let started = Instant::now();
                let until = started + Duration::from_secs(u64::from(seconds)) + OVERTIME;
                self.phase = Phase::Following { version, started, until, events };
                self.recovered();
                Ok(())
            }
            Err(error) => {
                if !loses_version(&error) && self.backoff.failures < DOUBT_VERSION_AFTER {
                    self.phase = Phase::Listed { version };
                }
                Err(error)
            }
        }
    }

    /// Reads one event. `None` when it has nothing to tell the consumer.
    async fn read(
        &mut self,
        version: String,
        started: Instant,
        until: Instant,
        mut events: Events<K>,
    ) -> kube::Result<Option<Change<K>>> {
        let (version, change) = match timeout_at(until, events.next()).await {
            Ok(Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)))) => {
                (version_of(&object), Some(Change::Applied(Box::new(slim(object)))))
            }
            Ok(Some(Ok(WatchEvent::Deleted(object)))) => {
                (version_of(&object), Some(Change::Deleted(Box::new(slim(object)))))
            }
            Ok(Some(Ok(WatchEvent::Bookmark(bookmark)))) => (bookmark.metadata.resource_version, None),
            Ok(Some(Ok(WatchEvent::Error(status)))) => {
                let error = kube::Error::Api(status);
                if !loses_version(&error) {
                    self.phase = Phase::Listed { version };
                } else if started.elapsed() >= SHORTEST_WATCH {
                    // That the watch fell behind is no trouble of the server's: the phase is
                    // Fresh, so it is listed at once.
                    return Ok(None);
                }
                return Err(error);
            }
            Ok(Some(Err(error))) => {
                self.phase = Phase::Listed { version };
                return Err(error);
            }
            Ok(None) | Err(_) => {
                self.phase = Phase::Listed { version };
                if started.elapsed() >= SHORTEST_WATCH {
                    return Ok(None);
                }
                return Err(kube::Error::Service(TooShort.into()));
            }
        };
        self.phase = Phase::Following { version, started, until, events };
        Ok(change)
    }

    /// Waits out the back-off, unless there is news of the server meanwhile.
    async fn pause(&mut self) {
        let Some(pause) = self.backoff.due.take() else {
            return;
        };
        let pause = self.clock.jitter(pause, 0.5);
        self.retry_now.mark_unchanged();
        tokio::select! {
            biased;
            // Both only wait; dropping either loses nothing.
            Ok(()) = self.retry_now.changed() => {}
            () = sleep(pause) => {}
        }
    }

    fn failed(&mut self, act: &str, error: &kube::Error) -> ApiError {
        let now = Instant::now();
        self.backoff.fail(now);
        // The transport tells of a server that cannot be reached, once for all watches. A
        // stream that breaks off leads to the next request, which shows why.
        let told_by_transport = matches!(error, kube::Error::ReadEvents(_)) || caused_by::<ConnectError>(error);
        let error = classify(&format!("{act} {}", self.target.what), error);
        if told_by_transport || self.target.told_by_consumer {
            self.health.lose();
            debug!(%error, "watch broke, will retry");
        } else if self.health.fail(&error.to_string(), now) {
            warn!(%error, "watch broke, will retry");
        }
        error
    }

    fn recovered(&mut self) {
        if self.health.succeed() == (Success::Again { announced: true }) {
            info!(what = self.target.what, "watch works again");
        }
    }
}

/// Whether the server says that it cannot go on from that version.
fn loses_version(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 400 | 410 | 504))
}

#[derive(Debug, thiserror::Error)]
#[error("the server ended it as soon as it began")]
struct TooShort;

/// Pauses of 50 ms, doubled up to 30 s. Short at first, because the authorizer lags a few
/// tens of milliseconds behind the binding of the pod for whose sake an object is read.
#[derive(Default)]
struct Backoff {
    failures: u32,
    last: Option<Instant>,
    due: Option<Duration>,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(30);

    fn fail(&mut self, now: Instant) {
        // A failure long after the last one begins anew.
        if self.last.is_some_and(|last| now.duration_since(last) > Self::LONGEST * 2) {
            self.failures = 0;
        }
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.due = Some(Self::FIRST.saturating_mul(factor).min(Self::LONGEST));
        self.failures = (self.failures + 1).min(31);
        self.last = Some(now);
    }
}

fn version_of(object: &impl ApiObject) -> String {
    object.meta().resource_version.clone().unwrap_or_default()
}

/// Drops the field-ownership record, often the larger half of an object, which nobody here
/// reads.
pub(super) fn slim<K: ApiObject>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    object
}
