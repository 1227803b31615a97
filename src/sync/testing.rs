//! For tests: a worker's surroundings, with a runtime that answers as it is told and a scratch
//! directory as the machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::stream::BoxStream;
use jiff::tz::TimeZone;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::Instant;

use super::PinTurns;
use super::cgroups::Cgroups;
use super::execute::{Done, Round, StartFailure, execute};
use super::hooks::{BegunHooks, Hooks};
use super::launch::{LaunchConfig, tests};
use super::mirror::Mirrors;
use super::plan::{Action, BackoffLimits, Plan};
use super::report::{Progress, Reporter};
use super::retries::Step;
use super::user_namespaces::{IdPool, UserNamespaces};
use super::wish::Desired;
use super::worker::Stage;
use super::{Context, DeadContainers, DeadLimits, HostResolver, Roster, SyncConfig, Wakes, hooks};
use crate::admission::{Admission, AdmissionConfig};
use crate::clock::Clock;
use crate::config::PullCredentialsPolicy;
use crate::cri::{
    self, Auth, CgroupDriver, Container, ContainerConfig, ContainerId, ContainerSummary, CriError, Executed,
    FilesystemUsage, Image, ImageService, ImageSpec, LinuxResources, Result, Runtime, RuntimeEvent, RuntimeStatus,
    RuntimeVersion, Sandbox, SandboxConfig, SandboxId, SandboxState, Scope, Streams, Uri,
};
use crate::events::{Recorded, Recorder};
use crate::handlers::Caller;
use crate::host::{LinuxHost, Roots};
use crate::images::{AccessConfig, Images, ImagesConfig};
use crate::logs::{Logs, LogsConfig};
use crate::net::MachineNet;
use crate::objects::Objects;
use crate::objects::tokens::Tokens;
use crate::pleg::{Pleg, PodRuntime};
use crate::pod::dns::Resolver;
use crate::pod::testing::pod_yaml;
use crate::pod::{PodUid, Source};
use crate::probes::{Probes, Standings};
use crate::status::{Phase, Resize};
use crate::topology::Topology;
use crate::volumes::Volumes;

/// A runtime that has every image, and does what it is asked unless a test says otherwise.
#[derive(Default)]
pub struct FakeRuntime(Mutex<FakeState>);

#[derive(Default)]
struct FakeState {
    /// What the next call of a name says, once.
    refusals: BTreeMap<&'static str, String>,
    calls: Vec<String>,
    sandboxes: Vec<Sandbox>,
    containers: Vec<Container>,
    /// Where its streaming server waits, if it has one.
    streams_at: Option<Uri>,
}

impl FakeRuntime {
    /// From now on it has this sandbox.
    pub fn hold_sandbox(&self, sandbox: Sandbox) {
        self.state().sandboxes.push(sandbox);
    }

    /// From now on it has this container, in place of one of its ID.
    pub fn hold(&self, container: Container) {
        let mut state = self.state();
        state.containers.retain(|other| other.id != container.id);
        state.containers.push(container);
    }

    /// The next call of this name fails with these words.
    pub fn refuse(&self, call: &'static str, words: &str) {
        self.state().refusals.insert(call, words.to_owned());
    }

    /// From now on its streaming server waits there.
    pub fn stream_at(&self, url: Uri) {
        self.state().streams_at = Some(url);
    }

