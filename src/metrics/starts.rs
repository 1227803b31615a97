//! Pods on their way until they run: how long that took, and how much of it the node can be
//! held to.
//!
//! A pod is followed from when it is seen first. Of one that the API server has, the promise of
//! upstream's project is about the time from its creation to when a watch shows all its containers
//! running, without the time that its images and its init containers took, which may overlap. Pods
//! that were begun by an earlier life of an agent say nothing, and pods with storage of their own
//! are not in the promise.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};
use tokio::time::Instant;

use super::{Gauge, Histogram, Instruments, SECONDS};

const START_SECONDS: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0,
    600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];

static WORKER_START: Histogram<0> = Histogram::new(
    "kubelet_pod_worker_start_duration_seconds",
    "From the first sight of a pod to the first pass over it.",
    [],
    SECONDS,
);
static START: Histogram<0> = Histogram::new(
    "kubelet_pod_start_duration_seconds",
    "From the first sight of a pod to when its containers ran.",
    [],
    START_SECONDS,
);
static START_SLI: Histogram<0> = Histogram::new(
    "kubelet_pod_start_sli_duration_seconds",
    "From the creation of a pod to when the API showed all its containers running, without the time for images and init containers.",
    [],
    START_SECONDS,
);
static START_TOTAL: Histogram<0> = Histogram::new(
    "kubelet_pod_start_total_duration_seconds",
    "From the creation of a pod to when the API showed all its containers running.",
    [],
    START_SECONDS,
);
static FIRST_NETWORK_POD: Gauge<0> = Gauge::new(
    "kubelet_first_network_pod_start_sli_duration_seconds",
    "The same, without the time for images and init containers, of the first pod that has a network of its own.",
    [],
);

pub(super) const ALL: Instruments = &[&WORKER_START, &START, &START_SLI, &START_TOTAL, &FIRST_NETWORK_POD];

/// From one time to another.
pub type Span = (Timestamp, Timestamp);

/// One pod, by its UID.
struct Start {
    seen: Instant,
    worked_on: bool,
    ran: bool,
    /// Its start counts once the API shows that it runs.
    is_promised: bool,
    /// What the node cannot be held to.
    excluded: Vec<Span>,
}

/// The durations of a start that has come to its end.
#[derive(Debug, PartialEq)]
struct Measured {
    total: Duration,
    /// `None` for pods that are not in the promise.
    sli: Option<Duration>,
}

static STARTS: Mutex<BTreeMap<String, Start>> = Mutex::new(BTreeMap::new());

fn starts() -> MutexGuard<'static, BTreeMap<String, Start>> {
    STARTS.lock().expect("nothing that follows starts can panic")
}

/// A pod has come to this node, or is there anew. True the first time.
pub fn seen(uid: &str, now: Instant) -> bool {
    let mut starts = starts();
    let is_new = !starts.contains_key(uid);
    if is_new {
        let start = Start { seen: now, worked_on: false, ran: false, is_promised: false, excluded: Vec::new() };
        starts.insert(uid.to_owned(), start);
    }
    is_new
}

/// The API shows this pod, for the first time or again.
pub fn shown(uid: &str, pod: &Pod, is_new: bool, wall: Timestamp) {
    let mut starts = starts();
    let Some(start) = starts.get_mut(uid) else { return };
    if is_new {
        start.is_promised = pod.status.as_ref().is_none_or(|status| status.start_time.is_none());
    }
    if !start.is_promised {
        return;
    }
    if has_ended(pod) {
        start.is_promised = false;
    } else if let Some(created) = pod.metadata.creation_timestamp.as_ref().filter(|_| runs(pod)) {
        start.is_promised = false;
        let measured = measure(created.0, wall, &start.excluded, has_storage(pod));
        drop(starts);
        tell(&measured, pod);
    }
}

fn tell(measured: &Measured, pod: &Pod) {
    START_TOTAL.took([], measured.total);
    let Some(sli) = measured.sli else { return };
    START_SLI.took([], sli);
    let has_network = pod.spec.as_ref().is_some_and(|spec| spec.host_network != Some(true));
    if has_network && FIRST_NETWORK_POD.value([]).is_none() {
        FIRST_NETWORK_POD.set([], sli.as_secs_f64());
    }
}

/// A pass over the pod begins.
pub fn worked_on(uid: &str, now: Instant) {
    let mut starts = starts();
    let Some(start) = starts.get_mut(uid) else { return };
    if !std::mem::replace(&mut start.worked_on, true) {
        WORKER_START.took([], now.saturating_duration_since(start.seen));
    }
}

/// How many pulls of one pod are remembered.
const PULLS_MAX: usize = 64;

/// An image was pulled for it.
pub fn pulled(uid: &str, span: Span) {
    // Afterwards nobody asks, and a crash loop may pull for ever.
    let mut starts = starts();
    let Some(start) = starts.get_mut(uid).filter(|start| start.is_promised) else { return };
    match start.excluded.len() {
        // That is an image which is nowhere, tried for days, and no start whose time means anything.
        PULLS_MAX => {
            start.is_promised = false;
            start.excluded = Vec::new();
        }
        _ => start.excluded.push(span),
    }
}

/// Its containers run now, and its init containers ran so long.
pub fn ran(uid: &str, inits: impl IntoIterator<Item = Span>, now: Instant) {
    let mut starts = starts();
    let Some(start) = starts.get_mut(uid) else { return };
    if !std::mem::replace(&mut start.ran, true) {
        start.excluded.extend(inits);
        START.took([], now.saturating_duration_since(start.seen));
    }
}

