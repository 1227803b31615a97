use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Value, json};

use crate::status::patch::status_patch;

fn status(value: Value) -> PodStatus {
    serde_json::from_value(value).expect("a pod status")
}

#[track_caller]
fn check(api: Value, desired: Value, expected: Value) {
    let patch = status_patch(&status(api.clone()), &status(desired.clone()));
    assert_eq!(patch, Some(expected).filter(|patch| !patch.is_null()), "from {api} to {desired}");
}

#[test]
fn only_what_differs_is_sent() {
    check(json!({}), json!({}), Value::Null);
    check(json!({"phase": "Pending"}), json!({"phase": "Pending"}), Value::Null);
    check(
        json!({"phase": "Pending", "podIP": "10.0.0.1"}),
        json!({"phase": "Running", "podIP": "10.0.0.1"}),
        json!({"phase": "Running"}),
    );
}

#[test]
fn what_a_status_leaves_out_stays_except_for_the_phases_explanation() {
    check(json!({"podIP": "10.0.0.1", "qosClass": "Burstable", "nominatedNodeName": "n"}), json!({}), Value::Null);
    check(
        json!({"phase": "Pending", "reason": "Slow", "message": "m"}),
        json!({"phase": "Running"}),
        json!({"phase": "Running", "reason": null, "message": null}),
    );
    check(json!({"reason": ""}), json!({}), Value::Null);
}

#[test]
fn a_terminal_phase_in_the_api_is_final() {
    check(json!({"phase": "Failed", "reason": "Evicted"}), json!({"phase": "Running"}), Value::Null);
    check(
        json!({"phase": "Succeeded"}),
        json!({"phase": "Failed", "reason": "Error", "podIP": "10.0.0.1"}),
        json!({"podIP": "10.0.0.1"}),
    );
}

#[test]
fn address_lists_are_replaced_whole() {
    check(
        json!({"podIPs": [{"ip": "10.0.0.1"}]}),
        json!({"podIPs": [{"ip": "10.0.0.2"}]}),
        json!({"podIPs": [{"$patch": "replace"}, {"ip": "10.0.0.2"}]}),
    );
    check(json!({"podIPs": [{"ip": "10.0.0.1"}]}), json!({"podIPs": [{"ip": "10.0.0.1"}]}), Value::Null);
}

#[test]
fn conditions_are_sent_one_by_one() {
    let time = "2023-11-14T22:13:20Z";
    let api = json!({"conditions": [
        {"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "m", "lastTransitionTime": time},
        {"type": "Initialized", "status": "True", "lastTransitionTime": time},
        {"type": "lb/a", "status": "True"},
        {"type": "DisruptionTarget", "status": "True"},
    ]});
    let later = "2023-11-14T22:13:30Z";
    let desired = json!({"conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": later},
        {"type": "Initialized", "status": "True", "lastTransitionTime": later},
    ]});
    check(
        api,
        desired,
        json!({"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": later, "reason": null, "message": null},
        ]}),
    );
}

#[test]
fn another_message_keeps_the_transition_time() {
    let with = |message: &str, time: &str| json!({"conditions": [{"type": "Ready", "status": "False", "message": message, "lastTransitionTime": time}]});
    check(with("a", "2023-11-14T22:13:20Z"), with("b", "2023-11-14T22:13:30Z"), with("b", "2023-11-14T22:13:20Z"));
}

#[test]
fn passing_conditions_of_ours_are_removed() {
    check(
        json!({"conditions": [{"type": "PodResizePending", "status": "True"}]}),
        json!({"conditions": []}),
        json!({"conditions": [{"$patch": "delete", "type": "PodResizePending"}]}),
    );
}
