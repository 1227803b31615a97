//! Where on the machine a container runs: CPUs of its own, memory of chosen NUMA nodes, and
//! that the two are close to each other. Upstream calls these rooms the CPU manager, the memory
//! manager and the topology manager.
//!
//! Each kind of resource is a [`Provider`]: it says by [`Hint`]s where it could serve a
//! container, and allocates once the affinity is decided. Providers are pure state machines:
//! they read no file and ask no runtime.
//!
//! Always true: nothing is given to two containers; what a pod was given is its own until it is
//! released as a whole; a pod that is refused holds nothing.

pub mod affinity;
pub mod cpus;
mod keep;
mod manager;
pub mod memory;
mod places;
mod running;
#[cfg(test)]
mod tests;

use std::fmt;

pub use keep::{Keeper, TopologyConfig, begin};
pub use manager::Topology;
pub use places::{Place, Places};
pub use running::Running;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::pod::PodUid;
use crate::pod::containers::Role;

/// A set of NUMA nodes; the kernel numbers up to 64 of them on the machines we know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NumaSet(u64);

impl NumaSet {
    pub const NODES_MAX: u32 = u64::BITS;

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Nodes from [`Self::NODES_MAX`] on are in no set.
    pub fn contains(self, node: u32) -> bool {
        node < Self::NODES_MAX && self.0 & (1 << node) != 0
    }

    pub fn is_subset(self, of: NumaSet) -> bool {
        self.0 & !of.0 == 0
    }

    pub fn union(self, other: NumaSet) -> NumaSet {
        NumaSet(self.0 | other.0)
    }

    pub fn intersection(self, other: NumaSet) -> NumaSet {
        NumaSet(self.0 & other.0)
    }

    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..Self::NODES_MAX).filter(move |node| self.contains(*node))
    }

    /// As a number, in which lower nodes count less: the order among sets of the same size.
    pub fn mask(self) -> u64 {
        self.0
    }
}

impl FromIterator<u32> for NumaSet {
    fn from_iter<I: IntoIterator<Item = u32>>(nodes: I) -> Self {
        NumaSet(nodes.into_iter().filter(|node| *node < Self::NODES_MAX).fold(0, |mask, node| mask | 1 << node))
    }
}

/// The kernel's list notation without ranges, `0,1`.
impl fmt::Display for NumaSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for node in self.iter() {
            write!(f, "{separator}{node}")?;
            separator = ",";
        }
        Ok(())
    }
}

/// One place where a request could be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// `None` is anywhere.
    pub nodes: Option<NumaSet>,
    /// It is as close together as this request can be on this machine.
    pub preferred: bool,
}

/// What a provider says of one resource of a request. No hints at all is a refusal; who does not
/// mind where has no `ResourceHints`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceHints {
    pub resource: String,
    pub hints: Vec<Hint>,
}

/// What was decided for a request: the best of the merged hints.
pub type Affinity = Hint;

/// Of whom hints and resources are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub uid: &'a PodUid,
    pub pod: &'a Pod,
    /// `None` asks for the pod as a whole, which only hints can be.
    pub container: Option<(Role, &'a Container)>,
}

/// Why an allocation failed, with upstream's reason and text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: &'static str,
    pub message: String,
}

/// What a state file says that can be used, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded<E, W> {
    /// Each for itself; healing sees whether they are possible together.
    pub entries: E,
    pub wrong: Vec<W>,
}

impl<E: Default, W> Default for Recorded<E, W> {
    fn default() -> Self {
        Recorded { entries: E::default(), wrong: Vec::new() }
    }
}

/// One kind of resource that has a place on the machine.
pub trait Provider: Send {
    /// Where the request could be served; resources whose place does not matter are left out.
    fn hints(&self, ask: &Ask<'_>) -> Vec<ResourceHints>;
    /// Gives a container what it asked for, near `affinity` if there is one. Again for the same
    /// container: what it has already. Failed: nothing has changed.
    fn allocate(&mut self, ask: &Ask<'_>, affinity: Affinity) -> Result<(), Failure>;
    /// Takes back all that the pod has.
    fn release(&mut self, uid: &PodUid);
}
