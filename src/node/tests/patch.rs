use k8s_openapi::api::core::v1::{Node, NodeStatus};
use serde_json::{Value, json};

use crate::node::patch::{metadata_patch, status_patch, with_heartbeat};

fn status(value: Value) -> NodeStatus {
    serde_json::from_value(value).expect("a node status")
}

#[track_caller]
fn check(api: Value, desired: Value, expected: Value) {
    let patch = status_patch(&status(api.clone()), &status(desired.clone()));
    assert_eq!(patch, Some(expected).filter(|patch| !patch.is_null()), "from {api} to {desired}");
}

#[test]
fn equal_amounts_are_not_sent_however_they_are_written() {
    check(
        json!({"capacity": {"memory": "4194304Ki", "cpu": "2"}}),
        json!({"capacity": {"memory": "4Gi", "cpu": "2000m"}}),
        Value::Null,
    );
    check(json!({"capacity": {"cpu": "2"}}), json!({"capacity": {"cpu": "4"}}), json!({"capacity": {"cpu": "4"}}));
}

#[test]
fn resources_of_others_stay_and_huge_pages_that_are_no_more_go() {
    check(
        json!({"capacity": {"cpu": "2", "example.com/gpu": "1", "hugepages-2Mi": "0", "hugepages-1Gi": "0"}}),
        json!({"capacity": {"cpu": "2", "hugepages-1Gi": "0"}}),
        json!({"capacity": {"hugepages-2Mi": null}}),
    );
}

#[test]
fn addresses_are_replaced_as_a_whole() {
    check(
        json!({"addresses": [{"type": "InternalIP", "address": "192.0.2.7"}]}),
        json!({"addresses": [{"type": "InternalIP", "address": "192.0.2.8"}]}),
        json!({"addresses": [{"$patch": "replace"}, {"type": "InternalIP", "address": "192.0.2.8"}]}),
    );
}

#[test]
fn what_is_not_known_yet_is_left_alone() {
    let api = json!({"images": [{"names": ["a"]}], "runtimeHandlers": [{"name": ""}], "features": {"supplementalGroupsPolicy": true}});
    check(api, json!({}), Value::Null);
}

#[test]
fn a_heartbeat_alone_is_no_change() {
    let at = |second: &str| {
        let time = format!("2024-01-01T00:00:{second}Z");
        json!({"conditions": [
            {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "m", "lastHeartbeatTime": time, "lastTransitionTime": time},
        ]})
    };
    check(at("00"), at("10"), Value::Null);
    let sent = with_heartbeat(None, &status(at("10")));
    assert_eq!(sent, json!({"status": at("10")}));
}

#[test]
fn another_message_sends_all_conditions_with_their_heartbeats() {
    let condition =
        |kind: &str, message: &str| json!({"type": kind, "status": "False", "reason": "r", "message": message});
    let api = json!({"conditions": [condition("Ready", "a"), condition("DiskPressure", "b"), condition("NetworkUnavailable", "c")]});
    let desired = json!({"conditions": [condition("DiskPressure", "b"), condition("Ready", "other")]});
    check(api, desired.clone(), desired);
}

#[test]
fn swap_that_was_turned_off_goes() {
    let info = |swap: Option<i64>| {
        let mut info = json!({"architecture": "arm64", "bootID": "b", "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "",
            "kubeletVersion": "", "machineID": "", "operatingSystem": "linux", "osImage": "", "systemUUID": ""});
        if let Some(bytes) = swap {
            info["swap"] = json!({"capacity": bytes});
        }
        json!({"nodeInfo": info})
    };
    let patch = status_patch(&status(info(Some(5))), &status(info(None))).expect("a patch");
    assert_eq!(patch["nodeInfo"]["swap"], Value::Null);
    assert!(patch["nodeInfo"].get("swap").is_some());
}

#[track_caller]
fn check_metadata(api: Value, desired: Value, expected: Value) {
    let node = |metadata: Value| serde_json::from_value::<Node>(json!({"metadata": metadata})).expect("a node");
    let patch = metadata_patch(&node(api.clone()), &node(desired.clone()));
    assert_eq!(patch.map_or(Value::Null, |patch| patch["metadata"].clone()), expected, "from {api} to {desired}");
}

#[test]
fn labels_that_say_what_the_node_is_are_put_right_and_others_are_not() {
    let attach = "volumes.kubernetes.io/controller-managed-attach-detach";
    check_metadata(
        json!({"labels": {"kubernetes.io/arch": "amd64", "rack": "7"}}),
        json!({"labels": {"kubernetes.io/arch": "arm64", "kubernetes.io/os": "linux", "rack": "8", "shelf": "1"}}),
        json!({"labels": {"kubernetes.io/arch": "arm64", "kubernetes.io/os": "linux"}}),
    );
    check_metadata(
        json!({"labels": {"topology.kubernetes.io/zone": "a", "topology.kubernetes.io/region": ""}}),
        json!({}),
        json!({"labels": {"topology.kubernetes.io/region": null}}),
    );
    check_metadata(json!({}), json!({"annotations": {attach: "true"}}), json!({"annotations": {attach: "true"}}));
    check_metadata(json!({"annotations": {attach: "true"}}), json!({}), json!({"annotations": {attach: null}}));
    check_metadata(json!({"annotations": {attach: "true"}}), json!({"annotations": {attach: "true"}}), Value::Null);
}
