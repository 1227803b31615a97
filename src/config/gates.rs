//! Feature gates: which of upstream's gates there are, and which are on here.
//!
//! Names, stages, defaults and locks are upstream's, so that one `featureGates` map serves
//! either agent. `OF_OTHER_COMPONENTS` holds the names that upstream's binary also accepts
//! because it shares its table with the API server and the controllers.

use std::collections::BTreeMap;

use super::nearest::nearest;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    Alpha,
    Beta,
    #[allow(clippy::upper_case_acronyms)] // The word for it everywhere else.
    GA,
    Deprecated,
}

struct GateInfo {
    gate: Gate,
    name: &'static str,
    stage: Stage,
    default: bool,
    locked: bool,
}

macro_rules! gates {
    ($($name:ident: $stage:ident, $default:literal $(, $locked:ident)?;)*) => {
        /// A gate that concerns the node.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Gate { $($name),* }

        /// Every gate, in the order of the enum, which is that of the alphabet.
        const GATES: &[GateInfo] = &[$(GateInfo {
            gate: Gate::$name,
            name: stringify!($name),
            stage: Stage::$stage,
            default: $default,
            locked: gates!(@locked $($locked)?),
        }),*];
    };
    (@locked locked) => { true };
    (@locked) => { false };
}

gates! {
    AllowDNSOnlyNodeCSR: Deprecated, false;
    CPUManagerPolicyAlphaOptions: Alpha, false;
    CPUManagerPolicyBetaOptions: Beta, true;
    CPUManagerPolicyOptions: GA, true, locked;
    CRIListStreaming: Alpha, false;
    CSIVolumeHealth: Alpha, false;
    ChangeContainerStatusOnKubeletRestart: Deprecated, false;
    ClusterTrustBundleProjection: Beta, false;
    ComponentFlagz: Beta, true;
    ComponentStatusz: Beta, true;
    ContainerCheckpoint: Beta, true;
    ContainerRestartRules: Beta, true;
    ContainerStopSignals: Alpha, false;
    ContextualLogging: Beta, true;
    CustomCPUCFSQuotaPeriod: Alpha, false;
    DRAConsumableCapacity: Beta, true;
    DRAExtendedResource: Beta, true;
    DRAWorkloadResourceClaims: Alpha, false;
    DisableCPUQuotaWithExclusiveCPUs: Deprecated, true;
    DisableNodeKubeProxyVersion: Deprecated, true, locked;
    DynamicResourceAllocation: GA, true, locked;
    EnvFiles: Beta, true;
    EventedPLEG: Alpha, false;
    ExecProbeTimeout: GA, true, locked;
    ExtendWebSocketsToKubelet: Beta, true;
    GitRepoVolumeDriver: Deprecated, false, locked;
    GracefulNodeShutdown: Beta, true;
    GracefulNodeShutdownBasedOnPodPriority: Beta, true;
    HostnameOverride: Beta, true;
    ImageMaximumGCAge: GA, true, locked;
    ImageVolume: GA, true, locked;
    ImageVolumeWithDigest: Alpha, false;
    InPlacePodLevelResourcesVerticalScaling: Beta, true;
    InPlacePodVerticalScaling: GA, true, locked;
    InPlacePodVerticalScalingExclusiveCPUs: Alpha, false;
    InPlacePodVerticalScalingExclusiveMemory: Alpha, false;
    InPlacePodVerticalScalingInitContainers: Beta, true;
    KubeletCgroupDriverFromCRI: GA, true, locked;
    KubeletCrashLoopBackOffMax: Beta, true;
    KubeletEnsureSecretPulledImages: Beta, true;
    KubeletFineGrainedAuthz: GA, true, locked;
    KubeletInUserNamespace: Alpha, false;
    KubeletPSI: GA, true, locked;
    KubeletPodResourcesDynamicResources: GA, true, locked;
    KubeletPodResourcesGet: GA, true, locked;
    KubeletPodResourcesListUseActivePods: Deprecated, true;
    KubeletRegistrationGetOnExistsOnly: Deprecated, false;
    KubeletSeparateDiskGC: Beta, true;
    KubeletServiceAccountTokenForCredentialProviders: Beta, true;
    KubeletTracing: GA, true, locked;
    LocalStorageCapacityIsolationFSQuotaMonitoring: Beta, false;
    LoggingAlphaOptions: Alpha, false;
    LoggingBetaOptions: Beta, true;
    MemoryQoS: Alpha, false;
    MutableCSINodeAllocatableCount: GA, true, locked;
    NativeHistograms: Alpha, false;
    NodeDeclaredFeatures: Beta, true;
    NodeLogQuery: GA, true, locked;
    NodeSwap: GA, true, locked;
    PLEGOnDemandRelist: Beta, true;
    PodAndContainerStatsFromCRI: Alpha, false;
    PodCertificateRequest: Beta, false;
    PodLevelResourceManagers: Alpha, false;
    PodLevelResources: Beta, true;
    PodLifecycleSleepAction: GA, true, locked;
    PodLifecycleSleepActionAllowZero: GA, true, locked;
    PodLogsQuerySplitStreams: Alpha, false;
    PodObservedGenerationTracking: GA, true, locked;
    PodReadyToStartContainersCondition: Beta, true;
    PodsAPI: Alpha, false;
    PreventStaticPodAPIReferences: Beta, true;
    ProcMountType: GA, true, locked;
    QOSReserved: Alpha, false;
    RecoverVolumeExpansionFailure: GA, true, locked;
    RecursiveReadOnlyMounts: GA, true, locked;
    ReduceDefaultCrashLoopBackOffDecay: Alpha, false;
    ReloadKubeletClientCAFile: Beta, true;
    ReloadKubeletServerCertificateFile: Beta, true;
    ResourceHealthStatus: Beta, true;
    ResourceHealthStatusMessage: Beta, true;
    RestartAllContainersOnContainerExits: Beta, true;
    RotateKubeletServerCertificate: Beta, true;
    RuntimeClassInImageCriApi: Alpha, false;
    SELinuxChangePolicy: GA, true, locked;
    SELinuxMount: Beta, false;
    SELinuxMountReadWriteOncePod: GA, true, locked;
    ServiceAccountNodeAudienceRestriction: Beta, true;
    SidecarContainers: GA, true, locked;
    SupplementalGroupsPolicy: GA, true, locked;
    SystemdWatchdog: GA, true, locked;
    TaintTolerationComparisonOperators: Alpha, false;
    TopologyManagerPolicyAlphaOptions: Alpha, false;
    TopologyManagerPolicyBetaOptions: Beta, true;
    TopologyManagerPolicyOptions: GA, true, locked;
    UserNamespacesHostNetworkSupport: Alpha, false;
    UserNamespacesSupport: GA, true, locked;
    WatchListClient: Beta, true;
}

