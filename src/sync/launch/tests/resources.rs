use super::*;
use crate::config::Gate;

#[test]
fn cpu_and_memory_become_shares_quota_and_limit() {
    let check = |container: &str, shares, quota, memory| {
        let got = resources("", &format!("resources: {{{container}}}"), &config());
        let got = (got.cpu_shares, got.cpu_quota, got.memory_limit_bytes);
        assert_eq!(got, (shares, quota, memory), "{container}");
    };
    check("", 2, 0, 0);
    check("requests: {cpu: 500m}", 512, 0, 0);
    check("limits: {cpu: 500m}", 512, 50_000, 0);
    check("requests: {cpu: 100m}, limits: {cpu: 2, memory: 64Mi}", 102, 200_000, 64 << 20);
    check("requests: {cpu: 0}, limits: {cpu: 1m}", 2, 1000, 0);
}

#[test]
fn a_container_without_limit_is_held_to_the_pods() {
    let pod_level = "resources: {limits: {cpu: 2, memory: 1Gi}},";
    let got = resources(pod_level, "", &config());
    assert_eq!((got.cpu_quota, got.memory_limit_bytes), (200_000, 1 << 30));
    let got = resources(pod_level, "resources: {limits: {memory: 1Mi}}", &config());
    assert_eq!((got.cpu_quota, got.memory_limit_bytes), (200_000, 1 << 20));
}

#[test]
fn without_cfs_quota_limits_of_cpu_are_not_enforced() {
    let mut config = config();
    config.cgroups.cpu_cfs_quota = false;
    let got = resources("", "resources: {limits: {cpu: 1}}", &config);
    assert_eq!((got.cpu_quota, got.cpu_period, got.cpu_shares), (0, 0, 1024));
}

#[test]
fn out_of_memory_the_whole_container_goes_unless_configured_otherwise() {
    let check = |version, single: bool, expected: BTreeMap<String, String>| {
        let mut config = LaunchConfig { single_process_oom_kill: single, ..config() };
        config.cgroups.version = version;
        assert_eq!(resources("", "", &config).unified, expected);
    };
    check(CgroupVersion::V2, false, map([("memory.oom.group", "1")]));
    check(CgroupVersion::V2, true, map([]));
    check(CgroupVersion::V1, false, map([]));
}

#[test]
fn containers_get_no_swap() {
    let mut config = LaunchConfig { swap_controller: true, ..config() };
    let limited = "resources: {limits: {memory: 1Mi}}";
    let got = resources("", limited, &config);
    assert_eq!(got.unified, map([("memory.oom.group", "1"), ("memory.swap.max", "0")]));
    assert_eq!(got.memory_swap_limit_bytes, 0);
    config.cgroups.version = CgroupVersion::V1;
    let got = resources("", limited, &config);
    assert_eq!((got.unified, got.memory_swap_limit_bytes), (map([]), 1 << 20));
}

#[test]
fn swap_is_for_burstable_containers_by_their_share_of_memory() {
    // The machine of these tests has 10000 MiB of memory.
    let config = LaunchConfig { swap_controller: true, swap_bytes: 5000 << 20, ..config() };
    let check = |spec: &str, container: &str, expected: u64| {
        let got = resources(spec, &format!("resources: {{{container}}}"), &config).unified;
        assert_eq!(got["memory.swap.max"], expected.to_string(), "{spec} {container}");
    };
    check("", "requests: {memory: 100Mi}", 50 << 20);
    check("", "requests: {memory: 100Mi}, limits: {memory: 200Mi}", 50 << 20);
    check("", "", 0);
    check("", "requests: {cpu: 1}", 0);
    check("", "limits: {cpu: 1, memory: 100Mi}, requests: {cpu: 1, memory: 100Mi}", 0);
    check("", "limits: {memory: 100Mi}, requests: {memory: 100Mi}", 0);
    check("priority: 2000000000,", "requests: {memory: 100Mi}", 0);
    let config = LaunchConfig { swap_controller: false, ..config };
    assert_eq!(resources("", "", &config).unified, map([("memory.oom.group", "1")]));
}

