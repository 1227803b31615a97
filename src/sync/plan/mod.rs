//! What to do next for one pod: a pure function from a snapshot to a short list of actions.
//!
//! Nothing here reads a clock, a file or a lock, so every decision can be replayed from its
//! inputs. A plan never runs ahead of what has been seen: after its actions the worker reads
//! the runtime again and asks for the next plan, until there is nothing left to do.

mod backoff;
mod restart_all;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, EphemeralContainer, Pod};
use tokio::time::Instant;

#[cfg(test)]
pub use backoff::{BACKOFF_ANNOTATION, RESTART_ALL_ANNOTATION};
pub use backoff::{BackoffLimits, Waits};

use super::hooks::{PostStart, PostStarts};
use super::resize::Resize;
use crate::cri::{
    Container, ContainerId, ContainerState, Exit, NamespaceMode, Sandbox, SandboxId, SandboxState, annotations,
};
use crate::pleg::PodRuntime;
use crate::pod::{self, containers::ephemeral_containers};
use crate::probes::{ProbeKind, Standing, Standings};
use crate::status::Restarts;

/// Everything a plan depends on.
pub struct Snapshot<'a> {
    pub pod: &'a Pod,
    pub runtime: &'a PodRuntime,
    /// Directories, cgroup and volumes were made in this life of the worker.
    pub prepared: bool,
    /// By what containers are started again.
    pub restarts: Restarts<'a>,
    /// Containers that are over, and of which the runtime has nothing any more.
    pub lost: &'a BTreeSet<String>,
    pub network_ready: bool,
    pub backoff: &'a BackoffLimits,
    /// When this worker first saw the exits of instances that have ended.
    pub exits_seen: &'a BTreeMap<ContainerId, Instant>,
    /// What containers carry that are made after a restart of all.
    pub restart_all_wait: Duration,
    /// What probes say of the instances.
    pub standings: &'a Standings,
    /// What runs and has not got over its postStart hook.
    pub post_starts: &'a PostStarts,
    /// Dead instances that have to go.
    pub condemned: &'a BTreeSet<ContainerId>,
    /// Sandboxes that this worker has stopped.
    pub stopped: &'a BTreeSet<SandboxId>,
    /// What has to be done so that containers have what is allocated to them.
    pub resize: &'a Resize,
    pub now: Instant,
    pub wall: Timestamp,
}

/// Which list of the spec a container stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Runs to completion before the next one.
    Init,
    /// An init container with restartPolicy Always: started in order, kept running.
    Sidecar,
    Regular,
    /// Added to a running pod for debugging; started once, whatever becomes of it.
    Ephemeral,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Directories, cgroup, volumes. May run beside `CreateSandbox`.
    Prepare,
    CreateSandbox {
        attempt: u32,
        replaces: bool,
    },
    /// Pulls the image if need be, creates and starts.
    StartContainer {
        name: String,
        kind: Kind,
        attempt: Option<u32>,
        waits: Waits,
    },
    /// Starts what was created but never started: an earlier life was cut off in between.
    ResumeContainer {
        name: String,
        id: ContainerId,
    },
    StopContainer {
        name: String,
        id: ContainerId,
        why: StopWhy,
    },
    RemoveContainer {
        name: String,
        id: ContainerId,
        /// The log outlives it, with as many before it as of dead instances.
        keep_log: bool,
    },
    /// Gives running containers, and the pod around them, other resources.
    Resize(Resize),
    StopSandbox {
        id: SandboxId,
    },
    RemoveSandbox {
        id: SandboxId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopWhy {
    PodStops,
    DefinitionChanged,
    /// It has to restart to have the resources that are allocated to it.
    Resized,
    /// Its postStart hook failed.
    HookFailed,
    SandboxReplaced,
    StateUnknown,
    /// Another one ended with a code for which all begin anew.
    AllRestart,
    /// A liveness or startup probe gave it up.
    ProbeFailed {
        probe: ProbeKind,
        will_restart: bool,
    },
}

/// A container that stays down until a time, and what its status says meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub name: String,
    pub kind: Kind,
    pub backoff: Duration,
    /// None if it waits for something else by then.
    pub until: Option<Instant>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub held: Vec<Held>,
    /// With these actions a restart of all leaves the runtime empty. Those made after it carry
    /// this wait, which nothing there can tell any more.
    pub restart_all_wait: Option<Duration>,
    /// The pod wants a sandbox but the runtime's network is not ready.
    pub waits_for_network: bool,
    /// What this stage aims at is reached: nothing will run again, nothing runs any more,
    /// or nothing is left.
    pub reached: bool,
}

