use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;
use tokio::time::Instant;

use super::at;
use crate::clock::Clock;
use crate::pod::PodUid;
use crate::status::Flush;
use crate::status::outbox::{Outbox, Outcome, Request, Step, Write};

impl Request {
    fn patch(&self) -> &Value {
        match &self.write {
            Write::Patch(patch) => patch,
            Write::DeleteMirror => panic!("a deletion where a patch was expected"),
        }
    }
}

/// An outbox, the moment it is asked at, and the API it believes in.
struct Bed {
    outbox: Outbox,
    now: Instant,
    version: u64,
}

fn uid(name: &str) -> PodUid {
    PodUid::new(format!("uid-{name}"))
}

fn phase(phase: &str) -> PodStatus {
    PodStatus { phase: Some(phase.into()), ..PodStatus::default() }
}

fn ready() -> PodStatus {
    let condition = PodCondition { type_: "Ready".into(), status: "True".into(), ..PodCondition::default() };
    PodStatus { conditions: Some(vec![condition]), ..phase("Running") }
}

fn api_pod(name: &str, api_uid: &str, version: u64, status: PodStatus) -> Arc<Pod> {
    let mut pod = Pod { status: Some(status), ..Pod::default() };
    pod.metadata.namespace = Some("shop".into());
    pod.metadata.name = Some(name.into());
    pod.metadata.uid = Some(api_uid.into());
    pod.metadata.resource_version = Some(version.to_string());
    Arc::new(pod)
}

impl Bed {
    fn new() -> Self {
        Bed { outbox: Outbox::new(Clock::simulated(at(0), 1)), now: Instant::now(), version: 10 }
    }

    /// A pod that the API shows as Pending, for each name.
    fn with(names: &[&str]) -> Self {
        let mut bed = Bed::new();
        for name in names {
            bed.observe(name, phase("Pending"));
        }
        bed
    }

    fn observe(&mut self, name: &str, status: PodStatus) {
        self.version += 1;
        let pod = api_pod(name, uid(name).as_str(), self.version, status);
        self.outbox.observed(&uid(name), pod, self.now);
    }

    fn set(&mut self, name: &str, status: PodStatus) {
        self.outbox.set(&uid(name), status);
    }

    /// The pods whose turn it is now, all of them.
    fn turns(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.turn().map(|request| request.name)).collect()
    }

    fn turn(&mut self) -> Option<Request> {
        match self.outbox.next(self.now) {
            Step::Send(request) => Some(request),
            Step::Wait(_) => None,
        }
    }

    /// How long the outbox wants to sleep.
    fn pause(&mut self) -> Option<Duration> {
        match self.outbox.next(self.now) {
            Step::Send(request) => panic!("unexpected request for {}", request.name),
            Step::Wait(until) => until.map(|until| until - self.now),
        }
    }

    fn accept(&mut self, name: &str, status: PodStatus) {
        self.version += 1;
        let pod = api_pod(name, uid(name).as_str(), self.version, status);
        self.outbox.done(&uid(name), Outcome::Accepted(pod), self.now);
    }

    fn fail(&mut self, name: &str) {
        self.outbox.done(&uid(name), Outcome::Failed, self.now);
    }

    fn wait(&mut self, seconds: f64) {
        self.now += Duration::from_secs_f64(seconds);
    }
}

#[test]
fn a_change_is_sent_once() {
    let mut bed = Bed::with(&["a"]);
    bed.set("a", phase("Running"));
    assert_eq!(bed.turns(), ["a"]);
    assert_eq!(bed.outbox.flush(&uid("a")), Flush::Pending);
    bed.accept("a", phase("Running"));
    bed.set("a", phase("Running"));
    assert_eq!(bed.turns(), [""; 0]);
    assert_eq!(bed.outbox.flush(&uid("a")), Flush::Accepted);
    assert!(bed.outbox.is_drained());
}

#[test]
fn what_the_api_has_already_is_not_sent() {
    let mut bed = Bed::with(&["a"]);
    bed.set("a", phase("Pending"));
    assert_eq!(bed.turns(), [""; 0]);
    assert_eq!(bed.outbox.flush(&uid("a")), Flush::Accepted);
}

#[test]
fn a_status_waits_for_the_object_it_belongs_to() {
    let mut bed = Bed::new();
    bed.set("a", phase("Running"));
    assert_eq!(bed.turns(), [""; 0]);
    assert_eq!(bed.outbox.flush(&uid("a")), Flush::Pending);
    bed.outbox.observed(&uid("a"), api_pod("a-node", "mirror", 5, phase("Pending")), bed.now);
    let request = bed.turn().expect("a request to the mirror");
    assert_eq!((request.name.as_str(), request.api_uid.as_str()), ("a-node", "mirror"));
    assert_eq!(request.patch()["metadata"]["uid"], "mirror");
}

