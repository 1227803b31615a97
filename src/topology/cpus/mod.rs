//! What upstream calls the CPU manager, policy static: CPUs of their own for the containers of
//! Guaranteed pods that ask for whole ones. The policy none is not to have one.
//!
//! No task and no I/O: a [`Provider`] beside that of memory. `choose.rs` and `distribute.rs` say
//! which CPUs a request gets, over the units of the machine that `units.rs` knows; `hints.rs` on
//! which NUMA nodes it could be served; `state.rs` reads and writes the text of the state file,
//! `heal.rs` makes a state out of what was recorded and what runs.
//!
//! In: the machine, reserved CPUs, pods. Out: hints, the CPUs of each container that has its own,
//! and the pool that all others share.
//!
//! Always true: no CPU belongs to two containers, but for what an ordinary init container leaves to
//! those after it; reserved CPUs belong to none; the pool is what belongs to nobody.

mod choose;
mod distribute;
mod heal;
mod hints;
mod state;
#[cfg(test)]
mod tests;
mod units;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};

pub use choose::{Options, TooFew};
pub use heal::{Warning, heal};
pub use state::{FILE, Recorded, Wrong, is_static, read, write, write_none};

use super::{Affinity, Ask, Failure, Provider, ResourceHints};
use crate::config::{CpuSet, Quantity};
use crate::host::{Machine, NumaNode};
use crate::pod::PodUid;
use crate::pod::containers::{Role, init_containers, is_sidecar};
use crate::pod::features::has_pod_level_resources;
use crate::pod::qos::{self, QosClass};
use crate::pod::resources::Resources;
use choose::choose;
use units::{Kind, Units};

/// By pod and container.
pub type Entries = BTreeMap<PodUid, BTreeMap<String, CpuSet>>;

/// What cannot work on this machine: reasons not to start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpusError {
    #[error(
        "cpuManagerPolicy static needs CPUs for everything else: set reservedSystemCPUs, or cpu in systemReserved \
         or kubeReserved"
    )]
    NothingReserved,
    #[error("reservedSystemCPUs {reserved}: the machine has the CPUs {online}")]
    Unknown { reserved: CpuSet, online: CpuSet },
    #[error("systemReserved and kubeReserved: {reserved} CPUs reserved of {there}")]
    TooMany { reserved: usize, there: usize },
    #[error("cpuManagerPolicy static: /sys does not tell which CPUs this machine has")]
    Untold,
    #[error(
        "cpuManagerPolicyOptions[\"align-by-socket\"] cannot work on a machine of {sockets} sockets and {nodes} NUMA nodes"
    )]
    SocketsInNodes { sockets: usize, nodes: usize },
}

/// What is kept from pods, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reservation {
    /// `reservedSystemCPUs`.
    Cpus(CpuSet),
    /// CPU of `systemReserved` and `kubeReserved` together.
    Amount(Quantity),
}

/// What all that is given has in common.
#[derive(Clone, Debug)]
pub struct Ground {
    pub machine: Arc<Machine>,
    pub reserved: CpuSet,
    pub options: Options,
}

/// Who has which CPUs.
#[derive(Clone, Debug)]
pub struct Static {
    ground: Ground,
    entries: Entries,
    /// What belongs to nobody.
    shared: CpuSet,
    pinning: Pinning,
}

/// Counted since the start, for `kubelet_cpu_manager_pinning_requests_total` and
/// `..._pinning_errors_total`, and for what whole cores were given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pinning {
    pub requests: u64,
    pub errors: u64,
}

impl Ground {
    pub fn new(machine: Arc<Machine>, reservation: &Reservation, options: Options) -> Result<Ground, CpusError> {
        let online = online(&machine);
        if online.is_empty() {
            return Err(CpusError::Untold);
        }
        let reserved = match reservation {
            Reservation::Cpus(reserved) if !reserved.is_subset(&online) => {
                return Err(CpusError::Unknown { reserved: reserved.clone(), online });
            }
            Reservation::Cpus(reserved) => reserved.clone(),
            Reservation::Amount(amount) => {
                let count = usize::try_from(amount.milli_value().max(0)).unwrap_or(usize::MAX).div_ceil(1000);
                choose(&machine, &online, count, &options)
                    .map_err(|few| CpusError::TooMany { reserved: few.requested, there: few.available })?
            }
        };
        let units = Units::new(&machine, &online);
        let (sockets, nodes) = (units.count(Kind::Socket), units.count(Kind::Node));
        if options.align_by_socket && sockets > nodes {
            return Err(CpusError::SocketsInNodes { sockets, nodes });
        }
        match reserved.is_empty() {
            true => Err(CpusError::NothingReserved),
            false => Ok(Ground { machine, reserved, options }),
        }
    }

