//! Every validation, one case or more each.

use super::{Files, Settings, given};
use crate::config::{NodeIp, VERSION};

fn refused(text: &str, expected: &str) {
    let reasons = Files::new(&[("main.yaml", text)]).refused(&[]);
    assert!(
        reasons.lines().any(|line| line.starts_with("main.yaml:") && line.ends_with(expected)),
        "{text:?}: expected {expected:?}, got {reasons:?}"
    );
}

fn fine(text: &str) {
    Files::new(&[("main.yaml", text)]).fine(&[]);
}

#[test]
fn numbers_stay_within_their_bounds() {
    for (field, value, reason) in [
        ("port", "-1", "must be from 1 to 65535, found -1"),
        ("port", "65536", "must be from 1 to 65535, found 65536"),
        ("readOnlyPort", "65536", "must be from 0 to 65535, found 65536"),
        ("healthzPort", "-1", "must be from 0 to 65535, found -1"),
        ("oomScoreAdj", "-1001", "must be from -1000 to 1000, found -1001"),
        ("oomScoreAdj", "1001", "must be from -1000 to 1000, found 1001"),
        ("registryPullQPS", "-1", "must be at least 0, found -1"),
        ("registryBurst", "-1", "must be at least 0, found -1"),
        ("eventRecordQPS", "-1", "must be at least 0, found -1"),
        ("eventBurst", "-1", "must be at least 0, found -1"),
        ("kubeAPIQPS", "-1", "must be at least 0, found -1"),
        ("kubeAPIBurst", "-1", "must be at least 0, found -1"),
        ("maxPods", "-1", "must be at least 0, found -1"),
        ("podsPerCore", "-1", "must be at least 0, found -1"),
        ("maxOpenFiles", "-1", "must be at least 0, found -1"),
        ("nodeStatusMaxImages", "-2", "must be at least -1, found -2"),
        ("nodeLeaseDurationSeconds", "-1", "must be at least 1, found -1"),
        ("imageGCHighThresholdPercent", "101", "must be from 0 to 100, found 101"),
        ("imageGCLowThresholdPercent", "-1", "must be from 0 to 100, found -1"),
        ("maxParallelImagePulls", "0", "must be at least 1, found 0"),
        ("containerLogMaxFiles", "1", "must be at least 2, found 1"),
        ("containerLogMaxWorkers", "0", "must be at least 1, found 0"),
        ("iptablesMasqueradeBit", "32", "must be from 0 to 31, found 32"),
        ("iptablesDropBit", "-1", "must be from 0 to 31, found -1"),
        ("memoryThrottlingFactor", "0", "must be more than 0 and at most 1, found 0"),
        ("memoryThrottlingFactor", "1.5", "must be more than 0 and at most 1, found 1.5"),
    ] {
        refused(&format!("{field}: {value}"), &format!(": {field}: {reason}"));
    }
    fine("port: 65535\noomScoreAdj: -1000\nnodeStatusMaxImages: -1\nmemoryThrottlingFactor: 1\n");
}

#[test]
fn durations_stay_within_their_bounds() {
    for (field, value, reason) in [
        ("imageMinimumGCAge", "-1s", "must not be negative, found -1s"),
        ("imageMaximumGCAge", "-1s", "must not be negative, found -1s"),
        ("imageMaximumGCAge", "2m", "must be more than imageMinimumGCAge"),
        ("cpuCFSQuotaPeriod", "0s", "must be from 1ms to 1s, found 0s"),
        ("cpuCFSQuotaPeriod", "2s", "must be from 1ms to 1s, found 2s"),
        ("containerLogMonitorInterval", "2s", "must be at least 3s, found 2s"),
        ("shutdownGracePeriod", "500ms", "must be 0s or at least 1s"),
    ] {
        refused(&format!("{field}: {value}"), &format!(": {field}: {reason}"));
    }
    fine("imageMaximumGCAge: 2m1s\ncontainerLogMonitorInterval: 3s\nshutdownGracePeriod: 1s\n");
    refused("cpuCFSQuotaPeriod: 10ms", "needs the feature gate CustomCPUCFSQuotaPeriod to be anything but 100ms");
    fine("cpuCFSQuotaPeriod: 10ms\nfeatureGates: {CustomCPUCFSQuotaPeriod: true}\n");
    refused("logging: {flushFrequency: -1s}", "logging.flushFrequency: must be more than 0s, found -1s");
    let zero = Settings::load(&given(&["sync-frequency=0"])).expect_err("a period of nothing");
    assert_eq!(zero.to_string(), "--sync-frequency: syncFrequency: must be more than 0s, found 0s");
}

