//! Which layer wins, and how they merge.

use serde_json::{Value, json};

use super::{Files, given, value};
use crate::config::{Origin, flags};

/// Loads the files and flags and compares one field.
fn check(files: &[(&str, &str)], flags: &[&str], field: &str, expected: Value) {
    let settings = Files::new(files).fine(flags);
    assert_eq!(value(&settings, field), expected, "{field} of {files:?} {flags:?}");
}

#[test]
fn flags_beat_drop_ins_beat_the_file_beat_defaults() {
    let main = ("main.yaml", "maxPods: 1\n");
    let (a, b) = (("d/a.conf", "maxPods: 2\n"), ("d/b.conf", "maxPods: 3\n"));
    let other = ("d/c.conf", "podsPerCore: 9\n");
    check(&[], &[], "maxPods", json!(110));
    check(&[main], &[], "maxPods", json!(1));
    check(&[main, a], &[], "maxPods", json!(2));
    check(&[main, a, b, other], &[], "maxPods", json!(3));
    check(&[main, a, b], &["max-pods=4"], "maxPods", json!(4));
    check(&[main, a, b], &["max-pods=4", "max-pods=5"], "maxPods", json!(5));
    check(&[a], &[], "maxPods", json!(2));
}

#[test]
fn drop_ins_apply_in_the_order_of_a_walk() {
    let files = [
        ("d/b.conf", "maxPods: 3\n"),
        ("d/a/z.conf", "maxPods: 2\n"),
        ("d/a/c/x.conf", "maxPods: 1\n"),
        ("d/z.yaml", "maxPods: 9\n"),
        ("d/conf", "maxPods: 9\n"),
    ];
    check(&files, &[], "maxPods", json!(3));
    check(&files[1..], &[], "maxPods", json!(2));
    check(&files[2..], &[], "maxPods", json!(1));
    check(&files[3..], &[], "maxPods", json!(110));
}

#[test]
fn older_defaults_hold_without_a_file() {
    let fields = [
        ("authentication.anonymous.enabled", json!(true), json!(false)),
        ("authentication.webhook.enabled", json!(false), json!(true)),
        ("authorization.mode", json!("AlwaysAllow"), json!("Webhook")),
        ("readOnlyPort", json!(10_255), json!(0)),
    ];
    for (field, legacy, modern) in fields {
        check(&[], &[], field, legacy.clone());
        // Drop-ins alone lie over them, as upstream.
        check(&[("d/a.conf", "maxPods: 1\n")], &[], field, legacy);
        check(&[("main.yaml", "")], &[], field, modern);
    }
    // Upstream has no hard thresholds here, and the node runs out of memory unprotected.
    check(
        &[],
        &[],
        "evictionHard",
        json!({
            "imagefs.available": "15%", "imagefs.inodesFree": "5%", "memory.available": "100Mi",
            "nodefs.available": "10%", "nodefs.inodesFree": "5%",
        }),
    );
}

#[test]
fn maps_merge_by_key_and_lists_are_replaced() {
    let main = ("main.yaml", "systemReserved: {cpu: '1', pid: '9'}\nclusterDNS: [1.1.1.1, 2.2.2.2]\n");
    let drop_in = ("d/a.conf", "systemReserved: {memory: 1Gi, cpu: null}\nclusterDNS: [3.3.3.3]\n");
    check(&[main, drop_in], &[], "systemReserved", json!({"memory": "1Gi", "pid": "9"}));
    check(&[main, drop_in], &[], "clusterDNS", json!(["3.3.3.3"]));
    let nested = ("d/b.conf", "authentication: {anonymous: {enabled: true}}\n");
    check(&[main, nested], &[], "authentication.webhook.enabled", json!(true));
    check(&[main, nested], &[], "authentication.anonymous.enabled", json!(true));
}

