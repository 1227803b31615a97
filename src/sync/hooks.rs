//! Lifecycle hooks: postStart before anything else starts, preStop before a container is
//! told to end.
//!
//! A hook is a task that belongs to the worker and not to the pass that began it. While a
//! postStart hook runs, passes go on: its container counts as one that has not begun, and the
//! plan holds back what would start after it. And while a preStop hook runs, a wish to stop
//! sooner interrupts the pass, and the next one goes on waiting for the same hook, under the
//! new grace. So a hook runs once in a worker's life, however often the stop has to be tried,
//! and takes its time off the grace but once. A start that was taken for failed may have had its
//! effect: who finds the container running begins its hook then.
//!
//! Always true: no hook keeps a container from being stopped, failed, or stuck; what stops is
//! not waited for to start.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{self, BoxFuture, Shared};
use k8s_openapi::api::core::v1::{Container as ContainerSpec, ContainerPort, LifecycleHandler, Pod};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, info, warn};

use super::execute::Round;
use super::plan::StopWhy;
use super::report::pod_ip;
use crate::cri::{Container, ContainerId, ContainerState, Executed, annotations};
use crate::events::{EventType, Recorder};
use crate::handlers::{self, Answer, Call, CallError, Caller, Place};
use crate::metrics;
use crate::net::{BODY_BYTES_MAX, HttpGet, NetError, Scheme};
use crate::pleg::PodRuntime;
use crate::pod::{self, containers::Role};
use crate::probes::Standings;

/// What every hook needs, made once.
#[derive(Clone)]
pub struct Hooks {
    pub caller: Caller,
    /// `kube-lifecycle/1.36`.
    pub user_agent: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    PostStart,
    PreStop,
}

/// The hooks a worker has begun, by instance. Dropping it ends them.
#[derive(Default)]
pub struct BegunHooks {
    all: Mutex<BTreeMap<(ContainerId, Moment), Begun>>,
    /// Instances that were stopped since the runtime was read.
    stopped: Mutex<BTreeSet<ContainerId>>,
    /// Instances whose start was taken for failed. It may have had its effect, or have it yet.
    unsure_starts: Mutex<BTreeSet<ContainerId>>,
    post_start_ended: Arc<Notify>,
}

struct Begun {
    /// None if it was given up.
    _task: Option<AbortOnDropHandle<()>>,
    at: Instant,
    end: End,
}

impl Begun {
    fn runs(&self) -> bool {
        self.end.clone().now_or_never().is_none()
    }
}

/// How a hook ended, and when; the text says what went wrong.
#[derive(Clone)]
struct Ended {
    at: Instant,
    result: Result<(), String>,
}

type End = Shared<BoxFuture<'static, Ended>>;

/// A postStart hook that its container has not got over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PostStart {
    Running,
    /// Or it was given up for a stop; the container does not run on without it.
    Failed(String),
}

/// Such hooks, by instances that run.
pub type PostStarts = BTreeMap<ContainerId, PostStart>;

impl BegunHooks {
    /// Drops those of instances that are gone. What was begun after the runtime was read is too.
    pub fn retain(&self, runtime: &PodRuntime) {
        self.all().retain(|(id, _), _| runtime.containers.iter().any(|container| container.id == *id));
        self.stopped().clear();
        let lives = |id: &ContainerId| runtime.containers.iter().any(|it| it.id == *id && it.exit().is_none());
        self.unsure_starts().retain(lives);
    }

    pub fn note_unsure_start(&self, id: &ContainerId) {
        self.unsure_starts().insert(id.clone());
    }

    pub fn note_stop(&self, id: &ContainerId) {
        self.stopped().insert(id.clone());
    }

    /// What was stopped since the runtime was read is not ready: an answer to its probe may come
    /// from what has taken its place.
    pub fn leave_out_stopped(&self, standings: &mut Standings) {
        for id in self.stopped().iter() {
            if let Some(standing) = standings.get_mut(id) {
                standing.ready = standing.ready.map(|_| false);
            }
        }
    }

