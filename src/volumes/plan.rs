//! What it takes to have the volumes of a pod: a pure function of its spec.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource, Pod, Volume, VolumeMount};

use super::layout::{Plugin, PodDir, is_plain_name};
use super::payload::PayloadSpec;
use crate::config::quantity;
use crate::host::{DirMedium, HostPathKind};
use crate::pod::resources::{container_resources, is_hugepages, pod_resources};
use crate::pod::{containers, spec};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("volume type {0:?} is not supported yet")]
    Unsupported(String),
    #[error("volume name {0:?} is not a plain name")]
    BadName(String),
    #[error("unknown storage medium {0:?}")]
    UnknownMedium(String),
    #[error("medium {medium:?} needs requests for {need} size of huge pages in the pod")]
    HugePages { medium: String, need: &'static str },
    #[error("unknown hostPath type {0:?}")]
    UnknownHostPathType(String),
}

/// One volume and all that has to be there before a container can use it.
#[derive(Clone, Debug, PartialEq)]
pub enum VolumePlan {
    EmptyDir { path: PathBuf, marker: PathBuf, medium: DirMedium },
    HostPath { path: PathBuf, kind: HostPathKind },
    Payload { path: PathBuf, spec: PayloadSpec, nested: BTreeSet<PathBuf> },
}

impl VolumePlan {
    /// What a container's mount shows.
    pub fn path(&self) -> &Path {
        match self {
            VolumePlan::EmptyDir { path, .. } | VolumePlan::HostPath { path, .. } | VolumePlan::Payload { path, .. } => path,
        }
    }

    /// Containers never write to API content.
    pub fn is_read_only(&self) -> bool {
        matches!(self, VolumePlan::Payload { .. })
    }

    /// Made by the agent for this pod alone, so that the runtime may relabel it.
    pub fn is_managed(&self) -> bool {
        !matches!(self, VolumePlan::HostPath { .. })
    }
}

/// Plans for the volumes that some container mounts, by name. `node_memory_bytes` is what
/// pods may use of this node, if known.
pub fn volumes(
    pod: &Pod,
    dir: &PodDir,
    node_memory_bytes: Option<u64>,
) -> BTreeMap<String, Result<VolumePlan, PlanError>> {
    let used = used_names(pod);
    let volumes = spec(pod).volumes.iter().flatten().filter(|volume| used.contains(volume.name.as_str()));
    volumes.map(|volume| (volume.name.clone(), plan(pod, volume, dir, node_memory_bytes))).collect()
}

fn used_names(pod: &Pod) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, container) in containers::all_containers(pod) {
        names.extend(container.volume_mounts.iter().flatten().map(|mount| mount.name.clone()));
        names.extend(container.volume_devices.iter().flatten().map(|device| device.name.clone()));
    }
    names
}

/// The plan for one volume.
pub fn plan(pod: &Pod, volume: &Volume, dir: &PodDir, node_memory_bytes: Option<u64>) -> Result<VolumePlan, PlanError> {
    let name = volume.name.as_str();
    if !is_plain_name(name) {
        return Err(PlanError::BadName(name.to_owned()));
    }
    if let Some(spec) = PayloadSpec::of(volume) {
        let path = dir.volume(spec.plugin, name);
        return Ok(VolumePlan::Payload { path, spec, nested: nested_mount_points(pod, name) });
    }
    if let Some(host_path) = &volume.host_path {
        return Ok(VolumePlan::HostPath { path: PathBuf::from(&host_path.path), kind: host_path_kind(host_path)? });
    }
    let default = EmptyDirVolumeSource::default();
    let empty_dir = match (&volume.empty_dir, other_source(volume)) {
        (Some(empty_dir), _) => empty_dir,
        (None, Some(other)) => return Err(PlanError::Unsupported(other)),
        // Nothing said; the API server writes an emptyDir then, a static pod's author need not.
        (None, None) => &default,
    };
    Ok(VolumePlan::EmptyDir {
        path: dir.volume(Plugin::EmptyDir, name),
        marker: dir.ready_marker(name),
        medium: medium(pod, empty_dir, node_memory_bytes)?,
    })
}

/// The name of the volume's source as the API has it.
fn other_source(volume: &Volume) -> Option<String> {
    let value = serde_json::to_value(volume).ok()?;
    value.as_object()?.keys().find(|key| *key != "name").cloned()
}

