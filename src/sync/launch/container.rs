//! What the runtime is told of a container.

use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::annotations::{container_annotations, container_labels};
use super::resources::container_resources;
use super::security::{check_non_root, container_security};
use super::{LaunchConfig, LaunchError};
use crate::config::Gate;
use crate::cri::{ContainerConfig, ContainerId, IdRange, ImageSpec, Mount};
use crate::images::ReadyImage;
use crate::pod::env::{EnvValue, expand_command};
use crate::topology::Places;

/// What a container depends on besides its pod.
#[derive(Clone, Debug)]
pub struct ContainerInputs<'a> {
    /// Counts the instances of this container.
    pub attempt: u32,
    /// The image as it is on this machine.
    pub image: &'a ReadyImage,
    /// See [`environment`](crate::pod::env::environment).
    pub env: Vec<(String, EnvValue)>,
    /// Volumes, hosts file; all but the termination log.
    pub mounts: Vec<Mount>,
    /// The file that takes the container's last words.
    pub termination_log: Option<&'a Path>,
    /// The container whose processes an ephemeral one looks at.
    pub target: Option<&'a ContainerId>,
    /// The pod's own user ids, if it has any.
    pub users: Option<IdRange>,
    pub places: &'a Places,
    pub config: &'a LaunchConfig,
}

/// The configuration of a container.
pub fn container_config(
    pod: &Pod,
    container: &Container,
    inputs: ContainerInputs<'_>,
) -> Result<ContainerConfig, LaunchError> {
    let ContainerInputs { attempt, image, env, mut mounts, termination_log, target, users, places, config } = inputs;
    check_non_root(pod, container, image)?;
    let message_path = container.termination_message_path.as_deref().filter(|path| !path.is_empty());
    if let (Some(container_path), Some(host_path)) = (message_path, termination_log) {
        mounts.push(Mount {
            container_path: container_path.to_owned(),
            host_path: host_path.to_string_lossy().into_owned(),
            selinux_relabel: true,
            ..Mount::default()
        });
    }
    // Owners of files are the same inside and outside; an image has its own.
    mounts.iter_mut().filter(|mount| mount.image.is_none()).for_each(|mount| mount.ids = users);
    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt,
        image: ImageSpec {
            image: image.image_ref.clone(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..ImageSpec::default()
        },
        command: expand_command(container.command.as_deref(), &env)?,
        args: expand_command(container.args.as_deref(), &env)?,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        env,
        mounts,
        devices: Vec::new(),
        labels: container_labels(pod, container),
        annotations: container_annotations(pod, container, attempt),
        log_path: format!("{}/{attempt}.log", container.name),
        stdin: container.stdin.unwrap_or_default(),
        stdin_once: container.stdin_once.unwrap_or_default(),
        tty: container.tty.unwrap_or_default(),
        resources: container_resources(pod, container, places, config),
        security: container_security(pod, container, image, target, users, config)?,
        stop_signal: container
            .lifecycle
            .as_ref()
            .filter(|_| config.gates.enabled(Gate::ContainerStopSignals))
            .and_then(|lifecycle| lifecycle.stop_signal.clone()),
    })
}
