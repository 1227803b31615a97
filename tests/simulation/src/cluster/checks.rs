//! What must hold at a write, held against what the node has and what was written before.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod, PodStatus};
use serde_json::Value;
use tokio::time::Instant;

use super::{SimCluster, State, is_mirror, is_terminal, phase};
use crate::agent::PODS_MAX;
use crate::invariants::Invariant;
use crate::pods::{self, NAMESPACE};
use crate::programs::Ask;

impl SimCluster {
    /// A new life of the agent hears of those that are there.
    pub fn agent_is_gone(&self, static_pods: impl Iterator<Item = String>) {
        let mut state = self.state();
        state.known = state.pods.values().filter_map(|pod| pod.metadata.uid.clone()).chain(static_pods).collect();
    }

    pub fn agent_begins(&self) {
        self.state().life_began = Some(Instant::now());
    }

    /// Whether the mirror of a static pod says since when that is active.
    pub fn has_told_start(&self, name: &str, pod: &Pod) -> bool {
        let mirror = self.pod(NAMESPACE, name);
        let mirror = mirror.filter(|mirror| node_uid(mirror) == pod.metadata.uid.as_deref());
        mirror.and_then(|mirror| mirror.status).is_some_and(|status| status.start_time.is_some())
    }

    pub fn static_pod_comes(&self, pod: &Pod) {
        let mut state = self.state();
        state.known.extend(pod.metadata.uid.clone());
        state.note_asked(pod);
    }

    /// Conditions have many authors, and each speaks for its own.
    pub(super) fn check_patch(&self, name: &str, status: &Value) {
        for condition in status["conditions"].as_array().into_iter().flatten() {
            let kind = condition["type"].as_str().unwrap_or_default();
            if !OWN_CONDITIONS.contains(&kind) {
                self.world.violation(Invariant::OthersHaveTheirSay, format!("{kind} of pod {name} is written"));
            }
        }
    }

    /// What must hold between two statuses of one pod, whoever asks for it.
    pub(super) fn check_successor(&self, state: &State, pod: &Pod, after: &PodStatus) {
        let Some(before) = &pod.status else { return };
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let (was, is) = (phase(before), phase(after));
        if is_terminal(was) && was != is {
            self.world.violation(Invariant::TerminalStays, format!("pod {name} went from {was} to {is}"));
        }
        if is_terminal(is) && !is_mirror(pod) {
            let running = self.node.0.running_in(pod.metadata.uid.as_deref().unwrap_or_default());
            if !running.is_empty() {
                self.world
                    .violation(Invariant::TerminalIsAtRest, format!("pod {name} is told {is} while {running:?} run"));
            }
        }
        if before.start_time.is_some() && before.start_time != after.start_time {
            let times = format!("{:?} to {:?}", before.start_time, after.start_time);
            self.world.violation(Invariant::StartTimeStays, format!("of pod {name} from {times}"));
        }
        self.check_probes(name, before, after);
        self.check_refusal(state, pod, after);
        let debuggers = after.ephemeral_container_statuses.iter().flatten();
        // Of one that was lost before anybody was told that it ran, only its log remains.
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let may_count = |debugger: &ContainerStatus| self.node.0.has_forgotten_any(uid, &debugger.name);
        for debugger in debuggers.filter(|debugger| debugger.restart_count > 0 && !may_count(debugger)) {
            let what = format!("{name}/{} is told to have restarted {} times", debugger.name, debugger.restart_count);
            self.world.violation(Invariant::DebuggersRunOnce, what);
        }
        for old in containers(before).chain(before.ephemeral_container_statuses.iter().flatten()) {
            let mut all = containers(after).chain(after.ephemeral_container_statuses.iter().flatten());
            let Some(new) = all.find(|new| new.name == old.name) else {
                self.world.violation(
                    Invariant::StatusesStay,
                    format!("pod {name} lost the status of container {}", old.name),
                );
                continue;
            };
            if new.restart_count < old.restart_count {
                let counts = format!("{} to {}", old.restart_count, new.restart_count);
                self.world.violation(Invariant::RestartCountsGrow, format!("of {name}/{} from {counts}", old.name));
            }
        }
    }

    /// What was told is known, whatever the runtime forgets.
    pub(super) fn tell_runtime(&self, pod: &Pod, after: &PodStatus) {
        self.node.0.is_told(node_uid(pod).unwrap_or_default(), after, is_mirror(pod));
    }

    /// Whoever begins anew knows from the wall clock alone how long a pod has been active: where
    /// that was set back, a pod may have been stopped for its deadline by a life of the agent that
    /// could not tell it any more, and the next one cannot know. How a pod has ended may be told
    /// long after it was found, once a static pod has its mirror.
    pub(super) fn note_end(&self, state: &mut State, pod: &Pod, after: &PodStatus) {
        let ends = is_terminal(phase(after)) && !pod.status.as_ref().is_some_and(|before| is_terminal(phase(before)));
        let seconds = pod.spec.as_ref().and_then(|spec| spec.active_deadline_seconds);
        let (Some(seconds), Some(start), true) = (seconds, &after.start_time, ends) else { return };
        let wall =
            state.life_began.map_or_else(|| self.world.clock.wall(), |began| self.world.earliest_wall_since(began));
        let is_in_time = wall.duration_since(start.0) < SignedDuration::from_secs(seconds);
        let lasts = state.life_began.map_or(Duration::ZERO, |began| began.elapsed());
        if is_in_time && lasts < Duration::from_secs(seconds.unsigned_abs()) {
            state.ended_in_time.extend(node_uid(pod).map(str::to_owned));
        }
    }

