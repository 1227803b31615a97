//! The effective configuration: every field with its default applied and its unit parsed.
//!
//! Names are upstream's in snake case. Fields that Ferrolet does not act on yet are here too,
//! so that a feature finds its settings ready.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;

use super::cpu_set::CpuSet;
use super::duration::GoDuration;
use super::quantity::{self, Quantity};
use super::reader::Reader;
use super::thresholds::{Purpose, Signal, Thresholds};
use super::words::{
    AuthorizationMode, CgroupDriver, ChangeDetection, CpuManagerPolicy, Enforcement, HairpinMode, LogFormat,
    MemoryManagerPolicy, MemoryReservationPolicy, PullCredentialsPolicy, SwapBehavior, TlsVersion,
    TopologyManagerPolicy, TopologyManagerScope,
};

#[derive(Clone, Debug)]
pub struct KubeletConfiguration {
    pub enable_server: bool,
    pub static_pod_path: Option<PathBuf>,
    pub pod_logs_dir: PathBuf,
    pub sync_frequency: Duration,
    pub file_check_frequency: Duration,
    pub http_check_frequency: Duration,
    pub static_pod_url: Option<String>,
    pub static_pod_url_header: BTreeMap<String, Vec<String>>,
    pub address: IpAddr,
    pub port: u16,
    /// `None` when there is to be no such port.
    pub read_only_port: Option<u16>,
    pub tls: Tls,
    pub rotate_certificates: bool,
    pub server_tls_bootstrap: bool,
    pub authentication: Authentication,
    pub authorization: Authorization,
    /// Pulls per second, 0 for no limit.
    pub registry_pull_qps: u32,
    pub registry_burst: u32,
    pub image_pull_credentials_verification_policy: PullCredentialsPolicy,
    pub preloaded_images_verification_allowlist: Vec<String>,
    /// Events per second; 0 has become the client's default of 5 here.
    pub event_record_qps: u32,
    pub event_burst: u32,
    pub enable_debugging_handlers: bool,
    pub enable_contention_profiling: bool,
    pub healthz_port: Option<u16>,
    pub healthz_bind_address: IpAddr,
    pub oom_score_adj: i32,
    /// Empty when pods get no cluster search domains.
    pub cluster_domain: String,
    pub cluster_dns: Vec<IpAddr>,
    pub streaming_connection_idle_timeout: Duration,
    pub node_status_update_frequency: Duration,
    pub node_status_report_frequency: Duration,
    pub node_lease_duration_seconds: i32,
    pub image_minimum_gc_age: Duration,
    /// `None` when age alone never removes an image.
    pub image_maximum_gc_age: Option<Duration>,
    pub image_gc_high_threshold_percent: u8,
    pub image_gc_low_threshold_percent: u8,
    /// `None` when volume usage is not to be measured.
    pub volume_stats_agg_period: Option<Duration>,
    pub kubelet_cgroups: String,
    pub system_cgroups: String,
    /// `/` where nothing is given and `cgroups_per_qos` needs one.
    pub cgroup_root: String,
    pub cgroups_per_qos: bool,
    pub cgroup_driver: CgroupDriver,
    pub cpu_manager_policy: CpuManagerPolicy,
    /// `None` means true on cgroup v1 and false on cgroup v2.
    pub single_process_oom_kill: Option<bool>,
    pub cpu_manager_policy_options: BTreeMap<String, String>,
    pub cpu_manager_reconcile_period: Duration,
    pub memory_manager_policy: MemoryManagerPolicy,
    pub topology_manager_policy: TopologyManagerPolicy,
    pub topology_manager_scope: TopologyManagerScope,
    pub topology_manager_policy_options: BTreeMap<String, String>,
    /// Percent per resource.
    pub qos_reserved: BTreeMap<String, u8>,
    pub runtime_request_timeout: Duration,
    pub hairpin_mode: HairpinMode,
    pub max_pods: u32,
    pub pod_cidr: String,
    /// `None` for the node's own limit.
    pub pod_pids_limit: Option<i64>,
    /// `None` when pods are to get nothing from the host's resolver file.
    pub resolv_conf: Option<PathBuf>,
    pub run_once: bool,
    pub cpu_cfs_quota: bool,
    pub cpu_cfs_quota_period: Duration,
    /// `None` for all.
    pub node_status_max_images: Option<usize>,
    pub max_open_files: u64,
    pub content_type: String,
    pub kube_api_qps: u32,
    pub kube_api_burst: u32,
    pub serialize_image_pulls: bool,
    pub max_parallel_image_pulls: Option<usize>,
    /// Signals turned off by `0%` or `100%` are not in the maps.
    pub eviction_hard: Thresholds,
    pub eviction_soft: Thresholds,
    pub eviction_soft_grace_period: BTreeMap<Signal, Duration>,
    pub eviction_pressure_transition_period: Duration,
    pub eviction_max_pod_grace_period: i32,
    pub eviction_minimum_reclaim: Thresholds,
    pub merge_default_eviction_settings: bool,
    pub pods_per_core: u32,
    pub enable_controller_attach_detach: bool,
    pub protect_kernel_defaults: bool,
    pub make_iptables_util_chains: bool,
    pub iptables_masquerade_bit: u8,
    pub iptables_drop_bit: u8,
    /// As given; what they come to is in `Settings::gates`.
    pub feature_gates: BTreeMap<String, bool>,
    pub fail_swap_on: bool,
    pub swap_behavior: SwapBehavior,
    /// `None` when container logs are not to be rotated.
    pub container_log_max_bytes: Option<u64>,
    pub container_log_max_files: u32,
    pub container_log_max_workers: u32,
    pub container_log_monitor_interval: Duration,
    pub config_map_and_secret_change_detection_strategy: ChangeDetection,
    /// By `cpu`, `memory`, `ephemeral-storage`, `pid`.
    pub system_reserved: BTreeMap<String, Quantity>,
    pub kube_reserved: BTreeMap<String, Quantity>,
    pub reserved_system_cpus: CpuSet,
    pub show_hidden_metrics_for_version: String,
    pub system_reserved_cgroup: String,
    pub kube_reserved_cgroup: String,
    pub enforce_node_allocatable: Vec<Enforcement>,
    pub allowed_unsafe_sysctls: Vec<String>,
    pub volume_plugin_dir: Option<PathBuf>,
    pub provider_id: String,
    pub kernel_memcg_notification: bool,
    pub logging: Logging,
    pub enable_system_log_handler: bool,
    pub enable_system_log_query: bool,
    pub shutdown_grace_period: Duration,
    pub shutdown_grace_period_critical_pods: Duration,
    pub shutdown_grace_period_by_pod_priority: Vec<ShutdownBand>,
    /// `None` when the gate for it is off.
    pub max_container_restart_period: Option<Duration>,
    pub reserved_memory: Vec<NumaMemory>,
    pub enable_profiling_handler: bool,
    pub enable_debug_flags_handler: bool,
    /// The field alone; `Settings::seccomp_default` adds the flag.
    pub seccomp_default: bool,
    pub memory_throttling_factor: f64,
    pub memory_reservation_policy: MemoryReservationPolicy,
    pub register_with_taints: Vec<Taint>,
    pub register_node: bool,
    pub tracing: Tracing,
    pub local_storage_capacity_isolation: bool,
    pub container_runtime_endpoint: String,
    /// The runtime's endpoint where no other is given.
    pub image_service_endpoint: String,
    /// The field alone; ask `Settings::refuses_cgroup_v1`.
    pub fail_cgroup_v1: bool,
    pub user_namespaces_ids_per_pod: Option<i64>,
}

