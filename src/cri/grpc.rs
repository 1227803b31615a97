//! The runtime behind a unix socket.
//!
//! One HTTP/2 connection per socket, opened with the first call and again after it broke; a
//! call made while nobody listens fails at once as `Unavailable`, and the next one tries anew.
//! Dropping a call's future resets its stream, which cancels the work in the runtime.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use tokio::sync::RwLock;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status, Streaming};

use super::wire::image_service_client::ImageServiceClient;
use super::wire::runtime_service_client::RuntimeServiceClient;
use super::{
    Auth, CgroupDriver, Container, ContainerConfig, ContainerId, ContainerSummary, CriError, Executed, FilesystemUsage,
    Image, ImageService, ImageSpec, LinuxResources, Result, Runtime, RuntimeEvent, RuntimeStatus, RuntimeVersion,
    Sandbox, SandboxConfig, SandboxId, Scope, Streams, Uri, answers, requests, wire,
};
use crate::metrics;

/// Flow-control windows of one stream and of the whole connection. Nothing of this size is
/// set aside; it bounds what may lie unread when a reader falls behind. The event stream's
/// share of the connection stays a quarter, so that calls go on while nobody reads events.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;

/// A runtime's error text travels in the trailers and may hold a CNI or OCI runtime's whole
/// output. Past this limit the text would be lost and the call fail for another reason.
const HEADERS_BYTES_MAX: u32 = 1 << 20;

/// Lists carry the annotations of every pod, up to 256 KiB each. The 16 MiB that is usual
/// elsewhere is reached by 64 such pods, and then the node could see none of its pods.
const MESSAGE_BYTES_MAX: usize = 128 << 20;

/// How long an event stream may take to be refused. A server sends its response headers
/// only with the first event, so that silence for this long counts as acceptance.
const EVENTS_REFUSAL: Duration = Duration::from_millis(500);

/// How much later than its time limit a command may be told to have been stopped: the limit
/// counts from when it runs, and on a busy machine that may take seconds.
const EXEC_OVERRUN: Duration = Duration::from_secs(15);
/// How soon a runtime that is well tells its version.
const AT_ONCE: Duration = Duration::from_secs(1);

/// An endpoint that cannot be a unix socket.
#[derive(Debug, thiserror::Error)]
#[error("unusable runtime endpoint {endpoint:?}: expected unix:///path or an absolute path")]
pub struct EndpointError {
    endpoint: String,
}

/// A CRI runtime, and the image service beside it.
pub struct GrpcRuntime {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    request_timeout: Duration,
    /// Shared by calls that make something: of one that is cut off the runtime may keep what nobody can
    /// remove any more.
    making: RwLock<()>,
}

impl GrpcRuntime {
    /// Names the sockets without opening them. An empty `image_endpoint` means the same socket.
    /// To be called on a tokio runtime, where the connections will live.
    pub fn connect(
        runtime_endpoint: &str,
        image_endpoint: &str,
        request_timeout: Duration,
    ) -> std::result::Result<Self, EndpointError> {
        let runtime = channel(runtime_endpoint)?;
        let images = match image_endpoint {
            "" => runtime.clone(),
            endpoint if endpoint == runtime_endpoint => runtime.clone(),
            endpoint => channel(endpoint)?,
        };
        Ok(GrpcRuntime {
            runtime: RuntimeServiceClient::new(runtime).max_decoding_message_size(MESSAGE_BYTES_MAX),
            images: ImageServiceClient::new(images).max_decoding_message_size(MESSAGE_BYTES_MAX),
            request_timeout,
            making: RwLock::default(),
        })
    }