#[test]
fn the_newest_status_wins_and_one_request_is_under_way() {
    let mut bed = Bed::with(&["a"]);
    bed.set("a", phase("Pending"));
    bed.set("a", phase("Running"));
    assert_eq!(bed.turns(), ["a"]);
    bed.set("a", ready());
    bed.set("a", phase("Failed"));
    assert_eq!(bed.turns(), [""; 0]);
    bed.accept("a", phase("Running"));
    let request = bed.turn().expect("the newest status");
    assert_eq!(request.patch()["status"]["phase"], "Failed");
}

#[test]
fn becoming_ready_and_ending_come_first() {
    let mut bed = Bed::with(&["a", "b", "c", "d"]);
    bed.set("a", phase("Running"));
    bed.set("b", phase("Running"));
    bed.set("c", phase("Failed"));
    bed.set("d", ready());
    assert_eq!(bed.turns(), ["c", "d", "a", "b"]);
}

#[test]
fn a_status_that_becomes_urgent_overtakes_and_keeps_its_turn() {
    let mut bed = Bed::with(&["a", "b", "c"]);
    bed.set("a", phase("Running"));
    bed.set("b", phase("Running"));
    bed.set("c", ready());
    bed.set("b", ready());
    assert_eq!(bed.turns(), ["b", "c", "a"]);
}

#[test]
fn eight_requests_are_under_way_at_most() {
    let names: Vec<String> = (0..20).map(|n| format!("p{n:02}")).collect();
    let mut bed = Bed::with(&names.iter().map(String::as_str).collect::<Vec<_>>());
    for name in &names {
        bed.set(name, phase("Running"));
    }
    assert_eq!(bed.turns(), names[..8]);
    bed.accept("p00", phase("Running"));
    assert_eq!(bed.turns(), names[8..9]);
}

#[test]
fn a_pod_that_fails_alone_rests_alone() {
    let mut bed = Bed::with(&["a", "b"]);
    bed.set("a", phase("Running"));
    assert_eq!(bed.turns(), ["a"]);
    bed.fail("a");
    let first = bed.pause().expect("a rest");
    bed.set("b", phase("Running"));
    assert_eq!(bed.turns(), ["b"]);
    bed.accept("b", phase("Running"));
    assert_eq!(bed.turns(), [""; 0]);
    bed.now += first;
    assert_eq!(bed.turns(), ["a"]);
    bed.fail("a");
    let second = bed.pause().expect("a longer rest");
    assert!(second > first && second <= first * 3, "{first:?} {second:?}");
    assert!(!bed.outbox.is_down());
}

#[test]
fn a_status_set_during_a_rest_waits_for_its_end() {
    let mut bed = Bed::with(&["a"]);
    bed.set("a", phase("Running"));
    bed.turns();
    bed.fail("a");
    bed.set("a", phase("Failed"));
    assert_eq!(bed.turns(), [""; 0]);
    bed.wait(1.0);
    assert_eq!(bed.turn().expect("a request").patch()["status"]["phase"], "Failed");
}

#[test]
fn an_absent_server_is_asked_for_one_pod_at_a_time() {
    let mut bed = Bed::with(&["a", "b", "c"]);
    for name in ["a", "b", "c"] {
        bed.set(name, phase("Running"));
    }
    assert_eq!(bed.turns(), ["a", "b", "c"]);
    for name in ["a", "b", "c"] {
        bed.fail(name);
    }
    assert!(bed.outbox.is_down());
    let mut asked = Vec::new();
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let pause = bed.pause().expect("a time to try again");
        pauses.push(pause);
        bed.now += pause;
        let name = bed.turn().expect("one probe").name;
        assert_eq!(bed.pause(), None, "one probe only");
        bed.fail(&name);
        asked.push(name);
    }
    assert!(pauses.is_sorted_by(|a, b| a.as_secs_f64() < b.as_secs_f64() * 1.5), "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= Duration::from_millis(7500)), "{pauses:?}");
    asked.truncate(3);
    asked.sort();
    assert_eq!(asked, ["a", "b", "c"], "each pod serves as the probe in turn");
}

#[test]
fn the_first_success_lets_everything_go_most_urgent_first() {
    let mut bed = Bed::with(&["a", "b", "c", "d"]);
    for name in ["a", "b"] {
        bed.set(name, phase("Running"));
    }
    bed.turns();
    bed.fail("a");
    bed.fail("b");
    bed.set("c", phase("Running"));
    bed.set("d", ready());
    bed.wait(1.0);
    let probe = bed.turn().expect("a probe").name;
    bed.accept(&probe, phase("Running"));
    assert!(!bed.outbox.is_down());
    let rest = bed.turns();
    assert_eq!(rest.len() + usize::from(probe == "d"), 4 - usize::from(probe != "d"));
    if probe != "d" {
        assert_eq!(rest[0], "d");
    }
}

