//! From the operator's settings and the machine's facts to each part's own piece.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::tz::TimeZone;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{debug, warn};

use super::{AgentConfig, StaticPods, cgroups, places};
use crate::admission::AdmissionConfig;
use crate::clock::Clock;
use crate::config::{self, FeatureGates, Gate, Settings};
use crate::host::{CgroupVersion, Host, LinuxHost, MachineFacts, Roots};
use crate::identity::{ClusterAccess, IdentityConfig, ServingIdentity, ServingKey};
use crate::images::{AccessConfig, ImagesConfig, read_providers};
use crate::kube::KubeCluster;
use crate::kube::limit::Rate;
use crate::logs::LogsConfig;
use crate::node::NodeConfig;
use crate::pleg::PlegConfig;
use crate::pod::dns::{ClusterDns, excess, loopback_resolver};
use crate::server::{AuthnConfig, AuthzConfig, CertificateSource, ServerConfig, Switches, TlsConfig, Verbosity};
use crate::service_manager::ServiceManager;
use crate::sources::static_dir::StaticDir;
use crate::sources::static_url::StaticUrl;
use crate::stats::StatsConfig;
use crate::sync::launch::LaunchConfig;
use crate::sync::{BackoffLimits, DeadLimits, HostResolver, IdPool, SyncConfig};

const CONTAINER_LOGS_DIR: &str = "/var/log/containers";
const BACKOFF_FIRST: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(300);
const BACKOFF_FIRST_REDUCED: Duration = Duration::from_secs(1);
const BACKOFF_MAX_REDUCED: Duration = Duration::from_secs(60);
/// Upstream's figure, whatever the cap.
const BACKOFF_RESET_AFTER: Duration = Duration::from_secs(600);

pub async fn agent_config(
    settings: &Settings,
    node: NodeConfig,
    facts: &MachineFacts,
    host: &dyn Host,
) -> anyhow::Result<AgentConfig> {
    let kubelet = &settings.kubelet;
    let cluster_dns = ClusterDns { servers: kubelet.cluster_dns.clone(), domain: kubelet.cluster_domain.clone() };
    let resolver = match &kubelet.resolv_conf {
        Some(path) => HostResolver::File(path.clone()),
        None => HostResolver::Fixed(loopback_resolver(&facts.addresses)),
    };
    let resolver_problem = match (&resolver, resolver.read(host).await) {
        (HostResolver::File(path), Ok(read)) => excess(&path.display().to_string(), &read, &cluster_dns),
        (_, read) => read.err(),
    };
    let launch = LaunchConfig {
        pod_logs_dir: kubelet.pod_logs_dir.clone(),
        seccomp_dir: settings.flags.root_dir.join("seccomp"),
        seccomp_default: settings.seccomp_default(),
        cluster_dns,
        cgroups: cgroups::config(settings, &node.reserved, facts).context("cannot set up cgroups")?,
        memory_bytes: facts.memory_bytes,
        single_process_oom_kill: kubelet.single_process_oom_kill.unwrap_or(facts.cgroup_version == CgroupVersion::V1),
        swap_controller: facts.swap_controller,
        swap_bytes: match kubelet.swap_behavior {
            config::SwapBehavior::LimitedSwap => facts.swap_bytes,
            config::SwapBehavior::NoSwap | config::SwapBehavior::Unset => 0,
        },
        gates: settings.gates.clone(),
        thermal_throttle_dirs: facts.thermal_throttle_dirs.clone(),
    };
    let admission = AdmissionConfig {
        node_name: node.name.clone(),
        allowed_unsafe_sysctls: kubelet.allowed_unsafe_sysctls.clone(),
        kernel_version: facts.kernel_version.clone(),
        app_armor: facts.app_armor,
        statics: [
            kubelet.cpu_manager_policy == config::CpuManagerPolicy::Static,
            kubelet.memory_manager_policy == config::MemoryManagerPolicy::Static,
        ],
        gates: settings.gates.clone(),
    };
    Ok(AgentConfig {
        stats: stats(settings, &node),
        topology: places::topology(settings, &node, facts)?,
        node,
        sync: SyncConfig {
            root_dir: settings.flags.root_dir.clone(),
            pod_logs_dir: kubelet.pod_logs_dir.clone(),
            container_logs_dir: CONTAINER_LOGS_DIR.into(),
            runtime_name: String::new(),
            backoff: backoff(&settings.gates, kubelet.max_container_restart_period),
            dead: DeadLimits {
                per_container: usize::try_from(settings.flags.dead_containers_per_container_max).ok(),
                in_all: settings.flags.dead_containers_max,
                min_age: settings.flags.minimum_container_ttl,
            },
            launch,
            admission,
            resolver,
            ids: id_pool(settings).await?,
        },
        images: ImagesConfig {
            serialize_image_pulls: kubelet.serialize_image_pulls,
            max_parallel_image_pulls: kubelet.max_parallel_image_pulls,
            registry_pull_qps: kubelet.registry_pull_qps,
            registry_burst: kubelet.registry_burst,
            node_status_max_images: kubelet
                .node_status_max_images
                .and_then(|max| i32::try_from(max).ok())
                .unwrap_or(-1),
            credential_files: credential_files(&settings.flags.root_dir),
            providers: match &settings.flags.credential_providers {
                Some((config, programs)) => {
                    let gives_tokens = settings.gates.enabled(Gate::KubeletServiceAccountTokenForCredentialProviders);
                    read_providers(config, programs, gives_tokens).context("credential providers")?
                }
                None => Vec::new(),
            },
            access: AccessConfig {
                dir: settings.flags.root_dir.join("image_manager"),
                policy: kubelet.image_pull_credentials_verification_policy,
                allowlist: kubelet.preloaded_images_verification_allowlist.clone(),
            },
        },
        logs: LogsConfig {
            max_bytes: kubelet.container_log_max_bytes,
            max_files: usize::try_from(kubelet.container_log_max_files)?,
            workers: usize::try_from(kubelet.container_log_max_workers)?,
            monitor_interval: kubelet.container_log_monitor_interval,
            time_zone: TimeZone::system(),
        },
        event_rate: rate(kubelet.event_record_qps, kubelet.event_burst),
        resolver_problem,
        pleg: PlegConfig::default(),
        healthz: kubelet.healthz_port.map(|port| SocketAddr::new(kubelet.healthz_bind_address, port)),
        service_manager: ServiceManager::default(),
    })
}

