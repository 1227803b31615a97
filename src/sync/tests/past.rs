//! What earlier lives of the agent told of a static pod, and when that can be known.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;

use super::super::mirror::Mirrors;
use super::super::report::Reporter;
use super::super::testing::Bed;
use super::super::worker::Stage;
use super::*;
use crate::clock::Clock;
use crate::kube::fake::FakeCluster;
use crate::pod::Source;
use crate::pod::testing::yaml;
use crate::probes::Told;
use crate::status::StatusWriter;

const TOLD: &str = "{phase: Running, startTime: 2026-01-01T10:00:00Z, containerStatuses: \
                    [{name: c, image: own, imageID: x, ready: true, restartCount: 4, containerID: fake://c-0, \
                      state: {running: {startedAt: 2026-01-01T11:00:00Z}}}]}";

/// A static pod that was there before the agent, whose runtime has made something of it at noon.
fn bed() -> Bed {
    let mut bed = Bed::new("{containers: [{name: c, image: own, readinessProbe: {tcpSocket: {port: 80}}}]}");
    let mut pod = Pod::clone(&bed.wish.pod);
    pod.metadata.annotations = Some([("kubernetes.io/config.hash".to_owned(), "hash".to_owned())].into());
    bed.wish.pod = Arc::new(pod);
    bed.seen.containers.push(cri::testing::container("c", 0, cri::testing::running()));
    let writer = StatusWriter::new(Arc::new(FakeCluster::default()), Clock::system());
    bed.context.status = Some(writer);
    bed
}

/// The API has this mirror of it.
fn observe(mirrors: &Mirrors, status: &str) {
    let annotations = "annotations: {kubernetes.io/config.hash: hash, kubernetes.io/config.mirror: hash}";
    let mirror: Pod =
        yaml(&format!("{{metadata: {{name: web-0, namespace: shop, uid: m, {annotations}}}, status: {status}}}"));
    mirrors.observed("web-0_shop", Some(Arc::new(mirror)));
}

/// One look of the worker at its pod; true if others were told of it.
fn look(bed: &Bed, reporter: &mut Reporter) -> bool {
    reporter.recall(&bed.context, &bed.wish, &bed.seen);
    bed.publish(reporter, Stage::Syncing, &Plan::default());
    reporter.has_told()
}

fn at(text: &str) -> Timestamp {
    text.parse().expect("a literal time")
}

/// What is known of the pod's container, as far as anything is.
fn ready(bed: &Bed, reporter: &Reporter) -> Option<Option<bool>> {
    let of_status = |status: &PodStatus| Some(status.container_statuses.as_ref()?.first()?.ready);
    match reporter.told(&bed.context, &bed.wish) {
        Told::Unknown { .. } => None,
        Told::Known(status) => Some(status.and_then(of_status)),
    }
}

#[tokio::test]
async fn a_static_pod_goes_on_as_its_mirror_tells_and_tells_nothing_before_the_mirror_can() {
    for api_is_first in [true, false] {
        let bed = bed();
        let mut reporter = Reporter::new(&bed.context);
        if !api_is_first {
            assert!(!look(&bed, &mut reporter), "nobody knows yet what was told");
            assert!(!look(&bed, &mut reporter));
            assert_eq!(ready(&bed, &reporter), None);
            assert_eq!(reporter.start_time(&bed.wish.pod), noon(), "the runtime has had it since then");
        }
        observe(&bed.context.mirrors, TOLD);
        bed.context.mirrors.source_synced(Source::Api);
        reporter.recall(&bed.context, &bed.wish, &bed.seen);
        assert_eq!(ready(&bed, &reporter), Some(Some(true)), "API first: {api_is_first}");
        assert!(look(&bed, &mut reporter));
        assert_eq!(reporter.start_time(&bed.wish.pod), at("2026-01-01T10:00:00Z"));
        let Told::Known(Some(told)) = reporter.told(&bed.context, &bed.wish) else { panic!("it has told something") };
        assert_eq!(told.container_statuses.as_ref().map(|all| all[0].restart_count), Some(4));

        // Whatever becomes of the mirror then, the pod goes on by itself.
        observe(&bed.context.mirrors, "{phase: Pending}");
        look(&bed, &mut reporter);
        assert_eq!(reporter.start_time(&bed.wish.pod), at("2026-01-01T10:00:00Z"));
    }
}

#[tokio::test]
async fn without_a_mirror_a_static_pod_is_as_old_as_what_the_runtime_has_of_it() {
    let check = |status: Option<&str>, expected: &str| {
        let bed = bed();
        let mut reporter = Reporter::new(&bed.context);
        status.iter().for_each(|status| observe(&bed.context.mirrors, status));
        bed.context.mirrors.source_synced(Source::Api);
        assert!(look(&bed, &mut reporter));
        assert_eq!(reporter.start_time(&bed.wish.pod), at(expected), "{status:?}");
    };
    check(None, "2026-01-01T12:00:00Z");
    check(Some("{phase: Pending}"), "2026-01-01T12:00:00Z");
    check(Some(TOLD), "2026-01-01T10:00:00Z");
}

#[tokio::test]
async fn a_new_static_pod_and_one_of_the_api_begin_when_the_agent_meets_them() {
    for source in [Source::File, Source::Api] {
        let mut bed = bed();
        bed.wish.source = source;
        bed.seen = PodRuntime::default();
        let mut reporter = Reporter::new(&bed.context);
        assert_eq!(look(&bed, &mut reporter), source == Source::Api);
        assert!(reporter.start_time(&bed.wish.pod) > at("2026-01-02T00:00:00Z"), "{source:?}");
    }
}
