//! What was found out about the machine and its runtime, and the complaints about what was
//! not.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ContainerImage;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::survey::Survey;
use crate::clock::Clock;
use crate::cri::RuntimeVersion;
use crate::host::MachineFacts;

/// A runtime or a disk that hangs must not keep the node from saying so.
const DEADLINE: Duration = Duration::from_secs(3);
/// A complaint that stays the same is logged again after this long.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// The newest of each finding. What cannot be read now stays as it was known.
#[derive(Default)]
pub(super) struct Stock {
    pub machine: Option<MachineFacts>,
    pub runtime_version: Option<RuntimeVersion>,
    pub images: Option<Arc<Vec<ContainerImage>>>,
    /// What the node's name resolved to, for these addresses of the machine.
    resolved: Option<(Vec<IpAddr>, Vec<IpAddr>)>,
    pod_cidrs_told: Option<String>,
}

impl Stock {
    pub async fn take(&mut self, survey: &dyn Survey, name: &str, complaints: &mut Complaints, clock: &Clock) {
        match timeout(DEADLINE, survey.machine()).await {
            Ok(Ok(machine)) => {
                complaints.settle("machine");
                self.machine = Some(machine);
            }
            Ok(Err(error)) => complaints.add(clock, "machine", format!("machine not read: {error}")),
            Err(_) => complaints.add(clock, "machine", format!("machine not read within {DEADLINE:?}")),
        }
        let Some(machine) = &self.machine else { return };
        // Asked again only when the machine's addresses changed.
        if self.resolved.as_ref().is_none_or(|(local, _)| *local != machine.addresses) {
            let found = timeout(DEADLINE, survey.resolve(name)).await.unwrap_or_default();
            self.resolved = Some((machine.addresses.clone(), found));
        }
    }

    /// The same for a runtime that answers.
    pub async fn take_of_runtime(
        &mut self,
        survey: &dyn Survey,
        pod_cidrs: &[String],
        complaints: &mut Complaints,
        clock: &Clock,
    ) {
        if self.runtime_version.is_none()
            && let Ok(Ok(version)) = timeout(DEADLINE, survey.runtime_version()).await
        {
            self.runtime_version = Some(version);
        }
        match timeout(DEADLINE, survey.images()).await {
            Ok(Ok(images)) => self.images = Some(images),
            Ok(Err(error)) => debug!(%error, "images not listed, will retry"),
            Err(_) => debug!("images not listed in time, will retry"),
        }
        let cidrs = pod_cidrs.join(",");
        if cidrs.is_empty() || self.pod_cidrs_told.as_ref() == Some(&cidrs) {
            return;
        }
        match timeout(DEADLINE, survey.set_pod_cidr(&cidrs)).await {
            Ok(Ok(())) => {
                info!(cidrs, "runtime told its pod CIDR");
                self.pod_cidrs_told = Some(cidrs);
            }
            Ok(Err(error)) => {
                complaints.add(clock, "pod CIDR", format!("runtime not told its pod CIDR {cidrs}: {error}"));
            }
            Err(_) => complaints.add(clock, "pod CIDR", format!("runtime not told its pod CIDR {cidrs} in time")),
        }
    }

    /// The runtime was away: it may be another one by now.
    pub fn forget_runtime(&mut self) {
        self.runtime_version = None;
        self.pod_cidrs_told = None;
    }

    pub fn resolved(&self) -> &[IpAddr] {
        self.resolved.as_ref().map_or(&[], |(_, found)| found)
    }
}

/// What was logged last about each subject, and when: what stays wrong is said once a minute.
#[derive(Default)]
pub(super) struct Complaints(BTreeMap<&'static str, (String, Instant)>);

impl Complaints {
    pub fn add(&mut self, clock: &Clock, subject: &'static str, text: String) {
        let now = clock.now();
        let is_old = |(last, at): &(String, Instant)| *last == text && now < *at + COMPLAIN_EVERY;
        if !self.0.get(subject).is_some_and(is_old) {
            warn!("{text}, will retry");
            self.0.insert(subject, (text, now));
        }
    }

    /// It is right again, so that the next complaint is news.
    pub fn settle(&mut self, subject: &'static str) {
        self.0.remove(subject);
    }
}
