//! Where there is room for a request.

use super::super::{Hint, NumaSet};
use super::ledger::{Block, Ledger, spare_bytes};
use super::request::Sizes;

/// How many sets of nodes are looked at: all there are on machines of up to 16 nodes. On
/// larger ones, of which upstream counts all sets until it runs out of memory, the largest sets
/// are not found.
const SETS_MAX: usize = (1 << 16) - 1;

pub struct Search<'a> {
    pub ledger: &'a Ledger,
    pub sizes: &'a Sizes,
    /// What the request may have beside what is free.
    pub spare: Vec<Block>,
}

impl Search<'_> {
    /// The places that have room, smaller ones first. Those are preferred that are no larger
    /// than the request would need on an empty machine.
    pub fn hints(&self) -> impl Iterator<Item = Hint> {
        let nodes = self.ledger.layout().nodes();
        let mut size_needed = None;
        let large_enough =
            |nodes: &NumaSet| self.all_sizes(|resource| self.ledger.layout().allocatable(*nodes, resource));
        let hint = move |nodes: NumaSet| {
            let needed = *size_needed.get_or_insert(nodes.len());
            let preferred = nodes.len() == needed;
            self.has_room(nodes).then_some(Hint { nodes: Some(nodes), preferred })
        };
        // On most refusals the whole machine is too small or too full: no need to look at its parts.
        let sets = if large_enough(&nodes) { SETS_MAX } else { 0 };
        sets_of(nodes).take(sets).filter(large_enough).filter_map(hint)
    }

    /// The best place that includes `nodes`.
    pub fn best(&self, nodes: NumaSet) -> Option<Hint> {
        // A preferred place has the least size, so it comes before those that are not.
        self.hints().find(|hint| hint.nodes.is_some_and(|place| nodes.is_subset(place)))
    }

    pub fn has_room(&self, nodes: NumaSet) -> bool {
        self.ledger.is_open(nodes) && self.would_fit(nodes)
    }

    /// Whether the nodes have enough left, whomever else they serve.
    pub fn would_fit(&self, nodes: NumaSet) -> bool {
        let spare = |resource: &str| spare_bytes(self.spare.iter(), nodes, resource);
        !nodes.is_empty()
            && self.all_sizes(|resource| self.ledger.free(nodes, resource).saturating_add(spare(resource)))
    }

    fn all_sizes(&self, there: impl Fn(&str) -> u64) -> bool {
        self.sizes.iter().all(|(resource, bytes)| there(resource) >= *bytes)
    }
}

/// All sets of some of `nodes`: the smaller ones first, and of the same size those with lower
/// numbers first.
fn sets_of(nodes: NumaSet) -> impl Iterator<Item = NumaSet> {
    let nodes: Vec<u32> = nodes.iter().collect();
    let count = nodes.len();
    let set = move |picked: u128| (0..count).filter(|bit| picked >> bit & 1 == 1).map(|bit| nodes[bit]).collect();
    let sizes = (1..=count).map(|size| (1_u128 << size) - 1);
    let of_size = move |first| std::iter::successors(Some(first), |picked| Some(next_of_same_size(*picked)));
    sizes.flat_map(move |first| of_size(first).take_while(move |picked| picked >> count == 0)).map(set)
}

/// The next higher number with as many bits: the lowest run of ones loses its top bit to the
/// zero above it, and the rest of the run moves to the bottom.
fn next_of_same_size(bits: u128) -> u128 {
    let lowest = bits & bits.wrapping_neg();
    let moved = bits + lowest;
    let rest = (bits ^ moved) >> (lowest.trailing_zeros() + 2);
    moved | rest
}
