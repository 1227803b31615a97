//! The best place for a request, from lists of places of which one per resource is taken.
//!
//! Upstream walks all combinations, one hint out of each list, which grows exponentially with
//! the number of resources. But what comes out of a combination is only the nodes that its
//! hints have in common and whether it is preferred, and the best of all outcomes does not
//! depend on the order in which they are seen. So it is enough to know which outcomes there
//! are: at most one per set of nodes, however many resources are asked for.

use std::cmp::Ordering;

use super::super::{Hint, NumaSet};
use super::Distances;

const ANYWHERE: Option<NumaSet> = None;

/// Nodes up to which common nodes are counted over all sets there are; for more of them the
/// tables for that would be larger than any list of hints.
const DENSE_NODES_MAX: usize = 16;

/// What a list of hints means. No place at all is anywhere, but not to anybody's liking: that
/// way the policy refuses, or the provider does when it is asked to allocate.
pub(super) fn choices(hints: &[Hint]) -> Vec<Hint> {
    match hints {
        [] => vec![Hint { nodes: ANYWHERE, preferred: false }],
        hints => hints.to_vec(),
    }
}

/// `all` if there is no common node whatever is taken.
pub(super) fn best(all: NumaSet, distances: Option<&Distances>, lists: &[Vec<Hint>]) -> Hint {
    let fit = |nodes: NumaSet| Fit { size: nodes.len(), spread: distances.map_or(0, |d| d.sum(nodes)), nodes };
    if let Some(fit) = preferred(all, lists).into_iter().map(fit).min() {
        return Hint { nodes: Some(fit.nodes), preferred: true };
    }
    let size = size_needed(lists);
    let nearest = common(all, lists).into_iter().map(|nodes| (distance_to(size, nodes.len()), fit(nodes))).min();
    Hint { nodes: Some(nearest.map_or(all, |(_, fit)| fit.nodes)), preferred: false }
}

/// Orders places: fewer nodes, then nodes closer together if that counts, then lower numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Fit {
    size: usize,
    spread: u64,
    nodes: NumaSet,
}

/// What can be had when all hints taken are preferred and name the same nodes, save for those
/// that name none.
fn preferred(all: NumaSet, lists: &[Vec<Hint>]) -> Vec<NumaSet> {
    let lists: Vec<Preferred> = lists.iter().map(|hints| Preferred::of(hints)).collect();
    let everybody_takes = |nodes: &NumaSet| lists.iter().all(|list| list.takes(*nodes));
    let mut places: Vec<NumaSet> =
        lists.iter().flat_map(|list| &list.places).copied().filter(everybody_takes).collect();
    places.extend(lists.iter().all(|list| list.anywhere).then_some(all));
    // Upstream compares places before it leaves out nodes that the machine does not have.
    places.iter().map(|nodes| nodes.intersection(all)).filter(|nodes| !nodes.is_empty()).collect()
}

/// The preferred ones of a list of hints.
struct Preferred {
    anywhere: bool,
    /// Sorted.
    places: Vec<NumaSet>,
}

impl Preferred {
    fn of(hints: &[Hint]) -> Preferred {
        let preferred = || hints.iter().filter(|hint| hint.preferred);
        let mut places: Vec<NumaSet> = preferred().filter_map(|hint| hint.nodes).collect();
        places.sort_unstable();
        Preferred { anywhere: preferred().any(|hint| hint.nodes == ANYWHERE), places }
    }

    fn takes(&self, nodes: NumaSet) -> bool {
        self.anywhere || self.places.binary_search(&nodes).is_ok()
    }
}

/// The number of nodes that the most demanding resource cannot do without.
fn size_needed(lists: &[Vec<Hint>]) -> usize {
    let least = |hints: &Vec<Hint>| hints.iter().filter_map(|hint| hint.nodes).map(NumaSet::len).min();
    lists.iter().filter_map(least).max().unwrap_or(0)
}

