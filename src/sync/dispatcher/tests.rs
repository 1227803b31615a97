use tokio::time::timeout;

use super::super::testing::Bed;
use super::*;
use crate::cri::{self, Sandbox, SandboxState};
use crate::pleg::{self, PlegConfig};
use crate::pod::testing::{pod_yaml, yaml};

#[tokio::test]
async fn of_two_static_pods_of_a_name_the_second_is_left_out_and_told_so() {
    let told = |source| {
        format!(
            "FailedValidation: Error validating pod web-0_shop(two) from {source} \
             due to duplicate pod name \"web-0\", ignoring"
        )
    };
    // UIDs and namespaces as listed before and now, which are left and what is told.
    let (one, two) = (("one", "shop"), ("two", "shop"));
    let cases = [
        (Source::File, vec![], vec![one, two], vec!["one"], Some(told("file"))),
        (Source::Http, vec![], vec![one, two], vec!["one"], Some(told("http"))),
        (Source::File, vec![two], vec![one, two], vec!["one"], Some(told("file"))),
        (Source::File, vec![], vec![one, ("two", "yard")], vec!["one", "two"], None),
        (Source::File, vec![two], vec![one], vec!["one"], None),
        // An API server has one of a name; while it is replaced, both may be listed.
        (Source::Api, vec![], vec![one, two], vec!["one", "two"], None),
    ];
    for (source, before, now, left, told) in cases {
        let Bed { context, events, dir: _dir, .. } = Bed::new("{containers: []}");
        let mut dispatcher = Dispatcher::new(Arc::new(context), BTreeSet::from([source]));
        // Nobody waits in here, so that no worker begins.
        for listed in [before, now] {
            let pods = listed.iter().map(|(uid, namespace)| {
                let text = format!("{{metadata: {{namespace: {namespace}, uid: {uid}}}, spec: {{containers: []}}}}");
                Arc::new(pod_yaml(&text))
            });
            dispatcher.source_event(SourceEvent::Listed { source, pods: pods.collect() });
        }
        let present = dispatcher.pods.iter().filter(|(_, entry)| entry.present);
        assert_eq!(present.map(|(uid, _)| uid.as_str()).collect::<Vec<_>>(), left);
        let events = events.list();
        let events: Vec<_> = events.iter().map(|event| format!("{}: {}", event.reason, event.message)).collect();
        assert_eq!(events, Vec::from_iter(told));
    }
}

/// The dispatcher of a node whose runtime has a static pod `web-0` by the UID `old`, after the
/// file source has told of one by the UID `new`.
async fn with_rival(source: &str, sources: &[Source]) -> (Dispatcher, tempfile::TempDir) {
    let Bed { context, runtime, dir, .. } = Bed::new("{containers: []}");
    runtime.hold_sandbox(Sandbox {
        pod_uid: "old".into(),
        annotations: [("kubernetes.io/config.source".to_owned(), source.to_owned())].into(),
        ..cri::testing::sandbox("s", 0, SandboxState::Ready)
    });
    let pleg = context.pleg.clone();
    let listing = pleg::run(pleg.clone(), PlegConfig::default(), context.clock.clone());
    let mut dispatcher = Dispatcher::new(Arc::new(context), sources.iter().copied().collect());
    let new = Arc::new(pod_yaml("{metadata: {uid: new}, spec: {containers: []}}"));
    dispatcher.source_event(SourceEvent::Listed { source: Source::File, pods: vec![new] });
    assert!(at_work(&dispatcher).is_empty(), "who else has the name is not known yet");
    timeout(Duration::from_millis(1), listing).await.expect_err("it goes on");
    dispatcher.start_static_pods();
    (dispatcher, dir)
}

fn at_work(dispatcher: &Dispatcher) -> Vec<&str> {
    let at_work = dispatcher.pods.iter().filter(|(_, entry)| entry.worker.is_some());
    at_work.map(|(uid, _)| uid.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_static_pod_waits_for_one_of_its_name_that_no_source_knows() {
    let (old, new) = (PodUid::new("old"), PodUid::new("new"));
    // The API has not spoken, and may never do: the old one may be the API server.
    let (mut dispatcher, _dir) = with_rival("file", &[Source::File, Source::Api]).await;
    assert_eq!(at_work(&dispatcher), ["old"]);
    let stop = desired(&dispatcher.pods[&old]).stop.map(|stop| stop.cause);
    assert_eq!(stop, Some(StopCause::Orphaned));
    dispatcher.start_static_pods();
    assert_eq!(at_work(&dispatcher), ["old"]);
    let mirror = Arc::new(pod_yaml("{metadata: {uid: mirror}, spec: {containers: []}}"));
    dispatcher.context.mirrors.observed("web-0_shop", Some(mirror.clone()));
    dispatcher.drop_entry(&old);
    assert_eq!(at_work(&dispatcher), ["new"]);
    assert!(!dispatcher.context.mirrors.is_retired(&mirror), "it was never the orphan's");

    // That source may yet know it.
    let (mut dispatcher, _dir) = with_rival("http", &[Source::File, Source::Http]).await;
    assert!(at_work(&dispatcher).is_empty());
    dispatcher.source_event(SourceEvent::Listed { source: Source::Http, pods: Vec::new() });
    assert_eq!(at_work(&dispatcher), ["old"]);

    // It may go on if it is another's.
    let (mut dispatcher, _dir) = with_rival("api", &[Source::File, Source::Api]).await;
    assert_eq!(at_work(&dispatcher), ["new"]);
    dispatcher.adopt_orphan(orphans::orphan("web-0", "shop", &old), Source::File);
    assert_eq!(at_work(&dispatcher), ["new", "old"], "found too late to be waited for");
    assert_eq!(dispatcher.living_static_pod("web-0_shop"), Some(new.clone()), "whose mirror it is");
    dispatcher.drop_entry(&old);
    assert_eq!(dispatcher.living_static_pod("web-0_shop"), Some(new));
}

#[test]
fn of_a_status_only_what_others_say_is_news() {
    let pod = |metadata: &str, phase: &str, gate: &str| -> Pod {
        yaml(&format!(
            "{{metadata: {{{metadata}}}, spec: {{containers: [], readinessGates: [{{conditionType: let-in}}]}}, \
             status: {{phase: {phase}, conditions: [{{type: Ready, status: '{gate}'}}, {{type: let-in, status: '{gate}'}}]}}}}"
        ))
    };
    let before = pod("generation: 1", "Pending", "False");
    assert!(!is_news(&before, &before));
    assert!(!is_news(&before, &pod("generation: 1, resourceVersion: '2'", "Running", "False")), "our own words");
    assert!(is_news(&before, &pod("generation: 1", "Pending", "True")), "a gate has opened");
    assert!(is_news(&before, &pod("generation: 1", "Failed", "False")), "the API knows of its end");
    assert!(is_news(&before, &pod("generation: 2", "Pending", "False")));
    let ungated = |status: &str| -> Pod {
        yaml(&format!("{{spec: {{containers: []}}, status: {{conditions: [{{type: x, status: '{status}'}}]}}}}"))
    };
    assert!(!is_news(&ungated("True"), &ungated("False")), "nobody waits for this one");
}
