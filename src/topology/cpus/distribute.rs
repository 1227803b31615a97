//! Evenly over NUMA nodes: as few of them as can give the same number each, and of those that can,
//! the ones after which the nodes are as evenly free as possible.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::choose::{Options, TooFew, pack};
use super::units::{Kind, Units};
use crate::config::CpuSet;
use crate::host::Machine;

/// Free CPUs by NUMA node.
type Free = BTreeMap<u32, usize>;

/// The ways to spread double with every node. On machines with more than upstream's topology manager takes,
/// those with most room are looked at.
const NODES_MAX: usize = 8;

/// A way to spread a request.
struct Spread {
    nodes: Vec<u32>,
    /// What each of them gives.
    each: usize,
    /// Those that give what does not go into equal parts, a group at a time.
    odd: Vec<u32>,
}

pub fn over_nodes(machine: &Machine, free: &CpuSet, count: usize, options: &Options) -> Result<CpuSet, TooFew> {
    // A cache is no concern of what is spread over nodes.
    let options = &Options { by_cache: false, ..*options };
    let units = Units::new(machine, free);
    let group = if options.full_cores_only { units.cpus_per_core() } else { 1 };
    let all: Free =
        units.order(Kind::Node).into_iter().map(|node| (node, units.free(Kind::Node, node).len())).collect();
    if count == 0 || count > free.len() || !count.is_multiple_of(group) {
        return pack(machine, free, count, options);
    }
    let groups = count.div_ceil(group);
    let groups_per_node = machine.cpus.len().div_ceil(group).div_ceil(units.count(Kind::Node).max(1));
    let order = roomiest(&all, units.order(Kind::Node));
    for nodes in groups.div_ceil(groups_per_node.max(1))..=groups.min(order.len()) {
        if let Some(spread) = best(&all, &order, nodes, count, group) {
            return take(machine, free, count, group, options, &spread);
        }
    }
    pack(machine, free, count, options)
}

/// As many of the nodes as are looked at, in their order.
fn roomiest(free: &Free, order: Vec<u32>) -> Vec<u32> {
    let mut by_room = order.clone();
    by_room.sort_by_key(|node| Reverse(free[node]));
    by_room.truncate(NODES_MAX);
    order.into_iter().filter(|node| by_room.contains(node)).collect()
}

fn best(all: &Free, order: &[u32], nodes: usize, count: usize, group: usize) -> Option<Spread> {
    let mut best: Option<(f64, Spread)> = None;
    for nodes in combinations(order, nodes) {
        let Some((balance, spread)) = over(all, nodes, count, group) else { continue };
        if best.as_ref().is_none_or(|(least, _)| balance < *least) {
            let is_perfect = balance == 0.0;
            best = Some((balance, spread));
            if is_perfect {
                break;
            }
        }
    }
    best.map(|(_, spread)| spread)
}

/// How well these nodes could give it, if they can.
fn over(all: &Free, nodes: Vec<u32>, count: usize, group: usize) -> Option<(f64, Spread)> {
    let each = count / nodes.len() / group * group;
    let groups: usize = nodes.iter().map(|node| all[node] / group).sum();
    if groups * group < count || nodes.iter().any(|node| all[node] < each) {
        return None;
    }
    let mut left = all.clone();
    nodes.iter().for_each(|node| *left.entry(*node).or_default() -= each);
    let odd = count - each * nodes.len();
    if odd == 0 {
        return Some((deviation(&left), Spread { nodes, each, odd: Vec::new() }));
    }
    let may_give_more: Vec<u32> = nodes.iter().copied().filter(|node| left[node] >= group).collect();
    let mut best: Option<(f64, Vec<u32>)> = None;
    // From many nodes to few: of equally good ways upstream keeps the first, and that is its order.
    for size in (1..=may_give_more.len()).rev() {
        for some in combinations(&may_give_more, size) {
            if some.iter().map(|node| left[node]).sum::<usize>() < odd {
                continue;
            }
            let Some(after) = take_in_turn(&left, &some, odd, group) else { continue };
            let balance = deviation(&after);
            if best.as_ref().is_none_or(|(least, _)| balance < *least) {
                best = Some((balance, some));
            }
        }
    }
    best.map(|(balance, odd)| (balance, Spread { nodes, each, odd }))
}

/// What is left when the nodes give a group each in turn; `None` if that does not suffice.
fn take_in_turn(left: &Free, nodes: &[u32], mut odd: usize, group: usize) -> Option<Free> {
    let mut left = left.clone();
    while odd > 0 {
        let before = odd;
        for node in nodes {
            let there = left.entry(*node).or_default();
            if odd > 0 && *there >= group {
                *there -= group;
                odd -= group;
            }
        }
        if odd == before {
            return None;
        }
    }
    Some(left)
}

fn take(
    machine: &Machine,
    free: &CpuSet,
    count: usize,
    group: usize,
    options: &Options,
    spread: &Spread,
) -> Result<CpuSet, TooFew> {
    let mut taken = CpuSet::default();
    let free_on = |taken: &CpuSet, node: u32| Units::new(machine, &free.difference(taken)).free(Kind::Node, node);
    for node in &spread.nodes {
        taken = taken.union(&pack(machine, &free_on(&taken, *node), spread.each, options)?);
    }
    while taken.len() < count {
        let before = taken.len();
        for node in &spread.odd {
            let there = free_on(&taken, *node);
            if taken.len() < count && there.len() >= group {
                taken = taken.union(&pack(machine, &there, group, options)?);
            }
        }
        if taken.len() == before {
            return Err(TooFew { requested: count, available: taken.len() });
        }
    }
    Ok(taken)
}

/// How uneven the nodes are, to three digits as upstream compares it.
fn deviation(free: &Free) -> f64 {
    let count = free.len() as f64;
    let three_digits = |value: f64| (value * 1000.0).round() / 1000.0;
    let mean = three_digits(free.values().sum::<usize>() as f64 / count);
    let squares: f64 = free.values().map(|free| (*free as f64 - mean).powi(2)).sum();
    three_digits((squares / count).sqrt())
}

/// All choices of so many of the nodes, in their order.
fn combinations(nodes: &[u32], count: usize) -> Vec<Vec<u32>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (place, first) in nodes.iter().enumerate() {
        for mut rest in combinations(&nodes[place + 1..], count - 1) {
            rest.insert(0, *first);
            all.push(rest);
        }
    }
    all
}