    /// Whether nobody could know, when the pod was told to have ended, that it was late.
    pub fn has_ended_in_time(&self, uid: &str) -> bool {
        self.state().ended_in_time.contains(uid)
    }

    /// What must hold when the agent takes a pod out of the API.
    pub(super) fn check_leaving(&self, pod: &Pod) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        if is_mirror(pod) {
            return;
        }
        if pod.metadata.deletion_timestamp.is_none() {
            self.world.violation(Invariant::OnlyTheDoomedAreDeleted, format!("pod {name}"));
        }
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let (runtime, host) = &self.node;
        let mut left: Vec<String> = runtime.running_in(uid);
        left.extend(host.leftovers(uid));
        if !left.is_empty() {
            self.world.violation(Invariant::GoneFromTheNodeFirst, format!("of pod {name} there are {left:?}"));
        }
    }

    /// Whatever is told of a running container its probes have said.
    fn check_probes(&self, name: &str, before: &PodStatus, after: &PodStatus) {
        let runtime = &self.node.0;
        let running = |status: &&ContainerStatus| status.state.as_ref().is_some_and(|state| state.running.is_some());
        for new in containers(after).filter(running) {
            let Some((_, id)) = new.container_id.as_deref().and_then(|id| id.split_once("://")) else { continue };
            let same = |old: &&ContainerStatus| old.name == new.name && old.container_id == new.container_id;
            let old = containers(before).filter(running).find(same);
            if before.start_time.is_none() {
                runtime.nothing_is_told(id);
            }
            if !runtime.may_tell_ready(id, old.map(|old| old.ready), new.ready) {
                let what = format!("{name}/{} is told ready: {}", new.name, new.ready);
                self.world.violation(Invariant::ProbesNeedTheirThreshold, what);
            }
            let was_started = old.is_some_and(|old| old.started == Some(true));
            if new.started == Some(true) && !was_started && !runtime.may_tell_started(id) {
                let what = format!("{name}/{} is told to have started", new.name);
                self.world.violation(Invariant::ProbesNeedTheirThreshold, what);
            }
        }
    }

    /// There are as many pods as may be, or have all that there is, with those whose end the runtime
    /// did not let happen.
    fn check_refusal(&self, state: &State, pod: &Pod, after: &PodStatus) {
        let name = pods::name(pod);
        let known: BTreeSet<String> = state.known.iter().cloned().chain(self.node.0.pods()).collect();
        if after.reason.as_deref() == Some(OUT_OF_PODS) && known.len() <= PODS_MAX {
            let what = format!("{name} among {} pods, where {PODS_MAX} may be", known.len());
            self.world.violation(Invariant::RefusedForCause, what);
        }
        let asked: u64 = known.iter().filter_map(|uid| state.asked.get(uid)).sum();
        let is_for_cpu = after.reason.as_deref() == Some(OUT_OF_CPU) && !pods::is_refused(pod);
        let there = self.node.1.milli_cpus();
        if is_for_cpu && asked <= there {
            let what = format!("{name}, and all pods ask for {asked}m of {there}m");
            self.world.violation(Invariant::RefusedForCause, what);
        }
    }

    /// What users are told of a kill.
    pub(super) fn check_event(&self, event: &Event) {
        let message = event.message.as_deref().unwrap_or_default();
        let Some((container, rest)) = message.strip_prefix("Container ").and_then(|text| text.split_once(" failed "))
        else {
            return;
        };
        let uid = event.involved_object.uid.as_deref().unwrap_or_default();
        let ask = rest.split(' ').next().and_then(Ask::from_word);
        if let Some(ask) = ask.filter(|ask| !self.node.0.was_given_up(uid, container, *ask)) {
            let what = format!("{uid}/{container} is told to have failed its {} probe", ask.word());
            self.world.violation(Invariant::ProbesNeedTheirThreshold, what);
        }
    }
}

/// What a node agent says of a pod.
const OWN_CONDITIONS: [&str; 9] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "AllContainersRestarting",
    "DisruptionTarget",
    "PodResizePending",
    "PodResizeInProgress",
];

/// Told of pods that are one too many.
pub const OUT_OF_PODS: &str = "OutOfpods";
/// Told of pods that ask for more CPU than others have left.
pub const OUT_OF_CPU: &str = "OutOfcpu";

impl State {
    /// A pod is written, anew or otherwise than before. One that no machine has room for takes none.
    pub(super) fn note_asked(&mut self, pod: &Pod) {
        let Some(uid) = pod.metadata.uid.clone().filter(|_| !pods::is_refused(pod)) else { return };
        let asked = self.asked.entry(uid).or_default();
        *asked = pods::milli_cpus(pod).max(*asked);
    }
}

/// The UID under which the node has a pod: that of a static pod is in its mirror.
fn node_uid(pod: &Pod) -> Option<&str> {
    let hash = pod.metadata.annotations.as_ref().and_then(|all| all.get("kubernetes.io/config.hash"));
    hash.or(pod.metadata.uid.as_ref()).map(String::as_str)
}

fn containers(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    status.init_container_statuses.iter().chain(&status.container_statuses).flatten()
}
