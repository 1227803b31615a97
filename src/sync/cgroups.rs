//! The cgroup levels above the containers, kept right as pods come and go.
//!
//! The kubepods and QoS levels depend on all pods, so their weights are recomputed here when
//! a pod joins, leaves or is resized. A pod's own level is written before its sandbox, and when the pod
//! is resized. Nothing here remembers what was written: each pass reads what is there, so what somebody
//! changed by hand is put right when the next pod comes or goes, and by the sweep for leftovers.
//!
//! Pods are not kept waiting for the levels that they share: where those cannot be set, a pod starts, and
//! the next pass tries again.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};

use super::launch::{self, CgroupConfig, ReservedCgroup};
use crate::causes::chain;
use crate::events::EventType;
use crate::host::{CgroupDriver, CgroupPath, CgroupSettings, Host, HostError};
use crate::metrics;
use crate::pod::PodUid;

/// Why the node cannot be set up as it was told.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("the cgroup driver {driver} cannot be used; it is what the container runtime says, or else cgroupDriver")]
    Driver {
        driver: CgroupDriver,
        #[source]
        source: HostError,
    },
    #[error("cgroupDriver is {configured}, but {runtime} is configured for {shown}: let one of them follow the other")]
    OtherDriver { configured: CgroupDriver, runtime: String, shown: CgroupDriver },
    #[error("cgroupRoot {root:?} cannot be used")]
    Root {
        root: String,
        #[source]
        source: HostError,
    },
    #[error("cannot make the cgroups that cgroupsPerQOS stands for")]
    Levels(#[source] HostError),
    #[error("{field} {name:?} cannot be held to what enforceNodeAllocatable wants of it")]
    Reserved {
        field: &'static str,
        name: String,
        #[source]
        source: HostError,
    },
}

