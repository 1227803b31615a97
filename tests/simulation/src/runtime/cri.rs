//! The runtime behind the agent's trait: each call with its fate, and what it answers.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use ferrolet::cri::{
    Auth, CgroupDriver, Container, ContainerConfig, ContainerId, ContainerSummary, CriError, Executed, FilesystemUsage,
    Image, ImageService, ImageSpec, LinuxResources, Result, Runtime, RuntimeCondition, RuntimeEvent, RuntimeHandler,
    RuntimeStatus, RuntimeVersion, Sandbox, SandboxConfig, SandboxId, Scope, Streams, Uri,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::SimRuntime;

#[async_trait]
impl Runtime for SimRuntime {
    async fn version(&self) -> Result<RuntimeVersion> {
        Ok(RuntimeVersion { runtime_name: "sim".into(), runtime_version: "1".into() })
    }

    async fn status(&self) -> Result<RuntimeStatus> {
        let good = || RuntimeCondition { ok: true, ..RuntimeCondition::default() };
        self.call("Status", move |_| {
            Ok(RuntimeStatus {
                runtime_ready: good(),
                network_ready: good(),
                handlers: vec![RuntimeHandler {
                    name: String::new(),
                    recursive_read_only_mounts: true,
                    user_namespaces: true,
                }],
                ..RuntimeStatus::default()
            })
        })
        .await
    }

    async fn cgroup_driver(&self) -> Result<CgroupDriver> {
        Err(CriError::Unimplemented { call: "RuntimeConfig" })
    }

    async fn update_pod_cidr(&self, _cidr: &str) -> Result<()> {
        Ok(())
    }

    async fn list_sandboxes(&self, scope: &Scope) -> Result<Vec<Sandbox>> {
        let scope = scope.clone();
        self.call("ListPodSandbox", move |runtime| {
            let state = runtime.state();
            let listed = state.sandboxes.values().filter(|sandbox| Self::matches(&scope, &sandbox.pod_uid));
            Ok(listed.map(|sandbox| Sandbox { ips: Vec::new(), network_mode: None, ..sandbox.clone() }).collect())
        })
        .await
    }