impl Plan {
    /// What is to be done with the containers or, once there are none, with the sandboxes;
    /// reached when there is nothing left of either.
    fn of_first(containers: impl Iterator<Item = Action>, sandboxes: impl Iterator<Item = Action>) -> Plan {
        let mut actions: Vec<_> = containers.collect();
        if actions.is_empty() {
            actions.extend(sandboxes);
        }
        Plan { reached: actions.is_empty(), actions, ..Plan::default() }
    }

    /// What runs ends, because the sandbox around it is no good.
    pub fn ends_sandbox(&self) -> bool {
        let ends = |action: &Action| matches!(action, Action::StopContainer { why: StopWhy::SandboxReplaced, .. });
        self.actions.iter().any(ends)
    }

    /// Look again then, even if nothing happens.
    pub fn look_again(&self) -> Option<Instant> {
        self.held.iter().filter_map(|held| held.until).min()
    }
}

/// The plan for a pod that should run.
pub fn sync(snapshot: &Snapshot) -> Plan {
    let mut plan = Plan::default();
    let pod = snapshot.pod;
    let runtime = snapshot.runtime;
    let sandbox = runtime.sandbox();
    let usable = sandbox.filter(|sandbox| is_usable(sandbox, pod) && !is_rivalled(runtime));

    let restart_all = restart_all::next(snapshot);
    let progress = match usable {
        _ if restart_all.is_some() => Progress::Open { steps: Vec::new(), held: Vec::new() },
        Some(sandbox) => progress_in(snapshot, sandbox),
        None => progress_without_sandbox(snapshot),
    };
    let Progress::Open { steps, held } = progress else {
        plan.reached = true;
        return plan;
    };

    if let Some(sandbox) = usable {
        if !snapshot.prepared {
            plan.actions.push(Action::Prepare);
            return plan;
        }
        if let Some(mut restart_all) = restart_all {
            if restart_all.actions.is_empty() {
                restart_all.actions = ephemeral_steps(snapshot, sandbox);
            }
            return restart_all;
        }
        plan.actions.extend(strays(runtime, sandbox));
        if snapshot.resize.is_action() {
            plan.actions.push(Action::Resize(snapshot.resize.clone()));
        }
        // What has to stop waits for nobody's image. What stops for its successor's sake stops when
        // that can start: between the two, a restart policy might have its say.
        let (stops, starts): (Vec<_>, Vec<_>) = steps.into_iter().partition(has_to_stop);
        plan.actions.extend(stops.into_iter().chain(starts));
        plan.held = held;
        plan.actions.extend(surplus(runtime, Some(&sandbox.id), snapshot.condemned, snapshot.stopped));
        return plan;
    }

    // What ran in a sandbox that is no good any more ends before a new one begins.
    let running: Vec<_> =
        next_to_stop(pod, runtime).map(|container| stop(container, StopWhy::SandboxReplaced)).collect();
    if !running.is_empty() {
        plan.actions = running;
        return plan;
    }
    let standing: Vec<_> = stop_sandboxes(runtime, snapshot.stopped).collect();
    if !standing.is_empty() {
        plan.actions = standing;
        return plan;
    }
    if !snapshot.prepared {
        plan.actions.push(Action::Prepare);
    }
    if snapshot.network_ready || is_host_network(pod) {
        let attempt = sandbox.map_or(0, |sandbox| sandbox.attempt + 1);
        plan.actions.push(Action::CreateSandbox { attempt, replaces: sandbox.is_some() });
    } else {
        plan.waits_for_network = true;
    }
    plan
}

/// The plan for a pod that must end: stop everything, then the sandbox. After the end it still
/// comes first: a call that was given up may have made something late.
pub fn stop_pod(pod: &Pod, runtime: &PodRuntime, stopped: &BTreeSet<SandboxId>) -> Plan {
    let containers = next_to_stop(pod, runtime).map(|container| stop(container, StopWhy::PodStops));
    Plan::of_first(containers, stop_sandboxes(runtime, stopped))
}