#[test]
fn words_are_of_those_known() {
    for field in [
        "hairpinMode",
        "cpuManagerPolicy",
        "memoryManagerPolicy",
        "topologyManagerPolicy",
        "topologyManagerScope",
        "cgroupDriver",
        "tlsMinVersion",
        "configMapAndSecretChangeDetectionStrategy",
        "memoryReservationPolicy",
        "imagePullCredentialsVerificationPolicy",
        "showHiddenMetricsForVersion",
    ] {
        refused(&format!("{field}: foo"), ", found \"foo\"");
    }
    refused(
        "authorization: {mode: RBAC}",
        ":3: authorization.mode: must be one of AlwaysAllow, Webhook, found \"RBAC\"",
    );
    refused("memorySwap: {swapBehavior: x}", "must be one of NoSwap, LimitedSwap, found \"x\"");
    refused("logging: {format: xml}", "logging.format: must be one of text, json, found \"xml\"");
    fine("tlsMinVersion: VersionTLS13\ncgroupDriver: systemd\nshowHiddenMetricsForVersion: '1.35'\n");
}

#[test]
fn addresses_and_endpoints() {
    refused("address: foo", "address: expected an IP address, found \"foo\"");
    refused("healthzBindAddress: localhost", "healthzBindAddress: expected an IP address, found \"localhost\"");
    refused("tracing: {endpoint: 'http://x'}", "expected no scheme, dns, unix or unix-abstract, found \"http://x\"");
    refused("tracing: {samplingRatePerMillion: 1000001}", "must be from 0 to 1000000, found 1000001");
    fine("address: '::'\ntracing: {endpoint: 'dns://x', samplingRatePerMillion: 0}\n");
    fine("tracing: {endpoint: 'localhost:4317'}\n");
    let empty = Settings::load(&given(&["container-runtime-endpoint="])).expect_err("no runtime");
    assert_eq!(empty.to_string(), "--container-runtime-endpoint: containerRuntimeEndpoint: must not be empty");
}

#[test]
fn pod_logs_dir_is_absolute_clean_and_ascii() {
    let flagless = |dir: &str| format!("podLogsDir: \"{dir}\"");
    refused(&flagless("/var/log/../x"), "must be written shortest, as /var/x, found /var/log/../x");
    refused(&flagless("/var/log/pods/"), "must be written shortest, as /var/log/pods, found /var/log/pods/");
    refused(&flagless("/var/log//pods"), "must be written shortest, as /var/log/pods, found /var/log//pods");
    refused(&flagless("/var/log/é"), "must be plain ASCII, found /var/log/é");
    fine(&flagless("/var/log/other"));
}

#[test]
fn image_pulls_and_their_collection() {
    refused(
        "maxParallelImagePulls: 2\nserializeImagePulls: true",
        "must not be more than 1 while serializeImagePulls is true",
    );
    fine("maxParallelImagePulls: 1\nserializeImagePulls: true\n");
    refused(
        "imageGCHighThresholdPercent: 80",
        "imageGCHighThresholdPercent: low threshold must be below high threshold, found 80 and 80",
    );
    fine("imageGCHighThresholdPercent: 81\n");
}

