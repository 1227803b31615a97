//! Containers: created, started, stopped, removed, and what they do meanwhile.
//!
//! Checked here, at the moment it would happen: no container ever has two live instances, none
//! starts before its turn, and nothing of a pod that nobody touched is ever stopped.

use std::path::Path;
use std::time::Duration;

use ferrolet::cri::{
    Container, ContainerConfig, ContainerId, ContainerState, CriError, Exit, Result, RuntimeEventKind, SandboxId,
    SandboxState,
};
use tokio::time::Instant;

use super::asks::Decisions;
use super::stops::StopCall;
use super::{DEBUGGER_PREFIX, INIT_ANNOTATION, Instance, SIDECAR_PREFIX, SimRuntime, State, is_work};
use crate::agent::DEAD_MAX;
use crate::faults::Fate;
use crate::invariants::Invariant;
use crate::programs::{Ask, Manners, Program, RESTART_ALL_CODE};

/// So often a container may be stopped that does not end.
const STOPS_A_SECOND_MAX: u32 = 8;

/// A tenth of the size at which logs are rotated.
const CHATTER: &str =
    "a line of a hundred bytes, which is what the container has to say, over and over again, all its life..\n";

/// The removal of a dead container while there were more of them than may stay.
pub const REMOVE_SURPLUS: &str = "RemoveContainer beyond the limit";
/// After the limit for dead containers was met the agent may still carry out what it decided.
const CROWDED_FOR: Duration = Duration::from_secs(5);

impl SimRuntime {
    /// A container ends, whoever made it.
    pub(super) fn end(&self, id: &ContainerId, exit_code: i32) {
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
        state.note_end(id, exit_code);
        self.world.log(|| format!("container {id} ends with {exit_code}"));
        self.emit(&mut state, &uid, id.as_str(), RuntimeEventKind::Stopped);
    }

