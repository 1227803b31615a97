//! Statuses of the single containers.

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, LinuxContainerUser, PodStatus, VolumeMountStatus,
};

use super::compute::{Stage, StatusInput};
use super::conditions::{was_restarting_all, whole_seconds};
use super::resources::{actual, granted};
use crate::config::Gate;
use crate::cri;
use crate::pod::containers::{Role, all_containers, init_containers, regular_containers, workload_containers};
use crate::pod::qos::{self, QosClass};

/// Bytes of termination messages that one pod may have in its status.
const MESSAGE_BYTES_MAX: usize = 12 * 1024;

const STATUS_UNKNOWN: &str = "ContainerStatusUnknown";
const LOST_WHILE_RUNNING: &str =
    "The container could not be located when the pod was deleted.  The container used to be Running";
/// Why a container is missing that is to begin anew with all others, and how it came to its end.
pub(super) const RESTARTING_ALL: &str = "RestartingAllContainers";
const REMOVED_FOR_ALL: &str = "The container is removed because RestartAllContainers in place";
const LOST_AT_END: &str = "The container could not be located when the pod was terminated";
/// What a process killed by SIGKILL leaves; the best guess for one nobody saw end.
const EXIT_CODE_UNKNOWN: i32 = 137;

/// The statuses of a pod's containers: init ones in the order of the spec, the others by
/// name.
#[derive(Default, Clone, PartialEq, Debug)]
pub(super) struct Statuses {
    /// An exit demands that all containers begin anew, and some are yet to be removed for it.
    pub restarting_all: bool,
    pub init: Vec<ContainerStatus>,
    pub regular: Vec<ContainerStatus>,
    pub ephemeral: Vec<ContainerStatus>,
}

impl Statuses {
    pub fn of(input: &StatusInput<'_>, earlier: &PodStatus) -> Self {
        let open = input.stage == Stage::Syncing;
        let restarting_all = open && input.restarts().sources(input.runtime).next().is_some();
        // Those removed last are missed when it is over already; and where the API heard nothing
        // of it, an agent that comes new finds a sandbox and nobody in it.
        let is_emptied = || {
            let is_gone = |name: &str| input.runtime.newest(name).is_none();
            let all_gone = workload_containers(input.pod).all(|(_, container)| is_gone(&container.name));
            input.restarts().may_restart_all() && input.runtime.sandbox().is_some() && all_gone
        };
        let some_removed_for_all = restarting_all || (open && (was_restarting_all(earlier) || is_emptied()));
        let mut statuses = Statuses { restarting_all, ..Statuses::default() };
        for (role, container) in all_containers(input.pod) {
            let earlier = known(earlier, role, &container.name);
            let status = Subject { input, role, container: &container, earlier, some_removed_for_all }.status();
            match role {
                Role::Init | Role::Sidecar => statuses.init.push(status),
                Role::Regular => statuses.regular.push(status),
                Role::Ephemeral => statuses.ephemeral.push(status),
            }
        }
        statuses.regular.sort_by(|a, b| a.name.cmp(&b.name));
        statuses.ephemeral.sort_by(|a, b| a.name.cmp(&b.name));
        if input.stage == Stage::Terminated {
            statuses.close();
        }
        statuses.cap_messages();
        statuses
    }

    pub fn init(&self, name: &str) -> Option<&ContainerStatus> {
        self.init.iter().find(|status| status.name == name)
    }

    pub fn regular(&self, name: &str) -> Option<&ContainerStatus> {
        self.regular.iter().find(|status| status.name == name)
    }

    /// Whether a regular container runs or ever did.
    pub fn any_regular_started(&self) -> bool {
        self.regular.iter().any(has_run)
    }

