//! Which of the free CPUs a request gets: a pure function, with upstream's answers.
//!
//! What is packed gets whole units of the machine while it needs that many, from the largest kind of
//! unit down, and of those that would do the ones that are used most already: what is whole stays
//! whole for the next one.

use super::distribute;
use super::units::{Kind, Units};
use crate::config::CpuSet;
use crate::host::Machine;

/// Policy options of the CPU manager, as far as they decide which CPUs are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Whole cores, or nothing.
    pub full_cores_only: bool,
    /// Evenly over as many NUMA nodes as are needed.
    pub across_nodes: bool,
    /// Another core for each CPU, as long as there are.
    pub across_cores: bool,
    /// NUMA nodes of one socket count as close together.
    pub align_by_socket: bool,
    /// Reserved CPUs are not for the shared pool either.
    pub strict_reservation: bool,
    /// As few last-level caches as can be.
    pub by_cache: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not enough cpus available to satisfy request: requested={requested}, available={available}")]
pub struct TooFew {
    pub requested: usize,
    pub available: usize,
}

/// So many of the free CPUs.
pub fn choose(machine: &Machine, free: &CpuSet, count: usize, options: &Options) -> Result<CpuSet, TooFew> {
    match options.across_nodes {
        true => distribute::over_nodes(machine, free, count, options),
        false => pack(machine, free, count, options),
    }
}

pub(super) fn pack(machine: &Machine, free: &CpuSet, count: usize, options: &Options) -> Result<CpuSet, TooFew> {
    if count > free.len() {
        return Err(TooFew { requested: count, available: free.len() });
    }
    let mut pick = Pick { units: Units::new(machine, free), taken: CpuSet::default(), need: count };
    let (outer, inner) = pick.units.large_kinds();
    pick.whole(outer);
    pick.whole(inner);
    if options.by_cache {
        pick.caches();
    }
    if !options.across_cores {
        pick.whole(Kind::Core);
    }
    let order = match options.across_cores {
        true => pick.units.spread(),
        false => pick.units.packed(),
    };
    order.into_iter().take(pick.need).for_each(|cpu| {
        pick.taken.insert(cpu);
    });
    Ok(pick.taken)
}

struct Pick<'a> {
    /// With what is taken so far taken out.
    units: Units<'a>,
    taken: CpuSet,
    need: usize,
}

impl Pick<'_> {
    fn take(&mut self, cpus: &CpuSet) {
        self.units.remove(cpus);
        self.taken = self.taken.union(cpus);
        self.need -= cpus.len();
    }

    /// Units of which nothing is taken, as long as all of one is needed.
    fn whole(&mut self, kind: Kind) {
        let mut units = self.units.order(kind);
        units.retain(|unit| self.units.is_whole(kind, *unit));
        for unit in units {
            let cpus = self.units.free(kind, unit);
            if cpus.len() <= self.need {
                self.take(&cpus);
            }
        }
    }

    /// Whole caches, and then one that has room for all the rest.
    fn caches(&mut self) {
        for cache in self.units.order(Kind::Cache) {
            if self.need >= self.units.cpus_per_cache() {
                self.whole(Kind::Cache);
            }
            if self.need == 0 {
                return;
            }
            let rest = self.rest_in(cache);
            if rest.len() == self.need {
                return self.take(&rest);
            }
        }
    }

    /// As many of a cache's free cores, from the lowest on, as would do for what is needed.
    fn rest_in(&self, cache: u32) -> CpuSet {
        let per_core = self.units.cpus_per_core();
        let cores = self.units.within(Kind::Cache, cache, Kind::Core);
        let cores = cores.into_iter().take(self.need.div_ceil(per_core));
        let mut cpus = cores.fold(CpuSet::default(), |all, core| all.union(&self.units.free(Kind::Core, core)));
        // Of the last core one thread may do.
        if !self.need.is_multiple_of(2) && per_core > 1 && cpus.len() > self.need {
            let last = cpus.iter().last();
            last.iter().for_each(|cpu| {
                cpus.remove(*cpu);
            });
        }
        cpus
    }
}
