//! Starting one container: image, configuration, create, start.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container as ContainerSpec, Secret};
use tracing::{info, warn};

use super::execute::{FAILED_MOUNT, Round, StartFailure};
use super::launch::{self, ContainerInputs};
use super::plan::{Kind, Waits};
use super::{Context, hooks};
use crate::causes::chain;
use crate::cri::{Container, ContainerId, Mount, Sandbox, SandboxConfig, SandboxId, labels};
use crate::events::EventType;
use crate::host::{Durability, HostError};
use crate::images::{ImageError, ImageRequest, ReadyImage, Reason};
use crate::metrics;
use crate::pod::env::{EnvSources, EnvValue, FilePlace};
use crate::pod::hosts::{self, PodHostname};
use crate::pod::resources::Amounts;
use crate::pod::{self, PodRef, containers::ephemeral_containers};
use crate::volumes::Means;

/// Names of links in the container log directory end here.
const LINK_NAME_BYTES_MAX: usize = 255;
/// All files of variables of one container: more than the kernel takes of its variables.
const ENV_FILES_BYTES_MAX: usize = 4 << 20;
/// More of the node's own hosts file than anyone needs.
const HOSTS_BYTES_MAX: usize = 1 << 20;

/// Starts a new instance. The caller has made sure that no other one of it lives.
pub async fn start(
    round: &Round<'_>,
    name: &str,
    kind: Kind,
    attempt: Option<u32>,
    waits: Waits,
) -> Result<(), StartFailure> {
    let label = pod::containers::kind_label(&round.wish.pod, name);
    metrics::pods::STARTED_CONTAINERS.add([label]);
    let result = make_and_start(round, name, kind, attempt, waits).await;
    if let Err(failure) = &result {
        metrics::pods::STARTED_CONTAINERS_ERRORS.add([label, &failure.reason]);
    }
    result
}

async fn make_and_start(
    round: &Round<'_>,
    name: &str,
    kind: Kind,
    attempt: Option<u32>,
    waits: Waits,
) -> Result<(), StartFailure> {
    let context = round.context;
    let pod = &round.wish.pod;
    let spec = round
        .spec(name)
        .ok_or_else(|| StartFailure::new("CreateContainerError", "container is no longer in the spec"))?;
    let spec = spec.as_ref();
    // One that was added to a running pod may mention what the pod did not when it was prepared.
    context.objects.register(pod);
    let sandbox = round
        .runtime
        .ready_sandbox()
        .ok_or_else(|| StartFailure::new("CreateContainerError", "the pod's sandbox is gone"))?;
    // The sandbox has its name servers; one that crashes while the node has none starts again.
    let resolver = context.config.resolver.read(&*context.host).await.unwrap_or_default();
    let sandbox_config = round
        .sandbox_config(sandbox.attempt, &sandbox.runtime_handler, &resolver)
        .await
        .map_err(|message| StartFailure::new("CreateContainerConfigError", message))?;

    let secrets = pull_secrets(round).await;
    let volume_images = volume_images(round, spec, &secrets, &sandbox_config).await;
    let volume_images = volume_images.map_err(|error| no_image(round, name, error))?;
    let field_path = pod::field_path(pod, name).unwrap_or_default();
    let request = ImageRequest {
        pod,
        field_path: Some(&field_path),
        image: spec.image.as_deref().unwrap_or_default(),
        pull_policy: spec.image_pull_policy.as_deref(),
        secrets: &secrets,
        sandbox: &sandbox_config,
    };
    let image = match context.images.ensure(&request).await {
        Ok(image) => image,
        Err(error) => return Err(no_image(round, name, error)),
    };

    let attempt = match attempt {
        Some(attempt) => attempt,
        None => attempt_from_logs(round, name).await?,
    };
    let config_error = |message: String| {
        round.container_event(name, EventType::Warning, "Failed", format!("Error: {message}"));
        StartFailure::new("CreateContainerConfigError", message)
    };
    mount_missing(round, spec).await?;
    let surroundings = surroundings(round, spec, sandbox, &volume_images).await.map_err(config_error)?;
    // As late as can be: others may have been given CPUs while an image was pulled.
    let places = context.topology.places(round.uid);
    let inputs = ContainerInputs {
        attempt,
        image: &image,
        env: surroundings.env,
        mounts: surroundings.mounts,
        termination_log: surroundings.termination_log.as_deref(),
        target: target(round, name, kind, &sandbox.id).map_err(config_error)?,
        users: sandbox_config.security.namespaces.users,
        places: &places,
        config: &context.config.launch,
    };
    let mut config = launch::container_config(pod, spec, inputs).map_err(|error| config_error(error.to_string()))?;
    config.annotations.extend(waits.annotations());

    let id = match context.runtime.create_container(&sandbox.id, &config, &sandbox_config).await {
        Ok(id) => id,
        Err(error) => {
            warn!(container = name, %error, "container not created, will retry");
            let words = error.own_words();
            round.container_event(name, EventType::Warning, "Failed", format!("Error: {words}"));
            return Err(StartFailure::new("CreateContainerError", words));
        }
    };
    volume_images.values().for_each(|_| metrics::images::VOLUMES_MOUNTED.add([]));
    round.container_event(name, EventType::Normal, "Created", "Container created");
    launch_created(round, name, &id, attempt).await
}

