use super::*;

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
            places: &Places::default(),
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
        places: &Places::default(),
        config: &config,
    };
    let container = container_config(&pod, &container, inputs).expect("it can be launched");
    assert_eq!(container.security.namespaces.users, users);
    let ids: Vec<_> = container.mounts.iter().map(|mount| mount.ids).collect();
    assert_eq!(ids, [users, None, users], "volume, image, termination log");
}
