//! The container runtime as the agent sees it: our own types, a trait, and one of its own for
//! what is about images.
//!
//! This room alone knows protobuf. `grpc.rs` speaks `runtime.v1` to a socket; the
//! simulation has a runtime of its own behind the same traits.
//!
//! Always true: every call has a deadline set by the caller of `connect`; dropping a call's
//! future leaves the outcome unknown, and the next reader of the runtime finds it out.

mod answers;
mod grpc;
mod requests;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;

pub use grpc::{EndpointError, GrpcRuntime};
pub use http::Uri;

/// The machine's; the runtime only says which it uses.
pub use crate::host::CgroupDriver;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);
        impl $name {
            pub fn new(id: impl AsRef<str>) -> Self {
                $name(id.as_ref().into())
            }
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// The runtime's name for one pod sandbox.
    SandboxId
);
id!(
    /// The runtime's name for one container instance.
    ContainerId
);

/// Labels that tie sandboxes and containers to their pod, shared with upstream's kubelet.
pub mod labels {
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
}

/// Annotations on containers that let either agent go on where the other stopped.
pub mod annotations {
    pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
    pub const CONTAINER_RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    pub const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    pub const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    pub const PRE_STOP_HANDLER: &str = "io.kubernetes.container.preStopHandler";
    pub const PORTS: &str = "io.kubernetes.container.ports";
    pub const POD_DELETION_GRACE_PERIOD: &str = "io.kubernetes.pod.deletionGracePeriod";
    pub const POD_TERMINATION_GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
}

