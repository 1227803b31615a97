//! A restart of all containers, because one of them ended with a code whose rule demands it.
//!
//! What marks the pod is that dead instance, the source: it is removed after all others, so
//! that whoever is killed in between finds the restart under way. Once it is gone the runtime
//! has nothing of the pod but its sandbox (and what was added for debugging), and the pod
//! begins with its first init container, as a new one does.

use std::collections::BTreeSet;

use super::{Action, Held, Plan, Snapshot, StopWhy, backoff, init, init_kind, regular, stop};
use crate::cri::{Container, ContainerId};

/// The next step; `None` where no restart is under way. Sandbox and volumes stay as they are.
pub(super) fn next(snapshot: &Snapshot) -> Option<Plan> {
    let (pod, runtime) = (snapshot.pod, snapshot.runtime);
    let sources: BTreeSet<&ContainerId> = snapshot.restarts.sources(runtime).map(|source| &source.id).collect();
    if sources.is_empty() {
        return None;
    }
    // Regular ones first, and of each the oldest: the newest takes the pod's surplus logs along.
    let kinds = regular(pod).map(|spec| (spec, super::Kind::Regular));
    let kinds = kinds.chain(init(pod).map(|spec| (spec, init_kind(spec))));
    let all: Vec<_> = kinds
        .flat_map(|(spec, kind)| {
            let instances: Vec<_> = runtime.instances(&spec.name).collect();
            instances.into_iter().rev().map(move |container| (kind, container))
        })
        .collect();

    let is_target = |id: &ContainerId| all.iter().any(|(_, container)| container.id == *id);
    let running = runtime.may_run().filter(|container| is_target(&container.id));
    let stops: Vec<_> = running.map(|container| stop(container, StopWhy::AllRestart)).collect();
    if !stops.is_empty() {
        return Some(Plan { actions: stops, ..Plan::default() });
    }
    let (sources, targets): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(_, container)| sources.contains(&container.id));
    if !targets.is_empty() {
        let actions = targets.into_iter().map(|(_, container)| remove(container)).collect();
        return Some(Plan { actions, ..Plan::default() });
    }
    let waits = sources.iter().map(|(_, source)| backoff::after_source(snapshot, source));
    let (wait, next) = waits.max().unwrap_or_default();
    let left = sources.iter().map(|(_, source)| backoff::remaining(snapshot, source, wait)).max().unwrap_or_default();
    if !left.is_zero() {
        let until = Some(snapshot.now + left);
        let held = |(kind, source): (_, &Container)| Held { name: source.name.clone(), kind, backoff: wait, until };
        return Some(Plan { held: sources.into_iter().map(held).collect(), ..Plan::default() });
    }
    let actions = sources.into_iter().map(|(_, source)| remove(source)).collect();
    Some(Plan { actions, restart_all_wait: Some(next), ..Plan::default() })
}

fn remove(container: &Container) -> Action {
    Action::RemoveContainer { name: container.name.clone(), id: container.id.clone(), keep_log: true }
}
