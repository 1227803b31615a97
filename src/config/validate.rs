//! Rules the effective configuration must satisfy, all of them checked in one go.

use serde_json::Value;

use super::duration::GoDuration;
use super::field::{Field, Rule};
use super::fields::FIELDS;
use super::gates::{FeatureGates, Gate};
use super::kubelet::KubeletConfiguration;
use super::path::FieldPath;
use super::thresholds::Signal;
use super::tree::{Origin, Tree};
use super::words::{
    CpuManagerPolicy, Enforcement, LogFormat, MemoryReservationPolicy, PullCredentialsPolicy, TopologyManagerPolicy,
};
use super::{sysctls, tls};

pub type Wrong = Vec<(FieldPath, String)>;

/// Checks every field against the rule of its own.
pub fn check_rules(tree: &Tree) -> Wrong {
    let check = |field: &Field| {
        let path = FieldPath::of_field(field.path);
        let reason = broken_rule(&field.rule, tree.get(&path)?)?;
        Some((path, reason))
    };
    FIELDS.iter().filter_map(check).collect()
}

fn broken_rule(rule: &Rule, value: &Value) -> Option<String> {
    match rule {
        Rule::Any => None,
        Rule::Within(min, max) => {
            let number = value.as_i64()?;
            (number < *min || number > *max).then(|| match *max {
                i64::MAX => format!("must be at least {min}, found {number}"),
                max if max == i64::from(i32::MAX) => {
                    format!("must be at least {min}, found {number}")
                }
                max => format!("must be from {min} to {max}, found {number}"),
            })
        }
        Rule::Lasts(min, max) => {
            let duration = |text| GoDuration::parse(text).ok();
            let (found, min, max) = (duration(value.as_str()?)?, duration(min)?, duration(max)?);
            (found < min || found > max).then(|| match min.nanos() {
                1 => format!("must be more than 0s, found {found}"),
                _ if max.nanos() > 3_600_000_000_000 => {
                    format!("must be at least {min}, found {found}")
                }
                _ => format!("must be from {min} to {max}, found {found}"),
            })
        }
        Rule::OneOf(words) => {
            let word = value.as_str()?;
            let named: Vec<_> = words.iter().copied().filter(|w| !w.is_empty()).collect();
            (!words.contains(&word)).then(|| format!("must be one of {}, found {word:?}", named.join(", ")))
        }
        Rule::IpAddress => {
            let text = value.as_str()?;
            let wrong = text.parse::<std::net::IpAddr>().is_err();
            wrong.then(|| format!("expected an IP address, found {text:?}"))
        }
        Rule::NonEmpty => value.as_str()?.is_empty().then(|| "must not be empty".to_owned()),
    }
}

/// Checks what lies between fields, or is more than one rule of the table can say.
pub fn check(k: &KubeletConfiguration, tree: &Tree, gates: &FeatureGates) -> Wrong {
    let mut found = Found { tree, wrong: Vec::new() };
    paths(&mut found, k);
    images(&mut found, k, gates);
    resources(&mut found, k, gates);
    eviction(&mut found, k);
    shutdown(&mut found, k, gates);
    tls_and_credentials(&mut found, k, gates);
    logging(&mut found, k, gates);
    the_rest(&mut found, k, gates);
    found.wrong
}

struct Found<'t> {
    tree: &'t Tree,
    wrong: Wrong,
}

impl Found<'_> {
    fn when(&mut self, wrong: bool, path: &str, reason: impl Into<String>) {
        if wrong {
            self.wrong.push((FieldPath::of_field(path), reason.into()));
        }
    }

    /// Something is wrong between fields; it is told of the first one that somebody set.
    fn between(&mut self, wrong: bool, paths: &[&str], reason: impl Into<String>) {
        let given = |path: &&&str| self.tree.origin(&FieldPath::of_field(path)) != Origin::Default;
        if let Some(path) = paths.iter().find(given).or(paths.first()) {
            self.when(wrong, path, reason);
        }
    }

    fn below(&mut self, path: &str, key: impl ToString, reason: impl Into<String>) {
        self.wrong.push((FieldPath::of_field(path).child(key), reason.into()));
    }
}

