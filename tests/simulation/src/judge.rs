//! The last word on a run: what must hold once faults have stopped.

mod pins;
mod resizes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ferrolet::cri::ContainerId;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodStatus};

use crate::agent::{CONTAINER_LOGS_DIR, LOG_BYTES_MAX, LOG_FILES_MAX, Machine, POD_LOGS_DIR, ROOT_DIR};
use crate::cluster::{MAP_KEY, OUT_OF_CPU, OUT_OF_PODS, is_mirror, is_terminal, phase};
use crate::invariants::{Invariant, Violation};
use crate::pods::{self, Lot, PodLot, init_passes, lot, pod_lot, rare};
use crate::programs::Program;

/// A lease older than this lets the control plane take the node for dead.
const LEASE_AGE_MAX: SignedDuration = SignedDuration::from_secs(40);

/// What is not yet, or not any more, as it should be.
pub fn complaints(machine: &Machine) -> Vec<Violation> {
    let mut judge = Judge { machine, found: Vec::new() };
    let api = machine.cluster.pods();
    let statics = machine.static_pods();
    let mirrors: BTreeMap<&str, &Pod> =
        api.iter().filter(|pod| is_mirror(pod)).map(|pod| (pods::name(pod), pod)).collect();

    let mut living = BTreeSet::new();
    for pod in api.iter().filter(|pod| !is_mirror(pod)) {
        living.insert(pods::uid(pod));
        if pod.metadata.deletion_timestamp.is_some() {
            judge.complain(Invariant::DeletedPodsGo, format!("{} is still there", pods::name(pod)));
        } else {
            judge.pod(pod, pod.status.as_ref());
        }
    }
    for pod in statics.values() {
        living.insert(pods::uid(pod));
        judge.pod(pod, mirrors.get(pods::name(pod)).and_then(|mirror| mirror.status.as_ref()));
        judge.as_a_whole(pod);
    }
    judge.resizes(&api);
    let of_api = api.iter().filter(|pod| !is_mirror(pod));
    judge.pins(&of_api.chain(statics.values().map(Arc::as_ref)).collect::<Vec<_>>());
    judge.leftovers(&living);
    judge.logs();
    judge.mirrors(&statics, &mirrors);
    judge.node();
    judge.found
}

/// Who never comes to rest by its own doing.
#[derive(Default)]
pub struct Restless {
    /// UIDs of those to which something is always done.
    pub changing: BTreeSet<String>,
    /// UIDs of those of them in which something has to start again.
    pub looping: BTreeSet<String>,
    /// Names of those of which there is always something to tell.
    pub talking: BTreeSet<String>,
}

impl Restless {
    pub fn of(machine: &Machine) -> Self {
        let statics = machine.static_pods();
        let api = machine.cluster.pods();
        let mut restless = Restless::default();
        for pod in api.iter().filter(|pod| !is_mirror(pod)).chain(statics.values().map(Arc::as_ref)) {
            let (uid, name) = (pods::uid(pod).to_owned(), pods::name(pod).to_owned());
            let lot = pod_lot(pod);
            let is_over = api.iter().any(|told| {
                let is_it = pods::name(told) == name;
                is_it && told.status.as_ref().is_some_and(|status| is_terminal(phase(status)))
            });
            if lot == PodLot::Restless && !is_over {
                restless.looping.insert(uid.clone());
            }
            // Restarts of all that are to come may be held back for longer than we waited.
            let is_changing = matches!(lot, PodLot::Restless | PodLot::Anyhow) || rare::may_restart_all(pod);
            if is_noisy(machine, pod) || is_changing {
                restless.talking.insert(name);
            }
            if is_changing {
                restless.changing.insert(uid);
            }
        }
        restless
    }
}

fn is_noisy(machine: &Machine, pod: &Pod) -> bool {
    // Whoever came too late to debug a container that has gone for good is told so for ever.
    let mut debuggers = rare::debuggers(pod).iter();
    let is_too_late = debuggers.any(|debugger| debugger.target_container_name.is_some())
        && pods::policy(pod) == "Never"
        && machine.is_disturbed(pods::uid(pod));
    pods::is_noisy(pod) || is_too_late
}

struct Judge<'a> {
    machine: &'a Machine,
    found: Vec<Violation>,
}

