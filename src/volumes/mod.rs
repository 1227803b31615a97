//! Volumes: from a pod's spec to directories that its containers mount, and back.
//!
//! `plan.rs` says what each volume takes and `payload.rs` what files API content makes,
//! both pure; `Volumes` fetches the objects and has the host do it. `mounts.rs` turns a
//! container's volumeMounts into the runtime's.
//!
//! No task of its own: the pod's worker calls `mount` when the pod starts, `mount_missing` before
//! each container, `refresh` when an object it mentions changed or `next_refresh` has come,
//! `unmount` when its containers are gone. The host keeps the calls of one pod from holding up another.
//!
//! Always true: every call may be repeated and goes on where the last one failed; what is
//! on disk and in the kernel's mount table is the only record, so a new agent needs no
//! other; a file is written only if it differs; a refresh that fails leaves the old content.

mod layout;
mod mounts;
mod payload;
mod plan;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container, DownwardAPIVolumeFile, Pod};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::causes::chain;
use crate::cri::{self, ImageSpec};
use crate::host::{DirMedium, Durability, Host, HostError};
use crate::images::ReadyImage;
use crate::metrics;
use crate::objects::Objects;
use crate::objects::tokens::Tokens;
use crate::pod::env::{EnvFile, EnvValue};
use crate::pod::fields::{FieldContext, field_ref, resource_ref};
use crate::pod::resources::Amounts;
use crate::pod::{PodRef, PodUid, spec};
use layout::PodDir;
use payload::{Content, Owners, PayloadError, PayloadSpec, Source};
use plan::{PlanError, VolumePlan};

pub use mounts::MountError;

const MARKER_DIR_MODE: u32 = 0o750;
const MARKER_MODE: u32 = 0o644;
const MOUNT_POINT_MODE: u32 = 0o755;

/// What pods may use of this node, at present.
pub type Allocatable = Arc<dyn Fn() -> Amounts + Send + Sync>;

/// What can go wrong, with a text that may be shown to the pod's owner. Causes that name
/// places on the host are sources, for the log.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("pod UID {0:?} is not a plain name")]
    BadUid(PodUid),
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    SetUp(Vec<SetUpError>),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("failed to prepare subPath for volumeMount {volume:?} of container {container:?}")]
    SubPath {
        volume: String,
        container: String,
        #[source]
        source: HostError,
    },
    #[error("failed to tear down the volumes of pod {uid}")]
    TearDown {
        uid: PodUid,
        #[source]
        source: HostError,
    },
    #[error("failed to list the pods on disk")]
    List(#[source] HostError),
}

impl VolumeError {
    /// What there is to tell, volume by volume.
    pub fn texts(&self) -> Vec<String> {
        match self {
            VolumeError::SetUp(failed) => failed.iter().map(ToString::to_string).collect(),
            other => vec![other.to_string()],
        }
    }
}

/// One volume that is not there yet. The blank before the colon is upstream's.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume {volume:?} : {why}")]
pub struct SetUpError {
    pub volume: String,
    pub why: SetUpCause,
}

#[derive(Debug, thiserror::Error)]
pub enum SetUpCause {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Payload(#[from] PayloadError),
    #[error("{}", chain(.0))]
    Host(#[from] HostError),
}

/// Handle to the volumes of all pods. Clones share what is known to be set up.
#[derive(Clone)]
pub struct Volumes {
    host: Arc<dyn Host>,
    objects: Objects,
    tokens: Tokens,
    allocatable: Allocatable,
    root_dir: Arc<Path>,
    ready: Arc<Mutex<BTreeMap<PodUid, Ready>>>,
}

/// What this agent has seen to be right, so that it need not look at the disk again. Lost
/// with the agent, which costs one look.
#[derive(Default)]
struct Ready {
    /// emptyDirs and host paths.
    checked: BTreeSet<String>,
    /// Digests of what API volumes hold.
    written: BTreeMap<String, u64>,
}

impl Ready {
    fn has(&self, name: &str) -> bool {
        self.checked.contains(name) || self.written.contains_key(name)
    }
}

/// Volumes of one plugin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    pub wanted: usize,
    pub set_up: usize,
}

/// What a container's mounts depend on besides its pod.
pub struct Means<'a> {
    /// The container's environment, for subPathExpr.
    pub env: &'a BTreeMap<String, EnvValue>,
    /// Whether the pod's runtime handler can make mounts read-only with all below.
    pub recursive_read_only: bool,
    /// The images of image volumes, by volume.
    pub images: &'a BTreeMap<String, ReadyImage>,
}

