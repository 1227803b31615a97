//! What the tests of this room share: pods as YAML, runtimes as one line a container.

mod compute;
mod conditions;
mod outbox;
mod patch;
mod resources;
mod restart_all;
mod writer;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodStatus};

use super::{Computed, Phase, Resize, Stage, StatusInput, Verdict, WaitingReason};
use crate::config::{FeatureGates, Gate};
use crate::cri::{self, ContainerId, Exit, Sandbox, SandboxState};
use crate::host::CgroupSettings;
use crate::pleg::PodRuntime;
use crate::pod::Source;

const ONE: &str = "{containers: [{name: web, image: a}]}";
const TWO: &str = "{containers: [{name: web, image: a}, {name: log, image: a}]}";
const NEVER: &str = "{restartPolicy: Never, containers: [{name: web, image: a}, {name: log, image: a}]}";
const INIT: &str =
    "{initContainers: [{name: one, image: a}, {name: two, image: a}], containers: [{name: web, image: a}]}";
const INIT_NEVER: &str = "{restartPolicy: Never, initContainers: [{name: one, image: a}, {name: two, image: a}], \
                          containers: [{name: web, image: a}]}";
const SIDECAR: &str = "{restartPolicy: Never, initContainers: [{name: proxy, image: a, restartPolicy: Always}], \
                       containers: [{name: web, image: a}]}";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).expect("within range")
}

/// A pod whose spec is given as YAML.
fn pod(spec: &str) -> Pod {
    let spec = serde_saphyr::from_str(spec).unwrap_or_else(|error| panic!("test YAML: {error}\n{spec}"));
    let mut pod = Pod { spec: Some(spec), ..Pod::default() };
    pod.metadata.name = Some("web-0".into());
    pod.metadata.namespace = Some("shop".into());
    pod.metadata.uid = Some("u-1".into());
    pod.metadata.resource_version = Some("10".into());
    pod.metadata.generation = Some(1);
    pod
}

/// A runtime from lines such as `web/0 running`, `web/1 exited 3`, `sandbox`; the number is
/// the attempt.
fn runtime(lines: &[&str]) -> PodRuntime {
    let mut runtime = PodRuntime::default();
    for line in lines {
        let mut words = line.split(' ');
        let (what, state) = (words.next().unwrap_or_default(), words.next().unwrap_or("ready"));
        if what == "sandbox" {
            runtime.sandboxes.push(sandbox(state, words.next()));
            continue;
        }
        let (name, attempt) = what.split_once('/').expect("name/attempt");
        let exit_code = words.next().map_or(0, |code| code.parse().expect("an exit code"));
        runtime.containers.push(container(name, attempt.parse().expect("an attempt"), state, exit_code));
    }
    runtime.sorted()
}

fn sandbox(state: &str, ip: Option<&str>) -> Sandbox {
    let state = if state == "ready" { SandboxState::Ready } else { SandboxState::NotReady };
    Sandbox {
        created_at: at(1),
        ips: ip.unwrap_or("10.0.0.7").split(',').map(|ip| ip.parse().expect("an address")).collect(),
        ..cri::testing::sandbox("s", 0, state)
    }
}

fn container(name: &str, attempt: u32, state: &str, exit_code: i32) -> cri::Container {
    let stop_signal = (state == "running").then(|| "SIGUSR1".to_owned());
    let state = match state {
        "created" => cri::ContainerState::Created,
        "running" => cri::ContainerState::Running { started_at: at(10 + i64::from(attempt)) },
        "unknown" => cri::ContainerState::Unknown,
        _ => cri::ContainerState::Exited(Exit {
            started_at: Some(at(10)),
            finished_at: Some(at(20)),
            exit_code,
            reason: String::new(),
            message: String::new(),
        }),
    };
    cri::Container {
        created_at: at(9 + i64::from(attempt)),
        image: "img:1".into(),
        image_ref: "sha256:1".into(),
        stop_signal,
        ..cri::testing::container(name, attempt, state)
    }
}