/// How a CRI call can end badly, told apart by what a caller does about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CriError {
    /// The object is not there; for a removal that is success.
    #[error("{call}: not found: {message}")]
    NotFound { call: &'static str, message: String },
    /// The name is taken: an earlier call we gave up on went through, or still runs.
    #[error("{call}: already exists: {message}")]
    AlreadyExists { call: &'static str, message: String },
    /// The runtime does not know the call, nor will it later.
    #[error("{call}: not implemented by this runtime")]
    Unimplemented { call: &'static str },
    /// No answer within the deadline. The call may yet take effect.
    #[error("{call}: no answer within {after:?}")]
    Timeout { call: &'static str, after: Duration },
    /// More was asked at once than the runtime keeps track of.
    #[error("{call}: runtime has its hands full: {message}")]
    Exhausted { call: &'static str, message: String },
    /// Nobody listens on the socket.
    #[error("{call}: runtime is not reachable: {message}")]
    Unavailable { call: &'static str, message: String },
    /// The runtime said no.
    #[error("{call}: {message}")]
    Failed { call: &'static str, message: String },
    /// The runtime answered something that makes no sense.
    #[error("{call}: unreadable answer: {message}")]
    Malformed { call: &'static str, message: String },
}

impl CriError {
    pub fn call(&self) -> &'static str {
        match self {
            CriError::NotFound { call, .. }
            | CriError::AlreadyExists { call, .. }
            | CriError::Unimplemented { call }
            | CriError::Timeout { call, .. }
            | CriError::Exhausted { call, .. }
            | CriError::Unavailable { call, .. }
            | CriError::Failed { call, .. }
            | CriError::Malformed { call, .. } => call,
        }
    }

    /// For users, who know nothing of calls: what the runtime said, if it said something.
    pub fn own_words(&self) -> String {
        match self {
            CriError::NotFound { message, .. }
            | CriError::AlreadyExists { message, .. }
            | CriError::Exhausted { message, .. }
            | CriError::Failed { message, .. } => message.clone(),
            other => other.to_string(),
        }
    }
}

pub type Result<T> = std::result::Result<T, CriError>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeVersion {
    pub runtime_name: String,
    pub runtime_version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RuntimeStatus {
    pub runtime_ready: RuntimeCondition,
    pub network_ready: RuntimeCondition,
    pub handlers: Vec<RuntimeHandler>,
    pub supplemental_groups_policy: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RuntimeCondition {
    pub ok: bool,
    pub reason: String,
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeHandler {
    pub name: String,
    pub recursive_read_only_mounts: bool,
    pub user_namespaces: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SandboxState {
    Ready,
    NotReady,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum NamespaceMode {
    #[default]
    Pod,
    Container,
    Node,
    Target,
}

/// A sandbox as the runtime reports it, list and status calls joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    pub id: SandboxId,
    pub pod_name: String,
    pub pod_namespace: String,
    pub pod_uid: String,
    pub attempt: u32,
    pub state: SandboxState,
    pub created_at: Timestamp,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Known only from the status call; empty from a list, and for host-network pods.
    pub ips: Vec<IpAddr>,
    /// Known only from the status call.
    pub network_mode: Option<NamespaceMode>,
    /// Known only from the status call, of pods that have users of their own.
    pub users: Option<IdRange>,
    pub runtime_handler: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    Created,
    Running { started_at: Timestamp },
    Exited(Exit),
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
}

/// The bare state that the list call gives; enough to see whether a status is worth a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ContainerStateKind {
    Created,
    Running,
    Exited,
    Unknown,
}

/// One line of the container list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerSummary {
    pub id: ContainerId,
    pub sandbox_id: SandboxId,
    pub name: String,
    /// The three from labels; empty for a container that no kubelet made.
    pub pod_uid: String,
    pub pod_name: String,
    pub pod_namespace: String,
    pub attempt: u32,
    pub state: ContainerStateKind,
    pub created_at: Timestamp,
    /// The image id as the runtime resolves it, for image GC.
    pub image_id: String,
}

/// A container instance as the status call reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub id: ContainerId,
    /// Empty from the status call, which does not tell; the list does.
    pub sandbox_id: SandboxId,
    pub name: String,
    pub attempt: u32,
    pub state: ContainerState,
    pub created_at: Timestamp,
    /// The image as named in the spec, and the digest reference it resolved to.
    pub image: String,
    pub image_ref: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub log_path: String,
    pub user: Option<ContainerUser>,
    pub resources: Option<LinuxResources>,
    /// Container path and host path of each mount, for termination messages.
    pub mounts: Vec<Mount>,
    /// What it is told to end with, as the API names it, from a runtime that says so.
    pub stop_signal: Option<String>,
}

impl Container {
    pub fn is_running(&self) -> bool {
        matches!(self.state, ContainerState::Running { .. })
    }
    pub fn exit(&self) -> Option<&Exit> {
        match &self.state {
            ContainerState::Exited(exit) => Some(exit),
            _ => None,
        }
    }
    pub fn kind(&self) -> ContainerStateKind {
        match self.state {
            ContainerState::Created => ContainerStateKind::Created,
            ContainerState::Running { .. } => ContainerStateKind::Running,
            ContainerState::Exited(_) => ContainerStateKind::Exited,
            ContainerState::Unknown => ContainerStateKind::Unknown,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerUser {
    pub uid: i64,
    pub gid: i64,
    pub supplemental_groups: Vec<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct DnsConfig {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMapping {
    pub protocol: Protocol,
    pub container_port: i32,
    pub host_port: i32,
    pub host_ip: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MountPropagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Mount {
    pub container_path: String,
    pub host_path: String,
    pub readonly: bool,
    pub recursive_read_only: bool,
    pub selinux_relabel: bool,
    pub propagation: MountPropagation,
    /// The user namespace whose ids the owners of files are shown in.
    pub ids: Option<IdRange>,
    /// Mounted in place of a host path.
    pub image: Option<ImageSpec>,
    /// A directory in the image; empty is all of it.
    pub image_sub_path: String,
}

/// The ids 0, 1, ... of a user namespace, as the node knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    pub host_id: u32,
    pub length: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NamespaceOptions {
    pub network: NamespaceMode,
    pub pid: NamespaceMode,
    pub ipc: NamespaceMode,
    /// The container whose PID namespace is joined in mode `Target`.
    pub target_id: String,
    /// A user namespace of the pod's own; `None` is the node's.
    pub users: Option<IdRange>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecurityProfile {
    RuntimeDefault,
    Unconfined,
    Localhost(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SelinuxOptions {
    pub user: String,
    pub role: String,
    pub kind: String,
    pub level: String,
}

/// What is said about security for a sandbox, and, with the last five fields, a container.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SecurityContext {
    pub namespaces: NamespaceOptions,
    pub selinux: Option<SelinuxOptions>,
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub run_as_username: String,
    pub readonly_rootfs: bool,
    pub supplemental_groups: Vec<i64>,
    pub supplemental_groups_strict: bool,
    pub privileged: bool,
    pub seccomp: Option<SecurityProfile>,
    pub apparmor: Option<SecurityProfile>,
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    pub no_new_privs: bool,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LinuxResources {
    pub cpu_period: i64,
    pub cpu_quota: i64,
    pub cpu_shares: i64,
    pub memory_limit_bytes: i64,
    pub memory_swap_limit_bytes: i64,
    pub oom_score_adj: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    /// Page size (`2MB`) and limit in bytes.
    pub hugepage_limits: Vec<(String, u64)>,
    pub unified: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SandboxConfig {
    pub pod_name: String,
    pub pod_namespace: String,
    pub pod_uid: String,
    pub attempt: u32,
    pub hostname: String,
    pub log_directory: String,
    pub dns: Option<DnsConfig>,
    pub port_mappings: Vec<PortMapping>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub cgroup_parent: String,
    pub sysctls: BTreeMap<String, String>,
    pub security: SecurityContext,
    pub resources: Option<LinuxResources>,
    pub overhead: Option<LinuxResources>,
    /// RuntimeClass handler; empty is the default one.
    pub runtime_handler: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ImageSpec {
    /// What the runtime is asked for; after a pull, the reference that was resolved.
    pub image: String,
    /// What the pod's author wrote.
    pub user_specified_image: String,
    pub annotations: BTreeMap<String, String>,
    pub runtime_handler: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub container_path: String,
    pub host_path: String,
    pub permissions: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ContainerConfig {
    pub name: String,
    pub attempt: u32,
    pub image: ImageSpec,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub working_dir: String,
    /// Values need not be text.
    pub env: Vec<(String, Vec<u8>)>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Relative to the sandbox's log directory.
    pub log_path: String,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    pub resources: LinuxResources,
    pub security: SecurityContext,
    /// In place of the image's own, as the API names it: `SIGUSR1`, `SIGRTMIN+2`.
    pub stop_signal: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Image {
    pub id: String,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    pub size_bytes: u64,
    /// The numeric user the image asks for, else its name.
    pub uid: Option<i64>,
    pub username: String,
    pub pinned: bool,
}

/// Credentials of one pull.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Auth {
    pub username: String,
    pub password: String,
    pub auth: String,
    pub server_address: String,
    pub identity_token: String,
    pub registry_token: String,
}

/// Keeps secrets out of logs.
impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Auth({} at {})", self.username, self.server_address)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilesystemUsage {
    pub mountpoint: String,
    pub used_bytes: u64,
    pub inodes_used: u64,
}

/// How a command in a container went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Executed {
    /// Standard output, then standard error.
    Exited { code: i32, output: Vec<u8> },
    /// The runtime killed it when its time was over.
    TimedOut,
}

/// What of a process somebody wants to be connected with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    /// Not together with `tty`, which has one output.
    pub stderr: bool,
    pub tty: bool,
}

/// A hint that something happened to a pod. The truth is read afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeEvent {
    /// Empty when the runtime could not tell any more which pod it was.
    pub pod_uid: String,
    pub container_id: String,
    pub kind: RuntimeEventKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuntimeEventKind {
    Created,
    Started,
    Stopped,
    Deleted,
}

/// Which sandboxes or containers a list call is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    All,
    Pod(crate::pod::PodUid),
}

/// The part of a container runtime that is about images.
#[async_trait]
pub trait ImageService: Send + Sync + 'static {
    /// `None` when the image is not present.
    async fn image_status(&self, image: &ImageSpec) -> Result<Option<Image>>;
    /// Returns the reference the image was resolved to. No deadline of its own.
    async fn pull_image(
        &self,
        image: &ImageSpec,
        auth: Option<&Auth>,
        sandbox: Option<&SandboxConfig>,
    ) -> Result<String>;
    async fn list_images(&self) -> Result<Vec<Image>>;
    async fn remove_image(&self, image: &ImageSpec) -> Result<()>;
    async fn image_filesystem(&self) -> Result<Option<FilesystemUsage>>;
}

/// The container runtime. Each call is idempotent as far as CRI makes it so: stopping or
/// removing what is gone is not an error worth acting on.
#[async_trait]
pub trait Runtime: ImageService {
    async fn version(&self) -> Result<RuntimeVersion>;
    async fn status(&self) -> Result<RuntimeStatus>;
    /// The runtime's own choice; `Unimplemented` from containerd 1.6.
    async fn cgroup_driver(&self) -> Result<CgroupDriver>;
    /// What a runtime that does not know that call lets one see of its choice.
    async fn shown_cgroup_driver(&self) -> Result<Option<CgroupDriver>> {
        Ok(None)
    }
    async fn update_pod_cidr(&self, cidr: &str) -> Result<()>;

    async fn list_sandboxes(&self, scope: &Scope) -> Result<Vec<Sandbox>>;
    async fn sandbox_status(&self, id: &SandboxId) -> Result<Sandbox>;
    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<SandboxId>;
    async fn stop_sandbox(&self, id: &SandboxId) -> Result<()>;
    async fn remove_sandbox(&self, id: &SandboxId) -> Result<()>;

    async fn list_containers(&self, scope: &Scope) -> Result<Vec<ContainerSummary>>;
    async fn container_status(&self, id: &ContainerId) -> Result<Container>;
    async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: &ContainerConfig,
        sandbox_config: &SandboxConfig,
    ) -> Result<ContainerId>;
    async fn start_container(&self, id: &ContainerId) -> Result<()>;
    /// SIGTERM, then SIGKILL once `grace` has passed. The call lasts as long as that takes.
    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<()>;
    async fn remove_container(&self, id: &ContainerId) -> Result<()>;
    /// Changes what a running container may use. Figures that are 0 stay as they are; -1 takes
    /// a limit away.
    async fn update_container(&self, id: &ContainerId, resources: &LinuxResources) -> Result<()>;
    /// Bytes that a running container uses now, where the runtime can say.
    async fn memory_usage(&self, id: &ContainerId) -> Result<Option<u64>>;
    /// What each running container has written to its own layer, where the runtime can say.
    async fn written_layers(&self) -> Result<Vec<(ContainerId, FilesystemUsage)>> {
        Err(CriError::Unimplemented { call: "ListContainerStats" })
    }
    /// The image that a sandbox was made of, where the runtime says so.
    async fn sandbox_image(&self, _id: &SandboxId) -> Result<Option<String>> {
        Err(CriError::Unimplemented { call: "PodSandboxStatus" })
    }
    /// From now on the log is written to a new file of the old name, unless there is one.
    async fn reopen_container_log(&self, id: &ContainerId) -> Result<()>;
    /// Writes all that a running container is to a file, from which it could be started again.
    /// `timeout` counts where it is longer than what calls are given anyway.
    async fn checkpoint_container(&self, id: &ContainerId, file: &Path, timeout: Duration) -> Result<()>;
    /// Runs a command in a running container and waits for its end. Without `timeout` it may
    /// last for ever; the caller ends it by dropping the call.
    async fn exec(&self, id: &ContainerId, command: &[String], timeout: Option<Duration>) -> Result<Executed>;

    /// Where the runtime's streaming server waits for one connection that runs a command. The
    /// runtime forgets the place when nobody comes for a minute. The URL is whole: it has a
    /// scheme, `http` or `https`, and a host.
    async fn exec_url(&self, id: &ContainerId, command: &[String], streams: Streams) -> Result<Uri>;
    /// The same for one that is led to the container's own process.
    async fn attach_url(&self, id: &ContainerId, streams: Streams) -> Result<Uri>;
    /// The same for one that is led to ports of the pod. Of what a client speaks it depends
    /// whether the ports are known before.
    async fn port_forward_url(&self, id: &SandboxId, ports: &[u16]) -> Result<Uri>;

    /// `Unimplemented` where the runtime has no event stream. A stream ends after its first
    /// error; one that was slow to be refused has the refusal as its first item.
    async fn events(&self) -> Result<BoxStream<'static, Result<RuntimeEvent>>>;
}
