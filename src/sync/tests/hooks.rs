//! Containers whose postStart hooks run or have failed, and what waits for them.

use super::*;

#[test]
fn what_follows_waits_for_a_post_start_hook_and_nothing_else_does() {
    let hooked = |scene: Scene| scene.running("a", 0, 0).hooked(PostStart::Running);
    check(pod("Always", &["a", "b"]), hooked(ready()), &[]);
    check(pod("Always", &["a", "b"]), ready().running("a", 0, 0), &["start b"]);
    // What stops does, and it starts again once the hook is through.
    let given_up = hooked(ready().running("b", 0, 0).given_up(ProbeKind::Liveness));
    check(pod("Always", &["a", "b"]), given_up, &["stop b because its liveness probe failed"]);
    check(pod("Always", &["a", "b"]), hooked(ready().exited("b", 0, 0, 1)), &[]);
    check(
        pod("Always", &["a", "b"]),
        hooked(ready()).outdated(),
        &["stop a because its definition changed", "start a again, attempt 1"],
    );
    // What runs goes on until its successor can start.
    check(pod("Never", &["a", "b"]), hooked(ready().running("b", 0, 0).outdated()), &[]);
    check(pod("OnFailure", &["a", "b"]), hooked(ready().running("b", 0, 0).outgrown()), &[]);
    // A back-off that is over is told on until then.
    let crashed = || ready().running("b", 0, 0).exited("b", 0, 1, 1).carrying(10);
    check(pod("Always", &["a", "b"]), hooked(crashed()), &["hold b for its back-off of 10s"]);
    let over = plan_seen_for(Duration::from_secs(20), &pod("Always", &["a", "b"]), hooked(crashed()), true, true);
    assert_eq!((over.to_string().as_str(), over.look_again()), ("hold b for its back-off of 10s\n", None));
    let sidecar = with_init(pod("Always", &["b"]), &[("a", true)]);
    check(sidecar, hooked(ready()), &[]);
    let mut debugged = pod("Always", &["a", "b"]);
    let ephemeral = crate::pod::testing::yaml("[{name: e, image: 'img:1'}]");
    debugged.spec.as_mut().expect("made with a spec").ephemeral_containers = Some(ephemeral);
    check(debugged, hooked(ready()), &["start e"]);
}

#[test]
fn what_is_replaced_stops_when_its_successor_can_start() {
    let changed = ready().running("a", 0, 0).outdated().running("b", 0, 0).outdated();
    check(
        pod("Never", &["a", "b"]),
        changed.running("c", 0, 0),
        &[
            "stop a because its definition changed",
            "start a again, attempt 1",
            "stop b because its definition changed",
            "start b again, attempt 1",
        ],
    );
}

#[test]
fn a_container_whose_post_start_hook_failed_is_stopped_and_its_policy_decides() {
    let failed = ready().running("a", 0, 0).hooked(PostStart::Failed("no luck".into()));
    check(pod("Never", &["a", "b"]), failed, &["stop a because its postStart hook failed", "start b"]);
    check(pod("Never", &["a"]), ready().exited("a", 0, 0, 137), &["done"]);
    check(pod("Always", &["a"]), ready().exited("a", 0, 0, 137), &["start a again, attempt 1"]);
}

#[test]
fn what_was_stopped_is_not_ready_whoever_answers_for_it() {
    let begun = BegunHooks::default();
    let standing = Standing { started: Some(true), ready: Some(true), failed: None };
    let (stopped, other) = (ContainerId::new("stopped"), ContainerId::new("other"));
    let known = Standings::from([(stopped.clone(), standing), (other.clone(), standing)]);
    begun.note_stop(&stopped);
    let mut seen = known.clone();
    begun.leave_out_stopped(&mut seen);
    assert_eq!((seen[&stopped].ready, seen[&other].ready), (Some(false), Some(true)));
    // The next read tells what became of it.
    begun.retain(&PodRuntime::default());
    let mut seen = known.clone();
    begun.leave_out_stopped(&mut seen);
    assert_eq!(seen, known);
}