    /// Returns once the runtime has made what it is making, sandboxes and containers, and until the answer
    /// is dropped it is asked for no more. To be bounded by the caller.
    pub async fn make_no_more(&self) -> impl Sized + '_ {
        self.making.write().await
    }

    /// A client of its own for one call. Clones share the connection.
    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        self.runtime.clone()
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        self.images.clone()
    }

    /// Returns after this time if the runtime answers at once then. Of one that does not, silence
    /// says nothing.
    async fn well_after(&self, time: Duration) {
        tokio::time::sleep(time).await;
        if !matches!(tokio::time::timeout(AT_ONCE, self.version()).await, Ok(Ok(_))) {
            std::future::pending().await
        }
    }

    /// Waits for an answer as long as the configuration allows.
    async fn within_timeout<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = std::result::Result<Response<T>, Status>>,
    ) -> Result<T> {
        within(call, self.request_timeout, answer).await
    }

    async fn execute(&self, id: &ContainerId, command: &[String], timeout: Option<Duration>) -> Result<Executed> {
        const CALL: &str = "ExecSync";
        let request = wire::ExecSyncRequest {
            container_id: id.as_str().to_owned(),
            cmd: command.to_vec(),
            timeout: timeout.map_or(0, |timeout| i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX)),
        };
        let mut runtime = self.runtime();
        let answer = runtime.exec_sync(request);
        let (answer, deadline) = match timeout {
            Some(timeout) => {
                let deadline = timeout.saturating_add(self.request_timeout);
                let late = CriError::Timeout { call: CALL, after: deadline };
                // Cancel-safe, both: whichever is dropped is a call given up.
                tokio::select! {
                    biased;
                    answer = tokio::time::timeout(deadline, answer) => (answer.map_err(|_| late)?, deadline),
                    // Processes that the command left behind hold its output open.
                    () = self.well_after(timeout.saturating_add(EXEC_OVERRUN)) => return Ok(Executed::TimedOut),
                }
            }
            None => (answer.await, Duration::ZERO),
        };
        match answer {
            Ok(answer) => Ok(answers::executed(answer.into_inner())),
            // The runtime's own word: it has stopped the command.
            Err(status) if status.code() == Code::DeadlineExceeded && timeout.is_some() => Ok(Executed::TimedOut),
            Err(status) => Err(error(CALL, deadline, status)),
        }
    }
}

fn channel(endpoint: &str) -> std::result::Result<Channel, EndpointError> {
    let refused = || EndpointError { endpoint: endpoint.to_owned() };
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if !path.starts_with('/') {
        return Err(refused());
    }
    Ok(Endpoint::from_shared(format!("unix://{path}"))
        .map_err(|_| refused())?
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
        .connect_lazy())
}

async fn within<T>(
    call: &'static str,
    deadline: Duration,
    answer: impl Future<Output = std::result::Result<Response<T>, Status>>,
) -> Result<T> {
    counted(call, async {
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(error(call, deadline, status)),
            Err(_) => Err(CriError::Timeout { call, after: deadline }),
        }
    })
    .await
}

/// A call that is given up before it ends is not counted: nobody knows what became of it.
async fn counted<T>(call: &'static str, answer: impl Future<Output = Result<T>>) -> Result<T> {
    let began = Instant::now();
    let answer = answer.await;
    metrics::runtime::called(call, began.elapsed(), answer.is_ok());
    answer
}

/// Tells errors apart by what a caller does about them.
fn error(call: &'static str, deadline: Duration, status: Status) -> CriError {
    let message = || status.message().to_owned();
    match status.code() {
        Code::NotFound => CriError::NotFound { call, message: message() },
        Code::AlreadyExists => CriError::AlreadyExists { call, message: message() },
        Code::Unimplemented => CriError::Unimplemented { call },
        Code::DeadlineExceeded => CriError::Timeout { call, after: deadline },
        Code::ResourceExhausted => CriError::Exhausted { call, message: message() },
        Code::Unavailable => CriError::Unavailable { call, message: root_cause(&status) },
        // Only a status made on our side has a source: the connection broke under the call.
        _ if status.source().is_some() => CriError::Unavailable { call, message: root_cause(&status) },
        // Neither containerd nor CRI-O has a code for this; both keep the name of a creation
        // that was given up or still runs reserved, and say so in these words.
        _ if status.message().contains("is reserved") => CriError::AlreadyExists { call, message: message() },
        _ => CriError::Failed { call, message: message() },
    }
}

/// The text of the innermost error: `transport error` says nothing, `No such file or directory` does.
fn root_cause(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = status.source();
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    text
}

