//! In-place resize: what is allocated to a pod, and how its containers come to have it.
//!
//! The ledger of `admission/` decides what a pod gets of what it wishes. `decide.rs` is a pure
//! function from that and from what the runtime reports to what is to be done about it;
//! [`carry_out`] does it; [`Resizing`] is what a worker remembers in between.
//!
//! Nothing of it is kept in a file. What is allocated is in the pod's status, what containers
//! have is in the runtime, and whoever is killed in between goes on from the difference.
//!
//! Always true: the pod's cgroup holds the larger of what its containers have and of what they
//! shall have, so that it is raised before them and lowered after them; memory comes before
//! CPU, and what is given back before what is taken.

mod decide;
mod requested;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use serde::Serialize;
use tokio::sync::watch;
use tracing::{info, warn};

#[cfg(test)]
use decide::pod_cgroup;
pub use decide::{Resize, Update, UpdateKind, decide, first_pod_cgroup};
pub use requested::count_wishes;

use super::execute::{Round, StartFailure};
use super::wish::Desired;
use super::{Context, admit, launch};
use crate::admission::{Allocation, INFEASIBLE, Refusal};
use crate::causes::chain;
use crate::changes::Listener;
use crate::cri::{ContainerId, CriError, LinuxResources};
use crate::events::EventType;
use crate::host::CgroupSettings;
use crate::metrics;
use crate::node::NodeView;
use crate::pleg::PodRuntime;
use crate::pod::containers::{init_containers, regular_containers, workload_containers};
use crate::pod::{self, PodUid, allocation};
use crate::status::{self, PendingResize, ResizeInProgress, granted};

const DEFERRED: &str = "Deferred";

/// Does what was decided, up to the first thing that fails.
pub async fn carry_out(round: &Round<'_>, resize: &Resize) -> Result<(), StartFailure> {
    let began = round.context.clock.now();
    let result = do_resize(round, resize).await;
    metrics::resizes::carried_out(round.context.clock.now() - began, result.is_ok());
    result
}

async fn do_resize(round: &Round<'_>, resize: &Resize) -> Result<(), StartFailure> {
    let context = round.context;
    let failed = |message: String| StartFailure::new("ResizeError", message);
    for update in resize.updates.iter().filter(|update| update.kind == UpdateKind::LessMemory) {
        // The kernel would make the container fit, if need be by killing it.
        let usage = context.runtime.memory_usage(&update.id).await.map_err(|error| failed(error.to_string()))?;
        let limit = u64::try_from(update.resources.memory_limit_bytes).unwrap_or(0);
        if let Some(usage) = usage.filter(|usage| *usage > limit) {
            return Err(failed(format!(
                "attempting to set container {:?} memory limit ({limit}) below current usage ({usage})",
                update.name
            )));
        }
    }
    if let Some(settings) = &resize.pod_cgroup {
        if resize.lowers_pod_memory {
            check_memory_of_pod(round, settings).await?;
        }
        let written = context.cgroups.ensure(round.uid, &round.wish.pod, settings).await;
        written.map_err(|error| failed(format!("cannot resize the pod's cgroup: {}", chain(&error))))?;
    }
    for Update { name, id, kind, resources } in &resize.updates {
        info!(container = name, %id, ?kind, "resizing container");
        context.pleg.distrust(round.uid, id);
        match context.runtime.update_container(id, resources).await {
            // What is gone has nothing to be changed.
            Ok(()) | Err(CriError::NotFound { .. }) => {}
            Err(error) => return Err(failed(format!("cannot resize container {name:?}: {error}"))),
        }
    }
    Ok(())
}

/// The kernel would make the pod fit as well. Where every container has a limit of its own, that
/// was looked at for each of them.
async fn check_memory_of_pod(round: &Round<'_>, settings: &CgroupSettings) -> Result<(), StartFailure> {
    let has_limit = pod::spec(&round.wish.pod).resources.as_ref().is_some_and(|resources| resources.limits.is_some());
    let Some(limit) = settings.memory_limit_bytes.filter(|_| has_limit) else { return Ok(()) };
    let mut usage = 0u64;
    for container in round.runtime.containers.iter().filter(|container| container.is_running()) {
        let used = match round.context.runtime.memory_usage(&container.id).await {
            Ok(used) => used.unwrap_or(0),
            Err(CriError::NotFound { .. }) => 0,
            Err(error) => return Err(StartFailure::new("ResizeError", error.to_string())),
        };
        usage = usage.saturating_add(used);
    }
    if usage <= limit {
        return Ok(());
    }
    let message = format!("attempting to set pod memory limit ({limit}) below current usage ({usage})");
    Err(StartFailure::new("ResizeError", message))
}

