use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

use super::*;
use crate::cri::{
    CgroupDriver, ContainerConfig, ContainerId, DnsConfig, IdRange, LinuxResources, Mount, NamespaceMode,
    NamespaceOptions, PortMapping, Protocol, SandboxConfig, SecurityContext, SecurityProfile, SelinuxOptions,
};
use crate::host::{CgroupPath, CgroupSettings, CgroupVersion};
use crate::images::ReadyImage;
use crate::pod::PodUid;
use crate::pod::containers::find;
use crate::pod::dns::{ClusterDns, Resolver};
use crate::pod::testing::pod_yaml;

const UID: &str = "0b1d2f6c-1111-2222-3333-444455556666";

fn config() -> LaunchConfig {
    LaunchConfig {
        pod_logs_dir: "/var/log/pods".into(),
        seccomp_dir: "/var/lib/kubelet/seccomp".into(),
        seccomp_default: false,
        cluster_dns: ClusterDns {
            servers: vec!["10.96.0.10".parse().expect("a test address parses")],
            domain: "cluster.local".into(),
        },
        cgroups: CgroupConfig {
            root: "/".into(),
            per_qos: true,
            driver: CgroupDriver::Cgroupfs,
            version: CgroupVersion::V2,
            cpu_cfs_quota: true,
            cpu_cfs_quota_period_us: 100_000,
            pod_pids_max: None,
            hugepage_sizes: Vec::new(),
            kubepods: CgroupSettings::default(),
        },
        memory_bytes: 10_000 << 20,
        single_process_oom_kill: false,
        swap_controller: false,
        thermal_throttle_dirs: Vec::new(),
    }
}

fn image() -> ReadyImage {
    ReadyImage { image_ref: "sha256:abc".into(), uid: Some(0), username: String::new() }
}

fn sandbox_with(pod: &Pod, config: &LaunchConfig) -> Result<SandboxConfig, LaunchError> {
    let resolver = Resolver::default();
    let inputs = SandboxInputs { attempt: 3, resolver: &resolver, runtime_handler: "", users: None, config };
    sandbox_config(pod, inputs).map(|(sandbox, _)| sandbox)
}

fn container_with(
    pod: &Pod,
    name: &str,
    image: &ReadyImage,
    config: &LaunchConfig,
) -> Result<ContainerConfig, LaunchError> {
    let (_, container) = find(pod, name).expect("the test pod has this container");
    let inputs = ContainerInputs {
        attempt: 2,
        image,
        env: vec![("WHO".into(), "world".into())],
        mounts: Vec::new(),
        termination_log: None,
        target: None,
        users: None,
        config,
    };
    container_config(pod, &container, inputs)
}

/// A pod with one container `web`.
fn pod(spec: &str, container: &str) -> Pod {
    pod_yaml(&format!("{{spec: {{{spec} containers: [{{name: web, image: a:1, {container}}}]}}}}"))
}

fn security(spec: &str, container: &str) -> SecurityContext {
    let pod = pod(spec, container);
    container_with(&pod, "web", &image(), &config()).expect("the test pod can be launched").security
}

fn resources(spec: &str, container: &str, config: &LaunchConfig) -> LinuxResources {
    let pod = pod(spec, container);
    container_with(&pod, "web", &image(), config).expect("the test pod can be launched").resources
}

fn map<const N: usize>(entries: [(&str, &str); N]) -> BTreeMap<String, String> {
    entries.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).into()
}

