//! The composition root: builds every part, in order, and starts the tasks.
//!
//! [`run`] makes the five real edges from the settings; [`assemble`] puts the house together
//! on whatever edges it is given, which is how the simulation runs the whole agent.
//!
//! Parts are handed what they need here and do not reach for one another. Stopping the agent
//! is dropping the future: tasks end at their next await, pods go on. A task that panics ends
//! the agent with it (`tasks.rs`).

mod cgroups;
mod machine;
mod places;
mod settings;
mod tasks;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{info, warn};

use self::tasks::Tasks;
use crate::admission::Admission;
use crate::causes::chain;
use crate::clock::Clock;
use crate::config::Settings;
use crate::cri::{CriError, GrpcRuntime, Runtime};
use crate::events::{self, EventType, Recorder};
use crate::handlers::Caller;
use crate::host::{DirLock, Host, LinuxHost, Roots};
use crate::identity::{ClientIdentity, ClusterAccess, IdentityConfig};
use crate::images::{Images, ImagesConfig};
use crate::kube::limit::Rate;
use crate::kube::{Cluster, KubeCluster, LoadError, Reviews};
use crate::logs::read::LogReads;
use crate::logs::{Disk, Logs, LogsConfig};
use crate::net::{MachineNet, Net};
use crate::node::{MachineSurvey, NodeConfig, NodeHandle, NodeParts};
use crate::objects::Objects;
use crate::objects::tokens::Tokens;
use crate::pleg::{self, Pleg, PlegConfig};
use crate::pod::Source;
use crate::probes::{self, Probes};
use crate::server::{self, About, Doors, Exhibits, Health, Progress, Verbosity};
use crate::service_manager::{Given, ServiceManager};
use crate::sources::static_dir::{self, StaticDir};
use crate::sources::static_url::{self, StaticUrl};
use crate::sources::{self, SourceEvent};
use crate::stats::{Stats, StatsConfig};
use crate::status::StatusWriter;
use crate::sync::cgroups::{Cgroups, SetupError};
use crate::sync::mirror::{self, Mirrors};
use crate::sync::user_namespaces::{self, UserNamespaces};
use crate::sync::{Context, DeadContainers, Dispatcher, Hooks, PinTurns, Roster, SyncConfig, Wakes};
use crate::topology::{self, TopologyConfig};
use crate::volumes::Volumes;

pub use self::tasks::Panicked;