/// The containers to stop now, all together: first those that are no sidecars, then the
/// sidecars one after another, the last one first, so that each outlives what it serves.
fn next_to_stop<'a>(pod: &Pod, runtime: &'a PodRuntime) -> impl Iterator<Item = &'a Container> {
    let sidecars: Vec<&str> =
        init(pod).filter(|spec| init_kind(spec) == Kind::Sidecar).map(|spec| spec.name.as_str()).collect();
    let rank = |container: &Container| sidecars.iter().position(|name| *name == container.name);
    let ranked: Vec<_> = runtime.may_run().map(|container| (rank(container), container)).collect();
    let next = match ranked.iter().any(|(rank, _)| rank.is_none()) {
        true => None,
        false => ranked.iter().map(|(rank, _)| *rank).max().flatten(),
    };
    ranked.into_iter().filter(move |(rank, _)| *rank == next).map(|(_, container)| container)
}

/// The plan for a pod that has ended and that somebody may still want to look at.
pub fn keep_ended_pod(
    pod: &Pod,
    runtime: &PodRuntime,
    condemned: &BTreeSet<ContainerId>,
    stopped: &BTreeSet<SandboxId>,
) -> Plan {
    let late = stop_pod(pod, runtime, stopped).actions;
    let newest = runtime.sandbox().map(|sandbox| &sandbox.id);
    let actions = if late.is_empty() { surplus(runtime, newest, condemned, stopped) } else { late };
    Plan { actions, ..Plan::default() }
}

/// The plan for a pod that has ended and is no longer wanted: leave nothing in the runtime.
pub fn remove_pod(pod: &Pod, runtime: &PodRuntime, stopped: &BTreeSet<SandboxId>) -> Plan {
    let late = stop_pod(pod, runtime, stopped);
    if !late.reached {
        return late;
    }
    let containers = runtime.containers.iter().map(remove);
    let sandboxes = runtime.sandboxes.iter().map(|sandbox| Action::RemoveSandbox { id: sandbox.id.clone() });
    Plan::of_first(containers, sandboxes)
}

/// How far the containers of a pod are.
enum Progress {
    /// Nothing will ever run again.
    Finished,
    Open {
        steps: Vec<Action>,
        held: Vec<Held>,
    },
}

/// Without a sandbox there is only one question: would anything start in a new one?
fn progress_without_sandbox(snapshot: &Snapshot) -> Progress {
    let pod = snapshot.pod;
    let runtime = snapshot.runtime;
    let ran_before = !runtime.containers.is_empty() && !runtime.sandboxes.is_empty();
    if ran_before && regular(pod).all(|spec| never_restarts(pod, spec)) {
        return Progress::Finished;
    }
    if is_over(snapshot) {
        return Progress::Finished;
    }
    Progress::Open { steps: Vec::new(), held: Vec::new() }
}

/// Every regular container has ended for good, in whichever sandbox that was; or the runtime has lost
/// an init container that did not do its work, and will not try again.
fn is_over(snapshot: &Snapshot) -> bool {
    let is_done = regular(snapshot.pod).next().is_some() && regular(snapshot.pod).all(|spec| is_done(snapshot, spec));
    is_done || init(snapshot.pod).any(|spec| snapshot.lost.contains(&spec.name))
}

fn is_done(snapshot: &Snapshot, spec: &ContainerSpec) -> bool {
    if snapshot.lost.contains(&spec.name) {
        return true;
    }
    let newest = snapshot.runtime.newest(&spec.name);
    let Some((newest, exit)) = newest.and_then(|newest| Some((newest, newest.exit()?))) else { return false };
    match failed_probe(snapshot, newest) {
        // Killed for a probe: how it then ended is not why it ended, and no rule speaks of it.
        Some(_) => policy(snapshot.pod, spec) == "Never",
        None => !snapshot.restarts.restartable(spec, exit.exit_code),
    }
}

/// The probe for which an instance has to go, or had to.
fn failed_probe(snapshot: &Snapshot, instance: &Container) -> Option<ProbeKind> {
    snapshot.standings.get(&instance.id).and_then(|standing| standing.failed)
}

fn has_to_stop(action: &Action) -> bool {
    match action {
        Action::StopContainer { why, .. } => !matches!(why, StopWhy::DefinitionChanged | StopWhy::Resized),
        _ => false,
    }
}

