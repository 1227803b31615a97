use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ContainerImage, Node};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::*;
use crate::clock::Clock;
use crate::config::{FeatureGates, Gate};
use crate::cri::{self, CriError, RuntimeCondition, RuntimeStatus, RuntimeVersion};
use crate::events::{Recorded, Recorder};
use crate::host;
use crate::kube::ApiError;
use crate::kube::fake::FakeCluster;
use crate::node::{NodeHandle, NodeParts, NodeView, Survey, run};
use crate::pleg::RuntimeHealth;

/// A machine and a runtime that answer what a test puts in.
struct FakeSurvey {
    machine: Mutex<MachineFacts>,
    images: Mutex<Arc<Vec<ContainerImage>>>,
    runtime_hangs: Mutex<bool>,
    pod_cidrs: Mutex<Vec<String>>,
}

#[async_trait]
impl Survey for FakeSurvey {
    async fn machine(&self) -> host::Result<MachineFacts> {
        Ok(self.machine.lock().expect("the fake's lock").clone())
    }

    async fn runtime_version(&self) -> cri::Result<RuntimeVersion> {
        Ok(RuntimeVersion { runtime_name: "containerd".into(), runtime_version: "2.2.9".into() })
    }

    async fn images(&self) -> cri::Result<Arc<Vec<ContainerImage>>> {
        if *self.runtime_hangs.lock().expect("the fake's lock") {
            sleep(Duration::from_secs(3600)).await;
        }
        Ok(self.images.lock().expect("the fake's lock").clone())
    }

    async fn resolve(&self, _: &str) -> Vec<IpAddr> {
        Vec::new()
    }

    async fn set_pod_cidr(&self, cidr: &str) -> cri::Result<()> {
        let mut told = self.pod_cidrs.lock().expect("the fake's lock");
        told.push(cidr.to_owned());
        match told.len() {
            1 => Err(CriError::Failed { call: "UpdateRuntimeConfig", message: "not now".into() }),
            _ => Ok(()),
        }
    }
}

/// A running node task with everything around it.
struct Bed {
    cluster: FakeCluster,
    survey: Arc<FakeSurvey>,
    health: watch::Sender<RuntimeHealth>,
    handle: NodeHandle,
    events: Recorded,
}

/// A runtime that goes on answering for longer than any test lasts.
fn healthy() -> RuntimeHealth {
    let lasting = Duration::from_secs(100_000);
    let good = RuntimeCondition { ok: true, ..RuntimeCondition::default() };
    let status = RuntimeStatus { runtime_ready: good.clone(), network_ready: good, ..RuntimeStatus::default() };
    RuntimeHealth {
        status: Some((Instant::now() + lasting, status)),
        error: None,
        listed_at: Some(Instant::now()),
        list_overdue: lasting,
    }
}

impl Bed {
    fn start_with(cluster: &FakeCluster, config: NodeConfig) -> Self {
        let survey = Arc::new(FakeSurvey {
            machine: Mutex::new(machine()),
            images: Mutex::default(),
            runtime_hangs: Mutex::default(),
            pod_cidrs: Mutex::default(),
        });
        let (recorder, events) = Recorder::for_tests();
        let health = watch::Sender::new(RuntimeHealth::default());
        let handle = NodeHandle::new();
        let parts = NodeParts {
            cluster: Some(Arc::new(cluster.clone())),
            clock: Clock::simulated(at(0), 1),
            recorder,
            survey: survey.clone(),
            health: health.subscribe(),
            config,
        };
        tokio::spawn(run(handle.clone(), parts));
        Bed { cluster: cluster.clone(), survey, health, handle, events }
    }

    fn start(cluster: &FakeCluster) -> Self {
        Bed::start_with(cluster, config())
    }

    /// A node that is registered, Ready and quiet.
    async fn ready() -> Self {
        let bed = Bed::start(&FakeCluster::default());
        bed.health.send_replace(healthy());
        sleep(Duration::from_secs(2)).await;
        assert_eq!(bed.condition("Ready"), "True KubeletReady");
        bed.cluster.clear_calls();
        bed
    }

    fn node(&self) -> Value {
        json!(self.cluster.node().expect("a node in the API"))
    }

