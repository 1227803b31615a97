//! Between the wire's messages and our own types.
//!
//! Answers are consumed: a label map or a name moves from the message into our type. Requests
//! are built from borrowed configuration, because prost's messages own what they send.

use std::net::IpAddr;

use jiff::Timestamp;

use super::labels;
use super::wire;
use super::{
    Auth, CgroupDriver, Container, ContainerConfig, ContainerId, ContainerState, ContainerStateKind, ContainerSummary,
    ContainerUser, CriError, Device, DnsConfig, Exit, FilesystemUsage, Image, ImageSpec, LinuxResources, Mount,
    MountPropagation, NamespaceMode, NamespaceOptions, PortMapping, Protocol, Result, RuntimeCondition, RuntimeEvent,
    RuntimeEventKind, RuntimeHandler, RuntimeStatus, RuntimeVersion, Sandbox, SandboxConfig, SandboxId, SandboxState,
    Scope, SecurityContext, SecurityProfile, SelinuxOptions,
};

/// A time on the wire: nanoseconds since the epoch.
fn timestamp(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(nanoseconds.into()).expect("64 bits of nanoseconds reach from 1677 to 2262")
}

/// As [`timestamp`], where 0 (or less, from a runtime that sends Go's zero time) means "not yet".
fn occurred(nanoseconds: i64) -> Option<Timestamp> {
    (nanoseconds > 0).then(|| timestamp(nanoseconds))
}

/// What an answer must hold to be of any use.
fn required<T>(call: &'static str, field: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| CriError::Malformed { call, message: format!("no {field}") })
}

// Answers.

pub(super) fn version(answer: wire::VersionResponse) -> RuntimeVersion {
    RuntimeVersion { runtime_name: answer.runtime_name, runtime_version: answer.runtime_version }
}

pub(super) fn runtime_status(answer: wire::StatusResponse) -> RuntimeStatus {
    let mut conditions = answer.status.unwrap_or_default().conditions;
    let mut condition = |kind: &str| match conditions.iter().position(|condition| condition.r#type == kind) {
        Some(at) => {
            let found = conditions.swap_remove(at);
            RuntimeCondition { ok: found.status, reason: found.reason, message: found.message }
        }
        None => RuntimeCondition {
            ok: false,
            reason: String::new(),
            message: format!("runtime did not report the condition {kind}"),
        },
    };
    RuntimeStatus {
        runtime_ready: condition("RuntimeReady"),
        network_ready: condition("NetworkReady"),
        handlers: answer.runtime_handlers.into_iter().map(runtime_handler).collect(),
        supplemental_groups_policy: answer.features.is_some_and(|features| features.supplemental_groups_policy),
    }
}

fn runtime_handler(handler: wire::RuntimeHandler) -> RuntimeHandler {
    let features = handler.features.unwrap_or_default();
    RuntimeHandler {
        name: handler.name,
        recursive_read_only_mounts: features.recursive_read_only_mounts,
        user_namespaces: features.user_namespaces,
    }
}

/// A runtime that leaves the choice out is taken like one that does not know the call.
pub(super) fn cgroup_driver(answer: wire::RuntimeConfigResponse) -> Result<CgroupDriver> {
    match answer.linux.map(|linux| linux.cgroup_driver()) {
        Some(wire::CgroupDriver::Systemd) => Ok(CgroupDriver::Systemd),
        Some(wire::CgroupDriver::Cgroupfs) => Ok(CgroupDriver::Cgroupfs),
        None => Err(CriError::Unimplemented { call: "RuntimeConfig" }),
    }
}

/// A line of the sandbox list. `None` for one without metadata: no pod can be told from it,
/// and it must not spoil the list for the others.
pub(super) fn listed_sandbox(sandbox: wire::PodSandbox) -> Option<Sandbox> {
    let state = sandbox_state(sandbox.state());
    let metadata = sandbox.metadata?;
    Some(Sandbox {
        id: SandboxId::new(sandbox.id),
        pod_name: metadata.name,
        pod_namespace: metadata.namespace,
        pod_uid: metadata.uid,
        attempt: metadata.attempt,
        state,
        created_at: timestamp(sandbox.created_at),
        labels: sandbox.labels,
        annotations: sandbox.annotations,
        ips: Vec::new(),
        network_mode: None,
        runtime_handler: sandbox.runtime_handler,
    })
}