/// What the worker of a pod knows of its resizes.
pub struct Resizing {
    freed: Listener,
    node: watch::Receiver<Option<Arc<NodeView>>>,
    /// What the pod had at the look before and at the last one.
    before: Option<Arc<Pod>>,
    allocated: Option<Arc<Pod>>,
    /// The generation that wished for what is allocated.
    generation: Option<i64>,
    pending: Option<PendingResize>,
    /// The generation that was told to wait, and what for.
    pending_for: (Option<i64>, Option<String>),
    /// The wish was not judged, for want of a node.
    is_undecided: bool,
    /// A resize was told to have begun, and not to have come to its end.
    is_begun: bool,
    error: Option<String>,
    /// What the pod's cgroup was set to in this life of the worker.
    written: Option<CgroupSettings>,
    /// The same, and still so after a failure. The status tells it, and the next life of the agent
    /// begins with it: a limit that could not be lowered must not be told to have been.
    in_force: Option<CgroupSettings>,
    /// What instances were given.
    given: BTreeMap<ContainerId, LinuxResources>,
}

impl Resizing {
    pub fn new(context: &Context) -> Self {
        Resizing {
            freed: context.admission.freed(),
            node: context.node.clone(),
            before: None,
            allocated: None,
            generation: None,
            pending: None,
            pending_for: (None, None),
            is_undecided: false,
            is_begun: false,
            error: None,
            written: None,
            in_force: None,
            given: BTreeMap::new(),
        }
    }

    /// The wish with the resources that the pod gets. While the pod `is_open` to changes, it is
    /// given what it wishes for, if that can be.
    pub fn allocate(&mut self, context: &Context, uid: &PodUid, wish: &Desired, is_open: bool) -> Desired {
        if wish.source.is_static() {
            return wish.clone();
        }
        let first = self.allocated.is_none();
        if first {
            self.take_up(&wish.pod);
            self.allocated = Some(context.admission.allocated(uid, &wish.pod));
        }
        // Before the question, so that no news is lost between it and the wait for news.
        self.freed.mark_seen();
        self.node.borrow_and_update();
        // Most pods are never resized: they need not ask before each look.
        let asks = is_open && decide::may_be_resized(&wish.pod);
        let answer = if asks { admit::resize(context, uid, &wish.pod) } else { None };
        self.is_undecided = asks && answer.is_none();
        let Allocation { pod, pending } =
            answer.unwrap_or_else(|| Allocation { pod: context.admission.allocated(uid, &wish.pod), pending: None });

        let is_new = self.allocated.as_ref().is_some_and(|known| !allocation::is_allocated(&pod, known));
        self.before = self.allocated.replace(pod.clone());
        if is_new {
            info!("other resources are allocated");
            (self.is_begun, self.error, self.generation) = (true, None, wish.pod.metadata.generation);
            let message = format!("Pod resize started: {}", summary(&pod, None));
            context.recorder.pod(&pod, None, EventType::Normal, "ResizeStarted", message);
        }
        if !self.is_undecided {
            self.note_pending(context, wish, pending);
        }
        Desired { pod, ..wish.clone() }
    }

    /// What an earlier life of the agent told.
    fn take_up(&mut self, pod: &Pod) {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        for condition in conditions.iter().filter(|condition| condition.status == "True") {
            let message = condition.message.clone().unwrap_or_default();
            match (condition.type_.as_str(), condition.reason.as_deref()) {
                ("PodResizeInProgress", reason) => {
                    self.is_begun = true;
                    self.generation = condition.observed_generation;
                    self.error = reason.filter(|reason| *reason == "Error").map(|_| message);
                }
                ("PodResizePending", Some(reason)) => {
                    let reason = if reason == DEFERRED { DEFERRED } else { INFEASIBLE };
                    self.pending = Some(PendingResize { reason, message });
                    self.pending_for = (condition.observed_generation, None);
                }
                _ => {}
            }
        }
    }

    /// A wish that waits is told once: what others use meanwhile changes all the time.
    fn note_pending(&mut self, context: &Context, wish: &Desired, pending: Option<Refusal>) {
        let Some(why) = pending else {
            self.pending = None;
            return;
        };
        let (reason, event) = match why.reason == INFEASIBLE {
            true => (INFEASIBLE, "ResizeInfeasible"),
            false => (DEFERRED, "ResizeDeferred"),
        };
        let generation = wish.pod.metadata.generation;
        let (told_to, told_for) = &self.pending_for;
        let same_word = told_for.as_ref().is_none_or(|word| *word == why.reason);
        let is_told = self.pending.as_ref().is_some_and(|told| told.reason == reason) && *told_to == generation;
        if is_told && same_word {
            return;
        }
        info!(reason, message = why.message, "resize has to wait");
        let message = format!("Pod resize {}: {}", why.reason, summary(&wish.pod, Some(&why.message)));
        context.recorder.pod(&wish.pod, None, EventType::Warning, event, message);
        self.pending = Some(PendingResize { reason, message: why.message });
        self.pending_for = (generation, Some(why.reason));
    }

    /// Returns once a wish that waits may be judged otherwise.
    pub async fn room_changed(&mut self) {
        if self.pending.is_none() && !self.is_undecided {
            return std::future::pending().await;
        }
        // Cancel-safe, both: a change stays marked unseen until the next look.
        let gone = tokio::select! {
            biased;
            () = self.freed.changed() => false,
            changed = self.node.changed() => changed.is_err(),
        };
        if gone {
            std::future::pending().await
        }
    }

