//! The phase of a pod, from the statuses of its containers.

use k8s_openapi::api::core::v1::{Container, ContainerStatus};

use super::containers::RESTARTING_ALL;
use super::containers::Statuses;
use super::restart::Restarts;
use crate::pod::containers::{init_containers, is_sidecar, regular_containers};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Pending => "Pending",
            Phase::Running => "Running",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
        }
    }

    pub fn parse(text: &str) -> Option<Phase> {
        match text {
            "Pending" => Some(Phase::Pending),
            "Running" => Some(Phase::Running),
            "Succeeded" => Some(Phase::Succeeded),
            "Failed" => Some(Phase::Failed),
            _ => None,
        }
    }

    /// Nothing of the pod will run any more.
    pub fn is_terminal(self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed)
    }
}

/// What a container's status means for the phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stand {
    Running,
    /// Exited, and perhaps waiting to be started again.
    Stopped {
        exit_code: i32,
        waiting: bool,
        /// It was removed so that all containers may begin anew.
        removed_for_all: bool,
    },
    /// Never ran.
    Waiting,
    Missing,
}

fn stand(status: Option<&ContainerStatus>) -> Stand {
    let Some(status) = status else {
        return Stand::Missing;
    };
    let Some(state) = &status.state else {
        return Stand::Missing;
    };
    let last = status.last_state.as_ref().and_then(|last| last.terminated.as_ref());
    match (&state.running, &state.terminated, last) {
        (Some(_), _, _) => Stand::Running,
        (None, Some(exit), _) => Stand::Stopped { exit_code: exit.exit_code, waiting: false, removed_for_all: false },
        (None, None, Some(exit)) if state.waiting.is_some() => {
            let removed_for_all = exit.reason.as_deref() == Some(RESTARTING_ALL);
            Stand::Stopped { exit_code: exit.exit_code, waiting: true, removed_for_all }
        }
        (None, None, _) if state.waiting.is_some() => Stand::Waiting,
        (None, None, _) => Stand::Missing,
    }
}

#[derive(Default)]
struct Tally {
    /// Whatever has ended begins anew.
    restarting_all: bool,
    running: usize,
    stopped: usize,
    succeeded: usize,
    waiting: usize,
    missing: usize,
    restartable: bool,
    /// Ordinary init containers that have yet to end, and sidecars that have yet to start.
    pending_init: usize,
    pending_sidecars: usize,
    failed_init: bool,
}

/// The phase that follows from the containers alone. `ended` says that the worker is through
/// with a pod of the API, so that nothing will be restarted.
pub(super) fn phase(restarts: Restarts<'_>, statuses: &Statuses, ended: bool) -> Phase {
    let tally = tally(restarts, statuses);
    let initialized = statuses.any_regular_started();
    if tally.failed_init {
        return Phase::Failed;
    }
    if tally.pending_init > 0 || (tally.pending_sidecars > 0 && !initialized) || tally.waiting > 0 {
        return Phase::Pending;
    }
    if tally.missing > 0 {
        return Phase::Pending;
    }
    if tally.running > 0 {
        return Phase::Running;
    }
    match tally.stopped {
        0 => Phase::Pending,
        _ if tally.restartable && !ended => Phase::Running,
        stopped if stopped == tally.succeeded => Phase::Succeeded,
        _ => Phase::Failed,
    }
}

fn tally(restarts: Restarts<'_>, statuses: &Statuses) -> Tally {
    let mut tally = Tally { restarting_all: statuses.restarting_all, ..Tally::default() };
    for container in init_containers(restarts.pod) {
        let status = statuses.init(&container.name);
        if is_sidecar(container) {
            tally.sidecar(status);
        } else {
            tally.init(restarts, container, status);
        }
    }
    for container in regular_containers(restarts.pod) {
        tally.regular(restarts, container, statuses.regular(&container.name));
    }
    tally
}

impl Tally {
    fn init(&mut self, restarts: Restarts<'_>, container: &Container, status: Option<&ContainerStatus>) {
        match stand(status) {
            Stand::Stopped { exit_code: 0, .. } => {}
            Stand::Stopped { exit_code, removed_for_all, .. } => {
                if self.restarting_all || removed_for_all || restarts.restartable(container, exit_code) {
                    self.pending_init += 1;
                } else {
                    self.failed_init = true;
                }
            }
            Stand::Running | Stand::Waiting | Stand::Missing => self.pending_init += 1,
        }
    }

    fn sidecar(&mut self, status: Option<&ContainerStatus>) {
        match stand(status) {
            Stand::Running => {
                self.running += 1;
                if status.and_then(|status| status.started) != Some(true) {
                    self.pending_sidecars += 1;
                }
            }
            Stand::Waiting => {
                self.pending_sidecars += 1;
                self.waiting += 1;
            }
            Stand::Missing => self.missing += 1,
            // A sidecar that ended says nothing about the pod.
            Stand::Stopped { .. } => {}
        }
    }

    fn regular(&mut self, restarts: Restarts<'_>, container: &Container, status: Option<&ContainerStatus>) {
        match stand(status) {
            Stand::Running => self.running += 1,
            Stand::Waiting => self.waiting += 1,
            Stand::Missing => self.missing += 1,
            Stand::Stopped { exit_code, waiting, removed_for_all } => {
                self.stopped += 1;
                self.restartable |=
                    self.restarting_all || removed_for_all || restarts.restartable(container, exit_code);
                if exit_code == 0 && !waiting {
                    self.succeeded += 1;
                }
            }
        }
    }
}