pub(super) fn sandbox_status(answer: wire::PodSandboxStatusResponse) -> Result<Sandbox> {
    let status = required("PodSandboxStatus", "status", answer.status)?;
    let state = sandbox_state(status.state());
    let metadata = required("PodSandboxStatus", "metadata", status.metadata)?;
    let network_mode = status
        .linux
        .and_then(|linux| linux.namespaces)
        .and_then(|namespaces| namespaces.options)
        .map(|options| namespace_mode(options.network()));
    Ok(Sandbox {
        id: SandboxId::new(status.id),
        pod_name: metadata.name,
        pod_namespace: metadata.namespace,
        pod_uid: metadata.uid,
        attempt: metadata.attempt,
        state,
        created_at: timestamp(status.created_at),
        labels: status.labels,
        annotations: status.annotations,
        ips: status.network.map(sandbox_ips).unwrap_or_default(),
        network_mode,
        runtime_handler: status.runtime_handler,
    })
}

/// The primary address first. The runtime sends empty text while there is none.
fn sandbox_ips(network: wire::PodSandboxNetworkStatus) -> Vec<IpAddr> {
    std::iter::once(network.ip)
        .chain(network.additional_ips.into_iter().map(|additional| additional.ip))
        .filter_map(|ip| ip.parse().ok())
        .collect()
}

fn sandbox_state(state: wire::PodSandboxState) -> SandboxState {
    match state {
        wire::PodSandboxState::SandboxReady => SandboxState::Ready,
        wire::PodSandboxState::SandboxNotready => SandboxState::NotReady,
    }
}

fn namespace_mode(mode: wire::NamespaceMode) -> NamespaceMode {
    match mode {
        wire::NamespaceMode::Pod => NamespaceMode::Pod,
        wire::NamespaceMode::Container => NamespaceMode::Container,
        wire::NamespaceMode::Node => NamespaceMode::Node,
        wire::NamespaceMode::Target => NamespaceMode::Target,
    }
}

/// A line of the container list; `None` as for [`listed_sandbox`].
pub(super) fn listed_container(mut container: wire::Container) -> Option<ContainerSummary> {
    let state = match wire::ContainerState::try_from(container.state) {
        Ok(wire::ContainerState::ContainerCreated) => ContainerStateKind::Created,
        Ok(wire::ContainerState::ContainerRunning) => ContainerStateKind::Running,
        Ok(wire::ContainerState::ContainerExited) => ContainerStateKind::Exited,
        Ok(wire::ContainerState::ContainerUnknown) | Err(_) => ContainerStateKind::Unknown,
    };
    let metadata = container.metadata?;
    let mut label = |key| container.labels.remove(key).unwrap_or_default();
    Some(ContainerSummary {
        pod_uid: label(labels::POD_UID),
        pod_name: label(labels::POD_NAME),
        pod_namespace: label(labels::POD_NAMESPACE),
        id: ContainerId::new(container.id),
        sandbox_id: SandboxId::new(container.pod_sandbox_id),
        name: metadata.name,
        attempt: metadata.attempt,
        state,
        created_at: timestamp(container.created_at),
        // Runtimes older than the field put the id where the reference belongs.
        image_id: if container.image_id.is_empty() { container.image_ref } else { container.image_id },
    })
}

/// The message does not name the sandbox, so that `sandbox_id` stays empty: only the list has it.
pub(super) fn container_status(answer: wire::ContainerStatusResponse) -> Result<Container> {
    let mut status = required("ContainerStatus", "status", answer.status)?;
    let metadata = required("ContainerStatus", "metadata", status.metadata.take())?;
    let state = match wire::ContainerState::try_from(status.state) {
        Ok(wire::ContainerState::ContainerCreated) => ContainerState::Created,
        Ok(wire::ContainerState::ContainerRunning) => {
            ContainerState::Running { started_at: timestamp(status.started_at) }
        }
        Ok(wire::ContainerState::ContainerExited) => ContainerState::Exited(Exit {
            started_at: occurred(status.started_at),
            finished_at: occurred(status.finished_at),
            exit_code: status.exit_code,
            reason: status.reason,
            message: status.message,
        }),
        Ok(wire::ContainerState::ContainerUnknown) | Err(_) => ContainerState::Unknown,
    };
    Ok(Container {
        id: ContainerId::new(status.id),
        sandbox_id: SandboxId::new(""),
        name: metadata.name,
        attempt: metadata.attempt,
        state,
        created_at: timestamp(status.created_at),
        image: status.image.map(|image| image.image).unwrap_or_default(),
        image_ref: status.image_ref,
        labels: status.labels,
        annotations: status.annotations,
        log_path: status.log_path,
        user: status.user.and_then(|user| user.linux).map(container_user),
        resources: status.resources.and_then(|resources| resources.linux).map(resources_from_wire),
        mounts: status.mounts.into_iter().map(mount_from_wire).collect(),
    })
}

