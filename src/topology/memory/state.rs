//! The text of `memory_manager_state`, in upstream's format, so that a node can change from one
//! kubelet to the other and back.
//!
//! Upstream's checksum is one of a Go program's memory and cannot be had from the text. It
//! accepts 0 for "none", which is what we write; what we read we judge by its content.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::pod::PodUid;

use super::super::NumaSet;
use super::Static;
use super::layout::{Capacity, Layout};
use super::ledger::{Block, Entries, Ledger, Misfit, Usage, usage};

const POLICY: &str = "Static";

pub type Recorded = super::super::Recorded<Entries, Wrong>;

/// Things for which upstream does not start until somebody drains the node and deletes the
/// file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    #[error("the file is no state of a memory manager: {0}")]
    Garbage(String),
    #[error("the file is of the memory manager policy {found:?}, not {POLICY}")]
    Policy { found: String },
    #[error("the file is of another machine or reservation: {resource} of NUMA node {node} has changed")]
    Machine { node: u32, resource: String },
    #[error("the sums in the file do not follow from its entries")]
    Sums,
    #[error("the file places pod {uid} as a whole, which this agent does not do")]
    PodLevel { uid: PodUid },
    #[error("the entry of container {container} of pod {uid} cannot be used")]
    Entry {
        uid: PodUid,
        container: String,
        #[source]
        misfit: Misfit,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    policy_name: String,
    #[serde(default)]
    machine_state: Option<BTreeMap<u32, NodeState>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    entries: Option<BTreeMap<String, FilePod>>,
    /// Of the version that upstream writes with the gate PodLevelResourceManagers.
    #[serde(default, skip_serializing)]
    pod_entries: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    #[serde(default)]
    checksum: u64,
}