    pub fn post_starts(&self, runtime: &PodRuntime) -> PostStarts {
        let all = self.all();
        let of = |((id, moment), begun): (&(ContainerId, Moment), &Begun)| {
            let runs = runtime.containers.iter().any(|container| container.id == *id && container.is_running());
            if *moment != Moment::PostStart || !runs {
                return None;
            }
            match begun.end.clone().now_or_never() {
                None => Some((id.clone(), PostStart::Running)),
                Some(Ended { result: Ok(()), .. }) => None,
                Some(Ended { result: Err(message), .. }) => Some((id.clone(), PostStart::Failed(message))),
            }
        };
        all.iter().filter_map(of).collect()
    }

    /// Whether what comes next has to wait.
    pub fn runs_post_start(&self) -> bool {
        let runs =
            |((_, moment), begun): (&(ContainerId, Moment), &Begun)| *moment == Moment::PostStart && begun.runs();
        self.all().iter().any(runs)
    }

    pub fn failed_post_start(&self, id: &ContainerId) -> Option<String> {
        self.all().get(&(id.clone(), Moment::PostStart))?.end.clone().now_or_never()?.result.err()
    }

    /// Waits until a postStart hook has ended since the last wait.
    pub async fn post_start_ended(&self) {
        self.post_start_ended.notified().await;
    }

    /// What is being stopped needs no help with its start.
    pub fn give_up_post_start(&self, id: &ContainerId) {
        self.give_up(|known| known == id);
    }

    pub fn give_up_post_starts(&self) {
        self.give_up(|_| true);
    }

    fn give_up(&self, is_meant: impl Fn(&ContainerId) -> bool) {
        for ((id, moment), begun) in self.all().iter_mut() {
            if *moment == Moment::PostStart && is_meant(id) && begun.runs() {
                let result = Err("given up, because the container has to stop".to_owned());
                let end = future::ready(Ended { at: begun.at, result });
                *begun = Begun { _task: None, at: begun.at, end: end.boxed().shared() };
            }
        }
    }

    fn unsure_starts(&self) -> MutexGuard<'_, BTreeSet<ContainerId>> {
        self.unsure_starts.lock().expect("nothing that holds the unsure starts can panic")
    }

    fn stopped(&self) -> MutexGuard<'_, BTreeSet<ContainerId>> {
        self.stopped.lock().expect("nothing that holds the stopped instances can panic")
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<(ContainerId, Moment), Begun>> {
        self.all.lock().expect("nothing that holds the hooks can panic")
    }
}

/// The runtime as clients and probes see it: an instance has not begun before its postStart
/// hook is through.
pub fn as_shown<'a>(runtime: &'a PodRuntime, post_starts: &PostStarts) -> Cow<'a, PodRuntime> {
    let mut shown = Cow::Borrowed(runtime);
    if !post_starts.is_empty() {
        let begins = |container: &&mut Container| post_starts.contains_key(&container.id);
        let all = shown.to_mut().containers.iter_mut();
        all.filter(begins).for_each(|container| container.state = ContainerState::Created);
    }
    shown
}

/// A hook that sleeps. Dropped, it was woken before its time.
struct Nap;

impl Drop for Nap {
    fn drop(&mut self) {
        metrics::pods::SLEEPS_CUT_SHORT.add([]);
    }
}

/// A hook with everything looked up that it needs.
struct Hook {
    hooks: Hooks,
    handler: LifecycleHandler,
    container: ContainerSpec,
    id: ContainerId,
    ip: Option<IpAddr>,
    recorder: Recorder,
    pod: Arc<Pod>,
}

/// Begins the postStart hook of a container that has just been started, if it has one.
pub fn begin_post_start(round: &Round<'_>, spec: &ContainerSpec, id: &ContainerId) {
    round.begun_hooks.unsure_starts().remove(id);
    let handler = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.clone());
    if let Some(handler) = handler {
        let begun = hook(round, handler, spec.clone(), id).begin(round, Moment::PostStart);
        round.begun_hooks.all().insert((id.clone(), Moment::PostStart), begun);
    }
}

