//! A simulated container runtime.
//!
//! It carries calls out in tasks of its own: a caller that gives up, or is killed, does not
//! stop what it asked for, just as a real runtime goes on. It errs before and after the
//! effect, hangs, is away for a while, and loses, doubles and delays events.
//!
//! Checked here, at the moment it would happen: no container ever has two live instances,
//! and nothing of a pod that nobody touched is ever stopped.

mod resources;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use ferrolet::cri::{
    Auth, CgroupDriver, Container, ContainerConfig, ContainerId, ContainerState, ContainerSummary, CriError, Executed,
    Exit, FilesystemUsage, IdRange, Image, ImageSpec, LinuxResources, Result, Runtime, RuntimeCondition, RuntimeEvent,
    RuntimeEventKind, RuntimeHandler, RuntimeStatus, RuntimeVersion, Sandbox, SandboxConfig, SandboxId, SandboxState,
    Scope,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::faults::Fate;
use crate::host::Ground;
use crate::invariants::Invariant;
use crate::world::World;

/// The deadline a real client sets on each call.
const CALL_DEADLINE: Duration = Duration::from_secs(120);
/// How late a call that got no answer may take effect.
const LATE_MAX: Duration = Duration::from_secs(300);

#[derive(Clone)]
pub struct SimRuntime {
    world: World,
    ground: Ground,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<SandboxId, Sandbox>,
    log_directories: BTreeMap<SandboxId, PathBuf>,
    /// The user ids of sandboxes that have their own.
    users: BTreeMap<SandboxId, IdRange>,
    containers: BTreeMap<ContainerId, Instance>,
    listeners: Vec<mpsc::UnboundedSender<Result<RuntimeEvent>>>,
    /// Pods whose containers may be stopped: somebody deleted, changed or broke them.
    touched: BTreeSet<String>,
    /// Pods whose spec no source has any more: nobody can tell their sidecars.
    nameless: BTreeSet<String>,
    /// Containers without a shim: until then a stop says yes and does nothing. With when a
    /// second began, and how often they were stopped in it.
    deaf: BTreeMap<ContainerId, Deaf>,
    has_events: bool,
    down_until: Option<Instant>,
    made: u64,
    /// Bad answers in a row, by instance and exam.
    bad_answers: BTreeMap<(ContainerId, Exam), u32>,
    /// Instances that a probe may give up by now, and the pods they are of.
    given_up: BTreeSet<ContainerId>,
    hit_pods: BTreeSet<String>,
    /// Changes that were asked for since the record was last taken: pod UID and call.
    changes: Vec<(String, &'static str)>,
}

struct Deaf {
    until: Instant,
    second: Instant,
    stops: u32,
}

struct Instance {
    container: Container,
    pod_uid: String,
    pod_name: String,
    pod_namespace: String,
    program: Program,
    started: Option<Instant>,
}

/// Pods carry the names of their init containers in this annotation, which their sandboxes
/// inherit: so the runtime can tell whether their order is kept.
pub const INIT_ANNOTATION: &str = "simulation/init";
/// So begin the names of sidecars, and of no other container.
pub const SIDECAR_PREFIX: &str = "side";

/// So often a container may be stopped that does not end.
const STOPS_A_SECOND_MAX: u32 = 8;

/// A tenth of the size at which logs are rotated.
const CHATTER: &str =
    "a line of a hundred bytes, which is what the container has to say, over and over again, all its life..\n";

/// What a container does, as its command says.
#[derive(Clone, Debug, PartialEq)]
pub enum Program {
    /// Runs until told to end.
    Forever,
    /// As that, and says a line now and then.
    Chatty { every: Duration },
    /// Runs until killed: SIGTERM means nothing to it.
    Stubborn,
    /// Ends by itself.
    Exits { code: i32, after: Duration },
    /// Cannot be started at all.
    Broken,
}

impl Program {
    pub fn to_command(&self) -> Vec<String> {
        match self {
            Program::Forever => vec!["forever".into()],
            Program::Stubborn => vec!["stubborn".into()],
            Program::Chatty { every } => vec!["say".into(), every.as_millis().to_string()],
            Program::Exits { code, after } => vec!["exit".into(), code.to_string(), after.as_millis().to_string()],
            Program::Broken => vec!["broken".into()],
        }
    }

    pub fn from_command(command: &[String]) -> Self {
        match command.first().map(String::as_str) {
            Some("stubborn") => Program::Stubborn,
            Some("broken") => Program::Broken,
            Some("say") => {
                Program::Chatty { every: Duration::from_millis(command[1].parse().expect("written by to_command")) }
            }
            Some("exit") => Program::Exits {
                code: command[1].parse().expect("written by to_command"),
                after: Duration::from_millis(command[2].parse().expect("written by to_command")),
            },
            _ => Program::Forever,
        }
    }
}

/// The port of container `c0`; the others follow.
pub const FIRST_PORT: u16 = 8000;

/// How a container does in the eyes of one of its probes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    Always,
    /// From this long after its start.
    After(Duration),
    /// Until this long after its start.
    Until(Duration),
    Never,
}

impl Health {
    fn is_well_after(&self, lasted: Duration) -> bool {
        match self {
            Health::Always => true,
            Health::After(begin) => lasted >= *begin,
            Health::Until(end) => lasted < *end,
            Health::Never => false,
        }
    }
}

/// What a probe asks: it carries its own answer, in a word that fits into a path, a command
/// and a service name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exam {
    pub health: Health,
    /// So many bad answers in a row decide.
    pub threshold: u32,
    /// The container is killed then.
    pub kills: bool,
}