/// Nothing starts before what started earlier is over its postStart hook.
fn waits_for_post_start(snapshot: &Snapshot, name: &str) -> bool {
    let is_waited_for = |container: &Container| {
        container.name != name && snapshot.post_starts.get(&container.id) == Some(&PostStart::Running)
    };
    snapshot.runtime.containers.iter().any(is_waited_for)
}

fn has_failed_hook(snapshot: &Snapshot, instance: &Container) -> bool {
    matches!(snapshot.post_starts.get(&instance.id), Some(PostStart::Failed(_)))
}

/// It has no startup probe, or that has passed.
fn is_started(snapshot: &Snapshot, instance: &Container) -> bool {
    snapshot.standings.get(&instance.id).is_none_or(Standing::is_started)
}

/// It runs what it should with what it should have, and neither hook nor probe has given it up.
fn is_well(snapshot: &Snapshot, instance: &Container, spec: &ContainerSpec) -> bool {
    !is_changed(instance, spec)
        && !is_outgrown(snapshot, instance)
        && !has_failed_hook(snapshot, instance)
        && failed_probe(snapshot, instance).is_none()
}

/// It was made with other resources than are allocated now, and cannot change.
fn is_outgrown(snapshot: &Snapshot, instance: &Container) -> bool {
    snapshot.resize.outgrown.contains(&instance.id)
}

/// Of an init container. Whoever lost a process for want of memory has not, whatever it says.
fn has_done_its_work(exit: &Exit) -> bool {
    exit.exit_code == 0 && exit.reason != "OOMKilled"
}

/// The container's own restart policy, else the pod's.
fn policy<'a>(pod: &'a Pod, spec: &'a ContainerSpec) -> &'a str {
    let policy = spec.restart_policy.as_deref().or(pod::spec(pod).restart_policy.as_deref());
    policy.unwrap_or("Always")
}

/// Whatever its exit code, there is nothing that would start it again.
fn never_restarts(pod: &Pod, spec: &ContainerSpec) -> bool {
    let ruled = spec.restart_policy.is_some() && spec.restart_policy_rules.as_ref().is_some_and(|all| !all.is_empty());
    policy(pod, spec) == "Never" && !ruled
}

/// Whoever debugs a pod does not wait for the pod.
fn ephemeral_steps(snapshot: &Snapshot, sandbox: &Sandbox) -> Vec<Action> {
    let step = |spec: &EphemeralContainer| {
        let (name, kind) = (spec.name.clone(), Kind::Ephemeral);
        match snapshot.runtime.newest(&name) {
            None if snapshot.lost.contains(&name) => None,
            None => Some(Action::StartContainer { name, kind, attempt: None, waits: Waits::default() }),
            Some(newest) if newest.state == ContainerState::Created && newest.sandbox_id == sandbox.id => {
                Some(Action::ResumeContainer { name, id: newest.id.clone() })
            }
            Some(_) => None,
        }
    };
    ephemeral_containers(snapshot.pod).iter().filter_map(step).collect()
}

fn progress_in(snapshot: &Snapshot, sandbox: &Sandbox) -> Progress {
    let runtime = snapshot.runtime;
    let here = |name: &str| {
        runtime.containers.iter().find(|container| container.name == name && container.sandbox_id == sandbox.id)
    };
    let mut steps = ephemeral_steps(snapshot, sandbox);
    let mut held = Vec::new();

    // One that has not begun proves nothing: a call that was given up may have made it late.
    let has_begun = |container: &Container| container.state != ContainerState::Created;
    let initialised = regular(snapshot.pod).any(|spec| here(&spec.name).is_some_and(has_begun));
    if is_over(snapshot) {
        return Progress::Finished;
    }

    // What has a later one beside it has made way for that, and no longer holds up anybody: it
    // may be gone from the runtime, or be a sidecar that crashes.
    let begun = init(snapshot.pod).enumerate().filter(|(_, spec)| here(&spec.name).is_some());
    let furthest = begun.map(|(position, _)| position).last();
    for (position, spec) in init(snapshot.pod).enumerate() {
        let kind = init_kind(spec);
        let has_made_way = initialised || furthest.is_some_and(|furthest| position < furthest);
        if kind == Kind::Init && has_made_way {
            continue;
        }
        let newest = here(&spec.name);
        match (kind, newest.map(|newest| (&newest.state, newest))) {
            (Kind::Init, Some((ContainerState::Exited(exit), _))) if has_done_its_work(exit) => continue,
            (Kind::Init, Some((ContainerState::Exited(exit), _)))
                if !snapshot.restarts.restartable(spec, exit.exit_code) =>
            {
                return Progress::Finished;
            }
            (_, Some((ContainerState::Running { .. }, newest))) if is_well(snapshot, newest, spec) => {
                // A sidecar may say when it has started, and what comes after it needs it.
                if kind == Kind::Sidecar && (has_made_way || is_started(snapshot, newest)) {
                    continue;
                }
                return Progress::Open { steps, held };
            }
            _ => {
                advance(snapshot, spec, kind, newest, &mut steps, &mut held);
                if !has_made_way {
                    return Progress::Open { steps, held };
                }
            }
        }
    }

    for spec in regular(snapshot.pod) {
        let newest = here(&spec.name);
        match newest.map(|newest| (&newest.state, newest)) {
            Some((ContainerState::Running { .. }, newest)) if is_well(snapshot, newest, spec) => {}
            _ if is_done(snapshot, spec) => {}
            _ => advance(snapshot, spec, Kind::Regular, newest, &mut steps, &mut held),
        }
    }
    Progress::Open { steps, held }
}

