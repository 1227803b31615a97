//! What the machine is made of, as far as it matters where something runs.

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
    /// The lowest id among the CPUs that share its last-level cache.
    pub cache: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumaNode {
    pub id: u32,
    pub memory_bytes: u64,
    /// Page size and number of such pages on this node, smallest size first.
    pub hugepages: Vec<(u64, u64)>,
    /// To each node of the machine, in their order; 10 is the way to itself.
    pub distances: Vec<u32>,
}
