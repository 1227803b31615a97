//! From everything known about a pod to the status the API shall have.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{HostIP, Pod, PodIP, PodStatus};

use super::conditions::{conditions, whole_seconds};
use super::containers::Statuses;
use super::phase::{Phase, phase};
use super::resources;
use super::restart::Restarts;
use crate::config::{FeatureGates, Gate};
use crate::cri::{ContainerId, ContainerState};
use crate::host::CgroupSettings;
use crate::pleg::PodRuntime;
use crate::pod::{Source, qos, spec};

/// Everything a status follows from.
pub struct StatusInput<'a> {
    /// The spec, and for a pod of the API the status it last had there.
    pub pod: &'a Pod,
    pub source: Source,
    pub runtime: &'a PodRuntime,
    /// The scheme of container ids, as the runtime names itself: `containerd`.
    pub runtime_name: &'a str,
    pub stage: Stage,
    /// Why the pod fails whatever its containers do.
    pub verdict: Option<&'a Verdict>,
    /// The status published last. After a restart: of a static pod what its mirror remembers; of
    /// others nothing, for `pod` has it.
    pub previous: Option<&'a PodStatus>,
    /// Why a container that should run does not, by container name.
    pub start_errors: &'a BTreeMap<String, WaitingReason>,
    /// How far a resize is. The resources of `pod` are those that are allocated.
    pub resize: &'a Resize,
    /// What the pod's cgroup was set to, once it was.
    pub cgroup: Option<&'a CgroupSettings>,
    pub gates: &'a FeatureGates,
    /// What probes say of the instances that somebody probes.
    pub probes: &'a BTreeMap<ContainerId, Probed>,
    /// Addresses of this node, primary first; empty until the node knows them.
    pub host_ips: &'a [IpAddr],
    /// When this agent first handled the pod; an earlier status overrules it.
    pub handled_since: Timestamp,
    pub now: Timestamp,
}

/// How far the pod's worker is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Containers may be started.
    Syncing,
    /// Nothing is started any more; a start begun earlier may yet come through.
    Terminating,
    /// Nothing runs, and that was verified.
    Terminated,
}

/// A decision over the pod's head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    pub cause: Cause,
    pub reason: String,
    pub message: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// Not admitted. Nothing of the pod was ever started, so its status has no containers.
    Refusal,
    /// `activeDeadlineSeconds` is over.
    Deadline,
    /// Evicted, preempted, or the node shuts down: also told by a `DisruptionTarget` condition.
    Disruption,
}

impl Verdict {
    /// A refusal at admission, with the prefix its message has in the status.
    pub fn refused(reason: &str, message: &str) -> Self {
        Verdict { cause: Cause::Refusal, reason: reason.to_owned(), message: format!("Pod was rejected: {message}") }
    }

    pub fn deadline_exceeded() -> Self {
        Verdict {
            cause: Cause::Deadline,
            reason: "DeadlineExceeded".to_owned(),
            message: "Pod was active on the node longer than the specified deadline".to_owned(),
        }
    }
}

/// When the pod's `activeDeadlineSeconds` is over, counted from its start time.
pub fn deadline(pod: &Pod, start_time: Timestamp) -> Option<Timestamp> {
    let seconds = spec(pod).active_deadline_seconds?;
    Some(start_time.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX))
}

/// A resize of a pod that is not over.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Resize {
    pub pending: Option<PendingResize>,
    pub in_progress: Option<ResizeInProgress>,
}

/// The pod wishes for resources that it does not get, for now or for ever.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PendingResize {
    /// `Deferred` or `Infeasible`.
    pub reason: &'static str,
    pub message: String,
}

/// The pod was given resources that its containers do not have yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResizeInProgress {
    /// The generation of the pod that wished for them.
    pub generation: Option<i64>,
    pub error: Option<String>,
}

/// Why a container waits, e.g. `ErrImagePull`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WaitingReason {
    pub reason: String,
    pub message: String,
}

/// Probe results of one container instance. `None` is a kind of probe that nobody runs, and
/// counts as passed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Probed {
    pub started: Option<bool>,
    pub ready: Option<bool>,
}

/// A status, and what was decided about the pod.
#[derive(Clone, PartialEq, Debug)]
pub struct Computed {
    /// The true phase. A terminal one sends the worker to terminating.
    pub phase: Phase,
    /// What to publish. Its phase lags behind while a terminal one has to be held back.
    pub status: PodStatus,
}

impl StatusInput<'_> {
    pub(super) fn restarts(&self) -> Restarts<'_> {
        Restarts::of(self.pod, self.gates)
    }

    pub(super) fn host_network(&self) -> bool {
        spec(self.pod).host_network == Some(true)
    }

    /// Nothing of the pod runs or can come to run by a call that is still under way.
    fn is_at_rest(&self) -> bool {
        let exited = |state: &ContainerState| matches!(state, ContainerState::Exited(_));
        match self.stage {
            Stage::Syncing => self.runtime.containers.iter().all(|container| exited(&container.state)),
            // A create call that was given up may still make a container appear.
            Stage::Terminating => false,
            Stage::Terminated => true,
        }
    }
}