#[async_trait]
impl Runtime for GrpcRuntime {
    async fn version(&self) -> Result<RuntimeVersion> {
        let request = wire::VersionRequest { version: "v1".into() };
        let answer = self.within_timeout("Version", self.runtime().version(request)).await?;
        Ok(answers::version(answer))
    }

    async fn status(&self) -> Result<RuntimeStatus> {
        let request = wire::StatusRequest { verbose: false };
        let answer = self.within_timeout("Status", self.runtime().status(request)).await?;
        Ok(answers::runtime_status(answer))
    }

    async fn cgroup_driver(&self) -> Result<CgroupDriver> {
        let request = wire::RuntimeConfigRequest {};
        let answer = self.within_timeout("RuntimeConfig", self.runtime().runtime_config(request)).await?;
        answers::cgroup_driver(answer)
    }

    async fn shown_cgroup_driver(&self) -> Result<Option<CgroupDriver>> {
        let request = wire::StatusRequest { verbose: true };
        let answer = self.within_timeout("Status", self.runtime().status(request)).await?;
        Ok(answers::shown_cgroup_driver(&answer))
    }

    async fn update_pod_cidr(&self, cidr: &str) -> Result<()> {
        let network_config = wire::NetworkConfig { pod_cidr: cidr.to_owned() };
        let runtime_config = wire::RuntimeConfig { network_config: Some(network_config) };
        let request = wire::UpdateRuntimeConfigRequest { runtime_config: Some(runtime_config) };
        self.within_timeout("UpdateRuntimeConfig", self.runtime().update_runtime_config(request)).await?;
        Ok(())
    }

    async fn list_sandboxes(&self, scope: &Scope) -> Result<Vec<Sandbox>> {
        let request = wire::ListPodSandboxRequest { filter: requests::sandbox_filter(scope) };
        let answer = self.within_timeout("ListPodSandbox", self.runtime().list_pod_sandbox(request)).await?;
        Ok(answer.items.into_iter().filter_map(answers::listed_sandbox).collect())
    }

    async fn sandbox_status(&self, id: &SandboxId) -> Result<Sandbox> {
        let request = wire::PodSandboxStatusRequest { pod_sandbox_id: id.as_str().to_owned(), verbose: false };
        let answer = self.within_timeout("PodSandboxStatus", self.runtime().pod_sandbox_status(request)).await?;
        answers::sandbox_status(answer)
    }