#[test]
fn a_sandbox_is_told_everything_of_its_pod() {
    let pod = pod_yaml(
        "
        metadata:
          labels: {app: web}
          annotations: {note: x}
        spec:
          securityContext:
            runAsUser: 1000
            runAsGroup: 1001
            fsGroup: 2000
            supplementalGroups: [3000, 3001]
            supplementalGroupsPolicy: Strict
            seLinuxOptions: {level: s0}
            sysctls: [{name: net.ipv4.tcp_syncookies, value: '1'}]
          overhead: {cpu: 250m, memory: 64Mi}
          containers:
          - name: web
            image: a:1
            ports: [{containerPort: 80}, {containerPort: 53, hostPort: 5353, protocol: UDP, hostIP: 127.0.0.1}]
            resources: {requests: {cpu: 500m, memory: 64Mi}, limits: {cpu: 1, memory: 128Mi}}
            securityContext: {privileged: true}
        ",
    );
    let expected = SandboxConfig {
        pod_name: "web-0".into(),
        pod_namespace: "shop".into(),
        pod_uid: UID.into(),
        attempt: 3,
        hostname: "web-0".into(),
        log_directory: format!("/var/log/pods/shop_web-0_{UID}"),
        dns: Some(DnsConfig {
            servers: words(["10.96.0.10"]),
            searches: words(["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"]),
            options: words(["ndots:5"]),
        }),
        port_mappings: vec![
            PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port: 0, host_ip: String::new() },
            PortMapping { protocol: Protocol::Udp, container_port: 53, host_port: 5353, host_ip: "127.0.0.1".into() },
        ],
        labels: map([
            ("app", "web"),
            ("io.kubernetes.pod.name", "web-0"),
            ("io.kubernetes.pod.namespace", "shop"),
            ("io.kubernetes.pod.uid", UID),
        ]),
        annotations: map([("note", "x")]),
        cgroup_parent: format!("/kubepods/burstable/pod{UID}"),
        sysctls: map([("net.ipv4.tcp_syncookies", "1")]),
        security: SecurityContext {
            namespaces: NamespaceOptions {
                network: NamespaceMode::Pod,
                pid: NamespaceMode::Container,
                ipc: NamespaceMode::Pod,
                target_id: String::new(),
                users: None,
            },
            selinux: Some(SelinuxOptions { level: "s0".into(), ..SelinuxOptions::default() }),
            run_as_user: Some(1000),
            run_as_group: Some(1001),
            supplemental_groups: vec![2000, 3000, 3001],
            supplemental_groups_strict: true,
            privileged: true,
            seccomp: Some(SecurityProfile::RuntimeDefault),
            ..SecurityContext::default()
        },
        resources: Some(LinuxResources {
            cpu_shares: 512,
            cpu_quota: 100_000,
            cpu_period: 100_000,
            memory_limit_bytes: 128 << 20,
            unified: map([("memory.oom.group", "1")]),
            ..LinuxResources::default()
        }),
        overhead: Some(LinuxResources {
            cpu_shares: 256,
            cpu_quota: 25_000,
            cpu_period: 100_000,
            memory_limit_bytes: 64 << 20,
            unified: map([("memory.oom.group", "1")]),
            ..LinuxResources::default()
        }),
        runtime_handler: String::new(),
    };
    assert_eq!(sandbox_with(&pod, &config()), Ok(expected));
}

#[test]
fn on_the_hosts_network_the_nodes_name_applies() {
    let sandbox = sandbox_with(&pod("hostNetwork: true,", ""), &config()).expect("it can be launched");
    assert_eq!(sandbox.hostname, "");
    assert_eq!(sandbox.security.namespaces.network, NamespaceMode::Node);
}

#[test]
fn what_would_weaken_a_pod_silently_is_refused() {
    let check = |spec: &str, expected: &str| {
        let error = sandbox_with(&pod(spec, ""), &config()).expect_err(spec);
        assert_eq!(error.to_string(), expected);
    };
    check("securityContext: {supplementalGroupsPolicy: Odd},", "unsupported supplementalGroupsPolicy: Odd");
}

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

