//! The conditions that this agent writes on a pod.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::compute::{Cause, StatusInput, Verdict};
use super::containers::Statuses;
use super::phase::Phase;
use crate::config::Gate;
use crate::pod::containers::{init_containers, is_sidecar, regular_containers};

const RESTARTING_ALL: &str = "AllContainersRestarting";

/// A condition before it knows since when it holds.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Finding {
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Finding {
    fn yes() -> Self {
        Finding { holds: true, reason: None, message: None }
    }
    fn no(reason: &'static str) -> Self {
        Finding { holds: false, reason: Some(reason), message: None }
    }
}

/// All conditions of ours, each with its transition time carried over from `earlier` while
/// its status stays. A pod is no longer ready once its end is decided; why it was disrupted
/// is told together with that end.
pub(super) fn conditions(
    input: &StatusInput<'_>,
    statuses: &Statuses,
    decided: Phase,
    published: Phase,
    earlier: &[PodCondition],
) -> Vec<PodCondition> {
    let containers_ready = containers_ready(input.pod, statuses, decided);
    let mut list = Vec::new();
    if input.gates.enabled(Gate::PodReadyToStartContainersCondition) {
        list.push(("PodReadyToStartContainers", ready_to_start(input)));
    }
    list.extend([
        ("Initialized", initialized(input.pod, statuses, decided, earlier)),
        ("Ready", ready(input.pod, &containers_ready)),
        ("ContainersReady", containers_ready),
        ("PodScheduled", Finding::yes()),
    ]);
    if input.restarts().may_restart_all() {
        list.push((RESTARTING_ALL, restarting_all(statuses, decided)));
    }
    let disrupted = |verdict: &&Verdict| verdict.cause == Cause::Disruption;
    if let Some(verdict) = input.verdict.filter(disrupted).filter(|_| published.is_terminal()) {
        let message = Some(verdict.message.clone()).filter(|message| !message.is_empty());
        list.push(("DisruptionTarget", Finding { holds: true, reason: Some("TerminationByKubelet"), message }));
    }
    let mut list: Vec<_> = list.into_iter().map(|(kind, finding)| stamped(kind, finding, input, earlier)).collect();
    if let Some(pending) = &input.resize.pending {
        let finding = Finding { holds: true, reason: Some(pending.reason), message: Some(pending.message.clone()) };
        list.push(stamped("PodResizePending", finding, input, earlier));
    }
    if let Some(progress) = &input.resize.in_progress {
        let reason = progress.error.as_ref().map(|_| "Error");
        let finding = Finding { holds: true, reason, message: progress.error.clone() };
        let condition = stamped("PodResizeInProgress", finding, input, earlier);
        list.push(PodCondition { observed_generation: progress.generation, ..condition });
    }
    list
}

fn stamped(kind: &str, finding: Finding, input: &StatusInput<'_>, earlier: &[PodCondition]) -> PodCondition {
    let status = if finding.holds { "True" } else { "False" };
    let since = earlier
        .iter()
        .find(|condition| condition.type_ == kind && condition.status == status)
        .and_then(|condition| condition.last_transition_time.clone())
        .unwrap_or_else(|| whole_seconds(input.now));
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: finding.reason.map(str::to_owned),
        message: finding.message,
        last_transition_time: Some(since),
        last_probe_time: None,
        observed_generation: input.pod.metadata.generation,
    }
}

/// API times have whole seconds; finer ones would never compare equal to what comes back.
pub(super) fn whole_seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

fn ready_to_start(input: &StatusInput<'_>) -> Finding {
    let usable = input.runtime.ready_sandbox().is_some() && (input.host_network() || !input.runtime.ips().is_empty());
    Finding { holds: usable, reason: None, message: None }
}

/// Whether the status told last says that all containers are being restarted.
pub(super) fn was_restarting_all(earlier: &PodStatus) -> bool {
    held(earlier.conditions.as_deref().unwrap_or_default(), RESTARTING_ALL)
}

fn held(earlier: &[PodCondition], kind: &str) -> bool {
    earlier.iter().any(|condition| condition.type_ == kind && condition.status == "True")
}

