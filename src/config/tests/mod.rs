//! Loading as a whole: layers, defaults, documents, warnings. `rules.rs` has the validations.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use super::*;

mod layers;
mod rules;

const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

/// What a configuration file comes to, for tests of those who read it.
pub fn settings(yaml: &str) -> Settings {
    Files::new(&[("main.yaml", yaml)]).fine(&[])
}

/// A directory of configuration files, gone when dropped.
struct Files(PathBuf);

impl Files {
    /// Writes `main.yaml` and drop-ins; every text gets its apiVersion and kind.
    fn new(files: &[(&str, &str)]) -> Files {
        let files: Vec<_> = files.iter().map(|(n, text)| (*n, format!("{HEAD}{text}"))).collect();
        Files::raw(&files.iter().map(|(n, text)| (*n, text.as_str())).collect::<Vec<_>>())
    }

    fn raw(files: &[(&str, &str)]) -> Files {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ferrolet-config-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        for (name, text) in files {
            let file = directory.join(name);
            fs::create_dir_all(file.parent().expect("a file has a directory")).expect("temp dir");
            fs::write(file, text).expect("a fresh temp directory can be written");
        }
        Files(directory)
    }

    /// Loads `main.yaml` and the directory `d`, where they are there, and the flags.
    fn load(&self, flags: &[&str]) -> Result<Settings, ConfigErrors> {
        let mut given = given(flags);
        for (flag, name) in [("config", "main.yaml"), ("config-dir", "d")] {
            let path = self.0.join(name);
            if path.exists() {
                let flag = flags::find(flag).expect("a flag of ours");
                given.uses.push((flag, path.to_string_lossy().into_owned()));
            }
        }
        Settings::load(&given)
    }

    fn fine(&self, flags: &[&str]) -> Settings {
        self.load(flags).unwrap_or_else(|errors| panic!("refused: {errors}"))
    }

    /// The reasons against it, with the temp directory cut off.
    fn refused(&self, flags: &[&str]) -> String {
        let errors = self.load(flags).expect_err("should be refused").to_string();
        self.shorten(&errors)
    }

    /// The warnings, one a line, with the temp directory cut off.
    fn warnings(&self, flags: &[&str]) -> Vec<String> {
        let warnings = self.fine(flags).warnings;
        warnings.iter().map(|warning| self.shorten(&warning.to_string())).collect()
    }

    fn shorten(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.display()), "")
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Flags written `name=value`.
fn given(flags: &[&str]) -> GivenFlags {
    let uses = flags.iter().map(|flag| {
        let (name, value) = flag.split_once('=').expect("flags are written name=value here");
        (flags::find(name).expect("a flag of ours"), value.to_owned())
    });
    GivenFlags { uses: uses.collect() }
}

fn value(settings: &Settings, field: &str) -> Value {
    settings.tree.get(&FieldPath::of_field(field)).cloned().unwrap_or(Value::Null)
}

#[test]
fn defaults_are_upstreams() {
    let golden: Value =
        serde_saphyr::from_str(include_str!("../testdata/defaults.yaml")).expect("the golden file is YAML");
    let settings = Files::new(&[("main.yaml", "")]).fine(&[]);
    let (golden, ours) = (golden.as_object().expect("object"), settings.document());
    for (field, expected) in golden {
        assert_eq!(&ours[field], expected, "{field}");
    }
    let ours: Vec<_> = ours.as_object().expect("object").keys().cloned().collect();
    let mut names: Vec<_> = golden.keys().cloned().collect();
    names.sort();
    assert_eq!(ours, names);
    assert_eq!(settings.warnings, []);
}

#[test]
fn every_field_of_the_table_is_taken_once() {
    let settings = Files::new(&[("main.yaml", "")]).fine(&[]);
    let mut reader = Reader::new(&settings.tree);
    KubeletConfiguration::read(&mut reader);
    let mut taken = reader.asked;
    taken.sort();
    let mut table: Vec<_> = FIELDS.iter().map(|field| field.path.to_owned()).collect();
    table.sort();
    assert_eq!(taken, table);
}

