//! How long what ended stays down, by what its instance carries.

use std::time::Duration;

use k8s_openapi::api::core::v1::Container as ContainerSpec;

use super::{Snapshot, is_changed, is_outgrown};
use crate::cri::Container;

/// The wait that follows a crash, as the container instance itself carries it: seconds in
/// this annotation, written when the instance is created. So a restart of the agent, or a
/// swap to another one and back, forgets no back-off and needs no file.
pub const BACKOFF_ANNOTATION: &str = "ferrolet.dev/backoff-seconds";

/// The same for a restart of all containers: each instance of the pod carries the pod's wait.
pub const RESTART_ALL_ANNOTATION: &str = "ferrolet.dev/restart-all-backoff-seconds";

/// The crash back-off series: `initial`, doubled up to `max`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackoffLimits {
    pub initial: Duration,
    pub max: Duration,
    /// An instance that lasted so long starts the series afresh.
    pub reset_after: Duration,
}

/// What a new instance carries for the time after its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Until it is started again.
    pub crash: Duration,
    /// Until all containers of the pod are, if its end demands that.
    pub restart_all: Duration,
}

impl Waits {
    /// The annotations that say so.
    pub fn annotations(self) -> impl Iterator<Item = (String, String)> {
        let waits = [(BACKOFF_ANNOTATION, self.crash), (RESTART_ALL_ANNOTATION, self.restart_all)];
        let present = waits.into_iter().filter(|(_, wait)| !wait.is_zero());
        present.map(|(name, wait)| (name.to_owned(), wait.as_secs().to_string()))
    }
}

/// The wait after the exit of `newest`, and the one its successor will carry.
pub(super) fn after_crash(snapshot: &Snapshot, newest: &Container, spec: &ContainerSpec) -> (Duration, Duration) {
    // What failed was something else, or had too little.
    let is_another = is_changed(newest, spec) || is_outgrown(snapshot, newest);
    series(snapshot, newest, carried(newest, BACKOFF_ANNOTATION).filter(|_| !is_another))
}

/// The same where the exit of `source` restarts all containers.
pub(super) fn after_source(snapshot: &Snapshot, source: &Container) -> (Duration, Duration) {
    series(snapshot, source, carried(source, RESTART_ALL_ANNOTATION))
}

/// The pod's wait for the time after the next restart of all, for an instance to carry.
pub(super) fn of_pod(snapshot: &Snapshot) -> Duration {
    let instances = snapshot.runtime.containers.iter();
    let known = instances.filter_map(|container| carried(container, RESTART_ALL_ANNOTATION)).max();
    known.unwrap_or(snapshot.restart_all_wait)
}

fn carried(container: &Container, annotation: &str) -> Option<Duration> {
    container.annotations.get(annotation).and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs)
}

fn series(snapshot: &Snapshot, ended: &Container, carried: Option<Duration>) -> (Duration, Duration) {
    let limits = snapshot.backoff;
    let Some(exit) = ended.exit() else { return (Duration::ZERO, Duration::ZERO) };
    let lasted = match (exit.started_at.unwrap_or(ended.created_at), exit.finished_at) {
        (started, Some(finished)) => Duration::try_from(finished.duration_since(started)).unwrap_or_default(),
        _ => Duration::ZERO,
    };
    let wait = match carried {
        _ if lasted > limits.reset_after => Duration::ZERO,
        Some(wait) => wait.min(limits.max),
        None => Duration::ZERO,
    };
    let next = if wait.is_zero() { limits.initial } else { (wait * 2).min(limits.max) };
    (wait, next)
}

/// What is left of a wait that began at the exit. It is over as soon as one of two clocks
/// says so: the wall clock knows of the time before this worker, and may jump back behind
/// the exit; the monotonic one cannot, but counts from when the exit was first seen.
pub(super) fn remaining(snapshot: &Snapshot, ended: &Container, wait: Duration) -> Duration {
    let Some(finished) = ended.exit().and_then(|exit| exit.finished_at) else { return Duration::ZERO };
    let on_the_wall = Duration::try_from(snapshot.wall.duration_since(finished)).unwrap_or_default();
    let watched = snapshot.exits_seen.get(&ended.id).map(|seen| snapshot.now.duration_since(*seen));
    wait.saturating_sub(on_the_wall.max(watched.unwrap_or_default()))
}