fn paths(found: &mut Found<'_>, k: &KubeletConfiguration) {
    let text = k.pod_logs_dir.to_string_lossy();
    let path = "podLogsDir";
    if !text.is_empty() {
        let clean = super::kind::lexically_clean(&k.pod_logs_dir);
        found.when(!k.pod_logs_dir.is_absolute(), path, format!("must be absolute, found {text}"));
        found.when(
            clean.as_os_str() != k.pod_logs_dir.as_os_str(),
            path,
            format!("must be written shortest, as {}, found {text}", clean.display()),
        );
        // Container runtimes put this path into log file names and symlinks.
        found.when(!text.is_ascii(), path, format!("must be plain ASCII, found {text}"));
    }
}

fn images(found: &mut Found<'_>, k: &KubeletConfiguration, gates: &FeatureGates) {
    let pulls = k.max_parallel_image_pulls;
    found.when(
        k.serialize_image_pulls && pulls.is_some_and(|n| n > 1),
        "maxParallelImagePulls",
        "must not be more than 1 while serializeImagePulls is true",
    );
    let (low, high) = (k.image_gc_low_threshold_percent, k.image_gc_high_threshold_percent);
    found.between(
        high <= low,
        &["imageGCLowThresholdPercent", "imageGCHighThresholdPercent"],
        format!("low threshold must be below high threshold, found {low} and {high}"),
    );
    found.when(
        k.image_maximum_gc_age.is_some_and(|max| max <= k.image_minimum_gc_age),
        "imageMaximumGCAge",
        "must be more than imageMinimumGCAge",
    );
    let policy = k.image_pull_credentials_verification_policy;
    let path = "imagePullCredentialsVerificationPolicy";
    let gate_on = gates.enabled(Gate::KubeletEnsureSecretPulledImages);
    found.when(
        !gate_on && policy != PullCredentialsPolicy::Unset,
        path,
        "must be empty while the feature gate KubeletEnsureSecretPulledImages is off",
    );
    found.when(gate_on && policy == PullCredentialsPolicy::Unset, path, "must not be empty");
    let path = "preloadedImagesVerificationAllowlist";
    let allowlist = &k.preloaded_images_verification_allowlist;
    found.when(
        !allowlist.is_empty() && policy != PullCredentialsPolicy::NeverVerifyAllowlistedImages,
        path,
        "needs the policy NeverVerifyAllowlistedImages",
    );
    for (index, pattern) in allowlist.iter().enumerate() {
        if !is_image_pattern(pattern) {
            let reason =
                format!("expected an image name without tag or digest, or one ending in /*, found {pattern:?}");
            found.below(path, index, reason);
        }
    }
}

/// An image name without tag and digest, or a prefix of names that ends in `/*`.
fn is_image_pattern(pattern: &str) -> bool {
    let name = pattern.strip_suffix("/*").unwrap_or(pattern);
    let (host, path) = match name.split_once('/') {
        // The first part is a registry when it could be a host name.
        Some((host, path)) if is_host(host) => (host, path),
        _ => ("", name),
    };
    let host_ok = host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b));
    let part_ok = |part: &str| {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        part.bytes().next().is_some_and(plain)
            && part.bytes().last().is_some_and(plain)
            && part.bytes().all(|b| plain(b) || b"._-".contains(&b))
    };
    // `registry.example/*` is a prefix without any path.
    let only_host = pattern.ends_with("/*") && host.is_empty() && name.contains(['.', ':']);
    host_ok && (only_host || path.split('/').all(part_ok))
}

/// Whether the first part of an image name can only be a registry.
fn is_host(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':']) || part.bytes().any(|b| b.is_ascii_uppercase())
}

