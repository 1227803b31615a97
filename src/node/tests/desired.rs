use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::*;
use crate::config::{Limit, Signal};
use crate::cri::{RuntimeHandler, RuntimeStatus, RuntimeVersion};
use crate::node::addresses::{addresses, host_ips};
use crate::node::capacity::{allocatable, capacity, check_reservations};
use crate::node::conditions::{ConditionInputs, Pressures, conditions, transitions};
use crate::node::desired::{NodeInputs, node};

#[track_caller]
fn check_amounts(facts: &MachineFacts, config: &NodeConfig, expected: &[(&str, &str, &str)]) {
    let capacity = capacity(facts, config);
    let allocatable = allocatable(&capacity, config);
    let shown: Vec<(String, String, String)> = capacity
        .iter()
        .map(|(name, amount)| (name.clone(), amount.to_string(), allocatable[name].to_string()))
        .collect();
    let expected: Vec<(String, String, String)> =
        expected.iter().map(|(name, has, left)| ((*name).into(), (*has).into(), (*left).into())).collect();
    assert_eq!(shown, expected);
}

#[test]
fn pods_may_have_what_is_not_reserved() {
    let mut config = config();
    let storage = ("ephemeral-storage", "97656250Ki", "97656250Ki");
    check_amounts(&machine(), &config, &[("cpu", "2", "2"), storage, ("memory", "4Gi", "4Gi"), ("pods", "110", "110")]);

    config.reserved.system =
        amounts(&[("cpu", "100m"), ("memory", "256Mi"), ("ephemeral-storage", "1Gi"), ("pid", "100")]);
    config.reserved.kube = amounts(&[("cpu", "200m"), ("memory", "256Mi")]);
    config.reserved.eviction.insert(Signal::MemoryAvailable, Limit::Quantity(parse("100Mi").expect("a quantity")));
    config.reserved.eviction.insert(Signal::NodeFsAvailable, Limit::Percent(10.0));
    config.reserved.eviction.insert(Signal::ImageFsAvailable, Limit::Percent(15.0));
    let storage = ("ephemeral-storage", "97656250Ki", "88926258027");
    check_amounts(
        &machine(),
        &config,
        &[("cpu", "2", "1700m"), storage, ("memory", "4Gi", "3484Mi"), ("pods", "110", "110")],
    );
    assert_eq!(check_reservations(&machine(), &config), Ok(()));

    config.reserved.cpus = Some(1);
    assert_eq!(allocatable(&capacity(&machine(), &config), &config)["cpu"].to_string(), "1");
}

#[test]
fn huge_pages_are_taken_out_of_memory() {
    let facts = MachineFacts { hugepages: vec![("2Mi".into(), 512 << 20), ("1Gi".into(), 1 << 30)], ..machine() };
    let config = NodeConfig { local_storage_isolation: false, ..config() };
    check_amounts(
        &facts,
        &config,
        &[
            ("cpu", "2", "2"),
            ("hugepages-1Gi", "1Gi", "1Gi"),
            ("hugepages-2Mi", "512Mi", "512Mi"),
            ("memory", "4Gi", "2560Mi"),
            ("pods", "110", "110"),
        ],
    );
}

#[test]
fn more_reserved_than_there_is_leaves_nothing_and_is_refused_at_the_start() {
    let mut config = config();
    config.reserved.kube = amounts(&[("memory", "8Gi")]);
    assert_eq!(allocatable(&capacity(&machine(), &config), &config)["memory"].to_string(), "0");
    let error = check_reservations(&machine(), &config).expect_err("too much").to_string();
    assert_eq!(error, "invalid Node Allocatable configuration: memory: 8Gi reserved of 4Gi");
}

#[test]
fn pods_per_core_bounds_the_number_of_pods() {
    let pods = |max_pods, pods_per_core| {
        capacity(&machine(), &NodeConfig { max_pods, pods_per_core, ..config() })["pods"].to_string()
    };
    assert_eq!([pods(110, 0), pods(110, 10), pods(15, 10), pods(0, 0)], ["110", "20", "15", "0"]);
}