    /// Gives every container of a pod that ended an end of its own. Init containers after
    /// the last one that ran, and regular ones of a pod that never got to them, never ran
    /// and stay waiting; but the first one's turn had come.
    fn close(&mut self) {
        let last_run = self.init.iter().rposition(has_run);
        let initialized = self.any_regular_started() || self.init.iter().all(done_as_init);
        let init = match initialized {
            true => self.init.len(),
            false => last_run.map_or(self.init.len().min(1), |index| index + 1),
        };
        let regular = if initialized { self.regular.len() } else { 0 };
        for status in self.init.iter_mut().take(init).chain(self.regular.iter_mut().take(regular)) {
            if terminated(&status.state).is_none() {
                status.state = Some(lost(LOST_AT_END, status.container_id.clone()));
                status.ready = false;
                status.started = Some(false);
            }
        }
    }

    /// Each container may use its share of what one pod may say.
    fn cap_messages(&mut self) {
        let statuses = || self.init.iter().chain(&self.regular).chain(&self.ephemeral);
        let share = MESSAGE_BYTES_MAX / statuses().count().max(1);
        let own = self.init.iter_mut().chain(&mut self.regular).chain(&mut self.ephemeral);
        for state in own.flat_map(|status| [&mut status.state, &mut status.last_state]) {
            let exit = state.as_mut().and_then(|state| state.terminated.as_mut());
            if let Some(message) = exit.and_then(|exit| exit.message.as_mut()) {
                message.truncate(char_boundary_at_most(message, share));
            }
        }
    }
}

fn char_boundary_at_most(text: &str, bytes: usize) -> usize {
    (0..=bytes.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

fn has_run(status: &ContainerStatus) -> bool {
    let running = status.state.as_ref().is_some_and(|state| state.running.is_some());
    running
        || status.started == Some(true)
        || terminated(&status.state).is_some()
        || terminated(&status.last_state).is_some()
}

fn done_as_init(status: &ContainerStatus) -> bool {
    status.started == Some(true) || terminated(&status.state).is_some_and(|exit| exit.exit_code == 0)
}

fn terminated(state: &Option<ContainerState>) -> Option<&ContainerStateTerminated> {
    state.as_ref()?.terminated.as_ref()
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: text(reason), message: text(message) }),
        ..ContainerState::default()
    }
}

fn ended(exit: ContainerStateTerminated) -> ContainerState {
    ContainerState { terminated: Some(exit), ..ContainerState::default() }
}

/// The end of a container that nobody saw ending.
fn lost(message: &str, id: Option<String>) -> ContainerState {
    ended(ContainerStateTerminated {
        container_id: id,
        exit_code: EXIT_CODE_UNKNOWN,
        reason: Some(STATUS_UNKNOWN.to_owned()),
        message: Some(message.to_owned()),
        ..ContainerStateTerminated::default()
    })
}

/// How a container ended that the runtime no longer has, as its status tells it: what ran left no
/// trace. `None` if it never ran.
pub(super) fn told_exit(told: &ContainerStatus) -> Option<i32> {
    let state = told.state.as_ref()?;
    let exit = state.terminated.as_ref().or(told.last_state.as_ref().and_then(|last| last.terminated.as_ref()));
    match state.running {
        Some(_) => Some(EXIT_CODE_UNKNOWN),
        None => exit.map(|exit| exit.exit_code),
    }
}

/// The status a container had.
pub(super) fn known<'a>(status: &'a PodStatus, role: Role, name: &str) -> Option<&'a ContainerStatus> {
    let list = match role {
        Role::Init | Role::Sidecar => &status.init_container_statuses,
        Role::Regular => &status.container_statuses,
        Role::Ephemeral => &status.ephemeral_container_statuses,
    };
    list.iter().flatten().find(|status| status.name == name)
}

/// One container and what is known about it.
struct Subject<'a> {
    input: &'a StatusInput<'a>,
    role: Role,
    container: &'a Container,
    earlier: Option<&'a ContainerStatus>,
    /// Containers are or were being removed so that all may begin anew.
    some_removed_for_all: bool,
}