/// Orders sizes of places that are not preferred: first the size needed, then what comes
/// closest from below, since more nodes may be added to it, then what comes closest from above.
fn distance_to(needed: usize, size: usize) -> (u8, usize) {
    match size.cmp(&needed) {
        Ordering::Equal => (0, 0),
        Ordering::Less => (1, needed - size),
        Ordering::Greater => (2, size - needed),
    }
}

/// All sets of nodes, save for the empty one, that hints taken one per list have in common.
fn common(all: NumaSet, lists: &[Vec<Hint>]) -> Vec<NumaSet> {
    let mut common = vec![all];
    for hints in lists {
        let places = hints.iter().map(|hint| hint.nodes.unwrap_or(all).intersection(all));
        common = intersections(all, &common, &distinct(places.collect()));
    }
    common
}

/// What each of `some` has in common with each of `others`.
fn intersections(all: NumaSet, some: &[NumaSet], others: &[NumaSet]) -> Vec<NumaSet> {
    let nodes = all.len();
    if nodes <= DENSE_NODES_MAX && some.len() * others.len() > nodes << nodes {
        return counted_intersections(all, some, others);
    }
    distinct(some.iter().flat_map(|one| others.iter().map(|other| one.intersection(*other))).collect())
}

fn distinct(mut sets: Vec<NumaSet>) -> Vec<NumaSet> {
    sets.retain(|nodes| !nodes.is_empty());
    sets.sort_unstable();
    sets.dedup();
    sets
}

/// The same for long lists, without looking at each pair. A pair has at least the nodes of S in
/// common if both its sets include S: the number of such pairs is a product of two numbers that
/// are cheap to count for all S at once, and from it follows, by taking away pairs that have
/// more in common, for how many it is exactly S.
fn counted_intersections(all: NumaSet, some: &[NumaSet], others: &[NumaSet]) -> Vec<NumaSet> {
    let nodes: Vec<u32> = all.iter().collect();
    let including = |sets: &[NumaSet]| {
        let mut counts = vec![0_u64; 1 << nodes.len()];
        for set in sets {
            let index = (0..nodes.len()).filter(|bit| set.contains(nodes[*bit])).fold(0, |index, bit| index | 1 << bit);
            counts[index] += 1;
        }
        for_supersets(&mut counts, nodes.len(), |count, more| *count += more);
        counts
    };
    let mut pairs = including(some);
    for (pairs, others) in pairs.iter_mut().zip(including(others)) {
        *pairs *= others;
    }
    for_supersets(&mut pairs, nodes.len(), |count, more| *count -= more);
    let set = |index: usize| (0..nodes.len()).filter(|bit| index & 1 << bit != 0).map(|bit| nodes[bit]).collect();
    (1..pairs.len()).filter(|index| pairs[*index] > 0).map(set).collect()
}

/// For each node in turn, gives each set without it the count of the set with it.
fn for_supersets(counts: &mut [u64], nodes: usize, change: impl Fn(&mut u64, u64)) {
    for bit in 0..nodes {
        for index in (0..counts.len()).filter(|index| index & 1 << bit == 0) {
            let with = counts[index | 1 << bit];
            change(&mut counts[index], with);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long lists are met by counting; both ways must come to the same.
    #[test]
    fn counting_common_nodes_finds_what_looking_at_pairs_finds() {
        let mut rng = fastrand::Rng::with_seed(8);
        for _ in 0..300 {
            let all: NumaSet = (0..7).map(|n| n * rng.u32(1..9)).collect();
            let mut sets = || -> Vec<NumaSet> {
                (0..rng.usize(1..90)).map(|_| all.iter().filter(|_| rng.u8(..3) > 0).collect()).collect()
            };
            let (some, others) = (distinct(sets()), distinct(sets()));
            let pairs = some.iter().flat_map(|one| others.iter().map(|other| one.intersection(*other)));
            let mut counted = counted_intersections(all, &some, &others);
            counted.sort_unstable();
            assert_eq!(counted, distinct(pairs.collect()), "{some:?} with {others:?}");
        }
    }
}
