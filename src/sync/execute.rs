//! Carries a plan out, one action after another, and says what became of each.
//!
//! Every action is idempotent, or its outcome is read back by the next pass. A failed action
//! ends the round for what depends on it, never for another container.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::hooks::BegunHooks;
use super::launch::{self, SandboxInputs};
use super::plan::{Action, StopWhy};
use super::retries::Step;
use super::user_namespaces::UserNamespaceError;
use super::wish::{Desired, StopCause};
use super::{Context, hooks, resize, start};
use crate::causes::chain;
use crate::cri::{self, ContainerId, CriError, IdRange, RuntimeHandler, SandboxConfig};
use crate::events::EventType;
use crate::metrics;
use crate::pleg::PodRuntime;
use crate::pod::containers::Role;
use crate::pod::dns::Resolver;
use crate::pod::{self, PodRef, PodUid};
use crate::status::StatusWriter;

/// The least time a container gets after SIGTERM, whatever was asked for.
const GRACE_MIN: Duration = Duration::from_secs(2);

/// So many containers of a pod are stopped at once, and so long after them the next ones. A pod has
/// one shim, and containerd's clogs when more of its processes end than it has room to remember (32):
/// it then takes a second for each, and holds up what other pods have to tell meanwhile.
const STOPS_AT_ONCE: usize = 8;
const STOP_PACE: Duration = Duration::from_millis(500);

/// The reason of a container that waits until an earlier instance is removed.
const REMOVAL_FAILED: &str = "RemovalFailed";

/// The reason of events about volumes.
pub const FAILED_MOUNT: &str = "FailedMount";

/// One step and how it went.
pub struct Done {
    pub step: Step,
    pub result: Result<(), StartFailure>,
}

/// Why something could not be done, as the container status shall say it.
#[derive(Clone, Debug)]
pub struct StartFailure {
    pub reason: String,
    pub message: String,
    /// When a retry makes sense, if that is known better than by counting failures.
    pub retry_at: Option<Instant>,
}

impl StartFailure {
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        StartFailure { reason: reason.to_owned(), message: message.into(), retry_at: None }
    }
}

impl fmt::Display for StartFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

/// A pod in one round of actions.
pub struct Round<'a> {
    pub context: &'a Context,
    pub uid: &'a PodUid,
    pub wish: &'a Desired,
    pub runtime: &'a PodRuntime,
    pub begun_hooks: &'a BegunHooks,
    /// Since when the pod stops under the grace it has now, or ends what it runs for a new sandbox.
    pub stopping_since: Option<Instant>,
}

pub async fn execute(round: &Round<'_>, actions: &[Action]) -> Vec<Done> {
    // A call that we give up on may still have an effect.
    let _changing = round.context.pleg.changing(round.uid);

    if let [Action::Prepare, Action::CreateSandbox { attempt, replaces }] = actions {
        // Neither needs the other, and each takes its time.
        let (prepared, created) = tokio::join!(round.prepare(), round.create_sandbox(*attempt, *replaces));
        return vec![Done { step: Step::Prepare, result: prepared }, Done { step: Step::Sandbox, result: created }];
    }
    if actions.iter().any(|action| matches!(action, Action::StopContainer { why: StopWhy::PodStops, .. })) {
        hooks::begin_pre_stop_of_sidecars(round);
    }
    if actions.iter().all(|action| matches!(action, Action::StopContainer { .. })) {
        return stop_in_turn(round, actions).await;
    }
    let mut done = Vec::new();
    for action in actions {
        let one = round.one(action).await;
        let failed_stop =
            one.result.is_err() && matches!(action, Action::StopContainer { .. } | Action::RemoveContainer { .. });
        done.push(one);
        // The successor of what runs must not start beside it, and what comes after a postStart
        // hook is for the next plan.
        let is_start = matches!(action, Action::StartContainer { .. } | Action::ResumeContainer { .. });
        if failed_stop || (is_start && round.begun_hooks.runs_post_start()) {
            break;
        }
    }
    done
}