impl Subject<'_> {
    fn status(&self) -> ContainerStatus {
        let mut instances = self.input.runtime.instances(&self.container.name);
        let mut status = match (instances.next(), instances.next()) {
            (Some(newest), second) => self.of_instance(newest, second),
            (None, _) => self.without_instance(),
        };
        // What is allocated is to be found in the API by a later life of the agent, also of a
        // container that has not begun: the spec may wish for something else by then.
        if self.is_resizable() && self.input.runtime.newest(&self.container.name).is_none() {
            let granted = granted(self.container);
            status.allocated_resources = granted.requests.clone().filter(|requests| !requests.is_empty());
            status.resources = Some(granted);
        }
        self.show_start_error(&mut status);
        // The API always shows the field, empty or not; saying the same keeps them equal.
        status.last_state.get_or_insert_default();
        status
    }

    /// Pods that ask for nothing cannot ask for anything later.
    fn is_resizable(&self) -> bool {
        let input = self.input;
        let asks = || qos::class(input.pod) != QosClass::BestEffort;
        self.role != Role::Ephemeral && !input.source.is_static() && input.stage == Stage::Syncing && asks()
    }

    fn of_instance(&self, newest: &cri::Container, second: Option<&cri::Container>) -> ContainerStatus {
        let id = self.api_id(newest);
        let probed = self.input.probes.get(&newest.id).copied().unwrap_or_default();
        let started = newest.is_running() && probed.started.unwrap_or(true);
        let ready = match (self.role, newest.exit()) {
            (Role::Init, exit) => exit.is_some_and(|exit| exit.exit_code == 0),
            (Role::Ephemeral, _) => false,
            _ => started && probed.ready.unwrap_or(true),
        };
        let same = self.earlier.filter(|earlier| earlier.container_id.as_deref() == Some(id.as_str()));
        let mut restart_count = restart_count(newest).max(self.earlier.map_or(0, |earlier| earlier.restart_count));
        let state = match &newest.state {
            cri::ContainerState::Created => self.default_waiting(),
            cri::ContainerState::Running { started_at } => ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(whole_seconds(*started_at)) }),
                ..ContainerState::default()
            },
            cri::ContainerState::Exited(exit) => ended(self.exit(&id, exit)),
            // The runtime lost track of it. What ran cannot be said to wait now, or the pod
            // would look as if it had never been started.
            cri::ContainerState::Unknown => match same.and_then(|earlier| earlier.state.as_ref()) {
                Some(state) if state.running.is_some() => {
                    restart_count += 1;
                    lost(LOST_AT_END, Some(id.clone()))
                }
                Some(state) if state.terminated.is_some() => state.clone(),
                _ => self.default_waiting(),
            },
        };
        let granted = granted(self.container);
        let allocated = granted.requests.clone().filter(|requests| !requests.is_empty());
        let resources = match newest.resources.as_ref().filter(|_| newest.is_running()) {
            Some(running) => actual(granted, running),
            None => granted,
        };
        ContainerStatus {
            name: self.container.name.clone(),
            image: newest.image.clone(),
            image_id: newest.image_ref.clone(),
            last_state: self.last_state(second, newest),
            container_id: Some(id),
            state: Some(state),
            started: (self.role != Role::Ephemeral).then_some(started),
            ready,
            restart_count,
            allocated_resources: allocated,
            resources: Some(resources),
            user: newest.user.as_ref().map(|user| ContainerUser {
                linux: Some(LinuxContainerUser {
                    uid: user.uid,
                    gid: user.gid,
                    supplemental_groups: Some(user.supplemental_groups.clone()).filter(|groups| !groups.is_empty()),
                }),
            }),
            volume_mounts: self.volume_mounts(Some(newest)),
            stop_signal: newest.stop_signal.clone().filter(|_| self.input.gates.enabled(Gate::ContainerStopSignals)),
            ..ContainerStatus::default()
        }
    }

    /// How the instance before the newest ended: by what the runtime still has, else by what
    /// was known before it was collected.
    fn last_state(&self, second: Option<&cri::Container>, newest: &cri::Container) -> Option<ContainerState> {
        if let Some((second, exit)) = second.and_then(|second| Some((second, second.exit()?))) {
            return Some(ended(self.exit(&self.api_id(second), exit)));
        }
        let newest = self.api_id(newest);
        let of_another = |state: &&ContainerState| {
            state.terminated.as_ref().is_some_and(|exit| exit.container_id.as_deref() != Some(newest.as_str()))
        };
        let earlier = self.earlier?;
        [&earlier.state, &earlier.last_state].into_iter().flatten().find(of_another).cloned()
    }

    fn without_instance(&self) -> ContainerStatus {
        let bare = ContainerStatus {
            name: self.container.name.clone(),
            image: self.container.image.clone().unwrap_or_default(),
            state: Some(self.default_waiting()),
            started: (self.role != Role::Ephemeral).then_some(false),
            volume_mounts: self.volume_mounts(None),
            ..ContainerStatus::default()
        };
        if let Some(status) = self.removed_for_all() {
            return status;
        }
        if let Some(earlier) = self.earlier.filter(|earlier| terminated(&earlier.state).is_some()) {
            return earlier.clone();
        }
        if self.role == Role::Init && self.regular_was_created() {
            return ContainerStatus {
                state: Some(ended(ContainerStateTerminated {
                    exit_code: 0,
                    reason: Some("Completed".to_owned()),
                    message: Some(
                        "The init container is gone from the runtime and the pod is initialized: it counts as exited normally"
                            .to_owned(),
                    ),
                    ..ContainerStateTerminated::default()
                })),
                ready: true,
                restart_count: self.earlier.map_or(0, |earlier| earlier.restart_count),
                ..bare
            };
        }
        let Some(earlier) = self.earlier else {
            return bare;
        };
        let was_running = earlier.state.as_ref().is_some_and(|state| state.running.is_some());
        if !was_running {
            return ContainerStatus {
                restart_count: earlier.restart_count,
                last_state: earlier.last_state.clone(),
                ..bare
            };
        }
        // It ran and left no trace. A last state makes it count as stopped, not as never run.
        let deleted = self.input.pod.metadata.deletion_timestamp.is_some();
        let is_over = !deleted && !self.will_restart(EXIT_CODE_UNKNOWN);
        ContainerStatus {
            restart_count: earlier.restart_count + i32::from(!deleted && self.role != Role::Ephemeral),
            last_state: Some(lost(LOST_WHILE_RUNNING, earlier.container_id.clone())),
            // It waits for nothing.
            state: if is_over { Some(lost(LOST_AT_END, None)) } else { bare.state.clone() },
            ..bare
        }
    }

    /// The container ran, and was removed so that all may begin anew.
    fn removed_for_all(&self) -> Option<ContainerStatus> {
        let earlier = self.earlier.filter(|_| self.some_removed_for_all && self.role != Role::Ephemeral)?;
        let state = earlier.state.as_ref()?;
        if let Some(waiting) = &state.waiting {
            // It waits on, while others are still in the way.
            return (waiting.reason.as_deref() == Some(RESTARTING_ALL)).then(|| earlier.clone());
        }
        // Whose exit it was that demanded it ended by itself, and shall be seen to have.
        let own =
            state.terminated.as_ref().filter(|exit| self.input.restarts().demands_all(self.container, exit.exit_code));
        let last = own.cloned().unwrap_or_else(|| ContainerStateTerminated {
            exit_code: EXIT_CODE_UNKNOWN,
            reason: Some(RESTARTING_ALL.to_owned()),
            message: Some(REMOVED_FOR_ALL.to_owned()),
            ..ContainerStateTerminated::default()
        });
        Some(ContainerStatus {
            name: self.container.name.clone(),
            image: self.container.image.clone().unwrap_or_default(),
            state: Some(waiting(RESTARTING_ALL, REMOVED_FOR_ALL)),
            last_state: Some(ended(last)),
            started: Some(false),
            restart_count: earlier.restart_count + 1,
            ..ContainerStatus::default()
        })
    }

    fn regular_was_created(&self) -> bool {
        regular_containers(self.input.pod).iter().any(|container| self.input.runtime.newest(&container.name).is_some())
    }

    /// A container that will be started again waits for the reason it could not be; how it
    /// ended moves to its last state.
    fn show_start_error(&self, status: &mut ContainerStatus) {
        let Some(error) = self.input.start_errors.get(&self.container.name) else {
            return;
        };
        let state = status.state.take().unwrap_or_default();
        let stays = match &state.terminated {
            Some(exit) => !self.will_restart(exit.exit_code),
            None => state.running.is_some(),
        };
        if stays {
            status.state = Some(state);
            return;
        }
        if state.terminated.is_some() {
            status.last_state = Some(state);
        }
        status.state = Some(waiting(&error.reason, &error.message));
    }

    fn will_restart(&self, exit_code: i32) -> bool {
        match self.role {
            Role::Ephemeral => false,
            Role::Init if exit_code == 0 => false,
            _ => self.input.restarts().restartable(self.container, exit_code),
        }
    }

    fn default_waiting(&self) -> ContainerState {
        let has_init = !init_containers(self.input.pod).is_empty();
        waiting(if has_init { "PodInitializing" } else { "ContainerCreating" }, "")
    }

    fn api_id(&self, instance: &cri::Container) -> String {
        format!("{}://{}", self.input.runtime_name, instance.id)
    }

    fn exit(&self, id: &str, exit: &cri::Exit) -> ContainerStateTerminated {
        let reason = match (exit.reason.as_str(), exit.exit_code) {
            ("", 0) => "Completed",
            ("", _) => "Error",
            (reason, _) => reason,
        };
        ContainerStateTerminated {
            container_id: Some(id.to_owned()),
            exit_code: exit.exit_code,
            reason: Some(reason.to_owned()),
            message: Some(exit.message.clone()).filter(|message| !message.is_empty()),
            started_at: exit.started_at.map(whole_seconds),
            finished_at: exit.finished_at.map(whole_seconds),
            signal: None,
        }
    }

    /// The mounts of the spec, with what became of a read-only one below its top. As long as
    /// there is no container it is what will become of it, as far as the spec says.
    fn volume_mounts(&self, newest: Option<&cri::Container>) -> Option<Vec<VolumeMountStatus>> {
        let mounts = self.container.volume_mounts.as_deref().unwrap_or_default();
        let list: Vec<VolumeMountStatus> = mounts
            .iter()
            .map(|mount| {
                let read_only = mount.read_only.unwrap_or(false);
                let of_path = |actual: &&cri::Mount| actual.container_path == mount.mount_path;
                let recursive = match newest {
                    Some(newest) => newest.mounts.iter().find(of_path).is_some_and(|actual| actual.recursive_read_only),
                    None => mount.recursive_read_only.as_deref() == Some("Enabled"),
                };
                VolumeMountStatus {
                    name: mount.name.clone(),
                    mount_path: mount.mount_path.clone(),
                    read_only: read_only.then_some(true),
                    recursive_read_only: read_only.then(|| if recursive { "Enabled" } else { "Disabled" }.to_owned()),
                    volume_status: None,
                }
            })
            .collect();
        Some(list).filter(|list| !list.is_empty())
    }
}

/// The count travels with the container, so that it survives the agent.
fn restart_count(instance: &cri::Container) -> i32 {
    let annotated = instance.annotations.get(cri::annotations::CONTAINER_RESTART_COUNT);
    let count = annotated.and_then(|count| count.parse().ok()).unwrap_or(instance.attempt);
    i32::try_from(count).unwrap_or(i32::MAX)
}
