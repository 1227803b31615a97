//! What it takes to have the volumes of a pod: a pure function of its spec.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, HostPathVolumeSource, Pod, Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::layout::{PodDir, is_plain_name};
use super::payload::PayloadSpec;
use crate::config::quantity;
use crate::host::{DirMedium, HostPathKind};
use crate::pod::plugins::Plugin;
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
    EmptyDir {
        path: PathBuf,
        marker: PathBuf,
        medium: DirMedium,
    },
    HostPath {
        path: PathBuf,
        kind: HostPathKind,
    },
    Payload {
        path: PathBuf,
        spec: PayloadSpec,
        medium: DirMedium,
        nested: BTreeSet<PathBuf>,
    },
    /// The runtime mounts it itself; it has to be on the machine.
    Image {
        /// As the pod's author wrote it.
        reference: String,
    },
}

impl VolumePlan {
    /// Whose work it is, as metrics name it; nobody's here, for an image.
    pub fn plugin(&self) -> Option<&'static str> {
        match self {
            VolumePlan::EmptyDir { .. } => Some(Plugin::EmptyDir.name()),
            VolumePlan::HostPath { .. } => Some("kubernetes.io/host-path"),
            VolumePlan::Payload { spec, .. } => Some(spec.plugin.name()),
            VolumePlan::Image { .. } => None,
        }
    }

    /// What a container's mount shows; nothing on the host, for an image.
    pub fn path(&self) -> &Path {
        match self {
            VolumePlan::EmptyDir { path, .. }
            | VolumePlan::HostPath { path, .. }
            | VolumePlan::Payload { path, .. } => path,
            VolumePlan::Image { .. } => Path::new(""),
        }
    }

    /// Containers never write to API content or to an image.
    pub fn is_read_only(&self) -> bool {
        matches!(self, VolumePlan::Payload { .. } | VolumePlan::Image { .. })
    }

    /// Made by the agent for this pod alone, so that the runtime may relabel it.
    pub fn is_managed(&self) -> bool {
        !matches!(self, VolumePlan::HostPath { .. } | VolumePlan::Image { .. })
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
        names.extend(used_by(&container).into_iter().map(str::to_owned));
    }
    names
}

/// The names of the volumes of one container.
pub fn used_by(container: &Container) -> BTreeSet<&str> {
    let mounts = container.volume_mounts.iter().flatten().map(|mount| mount.name.as_str());
    let devices = container.volume_devices.iter().flatten().map(|device| device.name.as_str());
    mounts.chain(devices).collect()
}

