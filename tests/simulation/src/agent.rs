//! The whole agent in its simulated place, and how it is started and killed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ferrolet::admission::AdmissionConfig;
use ferrolet::agent::{AgentConfig, Edges, Ended, StaticPods, assemble};
use ferrolet::config::{FeatureGates, NodeIp, PullCredentialsPolicy};
use ferrolet::cri::CgroupDriver;
use ferrolet::host::{CgroupSettings, CgroupVersion, Roots};
use ferrolet::images::{AccessConfig, ImagesConfig};
use ferrolet::logs::LogsConfig;
use ferrolet::node::{NodeConfig, Reserved};
use ferrolet::pleg::PlegConfig;
use ferrolet::pod::dns::ClusterDns;
use ferrolet::pod::{PodUid, Source};
use ferrolet::service_manager::ServiceManager;
use ferrolet::sources::SourceEvent;
use ferrolet::stats::StatsConfig;
use ferrolet::sync::launch::{CgroupConfig, LaunchConfig};
use ferrolet::sync::{BackoffLimits, DeadLimits, HostResolver, IdPool, SyncConfig};
use ferrolet::topology::TopologyConfig;
use jiff::tz::TimeZone;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::cluster::SimCluster;
use crate::host::{Ground, SimHost};
use crate::net::SimNet;
use crate::pins::{Pins, RESERVED, STATE_FILE};
use crate::runtime::SimRuntime;
use crate::world::World;

pub const NODE_NAME: &str = "sim";
pub const ROOT_DIR: &str = "/var/lib/kubelet";
pub const POD_LOGS_DIR: &str = "/var/log/pods";
pub const CONTAINER_LOGS_DIR: &str = "/var/log/containers";
const RESOLV_CONF: &str = "/etc/resolv.conf";
pub const LOG_BYTES_MAX: u64 = 1000;
pub const LOG_FILES_MAX: usize = 3;
/// More events than one life of an agent is sent.
const STATIC_QUEUE_LENGTH: usize = 4096;

/// The edges, and the agent that lives between them now, if any does.
#[derive(Clone)]
pub struct Machine {
    pub world: World,
    pub runtime: SimRuntime,
    pub cluster: SimCluster,
    pub host: SimHost,
    /// Where pods may have CPUs of their own.
    pub pins: Option<Pins>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Of a state file that is another one when an agent starts.
    breaks: Option<fastrand::Rng>,
    life: Option<Life>,
    /// What the static-pod directory holds, by name.
    static_pods: BTreeMap<String, Arc<Pod>>,
    /// Names of static pods of which a life of the agent could not know what an earlier one did:
    /// their mirror, which would have told, was deleted, or the API had not taken it yet.
    without_memory: BTreeSet<String>,
    /// Pods something happened to: one that is never restarted may have ended of it.
    disturbed: BTreeSet<String>,
}

struct Life {
    task: JoinHandle<Ended>,
    static_events: mpsc::Sender<SourceEvent>,
    /// The directory was read once; until then it tells no changes.
    has_listed: bool,
}

impl Machine {
    pub fn new(world: World, has_events: bool, pins: Option<(Pins, fastrand::Rng)>) -> Self {
        let (pins, breaks) = pins.unzip();
        let ground = Ground::default();
        let runtime = SimRuntime::new(world.clone(), ground.clone(), has_events);
        ground.write(RESOLV_CONF, "nameserver 192.0.2.53\n");
        let host = SimHost::new(world.clone(), ground, runtime.clone(), PathBuf::from(ROOT_DIR), pins.is_some());
        let cluster = SimCluster::new(world.clone(), runtime.clone(), host.clone());
        let state = Arc::new(Mutex::new(State { breaks, ..State::default() }));
        Machine { world, runtime, cluster, host, pins, state }
    }

