//! What a running pod has to have beside its containers: API content in its volumes that is up to
//! date, and links to its logs.

use std::collections::BTreeSet;

use tokio::time::Instant;
use tracing::warn;

use super::execute::FAILED_MOUNT;
use super::retries::{Retries, Step};
use super::wish::Desired;
use super::{Context, start};
use crate::causes::chain;
use crate::cri::ContainerId;
use crate::events::EventType;
use crate::pleg::PodRuntime;
use crate::pod::{PodRef, PodUid};

/// ConfigMaps, Secrets and tokens that changed reach the pod's files here.
pub async fn refresh_volumes(context: &Context, wish: &Desired, retries: &mut Retries) {
    if retries.waits_for(&Step::Volumes).is_some() {
        return;
    }
    match context.volumes.refresh(&wish.pod).await {
        Ok(()) => drop(retries.succeeded(&Step::Volumes)),
        Err(error) => {
            warn!(error = chain(&error), "volume not refreshed, the old content stays for now");
            for text in error.texts() {
                context.recorder.pod(&wish.pod, None, EventType::Warning, FAILED_MOUNT, text);
            }
            retries.failed(Step::Volumes, None);
        }
    }
}

/// When they are due by themselves. A token may be due before the next try is.
pub fn next_refresh(context: &Context, uid: &PodUid, retries: &Retries) -> Option<Instant> {
    let due = context.volumes.next_refresh(uid)?;
    Some(retries.waits_for(&Step::Volumes).map_or(due, |next_try| due.max(next_try)))
}

/// Log collectors find what runs by a link. Who starts a container makes it; where that was cut off,
/// or nobody heard that the container began, it is made here.
#[derive(Default)]
pub struct LogLinks {
    /// Instances whose links are there.
    made: BTreeSet<ContainerId>,
}

impl LogLinks {
    pub async fn make(&mut self, context: &Context, wish: &Desired, runtime: &PodRuntime, retries: &mut Retries) {
        self.made.retain(|id| runtime.containers.iter().any(|container| container.id == *id));
        if retries.waits_for(&Step::Links).is_some() {
            return;
        }
        let pod = PodRef::of(&wish.pod);
        let mut has_failed = false;
        let missing = runtime.containers.iter().filter(|container| container.is_running());
        for container in missing.filter(|container| !self.made.contains(&container.id)).collect::<Vec<_>>() {
            match start::link_log(context, &pod, &container.name, &container.id, container.attempt).await {
                Ok(()) => drop(self.made.insert(container.id.clone())),
                Err(error) => {
                    warn!(error = chain(&error), container = container.name, "log link not made, will retry");
                    has_failed = true;
                }
            }
        }
        match has_failed {
            true => drop(retries.failed(Step::Links, None)),
            false => drop(retries.succeeded(&Step::Links)),
        }
    }
}
