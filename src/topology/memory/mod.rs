//! What upstream calls the memory manager, policy Static: memory of chosen NUMA nodes for the
//! containers of Guaranteed pods. The policy None is not to have one.
//!
//! No task and no I/O: a [`Provider`] beside that of CPUs. `layout.rs` is what the nodes have
//! to give, `request.rs` what a pod asks for, `ledger.rs` who has what, `hints.rs` where there
//! is room; `state.rs` reads and writes the text of the state file, `heal.rs` makes a state out
//! of what was recorded and what runs.
//!
//! In: the machine, reserved memory, pods. Out: hints, and the nodes each container is bound to
//! when it is created.
//!
//! Always true: of no memory of a node more is given than it has to give; a node that serves a
//! group of nodes together serves no other group, nor anybody alone; what a container has stays
//! where it is.
//!
//! Compared with upstream over random pods: the same, but for three cases in which upstream
//! breaks its own rules. A decision that names one node out of a group is extended to the group,
//! or refused; upstream mixes the two. A decision that overlaps a group is extended to it if
//! that is allowed; upstream refuses. What init containers leave counts as room also where the
//! decision came from the pod as a whole; upstream refuses pods that fit.

mod heal;
mod hints;
mod layout;
mod ledger;
mod request;
mod state;

#[cfg(test)]
mod tests;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::{Affinity, Ask, Failure, Hint, NumaSet, Provider, ResourceHints};
use crate::pod::PodUid;
use crate::pod::containers::{Role, init_containers, is_sidecar, regular_containers};

pub use heal::{Running, Warning, heal};
pub use layout::{Layout, LayoutError, Reservations};
pub use ledger::{Block, Entries, Misfit};
pub use state::{Recorded, Wrong, read, write};

use hints::Search;
use ledger::Ledger;
use request::Sizes;

/// Who has memory of which nodes.
#[derive(Clone, Debug)]
pub struct Static {
    ledger: Ledger,
    pinning: Pinning,
}

/// Counted since the start, for `kubelet_memory_manager_pinning_requests_total` and
/// `..._pinning_errors_total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pinning {
    pub requests: u64,
    pub errors: u64,
}

impl Static {
    /// Nothing is given yet.
    pub fn new(layout: Layout) -> Static {
        Static { ledger: Ledger::new(layout), pinning: Pinning::default() }
    }

    pub fn entries(&self) -> &Entries {
        self.ledger.entries()
    }

    /// The nodes the container is to be bound to. `None`: all of them.
    pub fn nodes_of(&self, uid: &PodUid, container: &str) -> Option<NumaSet> {
        let blocks = self.ledger.blocks(uid, container)?;
        Some(blocks.iter().fold(NumaSet::default(), |nodes, block| nodes.union(block.nodes)))
    }

    pub fn pinning(&self) -> Pinning {
        self.pinning
    }

    fn give(&mut self, ask: &Ask<'_>, container: &Container, affinity: Affinity) -> Result<(), String> {
        let sizes = request::of_container(container).map_err(|error| error.to_string())?;
        let nodes = self.choose(ask, container, &sizes, affinity)?;
        self.settle(ask, container, &sizes, nodes).map_err(|misfit| format!("[memorymanager] {misfit}"))
    }

    /// The nodes of the affinity, or more if those cannot serve the request.
    fn choose(&self, ask: &Ask<'_>, container: &Container, sizes: &Sizes, near: Affinity) -> Result<NumaSet, String> {
        let search = Search { ledger: &self.ledger, sizes, spare: self.spare(ask, container) };
        let (best, missing) = match near.nodes {
            Some(nodes) if search.has_room(nodes) => return Ok(nodes),
            Some(nodes) if search.would_fit(nodes) => {
                (search.best(nodes), "preferred hint violates NUMA node allocation")
            }
            Some(nodes) => (search.best(nodes), "failed to find NUMA nodes to extend the current topology hint"),
            None => (
                search.best(NumaSet::default()),
                "failed to get the default NUMA affinity, no NUMA nodes with enough memory is available",
            ),
        };
        let best = best.ok_or_else(|| format!("[memorymanager] {missing}"))?;
        if near.preferred && !best.preferred {
            let what = if near.nodes.is_some() { "extended" } else { "default" };
            return Err(format!("[memorymanager] failed to find the {what} preferred hint"));
        }
        // A search for a place names one.
        Ok(best.nodes.unwrap_or_default())
    }

    /// Books the request, first on what init containers before it leave behind.
    fn settle(&mut self, ask: &Ask<'_>, container: &Container, sizes: &Sizes, nodes: NumaSet) -> Result<(), Misfit> {
        let before = init_before(ask.pod, container);
        let blocks = sizes.iter().map(|(resource, bytes)| Block { nodes, resource: resource.clone(), bytes: *bytes });
        self.ledger.give(ask.uid, &container.name, blocks.collect(), &before)
    }