/// What all volumes of a pod have in common.
struct Context<'a> {
    pod: &'a Pod,
    uid: PodUid,
    owners: Owners,
    allocatable: Amounts,
}

impl Volumes {
    pub fn new(
        host: Arc<dyn Host>,
        objects: Objects,
        tokens: Tokens,
        allocatable: Allocatable,
        root_dir: PathBuf,
    ) -> Self {
        Volumes { host, objects, tokens, allocatable, root_dir: root_dir.into(), ready: Arc::default() }
    }

    /// Sets up all volumes that a container of the pod mounts, side by side. Cheap when they
    /// are there already and nothing changed.
    pub async fn mount(&self, pod: &Pod) -> Result<(), VolumeError> {
        self.set_up(pod, |_, _| true).await
    }

    /// Sets up what one container mounts and this agent has not set up yet: a container that was
    /// added to a running pod may mount what no other does.
    pub async fn mount_missing(&self, pod: &Pod, container: &Container) -> Result<(), VolumeError> {
        let uid = PodRef::of(pod).uid;
        let mut missing = plan::used_by(container);
        if let Some(ready) = self.ready().get(&uid) {
            missing.retain(|name| !ready.has(name));
        }
        if missing.is_empty() {
            return Ok(());
        }
        self.set_up(pod, |name, _| missing.contains(name)).await
    }

    /// Brings API content up to date. Other volumes are not looked at.
    pub async fn refresh(&self, pod: &Pod) -> Result<(), VolumeError> {
        self.set_up(pod, |_, plan| matches!(plan, Ok(VolumePlan::Payload { .. }))).await
    }

    /// When a token of the pod is due for renewal.
    pub fn next_refresh(&self, uid: &PodUid) -> Option<Instant> {
        self.tokens.next_refresh(uid)
    }