#[derive(Clone, Debug)]
pub struct Tls {
    pub cert_file: Option<PathBuf>,
    pub private_key_file: Option<PathBuf>,
    pub cipher_suites: Vec<String>,
    pub curve_preferences: Vec<i32>,
    pub min_version: TlsVersion,
}

#[derive(Clone, Debug)]
pub struct Authentication {
    pub client_ca_file: Option<PathBuf>,
    pub webhook: bool,
    pub webhook_cache_ttl: Duration,
    pub anonymous: bool,
}

#[derive(Clone, Debug)]
pub struct Authorization {
    pub mode: AuthorizationMode,
    pub cache_authorized_ttl: Duration,
    pub cache_unauthorized_ttl: Duration,
}

#[derive(Clone, Debug)]
pub struct Logging {
    pub format: LogFormat,
    pub flush_frequency: Duration,
    pub verbosity: u32,
    pub vmodule: Vec<VModule>,
    pub text: LogStreams,
    pub json: LogStreams,
}

/// The verbosity of the source files whose name matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VModule {
    pub file_pattern: String,
    pub verbosity: u32,
}

#[derive(Clone, Debug)]
pub struct LogStreams {
    pub split: bool,
    pub info_buffer_bytes: Quantity,
}

/// Grace for pods from this priority up to the next band's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShutdownBand {
    pub priority: i32,
    pub grace_period_seconds: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumaMemory {
    pub numa_node: i32,
    /// By `memory` or `hugepages-<size>`.
    pub limits: BTreeMap<String, Quantity>,
}

