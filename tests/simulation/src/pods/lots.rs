//! What has to become of a pod and its containers, as their programs, probes and policies say.

use k8s_openapi::api::core::v1::{Container, Pod};

use super::{inits, manners, policy, spec};
use crate::programs::{Ask, Deed, Program};

/// What has to become of a container that nobody disturbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lot {
    Runs,
    /// Ends and is started again, for ever.
    Loops,
    Ends {
        well: bool,
    },
    /// Its postStart hook fails, or never returns, and an agent that begins anew forgets that.
    Anyhow,
}

/// What has to become of a pod that nobody disturbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodLot {
    /// An init container fails for ever, or some container is always about to start.
    Restless,
    Runs,
    Ends {
        well: bool,
    },
    /// That of some container depends on when agents came and went.
    Anyhow,
}

pub fn lot(pod: &Pod, container: &Container) -> Lot {
    if forgets_its_start(container) {
        return Lot::Anyhow;
    }
    let code = match Program::from_command(container.command.as_deref().unwrap_or_default()) {
        Program::Forever | Program::Stubborn | Program::Chatty { .. } if is_given_up(container) => {
            return if policy(pod) == "Never" { Lot::Ends { well: false } } else { Lot::Loops };
        }
        Program::Forever | Program::Stubborn | Program::Chatty { .. } => return Lot::Runs,
        Program::RestartsAll { times: 0, .. } => return Lot::Loops,
        Program::RestartsAll { .. } => return Lot::Runs,
        Program::Broken => 128,
        Program::Exits { code, .. } => code,
    };
    match policy(pod) {
        "Never" => Lot::Ends { well: code == 0 },
        "OnFailure" if code == 0 => Lot::Ends { well: true },
        _ => Lot::Loops,
    }
}

fn forgets_its_start(container: &Container) -> bool {
    manners::of(container).hook(Ask::PostStart).is_some_and(|hook| hook.deed != Deed::Succeeds)
}

/// Whether a probe gives it up again and again.
fn is_given_up(container: &Container) -> bool {
    let manners = manners::of(container);
    let fails = |ask| manners.exam(ask).is_some_and(|exam| exam.health.in_the_end() == Some(false));
    fails(Ask::Startup) || fails(Ask::Liveness)
}

/// Whether a running container is ready after long enough; `None` if that changes for ever.
pub fn ready_in_the_end(container: &Container) -> Option<bool> {
    manners::of(container).exam(Ask::Readiness).map_or(Some(true), |exam| exam.health.in_the_end())
}

/// Whether there is always something new to tell of the pod, although nothing is done to it.
pub fn is_noisy(pod: &Pod) -> bool {
    let exams = |container: &Container| manners::of(container).exams;
    let mut all = sidecars(pod).chain(&spec(pod).containers).flat_map(exams);
    all.any(|exam| exam.health.in_the_end() != Some(true))
}

fn sidecars(pod: &Pod) -> impl Iterator<Item = &Container> {
    inits(pod).iter().filter(|init| init.restart_policy.is_some())
}

/// Whether the pod asks for more than the node has.
pub fn is_refused(pod: &Pod) -> bool {
    let cpu = |container: &Container| container.resources.as_ref()?.requests.as_ref()?.get("cpu").cloned();
    spec(pod).containers.iter().filter_map(cpu).any(|cpu| cpu.0 == "1000")
}

/// Whether the init containers of the pod let it pass; `None` if they try for ever, or may.
pub fn init_passes(pod: &Pod) -> Option<bool> {
    let ordinary = inits(pod).iter().filter(|init| init.restart_policy.is_none());
    let codes = ordinary.map(|init| Program::from_command(init.command.as_deref().unwrap_or_default()));
    let fails = codes.into_iter().any(|program| !matches!(program, Program::Exits { code: 0, .. }));
    let never_starts = |sidecar: &Container| {
        let startup = manners::of(sidecar).exam(Ask::Startup).and_then(|exam| exam.health.in_the_end());
        startup == Some(false)
    };
    if sidecars(pod).any(never_starts) {
        return None;
    }
    match (fails, policy(pod)) {
        (false, _) => Some(true),
        (true, "Never") => Some(false),
        (true, _) => None,
    }
}

pub fn pod_lot(pod: &Pod) -> PodLot {
    if is_refused(pod) || spec(pod).active_deadline_seconds.is_some() {
        return PodLot::Ends { well: false };
    }
    if sidecars(pod).chain(&spec(pod).containers).any(forgets_its_start) {
        return PodLot::Anyhow;
    }
    match init_passes(pod) {
        None => return PodLot::Restless,
        Some(false) => return PodLot::Ends { well: false },
        Some(true) => {}
    }
    let lots: Vec<_> = spec(pod).containers.iter().map(|container| lot(pod, container)).collect();
    let sidecars_loop = sidecars(pod).any(is_given_up);
    if lots.contains(&Lot::Loops) || (sidecars_loop && lots.contains(&Lot::Runs)) {
        PodLot::Restless
    } else if lots.contains(&Lot::Runs) {
        PodLot::Runs
    } else {
        PodLot::Ends { well: lots.iter().all(|lot| *lot == Lot::Ends { well: true }) }
    }
}