fn container_user(user: wire::LinuxContainerUser) -> ContainerUser {
    ContainerUser { uid: user.uid, gid: user.gid, supplemental_groups: user.supplemental_groups }
}

fn resources_from_wire(resources: wire::LinuxContainerResources) -> LinuxResources {
    LinuxResources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        memory_limit_bytes: resources.memory_limit_in_bytes,
        memory_swap_limit_bytes: resources.memory_swap_limit_in_bytes,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus,
        cpuset_mems: resources.cpuset_mems,
        hugepage_limits: resources.hugepage_limits.into_iter().map(|limit| (limit.page_size, limit.limit)).collect(),
        unified: resources.unified,
    }
}

fn mount_from_wire(mount: wire::Mount) -> Mount {
    let propagation = match mount.propagation() {
        wire::MountPropagation::PropagationPrivate => MountPropagation::Private,
        wire::MountPropagation::PropagationHostToContainer => MountPropagation::HostToContainer,
        wire::MountPropagation::PropagationBidirectional => MountPropagation::Bidirectional,
    };
    Mount {
        container_path: mount.container_path,
        host_path: mount.host_path,
        readonly: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        selinux_relabel: mount.selinux_relabel,
        propagation,
    }
}

/// Which pod an event is about. When a sandbox goes, its status may be gone too: then a
/// container's labels tell, and failing that the UID stays empty, which means "any pod".
pub(super) fn event(event: wire::ContainerEventResponse) -> RuntimeEvent {
    let kind = match event.container_event_type() {
        wire::ContainerEventType::ContainerCreatedEvent => RuntimeEventKind::Created,
        wire::ContainerEventType::ContainerStartedEvent => RuntimeEventKind::Started,
        wire::ContainerEventType::ContainerStoppedEvent => RuntimeEventKind::Stopped,
        wire::ContainerEventType::ContainerDeletedEvent => RuntimeEventKind::Deleted,
    };
    let pod_uid = event
        .pod_sandbox_status
        .and_then(|status| status.metadata)
        .map(|metadata| metadata.uid)
        .or_else(|| event.containers_statuses.into_iter().find_map(|mut status| status.labels.remove(labels::POD_UID)))
        .unwrap_or_default();
    RuntimeEvent { pod_uid, container_id: event.container_id, kind }
}

pub(super) fn image(image: wire::Image) -> Image {
    Image {
        id: image.id,
        repo_tags: image.repo_tags,
        repo_digests: image.repo_digests,
        size_bytes: image.size,
        uid: image.uid.map(|uid| uid.value),
        username: image.username,
        pinned: image.pinned,
    }
}

/// The first file system the runtime keeps images on; it reports one per snapshotter.
pub(super) fn image_filesystem(answer: wire::ImageFsInfoResponse) -> Option<FilesystemUsage> {
    let usage = answer.image_filesystems.into_iter().next()?;
    Some(FilesystemUsage {
        mountpoint: usage.fs_id.unwrap_or_default().mountpoint,
        used_bytes: usage.used_bytes.map_or(0, |used| used.value),
        inodes_used: usage.inodes_used.map_or(0, |used| used.value),
    })
}

// Requests.

pub(super) fn sandbox_filter(scope: &Scope) -> Option<wire::PodSandboxFilter> {
    match scope {
        Scope::All => None,
        Scope::Pod(uid) => {
            Some(wire::PodSandboxFilter { label_selector: pod_selector(uid.as_str()), ..Default::default() })
        }
    }
}

pub(super) fn container_filter(scope: &Scope) -> Option<wire::ContainerFilter> {
    match scope {
        Scope::All => None,
        Scope::Pod(uid) => {
            Some(wire::ContainerFilter { label_selector: pod_selector(uid.as_str()), ..Default::default() })
        }
    }
}