    /// Allowed twice the usual time: CNI plugins have servers of their own to wait for, and a
    /// sandbox given up half-way blocks its name.
    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<SandboxId> {
        let request = wire::RunPodSandboxRequest {
            config: Some(requests::sandbox_config(config)),
            runtime_handler: config.runtime_handler.clone(),
        };
        let _making = self.making.read().await;
        let answer = within("RunPodSandbox", 2 * self.request_timeout, self.runtime().run_pod_sandbox(request)).await?;
        Ok(SandboxId::new(answer.pod_sandbox_id))
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<()> {
        let request = wire::StopPodSandboxRequest { pod_sandbox_id: id.as_str().to_owned() };
        self.within_timeout("StopPodSandbox", self.runtime().stop_pod_sandbox(request)).await?;
        Ok(())
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<()> {
        let request = wire::RemovePodSandboxRequest { pod_sandbox_id: id.as_str().to_owned() };
        self.within_timeout("RemovePodSandbox", self.runtime().remove_pod_sandbox(request)).await?;
        Ok(())
    }

    async fn list_containers(&self, scope: &Scope) -> Result<Vec<ContainerSummary>> {
        let request = wire::ListContainersRequest { filter: requests::container_filter(scope) };
        let answer = self.within_timeout("ListContainers", self.runtime().list_containers(request)).await?;
        Ok(answer.containers.into_iter().filter_map(answers::listed_container).collect())
    }

    async fn container_status(&self, id: &ContainerId) -> Result<Container> {
        let request = wire::ContainerStatusRequest { container_id: id.as_str().to_owned(), verbose: false };
        let answer = self.within_timeout("ContainerStatus", self.runtime().container_status(request)).await?;
        answers::container_status(answer)
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: &ContainerConfig,
        sandbox_config: &SandboxConfig,
    ) -> Result<ContainerId> {
        let request = wire::CreateContainerRequest {
            pod_sandbox_id: sandbox.as_str().to_owned(),
            config: Some(requests::container_config(config)),
            sandbox_config: Some(requests::sandbox_config(sandbox_config)),
        };
        let _making = self.making.read().await;
        let answer = self.within_timeout("CreateContainer", self.runtime().create_container(request)).await?;
        Ok(ContainerId::new(answer.container_id))
    }

    async fn start_container(&self, id: &ContainerId) -> Result<()> {
        let request = wire::StartContainerRequest { container_id: id.as_str().to_owned() };
        let _making = self.making.read().await;
        self.within_timeout("StartContainer", self.runtime().start_container(request)).await?;
        Ok(())
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<()> {
        let request = wire::StopContainerRequest {
            container_id: id.as_str().to_owned(),
            // The wire knows whole seconds; a part of one is rounded in the pod's favour.
            timeout: i64::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i64::MAX),
        };
        let deadline = grace.saturating_add(self.request_timeout);
        within("StopContainer", deadline, self.runtime().stop_container(request)).await?;
        Ok(())
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        let request = wire::RemoveContainerRequest { container_id: id.as_str().to_owned() };
        self.within_timeout("RemoveContainer", self.runtime().remove_container(request)).await?;
        Ok(())
    }

    async fn update_container(&self, id: &ContainerId, resources: &LinuxResources) -> Result<()> {
        let request = wire::UpdateContainerResourcesRequest {
            container_id: id.as_str().to_owned(),
            linux: Some(requests::linux_resources(resources)),
            annotations: Default::default(),
        };
        self.within_timeout("UpdateContainerResources", self.runtime().update_container_resources(request)).await?;
        Ok(())
    }

    async fn memory_usage(&self, id: &ContainerId) -> Result<Option<u64>> {
        let request = wire::ContainerStatsRequest { container_id: id.as_str().to_owned() };
        let answer = self.within_timeout("ContainerStats", self.runtime().container_stats(request)).await?;
        Ok(answers::memory_usage(answer))
    }

    async fn written_layers(&self) -> Result<Vec<(ContainerId, FilesystemUsage)>> {
        let request = wire::ListContainerStatsRequest { filter: None };
        let answer = self.within_timeout("ListContainerStats", self.runtime().list_container_stats(request)).await?;
        Ok(answer.stats.into_iter().filter_map(answers::written_layer).collect())
    }

    async fn sandbox_image(&self, id: &SandboxId) -> Result<Option<String>> {
        let request = wire::PodSandboxStatusRequest { pod_sandbox_id: id.as_str().to_owned(), verbose: true };
        let answer = self.within_timeout("PodSandboxStatus", self.runtime().pod_sandbox_status(request)).await?;
        Ok(answers::sandbox_image(&answer))
    }

    async fn reopen_container_log(&self, id: &ContainerId) -> Result<()> {
        let request = wire::ReopenContainerLogRequest { container_id: id.as_str().to_owned() };
        self.within_timeout("ReopenContainerLog", self.runtime().reopen_container_log(request)).await?;
        Ok(())
    }

    async fn checkpoint_container(&self, id: &ContainerId, file: &Path, timeout: Duration) -> Result<()> {
        let timeout = timeout.max(self.request_timeout);
        let request = wire::CheckpointContainerRequest {
            container_id: id.as_str().to_owned(),
            location: file.to_string_lossy().into_owned(),
            timeout: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        };
        within("CheckpointContainer", timeout, self.runtime().checkpoint_container(request)).await?;
        Ok(())
    }

    async fn exec(&self, id: &ContainerId, command: &[String], timeout: Option<Duration>) -> Result<Executed> {
        counted("ExecSync", self.execute(id, command, timeout)).await
    }

    async fn exec_url(&self, id: &ContainerId, command: &[String], streams: Streams) -> Result<Uri> {
        let request = requests::exec(id, command, streams);
        let answer = self.within_timeout("Exec", self.runtime().exec(request)).await?;
        answers::stream_url("Exec", &answer.url)
    }

    async fn attach_url(&self, id: &ContainerId, streams: Streams) -> Result<Uri> {
        let request = requests::attach(id, streams);
        let answer = self.within_timeout("Attach", self.runtime().attach(request)).await?;
        answers::stream_url("Attach", &answer.url)
    }

    async fn port_forward_url(&self, id: &SandboxId, ports: &[u16]) -> Result<Uri> {
        let port = ports.iter().copied().map(i32::from).collect();
        let request = wire::PortForwardRequest { pod_sandbox_id: id.as_str().to_owned(), port };
        let answer = self.within_timeout("PortForward", self.runtime().port_forward(request)).await?;
        answers::stream_url("PortForward", &answer.url)
    }

    /// The first event ends the wait for a refusal, so that waiting costs no event any time. The
    /// opening counts as a call, however late it ends.
    async fn events(&self) -> Result<BoxStream<'static, Result<RuntimeEvent>>> {
        let mut runtime = self.runtime();
        let opening = async move {
            let opened = runtime.get_container_events(wire::GetEventsRequest {}).await;
            opened.map(events_of).map_err(events_error)
        };
        let mut opening = counted("GetContainerEvents", opening).boxed();
        match tokio::time::timeout(EVENTS_REFUSAL, &mut opening).await {
            Ok(opened) => opened,
            Err(_) => Ok(opening
                .map(|opened| opened.unwrap_or_else(|error| stream::once(async { Err(error) }).boxed()))
                .flatten_stream()
                .boxed()),
        }
    }
}

#[async_trait]
impl ImageService for GrpcRuntime {
    async fn image_status(&self, image: &ImageSpec) -> Result<Option<Image>> {
        let request = wire::ImageStatusRequest { image: Some(requests::image_spec(image)), verbose: false };
        let answer = self.within_timeout("ImageStatus", self.images().image_status(request)).await?;
        Ok(answer.image.map(answers::image))
    }