    fn condition(&self, kind: &str) -> String {
        let node = self.node();
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|condition| condition["type"] == kind);
        found.map_or("absent".into(), |found| {
            format!("{} {}", found["status"].as_str().unwrap_or_default(), found["reason"].as_str().unwrap_or_default())
        })
    }

    fn view(&self) -> Option<Arc<NodeView>> {
        self.handle.view().borrow().clone()
    }
}

/// Lets everything that can happen now happen.
async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

fn away() -> ApiError {
    ApiError::Unavailable { what: "node".into(), message: "connection refused".into() }
}

fn existing(value: Value) -> Node {
    let mut node: Node = serde_json::from_value(value).expect("a node");
    node.metadata.name = Some("board-1".into());
    node
}

#[tokio::test(start_paused = true)]
async fn a_node_registers_at_once_and_is_ready_as_soon_as_the_runtime_is() {
    let bed = Bed::start(&FakeCluster::default());
    settle().await;
    // The watch lists what there was before, so the task looks whether its Node is there.
    assert_eq!(bed.cluster.call_names(), ["create node", "get node"]);
    assert_eq!(bed.condition("Ready"), "False KubeletNotReady");
    assert_eq!(bed.condition("MemoryPressure"), "False KubeletHasSufficientMemory");
    bed.health.send_replace(healthy());
    settle().await;
    assert_eq!(bed.condition("Ready"), "True KubeletReady");
    assert_eq!(bed.node()["status"]["nodeInfo"]["containerRuntimeVersion"], "containerd://2.2.9");
    assert_eq!(
        bed.events.reasons(),
        ["Starting", "NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID", "NodeReady"]
    );
}