/// The status that follows from `input`. Conditions of other owners are not in it, nor are
/// fields that others fill in.
pub fn compute(input: &StatusInput<'_>) -> Computed {
    let earlier = match input.previous.or(input.pod.status.as_ref()) {
        Some(status) => Cow::Borrowed(status),
        None => Cow::Owned(PodStatus::default()),
    };
    let refused = input.verdict.is_some_and(|verdict| verdict.cause == Cause::Refusal);
    let statuses = match refused {
        true => Statuses::default(),
        false => Statuses::of(input, &earlier),
    };
    // The API's own word counts beside ours: whoever made the pod terminal there, it stays so.
    let told: Vec<Outcome> =
        [Some(&*earlier), input.pod.status.as_ref()].into_iter().flatten().filter_map(Outcome::of).collect();
    let decided = decide(input, &statuses, &told);
    let published = publish(input, &decided, &told);
    let pod_ips = if refused { Vec::new() } else { pod_ips(input, &earlier) };
    let host_ips = if refused { Vec::new() } else { host_ips(input, &earlier) };
    // What a resize could not change yet is not told as changed, however early in the pod's life.
    let has_its_own = published.phase == Phase::Running || input.resize.in_progress.is_some();
    let resources = || resources::of_pod(input.pod, has_its_own, input.cgroup, earlier.resources.as_ref());
    let tells_resources = !refused && input.gates.enabled(Gate::InPlacePodLevelResourcesVerticalScaling);
    let status = PodStatus {
        allocated_resources: resources::allocated_of_pod(input.pod).filter(|_| tells_resources),
        resources: tells_resources.then(resources),
        phase: Some(published.phase.as_str().to_owned()),
        reason: published.reason,
        message: published.message,
        conditions: (!refused).then(|| {
            let earlier = earlier.conditions.as_deref().unwrap_or_default();
            conditions(input, &statuses, decided.phase, published.phase, earlier)
        }),
        pod_ip: pod_ips.first().cloned(),
        pod_ips: some_list(pod_ips.into_iter().map(|ip| PodIP { ip }).collect()),
        host_ip: host_ips.first().cloned(),
        host_ips: some_list(host_ips.into_iter().map(|ip| HostIP { ip }).collect()),
        qos_class: Some(qos::class(input.pod).as_str().to_owned()),
        start_time: Some(earlier.start_time.clone().unwrap_or_else(|| whole_seconds(input.handled_since))),
        observed_generation: input.pod.metadata.generation,
        init_container_statuses: some_list(statuses.init),
        container_statuses: some_list(statuses.regular),
        ephemeral_container_statuses: some_list(statuses.ephemeral),
        ..PodStatus::default()
    };
    Computed { phase: decided.phase, status }
}

fn some_list<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}

/// A phase with its explanation.
#[derive(Clone)]
struct Outcome {
    phase: Phase,
    reason: Option<String>,
    message: Option<String>,
}

impl Outcome {
    fn of(status: &PodStatus) -> Option<Self> {
        let phase = Phase::parse(status.phase.as_deref()?)?;
        Some(Outcome { phase, reason: status.reason.clone(), message: status.message.clone() })
    }
}

/// The phase the pod is truly in. `told` are the phases that were made known, ours first.
fn decide(input: &StatusInput<'_>, statuses: &Statuses, told: &[Outcome]) -> Outcome {
    if let Some(terminal) = told.iter().find(|outcome| outcome.phase.is_terminal()) {
        return terminal.clone();
    }
    let terminated = input.stage == Stage::Terminated;
    let own = phase(input.restarts(), statuses, terminated && !input.source.is_static());
    // Whoever would have gone on did not succeed, however well it ended the last time.
    let has_succeeded = || phase(input.restarts(), statuses, false) == Phase::Succeeded;
    if let Some(verdict) = input.verdict.filter(|_| !has_succeeded()) {
        let (reason, message) = (Some(verdict.reason.clone()), Some(verdict.message.clone()));
        return Outcome { phase: Phase::Failed, reason, message };
    }
    // A pod that ended without a phase of its own, such as one deleted before it started,
    // failed: it must not look as if it could go on.
    let phase = if terminated && !own.is_terminal() { Phase::Failed } else { own };
    let same = told.first().filter(|outcome| outcome.phase == phase).cloned();
    same.unwrap_or(Outcome { phase, reason: None, message: None })
}

/// Holds a terminal phase back until nothing can run: controllers start a replacement and
/// the scheduler gives the resources away as soon as they see it.
fn publish(input: &StatusInput<'_>, decided: &Outcome, told: &[Outcome]) -> Outcome {
    let is_out = told.iter().any(|outcome| outcome.phase.is_terminal());
    if !decided.phase.is_terminal() || is_out || input.is_at_rest() {
        return decided.clone();
    }
    told.first().cloned().unwrap_or(Outcome { phase: Phase::Pending, reason: None, message: None })
}

fn host_ips(input: &StatusInput<'_>, earlier: &PodStatus) -> Vec<String> {
    if input.host_ips.is_empty() {
        return earlier.host_ips.iter().flatten().map(|host| host.ip.clone()).collect();
    }
    input.host_ips.iter().map(IpAddr::to_string).collect()
}

/// The sandbox's addresses, the node's primary family first. The last ones known stay while
/// there is no sandbox with any.
fn pod_ips(input: &StatusInput<'_>, earlier: &PodStatus) -> Vec<String> {
    let known = || earlier.pod_ips.iter().flatten().map(|pod| pod.ip.clone()).collect::<Vec<_>>();
    if input.host_network() {
        // They stay: the pod's processes keep the addresses they bound to.
        let of_node = input.host_ips.iter().map(IpAddr::to_string);
        let mut ips = known();
        match (&ips[..], input.host_ips) {
            ([], _) => return of_node.collect(),
            // The node has got its second family since.
            ([one], [_, second]) if one.contains(':') != second.is_ipv6() => ips.push(second.to_string()),
            _ => {}
        }
        return ips;
    }
    let mut ips = input.runtime.ips().to_vec();
    if ips.is_empty() {
        return known();
    }
    if let Some(primary) = input.host_ips.first() {
        ips.sort_by_key(|ip| ip.is_ipv4() != primary.is_ipv4());
    }
    ips.iter().map(IpAddr::to_string).collect()
}