/// Why the agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error(transparent)]
    Panicked(#[from] Panicked),
    #[error(transparent)]
    Cgroups(#[from] SetupError),
}

/// Source events that may wait for the dispatcher, which never waits for anyone.
const SOURCE_QUEUE_LENGTH: usize = 256;
/// Between attempts to reach a runtime that is not there yet.
const RUNTIME_RETRY: Duration = Duration::from_millis(250);
/// How long one operation on the machine may take.
const HOST_DEADLINE: Duration = Duration::from_secs(60);
/// What the runtime is making when the agent is told to stop may take so long: seconds where it does,
/// and a runtime that hangs keeps nobody from stopping the agent.
const LAST_CALLS_WITHIN: Duration = Duration::from_secs(15);
/// The dispatcher turns at least every sweep; silent for so long, it is stuck.
const DISPATCHER_STUCK_AFTER: Duration = Duration::from_secs(600);

/// The outside of the agent.
#[derive(Clone)]
pub struct Edges {
    pub runtime: Arc<dyn Runtime>,
    /// Absent in standalone mode.
    pub cluster: Option<Arc<dyn Cluster>>,
    pub host: Arc<dyn Host>,
    pub net: Arc<dyn Net>,
    pub clock: Clock,
}

/// What each part is told, its own piece each.
#[derive(Clone)]
pub struct AgentConfig {
    pub node: NodeConfig,
    /// The cgroup driver and the runtime's name in it are replaced by what the runtime says.
    pub sync: SyncConfig,
    pub images: ImagesConfig,
    pub logs: LogsConfig,
    pub stats: StatsConfig,
    pub topology: TopologyConfig,
    pub event_rate: Option<Rate>,
    /// What is wrong with the node's own resolver file for the pods that start from it.
    pub resolver_problem: Option<String>,
    pub pleg: PlegConfig,
    pub healthz: Option<SocketAddr>,
    pub service_manager: ServiceManager,
}

/// A place where static pods come from.
pub enum StaticPods {
    Directory(StaticDir),
    Url(StaticUrl),
    /// Events made elsewhere.
    Events(mpsc::Receiver<SourceEvent>),
}

/// Runs the agent on this machine until it is dropped, or cannot go on.
pub async fn run(settings: Settings, verbosity: Verbosity) -> anyhow::Result<()> {
    let clock = Clock::system();
    let root_dir = settings.flags.root_dir.clone();
    let service_manager = ServiceManager::of(Given::from_environment()).unwrap_or_else(|error| {
        // It does without our word, or ends us: nothing is gained by ending ourselves.
        warn!(error = chain(&error), "cannot talk to the service manager");
        ServiceManager::default()
    });
    let host = Arc::new(LinuxHost::new(Roots::machine(root_dir.clone()), HOST_DEADLINE, clock.clone()));
    let facts = host.facts().await.context("cannot read this machine")?;
    let node = NodeConfig::of(&settings, &facts.hostname);
    machine::check(&settings, &node, &facts)?;
    settings::adjust_process(&settings);
    host.make_dir(&root_dir, 0o750).await.context("cannot make the root directory")?;
    // Two agents would start every container twice.
    let _alone = DirLock::take(&root_dir)
        .with_context(|| format!("another agent uses {}, or it cannot be locked", root_dir.display()))?;

    let kubelet = &settings.kubelet;
    machine::prepare(kubelet, &host).await?;
    let runtime = GrpcRuntime::connect(
        &kubelet.container_runtime_endpoint,
        &kubelet.image_service_endpoint,
        kubelet.runtime_request_timeout,
    )
    .context("containerRuntimeEndpoint")?;
    let (mut identity, mut lost_identity) = Tasks::new();
    let mut signed = None;
    let cluster: Option<Arc<dyn Cluster>> = match settings::identity(&settings, &node) {
        Some(config) => {
            let rate = settings::rate(kubelet.kube_api_qps, kubelet.kube_api_burst);
            let cluster = connect(config, rate, &host, &clock, &mut identity).await;
            let cluster = cluster.context("cannot use the API server's address and credentials")?;
            if let Some((serving, key)) = settings::serving(&settings, &node, &cluster, &host, &clock) {
                identity.spawn("serving-certificate", serving.run(cluster.watch_node()));
                signed = Some(key);
            }
            Some(cluster)
        }
        None => None,
    };
    info!(
        node = node.name,
        version = settings.flags.version,
        standalone = cluster.is_none(),
        runtime = kubelet.container_runtime_endpoint,
        cgroups = ?facts.cgroup_version,
        "starting"
    );

    // Bound early, served once the house stands: a port that is taken ends the agent before it
    // has touched anything.
    let server = settings::server_config(&settings, &node, signed, verbosity);
    let doors = Doors::open(server, host.clone(), clock.clone()).await.context("cannot open the node's own API")?;
    let static_pods = settings::static_pods(&settings, &node);
    let mut config = settings::agent_config(&settings, node, &facts, host.as_ref()).await?;
    config.service_manager = service_manager.clone();
    for logs in [&config.sync.pod_logs_dir, &config.sync.container_logs_dir] {
        host.make_dir(logs, 0o755).await.context("cannot make a directory for logs")?;
    }
    let runtime = Arc::new(runtime);
    let edges = Edges { runtime: runtime.clone(), cluster, host, net: Arc::new(MachineNet::new()), clock };
    let mut house = pin!(assemble(edges, config, static_pods, Some(doors)));
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen to SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen to SIGINT")?;
    tokio::select! {
        biased;
        // Cancel-safe: a signal that came is kept until asked for.
        _ = terminate.recv() => info!("SIGTERM: the agent stops, its pods go on"),
        _ = interrupt.recv() => info!("SIGINT: the agent stops, its pods go on"),
        // Cancel-safe: the agent may be dropped at any await, as kill -9 would.
        ended = &mut house => return Err(ended.into()),
        // Cancel-safe: it only waits.
        panicked = lost_identity.wait() => return Err(panicked.into()),
    }
    service_manager.stopping();
    // Whoever stops the agent to empty the machine, as kubeadm's reset does, could not remove what the
    // runtime had half made by then.
    tokio::select! {
        biased;
        // Cancel-safe: it only waits.
        _ = timeout(LAST_CALLS_WITHIN, runtime.make_no_more()) => Ok(()),
        // Cancel-safe: as above.
        ended = house => Err(ended.into()),
    }
}

/// The API server with the node's credentials, which a task keeps valid where the operator wants
/// that. There may be none yet: pods need not wait for them.
async fn connect(
    config: IdentityConfig,
    rate: Option<Rate>,
    host: &Arc<LinuxHost>,
    clock: &Clock,
    tasks: &mut Tasks,
) -> Result<Arc<KubeCluster>, LoadError> {
    let (path, name) = (config.kubeconfig.clone(), config.node_name.clone());
    if !config.is_managed() {
        return Ok(Arc::new(KubeCluster::from_kubeconfig(&path, &name, rate, clock.clone()).await?));
    }
    let cluster = Arc::new(KubeCluster::awaiting_credentials(&path, &name, rate, clock.clone()));
    let access = ClusterAccess { cluster: cluster.clone(), node_name: name, clock: clock.clone() };
    let mut identity = ClientIdentity::new(config, host.clone(), Arc::new(access), clock.clone());
    identity.begin().await?;
    tasks.spawn("client-certificate", identity.run());
    Ok(cluster)
}

/// Puts the house together and runs it. It ends only by being dropped, with a task that panicked, or
/// where the machine cannot be set up as its operator wants it. Without `doors` nobody can call.
pub async fn assemble(edges: Edges, config: AgentConfig, static_pods: Vec<StaticPods>, doors: Option<Doors>) -> Ended {
    let (tasks, mut panics) = Tasks::new();
    tokio::select! {
        ended = house(edges, config, static_pods, doors, tasks) => match ended {
            Ok(()) => unreachable!("the dispatcher has no end"),
            Err(error) => error.into(),
        },
        // Cancel-safe, both: as if the agent were killed.
        panicked = panics.wait() => panicked.into(),
    }
}

async fn house(
    edges: Edges,
    config: AgentConfig,
    static_pods: Vec<StaticPods>,
    doors: Option<Doors>,
    mut tasks: Tasks,
) -> Result<(), SetupError> {
    let Edges { runtime, cluster, host, net, clock } = edges;

    // Who tells the world, and who is woken: everything else may use these.
    let (recorder, queue) = Recorder::new(clock.clone(), &config.node.name);
    tasks.spawn("events", events::run(queue, cluster.clone(), config.event_rate));
    if let Some(problem) = config.resolver_problem {
        recorder.node(EventType::Warning, "CheckLimitsForResolvConf", problem);
    }
    let wakes = Wakes::default();

    // What the runtime holds, and how it is.
    let wake = {
        let wakes = wakes.clone();
        Arc::new(move |uid: &_| wakes.wake(uid))
    };
    let pleg = Pleg::new(runtime.clone(), host.clone(), wake);
    tasks.spawn("pleg", pleg::run(pleg.clone(), config.pleg.clone(), clock.clone()));

    // The node shows itself before any pod is looked at, and whether or not a runtime is there.
    let images =
        Images::new(runtime.clone(), host.clone(), cluster.clone(), clock.clone(), recorder.clone(), config.images);
    let node = NodeHandle::new();
    let survey = MachineSurvey { host: host.clone(), runtime: runtime.clone(), images: images.clone() };
    let parts = NodeParts {
        cluster: cluster.clone(),
        clock: clock.clone(),
        recorder: recorder.clone(),
        survey: Arc::new(survey),
        health: pleg.health(),
        config: config.node.clone(),
    };
    tasks.spawn("node", crate::node::run(node.clone(), parts));
    if let Some(cluster) = &cluster {
        tasks.spawn("lease", crate::node::run_lease(cluster.clone(), clock.clone(), config.node.clone(), node.view()));
    }

    // What pods mention.
    let wake = {
        let wakes = wakes.clone();
        Arc::new(move |uid: &_| wakes.inputs_changed(uid))
    };
    let objects = Objects::new(cluster.clone(), wake);
    let tokens = Tokens::new(cluster.clone(), clock.clone());
    let allocatable = {
        let view = node.view();
        Arc::new(move || view.borrow().as_ref().map(|view| view.allocatable.clone()).unwrap_or_default())
    };
    let volumes = Volumes::new(host.clone(), objects.clone(), tokens, allocatable, config.sync.root_dir.clone());
    let status = cluster.as_ref().map(|cluster| StatusWriter::new(cluster.clone(), clock.clone()));
    if let Some(status) = &status {
        tasks.spawn("status", status.clone().run());
    }

    // Health is served from the start, so that whoever waits for us sees that we wait.
    let progress = Progress::new(clock.clone());
    let with_syncloop = |health: Health| health.vital("syncloop", progress.check(DISPATCHER_STUCK_AFTER));
    if let Some(address) = config.healthz {
        tasks.spawn("healthz", server::run(address, Arc::new(with_syncloop(Health::new()))));
    }
    let reopen = {
        let runtime = runtime.clone();
        Arc::new(move |id| {
            let runtime = runtime.clone();
            async move { runtime.reopen_container_log(&id).await }.boxed()
        })
    };
    // Pods may have to wait for the runtime, and who starts us need not: kubeadm, for one, starts
    // us before there are credentials.
    config.service_manager.ready();
    let health = with_syncloop(Health::new());
    let is_well = move || health.failure().map_or(Ok(()), |(check, reason)| Err(format!("{check}: {reason}")));
    tasks.spawn("watchdog", config.service_manager.feed_watchdog(is_well));
    let logs = Logs::new(host.clone(), clock.clone(), reopen, config.logs);
    let (roster, mirrors) = (Roster::default(), Mirrors::default());
    if let Some(doors) = doors {
        let disk = Disk::new(HOST_DEADLINE);
        let exhibits = Exhibits {
            // Log lines are written at once, so that none can be stuck.
            health: with_syncloop(Health::new().vital("log", Box::new(|| Ok(())))),
            roster: roster.clone(),
            runtime: runtime.clone(),
            pleg: pleg.clone(),
            log_reads: LogReads::new(Arc::new(pleg.clone()), logs.endings(), disk.clone()),
            stats: Stats::new(config.stats, runtime.clone(), pleg.clone(), host.clone(), clock.clone()),
            disk,
            mirrors: mirrors.clone(),
            volumes: volumes.clone(),
            about: About {
                node_name: config.node.name.clone(),
                version: config.node.version.clone(),
                cgroup_version: config.sync.launch.cgroups.version,
                gates: config.sync.launch.gates.clone(),
            },
        };
        let reviews = cluster.clone().map(|cluster| cluster as Arc<dyn Reviews>);
        tasks.spawn("server", doors.serve(exhibits, reviews));
    }

    // Which pods should be here. Sources may speak before the runtime answers.
    let (events, source_events) = mpsc::channel(SOURCE_QUEUE_LENGTH);
    let start = |static_pods| start_static_pods(&mut tasks, static_pods, &net, &clock, events.clone());
    let static_sources: BTreeSet<Source> = static_pods.into_iter().map(start).collect();
    let mut sources = static_sources.clone();
    if let Some(cluster) = &cluster {
        sources.insert(Source::Api);
        tasks.spawn("api-source", sources::api::run(cluster.clone(), events));
        tasks.spawn(
            "mirrors",
            mirror::run(mirrors.clone(), cluster.clone(), node.view(), static_sources, clock.clone()),
        );
    }

    // Nothing can be started before the runtime has said who it is.
    let mut sync = config.sync;
    settle_with_runtime(&*runtime, &mut sync, &progress).await?;
    let cgroups = Cgroups::new(host.clone(), sync.launch.cgroups.clone());
    cgroups.set_up(|(kind, reason, message)| recorder.node(kind, reason, message)).await?;
    let range_in_use = {
        let runtime = runtime.clone();
        Box::new(move |uid| {
            let runtime = runtime.clone();
            async move { user_namespaces::range_in_use(&*runtime, uid).await }.boxed()
        })
    };
    let caller = Caller::new(Arc::new(runtime.clone()), net);
    let version = &config.node.version;
    let hooks = Hooks { caller: caller.clone(), user_agent: probes::user_agent("kube-lifecycle", version) };
    let probes = {
        let wakes = wakes.clone();
        Probes::new(caller, clock.clone(), recorder.clone(), version, move |uid| wakes.wake(uid))
    };
    let (topology, keeper) = topology::begin(config.topology, host.clone(), runtime.clone(), clock.clone()).await;
    tasks.spawn("places", keeper.run());
    let context = Context {
        dead: DeadContainers::new(sync.dead.clone()),
        user_namespaces: UserNamespaces::new(host.clone(), range_in_use, sync.root_dir.clone(), sync.ids),
        logs,
        admission: Admission::new(topology.clone()),
        topology,
        pin_turns: PinTurns::default(),
        cluster,
        cgroups,
        config: sync,
        clock,
        runtime,
        host,
        pleg,
        wakes,
        volumes,
        images,
        objects,
        recorder,
        probes,
        hooks,
        status,
        mirrors,
        roster,
        node: node.view(),
        turned: Box::new(move || progress.turned()),
    };
    Dispatcher::new(Arc::new(context), sources).run(source_events).await;
    Ok(())
}

/// Starts a source of static pods and says which one has to be waited for.
fn start_static_pods(
    tasks: &mut Tasks,
    static_pods: StaticPods,
    net: &Arc<dyn Net>,
    clock: &Clock,
    events: mpsc::Sender<SourceEvent>,
) -> Source {
    match static_pods {
        StaticPods::Directory(dir) => {
            tasks.spawn("static-pods", static_dir::run(dir, clock.clone(), events));
            Source::File
        }
        StaticPods::Url(url) => {
            tasks.spawn("static-pods-url", static_url::run(url, net.clone(), clock.clone(), events));
            Source::Http
        }
        StaticPods::Events(mut made) => {
            tasks.spawn("static-pods", async move {
                while let Some(event) = made.recv().await {
                    if events.send(event).await.is_err() {
                        return;
                    }
                }
            });
            Source::File
        }
    }
}

/// Waiting for the runtime is what the agent should be doing now, however long an answer takes.
async fn turn(progress: &Progress) -> Infallible {
    loop {
        progress.turned();
        tokio::time::sleep(RUNTIME_RETRY).await;
    }
}

/// Waits for the runtime, and takes over its name and its choice of cgroup driver.
async fn settle_with_runtime(
    runtime: &dyn Runtime,
    sync: &mut SyncConfig,
    progress: &Progress,
) -> Result<(), SetupError> {
    let mut waited = false;
    loop {
        let answer = async {
            let version = runtime.version().await?;
            let (told, shown) = match runtime.cgroup_driver().await {
                Ok(driver) => (Some(driver), None),
                // Such a runtime leaves the choice to our configuration.
                Err(CriError::Unimplemented { .. }) => (None, runtime.shown_cgroup_driver().await?),
                Err(error) => return Err(error),
            };
            Ok((version, told, shown))
        };
        let answer = tokio::select! {
            biased;
            // Cancel-safe: the runtime is only asked who it is.
            answer = answer => answer,
            // Cancel-safe: it only sleeps.
            never = turn(progress) => match never {},
        };
        match answer {
            Ok((version, told, shown)) => {
                let cgroups = &mut sync.launch.cgroups;
                let configured = cgroups.driver;
                if let Some(shown) = shown.filter(|shown| *shown != configured && cgroups.per_qos) {
                    let runtime = format!("{} {}", version.runtime_name, version.runtime_version);
                    return Err(SetupError::OtherDriver { configured, runtime, shown });
                }
                let driver = told.unwrap_or(configured);
                cgroups.driver = driver;
                info!(runtime = version.runtime_name, version = version.runtime_version, %driver, "runtime is there");
                if driver != configured {
                    // Two drivers on one machine would undo each other's work.
                    warn!(%configured, "cgroupDriver gives way to what the runtime uses");
                }
                sync.runtime_name = version.runtime_name;
                return Ok(());
            }
            Err(error) => {
                if !std::mem::replace(&mut waited, true) {
                    warn!(%error, "runtime does not answer yet, waiting for it");
                }
                tokio::time::sleep(RUNTIME_RETRY).await;
            }
        }
    }
}
