//! The free CPUs of a machine by the units they are in.

use std::collections::BTreeMap;

use crate::config::CpuSet;
use crate::host::{Cpu, Machine};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Node,
    Socket,
    Cache,
    Core,
}

impl Kind {
    pub fn of(self, cpu: &Cpu) -> u32 {
        match self {
            Kind::Node => cpu.node,
            Kind::Socket => cpu.socket,
            Kind::Cache => cpu.cache,
            Kind::Core => cpu.core,
        }
    }
}

pub struct Units<'a> {
    machine: &'a Machine,
    free: Vec<Cpu>,
}

impl<'a> Units<'a> {
    pub fn new(machine: &'a Machine, free: &CpuSet) -> Self {
        let free = machine.cpus.iter().filter(|cpu| free.contains(cpu.id)).copied().collect();
        Units { machine, free }
    }

    pub fn remove(&mut self, cpus: &CpuSet) {
        self.free.retain(|cpu| !cpus.contains(cpu.id));
    }

    /// NUMA nodes and sockets, those that hold the others first.
    pub fn large_kinds(&self) -> (Kind, Kind) {
        match self.count(Kind::Socket) >= self.count(Kind::Node) {
            true => (Kind::Node, Kind::Socket),
            false => (Kind::Socket, Kind::Node),
        }
    }

    /// On the whole machine.
    pub fn count(&self, kind: Kind) -> usize {
        distinct(self.machine.cpus.iter().map(|cpu| kind.of(cpu))).len()
    }

    pub fn cpus_per_core(&self) -> usize {
        (self.machine.cpus.len() / self.count(Kind::Core).max(1)).max(1)
    }

    pub fn cpus_per_cache(&self) -> usize {
        self.machine.cpus.len() / self.count(Kind::Cache).max(1)
    }

    pub fn free(&self, kind: Kind, unit: u32) -> CpuSet {
        self.free.iter().filter(|cpu| kind.of(cpu) == unit).map(|cpu| cpu.id).collect()
    }

    /// Nothing of it is taken.
    pub fn is_whole(&self, kind: Kind, unit: u32) -> bool {
        let of = |cpus: &[Cpu]| cpus.iter().filter(|cpu| kind.of(cpu) == unit).count();
        of(&self.free) == of(&self.machine.cpus)
    }

    /// Those parts of a unit that have free CPUs, by their ids.
    pub fn within(&self, outer: Kind, unit: u32, inner: Kind) -> Vec<u32> {
        distinct(self.free.iter().filter(|cpu| outer.of(cpu) == unit).map(|cpu| inner.of(cpu)))
    }

    /// All units of a kind that have free CPUs: those with the fewest first, and parts of one larger
    /// unit together.
    pub fn order(&self, kind: Kind) -> Vec<u32> {
        let (outer, inner) = self.large_kinds();
        match kind {
            _ if kind == outer => self.by_free(self.all(outer), outer),
            _ if kind == inner => self.nested(outer, inner),
            Kind::Cache => self.nested(Kind::Node, Kind::Cache),
            // The smaller of the two large kinds holds it.
            _ => self.nested(inner, Kind::Core),
        }
    }

    /// Single CPUs, those of cores that are used already first.
    pub fn packed(&self) -> Vec<u32> {
        let cores = self.order(Kind::Core).into_iter();
        cores.flat_map(|core| self.free(Kind::Core, core).iter().collect::<Vec<_>>()).collect()
    }

    /// Single CPUs by their ids: Linux counts the first threads of all cores before the second ones.
    pub fn spread(&self) -> Vec<u32> {
        let sockets = self.order(Kind::Socket).into_iter();
        sockets.flat_map(|socket| self.free(Kind::Socket, socket).iter().collect::<Vec<_>>()).collect()
    }

    fn all(&self, kind: Kind) -> Vec<u32> {
        distinct(self.free.iter().map(|cpu| kind.of(cpu)))
    }

    fn nested(&self, outer: Kind, inner: Kind) -> Vec<u32> {
        let outer_units = self.order(outer).into_iter();
        outer_units.flat_map(|unit| self.by_free(self.within(outer, unit, inner), inner)).collect()
    }

    fn by_free(&self, mut units: Vec<u32>, kind: Kind) -> Vec<u32> {
        let mut free: BTreeMap<u32, usize> = BTreeMap::new();
        for cpu in &self.free {
            *free.entry(kind.of(cpu)).or_default() += 1;
        }
        units.sort_by_key(|unit| (free.get(unit).copied().unwrap_or(0), *unit));
        units
    }
}

fn distinct(units: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut units: Vec<u32> = units.collect();
    units.sort_unstable();
    units.dedup();
    units
}