/// The gates whose setting makes a difference in Ferrolet today. A gate set away from its
/// default that is not here gets a warning; a feature adds its gate when it arrives.
const HEEDED: &[Gate] = &[
    Gate::CPUManagerPolicyAlphaOptions,
    Gate::CPUManagerPolicyBetaOptions,
    Gate::ChangeContainerStatusOnKubeletRestart,
    Gate::ContainerRestartRules,
    Gate::ContainerStopSignals,
    Gate::CustomCPUCFSQuotaPeriod,
    Gate::DisableCPUQuotaWithExclusiveCPUs,
    Gate::EnvFiles,
    Gate::HostnameOverride,
    Gate::ImageMaximumGCAge,
    Gate::InPlacePodLevelResourcesVerticalScaling,
    Gate::InPlacePodVerticalScalingInitContainers,
    Gate::KubeletCrashLoopBackOffMax,
    Gate::KubeletEnsureSecretPulledImages,
    Gate::KubeletRegistrationGetOnExistsOnly,
    Gate::KubeletServiceAccountTokenForCredentialProviders,
    Gate::MemoryQoS,
    Gate::NodeDeclaredFeatures,
    Gate::PodLevelResources,
    Gate::PodReadyToStartContainersCondition,
    Gate::PreventStaticPodAPIReferences,
    Gate::QOSReserved,
    Gate::ReduceDefaultCrashLoopBackOffDecay,
    Gate::RestartAllContainersOnContainerExits,
    Gate::TaintTolerationComparisonOperators,
];

