use super::*;

#[test]
fn the_cgroup_parent_follows_class_driver_and_root() {
    let check = |driver, root: &str, container: &str, expected: String| {
        let mut config = config();
        config.cgroups.driver = driver;
        config.cgroups.root = root.into();
        let sandbox = sandbox_with(&pod("", container), &config).expect("it can be launched");
        assert_eq!(sandbox.cgroup_parent, expected);
    };
    let guaranteed = "resources: {limits: {cpu: 1, memory: 1Gi}}";
    let burstable = "resources: {requests: {cpu: 1}}";
    let systemd_uid = UID.replace('-', "_");
    check(CgroupDriver::Cgroupfs, "/", guaranteed, format!("/kubepods/pod{UID}"));
    check(CgroupDriver::Cgroupfs, "/", burstable, format!("/kubepods/burstable/pod{UID}"));
    check(CgroupDriver::Cgroupfs, "/", "", format!("/kubepods/besteffort/pod{UID}"));
    check(CgroupDriver::Cgroupfs, "/a/b/", "", format!("/a/b/kubepods/besteffort/pod{UID}"));
    check(
        CgroupDriver::Systemd,
        "/",
        burstable,
        format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{systemd_uid}.slice"),
    );
    let mut config = config();
    config.cgroups.per_qos = false;
    let sandbox = sandbox_with(&pod("", ""), &config).expect("it can be launched");
    assert_eq!(sandbox.cgroup_parent, "");
}

/// Path and settings of the cgroup of a pod.
fn check_pod_cgroup(config: &CgroupConfig, spec: &str, container: &str, path: &str, expected: CgroupSettings) {
    let got = pod_cgroup(&pod(spec, container), config);
    assert_eq!(got, (CgroupPath(format!("{path}/pod{UID}")), expected), "{spec} {container}");
}

#[test]
fn a_pods_cgroup_is_set_by_its_class() {
    let config = config().cgroups;
    let check = |container: &str, path: &str, expected| check_pod_cgroup(&config, "", container, path, expected);
    let only_shares = |shares| CgroupSettings { cpu_shares: Some(shares), ..CgroupSettings::default() };
    check("", "/kubepods/besteffort", only_shares(2));
    check("resources: {requests: {cpu: 2}}", "/kubepods/burstable", only_shares(2048));
    let limited = CgroupSettings {
        cpu_shares: Some(512),
        cpu_quota: Some(100_000),
        cpu_period: Some(100_000),
        memory_limit_bytes: Some(1 << 30),
        ..CgroupSettings::default()
    };
    check("resources: {requests: {cpu: 500m}, limits: {cpu: 1, memory: 1Gi}}", "/kubepods/burstable", limited.clone());
    check(
        "resources: {limits: {cpu: 1, memory: 1Gi}}",
        "/kubepods",
        CgroupSettings { cpu_shares: Some(1024), ..limited },
    );
}

#[test]
fn a_pod_is_limited_only_if_all_of_it_is() {
    let config = config().cgroups;
    let limited = "resources: {limits: {cpu: 1, memory: 1Gi}}";
    let check = |spec: &str, quota: Option<i64>, memory: Option<u64>| {
        let (_, got) = pod_cgroup(&pod(spec, limited), &config);
        assert_eq!((got.cpu_quota, got.memory_limit_bytes), (quota, memory), "{spec}");
    };
    check("", Some(100_000), Some(1 << 30));
    check("initContainers: [{name: i, image: a}],", None, None);
    check("initContainers: [{name: i, image: a, resources: {limits: {memory: 2Gi}}}],", None, Some(2 << 30));
    check("initContainers: [{name: i, image: a}], resources: {limits: {memory: 3Gi}},", None, Some(3 << 30));
    check("overhead: {memory: 1Gi},", Some(100_000), Some(2 << 30));
}

#[test]
fn pids_quota_and_huge_pages_of_a_pod_follow_the_configuration() {
    let mut config = config().cgroups;
    config.pod_pids_max = Some(100);
    config.cpu_cfs_quota = false;
    config.hugepage_sizes = vec![2 << 20, 1 << 30];
    check_pod_cgroup(
        &config,
        "",
        "resources: {limits: {cpu: 1, memory: 1Gi, hugepages-2Mi: 4Mi}}",
        "/kubepods",
        CgroupSettings {
            cpu_shares: Some(1024),
            cpu_quota: Some(-1),
            cpu_period: Some(100_000),
            memory_limit_bytes: Some(1 << 30),
            pids_max: Some(100),
            hugepage_limits: vec![("2MB".into(), 4 << 20), ("1GB".into(), 0)],
            ..CgroupSettings::default()
        },
    );
}