#[track_caller]
fn check_addresses(node_ip: NodeIp, name: &str, local: &[&str], resolved: &[&str], expected: Result<&[&str], &str>) {
    let list = |ips: &[&str]| ips.iter().map(|text| ip(text)).collect::<Vec<_>>();
    let config = NodeConfig { node_ip, name: name.into(), ..config() };
    let (found, error) = addresses(&config, &list(local), &list(resolved), &[]);
    let internal: Vec<&str> =
        found.iter().filter(|address| address.type_ == "InternalIP").map(|address| address.address.as_str()).collect();
    assert_eq!(
        found.last().map(|address| (address.type_.as_str(), address.address.as_str())),
        Some(("Hostname", name))
    );
    match expected {
        Ok(expected) => assert_eq!((internal.as_slice(), error), (expected, None)),
        Err(expected) => {
            assert_eq!((internal, error.map(|error| error.to_string())), (vec![], Some(expected.to_owned())))
        }
    }
}

#[test]
fn the_nodes_address_is_the_given_one_or_the_best_found() {
    use NodeIp::*;
    let both = ["192.0.2.7", "fd00::7"];
    check_addresses(Unset, "n", &both, &[], Ok(&["192.0.2.7"]));
    check_addresses(PreferV6, "n", &both, &[], Ok(&["fd00::7"]));
    check_addresses(PreferV4, "n", &["fd00::7"], &[], Ok(&["fd00::7"]));
    check_addresses(Unset, "n", &[], &[], Err("no interface has an address that others can reach"));
    // What the name resolves to counts if it is ours; Debian's 127.0.1.1 is not.
    check_addresses(Unset, "n", &["192.0.2.7", "10.0.0.7"], &["10.0.0.7"], Ok(&["10.0.0.7"]));
    check_addresses(Unset, "n", &["192.0.2.7", "10.0.0.7"], &["127.0.1.1", "10.0.0.9"], Ok(&["192.0.2.7"]));
    check_addresses(PreferV6, "n", &["192.0.2.7", "fd00::7"], &["192.0.2.7", "fd00::7"], Ok(&["fd00::7"]));
    check_addresses(Unset, "192.0.2.9", &both, &[], Ok(&["192.0.2.9"]));
    check_addresses(Single(ip("fd00::7")), "n", &both, &[], Ok(&["fd00::7"]));
    check_addresses(
        Single(ip("10.9.9.9")),
        "n",
        &both,
        &[],
        Err("--node-ip: 10.9.9.9 is on no interface of this host"),
    );
    check_addresses(Dual(ip("fd00::7"), ip("192.0.2.7")), "n", &both, &[], Ok(&["fd00::7", "192.0.2.7"]));
}

#[test]
fn a_cloud_controller_has_the_say_over_addresses() {
    let address = |kind: &str, address: &str| NodeAddress { type_: kind.into(), address: address.into() };
    let mut config = NodeConfig { external_cloud_provider: true, ..config() };
    let local = [ip("192.0.2.7")];
    let host_name = address("Hostname", "board-1");
    assert_eq!(addresses(&config, &local, &[], &[]), (vec![host_name.clone()], None));
    let existing = [address("ExternalIP", "203.0.113.1")];
    assert_eq!(addresses(&config, &local, &[], &existing), (existing.to_vec(), None));
    config.node_ip = NodeIp::Single(ip("192.0.2.7"));
    assert_eq!(addresses(&config, &local, &[], &[]), (vec![address("InternalIP", "192.0.2.7"), host_name], None));
}