/// An event of the node.
pub type Told = (EventType, &'static str, String);

const ENFORCED: &str = "NodeAllocatableEnforced";
const NOT_ENFORCED: &str = "FailedNodeAllocatableEnforcement";

pub struct Cgroups {
    host: Arc<dyn Host>,
    config: CgroupConfig,
    /// The lock is held over the write, so that an older sum never lands after a newer one.
    /// Only cgroupfs is behind it and, with that driver, systemd: no pod could do without either.
    pods: Mutex<Pods>,
}

/// Those whose own cgroups are there or being made.
#[derive(Default)]
struct Pods {
    known: BTreeMap<PodUid, Known>,
    /// Of the pods, so far.
    changes: u64,
    /// How many of these were known when the shared levels were written last.
    written: u64,
}

struct Known {
    pod: Arc<Pod>,
    /// What its own level was set to last.
    settings: CgroupSettings,
}

impl Pods {
    /// The number of a change that was just made.
    fn changed(&mut self) -> u64 {
        self.changes += 1;
        self.changes
    }
}

impl Cgroups {
    pub fn new(host: Arc<dyn Host>, config: CgroupConfig) -> Self {
        Cgroups { host, config, pods: Mutex::default() }
    }

    /// Makes the levels that all pods share, and holds the node's own cgroups to what is reserved for
    /// them. `tell` hears what came of it, also where that is an error.
    pub async fn set_up(&self, mut tell: impl FnMut(Told)) -> Result<(), SetupError> {
        let CgroupConfig { per_qos, driver, .. } = self.config;
        if !per_qos {
            return Ok(());
        }
        let chosen = self.host.use_cgroup_driver(driver).await;
        chosen.map_err(|source| SetupError::Driver { driver, source })?;
        let checked = self.host.check_cgroup(&launch::root(&self.config)).await;
        checked.map_err(|source| SetupError::Root { root: self.config.root.clone(), source })?;
        for (path, _) in launch::qos_cgroups([].into_iter(), &self.config) {
            match self.host.ensure_cgroup(&path, &CgroupSettings::default()).await {
                Err(error) if will_stay(&error) => return Err(SetupError::Levels(error)),
                Err(error) => warn!(error = chain(&error), path = path.0, "cannot make cgroup, will retry"),
                Ok(_) => {}
            }
        }
        let enforced = self.write(&*self.pods.lock().await).await;
        match enforced {
            Ok(()) if self.config.enforced_on_pods => {
                tell((EventType::Normal, ENFORCED, "Updated Node Allocatable limit across pods".to_owned()));
            }
            Ok(()) => {}
            Err(error) => {
                warn!(error = chain(&error), "cannot limit what pods use together, will retry");
                let root = &self.config.root;
                let message = format!("Failed to update Node Allocatable Limits {root:?}: {}", chain(&error));
                tell((EventType::Warning, NOT_ENFORCED, message));
            }
        }
        for reserved in &self.config.reserved {
            let ReservedCgroup { part, field, name, .. } = reserved;
            match self.hold(reserved).await {
                Ok(_) => {
                    let message = format!("Updated limits on {} reserved cgroup {name}", part.to_lowercase());
                    tell((EventType::Normal, ENFORCED, message));
                }
                Err(source) => {
                    let causes = chain(&source);
                    let message = format!("Failed to enforce {part} Reserved Cgroup Limits on {name:?}: {causes}");
                    tell((EventType::Warning, NOT_ENFORCED, message));
                    return Err(SetupError::Reserved { field, name: name.clone(), source });
                }
            }
        }
        Ok(())
    }

    /// One that the operator has made: one that is not there is more likely misspelled than forgotten.
    async fn hold(&self, reserved: &ReservedCgroup) -> Result<bool, HostError> {
        let path = launch::reserved_cgroup(&reserved.name, &self.config);
        self.host.check_cgroup(&path).await?;
        self.host.ensure_cgroup(&path, &reserved.settings).await
    }

    /// Makes a pod's cgroup with these settings, and all levels above it.
    pub async fn ensure(&self, uid: &PodUid, pod: &Arc<Pod>, settings: &CgroupSettings) -> Result<(), HostError> {
        if !self.config.per_qos {
            return Ok(());
        }
        let began = Instant::now();
        let known = Known { pod: pod.clone(), settings: settings.clone() };
        let (is_known, change) = {
            let mut pods = self.pods.lock().await;
            (pods.known.insert(uid.clone(), known).is_some(), pods.changed())
        };
        self.share(change).await;
        let (path, _) = launch::pod_cgroup(pod, &self.config);
        self.host.ensure_cgroup(&path, settings).await?;
        let operation = if is_known { "update" } else { "create" };
        metrics::pods::CGROUP_DURATION.took([operation], began.elapsed());
        Ok(())
    }

    /// Removes a pod's cgroup, and whatever still runs in it.
    pub async fn remove(&self, uid: &PodUid) -> Result<(), HostError> {
        if !self.config.per_qos {
            return Ok(());
        }
        let began = Instant::now();
        // First, so that nobody puts right what is being removed.
        let removed = self.pods.lock().await.known.remove(uid);
        let paths = match &removed {
            Some(Known { pod, .. }) => vec![launch::pod_cgroup(pod, &self.config).0],
            // Of another life of ours, or of nobody's.
            None => launch::pod_cgroup_candidates(uid, &self.config).into(),
        };
        let mut outcome = Ok(());
        for path in paths {
            outcome = outcome.and(self.host.destroy_cgroup(&path).await);
        }
        if outcome.is_ok() {
            metrics::pods::CGROUP_DURATION.took(["destroy"], began.elapsed());
        }
        // What cannot be removed has no share of the others' either.
        if removed.is_some() {
            let change = self.pods.lock().await.changed();
            self.share(change).await;
        }
        outcome
    }

    /// Pods that have a cgroup, whether or not anyone knows them.
    pub async fn found(&self) -> Result<Vec<PodUid>, HostError> {
        if !self.config.per_qos {
            return Ok(Vec::new());
        }
        let root = launch::kubepods(&self.config);
        Ok(self.host.list_pod_cgroups(&root).await?.into_iter().map(|(uid, _)| uid).collect())
    }

    /// Puts right what somebody changed or removed behind our back.
    pub async fn put_right(&self) {
        if !self.config.per_qos {
            return;
        }
        let uids: Vec<PodUid> = {
            let pods = self.pods.lock().await;
            self.write_or_warn(&pods).await;
            pods.known.keys().cloned().collect()
        };
        for uid in uids {
            // Taken anew for each, as a pod may go meanwhile, and others wait.
            let pods = self.pods.lock().await;
            let Some(Known { pod, settings }) = pods.known.get(&uid) else { continue };
            let (path, _) = launch::pod_cgroup(pod, &self.config);
            self.set_right(&path, settings).await;
        }
        for reserved in &self.config.reserved {
            match self.hold(reserved).await {
                Ok(true) => info!(cgroup = reserved.name, "cgroup was not as reserved for it, put right"),
                Ok(false) => {}
                Err(error) => {
                    warn!(error = chain(&error), cgroup = reserved.name, "cgroup not held to what is reserved")
                }
            }
        }
    }

    async fn set_right(&self, path: &CgroupPath, settings: &CgroupSettings) {
        match self.host.ensure_cgroup(path, settings).await {
            Ok(true) => info!(cgroup = path.0, "cgroup was not as we had set it, put right"),
            Ok(false) => {}
            Err(error) => warn!(error = chain(&error), cgroup = path.0, "cannot put cgroup right, will retry"),
        }
    }

    /// Has the shared levels follow a change. Pods that come or go at once wait for the lock together, and
    /// the first writes for all of them.
    async fn share(&self, change: u64) {
        let mut pods = self.pods.lock().await;
        if pods.written < change {
            pods.written = pods.changes;
            self.write_or_warn(&pods).await;
        }
    }

    async fn write_or_warn(&self, pods: &Pods) {
        if let Err(error) = self.write(pods).await {
            warn!(error = chain(&error), "cannot set the cgroups that pods share, will retry");
        }
    }

    /// All are tried, whatever comes of one.
    async fn write(&self, pods: &Pods) -> Result<(), HostError> {
        let mut outcome = Ok(());
        let known = pods.known.values().map(|known| known.pod.as_ref());
        for (path, settings) in launch::qos_cgroups(known, &self.config) {
            outcome = outcome.and(self.host.ensure_cgroup(&path, &settings).await.map(drop));
        }
        outcome
    }
}

/// Nothing will change by itself: the machine has to be set up otherwise.
fn will_stay(error: &HostError) -> bool {
    match error {
        HostError::Io { source, .. } => {
            matches!(source.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied | ErrorKind::NotFound)
        }
        HostError::Refused(_) => true,
        HostError::Timeout { .. } | HostError::Busy { .. } => false,
    }
}

#[cfg(test)]
mod tests;
