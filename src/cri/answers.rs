//! From the wire's answers to our own types.
//!
//! Messages are consumed: a label map or a name moves from the message into our type.

use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::Value;

use super::labels;
use super::wire;
use super::{
    CgroupDriver, Container, ContainerId, ContainerState, ContainerStateKind, ContainerSummary, ContainerUser,
    CriError, Executed, Exit, FilesystemUsage, IdRange, Image, LinuxResources, Mount, MountPropagation, NamespaceMode,
    Result, RuntimeCondition, RuntimeEvent, RuntimeEventKind, RuntimeHandler, RuntimeStatus, RuntimeVersion, Sandbox,
    SandboxId, SandboxState, Uri,
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

/// What containerd has its default runtime do, if that is runc. Before 2.0 it shows its configuration instead
/// of answering `RuntimeConfig`.
pub(super) fn shown_cgroup_driver(answer: &wire::StatusResponse) -> Option<CgroupDriver> {
    let config: Value = serde_json::from_str(answer.info.get("config")?).ok()?;
    let containerd = config.get("containerd")?;
    let runtime = containerd.get("runtimes")?.get(containerd.get("defaultRuntimeName")?.as_str()?)?;
    if runtime.get("runtimeType")?.as_str()? != "io.containerd.runc.v2" {
        return None;
    }
    let by_systemd = runtime.get("options").and_then(|options| options.get("SystemdCgroup")?.as_bool());
    Some(if by_systemd == Some(true) { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs })
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
        users: None,
        runtime_handler: sandbox.runtime_handler,
    })
}

pub(super) fn sandbox_status(answer: wire::PodSandboxStatusResponse) -> Result<Sandbox> {
    let status = required("PodSandboxStatus", "status", answer.status)?;
    let state = sandbox_state(status.state());
    let metadata = required("PodSandboxStatus", "metadata", status.metadata)?;
    let options = status.linux.and_then(|linux| linux.namespaces).and_then(|namespaces| namespaces.options);
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
        network_mode: options.as_ref().map(|options| namespace_mode(options.network())),
        users: options.and_then(|options| options.userns_options).and_then(id_range),
        runtime_handler: status.runtime_handler,
    })
}

/// The node's ids that stand for 0, 1, ... in a pod with users of its own.
fn id_range(options: wire::UserNamespace) -> Option<IdRange> {
    let first = options.uids.first().filter(|_| options.mode() == wire::NamespaceMode::Pod)?;
    Some(IdRange { host_id: first.host_id, length: first.length })
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
    let stop_signal = stop_signal(status.stop_signal());
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
        resources: status.resources.and_then(|resources| resources.linux).map(linux_resources),
        mounts: status.mounts.into_iter().map(mount).collect(),
        stop_signal,
    })
}

/// As the API names it; none from a runtime that is too old to say.
fn stop_signal(signal: wire::Signal) -> Option<String> {
    let name = signal.as_str_name().replace("MINPLUS", "MIN+").replace("MAXMINUS", "MAX-");
    (signal != wire::Signal::RuntimeDefault).then_some(name)
}

pub(super) fn memory_usage(answer: wire::ContainerStatsResponse) -> Option<u64> {
    answer.stats?.memory?.usage_bytes.map(|usage| usage.value)
}

pub(super) fn written_layer(stats: wire::ContainerStats) -> Option<(ContainerId, FilesystemUsage)> {
    let id = ContainerId::new(stats.attributes?.id);
    Some((id, filesystem_usage(stats.writable_layer?)))
}

/// Of the runtime's own notes on a sandbox, which are JSON below one key.
pub(super) fn sandbox_image(answer: &wire::PodSandboxStatusResponse) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Notes {
        image: String,
    }
    let notes: Notes = serde_json::from_str(answer.info.get("info")?).ok()?;
    (!notes.image.is_empty()).then_some(notes.image)
}

fn container_user(user: wire::LinuxContainerUser) -> ContainerUser {
    ContainerUser { uid: user.uid, gid: user.gid, supplemental_groups: user.supplemental_groups }
}

