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
        },
    );
}

#[test]
fn the_shared_levels_weigh_what_their_pods_ask_for() {
    let mut config = config().cgroups;
    let limits = KubepodsLimits {
        milli_cpu: 4000,
        memory_bytes: 8 << 30,
        pids: Some(30_000),
        hugepages: vec![(2 << 20, 64 << 20)],
    };
    config.kubepods = kubepods_settings(&limits);
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

#[test]
fn a_pod_of_unknown_class_is_looked_for_everywhere() {
    let config = CgroupConfig { root: "/edge".into(), ..config().cgroups };
    let expected = ["/edge/kubepods/podu1", "/edge/kubepods/burstable/podu1", "/edge/kubepods/besteffort/podu1"];
    let got = pod_cgroup_candidates(&PodUid::new("u1"), &config);
    assert_eq!(got.map(|path| path.0), expected.map(str::to_owned));
    assert_eq!(kubepods(&config).0, "/edge/kubepods");
}