impl Judge<'_> {
    fn complain(&mut self, invariant: Invariant, what: String) {
        self.found.push(Violation { invariant, what });
    }

    fn pod(&mut self, pod: &Pod, status: Option<&PodStatus>) {
        let name = pods::name(pod);
        let Some(status) = status else {
            return self.complain(Invariant::StatusTellsTheTruth, format!("{name} has no status"));
        };
        let phase = phase(status);
        // Whether that is true was asked when it was written.
        let is_crowded = status.reason.as_deref() == Some(OUT_OF_PODS)
            || (status.reason.as_deref() == Some(OUT_OF_CPU) && !pods::is_refused(pod));
        if is_crowded && phase == "Failed" {
            return self.ended(pod);
        }
        let lot = pod_lot(pod);
        let may_have_ended = pods::policy(pod) == "Never" && self.machine.is_disturbed(pods::uid(pod));
        match lot {
            PodLot::Ends { well } => {
                let wanted = if well { "Succeeded" } else { "Failed" };
                if phase != wanted && !(may_have_ended && is_terminal(phase)) {
                    self.complain(Invariant::StatusTellsTheTruth, format!("{name} should be {wanted} and is {phase}"));
                }
            }
            PodLot::Runs | PodLot::Restless if is_terminal(phase) && may_have_ended => {}
            PodLot::Runs if phase != "Running" => {
                self.complain(Invariant::StatusTellsTheTruth, format!("{name} should be Running and is {phase}"));
            }
            PodLot::Restless if is_terminal(phase) => {
                self.complain(Invariant::StatusTellsTheTruth, format!("{name} goes on and is told {phase}"));
            }
            PodLot::Runs | PodLot::Restless | PodLot::Anyhow => {}
        }
        if is_terminal(phase) {
            let has_told = status.container_statuses.is_some()
                || !status.message.clone().unwrap_or_default().starts_with("Pod was rejected: ");
            if pods::is_refused(pod) && has_told {
                self.complain(Invariant::StatusTellsTheTruth, format!("{name} was refused and is told otherwise"));
            }
            let is_late = pods::spec(pod).active_deadline_seconds.is_some() && !pods::is_refused(pod);
            // With its mirror a static pod loses the reason, and nobody else knows it.
            let is_late = is_late && !self.machine.has_lost_its_mirror(name);
            let is_late = is_late && !self.machine.cluster.has_ended_in_time(pods::uid(pod));
            if is_late && !may_have_ended && status.reason.as_deref() != Some("DeadlineExceeded") {
                let what = format!("{name} was active for too long and is told {:?}", status.reason);
                self.complain(Invariant::StatusTellsTheTruth, what);
            }
            return self.ended(pod);
        }
        if lot != PodLot::Anyhow && init_passes(pod) == Some(true) && !rare::restarts_for_ever(pod) {
            for container in &pods::spec(pod).containers {
                self.container(pod, status, container);
            }
        }
        let is_told_ready = has_condition(status, "Ready", "True");
        let are_open = rare::gates_are_open(pod, status.conditions.as_deref().unwrap_or_default());
        if is_told_ready && !are_open {
            self.complain(Invariant::StatusTellsTheTruth, format!("{name} is told ready and others say no"));
        }
        if lot == PodLot::Runs {
            self.running(pod, status, are_open);
            self.debuggers(pod, status);
        }
    }

    /// A pod that told its end.
    fn ended(&mut self, pod: &Pod) {
        let (uid, name) = (pods::uid(pod), pods::name(pod));
        let running = self.machine.runtime.running_in(uid);
        let sandboxes = self.machine.runtime.ready_sandboxes(uid);
        let left = self.machine.host.leftovers(uid);
        if !running.is_empty() || sandboxes > 0 || !left.is_empty() {
            let what = format!("{name} holds containers {running:?}, {sandboxes} sandboxes, {left:?}");
            self.complain(Invariant::TerminalHoldsNothing, what);
        }
    }

    /// A pod in which all goes well.
    fn running(&mut self, pod: &Pod, status: &PodStatus, gates_are_open: bool) {
        let (uid, name) = (pods::uid(pod), pods::name(pod));
        let (containers, sidecars) = (pods::spec(pod).containers.iter(), pods::inits(pod).iter());
        let all_run = containers.clone().all(|container| lot(pod, container) == Lot::Runs);
        let all_ready: Option<Vec<bool>> = containers
            .chain(sidecars.filter(|init| init.restart_policy.is_some()))
            .map(pods::ready_in_the_end)
            .collect();
        let ready = has_condition(status, "Ready", "True");
        let may_have_ended = pods::policy(pod) == "Never" && self.machine.is_disturbed(uid);
        let shall_be = all_ready.map(|ready| all_run && !ready.contains(&false) && gates_are_open);
        if shall_be.is_some_and(|shall_be| shall_be != ready) && !may_have_ended {
            self.complain(Invariant::StatusTellsTheTruth, format!("{name} is told ready: {ready}"));
        }
        if rare::may_restart_all(pod) && !has_condition(status, "AllContainersRestarting", "False") {
            self.complain(Invariant::StatusTellsTheTruth, format!("{name} is told to restart, or nothing of that"));
        }
        let left = self.machine.runtime.left_by_restart(uid);
        if !left.is_empty() && !may_have_ended {
            self.complain(Invariant::RestartsOfAllAreWhole, format!("{name} was to begin anew and still has {left:?}"));
        }
        let sandboxes = self.machine.runtime.ready_sandboxes(uid);
        if sandboxes != 1 {
            self.complain(Invariant::PodsAreAsTheySay, format!("{name} has {sandboxes} living sandboxes"));
        }
        if !self.machine.host.has_cgroup(uid) {
            self.complain(Invariant::PodsAreAsTheySay, format!("{name} has no cgroup"));
        }
        self.volumes(pod);
    }

    fn volumes(&mut self, pod: &Pod) {
        let (uid, name) = (pods::uid(pod), pods::name(pod));
        let file = |plugin: &str, volume: &str, file: &str| {
            let path: PathBuf = [ROOT_DIR, "pods", uid, "volumes", plugin, volume, file].iter().collect();
            self.machine.host.file(&path).map(|data| String::from_utf8_lossy(&data).into_owned())
        };
        let mut seen = Vec::new();
        let mut tokens = Vec::new();
        for volume in pods::spec(pod).volumes.iter().flatten() {
            if let Some(map) = &volume.config_map {
                seen.push((&map.name, file("kubernetes.io~configmap", &volume.name, MAP_KEY)));
            }
            if let Some(secret) = volume.secret.as_ref().and_then(|secret| secret.secret_name.as_ref()) {
                seen.push((secret, file("kubernetes.io~secret", &volume.name, MAP_KEY)));
            }
            for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
                let of_it = |path: &str| file("kubernetes.io~projected", &volume.name, path);
                seen.extend(source.config_map.iter().map(|map| (&map.name, of_it(MAP_KEY))));
                tokens.extend(source.service_account_token.iter().map(|token| of_it(&token.path)));
            }
        }
        for (map, has) in seen {
            let wants = self.machine.cluster.config_map(map).and_then(|map| map.data?.remove(MAP_KEY));
            if has != wants {
                self.complain(Invariant::VolumesAreCurrent, format!("{name} sees {has:?} and should see {wants:?}"));
            }
        }
        for token in tokens {
            if !token.as_ref().is_some_and(|token| self.machine.world.is_good(token)) {
                self.complain(Invariant::VolumesAreCurrent, format!("{name} has the token {token:?}"));
            }
        }
    }

    fn debuggers(&mut self, pod: &Pod, status: &PodStatus) {
        let (uid, name) = (pods::uid(pod), pods::name(pod));
        let is_disturbed = self.machine.is_disturbed(uid);
        for debugger in rare::debuggers(pod) {
            let which = format!("{name}/{}", debugger.name);
            let may_be_late = debugger.target_container_name.is_some() && is_disturbed;
            if !self.machine.runtime.has_debugged(uid, &debugger.name) {
                if !may_be_late {
                    self.complain(Invariant::PodsAreAsTheySay, format!("{which} was never started"));
                }
                continue;
            }
            let told = status.ephemeral_container_statuses.iter().flatten().find(|told| told.name == debugger.name);
            let state = told.and_then(|told| told.state.as_ref());
            let is_told_running = state.is_some_and(|state| state.running.is_some());
            let running = self.machine.runtime.running(uid, &debugger.name);
            match running.as_slice() {
                [id] => self.told_running(&which, id, told, None),
                _ if is_told_running || state.is_none_or(|state| state.terminated.is_none()) => {
                    self.complain(Invariant::StatusTellsTheTruth, format!("{which} has ended and is told {told:?}"));
                }
                _ => {}
            }
            let program = Program::from_command(debugger.command.as_deref().unwrap_or_default());
            let ends = matches!(program, Program::Exits { .. } | Program::Broken);
            if ends != running.is_empty() && !(is_disturbed && running.is_empty()) {
                self.complain(Invariant::PodsAreAsTheySay, format!("{which} is {program:?} and runs as {running:?}"));
            }
        }
    }

    fn made_as_written(&mut self, which: &str, id: &ContainerId, container: &Container) {
        let image = self.machine.runtime.image(id);
        if image != container.image {
            let what = format!("{which} runs {image:?} and should run {:?}", container.image);
            self.complain(Invariant::PodsAreAsTheySay, what);
        }
    }

    /// All that follows a start was done.
    fn cared_for(&mut self, which: &str, id: &ContainerId, link: &str) {
        if self.machine.runtime.misses_its_hook(id) {
            self.complain(Invariant::HooksRunOnce, format!("the postStart hook of {which} never ran for {id}"));
        }
        if self.machine.host.target(&Path::new(CONTAINER_LOGS_DIR).join(link)).is_none() {
            self.complain(Invariant::LogsAreLinked, format!("{which} runs as {id} and has no {link}"));
        }
    }

    fn container(&mut self, pod: &Pod, status: &PodStatus, container: &Container) {
        let (uid, name) = (pods::uid(pod), pods::name(pod));
        let running = self.machine.runtime.running(uid, &container.name);
        let told = status.container_statuses.iter().flatten().find(|told| told.name == container.name);
        let which = format!("{name}/{}", container.name);
        let may_have_ended = pods::policy(pod) == "Never" && self.machine.is_disturbed(uid);
        match (lot(pod, container), running.as_slice()) {
            (Lot::Runs, [id]) => {
                self.told_running(&which, id, told, pods::ready_in_the_end(container));
                let signal = told.and_then(|told| told.stop_signal.as_deref());
                if signal != rare::stop_signal(container) {
                    self.complain(Invariant::StopSignalsArrive, format!("{which} is told to end by {signal:?}"));
                }
                self.made_as_written(&which, id, container);
                self.cared_for(&which, id, &format!("{name}_{}_{}-{id}.log", pods::NAMESPACE, container.name));
            }
            (Lot::Runs, []) if may_have_ended => {}
            (Lot::Runs, running) => {
                self.complain(Invariant::PodsAreAsTheySay, format!("{which} should run and has {running:?}"))
            }
            (Lot::Ends { well }, []) => {
                let exit = self.machine.runtime.newest_exit(uid, &container.name);
                if exit.map(|code| code == 0) != Some(well) && !may_have_ended {
                    self.complain(
                        Invariant::PodsAreAsTheySay,
                        format!("{which} should have ended and has exit {exit:?}"),
                    );
                }
            }
            (Lot::Ends { .. }, running) => {
                self.complain(Invariant::PodsAreAsTheySay, format!("{which} should have ended and runs: {running:?}"))
            }
            (Lot::Loops | Lot::Anyhow, _) => {}
        }
    }

    fn told_running(&mut self, which: &str, id: &ContainerId, told: Option<&ContainerStatus>, ready: Option<bool>) {
        let is_told = told.is_some_and(|told| {
            let runs = told.state.as_ref().is_some_and(|state| state.running.is_some());
            let is_ready = ready.is_none_or(|ready| ready == told.ready);
            runs && is_ready && told.container_id.as_deref().is_some_and(|told| told.ends_with(id.as_str()))
        });
        if !is_told {
            let told = told.map(|told| (told.container_id.clone(), told.state.clone(), told.ready));
            self.complain(Invariant::StatusTellsTheTruth, format!("{which} runs as {id} and is told {told:?}"));
        }
    }

    fn leftovers(&mut self, living: &BTreeSet<&str>) {
        let runtime = self.machine.runtime.pods().into_iter().map(|uid| (uid, "the runtime"));
        let host = self.machine.host.pod_uids().into_iter().map(|uid| (uid, "the host"));
        let strangers: Vec<_> = runtime.chain(host).filter(|(uid, _)| !living.contains(uid.as_str())).collect();
        for (uid, place) in strangers {
            self.complain(Invariant::NothingIsLeft, format!("{place} still has something of {uid}"));
        }
        for path in self.machine.host.below(Path::new(POD_LOGS_DIR)) {
            if !living.iter().any(|uid| path.contains(uid)) {
                self.complain(Invariant::NothingIsLeft, format!("log directory {path} of nobody"));
            }
        }
        for link in self.machine.host.below(Path::new(CONTAINER_LOGS_DIR)) {
            let id = link.trim_end_matches(".log").find("container-").map(|at| &link[at..link.len() - ".log".len()]);
            let target = self.machine.host.target(Path::new(&link)).unwrap_or_default();
            // A restart of all leaves the logs of what it removes, and the way to them; the oldest go
            // with each further one, and the way after a while.
            let is_kept = living.iter().find(|uid| target.contains(**uid)).is_some_and(|uid| {
                let is_endless = self.machine.runtime.restarts_all(uid);
                let has_log = || self.machine.host.size(Path::new(&target)).is_some();
                is_endless.is_some_and(|is_endless| is_endless || has_log())
            });
            let is_there = |id: &str| {
                let has_log = self.machine.host.size(Path::new(&target)).is_some();
                self.machine.runtime.has_container(id) || (has_log && self.machine.runtime.has_forgotten(id))
            };
            if !is_kept && !id.is_some_and(is_there) {
                self.complain(Invariant::NothingIsLeft, format!("link {link}, whose container is gone"));
            }
        }
    }

    fn logs(&mut self) {
        let logs = self.machine.runtime.logs();
        for (path, _) in logs.iter().filter(|(_, runs)| *runs) {
            let file = path.display();
            match self.machine.host.size(path) {
                None => self.complain(Invariant::LogsAreBounded, format!("{file} is missing")),
                // It may have grown by a few lines before somebody looked.
                Some(size) if size as u64 > LOG_BYTES_MAX * 3 / 2 => {
                    self.complain(Invariant::LogsAreBounded, format!("{file} has {size} bytes"));
                }
                Some(_) => {}
            }
            let dir = path.parent().expect("logs are in directories");
            let of_it = file.to_string();
            let all = self.machine.host.below(dir).into_iter();
            let names: Vec<_> = all.filter(|name| name.starts_with(&of_it)).collect();
            if names.len() > LOG_FILES_MAX {
                self.complain(Invariant::LogsAreBounded, format!("there are {names:?}"));
            }
        }
    }

    fn mirrors(&mut self, statics: &BTreeMap<String, Arc<Pod>>, mirrors: &BTreeMap<&str, &Pod>) {
        for (name, pod) in statics {
            match mirrors.get(name.as_str()) {
                None => self.complain(Invariant::OneMirrorEach, format!("{name} has none")),
                Some(mirror) if !ferrolet::sources::mirror::mirror_matches(mirror, pod) => {
                    self.complain(Invariant::OneMirrorEach, format!("that of {name} is of another version, or going"));
                }
                Some(_) => {}
            }
        }
        for name in mirrors.keys().filter(|name| !statics.contains_key(**name)) {
            self.complain(Invariant::OneMirrorEach, format!("{name} has one and is no static pod"));
        }
    }

    fn node(&mut self) {
        let Some(node) = self.machine.cluster.node() else {
            return self.complain(Invariant::NodeIsReady, "there is no Node".into());
        };
        let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
        if ready.is_none_or(|ready| ready.status != "True") {
            self.complain(Invariant::NodeIsReady, format!("its condition is {ready:?}"));
        }
        let renewed = self.machine.cluster.lease().and_then(|lease| lease.spec?.renew_time);
        let now = self.machine.world.clock.wall();
        if renewed.as_ref().is_none_or(|renewed| now.duration_since(renewed.0).abs() > LEASE_AGE_MAX) {
            self.complain(Invariant::NodeIsReady, format!("its lease was renewed at {renewed:?}, now is {now}"));
        }
    }
}

fn has_condition(status: &PodStatus, kind: &str, value: &str) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == kind && condition.status == value)
}