#[test]
fn pull_credentials_policy() {
    let list = "imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages\n\
                preloadedImagesVerificationAllowlist:";
    for pattern in
        ["a", "a/b", "docker.io/library/a", "reg.io:5000/a", "localhost/x", "A/b", "reg.io/*", "a/*", "reg.io/a/*"]
    {
        fine(&format!("{list} ['{pattern}']\n"));
    }
    for pattern in ["a:v1", "*", "/*", "a*", " a", "a ", "a/*/b", "a@sha256:00", "", "a//b", "a/B"] {
        refused(&format!("{list} ['{pattern}']"), &format!("found {pattern:?}"));
    }
    refused("preloadedImagesVerificationAllowlist: [a]", "needs the policy NeverVerifyAllowlistedImages");
    let off = "featureGates: {KubeletEnsureSecretPulledImages: false}\n";
    refused(
        &format!("{off}imagePullCredentialsVerificationPolicy: NeverVerify"),
        "must be empty while the feature gate KubeletEnsureSecretPulledImages is off",
    );
    fine(off);
}

#[test]
fn reservations_and_enforcement() {
    refused("systemReserved: {foo: '1'}", "systemReserved.foo: expected one of cpu, memory, ephemeral-storage, pid");
    refused("kubeReserved: {cpu: '-1'}", "kubeReserved.cpu: must not be negative, found -1");
    refused("kubeReserved: {memory: 10%}", "found \"10%\"");
    fine("systemReserved: {cpu: 100m, memory: 1Gi, ephemeral-storage: 1G, pid: '100'}\n");
    refused("reservedSystemCPUs: x", "reservedSystemCPUs: expected a list of CPUs such as 0-3,8, found \"x\"");
    refused("reservedSystemCPUs: '0'\nsystemReservedCgroup: /a", "cannot be combined with systemReservedCgroup");
    refused("reservedSystemCPUs: '0'\nkubeReservedCgroup: /a", "cannot be combined with kubeReservedCgroup");
    let enforce = |list: &str| format!("enforceNodeAllocatable: [{list}]\n");
    refused(&enforce("foo"), "found \"foo\"");
    refused(&enforce("pods, pods"), "enforceNodeAllocatable[1]: pods is given twice");
    refused(&enforce("none, pods"), "none cannot be combined with others");
    refused(&enforce("system-reserved"), "system-reserved needs systemReservedCgroup");
    refused(&enforce("kube-reserved-compressible"), "kube-reserved-compressible needs kubeReservedCgroup");
    refused(
        &format!("{}systemReservedCgroup: /a", enforce("system-reserved, system-reserved-compressible")),
        "system-reserved and system-reserved-compressible exclude each other",
    );
    refused("cgroupsPerQOS: false", "cgroupsPerQOS: must be true to enforce node allocatable on pods");
    refused(&enforce("system-reserved-compressible"), "system-reserved-compressible needs systemReservedCgroup");
    refused(&enforce("kube-reserved"), "kube-reserved needs kubeReservedCgroup");
    refused(
        &format!("{}kubeReservedCgroup: /a", enforce("kube-reserved, kube-reserved-compressible")),
        "enforceNodeAllocatable: kube-reserved and kube-reserved-compressible exclude each other",
    );
    fine(&format!("cgroupsPerQOS: false\n{}", enforce("none")));
    fine(&format!("cgroupsPerQOS: false\n{}", enforce("")));
    fine(&format!("{}kubeReservedCgroup: /a\n", enforce("pods, kube-reserved")));
    refused("systemCgroups: /x", "systemCgroups: needs cgroupRoot");
    fine("systemCgroups: /x\ncgroupRoot: /\n");
}