#[test]
fn effective_values_have_their_units() {
    use std::time::Duration;
    let k = Files::new(&[("main.yaml", "")]).fine(&[]).kubelet;
    assert_eq!(k.sync_frequency, Duration::from_secs(60));
    assert_eq!(k.cpu_cfs_quota_period, Duration::from_millis(100));
    assert_eq!(k.image_service_endpoint, k.container_runtime_endpoint);
    assert_eq!(k.cgroup_root, "/");
    assert_eq!(k.pod_pids_limit, None);
    assert_eq!(k.static_pod_path, None);
    assert_eq!(k.container_log_max_bytes, Some(10 << 20));
    assert_eq!(k.parallel_image_pulls(), Some(1));
    assert_eq!(k.eviction_hard[&Signal::MemoryAvailable], Limit::Quantity(Quantity::bytes(100 << 20)));
    assert_eq!(k.eviction_hard[&Signal::NodeFsAvailable], Limit::Percent(10.0));
    assert_eq!(k.max_container_restart_period, Some(Duration::from_secs(300)));

    let text = "eventRecordQPS: 0\nmaxParallelImagePulls: 4\nnodeStatusMaxImages: -1\n\
                volumeStatsAggPeriod: -1s\ncontainerLogMaxSize: '-1'\nresolvConf: ''\n\
                healthzPort: 0\nreservedSystemCPUs: 0-2\nsystemReserved: {cpu: 500m}\n\
                clusterDNS: [10.96.0.10, 'fd00::a']\n";
    let k = Files::new(&[("main.yaml", text)]).fine(&[]).kubelet;
    assert_eq!(k.event_record_qps, 5);
    assert_eq!(k.parallel_image_pulls(), Some(4));
    assert_eq!(k.node_status_max_images, None);
    assert_eq!(k.volume_stats_agg_period, None);
    assert_eq!(k.container_log_max_bytes, None);
    assert_eq!(k.resolv_conf, None);
    assert_eq!(k.healthz_port, None);
    assert_eq!(k.reserved_system_cpus.len(), 3);
    assert_eq!(k.system_reserved["cpu"].milli_value(), 500);
    assert_eq!(k.cluster_dns.len(), 2);
}

#[test]
fn kubeadm_zeros_mean_the_default() {
    let files = Files::raw(&[("main.yaml", include_str!("../testdata/kubeadm.yaml"))]);
    let settings = files.fine(&[]);
    let golden: Value =
        serde_saphyr::from_str(include_str!("../testdata/defaults.yaml")).expect("the golden file is YAML");
    let changed =
        ["authentication", "cgroupDriver", "clusterDNS", "clusterDomain", "rotateCertificates", "staticPodPath"];
    for (field, default) in golden.as_object().expect("object") {
        let ours = &settings.document()[field];
        assert_eq!(ours == default, !changed.contains(&field.as_str()), "{field}: {ours}");
    }
    assert_eq!(settings.kubelet.authentication.webhook_cache_ttl.as_secs(), 120);
    assert!(!settings.kubelet.authentication.anonymous);
    assert_eq!(settings.kubelet.cgroup_driver, CgroupDriver::Systemd);
}