/// The container whose processes an ephemeral one wants to see, if it wants to see any. Without
/// them it would be of no use to whoever debugs.
fn target<'a>(
    round: &'a Round<'_>,
    name: &str,
    kind: Kind,
    sandbox: &SandboxId,
) -> Result<Option<&'a ContainerId>, String> {
    if kind != Kind::Ephemeral {
        return Ok(None);
    }
    let spec = ephemeral_containers(&round.wish.pod).iter().find(|container| container.name == name);
    let wanted = spec.and_then(|spec| spec.target_container_name.as_deref()).filter(|target| !target.is_empty());
    let Some(wanted) = wanted else { return Ok(None) };
    let here = round.runtime.instances(wanted).find(|container| container.sandbox_id == *sandbox);
    here.map(|here| Some(&here.id)).ok_or_else(|| format!("unable to find target container {wanted}"))
}

fn no_image(round: &Round<'_>, name: &str, error: ImageError) -> StartFailure {
    let ImageError { reason, message, retry_at } = error;
    round.container_event(name, EventType::Warning, "Failed", format!("Error: {reason}"));
    // A failed pull is looked at again soon: its back-off then says so in the status.
    let retry_at = retry_at.filter(|_| reason != Reason::ErrImagePull);
    StartFailure { reason: reason.as_str().to_owned(), message, retry_at }
}

/// The images that a container mounts, by volume, on this machine.
async fn volume_images(
    round: &Round<'_>,
    spec: &ContainerSpec,
    secrets: &[Secret],
    sandbox: &SandboxConfig,
) -> Result<BTreeMap<String, ReadyImage>, ImageError> {
    let pod = &round.wish.pod;
    let mounted: BTreeSet<&str> = spec.volume_mounts.iter().flatten().map(|mount| mount.name.as_str()).collect();
    let mut images = BTreeMap::new();
    for volume in pod::spec(pod).volumes.iter().flatten().filter(|volume| mounted.contains(volume.name.as_str())) {
        let Some(source) = &volume.image else { continue };
        let request = ImageRequest {
            pod,
            field_path: None,
            image: source.reference.as_deref().unwrap_or_default(),
            pull_policy: source.pull_policy.as_deref(),
            secrets,
            sandbox,
        };
        metrics::images::VOLUMES_REQUESTED.add([]);
        let image = round.context.images.ensure(&request).await;
        images.insert(volume.name.clone(), image.inspect_err(|_| metrics::images::VOLUMES_ERRORS.add([]))?);
    }
    Ok(images)
}

/// Starts an instance that an earlier pass, or an earlier life of the agent, created.
pub async fn resume(round: &Round<'_>, name: &str, id: &ContainerId) -> Result<(), StartFailure> {
    let attempt =
        round.runtime.instances(name).find(|container| container.id == *id).map_or(0, |container| container.attempt);
    launch_created(round, name, id, attempt).await
}