fn pod_selector(uid: &str) -> std::collections::BTreeMap<String, String> {
    [(labels::POD_UID.to_owned(), uid.to_owned())].into()
}

pub(super) fn sandbox_config(config: &SandboxConfig) -> wire::PodSandboxConfig {
    wire::PodSandboxConfig {
        metadata: Some(wire::PodSandboxMetadata {
            name: config.pod_name.clone(),
            uid: config.pod_uid.clone(),
            namespace: config.pod_namespace.clone(),
            attempt: config.attempt,
        }),
        hostname: config.hostname.clone(),
        log_directory: config.log_directory.clone(),
        dns_config: config.dns.as_ref().map(dns_config),
        port_mappings: config.port_mappings.iter().map(port_mapping).collect(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        linux: Some(wire::LinuxPodSandboxConfig {
            cgroup_parent: config.cgroup_parent.clone(),
            security_context: Some(sandbox_security(&config.security)),
            sysctls: config.sysctls.clone(),
            overhead: config.overhead.as_ref().map(resources_to_wire),
            resources: config.resources.as_ref().map(resources_to_wire),
        }),
    }
}

fn dns_config(dns: &DnsConfig) -> wire::DnsConfig {
    wire::DnsConfig { servers: dns.servers.clone(), searches: dns.searches.clone(), options: dns.options.clone() }
}

fn port_mapping(mapping: &PortMapping) -> wire::PortMapping {
    let protocol = match mapping.protocol {
        Protocol::Tcp => wire::Protocol::Tcp,
        Protocol::Udp => wire::Protocol::Udp,
        Protocol::Sctp => wire::Protocol::Sctp,
    };
    wire::PortMapping {
        protocol: protocol.into(),
        container_port: mapping.container_port,
        host_port: mapping.host_port,
        host_ip: mapping.host_ip.clone(),
    }
}

fn sandbox_security(security: &SecurityContext) -> wire::LinuxSandboxSecurityContext {
    wire::LinuxSandboxSecurityContext {
        namespace_options: Some(namespace_options(&security.namespaces)),
        selinux_options: security.selinux.as_ref().map(selinux_options),
        run_as_user: security.run_as_user.map(int64),
        run_as_group: security.run_as_group.map(int64),
        readonly_rootfs: security.readonly_rootfs,
        supplemental_groups: security.supplemental_groups.clone(),
        supplemental_groups_policy: groups_policy(security).into(),
        privileged: security.privileged,
        seccomp: security.seccomp.as_ref().map(security_profile),
        apparmor: security.apparmor.as_ref().map(security_profile),
        ..Default::default()
    }
}

fn container_security(security: &SecurityContext) -> wire::LinuxContainerSecurityContext {
    wire::LinuxContainerSecurityContext {
        capabilities: Some(wire::Capability {
            add_capabilities: security.add_capabilities.clone(),
            drop_capabilities: security.drop_capabilities.clone(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged: security.privileged,
        namespace_options: Some(namespace_options(&security.namespaces)),
        selinux_options: security.selinux.as_ref().map(selinux_options),
        run_as_user: security.run_as_user.map(int64),
        run_as_group: security.run_as_group.map(int64),
        run_as_username: security.run_as_username.clone(),
        readonly_rootfs: security.readonly_rootfs,
        supplemental_groups: security.supplemental_groups.clone(),
        supplemental_groups_policy: groups_policy(security).into(),
        no_new_privs: security.no_new_privs,
        masked_paths: security.masked_paths.clone(),
        readonly_paths: security.readonly_paths.clone(),
        seccomp: security.seccomp.as_ref().map(security_profile),
        apparmor: security.apparmor.as_ref().map(security_profile),
        ..Default::default()
    }
}

fn int64(value: i64) -> wire::Int64Value {
    wire::Int64Value { value }
}

fn groups_policy(security: &SecurityContext) -> wire::SupplementalGroupsPolicy {
    match security.supplemental_groups_strict {
        true => wire::SupplementalGroupsPolicy::Strict,
        false => wire::SupplementalGroupsPolicy::Merge,
    }
}

fn namespace_options(options: &NamespaceOptions) -> wire::NamespaceOption {
    wire::NamespaceOption {
        network: namespace_mode_to_wire(options.network).into(),
        pid: namespace_mode_to_wire(options.pid).into(),
        ipc: namespace_mode_to_wire(options.ipc).into(),
        target_id: options.target_id.clone(),
        userns_options: None,
    }
}

fn namespace_mode_to_wire(mode: NamespaceMode) -> wire::NamespaceMode {
    match mode {
        NamespaceMode::Pod => wire::NamespaceMode::Pod,
        NamespaceMode::Container => wire::NamespaceMode::Container,
        NamespaceMode::Node => wire::NamespaceMode::Node,
        NamespaceMode::Target => wire::NamespaceMode::Target,
    }
}

fn selinux_options(options: &SelinuxOptions) -> wire::SeLinuxOption {
    wire::SeLinuxOption {
        user: options.user.clone(),
        role: options.role.clone(),
        r#type: options.kind.clone(),
        level: options.level.clone(),
    }
}

fn security_profile(profile: &SecurityProfile) -> wire::SecurityProfile {
    use wire::security_profile::ProfileType;
    let (profile_type, localhost_ref) = match profile {
        SecurityProfile::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        SecurityProfile::Unconfined => (ProfileType::Unconfined, String::new()),
        SecurityProfile::Localhost(path) => (ProfileType::Localhost, path.clone()),
    };
    wire::SecurityProfile { profile_type: profile_type.into(), localhost_ref }
}

fn resources_to_wire(resources: &LinuxResources) -> wire::LinuxContainerResources {
    wire::LinuxContainerResources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        memory_limit_in_bytes: resources.memory_limit_bytes,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|(page_size, limit)| wire::HugepageLimit { page_size: page_size.clone(), limit: *limit })
            .collect(),
        unified: resources.unified.clone(),
        memory_swap_limit_in_bytes: resources.memory_swap_limit_bytes,
    }
}

pub(super) fn container_config(config: &ContainerConfig) -> wire::ContainerConfig {
    wire::ContainerConfig {
        metadata: Some(wire::ContainerMetadata { name: config.name.clone(), attempt: config.attempt }),
        image: Some(image_spec(&config.image)),
        command: config.command.clone(),
        args: config.args.clone(),
        working_dir: config.working_dir.clone(),
        envs: config
            .env
            .iter()
            .map(|(key, value)| wire::KeyValue { key: key.clone(), value: value.clone().into_bytes() })
            .collect(),
        mounts: config.mounts.iter().map(mount_to_wire).collect(),
        devices: config.devices.iter().map(device).collect(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        log_path: config.log_path.clone(),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        linux: Some(wire::LinuxContainerConfig {
            resources: Some(resources_to_wire(&config.resources)),
            security_context: Some(container_security(&config.security)),
        }),
        cdi_devices: Vec::new(),
        stop_signal: wire::Signal::RuntimeDefault.into(),
    }
}

fn mount_to_wire(mount: &Mount) -> wire::Mount {
    let propagation = match mount.propagation {
        MountPropagation::Private => wire::MountPropagation::PropagationPrivate,
        MountPropagation::HostToContainer => wire::MountPropagation::PropagationHostToContainer,
        MountPropagation::Bidirectional => wire::MountPropagation::PropagationBidirectional,
    };
    wire::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        readonly: mount.readonly,
        selinux_relabel: mount.selinux_relabel,
        propagation: propagation.into(),
        recursive_read_only: mount.recursive_read_only,
        ..Default::default()
    }
}

fn device(device: &Device) -> wire::Device {
    wire::Device {
        container_path: device.container_path.clone(),
        host_path: device.host_path.clone(),
        permissions: device.permissions.clone(),
    }
}

pub(super) fn image_spec(image: &ImageSpec) -> wire::ImageSpec {
    wire::ImageSpec {
        image: image.image.clone(),
        annotations: image.annotations.clone(),
        user_specified_image: image.user_specified_image.clone(),
        runtime_handler: image.runtime_handler.clone(),
        image_ref: String::new(),
    }
}

pub(super) fn auth(auth: &Auth) -> wire::AuthConfig {
    wire::AuthConfig {
        username: auth.username.clone(),
        password: auth.password.clone(),
        auth: auth.auth.clone(),
        server_address: auth.server_address.clone(),
        identity_token: auth.identity_token.clone(),
        registry_token: auth.registry_token.clone(),
    }
}