#[test]
fn resource_managers() {
    let options = "cpuManagerPolicy: static\ncpuManagerPolicyOptions:";
    refused("cpuManagerPolicyOptions: {full-pcpus-only: 'true'}", "needs cpuManagerPolicy static");
    refused(&format!("{options} {{foo: 'true'}}"), "foo: unknown option of the CPU manager");
    refused(&format!("{options} {{full-pcpus-only: maybe}}"), "expected true or false, found \"maybe\"");
    refused(
        &format!("{options} {{align-by-socket: 'true'}}"),
        "align-by-socket: needs the feature gate CPUManagerPolicyAlphaOptions",
    );
    refused(
        &format!(
            "{options} {{distribute-cpus-across-numa: 'true'}}\nfeatureGates: {{CPUManagerPolicyBetaOptions: false}}"
        ),
        "needs the feature gate CPUManagerPolicyBetaOptions",
    );
    let alpha = "featureGates: {CPUManagerPolicyAlphaOptions: true}";
    for (one, other) in [
        ("full-pcpus-only", "distribute-cpus-across-cores"),
        ("distribute-cpus-across-numa", "distribute-cpus-across-cores"),
        ("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-cores"),
        ("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-numa"),
    ] {
        let both = |second: &str| format!("{options} {{{one}: 'true', {other}: '{second}'}}\n{alpha}\n");
        refused(&both("true"), &format!("cpuManagerPolicyOptions: {one} and {other} exclude each other"));
        fine(&both("false"));
    }
    refused(
        &format!("{options} {{align-by-socket: 'true'}}\ntopologyManagerPolicy: single-numa-node\n{alpha}"),
        "cpuManagerPolicyOptions: align-by-socket and topologyManagerPolicy single-numa-node exclude each other",
    );
    fine(&format!("{options} {{full-pcpus-only: 'true', strict-cpu-reservation: 'true'}}\n"));
    refused("topologyManagerPolicyOptions: {foo: 'true'}", "foo: unknown option of the topology manager");
    refused(
        "topologyManagerPolicyOptions: {max-allowable-numa-nodes: '7'}",
        "expected a number from 8 up, found \"7\"",
    );
    fine("topologyManagerPolicyOptions: {max-allowable-numa-nodes: '9', prefer-closest-numa-nodes: 'true'}\n");
    let memory = |limits: &str| format!("reservedMemory: [{limits}]\n");
    refused(
        &memory("{numaNode: 0, limits: {foo: 1Gi}}"),
        "reservedMemory[0].limits.foo: expected memory or hugepages-<size>",
    );
    refused(&memory("{numaNode: 0, limits: {memory: 0}}"), "must be more than zero, found 0");
    refused(
        &memory("{numaNode: 0, limits: {memory: 1Gi}}, {numaNode: 0, limits: {memory: 2Gi}}"),
        "reservedMemory[1].limits.memory: is given twice for NUMA node 0",
    );
    fine(&memory("{numaNode: 0, limits: {memory: 1Gi, hugepages-2Mi: 2Mi}}, {numaNode: 1, limits: {memory: 1Gi}}"));
    refused("memoryReservationPolicy: TieredReservation", "TieredReservation needs the feature gate MemoryQoS");
    fine("memoryReservationPolicy: TieredReservation\nfeatureGates: {MemoryQoS: true}\n");
    refused("qosReserved: {memory: 50%}", "needs the feature gate QOSReserved");
    let qos = "featureGates: {QOSReserved: true}\nqosReserved:";
    refused(&format!("{qos} {{cpu: 50%}}"), "qosReserved.cpu: only memory can be reserved");
    refused(&format!("{qos} {{memory: '50'}}"), "expected a percentage from 0% to 100%, found \"50\"");
    refused(&format!("{qos} {{memory: 101%}}"), "expected a percentage from 0% to 100%, found \"101%\"");
    fine(&format!("{qos} {{memory: 50%}}\n"));
    for ids in ["65535", "131073", "4294967296"] {
        refused(&format!("userNamespaces: {{idsPerPod: {ids}}}"), &format!("up to 4294967295, found {ids}"));
    }
    fine("userNamespaces: {idsPerPod: 131072}\n");
}