impl Exam {
    pub fn to_word(&self) -> String {
        let (health, time) = match self.health {
            Health::Always => ("always", Duration::ZERO),
            Health::After(time) => ("after", time),
            Health::Until(time) => ("until", time),
            Health::Never => ("never", Duration::ZERO),
        };
        format!("{health}.{}.{}.{}", time.as_millis(), self.threshold, self.kills)
    }

    pub fn parse(word: &str) -> Option<Self> {
        let parts: Vec<&str> = word.split('.').collect();
        let [health, time, threshold, kills] = parts.as_slice() else { return None };
        let time = Duration::from_millis(time.parse().ok()?);
        let health = match *health {
            "always" => Health::Always,
            "after" => Health::After(time),
            "until" => Health::Until(time),
            _ => Health::Never,
        };
        Some(Exam { health, threshold: threshold.parse().ok()?, kills: *kills == "true" })
    }
}

impl SimRuntime {
    pub fn new(world: World, ground: Ground, has_events: bool) -> Self {
        let state = State { has_events, ..State::default() };
        SimRuntime { world, ground, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing that holds the runtime can panic")
    }

    /// From now on the agent may stop containers of this pod.
    /// The pod's spec is taken away.
    pub fn lose_spec(&self, pod_uid: &str) {
        self.state().nameless.insert(pod_uid.to_owned());
    }

    pub fn touch(&self, pod_uid: &str) {
        self.state().touched.insert(pod_uid.to_owned());
    }

    pub fn pods(&self) -> BTreeSet<String> {
        let state = self.state();
        let of_sandboxes = state.sandboxes.values().map(|sandbox| sandbox.pod_uid.clone());
        of_sandboxes.chain(state.containers.values().map(|instance| instance.pod_uid.clone())).collect()
    }

    /// Ids of the running instances of one container.
    pub fn running(&self, pod_uid: &str, name: &str) -> Vec<ContainerId> {
        let state = self.state();
        let of_it =
            state.containers.values().filter(|instance| instance.pod_uid == pod_uid && instance.container.name == name);
        of_it.filter(|instance| instance.container.is_running()).map(|instance| instance.container.id.clone()).collect()
    }

    fn is_running(&self, id: &ContainerId) -> bool {
        self.state().containers.get(id).is_some_and(|instance| instance.container.is_running())
    }

    /// Names of all containers of the pod that run.
    pub fn running_in(&self, pod_uid: &str) -> Vec<String> {
        let state = self.state();
        let of_it = state.containers.values().filter(|instance| instance.pod_uid == pod_uid);
        of_it
            .filter(|instance| instance.container.is_running())
            .map(|instance| instance.container.name.clone())
            .collect()
    }

    /// The image an instance was made from, as its author wrote it.
    pub fn image(&self, id: &ContainerId) -> Option<String> {
        Some(self.state().containers.get(id)?.container.image.clone())
    }

    pub fn ready_sandboxes(&self, pod_uid: &str) -> usize {
        let state = self.state();
        state
            .sandboxes
            .values()
            .filter(|sandbox| sandbox.pod_uid == pod_uid && sandbox.state == SandboxState::Ready)
            .count()
    }

    /// How the newest instance of a container ended, if it did.
    pub fn newest_exit(&self, pod_uid: &str, name: &str) -> Option<i32> {
        let state = self.state();
        let of_it =
            state.containers.values().filter(|instance| instance.pod_uid == pod_uid && instance.container.name == name);
        let newest = of_it.max_by_key(|instance| (instance.container.attempt, instance.container.id.clone()))?;
        newest.container.exit().map(|exit| exit.exit_code)
    }

    /// Paths of the logs of all containers, and whether the container runs.
    pub fn logs(&self) -> Vec<(PathBuf, bool)> {
        let state = self.state();
        let all = state.containers.values().filter(|instance| instance.container.state != ContainerState::Created);
        all.map(|instance| (PathBuf::from(&instance.container.log_path), instance.container.is_running())).collect()
    }

    /// Whether so many answers to a probe went wrong that a container of the pod may have
    /// been killed for it.
    pub fn was_hit(&self, pod_uid: &str) -> bool {
        self.state().hit_pods.contains(pod_uid)
    }

    /// What a server of the pod with this address says on this port; `None` if none listens.
    pub fn answer(&self, ip: IpAddr, port: u16, exam: &str) -> Option<bool> {
        let id = self.listener(ip, port)?;
        Some(self.examine(&id, exam, false))
    }

    /// It would have answered, but nothing of it arrives.
    pub fn answer_is_lost(&self, ip: IpAddr, port: u16, exam: &str) {
        if let Some(id) = self.listener(ip, port) {
            self.examine(&id, exam, true);
        }
    }

    /// Servers listen on the port that is their container's number.
    fn listener(&self, ip: IpAddr, port: u16) -> Option<ContainerId> {
        let state = self.state();
        let home = state.sandboxes.values().find(|sandbox| sandbox.ips.contains(&ip))?;
        let name = format!("c{}", port.checked_sub(FIRST_PORT)?);
        let mut listening = state.containers.values().filter(|instance| {
            let container = &instance.container;
            container.sandbox_id == home.id && container.name == name && container.is_running()
        });
        listening.next().map(|instance| instance.container.id.clone())
    }

    fn examine(&self, id: &ContainerId, exam: &str, is_lost: bool) -> bool {
        let Some(exam) = Exam::parse(exam) else { return !is_lost };
        let mut state = self.state();
        let State { containers, bad_answers, given_up, hit_pods, .. } = &mut *state;
        let Some(instance) = containers.get(id) else { return false };
        let lasted = instance.started.map_or(Duration::ZERO, |started| started.elapsed());
        let is_good = !is_lost && exam.health.is_well_after(lasted);
        let bad = bad_answers.entry((id.clone(), exam.clone())).or_default();
        *bad = if is_good { 0 } else { *bad + 1 };
        if *bad >= exam.threshold && exam.kills {
            given_up.insert(id.clone());
            hit_pods.insert(instance.pod_uid.clone());
        }
        is_good
    }

    pub fn has_container(&self, id: &str) -> bool {
        self.state().containers.keys().any(|known| known.as_str() == id)
    }

    /// Takes the record of changes: pod UID and call.
    pub fn take_changes(&self) -> Vec<(String, &'static str)> {
        std::mem::take(&mut self.state().changes)
    }

    /// The runtime goes away and comes back: calls fail, streams end, containers go on.
    pub async fn outage(&self, length: Duration) {
        self.world.log(|| format!("runtime goes away for {length:?}"));
        {
            let mut state = self.state();
            let end = Instant::now() + length;
            state.down_until = state.down_until.max(Some(end));
            state.listeners.clear();
        }
        tokio::time::sleep(length).await;
        let mut state = self.state();
        if state.down_until.is_some_and(|until| until <= Instant::now()) {
            state.down_until = None;
            self.world.log(|| "runtime is back".into());
        }
    }

    /// Whatever was to go on being away is back.
    pub fn calm(&self) {
        self.state().down_until = None;
    }

    /// The kernel kills something: a container ends, or a sandbox with all that is in it.
    /// The answer is the pod it happened to.
    pub fn break_something(&self) -> Option<String> {
        let victim = {
            let state = self.state();
            let ready: Vec<_> = state
                .sandboxes
                .values()
                .filter(|sandbox| sandbox.state == SandboxState::Ready)
                .map(|sandbox| sandbox.id.clone())
                .collect();
            let running: Vec<_> = state
                .containers
                .values()
                .filter(|instance| instance.container.is_running())
                .map(|instance| instance.container.id.clone())
                .collect();
            self.world.random(|random| match random.u32(0..4) {
                0 if !ready.is_empty() => Some(Err(ready[random.usize(..ready.len())].clone())),
                _ if !running.is_empty() => Some(Ok(running[random.usize(..running.len())].clone())),
                _ => None,
            })
        };
        match victim? {
            Ok(id) => {
                let uid = self.state().containers.get(&id)?.pod_uid.clone();
                self.end(&id, 137);
                Some(uid)
            }
            Err(id) => {
                let (uid, inside): (String, Vec<_>) = {
                    let mut state = self.state();
                    let sandbox = state.sandboxes.get_mut(&id)?;
                    sandbox.state = SandboxState::NotReady;
                    let uid = sandbox.pod_uid.clone();
                    // What still runs in a dead sandbox has to be stopped.
                    state.touched.insert(uid.clone());
                    self.emit(&mut state, &uid, id.as_str(), RuntimeEventKind::Stopped);
                    let of_it = state.containers.values().filter(|instance| instance.container.sandbox_id == id);
                    let inside = of_it.map(|instance| instance.container.id.clone()).collect();
                    (uid, inside)
                };
                self.world.log(|| format!("sandbox {id} dies"));
                for container in inside {
                    if self.world.random(|random| random.bool()) {
                        self.end(&container, 137);
                    } else if self.world.random(|random| random.bool()) {
                        let deaf_for = self.world.random(|random| Duration::from_secs(random.u64(1..20)));
                        let now = Instant::now();
                        let deaf = Deaf { until: now + deaf_for, second: now, stops: 0 };
                        self.world.log(|| format!("container {container} is deaf for {deaf_for:?}"));
                        self.state().deaf.insert(container, deaf);
                    }
                }
                Some(uid)
            }
        }
    }

    /// Runs `effect` in a task of the runtime's own, with the fate of this call.
    async fn call<T: Send + 'static>(
        &self,
        name: &'static str,
        effect: impl FnOnce(&SimRuntime) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let runtime = self.clone();
        tokio::spawn(async move {
            let fate = runtime.world.fate().await;
            if runtime.state().down_until.is_some() {
                let _ = answer.send(Err(CriError::Unavailable { call: name, message: "connection refused".into() }));
                return;
            }
            let result = match fate {
                Fate::Good => effect(&runtime),
                Fate::Refused => Err(CriError::Failed { call: name, message: "simulated refusal".into() }),
                Fate::Lost => {
                    let _ = effect(&runtime);
                    Err(CriError::Unavailable { call: name, message: "simulated loss of the answer".into() })
                }
                Fate::Hangs { takes_effect } => {
                    if takes_effect {
                        runtime.world.be_late(LATE_MAX).await;
                        let _ = effect(&runtime);
                    }
                    // The answer never comes: the sender is kept until the deadline has passed.
                    tokio::time::sleep(CALL_DEADLINE * 3).await;
                    drop(answer);
                    return;
                }
            };
            let _ = answer.send(result);
        });
        match tokio::time::timeout(CALL_DEADLINE, answered).await {
            Ok(Ok(result)) => result,
            _ => Err(CriError::Timeout { call: name, after: CALL_DEADLINE }),
        }
    }

