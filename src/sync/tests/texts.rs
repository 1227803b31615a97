//! What events say.

use super::super::execute::stop_message;
use super::super::plan::StopWhy;
use super::super::report::read_failure;
use crate::cri::CriError;
use crate::pod::testing::pod_yaml;
use crate::probes::ProbeKind;

#[test]
fn why_a_container_is_stopped_is_told_in_upstreams_words() {
    let pod = pod_yaml(
        "spec: {initContainers: [{name: proxy, restartPolicy: Always}], containers: [{name: web}], \
         ephemeralContainers: [{name: debug}]}",
    );
    let check = |why, of_web: &str, of_sidecar: &str| {
        assert_eq!(stop_message(&pod, "web", why), of_web);
        assert_eq!(stop_message(&pod, "proxy", why), of_sidecar);
    };
    check(StopWhy::PodStops, "Stopping container web", "Stopping container proxy");
    check(
        StopWhy::StateUnknown,
        "Container is in \"unknown\" state, try killing it before restart",
        "Init container is in \"unknown\" state, try killing it before restart",
    );
    check(
        StopWhy::DefinitionChanged,
        "Container web definition changed, will be restarted",
        "Init container proxy definition changed",
    );
    check(
        StopWhy::ProbeFailed { probe: ProbeKind::Liveness, will_restart: true },
        "Container web failed liveness probe, will be restarted",
        "Init container proxy failed liveness probe",
    );
    check(
        StopWhy::ProbeFailed { probe: ProbeKind::Startup, will_restart: false },
        "Container web failed startup probe",
        "Init container proxy failed startup probe",
    );
    assert_eq!(stop_message(&pod, "debug", StopWhy::PodStops), "Stopping container debug");
    assert_eq!(stop_message(&pod, "gone", StopWhy::PodStops), "Stopping container gone");
}

#[test]
fn a_sandbox_that_does_not_tell_its_status_has_a_reason_of_its_own() {
    let failed = |call| CriError::Failed { call, message: "no".into() };
    assert_eq!(
        read_failure(&failed("PodSandboxStatus")),
        ("FailedPodSandBoxStatus", "Unable to get pod sandbox status: PodSandboxStatus: no".to_owned())
    );
    assert_eq!(
        read_failure(&failed("ListContainers")),
        ("FailedSync", "error determining status: ListContainers: no".to_owned())
    );
}