#[test]
fn pods_are_told_internal_addresses_first_and_one_of_each_family() {
    let check = |list: &[(&str, &str)], expected: &[&str]| {
        let addresses: Vec<_> = list.iter().map(|(kind, address)| json!({"type": kind, "address": address})).collect();
        let node: Node =
            serde_json::from_value(json!({"metadata": {}, "status": {"addresses": addresses}})).expect("a node");
        assert_eq!(host_ips(&node), expected.iter().map(|text| ip(text)).collect::<Vec<_>>());
    };
    check(&[("Hostname", "n")], &[]);
    check(&[("ExternalIP", "203.0.113.1"), ("InternalIP", "192.0.2.7"), ("InternalIP", "192.0.2.8")], &["192.0.2.7"]);
    check(&[("InternalIP", "192.0.2.7"), ("InternalIP", "fd00::7")], &["192.0.2.7", "fd00::7"]);
    check(&[("ExternalIP", "203.0.113.1")], &["203.0.113.1"]);
}

fn problems(list: &[&str]) -> Vec<String> {
    list.iter().map(|problem| (*problem).to_owned()).collect()
}

#[test]
fn conditions_stand_in_upstreams_words_and_order() {
    let check = |pressures, list: &[&str], expected: [&str; 4]| {
        let problems = problems(list);
        let inputs = ConditionInputs { pressures, problems: &problems, earlier: &[], now: at(0) };
        let told: Vec<String> = conditions(&inputs)
            .into_iter()
            .map(|condition| {
                let (reason, message) = (condition.reason.unwrap_or_default(), condition.message.unwrap_or_default());
                format!("{}={} {reason}: {message}", condition.type_, condition.status)
            })
            .collect();
        assert_eq!(told, expected);
    };
    let memory = "MemoryPressure=False KubeletHasSufficientMemory: kubelet has sufficient memory available";
    let disk = "DiskPressure=False KubeletHasNoDiskPressure: kubelet has no disk pressure";
    let pids = "PIDPressure=False KubeletHasSufficientPID: kubelet has sufficient PID available";
    check(Pressures::default(), &[], [memory, disk, pids, "Ready=True KubeletReady: kubelet is posting ready status"]);
    check(
        Pressures::default(),
        &["container runtime is down"],
        [memory, disk, pids, "Ready=False KubeletNotReady: container runtime is down"],
    );
    check(Pressures::default(), &["a", "b"], [memory, disk, pids, "Ready=False KubeletNotReady: [a, b]"]);
    check(
        Pressures { memory: true, disk: true, pids: true },
        &[],
        [
            "MemoryPressure=True KubeletHasInsufficientMemory: kubelet has insufficient memory available",
            "DiskPressure=True KubeletHasDiskPressure: kubelet has disk pressure",
            "PIDPressure=True KubeletHasInsufficientPID: kubelet has insufficient PID available",
            "Ready=True KubeletReady: kubelet is posting ready status",
        ],
    );
}

#[test]
fn transition_times_stay_while_the_status_does_and_heartbeats_do_not() {
    let ready = |list: &[&str], earlier: &[NodeCondition], now: i64| {
        let problems = problems(list);
        conditions(&ConditionInputs { pressures: Pressures::default(), problems: &problems, earlier, now: at(now) })
    };
    let times = |conditions: &[NodeCondition]| {
        let ready = conditions.last().expect("the Ready condition");
        let second = |time: &Option<Time>| time.as_ref().map(|time| time.0.as_second() - at(0).as_second());
        (second(&ready.last_transition_time), second(&ready.last_heartbeat_time))
    };
    let first = ready(&["starting"], &[], 10);
    assert_eq!(times(&first), (Some(10), Some(10)));
    let second = ready(&["another reason"], &first, 20);
    assert_eq!(times(&second), (Some(10), Some(20)));
    let third = ready(&[], &second, 30);
    assert_eq!(times(&third), (Some(30), Some(30)));
}

#[test]
fn changes_of_conditions_are_events_but_not_the_first_word_on_readiness() {
    let set = |list: &[&str]| {
        let problems = problems(list);
        conditions(&ConditionInputs { pressures: Pressures::default(), problems: &problems, earlier: &[], now: at(0) })
    };
    let (not_ready, is_ready) = (set(&["starting"]), set(&[]));
    let pressures = ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID"];
    assert_eq!(transitions(&[], &not_ready), pressures);
    assert_eq!(transitions(&not_ready, &is_ready), ["NodeReady"]);
    assert_eq!(transitions(&is_ready, &not_ready), ["NodeNotReady"]);
    assert_eq!(transitions(&is_ready, &is_ready), [""; 0]);
}

