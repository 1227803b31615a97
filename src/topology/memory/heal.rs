//! A state that is possible, out of what was recorded and what runs. Upstream refuses to start
//! where the two, or the record and the machine, do not go together; the pods run on meanwhile.

use std::collections::BTreeMap;
use std::fmt;

use crate::pod::PodUid;

use super::super::NumaSet;
use super::layout::Layout;
use super::ledger::{Block, Entries, Ledger, Misfit};
use super::request::MEMORY;
use super::{Pinning, Static};

/// A container that runs, and the nodes that the kernel gives it memory of (`cpuset.mems`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    pub uid: PodUid,
    pub container: String,
    pub nodes: NumaSet,
}

/// What was made of something that did not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// The record follows the container to where it runs.
    Moved { uid: PodUid, container: String, from: NumaSet, to: NumaSet },
    /// It runs on chosen nodes and nobody recorded that. How much it has there is found out
    /// when its pod is asked for.
    Adopted { uid: PodUid, container: String, nodes: NumaSet },
    /// Its entry is not kept. A container that runs goes on where it is, uncounted.
    Dropped { uid: PodUid, container: String, nodes: NumaSet, misfit: Misfit },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::Moved { uid, container, from, to } => {
                write!(f, "container {container} of pod {uid} was recorded on NUMA nodes {from} and runs on {to}")
            }
            Warning::Adopted { uid, container, nodes } => {
                write!(f, "container {container} of pod {uid} runs on NUMA nodes {nodes}, which was not recorded")
            }
            Warning::Dropped { uid, container, nodes, misfit } => {
                write!(f, "container {container} of pod {uid} cannot have memory of NUMA nodes {nodes}: {misfit}")
            }
        }
    }
}

/// Where an entry comes from; what is surest comes first and is given first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    RecordedAndRunning,
    RecordedElsewhere { from: NumaSet },
    RecordedOnly,
    RunningOnly,
}

/// Entries of pods that are not known here are kept: whether they are gone is not known before
/// the sources of pods have spoken, and they are released then.
pub fn heal(layout: Layout, recorded: Entries, running: &[Running]) -> (Static, Vec<Warning>) {
    let machine = layout.nodes();
    // Who may use all nodes is not bound to any: that says nothing.
    let is_bound = |nodes: NumaSet| !nodes.is_empty() && nodes != machine && nodes.is_subset(machine);
    let mut bound: BTreeMap<(PodUid, String), NumaSet> = running
        .iter()
        .filter(|running| is_bound(running.nodes))
        .map(|running| ((running.uid.clone(), running.container.clone()), running.nodes))
        .collect();
    let mut claims = Vec::new();
    for (uid, containers) in recorded {
        for (container, mut blocks) in containers {
            let key = (uid.clone(), container);
            let from = blocks.first().map_or(NumaSet::default(), |block| block.nodes);
            let source = match bound.remove(&key) {
                None => Source::RecordedOnly,
                Some(to) if to == from => Source::RecordedAndRunning,
                Some(to) => {
                    blocks.iter_mut().for_each(|block| block.nodes = to);
                    Source::RecordedElsewhere { from }
                }
            };
            claims.push((source, key, blocks));
        }
    }
    for (key, nodes) in bound {
        claims.push((Source::RunningOnly, key, vec![Block { nodes, resource: MEMORY.to_owned(), bytes: 0 }]));
    }
    claims.sort_by_key(|(source, ..)| *source);
    let mut ledger = Ledger::new(layout);
    let warnings = claims.into_iter().filter_map(|(source, key, blocks)| settle(&mut ledger, source, key, blocks));
    let warnings = warnings.collect();
    (Static { ledger, pinning: Pinning::default() }, warnings)
}

fn settle(ledger: &mut Ledger, source: Source, key: (PodUid, String), blocks: Vec<Block>) -> Option<Warning> {
    let (uid, container) = key;
    let nodes = blocks.first().map_or(NumaSet::default(), |block| block.nodes);
    match (ledger.give(&uid, &container, blocks, &[]), source) {
        (Err(misfit), _) => Some(Warning::Dropped { uid, container, nodes, misfit }),
        (Ok(()), Source::RecordedElsewhere { from }) => Some(Warning::Moved { uid, container, from, to: nodes }),
        (Ok(()), Source::RunningOnly) => Some(Warning::Adopted { uid, container, nodes }),
        (Ok(()), Source::RecordedAndRunning | Source::RecordedOnly) => None,
    }
}