/// Begins those of containers that run after all, by starts that were taken for failed; says which
/// containers these are.
pub fn begin_late_post_starts(round: &Round<'_>) -> Vec<String> {
    let is_late = |it: &&Container| it.is_running() && round.begun_hooks.unsure_starts().remove(&it.id);
    let late = round.runtime.containers.iter().filter(is_late).map(|container| {
        info!(container = container.name, id = %container.id, "has begun after all");
        if let Some(spec) = round.spec(&container.name) {
            begin_post_start(round, &spec, &container.id);
        }
        container.name.clone()
    });
    late.collect()
}

/// Runs the preStop hook of a container, if it has one, or waits for one that runs. Gives
/// back what is left of the grace.
pub async fn pre_stop(round: &Round<'_>, name: &str, id: &ContainerId, grace: Duration) -> Duration {
    if grace.is_zero() {
        return grace;
    }
    let Some((begun, end)) = begin_pre_stop(round, name, id) else { return grace };
    // A shorter grace begins when it is asked for. Whatever a sidecar has waited is off its own.
    let from = match is_sidecar(round, name) {
        true => round.context.clock.now(),
        false => round.stopping_since.map_or(begun, |since| since.max(begun)),
    };
    match timeout(grace.saturating_sub(from.elapsed()), end).await {
        Ok(ended) => grace.saturating_sub(ended.at.saturating_duration_since(from)),
        Err(_) => {
            warn!(container = name, grace_seconds = grace.as_secs(), "preStop hook lasts over the grace period");
            Duration::ZERO
        }
    }
}

fn is_sidecar(round: &Round<'_>, name: &str) -> bool {
    matches!(pod::containers::find(&round.wish.pod, name), Some((Role::Sidecar, _)))
}

/// A sidecar waits with its end for the others, but hears with them that the pod stops.
pub fn begin_pre_stop_of_sidecars(round: &Round<'_>) {
    for container in round.runtime.may_run() {
        let grace = round.grace(&container.name, &container.id, StopWhy::PodStops);
        if is_sidecar(round, &container.name) && !grace.is_zero() {
            begin_pre_stop(round, &container.name, &container.id);
        }
    }
}

/// When it was begun, and its end.
fn begin_pre_stop(round: &Round<'_>, name: &str, id: &ContainerId) -> Option<(Instant, End)> {
    let mut all = round.begun_hooks.all();
    let key = (id.clone(), Moment::PreStop);
    if let Some(begun) = all.get(&key) {
        return Some((begun.at, begun.end.clone()));
    }
    // What has ended by itself, or never began, has nothing to prepare.
    let instance = round.runtime.instances(name).find(|container| container.id == *id);
    if instance.is_some_and(|instance| !instance.is_running()) {
        return None;
    }
    let (handler, container) = match pod::containers::find(&round.wish.pod, name) {
        Some((_, spec)) => (spec.lifecycle.as_ref()?.pre_stop.clone()?, spec.into_owned()),
        // The spec is lost; the container itself carries what matters now.
        None => {
            let of = |key| instance?.annotations.get(key).map(String::as_str);
            let handler = serde_json::from_str(of(annotations::PRE_STOP_HANDLER)?).ok()?;
            let ports: Option<Vec<ContainerPort>> =
                of(annotations::PORTS).and_then(|ports| serde_json::from_str(ports).ok());
            (handler, ContainerSpec { name: name.to_owned(), ports, ..ContainerSpec::default() })
        }
    };
    info!(container = name, %id, "running the preStop hook");
    let begun = hook(round, handler, container, id).begin(round, Moment::PreStop);
    let known = (begun.at, begun.end.clone());
    all.insert(key, begun);
    Some(known)
}

fn hook(round: &Round<'_>, handler: LifecycleHandler, container: ContainerSpec, id: &ContainerId) -> Hook {
    Hook {
        hooks: round.context.hooks.clone(),
        handler,
        container,
        id: id.clone(),
        ip: pod_ip(round.context, round.wish, round.runtime),
        recorder: round.context.recorder.clone(),
        pod: round.wish.pod.clone(),
    }
}