async fn launch_created(round: &Round<'_>, name: &str, id: &ContainerId, attempt: u32) -> Result<(), StartFailure> {
    if let Err(error) = round.context.runtime.start_container(id).await {
        round.begun_hooks.note_unsure_start(id);
        warn!(container = name, %error, "container not started");
        let words = error.own_words();
        // Events that differ by an id would not count as one that came again.
        let told = words.replace(id.as_str(), name);
        round.container_event(name, EventType::Warning, "Failed", format!("Error: {told}"));
        return Err(StartFailure::new("RunContainerError", words));
    }
    info!(container = name, %id, attempt, "container started");
    round.container_event(name, EventType::Normal, "Started", "Container started");
    let reference = PodRef::of(&round.wish.pod);
    if let Err(error) = link_log(round.context, &reference, name, id, attempt).await {
        warn!(error = chain(&error), "log link not made, will retry");
    }
    if let Some(spec) = round.spec(name) {
        hooks::begin_post_start(round, &spec, id);
    }
    Ok(())
}

/// The container is shown as one that was never tried, and events tell of its volumes: so upstream has it.
async fn mount_missing(round: &Round<'_>, spec: &ContainerSpec) -> Result<(), StartFailure> {
    let pod = &round.wish.pod;
    round.context.volumes.mount_missing(pod, spec).await.map_err(|error| {
        warn!(container = spec.name, error = chain(&error), "volumes not ready, will retry");
        for text in error.texts() {
            round.pod_event(EventType::Warning, FAILED_MOUNT, text);
        }
        let has_init = !pod::containers::init_containers(pod).is_empty();
        StartFailure::new(if has_init { "PodInitializing" } else { "ContainerCreating" }, "")
    })
}

/// What a container finds around itself.
struct Surroundings {
    env: Vec<(String, EnvValue)>,
    mounts: Vec<Mount>,
    /// The file for its last words.
    termination_log: Option<PathBuf>,
}

async fn surroundings(
    round: &Round<'_>,
    spec: &ContainerSpec,
    sandbox: &Sandbox,
    images: &BTreeMap<String, ReadyImage>,
) -> Result<Surroundings, String> {
    let context = round.context;
    let ips = sandbox.ips.as_slice();
    let pod = &round.wish.pod;
    let env = environment(round, spec, ips).await?;
    let by_name = env.iter().cloned().collect();
    // Whether the runtime can make a mount read-only with all that is mounted below it.
    let recursive = round.features(&sandbox.runtime_handler).is_some_and(|can| can.recursive_read_only_mounts);
    let means = Means { env: &by_name, recursive_read_only: recursive, images };
    let mounts = context.volumes.container_mounts(pod, spec, &means).await;
    let mut mounts = mounts.map_err(|error| error.to_string())?;
    if let Some(hosts) = hosts_mount(round, spec, ips).await? {
        mounts.push(hosts);
    }
    let termination_log = match spec.termination_message_path.as_deref() {
        None | Some("") => None,
        Some(_) => Some(termination_log(round, &spec.name).await?),
    };
    Ok(Surroundings { env, mounts, termination_log })
}