    /// What ordinary init containers that ran before still hold: they are done by the time the
    /// container starts, so that it may have theirs. Only of the very same nodes, as upstream.
    fn spare(&self, ask: &Ask<'_>, container: &Container) -> Vec<Block> {
        let before = init_before(ask.pod, container);
        before.iter().filter_map(|name| self.ledger.blocks(ask.uid, name)).flatten().cloned().collect()
    }

    /// A container that was found running, bound to nodes that no record names, has an entry
    /// without size. Now that its pod is known the size is. If there is no room for it the
    /// container runs there all the same, and is not to be stopped for the sake of the books.
    fn fill_in(&mut self, ask: &Ask<'_>, container: &Container, nodes: NumaSet) {
        let Ok(sizes) = request::of_container(container) else {
            return;
        };
        let Some(found) = self.ledger.take(ask.uid, &container.name) else {
            return;
        };
        if self.settle(ask, container, &sizes, nodes).is_err() {
            self.ledger.give(ask.uid, &container.name, found, &[]).expect("it was there a moment ago");
        }
    }

    /// An init container whose memory was taken back when the containers after it started.
    fn is_over(&self, ask: &Ask<'_>, role: Role) -> bool {
        let holds = |container: &Container| self.ledger.blocks(ask.uid, &container.name).is_some();
        role == Role::Init && regular_containers(ask.pod).iter().any(holds)
    }

    fn container_hints(&self, ask: &Ask<'_>, role: Role, container: &Container) -> Vec<ResourceHints> {
        let Ok(sizes) = request::of_container(container) else {
            return Vec::new();
        };
        if let Some(nodes) = self.nodes_of(ask.uid, &container.name) {
            return hints_for(&sizes, vec![Hint { nodes: Some(nodes), preferred: true }]);
        }
        if self.is_over(ask, role) {
            return Vec::new();
        }
        let search = Search { ledger: &self.ledger, sizes: &sizes, spare: self.spare(ask, container) };
        hints_for(&sizes, search.hints().collect())
    }

    fn pod_hints(&self, ask: &Ask<'_>) -> Vec<ResourceHints> {
        let Ok(sizes) = request::of_pod(ask.pod) else {
            return Vec::new();
        };
        let mut held = self.ledger.of_pod(ask.uid).map(|block| block.nodes);
        match held.next() {
            None => {
                let search = Search { ledger: &self.ledger, sizes: &sizes, spare: Vec::new() };
                hints_for(&sizes, search.hints().collect())
            }
            // What has a place keeps it, and the rest of the pod is best off beside it.
            Some(nodes) if held.all(|other| other == nodes) => {
                hints_for(&sizes, vec![Hint { nodes: Some(nodes), preferred: true }])
            }
            Some(_) => Vec::new(),
        }
    }
}

/// All kinds of memory of a request lie on the same nodes. If there is no such place the
/// provider keeps silent, as upstream's does, and says so when it is to allocate: in that way
/// the pod learns that there is not enough memory, rather than of its locality.
fn hints_for(sizes: &Sizes, hints: Vec<Hint>) -> Vec<ResourceHints> {
    if hints.is_empty() {
        return Vec::new();
    }
    sizes.keys().map(|resource| ResourceHints { resource: resource.clone(), hints: hints.clone() }).collect()
}

/// The names of the ordinary init containers before this one.
fn init_before<'a>(pod: &'a Pod, container: &Container) -> Vec<&'a str> {
    let before = init_containers(pod).iter().take_while(|init| init.name != container.name);
    before.filter(|init| !is_sidecar(init)).map(|init| init.name.as_str()).collect()
}

impl Provider for Static {
    fn hints(&self, ask: &Ask<'_>) -> Vec<ResourceHints> {
        if !request::is_eligible(ask.pod) {
            return Vec::new();
        }
        match ask.container {
            Some((role, container)) => self.container_hints(ask, role, container),
            None => self.pod_hints(ask),
        }
    }

    fn allocate(&mut self, ask: &Ask<'_>, affinity: Affinity) -> Result<(), Failure> {
        let Some((role, container)) = ask.container else {
            return Ok(());
        };
        if !request::is_eligible(ask.pod) {
            // It can only have been found running on chosen nodes, which was not our choice.
            self.ledger.take(ask.uid, &container.name);
            return Ok(());
        }
        self.pinning.requests += 1;
        if let Some(blocks) = self.ledger.blocks(ask.uid, &container.name) {
            let without_size = role != Role::Init && blocks.iter().all(|block| block.bytes == 0);
            if let Some(block) = blocks.first().filter(|_| without_size) {
                let nodes = block.nodes;
                self.fill_in(ask, container, nodes);
            }
            return Ok(());
        }
        if self.is_over(ask, role) {
            return Ok(());
        }
        self.give(ask, container, affinity).map_err(|error| {
            self.pinning.errors += 1;
            let message = format!("Allocate failed due to {error}, which is unexpected");
            Failure { reason: "UnexpectedAdmissionError", message }
        })
    }

    fn release(&mut self, uid: &PodUid) {
        self.ledger.release(uid);
    }
}
