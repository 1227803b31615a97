//! From a container's volumeMounts to the mounts its runtime is told: the pure part.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Component, Path};

use k8s_openapi::api::core::v1::VolumeMount;

use super::plan::VolumePlan;
use crate::cri::{Mount, MountPropagation};
use crate::pod::expansion::expand;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    #[error("cannot find volume {volume:?} to mount into container {container:?}")]
    NoVolume { volume: String, container: String },
    #[error("missing value for {0:?}")]
    NoValue(String),
    #[error("error SubPath `{0}` must not be an absolute path")]
    AbsoluteSubPath(String),
    #[error("unable to provision SubPath `{0}`: must not contain '..'")]
    BackstepInSubPath(String),
    #[error("volume {volume:?} requested recursive read-only mode, but {why}")]
    RecursiveReadOnly { volume: String, why: &'static str },
}

/// A mount whose host path may still have to be prepared.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub mount: Mount,
    /// Where inside the volume, if not all of it.
    pub sub_path: Option<String>,
}

/// `recursive_read_only` is whether the pod's runtime handler can do that.
pub fn wanted(
    mount: &VolumeMount,
    volume: &VolumePlan,
    env: &BTreeMap<String, String>,
    recursive_read_only: bool,
) -> Result<Wanted, MountError> {
    let readonly = mount.read_only == Some(true) || volume.is_read_only();
    let propagation = propagation(mount);
    Ok(Wanted {
        sub_path: sub_path(mount, env)?,
        mount: Mount {
            container_path: absolute(&mount.mount_path),
            host_path: volume.path().to_string_lossy().into_owned(),
            readonly,
            recursive_read_only: resolve_recursive(mount, readonly, propagation, recursive_read_only)?,
            selinux_relabel: volume.is_managed(),
            propagation,
        },
    })
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn propagation(mount: &VolumeMount) -> MountPropagation {
    match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => MountPropagation::HostToContainer,
        Some("Bidirectional") => MountPropagation::Bidirectional,
        _ => MountPropagation::Private,
    }
}

fn resolve_recursive(
    mount: &VolumeMount,
    readonly: bool,
    propagation: MountPropagation,
    supported: bool,
) -> Result<bool, MountError> {
    let refuse = |why| Err(MountError::RecursiveReadOnly { volume: mount.name.clone(), why });
    match mount.recursive_read_only.as_deref() {
        Some("IfPossible") => Ok(supported && readonly && propagation == MountPropagation::Private),
        Some("Enabled") if !readonly => refuse("it is not read-only"),
        Some("Enabled") if propagation != MountPropagation::Private => refuse("it is not compatible with its mount propagation"),
        Some("Enabled") if !supported => refuse("it is not supported by the runtime"),
        Some("Enabled") => Ok(true),
        _ => Ok(false),
    }
}

fn sub_path(mount: &VolumeMount, env: &BTreeMap<String, String>) -> Result<Option<String>, MountError> {
    let sub_path = match (&mount.sub_path_expr, &mount.sub_path) {
        (Some(expression), _) if !expression.is_empty() => expand_all(expression, env)?,
        (_, Some(plain)) => plain.clone(),
        _ => return Ok(None),
    };
    let path = Path::new(&sub_path);
    if path.is_absolute() {
        return Err(MountError::AbsoluteSubPath(sub_path));
    }
    if path.components().any(|component| component == Component::ParentDir) {
        return Err(MountError::BackstepInSubPath(sub_path));
    }
    Ok(Some(sub_path).filter(|path| !path.is_empty()))
}

/// Unlike in a command, a variable that is not there is an error: the pod would otherwise
/// share a directory of that very name.
fn expand_all(expression: &str, env: &BTreeMap<String, String>) -> Result<String, MountError> {
    let missing = RefCell::new(None);
    let expanded = expand(expression, |name| {
        let value = env.get(name).map(String::as_str);
        if value.is_none() {
            missing.borrow_mut().get_or_insert_with(|| name.to_owned());
        }
        value
    });
    match missing.into_inner() {
        Some(name) => Err(MountError::NoValue(name)),
        None => Ok(expanded),
    }
}
