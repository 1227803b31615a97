//! Images: makes sure that what a container is to run is on the node.
//!
//! A pod worker asks [`Images::ensure`] for each container it is about to create. There is no
//! task: a pull runs as long as somebody waits for it, and a pod that goes away takes its
//! pull with it unless another pod waits for the same.
//!
//! In: names, policies and pull secrets from pods; the runtime's image service.
//! Out: the reference to create the container from, or the reason why it has to wait;
//! events; the image list of the node's status.
//!
//! Always true: an image is pulled once at a time per set of credentials; a pod that needs no
//! download never waits for one; no registry holds up another for longer than half a minute; a
//! failed pull is not tried again before its delay is over.

mod access;
mod backoff;
mod credentials;
mod lane;
mod list;
mod providers;
mod pulls;
mod reference;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerImage, Pod, Secret};
use tokio::time::Instant;
use tracing::info;

pub use access::AccessConfig;
pub use providers::{Provider, ProviderConfigError, read_config as read_providers};
pub use reference::{Reference, ReferenceError};

use crate::clock::Clock;
use crate::config::GoDuration;
use crate::cri::{self, Image, ImageService, ImageSpec, SandboxConfig};
use crate::events::{EventType, Recorder};
use crate::host::Host;
use crate::kube::Cluster;
use crate::metrics;
use crate::pod::{PodRef, PodUid};
use access::{Access, Use};
use backoff::Backoff;
use credentials::{Credential, Credentials, Keyring};
use providers::{Accounts, Processes, Providers};
use pulls::{PullFailure, PullRequest, Pulled, Pulls};

/// How long the list for the node's status may be old.
const LIST_AGE_MAX: Duration = Duration::from_secs(30);

/// The part of the configuration that is about images.
#[derive(Clone, Debug)]
pub struct ImagesConfig {
    pub serialize_image_pulls: bool,
    /// Unlimited when absent.
    pub max_parallel_image_pulls: Option<usize>,
    /// Zero is no limit.
    pub registry_pull_qps: u32,
    pub registry_burst: u32,
    /// All when negative.
    pub node_status_max_images: i32,
    /// Where the node's own credentials may lie; the first file that is there counts.
    pub credential_files: Vec<PathBuf>,
    pub providers: Vec<Provider>,
    pub access: AccessConfig,
}

/// The need of an image.
pub struct ImageRequest<'a> {
    pub pod: &'a Pod,
    /// The container, as events name it: `spec.containers{web}`; None for an image volume.
    pub field_path: Option<&'a str>,
    /// As its author wrote it.
    pub image: &'a str,
    /// A static pod may leave it out; the API server fills it in.
    pub pull_policy: Option<&'a str>,
    /// The pod's image pull secrets, as far as they could be read.
    pub secrets: &'a [Secret],
    pub sandbox: &'a SandboxConfig,
}

/// An image that is on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyImage {
    /// What the container is created from.
    pub image_ref: String,
    /// The user the image asks for, by number or else by name: the facts for `runAsNonRoot`.
    /// An image that asks for none runs as root, and has the number 0 here.
    pub uid: Option<i64>,
    pub username: String,
}

impl ReadyImage {
    fn new(image_ref: String, image: &Image) -> Self {
        let is_root = image.uid.is_none() && image.username.is_empty();
        ReadyImage { image_ref, uid: if is_root { Some(0) } else { image.uid }, username: image.username.clone() }
    }
}

/// The waiting reason that users see on the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    ErrImagePull,
    ImagePullBackOff,
    ErrImageNeverPull,
    InvalidImageName,
    ImageInspectError,
    RegistryUnavailable,
    SignatureValidationFailed,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::ErrImagePull => "ErrImagePull",
            Reason::ImagePullBackOff => "ImagePullBackOff",
            Reason::ErrImageNeverPull => "ErrImageNeverPull",
            Reason::InvalidImageName => "InvalidImageName",
            Reason::ImageInspectError => "ImageInspectError",
            Reason::RegistryUnavailable => "RegistryUnavailable",
            Reason::SignatureValidationFailed => "SignatureValidationFailed",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a container has to wait for its image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct ImageError {
    pub reason: Reason,
    /// The container status's waiting message.
    pub message: String,
    /// Before this nothing will change. Absent where nothing here knows when to look again.
    pub retry_at: Option<Instant>,
}