    /// Tells the listeners; what they hear may be less, more, or later than what happened.
    fn emit(&self, state: &mut State, pod_uid: &str, container_id: &str, kind: RuntimeEventKind) {
        let event = RuntimeEvent { pod_uid: pod_uid.to_owned(), container_id: container_id.to_owned(), kind };
        if !self.world.stream_trouble() {
            state.listeners.retain(|listener| listener.send(Ok(event.clone())).is_ok());
            return;
        }
        match self.world.random(|random| random.u32(0..4)) {
            0 => self.world.log(|| format!("event lost: {pod_uid} {kind:?}")),
            1 => {
                state.listeners.retain(|listener| {
                    listener.send(Ok(event.clone())).and_then(|()| listener.send(Ok(event.clone()))).is_ok()
                });
            }
            2 => {
                let listeners = state.listeners.clone();
                let delay = self.world.random(|random| Duration::from_millis(random.u64(1..5000)));
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    for listener in listeners {
                        let _ = listener.send(Ok(event.clone()));
                    }
                });
            }
            _ => {
                for listener in state.listeners.drain(..) {
                    let _ = listener.send(Err(CriError::Unavailable {
                        call: "GetContainerEvents",
                        message: "simulated break".into(),
                    }));
                }
            }
        }
    }

    /// A container ends, whoever made it.
    fn end(&self, id: &ContainerId, exit_code: i32) {
        let mut state = self.state();
        let now = self.world.clock.wall();
        let Some(instance) = state.containers.get_mut(id) else { return };
        let ContainerState::Running { started_at } = instance.container.state else { return };
        instance.container.state = ContainerState::Exited(Exit {
            started_at: Some(started_at),
            finished_at: Some(now),
            exit_code,
            reason: if exit_code == 0 { "Completed".into() } else { "Error".into() },
            message: String::new(),
        });
        let uid = instance.pod_uid.clone();
        self.world.log(|| format!("container {id} ends with {exit_code}"));
        self.emit(&mut state, &uid, id.as_str(), RuntimeEventKind::Stopped);
    }

    fn make_sandbox(&self, config: &SandboxConfig) -> Result<SandboxId> {
        let mut state = self.state();
        state.changes.push((config.pod_uid.clone(), "RunPodSandbox"));
        let taken = state
            .sandboxes
            .values()
            .any(|sandbox| sandbox.pod_uid == config.pod_uid && sandbox.attempt == config.attempt);
        if taken {
            let message = format!("name of pod {} attempt {} is reserved", config.pod_name, config.attempt);
            return Err(CriError::Failed { call: "RunPodSandbox", message });
        }
        state.made += 1;
        let made = state.made;
        let id = SandboxId::new(format!("sandbox-{made:04}"));
        let ip = std::net::Ipv4Addr::from(0x0a58_0000 + u32::try_from(made % 60_000).expect("less than 60,000"));
        let sandbox = Sandbox {
            id: id.clone(),
            pod_name: config.pod_name.clone(),
            pod_namespace: config.pod_namespace.clone(),
            pod_uid: config.pod_uid.clone(),
            attempt: config.attempt,
            state: SandboxState::Ready,
            created_at: self.world.clock.wall(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            ips: vec![ip.into()],
            network_mode: Some(config.security.namespaces.network),
            users: config.security.namespaces.users,
            runtime_handler: String::new(),
        };
        state.users.extend(config.security.namespaces.users.map(|users| (id.clone(), users)));
        state.sandboxes.insert(id.clone(), sandbox);
        state.log_directories.insert(id.clone(), PathBuf::from(&config.log_directory));
        self.world.log(|| format!("sandbox {id} made for {} attempt {}", config.pod_name, config.attempt));
        self.emit(&mut state, &config.pod_uid, id.as_str(), RuntimeEventKind::Started);
        Ok(id)
    }

    fn make_container(&self, sandbox: &SandboxId, config: &ContainerConfig) -> Result<ContainerId> {
        let mut state = self.state();
        let Some(home) = state.sandboxes.get(sandbox).cloned() else {
            return Err(CriError::NotFound { call: "CreateContainer", message: sandbox.to_string() });
        };
        state.changes.push((home.pod_uid.clone(), "CreateContainer"));
        let (wants, has) = (config.security.namespaces.users, state.users.get(sandbox).copied());
        if wants != has {
            let what = format!("{}/{} in a sandbox of {has:?} is made for {wants:?}", home.pod_uid, config.name);
            self.world.violation(Invariant::UsersApart, what);
        }
        if let Some(users) = has {
            // In a sandbox without containers, such as one that a call made which was given up,
            // nobody lives.
            let mut lives = state.containers.values().filter(|other| other.container.is_running());
            let shared = lives.find(|other| {
                let theirs = state.users.get(&other.container.sandbox_id);
                other.pod_uid != home.pod_uid && theirs.is_some_and(|theirs| theirs.host_id == users.host_id)
            });
            if let Some(other) = shared {
                let what = format!("{users:?} of {} are those of {}", home.pod_uid, other.pod_uid);
                self.world.violation(Invariant::UsersApart, what);
            }
        }
        let of_pod = |instance: &&Instance| instance.pod_uid == home.pod_uid && instance.container.name == config.name;
        if state.containers.values().filter(of_pod).any(|instance| instance.container.attempt == config.attempt) {
            let message = format!("name {} attempt {} is reserved", config.name, config.attempt);
            return Err(CriError::Failed { call: "CreateContainer", message });
        }
        let log_path = state.log_directories.get(sandbox).map(|dir| dir.join(&config.log_path)).unwrap_or_default();
        state.made += 1;
        let id = ContainerId::new(format!("container-{:04}", state.made));
        let container = Container {
            id: id.clone(),
            sandbox_id: sandbox.clone(),
            name: config.name.clone(),
            attempt: config.attempt,
            state: ContainerState::Created,
            created_at: self.world.clock.wall(),
            image: config.image.user_specified_image.clone(),
            image_ref: config.image.image.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            log_path: log_path.to_string_lossy().into_owned(),
            user: None,
            resources: Some(config.resources.clone()),
            mounts: config.mounts.clone(),
            stop_signal: config.stop_signal.clone(),
        };
        let instance = Instance {
            container,
            pod_uid: home.pod_uid.clone(),
            pod_name: home.pod_name.clone(),
            pod_namespace: home.pod_namespace.clone(),
            program: Program::from_command(&config.command),
            started: None,
        };
        state.containers.insert(id.clone(), instance);
        self.world
            .log(|| format!("container {id} created: {}/{} attempt {}", home.pod_name, config.name, config.attempt));
        self.emit(&mut state, &home.pod_uid, id.as_str(), RuntimeEventKind::Created);
        Ok(id)
    }

    fn run_container(&self, id: &ContainerId) -> Result<()> {
        let mut state = self.state();
        let now = self.world.clock.wall();
        let Some(instance) = state.containers.get(id) else {
            return Err(CriError::NotFound { call: "StartContainer", message: id.to_string() });
        };
        let (uid, name, program) =
            (instance.pod_uid.clone(), instance.container.name.clone(), instance.program.clone());
        let (is_created, home) =
            (instance.container.state == ContainerState::Created, instance.container.sandbox_id.clone());
        state.changes.push((uid.clone(), "StartContainer"));
        if !is_created {
            return Err(CriError::Failed {
                call: "StartContainer",
                message: "container is not in created state".into(),
            });
        }
        let Some(sandbox) = state.sandboxes.get(&home).filter(|sandbox| sandbox.state == SandboxState::Ready) else {
            return Err(CriError::Failed { call: "StartContainer", message: "sandbox is not ready".into() });
        };
        let awaited: Vec<&str> =
            sandbox.annotations.get(INIT_ANNOTATION).map(|names| names.split(',').collect()).unwrap_or_default();
        if !awaited.contains(&name.as_str()) && !name.starts_with(SIDECAR_PREFIX) {
            let ended_well = |init: &&str| {
                let mut here = state
                    .containers
                    .values()
                    .filter(|other| other.container.sandbox_id == home && other.container.name == **init);
                here.any(|other| other.container.exit().is_some_and(|exit| exit.exit_code == 0))
            };
            if let Some(init) = awaited.iter().find(|init| !ended_well(init)) {
                self.world
                    .violation(Invariant::InitBeforeRegular, format!("{uid}/{name} starts before {init} ended well"));
            }
        }
        if program == Program::Broken {
            let instance = state.containers.get_mut(id).expect("looked up above");
            instance.container.state = ContainerState::Exited(Exit {
                started_at: None,
                finished_at: Some(now),
                exit_code: 128,
                reason: "StartError".into(),
                message: "no such program".into(),
            });
            self.emit(&mut state, &uid, id.as_str(), RuntimeEventKind::Stopped);
            return Err(CriError::Failed { call: "StartContainer", message: "no such program".into() });
        }
        let alive = state.containers.values().filter(|other| other.pod_uid == uid && other.container.name == name);
        let rivals: Vec<_> =
            alive.filter(|other| other.container.is_running()).map(|other| other.container.id.to_string()).collect();
        if !rivals.is_empty() {
            self.world.violation(Invariant::OneLiveInstance, format!("{id} of {uid}/{name} starts beside {rivals:?}"));
        }
        let instance = state.containers.get_mut(id).expect("looked up above");
        instance.container.state = ContainerState::Running { started_at: now };
        self.ground.open_log(id.as_str(), Path::new(&instance.container.log_path));
        instance.started = Some(Instant::now());
        self.world.log(|| format!("container {id} runs: {}/{name}", uid));
        self.emit(&mut state, &uid, id.as_str(), RuntimeEventKind::Started);
        drop(state);
        if let Program::Exits { code, after } = program {
            let (runtime, id) = (self.clone(), id.clone());
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                runtime.end(&id, code);
            });
        }
        if let Program::Chatty { every } = program {
            let (runtime, id) = (self.clone(), id.clone());
            tokio::spawn(async move {
                while runtime.is_running(&id) {
                    if !runtime.ground.say(id.as_str(), CHATTER) {
                        runtime.world.violation(Invariant::NoLineIsLost, format!("of {id}"));
                    }
                    tokio::time::sleep(every).await;
                }
            });
        }
        Ok(())
    }

    /// Whether the program listens to SIGTERM, or `None` if there is nothing to stop.
    fn begin_stop(&self, id: &ContainerId) -> Result<Option<Program>> {
        let mut state = self.state();
        let State { containers, changes, touched, given_up, nameless, deaf, .. } = &mut *state;
        let Some(instance) = containers.get(id) else {
            return Err(CriError::NotFound { call: "StopContainer", message: id.to_string() });
        };
        changes.push((instance.pod_uid.clone(), "StopContainer"));
        if !instance.container.is_running() {
            return Ok(None);
        }
        let served: Vec<_> = containers
            .values()
            .filter(|other| other.container.sandbox_id == instance.container.sandbox_id)
            .filter(|other| other.container.is_running() && !other.container.name.starts_with(SIDECAR_PREFIX))
            .map(|other| other.container.name.as_str())
            .collect();
        let is_given_up = given_up.contains(id);
        let is_sidecar = instance.container.name.starts_with(SIDECAR_PREFIX);
        if is_sidecar && !is_given_up && !served.is_empty() && !nameless.contains(&instance.pod_uid) {
            let what = format!("container {id} of {}/{} serves {served:?}", instance.pod_uid, instance.container.name);
            self.world.violation(Invariant::SidecarsStopLast, what);
        }
        // A pod whose other containers have ended ends, and then its sidecars do.
        let may_stop = touched.contains(&instance.pod_uid) || is_given_up || (is_sidecar && served.is_empty());
        if !may_stop {
            let what = format!("container {id} of {}/{}", instance.pod_uid, instance.container.name);
            self.world.violation(Invariant::UntouchedIsNotStopped, what);
        }
        let now = Instant::now();
        if let Some(deaf) = deaf.get_mut(id).filter(|deaf| deaf.until > now) {
            if now - deaf.second > Duration::from_secs(1) {
                (deaf.second, deaf.stops) = (now, 0);
            }
            deaf.stops += 1;
            if deaf.stops == STOPS_A_SECOND_MAX + 1 {
                let what = format!(
                    "container {id}, which does not hear, was stopped more than {STOPS_A_SECOND_MAX} times in a second"
                );
                self.world.violation(Invariant::NoSpinning, what);
            }
            return Ok(None);
        }
        Ok(Some(instance.program.clone()))
    }

    fn matches(scope: &Scope, uid: &str) -> bool {
        match scope {
            Scope::All => true,
            Scope::Pod(wanted) => wanted.as_str() == uid,
        }
    }
}