/// Gates that can be on only while others are. Those that are locked need not be looked at.
const NEEDS: &[(Gate, &[Gate])] = &[
    (Gate::ExtendWebSocketsToKubelet, &[Gate::NodeDeclaredFeatures]),
    (Gate::GracefulNodeShutdownBasedOnPodPriority, &[Gate::GracefulNodeShutdown]),
    (Gate::InPlacePodLevelResourcesVerticalScaling, &[Gate::PodLevelResources, Gate::NodeDeclaredFeatures]),
    (Gate::InPlacePodVerticalScalingInitContainers, &[Gate::NodeDeclaredFeatures]),
    (Gate::PodLevelResourceManagers, &[Gate::PodLevelResources]),
    (Gate::ResourceHealthStatusMessage, &[Gate::ResourceHealthStatus]),
    (Gate::RestartAllContainersOnContainerExits, &[Gate::ContainerRestartRules, Gate::NodeDeclaredFeatures]),
    (Gate::UserNamespacesHostNetworkSupport, &[Gate::NodeDeclaredFeatures]),
];

/// Gates of the API server, the controllers and the client library, which upstream's kubelet
/// knows by sharing their tables and which change nothing on a node.
const OF_OTHER_COMPONENTS: &[&str] = &[
    "APIResponseCompression",
    "APIServerIdentity",
    "APIServerTracing",
    "APIServingWithRoutine",
    "AggregatedDiscoveryRemoveBetaType",
    "AllowInsecureKubeletCertificateSigningRequests",
    "AllowOverwriteTerminationGracePeriodSeconds",
    "AllowParsingUserUIDFromCertAuth",
    "AllowServiceExternalIPs",
    "AllowUnsafeMalformedObjectDeletion",
    "AnonymousAuthConfigurableEndpoints",
    "AnyVolumeDataSource",
    "AtomicFIFO",
    "AuthorizeNodeWithSelectors",
    "AuthorizePodWebsocketUpgradeCreatePermission",
    "AuthorizeWithSelectors",
    "BtreeWatchCache",
    "CBORServingAndStorage",
    "CRDObservedGenerationTracking",
    "CRDValidationRatcheting",
    "CSIServiceAccountTokenSecrets",
    "ClearingNominatedNodeNameAfterBinding",
    "ClientsAllowCARotation",
    "ClientsAllowCBOR",
    "ClientsAllowTLSCacheGC",
    "ClientsPreferCBOR",
    "ClusterTrustBundle",
    "ConcurrentWatchObjectDecode",
    "ConsistentListFromCache",
    "ConstrainedImpersonation",
    "CoordinatedLeaderElection",
    "CrossNamespaceVolumeDataSource",
    "CustomResourceFieldSelectors",
    "DRAAdminAccess",
    "DRADeviceBindingConditions",
    "DRADeviceTaintRules",
    "DRADeviceTaints",
    "DRAListTypeAttributes",
    "DRANodeAllocatableResources",
    "DRAPartitionableDevices",
    "DRAPrioritizedList",
    "DRAResourceClaimDeviceStatus",
    "DRAResourceClaimGranularStatusAuthorization",
    "DRAResourcePoolStatus",
    "DRASchedulerFilterTimeout",
    "DeclarativeValidation",
    "DeclarativeValidationBeta",
    "DeclarativeValidationTakeover",
    "DeploymentReplicaSetTerminatingReplicas",
    "DetectCacheInconsistency",
    "DisableAllocatorDualWrite",
    "ExternalServiceAccountTokenSigner",
    "GangScheduling",
    "GenericWorkload",
    "HPAConfigurableTolerance",
    "HPAScaleToZero",
    "InOrderInformers",
    "InOrderInformersBatchProcess",
    "InformerResourceVersion",
    "JobBackoffLimitPerIndex",
    "JobManagedBy",
    "JobPodReplacementPolicy",
    "JobSuccessPolicy",
    "KMSv1",
    "ListFromCacheSnapshot",
    "LogarithmicScaleDown",
    "LoggingStableOptions",
    "ManifestBasedAdmissionControlConfig",
    "MatchLabelKeysInPodAffinity",
    "MatchLabelKeysInPodTopologySpread",
    "MatchLabelKeysInPodTopologySpreadSelectorMerge",
    "MaxUnavailableStatefulSet",
    "MultiCIDRServiceAllocator",
    "MutablePVNodeAffinity",
    "MutablePodResourcesForSuspendedJobs",
    "MutableSchedulingDirectivesForSuspendedJobs",
    "MutatingAdmissionPolicy",
    "NFTablesProxyMode",
    "NodeInclusionPolicyInPodTopologySpread",
    "NominatedNodeNameForExpectation",
    "OpenAPIEnums",
    "OpportunisticBatching",
    "OrderedNamespaceDeletion",
    "PersistentVolumeClaimUnusedSinceTime",
    "PodDeletionCost",
    "PodSchedulingReadiness",
    "PodTopologyLabelsAdmission",
    "PortForwardWebsockets",
    "PreferSameTrafficDistribution",
    "RelaxedDNSSearchValidation",
    "RelaxedEnvironmentVariableValidation",
    "RelaxedServiceNameValidation",
    "RemoteRequestHeaderUID",
    "ResilientWatchCacheInitialization",
    "RetryGenerateName",
    "SchedulerAsyncAPICalls",
    "SchedulerAsyncPreemption",
    "SchedulerPopFromBackoffQ",
    "SchedulerQueueingHints",
    "SeparateCacheWatchRPC",
    "SeparateTaintEvictionController",
    "ServiceAccountTokenJTI",
    "ServiceAccountTokenNodeBinding",
    "ServiceAccountTokenNodeBindingValidation",
    "ServiceAccountTokenPodNodeInfo",
    "ServiceCIDRStatusFieldWiping",
    "ShardedListAndWatch",
    "SizeBasedListCostEstimate",
    "StaleControllerConsistencyDaemonSet",
    "StaleControllerConsistencyJob",
    "StaleControllerConsistencyReplicaSet",
    "StaleControllerConsistencyStatefulSet",
    "StatefulSetSemanticRevisionComparison",
    "StorageCapacityScoring",
    "StorageNamespaceIndex",
    "StorageVersionAPI",
    "StorageVersionHash",
    "StorageVersionMigrator",
    "StreamingCollectionEncodingToJSON",
    "StreamingCollectionEncodingToProtobuf",
    "StrictIPCIDRValidation",
    "StructuredAuthenticationConfiguration",
    "StructuredAuthenticationConfigurationEgressSelector",
    "StructuredAuthenticationConfigurationJWKSMetrics",
    "TokenRequestServiceAccountUIDValidation",
    "TopologyAwareWorkloadScheduling",
    "TranslateStreamCloseWebsocketRequests",
    "UnauthenticatedHTTP2DOSMitigation",
    "UnknownVersionInteroperabilityProxy",
    "UnlockWhileProcessingFIFO",
    "VolumeAttributesClass",
    "VolumeLimitScaling",
    "WatchCacheInitializationPostStartHook",
    "WatchList",
    "WinDSR",
    "WinOverlay",
    "WindowsCPUAndMemoryAffinity",
    "WindowsGracefulNodeShutdown",
    "WindowsHostNetwork",
    "WorkloadAwarePreemption",
    "WorkloadWithJob",
];