fn restarting_all(statuses: &Statuses, phase: Phase) -> Finding {
    match phase {
        Phase::Succeeded => Finding::no("PodCompleted"),
        Phase::Failed => Finding::no("PodFailed"),
        Phase::Pending | Phase::Running if statuses.restarting_all => Finding {
            reason: Some("RestartAllContainersStarted"),
            message: Some("container exited with restart policy rule".to_owned()),
            ..Finding::yes()
        },
        Phase::Pending | Phase::Running => Finding { holds: false, ..Finding::yes() },
    }
}

fn initialized(pod: &Pod, statuses: &Statuses, phase: Phase, earlier: &[PodCondition]) -> Finding {
    let mut gaps = Gaps::new("incomplete");
    for container in init_containers(pod) {
        let done = |status: &ContainerStatus| match is_sidecar(container) {
            true => status.started == Some(true),
            false => status.ready,
        };
        gaps.look_at(&container.name, statuses.init(&container.name), done);
    }
    if phase == Phase::Succeeded && gaps.unknown.is_empty() {
        return Finding { reason: Some("PodCompleted"), ..Finding::yes() };
    }
    // Once a regular container has run the pod was initialized, whatever its init
    // containers look like now: they may have been collected, or run once more.
    if statuses.any_regular_started() || held(earlier, "Initialized") {
        return Finding::yes();
    }
    gaps.finding("ContainersNotInitialized")
}

fn containers_ready(pod: &Pod, statuses: &Statuses, phase: Phase) -> Finding {
    let mut gaps = Gaps::new("unready");
    for sidecar in init_containers(pod).iter().filter(|container| is_sidecar(container)) {
        gaps.look_at(&sidecar.name, statuses.init(&sidecar.name), |status| status.ready);
    }
    for container in regular_containers(pod) {
        gaps.look_at(&container.name, statuses.regular(&container.name), |status| status.ready);
    }
    match phase {
        Phase::Succeeded => Finding::no("PodCompleted"),
        Phase::Failed => Finding::no("PodFailed"),
        Phase::Pending | Phase::Running => gaps.finding("ContainersNotReady"),
    }
}

fn ready(pod: &Pod, containers_ready: &Finding) -> Finding {
    if !containers_ready.holds {
        return containers_ready.clone();
    }
    let closed: Vec<String> = readiness_gates(pod)
        .filter_map(|(kind, status)| match status {
            None => Some(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist.")),
            Some("True") => None,
            Some(status) => Some(format!("the status of pod readiness gate \"{kind}\" is not \"True\", but {status}")),
        })
        .collect();
    if closed.is_empty() {
        return Finding::yes();
    }
    Finding { message: Some(closed.join(", ")), ..Finding::no("ReadinessGatesNotReady") }
}

/// The pod's readiness gates, and what others have said of each in its conditions.
pub fn readiness_gates(pod: &Pod) -> impl Iterator<Item = (&str, Option<&str>)> {
    let told = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let gates = pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_deref()).unwrap_or_default();
    gates.iter().map(move |gate| {
        let condition = told.iter().find(|condition| condition.type_ == gate.condition_type);
        (gate.condition_type.as_str(), condition.map(|condition| condition.status.as_str()))
    })
}

/// Containers that stand in the way of a condition.
struct Gaps<'a> {
    /// The word for those in `unmet`.
    word: &'static str,
    unmet: Vec<&'a str>,
    unknown: Vec<&'a str>,
}

impl<'a> Gaps<'a> {
    fn new(word: &'static str) -> Self {
        Gaps { word, unmet: Vec::new(), unknown: Vec::new() }
    }

    fn look_at(
        &mut self,
        name: &'a str,
        status: Option<&ContainerStatus>,
        meets: impl FnOnce(&ContainerStatus) -> bool,
    ) {
        match status {
            None => self.unknown.push(name),
            Some(status) if !meets(status) => self.unmet.push(name),
            Some(_) => {}
        }
    }

    fn finding(self, reason: &'static str) -> Finding {
        let mut texts = Vec::new();
        for (word, names) in [("unknown", &self.unknown), (self.word, &self.unmet)] {
            if !names.is_empty() {
                texts.push(format!("containers with {word} status: [{}]", names.join(" ")));
            }
        }
        if texts.is_empty() {
            return Finding::yes();
        }
        Finding { message: Some(texts.join(", ")), ..Finding::no(reason) }
    }
}