#[test]
fn null_brings_the_default_back() {
    let main = ("main.yaml", "maxPods: 5\nauthentication: {anonymous: {enabled: true}}\nevictionHard: {}\n");
    check(&[main, ("d/a.conf", "maxPods: null\n")], &[], "maxPods", json!(110));
    let whole = ("d/a.conf", "authentication: null\n");
    check(&[main, whole], &[], "authentication.anonymous.enabled", json!(false));
    check(&[("main.yaml", "maxPods: null\nlogging: null\n")], &[], "maxPods", json!(110));
    let eviction = ("d/a.conf", "evictionHard: null\n");
    check(
        &[main, eviction],
        &[],
        "evictionHard",
        json!({
            "imagefs.available": "15%", "imagefs.inodesFree": "5%", "memory.available": "100Mi",
            "nodefs.available": "10%", "nodefs.inodesFree": "5%",
        }),
    );
}

#[test]
fn zero_in_a_drop_in_replaces_what_can_hold_a_zero() {
    let main = ("main.yaml", "maxPods: 5\nhealthzPort: 7\nfailSwapOn: true\nsyncFrequency: 3m\n");
    let zeros = ("d/a.conf", "maxPods: 0\nhealthzPort: 0\nfailSwapOn: false\nsyncFrequency: 0s\n");
    check(&[main, zeros], &[], "maxPods", json!(110));
    check(&[main, zeros], &[], "healthzPort", json!(0));
    check(&[main, zeros], &[], "failSwapOn", json!(false));
    check(&[main, zeros], &[], "syncFrequency", json!("1m0s"));
    // A flag means what it says.
    check(&[main], &["max-pods=0"], "maxPods", json!(0));
}

#[test]
fn a_given_map_of_thresholds_stands_alone_unless_told_to_merge() {
    let one = json!({"memory.available": "200Mi"});
    let all = json!({
        "imagefs.available": "15%", "imagefs.inodesFree": "5%", "memory.available": "200Mi",
        "nodefs.available": "10%", "nodefs.inodesFree": "5%",
    });
    let main = ("main.yaml", "evictionHard: {memory.available: 200Mi}\n");
    let merged = ("main.yaml", "evictionHard: {memory.available: 200Mi}\nmergeDefaultEvictionSettings: true\n");
    check(&[main], &[], "evictionHard", one.clone());
    check(&[merged], &[], "evictionHard", all.clone());
    check(&[("main.yaml", "evictionHard: {}\n")], &[], "evictionHard", json!({}));
    // A drop-in merges with the defaults that an absent map has got by then.
    let drop_in = ("d/a.conf", "evictionHard: {memory.available: 200Mi}\n");
    check(&[("main.yaml", ""), drop_in], &[], "evictionHard", all.clone());
    // Upstream looks at the switch before the drop-ins only; here it works wherever it stands.
    check(&[main, ("d/a.conf", "mergeDefaultEvictionSettings: true\n")], &[], "evictionHard", all);
    check(&[merged], &["eviction-hard=memory.available<200Mi"], "evictionHard", one);
}

#[test]
fn map_flags_replace_the_map_and_add_up() {
    let main = ("main.yaml", "systemReserved: {cpu: '1'}\nevictionHard: {pid.available: '5'}\n");
    let twice = ["system-reserved=memory=1Gi", "system-reserved=pid=5,cpu=2"];
    check(&[main], &twice, "systemReserved", json!({"cpu": "2", "memory": "1Gi", "pid": "5"}));
    let hard = ["eviction-hard=memory.available<1Gi,nodefs.available<5%"];
    check(&[main], &hard, "evictionHard", json!({"memory.available": "1Gi", "nodefs.available": "5%"}));
    check(&[main], &["eviction-hard="], "evictionHard", json!({}));
    let dns = ["cluster-dns=1.1.1.1,2.2.2.2", "cluster-dns=3.3.3.3"];
    check(&[main], &dns, "clusterDNS", json!(["1.1.1.1", "2.2.2.2", "3.3.3.3"]));
}