#[test]
fn eviction_thresholds() {
    refused("evictionHard: {memory.free: 1Mi}", "nodefs.available, nodefs.inodesFree, pid.available");
    refused("evictionHard: {memory.available: '0'}", "evictionHard[memory.available]: must be more than zero, found 0");
    refused("evictionHard: {memory.available: 101%}", "percentage must be from 0 to 100, found 101%");
    refused("evictionHard: {allocatableMemory.available: 1Mi}", "is set by the agent itself, from memory.available");
    refused(
        "evictionSoft: {memory.available: 1Gi}",
        "evictionSoft[memory.available]: needs an entry in evictionSoftGracePeriod",
    );
    refused("evictionSoftGracePeriod: {memory.available: -1m}", "must not be negative, found -1m");
    refused("evictionMinimumReclaim: {memory.available: 0%}", "must be more than zero, found 0%");
    fine(
        "evictionSoft: {memory.available: 1Gi}\nevictionSoftGracePeriod: {memory.available: 0s}\n\
          evictionMinimumReclaim: {memory.available: '0'}\nevictionHard: {memory.available: 0%}\n",
    );
}

#[test]
fn shutdown() {
    refused(
        "shutdownGracePeriod: 30s\nshutdownGracePeriodCriticalPods: 40s",
        "must not be more than shutdownGracePeriod",
    );
    refused("shutdownGracePeriod: 30s\nshutdownGracePeriodCriticalPods: 500ms", "must be 0s or at least 1s");
    refused(
        "shutdownGracePeriod: 30s\nfeatureGates: {GracefulNodeShutdown: false}",
        "needs the feature gate GracefulNodeShutdown",
    );
    let bands = "shutdownGracePeriodByPodPriority: [{priority: 1, shutdownGracePeriodSeconds: 2}]\n";
    fine(bands);
    refused(
        &format!("{bands}shutdownGracePeriod: 30s"),
        "cannot be combined with shutdownGracePeriod and shutdownGracePeriodCriticalPods",
    );
    refused(
        &format!("{bands}featureGates: {{GracefulNodeShutdownBasedOnPodPriority: false}}"),
        "needs the feature gate GracefulNodeShutdownBasedOnPodPriority",
    );
}

#[test]
fn tls() {
    refused("tlsCipherSuites: [foo]", "tlsCipherSuites[0]: unknown cipher suite foo");
    refused("tlsCertFile: /c", "tlsCertFile: needs tlsPrivateKeyFile");
    refused("tlsPrivateKeyFile: /k", "tlsPrivateKeyFile: needs tlsCertFile");
    refused("readOnlyPort: 10250", "readOnlyPort: port and readOnlyPort must differ, found 10250 twice");
    fine("tlsCertFile: /c\ntlsPrivateKeyFile: /k\nreadOnlyPort: 10255\n");
    fine("tlsCertFile: /c\nreadOnlyPort: 10250\nenableServer: false\n");
    refused("tlsCurvePreferences: [29, 1]", "tlsCurvePreferences[1]: unknown key exchange group 1");
    refused(
        "serverTLSBootstrap: true\nfeatureGates: {RotateKubeletServerCertificate: false}",
        "needs the feature gate RotateKubeletServerCertificate",
    );
    fine("tlsCipherSuites: [TLS_RSA_WITH_RC4_128_SHA]\ntlsCurvePreferences: [29, 4588]\nserverTLSBootstrap: true\n");
}

#[test]
fn logging() {
    refused(
        "logging: {format: json, vmodule: [{filePattern: a, verbosity: 1}]}",
        "logging.vmodule: works with the text format only",
    );
    for pattern in ["", "a=b", "a,b"] {
        refused(
            &format!("logging: {{vmodule: [{{filePattern: '{pattern}', verbosity: 1}}]}}"),
            &format!("found {pattern:?}"),
        );
    }
    refused("logging: {verbosity: 3000000000}", "must be at least 0, found 3000000000");
    let buffer = "logging: {options: {json: {infoBufferSize: 1Mi}}}\n";
    refused(buffer, "logging.options.json.infoBufferSize: needs the feature gate LoggingAlphaOptions");
    fine(&format!("{buffer}featureGates: {{LoggingAlphaOptions: true}}\n"));
}