fn resources(found: &mut Found<'_>, k: &KubeletConfiguration, gates: &FeatureGates) {
    let root = FieldPath::of_field("cgroupRoot");
    let root_given = found.tree.get(&root).is_some_and(|root| root != "");
    found.when(
        k.cpu_cfs_quota_period.as_millis() != 100 && !gates.enabled(Gate::CustomCPUCFSQuotaPeriod),
        "cpuCFSQuotaPeriod",
        "needs the feature gate CustomCPUCFSQuotaPeriod to be anything but 100ms",
    );
    found.when(
        // The root that cgroupsPerQOS brings along does not count, as upstream.
        !k.system_cgroups.is_empty() && !root_given,
        "systemCgroups",
        "needs cgroupRoot",
    );
    enforcement(found, k);
    let explicit = !k.reserved_system_cpus.is_empty();
    for (cgroup, path) in
        [(&k.system_reserved_cgroup, "systemReservedCgroup"), (&k.kube_reserved_cgroup, "kubeReservedCgroup")]
    {
        found.when(explicit && !cgroup.is_empty(), "reservedSystemCPUs", format!("cannot be combined with {path}"));
    }
    found.when(
        !k.qos_reserved.is_empty() && !gates.enabled(Gate::QOSReserved),
        "qosReserved",
        "needs the feature gate QOSReserved",
    );
    policy_options(found, k, gates);
    for (index, node) in k.reserved_memory.iter().enumerate() {
        let at = |name: &str| FieldPath::of_field("reservedMemory").child(index).child("limits").child(name);
        for (name, amount) in &node.limits {
            if name != "memory" && !name.starts_with("hugepages-") {
                found.wrong.push((at(name), "expected memory or hugepages-<size>".to_owned()));
            }
            if amount.is_zero() || amount.is_negative() {
                found.wrong.push((at(name), format!("must be more than zero, found {amount}")));
            }
            let earlier = &k.reserved_memory[..index];
            if earlier.iter().any(|n| n.numa_node == node.numa_node && n.limits.contains_key(name)) {
                let reason = format!("is given twice for NUMA node {}", node.numa_node);
                found.wrong.push((at(name), reason));
            }
        }
    }
    found.when(
        !(k.memory_throttling_factor > 0.0 && k.memory_throttling_factor <= 1.0),
        "memoryThrottlingFactor",
        format!("must be more than 0 and at most 1, found {}", k.memory_throttling_factor),
    );
    found.when(
        k.memory_reservation_policy == MemoryReservationPolicy::TieredReservation && !gates.enabled(Gate::MemoryQoS),
        "memoryReservationPolicy",
        "TieredReservation needs the feature gate MemoryQoS",
    );
    let ids = k.user_namespaces_ids_per_pod;
    found.when(
        ids.is_some_and(|n| n < 65_536 || n % 65_536 != 0 || n > i64::from(u32::MAX)),
        "userNamespaces.idsPerPod",
        format!("must be a multiple of 65536 up to 4294967295, found {}", ids.unwrap_or_default()),
    );
}

fn enforcement(found: &mut Found<'_>, k: &KubeletConfiguration) {
    use Enforcement::{KubeReserved, KubeReservedCompressible, None, SystemReserved, SystemReservedCompressible};
    let path = "enforceNodeAllocatable";
    let on = &k.enforce_node_allocatable;
    for (index, what) in on.iter().enumerate() {
        if on[..index].contains(what) {
            found.below(path, index, format!("{what} is given twice"));
        }
        let (cgroup, field) = match what {
            SystemReserved | SystemReservedCompressible => (&k.system_reserved_cgroup, "systemReservedCgroup"),
            KubeReserved | KubeReservedCompressible => (&k.kube_reserved_cgroup, "kubeReservedCgroup"),
            _ => continue,
        };
        if cgroup.is_empty() {
            found.below(path, index, format!("{what} needs {field}"));
        }
    }
    let levels = on.iter().filter(|what| **what != None).map(|what| what.as_str());
    let levels = levels.collect::<Vec<_>>().join(", ");
    found.between(
        !levels.is_empty() && !k.cgroups_per_qos,
        &["cgroupsPerQOS", path],
        format!("must be true to enforce node allocatable on {levels}"),
    );
    found.when(on.contains(&None) && on.len() > 1, path, "none cannot be combined with others");
    for (whole, part) in [(SystemReserved, SystemReservedCompressible), (KubeReserved, KubeReservedCompressible)] {
        found.when(on.contains(&whole) && on.contains(&part), path, format!("{whole} and {part} exclude each other"));
    }
}

/// How far an option of a resource manager has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Maturity {
    Stable,
    Beta,
    Alpha,
}

const CPU_OPTIONS: &[(&str, Maturity)] = &[
    ("full-pcpus-only", Maturity::Stable),
    ("strict-cpu-reservation", Maturity::Stable),
    ("prefer-align-cpus-by-uncorecache", Maturity::Stable),
    ("distribute-cpus-across-numa", Maturity::Beta),
    ("align-by-socket", Maturity::Alpha),
    ("distribute-cpus-across-cores", Maturity::Alpha),
];

const TOPOLOGY_OPTIONS: &[(&str, Maturity)] =
    &[("prefer-closest-numa-nodes", Maturity::Stable), ("max-allowable-numa-nodes", Maturity::Stable)];