fn medium(pod: &Pod, empty_dir: &EmptyDirVolumeSource, node_memory_bytes: Option<u64>) -> Result<DirMedium, PlanError> {
    let medium = empty_dir.medium.as_deref().unwrap_or_default();
    match medium {
        "" => Ok(DirMedium::Disk),
        "Memory" => Ok(DirMedium::Memory { size_bytes: memory_size(pod, empty_dir, node_memory_bytes) }),
        "HugePages" => Ok(DirMedium::HugePages { page_size: only_page_size(pod, medium)?, size_bytes: None }),
        other => match other.strip_prefix("HugePages-") {
            Some(size) if quantity::parse(size).is_ok() => {
                Ok(DirMedium::HugePages { page_size: size.to_owned(), size_bytes: None })
            }
            _ => Err(PlanError::UnknownMedium(medium.to_owned())),
        },
    }
}

/// A tmpfs is no larger than what the pod could fill anyway.
fn memory_size(pod: &Pod, empty_dir: &EmptyDirVolumeSource, node_memory_bytes: Option<u64>) -> Option<u64> {
    let positive = |bytes: i64| u64::try_from(bytes).ok().filter(|bytes| *bytes > 0);
    let limited = containers::workload_containers(pod)
        .all(|(_, container)| container.resources.as_ref().and_then(|r| r.limits.as_ref()).is_some_and(|l| l.contains_key("memory")));
    let pod_level = spec(pod).resources.as_ref().and_then(|resources| resources.limits.as_ref());
    // The pod's cgroup has a limit only if nothing in it is without one.
    let pod_limit = (limited || pod_level.is_some_and(|limits| limits.contains_key("memory")))
        .then(|| pod_resources(pod).limits.get("memory").and_then(|amount| positive(amount.value())))
        .flatten();
    let own = empty_dir.size_limit.as_ref().and_then(|limit| positive(quantity::parse(&limit.0).ok()?.value()));
    [node_memory_bytes, pod_limit, own].into_iter().flatten().min()
}

/// Plain `HugePages` is clear only if the pod uses one size.
fn only_page_size(pod: &Pod, medium: &str) -> Result<String, PlanError> {
    let requests = container_resources(pod).requests;
    let mut sizes = requests.keys().filter(|name| is_hugepages(name)).filter_map(|name| name.strip_prefix("hugepages-"));
    match (sizes.next(), sizes.next()) {
        (Some(size), None) => Ok(size.to_owned()),
        (None, _) => Err(PlanError::HugePages { medium: medium.to_owned(), need: "a" }),
        (Some(_), Some(_)) => Err(PlanError::HugePages { medium: medium.to_owned(), need: "only one" }),
    }
}

fn host_path_kind(host_path: &HostPathVolumeSource) -> Result<HostPathKind, PlanError> {
    Ok(match host_path.type_.as_deref().unwrap_or_default() {
        "" => HostPathKind::Any,
        "DirectoryOrCreate" => HostPathKind::DirectoryOrCreate,
        "Directory" => HostPathKind::Directory,
        "FileOrCreate" => HostPathKind::FileOrCreate,
        "File" => HostPathKind::File,
        "Socket" => HostPathKind::Socket,
        "CharDevice" => HostPathKind::CharDevice,
        "BlockDevice" => HostPathKind::BlockDevice,
        other => return Err(PlanError::UnknownHostPathType(other.to_owned())),
    })
}

/// Places inside the volume where a container mounts another one. The runtime cannot make
/// them there, since it mounts API content read-only.
fn nested_mount_points(pod: &Pod, volume: &str) -> BTreeSet<PathBuf> {
    let mut nested = BTreeSet::new();
    for (_, container) in containers::all_containers(pod) {
        let mounts: &[VolumeMount] = container.volume_mounts.as_deref().unwrap_or_default();
        for outer in mounts.iter().filter(|mount| mount.name == volume && sub_path_of(mount).is_none()) {
            let inside = mounts.iter().filter_map(|mount| Path::new(&mount.mount_path).strip_prefix(&outer.mount_path).ok());
            nested.extend(inside.filter(|path| is_below(path)).map(Path::to_owned));
        }
    }
    nested
}

fn is_below(path: &Path) -> bool {
    path.components().next().is_some() && path.components().all(|component| matches!(component, Component::Normal(_)))
}

fn sub_path_of(mount: &VolumeMount) -> Option<&String> {
    mount.sub_path.as_ref().or(mount.sub_path_expr.as_ref()).filter(|path| !path.is_empty())
}