    /// All calls that change something, and what they were about.
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    fn called(&self, call: &'static str, about: &str) -> Result<()> {
        let mut state = self.state();
        state.calls.push(format!("{call} {about}"));
        match state.refusals.remove(call) {
            Some(message) => Err(CriError::Failed { call, message }),
            None => Ok(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, FakeState> {
        self.0.lock().expect("no holder of the fake's lock panics")
    }
}

fn unused<T>() -> T {
    unreachable!("no test of a worker's actions asks for this")
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<SandboxId> {
        let servers = config.dns.as_ref().map(|dns| dns.servers.join(" ")).unwrap_or_default();
        self.called("RunPodSandbox", &format!("asking [{servers}]")).map(|()| SandboxId::new("made"))
    }
    async fn stop_sandbox(&self, id: &SandboxId) -> Result<()> {
        self.called("StopPodSandbox", id.as_str())
    }
    async fn remove_sandbox(&self, id: &SandboxId) -> Result<()> {
        self.called("RemovePodSandbox", id.as_str())
    }
    async fn create_container(
        &self,
        _: &SandboxId,
        config: &ContainerConfig,
        _: &SandboxConfig,
    ) -> Result<ContainerId> {
        let target = config.security.namespaces.target_id.as_str();
        let beside = if target.is_empty() { String::new() } else { format!(" in the processes of {target}") };
        self.called("CreateContainer", &format!("{}{beside}", config.name))?;
        Ok(ContainerId::new(format!("id-of-{}", config.name)))
    }
    async fn start_container(&self, id: &ContainerId) -> Result<()> {
        self.called("StartContainer", id.as_str())
    }
    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<()> {
        self.called("StopContainer", &format!("{id} within {grace:?}"))
    }
    async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        self.called("RemoveContainer", id.as_str())
    }
    async fn list_sandboxes(&self, _: &Scope) -> Result<Vec<Sandbox>> {
        Ok(self.state().sandboxes.clone())
    }
    async fn list_containers(&self, _: &Scope) -> Result<Vec<ContainerSummary>> {
        if let Some(message) = self.state().refusals.remove("ListContainers") {
            return Err(CriError::Failed { call: "ListContainers", message });
        }
        Ok(self.state().containers.iter().map(cri::testing::summary).collect())
    }
    async fn container_status(&self, id: &ContainerId) -> Result<Container> {
        let found = self.state().containers.iter().find(|container| container.id == *id).cloned();
        Ok(found.expect("who asks for a container has seen it listed"))
    }
    async fn sandbox_status(&self, id: &SandboxId) -> Result<Sandbox> {
        if let Some(message) = self.state().refusals.remove("PodSandboxStatus") {
            return Err(CriError::Failed { call: "PodSandboxStatus", message });
        }
        let found = self.state().sandboxes.iter().find(|sandbox| sandbox.id == *id).cloned();
        Ok(found.expect("who asks for a sandbox has seen it listed"))
    }
    async fn status(&self) -> Result<RuntimeStatus> {
        Err(CriError::Unimplemented { call: "Status" })
    }
    async fn events(&self) -> Result<BoxStream<'static, Result<RuntimeEvent>>> {
        Err(CriError::Unimplemented { call: "GetContainerEvents" })
    }

    async fn version(&self) -> Result<RuntimeVersion> {
        unused()
    }
    async fn cgroup_driver(&self) -> Result<CgroupDriver> {
        unused()
    }
    async fn update_pod_cidr(&self, _: &str) -> Result<()> {
        unused()
    }
    async fn update_container(&self, _: &ContainerId, _: &LinuxResources) -> Result<()> {
        unused()
    }
    async fn memory_usage(&self, _: &ContainerId) -> Result<Option<u64>> {
        unused()
    }
    async fn reopen_container_log(&self, _: &ContainerId) -> Result<()> {
        unused()
    }
    async fn checkpoint_container(&self, id: &ContainerId, file: &Path, timeout: Duration) -> Result<()> {
        self.called("CheckpointContainer", &format!("{id} to {} within {timeout:?}", file.display()))
    }
    async fn exec(&self, _: &ContainerId, _: &[String], _: Option<Duration>) -> Result<Executed> {
        unused()
    }
    async fn exec_url(&self, id: &ContainerId, command: &[String], _: Streams) -> Result<Uri> {
        self.called("Exec", &format!("{} in {id}", command.join(" ")))?;
        self.state().streams_at.clone().ok_or(CriError::Unimplemented { call: "Exec" })
    }
    async fn attach_url(&self, id: &ContainerId, _: Streams) -> Result<Uri> {
        self.called("Attach", &id.to_string())?;
        self.state().streams_at.clone().ok_or(CriError::Unimplemented { call: "Attach" })
    }
    async fn port_forward_url(&self, _: &SandboxId, _: &[u16]) -> Result<Uri> {
        unused()
    }
}

#[async_trait]
impl ImageService for FakeRuntime {
    async fn image_status(&self, image: &ImageSpec) -> Result<Option<Image>> {
        self.called("ImageStatus", &image.user_specified_image)?;
        Ok(Some(Image { id: format!("id of {}", image.image), uid: Some(0), ..Image::default() }))
    }
    async fn pull_image(&self, _: &ImageSpec, _: Option<&Auth>, _: Option<&SandboxConfig>) -> Result<String> {
        unused()
    }
    async fn list_images(&self) -> Result<Vec<Image>> {
        unused()
    }
    async fn remove_image(&self, _: &ImageSpec) -> Result<()> {
        unused()
    }
    async fn image_filesystem(&self) -> Result<Option<FilesystemUsage>> {
        unused()
    }
}

/// One pod with all that its worker has.
pub struct Bed {
    pub context: Context,
    pub runtime: Arc<FakeRuntime>,
    pub events: Recorded,
    pub wish: Desired,
    /// What the runtime is believed to hold of the pod: a ready sandbox, at first.
    pub seen: PodRuntime,
    pub begun_hooks: BegunHooks,
    pub stopping_since: Option<Instant>,
    uid: PodUid,
    pub dir: TempDir,
}

impl Bed {
    /// A pod `shop/web-0` with this spec, on a node without an API server.
    pub fn new(spec: &str) -> Self {
        let pod = pod_yaml(&format!("{{metadata: {{name: web-0, namespace: shop, uid: u}}, spec: {spec}}}"));
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let runtime = Arc::<FakeRuntime>::default();
        let (recorder, events) = Recorder::for_tests();
        let mut seen = PodRuntime::default();
        seen.sandboxes.push(cri::testing::sandbox("s", 0, SandboxState::Ready));
        Bed {
            context: context(runtime.clone(), recorder, &dir),
            runtime,
            events,
            // Its services are not waited for.
            wish: Desired { pod: Arc::new(pod), source: Source::File, stop: None, doom: None, places: Arc::default() },
            seen,
            begun_hooks: BegunHooks::default(),
            stopping_since: None,
            uid: PodUid::new("u"),
            dir,
        }
    }