#[test]
fn the_shared_levels_weigh_what_their_pods_ask_for() {
    let mut config = config().cgroups;
    let limits = LevelLimits {
        milli_cpu: Some(4000),
        memory_bytes: Some(8 << 30),
        pids: Some(30_000),
        hugepages: vec![(2 << 20, 64 << 20)],
    };
    config.kubepods = level_settings(&limits);
    let pods = [
        pod("", "resources: {requests: {cpu: 250m}}"),
        pod("overhead: {cpu: 250m},", "resources: {requests: {cpu: 500m}}"),
        pod("", "resources: {limits: {cpu: 2, memory: 1Gi}}"),
        pod("", ""),
    ];
    let shares = |shares| CgroupSettings { cpu_shares: Some(shares), ..CgroupSettings::default() };
    let expected = [
        (
            CgroupPath("/kubepods".into()),
            CgroupSettings {
                cpu_shares: Some(4096),
                memory_limit_bytes: Some(8 << 30),
                pids_max: Some(30_000),
                hugepage_limits: vec![("2MB".into(), 64 << 20)],
                ..CgroupSettings::default()
            },
        ),
        (CgroupPath("/kubepods/besteffort".into()), shares(2)),
        (CgroupPath("/kubepods/burstable".into()), shares(1024)),
    ];
    assert_eq!(qos_cgroups(pods.iter(), &config), expected);
    assert_eq!(qos_cgroups([].iter(), &config)[2].1, shares(2));
}

/// Two Guaranteed pods of 1 GiB, two Burstable ones of 512 MiB, one of which has overhead, and one that asks
/// for nothing.
fn memory_pods() -> [Pod; 5] {
    let guaranteed = "resources: {limits: {cpu: 1, memory: 1Gi}}";
    let burstable = "resources: {requests: {memory: 512Mi}}";
    [
        pod("", guaranteed),
        pod("", guaranteed),
        pod("", burstable),
        pod("overhead: {memory: 512Mi},", burstable),
        pod("", ""),
    ]
}

#[test]
fn what_pods_ask_for_is_kept_by_tiers() {
    let check = |is_tiered, kubepods: u64, burstable: u64| {
        let memory_qos = Some(MemoryQos { is_tiered, throttling_factor: 0.9 });
        let config = CgroupConfig { memory_qos, ..config().cgroups };
        let levels = qos_cgroups(memory_pods().iter(), &config);
        let kept = |index: usize| (levels[index].1.memory_min_bytes, levels[index].1.memory_low_bytes);
        assert_eq!(kept(0), (Some(kubepods), None));
        assert_eq!(kept(1), (None, None));
        assert_eq!(kept(2), (None, Some(burstable)));
    };
    check(true, (2 << 30) + (1536 << 20), 1536 << 20);
    check(false, 0, 0);
    let levels = qos_cgroups(memory_pods().iter(), &config().cgroups);
    assert!(levels.iter().all(|(_, settings)| settings.memory_min_bytes.or(settings.memory_low_bytes).is_none()));
}

#[test]
fn a_pods_memory_is_kept_by_its_class() {
    let check = |is_tiered, pod: &Pod, expected| {
        let memory_qos = Some(MemoryQos { is_tiered, throttling_factor: 0.9 });
        let (_, got) = pod_cgroup(pod, &CgroupConfig { memory_qos, ..config().cgroups });
        assert_eq!((got.memory_min_bytes, got.memory_low_bytes), expected);
    };
    let [guaranteed, _, burstable, overhead, modest] = memory_pods();
    check(true, &guaranteed, (Some(1 << 30), Some(0)));
    check(true, &burstable, (Some(0), Some(512 << 20)));
    check(true, &overhead, (Some(0), Some(1 << 30)));
    check(true, &modest, (Some(0), Some(0)));
    check(false, &guaranteed, (Some(0), Some(0)));
}

#[test]
fn a_share_of_memory_is_kept_from_lower_classes() {
    let limits = |percent| {
        let config = CgroupConfig {
            memory_reserved_percent: Some(percent),
            memory_allocatable_bytes: 8 << 30,
            ..config().cgroups
        };
        let levels = qos_cgroups(memory_pods().iter(), &config);
        assert_eq!(levels[0].1.memory_limit_bytes, None);
        let limit = |index: usize| {
            let settings = &levels[index].1;
            assert!(settings.memory_limit_yields, "nobody is killed for it");
            settings.memory_limit_bytes.expect("a limit") >> 20
        };
        (limit(1), limit(2))
    };
    assert_eq!(limits(0), (8192, 8192));
    assert_eq!(limits(50), (8192 - 1024 - 768, 8192 - 1024));
    assert_eq!(limits(100), (8192 - 2048 - 1536, 8192 - 2048));
}

#[test]
fn a_pod_of_unknown_class_is_looked_for_everywhere() {
    let config = CgroupConfig { root: "/edge".into(), ..config().cgroups };
    let expected = ["/edge/kubepods/podu1", "/edge/kubepods/burstable/podu1", "/edge/kubepods/besteffort/podu1"];
    let got = pod_cgroup_candidates(&PodUid::new("u1"), &config);
    assert_eq!(got.map(|path| path.0), expected.map(str::to_owned));
    assert_eq!(kubepods(&config).0, "/edge/kubepods");
}