#[derive(Clone, Debug)]
pub struct Tracing {
    pub endpoint: Option<String>,
    pub sampling_rate_per_million: Option<i32>,
}

impl KubeletConfiguration {
    /// How many images may be pulled at the same time, `None` for any number.
    pub fn parallel_image_pulls(&self) -> Option<usize> {
        match self.serialize_image_pulls {
            true => Some(1),
            false => self.max_parallel_image_pulls,
        }
    }

    /// Takes every field out of the document. What cannot be read is noted in the reader, and
    /// the value made up for it is never used.
    pub(super) fn read(r: &mut Reader<'_>) -> KubeletConfiguration {
        let cgroups_per_qos = r.boolean("cgroupsPerQOS");
        let container_runtime_endpoint = r.text("containerRuntimeEndpoint");
        KubeletConfiguration {
            enable_server: r.boolean("enableServer"),
            static_pod_path: r.file("staticPodPath"),
            pod_logs_dir: r.file("podLogsDir").unwrap_or_default(),
            sync_frequency: r.duration("syncFrequency"),
            file_check_frequency: r.duration("fileCheckFrequency"),
            http_check_frequency: r.duration("httpCheckFrequency"),
            static_pod_url: Some(r.text("staticPodURL")).filter(|url| !url.is_empty()),
            static_pod_url_header: r.headers("staticPodURLHeader"),
            address: r.ip("address"),
            port: r.integer("port"),
            read_only_port: r.port_or_none("readOnlyPort"),
            tls: Tls {
                cert_file: r.file("tlsCertFile"),
                private_key_file: r.file("tlsPrivateKeyFile"),
                cipher_suites: r.texts("tlsCipherSuites"),
                curve_preferences: r.integers("tlsCurvePreferences"),
                min_version: r.word("tlsMinVersion", TlsVersion::parse, TlsVersion::Unset),
            },
            rotate_certificates: r.boolean("rotateCertificates"),
            server_tls_bootstrap: r.boolean("serverTLSBootstrap"),
            authentication: Authentication {
                client_ca_file: r.file("authentication.x509.clientCAFile"),
                webhook: r.boolean("authentication.webhook.enabled"),
                webhook_cache_ttl: r.duration("authentication.webhook.cacheTTL"),
                anonymous: r.boolean("authentication.anonymous.enabled"),
            },
            authorization: Authorization {
                mode: r.word("authorization.mode", AuthorizationMode::parse, AuthorizationMode::Webhook),
                cache_authorized_ttl: r.duration("authorization.webhook.cacheAuthorizedTTL"),
                cache_unauthorized_ttl: r.duration("authorization.webhook.cacheUnauthorizedTTL"),
            },
            registry_pull_qps: r.integer("registryPullQPS"),
            registry_burst: r.integer("registryBurst"),
            image_pull_credentials_verification_policy: r.word(
                "imagePullCredentialsVerificationPolicy",
                PullCredentialsPolicy::parse,
                PullCredentialsPolicy::Unset,
            ),
            preloaded_images_verification_allowlist: r.texts("preloadedImagesVerificationAllowlist"),
            // client-go takes a rate of 0 for "not set" and puts its own default there.
            event_record_qps: match r.integer("eventRecordQPS") {
                0 => 5,
                qps => qps,
            },
            event_burst: r.integer("eventBurst"),
            enable_debugging_handlers: r.boolean("enableDebuggingHandlers"),
            enable_contention_profiling: r.boolean("enableContentionProfiling"),
            healthz_port: r.port_or_none("healthzPort"),
            healthz_bind_address: r.ip("healthzBindAddress"),
            oom_score_adj: r.integer("oomScoreAdj"),
            cluster_domain: r.text("clusterDomain"),
            cluster_dns: r.texts("clusterDNS").iter().filter_map(|ip| ip.parse().ok()).collect(),
            streaming_connection_idle_timeout: r.duration("streamingConnectionIdleTimeout"),
            node_status_update_frequency: r.duration("nodeStatusUpdateFrequency"),
            node_status_report_frequency: r.duration("nodeStatusReportFrequency"),
            node_lease_duration_seconds: r.integer("nodeLeaseDurationSeconds"),
            image_minimum_gc_age: r.duration("imageMinimumGCAge"),
            image_maximum_gc_age: Some(r.duration("imageMaximumGCAge")).filter(|d| !d.is_zero()),
            image_gc_high_threshold_percent: r.integer("imageGCHighThresholdPercent"),
            image_gc_low_threshold_percent: r.integer("imageGCLowThresholdPercent"),
            volume_stats_agg_period: r.signed_duration("volumeStatsAggPeriod").to_std(),
            kubelet_cgroups: r.text("kubeletCgroups"),
            system_cgroups: r.text("systemCgroups"),
            cgroup_root: match r.text("cgroupRoot") {
                root if root.is_empty() && cgroups_per_qos => "/".to_owned(),
                root => root,
            },
            cgroups_per_qos,
            cgroup_driver: r.word("cgroupDriver", CgroupDriver::parse, CgroupDriver::Cgroupfs),
            cpu_manager_policy: r.word("cpuManagerPolicy", CpuManagerPolicy::parse, CpuManagerPolicy::None),
            single_process_oom_kill: r.boolean_if_any("singleProcessOOMKill"),
            cpu_manager_policy_options: r.text_map("cpuManagerPolicyOptions"),
            cpu_manager_reconcile_period: r.duration("cpuManagerReconcilePeriod"),
            memory_manager_policy: r.word("memoryManagerPolicy", MemoryManagerPolicy::parse, MemoryManagerPolicy::None),
            topology_manager_policy: r.word(
                "topologyManagerPolicy",
                TopologyManagerPolicy::parse,
                TopologyManagerPolicy::None,
            ),
            topology_manager_scope: r.word(
                "topologyManagerScope",
                TopologyManagerScope::parse,
                TopologyManagerScope::Container,
            ),
            topology_manager_policy_options: r.text_map("topologyManagerPolicyOptions"),
            qos_reserved: r.parsed_map("qosReserved", percent),
            runtime_request_timeout: r.duration("runtimeRequestTimeout"),
            hairpin_mode: r.word("hairpinMode", HairpinMode::parse, HairpinMode::None),
            max_pods: r.integer("maxPods"),
            pod_cidr: r.text("podCIDR"),
            pod_pids_limit: Some(r.integer("podPidsLimit")).filter(|limit| *limit >= 0),
            resolv_conf: r.file("resolvConf"),
            run_once: r.boolean("runOnce"),
            cpu_cfs_quota: r.boolean("cpuCFSQuota"),
            cpu_cfs_quota_period: r.duration("cpuCFSQuotaPeriod"),
            node_status_max_images: usize::try_from(r.integer::<i32>("nodeStatusMaxImages")).ok(),
            max_open_files: r.integer("maxOpenFiles"),
            content_type: r.text("contentType"),
            kube_api_qps: r.integer("kubeAPIQPS"),
            kube_api_burst: r.integer("kubeAPIBurst"),
            serialize_image_pulls: r.boolean("serializeImagePulls"),
            max_parallel_image_pulls: r.integer_if_any("maxParallelImagePulls"),
            eviction_hard: r.thresholds("evictionHard", Purpose::Limit),
            eviction_soft: r.thresholds("evictionSoft", Purpose::Limit),
            eviction_soft_grace_period: r.grace_periods("evictionSoftGracePeriod"),
            eviction_pressure_transition_period: r.duration("evictionPressureTransitionPeriod"),
            eviction_max_pod_grace_period: r.integer("evictionMaxPodGracePeriod"),
            eviction_minimum_reclaim: r.thresholds("evictionMinimumReclaim", Purpose::Reclaim),
            merge_default_eviction_settings: r.boolean("mergeDefaultEvictionSettings"),
            pods_per_core: r.integer("podsPerCore"),
            enable_controller_attach_detach: r.boolean("enableControllerAttachDetach"),
            protect_kernel_defaults: r.boolean("protectKernelDefaults"),
            make_iptables_util_chains: r.boolean("makeIPTablesUtilChains"),
            iptables_masquerade_bit: r.integer("iptablesMasqueradeBit"),
            iptables_drop_bit: r.integer("iptablesDropBit"),
            feature_gates: r.gates("featureGates"),
            fail_swap_on: r.boolean("failSwapOn"),
            swap_behavior: r.word("memorySwap.swapBehavior", SwapBehavior::parse, SwapBehavior::Unset),
            container_log_max_bytes: u64::try_from(
                r.parsed("containerLogMaxSize", whole_quantity).unwrap_or(Quantity::ZERO).value(),
            )
            .ok(),
            container_log_max_files: r.integer("containerLogMaxFiles"),
            container_log_max_workers: r.integer("containerLogMaxWorkers"),
            container_log_monitor_interval: r.duration("containerLogMonitorInterval"),
            config_map_and_secret_change_detection_strategy: r.word(
                "configMapAndSecretChangeDetectionStrategy",
                ChangeDetection::parse,
                ChangeDetection::Watch,
            ),
            system_reserved: r.parsed_map("systemReserved", reservation),
            kube_reserved: r.parsed_map("kubeReserved", reservation),
            reserved_system_cpus: r.parsed("reservedSystemCPUs", CpuSet::parse).unwrap_or_default(),
            show_hidden_metrics_for_version: r.text("showHiddenMetricsForVersion"),
            system_reserved_cgroup: r.text("systemReservedCgroup"),
            kube_reserved_cgroup: r.text("kubeReservedCgroup"),
            enforce_node_allocatable: r.parsed_list("enforceNodeAllocatable", |word| {
                Enforcement::parse(word).ok_or_else(|| format!("expected one of {}", Enforcement::WORDS.join(", ")))
            }),
            allowed_unsafe_sysctls: r.texts("allowedUnsafeSysctls"),
            volume_plugin_dir: r.file("volumePluginDir"),
            provider_id: r.text("providerID"),
            kernel_memcg_notification: r.boolean("kernelMemcgNotification"),
            logging: Logging {
                format: r.word("logging.format", LogFormat::parse, LogFormat::Text),
                flush_frequency: r.duration("logging.flushFrequency"),
                verbosity: r.integer("logging.verbosity"),
                vmodule: r.vmodule("logging.vmodule"),
                text: LogStreams {
                    split: r.boolean("logging.options.text.splitStream"),
                    info_buffer_bytes: r.quantity("logging.options.text.infoBufferSize"),
                },
                json: LogStreams {
                    split: r.boolean("logging.options.json.splitStream"),
                    info_buffer_bytes: r.quantity("logging.options.json.infoBufferSize"),
                },
            },
            enable_system_log_handler: r.boolean("enableSystemLogHandler"),
            enable_system_log_query: r.boolean("enableSystemLogQuery"),
            shutdown_grace_period: r.duration("shutdownGracePeriod"),
            shutdown_grace_period_critical_pods: r.duration("shutdownGracePeriodCriticalPods"),
            shutdown_grace_period_by_pod_priority: r.shutdown_bands("shutdownGracePeriodByPodPriority"),
            max_container_restart_period: r.duration_if_any("crashLoopBackOff.maxContainerRestartPeriod"),
            reserved_memory: r.numa_memory("reservedMemory"),
            enable_profiling_handler: r.boolean("enableProfilingHandler"),
            enable_debug_flags_handler: r.boolean("enableDebugFlagsHandler"),
            seccomp_default: r.boolean("seccompDefault"),
            memory_throttling_factor: r.float("memoryThrottlingFactor"),
            memory_reservation_policy: r.word(
                "memoryReservationPolicy",
                MemoryReservationPolicy::parse,
                MemoryReservationPolicy::None,
            ),
            register_with_taints: r.taints("registerWithTaints"),
            register_node: r.boolean("registerNode"),
            tracing: Tracing {
                endpoint: r.text_if_any("tracing.endpoint"),
                sampling_rate_per_million: r.integer_if_any("tracing.samplingRatePerMillion"),
            },
            local_storage_capacity_isolation: r.boolean("localStorageCapacityIsolation"),
            image_service_endpoint: match r.text("imageServiceEndpoint") {
                endpoint if endpoint.is_empty() => container_runtime_endpoint.clone(),
                endpoint => endpoint,
            },
            container_runtime_endpoint,
            fail_cgroup_v1: r.boolean("failCgroupV1"),
            user_namespaces_ids_per_pod: r.integer_if_any("userNamespaces.idsPerPod"),
        }
    }
}