/// What to do about an image, given the policy and whether it is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Use,
    Pull,
    Refuse,
}

/// An unknown policy is one of a newer API; it is taken as the default of the API.
fn step(policy: Option<&str>, is_latest: bool, is_present: bool) -> Step {
    match (policy, is_present) {
        (Some("Never"), false) => Step::Refuse,
        (Some("Never"), true) => Step::Use,
        (Some("Always"), _) => Step::Pull,
        (Some("IfNotPresent"), true) => Step::Use,
        (_, true) if !is_latest => Step::Use,
        _ => Step::Pull,
    }
}

/// The image manager. Clones share everything.
#[derive(Clone)]
pub struct Images {
    shared: Arc<Shared>,
}

struct Shared {
    runtime: Arc<dyn ImageService>,
    clock: Clock,
    recorder: Recorder,
    pulls: Pulls,
    keyring: Keyring,
    access: Access,
    backoff: Mutex<Backoff>,
    listed: Mutex<Option<Listed>>,
    node_status_max_images: i32,
}

struct Listed {
    at: Instant,
    images: Arc<Vec<ContainerImage>>,
}

impl Images {
    pub fn new(
        runtime: Arc<dyn ImageService>,
        host: Arc<dyn Host>,
        cluster: Option<Arc<dyn Cluster>>,
        clock: Clock,
        recorder: Recorder,
        config: ImagesConfig,
    ) -> Self {
        let accounts = Accounts::new(cluster, clock.clone());
        Images {
            shared: Arc::new(Shared {
                pulls: Pulls::new(runtime.clone(), clock.clone(), &config),
                keyring: Keyring {
                    host: host.clone(),
                    files: config.credential_files,
                    providers: Providers::new(config.providers, Arc::new(Processes), accounts, clock.clone()),
                },
                access: Access::new(host, runtime.clone(), clock.clone(), config.access),
                runtime,
                clock,
                recorder,
                backoff: Mutex::default(),
                listed: Mutex::default(),
                node_status_max_images: config.node_status_max_images,
            }),
        }
    }

    /// Returns once the image is on the node, which may take as long as the registry likes.
    /// Dropping the future stops the pull, unless another pod waits for it too.
    pub async fn ensure(&self, request: &ImageRequest<'_>) -> Result<ReadyImage, ImageError> {
        let name = request.image;
        let reference = Reference::parse(name)
            .map_err(|error| self.inspect_failed(request, Reason::InvalidImageName, &error.to_string()))?;
        let spec = ImageSpec {
            image: reference.for_runtime(name),
            user_specified_image: name.to_owned(),
            ..ImageSpec::default()
        };
        let present = self
            .shared
            .runtime
            .image_status(&spec)
            .await
            .map_err(|error| self.inspect_failed(request, Reason::ImageInspectError, &error.own_words()))?;
        let step = step(request.pull_policy, reference.is_latest(), present.is_some());
        let may_use = match &present {
            Some(image) if step == Step::Use => self.may_use(request, &reference, &image.id).await,
            _ => false,
        };
        let is_never = request.pull_policy == Some("Never");
        metrics::images::requested(
            request.pull_policy.unwrap_or(if reference.is_latest() { "Always" } else { "IfNotPresent" }),
            Some(present.is_some()),
            (step != Step::Refuse).then_some(!may_use && !is_never),
        );
        match (step, present) {
            (Step::Use, Some(image)) if may_use => {
                // Where nobody looks at who may use it, nothing is said of that.
                let access = match self.shared.access.is_off() {
                    true => "",
                    false => " and can be accessed by the pod",
                };
                let message = format!("Container image \"{name}\" already present on machine{access}");
                self.event(request, EventType::Normal, "Pulled", message);
                Ok(ReadyImage::new(image.id.clone(), &image))
            }
            (Step::Use, Some(_)) if is_never => {
                info!(pod = %PodRef::of(request.pod), image = name, "present, but the pod has no credentials for it");
                Err(self.never_pulled(request))
            }
            (Step::Refuse, _) => Err(self.never_pulled(request)),
            (_, present) => self.pull(request, &reference, spec, present.map(|image| image.id.clone())).await,
        }
    }

