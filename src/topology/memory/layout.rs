//! What the NUMA nodes have to give, of each kind of memory.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::NumaMemory;
use crate::config::quantity::Quantity;
use crate::pod::resources::Amounts;

use super::super::NumaSet;
use super::request::{MEMORY, is_memory};
use crate::host::{Machine, NumaNode};

/// Kinds of memory by node. The node's own memory is always among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout(BTreeMap<u32, BTreeMap<String, Capacity>>);

/// Bytes of one kind of memory on one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    pub total: u64,
    /// Kept from pods.
    pub reserved: u64,
    pub allocatable: u64,
}

/// What is kept from pods, as configured.
#[derive(Clone, Copy, Debug)]
pub struct Reservations<'a> {
    /// `reservedMemory`: how the rest is spread over the nodes.
    pub per_node: &'a [NumaMemory],
    /// `kubeReserved`.
    pub kube: &'a Amounts,
    /// `systemReserved`.
    pub system: &'a Amounts,
    /// `evictionHard["memory.available"]`, as an amount of this machine's memory.
    pub eviction_bytes: u64,
}

/// What is wrong with `reservedMemory` on this machine: reasons not to start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    #[error("reservedMemory[{index}].numaNode: the machine has no NUMA node {node}")]
    UnknownNode { index: usize, node: i32 },
    #[error("NUMA node {node} of the machine has a number above {}, which memoryManagerPolicy Static cannot work with", NumaSet::NODES_MAX - 1)]
    NodeNumber { node: u32 },
    #[error(
        "reservedMemory: expected {resource} to add up to {expected}, which is {parts}; \
         over all NUMA nodes it is {given}"
    )]
    Unequal { resource: String, given: Quantity, expected: Quantity, parts: String },
    #[error(
        "reservedMemory: memoryManagerPolicy Static needs memory reserved on some NUMA node, and as much \
         in kubeReserved, systemReserved and evictionHard[\"memory.available\"] together"
    )]
    NothingReserved,
    #[error("reservedMemory: {reserved} of {resource} reserved on NUMA node {node}, which has {there}")]
    TooMuch { resource: String, node: u32, reserved: Quantity, there: Quantity },
}

impl Layout {
    pub fn new(machine: &Machine, reservations: &Reservations<'_>) -> Result<Layout, LayoutError> {
        if let Some(node) = machine.nodes.iter().find(|node| node.id >= NumaSet::NODES_MAX) {
            return Err(LayoutError::NodeNumber { node: node.id });
        }
        let reserved = by_node(machine, reservations.per_node)?;
        reservations.check_sums(&reserved)?;
        let none = Amounts::new();
        let capacities = |node: &NumaNode| Ok((node.id, capacities(node, reserved.get(&node.id).unwrap_or(&none))?));
        machine.nodes.iter().map(capacities).collect::<Result<_, _>>().map(Layout)
    }

    pub fn nodes(&self) -> NumaSet {
        self.0.keys().copied().collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &BTreeMap<String, Capacity>)> {
        self.0.iter().map(|(node, capacities)| (*node, capacities))
    }

    pub(super) fn capacity(&self, node: u32, resource: &str) -> Option<Capacity> {
        self.0.get(&node)?.get(resource).copied()
    }

    /// Over all `nodes`; what a node does not have is none of it.
    pub(super) fn allocatable(&self, nodes: NumaSet, resource: &str) -> u64 {
        let of = |node| self.capacity(node, resource).map_or(0, |capacity| capacity.allocatable);
        nodes.iter().map(of).sum()
    }
}

fn by_node(machine: &Machine, reserved: &[NumaMemory]) -> Result<BTreeMap<u32, Amounts>, LayoutError> {
    let mut nodes: BTreeMap<u32, Amounts> = BTreeMap::new();
    for (index, memory) in reserved.iter().enumerate() {
        let known = machine.nodes.iter().find(|node| i64::from(node.id) == i64::from(memory.numa_node));
        let node = known.ok_or(LayoutError::UnknownNode { index, node: memory.numa_node })?;
        crate::pod::resources::add(nodes.entry(node.id).or_default(), &memory.limits);
    }
    Ok(nodes)
}

impl Reservations<'_> {
    /// What is reserved on the nodes must be what is kept from pods as a whole, kind by kind:
    /// otherwise the scheduler counts on memory that no node has, or the other way round.
    fn check_sums(&self, reserved: &BTreeMap<u32, Amounts>) -> Result<(), LayoutError> {
        let mut given = Amounts::new();
        reserved.values().for_each(|node| crate::pod::resources::add(&mut given, node));
        let kept = self.kube.keys().chain(self.system.keys()).map(String::as_str);
        let resources: BTreeSet<&str> = given.keys().map(String::as_str).chain(kept).chain([MEMORY]).collect();
        for resource in resources.into_iter().filter(|resource| is_memory(resource)) {
            let (expected, parts) = self.expected(resource);
            let given = given.get(resource).copied().unwrap_or(Quantity::bytes(0));
            if given != expected {
                return Err(LayoutError::Unequal { resource: resource.to_owned(), given, expected, parts });
            }
        }
        match given.get(MEMORY) {
            Some(memory) if !memory.is_zero() => Ok(()),
            _ => Err(LayoutError::NothingReserved),
        }
    }

    /// How much of a kind is kept from pods, and by what settings.
    fn expected(&self, resource: &str) -> (Quantity, String) {
        let of = |amounts: &Amounts| amounts.get(resource).copied().unwrap_or(Quantity::bytes(0));
        let (kube, system) = (of(self.kube), of(self.system));
        if resource != MEMORY {
            return (kube + system, format!("kubeReserved {kube} and systemReserved {system}"));
        }
        let eviction = bytes(self.eviction_bytes);
        let parts =
            format!("kubeReserved {kube}, systemReserved {system} and evictionHard[\"memory.available\"] {eviction}");
        (kube + system + eviction, parts)
    }
}

/// Huge pages are taken out of the node's memory for good, whoever uses them.
fn capacities(node: &NumaNode, reserved: &Amounts) -> Result<BTreeMap<String, Capacity>, LayoutError> {
    let mut totals: BTreeMap<String, u64> = BTreeMap::new();
    for (size, pages) in &node.hugepages {
        totals.insert(format!("hugepages-{}", bytes(*size)), size.saturating_mul(*pages));
    }
    let huge: u64 = totals.values().fold(0, |sum, total| sum.saturating_add(*total));
    totals.insert(MEMORY.to_owned(), node.memory_bytes);
    if let Some((resource, amount)) = reserved.iter().find(|(resource, _)| !totals.contains_key(*resource)) {
        return Err(too_much(node, resource, *amount, 0));
    }
    let capacity = |(resource, total): (String, u64)| {
        let amount = reserved.get(&resource).copied().unwrap_or(Quantity::bytes(0));
        let kept = u64::try_from(amount.value()).unwrap_or(0);
        let there = if resource == MEMORY { total.saturating_sub(huge) } else { total };
        let allocatable = there.checked_sub(kept).ok_or_else(|| too_much(node, &resource, amount, there))?;
        Ok((resource, Capacity { total, reserved: kept, allocatable }))
    };
    totals.into_iter().map(capacity).collect()
}

fn too_much(node: &NumaNode, resource: &str, reserved: Quantity, there: u64) -> LayoutError {
    LayoutError::TooMuch { resource: resource.to_owned(), node: node.id, reserved, there: bytes(there) }
}

fn bytes(bytes: u64) -> Quantity {
    Quantity::bytes(i64::try_from(bytes).unwrap_or(i64::MAX))
}