/// The pod is gone.
pub fn forget(uid: &str) {
    starts().remove(uid);
}

fn measure(created: Timestamp, shown: Timestamp, excluded: &[Span], has_storage: bool) -> Measured {
    let total = since(created, shown);
    let sli = (!has_storage).then(|| total.saturating_sub(covered(created, shown, excluded)));
    Measured { total, sli }
}

/// Clocks may differ, and nothing took less than no time.
fn since(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// How much of the time between the two the spans cover, where they overlap only once.
fn covered(from: Timestamp, to: Timestamp, spans: &[Span]) -> Duration {
    let mut spans = spans.to_vec();
    spans.sort_unstable();
    let mut until = from;
    let mut covered = Duration::ZERO;
    for (begin, end) in spans {
        let (begin, end) = (begin.max(until), end.min(to));
        covered += since(begin, end);
        until = until.max(end);
    }
    covered
}

fn has_ended(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}

fn runs(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let runs = |state: &k8s_openapi::api::core::v1::ContainerState| {
        state.running.as_ref().is_some_and(|running| running.started_at.is_some())
    };
    !statuses.is_empty() && statuses.iter().all(|status| status.state.as_ref().is_some_and(runs))
}

/// Something other than what every node has at hand.
fn has_storage(pod: &Pod) -> bool {
    let is_at_hand = |volume: &Volume| {
        volume.secret.is_some()
            || volume.config_map.is_some()
            || volume.downward_api.is_some()
            || volume.empty_dir.is_some()
            || volume.projected.is_some()
            || volume.git_repo.is_some()
            || volume.csi.is_some()
    };
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    !volumes.iter().all(is_at_hand)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::yaml;

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(1_700_000_000_000 + milliseconds).expect("a time")
    }

    #[test]
    fn what_overlaps_is_taken_off_once_and_a_start_never_took_less_than_no_time() {
        let check = |excluded: &[(i64, i64)], expected: u64| {
            let spans: Vec<Span> = excluded.iter().map(|(from, to)| (at(*from), at(*to))).collect();
            let measured = measure(at(0), at(10_000), &spans, false);
            let sli = Some(Duration::from_millis(expected));
            assert_eq!(measured, Measured { total: Duration::from_secs(10), sli }, "{excluded:?}");
        };
        check(&[], 10_000);
        check(&[(1_000, 4_000)], 7_000);
        check(&[(1_000, 4_000), (2_000, 5_000), (2_500, 3_000)], 6_000);
        check(&[(5_000, 6_000), (1_000, 2_000)], 8_000);
        check(&[(-5_000, 20_000), (0, 9_000)], 0);
        check(&[(6_000, 5_000)], 10_000);
        let before_creation = measure(at(500), at(0), &[(at(0), at(900))], false);
        assert_eq!(before_creation, Measured { total: Duration::ZERO, sli: Some(Duration::ZERO) });
        assert_eq!(measure(at(0), at(1), &[], true).sli, None);
    }

    #[test]
    fn storage_is_what_not_every_node_has() {
        let check = |volumes: &str, expected| {
            let pod: Pod = yaml(&format!("{{spec: {{containers: [], volumes: {volumes}}}}}"));
            assert_eq!(has_storage(&pod), expected, "{volumes}");
        };
        check("[]", false);
        check("[{name: a, emptyDir: {}}, {name: b, secret: {}}, {name: c, projected: {}}]", false);
        check("[{name: a, emptyDir: {}}, {name: b, hostPath: {path: /}}]", true);
    }

    #[test]
    fn a_pod_runs_once_each_of_its_containers_does() {
        let check = |statuses: &str, expected| {
            let pod: Pod = yaml(&format!("{{status: {{containerStatuses: {statuses}}}}}"));
            assert_eq!(runs(&pod), expected, "{statuses}");
        };
        let status =
            |state: &str| format!("{{name: a, image: i, imageID: '', ready: false, restartCount: 0, state: {state}}}");
        let running = status("{running: {startedAt: '2026-01-01T00:00:00Z'}}");
        check("[]", false);
        check(&format!("[{running}]"), true);
        check(&format!("[{running}, {}]", status("{waiting: {}}")), false);
        check(&format!("[{running}, {}]", status("{terminated: {exitCode: 0}}")), false);
    }

    /// Other tests of this process start pods too, so that only what is followed is looked at.
    fn is_promised(uid: &str) -> Option<bool> {
        starts().get(uid).map(|start| start.is_promised)
    }

    #[tokio::test]
    async fn only_what_this_agent_begins_is_promised_and_only_until_it_runs_or_ends() {
        let began: Pod = yaml(
            "{metadata: {creationTimestamp: '2026-01-01T00:00:00Z'}, status: {startTime: '2026-01-01T00:00:01Z', phase: Pending}}",
        );
        let fresh: Pod = yaml("{metadata: {creationTimestamp: '2026-01-01T00:00:00Z'}}");
        let ended: Pod = yaml("{status: {phase: Failed}}");
        let (old, new) = ("starts-old", "starts-new");
        let now = Instant::now();
        assert!(seen(old, now) && seen(new, now) && !seen(new, now));
        shown(old, &began, true, at(0));
        shown(new, &fresh, true, at(0));
        assert_eq!((is_promised(old), is_promised(new)), (Some(false), Some(true)));
        shown(new, &began, false, at(0));
        assert_eq!(is_promised(new), Some(true));
        shown(new, &ended, false, at(0));
        assert_eq!(is_promised(new), Some(false));
        forget(old);
        forget(new);
        assert_eq!((is_promised(old), is_promised(new)), (None, None));
    }
}