    /// Starts an agent; its static-pod directory answers after a while.
    pub fn start_agent(&self, directory_delay: Duration) {
        let edges = Edges {
            runtime: Arc::new(self.runtime.clone()),
            cluster: Some(Arc::new(self.cluster.clone())),
            host: Arc::new(self.host.clone()),
            net: Arc::new(SimNet::new(self.world.clone(), self.runtime.clone())),
            clock: self.world.clock.clone(),
        };
        let mut state = self.state();
        if state.life.is_some() {
            return;
        }
        self.world.log(|| "agent starts".into());
        if let Some(random) = &mut state.breaks {
            self.host.break_file(Path::new(STATE_FILE), random);
        }
        self.cluster.agent_begins();
        let (static_events, receiver) = mpsc::channel(STATIC_QUEUE_LENGTH);
        let task = tokio::spawn(assemble(edges, config(self.pins.as_ref()), vec![StaticPods::Events(receiver)], None));
        state.life = Some(Life { task, static_events: static_events.clone(), has_listed: false });
        drop(state);
        let machine = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(directory_delay).await;
            let mut state = machine.state();
            let listed = listed(&state);
            // The life may be over, or another one.
            if let Some(life) = &mut state.life
                && life.static_events.same_channel(&static_events)
            {
                life.has_listed = true;
                let _ = static_events.try_send(listed);
            }
        });
    }

    /// As by SIGKILL: whatever the agent is waiting for, it waits no more.
    pub async fn kill_agent(&self) {
        let life = self.state().life.take();
        if let Some(life) = life {
            self.world.log(|| "agent is killed".into());
            life.task.abort();
            let _ = life.task.await;
            self.runtime.agent_is_gone();
            let static_pods: Vec<_> =
                self.state().static_pods.values().filter_map(|pod| pod.metadata.uid.clone()).collect();
            self.cluster.agent_is_gone(static_pods.into_iter());
            let started = self.runtime.pods();
            let mut state = self.state();
            let untold: Vec<_> = state
                .static_pods
                .iter()
                .filter(|(name, pod)| {
                    pod.metadata.uid.as_ref().is_some_and(|uid| started.contains(uid))
                        && !self.cluster.has_told_start(name, pod)
                })
                .map(|(name, _)| name.clone())
                .collect();
            state.without_memory.extend(untold);
        }
    }

    pub fn is_agent_alive(&self) -> bool {
        self.state().life.is_some()
    }

    pub fn static_pods(&self) -> BTreeMap<String, Arc<Pod>> {
        self.state().static_pods.clone()
    }

    /// Puts a static pod into the directory, in place of one of its name.
    pub fn write_static_pod(&self, name: &str, pod: Pod, as_list: bool) {
        let pod = Arc::new(pod);
        self.cluster.static_pod_comes(&pod);
        let mut state = self.state();
        self.world.log(|| format!("static pod {name} is now {}", pod.metadata.uid.clone().unwrap_or_default()));
        let before = state.static_pods.insert(name.to_owned(), pod.clone());
        let mut events: Vec<_> = before.iter().map(|before| removed(before)).collect();
        events.push(SourceEvent::Applied { source: Source::File, pod });
        tell(&state, as_list, events);
    }

    pub fn remove_static_pod(&self, name: &str, as_list: bool) {
        let mut state = self.state();
        let Some(pod) = state.static_pods.remove(name) else { return };
        self.world.log(|| format!("static pod {name} is removed"));
        tell(&state, as_list, vec![removed(&pod)]);
    }

    /// Something is about to happen to the containers of this pod.
    pub fn disturb(&self, uid: &str) {
        self.state().disturbed.insert(uid.to_owned());
    }

    /// The mirror of this static pod is deleted.
    pub fn lose_mirror(&self, name: &str) {
        self.state().without_memory.insert(name.to_owned());
    }

    pub fn has_lost_its_mirror(&self, name: &str) -> bool {
        self.state().without_memory.contains(name)
    }

    pub fn is_disturbed(&self, uid: &str) -> bool {
        self.state().disturbed.contains(uid) || self.runtime.was_hit(uid)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing that holds the machine can panic")
    }
}

fn removed(pod: &Pod) -> SourceEvent {
    SourceEvent::Removed { source: Source::File, uid: PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default()) }
}

fn listed(state: &State) -> SourceEvent {
    SourceEvent::Listed { source: Source::File, pods: state.static_pods.values().cloned().collect() }
}

/// The same change, as a list of everything or step by step.
fn tell(state: &State, as_list: bool, steps: Vec<SourceEvent>) {
    let Some(life) = state.life.as_ref().filter(|life| life.has_listed) else { return };
    let events = if as_list { vec![listed(state)] } else { steps };
    for event in events {
        // An agent that panicked hears nothing.
        let _ = life.static_events.try_send(event);
    }
}

/// As many as a node has by default.
pub const PODS_MAX: usize = 110;
/// So few that ended pods have to give some up.
pub const DEAD_MAX: usize = 4;

