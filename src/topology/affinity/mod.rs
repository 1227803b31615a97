//! What upstream calls the topology manager: decides on which NUMA nodes a container, or a pod
//! as a whole, is served by all providers together, and has them allocate there.
//!
//! No task: admission calls [`Aligner::place`] for one pod at a time. `merge.rs` finds the best
//! place from the hints, `place.rs` walks containers and providers.
//!
//! In: the configured policy, the machine's nodes and distances, the providers' hints.
//! Out: allocations inside the providers, or the reason why there are none; figures for metrics.
//!
//! Always true: the place found is the one upstream finds from the same hints; a pod that is
//! refused holds nothing in any provider.

mod merge;
mod place;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::config::{TopologyManagerPolicy as Policy, TopologyManagerScope as Scope};

use super::{Affinity, Hint, NumaSet, ResourceHints};
use crate::host::Machine;

pub use place::{Placed, Tally};

/// The number of NUMA nodes up to which nobody has to say that they accept the cost.
const NODES_MAX_DEFAULT: u32 = 8;

/// Places are sets of nodes, and there are twice as many with each: beyond this nobody can wait for them.
pub(super) const NODES_SEARCHED_MAX: usize = 16;

const NODES_MAX: &str = "max-allowable-numa-nodes";
const PREFER_CLOSEST: &str = "prefer-closest-numa-nodes";

/// Why no pod could be aligned on this machine as configured: reasons not to start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AlignerError {
    #[error(
        "topologyManagerPolicyOptions[\"{NODES_MAX}\"] is {allowed}, but the machine has {found} NUMA nodes: \
         raise it, or set topologyManagerPolicy to none"
    )]
    TooManyNodes { allowed: u32, found: usize },
    #[error(
        "the machine has {found} NUMA nodes; beyond {NODES_SEARCHED_MAX} set topologyManagerPolicy to none, \
         whatever topologyManagerPolicyOptions[\"{NODES_MAX}\"] allows"
    )]
    TooManyToSearch { found: usize },
    #[error("NUMA node {node} of the machine has a number above {}, which no topologyManagerPolicy but none can work with", NumaSet::NODES_MAX - 1)]
    NodeNumber { node: u32 },
    #[error(
        "topologyManagerPolicyOptions[\"{PREFER_CLOSEST}\"] needs the distances between NUMA nodes, \
         and the machine does not tell those of node {node}"
    )]
    NoDistances { node: u32 },
    #[error("topologyManagerPolicyOptions[\"{option}\"]: {value:?} is not a value it can have")]
    Option { option: &'static str, value: String },
}

/// The topology policy of this node on this machine.
#[derive(Clone, Debug)]
pub struct Aligner {
    policy: Policy,
    scope: Scope,
    /// All nodes of the machine.
    all: NumaSet,
    /// Of whom nearness decides among places of the same size.
    distances: Option<Distances>,
}

impl Aligner {
    pub fn new(
        policy: Policy,
        scope: Scope,
        options: &BTreeMap<String, String>,
        machine: &Machine,
    ) -> Result<Aligner, AlignerError> {
        let all = machine.nodes.iter().map(|node| node.id).collect();
        if policy == Policy::None {
            return Ok(Aligner { policy, scope, all, distances: None });
        }
        let allowed = option(options, NODES_MAX, NODES_MAX_DEFAULT, |value| value.parse().ok())?;
        let found = machine.nodes.len();
        if found > allowed as usize {
            return Err(AlignerError::TooManyNodes { allowed, found });
        }
        if found > NODES_SEARCHED_MAX {
            return Err(AlignerError::TooManyToSearch { found });
        }
        if let Some(node) = machine.nodes.iter().find(|node| node.id >= NumaSet::NODES_MAX) {
            return Err(AlignerError::NodeNumber { node: node.id });
        }
        let boolean = |value: &str| crate::config::flags::boolean(value).ok();
        let wanted = option(options, PREFER_CLOSEST, false, boolean)?;
        // Where only single nodes are taken, none of them is closer to itself than another.
        let counts = wanted && policy != Policy::SingleNumaNode;
        let distances = wanted.then(|| Distances::of(machine)).transpose()?.filter(|_| counts);
        Ok(Aligner { policy, scope, all, distances })
    }

    /// The best place for a request, and whether it is good enough for the policy. `hints` are
    /// those of all providers; providers and resources that do not mind are not among them.
    pub fn decide(&self, hints: &[ResourceHints]) -> (Affinity, bool) {
        let lists = || hints.iter().map(|resource| merge::choices(&resource.hints));
        let best = |lists: &[Vec<Hint>]| merge::best(self.all, self.distances.as_ref(), lists);
        match self.policy {
            Policy::None => (Hint { nodes: None, preferred: false }, true),
            Policy::BestEffort => (best(&lists().collect::<Vec<_>>()), true),
            Policy::Restricted => {
                let best = best(&lists().collect::<Vec<_>>());
                (best, best.preferred)
            }
            Policy::SingleNumaNode => {
                let mut best = best(&lists().map(on_one_node).collect::<Vec<_>>());
                // As upstream: on a machine of one node as well as where nothing was found, the
                // providers shall look for themselves.
                if best.nodes == Some(self.all) {
                    best.nodes = None;
                }
                (best, best.preferred)
            }
        }
    }
}

/// Those of the hints that the policy single-numa-node looks at.
fn on_one_node(mut hints: Vec<Hint>) -> Vec<Hint> {
    hints.retain(|hint| hint.preferred && hint.nodes.is_none_or(|nodes| nodes.len() == 1));
    hints
}

fn option<T>(
    options: &BTreeMap<String, String>,
    name: &'static str,
    default: T,
    read: impl Fn(&str) -> Option<T>,
) -> Result<T, AlignerError> {
    let Some(value) = options.get(name) else {
        return Ok(default);
    };
    read(value).ok_or_else(|| AlignerError::Option { option: name, value: value.clone() })
}

/// How far the nodes are from each other, by their numbers.
#[derive(Clone, Debug)]
struct Distances(BTreeMap<(u32, u32), u32>);

impl Distances {
    fn of(machine: &Machine) -> Result<Distances, AlignerError> {
        let mut distances = BTreeMap::new();
        for node in &machine.nodes {
            if node.distances.len() < machine.nodes.len() {
                return Err(AlignerError::NoDistances { node: node.id });
            }
            let to = machine.nodes.iter().zip(&node.distances);
            distances.extend(to.map(|(other, distance)| ((node.id, other.id), *distance)));
        }
        Ok(Distances(distances))
    }

    /// The sum over all pairs, each counted both ways: orders sets of the same size as their
    /// mean distance does.
    fn sum(&self, nodes: NumaSet) -> u64 {
        let distance = |from, to| u64::from(self.0.get(&(from, to)).copied().unwrap_or(0));
        nodes.iter().map(|from| nodes.iter().map(|to| distance(from, to)).sum::<u64>()).sum()
    }
}