#[test]
fn gates_merge_key_by_key() {
    let main = ("main.yaml", "featureGates: {MemoryQoS: true, CRIListStreaming: true}\n");
    let drop_in = ("d/a.conf", "featureGates: {PodsAPI: true}\n");
    let expected = json!({"MemoryQoS": false, "CRIListStreaming": true, "PodsAPI": true});
    check(&[main, drop_in], &["feature-gates=MemoryQoS=false"], "featureGates", expected);
}

#[test]
fn other_flag_syntaxes() {
    let check = |flags: &[&str], field: &str, expected: Value| check(&[], flags, field, expected);
    check(
        &["register-with-taints=a=b:NoSchedule, c:NoExecute"],
        "registerWithTaints",
        json!([{"key": "a", "value": "b", "effect": "NoSchedule"}, {"key": "c", "effect": "NoExecute"}]),
    );
    check(
        &["reserved-memory=0:memory=1Gi,hugepages-2Mi=1Mi;1:memory=2048Mi", "reserved-memory=2:memory=1Mi"],
        "reservedMemory",
        json!([
            {"numaNode": 0, "limits": {"memory": "1Gi", "hugepages-2Mi": "1Mi"}},
            {"numaNode": 1, "limits": {"memory": "2Gi"}},
            {"numaNode": 2, "limits": {"memory": "1Mi"}},
        ]),
    );
    check(
        &["manifest-url-header=a:b,a:c", "manifest-url-header=d:e"],
        "staticPodURLHeader",
        json!({"a": ["b", "c"], "d": ["e"]}),
    );
    check(
        &["vmodule=a=3,b*=4"],
        "logging.vmodule",
        json!([{"filePattern": "a", "verbosity": 3}, {"filePattern": "b*", "verbosity": 4}]),
    );
    check(
        &["cpu-manager-policy=static", "cpu-manager-policy-options=full-pcpus-only=true"],
        "cpuManagerPolicyOptions",
        json!({"full-pcpus-only": "true"}),
    );
    check(&["sync-frequency=90s"], "syncFrequency", json!("1m30s"));
    check(&["max-pods=0x10"], "maxPods", json!(16));
    check(&["max-pods=1_0"], "maxPods", json!(10));
    check(&["fail-swap-on=F"], "failSwapOn", json!(false));
}

#[test]
fn a_field_follows_another_until_the_drop_ins() {
    let main = ("main.yaml", "nodeStatusUpdateFrequency: 30s\n");
    let report = "nodeStatusReportFrequency";
    check(&[main], &[], report, json!("30s"));
    check(&[("main.yaml", "nodeStatusUpdateFrequency: 0s\n")], &[], report, json!("5m0s"));
    let both = ("main.yaml", "nodeStatusUpdateFrequency: 30s\nnodeStatusReportFrequency: 2m\n");
    check(&[both], &[], report, json!("2m0s"));
    let late = ("d/a.conf", "nodeStatusUpdateFrequency: 30s\n");
    check(&[("main.yaml", ""), late], &[], report, json!("5m0s"));
    let reset = ("d/a.conf", "nodeStatusUpdateFrequency: 30s\nnodeStatusReportFrequency: null\n");
    check(&[("main.yaml", ""), reset], &[], report, json!("30s"));
    check(&[], &["node-status-update-frequency=30s"], report, json!("5m0s"));
    check(&[("main.yaml", "maxParallelImagePulls: 2\n")], &[], "serializeImagePulls", json!(false));
    check(&[("main.yaml", "maxParallelImagePulls: 1\n")], &[], "serializeImagePulls", json!(true));
}

#[test]
fn a_field_follows_a_gate() {
    let policy = "imagePullCredentialsVerificationPolicy";
    let period = "crashLoopBackOff.maxContainerRestartPeriod";
    let main = ("main.yaml", "");
    let off = ["feature-gates=KubeletEnsureSecretPulledImages=false,KubeletCrashLoopBackOffMax=false"];
    check(&[main], &[], policy, json!("NeverVerifyPreloadedImages"));
    check(&[main], &off, policy, json!(""));
    check(&[main], &[], period, json!("5m0s"));
    check(&[main], &off, period, Value::Null);
    check(&[("main.yaml", "featureGates: {AllBeta: false}\n")], &[], period, Value::Null);
}