fn policy_options(found: &mut Found<'_>, k: &KubeletConfiguration, gates: &FeatureGates) {
    let path = "cpuManagerPolicyOptions";
    let options = &k.cpu_manager_policy_options;
    found.when(
        !options.is_empty() && k.cpu_manager_policy != CpuManagerPolicy::Static,
        path,
        "needs cpuManagerPolicy static",
    );
    let is_on = |name: &str| options.get(name).is_some_and(|value| super::flags::boolean(value) == Ok(true));
    for (name, value) in options {
        let needed = match CPU_OPTIONS.iter().find(|(known, _)| known == name) {
            None => {
                found.below(path, name, "unknown option of the CPU manager");
                continue;
            }
            Some((_, Maturity::Stable)) => None,
            Some((_, Maturity::Beta)) => Some(Gate::CPUManagerPolicyBetaOptions),
            Some((_, Maturity::Alpha)) => Some(Gate::CPUManagerPolicyAlphaOptions),
        };
        if let Some(gate) = needed.filter(|gate| !gates.enabled(*gate)) {
            found.below(path, name, format!("needs the feature gate {gate:?}"));
        }
        if super::flags::boolean(value).is_err() {
            found.below(path, name, format!("expected true or false, found {value:?}"));
        }
    }
    for (one, other) in [
        ("full-pcpus-only", "distribute-cpus-across-cores"),
        ("distribute-cpus-across-numa", "distribute-cpus-across-cores"),
        ("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-cores"),
        ("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-numa"),
    ] {
        found.when(is_on(one) && is_on(other), path, format!("{one} and {other} exclude each other"));
    }
    found.when(
        is_on("align-by-socket") && k.topology_manager_policy == TopologyManagerPolicy::SingleNumaNode,
        path,
        "align-by-socket and topologyManagerPolicy single-numa-node exclude each other",
    );
    let path = "topologyManagerPolicyOptions";
    for (name, value) in &k.topology_manager_policy_options {
        if !TOPOLOGY_OPTIONS.iter().any(|(known, _)| known == name) {
            found.below(path, name, "unknown option of the topology manager");
        } else if name == "max-allowable-numa-nodes" {
            if !value.parse::<u32>().is_ok_and(|n| n >= 8) {
                found.below(path, name, format!("expected a number from 8 up, found {value:?}"));
            }
        } else if super::flags::boolean(value).is_err() {
            found.below(path, name, format!("expected true or false, found {value:?}"));
        }
    }
}

fn eviction(found: &mut Found<'_>, k: &KubeletConfiguration) {
    for signal in k.eviction_soft.keys() {
        if !k.eviction_soft_grace_period.contains_key(signal) {
            let reason = "needs an entry in evictionSoftGracePeriod";
            found.below("evictionSoft", signal, reason);
        }
    }
    for (path, thresholds) in [("evictionHard", &k.eviction_hard), ("evictionSoft", &k.eviction_soft)] {
        if thresholds.contains_key(&Signal::AllocatableMemoryAvailable) {
            let reason = "is set by the agent itself, from memory.available";
            found.below(path, Signal::AllocatableMemoryAvailable, reason);
        }
    }
}

fn shutdown(found: &mut Found<'_>, k: &KubeletConfiguration, gates: &FeatureGates) {
    let (all, critical) = (k.shutdown_grace_period, k.shutdown_grace_period_critical_pods);
    let wanted = !all.is_zero() || !critical.is_zero();
    let too_short = |d: std::time::Duration| !d.is_zero() && d.as_secs() < 1;
    found.when(too_short(all), "shutdownGracePeriod", "must be 0s or at least 1s");
    let path = "shutdownGracePeriodCriticalPods";
    found.when(too_short(critical), path, "must be 0s or at least 1s");
    found.when(critical > all, path, "must not be more than shutdownGracePeriod");
    found.when(
        wanted && !gates.enabled(Gate::GracefulNodeShutdown),
        "shutdownGracePeriod",
        "needs the feature gate GracefulNodeShutdown",
    );
    let bands = !k.shutdown_grace_period_by_pod_priority.is_empty();
    let path = "shutdownGracePeriodByPodPriority";
    found.when(
        bands && wanted,
        path,
        "cannot be combined with shutdownGracePeriod and shutdownGracePeriodCriticalPods",
    );
    found.when(
        bands && !gates.enabled(Gate::GracefulNodeShutdownBasedOnPodPriority),
        path,
        "needs the feature gate GracefulNodeShutdownBasedOnPodPriority",
    );
}