/// Brings one container that is not as it should be one step further.
fn advance(
    snapshot: &Snapshot,
    spec: &ContainerSpec,
    kind: Kind,
    newest_here: Option<&Container>,
    steps: &mut Vec<Action>,
    held: &mut Vec<Held>,
) {
    let name = spec.name.clone();
    // Back-off and attempt go on over a change of sandbox.
    let newest = newest_here.or_else(|| snapshot.runtime.newest(&spec.name));
    let attempt = newest.map(|newest| newest.attempt + 1);
    let restart_all = backoff::of_pod(snapshot);
    let start = |crash| {
        let waits = Waits { crash, restart_all };
        Action::StartContainer { name: name.clone(), kind, attempt, waits }
    };
    let may_start = !waits_for_post_start(snapshot, &name);
    match newest_here.map(|newest| (&newest.state, newest)) {
        Some((ContainerState::Running { .. }, newest)) if is_changed(newest, spec) && may_start => {
            steps.push(stop(newest, StopWhy::DefinitionChanged));
            steps.push(start(Duration::ZERO));
        }
        // One that a probe gave up goes for that, with all that follows.
        Some((ContainerState::Running { .. }, newest))
            if is_outgrown(snapshot, newest) && failed_probe(snapshot, newest).is_none() && may_start =>
        {
            steps.push(stop(newest, StopWhy::Resized));
            steps.push(start(Duration::ZERO));
        }
        // What follows is for the restart policy and the back-off, as after any other end.
        Some((ContainerState::Running { .. }, newest)) if has_failed_hook(snapshot, newest) => {
            steps.push(stop(newest, StopWhy::HookFailed));
        }
        Some((ContainerState::Running { .. }, newest)) => {
            let Some(probe) = failed_probe(snapshot, newest) else { return };
            let will_restart = kind == Kind::Sidecar || policy(snapshot.pod, spec) != "Never";
            steps.push(stop(newest, StopWhy::ProbeFailed { probe, will_restart }));
        }
        Some((ContainerState::Unknown, newest)) => {
            steps.push(stop(newest, StopWhy::StateUnknown));
        }
        Some((ContainerState::Created, _)) if !may_start => {}
        Some((ContainerState::Created, newest)) if is_changed(newest, spec) || is_outgrown(snapshot, newest) => {
            steps.push(remove(newest));
            steps.push(start(Duration::ZERO));
        }
        Some((ContainerState::Created, newest)) => {
            steps.push(Action::ResumeContainer { name, id: newest.id.clone() });
        }
        Some((ContainerState::Exited(_), _)) | None => {
            let (wait, next) = match newest {
                // An init container that did its work runs again only for a new sandbox.
                Some(newest) if kind == Kind::Init && newest.exit().is_some_and(has_done_its_work) => {
                    Default::default()
                }
                Some(newest) => backoff::after_crash(snapshot, newest, spec),
                None => Default::default(),
            };
            let remaining = newest.map_or(Duration::ZERO, |newest| backoff::remaining(snapshot, newest, wait));
            if !remaining.is_zero() {
                held.push(Held { name, kind, backoff: wait, until: Some(snapshot.now + remaining) });
            } else if may_start {
                steps.push(start(next));
            } else if !wait.is_zero() {
                held.push(Held { name, kind, backoff: wait, until: None });
            }
        }
    }
}