#[test]
fn every_value_knows_who_gave_it() {
    let files = Files::new(&[
        ("main.yaml", "maxPods: 5\nsystemReserved:\n  cpu: '1'\n  pid: '9'\nclusterDNS:\n- 1.1.1.1\n"),
        ("d/a.conf", "systemReserved: {memory: 1Gi}\n"),
    ]);
    let settings = files.fine(&["kube-reserved=cpu=1", "v=2", "feature-gates=PodsAPI=true"]);
    let origin = |path: crate::config::FieldPath| files.shorten(&settings.tree.origin(&path).to_string());
    let field = crate::config::FieldPath::of_field;
    assert_eq!(origin(field("maxPods")), "main.yaml:3");
    assert_eq!(origin(field("systemReserved.cpu")), "main.yaml:5");
    assert_eq!(origin(field("systemReserved.memory")), "d/a.conf:3");
    assert_eq!(origin(field("clusterDNS").child(0)), "main.yaml:7");
    assert_eq!(origin(field("kubeReserved.cpu")), "--kube-reserved");
    assert_eq!(origin(field("kubeReserved")), "--kube-reserved");
    assert_eq!(origin(field("logging.verbosity")), "-v");
    assert_eq!(origin(field("featureGates.PodsAPI")), "--feature-gates");
    assert_eq!(settings.origin("podsPerCore"), Origin::Default);
    assert!(settings.is_given("maxPods") && !settings.is_given("podsPerCore"));
}

#[test]
fn each_flag_has_a_value_to_show_and_none_of_a_secret() {
    let uses = [
        "v=2",
        "v=4",
        "node-labels=a=1",
        "node-labels=b=2",
        "manifest-url-header=Authorization:Bearer hush",
        "manifest-url=https://me:hush@pods.test/all?a=b@c",
        "max-pods=7",
    ];
    let values = flags::values(&given(&uses));
    let of = |name: &str| values.get(name).map(String::as_str);
    assert_eq!((of("v"), of("node-labels"), of("max-pods")), (Some("4"), Some("a=1,b=2"), Some("7")));
    assert_eq!(of("manifest-url-header"), Some("CLASSIFIED"));
    assert_eq!(of("manifest-url"), Some("https://pods.test/all?a=b@c"));
    // Those that nobody gave have their defaults.
    assert_eq!(
        (of("root-dir"), of("fail-swap-on"), of("kubeconfig")),
        (Some("/var/lib/kubelet"), Some("true"), Some(""))
    );
    assert_eq!(values.len(), flags::all().count());
    assert!(!values.values().any(|value| value.contains("hush")));
}

#[test]
fn the_configuration_is_shown_without_its_secrets() {
    let files = Files::new(&[(
        "main.yaml",
        "staticPodURL: https://me:hush@pods.test/all\nstaticPodURLHeader: {Authorization: [Bearer hush, hush]}\nmaxPods: 7\n",
    )]);
    let settings = files.fine(&[]);
    let mut expected = settings.document();
    expected["staticPodURL"] = "https://pods.test/all".into();
    expected["staticPodURLHeader"] = json!({ "Authorization": ["CLASSIFIED"] });
    assert_eq!(settings.shown_document(), expected);
    assert!(!expected.to_string().contains("hush"));
    // They are for whom they were written for.
    assert_eq!(settings.kubelet.static_pod_url.as_deref(), Some("https://me:hush@pods.test/all"));
}

#[test]
fn a_header_that_is_none_is_not_repeated() {
    let error = Files::new(&[]).refused(&["manifest-url-header=hush"]);
    assert!(error.contains("manifest-url-header") && !error.contains("hush"), "{error}");
}
