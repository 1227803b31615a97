//! From our own types to the wire's requests.
//!
//! Configuration is borrowed and copied, because prost's messages own what they send.

use std::collections::BTreeMap;

use super::labels;
use super::wire;
use super::{
    Auth, ContainerConfig, ContainerId, Device, DnsConfig, IdRange, ImageSpec, LinuxResources, Mount, MountPropagation,
    NamespaceMode, NamespaceOptions, PortMapping, Protocol, SandboxConfig, Scope, SecurityContext, SecurityProfile,
    SelinuxOptions, Streams,
};

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

fn pod_selector(uid: &str) -> BTreeMap<String, String> {
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
            overhead: config.overhead.as_ref().map(linux_resources),
            resources: config.resources.as_ref().map(linux_resources),
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
    let has_own = !security.add_capabilities.is_empty() || !security.drop_capabilities.is_empty();
    wire::LinuxContainerSecurityContext {
        capabilities: has_own.then(|| wire::Capability {
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
        apparmor_profile: security.apparmor.as_ref().map(old_apparmor).unwrap_or_default(),
        ..Default::default()
    }
}

/// In the words of runtimes that do not know the newer field.
fn old_apparmor(profile: &SecurityProfile) -> String {
    match profile {
        SecurityProfile::RuntimeDefault => "runtime/default".to_owned(),
        SecurityProfile::Unconfined => "unconfined".to_owned(),
        SecurityProfile::Localhost(name) => format!("localhost/{name}"),
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
        network: namespace_mode(options.network).into(),
        pid: namespace_mode(options.pid).into(),
        ipc: namespace_mode(options.ipc).into(),
        target_id: options.target_id.clone(),
        // The first value of the mode is not the one that pods have who say nothing.
        userns_options: Some(wire::UserNamespace {
            mode: if options.users.is_some() { wire::NamespaceMode::Pod } else { wire::NamespaceMode::Node }.into(),
            uids: id_mappings(options.users),
            gids: id_mappings(options.users),
        }),
    }
}

fn id_mappings(range: Option<IdRange>) -> Vec<wire::IdMapping> {
    let mapping = |IdRange { host_id, length }| wire::IdMapping { host_id, container_id: 0, length };
    range.map(mapping).into_iter().collect()
}

fn namespace_mode(mode: NamespaceMode) -> wire::NamespaceMode {
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

pub(super) fn linux_resources(resources: &LinuxResources) -> wire::LinuxContainerResources {
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
        envs: config.env.iter().map(|(key, value)| wire::KeyValue { key: key.clone(), value: value.clone() }).collect(),
        mounts: config.mounts.iter().map(mount).collect(),
        devices: config.devices.iter().map(device).collect(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        log_path: config.log_path.clone(),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        linux: Some(wire::LinuxContainerConfig {
            resources: Some(linux_resources(&config.resources)),
            security_context: Some(container_security(&config.security)),
        }),
        cdi_devices: Vec::new(),
        stop_signal: config.stop_signal.as_deref().map_or(wire::Signal::RuntimeDefault, signal).into(),
    }
}

/// The API server knows the same signals. What it lets through all the same is left to the image.
fn signal(name: &str) -> wire::Signal {
    let name = name.replace("MIN+", "MINPLUS").replace("MAX-", "MAXMINUS");
    wire::Signal::from_str_name(&name).unwrap_or(wire::Signal::RuntimeDefault)
}

fn mount(mount: &Mount) -> wire::Mount {
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
        uid_mappings: id_mappings(mount.ids),
        gid_mappings: id_mappings(mount.ids),
        image: mount.image.as_ref().map(image_spec),
        image_sub_path: mount.image_sub_path.clone(),
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

pub(super) fn exec(id: &ContainerId, command: &[String], streams: Streams) -> wire::ExecRequest {
    let Streams { stdin, stdout, stderr, tty } = streams;
    wire::ExecRequest { container_id: id.as_str().to_owned(), cmd: command.to_vec(), tty, stdin, stdout, stderr }
}

pub(super) fn attach(id: &ContainerId, streams: Streams) -> wire::AttachRequest {
    let Streams { stdin, stdout, stderr, tty } = streams;
    wire::AttachRequest { container_id: id.as_str().to_owned(), stdin, tty, stdout, stderr }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_container_is_created_with_reaches_the_wire() {
        let config = ContainerConfig {
            name: "main".into(),
            attempt: 2,
            env: vec![("KEY".into(), vec![0xff, 0xfe])],
            mounts: vec![Mount {
                container_path: "/data".into(),
                readonly: true,
                propagation: MountPropagation::Bidirectional,
                ..Mount::default()
            }],
            resources: LinuxResources {
                memory_limit_bytes: 1 << 20,
                memory_swap_limit_bytes: 2 << 20,
                unified: [("memory.high".to_owned(), "9".to_owned())].into(),
                hugepage_limits: vec![("1GB".into(), 1 << 30)],
                ..LinuxResources::default()
            },
            security: SecurityContext {
                namespaces: NamespaceOptions {
                    network: NamespaceMode::Node,
                    pid: NamespaceMode::Target,
                    ipc: NamespaceMode::Pod,
                    target_id: "t".into(),
                    users: Some(IdRange { host_id: 131_072, length: 65_536 }),
                },
                run_as_user: Some(0),
                supplemental_groups_strict: true,
                seccomp: Some(SecurityProfile::Localhost("/p.json".into())),
                apparmor: Some(SecurityProfile::Unconfined),
                drop_capabilities: vec!["ALL".into()],
                selinux: Some(SelinuxOptions { kind: "t".into(), ..SelinuxOptions::default() }),
                ..SecurityContext::default()
            },
            stop_signal: Some("SIGRTMIN+2".into()),
            ..ContainerConfig::default()
        };
        let sent = container_config(&config);
        assert_eq!(sent.stop_signal(), wire::Signal::Sigrtminplus2);
        assert_eq!(signal("SIGRTMAX-1"), wire::Signal::Sigrtmaxminus1);
        assert_eq!(signal("SIGUSR1"), wire::Signal::Sigusr1);
        assert_eq!(sent.metadata, Some(wire::ContainerMetadata { name: "main".into(), attempt: 2 }));
        assert_eq!(sent.envs[0].value, [0xff, 0xfe]);
        assert_eq!(sent.mounts[0].propagation(), wire::MountPropagation::PropagationBidirectional);
        assert!(sent.mounts[0].readonly);
        let linux = sent.linux.expect("always sent");
        let resources = linux.resources.expect("always sent");
        assert_eq!((resources.memory_limit_in_bytes, resources.memory_swap_limit_in_bytes), (1 << 20, 2 << 20));
        assert_eq!(resources.unified["memory.high"], "9");
        assert_eq!(resources.hugepage_limits[0].limit, 1 << 30);
        let security = linux.security_context.expect("always sent");
        assert_eq!(security.run_as_user, Some(wire::Int64Value { value: 0 }), "root is not the same as unset");
        assert_eq!(security.run_as_group, None);
        assert_eq!(security.supplemental_groups_policy(), wire::SupplementalGroupsPolicy::Strict);
        assert_eq!(security.seccomp.map(|profile| profile.localhost_ref).as_deref(), Some("/p.json"));
        let unconfined = wire::security_profile::ProfileType::Unconfined;
        assert_eq!(security.apparmor_profile, "unconfined");
        assert_eq!(security.apparmor.map(|profile| profile.profile_type()), Some(unconfined));
        assert_eq!(security.capabilities.map(|all| all.drop_capabilities), Some(vec!["ALL".to_owned()]));
        assert_eq!(security.selinux_options.map(|options| options.r#type).as_deref(), Some("t"));
        let namespaces = security.namespace_options.expect("always sent");
        assert_eq!(namespaces.network(), wire::NamespaceMode::Node);
        let users = namespaces.userns_options.as_ref().expect("it has users of its own");
        let mapping = wire::IdMapping { host_id: 131_072, container_id: 0, length: 65_536 };
        assert_eq!((users.uids.as_slice(), users.gids.as_slice()), (&[mapping][..], &[mapping][..]));
        assert_eq!((namespaces.pid(), namespaces.target_id.as_str()), (wire::NamespaceMode::Target, "t"));
    }

    #[test]
    fn who_has_no_users_of_its_own_says_so() {
        let options = namespace_options(&NamespaceOptions::default());
        let users = options.userns_options.expect("the mode is always sent");
        assert_eq!((users.mode(), users.uids.len()), (wire::NamespaceMode::Node, 0));
    }
}