#[test]
fn a_document_must_be_one_of_ours() {
    let check = |text: &str, expected: &str| {
        let main = Files::raw(&[("main.yaml", text)]).refused(&[]);
        assert_eq!(main, format!("main.yaml{expected}"), "{text:?}");
        let dropped = Files::raw(&[("d/a.conf", text)]).refused(&[]);
        assert_eq!(dropped, format!("d/a.conf{expected}"), "{text:?}");
    };
    let api_version = ": apiVersion: missing, expected kubelet.config.k8s.io/v1beta1";
    let kind = ": kind: missing, expected KubeletConfiguration";
    check("", " is empty: expected a KubeletConfiguration");
    check(" \n\n", " is empty: expected a KubeletConfiguration");
    check("# nothing\n", ": expected an object with apiVersion and kind");
    check("- a\n", ": expected an object with apiVersion and kind");
    check("text", ": expected an object with apiVersion and kind");
    check("maxPods: 1\n", api_version);
    check("kind: KubeletConfiguration\n", api_version);
    check("apiVersion: kubelet.config.k8s.io/v1beta1\n", kind);
    check("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: ''\n", kind);
    check(
        "apiVersion: kubelet.config.k8s.io/v1alpha1\nkind: KubeletConfiguration\n",
        ": apiVersion: expected kubelet.config.k8s.io/v1beta1, found kubelet.config.k8s.io/v1alpha1",
    );
    check("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: Pod\n", ": kind: expected KubeletConfiguration, found Pod");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let check = |flag: &str| {
        let errors = Settings::load(&given(&[flag])).expect_err("no such file").to_string();
        assert_eq!(errors, "cannot read /nonexistent/x: No such file or directory (os error 2)");
    };
    check("config=/nonexistent/x");
    check("config-dir=/nonexistent/x");
    let files = Files::raw(&[("main.yaml", "a: [\n")]);
    assert!(files.refused(&[]).starts_with("main.yaml:"), "{}", files.refused(&[]));
    let files = Files::new(&[]);
    fs::create_dir_all(&files.0).expect("temp dir");
    fs::write(files.0.join("main.yaml"), [0xff, 0xfe]).expect("temp dir");
    assert!(files.refused(&[]).starts_with("cannot read main.yaml: invalid utf-8"));
    fs::write(files.0.join("main.yaml"), vec![b' '; (4 << 20) + 1]).expect("temp dir");
    assert_eq!(files.refused(&[]), "main.yaml is larger than 4194304 bytes");
    fs::remove_file(files.0.join("main.yaml")).expect("temp dir");
    nix::unistd::mkfifo(&files.0.join("main.yaml"), nix::sys::stat::Mode::S_IRWXU).expect("temp dir");
    assert_eq!(files.refused(&[]), "cannot read main.yaml: not a regular file");
}

#[test]
fn json_is_read_with_its_tabs_and_escapes() {
    let text = "{\"apiVersion\":\"kubelet.config.k8s.io/v1beta1\",\n\
                \t\"kind\":\"KubeletConfiguration\",\n\
                \t\"maxPods\": 3,\n\t\"maxPods\": 4,\n\
                \t\"clusterDomain\": \"a\\/b\\u00e9\"\n}\n";
    let files = Files::raw(&[("main.yaml", text)]);
    let settings = files.fine(&[]);
    assert_eq!(settings.kubelet.max_pods, 4);
    assert_eq!(settings.kubelet.cluster_domain, "a/b\u{e9}");
    let expected = ["main.yaml:4: maxPods: stands here a second time, the last one holds"];
    assert_eq!(files.warnings(&[]), expected);
}

#[test]
fn yaml_is_read_as_go_reads_it() {
    let text = "failSwapOn: off\nserializeImagePulls: yes\nmaxPods: 010\n\
                systemReserved: &all {cpu: '1'}\nkubeReserved: *all\npodsPerCore: 1e1\n";
    let k = Files::new(&[("main.yaml", text)]).fine(&[]).kubelet;
    assert!(!k.fail_swap_on);
    assert!(k.serialize_image_pulls);
    assert_eq!(k.max_pods, 8);
    assert_eq!(k.kube_reserved["cpu"].value(), 1);
    assert_eq!(k.pods_per_core, 10);
}

#[test]
fn only_the_first_document_of_a_file_counts() {
    let second = format!("---\n{HEAD}maxPods: 3\n---\n# the rest\n\nmaxPods: [\n");
    let files = Files::raw(&[("main.yaml", &second)]);
    assert_eq!(files.fine(&[]).kubelet.max_pods, 3);
    assert_eq!(files.warnings(&[]), ["main.yaml:5: another document starts here, ignored"]);
    let empty_end = format!("{HEAD}maxPods: 3\n---\n# nothing\n");
    assert!(Files::raw(&[("main.yaml", &empty_end)]).warnings(&[]).is_empty());
}