impl Hook {
    fn begin(self, round: &Round<'_>, moment: Moment) -> Begun {
        let (ended, end) = oneshot::channel();
        let clock = round.context.clock.clone();
        let at = clock.now();
        let (wakes, uid) = (round.context.wakes.clone(), round.uid.clone());
        let post_start_ended = round.begun_hooks.post_start_ended.clone();
        let task = async move {
            let result = AssertUnwindSafe(self.run()).catch_unwind().await;
            let result = result.unwrap_or_else(|_| Err("the hook panicked".to_owned()));
            if let Err(error) = &result {
                self.tell_failure(moment, error);
            }
            // Nobody listens any more if the worker has gone.
            let _ = ended.send(Ended { at: clock.now(), result });
            if moment == Moment::PostStart {
                post_start_ended.notify_one();
                wakes.wake(&uid);
            }
        };
        let task = tokio::spawn(task.in_current_span());
        let end = end.map(move |end| end.unwrap_or(Ended { at, result: Ok(()) })).boxed().shared();
        Begun { _task: Some(AbortOnDropHandle::new(task)), at, end }
    }

    fn tell_failure(&self, moment: Moment, error: &str) {
        let name = &self.container.name;
        let (reason, message) = match moment {
            Moment::PostStart => ("FailedPostStartHook", "PostStartHook failed"),
            Moment::PreStop => ("FailedPreStopHook", "PreStopHook failed"),
        };
        warn!(container = name, error, "{message}, the container is stopped");
        let path = pod::field_path(&self.pod, name);
        self.recorder.pod(&self.pod, path.as_deref(), EventType::Warning, reason, message);
    }

    async fn run(&self) -> Result<(), String> {
        let place = Place { ports: self.container.ports.as_deref().unwrap_or_default(), ip: self.ip };
        if let Some(exec) = &self.handler.exec {
            // Word by word as written, unlike a probe's.
            self.exec(&Call::Exec { command: exec.command.clone().unwrap_or_default() }).await
        } else if let Some(get) = &self.handler.http_get {
            let request = handlers::http_get(get, place, &self.hooks.user_agent).map_err(|error| error.to_string())?;
            self.get(request).await
        } else if let Some(action) = &self.handler.sleep {
            let nap = Nap;
            sleep(Duration::from_secs(action.seconds.try_into().unwrap_or(0))).await;
            std::mem::forget(nap);
            Ok(())
        } else {
            // The API takes tcpSocket, for old objects' sake, and nobody has ever run one.
            Err("invalid handler: neither exec, httpGet nor sleep".to_owned())
        }
    }

    async fn exec(&self, call: &Call) -> Result<(), String> {
        let Call::Exec { command } = call else { return Ok(()) };
        let command = command.join(" ");
        match self.call(call).await {
            Ok(Answer::Executed(Executed::Exited { code, output })) if code != 0 => {
                let output = String::from_utf8_lossy(&output[..output.len().min(BODY_BYTES_MAX)]).into_owned();
                Err(format!("command '{command}' exited with {code}: {output}"))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(format!("command '{command}' could not be run: {error}")),
        }
    }

    /// Any answer will do, whatever its code, as upstream has it.
    async fn get(&self, request: HttpGet) -> Result<(), String> {
        let error = match self.call(&Call::Http(request.clone())).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if request.scheme == Scheme::Https && matches!(error, CallError::Net(NetError::NotTls)) {
            return self.get_plainly(request).await;
        }
        Err(format!("Get {:?}: {error}", request.to_string()))
    }

    /// HTTPS was asked for and the server speaks HTTP. Hooks used to ask in plain text
    /// whatever the scheme, and pods rely on it.
    async fn get_plainly(&self, mut request: HttpGet) -> Result<(), String> {
        let host = request.authority();
        request.scheme = Scheme::Http;
        // What was meant for an encrypted connection stays off this one.
        request.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
        match self.call(&Call::Http(request.clone())).await {
            Ok(_) => {
                metrics::pods::HTTP_FALLBACKS.add([]);
                let message =
                    format!("request to HTTPS lifecycle hook {host} got HTTP response, retry with HTTP succeeded");
                self.recorder.pod(&self.pod, None, EventType::Warning, "LifecycleHTTPFallback", message);
                Ok(())
            }
            Err(error) => Err(format!("Get {:?}: {error}", request.to_string())),
        }
    }

    async fn call(&self, call: &Call) -> Result<Answer, CallError> {
        self.hooks.caller.call(call, &self.id, None, &self.hooks.user_agent).await
    }
}
