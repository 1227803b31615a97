//! Users, capabilities, profiles and namespaces, merged from pod and container: what the
//! container says wins over what the pod says.

use std::path::Path;

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, Pod, PodSecurityContext, SELinuxOptions, SeccompProfile,
    SecurityContext as ContainerContext,
};

use super::{LaunchConfig, LaunchError};
use crate::cri::{
    ContainerId, IdRange, NamespaceMode, NamespaceOptions, SecurityContext, SecurityProfile, SelinuxOptions,
};
use crate::images::ReadyImage;
use crate::pod::containers::all_containers;
use crate::pod::{PodRef, spec};

/// Hidden from containers unless their `procMount` is `Unmasked`.
const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Where static pods may still name their AppArmor profile, followed by the container's name.
const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

pub(super) fn sandbox_security(pod: &Pod, users: Option<IdRange>) -> Result<SecurityContext, LaunchError> {
    let context = pod_context(pod);
    Ok(SecurityContext {
        namespaces: namespaces(pod, users),
        selinux: context.and_then(|context| context.se_linux_options.as_ref()).map(selinux),
        run_as_user: context.and_then(|context| context.run_as_user),
        run_as_group: context.and_then(|context| context.run_as_group),
        supplemental_groups: supplemental_groups(pod),
        supplemental_groups_strict: supplemental_groups_strict(pod)?,
        privileged: all_containers(pod).any(|(_, container)| is_privileged(&container)),
        // The pause program needs nothing more, whatever its pod asks for.
        seccomp: Some(SecurityProfile::RuntimeDefault),
        ..SecurityContext::default()
    })
}

pub(super) fn container_security(
    pod: &Pod,
    container: &Container,
    image: &ReadyImage,
    target: Option<&ContainerId>,
    users: Option<IdRange>,
    config: &LaunchConfig,
) -> Result<SecurityContext, LaunchError> {
    let empty = ContainerContext::default();
    let own = container.security_context.as_ref().unwrap_or(&empty);
    let pods = pod_context(pod);
    let run_as_user = own.run_as_user.or(pods.and_then(|context| context.run_as_user));
    let selinux_options = own.se_linux_options.as_ref().or(pods.and_then(|context| context.se_linux_options.as_ref()));
    let capabilities = own.capabilities.clone().unwrap_or_default();
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();

    let mut namespaces = namespaces(pod, users);
    if let (Some(target), NamespaceMode::Container) = (target, namespaces.pid) {
        namespaces.pid = NamespaceMode::Target;
        namespaces.target_id = target.to_string();
    }
    let mut masked_paths = if unmasked { Vec::new() } else { paths(&MASKED_PATHS) };
    if !unmasked {
        masked_paths.extend(config.thermal_throttle_dirs.iter().cloned());
    }
    Ok(SecurityContext {
        namespaces,
        selinux: selinux_options.map(selinux),
        // The image's user applies where nobody names one, and is only told as a name where
        // it has no number.
        run_as_user: run_as_user.or(image.uid),
        run_as_username: if run_as_user.is_none() { image.username.clone() } else { String::new() },
        run_as_group: own.run_as_group.or(pods.and_then(|context| context.run_as_group)),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or_default(),
        supplemental_groups: supplemental_groups(pod),
        supplemental_groups_strict: supplemental_groups_strict(pod)?,
        privileged: is_privileged(container),
        seccomp: Some(seccomp(pods, own, config)?),
        apparmor: apparmor(pod, container)?,
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths,
        readonly_paths: if unmasked { Vec::new() } else { paths(&READONLY_PATHS) },
    })
}

/// Refuses a container that must not run as root and would, or might.
pub(super) fn check_non_root(pod: &Pod, container: &Container, image: &ReadyImage) -> Result<(), LaunchError> {
    let own = container.security_context.as_ref();
    let pods = pod_context(pod);
    let asked = own.and_then(|own| own.run_as_non_root).or(pods.and_then(|context| context.run_as_non_root));
    if asked != Some(true) {
        return Ok(());
    }
    let user = own.and_then(|own| own.run_as_user).or(pods.and_then(|context| context.run_as_user));
    let pod = PodRef::of(pod).in_full();
    let container = container.name.clone();
    match (user, image.uid) {
        (Some(0), _) => Err(LaunchError::RunAsRoot { pod, container }),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(LaunchError::ImageRunsAsRoot { pod, container }),
        (None, Some(_)) => Ok(()),
        // Nothing is known of its user: it may well be root.
        (None, None) if image.username.is_empty() => Err(LaunchError::ImageRunsAsRoot { pod, container }),
        (None, None) => Err(LaunchError::ImageUserUnknown { user: image.username.clone(), pod, container }),
    }
}