/// The node's own API.
pub fn server_config(
    settings: &Settings,
    node: &NodeConfig,
    signed: Option<ServingKey>,
    verbosity: Verbosity,
) -> ServerConfig {
    let kubelet = &settings.kubelet;
    let (authentication, authorization) = (&kubelet.authentication, &kubelet.authorization);
    if settings.is_standalone()
        && (authentication.webhook || authorization.mode == config::AuthorizationMode::Webhook)
        && kubelet.enable_server
    {
        // Upstream does not start then. Pods matter more than who may look at them.
        warn!(
            "authentication.webhook.enabled and authorization.mode Webhook ask the API server, and there is none: callers they are about are refused"
        );
    }
    let certificate = match (signed, &kubelet.tls.cert_file, &kubelet.tls.private_key_file) {
        // As upstream: it counts before files that the operator names as well.
        (Some(signed), ..) => CertificateSource::Signed(signed),
        (None, Some(certificate), Some(key)) => {
            CertificateSource::Files { certificate: certificate.clone(), key: key.clone() }
        }
        _ => CertificateSource::SelfMade { dir: absolute(&settings.flags.cert_dir), host_name: node.name.clone() },
    };
    let configz = serde_json::json!({ "kubeletconfig": settings.shown_document() });
    ServerConfig {
        main: kubelet.enable_server.then(|| SocketAddr::new(kubelet.address, kubelet.port)),
        read_only: kubelet.read_only_port.map(|port| SocketAddr::new(kubelet.address, port)),
        tls: TlsConfig {
            certificate,
            cipher_suites: kubelet.tls.cipher_suites.clone(),
            curves: kubelet.tls.curve_preferences.clone(),
            min_version: kubelet.tls.min_version,
            client_ca: authentication.client_ca_file.clone(),
        },
        authn: AuthnConfig {
            tokens: authentication.webhook.then_some(authentication.webhook_cache_ttl),
            anonymous: authentication.anonymous,
        },
        authz: match authorization.mode {
            config::AuthorizationMode::AlwaysAllow => AuthzConfig::AlwaysAllow,
            config::AuthorizationMode::Webhook => AuthzConfig::Webhook {
                node_name: node.name.clone(),
                keep_allowed: authorization.cache_authorized_ttl,
                keep_refused: authorization.cache_unauthorized_ttl,
            },
        },
        switches: Switches {
            debugging: kubelet.enable_debugging_handlers,
            system_logs: kubelet.enable_system_log_handler,
            profiling: kubelet.enable_profiling_handler,
            debug_flags: kubelet.enable_debug_flags_handler,
        },
        log_queries: kubelet.enable_system_log_query,
        split_streams: settings.gates.enabled(Gate::PodLogsQuerySplitStreams),
        stream_idle: kubelet.streaming_connection_idle_timeout,
        configz: configz.to_string().into(),
        checkpoints: settings
            .gates
            .enabled(Gate::ContainerCheckpoint)
            .then(|| absolute(&settings.flags.root_dir).join("checkpoints")),
        flagz: settings.gates.enabled(Gate::ComponentFlagz),
        statusz: settings.gates.enabled(Gate::ComponentStatusz),
        flags: settings.flag_values.clone(),
        verbosity,
    }
}

