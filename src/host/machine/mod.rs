//! What the machine is made of, as far as it matters where something runs: read off the
//! kernel's files, with no opinion of who should get what.
//!
//! In: the root of /sys. Out: a [`Machine`], read once in the life of the agent.
//!
//! Always true: every CPU listed is online and on a node that is listed; ids that name a group
//! are those of its lowest CPU. A file that is missing makes the answer coarser, not an error:
//! boards and guests leave out most of them.

mod files;
mod read;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub(super) use files::hugepages;
pub use read::read;

/// CPUs and NUMA nodes, both in the order of their ids. A machine without NUMA has one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Those that are online.
    pub cpus: Vec<Cpu>,
    pub nodes: Vec<NumaNode>,
}

/// A CPU as the kernel counts them: one hardware thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    pub id: u32,
    /// The lowest id among the threads of its core: unique over the whole machine, unlike the
    /// kernel's core ids.
    pub core: u32,
    pub socket: u32,
    pub node: u32,
    /// The lowest id among the CPUs of its cache group: those that share its last-level cache,
    /// or all of the socket that share none, or none smaller than their node.
    pub cache: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumaNode {
    pub id: u32,
    pub memory_bytes: u64,
    /// Page size and number of such pages on this node, smallest size first.
    pub hugepages: Vec<(u64, u64)>,
    /// To each node of the machine, in their order; 10 is the way to itself. Empty if the kernel
    /// does not tell.
    pub distances: Vec<u32>,
}