    async fn pull_image(
        &self,
        image: &ImageSpec,
        auth: Option<&Auth>,
        sandbox: Option<&SandboxConfig>,
    ) -> Result<String> {
        let request = wire::PullImageRequest {
            image: Some(requests::image_spec(image)),
            auth: auth.map(requests::auth),
            sandbox_config: sandbox.map(requests::sandbox_config),
        };
        let mut images = self.images();
        let pull = async {
            // Without a deadline of our own there is no figure to give for the runtime's.
            images.pull_image(request).await.map_err(|status| error("PullImage", Duration::ZERO, status))
        };
        Ok(counted("PullImage", pull).await?.into_inner().image_ref)
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        let request = wire::ListImagesRequest { filter: None };
        let answer = self.within_timeout("ListImages", self.images().list_images(request)).await?;
        Ok(answer.images.into_iter().map(answers::image).collect())
    }

    async fn remove_image(&self, image: &ImageSpec) -> Result<()> {
        let request = wire::RemoveImageRequest { image: Some(requests::image_spec(image)) };
        self.within_timeout("RemoveImage", self.images().remove_image(request)).await?;
        Ok(())
    }

    async fn image_filesystem(&self) -> Result<Option<FilesystemUsage>> {
        let request = wire::ImageFsInfoRequest {};
        let answer = self.within_timeout("ImageFsInfo", self.images().image_fs_info(request)).await?;
        Ok(answers::image_filesystem(answer))
    }
}

/// Ends with the first error: tonic would repeat that of a broken connection for ever.
fn events_of(response: Response<Streaming<wire::ContainerEventResponse>>) -> BoxStream<'static, Result<RuntimeEvent>> {
    stream::unfold(Some(response.into_inner()), async |open| {
        let mut events = open?;
        match events.message().await {
            Ok(Some(event)) => Some((Ok(answers::event(event)), Some(events))),
            Ok(None) => None,
            Err(status) => Some((Err(events_error(status)), None)),
        }
    })
    .boxed()
}

fn events_error(status: Status) -> CriError {
    error("GetContainerEvents", Duration::ZERO, status)
}