    pub(super) fn make_container(
        &self,
        sandbox: &SandboxId,
        config: &ContainerConfig,
        fate: Fate,
    ) -> Result<ContainerId> {
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
        // A call that hung was made for another time.
        if home.state == SandboxState::Ready && !matches!(fate, Fate::Hangs { .. }) {
            let mut places = config.mounts.iter().map(|mount| Path::new(&mount.host_path));
            if let Some(missing) = places.find(|place| !self.ground.has(place)) {
                let what = format!("{}/{} mounts {}", home.pod_uid, config.name, missing.display());
                self.world.violation(Invariant::MountsAreThere, what);
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
            started_in: None,
        };
        let manners = Manners::from_args(&config.args);
        if config.stop_signal != manners.stop_signal {
            let what = format!("{}/{} has {:?}", home.pod_uid, config.name, config.stop_signal);
            self.world.violation(Invariant::StopSignalsArrive, format!("{what} in place of {:?}", manners.stop_signal));
        }
        if manners.exam(Ask::Readiness).is_some() {
            state.readiness.insert(id.clone(), Decisions::default());
        }
        state.manners.insert(id.clone(), manners);
        state.owners.insert(id.clone(), (home.pod_uid.clone(), config.name.clone()));
        state.containers.insert(id.clone(), instance);
        self.world
            .log(|| format!("container {id} created: {}/{} attempt {}", home.pod_name, config.name, config.attempt));
        self.emit(&mut state, &home.pod_uid, id.as_str(), RuntimeEventKind::Created);
        Ok(id)
    }

    pub(super) fn run_container(&self, id: &ContainerId, life: u64, fate: Fate, is_awaited: bool) -> Result<()> {
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
        let awaited: Vec<String> = sandbox
            .annotations
            .get(INIT_ANNOTATION)
            .map(|names| names.split(',').map(str::to_owned).collect())
            .unwrap_or_default();
        if !awaited.contains(&name) && is_work(&name) {
            let ended_well = |init: &&String| {
                let ever = state.containers.values().chain(state.forgotten.values());
                let mut here =
                    ever.filter(|other| other.container.sandbox_id == home && other.container.name == **init);
                here.any(|other| other.container.exit().is_some_and(|exit| exit.exit_code == 0))
            };
            if let Some(init) = awaited.iter().find(|init| !ended_well(init)) {
                self.world
                    .violation(Invariant::InitBeforeRegular, format!("{uid}/{name} starts before {init} ended well"));
            }
        }
        // A call that hung takes effect whenever it likes.
        if life == state.life && !matches!(fate, Fate::Hangs { .. }) {
            self.check_sidecars(&state, &uid, &home, &name, &awaited);
            self.check_post_start(&state, &uid, &home, id);
            self.check_renewal(&state, &uid, id, &name);
            self.check_alone(&state, &uid, id);
        }
        if is_awaited {
            self.check_is_not_over(&state, &uid, &name, id);
        }
        self.note_debugger(&mut state, &uid, &name, id);
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
        if let Some(users) = state.users.get(&home) {
            let mut lives = state.containers.values().filter(|other| other.container.is_running());
            let shared = lives.find(|other| {
                let theirs = state.users.get(&other.container.sandbox_id);
                other.pod_uid != uid && theirs.is_some_and(|theirs| theirs.host_id == users.host_id)
            });
            if let Some(other) = shared {
                let what = format!("{users:?} of {uid} are those of {}", other.pod_uid);
                self.world.violation(Invariant::UsersApart, what);
            }
        }
        let alive = state.containers.values().filter(|other| other.pod_uid == uid && other.container.name == name);
        let rivals: Vec<_> =
            alive.filter(|other| other.container.is_running()).map(|other| other.container.id.to_string()).collect();
        if !rivals.is_empty() {
            self.world.violation(Invariant::OneLiveInstance, format!("{id} of {uid}/{name} starts beside {rivals:?}"));
        }
        let started_in = Some(life).filter(|life| *life == state.life);
        let instance = state.containers.get_mut(id).expect("looked up above");
        instance.container.state = ContainerState::Running { started_at: now };
        instance.started_in = started_in;
        self.ground.open_log(id.as_str(), Path::new(&instance.container.log_path));
        instance.started = Some(Instant::now());
        if let Some(cgroup) = state.cgroups.get(&home) {
            self.ground.need_cgroup(cgroup);
        }
        self.world.log(|| format!("container {id} runs: {}/{name}", uid));
        self.emit(&mut state, &uid, id.as_str(), RuntimeEventKind::Started);
        let end = match program {
            Program::Exits { code, after } => Some((code, after)),
            Program::RestartsAll { after, times } if state.will_fall(&uid, &name, times) => {
                Some((RESTART_ALL_CODE, after))
            }
            _ => None,
        };
        drop(state);
        if let Some((code, after)) = end {
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

    /// A static pod starts only after the end of the one that had its name; but of a start whose
    /// caller was gone nobody could know.
    fn check_alone(&self, state: &State, uid: &str, id: &ContainerId) {
        let Some(name) = state.containers.get(id).map(|starting| &starting.pod_name) else { return };
        let is_rival = |other: &&Instance| {
            let is_known = state.launches.contains_key(&other.container.id);
            other.pod_uid != uid && other.pod_name == *name && other.container.is_running() && is_known
        };
        let rival = state.containers.values().find(is_rival);
        if let Some(rival) = rival.filter(|_| name.starts_with("static-")) {
            let what = format!("{id} of {uid} starts beside {} of {}", rival.container.id, rival.pod_uid);
            self.world.violation(Invariant::OneOfAName, what);
        }
    }

    /// What a pod is for starts once its sidecars have started, and then waits for none.
    fn check_sidecars(&self, state: &State, uid: &str, home: &SandboxId, starting: &str, inits: &[String]) {
        let is_regular = |name: &str| is_work(name) && !inits.iter().any(|init| init == name);
        let here = || state.containers.values().map(|it| &it.container).filter(|it| it.sandbox_id == *home);
        let has_begun = here().any(|it| is_regular(&it.name) && it.state != ContainerState::Created);
        if !is_regular(starting) || has_begun {
            return;
        }
        for sidecar in here().filter(|it| it.is_running() && it.name.starts_with(SIDECAR_PREFIX)) {
            let is_asked = state.manners.get(&sidecar.id).is_some_and(|manners| manners.exam(Ask::Startup).is_some());
            // One that ended and began again is not waited for a second time.
            let has_started = state
                .started
                .iter()
                .any(|id| state.owners.get(id).is_some_and(|(owner, name)| owner == uid && *name == sidecar.name));
            if is_asked && !has_started {
                let what = format!("{uid}/{starting} starts and {} has not", sidecar.name);
                self.world.violation(Invariant::SidecarsStartFirst, what);
            }
        }
    }

    /// Whether the program listens to SIGTERM, or `None` if there is nothing to stop.
    pub(super) fn begin_stop(&self, id: &ContainerId, call: &StopCall, fate: Fate) -> Result<Option<Program>> {
        let mut state = self.state();
        let is_renewing = state.containers.get(id).is_some_and(|instance| state.is_renewing(&instance.pod_uid));
        let State { containers, changes, touched, given_up, nameless, .. } = &mut *state;
        let Some(instance) = containers.get(id) else {
            return Err(CriError::NotFound { call: "StopContainer", message: id.to_string() });
        };
        let uid = instance.pod_uid.as_str();
        changes.push((uid.to_owned(), "StopContainer"));
        if !instance.container.is_running() {
            return Ok(None);
        }
        let served: Vec<_> = containers
            .values()
            .filter(|other| other.container.sandbox_id == instance.container.sandbox_id)
            .filter(|other| other.container.is_running() && !other.container.name.starts_with(SIDECAR_PREFIX))
            .map(|other| other.container.name.as_str())
            .collect();
        let is_given_up = given_up.contains_key(id);
        let is_sidecar = instance.container.name.starts_with(SIDECAR_PREFIX);
        let is_last = served.is_empty() || nameless.contains(&instance.pod_uid) || is_renewing;
        if is_sidecar && !is_given_up && !is_last {
            let what = format!("container {id} of {}/{} serves {served:?}", instance.pod_uid, instance.container.name);
            self.world.violation(Invariant::SidecarsStopLast, what);
        }
        // A pod whose other containers have ended ends, and then its sidecars do; nobody waits for
        // those who debug it.
        let works = || {
            containers
                .values()
                .any(|other| other.pod_uid == uid && other.container.is_running() && is_work(&other.container.name))
        };
        let is_over = match instance.container.name.starts_with(DEBUGGER_PREFIX) {
            true => !works(),
            false => is_sidecar && served.is_empty(),
        };
        let may_stop = touched.contains(&instance.pod_uid) || is_given_up || is_over || is_renewing;
        if !may_stop {
            let what = format!("container {id} of {}/{}", instance.pod_uid, instance.container.name);
            self.world.violation(Invariant::UntouchedIsNotStopped, what);
        }
        let program = instance.program.clone();
        self.check_stop(&state, id, call, fate);
        let now = Instant::now();
        if let Some(deaf) = state.deaf.get_mut(id).filter(|deaf| deaf.until > now) {
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
        Ok(Some(program))
    }

    pub(super) async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<()> {
        self.state().unwanted.insert(id.clone());
        let (wanted, stop) = (id.clone(), self.call_to_stop(grace));
        let effect = move |runtime: &SimRuntime, fate, _| runtime.begin_stop(&wanted, &stop, fate);
        let program = self.call_with_fate("StopContainer", effect).await?;
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

    /// `ran` is whether the container ran when the caller asked.
    pub(super) fn drop_container(&self, id: &ContainerId, ran: bool) -> Result<()> {
        let mut state = self.state();
        let now = Instant::now();
        let dead = state.containers.values().filter(|instance| instance.container.exit().is_some()).count();
        if dead > DEAD_MAX {
            state.crowded = Some(now);
        }
        if let Some(instance) = state.containers.get(id) {
            self.check_source_goes(&state, &instance.pod_uid, id);
        }
        let is_crowded = state.crowded.is_some_and(|crowded| now - crowded < CROWDED_FOR);
        let Some(instance) = state.containers.remove(id) else { return Ok(()) };
        let is_surplus = is_crowded && instance.container.exit().is_some();
        let call = if is_surplus { REMOVE_SURPLUS } else { "RemoveContainer" };
        state.changes.push((instance.pod_uid.clone(), call));
        // One that came to life after the call, by a start that was given up, is nobody's
        // fault: it is killed, as the CRI wants it.
        if ran && instance.container.is_running() {
            self.world.violation(Invariant::StoppedBeforeRemoved, format!("container {id} of {}", instance.pod_uid));
        }
        self.world.log(|| format!("container {id} removed"));
        self.emit(&mut state, &instance.pod_uid, id.as_str(), RuntimeEventKind::Deleted);
        Ok(())
    }
}