#[test]
fn unknown_and_repeated_fields_are_tolerated_and_named() {
    let text = "foo: 1\nmaxpods: 3\nauthentication:\n  webhok: {}\n  x509: {}\n\
                reservedMemory:\n- {numaNode: 0, node: 1, limits: {memory: 1Gi}}\n\
                maxPods: 4\nevictionHard:\n  memory.available: 1Gi\n  memory.available: 2Gi\nmaxPods: 6\n";
    let files = Files::new(&[("main.yaml", text)]);
    let expected = [
        "main.yaml:13: evictionHard[memory.available]: stands here a second time, the last one holds",
        "main.yaml:14: maxPods: stands here a second time, the last one holds",
        "main.yaml:6: authentication.webhok: unknown field, ignored; the nearest known one is webhook",
        "main.yaml:3: foo: unknown field, ignored",
        "main.yaml:4: maxpods: unknown field, ignored; the nearest known one is maxPods",
        "main.yaml:9: reservedMemory[0].node: unknown field, ignored",
    ];
    assert_eq!(files.warnings(&[]), expected);
    assert_eq!(value(&files.fine(&[]), "maxPods"), json!(6));

    let files = Files::new(&[("d/a.conf", "foo: 1\nmaxPods: 3\nmaxPods: 4\n")]);
    let expected = [
        "d/a.conf:5: maxPods: stands here a second time, the last one holds",
        "d/a.conf:3: foo: unknown field, ignored",
    ];
    assert_eq!(files.warnings(&[]), expected);
}