    /// Whether the pod might have pulled what somebody else has.
    async fn may_use(&self, request: &ImageRequest<'_>, image: &Reference, image_ref: &str) -> bool {
        let may_use = self.has_right(request, image, image_ref).await;
        metrics::images::access_checked(match may_use {
            false => metrics::images::Access::MustAuthenticate,
            true if self.shared.access.has_record(image_ref) => metrics::images::Access::Record,
            true => metrics::images::Access::Policy,
        });
        may_use
    }

    async fn has_right(&self, request: &ImageRequest<'_>, image: &Reference, image_ref: &str) -> bool {
        let (access, used) = (&self.shared.access, Use { image, image_ref });
        // Most need no credentials, and looking them up may mean to run programs. Nor does one
        // whose pulls fail have others every time it asks.
        if access.allows(&used, &[]).await {
            return true;
        }
        let is_held = self.backoff().held(&uid(request.pod), &image.to_string(), self.shared.clock.now()).is_some();
        if is_held && request.pull_policy != Some("Never") {
            return false;
        }
        let credentials = self.shared.keyring.credentials(image, request.pod, request.secrets).await;
        access.allows(&used, &credentials.list).await
    }

    /// In the same words whether it is absent or somebody else's: what others run is not for a
    /// pod to find out.
    fn never_pulled(&self, request: &ImageRequest<'_>) -> ImageError {
        let message = format!("Container image \"{}\" is not present with pull policy of Never", request.image);
        self.event(request, EventType::Warning, "ErrImageNeverPull", message.clone());
        ImageError { reason: Reason::ErrImageNeverPull, message, retry_at: None }
    }

    async fn pull(
        &self,
        request: &ImageRequest<'_>,
        reference: &Reference,
        spec: ImageSpec,
        present: Option<String>,
    ) -> Result<ReadyImage, ImageError> {
        let (name, began) = (request.image, self.shared.clock.now());
        let pod = uid(request.pod);
        let full_name = reference.to_string();
        if let Some(held) = self.backoff().held(&pod, &full_name, began) {
            let message = format!("Back-off pulling image \"{name}\"");
            self.event(request, EventType::Normal, "BackOff", message.clone());
            return Err(ImageError {
                reason: Reason::ImagePullBackOff,
                message: format!("{message}: {}", held.error),
                retry_at: Some(held.until),
            });
        }

        self.event(request, EventType::Normal, "Pulling", format!("Pulling image \"{name}\""));
        let Credentials { list, unreadable } =
            self.shared.keyring.credentials(reference, request.pod, request.secrets).await;
        let wall = self.shared.clock.wall();
        let outcome = self
            .recorded_pull(
                reference,
                present.clone(),
                &list,
                PullRequest {
                    image: full_name.clone(),
                    registry: reference.domain.clone(),
                    spec: ImageSpec { annotations: request.sandbox.annotations.clone(), ..spec },
                    auths: credentials::distinct(&list),
                    sandbox: request.sandbox.clone(),
                    is_present: present.is_some(),
                    priority: priority(request.pod),
                },
            )
            .await;
        metrics::starts::pulled(pod.as_str(), (wall, self.shared.clock.wall()));
        match outcome {
            Ok(Pulled { image_ref, image, took, .. }) => {
                let waited = self.shared.clock.now() - began;
                let message = format!(
                    "Successfully pulled image \"{name}\" in {} ({} including waiting). Image size: {} bytes.",
                    go_duration(took),
                    go_duration(waited),
                    image.size_bytes
                );
                self.event(request, EventType::Normal, "Pulled", message);
                self.backoff().succeeded(&pod, &full_name);
                self.listed().take();
                Ok(ReadyImage::new(image_ref, &image))
            }
            Err(PullFailure { reason, mut message, .. }) => {
                if !unreadable.is_empty() {
                    message = format!("{message} (unreadable image pull secrets: {})", unreadable.join(", "));
                }
                let text = format!("Failed to pull image \"{name}\": {message}");
                self.event(request, EventType::Warning, "Failed", text);
                let error = format!("{reason}: {message}");
                let retry_at = self.backoff().failed(&pod, &full_name, error, self.shared.clock.now());
                Err(ImageError { reason, message, retry_at: Some(retry_at) })
            }
        }
    }