async fn environment(
    round: &Round<'_>,
    spec: &ContainerSpec,
    ips: &[IpAddr],
) -> Result<Vec<(String, EnvValue)>, String> {
    let context = round.context;
    let pod = &round.wish.pod;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut config_maps = BTreeMap::new();
    let mut secrets = BTreeMap::new();
    for (kind, name) in mentioned(spec) {
        match kind {
            Mentioned::ConfigMap => {
                if let Some(map) =
                    context.objects.config_map(namespace, name).await.map_err(|error| error.to_string())?
                {
                    config_maps.insert(name.to_owned(), map);
                }
            }
            Mentioned::Secret => {
                if let Some(secret) =
                    context.objects.secret(namespace, name).await.map_err(|error| error.to_string())?
                {
                    secrets.insert(name.to_owned(), secret);
                }
            }
        }
    }
    // A static pod starts with what is known; a pod of the API waits for the services.
    let services = context.objects.services().or_else(|| round.wish.source.is_static().then(Default::default));
    let node = context.node.borrow().clone();
    let (host_ips, allocatable) =
        node.as_ref().map_or((&[][..], Amounts::default()), |node| (&node.host_ips[..], node.allocatable.clone()));
    let host_network = pod::spec(pod).host_network == Some(true);
    let mut files = BTreeMap::new();
    let mut bytes_left = ENV_FILES_BYTES_MAX;
    for (volume, path) in env_files(spec) {
        if let Some(file) = context.volumes.read_env_file(pod, &volume, &path, bytes_left).await {
            bytes_left = bytes_left.saturating_sub(file.data.as_ref().map_or(0, Vec::len));
            files.insert((volume, path), file);
        }
    }
    let sources = EnvSources {
        services: services.as_ref(),
        config_maps: &config_maps,
        secrets: &secrets,
        host_ips,
        pod_ips: if host_network { host_ips } else { ips },
        node_allocatable: &allocatable,
        files: &files,
    };
    pod::env::environment(pod, spec, &sources).map_err(|error| error.to_string())
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mentioned {
    ConfigMap,
    Secret,
}

/// ConfigMaps and Secrets that a container's environment is made from.
fn mentioned(spec: &ContainerSpec) -> BTreeSet<(Mentioned, &str)> {
    let mut names = BTreeSet::new();
    for from in spec.env_from.iter().flatten() {
        names.extend(from.config_map_ref.iter().map(|reference| (Mentioned::ConfigMap, reference.name.as_str())));
        names.extend(from.secret_ref.iter().map(|reference| (Mentioned::Secret, reference.name.as_str())));
    }
    for source in spec.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        names.extend(source.config_map_key_ref.iter().map(|reference| (Mentioned::ConfigMap, reference.name.as_str())));
        names.extend(source.secret_key_ref.iter().map(|reference| (Mentioned::Secret, reference.name.as_str())));
    }
    names
}

/// Files that a container's environment is made from.
fn env_files(spec: &ContainerSpec) -> BTreeSet<FilePlace> {
    let sources = spec.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()?.file_key_ref.as_ref());
    sources.map(|selector| (selector.volume_name.clone(), selector.path.clone())).collect()
}

/// The pod's image pull secrets. One that is missing does not stop the start: the image may
/// be present, or public.
async fn pull_secrets(round: &Round<'_>) -> Vec<Secret> {
    let pod = &round.wish.pod;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut found = Vec::new();
    let mut missing = Vec::new();
    // The API server takes references without a name, which mean nothing.
    let named = pod::spec(pod).image_pull_secrets.iter().flatten().filter(|reference| !reference.name.is_empty());
    for reference in named {
        match round.context.objects.secret(namespace, &reference.name).await {
            Ok(Some(secret)) => found.push(Secret::clone(&secret)),
            Ok(None) | Err(_) => missing.push(reference.name.as_str()),
        }
    }
    if !missing.is_empty() {
        let message = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            missing.join(", ")
        );
        round.pod_event(EventType::Warning, "FailedToRetrieveImagePullSecret", message);
    }
    found
}

/// The pod's hosts file, unless the container brings its own. It is written anew before each
/// start, because aliases and addresses may have changed.
async fn hosts_mount(round: &Round<'_>, spec: &ContainerSpec, ips: &[IpAddr]) -> Result<Option<Mount>, String> {
    const HOSTS: &str = "/etc/hosts";
    let pod = &round.wish.pod;
    let host_network = pod::spec(pod).host_network == Some(true);
    let own = spec.volume_mounts.iter().flatten().any(|mount| mount.mount_path.trim_end_matches('/') == HOSTS);
    if own || (ips.is_empty() && !host_network) {
        return Ok(None);
    }
    let context = round.context;
    let text = if host_network {
        let node = context.host.read_file(Path::new(HOSTS), HOSTS_BYTES_MAX).await.map_err(|error| chain(&error))?;
        hosts::hosts_file_of_host_network(pod, &String::from_utf8_lossy(&node.unwrap_or_default()))
    } else {
        let hostname =
            PodHostname::of(pod, &context.config.launch.cluster_dns.domain).map_err(|error| error.to_string())?;
        hosts::hosts_file(pod, &hostname, ips)
    };
    let path = round.pod_dir().join("etc-hosts");
    context
        .host
        .write_file(&path, text.as_bytes(), 0o644, Durability::UntilReboot)
        .await
        .map_err(|error| chain(&error))?;
    Ok(Some(Mount {
        container_path: HOSTS.to_owned(),
        host_path: path.to_string_lossy().into_owned(),
        selinux_relabel: true,
        ..Mount::default()
    }))
}