/// The state of every gate.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FeatureGates {
    /// Only what differs from the default.
    changed: BTreeMap<Gate, bool>,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GateError {
    #[error("unknown feature gate {name}; the nearest known one is {nearest}")]
    Unknown { name: String, nearest: &'static str },
    #[error("feature gate {name} is locked to {to}")]
    Locked { name: &'static str, to: bool },
    #[error("feature gate {name} cannot be off while {dependent}, which needs it, is on")]
    Needed { name: &'static str, dependent: &'static str },
}

/// What a map of gates comes to.
pub struct Resolved {
    pub gates: FeatureGates,
    /// One entry per name that cannot be taken.
    pub errors: Vec<(String, GateError)>,
    /// Names set away from their default that make no difference here.
    pub unheeded: Vec<String>,
}

impl FeatureGates {
    pub fn enabled(&self, gate: Gate) -> bool {
        self.changed.get(&gate).copied().unwrap_or(info(gate).default)
    }

    /// Applies `wanted`; `AllAlpha` and `AllBeta` move every gate of their stage that is not
    /// locked and not named itself.
    pub fn resolve(wanted: &BTreeMap<String, bool>) -> Resolved {
        let mut resolved = Resolved { gates: FeatureGates::default(), errors: Vec::new(), unheeded: Vec::new() };
        for (everything, stage) in [("AllAlpha", Stage::Alpha), ("AllBeta", Stage::Beta)] {
            if let Some(&on) = wanted.get(everything) {
                let of_stage = GATES.iter().filter(|g| g.stage == stage && !g.locked);
                for info in of_stage.filter(|g| !wanted.contains_key(g.name)) {
                    resolved.gates.set(info, on);
                }
            }
        }
        for (name, &on) in wanted {
            match GATES.iter().find(|g| g.name == name) {
                Some(info) if info.locked && on != info.default => {
                    let error = GateError::Locked { name: info.name, to: info.default };
                    resolved.errors.push((name.clone(), error));
                }
                Some(info) => {
                    resolved.gates.set(info, on);
                    if on != info.default && !HEEDED.contains(&info.gate) {
                        resolved.unheeded.push(name.clone());
                    }
                }
                None if name == "AllAlpha" || name == "AllBeta" => {}
                None if OF_OTHER_COMPONENTS.contains(&name.as_str()) => {
                    resolved.unheeded.push(name.clone());
                }
                None => {
                    let nearest = nearest(name, known_names()).unwrap_or_default();
                    let error = GateError::Unknown { name: name.clone(), nearest };
                    resolved.errors.push((name.clone(), error));
                }
            }
        }
        for (dependent, needs) in NEEDS.iter().filter(|(dependent, _)| resolved.gates.enabled(*dependent)) {
            for &need in needs.iter().filter(|need| !resolved.gates.enabled(**need)) {
                let (name, dependent) = (info(need).name, info(*dependent).name);
                resolved.errors.push((name.to_owned(), GateError::Needed { name, dependent }));
            }
        }
        resolved
    }

    /// Every gate: its name, its stage and whether it is on.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, Stage, bool)> {
        GATES.iter().map(|info| (info.name, info.stage, self.enabled(info.gate)))
    }

    /// The defaults but for these.
    #[cfg(test)]
    pub fn with(changed: &[(Gate, bool)]) -> Self {
        let mut gates = FeatureGates::default();
        changed.iter().for_each(|&(gate, on)| gates.set(info(gate), on));
        gates
    }

    fn set(&mut self, info: &GateInfo, on: bool) {
        match on == info.default {
            true => self.changed.remove(&info.gate),
            false => self.changed.insert(info.gate, on),
        };
    }
}

fn info(gate: Gate) -> &'static GateInfo {
    // The table is made by the same macro as the enum, in the same order.
    &GATES[gate as usize]
}

