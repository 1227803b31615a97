//! The table of configuration fields.
//!
//! One entry per field of KubeletConfiguration v1beta1: where it sits, what it may hold, its
//! default, the flag that mirrors it, and whether Ferrolet acts on it yet. Everything that has
//! to know "all fields" reads this table: the check for unknown fields, defaulting, the flags,
//! the help page, the warnings and `ferrolet config`.

use super::field::{
    Field, I32_MAX, INT32, INT64, Kind, Preset, Rule, Syntax, TEXT, UINT32, boolean, duration, field, file, int32,
    int64, map, text, texts,
};
use super::words::{
    AuthorizationMode, CgroupDriver, ChangeDetection, CpuManagerPolicy, HairpinMode, LogFormat, MemoryManagerPolicy,
    MemoryReservationPolicy, PullCredentialsPolicy, SwapBehavior, TlsVersion, TopologyManagerPolicy,
    TopologyManagerScope,
};

/// The field at exactly this dotted path.
pub fn find(path: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.path == path)
}

/// Whether some field lies below this dotted path, so that it must be an object.
pub fn is_parent(path: &str) -> bool {
    FIELDS.iter().any(|f| f.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

pub const EVICTION_HARD: &[(&str, &str)] = &[
    ("imagefs.available", "15%"),
    ("imagefs.inodesFree", "5%"),
    ("memory.available", "100Mi"),
    ("nodefs.available", "10%"),
    ("nodefs.inodesFree", "5%"),
];

/// Every field, in the order of upstream's documentation.
pub const FIELDS: &[Field] = &[
    // The agent's own endpoints.
    boolean("enableServer", true).flag("enable-server").works().about("serve the authenticated HTTPS API"),
    // Static pods.
    file("staticPodPath", "")
        .flag("pod-manifest-path")
        .works()
        .about("directory of static pod manifests, or one manifest"),
    file("podLogsDir", "/var/log/pods").rule(Rule::NonEmpty).works().about("root of the pod log directories"),
    duration("syncFrequency", "1m0s")
        .flag("sync-frequency")
        .rule(A_PERIOD)
        .no_effect()
        .about("no effect: pods are looked at when something changes"),
    duration("fileCheckFrequency", "20s")
        .flag("file-check-frequency")
        .rule(A_PERIOD)
        .works()
        .about("period of the safety scan of staticPodPath"),
    duration("httpCheckFrequency", "20s")
        .flag("http-check-frequency")
        .rule(A_PERIOD)
        .works()
        .about("polling period of staticPodURL"),
    text("staticPodURL", "").flag("manifest-url").works().about("URL that returns a pod or a list of pods"),
    field("staticPodURLHeader", Kind::Map(&Kind::List(&TEXT)), Preset::Map(&[]))
        .flag_as("manifest-url-header", Syntax::Headers)
        .works()
        .about("headers to send to staticPodURL"),
    // Listeners and their TLS.
    text("address", "0.0.0.0")
        .flag("address")
        .rule(Rule::IpAddress)
        .works()
        .about("IP address the HTTPS API listens on"),
    int32("port", 10_250).flag("port").within(1, 65_535).works().about("port of the HTTPS API"),
    int32("readOnlyPort", 0)
        .flag("read-only-port")
        .within(0, 65_535)
        .works()
        .about("port of the unauthenticated HTTP API, 0 for none"),
    file("tlsCertFile", "").flag("tls-cert-file").works().about("serving certificate"),
    file("tlsPrivateKeyFile", "").flag("tls-private-key-file").works().about("key of the serving certificate"),
    texts("tlsCipherSuites").flag("tls-cipher-suites").works().about("cipher suites allowed up to TLS 1.2"),
    field("tlsCurvePreferences", Kind::List(&INT32), Preset::List(&[]))
        .works()
        .about("key exchange groups allowed, as TLS numbers"),
    text("tlsMinVersion", "")
        .flag("tls-min-version")
        .one_of(TlsVersion::WORDS)
        .works()
        .about("lowest TLS version allowed"),
    boolean("rotateCertificates", false)
        .flag("rotate-certificates")
        .works()
        .about("obtain and renew the client certificate by CSR"),
    boolean("serverTLSBootstrap", false)
        .flag("rotate-server-certificates")
        .works()
        .about("obtain and renew the serving certificate by CSR"),
    // Who may call.
    file("authentication.x509.clientCAFile", "")
        .flag("client-ca-file")
        .works()
        .about("CA bundle for client certificates"),
    boolean("authentication.webhook.enabled", true)
        .flag("authentication-token-webhook")
        .works()
        .about("check bearer tokens with TokenReview"),
    duration("authentication.webhook.cacheTTL", "2m0s")
        .flag("authentication-token-webhook-cache-ttl")
        .works()
        .about("how long a TokenReview answer is kept"),
    boolean("authentication.anonymous.enabled", false)
        .flag("anonymous-auth")
        .works()
        .about("accept requests without credentials"),
    text("authorization.mode", "Webhook")
        .flag("authorization-mode")
        .one_of(AuthorizationMode::WORDS)
        .works()
        .about("AlwaysAllow or Webhook"),
    duration("authorization.webhook.cacheAuthorizedTTL", "5m0s")
        .flag("authorization-webhook-cache-authorized-ttl")
        .works()
        .about("how long a permission is kept"),
    duration("authorization.webhook.cacheUnauthorizedTTL", "30s")
        .flag("authorization-webhook-cache-unauthorized-ttl")
        .works()
        .about("how long a refusal is kept"),
    // Pulls and events.
    int32("registryPullQPS", 5)
        .zero_counts()
        .flag("registry-qps")
        .within(0, I32_MAX)
        .works()
        .about("image pulls per second, 0 for no limit"),
    int32("registryBurst", 10)
        .flag("registry-burst")
        .within(0, I32_MAX)
        .works()
        .about("image pulls at once on top of registryPullQPS"),
    field("imagePullCredentialsVerificationPolicy", Kind::Text, Preset::Derived)
        .one_of(PullCredentialsPolicy::WORDS)
        .works()
        .about("when the pull credentials for a present image are checked again"),
    texts("preloadedImagesVerificationAllowlist").works().about("images exempt from that check"),
    int32("eventRecordQPS", 50)
        .zero_counts()
        .flag("event-qps")
        .within(0, I32_MAX)
        .works()
        .about("events per second, 0 for the client's default of 5"),
    int32("eventBurst", 100)
        .flag("event-burst")
        .within(0, I32_MAX)
        .works()
        .about("events at once on top of eventRecordQPS"),
    boolean("enableDebuggingHandlers", true)
        .flag("enable-debugging-handlers")
        .works()
        .about("serve exec, attach, logs and the like"),
    boolean("enableContentionProfiling", false).flag("contention-profiling").about("profile lock contention"),
    int32("healthzPort", 10_248)
        .zero_counts()
        .flag("healthz-port")
        .within(0, 65_535)
        .works()
        .about("port of /healthz, 0 for none"),
    text("healthzBindAddress", "127.0.0.1")
        .flag("healthz-bind-address")
        .rule(Rule::IpAddress)
        .works()
        .about("IP address /healthz listens on"),
    int32("oomScoreAdj", -999)
        .zero_counts()
        .flag("oom-score-adj")
        .within(-1_000, 1_000)
        .works()
        .about("oom_score_adj of the agent itself"),
    text("clusterDomain", "").flag("cluster-domain").works().about("DNS suffix of the cluster"),
    texts("clusterDNS").flag("cluster-dns").works().about("name servers of pods with DNS policy ClusterFirst"),
    duration("streamingConnectionIdleTimeout", "4h0m0s")
        .flag("streaming-connection-idle-timeout")
        .works()
        .about("how long a stream of exec, attach or port-forward may be silent"),
    // Node status.
    duration("nodeStatusUpdateFrequency", "10s")
        .flag("node-status-update-frequency")
        .rule(A_PERIOD)
        .works()
        .about("how often the node status is computed"),
    field("nodeStatusReportFrequency", Kind::Duration, Preset::Derived)
        .rule(A_PERIOD)
        .works()
        .about("how often an unchanged node status is sent"),
    int32("nodeLeaseDurationSeconds", 40)
        .within(1, I32_MAX)
        .works()
        .about("how long the node lease lasts; renewed four times as often"),
    // Images on disk.
    duration("imageMinimumGCAge", "2m0s")
        .flag("minimum-image-ttl-duration")
        .about("youngest unused image the collector takes"),
    duration("imageMaximumGCAge", "0s").about("age at which an unused image goes anyway, 0s for never"),
    int32("imageGCHighThresholdPercent", 85)
        .zero_counts()
        .flag("image-gc-high-threshold")
        .within(0, 100)
        .about("disk use that starts image collection"),
    int32("imageGCLowThresholdPercent", 80)
        .zero_counts()
        .flag("image-gc-low-threshold")
        .within(0, 100)
        .about("disk use image collection aims at"),
    field("volumeStatsAggPeriod", Kind::SignedDuration, Preset::Text("1m0s"))
        .flag("volume-stats-agg-period")
        .about("how often volume usage is measured, negative for never"),
    // Cgroups and resource managers.
    text("kubeletCgroups", "").flag("kubelet-cgroups").works().about("cgroup the agent moves itself into"),
    text("systemCgroups", "").flag("system-cgroups").works().about("cgroup for processes outside all others"),
    text("cgroupRoot", "").flag("cgroup-root").works().about("cgroup under which kubepods is created"),
    boolean("cgroupsPerQOS", true).flag("cgroups-per-qos").works().about("create cgroups per QoS class and pod"),
    text("cgroupDriver", "cgroupfs")
        .flag("cgroup-driver")
        .one_of(CgroupDriver::WORDS)
        .works()
        .about("cgroupfs or systemd, where the runtime does not say"),
    text("cpuManagerPolicy", "none")
        .flag("cpu-manager-policy")
        .one_of(CpuManagerPolicy::WORDS)
        .works()
        .about("none or static"),
    field("singleProcessOOMKill", Kind::Bool, Preset::Absent)
        .zero_counts()
        .works()
        .about("kill single processes instead of containers when memory runs out"),
    map("cpuManagerPolicyOptions")
        .flag_as("cpu-manager-policy-options", Syntax::OnePair)
        .works()
        .about("options of the static CPU policy"),
    duration("cpuManagerReconcilePeriod", "10s")
        .flag("cpu-manager-reconcile-period")
        .rule(A_PERIOD)
        .no_effect()
        .about("no effect: CPU sets follow at once when something changes"),
    text("memoryManagerPolicy", "None")
        .flag("memory-manager-policy")
        .one_of(MemoryManagerPolicy::WORDS)
        .works()
        .about("None or Static"),
    text("topologyManagerPolicy", "none")
        .flag("topology-manager-policy")
        .one_of(TopologyManagerPolicy::WORDS)
        .works()
        .about("none, best-effort, restricted or single-numa-node"),
    text("topologyManagerScope", "container")
        .flag("topology-manager-scope")
        .one_of(TopologyManagerScope::WORDS)
        .works()
        .about("container or pod"),
    map("topologyManagerPolicyOptions")
        .flag("topology-manager-policy-options")
        .works()
        .about("options of the topology policy"),
    map("qosReserved").flag("qos-reserved").works().about("share of memory kept for higher QoS classes"),
    duration("runtimeRequestTimeout", "2m0s")
        .flag("runtime-request-timeout")
        .rule(A_PERIOD)
        .works()
        .about("deadline of a runtime call, other than pulls and streams"),
    text("hairpinMode", "promiscuous-bridge")
        .flag("hairpin-mode")
        .no_effect()
        .one_of(HairpinMode::WORDS)
        .about("no effect"),
    int32("maxPods", 110).flag("max-pods").within(0, I32_MAX).works().about("pods this node takes"),
    text("podCIDR", "").flag("pod-cidr").works().about("pod network of a node without an API server"),
    int64("podPidsLimit", -1)
        .zero_counts()
        .flag("pod-max-pids")
        .works()
        .about("processes per pod, -1 for the node's own limit"),
    file("resolvConf", "/etc/resolv.conf")
        .zero_counts()
        .flag("resolv-conf")
        .works()
        .about("resolver file pods start from, empty for none"),
    boolean("runOnce", false).flag("runonce").works().about("removed; must be false"),
    boolean("cpuCFSQuota", true).flag("cpu-cfs-quota").works().about("apply CPU limits"),
    duration("cpuCFSQuotaPeriod", "100ms")
        .zero_counts()
        .flag("cpu-cfs-quota-period")
        .works()
        .rule(Rule::Lasts("1ms", "1s"))
        .about("period of CPU quotas"),
    int32("nodeStatusMaxImages", 50)
        .zero_counts()
        .flag("node-status-max-images")
        .within(-1, I32_MAX)
        .works()
        .about("images named in the node status, -1 for all"),
    int64("maxOpenFiles", 1_000_000)
        .flag("max-open-files")
        .within(0, i64::MAX)
        .works()
        .about("open file limit of the agent itself"),
    text("contentType", "application/vnd.kubernetes.protobuf")
        .flag("kube-api-content-type")
        .works()
        .about("accepted; Ferrolet speaks JSON to the API server"),
    int32("kubeAPIQPS", 50)
        .zero_counts()
        .flag("kube-api-qps")
        .within(0, I32_MAX)
        .works()
        .about("API requests per second"),
    int32("kubeAPIBurst", 100)
        .flag("kube-api-burst")
        .within(0, I32_MAX)
        .works()
        .about("API requests at once on top of kubeAPIQPS"),
    field("serializeImagePulls", Kind::Bool, Preset::Derived)
        .zero_counts()
        .flag("serialize-image-pulls")
        .works()
        .about("pull one image at a time"),
    field("maxParallelImagePulls", INT32, Preset::Absent)
        .zero_counts()
        .within(1, I32_MAX)
        .works()
        .about("image pulls at the same time"),
    // Eviction.
    field("evictionHard", Kind::Map(&TEXT), Preset::Map(EVICTION_HARD))
        .works()
        .flag_as("eviction-hard", Syntax::LessThan)
        .about("thresholds below which pods are evicted at once"),
    map("evictionSoft")
        .flag_as("eviction-soft", Syntax::LessThan)
        .about("thresholds below which pods are evicted after a time"),
    map("evictionSoftGracePeriod").flag("eviction-soft-grace-period").about("that time, per signal"),
    duration("evictionPressureTransitionPeriod", "5m0s")
        .flag("eviction-pressure-transition-period")
        .about("how long a pressure condition outlasts its cause"),
    int32("evictionMaxPodGracePeriod", 0)
        .flag("eviction-max-pod-grace-period")
        .about("longest grace period in a soft eviction, in seconds"),
    map("evictionMinimumReclaim")
        .flag("eviction-minimum-reclaim")
        .about("how far past its threshold a signal must recover"),
    boolean("mergeDefaultEvictionSettings", false)
        .works()
        .about("add the default evictionHard entries that a given map leaves out"),
    int32("podsPerCore", 0)
        .flag("pods-per-core")
        .within(0, I32_MAX)
        .works()
        .about("pods per CPU if lower than maxPods, 0 for no such limit"),
    boolean("enableControllerAttachDetach", true)
        .flag("enable-controller-attach-detach")
        .works()
        .about("leave attaching volumes to the controller"),
    boolean("protectKernelDefaults", false)
        .flag("protect-kernel-defaults")
        .works()
        .about("refuse to start rather than change kernel settings"),
    boolean("makeIPTablesUtilChains", true)
        .flag("make-iptables-util-chains")
        .about("keep the iptables hint chain present"),
    int32("iptablesMasqueradeBit", 14).zero_counts().within(0, 31).no_effect().about("no effect"),
    int32("iptablesDropBit", 15).zero_counts().within(0, 31).no_effect().about("no effect"),
    field("featureGates", Kind::Map(&Kind::Bool), Preset::Map(&[]))
        .works()
        .flag_as("feature-gates", Syntax::Gates)
        .about("feature gates that differ from their default"),
    // Swap and logs of containers.
    boolean("failSwapOn", true).flag("fail-swap-on").works().about("refuse to start when swap is on"),
    text("memorySwap.swapBehavior", "").one_of(SwapBehavior::WORDS).works().about("NoSwap or LimitedSwap"),
    text("containerLogMaxSize", "10Mi")
        .flag("container-log-max-size")
        .works()
        .about("size at which a container log is rotated"),
    int32("containerLogMaxFiles", 5)
        .zero_counts()
        .flag("container-log-max-files")
        .within(2, I32_MAX)
        .works()
        .about("log files kept per container"),
    int32("containerLogMaxWorkers", 1).zero_counts().within(1, I32_MAX).works().about("log rotations at the same time"),
    duration("containerLogMonitorInterval", "10s")
        .zero_counts()
        .rule(Rule::Lasts("3s", "2562047h"))
        .works()
        .about("how often log sizes are looked at"),
    text("configMapAndSecretChangeDetectionStrategy", "Watch")
        .one_of(ChangeDetection::WORDS)
        .works()
        .about("accepted; Ferrolet always watches"),
    // Reservations.
    map("systemReserved").flag("system-reserved").works().about("resources kept for the system"),
    map("kubeReserved").flag("kube-reserved").works().about("resources kept for node agents"),
    text("reservedSystemCPUs", "").flag("reserved-cpus").works().about("CPUs kept for the system"),
    text("showHiddenMetricsForVersion", "").one_of(&["", "1.35"]).about("show metrics hidden since this minor version"),
    text("systemReservedCgroup", "")
        .flag("system-reserved-cgroup")
        .works()
        .about("cgroup that gets the systemReserved limits"),
    text("kubeReservedCgroup", "")
        .flag("kube-reserved-cgroup")
        .works()
        .about("cgroup that gets the kubeReserved limits"),
    field("enforceNodeAllocatable", Kind::List(&TEXT), Preset::List(&["pods"]))
        .flag("enforce-node-allocatable")
        .works()
        .about("what the reservations are enforced on"),
    texts("allowedUnsafeSysctls").flag("allowed-unsafe-sysctls").about("unsafe sysctls that pods may set"),
    file("volumePluginDir", "/usr/libexec/kubernetes/kubelet-plugins/volume/exec/")
        .flag("volume-plugin-dir")
        .about("directory of FlexVolume drivers"),
    text("providerID", "").flag("provider-id").works().about("the node's name at its cloud provider"),
    boolean("kernelMemcgNotification", false)
        .flag("kernel-memcg-notification")
        .about("let the kernel announce memory thresholds (cgroup v1)"),
    // Logging.
    text("logging.format", "text").flag("logging-format").one_of(LogFormat::WORDS).works().about("text or json"),
    field("logging.flushFrequency", Kind::DurationOrNanos, Preset::Text("5s"))
        .flag("log-flush-frequency")
        .works()
        .rule(A_PERIOD)
        .about("accepted; log lines are written at once"),
    field("logging.verbosity", UINT32, Preset::Integer(0))
        .flag("v")
        .within(0, I32_MAX)
        .works()
        .about("how much to log: from 4 debug, from 6 trace, from 8 the libraries too"),
    field("logging.vmodule", Kind::List(&VMODULE), Preset::List(&[]))
        .flag_as("vmodule", Syntax::VModule)
        .works()
        .about("verbosity of single source files"),
    boolean("logging.options.text.splitStream", false)
        .flag("log-text-split-stream")
        .about("write info lines to stdout"),
    field("logging.options.text.infoBufferSize", Kind::Quantity, Preset::Text("0"))
        .flag("log-text-info-buffer-size")
        .about("buffer for those lines"),
    boolean("logging.options.json.splitStream", false)
        .flag("log-json-split-stream")
        .about("write info lines to stdout"),
    field("logging.options.json.infoBufferSize", Kind::Quantity, Preset::Text("0"))
        .flag("log-json-info-buffer-size")
        .about("buffer for those lines"),
    boolean("enableSystemLogHandler", true).about("serve /logs/"),
    boolean("enableSystemLogQuery", false).about("answer queries for service logs on /logs/"),
    // Shutdown.
    duration("shutdownGracePeriod", "0s").about("time given to pods when the node shuts down"),
    duration("shutdownGracePeriodCriticalPods", "0s").about("part of it kept for critical pods"),
    field("shutdownGracePeriodByPodPriority", Kind::List(&SHUTDOWN_BAND), Preset::List(&[]))
        .about("the same per pod priority"),
    // The rest, in upstream's order.
    field("crashLoopBackOff.maxContainerRestartPeriod", Kind::Duration, Preset::Derived)
        .zero_counts()
        .works()
        .about("longest wait before a container is started again"),
    field("reservedMemory", Kind::List(&NUMA_MEMORY), Preset::List(&[]))
        .flag_as("reserved-memory", Syntax::ReservedMemory)
        .works()
        .about("memory kept back per NUMA node"),
    boolean("enableProfilingHandler", true).about("serve /debug/pprof/"),
    boolean("enableDebugFlagsHandler", true).about("serve /debug/flags/v"),
    boolean("seccompDefault", false).works().about("RuntimeDefault where a pod names no seccomp profile"),
    field("memoryThrottlingFactor", Kind::Float, Preset::Float(0.9))
        .zero_counts()
        .works()
        .about("factor of memory.high"),
    text("memoryReservationPolicy", "None")
        .one_of(MemoryReservationPolicy::WORDS)
        .works()
        .about("None or TieredReservation"),
    field("registerWithTaints", Kind::List(&TAINT), Preset::List(&[]))
        .works()
        .flag_as("register-with-taints", Syntax::Taints)
        .about("taints the node is registered with"),
    boolean("registerNode", true).flag("register-node").works().about("create the Node object"),
    field("tracing.endpoint", Kind::Text, Preset::Absent).zero_counts().about("collector traces are sent to"),
    field("tracing.samplingRatePerMillion", INT32, Preset::Absent)
        .zero_counts()
        .within(0, 1_000_000)
        .about("spans kept of a million"),
    boolean("localStorageCapacityIsolation", true)
        .flag("local-storage-capacity-isolation")
        .works()
        .about("count and limit ephemeral storage"),
    text("containerRuntimeEndpoint", "unix:///run/containerd/containerd.sock")
        .rule(Rule::NonEmpty)
        .works()
        .flag("container-runtime-endpoint")
        .about("socket of the container runtime"),
    text("imageServiceEndpoint", "")
        .flag("image-service-endpoint")
        .works()
        .about("socket of the image service, empty for the runtime's"),
    boolean("failCgroupV1", true)
        .flag("fail-cgroupv1")
        .works()
        .about("refuse to start on cgroup v1; heeded when set, not by default"),
    field("userNamespaces.idsPerPod", INT64, Preset::Absent).zero_counts().works().about("user ids per pod"),
];

/// A timer needs a period; upstream spins on some of these when a flag sets them to zero.
const A_PERIOD: Rule = Rule::Lasts("1ns", "2562047h");

const VMODULE: Kind = Kind::Struct(&[("filePattern", TEXT), ("verbosity", UINT32)]);
const SHUTDOWN_BAND: Kind = Kind::Struct(&[("priority", INT32), ("shutdownGracePeriodSeconds", INT64)]);
const NUMA_MEMORY: Kind = Kind::Struct(&[("numaNode", INT32), ("limits", Kind::Map(&Kind::Quantity))]);
const TAINT: Kind = Kind::Struct(&[("key", TEXT), ("value", TEXT), ("effect", TEXT), ("timeAdded", TEXT)]);