    /// What to do for the pod, whose directories and cgroup are there or not.
    pub fn decide(&mut self, context: &Context, wish: &Desired, runtime: &PodRuntime) -> Resize {
        let config = &context.config.launch;
        self.given.retain(|id, _| runtime.containers.iter().any(|instance| instance.id == *id));
        // Where the runtime does not say it, an instance has what was allocated when it was seen first.
        let seen_with = self.before.as_ref().unwrap_or(&wish.pod);
        for (_, spec) in workload_containers(seen_with).filter(|_| decide::may_be_resized(&wish.pod)) {
            if let Some(newest) = runtime.newest(&spec.name).filter(|newest| newest.resources.is_none()) {
                let resources = || launch::container_resources(seen_with, spec, &wish.places, config);
                self.given.entry(newest.id.clone()).or_insert_with(resources);
            }
        }
        let resize = decide(&wish.pod, runtime, &self.given, self.written.as_ref(), &wish.places, config);
        let is_done = !resize.is_under_way && !resize.is_action() && self.written.is_some();
        if resize.is_under_way && !self.is_begun {
            (self.is_begun, self.generation) = (true, wish.pod.metadata.generation);
        }
        if is_done && std::mem::take(&mut self.is_begun) {
            self.error = None;
            info!("the pod has the resources that are allocated to it");
            let message = format!("Pod resize completed: {}", summary(&wish.pod, None));
            context.recorder.pod(&wish.pod, None, EventType::Normal, "ResizeCompleted", message);
        }
        resize
    }

    /// The pod's cgroup was made, while the runtime was seen like this.
    pub fn prepared(&mut self, context: &Context, wish: &Desired, runtime: &PodRuntime) {
        self.written = Some(first_pod_cgroup(&wish.pod, runtime, &wish.places, &context.config.launch));
        self.in_force.clone_from(&self.written);
    }

    /// How carrying `resize` out went.
    pub fn carried_out(
        &mut self,
        context: &Context,
        wish: &Desired,
        resize: &Resize,
        result: Result<(), &StartFailure>,
    ) {
        match result {
            Ok(()) => {
                self.error = None;
                if let Some(settings) = &resize.pod_cgroup {
                    self.written = Some(settings.clone());
                    self.in_force.clone_from(&self.written);
                }
                for update in &resize.updates {
                    let spec = workload_containers(&wish.pod).find(|(_, spec)| spec.name == update.name);
                    let Some((_, spec)) = spec else { continue };
                    let target = launch::container_resources(&wish.pod, spec, &wish.places, &context.config.launch);
                    self.given.insert(update.id.clone(), target);
                }
            }
            Err(failure) => {
                warn!(error = failure.message, "resize not carried out, will retry");
                for update in &resize.updates {
                    self.given.remove(&update.id);
                }
                if resize.pod_cgroup.is_some() {
                    // It may be written or not: nothing is wanted that is like this.
                    self.written = Some(CgroupSettings::default());
                }
                if self.error.as_ref() != Some(&failure.message) {
                    let message = format!("Pod resize error: {}", summary(&wish.pod, Some(&failure.message)));
                    context.recorder.pod(&wish.pod, None, EventType::Warning, "ResizeError", message);
                }
                self.error = Some(failure.message.clone());
            }
        }
    }

    /// What the pod's cgroup was set to last, for all that is known.
    pub fn pod_cgroup(&self) -> Option<&CgroupSettings> {
        self.in_force.as_ref()
    }

    pub fn report(&self) -> status::Resize {
        let in_progress = ResizeInProgress { generation: self.generation, error: self.error.clone() };
        status::Resize { pending: self.pending.clone(), in_progress: self.is_begun.then_some(in_progress) }
    }
}

/// The resources of a pod on one line, as events tell them.
fn summary(pod: &Pod, error: Option<&str>) -> String {
    #[derive(Serialize)]
    struct Amounts {
        #[serde(skip_serializing_if = "Option::is_none")]
        limits: Option<BTreeMap<String, ApiQuantity>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        requests: Option<BTreeMap<String, ApiQuantity>>,
    }
    #[derive(Serialize)]
    struct Line<'a> {
        name: &'a str,
        resources: Amounts,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Summary<'a> {
        #[serde(skip_serializing_if = "Vec::is_empty")]
        init_containers: Vec<Line<'a>>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        containers: Vec<Line<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        generation: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'a str>,
    }
    fn lines(containers: &[ContainerSpec]) -> Vec<Line<'_>> {
        let line = |container| {
            let ResourceRequirements { limits, requests, .. } = granted(container);
            Amounts { limits, requests }
        };
        containers.iter().map(|container| Line { name: &container.name, resources: line(container) }).collect()
    }
    let summary = Summary {
        init_containers: lines(init_containers(pod)),
        containers: lines(regular_containers(pod)),
        generation: pod.metadata.generation,
        error,
    };
    serde_json::to_string(&summary).expect("keys are strings")
}