fn known_names() -> impl Iterator<Item = &'static str> {
    let own = GATES.iter().map(|g| g.name);
    own.chain(["AllAlpha", "AllBeta"]).chain(OF_OTHER_COMPONENTS.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(pairs: &[(&str, bool)]) -> Resolved {
        FeatureGates::resolve(&pairs.iter().map(|&(name, on)| (name.to_owned(), on)).collect())
    }

    #[test]
    fn table_and_enum_have_one_order() {
        for (index, info) in GATES.iter().enumerate() {
            assert_eq!(info.gate as usize, index);
        }
        assert!(GATES.is_sorted_by_key(|g| g.name));
        assert!(OF_OTHER_COMPONENTS.iter().all(|name| GATES.iter().all(|g| g.name != *name)));
    }

    #[test]
    fn defaults_hold_until_a_gate_is_named() {
        let gates = FeatureGates::default();
        assert!(gates.enabled(Gate::PodLevelResources));
        assert!(!gates.enabled(Gate::MemoryQoS));
        let gates = wanted(&[("MemoryQoS", true), ("PodLevelResources", false)]).gates;
        assert!(gates.enabled(Gate::MemoryQoS));
        assert!(!gates.enabled(Gate::PodLevelResources));
        assert!(gates.enabled(Gate::NodeSwap));
    }

    #[test]
    fn all_of_a_stage_moves_what_is_neither_named_nor_locked() {
        let gates = wanted(&[("AllAlpha", true), ("MemoryQoS", false)]).gates;
        assert!(gates.enabled(Gate::EventedPLEG));
        assert!(!gates.enabled(Gate::MemoryQoS));
        assert!(!gates.enabled(Gate::PodCertificateRequest), "a beta gate was moved");
        let gates = wanted(&[("AllBeta", false)]).gates;
        assert!(!gates.enabled(Gate::PodLevelResources));
        assert!(gates.enabled(Gate::NodeSwap));
    }

    #[test]
    fn unknown_and_locked_gates_are_errors() {
        let check = |name: &str, on: bool, expected: Option<&str>| {
            let errors = wanted(&[(name, on)]).errors;
            let text = errors.first().map(|(_, error)| error.to_string());
            assert_eq!(text.as_deref(), expected, "{name}={on}");
        };
        check("MemoryQos", true, Some("unknown feature gate MemoryQos; the nearest known one is MemoryQoS"));
        check("NodeSwap", false, Some("feature gate NodeSwap is locked to true"));
        check("NodeSwap", true, None);
        check("GitRepoVolumeDriver", true, Some("feature gate GitRepoVolumeDriver is locked to false"));
        check("APIServerTracing", true, None);
    }

    #[test]
    fn a_gate_that_others_need_is_off_only_with_them() {
        let check = |pairs: &[(&str, bool)], expected: &[&str]| {
            let texts: Vec<_> = wanted(pairs).errors.iter().map(|(_, error)| error.to_string()).collect();
            assert_eq!(texts, expected, "{pairs:?}");
        };
        let needed = "feature gate PodLevelResources cannot be off while InPlacePodLevelResourcesVerticalScaling, \
                      which needs it, is on";
        check(&[("PodLevelResources", false)], &[needed]);
        check(&[("PodLevelResources", false), ("InPlacePodLevelResourcesVerticalScaling", false)], &[]);
        check(&[("AllBeta", false)], &[]);
        check(
            &[("AllBeta", false), ("InPlacePodLevelResourcesVerticalScaling", true), ("NodeDeclaredFeatures", true)],
            &[needed],
        );
        assert_eq!(wanted(&[("PodLevelResources", false)]).errors[0].0, "PodLevelResources");
    }

    #[test]
    fn gates_that_change_nothing_are_named() {
        let check = |name: &str, on: bool, unheeded: bool| {
            assert_eq!(wanted(&[(name, on)]).unheeded.contains(&name.to_owned()), unheeded, "{name}");
        };
        check("APIServerTracing", true, true);
        check("EventedPLEG", true, true);
        check("EventedPLEG", false, false);
        check("MemoryQoS", true, false);
        check("CustomCPUCFSQuotaPeriod", true, false);
    }
}