fn pod_context(pod: &Pod) -> Option<&PodSecurityContext> {
    spec(pod).security_context.as_ref()
}

fn is_privileged(container: &Container) -> bool {
    container.security_context.as_ref().and_then(|context| context.privileged).unwrap_or_default()
}

fn namespaces(pod: &Pod, users: Option<IdRange>) -> NamespaceOptions {
    let spec = spec(pod);
    let of_node = |host: Option<bool>, otherwise| {
        if host == Some(true) { NamespaceMode::Node } else { otherwise }
    };
    let pid = if spec.share_process_namespace == Some(true) { NamespaceMode::Pod } else { NamespaceMode::Container };
    NamespaceOptions {
        network: of_node(spec.host_network, NamespaceMode::Pod),
        ipc: of_node(spec.host_ipc, NamespaceMode::Pod),
        pid: of_node(spec.host_pid, pid),
        target_id: String::new(),
        users,
    }
}

/// The group that owns the pod's volumes comes first.
fn supplemental_groups(pod: &Pod) -> Vec<i64> {
    let Some(context) = pod_context(pod) else {
        return Vec::new();
    };
    context.fs_group.into_iter().chain(context.supplemental_groups.iter().flatten().copied()).collect()
}

fn supplemental_groups_strict(pod: &Pod) -> Result<bool, LaunchError> {
    match pod_context(pod).and_then(|context| context.supplemental_groups_policy.as_deref()) {
        None | Some("" | "Merge") => Ok(false),
        Some("Strict") => Ok(true),
        Some(other) => Err(LaunchError::SupplementalGroupsPolicy(other.to_owned())),
    }
}

fn selinux(options: &SELinuxOptions) -> SelinuxOptions {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    SelinuxOptions {
        user: text(&options.user),
        role: text(&options.role),
        kind: text(&options.type_),
        level: text(&options.level),
    }
}

fn seccomp(
    pods: Option<&PodSecurityContext>,
    own: &ContainerContext,
    config: &LaunchConfig,
) -> Result<SecurityProfile, LaunchError> {
    let of_pod = || pods.and_then(|context| context.seccomp_profile.as_ref());
    match own.seccomp_profile.as_ref().or_else(of_pod) {
        Some(profile) => seccomp_profile(profile, &config.seccomp_dir),
        None if config.seccomp_default => Ok(SecurityProfile::RuntimeDefault),
        None => Ok(SecurityProfile::Unconfined),
    }
}

fn seccomp_profile(profile: &SeccompProfile, dir: &Path) -> Result<SecurityProfile, LaunchError> {
    match profile.type_.as_str() {
        "RuntimeDefault" => Ok(SecurityProfile::RuntimeDefault),
        "Localhost" => {
            let file = profile.localhost_profile.as_deref().filter(|file| !file.is_empty());
            let path = dir.join(file.ok_or(LaunchError::NoLocalhostSeccomp)?);
            Ok(SecurityProfile::Localhost(path.to_string_lossy().into_owned()))
        }
        _ => Ok(SecurityProfile::Unconfined),
    }
}

/// `None` leaves the choice to the runtime.
fn apparmor(pod: &Pod, container: &Container) -> Result<Option<SecurityProfile>, LaunchError> {
    let own = container.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    if let Some(profile) = own {
        return apparmor_profile(profile).map(Some);
    }
    // The API server turns the annotation into the field, but static pods do not pass it.
    let annotation = format!("{APPARMOR_ANNOTATION}{}", container.name);
    let annotated = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(&annotation));
    if let Some(profile) = annotated.and_then(|value| annotated_apparmor(value)) {
        return Ok(Some(profile));
    }
    pod_context(pod).and_then(|context| context.app_armor_profile.as_ref()).map(apparmor_profile).transpose()
}

fn annotated_apparmor(value: &str) -> Option<SecurityProfile> {
    match value {
        "runtime/default" => Some(SecurityProfile::RuntimeDefault),
        "unconfined" => Some(SecurityProfile::Unconfined),
        _ => value.strip_prefix("localhost/").map(|name| SecurityProfile::Localhost(name.to_owned())),
    }
}

fn apparmor_profile(profile: &AppArmorProfile) -> Result<SecurityProfile, LaunchError> {
    match profile.type_.as_str() {
        "RuntimeDefault" => Ok(SecurityProfile::RuntimeDefault),
        "Localhost" => {
            let name = profile.localhost_profile.as_deref().filter(|name| !name.is_empty());
            Ok(SecurityProfile::Localhost(name.ok_or(LaunchError::NoLocalhostAppArmor)?.to_owned()))
        }
        _ => Ok(SecurityProfile::Unconfined),
    }
}