    /// Pulls, and notes for whom.
    async fn recorded_pull(
        &self,
        image: &Reference,
        before: Option<String>,
        list: &[Credential],
        request: PullRequest,
    ) -> pulls::Outcome {
        let access = &self.shared.access;
        let begun = access.begin(image, before).await.map_err(|error| PullFailure {
            reason: Reason::ErrImagePull,
            message: format!("cannot note that the pull begins: {error}"),
            is_certain: true,
        })?;
        let outcome = self.shared.pulls.pull(request).await;
        match &outcome {
            Ok(pulled) => {
                let worked: Vec<_> =
                    list.iter().filter(|credential| Some(&credential.auth) == pulled.auth.as_ref()).collect();
                access.pulled(begun, &Use { image, image_ref: &pulled.image.id }, &worked).await;
            }
            Err(failure) => access.failed(begun, failure.is_certain).await,
        }
        outcome
    }

    /// The images of the node's status, read again from the runtime after half a minute or a pull.
    pub async fn list(&self) -> cri::Result<Arc<Vec<ContainerImage>>> {
        let now = self.shared.clock.now();
        if let Some(listed) = &*self.listed()
            && now - listed.at < LIST_AGE_MAX
        {
            return Ok(listed.images.clone());
        }
        let images = self.shared.runtime.list_images().await?;
        let images = Arc::new(list::node_images(images, self.shared.node_status_max_images));
        *self.listed() = Some(Listed { at: now, images: images.clone() });
        Ok(images)
    }

    /// Upstream prints an empty name here; we print the one that was meant.
    fn inspect_failed(&self, request: &ImageRequest<'_>, reason: Reason, error: &str) -> ImageError {
        let message = format!("Failed to inspect image \"{}\": {error}", request.image);
        self.event(request, EventType::Warning, "InspectFailed", message.clone());
        ImageError { reason, message, retry_at: None }
    }

    fn event(&self, request: &ImageRequest<'_>, kind: EventType, reason: &str, message: String) {
        self.shared.recorder.pod(request.pod, request.field_path, kind, reason, message);
    }

    fn backoff(&self) -> std::sync::MutexGuard<'_, Backoff> {
        self.shared.backoff.lock().expect("nothing that holds the back-off table can panic")
    }

    fn listed(&self) -> std::sync::MutexGuard<'_, Option<Listed>> {
        self.shared.listed.lock().expect("nothing that holds the image list can panic")
    }
}

fn uid(pod: &Pod) -> PodUid {
    PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default())
}

/// A static pod goes before all others: the control plane may be among them.
fn priority(pod: &Pod) -> i32 {
    let source = pod.metadata.annotations.as_ref().and_then(|all| all.get("kubernetes.io/config.source"));
    match source.map(String::as_str) {
        None | Some("api") => pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0),
        Some(_) => i32::MAX,
    }
}

/// A duration to the millisecond, as Go writes it.
fn go_duration(duration: Duration) -> GoDuration {
    let milliseconds = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    GoDuration::from_nanos(milliseconds.saturating_mul(1_000_000))
}