/// A reservation for the system: how much of one resource is kept.
fn reservation(resource: &str, text: &str) -> Result<Quantity, String> {
    if !["cpu", "memory", "ephemeral-storage", "pid"].contains(&resource) {
        return Err("expected one of cpu, memory, ephemeral-storage, pid".to_owned());
    }
    match quantity::parse(text).map_err(|e| e.to_string())? {
        amount if amount.is_negative() => Err(format!("must not be negative, found {text}")),
        amount => Ok(amount),
    }
}

fn percent(resource: &str, text: &str) -> Result<u8, String> {
    if resource != "memory" {
        return Err("only memory can be reserved".to_owned());
    }
    let number = text.strip_suffix('%').and_then(|n| n.parse::<u8>().ok());
    number.filter(|n| *n <= 100).ok_or_else(|| format!("expected a percentage from 0% to 100%, found {text:?}"))
}

fn whole_quantity(text: &str) -> Result<Quantity, String> {
    let amount = quantity::parse(text).map_err(|e| e.to_string())?;
    match amount.is_whole() {
        true => Ok(amount),
        false => Err(format!("expected a whole number of bytes, found {text:?}")),
    }
}

/// The time a soft threshold must be passed before it counts.
pub(super) fn grace_period(text: &str) -> Result<Duration, String> {
    let duration = GoDuration::parse(text).map_err(|e| e.to_string())?;
    duration.to_std().ok_or_else(|| format!("must not be negative, found {text}"))
}