/// Those that wait for their turn have their whole grace from then on.
async fn stop_in_turn(round: &Round<'_>, stops: &[Action]) -> Vec<Done> {
    let turns = stops.chunks(STOPS_AT_ONCE).zip(0..);
    let in_turn = turns.flat_map(|(turn, number)| {
        turn.iter().map(move |stop| async move {
            tokio::time::sleep(STOP_PACE * number).await;
            round.one(stop).await
        })
    });
    join_all(in_turn).await
}

impl Round<'_> {
    async fn one(&self, action: &Action) -> Done {
        let (step, result) = match action {
            Action::Prepare => (Step::Prepare, self.prepare().await),
            Action::CreateSandbox { attempt, replaces } => {
                (Step::Sandbox, self.create_sandbox(*attempt, *replaces).await)
            }
            Action::StopSandbox { id } => (Step::Sandbox, self.stopped(self.context.runtime.stop_sandbox(id).await)),
            Action::RemoveSandbox { id } => (Step::Sandbox, removed(self.context.runtime.remove_sandbox(id).await)),
            Action::Resize(resize) => (Step::Resize, resize::carry_out(self, resize).await),
            Action::StartContainer { name, kind, attempt, waits } => {
                (Step::Container(name.clone()), start::start(self, name, *kind, *attempt, *waits).await)
            }
            Action::ResumeContainer { name, id } => {
                (Step::Container(name.clone()), start::resume(self, name, id).await)
            }
            Action::StopContainer { name, id, why } => {
                (Step::Container(name.clone()), self.stop_container(name, id, *why).await)
            }
            Action::RemoveContainer { name, id, keep_log } => {
                (Step::Removal(name.clone()), self.remove_container(name, id, *keep_log).await)
            }
        };
        Done { step, result }
    }

    async fn prepare(&self) -> Result<(), StartFailure> {
        let pod = &self.wish.pod;
        let context = self.context;
        let settings = resize::first_pod_cgroup(pod, self.runtime, &self.wish.places, &context.config.launch);
        if let Err(error) = context.cgroups.ensure(self.uid, pod, &settings).await {
            let message = format!("unable to ensure pod container exists: {}", chain(&error));
            warn!(error = chain(&error), "cannot make the pod's cgroup, will retry");
            self.pod_event(EventType::Warning, "FailedCreatePodContainer", message.clone());
            return Err(StartFailure::new("FailedCreatePodContainer", message));
        }
        context.objects.register(pod);
        if let Err(error) = context.host.make_dir(&self.pod_dir(), 0o750).await {
            let message = format!("error making pod data directories: {}", chain(&error));
            self.pod_event(EventType::Warning, "Failed", message.clone());
            return Err(StartFailure::new("Failed", message));
        }
        // A namespace and a name that the API server takes may be too long for it together.
        if let Err(error) = context.host.make_dir(&self.log_dir(), 0o755).await {
            let message =
                format!("Failed to create pod sandbox: cannot make the pod's log directory: {}", chain(&error));
            self.pod_event(EventType::Warning, "FailedCreatePodSandBox", message.clone());
            return Err(StartFailure::new("FailedCreatePodSandBox", message));
        }
        if let Err(error) = context.volumes.mount(pod).await {
            warn!(error = chain(&error), "volumes not ready, will retry");
            // The text without its causes: those name places on the host.
            for text in error.texts() {
                self.pod_event(EventType::Warning, FAILED_MOUNT, text);
            }
            return Err(StartFailure::new(FAILED_MOUNT, error.to_string()));
        }
        Ok(())
    }

    async fn create_sandbox(&self, attempt: u32, replaces: bool) -> Result<(), StartFailure> {
        let has_users = pod::spec(&self.wish.pod).host_users == Some(false);
        metrics::pods::STARTED_PODS.add([]);
        if has_users {
            metrics::pods::STARTED_PODS_WITH_USERS.add([]);
        }
        let result = self.make_sandbox(attempt, replaces).await;
        if result.is_err() {
            metrics::pods::STARTED_PODS_ERRORS.add([]);
            if has_users {
                metrics::pods::STARTED_PODS_WITH_USERS_ERRORS.add([]);
            }
        }
        result
    }

    async fn make_sandbox(&self, attempt: u32, replaces: bool) -> Result<(), StartFailure> {
        if replaces {
            self.pod_event(
                EventType::Normal,
                "SandboxChanged",
                "Pod sandbox changed, it will be killed and re-created.",
            );
        }
        let handler = match self.runtime_handler().await {
            Ok(handler) => handler,
            Err(message) => return Err(self.sandbox_failed(message)),
        };
        // A pod would keep an empty answer for as long as its sandbox lives, so it waits for a good one.
        let config = match self.context.config.resolver.read(&*self.context.host).await {
            Ok(resolver) => self.sandbox_config(attempt, &handler, &resolver).await,
            Err(message) => Err(message),
        };
        let config = match config {
            Ok(config) => config,
            Err(message) => return Err(self.sandbox_failed(message)),
        };
        let began = self.context.clock.now();
        let made = self.context.runtime.run_sandbox(&config).await;
        metrics::runtime::ran_sandbox(&handler, self.context.clock.now() - began, made.is_ok());
        match made {
            Ok(id) => {
                debug!(sandbox = %id, attempt, "sandbox created");
                Ok(())
            }
            Err(error) => Err(self.sandbox_failed(error.own_words())),
        }
    }

    fn sandbox_failed(&self, message: String) -> StartFailure {
        warn!(error = message, "sandbox not created, will retry");
        self.pod_event(
            EventType::Warning,
            "FailedCreatePodSandBox",
            format!("Failed to create pod sandbox: {message}"),
        );
        StartFailure::new("FailedCreatePodSandBox", message)
    }

    /// What the pod's RuntimeClass calls it; empty is the default one.
    async fn runtime_handler(&self) -> Result<String, String> {
        let class = pod::spec(&self.wish.pod).runtime_class_name.as_deref().unwrap_or_default();
        if class.is_empty() {
            return Ok(String::new());
        }
        self.context.objects.runtime_handler(class).await.map_err(|error| error.to_string())
    }

    /// What the runtime says it can do in a handler.
    pub fn features(&self, handler: &str) -> Option<RuntimeHandler> {
        let health = self.context.pleg.health();
        let health = health.borrow();
        let (_, status) = health.status.as_ref()?;
        status.handlers.iter().find(|known| known.name == handler).cloned()
    }

    /// The pod's own user ids, if it asks for any.
    async fn users(&self, handler: &str) -> Result<Option<IdRange>, String> {
        if pod::spec(&self.wish.pod).host_users != Some(false) {
            return Ok(None);
        }
        if self.context.pleg.health().borrow().status.is_none() {
            return Err("the runtime has not told yet whether it supports user namespaces".to_owned());
        }
        if !self.features(handler).is_some_and(|features| features.user_namespaces) {
            return Err(UserNamespaceError::Unsupported.to_string());
        }
        self.context.user_namespaces.range(self.uid).await.map(Some).map_err(|error| chain(&error))
    }

    /// The configuration every call about this sandbox carries.
    pub async fn sandbox_config(
        &self,
        attempt: u32,
        handler: &str,
        resolver: &Resolver,
    ) -> Result<SandboxConfig, String> {
        let inputs = SandboxInputs {
            attempt,
            resolver,
            runtime_handler: handler,
            users: self.users(handler).await?,
            config: &self.context.config.launch,
        };
        let (config, warnings) = launch::sandbox_config(&self.wish.pod, inputs).map_err(|error| error.to_string())?;
        for warning in warnings {
            if let Some(of_node) = warning.of_node {
                self.context.recorder.node(EventType::Warning, warning.reason, of_node);
            }
            self.pod_event(EventType::Warning, warning.reason, warning.message);
        }
        Ok(config)
    }

    async fn stop_container(&self, name: &str, id: &ContainerId, why: StopWhy) -> Result<(), StartFailure> {
        // With the last container the pod ends, and upstream says that instead.
        let message = match why {
            StopWhy::ProbeFailed { will_restart: false, .. } if self.is_last_regular(name) => {
                stop_message(&self.wish.pod, name, StopWhy::PodStops)
            }
            _ => stop_message(&self.wish.pod, name, why),
        };
        let grace = self.grace(name, id, why);
        info!(container = name, %id, ?why, grace_seconds = grace.as_secs(), "stopping container");
        self.container_event(name, EventType::Normal, "Killing", message);
        self.begun_hooks.give_up_post_start(id);
        let rest = hooks::pre_stop(self, name, id, grace).await.max(GRACE_MIN);
        self.stopped(self.context.runtime.stop_container(id, rest).await)?;
        self.begun_hooks.note_stop(id);
        Ok(())
    }

    /// All other regular containers of the pod have ended.
    fn is_last_regular(&self, name: &str) -> bool {
        let others = pod::containers::regular_containers(&self.wish.pod).iter().filter(|spec| spec.name != name);
        others.into_iter().all(|spec| self.runtime.newest(&spec.name).is_some_and(|newest| newest.exit().is_some()))
    }

    /// How long the container may take to end.
    pub fn grace(&self, name: &str, id: &ContainerId, why: StopWhy) -> Duration {
        // What is in the way of a restart of all has nothing to put in order.
        if why == StopWhy::AllRestart {
            return Duration::ZERO;
        }
        let spec_grace = self.wish.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        // The spec of an orphan is lost, but its containers carry its grace.
        let own = spec_grace.or_else(|| {
            let container = self.runtime.instances(name).find(|container| container.id == *id)?;
            container.annotations.get(cri::annotations::POD_TERMINATION_GRACE_PERIOD)?.parse().ok()
        });
        // A probe may have a grace of its own, for a container that will not react to SIGTERM.
        let of_probe = match why {
            StopWhy::ProbeFailed { probe, .. } => pod::containers::find(&self.wish.pod, name)
                .and_then(|(_, spec)| probe.of(&spec)?.termination_grace_period_seconds),
            _ => None,
        };
        let seconds = self.wish.grace_seconds().or(of_probe).or(own).unwrap_or(0);
        let whole = Duration::from_secs(seconds.max(0).unsigned_abs());
        // A sidecar has waited for the others, and the pod's grace went on meanwhile.
        let is_sidecar = matches!(pod::containers::find(&self.wish.pod, name), Some((Role::Sidecar, _)));
        let waited = self.stopping_since.filter(|_| is_sidecar).map(|since| self.context.clock.now() - since);
        whole.saturating_sub(waited.unwrap_or_default())
    }

    /// A container's log goes with it, and before it: while the container is there, a removal
    /// that was cut off is planned again.
    async fn remove_container(&self, name: &str, id: &ContainerId, keep_log: bool) -> Result<(), StartFailure> {
        if let Some(container) = self.runtime.instances(name).find(|container| container.id == *id) {
            if container.exit().is_none() {
                self.check_lifeless(name, id).await?;
            }
            self.context.logs.release(self.uid, id).await;
            let removed = match keep_log {
                true => start::remove_logs_before(self, container).await,
                false => start::remove_logs(self, container).await,
            };
            removed.map_err(|error| {
                warn!(error = chain(&error), container = name, "log of a dead container not removed, will retry");
                StartFailure::new(REMOVAL_FAILED, error.to_string())
            })?;
        }
        removed(self.context.runtime.remove_container(id).await)
    }

    /// What had not begun when the plan was made may have since, by a call that was given up. It
    /// has to be stopped, and its hooks heard.
    async fn check_lifeless(&self, name: &str, id: &ContainerId) -> Result<(), StartFailure> {
        match self.context.runtime.container_status(id).await {
            Ok(container) if container.is_running() => {
                info!(container = name, %id, "has begun meanwhile, is not removed");
                Err(StartFailure::new("FailedKillPod", format!("container {name} has begun meanwhile")))
            }
            Ok(_) => Ok(()),
            Err(error) => removed(Err(error)),
        }
    }

    /// What is already gone counts as done.
    fn stopped(&self, result: cri::Result<()>) -> Result<(), StartFailure> {
        match result {
            Ok(()) | Err(CriError::NotFound { .. }) => Ok(()),
            Err(error) => {
                warn!(%error, "not stopped, will retry");
                let message = format!("error killing pod: {error}");
                self.pod_event(EventType::Warning, "FailedKillPod", message.clone());
                Err(StartFailure::new("FailedKillPod", message))
            }
        }
    }

    pub fn log_dir(&self) -> PathBuf {
        self.context.config.pod_logs_dir.join(pod::log_directory_name(&PodRef::of(&self.wish.pod)))
    }

    pub fn pod_dir(&self) -> PathBuf {
        self.context.config.root_dir.join("pods").join(self.uid.as_str())
    }

    /// The spec of a container. An ephemeral one is read as an ordinary one.
    pub fn spec(&self, name: &str) -> Option<Cow<'_, ContainerSpec>> {
        pod::containers::find(&self.wish.pod, name).map(|(_, spec)| spec)
    }

    pub fn pod_event(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        self.context.recorder.pod(&self.wish.pod, None, kind, reason, message);
    }

    pub fn container_event(&self, name: &str, kind: EventType, reason: &str, message: impl Into<String>) {
        let path = pod::field_path(&self.wish.pod, name);
        self.context.recorder.pod(&self.wish.pod, path.as_deref(), kind, reason, message);
    }
}