#[test]
fn memory_is_kept_for_a_container_and_slows_it_down_before_its_limit() {
    let check = |is_tiered, container: &str, expected: &[(&str, u64)]| {
        let mut config = config();
        config.cgroups.memory_qos = Some(MemoryQos { is_tiered, throttling_factor: 0.5 });
        let mut got = resources("", &format!("resources: {{{container}}}"), &config).unified;
        got.remove("memory.oom.group");
        let expected = expected.iter().map(|(file, mib)| ((*file).to_owned(), (mib << 20).to_string()));
        assert_eq!(got, expected.collect(), "{container}");
    };
    let guaranteed = "limits: {cpu: 1, memory: 100Mi}, requests: {cpu: 1, memory: 100Mi}";
    check(true, guaranteed, &[("memory.min", 100), ("memory.low", 0)]);
    check(false, guaranteed, &[("memory.min", 0), ("memory.low", 0)]);
    let burstable = "limits: {memory: 300Mi}, requests: {memory: 100Mi}";
    check(true, burstable, &[("memory.min", 0), ("memory.low", 100), ("memory.high", 200)]);
    // Without a limit it is what all pods can have, which is 8000 MiB here.
    check(false, "requests: {memory: 2000Mi}", &[("memory.min", 0), ("memory.low", 0), ("memory.high", 5000)]);
    check(true, "", &[("memory.min", 0), ("memory.low", 0)]);
}

#[test]
fn every_huge_page_size_of_the_machine_has_a_limit() {
    let mut config = config();
    config.cgroups.hugepage_sizes = vec![2 << 20, 1 << 30];
    let check = |container: &str, expected: [u64; 2]| {
        let got = resources("", container, &config).hugepage_limits;
        assert_eq!(got, [("2MB".to_owned(), expected[0]), ("1GB".to_owned(), expected[1])], "{container}");
    };
    check("", [0, 0]);
    check("resources: {limits: {hugepages-2Mi: 64Mi}}", [64 << 20, 0]);
    check("resources: {limits: {hugepages-1Gi: 1Gi, memory: 1Gi}}", [0, 1 << 30]);
}

#[test]
fn oom_scores_follow_class_and_request() {
    // The machine of these tests has 10000 MiB.
    let check = |spec: &str, container: &str, expected: i64| {
        assert_eq!(resources(spec, container, &config()).oom_score_adj, expected, "{spec} {container}");
    };
    let requests = |memory: &str| format!("resources: {{requests: {{memory: {memory}}}}}");
    check("", "", 1000);
    check("", "resources: {limits: {cpu: 1, memory: 1Gi}}", -997);
    check("priorityClassName: system-node-critical,", "", -997);
    check("", "resources: {requests: {cpu: 1}}", 999);
    check("", &requests("1000Mi"), 900);
    check("", &requests("1Mi"), 999);
    check("", &requests("9999Mi"), 3);
    check("", &requests("20000Mi"), 3);
    // What the pod asks for beyond its containers is divided among them.
    check("resources: {requests: {memory: 3000Mi}},", &requests("1000Mi"), 700);
    check("initContainers: [{name: i, image: a}], resources: {requests: {memory: 3000Mi}},", &requests("1000Mi"), 800);
}

#[test]
fn a_sidecar_goes_no_sooner_than_those_it_serves() {
    let score = |memory: &str| {
        let pod = pod(
            &format!(
                "initContainers: [{{name: proxy, image: a, restartPolicy: Always, \
                 resources: {{requests: {{memory: {memory}}}}}}}],"
            ),
            "resources: {requests: {memory: 1000Mi}}",
        );
        let got = container_with(&pod, "proxy", &image(), &config()).expect("it can be launched");
        got.resources.oom_score_adj
    };
    assert_eq!(score("10Mi"), 900);
    assert_eq!(score("2000Mi"), 800);
}

#[test]
fn a_stop_signal_is_honoured_where_the_gate_says_so() {
    let pod = pod("", "lifecycle: {stopSignal: SIGUSR1}");
    let sent = |on| {
        let gates = FeatureGates::with(&[(Gate::ContainerStopSignals, on)]);
        let config = LaunchConfig { gates, ..config() };
        container_with(&pod, "web", &image(), &config).expect("it can be launched").stop_signal
    };
    assert_eq!(sent(false), None);
    assert_eq!(sent(true).as_deref(), Some("SIGUSR1"));
}