    fn online(&self) -> CpuSet {
        online(&self.machine)
    }

    /// Where everything runs that has no CPUs of its own, before any are given.
    fn pool(&self) -> CpuSet {
        match self.options.strict_reservation {
            true => self.online().difference(&self.reserved),
            false => self.online(),
        }
    }
}

fn online(machine: &Machine) -> CpuSet {
    machine.cpus.iter().map(|cpu| cpu.id).collect()
}

impl Static {
    /// Nothing is given yet.
    pub fn new(ground: Ground) -> Static {
        let shared = ground.pool();
        Static { ground, entries: Entries::new(), shared, pinning: Pinning::default() }
    }

    pub fn entries(&self) -> &Entries {
        &self.entries
    }

    pub fn shared(&self) -> &CpuSet {
        &self.shared
    }

    /// Where everything runs that has no CPUs of its own: with a strict reservation all others may be given,
    /// and what is reserved is left. No CPUs at all would be read as all of them.
    pub fn of_all_others(&self) -> CpuSet {
        if self.shared.is_empty() { self.ground.reserved.clone() } else { self.shared.clone() }
    }

    pub fn assigned(&self, uid: &PodUid, container: &str) -> Option<&CpuSet> {
        self.entries.get(uid)?.get(container)
    }

    pub fn pinning(&self) -> Pinning {
        self.pinning
    }

    /// How many CPUs of each NUMA node belong to somebody.
    pub fn exclusive(&self) -> BTreeMap<u32, usize> {
        let given = self.given();
        let nodes = self.ground.machine.nodes.iter();
        let on = |node: &NumaNode| {
            self.ground.machine.cpus.iter().filter(|cpu| cpu.node == node.id && given.contains(cpu.id)).count()
        };
        nodes.map(|node| (node.id, on(node))).collect()
    }

    fn given(&self) -> CpuSet {
        self.entries.values().flat_map(BTreeMap::values).fold(CpuSet::default(), |all, cpus| all.union(cpus))
    }

    /// What can be given.
    fn available(&self) -> CpuSet {
        self.shared.difference(&self.ground.reserved)
    }

    fn settle(&mut self) {
        self.shared = self.ground.pool().difference(&self.given());
    }

    /// What ordinary init containers before `container` leave to it: they are done by the time it
    /// runs, and what later ones or sidecars have of it is theirs.
    fn left_over(&self, uid: &PodUid, pod: &Pod, container: Option<&str>) -> CpuSet {
        let Some(has) = self.entries.get(uid) else { return CpuSet::default() };
        let before = init_containers(pod).iter().take_while(|init| container != Some(&init.name));
        let mut left = CpuSet::default();
        for init in before {
            let Some(cpus) = has.get(&init.name) else { continue };
            left = if is_sidecar(init) { left.difference(cpus) } else { left.union(cpus) };
        }
        let is_regular = |name: &str| !init_containers(pod).iter().any(|init| init.name == name);
        let regular = has.iter().filter(|(name, _)| is_regular(name));
        regular.fold(left, |left, (_, cpus)| left.difference(cpus))
    }

    fn give(&mut self, ask: &Ask<'_>, container: &Container, near: Affinity) -> Result<(), Failure> {
        let count = whole_cpus(ask.pod, container);
        if count == 0 {
            // Found running alone by chance, or of a pod that is no more what it was.
            if self.entries.get_mut(ask.uid).is_some_and(|has| has.remove(&container.name).is_some()) {
                self.settle();
            }
            return Ok(());
        }
        self.pinning.requests += 1;
        let given = self.pick(ask, container, count, near).inspect_err(|_| self.pinning.errors += 1)?;
        self.entries.entry(ask.uid.clone()).or_default().insert(container.name.clone(), given);
        self.settle();
        Ok(())
    }

    fn pick(&self, ask: &Ask<'_>, container: &Container, count: usize, near: Affinity) -> Result<CpuSet, Failure> {
        if let Some(has) = self.assigned(ask.uid, &container.name) {
            return Ok(has.clone());
        }
        let free = self.available().union(&self.left_over(ask.uid, ask.pod, Some(&container.name)));
        match self.ground.options.full_cores_only {
            true => self.pick_cores(&free, count, near),
            false => self.near_first(&free, count, near).map_err(unexpected),
        }
    }