#[test]
fn a_new_node_says_everything_that_is_known() {
    let mut config = config();
    config.labels.insert("kubernetes.io/arch".into(), "mips".into());
    config.labels.insert("rack".into(), "7".into());
    config.external_cloud_provider = true;
    config.node_ip = NodeIp::Dual(ip("192.0.2.7"), ip("fd00::7"));
    config.provider_id = "cloud://1".into();
    let facts = MachineFacts { swap_bytes: 1024, ..machine() };
    let version = RuntimeVersion { runtime_name: "containerd".into(), runtime_version: "2.2.9".into() };
    let handler =
        |name: &str| RuntimeHandler { name: name.into(), recursive_read_only_mounts: true, user_namespaces: false };
    let status = RuntimeStatus {
        handlers: vec![handler("runc"), handler("")],
        supplemental_groups_policy: true,
        ..RuntimeStatus::default()
    };
    let node = node(&NodeInputs {
        config: &config,
        facts: &facts,
        addresses: vec![NodeAddress { type_: "InternalIP".into(), address: "192.0.2.7".into() }],
        runtime_version: Some(&version),
        runtime_status: Some(&status),
        problems: Vec::new(),
        pressures: Pressures::default(),
        images: Some(&[]),
        existing: None,
        now: at(0),
    });
    let mut shown = json!(node);
    shown["status"]["conditions"] = json!(shown["status"]["conditions"].as_array().map(Vec::len));
    let features = json!({"recursiveReadOnlyMounts": true, "userNamespaces": false});
    assert_eq!(
        shown,
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": "board-1",
                "labels": {
                    "kubernetes.io/hostname": "board-1",
                    "kubernetes.io/os": "linux",
                    "kubernetes.io/arch": "mips",
                    "beta.kubernetes.io/os": "linux",
                    "beta.kubernetes.io/arch": "arm64",
                    "rack": "7",
                },
                "annotations": {
                    "volumes.kubernetes.io/controller-managed-attach-detach": "true",
                    "alpha.kubernetes.io/provided-node-ip": "192.0.2.7,fd00::7",
                },
            },
            "spec": {
                "providerID": "cloud://1",
                "taints": [{"key": "node.cloudprovider.kubernetes.io/uninitialized", "value": "true", "effect": "NoSchedule"}],
            },
            "status": {
                "addresses": [{"type": "InternalIP", "address": "192.0.2.7"}],
                "capacity": {"cpu": "2", "memory": "4Gi", "ephemeral-storage": "97656250Ki", "pods": "110"},
                "allocatable": {"cpu": "2", "memory": "4Gi", "ephemeral-storage": "97656250Ki", "pods": "110"},
                "conditions": 4,
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
                "declaredFeatures": [
                    "InPlacePodLevelResourcesVerticalScaling",
                    "InPlacePodVerticalScalingInitContainers",
                    "RestartAllContainersOnContainerExits",
                ],
                "features": {"supplementalGroupsPolicy": true},
                "images": [],
                "nodeInfo": {
                    "architecture": "arm64",
                    "bootID": "boot-1",
                    "containerRuntimeVersion": "containerd://2.2.9",
                    "kernelVersion": "6.1.0",
                    "kubeProxyVersion": "",
                    "kubeletVersion": "v1.36.2+ferrolet.0.1.0",
                    "machineID": "m1d",
                    "operatingSystem": "linux",
                    "osImage": "Debian GNU/Linux 12 (bookworm)",
                    "swap": {"capacity": 1024},
                    "systemUUID": "uu1d",
                },
                "runtimeHandlers": [
                    {"name": "", "features": features.clone()},
                    {"name": "runc", "features": features},
                ],
            },
        })
    );
}