/// `configured` has a default while its own gate is on, which counts as upstream lets it: over
/// the reduced maximum too.
fn backoff(gates: &FeatureGates, configured: Option<Duration>) -> BackoffLimits {
    let (first, max) = match gates.enabled(Gate::ReduceDefaultCrashLoopBackOffDecay) {
        true => (BACKOFF_FIRST_REDUCED, BACKOFF_MAX_REDUCED),
        false => (BACKOFF_FIRST, BACKOFF_MAX),
    };
    let max = configured.unwrap_or(max);
    BackoffLimits { initial: first.min(max), max, reset_after: BACKOFF_RESET_AFTER }
}

/// Where `docker login` leaves credentials: upstream's places, in its order.
fn credential_files(root_dir: &Path) -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let working = std::env::current_dir().ok();
    let places = |home: Option<PathBuf>, root: &str| {
        [Some(root_dir.to_owned()), working.clone(), home, Some(root.into())].into_iter().flatten()
    };
    let new = places(home.as_ref().map(|home| home.join(".docker")), "/.docker").map(|dir| dir.join("config.json"));
    let old = places(home.clone(), "/").map(|dir| dir.join(".dockercfg"));
    new.chain(old).collect()
}

const IDS_PER_POD: u32 = 65_536;
/// Has its range of subordinate ids where the operator chose one.
const ID_OWNER: &str = "kubelet";

/// The user ids that pods may have: those of the user `kubelet`, if there is one.
async fn id_pool(settings: &Settings) -> anyhow::Result<IdPool> {
    let kubelet = &settings.kubelet;
    let per_pod = kubelet.user_namespaces_ids_per_pod.and_then(|ids| u32::try_from(ids).ok()).unwrap_or(IDS_PER_POD);
    let owner = nix::unistd::User::from_name(ID_OWNER).ok().flatten();
    let (Some(_), Some(uids), Some(gids)) =
        (owner, subordinate_ids(&[ID_OWNER]).await?, subordinate_ids(&["-g", ID_OWNER]).await?)
    else {
        return Ok(IdPool::above_the_nodes(per_pod));
    };
    if uids != gids {
        bail!("user {ID_OWNER} has different subordinate ids for users ({uids}) and groups ({gids})");
    }
    let (first, length) = parse_subordinate_ids(&uids)
        .with_context(|| format!("cannot use the subordinate ids of user {ID_OWNER}: {uids:?}"))?;
    let pool = IdPool { first, length, per_pod };
    if i64::from(pool.pods_max()) < i64::from(kubelet.max_pods) || first % per_pod != 0 {
        bail!(
            "subordinate ids of user {ID_OWNER} must begin at a multiple of {per_pod} and suffice for {} pods",
            kubelet.max_pods
        );
    }
    Ok(pool)
}

/// It may ask a directory service.
const SUBORDINATE_IDS_DEADLINE: Duration = Duration::from_secs(10);

/// `None` where the program or an entry for the user is missing.
async fn subordinate_ids(arguments: &[&str]) -> anyhow::Result<Option<String>> {
    let asked = tokio::process::Command::new("getsubids").args(arguments).kill_on_drop(true).output();
    let output = tokio::time::timeout(SUBORDINATE_IDS_DEADLINE, asked).await;
    let output = output.context("getsubids does not say which user ids pods may have")?;
    let Ok(output) = output else { return Ok(None) };
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok((output.status.success() && !text.is_empty()).then_some(text))
}

/// `0: kubelet 65536 7208960`, and nothing else.
fn parse_subordinate_ids(text: &str) -> Option<(u32, u32)> {
    let [_, _, first, length] = text.split_whitespace().collect::<Vec<_>>().try_into().ok()?;
    let (first, length): (u32, u32) = (first.parse().ok()?, length.parse().ok()?);
    first.checked_add(length)?;
    Some((first, length))
}