#[test]
fn a_container_is_told_everything_of_its_spec() {
    let pod = pod_yaml(
        "
        metadata: {deletionGracePeriodSeconds: 5}
        spec:
          terminationGracePeriodSeconds: 30
          containers:
          - name: web
            image: busybox
            command: [sh, -c]
            args: ['echo hello $(WHO) $(NOBODY)']
            workingDir: /work
            stdin: true
            stdinOnce: true
            tty: true
            ports: [{containerPort: 80, name: http, protocol: TCP}]
            lifecycle: {preStop: {exec: {command: [stop]}}}
            terminationMessagePath: /dev/termination-log
            terminationMessagePolicy: File
            resources: {requests: {cpu: 250m}}
        ",
    );
    let mount = |container_path: &str, host_path: &str| Mount {
        container_path: container_path.into(),
        host_path: host_path.into(),
        ..Mount::default()
    };
    let config = config();
    let inputs = ContainerInputs {
        attempt: 2,
        image: &image(),
        env: vec![("WHO".into(), "world".into())],
        mounts: vec![mount("/data", "/pods/x/data")],
        termination_log: Some(Path::new("/pods/x/containers/web/0a1b2c3d")),
        target: None,
        users: None,
        config: &config,
    };
    let web = &pod.spec.as_ref().expect("the test pod has a spec").containers[0];
    let container = container_config(&pod, web, inputs).expect("it can be launched");
    assert_eq!((container.name.as_str(), container.attempt), ("web", 2));
    assert_eq!(container.image.image, "sha256:abc");
    assert_eq!(container.image.user_specified_image, "busybox");
    assert_eq!(container.command, ["sh", "-c"]);
    assert_eq!(container.args, ["echo hello world $(NOBODY)"]);
    assert_eq!(container.working_dir, "/work");
    assert_eq!(container.env, [("WHO".to_owned(), "world".to_owned())]);
    assert_eq!(
        container.mounts,
        [mount("/data", "/pods/x/data"), mount("/dev/termination-log", "/pods/x/containers/web/0a1b2c3d"),]
    );
    let labels = map([
        ("io.kubernetes.container.name", "web"),
        ("io.kubernetes.pod.name", "web-0"),
        ("io.kubernetes.pod.namespace", "shop"),
        ("io.kubernetes.pod.uid", UID),
    ]);
    assert_eq!(container.labels, labels);
    // The kubelet writes the same JSON objects, with their keys in another order.
    let annotations = map([
        ("io.kubernetes.container.hash", "470421b4"),
        ("io.kubernetes.container.ports", r#"[{"containerPort":80,"name":"http","protocol":"TCP"}]"#),
        ("io.kubernetes.container.preStopHandler", r#"{"exec":{"command":["stop"]}}"#),
        ("io.kubernetes.container.restartCount", "2"),
        ("io.kubernetes.container.terminationMessagePath", "/dev/termination-log"),
        ("io.kubernetes.container.terminationMessagePolicy", "File"),
        ("io.kubernetes.pod.deletionGracePeriod", "5"),
        ("io.kubernetes.pod.terminationGracePeriod", "30"),
    ]);
    assert_eq!(container.annotations, annotations);
    assert_eq!(container.log_path, "web/2.log");
    assert!(container.stdin && container.stdin_once && container.tty);
    assert_eq!(container.resources.cpu_shares, 256);
}

#[test]
fn namespaces_are_shared_as_the_pod_says() {
    let check = |spec: &str, network, pid, ipc| {
        let got = security(spec, "").namespaces;
        let expected = NamespaceOptions { network, pid, ipc, target_id: String::new(), users: None };
        assert_eq!(got, expected, "{spec}");
    };
    use NamespaceMode::{Container, Node, Pod};
    check("", Pod, Container, Pod);
    check("hostNetwork: true,", Node, Container, Pod);
    check("hostPID: true,", Pod, Node, Pod);
    check("hostIPC: true,", Pod, Container, Node);
    check("shareProcessNamespace: true,", Pod, Pod, Pod);
}

#[test]
fn a_debug_container_joins_the_processes_of_its_target() {
    let target = ContainerId::new("c1");
    let check = |spec: &str, expected: (NamespaceMode, &str)| {
        let pod = pod(spec, "");
        let config = config();
        let image = image();
        let inputs = ContainerInputs {
            attempt: 0,
            image: &image,
            env: Vec::new(),
            mounts: Vec::new(),
            termination_log: None,
            target: Some(&target),
            users: None,
            config: &config,
        };
        let (_, container) = find(&pod, "web").expect("the test pod has this container");
        let namespaces = container_config(&pod, &container, inputs).expect("it can be launched").security.namespaces;
        assert_eq!((namespaces.pid, namespaces.target_id.as_str()), expected, "{spec}");
    };
    check("", (NamespaceMode::Target, "c1"));
    check("shareProcessNamespace: true,", (NamespaceMode::Pod, ""));
    check("hostPID: true,", (NamespaceMode::Node, ""));
}

#[test]
fn the_containers_security_wins_over_the_pods() {
    let of_pod = "securityContext: {runAsUser: 1, runAsGroup: 2, fsGroup: 3, supplementalGroups: [4], \
                  seLinuxOptions: {type: pod_t, user: u, role: r}, seccompProfile: {type: RuntimeDefault}, \
                  appArmorProfile: {type: RuntimeDefault}},";
    let got = security(of_pod, "");
    assert_eq!((got.run_as_user, got.run_as_group), (Some(1), Some(2)));
    assert_eq!(got.supplemental_groups, [3, 4]);
    let selinux = SelinuxOptions { user: "u".into(), role: "r".into(), kind: "pod_t".into(), level: String::new() };
    assert_eq!(got.selinux, Some(selinux));
    assert_eq!(got.seccomp, Some(SecurityProfile::RuntimeDefault));
    assert_eq!(got.apparmor, Some(SecurityProfile::RuntimeDefault));

    let got = security(
        of_pod,
        "securityContext: {runAsUser: 11, runAsGroup: 12, seLinuxOptions: {type: own_t}, \
         seccompProfile: {type: Unconfined}, appArmorProfile: {type: Localhost, localhostProfile: mine}, \
         readOnlyRootFilesystem: true, capabilities: {add: [NET_ADMIN], drop: [ALL]}, \
         allowPrivilegeEscalation: false, privileged: true}",
    );
    assert_eq!((got.run_as_user, got.run_as_group), (Some(11), Some(12)));
    assert_eq!(got.selinux, Some(SelinuxOptions { kind: "own_t".into(), ..SelinuxOptions::default() }));
    assert_eq!(got.seccomp, Some(SecurityProfile::Unconfined));
    assert_eq!(got.apparmor, Some(SecurityProfile::Localhost("mine".into())));
    assert_eq!(got.add_capabilities, ["NET_ADMIN"]);
    assert_eq!(got.drop_capabilities, ["ALL"]);
    assert!(got.readonly_rootfs && got.no_new_privs && got.privileged);
}

#[test]
fn nothing_said_about_security_means_the_defaults() {
    let got = security("", "");
    assert_eq!(got.seccomp, Some(SecurityProfile::Unconfined));
    assert_eq!(got.apparmor, None);
    assert!(!got.readonly_rootfs && !got.no_new_privs && !got.privileged);
    assert!(!security("", "securityContext: {allowPrivilegeEscalation: true}").no_new_privs);
}

#[test]
fn seccomp_profiles_are_found() {
    let check = |default: bool, container: &str, expected: Result<SecurityProfile, LaunchError>| {
        let config = LaunchConfig { seccomp_default: default, ..config() };
        let pod = pod("", &format!("securityContext: {{{container}}}"));
        let got = container_with(&pod, "web", &image(), &config);
        assert_eq!(got.map(|container| container.security.seccomp), expected.map(Some), "{container}");
    };
    check(false, "", Ok(SecurityProfile::Unconfined));
    check(true, "", Ok(SecurityProfile::RuntimeDefault));
    check(true, "seccompProfile: {type: Unconfined}", Ok(SecurityProfile::Unconfined));
    check(
        false,
        "seccompProfile: {type: Localhost, localhostProfile: a/b.json}",
        Ok(SecurityProfile::Localhost("/var/lib/kubelet/seccomp/a/b.json".into())),
    );
    check(false, "seccompProfile: {type: Localhost}", Err(LaunchError::NoLocalhostSeccomp));
}

#[test]
fn an_apparmor_annotation_counts_between_container_and_pod() {
    let check = |annotation: &str, container: &str, expected: SecurityProfile| {
        let mut pod = pod(
            "securityContext: {appArmorProfile: {type: Unconfined}},",
            &format!("securityContext: {{{container}}}"),
        );
        let key = "container.apparmor.security.beta.kubernetes.io/web";
        pod.metadata.annotations = Some(map([(key, annotation)]));
        let got = container_with(&pod, "web", &image(), &config()).expect("it can be launched");
        assert_eq!(got.security.apparmor, Some(expected), "{annotation} {container}");
    };
    check("runtime/default", "", SecurityProfile::RuntimeDefault);
    check("localhost/mine", "", SecurityProfile::Localhost("mine".into()));
    check("nonsense", "", SecurityProfile::Unconfined);
    check(
        "runtime/default",
        "appArmorProfile: {type: Localhost, localhostProfile: own}",
        SecurityProfile::Localhost("own".into()),
    );
}

#[test]
fn proc_is_masked_unless_the_container_asks_otherwise() {
    let with_throttle =
        LaunchConfig { thermal_throttle_dirs: words(["/sys/devices/system/cpu/cpu0/thermal_throttle"]), ..config() };
    let masked = |container: &str| {
        let pod = pod("", container);
        let got = container_with(&pod, "web", &image(), &with_throttle).expect("it can be launched").security;
        (got.masked_paths, got.readonly_paths)
    };
    let (masked_paths, readonly_paths) = masked("");
    assert!(masked_paths.contains(&"/proc/kcore".to_owned()));
    assert_eq!(masked_paths.last().map(String::as_str), Some("/sys/devices/system/cpu/cpu0/thermal_throttle"));
    assert!(readonly_paths.contains(&"/proc/sysrq-trigger".to_owned()));
    assert_eq!(masked("securityContext: {procMount: Unmasked}"), (Vec::new(), Vec::new()));
}

#[test]
fn the_images_user_applies_where_nobody_names_one() {
    let check = |spec: &str, uid: Option<i64>, username: &str, expected: (Option<i64>, &str)| {
        let pod = pod(spec, "");
        let image = ReadyImage { uid, username: username.into(), ..image() };
        let got = container_with(&pod, "web", &image, &config()).expect("it can be launched").security;
        assert_eq!((got.run_as_user, got.run_as_username.as_str()), expected, "{spec}");
    };
    check("", Some(65), "", (Some(65), ""));
    check("", None, "nginx", (None, "nginx"));
    check("securityContext: {runAsUser: 7},", Some(65), "", (Some(7), ""));
    check("securityContext: {runAsUser: 7},", None, "nginx", (Some(7), ""));
}

#[test]
fn a_container_that_must_not_be_root_is_not_started_as_root() {
    let check = |spec: &str, container: &str, uid: Option<i64>, username: &str, expected: Result<(), &str>| {
        let pod = pod(spec, container);
        let image = ReadyImage { uid, username: username.into(), ..image() };
        let got = container_with(&pod, "web", &image, &config()).map(|_| ()).map_err(|error| error.to_string());
        let expected = expected.map_err(|message| format!("{message} (pod: \"web-0_shop({UID})\", container: web)"));
        assert_eq!(got, expected, "{spec} {container} {uid:?} {username}");
    };
    let non_root = "securityContext: {runAsNonRoot: true}";
    let pod_non_root = "securityContext: {runAsNonRoot: true},";
    let as_root = Err("container has runAsNonRoot and image will run as root");
    check("", "", Some(0), "", Ok(()));
    check("", non_root, Some(0), "", as_root);
    check(pod_non_root, "", Some(0), "", as_root);
    check(pod_non_root, "securityContext: {runAsNonRoot: false}", Some(0), "", Ok(()));
    check("", non_root, Some(1), "", Ok(()));
    check(
        "",
        non_root,
        None,
        "nginx",
        Err("container has runAsNonRoot and image has non-numeric user (nginx), cannot verify user is non-root"),
    );
    check("", non_root, None, "", as_root);
    check("securityContext: {runAsUser: 5},", non_root, Some(0), "", Ok(()));
    check(
        "",
        "securityContext: {runAsNonRoot: true, runAsUser: 0}",
        Some(5),
        "",
        Err("container's runAsUser breaks non-root policy"),
    );
}

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

#[test]
fn users_of_its_own_and_the_handler_reach_sandbox_and_container() {
    let users = Some(IdRange { host_id: 131_072, length: 65_536 });
    let pod = pod("hostUsers: false, runtimeClassName: sealed,", "terminationMessagePath: /dev/log");
    let (config, resolver) = (config(), Resolver::default());
    let inputs =
        SandboxInputs { attempt: 0, resolver: &resolver, runtime_handler: "sealed-handler", users, config: &config };
    let (sandbox, _) = sandbox_config(&pod, inputs).expect("it can be launched");
    assert_eq!((sandbox.runtime_handler.as_str(), sandbox.security.namespaces.users), ("sealed-handler", users));

    let (_, container) = find(&pod, "web").expect("the test pod has this container");
    let volume = Mount { container_path: "/data".into(), host_path: "/pods/u/data".into(), ..Mount::default() };
    let of_image = Mount { image: Some(crate::cri::ImageSpec::default()), ..Mount::default() };
    let inputs = ContainerInputs {
        attempt: 0,
        image: &image(),
        env: Vec::new(),
        mounts: vec![volume, of_image],
        termination_log: Some(Path::new("/pods/u/log")),
        target: None,
        users,
        config: &config,
    };
    let container = container_config(&pod, &container, inputs).expect("it can be launched");
    assert_eq!(container.security.namespaces.users, users);
    let ids: Vec<_> = container.mounts.iter().map(|mount| mount.ids).collect();
    assert_eq!(ids, [users, None, users], "volume, image, termination log");
}