#[test]
fn gates() {
    refused(
        "featureGates: {MemoryQos: true}",
        ":3: featureGates.MemoryQos: unknown feature gate MemoryQos; the nearest known one is MemoryQoS",
    );
    refused("featureGates: {NodeSwap: false}", "feature gate NodeSwap is locked to true");
    fine("featureGates: {NodeSwap: true, AllAlpha: false, APIServerTracing: false}\n");
    let flag = Settings::load(&given(&["feature-gates=Foo=true,MemoryQoS=x"])).expect_err("bad");
    assert_eq!(flag.to_string(), "--feature-gates: featureGates: gate MemoryQoS: expected true or false, found \"x\"");
    let flag = Settings::load(&given(&["feature-gates=NodeSwap=false"])).expect_err("locked");
    assert_eq!(flag.to_string(), "--feature-gates: featureGates.NodeSwap: feature gate NodeSwap is locked to true");
}

#[test]
fn the_rest() {
    refused("runOnce: true", "runOnce: was removed and must be false");
    refused("enableSystemLogQuery: true\nenableSystemLogHandler: false", "needs enableSystemLogHandler");
    refused(
        "allowedUnsafeSysctls: [vm.swappiness]",
        "allowedUnsafeSysctls[0]: \"vm.swappiness\" is not of a namespace, so no pod may set it",
    );
    refused(
        "containerLogMaxSize: foo",
        "containerLogMaxSize: expected a quantity such as 100Mi, 250m or 1.5, found \"foo\"",
    );
    refused("containerLogMaxSize: 0.5", "expected a text, found the number 0.5");
    refused("containerLogMaxSize: 500m", "expected a whole number of bytes, found \"500m\"");
    let period = |text: &str| format!("crashLoopBackOff: {{maxContainerRestartPeriod: {text}}}\n");
    for short_or_long in ["0s", "999ms", "300001ms"] {
        refused(&period(short_or_long), "");
        let reasons = Files::new(&[("main.yaml", &period(short_or_long))]).refused(&[]);
        assert!(reasons.contains("must be from 1s to 5m0s"), "{reasons}");
    }
    refused(
        &format!("{}featureGates: {{KubeletCrashLoopBackOffMax: false}}", period("10s")),
        "needs the feature gate KubeletCrashLoopBackOffMax",
    );
    fine(&period("10s"));
    refused(
        "registerWithTaints: [{key: a, effect: x}]",
        "registerWithTaints[0]: taint effect must be one of NoSchedule, PreferNoSchedule, NoExecute, found \"x\"",
    );
    refused(
        "registerWithTaints: [{key: a, effect: NoExecute, timeAdded: '2024-01-01T00:00:00Z'}]",
        "taint a must not carry timeAdded",
    );
    refused("registerWithTaints: [{effect: NoExecute}]", "63 letters, digits, -, _ and .");
}

#[test]
fn several_broken_rules_are_told_at_once() {
    let reasons =
        Files::new(&[("main.yaml", "port: 0\nmaxPods: -1\nhealthzPort: 70000\n")]).refused(&["oom-score-adj=2000"]);
    assert_eq!(reasons.lines().count(), 3, "{reasons}");
    let reasons = Files::new(&[("main.yaml", "runOnce: true\nsystemCgroups: /x\ntlsCipherSuites: [a]\n")]).refused(&[]);
    assert_eq!(reasons.lines().count(), 3, "{reasons}");
}

/// What a flag without a field comes to.
fn option<T>(flags: &[&str], take: impl Fn(&crate::config::Options) -> T) -> T {
    take(&Settings::load(&given(flags)).unwrap_or_else(|e| panic!("{flags:?}: {e}")).flags)
}

fn option_refused(flag: &str, expected: &str) {
    let error = Settings::load(&given(&[flag])).expect_err(flag).to_string();
    assert!(error.ends_with(expected), "{flag}: {error}");
}

