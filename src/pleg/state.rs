//! What the runtime holds of one pod, as of its last read.

use std::net::IpAddr;

use crate::cri::{Container, ContainerState, Sandbox, SandboxState};

/// One pod in the runtime: the input of the plan and of the status, never of both halves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRuntime {
    /// Newest first, by attempt.
    pub sandboxes: Vec<Sandbox>,
    /// All instances of all containers, newest first, by attempt and then creation.
    /// `Exit::message` holds the termination message, already read from its file.
    pub containers: Vec<Container>,
}

impl PodRuntime {
    pub fn is_empty(&self) -> bool {
        self.sandboxes.is_empty() && self.containers.is_empty()
    }

    /// The sandbox that counts; older ones are leftovers.
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first()
    }

    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandbox().filter(|sandbox| sandbox.state == SandboxState::Ready)
    }

    pub fn ips(&self) -> &[IpAddr] {
        self.ready_sandbox().map_or(&[], |sandbox| &sandbox.ips)
    }

    /// Instances of one container, newest first.
    pub fn instances<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Container> {
        self.containers.iter().filter(move |container| container.name == name)
    }

    pub fn newest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// Anything that may still execute: running, or in a state the runtime cannot name.
    pub fn may_run(&self) -> impl Iterator<Item = &Container> {
        self.containers
            .iter()
            .filter(|container| matches!(container.state, ContainerState::Running { .. } | ContainerState::Unknown))
    }

    /// Something came, began or ended that was not so `before`.
    pub fn has_more_than(&self, before: &PodRuntime) -> bool {
        let is_known = |container: &Container| {
            before.containers.iter().any(|known| known.id == container.id && known.kind() == container.kind())
        };
        let is_known_sandbox = |sandbox: &Sandbox| {
            before.sandboxes.iter().any(|known| known.id == sandbox.id && known.state == sandbox.state)
        };
        !self.containers.iter().all(is_known) || !self.sandboxes.iter().all(is_known_sandbox)
    }

    /// Puts both lists in their documented order.
    pub fn sorted(mut self) -> Self {
        self.sandboxes.sort_by(|a, b| (b.attempt, b.created_at, &b.id).cmp(&(a.attempt, a.created_at, &a.id)));
        self.containers.sort_by(|a, b| (b.attempt, b.created_at, &b.id).cmp(&(a.attempt, a.created_at, &a.id)));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::testing::{container, exited, running, sandbox};

    #[test]
    fn what_only_goes_is_not_more() {
        let with =
            |state, containers: Vec<Container>| PodRuntime { sandboxes: vec![sandbox("s", 0, state)], containers };
        let (dead, created) = (|| SandboxState::NotReady, || ContainerState::Created);
        let before = with(dead(), vec![container("a", 0, exited(0)), container("b", 0, created())]);
        assert!(!before.has_more_than(&before));
        assert!(!PodRuntime::default().has_more_than(&before));
        assert!(!with(dead(), vec![container("a", 0, exited(0))]).has_more_than(&before));
        for state in [running(), exited(0)] {
            assert!(with(dead(), vec![container("b", 0, state)]).has_more_than(&before), "it has begun");
        }
        assert!(with(dead(), vec![container("c", 0, created())]).has_more_than(&before));
        assert!(with(SandboxState::Ready, Vec::new()).has_more_than(&before));
    }
}