async fn termination_log(round: &Round<'_>, name: &str) -> Result<PathBuf, String> {
    let host = &round.context.host;
    let dir = round.pod_dir().join("containers").join(name);
    host.make_dir(&dir, 0o750).await.map_err(|error| chain(&error))?;
    let file = dir.join(format!("{:08x}", round.context.clock.with_random(|random| random.u32(..))));
    host.write_file(&file, b"", 0o666, Durability::UntilReboot).await.map_err(|error| chain(&error))?;
    Ok(file)
}

/// An instance nobody remembers still left its log: the count goes on from there.
async fn attempt_from_logs(round: &Round<'_>, name: &str) -> Result<u32, StartFailure> {
    let names = round.context.host.list_dir(&round.log_dir().join(name)).await.map_err(|error| {
        // Without them it would write into the log of its predecessor, and count from 0.
        warn!(error = chain(&error), container = name, "cannot look for earlier logs, will retry");
        round.container_event(name, EventType::Warning, "Failed", format!("Error: {error}"));
        StartFailure::new("CreateContainerError", error.to_string())
    })?;
    Ok(names.iter().filter_map(|file| attempt_of_log(file)).max().map_or(0, |newest| newest + 1))
}

/// The instance that a log, or a rotated part of one, is of.
fn attempt_of_log(file: &str) -> Option<u32> {
    file.split_once(".log")?.0.parse().ok()
}

/// Log collectors find a container's log by this link.
pub async fn link_log(
    context: &Context,
    pod: &PodRef,
    name: &str,
    id: &ContainerId,
    attempt: u32,
) -> Result<(), HostError> {
    let logs = context.config.pod_logs_dir.join(pod::log_directory_name(pod)).join(name);
    let link = context.config.container_logs_dir.join(link_name(&pod.name, &pod.namespace, name, id));
    context.host.symlink(&logs.join(format!("{attempt}.log")), &link).await
}

fn link_name(pod: &str, namespace: &str, name: &str, id: &ContainerId) -> String {
    let mut base = format!("{pod}_{namespace}_{name}-{id}");
    base.truncate(LINK_NAME_BYTES_MAX - ".log".len());
    base + ".log"
}

/// Removes a container's log with all its rotated parts, and its link.
pub async fn remove_logs(round: &Round<'_>, container: &Container) -> Result<(), HostError> {
    let context = round.context;
    let dir = round.log_dir().join(&container.name);
    let prefix = format!("{}.log", container.attempt);
    for file in context.host.list_dir(&dir).await? {
        if file.starts_with(&prefix) {
            context.host.remove_file(&dir.join(&file)).await?;
        }
    }
    context.host.remove_file(&context.config.container_logs_dir.join(link_to(container))).await
}

/// The name of the link to a container's log, from what the container itself carries: the pod may
/// be forgotten.
pub fn link_to(container: &Container) -> String {
    let label = |key| container.labels.get(key).map_or("", String::as_str);
    link_name(label(labels::POD_NAME), label(labels::POD_NAMESPACE), &container.name, &container.id)
}

/// Of a container whose log outlives it, removes the logs of those before it that are too many:
/// a log that stays counts as a dead instance. Links to them are found dangling later.
pub async fn remove_logs_before(round: &Round<'_>, container: &Container) -> Result<(), HostError> {
    let context = round.context;
    let Some(kept) = context.config.dead.per_container else { return Ok(()) };
    let oldest = (u64::from(container.attempt) + 1).saturating_sub(kept.max(1) as u64);
    let dir = round.log_dir().join(&container.name);
    for file in context.host.list_dir(&dir).await? {
        if attempt_of_log(&file).is_some_and(|attempt| u64::from(attempt) < oldest) {
            context.host.remove_file(&dir.join(&file)).await?;
        }
    }
    Ok(())
}
