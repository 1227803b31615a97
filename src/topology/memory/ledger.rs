//! Who has how much memory of which nodes.

use std::collections::BTreeMap;

use crate::pod::PodUid;

use super::super::NumaSet;
use super::layout::Layout;

/// Memory of one kind that a container has on a group of nodes together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub nodes: NumaSet,
    /// `memory` or `hugepages-<size>`.
    pub resource: String,
    pub bytes: u64,
}

/// Blocks by pod and container. All blocks of a container are on the same nodes.
pub type Entries = BTreeMap<PodUid, BTreeMap<String, Vec<Block>>>;

/// Why blocks cannot be where they are to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    #[error("names no nodes, or nodes that the machine does not have")]
    NoSuchNode,
    #[error("the nodes have no {0}")]
    NoSuchMemory(String),
    #[error("names different nodes for one container")]
    Scattered,
    #[error("NUMA nodes {0} serve other groups of nodes")]
    OtherGroup(NumaSet),
    #[error("NUMA nodes {nodes} have {free} bytes of {resource} left, not {wanted}")]
    TooLittle { nodes: NumaSet, resource: String, wanted: u64, free: u64 },
}

/// The entries, and what follows from them.
#[derive(Clone, Debug)]
pub struct Ledger {
    layout: Layout,
    entries: Entries,
    /// Worked out anew with each change of the entries, so that it cannot drift away from
    /// them. There are few: pods come and go by the second at most, and nodes are few.
    usage: BTreeMap<u32, Usage>,
}

/// What is given of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The nodes it serves with, itself among them.
    pub group: NumaSet,
    /// Blocks, also those without size.
    pub assignments: u32,
    /// Bytes by kind. Within a group they count together; how they spread is by convention.
    pub given: BTreeMap<String, u64>,
}

impl Ledger {
    pub fn new(layout: Layout) -> Ledger {
        let usage = usage(&layout, &Entries::new());
        Ledger { layout, entries: Entries::new(), usage }
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub fn entries(&self) -> &Entries {
        &self.entries
    }

    pub fn usage(&self) -> &BTreeMap<u32, Usage> {
        &self.usage
    }

    pub fn blocks(&self, uid: &PodUid, container: &str) -> Option<&[Block]> {
        self.entries.get(uid)?.get(container).map(Vec::as_slice)
    }

    pub fn of_pod(&self, uid: &PodUid) -> impl Iterator<Item = &Block> {
        self.entries.get(uid).into_iter().flat_map(|containers| containers.values().flatten())
    }

    /// Whether no node of these serves another group, or one alone.
    pub fn is_open(&self, nodes: NumaSet) -> bool {
        let open = |usage: &Usage| usage.assignments == 0 || usage.group == nodes;
        nodes.iter().filter_map(|node| self.usage.get(&node)).all(open)
    }

    /// What a group of nodes that is open has left.
    pub fn free(&self, nodes: NumaSet, resource: &str) -> u64 {
        let usage = nodes.iter().filter_map(|node| self.usage.get(&node));
        let given: u64 = usage.filter_map(|usage| usage.given.get(resource)).sum();
        self.layout.allocatable(nodes, resource).saturating_sub(given)
    }

    /// Gives a container its blocks, as far as possible out of what the containers `reused` of
    /// its pod have on the same nodes. Nothing is changed if they do not fit.
    pub fn give(&mut self, uid: &PodUid, container: &str, blocks: Vec<Block>, reused: &[&str]) -> Result<(), Misfit> {
        let spare: Vec<&Block> = reused.iter().filter_map(|name| self.blocks(uid, name)).flatten().collect();
        self.check(&blocks, &spare)?;
        for block in &blocks {
            self.shrink(uid, reused, block);
        }
        self.entries.entry(uid.clone()).or_default().insert(container.to_owned(), blocks);
        self.recount();
        Ok(())
    }

    fn check(&self, blocks: &[Block], spare: &[&Block]) -> Result<(), Misfit> {
        let nodes = blocks.first().map_or(NumaSet::default(), |block| block.nodes);
        if nodes.is_empty() || !nodes.is_subset(self.layout.nodes()) {
            return Err(Misfit::NoSuchNode);
        }
        if blocks.iter().any(|block| block.nodes != nodes) {
            return Err(Misfit::Scattered);
        }
        if !self.is_open(nodes) {
            return Err(Misfit::OtherGroup(nodes));
        }
        for Block { resource, bytes: wanted, .. } in blocks {
            if nodes.iter().all(|node| self.layout.capacity(node, resource).is_none()) {
                return Err(Misfit::NoSuchMemory(resource.clone()));
            }
            let free = self.free(nodes, resource) + spare_bytes(spare.iter().copied(), nodes, resource);
            if free < *wanted {
                return Err(Misfit::TooLittle { nodes, resource: resource.clone(), wanted: *wanted, free });
            }
        }
        Ok(())
    }

    /// Takes from the blocks of `reused` what `block` is to have instead of them. Blocks of
    /// which nothing is left stay, as in upstream's state file: the container was placed.
    fn shrink(&mut self, uid: &PodUid, reused: &[&str], block: &Block) {
        let Some(containers) = self.entries.get_mut(uid) else {
            return;
        };
        let mut wanted = block.bytes;
        for name in reused {
            let blocks = containers.get_mut(*name).into_iter().flatten();
            for spare in blocks.filter(|spare| spare.nodes == block.nodes && spare.resource == block.resource) {
                let taken = spare.bytes.min(wanted);
                spare.bytes -= taken;
                wanted -= taken;
            }
        }
    }

    pub fn take(&mut self, uid: &PodUid, container: &str) -> Option<Vec<Block>> {
        let containers = self.entries.get_mut(uid)?;
        let blocks = containers.remove(container)?;
        if containers.is_empty() {
            self.entries.remove(uid);
        }
        self.recount();
        Some(blocks)
    }

    pub fn release(&mut self, uid: &PodUid) {
        if self.entries.remove(uid).is_some() {
            self.recount();
        }
    }

    fn recount(&mut self) {
        self.usage = usage(&self.layout, &self.entries);
    }
}

/// How much of `blocks` lies on exactly these nodes.
pub fn spare_bytes<'a>(blocks: impl Iterator<Item = &'a Block>, nodes: NumaSet, resource: &str) -> u64 {
    blocks.filter(|block| block.nodes == nodes && block.resource == resource).map(|block| block.bytes).sum()
}

/// What follows from the entries for each node. Also for entries that do not fit, as found in a
/// state file: what no node has room for is left out then.
pub fn usage(layout: &Layout, entries: &Entries) -> BTreeMap<u32, Usage> {
    let unused = |node| (node, Usage { group: NumaSet::from_iter([node]), ..Usage::default() });
    let mut usage: BTreeMap<u32, Usage> = layout.nodes().iter().map(unused).collect();
    for block in entries.values().flat_map(|containers| containers.values().flatten()) {
        let mut left = block.bytes;
        for node in block.nodes.iter() {
            let Some(usage) = usage.get_mut(&node) else { continue };
            usage.assignments += 1;
            usage.group = block.nodes;
            let given = usage.given.entry(block.resource.clone()).or_default();
            let free = layout.capacity(node, &block.resource).map_or(0, |c| c.allocatable.saturating_sub(*given));
            *given += free.min(left);
            left -= free.min(left);
        }
    }
    usage
}
