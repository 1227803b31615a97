//! Where the containers of one pod run, as the runtime is to be told.

use std::collections::BTreeMap;

use super::NumaSet;
use crate::config::CpuSet;
use crate::cri::LinuxResources;
use crate::host::CgroupSettings;
use crate::host::cgroup_math::CPU_QUOTA_UNLIMITED;

/// Where one container runs; `None` leaves it to the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub cpus: Option<CpuSet>,
    pub memory_nodes: Option<NumaSet>,
    /// Nobody else runs on these CPUs.
    pub is_exclusive: bool,
}

/// The places of a pod's containers at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Of containers that were given something; all others share the pool.
    pub given: BTreeMap<String, Place>,
    pub pool: Option<CpuSet>,
    /// A quota only makes a container on CPUs of its own wait for nothing.
    pub lift_quotas: bool,
}

impl Places {
    pub fn of(&self, container: &str) -> Place {
        let mut place = self.given.get(container).cloned().unwrap_or_default();
        place.cpus = place.cpus.or_else(|| self.pool.clone());
        place
    }

    /// Puts a container's place into what the runtime is told of it.
    pub fn put_into(&self, container: &str, resources: &mut LinuxResources) {
        let place = self.of(container);
        resources.cpuset_cpus = place.cpus.map(|cpus| cpus.to_string()).unwrap_or_default();
        resources.cpuset_mems = place.memory_nodes.map(|nodes| nodes.to_string()).unwrap_or_default();
        // 0 says that there are no quotas at all.
        if self.lift_quotas && place.is_exclusive && resources.cpu_quota != 0 {
            resources.cpu_quota = CPU_QUOTA_UNLIMITED;
        }
    }

    /// The quota of a pod holds for all its containers, so one with CPUs of its own lifts it.
    pub fn put_into_pod(&self, settings: &mut CgroupSettings) {
        let is_lifted = self.lift_quotas && self.given.values().any(|place| place.is_exclusive);
        if is_lifted && settings.cpu_quota.is_some() {
            settings.cpu_quota = Some(CPU_QUOTA_UNLIMITED);
        }
    }
}