/// The plan for one volume.
pub fn plan(pod: &Pod, volume: &Volume, dir: &PodDir, node_memory_bytes: Option<u64>) -> Result<VolumePlan, PlanError> {
    let name = volume.name.as_str();
    if !is_plain_name(name) {
        return Err(PlanError::BadName(name.to_owned()));
    }
    if let Some(spec) = PayloadSpec::of(volume) {
        let path = dir.volume(spec.plugin, name);
        // Config maps are no secrets, so they do not cost memory.
        let medium = match spec.plugin {
            Plugin::ConfigMap => DirMedium::Disk,
            _ => DirMedium::Memory { size_bytes: memory_size(pod, None, node_memory_bytes) },
        };
        return Ok(VolumePlan::Payload { path, spec, medium, nested: nested_mount_points(pod, name) });
    }
    if let Some(host_path) = &volume.host_path {
        return Ok(VolumePlan::HostPath { path: PathBuf::from(&host_path.path), kind: host_path_kind(host_path)? });
    }
    if let Some(image) = &volume.image {
        return Ok(VolumePlan::Image { reference: image.reference.clone().unwrap_or_default() });
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
        "Memory" => {
            Ok(DirMedium::Memory { size_bytes: memory_size(pod, empty_dir.size_limit.as_ref(), node_memory_bytes) })
        }
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
fn memory_size(pod: &Pod, own: Option<&Quantity>, node_memory_bytes: Option<u64>) -> Option<u64> {
    let positive = |bytes: i64| u64::try_from(bytes).ok().filter(|bytes| *bytes > 0);
    let limited = containers::workload_containers(pod).all(|(_, container)| {
        container.resources.as_ref().and_then(|r| r.limits.as_ref()).is_some_and(|l| l.contains_key("memory"))
    });
    let pod_level = spec(pod).resources.as_ref().and_then(|resources| resources.limits.as_ref());
    // The pod's cgroup has a limit only if nothing in it is without one.
    let pod_limit = (limited || pod_level.is_some_and(|limits| limits.contains_key("memory")))
        .then(|| pod_resources(pod).limits.get("memory").and_then(|amount| positive(amount.value())))
        .flatten();
    let own = own.and_then(|limit| positive(quantity::parse(&limit.0).ok()?.value()));
    [node_memory_bytes, pod_limit, own].into_iter().flatten().min()
}

/// Plain `HugePages` is clear only if the pod uses one size.
fn only_page_size(pod: &Pod, medium: &str) -> Result<String, PlanError> {
    let requests = container_resources(pod).requests;
    let mut sizes =
        requests.keys().filter(|name| is_hugepages(name)).filter_map(|name| name.strip_prefix("hugepages-"));
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
            let inside =
                mounts.iter().filter_map(|mount| Path::new(&mount.mount_path).strip_prefix(&outer.mount_path).ok());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::PodUid;
    use crate::pod::testing::pod_yaml;

    fn dir() -> PodDir {
        PodDir::of(Path::new("/r"), &PodUid::new("u")).expect("u is a plain name")
    }

    /// The only volume of the pod.
    fn plan_of(volume: &str, containers: &str) -> Result<VolumePlan, String> {
        let pod = pod_yaml(&format!("spec: {{volumes: [{volume}], containers: {containers}}}"));
        let volume = &spec(&pod).volumes.as_ref().expect("one was given")[0];
        plan(&pod, volume, &dir(), Some(8 << 30)).map_err(|error| error.to_string())
    }

    fn check_medium(empty_dir: &str, containers: &str, expected: Result<DirMedium, &str>) {
        let plan = plan_of(&format!("{{name: v, emptyDir: {empty_dir}}}"), containers);
        let medium = plan.map(|plan| match plan {
            VolumePlan::EmptyDir { medium, .. } => medium,
            other => panic!("{empty_dir} became {other:?}"),
        });
        assert_eq!(medium, expected.map_err(str::to_owned), "{empty_dir}");
    }

    #[test]
    fn api_content_lies_in_memory_that_is_bounded_but_for_config_maps() {
        let limited = "[{name: a, resources: {limits: {memory: 1Gi}}}]";
        let memory = |size| DirMedium::Memory { size_bytes: Some(size) };
        for (volume, containers, expected) in [
            ("{name: v, configMap: {name: m}}", limited, DirMedium::Disk),
            ("{name: v, secret: {secretName: m}}", limited, memory(1 << 30)),
            ("{name: v, secret: {secretName: m}}", "[{name: a}]", memory(8 << 30)),
            ("{name: v, projected: {sources: []}}", limited, memory(1 << 30)),
            ("{name: v, downwardAPI: {}}", limited, memory(1 << 30)),
        ] {
            match plan_of(volume, containers) {
                Ok(VolumePlan::Payload { medium, .. }) => assert_eq!(medium, expected, "{volume}"),
                other => panic!("{volume} became {other:?}"),
            }
        }
    }

    #[test]
    fn an_empty_dir_in_memory_is_no_larger_than_what_the_pod_may_fill() {
        let memory = |size| Ok(DirMedium::Memory { size_bytes: Some(size) });
        let limited = "[{name: a, resources: {limits: {memory: 1Gi}}}, {name: b, resources: {limits: {memory: 1Gi}}}]";
        let half_limited = "[{name: a, resources: {limits: {memory: 1Gi}}}, {name: b}]";
        check_medium("{medium: Memory}", "[{name: a}]", memory(8 << 30));
        check_medium("{medium: Memory}", half_limited, memory(8 << 30));
        check_medium("{medium: Memory}", limited, memory(2 << 30));
        check_medium("{medium: Memory, sizeLimit: 64Mi}", limited, memory(64 << 20));
        check_medium("{medium: Memory, sizeLimit: 16Gi}", "[{name: a}]", memory(8 << 30));
        check_medium("{medium: Memory, sizeLimit: '0'}", "[{name: a}]", memory(8 << 30));
        check_medium("{sizeLimit: 64Mi}", limited, Ok(DirMedium::Disk));
    }

    #[test]
    fn huge_pages_need_a_size() {
        let pages = |size: &str| Ok(DirMedium::HugePages { page_size: size.to_owned(), size_bytes: None });
        let one = "[{name: a, resources: {limits: {hugepages-2Mi: 4Mi}}}, {name: b}]";
        let two = "[{name: a, resources: {limits: {hugepages-2Mi: 4Mi, hugepages-1Gi: 1Gi}}}]";
        check_medium("{medium: HugePages-1Gi}", two, pages("1Gi"));
        check_medium("{medium: HugePages}", one, pages("2Mi"));
        let error = |need| Err(format!("medium \"HugePages\" needs requests for {need} size of huge pages in the pod"));
        assert_eq!(plan_of("{name: v, emptyDir: {medium: HugePages}}", two).map(|_| ()), error("only one"));
        assert_eq!(plan_of("{name: v, emptyDir: {medium: HugePages}}", "[{name: a}]").map(|_| ()), error("a"));
        check_medium("{medium: HugePages-x}", one, Err("unknown storage medium \"HugePages-x\""));
        check_medium("{medium: Paper}", one, Err("unknown storage medium \"Paper\""));
    }

    #[test]
    fn a_volume_without_a_source_is_an_empty_dir() {
        let plan = plan_of("{name: v}", "[]").unwrap();
        assert_eq!(
            plan,
            VolumePlan::EmptyDir {
                path: "/r/pods/u/volumes/kubernetes.io~empty-dir/v".into(),
                marker: "/r/pods/u/plugins/kubernetes.io~empty-dir/v/ready".into(),
                medium: DirMedium::Disk,
            }
        );
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        for (volume, error) in [
            ("{name: v, nfs: {server: s, path: /p}}", "volume type \"nfs\" is not supported yet"),
            (
                "{name: v, persistentVolumeClaim: {claimName: c}}",
                "volume type \"persistentVolumeClaim\" is not supported yet",
            ),
            ("{name: v, csi: {driver: d}}", "volume type \"csi\" is not supported yet"),
            ("{name: ../up, emptyDir: {}}", "volume name \"../up\" is not a plain name"),
            ("{name: a/b, secret: {secretName: s}}", "volume name \"a/b\" is not a plain name"),
            ("{name: '', emptyDir: {}}", "volume name \"\" is not a plain name"),
            ("{name: v, hostPath: {path: /p, type: Door}}", "unknown hostPath type \"Door\""),
        ] {
            assert_eq!(plan_of(volume, "[]").map(|_| ()), Err(error.to_owned()), "{volume}");
        }
    }

    #[test]
    fn only_volumes_that_a_container_mentions_are_planned() {
        let pod = pod_yaml(
            "
            spec:
              volumes: [{name: a}, {name: b}, {name: c}, {name: d}, {name: unused}]
              initContainers: [{name: i, volumeMounts: [{name: a, mountPath: /a}]}]
              containers: [{name: c, volumeMounts: [{name: b, mountPath: /b}], volumeDevices: [{name: d, devicePath: /d}]}]
              ephemeralContainers: [{name: e, volumeMounts: [{name: c, mountPath: /c}]}]
            ",
        );
        let names: Vec<_> = volumes(&pod, &dir(), None).into_keys().collect();
        assert_eq!(names, ["a", "b", "c", "d"]);
    }

    #[test]
    fn mount_points_inside_api_content_are_foreseen() {
        let containers = "[
            {name: a, volumeMounts: [{name: v, mountPath: /etc/app}, {name: x, mountPath: /etc/app/data/deep}, {name: y, mountPath: /etc/application}]},
            {name: b, volumeMounts: [{name: v, mountPath: /conf/}, {name: x, mountPath: /conf/here}]},
            {name: c, volumeMounts: [{name: v, mountPath: /file, subPath: f}, {name: x, mountPath: /file/not}]}]";
        let plan = plan_of("{name: v, configMap: {name: m}}", containers).unwrap();
        let VolumePlan::Payload { nested, .. } = plan else { panic!("not API content: {plan:?}") };
        assert_eq!(nested, BTreeSet::from([PathBuf::from("data/deep"), PathBuf::from("here")]));
    }
}
