//! From a container's volumeMounts to the mounts its runtime is told: the pure part.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use k8s_openapi::api::core::v1::VolumeMount;

use super::plan::VolumePlan;
use crate::cri::{Mount, MountPropagation};
use crate::pod::env::EnvValue;
use crate::pod::expansion::{Budget, TextError, expand_text};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    #[error("cannot find volume {volume:?} to mount into container {container:?}")]
    NoVolume { volume: String, container: String },
    #[error(transparent)]
    Text(#[from] TextError),
    #[error("missing value for {0}")]
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
    env: &BTreeMap<String, EnvValue>,
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
            ..Mount::default()
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
        Some("Enabled") if propagation != MountPropagation::Private => {
            refuse("it is not compatible with its mount propagation")
        }
        Some("Enabled") if !supported => refuse("it is not supported by the runtime"),
        Some("Enabled") => Ok(true),
        _ => Ok(false),
    }
}

fn sub_path(mount: &VolumeMount, env: &BTreeMap<String, EnvValue>) -> Result<Option<String>, MountError> {
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
fn expand_all(expression: &str, env: &BTreeMap<String, EnvValue>) -> Result<String, MountError> {
    let missing = RefCell::new(BTreeSet::new());
    let expanded = expand_text(expression, &mut Budget::default(), |name| {
        let value = env.get(name).map(Vec::as_slice);
        if value.is_none() {
            missing.borrow_mut().insert(name.to_owned());
        }
        value
    });
    let missing = missing.into_inner();
    match missing.is_empty() {
        true => Ok(expanded?),
        false => Err(MountError::NoValue(Vec::from_iter(missing).join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{DirMedium, HostPathKind};
    use crate::pod::testing::yaml;

    fn empty_dir() -> VolumePlan {
        VolumePlan::EmptyDir { path: "/pod/e".into(), marker: "/pod/m".into(), medium: DirMedium::Disk }
    }

    fn api_content() -> VolumePlan {
        let spec =
            super::super::payload::PayloadSpec::of(&yaml("{name: v, configMap: {name: m}}")).expect("a config map is");
        VolumePlan::Payload { path: "/pod/p".into(), spec, medium: DirMedium::Disk, nested: Default::default() }
    }

    fn resolve(mount: &str, volume: &VolumePlan) -> Result<Wanted, String> {
        let env = BTreeMap::from([("POD".to_owned(), b"web-0".to_vec()), ("UP".to_owned(), b"../x".to_vec())]);
        let mount: VolumeMount = yaml(mount);
        wanted(&mount, volume, &env, true).map_err(|error| error.to_string())
    }

    #[test]
    fn a_mount_says_what_the_runtime_needs() {
        let host_path = VolumePlan::HostPath { path: "/srv".into(), kind: HostPathKind::Any };
        let check = |mount: &str, volume: &VolumePlan, expected: Mount| {
            assert_eq!(resolve(mount, volume).unwrap(), Wanted { mount: expected, sub_path: None }, "{mount}");
        };
        let plain = Mount {
            container_path: "/m".into(),
            host_path: "/pod/e".into(),
            selinux_relabel: true,
            ..Mount::default()
        };
        check("{name: v, mountPath: /m}", &empty_dir(), plain.clone());
        check("{name: v, mountPath: m}", &empty_dir(), plain.clone());
        check("{name: v, mountPath: /m, readOnly: true}", &empty_dir(), Mount { readonly: true, ..plain.clone() });
        check(
            "{name: v, mountPath: /m}",
            &api_content(),
            Mount { readonly: true, host_path: "/pod/p".into(), ..plain.clone() },
        );
        for (written, propagation) in [
            ("None", MountPropagation::Private),
            ("HostToContainer", MountPropagation::HostToContainer),
            ("Bidirectional", MountPropagation::Bidirectional),
        ] {
            let mount = format!("{{name: v, mountPath: /m, mountPropagation: {written}}}");
            check(
                &mount,
                &host_path,
                Mount { propagation, host_path: "/srv".into(), selinux_relabel: false, ..plain.clone() },
            );
        }
    }

    #[test]
    fn recursive_read_only_needs_all_its_conditions() {
        let check = |fields: &str, supported: bool, expected: Result<bool, &str>| {
            let mount: VolumeMount = yaml(&format!("{{name: v, mountPath: /m, {fields}}}"));
            let got = wanted(&mount, &empty_dir(), &BTreeMap::new(), supported)
                .map(|wanted| wanted.mount.recursive_read_only);
            let expected =
                expected.map_err(|why| format!("volume \"v\" requested recursive read-only mode, but {why}"));
            assert_eq!(got.map_err(|error| error.to_string()), expected, "{fields}");
        };
        check("readOnly: true", true, Ok(false));
        check("readOnly: true, recursiveReadOnly: Disabled", true, Ok(false));
        check("readOnly: true, recursiveReadOnly: IfPossible", true, Ok(true));
        check("readOnly: true, recursiveReadOnly: IfPossible", false, Ok(false));
        check("recursiveReadOnly: IfPossible", true, Ok(false));
        check("readOnly: true, recursiveReadOnly: Enabled", true, Ok(true));
        check("readOnly: true, recursiveReadOnly: Enabled", false, Err("it is not supported by the runtime"));
        check("recursiveReadOnly: Enabled", true, Err("it is not read-only"));
        check(
            "readOnly: true, recursiveReadOnly: Enabled, mountPropagation: Bidirectional",
            true,
            Err("it is not compatible with its mount propagation"),
        );
    }

    #[test]
    fn sub_paths_are_expanded_and_kept_inside() {
        let check = |field: &str, expected: Result<Option<&str>, &str>| {
            let got =
                resolve(&format!("{{name: v, mountPath: /m, {field}}}"), &empty_dir()).map(|wanted| wanted.sub_path);
            assert_eq!(got.as_ref().map(Option::as_deref).map_err(String::as_str), expected, "{field}");
        };
        check("subPath: ''", Ok(None));
        check("subPath: a/b", Ok(Some("a/b")));
        check("subPath: a..b", Ok(Some("a..b")));
        check("subPath: $(POD)", Ok(Some("$(POD)")));
        check("subPathExpr: logs/$(POD)", Ok(Some("logs/web-0")));
        check("subPathExpr: $$(POD)", Ok(Some("$(POD)")));
        check("subPathExpr: $(POD)/$(GONE)", Err("missing value for GONE"));
        check("subPathExpr: $(Z)/$(GONE)/$(Z)", Err("missing value for GONE, Z"));
        check("subPath: /etc", Err("error SubPath `/etc` must not be an absolute path"));
        check("subPath: a/../b", Err("unable to provision SubPath `a/../b`: must not contain '..'"));
        check("subPathExpr: $(UP)", Err("unable to provision SubPath `../x`: must not contain '..'"));
    }
}
