//! Pods and providers that keep a record.

use k8s_openapi::api::core::v1::Pod;

use super::super::{Placed, Tally};
use super::*;
use crate::pod::PodUid;
use crate::pod::testing::pod_yaml;
use crate::topology::{Ask, Failure, Provider};

/// Gives the same hints to everybody, and keeps a record.
struct Fake {
    name: &'static str,
    hints: &'static str,
    fails_for: &'static str,
    held: Vec<String>,
    log: Log,
}

type Log = std::sync::Arc<std::sync::Mutex<Vec<String>>>;

impl Provider for Fake {
    fn hints(&self, ask: &Ask<'_>) -> Vec<ResourceHints> {
        let whom = ask.container.map_or("pod", |(_, container)| &container.name);
        self.log.lock().expect("one thread").push(format!("{} hints {whom}", self.name));
        vec![ResourceHints { resource: self.name.to_owned(), hints: hints(self.hints) }]
    }

    fn allocate(&mut self, ask: &Ask<'_>, affinity: Affinity) -> Result<(), Failure> {
        let (_, container) = ask.container.expect("only containers are given anything");
        self.log.lock().expect("one thread").push(format!("{} to {} at {}", self.name, container.name, show(affinity)));
        if container.name == self.fails_for {
            return Err(Failure { reason: "UnexpectedAdmissionError", message: "none left".to_owned() });
        }
        self.held.push(container.name.clone());
        Ok(())
    }

    fn release(&mut self, _: &PodUid) {
        self.held.clear();
    }
}

struct Story {
    placed: Placed,
    log: Vec<String>,
    held: Vec<String>,
}

/// Places a pod of an init container and a regular one, served by devices and CPUs.
fn place(policy: Policy, scope: Scope, devices: &'static str, fails_for: &'static str) -> Story {
    let log = Log::default();
    let fake = |name, hints, fails_for| Fake { name, hints, fails_for, held: Vec::new(), log: log.clone() };
    let (mut first, mut second) = (fake("devices", devices, ""), fake("cpus", "1* 0,1", fails_for));
    let pod: Pod = pod_yaml("spec: {initContainers: [{name: setup, image: a}], containers: [{name: web, image: a}]}");
    let placed = aligner(policy, scope, &[0, 1]).place(&mut [&mut first, &mut second], &PodUid::new("u"), &pod);
    let log = log.lock().expect("one thread").clone();
    Story { placed, log, held: [first.held, second.held].concat() }
}

#[test]
fn each_container_is_aligned_for_itself_in_container_scope() {
    let story = place(Policy::SingleNumaNode, Scope::Container, "0* 1*", "");
    assert_eq!(
        story.log,
        [
            "devices hints setup",
            "cpus hints setup",
            "devices to setup at 1*",
            "cpus to setup at 1*",
            "devices hints web",
            "cpus hints web",
            "devices to web at 1*",
            "cpus to web at 1*",
        ]
    );
    assert_eq!(story.placed, Placed { result: Ok(()), tally: Tally { errors: 0, aligned: 2, not_aligned: 0 } });
}

#[test]
fn the_pod_is_aligned_as_one_in_pod_scope() {
    let story = place(Policy::SingleNumaNode, Scope::Pod, "0* 1*", "");
    assert_eq!(
        story.log,
        [
            "devices hints pod",
            "cpus hints pod",
            "devices to setup at 1*",
            "cpus to setup at 1*",
            "devices to web at 1*",
            "cpus to web at 1*",
        ]
    );
    assert_eq!(story.placed, Placed { result: Ok(()), tally: Tally { errors: 0, aligned: 1, not_aligned: 0 } });
}

#[test]
fn without_a_policy_resources_are_given_and_nobody_is_asked_for_hints() {
    let story = place(Policy::None, Scope::Pod, "0*", "");
    let expected = ["devices to setup at any", "cpus to setup at any", "devices to web at any", "cpus to web at any"];
    assert_eq!(story.log, expected);
    assert_eq!(story.placed, Placed { result: Ok(()), tally: Tally::default() });
}

#[test]
fn a_refused_pod_holds_nothing_and_is_told_of_its_locality() {
    let check = |policy, scope, tally: Tally| {
        let story = place(policy, scope, "0*", "");
        let failure = story.placed.result.expect_err("devices and CPUs are apart");
        assert_eq!(failure.reason, "TopologyAffinityError");
        assert_eq!(failure.message, "Resources cannot be allocated with Topology locality");
        assert_eq!(story.held, [""; 0]);
        assert_eq!(story.placed.tally, tally, "{policy:?} {scope:?}");
    };
    check(Policy::Restricted, Scope::Container, Tally { errors: 1, aligned: 0, not_aligned: 0 });
    check(Policy::SingleNumaNode, Scope::Container, Tally { errors: 1, aligned: 0, not_aligned: 1 });
    check(Policy::SingleNumaNode, Scope::Pod, Tally { errors: 1, aligned: 0, not_aligned: 1 });
    assert_eq!(place(Policy::BestEffort, Scope::Pod, "0*", "").placed.result, Ok(()));
}

#[test]
fn a_pod_one_of_whose_containers_cannot_be_served_holds_nothing() {
    let check = |policy, scope, tally: Tally| {
        let story = place(policy, scope, "0* 1*", "web");
        assert_eq!(story.placed.result.expect_err("CPUs ran out").message, "none left");
        assert_eq!(story.held, [""; 0], "{policy:?} {scope:?}");
        assert_eq!(story.placed.tally, tally, "{policy:?} {scope:?}");
    };
    check(Policy::None, Scope::Container, Tally::default());
    check(Policy::SingleNumaNode, Scope::Container, Tally { errors: 1, aligned: 1, not_aligned: 0 });
    check(Policy::SingleNumaNode, Scope::Pod, Tally { errors: 1, aligned: 0, not_aligned: 0 });
}

#[test]
fn a_pod_that_runs_is_refused_nothing_and_keeps_what_it_has() {
    let check = |scope, fails_for, expected: Result<(), &str>| {
        let log = Log::default();
        let fake = |name, hints, fails_for| Fake { name, hints, fails_for, held: Vec::new(), log: log.clone() };
        let (mut first, mut second) = (fake("devices", "0*", ""), fake("cpus", "1*", fails_for));
        let pod: Pod = pod_yaml("spec: {containers: [{name: web, image: a}, {name: log, image: a}]}");
        let aligner = aligner(Policy::Restricted, scope, &[0, 1]);
        let placed = aligner.place_running(&mut [&mut first, &mut second], &PodUid::new("u"), &pod);
        assert_eq!(placed.map_err(|failure| failure.message), expected.map_err(str::to_owned));
        assert_eq!(first.held, ["web", "log"]);
        assert_eq!(second.held.len(), if expected.is_ok() { 2 } else { 1 }, "{scope:?}");
    };
    check(Scope::Container, "", Ok(()));
    check(Scope::Pod, "", Ok(()));
    check(Scope::Container, "web", Err("none left"));
    check(Scope::Pod, "web", Err("none left"));
}