/// The places where this node's static pods come from.
pub fn static_pods(settings: &Settings, node: &NodeConfig) -> Vec<StaticPods> {
    let kubelet = &settings.kubelet;
    let may_need_api = !settings.gates.enabled(Gate::PreventStaticPodAPIReferences);
    let directory = kubelet.static_pod_path.as_ref().map(|path| {
        StaticPods::Directory(StaticDir {
            path: path.clone(),
            node_name: node.name.clone(),
            may_need_api,
            rescan_period: kubelet.file_check_frequency,
        })
    });
    let url = kubelet.static_pod_url.as_ref().map(|url| {
        StaticPods::Url(StaticUrl {
            url: url.clone(),
            headers: kubelet.static_pod_url_header.clone(),
            user_agent: format!("ferrolet/{}", env!("CARGO_PKG_VERSION")),
            node_name: node.name.clone(),
            may_need_api,
            period: kubelet.http_check_frequency,
        })
    });
    directory.into_iter().chain(url).collect()
}

/// Who the node is to the API server; `None` in standalone mode.
pub fn identity(settings: &Settings, node: &NodeConfig) -> Option<IdentityConfig> {
    Some(IdentityConfig {
        node_name: node.name.clone(),
        kubeconfig: absolute(settings.flags.kubeconfig.as_deref()?),
        bootstrap_kubeconfig: settings.flags.bootstrap_kubeconfig.as_deref().map(absolute),
        cert_dir: absolute(&settings.flags.cert_dir),
        rotates: settings.kubelet.rotate_certificates,
    })
}

/// What keeps the serving certificate where the cluster is to sign it, and what is served.
pub fn serving(
    settings: &Settings,
    node: &NodeConfig,
    cluster: &Arc<KubeCluster>,
    host: &Arc<LinuxHost>,
    clock: &Clock,
) -> Option<(ServingIdentity, ServingKey)> {
    if !settings.kubelet.server_tls_bootstrap {
        return None;
    }
    let access = ClusterAccess { cluster: cluster.clone(), node_name: node.name.clone(), clock: clock.clone() };
    let names_suffice = settings.gates.enabled(Gate::AllowDNSOnlyNodeCSR);
    let cert_dir = absolute(&settings.flags.cert_dir);
    Some(ServingIdentity::new(&node.name, &cert_dir, names_suffice, host.clone(), Arc::new(access), clock.clone()))
}

/// Links and kubeconfigs lead there from other directories.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Zero is no limit.
pub fn rate(qps: u32, burst: u32) -> Option<Rate> {
    (qps > 0).then_some(Rate { per_second: qps.into(), burst })
}

fn stats(settings: &Settings, node: &NodeConfig) -> StatsConfig {
    let kubelet = &settings.kubelet;
    StatsConfig {
        node_name: node.name.clone(),
        roots: Roots::machine(settings.flags.root_dir.clone()),
        pod_logs_dir: kubelet.pod_logs_dir.clone(),
        cgroup_root: kubelet.cgroup_root.clone(),
        cgroups_per_qos: kubelet.cgroups_per_qos,
        kubelet_cgroups: kubelet.kubelet_cgroups.clone(),
        runtime_cgroups: settings.flags.runtime_cgroups.clone(),
        system_cgroups: kubelet.system_cgroups.clone(),
        volume_period: kubelet.volume_stats_agg_period,
    }
}

/// Limits and OOM score of the agent itself. Without the right to change them it goes on:
/// a container or a test has them set from outside.
pub fn adjust_process(settings: &Settings) {
    let files = settings.kubelet.max_open_files;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        let limit = files.min(hard.max(files));
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard.max(limit))
            .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard.min(files), hard))
    });
    if let Err(error) = raised {
        debug!(%error, "limit on open files not raised");
    }
    let score = settings.kubelet.oom_score_adj;
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        warn!(%error, score, "own oom_score_adj not set, the kernel may pick the agent when memory is short");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crashes_are_held_back_as_gate_and_configuration_say() {
        let check = |is_reduced, configured: Option<u64>, (first, max)| {
            let gates = FeatureGates::with(&[(Gate::ReduceDefaultCrashLoopBackOffDecay, is_reduced)]);
            let BackoffLimits { initial, max: got, .. } = backoff(&gates, configured.map(Duration::from_secs));
            assert_eq!((initial.as_secs(), got.as_secs()), (first, max), "{is_reduced}, {configured:?}");
        };
        check(false, None, (10, 300));
        check(false, Some(300), (10, 300));
        check(false, Some(5), (5, 5));
        check(true, None, (1, 60));
        check(true, Some(300), (1, 300));
    }

    #[test]
    fn one_line_of_subordinate_ids_is_understood() {
        assert_eq!(parse_subordinate_ids("0: kubelet 65536 7208960"), Some((65_536, 7_208_960)));
        assert_eq!(parse_subordinate_ids("0: kubelet 65536 65536\n1: kubelet 655360 65536"), None);
        assert_eq!(parse_subordinate_ids("0: kubelet many few"), None);
        assert_eq!(parse_subordinate_ids("0: kubelet 4294901760 131072"), None, "there are no such ids");
    }
}