#[test]
fn word_from_the_server_ends_the_waiting() {
    let mut bed = Bed::with(&["a", "b", "c"]);
    for name in ["a", "b"] {
        bed.set(name, phase("Running"));
    }
    bed.turns();
    for name in ["a", "b"] {
        bed.fail(name);
    }
    assert!(bed.pause().is_some());
    bed.observe("c", phase("Pending"));
    assert_eq!(bed.turns().len(), 1);
}

#[test]
fn word_about_a_resting_pod_ends_its_rest() {
    let mut bed = Bed::with(&["a"]);
    bed.set("a", phase("Running"));
    bed.turns();
    bed.fail("a");
    assert!(bed.pause().is_some());
    bed.observe("a", phase("Pending"));
    assert_eq!(bed.turns(), ["a"]);
}

#[test]
fn a_status_somebody_else_changed_is_put_right_but_not_over_and_over() {
    let mut bed = Bed::with(&["a"]);
    bed.set("a", phase("Running"));
    bed.turns();
    bed.accept("a", phase("Running"));
    bed.observe("a", phase("Pending"));
    assert_eq!(bed.turns(), ["a"]);
    bed.accept("a", phase("Running"));
    bed.observe("a", phase("Pending"));
    assert_eq!(bed.turns(), [""; 0]);
    assert_eq!(bed.pause(), Some(Duration::from_secs(10)));
    bed.wait(10.0);
    assert_eq!(bed.turns(), ["a"]);
}

#[test]
fn an_older_version_from_the_watch_changes_nothing() {
    let mut bed = Bed::with(&["a"]);
    bed.set("a", phase("Running"));
    bed.turns();
    bed.accept("a", phase("Running"));
    bed.outbox.observed(&uid("a"), api_pod("a", uid("a").as_str(), 3, phase("Pending")), bed.now);
    assert_eq!(bed.turns(), [""; 0]);
}

#[test]
fn a_field_the_server_drops_is_not_sent_for_ever() {
    let mut bed = Bed::with(&["a"]);
    let wanted = PodStatus { observed_generation: Some(7), ..phase("Running") };
    bed.set("a", wanted.clone());
    bed.turns();
    bed.accept("a", phase("Running"));
    assert_eq!(bed.turns(), [""; 0]);
    assert_eq!(bed.outbox.flush(&uid("a")), Flush::Accepted);
    bed.observe("a", phase("Running"));
    assert_eq!(bed.turns(), [""; 0]);
    bed.set("a", PodStatus { pod_ip: Some("10.0.0.1".into()), ..wanted });
    bed.wait(1.0);
    assert_eq!(bed.turns(), ["a"]);
}

#[test]
fn a_change_nobody_waits_for_may_be_overtaken() {
    let with_ip = |ip: &str| PodStatus { pod_ip: Some(ip.into()), ..phase("Pending") };
    let mut bed = Bed::with(&["a"]);
    bed.set("a", with_ip("10.0.0.1"));
    assert_eq!(bed.turns(), [""; 0]);
    assert_eq!(bed.outbox.flush(&uid("a")), Flush::Pending);
    bed.wait(0.3);
    bed.set("a", with_ip("10.0.0.2"));
    assert_eq!(bed.turns(), [""; 0]);
    // The first of them says how long it may take.
    bed.wait(0.3);
    assert_eq!(bed.turns(), ["a"]);
    bed.accept("a", with_ip("10.0.0.2"));

    bed.set("a", with_ip("10.0.0.3"));
    bed.set("a", phase("Running"));
    assert_eq!(bed.turns(), ["a"], "that it runs is news");
    bed.accept("a", phase("Running"));
    assert_eq!(bed.outbox.flush(&uid("a")), Flush::Accepted);
    bed.wait(1.0);
    assert_eq!(bed.turns(), [""; 0]);
    assert!(bed.outbox.is_drained());
}

#[test]
fn a_refused_status_rests_until_it_changes() {
    let mut bed = Bed::with(&["a"]);
    bed.set("a", phase("Running"));
    bed.turns();
    bed.outbox.done(&uid("a"), Outcome::Rejected, bed.now);
    assert_eq!(bed.outbox.flush(&uid("a")), Flush::Rejected);
    bed.observe("a", phase("Pending"));
    assert_eq!(bed.turns(), [""; 0]);
    bed.set("a", ready());
    assert_eq!(bed.turns(), ["a"]);
}