/// Blocks by container.
type FilePod = BTreeMap<String, Option<Vec<FileBlock>>>;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeState {
    number_of_assignments: i64,
    #[serde(default)]
    memory_map: Option<BTreeMap<String, Table>>,
    #[serde(default)]
    cells: Option<Vec<i64>>,
}

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Table {
    total: u64,
    system_reserved: u64,
    allocatable: u64,
    reserved: u64,
    free: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileBlock {
    numa_affinity: Option<Vec<i64>>,
    #[serde(rename = "type")]
    resource: String,
    size: u64,
}

pub fn write(state: &Static) -> String {
    let ledger = &state.ledger;
    let nodes = ledger.layout().iter().map(|(node, capacities)| {
        let usage = ledger.usage().get(&node).cloned().unwrap_or_default();
        (node, NodeState::of(capacities, &usage))
    });
    let containers = |containers: &BTreeMap<String, Vec<Block>>| {
        let blocks = |blocks: &Vec<Block>| Some(blocks.iter().map(FileBlock::of).collect());
        containers.iter().map(|(name, of)| (name.clone(), blocks(of))).collect()
    };
    let pods: BTreeMap<_, _> =
        ledger.entries().iter().map(|(uid, of)| (uid.as_str().to_owned(), containers(of))).collect();
    let file = File {
        policy_name: POLICY.to_owned(),
        machine_state: Some(nodes.collect()),
        entries: Some(pods).filter(|pods| !pods.is_empty()),
        pod_entries: None,
        checksum: 0,
    };
    serde_json::to_string(&file).expect("numbers and strings are always JSON")
}

pub fn read(text: &str, layout: &Layout) -> Recorded {
    let file: File = match serde_json::from_str(text) {
        Ok(file) => file,
        Err(error) => {
            return Recorded { entries: Entries::new(), wrong: vec![Wrong::Garbage(error.to_string())] };
        }
    };
    let mut recorded = Recorded::default();
    if file.policy_name != POLICY {
        recorded.wrong.push(Wrong::Policy { found: file.policy_name.clone() });
    }
    let nodes = file.machine_state.unwrap_or_default();
    // As upstream: a file without both is one that was never filled.
    let unused = nodes.is_empty() && file.entries.is_none();
    if !unused {
        recorded.wrong.extend(changes(&nodes, layout));
    }
    let pods_as_a_whole = file.pod_entries.unwrap_or_default();
    for (uid, containers) in file.entries.unwrap_or_default() {
        let uid = PodUid::new(uid);
        if pods_as_a_whole.contains_key(uid.as_str()) {
            recorded.wrong.push(Wrong::PodLevel { uid });
            continue;
        }
        for (container, blocks) in containers {
            recorded.take(layout, &uid, container, blocks.unwrap_or_default());
        }
    }
    // Where something else is wrong the sums are, too, and need no word of their own.
    if recorded.wrong.is_empty() && !unused && !sums_follow(&nodes, layout, &recorded.entries) {
        recorded.wrong.push(Wrong::Sums);
    }
    recorded
}

impl Recorded {
    fn take(&mut self, layout: &Layout, uid: &PodUid, container: String, blocks: Vec<FileBlock>) {
        // Upstream writes no such entries, but there is nothing wrong with having nothing.
        if blocks.is_empty() {
            return;
        }
        let known = |block: FileBlock| {
            let nodes = node_set(block.numa_affinity.as_deref()).ok_or(Misfit::NoSuchNode)?;
            Ok(Block { nodes, resource: block.resource, bytes: block.size })
        };
        let fitting = blocks.into_iter().map(known).collect::<Result<Vec<_>, _>>().and_then(|blocks| {
            Ledger::new(layout.clone()).give(uid, &container, blocks.clone(), &[])?;
            Ok(blocks)
        });
        match fitting {
            Ok(blocks) => {
                self.entries.entry(uid.clone()).or_default().insert(container, blocks);
            }
            Err(misfit) => self.wrong.push(Wrong::Entry { uid: uid.clone(), container, misfit }),
        }
    }
}

/// The kinds of memory that are not what they were when the file was written.
fn changes(nodes: &BTreeMap<u32, NodeState>, layout: &Layout) -> Vec<Wrong> {
    let mut recorded: BTreeMap<(u32, String), Capacity> = BTreeMap::new();
    for (node, state) in nodes {
        for (resource, table) in state.memory_map.iter().flatten() {
            let capacity =
                Capacity { total: table.total, reserved: table.system_reserved, allocatable: table.allocatable };
            recorded.insert((*node, resource.clone()), capacity);
        }
    }
    let now = layout.iter().flat_map(|(node, of)| of.iter().map(move |(name, of)| ((node, name.clone()), *of)));
    let mut wrong = Vec::new();
    for ((node, resource), capacity) in now {
        if recorded.remove(&(node, resource.clone())) != Some(capacity) {
            wrong.push(Wrong::Machine { node, resource });
        }
    }
    wrong.extend(recorded.into_keys().map(|(node, resource)| Wrong::Machine { node, resource }));
    wrong
}

/// Upstream's check: nodes of a group count together.
fn sums_follow(nodes: &BTreeMap<u32, NodeState>, layout: &Layout, entries: &Entries) -> bool {
    usage(layout, entries).iter().all(|(node, usage)| {
        let Some(state) = nodes.get(node) else { return false };
        let table = |node, resource: &String| {
            let tables = nodes.get(&node).and_then(|state| state.memory_map.as_ref());
            tables.and_then(|tables| tables.get(resource)).copied().unwrap_or_default()
        };
        let sums = |resource: &String| {
            let of_group = || usage.group.iter().map(|node| table(node, resource));
            let given: u64 = of_group().map(|table| table.reserved).fold(0, u64::saturating_add);
            let free: u64 = of_group().map(|table| table.free).fold(0, u64::saturating_add);
            (given, free)
        };
        let expected = |resource: &String| {
            let blocks = entries.values().flat_map(|containers| containers.values().flatten());
            let given = super::ledger::spare_bytes(blocks, usage.group, resource);
            (given, layout.allocatable(usage.group, resource).saturating_sub(given))
        };
        let resources = || state.memory_map.iter().flat_map(BTreeMap::keys);
        state.number_of_assignments == i64::from(usage.assignments)
            && node_set(state.cells.as_deref()) == Some(usage.group)
            && resources().all(|resource| sums(resource) == expected(resource))
    })
}

/// `None` if one of them cannot be the number of a node.
fn node_set(ids: Option<&[i64]>) -> Option<NumaSet> {
    let known = |id: &i64| u32::try_from(*id).ok().filter(|id| *id < NumaSet::NODES_MAX);
    ids.unwrap_or_default().iter().map(known).collect()
}

fn ids(nodes: NumaSet) -> Vec<i64> {
    nodes.iter().map(i64::from).collect()
}

impl NodeState {
    fn of(capacities: &BTreeMap<String, Capacity>, usage: &Usage) -> NodeState {
        let table = |resource: &String, capacity: &Capacity| {
            let reserved = usage.given.get(resource).copied().unwrap_or(0);
            Table {
                total: capacity.total,
                system_reserved: capacity.reserved,
                allocatable: capacity.allocatable,
                reserved,
                free: capacity.allocatable - reserved,
            }
        };
        let tables = capacities.iter().map(|(resource, capacity)| (resource.clone(), table(resource, capacity)));
        NodeState {
            number_of_assignments: i64::from(usage.assignments),
            memory_map: Some(tables.collect()),
            cells: Some(ids(usage.group)),
        }
    }
}

impl FileBlock {
    fn of(block: &Block) -> FileBlock {
        FileBlock { numa_affinity: Some(ids(block.nodes)), resource: block.resource.clone(), size: block.bytes }
    }
}
