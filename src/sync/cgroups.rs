//! The cgroup levels above the containers, kept right as pods come and go.
//!
//! The kubepods and QoS levels depend on all pods, so their weights are recomputed here when
//! a pod joins, leaves or is resized; the write is skipped when nothing changed. A pod's own
//! level is written before its sandbox, and when the pod is resized.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::launch::{self, CgroupConfig};
use crate::host::{CgroupPath, CgroupSettings, Host, HostError};
use crate::metrics;
use crate::pod::PodUid;

pub struct Cgroups {
    host: Arc<dyn Host>,
    config: CgroupConfig,
    /// The lock is held over the write, so that an older sum never lands after a newer one.
    /// Only cgroupfs is behind it, which does not hang on anyone's network.
    levels: Mutex<Levels>,
}

#[derive(Default)]
struct Levels {
    pods: BTreeMap<PodUid, Arc<Pod>>,
    written: BTreeMap<CgroupPath, CgroupSettings>,
}

impl Cgroups {
    pub fn new(host: Arc<dyn Host>, config: CgroupConfig) -> Self {
        Cgroups { host, config, levels: Mutex::default() }
    }

    /// Makes a pod's cgroup with these settings, and all levels above it.
    pub async fn ensure(&self, uid: &PodUid, pod: &Arc<Pod>, settings: &CgroupSettings) -> Result<(), HostError> {
        if !self.config.per_qos {
            return Ok(());
        }
        let began = Instant::now();
        let is_known = {
            let mut levels = self.levels.lock().await;
            let is_known = levels.pods.insert(uid.clone(), pod.clone()).is_some();
            self.write(&mut levels).await?;
            is_known
        };
        let (path, _) = launch::pod_cgroup(pod, &self.config);
        self.host.ensure_cgroup(&path, settings).await?;
        let operation = if is_known { "update" } else { "create" };
        metrics::pods::CGROUP_DURATION.took([operation], began.elapsed());
        Ok(())
    }

    /// Removes a pod's cgroup, wherever it is, and whatever still runs in it.
    pub async fn remove(&self, uid: &PodUid) -> Result<(), HostError> {
        if !self.config.per_qos {
            return Ok(());
        }
        let began = Instant::now();
        for path in launch::pod_cgroup_candidates(uid, &self.config) {
            self.host.destroy_cgroup(&path).await?;
        }
        metrics::pods::CGROUP_DURATION.took(["destroy"], began.elapsed());
        let mut levels = self.levels.lock().await;
        if levels.pods.remove(uid).is_some() {
            self.write(&mut levels).await?;
        }
        Ok(())
    }

    /// Pods that have a cgroup, whether or not anyone knows them.
    pub async fn found(&self) -> Result<Vec<PodUid>, HostError> {
        if !self.config.per_qos {
            return Ok(Vec::new());
        }
        let root = launch::kubepods(&self.config);
        Ok(self.host.list_pod_cgroups(&root).await?.into_iter().map(|(uid, _)| uid).collect())
    }

    async fn write(&self, levels: &mut Levels) -> Result<(), HostError> {
        let wanted = launch::qos_cgroups(levels.pods.values().map(Arc::as_ref), &self.config);
        for (path, settings) in wanted {
            if levels.written.get(&path) != Some(&settings) {
                self.host.ensure_cgroup(&path, &settings).await?;
                levels.written.insert(path, settings);
            }
        }
        Ok(())
    }
}