#[test]
fn wrong_types_are_named_all_at_once() {
    let files = Files::new(&[
        ("main.yaml", "maxPods: x\nsyncFrequency: 5\nauthentication: {webhook: true}\n"),
        ("d/a.conf", "evictionHard:\n  memory.available: 5\nclusterDNS: a\n"),
    ]);
    let refused = files.refused(&["max-pods=y", "node-ip=x", "eviction-hard=memory.available"]);
    let expected = [
        "--node-ip: expected an IP address, found \"x\"",
        "main.yaml:5: authentication.webhook: expected an object, found the boolean true",
        "main.yaml:3: maxPods: expected a whole number, found the text \"x\"",
        "main.yaml:4: syncFrequency: expected a duration such as 1m30s, found the number 5",
        "d/a.conf:5: clusterDNS: expected a list, found the text \"a\"",
        "d/a.conf:4: evictionHard[memory.available]: expected a text, found the number 5",
        "--max-pods: maxPods: expected a whole number, found \"y\"",
        "--eviction-hard: evictionHard: expected name<value, found \"memory.available\"",
    ];
    assert_eq!(refused.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn each_kind_refuses_what_it_is_not() {
    let check = |text: &str, expected: &str| {
        let refused = Files::new(&[("main.yaml", text)]).refused(&[]);
        assert_eq!(refused, format!("main.yaml:3: {expected}"), "{text}");
    };
    check("failSwapOn: 'true'", "failSwapOn: expected true or false, found the text \"true\"");
    check("maxPods: 5.5", "maxPods: expected a whole number, found the number 5.5");
    let i32_range = "expected a whole number from -2147483648 to 2147483647, found";
    check("maxPods: 3000000000", &format!("maxPods: {i32_range} 3000000000"));
    check("maxPods: 99999999999999999999", "maxPods: expected a whole number, found the number 1e+20");
    let u32_range = "expected a whole number from 0 to 4294967295, found";
    check("logging: {verbosity: -1}", &format!("logging.verbosity: {u32_range} -1"));
    check("clusterDomain: 5", "clusterDomain: expected a text, found the number 5");
    check("staticPodPath: [a]", "staticPodPath: expected a path, found a list");
    check("syncFrequency: -1s", "syncFrequency: must not be negative, found -1s");
    check("syncFrequency: 5", "syncFrequency: expected a duration such as 1m30s, found the number 5");
    check(
        "syncFrequency: 5d",
        "syncFrequency: duration \"5d\" has the unknown unit \"d\": expected ns, us, ms, s, m or h",
    );
    check("memoryThrottlingFactor: x", "memoryThrottlingFactor: expected a number, found the text \"x\"");
    check("systemReserved: {cpu: 1}", "systemReserved.cpu: expected a text, found the number 1");
    check("clusterDNS: [null]", "clusterDNS[0]: expected a text, found nothing");
    check(
        "featureGates: {MemoryQoS: 'true'}",
        "featureGates.MemoryQoS: expected true or false, found the text \"true\"",
    );
    check("registerWithTaints: [a]", "registerWithTaints[0]: expected an object, found the text \"a\"");
    check(
        "shutdownGracePeriodByPodPriority: {a: 1}",
        "shutdownGracePeriodByPodPriority: expected a list, found an object",
    );
    check(
        "reservedMemory: [{limits: {memory: x}}]",
        "reservedMemory[0].limits.memory: expected a quantity such as 100Mi, 250m or 1.5, found \"x\"",
    );
    check(
        "logging: {options: {json: {infoBufferSize: true}}}",
        "logging.options.json.infoBufferSize: expected a quantity such as 100Mi, found the boolean true",
    );
    check(
        "logging: {flushFrequency: x}",
        "logging.flushFrequency: expected a duration such as 1m30s or 300ms, found \"x\"",
    );
}

#[test]
fn what_does_nothing_yet_is_named_when_it_is_set() {
    let files = Files::new(&[(
        "main.yaml",
        "registerNode: true\nserverTLSBootstrap: false\nhairpinMode: none\nmaxPods: 5\n\
         featureGates: {CSIVolumeHealth: true, NodeSwap: true, APIServerTracing: true}\n",
    )]);
    let flags =
        ["runtime-cgroups=/x", "containerd=/y", "image-gc-high-threshold=90", "max-pods=3", "runtime-cgroups=/z"];
    let expected = [
        "feature gates that are set and change nothing here: APIServerTracing, CSIVolumeHealth",
        "fields that are set and do nothing yet: hairpinMode (main.yaml:5)",
        "flags that are given and do nothing yet: --containerd, --image-gc-high-threshold, --runtime-cgroups",
    ];
    assert_eq!(files.warnings(&flags), expected);
}

#[test]
fn what_is_taken_otherwise_is_named_when_it_is_set() {
    let text = "contentType: application/vnd.kubernetes.protobuf\n\
                configMapAndSecretChangeDetectionStrategy: Cache\nclusterDNS: [10.96.0.10, x]\n";
    let files = Files::new(&[("main.yaml", text)]);
    let expected = [
        "main.yaml:3: contentType: requests to the API server are made in JSON all the same",
        "main.yaml:4: configMapAndSecretChangeDetectionStrategy: ConfigMaps and Secrets are watched all the same",
        "main.yaml:5: clusterDNS[1]: not an IP address, left out: \"x\"",
    ];
    assert_eq!(files.warnings(&[]), expected);
    assert_eq!(files.fine(&[]).kubelet.cluster_dns.len(), 1);
    let text = "tlsMinVersion: VersionTLS11\ntlsCurvePreferences: [23, 25]\n\
                tlsCipherSuites: [TLS_AES_128_GCM_SHA256, TLS_RSA_WITH_AES_128_GCM_SHA256]\n";
    let expected = [
        "main.yaml:5: tlsCipherSuites[1]: not offered by Ferrolet's TLS library, left out: TLS_RSA_WITH_AES_128_GCM_SHA256",
        "main.yaml:4: tlsCurvePreferences[1]: not offered by Ferrolet's TLS library, left out: 25",
        "main.yaml:3: tlsMinVersion: versions below 1.2 are not offered by Ferrolet's TLS library",
    ];
    assert_eq!(Files::new(&[("main.yaml", text)]).warnings(&[]), expected);
    let files = Files::new(&[("main.yaml", "contentType: application/json\n")]);
    assert!(files.warnings(&[]).is_empty());
}

#[test]
fn relative_paths_are_meant_from_their_file() {
    let files = Files::new(&[
        ("main.yaml", "staticPodPath: manifests\nresolvConf: ../resolv.conf\npodLogsDir: /var/log/pods\n"),
        (
            "d/sub/a.conf",
            "tlsCertFile: ./tls/../cert.pem\ntlsPrivateKeyFile: key.pem\nauthentication: {x509: {clientCAFile: ca}}\n",
        ),
    ]);
    let k = files.fine(&["volume-plugin-dir=plugins"]).kubelet;
    let parent = files.0.parent().expect("a temp directory");
    assert_eq!(k.static_pod_path, Some(files.0.join("manifests")));
    assert_eq!(k.resolv_conf, Some(parent.join("resolv.conf")));
    assert_eq!(k.tls.cert_file, Some(files.0.join("d/sub/cert.pem")));
    assert_eq!(k.authentication.client_ca_file, Some(files.0.join("d/sub/ca")));
    assert_eq!(k.volume_plugin_dir, Some(PathBuf::from("plugins")));
}

#[test]
fn cgroup_v1_is_refused_only_on_request() {
    let check = |text: &str, flags: &[&str], expected: bool| {
        let settings = Files::new(&[("main.yaml", text)]).fine(flags);
        assert_eq!(settings.refuses_cgroup_v1(), expected, "{text} {flags:?}");
    };
    check("", &[], false);
    check("failCgroupV1: true", &[], true);
    check("failCgroupV1: false", &[], false);
    check("", &["fail-cgroupv1=true"], true);
    check("failCgroupV1: true", &["fail-cgroupv1=false"], false);
}

#[test]
fn seccomp_default_is_the_field_or_the_flag() {
    let check = |text: &str, flags: &[&str], expected: bool| {
        let settings = Files::new(&[("main.yaml", text)]).fine(flags);
        assert_eq!(settings.seccomp_default(), expected, "{text} {flags:?}");
    };
    check("", &[], false);
    check("seccompDefault: true", &[], true);
    check("", &["seccomp-default=true"], true);
    check("seccompDefault: true", &["seccomp-default=false"], true);
}

#[test]
fn what_is_printed_reads_back_the_same() {
    let files = Files::new(&[
        (
            "main.yaml",
            "clusterDomain: 'no'\nproviderID: \"a\\nb # c\"\nsystemReserved: {cpu: '1'}\n\
             staticPodURLHeader: {A: [b, 'c: d']}\ntracing: {endpoint: 'unix:/x'}\n\
             reservedMemory: [{numaNode: 0, limits: {memory: 1.5Gi}}]\n",
        ),
        ("d/a.conf", "memoryThrottlingFactor: 0.25\nevictionHard: {memory.available: null}\n"),
    ]);
    let flags = ["register-with-taints=a=b:NoSchedule,c:NoExecute", "vmodule=a=3"];
    let settings = files.fine(&flags);
    let page = render::effective(&settings, &given(&flags));
    let again = Files::raw(&[("main.yaml", &page)]).fine(&[]);
    assert_eq!(again.document(), settings.document());
}

#[test]
fn every_printed_line_says_who_gave_the_value() {
    let files = Files::new(&[("main.yaml", "maxPods: 5\n"), ("d/a.conf", "healthzPort: 1\n")]);
    let flags = ["v=4", "node-ip=10.0.0.1"];
    let settings = files.fine(&flags);
    let page = files.shorten(&render::effective(&settings, &given(&flags)));
    let line = |start: &str| page.lines().find(|line| line.trim().starts_with(start));
    let comment = |start: &str| line(start).and_then(|line| line.split_once("  # "));
    assert_eq!(comment("maxPods: 5").map(|(_, origin)| origin), Some("main.yaml:3"));
    assert_eq!(comment("healthzPort: 1").map(|(_, origin)| origin), Some("d/a.conf:3"));
    assert_eq!(comment("verbosity: 4").map(|(_, origin)| origin), Some("-v"));
    assert_eq!(comment("oomScoreAdj: -999").map(|(_, origin)| origin), Some("default"));
    assert!(line("# --node-ip=10.0.0.1").is_some());
    for line in page.lines().filter(|line| !line.ends_with(':') && !line.starts_with(['#', 'a', 'k'])) {
        assert!(line.contains("  # "), "{line}");
    }
}