/// Containers that run outside the sandbox that counts.
fn strays<'a>(runtime: &'a PodRuntime, sandbox: &'a Sandbox) -> impl Iterator<Item = Action> + 'a {
    runtime
        .may_run()
        .filter(|container| container.sandbox_id != sandbox.id)
        .map(|container| stop(container, StopWhy::SandboxReplaced))
}

/// Dead instances that have to go, and dead sandboxes nobody is in.
fn surplus(
    runtime: &PodRuntime,
    keep: Option<&SandboxId>,
    condemned: &BTreeSet<ContainerId>,
    stopped: &BTreeSet<SandboxId>,
) -> Vec<Action> {
    let dead = runtime.containers.iter().filter(|container| container.exit().is_some());
    let mut actions: Vec<_> = dead.filter(|container| condemned.contains(&container.id)).map(remove).collect();
    // Created in a sandbox that is gone: it will never be started.
    let orphaned = |container: &&Container| {
        container.state == ContainerState::Created && keep.is_some_and(|keep| container.sandbox_id != *keep)
    };
    actions.extend(runtime.containers.iter().filter(orphaned).map(remove));
    for sandbox in &runtime.sandboxes {
        let empty = !runtime.containers.iter().any(|container| container.sandbox_id == sandbox.id);
        if Some(&sandbox.id) != keep && empty && sandbox.state == SandboxState::NotReady {
            let id = sandbox.id.clone();
            actions.push(match is_standing(sandbox, stopped) {
                true => Action::StopSandbox { id },
                false => Action::RemoveSandbox { id },
            });
        }
    }
    actions
}

fn is_usable(sandbox: &Sandbox, pod: &Pod) -> bool {
    let wanted = if is_host_network(pod) { NamespaceMode::Node } else { NamespaceMode::Pod };
    sandbox.state == SandboxState::Ready
        && sandbox.network_mode.is_none_or(|mode| mode == wanted)
        && (is_host_network(pod) || !sandbox.ips.is_empty())
}

/// Two ready sandboxes: nobody can say which one the pod's address belongs to.
fn is_rivalled(runtime: &PodRuntime) -> bool {
    ready_sandboxes(runtime).nth(1).is_some()
}

/// Its network is not taken down yet: one that died by itself keeps its address and its ports. A
/// runtime may go on telling the address of one that was stopped.
fn is_standing(sandbox: &Sandbox, stopped: &BTreeSet<SandboxId>) -> bool {
    sandbox.state == SandboxState::Ready || (!sandbox.ips.is_empty() && !stopped.contains(&sandbox.id))
}

fn stop_sandboxes(runtime: &PodRuntime, stopped: &BTreeSet<SandboxId>) -> impl Iterator<Item = Action> {
    let standing = runtime.sandboxes.iter().filter(|sandbox| is_standing(sandbox, stopped));
    standing.map(|sandbox| Action::StopSandbox { id: sandbox.id.clone() })
}

fn ready_sandboxes(runtime: &PodRuntime) -> impl Iterator<Item = &Sandbox> {
    runtime.sandboxes.iter().filter(|sandbox| sandbox.state == SandboxState::Ready)
}

/// The image (or name) is other than what the instance was made from.
fn is_changed(container: &Container, spec: &ContainerSpec) -> bool {
    container.annotations.get(annotations::CONTAINER_HASH).is_some_and(|hash| *hash != pod::container_hash(spec))
}

fn stop(container: &Container, why: StopWhy) -> Action {
    Action::StopContainer { name: container.name.clone(), id: container.id.clone(), why }
}

fn remove(container: &Container) -> Action {
    Action::RemoveContainer { name: container.name.clone(), id: container.id.clone(), keep_log: false }
}

fn regular(pod: &Pod) -> impl Iterator<Item = &ContainerSpec> {
    pod.spec.iter().flat_map(|spec| &spec.containers)
}

fn init(pod: &Pod) -> impl Iterator<Item = &ContainerSpec> {
    pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten())
}

fn init_kind(spec: &ContainerSpec) -> Kind {
    if spec.restart_policy.as_deref() == Some("Always") { Kind::Sidecar } else { Kind::Init }
}

fn is_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true))
}