#[test]
fn options_have_upstreams_defaults() {
    let options = option(&[], Clone::clone);
    assert_eq!(options.root_dir.to_str(), Some("/var/lib/kubelet"));
    assert_eq!(options.cert_dir.to_str(), Some("/var/lib/kubelet/pki"));
    assert_eq!(options.kubeconfig, None);
    assert_eq!(options.node_ip, NodeIp::Unset);
    assert_eq!(options.dead_containers_per_container_max, 1);
    assert_eq!(options.dead_containers_max, None);
    assert_eq!(options.housekeeping_interval.as_secs(), 10);
    assert_eq!(options.version, VERSION);
}

#[test]
fn node_ip() {
    let ip = |text: &str| option(&[&format!("node-ip={text}")], |o| o.node_ip);
    let parse = |text: &str| text.parse().expect("an address");
    assert_eq!(ip(""), NodeIp::Unset);
    assert_eq!(ip("0.0.0.0"), NodeIp::PreferV4);
    assert_eq!(ip("::"), NodeIp::PreferV6);
    assert_eq!(ip("10.0.0.1"), NodeIp::Single(parse("10.0.0.1")));
    assert_eq!(ip("fd00::1,10.0.0.1"), NodeIp::Dual(parse("fd00::1"), parse("10.0.0.1")));
    option_refused("node-ip=x", "expected an IP address, found \"x\"");
    option_refused("node-ip=127.0.0.1", "is a loopback address, which no other node could reach");
    option_refused("node-ip=224.0.0.1", "is a multicast address, which no other node could reach");
    option_refused("node-ip=169.254.0.1", "is a link-local address, which no other node could reach");
    option_refused(
        "node-ip=10.0.0.1,0.0.0.0",
        "expected one address, or one IPv4 and one IPv6, found 10.0.0.1,0.0.0.0",
    );
    option_refused("node-ip=10.0.0.1,::", ":: is an unspecified address, which no other node could reach");
    option_refused(
        "node-ip=10.0.0.1,10.0.0.2",
        "expected one address, or one IPv4 and one IPv6, found 10.0.0.1,10.0.0.2",
    );
}

#[test]
fn identity_of_the_node() {
    let name = |text: &str| option(&[&format!("hostname-override={text}")], |o| o.hostname_override.clone());
    assert_eq!(name(""), None);
    assert_eq!(name(" Node-A.example "), Some("node-a.example".to_owned()));
    option_refused("hostname-override= ", "expected a lower-case DNS name, found \" \"");
    option_refused("hostname-override=a_b", "expected a lower-case DNS name, found \"a_b\"");
    let labels = option(&["node-labels=a=b,c=", "node-labels=a=d,node.kubernetes.io/x=1,e"], |o| o.node_labels.clone());
    let labels: Vec<_> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(labels, [("a", "d"), ("c", ""), ("e", ""), ("node.kubernetes.io/x", "1")]);
    option_refused("node-labels=a=b c", "63 letters, digits, -, _ and .");
    option_refused("node-labels=kubernetes.io/role=x", "topology.kubernetes.io/zone");
    assert!(option(&["cloud-provider=external"], |o| o.cloud_provider_external));
    option_refused("cloud-provider=aws", "expected nothing or external, found \"aws\"");
}

#[test]
fn options_of_the_process() {
    option_refused("exit-on-lock-contention=true", "--exit-on-lock-contention: needs --lock-file");
    assert!(option(&["exit-on-lock-contention=true", "lock-file=/x"], |o| o.exit_on_lock_contention));
    option_refused("root-dir=", "--root-dir: must not be empty");
    option_refused("housekeeping-interval=x", "found \"x\"");
    option_refused("max-housekeeping-interval=5", "needs a unit: one of ns, us, ms, s, m, h");
    option_refused("enable-load-reader=x", "--enable-load-reader: expected true or false, found \"x\"");
    option_refused("maximum-dead-containers=99999999999", "expected a whole number of 32 bits, found 99999999999");
    let reported = format!("{}-custom", VERSION.split('+').next().expect("split gives one"));
    assert_eq!(option(&[&format!("version={reported}")], |o| o.version.clone()), reported);
    option_refused("version=v1.30.0", "expected a version of the release v1.36.2");
}