/// One computation, with the inputs that most cases leave alone.
struct Case {
    pod: Pod,
    source: Source,
    runtime: PodRuntime,
    stage: Stage,
    verdict: Option<Verdict>,
    previous: Option<PodStatus>,
    start_errors: BTreeMap<String, WaitingReason>,
    resize: Resize,
    cgroup: Option<CgroupSettings>,
    gates: FeatureGates,
    probes: BTreeMap<ContainerId, super::Probed>,
    host_ips: Vec<&'static str>,
    now: i64,
}

impl Case {
    fn new(spec: &str, lines: &[&str]) -> Self {
        Case {
            pod: pod(spec),
            source: Source::Api,
            runtime: runtime(lines),
            stage: Stage::Syncing,
            verdict: None,
            previous: None,
            start_errors: BTreeMap::new(),
            resize: Resize::default(),
            cgroup: None,
            gates: FeatureGates::default(),
            probes: BTreeMap::new(),
            host_ips: vec!["192.168.0.1"],
            now: 100,
        }
    }

    /// The state after `lines`, once `self` was published.
    fn then(mut self, lines: &[&str]) -> Self {
        self.previous = Some(self.compute().status);
        self.runtime = runtime(lines);
        self.now += 100;
        self
    }

    fn stage(mut self, stage: Stage) -> Self {
        self.stage = stage;
        self
    }

    fn error(mut self, container: &str, reason: &str) -> Self {
        let reason = WaitingReason { reason: reason.into(), message: "why".into() };
        self.start_errors.insert(container.into(), reason);
        self
    }

    fn deleted(mut self) -> Self {
        self.pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(50)));
        self
    }

    fn compute(&self) -> Computed {
        let host_ips: Vec<_> = self.host_ips.iter().map(|ip| ip.parse().expect("an address")).collect();
        super::compute(&StatusInput {
            pod: &self.pod,
            source: self.source,
            runtime: &self.runtime,
            runtime_name: "containerd",
            stage: self.stage,
            verdict: self.verdict.as_ref(),
            previous: self.previous.as_ref(),
            start_errors: &self.start_errors,
            resize: &self.resize,
            cgroup: self.cgroup.as_ref(),
            gates: &self.gates,
            probes: &self.probes,
            host_ips: &host_ips,
            handled_since: at(0),
            now: at(self.now),
        })
    }
}

/// A container status on one line: state, last state, count, and what is set of ready and
/// started.
fn line(status: &ContainerStatus) -> String {
    let mut line = format!("{} {}", status.name, state(status.state.as_ref()));
    let last = state(status.last_state.as_ref());
    if last != "-" {
        line += &format!(", last {last}");
    }
    line += &format!(", restarts {}", status.restart_count);
    for (word, set) in [("started", status.started == Some(true)), ("ready", status.ready)] {
        if set {
            line += &format!(", {word}");
        }
    }
    line
}

fn state(state: Option<&k8s_openapi::api::core::v1::ContainerState>) -> String {
    let Some(state) = state else {
        return "-".into();
    };
    if state.running.is_some() {
        return "running".into();
    }
    if let Some(exit) = &state.terminated {
        let id = exit.container_id.as_deref().unwrap_or("?").trim_start_matches("containerd://");
        return format!("{} {} {id}", exit.reason.as_deref().unwrap_or_default(), exit.exit_code);
    }
    match &state.waiting {
        Some(waiting) => waiting.reason.clone().unwrap_or_else(|| "waiting".into()),
        None => "-".into(),
    }
}

fn lines(status: &PodStatus) -> Vec<String> {
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().map(line).collect()
}

/// A condition as `True`, or `False Reason: message`.
fn condition(status: &PodStatus, kind: &str) -> String {
    let Some(condition) = status.conditions.iter().flatten().find(|condition| condition.type_ == kind) else {
        return "absent".into();
    };
    let mut text = condition.status.clone();
    if let Some(reason) = &condition.reason {
        text += &format!(" {reason}");
    }
    if let Some(message) = &condition.message {
        text += &format!(": {message}");
    }
    text
}

#[track_caller]
fn check_phase(case: &Case, expected: Phase) {
    let computed = case.compute();
    assert_eq!(computed.phase, expected, "{:#?}", lines(&computed.status));
}

#[track_caller]
fn check_lines(case: &Case, expected: &[&str]) {
    assert_eq!(lines(&case.compute().status), expected);
}
