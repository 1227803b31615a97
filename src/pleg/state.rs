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

    /// Puts both lists in their documented order.
    pub fn sorted(mut self) -> Self {
        self.sandboxes.sort_by(|a, b| (b.attempt, b.created_at, &b.id).cmp(&(a.attempt, a.created_at, &a.id)));
        self.containers.sort_by(|a, b| (b.attempt, b.created_at, &b.id).cmp(&(a.attempt, a.created_at, &a.id)));
        self
    }
}