    /// Whole cores, of which what init containers lend is part.
    fn pick_cores(&self, free: &CpuSet, count: usize, near: Affinity) -> Result<CpuSet, Failure> {
        let machine = &*self.ground.machine;
        let whole = in_whole_cores(machine, free);
        self.check_cores(&whole, count)?;
        let is_whole = |given: &CpuSet| in_whole_cores(machine, given) == *given;
        let given = self.near_first(free, count, near).map_err(unexpected)?;
        if is_whole(&given) {
            return Ok(given);
        }
        // Threads whose siblings are reserved are free as well, and may have been what was near.
        let given = self.near_first(&whole, count, near).map_err(unexpected)?;
        if is_whole(&given) {
            return Ok(given);
        }
        self.cores_of_all_sizes(&whole, count, near).ok_or_else(|| self.too_few_cores(&whole, count))
    }

    /// Where cores differ in their threads: large ones first, as small ones make up any rest.
    fn cores_of_all_sizes(&self, whole: &CpuSet, count: usize, near: Affinity) -> Option<CpuSet> {
        let Ground { machine, options, .. } = &self.ground;
        let units = Units::new(machine, whole);
        let close = near.nodes.map(|nodes| hints::cpus_near(machine, nodes, options));
        let is_close = |core: &CpuSet| close.as_ref().is_none_or(|close| core.is_subset(close));
        let mut cores: Vec<_> = units.order(Kind::Core).into_iter().map(|core| units.free(Kind::Core, core)).collect();
        cores.sort_by_key(|core| (Reverse(core.len()), !is_close(core)));
        let mut given = CpuSet::default();
        for core in cores {
            if given.len() + core.len() <= count {
                given = given.union(&core);
            }
        }
        (given.len() == count).then_some(given)
    }

    /// As much as there is near, and the rest elsewhere.
    fn near_first(&self, free: &CpuSet, count: usize, near: Affinity) -> Result<CpuSet, TooFew> {
        let Ground { machine, options, .. } = &self.ground;
        let mut given = CpuSet::default();
        if let Some(nodes) = near.nodes {
            let close = free.intersection(&hints::cpus_near(machine, nodes, options));
            given = choose(machine, &close, count.min(close.len()), options)?;
        }
        let rest = choose(machine, &free.difference(&given), count - given.len(), options)?;
        Ok(given.union(&rest))
    }

    /// Whole cores are asked for, and there are as many.
    fn check_cores(&self, whole: &CpuSet, count: usize) -> Result<(), Failure> {
        let per_core = Units::new(&self.ground.machine, whole).cpus_per_core();
        if !count.is_multiple_of(per_core) {
            let message =
                format!("SMT Alignment Error: requested {count} cpus not multiple cpus per core = {per_core}");
            return Err(Failure { reason: "SMTAlignmentError", message });
        }
        if count > whole.len() {
            return Err(self.too_few_cores(whole, count));
        }
        Ok(())
    }

    fn too_few_cores(&self, whole: &CpuSet, count: usize) -> Failure {
        let per_core = Units::new(&self.ground.machine, whole).cpus_per_core();
        let message = format!(
            "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = {}, requested CPUs = {count}, \
             CPUs per core = {per_core}",
            whole.len()
        );
        Failure { reason: "SMTAlignmentError", message }
    }
}

fn unexpected(error: TooFew) -> Failure {
    Failure {
        reason: "UnexpectedAdmissionError",
        message: format!("Allocate failed due to {error}, which is unexpected"),
    }
}

impl Provider for Static {
    fn hints(&self, ask: &Ask<'_>) -> Vec<ResourceHints> {
        hints::of(self, ask)
    }

    fn allocate(&mut self, ask: &Ask<'_>, affinity: Affinity) -> Result<(), Failure> {
        match ask.container {
            // One that is added to a running pod shares the pool.
            Some((Role::Ephemeral, _)) | None => Ok(()),
            Some((_, container)) => self.give(ask, container, affinity),
        }
    }

    fn release(&mut self, uid: &PodUid) {
        if self.entries.remove(uid).is_some() {
            self.settle();
        }
    }
}

/// Those of the CPUs whose siblings are all among them.
fn in_whole_cores(machine: &Machine, cpus: &CpuSet) -> CpuSet {
    let units = Units::new(machine, cpus);
    let whole = units.order(Kind::Core).into_iter().filter(|core| units.is_whole(Kind::Core, *core));
    whole.fold(CpuSet::default(), |all, core| all.union(&units.free(Kind::Core, core)))
}

/// The CPUs that a container has a right to have alone; none if it shares.
fn whole_cpus(pod: &Pod, container: &Container) -> usize {
    // Upstream too looks at containers only, unless an alpha gate says otherwise.
    let is_pod_level = has_pod_level_resources(pod);
    if qos::class(pod) != QosClass::Guaranteed || is_pod_level {
        return 0;
    }
    let milli = Resources::of_container(container).requests.get("cpu").map_or(0, |cpu| cpu.milli_value());
    if milli % 1000 == 0 { usize::try_from(milli / 1000).unwrap_or(0) } else { 0 }
}