/// The same of what is removed. That is for the log alone: nobody's pod is the worse for it.
fn removed(result: cri::Result<()>) -> Result<(), StartFailure> {
    match result {
        Ok(()) | Err(CriError::NotFound { .. }) => Ok(()),
        Err(error) => {
            warn!(%error, "not removed, will retry");
            Err(StartFailure::new(REMOVAL_FAILED, error.to_string()))
        }
    }
}

/// What is told of a container that is stopped, in upstream's words. It calls sidecars init
/// containers, and does not say of them that they will be back.
pub(super) fn stop_message(pod: &Pod, name: &str, why: StopWhy) -> String {
    let (subject, back) = match pod::containers::find(pod, name) {
        Some((Role::Init | Role::Sidecar, _)) => ("Init container", ""),
        _ => ("Container", ", will be restarted"),
    };
    match why {
        StopWhy::PodStops | StopWhy::SandboxReplaced => format!("Stopping container {name}"),
        StopWhy::StateUnknown => format!("{subject} is in \"unknown\" state, try killing it before restart"),
        StopWhy::DefinitionChanged => format!("{subject} {name} definition changed{back}"),
        StopWhy::AllRestart => "killing".to_owned(),
        StopWhy::HookFailed => "FailedPostStartHook".to_owned(),
        StopWhy::Resized => format!("Container {name} resize requires restart"),
        StopWhy::ProbeFailed { probe, will_restart } => {
            let kind = probe.to_string().to_lowercase();
            format!("{subject} {name} failed {kind} probe{}", if will_restart { back } else { "" })
        }
    }
}