#[tokio::test(start_paused = true)]
async fn the_view_is_there_before_the_api_server_is() {
    let cluster = FakeCluster::default();
    cluster.set_outage(Some(away()));
    let bed = Bed::start(&cluster);
    settle().await;
    let view = bed.view().expect("a view");
    assert!(!view.is_registered);
    assert_eq!(view.host_ips, [ip("192.0.2.7")]);
    assert_eq!(view.allocatable["cpu"].to_string(), "2");
    cluster.set_outage(None);
    sleep(Duration::from_secs(8)).await;
    let view = bed.view().expect("a view");
    assert!(view.is_registered && view.node.metadata.uid.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_node_at_rest_is_reported_every_five_minutes_and_no_more() {
    let bed = Bed::ready().await;
    sleep(Duration::from_secs(3600)).await;
    let calls = bed.cluster.calls();
    assert!((10..=13).contains(&calls.len()), "{} writes in an hour", calls.len());
    for (call, patch) in calls {
        assert_eq!(call, "patch node status");
        let status = patch["status"].as_object().expect("a status");
        assert_eq!(status.keys().collect::<Vec<_>>(), ["conditions"]);
    }
    let heartbeat = bed.node()["status"]["conditions"][0]["lastHeartbeatTime"].clone();
    assert_ne!(heartbeat, bed.node()["status"]["conditions"][0]["lastTransitionTime"]);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_machine_is_seen_in_the_next_round() {
    let bed = Bed::ready().await;
    bed.survey.machine.lock().expect("the fake's lock").addresses = vec![ip("192.0.2.8")];
    sleep(Duration::from_secs(11)).await;
    assert_eq!(bed.node()["status"]["addresses"][0], json!({"type": "InternalIP", "address": "192.0.2.8"}));
    assert_eq!(bed.view().expect("a view").host_ips, [ip("192.0.2.8")]);
}

#[tokio::test(start_paused = true)]
async fn who_knows_of_a_change_can_have_it_seen_at_once() {
    let bed = Bed::ready().await;
    *bed.survey.images.lock().expect("the fake's lock") =
        Arc::new(vec![ContainerImage { names: Some(vec!["pause".into()]), size_bytes: Some(7) }]);
    bed.handle.look_again();
    settle().await;
    assert_eq!(bed.node()["status"]["images"], json!([{"names": ["pause"], "sizeBytes": 7}]));
    bed.handle.set_pressures(crate::node::Pressures { disk: true, ..Default::default() });
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bed.condition("DiskPressure"), "True KubeletHasDiskPressure");
    assert_eq!(bed.events.reasons().last().map(String::as_str), Some("NodeHasDiskPressure"));
}

#[tokio::test(start_paused = true)]
async fn changes_in_quick_succession_share_writes() {
    let bed = Bed::ready().await;
    for round in 0..50 {
        let problem = (round % 2 == 0).then(|| "boom".to_owned());
        let mut health = healthy();
        if let (Some(problem), Some((_, status))) = (problem, &mut health.status) {
            status.runtime_ready = RuntimeCondition { ok: false, reason: problem, message: round.to_string() };
        }
        bed.health.send_replace(health);
        sleep(Duration::from_millis(20)).await;
    }
    let writes = bed.cluster.call_names().len();
    assert!((2..=4).contains(&writes), "{writes} writes in a second");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bed.condition("Ready"), "True KubeletReady", "the last word is told");
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_hangs_makes_the_node_not_ready() {
    let bed = Bed::ready().await;
    *bed.survey.runtime_hangs.lock().expect("the fake's lock") = true;
    // Nobody answers from now on, and no call has failed yet.
    bed.health.send_modify(|health| health.status.as_mut().expect("it was well").0 = Instant::now());
    sleep(Duration::from_secs(45)).await;
    assert_eq!(bed.condition("Ready"), "False KubeletNotReady");
    assert_eq!(bed.events.reasons().last().map(String::as_str), Some("NodeNotReady"));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_node_is_registered_again() {
    let bed = Bed::ready().await;
    let first = bed.node()["metadata"]["uid"].clone();
    bed.cluster.put_node(None);
    settle().await;
    let second = bed.node()["metadata"]["uid"].clone();
    assert_ne!(first, second);
    assert_eq!(bed.condition("Ready"), "True KubeletReady");
    assert_eq!(json!(bed.view().expect("a view").node.metadata.uid), second);
}

#[tokio::test(start_paused = true)]
async fn a_node_found_missing_by_a_write_is_registered_again() {
    let bed = Bed::ready().await;
    bed.cluster.fail_next("patch node status", ApiError::NotFound { what: "node".into() });
    bed.handle.set_pressures(crate::node::Pressures { pids: true, ..Default::default() });
    sleep(Duration::from_secs(2)).await;
    assert_eq!(bed.condition("PIDPressure"), "True KubeletHasInsufficientPID");
    assert!(bed.cluster.call_names().contains(&"create node".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_there_is_adopted_with_what_others_put_into_it() {
    let cluster = FakeCluster::default();
    cluster.put_node(Some(existing(json!({
        "metadata": {"labels": {"kubernetes.io/arch": "amd64", "rack": "7"}},
        "spec": {"unschedulable": true, "taints": [{"key": "mine", "effect": "NoSchedule"}]},
        "status": {
            "capacity": {"example.com/gpu": "1"},
            "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"},
                {"type": "NetworkUnavailable", "status": "False"},
            ],
            "nodeInfo": {"architecture": "", "bootID": "boot-0", "containerRuntimeVersion": "containerd://1.6.0", "kernelVersion": "",
                "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": ""},
        },
    }))));
    let bed = Bed::start(&cluster);
    bed.health.send_replace(healthy());
    sleep(Duration::from_secs(2)).await;
    let node = bed.node();
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/arch"], "arm64");
    assert_eq!(node["metadata"]["labels"]["rack"], "7");
    assert_eq!(node["spec"]["taints"], json!([{"key": "mine", "effect": "NoSchedule"}]));
    assert_eq!(node["status"]["capacity"]["example.com/gpu"], "1");
    assert_eq!(bed.condition("NetworkUnavailable"), "False ");
    let reasons = bed.events.reasons();
    assert_eq!(reasons.iter().filter(|reason| *reason == "Rebooted").count(), 1);
    assert!(reasons.contains(&"NodeNotSchedulable".to_owned()), "{reasons:?}");
    assert!(!reasons.contains(&"NodeReady".to_owned()), "it was Ready before and is Ready now: {reasons:?}");
    let ready = &node["status"]["conditions"][0];
    assert_eq!((&ready["type"], &ready["lastTransitionTime"]), (&json!("Ready"), &json!("2020-01-01T00:00:00Z")));
}

/// As an agent left it that ran on this machine before.
fn left_ready(boot_id: &str) -> Node {
    existing(json!({ "status": {
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}],
        "nodeInfo": {"architecture": "", "bootID": boot_id, "containerRuntimeVersion": "containerd://1.6.0", "kernelVersion": "",
            "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": ""},
    }}))
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_begins_leaves_a_ready_node_ready_until_it_knows_better() {
    let begin = async |boot_id: &str| {
        let cluster = FakeCluster::default();
        cluster.put_node(Some(left_ready(boot_id)));
        let bed = Bed::start(&cluster);
        sleep(Duration::from_secs(20)).await;
        bed
    };
    let bed = begin("boot-1").await;
    assert_eq!(bed.condition("Ready"), "True KubeletReady", "nothing is known of the runtime yet");
    bed.health.send_replace(healthy());
    sleep(Duration::from_secs(60)).await;
    let reasons = bed.events.reasons();
    assert!(!reasons.iter().any(|reason| reason.ends_with("Ready")), "{reasons:?}");

    let bed = begin("boot-1").await;
    sleep(Duration::from_secs(25)).await;
    assert_eq!(bed.condition("Ready"), "False KubeletNotReady", "nothing was learnt for too long");

    let bed = begin("boot-1").await;
    let unready = RuntimeCondition { ok: false, ..RuntimeCondition::default() };
    let mut health = RuntimeHealth { listed_at: None, ..healthy() };
    health.status.as_mut().expect("it is well").1.network_ready = unready;
    bed.health.send_replace(health);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bed.condition("Ready"), "False KubeletNotReady", "the runtime says so");

    let bed = begin("boot-0").await;
    assert_eq!(bed.condition("Ready"), "False KubeletNotReady", "that was before the machine went down");
}

#[tokio::test(start_paused = true)]
async fn cordoning_is_told_as_an_event() {
    let bed = Bed::ready().await;
    for (unschedulable, reason) in [(true, "NodeNotSchedulable"), (false, "NodeSchedulable")] {
        let mut node = bed.cluster.node().expect("a node");
        node.spec.get_or_insert_default().unschedulable = Some(unschedulable);
        bed.cluster.put_node(Some(node));
        settle().await;
        assert_eq!(bed.events.reasons().last().map(String::as_str), Some(reason));
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_node_name_is_tried_again_until_it_is_allowed() {
    let cluster = FakeCluster::default();
    let refused = || ApiError::Refused { what: "node".into(), message: "is not allowed to modify node".into() };
    cluster.set_outage(Some(refused()));
    let bed = Bed::start(&cluster);
    sleep(Duration::from_secs(60)).await;
    let calls = cluster.call_names();
    assert!((16..=40).contains(&calls.len()), "{} calls in a minute", calls.len());
    cluster.set_outage(None);
    sleep(Duration::from_secs(8)).await;
    assert!(bed.view().expect("a view").is_registered);
}

#[tokio::test(start_paused = true)]
async fn credentials_that_may_use_a_node_need_not_create_it() {
    let cluster = FakeCluster::default();
    cluster.put_node(Some(existing(json!({"metadata": {}}))));
    cluster.fail_next("create node", ApiError::Refused { what: "node".into(), message: "no".into() });
    let bed = Bed::start(&cluster);
    settle().await;
    assert_eq!(&cluster.call_names()[..2], ["create node", "get node"]);
    assert!(bed.view().expect("a view").is_registered);
}

#[tokio::test(start_paused = true)]
async fn a_gate_says_that_only_a_node_that_exists_is_looked_for() {
    let cluster = FakeCluster::default();
    cluster.put_node(Some(existing(json!({"metadata": {}}))));
    cluster.fail_next("create node", ApiError::Refused { what: "node".into(), message: "no".into() });
    let gates = FeatureGates::with(&[(Gate::KubeletRegistrationGetOnExistsOnly, true)]);
    let bed = Bed::start_with(&cluster, NodeConfig { gates, ..config() });
    sleep(Duration::from_secs(10)).await;
    assert_eq!(&cluster.call_names()[..3], ["create node", "create node", "get node"], "the second one: it exists");
    assert!(bed.view().expect("a view").is_registered);
}

#[tokio::test(start_paused = true)]
async fn without_register_node_it_waits_for_somebody_to_make_the_node() {
    let cluster = FakeCluster::default();
    let bed = Bed::start_with(&cluster, NodeConfig { register: false, ..config() });
    sleep(Duration::from_secs(30)).await;
    assert!(cluster.call_names().iter().all(|call| call == "get node"));
    cluster.put_node(Some(existing(json!({"metadata": {}}))));
    sleep(Duration::from_secs(1)).await;
    assert!(bed.view().expect("a view").is_registered);
    assert_eq!(bed.condition("Ready"), "False KubeletNotReady");
}

#[tokio::test(start_paused = true)]
async fn writes_survive_conflicts_and_outages() {
    for error in [
        ApiError::Conflict { what: "node".into(), message: "modified".into() },
        ApiError::Unavailable { what: "node".into(), message: "429 too many requests".into() },
        ApiError::Refused { what: "node".into(), message: "unauthorized".into() },
        ApiError::Invalid { what: "node".into(), message: "no".into() },
    ] {
        let bed = Bed::ready().await;
        for _ in 0..3 {
            bed.cluster.fail_next("patch node status", error.clone());
        }
        bed.handle.set_pressures(crate::node::Pressures { memory: true, ..Default::default() });
        sleep(Duration::from_secs(5)).await;
        assert_eq!(bed.condition("MemoryPressure"), "True KubeletHasInsufficientMemory", "{error}");
        let writes = bed.cluster.call_names().iter().filter(|call| *call == "patch node status").count();
        assert_eq!(writes, 4, "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_does_not_answer_is_given_up_and_asked_again() {
    let bed = Bed::ready().await;
    bed.cluster.set_latency(Duration::from_secs(3600));
    bed.handle.set_pressures(crate::node::Pressures { memory: true, ..Default::default() });
    sleep(Duration::from_secs(5)).await;
    bed.cluster.set_latency(Duration::ZERO);
    sleep(Duration::from_secs(6)).await;
    assert_eq!(bed.condition("MemoryPressure"), "True KubeletHasInsufficientMemory");
}

#[tokio::test(start_paused = true)]
async fn labels_the_server_refuses_do_not_keep_the_status_back() {
    let cluster = FakeCluster::default();
    cluster.put_node(Some(existing(json!({"metadata": {}}))));
    cluster.fail_next("patch node", ApiError::Refused { what: "node".into(), message: "label not allowed".into() });
    let bed = Bed::start(&cluster);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(bed.condition("Ready"), "False KubeletNotReady");
    assert_eq!(cluster.call_names().iter().filter(|call| *call == "patch node").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_label_is_put_right_each_time_somebody_changes_it() {
    let bed = Bed::ready().await;
    for _ in 0..2 {
        let mut node = bed.cluster.node().expect("a node");
        node.metadata.labels.get_or_insert_default().insert("kubernetes.io/arch".into(), "mips".into());
        bed.cluster.put_node(Some(node));
        sleep(Duration::from_secs(1)).await;
        assert_eq!(bed.node()["metadata"]["labels"]["kubernetes.io/arch"], "arm64");
    }
}

#[tokio::test(start_paused = true)]
async fn the_pod_cidr_of_the_node_is_handed_to_the_runtime_until_it_takes_it() {
    let bed = Bed::ready().await;
    let mut node = bed.cluster.node().expect("a node");
    node.spec.get_or_insert_default().pod_cidrs = Some(vec!["10.1.0.0/24".into(), "fd01::/64".into()]);
    bed.cluster.put_node(Some(node));
    sleep(Duration::from_secs(40)).await;
    let told = bed.survey.pod_cidrs.lock().expect("the fake's lock").clone();
    assert_eq!(told, ["10.1.0.0/24,fd01::/64", "10.1.0.0/24,fd01::/64"]);
    assert_eq!(bed.view().expect("a view").pod_cidrs.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn without_an_api_server_the_view_is_all_there_is() {
    let (recorder, _) = Recorder::for_tests();
    let handle = NodeHandle::new();
    let survey = Arc::new(FakeSurvey {
        machine: Mutex::new(machine()),
        images: Mutex::default(),
        runtime_hangs: Mutex::default(),
        pod_cidrs: Mutex::default(),
    });
    let (_health, receiver) = watch::channel(RuntimeHealth::default());
    let parts = NodeParts {
        cluster: None,
        clock: Clock::simulated(at(0), 1),
        recorder,
        survey,
        health: receiver,
        config: NodeConfig { pod_cidr: "10.2.0.0/24".into(), ..config() },
    };
    tokio::spawn(run(handle.clone(), parts));
    settle().await;
    let view = handle.view().borrow().clone().expect("a view");
    assert_eq!((view.is_registered, view.pod_cidrs.as_slice()), (false, &["10.2.0.0/24".to_owned()][..]));
}