fn linux_resources(resources: wire::LinuxContainerResources) -> LinuxResources {
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

fn mount(mount: wire::Mount) -> Mount {
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
        ..Mount::default()
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

pub(super) fn executed(answer: wire::ExecSyncResponse) -> Executed {
    let mut output = answer.stdout;
    output.extend_from_slice(&answer.stderr);
    Executed::Exited { code: answer.exit_code, output }
}

/// More of a URL that makes no sense is not repeated to anyone.
const BAD_URL_CHARS_MAX: usize = 200;

/// Nothing is assumed of what a URL leaves out: there is no place it could be relative to.
pub(super) fn stream_url(call: &'static str, url: &str) -> Result<Uri> {
    let is_whole = |uri: &Uri| {
        let host = uri.host().unwrap_or_default();
        let has_port = uri.authority().is_some_and(|authority| authority.as_str().len() > host.len());
        matches!(uri.scheme_str(), Some("http" | "https")) && !host.is_empty() && has_port == uri.port_u16().is_some()
    };
    url.parse().ok().filter(is_whole).ok_or_else(|| {
        let told: String = url.chars().take(BAD_URL_CHARS_MAX).collect();
        CriError::Malformed { call, message: format!("{told:?} is not the URL of a server") }
    })
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
    answer.image_filesystems.into_iter().next().map(filesystem_usage)
}

fn filesystem_usage(usage: wire::FilesystemUsage) -> FilesystemUsage {
    FilesystemUsage {
        mountpoint: usage.fs_id.unwrap_or_default().mountpoint,
        used_bytes: usage.used_bytes.map_or(0, |used| used.value),
        inodes_used: usage.inodes_used.map_or(0, |used| used.value),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_the_runtime_notes_of_a_sandbox_names_its_image() {
        let image = |notes: &str| {
            let info = [("info".to_owned(), notes.to_owned())].into();
            sandbox_image(&wire::PodSandboxStatusResponse { info, ..Default::default() })
        };
        assert_eq!(image(r#"{"pid":7,"image":"pause:1"}"#).as_deref(), Some("pause:1"));
        assert_eq!((image(r#"{"image":""}"#), image(r#"{"pid":7}"#), image("nonsense")), (None, None, None));
        assert_eq!(sandbox_image(&wire::PodSandboxStatusResponse::default()), None);
    }

    #[test]
    fn a_container_without_a_layer_of_its_own_is_left_out() {
        let attributes = || Some(wire::ContainerAttributes { id: "c".into(), ..Default::default() });
        let layer = wire::FilesystemUsage {
            used_bytes: Some(wire::UInt64Value { value: 4096 }),
            inodes_used: Some(wire::UInt64Value { value: 3 }),
            ..Default::default()
        };
        let stats =
            wire::ContainerStats { attributes: attributes(), writable_layer: Some(layer), ..Default::default() };
        let expected = FilesystemUsage { mountpoint: String::new(), used_bytes: 4096, inodes_used: 3 };
        assert_eq!(written_layer(stats), Some((ContainerId::new("c"), expected)));
        let none = wire::ContainerStats { attributes: attributes(), ..Default::default() };
        assert_eq!(written_layer(none), None);
    }

    const SECOND: i64 = 1_000_000_000;

    fn labels_of(uid: &str) -> BTreeMap<String, String> {
        [(labels::POD_UID, uid), (labels::POD_NAME, "web"), (labels::POD_NAMESPACE, "shop"), ("app", "x")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    }

    fn sandbox_answer(network: Option<wire::PodSandboxNetworkStatus>, mode: wire::NamespaceMode) -> Sandbox {
        let options = wire::NamespaceOption { network: mode.into(), ..Default::default() };
        let namespaces = Some(wire::Namespace { options: Some(options) });
        let status = wire::PodSandboxStatus {
            id: "s".into(),
            metadata: Some(wire::PodSandboxMetadata {
                name: "web".into(),
                uid: "u1".into(),
                namespace: "shop".into(),
                attempt: 3,
            }),
            state: wire::PodSandboxState::SandboxReady.into(),
            created_at: 5 * SECOND,
            network,
            linux: Some(wire::LinuxPodSandboxStatus { namespaces }),
            labels: labels_of("u1"),
            annotations: [("a".to_owned(), "b".to_owned())].into(),
            runtime_handler: "kata".into(),
        };
        sandbox_status(wire::PodSandboxStatusResponse { status: Some(status), ..Default::default() })
            .expect("the answer is complete")
    }

    #[test]
    fn a_sandbox_has_its_addresses_in_order_and_none_on_the_host_network() {
        let network = |ip: &str, more: &[&str]| wire::PodSandboxNetworkStatus {
            ip: ip.into(),
            additional_ips: more.iter().map(|ip| wire::PodIp { ip: (*ip).into() }).collect(),
        };
        let check = |network, expected: &[&str]| {
            let ips: Vec<_> =
                sandbox_answer(network, wire::NamespaceMode::Pod).ips.iter().map(ToString::to_string).collect();
            assert_eq!(ips, expected);
        };
        check(Some(network("10.1.2.3", &["fd00::3"])), &["10.1.2.3", "fd00::3"]);
        check(Some(network("", &[])), &[]);
        check(None, &[]);

        let host = sandbox_answer(None, wire::NamespaceMode::Node);
        assert_eq!(host.network_mode, Some(NamespaceMode::Node));
    }

    #[test]
    fn a_sandbox_with_users_of_its_own_tells_their_range() {
        let mapping = wire::IdMapping { host_id: 65_536, container_id: 0, length: 65_536 };
        let range = |mode: wire::NamespaceMode| {
            let (uids, gids) = (vec![mapping], vec![mapping]);
            id_range(wire::UserNamespace { mode: mode.into(), uids, gids })
        };
        assert_eq!(range(wire::NamespaceMode::Pod), Some(IdRange { host_id: 65_536, length: 65_536 }));
        assert_eq!(range(wire::NamespaceMode::Node), None);
    }

    #[test]
    fn a_sandbox_status_is_carried_over_whole() {
        let sandbox = sandbox_answer(None, wire::NamespaceMode::Pod);
        let expected = Sandbox {
            id: SandboxId::new("s"),
            pod_name: "web".into(),
            pod_namespace: "shop".into(),
            pod_uid: "u1".into(),
            attempt: 3,
            state: SandboxState::Ready,
            created_at: timestamp(5 * SECOND),
            labels: labels_of("u1"),
            annotations: [("a".to_owned(), "b".to_owned())].into(),
            ips: vec![],
            network_mode: Some(NamespaceMode::Pod),
            users: None,
            runtime_handler: "kata".into(),
        };
        assert_eq!(sandbox, expected);
    }

    #[test]
    fn answers_without_their_core_are_malformed() {
        assert!(matches!(sandbox_status(Default::default()), Err(CriError::Malformed { .. })));
        assert!(matches!(container_status(Default::default()), Err(CriError::Malformed { .. })));
        let status = Some(wire::ContainerStatus::default());
        let answer = wire::ContainerStatusResponse { status, ..Default::default() };
        assert!(matches!(container_status(answer), Err(CriError::Malformed { .. })));
        assert_eq!(listed_sandbox(Default::default()), None);
        assert_eq!(listed_container(Default::default()), None);
    }

    fn container_in(state: i32, started_at: i64, finished_at: i64) -> Container {
        let status = wire::ContainerStatus {
            id: "c".into(),
            metadata: Some(wire::ContainerMetadata { name: "main".into(), attempt: 1 }),
            state,
            created_at: SECOND,
            started_at,
            finished_at,
            exit_code: 137,
            image: Some(wire::ImageSpec { image: "docker.io/library/busybox:latest".into(), ..Default::default() }),
            image_ref: "docker.io/library/busybox@sha256:1".into(),
            reason: "OOMKilled".into(),
            message: "too big".into(),
            log_path: "/var/log/pods/x/main/1.log".into(),
            mounts: vec![wire::Mount {
                container_path: "/dev/termination-log".into(),
                host_path: "/var/lib/kubelet/pods/x".into(),
                propagation: wire::MountPropagation::PropagationHostToContainer.into(),
                ..Default::default()
            }],
            resources: Some(wire::ContainerResources {
                linux: Some(wire::LinuxContainerResources {
                    cpu_shares: 102,
                    memory_limit_in_bytes: 64 << 20,
                    hugepage_limits: vec![wire::HugepageLimit { page_size: "2MB".into(), limit: 4 }],
                    ..Default::default()
                }),
            }),
            user: Some(wire::ContainerUser {
                linux: Some(wire::LinuxContainerUser { uid: 1000, gid: 100, supplemental_groups: vec![100, 7] }),
            }),
            ..Default::default()
        };
        container_status(wire::ContainerStatusResponse { status: Some(status), ..Default::default() })
            .expect("the answer is complete")
    }

    #[test]
    fn a_stop_signal_has_the_name_that_the_api_gives_it() {
        assert_eq!(stop_signal(wire::Signal::Sigrtminplus2).as_deref(), Some("SIGRTMIN+2"));
        assert_eq!(stop_signal(wire::Signal::Sigterm).as_deref(), Some("SIGTERM"));
        assert_eq!(stop_signal(wire::Signal::RuntimeDefault), None);
    }

    #[test]
    fn a_container_state_has_the_times_that_exist_in_it() {
        let check = |state: i32, started, finished, expected: ContainerState| {
            assert_eq!(container_in(state, started, finished).state, expected);
        };
        let exit = |started_at, finished_at| {
            ContainerState::Exited(Exit {
                started_at,
                finished_at,
                exit_code: 137,
                reason: "OOMKilled".into(),
                message: "too big".into(),
            })
        };
        check(0, 0, 0, ContainerState::Created);
        check(1, 2 * SECOND, 0, ContainerState::Running { started_at: timestamp(2 * SECOND) });
        check(2, 2 * SECOND, 3 * SECOND, exit(Some(timestamp(2 * SECOND)), Some(timestamp(3 * SECOND))));
        check(2, 0, 3 * SECOND, exit(None, Some(timestamp(3 * SECOND))));
        // Go's zero time, as nanoseconds that wrapped around.
        check(2, -6_795_364_578_871_345_152, 3 * SECOND, exit(None, Some(timestamp(3 * SECOND))));
        check(3, 0, 0, ContainerState::Unknown);
        check(99, 0, 0, ContainerState::Unknown);
    }

    #[test]
    fn a_container_status_is_carried_over_whole() {
        let container = container_in(1, SECOND, 0);
        assert_eq!((container.name.as_str(), container.attempt), ("main", 1));
        assert_eq!(container.image, "docker.io/library/busybox:latest");
        assert_eq!(container.image_ref, "docker.io/library/busybox@sha256:1");
        assert_eq!(container.user, Some(ContainerUser { uid: 1000, gid: 100, supplemental_groups: vec![100, 7] }));
        let resources = container.resources.expect("the runtime reported some");
        assert_eq!((resources.cpu_shares, resources.memory_limit_bytes), (102, 64 << 20));
        assert_eq!(resources.hugepage_limits, [("2MB".to_owned(), 4)]);
        assert_eq!(container.mounts[0].host_path, "/var/lib/kubelet/pods/x");
        assert_eq!(container.mounts[0].propagation, MountPropagation::HostToContainer);
    }

    #[test]
    fn a_listed_container_names_its_pod_and_its_image() {
        let listed = |image_id: &str| {
            listed_container(wire::Container {
                metadata: Some(wire::ContainerMetadata { name: "main".into(), attempt: 1 }),
                image_ref: "sha256:old".into(),
                image_id: image_id.into(),
                state: wire::ContainerState::ContainerExited.into(),
                labels: labels_of("u1"),
                ..Default::default()
            })
            .expect("the line is complete")
        };
        let container = listed("sha256:new");
        assert_eq!((container.pod_uid.as_str(), container.pod_name.as_str()), ("u1", "web"));
        assert_eq!((container.pod_namespace.as_str(), container.state), ("shop", ContainerStateKind::Exited));
        assert_eq!(container.image_id, "sha256:new");
        assert_eq!(listed("").image_id, "sha256:old");
    }

    #[test]
    fn an_event_names_its_pod_as_long_as_anything_in_it_does() {
        let check = |sandbox: Option<&str>, label: Option<&str>, expected: &str| {
            let metadata = |uid: &str| Some(wire::PodSandboxMetadata { uid: uid.into(), ..Default::default() });
            let status = |uid| wire::ContainerStatus { labels: labels_of(uid), ..Default::default() };
            let event = event(wire::ContainerEventResponse {
                container_id: "c".into(),
                container_event_type: wire::ContainerEventType::ContainerDeletedEvent.into(),
                pod_sandbox_status: sandbox
                    .map(|uid| wire::PodSandboxStatus { metadata: metadata(uid), ..Default::default() }),
                containers_statuses: label.map(status).into_iter().collect(),
                ..Default::default()
            });
            let expected =
                RuntimeEvent { pod_uid: expected.into(), container_id: "c".into(), kind: RuntimeEventKind::Deleted };
            assert_eq!(event, expected);
        };
        check(Some("u1"), Some("u2"), "u1");
        check(None, Some("u2"), "u2");
        check(None, None, "");
    }

    #[test]
    fn a_condition_the_runtime_leaves_out_is_not_met_and_says_so() {
        let condition = |kind: &str, status| wire::RuntimeCondition {
            r#type: kind.into(),
            status,
            reason: "Why".into(),
            message: "because".into(),
        };
        let status = runtime_status(wire::StatusResponse {
            status: Some(wire::RuntimeStatus {
                conditions: vec![condition("Other", true), condition("RuntimeReady", true)],
            }),
            runtime_handlers: vec![wire::RuntimeHandler {
                name: "kata".into(),
                features: Some(wire::RuntimeHandlerFeatures {
                    recursive_read_only_mounts: true,
                    user_namespaces: false,
                }),
            }],
            features: Some(wire::RuntimeFeatures { supplemental_groups_policy: true, ..Default::default() }),
            ..Default::default()
        });
        assert_eq!(
            status.runtime_ready,
            RuntimeCondition { ok: true, reason: "Why".into(), message: "because".into() }
        );
        assert!(!status.network_ready.ok && status.network_ready.message.contains("NetworkReady"));
        assert!(status.handlers[0].recursive_read_only_mounts && !status.handlers[0].user_namespaces);
        assert!(status.supplemental_groups_policy);
    }

    #[test]
    fn where_streams_wait_is_told_whole_or_it_is_an_error_that_names_the_answer() {
        for url in ["http://127.0.0.1:1/exec/token", "https://[::1]:2/a?b=c", "http://host/attach/t"] {
            assert_eq!(stream_url("Exec", url).map(|uri| uri.to_string()).ok().as_deref(), Some(url));
        }
        let long = format!("/{}", "x".repeat(10_000));
        let bad =
            ["", "/exec/token", "127.0.0.1:1", "http://", "ftp://a/b", "http://a:port/b", "http://a:99999/", &long];
        for url in bad {
            let error = stream_url("Exec", url).expect_err(url).to_string();
            assert!(error.contains(&url[..url.len().min(100)]) && error.len() < 300, "{error}");
        }
    }

    #[test]
    fn a_runtime_without_a_choice_of_cgroup_driver_is_like_one_without_the_call() {
        let answer = |driver: Option<wire::CgroupDriver>| wire::RuntimeConfigResponse {
            linux: driver.map(|driver| wire::LinuxRuntimeConfiguration { cgroup_driver: driver.into() }),
        };
        assert_eq!(cgroup_driver(answer(Some(wire::CgroupDriver::Systemd))).ok(), Some(CgroupDriver::Systemd));
        assert_eq!(cgroup_driver(answer(Some(wire::CgroupDriver::Cgroupfs))).ok(), Some(CgroupDriver::Cgroupfs));
        assert!(matches!(cgroup_driver(answer(None)), Err(CriError::Unimplemented { .. })));
    }
    #[test]
    fn an_old_containerd_shows_whether_runc_is_to_use_systemd() {
        let check = |config: &str, expected: Option<CgroupDriver>| {
            let info = [("config".to_owned(), config.to_owned())].into();
            let answer = wire::StatusResponse { info, ..Default::default() };
            assert_eq!(shown_cgroup_driver(&answer), expected, "{config}");
        };
        let with = |kind: &str, options: &str| {
            let runtime = format!(r#"{{"runtimeType":"{kind}"{options}}}"#);
            format!(r#"{{"containerd":{{"defaultRuntimeName":"it","runtimes":{{"it":{runtime}}}}}}}"#)
        };
        let runc = "io.containerd.runc.v2";
        check(&with(runc, r#","options":{"SystemdCgroup":true}"#), Some(CgroupDriver::Systemd));
        check(&with(runc, r#","options":{"SystemdCgroup":false}"#), Some(CgroupDriver::Cgroupfs));
        check(&with(runc, r#","options":{}"#), Some(CgroupDriver::Cgroupfs));
        check(&with(runc, r#","options":null"#), Some(CgroupDriver::Cgroupfs));
        check(&with("io.containerd.kata.v2", ""), None);
        for foreign in ["", "[]", "{}", r#"{"containerd":{"defaultRuntimeName":"it","runtimes":{}}}"#] {
            check(foreign, None);
        }
    }
}