/// Takes down what an ended pod held outside the runtime.
pub async fn clean(context: &Context, uid: &PodUid) -> Result<(), String> {
    context.volumes.unmount(uid).await.map_err(|error| chain(&error))?;
    context.user_namespaces.release(uid);
    context.objects.unregister(uid);
    context.cgroups.remove(uid).await.map_err(|error| chain(&error))
}

/// The last step of a pod that is wished away: its logs, and its API object.
pub async fn take_leave(context: &Context, uid: &PodUid, wish: &Desired) -> Result<(), String> {
    let reference = PodRef::of(&wish.pod);
    // By the UID alone: of an orphan the names may be lost.
    let logs = &context.config.pod_logs_dir;
    for dir in context.host.list_dir(logs).await.map_err(|error| chain(&error))? {
        if pod::uid_of_log_directory(&dir) == Some(uid.as_str()) {
            context.host.remove_tree(&logs.join(dir)).await.map_err(|error| chain(&error))?;
        }
    }
    if let Some(status) = deletion(context, wish) {
        status.delete_pod(&reference).await;
    }
    Ok(())
}

/// Waits until whoever watches the pod can see how it ended, for as long as the API server is away.
pub async fn tell_the_end(context: &Context, uid: &PodUid, wish: &Desired) {
    if let Some(status) = deletion(context, wish) {
        status.flushed(uid).await;
    }
}

/// Who is told, and asked to delete, if the pod is deleted in the API.
fn deletion<'a>(context: &'a Context, wish: &Desired) -> Option<&'a StatusWriter> {
    let is_deleted = wish.stop.is_some_and(|stop| stop.cause == StopCause::Deleted);
    context.status.as_ref().filter(|_| is_deleted)
}