    /// Carries one action out.
    pub async fn carry_out(&self, action: Action) -> std::result::Result<(), StartFailure> {
        let expected = Step::of(&action);
        let Done { step, result } = execute(&self.round(), &[action]).await.remove(0);
        assert_eq!(step, expected, "what is tried again is what has failed");
        result
    }

    /// Carries out what one plan asks for.
    pub async fn carry_out_all(&self, actions: &[Action]) -> Vec<Done> {
        execute(&self.round(), actions).await
    }

    pub fn begin_late_post_starts(&self) -> Vec<String> {
        hooks::begin_late_post_starts(&self.round())
    }

    fn round(&self) -> Round<'_> {
        Round {
            context: &self.context,
            uid: &self.uid,
            wish: &self.wish,
            runtime: &self.seen,
            begun_hooks: &self.begun_hooks,
            stopping_since: self.stopping_since,
        }
    }

    /// Has the pod told of as it was seen by a worker in this stage.
    pub fn publish(&self, reporter: &mut Reporter, stage: Stage, plan: &Plan) -> Phase {
        let (failures, standings, resize) = (BTreeMap::new(), Standings::new(), Resize::default());
        let (failures, standings, resize) = (&failures, &standings, &resize);
        let progress = Progress { stage, failures, verdict: None, standings, resize, cgroup: None };
        reporter.publish(&self.context, &self.wish, &self.seen, plan, &progress)
    }

    /// Reasons and messages of all events so far.
    pub fn told(&self) -> Vec<String> {
        self.events.list().into_iter().map(|event| format!("{}: {}", event.reason, event.message)).collect()
    }
}

fn context(runtime: Arc<FakeRuntime>, recorder: Recorder, dir: &TempDir) -> Context {
    let clock = Clock::system();
    let root_dir = dir.path().join("root");
    let roots = Roots { cgroup: dir.path().join("cgroup"), ..Roots::machine(root_dir.clone()) };
    let host = Arc::new(LinuxHost::new(roots, Duration::from_secs(10), clock.clone()));
    let launch = LaunchConfig { pod_logs_dir: dir.path().join("pods"), ..tests::config() };
    let config = SyncConfig {
        root_dir: root_dir.clone(),
        pod_logs_dir: launch.pod_logs_dir.clone(),
        container_logs_dir: dir.path().join("containers"),
        runtime_name: "fake".into(),
        backoff: BackoffLimits { initial: Duration::ZERO, max: Duration::ZERO, reset_after: Duration::ZERO },
        dead: DeadLimits::default(),
        launch,
        admission: AdmissionConfig::default(),
        resolver: HostResolver::Fixed(Resolver::default()),
        ids: IdPool::above_the_nodes(65_536),
    };
    let images = ImagesConfig {
        serialize_image_pulls: true,
        max_parallel_image_pulls: None,
        registry_pull_qps: 0,
        registry_burst: 0,
        node_status_max_images: 50,
        credential_files: Vec::new(),
        providers: Vec::new(),
        access: AccessConfig {
            dir: root_dir.join("image_manager"),
            policy: PullCredentialsPolicy::NeverVerify,
            allowlist: Vec::new(),
        },
    };
    let logs = LogsConfig {
        max_bytes: None,
        max_files: 2,
        workers: 1,
        monitor_interval: Duration::from_secs(10),
        time_zone: TimeZone::UTC,
    };
    let shared: Arc<dyn Runtime> = runtime.clone();
    let caller = Caller::new(Arc::new(shared), Arc::new(MachineNet::new()));
    let objects = Objects::new(None, Arc::new(|_| {}));
    let tokens = Tokens::new(None, clock.clone());
    Context {
        pleg: Pleg::new(runtime.clone(), host.clone(), Arc::new(|_| {})),
        wakes: Wakes::default(),
        volumes: Volumes::new(host.clone(), objects.clone(), tokens, Arc::new(BTreeMap::new), root_dir.clone()),
        images: Images::new(runtime.clone(), host.clone(), None, clock.clone(), recorder.clone(), images),
        logs: Logs::new(host.clone(), clock.clone(), Arc::new(|_| async { Ok(()) }.boxed()), logs),
        user_namespaces: UserNamespaces::new(
            host.clone(),
            Box::new(|_| async { Ok(None) }.boxed()),
            root_dir,
            config.ids,
        ),
        dead: DeadContainers::new(config.dead.clone()),
        objects,
        probes: Probes::new(caller.clone(), clock.clone(), recorder.clone(), "v1.36.0", |_| {}),
        hooks: Hooks { caller, user_agent: "kube-lifecycle/1.36".into() },
        recorder,
        status: None,
        admission: Admission::new(Topology::none()),
        cluster: None,
        cgroups: Cgroups::new(host.clone(), config.launch.cgroups.clone()),
        topology: Topology::none(),
        pin_turns: PinTurns::default(),
        mirrors: Mirrors::default(),
        roster: Roster::default(),
        node: watch::channel(None).1,
        turned: Box::new(|| {}),
        config,
        clock,
        runtime,
        host,
    }
}