#[test]
fn a_changed_object_is_patched_again_from_what_it_is_now() {
    let mut bed = Bed::with(&["a"]);
    bed.set("a", phase("Running"));
    bed.turns();
    let now = PodStatus { reason: Some("Odd".into()), ..phase("Pending") };
    bed.outbox.done(&uid("a"), Outcome::Outdated(api_pod("a", uid("a").as_str(), 99, now)), bed.now);
    bed.wait(1.0);
    let patch = bed.turn().expect("a second try").patch().clone();
    assert_eq!(patch["status"], serde_json::json!({"phase": "Running", "reason": null}));
}

#[test]
fn a_pod_that_is_gone_is_sent_nothing() {
    let mut bed = Bed::with(&["a"]);
    bed.set("a", phase("Running"));
    bed.turns();
    bed.outbox.done(&uid("a"), Outcome::Gone, bed.now);
    bed.set("a", phase("Failed"));
    assert_eq!(bed.turns(), [""; 0]);
    assert_eq!(bed.outbox.flush(&uid("a")), Flush::Gone);
    bed.outbox.forget(&uid("a"));
    assert_eq!(bed.outbox.flush(&uid("a")), Flush::Gone);
}

#[test]
fn a_new_mirror_gets_the_status_even_if_the_old_one_answers_late() {
    for late in [true, false] {
        let mut bed = Bed::new();
        bed.set("a", phase("Running"));
        bed.outbox.observed(&uid("a"), api_pod("a", "mirror-1", 5, phase("Pending")), bed.now);
        assert_eq!(bed.turns(), ["a"]);
        if late {
            bed.outbox.observed(&uid("a"), api_pod("a", "mirror-2", 8, phase("Pending")), bed.now);
            bed.outbox.done(&uid("a"), Outcome::Gone, bed.now);
        } else {
            bed.outbox.done(&uid("a"), Outcome::Gone, bed.now);
            bed.outbox.observed(&uid("a"), api_pod("a", "mirror-2", 8, phase("Pending")), bed.now);
        }
        assert_eq!(bed.turn().expect("a request").api_uid, "mirror-2");
    }
}

#[test]
fn an_answer_for_a_forgotten_pod_is_harmless() {
    let mut bed = Bed::with(&["a"]);
    bed.set("a", phase("Running"));
    bed.turns();
    bed.outbox.forget(&uid("a"));
    bed.observe("a", phase("Pending"));
    bed.accept("a", phase("Running"));
    assert_eq!(bed.outbox.flush(&uid("a")), Flush::Accepted);
    assert!(bed.outbox.is_drained());
}

#[test]
fn a_mirror_that_tells_of_an_ended_life_is_replaced() {
    let mut bed = Bed::new();
    let mut mirror = Pod::clone(&api_pod("static", "mirror", 1, phase("Failed")));
    mirror.metadata.annotations = Some([("kubernetes.io/config.mirror".into(), "hash".into())].into());
    bed.outbox.observed(&uid("static"), Arc::new(mirror), bed.now);
    bed.set("static", phase("Running"));
    let request = bed.turn().expect("a request");
    assert_eq!((request.write, request.api_uid.as_str()), (Write::DeleteMirror, "mirror"));
    bed.outbox.done(&uid("static"), Outcome::Gone, bed.now);
    assert_eq!(bed.turn(), None);
    bed.outbox.observed(&uid("static"), api_pod("static", "mirror-2", 2, phase("Pending")), bed.now);
    assert_eq!(bed.turn().expect("a request").patch()["status"]["phase"], "Running");

    // Both have ended, but not the same life of it.
    for (start, is_other) in [(5, true), (0, false)] {
        let begun = |at: i64, phase: PodStatus| PodStatus { start_time: Some(Time(super::at(at))), ..phase };
        let mut bed = Bed::new();
        let mut mirror = Pod::clone(&api_pod("static", "mirror", 1, begun(0, phase("Failed"))));
        mirror.metadata.annotations = Some([("kubernetes.io/config.mirror".into(), "hash".into())].into());
        bed.outbox.observed(&uid("static"), Arc::new(mirror), bed.now);
        bed.set("static", PodStatus { qos_class: Some("Burstable".into()), ..begun(start, phase("Succeeded")) });
        let write = bed.turn().expect("a request").write;
        assert_eq!(write == Write::DeleteMirror, is_other, "begun {start} s later");
    }
}

#[tokio::test(start_paused = true)]
async fn how_long_a_status_was_due_is_told_once() {
    let mut bed = Bed::with(&["a"]);
    bed.set("a", ready());
    assert_eq!(bed.outbox.delay(&uid("a"), bed.now), None, "nothing is under way");
    bed.turn().expect("the pod's turn");
    let later = bed.now + Duration::from_secs(2);
    assert_eq!(bed.outbox.delay(&uid("a"), later), Some(Duration::from_secs(2)));
    assert_eq!(bed.outbox.delay(&uid("a"), later), None);
}