    async fn sandbox_status(&self, id: &SandboxId) -> Result<Sandbox> {
        let id = id.clone();
        self.call("PodSandboxStatus", move |runtime| {
            let found = runtime.state().sandboxes.get(&id).cloned();
            found.ok_or_else(|| CriError::NotFound { call: "PodSandboxStatus", message: id.to_string() })
        })
        .await
    }

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<SandboxId> {
        let config = config.clone();
        self.call("RunPodSandbox", move |runtime| runtime.make_sandbox(&config)).await
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<()> {
        let id = id.clone();
        self.call("StopPodSandbox", move |runtime| runtime.end_sandbox(&id)).await
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<()> {
        let id = id.clone();
        self.call("RemovePodSandbox", move |runtime| runtime.drop_sandbox(&id)).await
    }

    async fn list_containers(&self, scope: &Scope) -> Result<Vec<ContainerSummary>> {
        let scope = scope.clone();
        self.call("ListContainers", move |runtime| {
            let state = runtime.state();
            let listed = state.containers.values().filter(|instance| Self::matches(&scope, &instance.pod_uid));
            Ok(listed
                .map(|instance| ContainerSummary {
                    id: instance.container.id.clone(),
                    sandbox_id: instance.container.sandbox_id.clone(),
                    name: instance.container.name.clone(),
                    pod_uid: instance.pod_uid.clone(),
                    pod_name: instance.pod_name.clone(),
                    pod_namespace: instance.pod_namespace.clone(),
                    attempt: instance.container.attempt,
                    state: instance.container.kind(),
                    created_at: instance.container.created_at,
                    image_id: instance.container.image_ref.clone(),
                })
                .collect())
        })
        .await
    }

    async fn container_status(&self, id: &ContainerId) -> Result<Container> {
        let id = id.clone();
        self.call("ContainerStatus", move |runtime| {
            let found = runtime.state().containers.get(&id).map(|instance| instance.container.clone());
            found.ok_or_else(|| CriError::NotFound { call: "ContainerStatus", message: id.to_string() })
        })
        .await
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: &ContainerConfig,
        _: &SandboxConfig,
    ) -> Result<ContainerId> {
        let (sandbox, config) = (sandbox.clone(), config.clone());
        let effect = move |runtime: &SimRuntime, fate, _| runtime.make_container(&sandbox, &config, fate);
        self.call_with_fate("CreateContainer", effect).await
    }

    async fn start_container(&self, id: &ContainerId) -> Result<()> {
        self.launch(id).await
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<()> {
        self.stop(id, grace).await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        let id = id.clone();
        let ran = self.is_running(&id);
        self.call("RemoveContainer", move |runtime| runtime.drop_container(&id, ran)).await
    }

    async fn update_container(&self, id: &ContainerId, resources: &LinuxResources) -> Result<()> {
        self.update(id, resources).await
    }

    async fn memory_usage(&self, id: &ContainerId) -> Result<Option<u64>> {
        self.usage(id).await
    }

    /// Nothing that a pod at rest would have to do without, and so no change.
    async fn reopen_container_log(&self, id: &ContainerId) -> Result<()> {
        let id = id.clone();
        self.call("ReopenContainerLog", move |runtime| {
            let state = runtime.state();
            let refused = |message: &str| CriError::Failed { call: "ReopenContainerLog", message: message.into() };
            let instance = state.containers.get(&id).ok_or_else(|| refused("no such container"))?;
            if !instance.container.is_running() {
                return Err(refused("container is not running"));
            }
            runtime.ground.open_log(id.as_str(), Path::new(&instance.container.log_path));
            Ok(())
        })
        .await
    }

    /// As most runtimes: what it takes is not installed.
    async fn checkpoint_container(&self, _: &ContainerId, _: &Path, _: Duration) -> Result<()> {
        Err(CriError::Unimplemented { call: "CheckpointContainer" })
    }

    async fn exec(&self, id: &ContainerId, command: &[String], timeout: Option<Duration>) -> Result<Executed> {
        self.execute(id, command, timeout).await
    }

    /// Nobody is connected with a process here.
    async fn exec_url(&self, _: &ContainerId, _: &[String], _: Streams) -> Result<Uri> {
        Err(CriError::Unimplemented { call: "Exec" })
    }

    async fn attach_url(&self, _: &ContainerId, _: Streams) -> Result<Uri> {
        Err(CriError::Unimplemented { call: "Attach" })
    }

    async fn port_forward_url(&self, _: &SandboxId, _: &[u16]) -> Result<Uri> {
        Err(CriError::Unimplemented { call: "PortForward" })
    }

    async fn events(&self) -> Result<BoxStream<'static, Result<RuntimeEvent>>> {
        let mut state = self.state();
        if !state.has_events {
            return Err(CriError::Unimplemented { call: "GetContainerEvents" });
        }
        if state.down_until.is_some() {
            return Err(CriError::Unavailable { call: "GetContainerEvents", message: "connection refused".into() });
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        state.listeners.push(sender);
        Ok(UnboundedReceiverStream::new(receiver).boxed())
    }
}

#[async_trait]
impl ImageService for SimRuntime {
    async fn image_status(&self, image: &ImageSpec) -> Result<Option<Image>> {
        let name = image.image.clone();
        self.call("ImageStatus", move |_| {
            Ok(Some(Image {
                id: format!("sha256:{name}"),
                repo_tags: vec![name],
                size_bytes: 1000,
                ..Image::default()
            }))
        })
        .await
    }

    async fn pull_image(&self, image: &ImageSpec, _: Option<&Auth>, _: Option<&SandboxConfig>) -> Result<String> {
        let name = image.image.clone();
        self.call("PullImage", move |_| Ok(format!("sha256:{name}"))).await
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        Ok(Vec::new())
    }

    async fn remove_image(&self, _image: &ImageSpec) -> Result<()> {
        Ok(())
    }

    async fn image_filesystem(&self) -> Result<Option<FilesystemUsage>> {
        Ok(None)
    }
}
