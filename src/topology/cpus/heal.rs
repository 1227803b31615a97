//! A state that is possible, out of what was recorded and what runs. Upstream refuses to start where
//! the record and the machine do not go together; the pods run on meanwhile.

use std::collections::BTreeMap;
use std::fmt;

use super::{Entries, Ground, Static};
use crate::config::CpuSet;
use crate::pod::PodUid;
use crate::topology::Running;

/// What was made of something that did not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// It runs alone on CPUs, and nobody recorded that.
    Adopted { uid: PodUid, container: String, cpus: CpuSet },
    /// The record follows the container to where it runs.
    Moved { uid: PodUid, container: String, from: CpuSet, to: CpuSet },
    /// Its entry is not kept: it gets others if its pod is still here.
    Dropped { uid: PodUid, container: String, cpus: CpuSet },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::Adopted { uid, container, cpus } => {
                write!(f, "container {container} of pod {uid} runs alone on CPUs {cpus}, which was not recorded")
            }
            Warning::Moved { uid, container, from, to } => {
                write!(f, "container {container} of pod {uid} was recorded on CPUs {from} and runs on {to}")
            }
            Warning::Dropped { uid, container, cpus } => write!(
                f,
                "container {container} of pod {uid} cannot have CPUs {cpus}: they are not there, are reserved, or \
                 belong to another"
            ),
        }
    }
}

/// Entries of pods that are not known here are kept: whether they are gone is not known before all
/// sources have spoken.
pub fn heal(ground: Ground, recorded: Entries, running: &[Running]) -> (Static, Vec<Warning>) {
    let mut state = Static::new(ground);
    let mut warnings = Vec::new();
    let alone = alone(running);
    // What runs alone is surest, and is given first.
    for running in &alone {
        let Running { uid, container, cpus, .. } = running;
        let before = recorded.get(uid).and_then(|of_pod| of_pod.get(container));
        if !state.grant(uid, container, cpus) {
            warnings.push(Warning::Dropped { uid: uid.clone(), container: container.clone(), cpus: cpus.clone() });
            continue;
        }
        let (uid, container, cpus) = (uid.clone(), container.clone(), cpus.clone());
        match before {
            Some(from) if *from == cpus => {}
            Some(from) => warnings.push(Warning::Moved { uid, container, from: from.clone(), to: cpus }),
            None => warnings.push(Warning::Adopted { uid, container, cpus }),
        }
    }
    for (uid, containers) in recorded {
        for (container, cpus) in containers {
            let is_given = state.assigned(&uid, &container).is_some();
            if !is_given && !state.grant(&uid, &container, &cpus) {
                warnings.push(Warning::Dropped { uid: uid.clone(), container, cpus });
            }
        }
    }
    (state, warnings)
}

/// Those that have CPUs on which no container of another pod runs.
fn alone(running: &[Running]) -> Vec<&Running> {
    let mut users: BTreeMap<u32, Vec<&PodUid>> = BTreeMap::new();
    for one in running {
        for cpu in one.cpus.iter() {
            users.entry(cpu).or_default().push(&one.uid);
        }
    }
    let is_alone = |one: &&Running| {
        let mine = |cpu: u32| users[&cpu].iter().all(|uid| **uid == one.uid);
        // Who shares a pool that nobody else is in has other weights than it has CPUs.
        !one.cpus.is_empty() && one.cpus.len() == one.whole_cpus && one.cpus.iter().all(mine)
    };
    running.iter().filter(is_alone).collect()
}

impl Static {
    /// Gives these very CPUs; false if that cannot be.
    fn grant(&mut self, uid: &PodUid, container: &str, cpus: &CpuSet) -> bool {
        let of_pod = self.entries.get(uid).into_iter().flat_map(BTreeMap::values);
        let own = of_pod.fold(CpuSet::default(), |all, cpus| all.union(cpus));
        if cpus.is_empty() || !cpus.is_subset(&self.available().union(&own)) {
            return false;
        }
        self.entries.entry(uid.clone()).or_default().insert(container.to_owned(), cpus.clone());
        self.settle();
        true
    }
}