fn tls_and_credentials(found: &mut Found<'_>, k: &KubeletConfiguration, gates: &FeatureGates) {
    for (index, suite) in k.tls.cipher_suites.iter().enumerate() {
        if !tls::CIPHER_SUITES.contains(&suite.as_str()) {
            found.below("tlsCipherSuites", index, format!("unknown cipher suite {suite}"));
        }
    }
    for (index, curve) in k.tls.curve_preferences.iter().enumerate() {
        if !tls::CURVES.contains(curve) {
            found.below("tlsCurvePreferences", index, format!("unknown key exchange group {curve}"));
        }
    }
    let tls = &k.tls;
    let paths = ["tlsCertFile", "tlsPrivateKeyFile"];
    for (path, other, lonely) in [
        (paths[0], paths[1], tls.cert_file.is_some() && tls.private_key_file.is_none()),
        (paths[1], paths[0], tls.private_key_file.is_some() && tls.cert_file.is_none()),
    ] {
        found.when(k.enable_server && lonely, path, format!("needs {other}"));
    }
    found.between(
        k.enable_server && k.read_only_port == Some(k.port),
        &["readOnlyPort", "port"],
        format!("port and readOnlyPort must differ, found {} twice", k.port),
    );
    found.when(
        k.server_tls_bootstrap && !gates.enabled(Gate::RotateKubeletServerCertificate),
        "serverTLSBootstrap",
        "needs the feature gate RotateKubeletServerCertificate",
    );
}

fn logging(found: &mut Found<'_>, k: &KubeletConfiguration, gates: &FeatureGates) {
    let log = &k.logging;
    found.when(
        !log.vmodule.is_empty() && log.format != LogFormat::Text,
        "logging.vmodule",
        "works with the text format only",
    );
    for (index, module) in log.vmodule.iter().enumerate() {
        let pattern = &module.file_pattern;
        if pattern.is_empty() || pattern.contains(['=', ',']) {
            let reason = format!("expected a file name pattern without = and comma, found {pattern:?}");
            let path = FieldPath::of_field("logging.vmodule").child(index).child("filePattern");
            found.wrong.push((path, reason));
        }
    }
    let alpha = gates.enabled(Gate::LoggingAlphaOptions);
    for (name, streams) in [("text", &log.text), ("json", &log.json)] {
        // Split streams have the same gate in upstream's documentation; its check lets them pass.
        found.when(
            !streams.info_buffer_bytes.is_zero() && !alpha,
            &format!("logging.options.{name}.infoBufferSize"),
            "needs the feature gate LoggingAlphaOptions",
        );
    }
}

fn the_rest(found: &mut Found<'_>, k: &KubeletConfiguration, gates: &FeatureGates) {
    found.when(k.run_once, "runOnce", "was removed and must be false");
    found.when(
        k.enable_system_log_query && !k.enable_system_log_handler,
        "enableSystemLogQuery",
        "needs enableSystemLogHandler",
    );
    for (index, pattern) in k.allowed_unsafe_sysctls.iter().enumerate() {
        if let Err(reason) = sysctls::check_pattern(pattern) {
            found.below("allowedUnsafeSysctls", index, reason);
        }
    }
    let path = "crashLoopBackOff.maxContainerRestartPeriod";
    let period = k.max_container_restart_period;
    let gate_on = gates.enabled(Gate::KubeletCrashLoopBackOffMax);
    found.when(period.is_some() && !gate_on, path, "needs the feature gate KubeletCrashLoopBackOffMax");
    found.when(
        gate_on && period.is_some_and(|p| p.as_millis() < 1_000 || p.as_millis() > 300_000),
        path,
        format!("must be from 1s to 5m0s, found {:?}", period.unwrap_or_default()),
    );
    if let Some(endpoint) = &k.tracing.endpoint {
        let scheme = endpoint.split_once("://").map(|(scheme, _)| scheme);
        let known = scheme.is_none_or(|s| ["none", "dns", "unix", "unix-abstract"].contains(&s));
        found.when(
            !known,
            "tracing.endpoint",
            format!("expected no scheme, dns, unix or unix-abstract, found {endpoint:?}"),
        );
    }
}