/// Asked for nothing, because nobody can call.
fn stats() -> StatsConfig {
    StatsConfig {
        node_name: NODE_NAME.into(),
        roots: Roots::machine(ROOT_DIR.into()),
        pod_logs_dir: "/var/log/pods".into(),
        cgroup_root: "/".into(),
        cgroups_per_qos: true,
        kubelet_cgroups: String::new(),
        runtime_cgroups: String::new(),
        system_cgroups: String::new(),
        volume_period: None,
    }
}

fn config(pins: Option<&Pins>) -> AgentConfig {
    AgentConfig {
        stats: stats(),
        topology: pins.map_or_else(TopologyConfig::default, Pins::topology),
        node: NodeConfig {
            name: NODE_NAME.into(),
            register: true,
            node_ip: NodeIp::Unset,
            external_cloud_provider: false,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            provider_id: String::new(),
            controller_attach_detach: true,
            local_storage_isolation: true,
            max_pods: PODS_MAX as u32,
            pods_per_core: 0,
            reserved: Reserved { cpus: pins.map(|_| RESERVED.len() as u32), ..Reserved::default() },
            status_update_frequency: Duration::from_secs(10),
            status_report_frequency: Duration::from_secs(300),
            lease_duration_seconds: 40,
            port: 10250,
            version: "v1.36.0+ferrolet".into(),
            pod_cidr: String::new(),
            gates: gates(),
        },
        sync: SyncConfig {
            root_dir: ROOT_DIR.into(),
            pod_logs_dir: POD_LOGS_DIR.into(),
            container_logs_dir: CONTAINER_LOGS_DIR.into(),
            runtime_name: String::new(),
            backoff: BackoffLimits {
                initial: Duration::from_secs(10),
                max: Duration::from_secs(300),
                reset_after: Duration::from_secs(600),
            },
            dead: DeadLimits { per_container: Some(1), in_all: Some(DEAD_MAX), min_age: Duration::from_secs(20) },
            launch: launch_config(),
            admission: AdmissionConfig { node_name: NODE_NAME.into(), ..AdmissionConfig::default() },
            resolver: HostResolver::File(RESOLV_CONF.into()),
            ids: IdPool { first: 65_536, length: 200 * 65_536, per_pod: 65_536 },
        },
        images: ImagesConfig {
            serialize_image_pulls: false,
            max_parallel_image_pulls: None,
            registry_pull_qps: 0,
            registry_burst: 0,
            node_status_max_images: -1,
            credential_files: Vec::new(),
            providers: Vec::new(),
            access: AccessConfig {
                dir: PathBuf::from(ROOT_DIR).join("image_manager"),
                policy: PullCredentialsPolicy::NeverVerifyPreloadedImages,
                allowlist: Vec::new(),
            },
        },
        logs: LogsConfig {
            max_bytes: Some(LOG_BYTES_MAX),
            max_files: LOG_FILES_MAX,
            workers: 1,
            monitor_interval: Duration::from_secs(10),
            time_zone: TimeZone::UTC,
        },
        event_rate: None,
        resolver_problem: None,
        pleg: PlegConfig::default(),
        healthz: None,
        service_manager: ServiceManager::default(),
    }
}

/// All that has an effect in here is on.
fn gates() -> FeatureGates {
    FeatureGates::resolve(&BTreeMap::from([("ContainerStopSignals".to_owned(), true)])).gates
}

pub fn launch_config() -> LaunchConfig {
    LaunchConfig {
        pod_logs_dir: POD_LOGS_DIR.into(),
        seccomp_dir: "/var/lib/kubelet/seccomp".into(),
        seccomp_default: false,
        cluster_dns: ClusterDns { servers: vec![Ipv4Addr::new(10, 96, 0, 10).into()], domain: "cluster.local".into() },
        cgroups: CgroupConfig {
            root: "/".into(),
            per_qos: true,
            driver: CgroupDriver::Cgroupfs,
            version: CgroupVersion::V2,
            cpu_cfs_quota: true,
            cpu_cfs_quota_period_us: 100_000,
            pod_pids_max: None,
            hugepage_sizes: Vec::new(),
            enforced_on_pods: false,
            kubepods: CgroupSettings::default(),
            reserved: Vec::new(),
            memory_allocatable_bytes: 8 << 30,
            memory_qos: None,
            memory_reserved_percent: None,
        },
        memory_bytes: 8 << 30,
        single_process_oom_kill: false,
        swap_controller: false,
        swap_bytes: 0,
        gates: gates(),
        thermal_throttle_dirs: Vec::new(),
    }
}