    /// The mounts of one container, subPaths prepared. Its volumes have been set up before.
    pub async fn container_mounts(
        &self,
        pod: &Pod,
        container: &Container,
        means: &Means<'_>,
    ) -> Result<Vec<cri::Mount>, VolumeError> {
        let dir = self.dir(&PodRef::of(pod).uid)?;
        let plans = plan::volumes(pod, &dir, None);
        let mut mounts = Vec::new();
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let no_volume = || MountError::NoVolume { volume: mount.name.clone(), container: container.name.clone() };
            let volume = match plans.get(&mount.name).ok_or_else(no_volume)? {
                Ok(volume) => volume,
                Err(error) => return Err(error.clone().into()),
            };
            let mut wanted = mounts::wanted(mount, volume, means.env, means.recursive_read_only)?;
            if let VolumePlan::Image { reference } = volume {
                let image = means.images.get(&mount.name).ok_or_else(no_volume)?;
                wanted.mount.image = Some(ImageSpec {
                    image: image.image_ref.clone(),
                    user_specified_image: reference.clone(),
                    annotations: pod.metadata.annotations.clone().unwrap_or_default(),
                    ..ImageSpec::default()
                });
                wanted.mount.image_sub_path = wanted.sub_path.take().unwrap_or_default();
            }
            if let Some(sub_path) = &wanted.sub_path {
                let target = dir.sub_path(&mount.name, &container.name, index);
                let prepared = self.host.prepare_sub_path(volume.path(), sub_path, &target).await;
                let prepared = prepared.map_err(|source| VolumeError::SubPath {
                    volume: mount.name.clone(),
                    container: container.name.clone(),
                    source,
                })?;
                wanted.mount.host_path = prepared.to_string_lossy().into_owned();
            }
            mounts.push(wanted.mount);
        }
        Ok(mounts)
    }

    /// A file of variables in an emptyDir of the pod; `None` where there is no such volume. The
    /// pod may put into it what it likes, so nothing outside the volume is read, and no more than
    /// is asked for.
    pub async fn read_env_file(&self, pod: &Pod, volume: &str, path: &str, bytes_max: usize) -> Option<EnvFile> {
        let dir = self.dir(&PodRef::of(pod).uid).ok()?;
        let plans = plan::volumes(pod, &dir, None);
        let Some(Ok(VolumePlan::EmptyDir { path: volume, .. })) = plans.get(volume) else { return None };
        let data = match self.host.read_file_in(volume, path, bytes_max).await {
            Ok(Some(data)) => Ok(data),
            Ok(None) => Err("it is not there".to_owned()),
            Err(error) => Err(chain(&error)),
        };
        Some(EnvFile { path: volume.join(path), data })
    }

    /// How many volumes of each plugin these pods want, and how many of them are set up.
    pub fn totals<'a>(&self, pods: impl Iterator<Item = &'a Pod>) -> BTreeMap<&'static str, Total> {
        let mut totals: BTreeMap<&'static str, Total> = BTreeMap::new();
        for pod in pods {
            let uid = PodRef::of(pod).uid;
            let Ok(dir) = self.dir(&uid) else { continue };
            let ready = self.ready();
            for (name, plan) in plan::volumes(pod, &dir, None) {
                let Some(plugin) = plan.ok().and_then(|plan| plan.plugin()) else { continue };
                let is_set_up = ready.get(&uid).is_some_and(|ready| ready.has(&name));
                let total = totals.entry(plugin).or_default();
                total.wanted += 1;
                total.set_up += usize::from(is_set_up);
            }
        }
        totals
    }

    /// Takes down all that the pod has under the root dir, mounts first. Its containers are
    /// gone by now.
    pub async fn unmount(&self, uid: &PodUid) -> Result<(), VolumeError> {
        let dir = self.dir(uid)?;
        self.ready().remove(uid);
        let removed = self.host.remove_tree(dir.path()).await;
        removed.map_err(|source| VolumeError::TearDown { uid: uid.clone(), source })?;
        self.tokens.forget(uid);
        debug!(%uid, "volumes torn down");
        Ok(())
    }

    /// Pods that have a directory here, whoever made it.
    pub async fn known_on_disk(&self) -> Result<Vec<PodUid>, VolumeError> {
        self.host.list_pod_dirs().await.map_err(VolumeError::List)
    }

    async fn set_up(
        &self,
        pod: &Pod,
        which: impl Fn(&str, &Result<VolumePlan, PlanError>) -> bool,
    ) -> Result<(), VolumeError> {
        let uid = PodRef::of(pod).uid;
        let dir = self.dir(&uid)?;
        let allocatable = (self.allocatable)();
        let node_memory = allocatable.get("memory").and_then(|amount| u64::try_from(amount.value()).ok());
        let plans = plan::volumes(pod, &dir, node_memory);
        let context = Context { pod, uid, owners: Owners::of(pod), allocatable };

        let chosen = plans.into_iter().filter(|(name, plan)| which(name, plan));
        let outcomes = join_all(chosen.map(|(name, plan)| self.set_up_one(&context, name, plan))).await;
        let failed: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
        if failed.is_empty() { Ok(()) } else { Err(VolumeError::SetUp(failed)) }
    }

    async fn set_up_one(
        &self,
        context: &Context<'_>,
        name: String,
        plan: Result<VolumePlan, PlanError>,
    ) -> Result<(), SetUpError> {
        let (began, plugin) = (Instant::now(), plan.as_ref().ok().and_then(VolumePlan::plugin));
        let done = match plan {
            Ok(VolumePlan::EmptyDir { path, marker, medium }) => {
                self.empty_dir(context, &name, &path, &marker, &medium).await
            }
            Ok(VolumePlan::HostPath { path, kind }) => self.host_path(context, &name, &path, kind).await,
            Ok(VolumePlan::Payload { path, spec, medium, nested }) => {
                self.payload(context, &name, &path, &spec, &medium, &nested).await
            }
            Ok(VolumePlan::Image { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        };
        if let Some(plugin) = plugin {
            metrics::volumes::mounted(plugin, began.elapsed(), done.is_ok());
        }
        done.map_err(|why| SetUpError { volume: name, why })
    }

    /// The marker is written last, so a set-up cut short is done again.
    async fn empty_dir(
        &self,
        context: &Context<'_>,
        name: &str,
        path: &Path,
        marker: &Path,
        medium: &DirMedium,
    ) -> Result<(), SetUpCause> {
        if self.is_checked(context, name) {
            return Ok(());
        }
        let made = self.host.make_empty_dir(path, medium).await?;
        if made || self.host.read_file(marker, 0).await?.is_none() {
            if let Some(gid) = context.owners.group
                && let Err(error) = self.host.apply_fs_group(path, gid).await
            {
                // As upstream: a pod that can do without the group shall start.
                warn!(pod = %PodRef::of(context.pod), volume = name, gid, error = chain(&error), "fsGroup not applied");
            }
            if let Some(parent) = marker.parent() {
                self.host.make_dir(parent, MARKER_DIR_MODE).await?;
            }
            self.host.write_file(marker, b"", MARKER_MODE, Durability::UntilReboot).await?;
        }
        self.set_checked(context, name);
        Ok(())
    }

    async fn host_path(
        &self,
        context: &Context<'_>,
        name: &str,
        path: &Path,
        kind: crate::host::HostPathKind,
    ) -> Result<(), SetUpCause> {
        if !self.is_checked(context, name) {
            self.host.check_host_path(path, kind).await?;
            self.set_checked(context, name);
        }
        Ok(())
    }

    async fn payload(
        &self,
        context: &Context<'_>,
        name: &str,
        path: &Path,
        spec: &PayloadSpec,
        medium: &DirMedium,
        nested: &BTreeSet<PathBuf>,
    ) -> Result<(), SetUpCause> {
        let contents = self.contents(context, spec).await?;
        let files = spec.files(&contents, context.owners, &|item| downward(context, item))?;
        let mut hasher = DefaultHasher::new();
        (&files, context.owners.group, nested).hash(&mut hasher);
        let digest = hasher.finish();
        if self.ready().get(&context.uid).and_then(|ready| ready.written.get(name)) == Some(&digest) {
            return Ok(());
        }
        // The writer leaves them alone only if they are there before its links.
        if !nested.is_empty() {
            self.host.make_empty_dir(path, medium).await?;
        }
        for mount_point in nested {
            self.host.make_dir(&path.join(mount_point), MOUNT_POINT_MODE).await?;
        }
        let changed = self.host.write_payload(path, medium, &files, context.owners.group).await?;
        if changed {
            debug!(pod = %PodRef::of(context.pod), volume = name, files = files.len(), "volume written");
        }
        self.ready().entry(context.uid.clone()).or_default().written.insert(name.to_owned(), digest);
        Ok(())
    }

    async fn contents(&self, context: &Context<'_>, spec: &PayloadSpec) -> Result<Vec<Content>, PayloadError> {
        let fetched = join_all(spec.sources.iter().map(|source| self.content(context, source))).await;
        PayloadError::all(fetched)
    }

    async fn content(&self, context: &Context<'_>, source: &Source) -> Result<Content, PayloadError> {
        let pod = PodRef::of(context.pod);
        let other = |error: &dyn std::error::Error| PayloadError::Other(chain(error));
        Ok(match source {
            Source::ConfigMap(object) => Content::ConfigMap(
                self.objects.config_map(&pod.namespace, &object.name).await.map_err(|error| other(&error))?,
            ),
            Source::Secret(object) => {
                Content::Secret(self.objects.secret(&pod.namespace, &object.name).await.map_err(|error| other(&error))?)
            }
            Source::Token { audience, expiration_seconds, .. } => {
                let account = spec(context.pod)
                    .service_account_name
                    .as_deref()
                    .filter(|name| !name.is_empty())
                    .unwrap_or("default");
                let token = self.tokens.get(context.pod, account, audience.as_deref(), *expiration_seconds).await;
                Content::Token(token.map_err(|error| other(&error))?.token)
            }
            Source::DownwardApi(_) | Source::Unsupported(_) => Content::OfPod,
        })
    }

    fn dir(&self, uid: &PodUid) -> Result<PodDir, VolumeError> {
        PodDir::of(&self.root_dir, uid).ok_or_else(|| VolumeError::BadUid(uid.clone()))
    }

    fn is_checked(&self, context: &Context<'_>, name: &str) -> bool {
        self.ready().get(&context.uid).is_some_and(|ready| ready.checked.contains(name))
    }

    fn set_checked(&self, context: &Context<'_>, name: &str) {
        self.ready().entry(context.uid.clone()).or_default().checked.insert(name.to_owned());
    }

    fn ready(&self) -> MutexGuard<'_, BTreeMap<PodUid, Ready>> {
        self.ready.lock().expect("no holder of the ready lock panics")
    }
}

fn downward(context: &Context<'_>, item: &DownwardAPIVolumeFile) -> Result<String, String> {
    let value = match (&item.field_ref, &item.resource_field_ref) {
        (Some(field), _) => {
            // The API allows no addresses here: they are known only later.
            let no_addresses = FieldContext { host_ips: &[], pod_ips: &[] };
            field_ref(context.pod, &field.field_path, &no_addresses)
        }
        (None, Some(selector)) => resource_ref(context.pod, None, selector, &context.allocatable),
        (None, None) => {
            return Err(format!("neither a field nor a resource is named for {:?}", item.path));
        }
    };
    value.map_err(|error| error.to_string())
}