#[async_trait]
impl Runtime for SimRuntime {
    async fn version(&self) -> Result<RuntimeVersion> {
        Ok(RuntimeVersion { runtime_name: "sim".into(), runtime_version: "1".into() })
    }

    async fn status(&self) -> Result<RuntimeStatus> {
        let good = || RuntimeCondition { ok: true, ..RuntimeCondition::default() };
        self.call("Status", move |_| {
            Ok(RuntimeStatus {
                runtime_ready: good(),
                network_ready: good(),
                handlers: vec![RuntimeHandler {
                    name: String::new(),
                    recursive_read_only_mounts: true,
                    user_namespaces: true,
                }],
                ..RuntimeStatus::default()
            })
        })
        .await
    }

    async fn cgroup_driver(&self) -> Result<CgroupDriver> {
        Err(CriError::Unimplemented { call: "RuntimeConfig" })
    }

    async fn update_pod_cidr(&self, _cidr: &str) -> Result<()> {
        Ok(())
    }

    async fn list_sandboxes(&self, scope: &Scope) -> Result<Vec<Sandbox>> {
        let scope = scope.clone();
        self.call("ListPodSandbox", move |runtime| {
            let state = runtime.state();
            let listed = state.sandboxes.values().filter(|sandbox| Self::matches(&scope, &sandbox.pod_uid));
            Ok(listed.map(|sandbox| Sandbox { ips: Vec::new(), network_mode: None, ..sandbox.clone() }).collect())
        })
        .await
    }

