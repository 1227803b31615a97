//! What the runtime is told of pods written as YAML.

mod cgroups;
mod resources;
mod security;

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

use super::*;
use crate::config::FeatureGates;
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
use crate::topology::Places;

const UID: &str = "0b1d2f6c-1111-2222-3333-444455556666";

/// A node with what a node usually has.
pub fn config() -> LaunchConfig {
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
            enforced_on_pods: true,
            kubepods: CgroupSettings::default(),
            reserved: Vec::new(),
            memory_allocatable_bytes: 8000 << 20,
            memory_qos: None,
            memory_reserved_percent: None,
        },
        memory_bytes: 10_000 << 20,
        single_process_oom_kill: false,
        swap_controller: false,
        swap_bytes: 0,
        gates: FeatureGates::default(),
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
        env: vec![("WHO".into(), b"world".to_vec())],
        mounts: Vec::new(),
        termination_log: None,
        target: None,
        users: None,
        places: &Places::default(),
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
            sysctls: [{name: net/ipv4/tcp_syncookies, value: '1'}]
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
        env: vec![("WHO".into(), b"world".to_vec())],
        mounts: vec![mount("/data", "/pods/x/data")],
        termination_log: Some(Path::new("/pods/x/containers/web/0a1b2c3d")),
        target: None,
        users: None,
        places: &Places::default(),
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
    assert_eq!(container.env, [("WHO".to_owned(), b"world".to_vec())]);
    let message = Mount { selinux_relabel: true, ..mount("/dev/termination-log", "/pods/x/containers/web/0a1b2c3d") };
    assert_eq!(container.mounts, [mount("/data", "/pods/x/data"), message]);
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