    async fn sandbox_status(&self, id: &SandboxId) -> Result<Sandbox> {
        let id = id.clone();
        self.call("PodSandboxStatus", move |runtime| {
            let found = runtime.state().sandboxes.get(&id).cloned();
            found.ok_or_else(|| CriError::NotFound { call: "PodSandboxStatus", message: id.to_string() })
        })
        .await
    }

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<SandboxId> {
        let config = config.clone();
        self.call("RunPodSandbox", move |runtime| runtime.make_sandbox(&config)).await
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<()> {
        let id = id.clone();
        self.call("StopPodSandbox", move |runtime| {
            let inside: Vec<_> = {
                let mut state = runtime.state();
                let State { sandboxes, changes, .. } = &mut *state;
                let Some(sandbox) = sandboxes.get_mut(&id) else { return Ok(()) };
                changes.push((sandbox.pod_uid.clone(), "StopPodSandbox"));
                if sandbox.state == SandboxState::Ready {
                    sandbox.state = SandboxState::NotReady;
                    let uid = sandbox.pod_uid.clone();
                    runtime.emit(&mut state, &uid, id.as_str(), RuntimeEventKind::Stopped);
                }
                let of_it = state.containers.values().filter(|instance| instance.container.sandbox_id == id);
                of_it.map(|instance| instance.container.id.clone()).collect()
            };
            for container in inside {
                runtime.end(&container, 137);
            }
            runtime.world.log(|| format!("sandbox {id} stopped"));
            Ok(())
        })
        .await
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<()> {
        let id = id.clone();
        self.call("RemovePodSandbox", move |runtime| {
            let mut state = runtime.state();
            let Some(sandbox) = state.sandboxes.remove(&id) else { return Ok(()) };
            state.changes.push((sandbox.pod_uid.clone(), "RemovePodSandbox"));
            let alive = state
                .containers
                .values()
                .any(|instance| instance.container.sandbox_id == id && instance.container.is_running());
            if alive {
                runtime
                    .world
                    .violation(Invariant::StoppedBeforeRemoved, format!("sandbox {id} of {}", sandbox.pod_uid));
            }
            state.containers.retain(|_, instance| instance.container.sandbox_id != id);
            state.users.remove(&id);
            runtime.emit(&mut state, &sandbox.pod_uid, id.as_str(), RuntimeEventKind::Deleted);
            Ok(())
        })
        .await
    }

    async fn list_containers(&self, scope: &Scope) -> Result<Vec<ContainerSummary>> {
        let scope = scope.clone();
        self.call("ListContainers", move |runtime| {
            let state = runtime.state();
            let listed = state.containers.values().filter(|instance| Self::matches(&scope, &instance.pod_uid));
            Ok(listed
                .map(|instance| ContainerSummary {
                    id: instance.container.id.clone(),
                    sandbox_id: instance.container.sandbox_id.clone(),
                    name: instance.container.name.clone(),
                    pod_uid: instance.pod_uid.clone(),
                    pod_name: instance.pod_name.clone(),
                    pod_namespace: instance.pod_namespace.clone(),
                    attempt: instance.container.attempt,
                    state: instance.container.kind(),
                    created_at: instance.container.created_at,
                    image_id: instance.container.image_ref.clone(),
                })
                .collect())
        })
        .await
    }

    async fn container_status(&self, id: &ContainerId) -> Result<Container> {
        let id = id.clone();
        self.call("ContainerStatus", move |runtime| {
            let found = runtime.state().containers.get(&id).map(|instance| instance.container.clone());
            found.ok_or_else(|| CriError::NotFound { call: "ContainerStatus", message: id.to_string() })
        })
        .await
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: &ContainerConfig,
        _: &SandboxConfig,
    ) -> Result<ContainerId> {
        let (sandbox, config) = (sandbox.clone(), config.clone());
        self.call("CreateContainer", move |runtime| runtime.make_container(&sandbox, &config)).await
    }

    async fn start_container(&self, id: &ContainerId) -> Result<()> {
        let id = id.clone();
        self.call("StartContainer", move |runtime| runtime.run_container(&id)).await
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<()> {
        let wanted = id.clone();
        let program = self.call("StopContainer", move |runtime| runtime.begin_stop(&wanted)).await?;
        match program {
            None => {}
            // A caller that gives up takes the SIGKILL with it: a real runtime stops waiting too.
            Some(Program::Stubborn) => {
                tokio::time::sleep(grace).await;
                self.end(id, 137);
            }
            // The SIGTERM was sent, whether or not anyone still waits.
            Some(_) => {
                let wait = self.world.random(|random| Duration::from_millis(random.u64(0..800))).min(grace);
                let (runtime, id) = (self.clone(), id.clone());
                let ended = tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    runtime.end(&id, 143);
                });
                let _ = ended.await;
            }
        }
        Ok(())
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        let id = id.clone();
        let ran = self.is_running(&id);
        self.call("RemoveContainer", move |runtime| {
            let mut state = runtime.state();
            let Some(instance) = state.containers.remove(&id) else { return Ok(()) };
            state.changes.push((instance.pod_uid.clone(), "RemoveContainer"));
            // One that came to life after the call, by a start that was given up, is nobody's
            // fault: it is killed, as the CRI wants it.
            if ran && instance.container.is_running() {
                runtime
                    .world
                    .violation(Invariant::StoppedBeforeRemoved, format!("container {id} of {}", instance.pod_uid));
            }
            runtime.world.log(|| format!("container {id} removed"));
            runtime.emit(&mut state, &instance.pod_uid, id.as_str(), RuntimeEventKind::Deleted);
            Ok(())
        })
        .await
    }

    async fn update_container(&self, id: &ContainerId, resources: &LinuxResources) -> Result<()> {
        self.update(id, resources).await
    }

    async fn memory_usage(&self, id: &ContainerId) -> Result<Option<u64>> {
        self.usage(id).await
    }

    /// Nothing that a pod at rest would have to do without, and so no change.
    async fn reopen_container_log(&self, id: &ContainerId) -> Result<()> {
        let id = id.clone();
        self.call("ReopenContainerLog", move |runtime| {
            let state = runtime.state();
            let refused = |message: &str| CriError::Failed { call: "ReopenContainerLog", message: message.into() };
            let instance = state.containers.get(&id).ok_or_else(|| refused("no such container"))?;
            if !instance.container.is_running() {
                return Err(refused("container is not running"));
            }
            runtime.ground.open_log(id.as_str(), Path::new(&instance.container.log_path));
            Ok(())
        })
        .await
    }

    async fn exec(&self, id: &ContainerId, command: &[String], timeout: Option<Duration>) -> Result<Executed> {
        const CALL: &str = "ExecSync";
        let fate = self.world.fate().await;
        if self.state().down_until.is_some() {
            return Err(CriError::Unavailable { call: CALL, message: "connection refused".into() });
        }
        let exam = command.last().map(String::as_str).unwrap_or_default();
        match fate {
            Fate::Good if !self.is_running(id) => {
                Err(CriError::NotFound { call: CALL, message: format!("{id} does not run") })
            }
            Fate::Good => {
                let code = i32::from(!self.examine(id, exam, false));
                Ok(Executed::Exited { code, output: Vec::new() })
            }
            Fate::Refused => Err(CriError::Failed { call: CALL, message: "simulated refusal".into() }),
            Fate::Lost => Err(CriError::Unavailable { call: CALL, message: "simulated loss of the answer".into() }),
            Fate::Hangs { .. } => {
                self.examine(id, exam, true);
                let after = timeout.map_or(Duration::MAX, |timeout| timeout + CALL_DEADLINE);
                tokio::time::sleep(after).await;
                Err(CriError::Timeout { call: CALL, after })
            }
        }
    }

    async fn events(&self) -> Result<BoxStream<'static, Result<RuntimeEvent>>> {
        let mut state = self.state();
        if !state.has_events {
            return Err(CriError::Unimplemented { call: "GetContainerEvents" });
        }
        if state.down_until.is_some() {
            return Err(CriError::Unavailable { call: "GetContainerEvents", message: "connection refused".into() });
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        state.listeners.push(sender);
        Ok(UnboundedReceiverStream::new(receiver).boxed())
    }

    async fn image_status(&self, image: &ImageSpec) -> Result<Option<Image>> {
        let name = image.image.clone();
        self.call("ImageStatus", move |_| {
            Ok(Some(Image {
                id: format!("sha256:{name}"),
                repo_tags: vec![name],
                size_bytes: 1000,
                ..Image::default()
            }))
        })
        .await
    }

    async fn pull_image(&self, image: &ImageSpec, _: Option<&Auth>, _: Option<&SandboxConfig>) -> Result<String> {
        let name = image.image.clone();
        self.call("PullImage", move |_| Ok(format!("sha256:{name}"))).await
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        Ok(Vec::new())
    }

    async fn remove_image(&self, _image: &ImageSpec) -> Result<()> {
        Ok(())
    }

    async fn image_filesystem(&self) -> Result<Option<FilesystemUsage>> {
        Ok(None)
    }
}
