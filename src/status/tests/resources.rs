//! What containers and the pod as a whole are told to have.

use super::*;

#[test]
fn resources_are_those_of_the_spec_as_the_runtime_has_them() {
    use k8s_openapi::api::core::v1::ResourceRequirements;
    let check = |spec: &str, running: Option<cri::LinuxResources>, expected: &str| {
        let mut case =
            Case::new(&format!("{{containers: [{{name: web, image: a, resources: {spec}}}]}}"), &["web/0 running"]);
        case.runtime.containers[0].resources = running;
        let status = case.compute().status.container_statuses.unwrap_or_default().remove(0);
        let expected: ResourceRequirements = serde_saphyr::from_str(expected).expect("resources");
        assert_eq!(status.resources, Some(expected), "{spec}");
        let granted: ResourceRequirements = serde_saphyr::from_str(spec).expect("resources");
        let names =
            |amounts: Option<BTreeMap<String, _>>| amounts.map(|amounts| amounts.into_keys().collect::<Vec<_>>());
        assert_eq!(status.allocated_resources.map(|amounts| amounts.into_keys().collect()), names(granted.requests));
    };
    let running = |cpu_quota, cpu_shares, memory_limit_bytes| {
        Some(cri::LinuxResources {
            cpu_period: 100_000,
            cpu_quota,
            cpu_shares,
            memory_limit_bytes,
            ..cri::LinuxResources::default()
        })
    };
    check("{}", None, "{}");
    check("{}", running(0, 2, 0), "{}");
    check("{requests: {cpu: '0.5', memory: 1024Mi}}", None, "{requests: {cpu: 500m, memory: 1Gi}}");
    let full = "{requests: {cpu: 250m}, limits: {cpu: '1', memory: 64Mi}}";
    check(full, running(100_000, 256, 64 << 20), full);
    check(full, running(50_000, 512, 32 << 20), "{requests: {cpu: 500m}, limits: {cpu: 500m, memory: 32Mi}}");
    check(full, running(-1, 0, 0), full);
    // The kernel's minimum is more than was asked for.
    let tiny = "{requests: {cpu: 1m}, limits: {cpu: 5m}}";
    check(tiny, running(1000, 2, 0), tiny);
}

#[test]
fn a_resize_is_told_until_it_is_over() {
    use super::super::{PendingResize, ResizeInProgress};
    let told = |case: &Case| {
        let conditions = case.compute().status.conditions.unwrap_or_default();
        let of_resize = conditions.into_iter().filter(|condition| condition.type_.starts_with("PodResize"));
        let line = |it: PodCondition| {
            let text = |text: Option<String>| text.unwrap_or_default();
            let generation = it.observed_generation.unwrap_or(0);
            format!("{} {} {} {generation}", it.type_, text(it.reason), text(it.message))
        };
        of_resize.map(line).collect::<Vec<_>>()
    };
    let mut case = Case::new(ONE, &["sandbox", "web/0 running"]);
    case.pod.metadata.generation = Some(3);
    assert!(told(&case).is_empty());
    case.resize.pending = Some(PendingResize { reason: "Deferred", message: "no room".into() });
    case.resize.in_progress = Some(ResizeInProgress { generation: Some(2), error: None });
    assert_eq!(told(&case), ["PodResizePending Deferred no room 3", "PodResizeInProgress   2"]);
    case.resize.pending = None;
    case.resize.in_progress = Some(ResizeInProgress { generation: Some(3), error: Some("too little".into()) });
    assert_eq!(told(&case), ["PodResizeInProgress Error too little 3"]);
}

#[test]
fn what_is_allocated_is_told_before_the_container_is_there() {
    let spec = "{containers: [{name: web, image: a, resources: {requests: {cpu: 1}}}, {name: log, image: a}]}";
    let allocated = |case: &Case| {
        let statuses = case.compute().status.container_statuses.unwrap_or_default().into_iter();
        let line = |it: ContainerStatus| {
            let cpu = it.allocated_resources.map(|amounts| amounts["cpu"].0.clone());
            it.resources.map(|_| format!("{} {}", it.name, cpu.unwrap_or_default()))
        };
        statuses.filter_map(line).collect::<Vec<_>>()
    };
    assert_eq!(allocated(&Case::new(spec, &["sandbox"])), ["log ", "web 1"]);
    assert!(allocated(&Case::new(TWO, &["sandbox"])).is_empty());
}

#[test]
fn a_pod_tells_what_it_takes_in_all() {
    let spec = "{overhead: {cpu: 50m}, resources: {requests: {cpu: 100m}, limits: {memory: 64Mi}}, \
                containers: [{name: web, image: a, resources: {requests: {cpu: 50m, memory: 8Mi}}}]}";
    let told = |case: &Case| {
        let status = case.compute().status;
        let text =
            |list: Option<&std::collections::BTreeMap<_, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>| {
                list.into_iter()
                    .flatten()
                    .map(|(name, amount): (&String, _)| format!("{name}={}", amount.0))
                    .collect::<Vec<_>>()
                    .join(" ")
            };
        let resources = status.resources.expect("always told");
        let parts = [status.allocated_resources.as_ref(), resources.requests.as_ref(), resources.limits.as_ref()];
        parts.map(text).join("; ")
    };
    let allocated = "cpu=150m memory=64Mi";
    let before = Case::new(spec, &["sandbox"]);
    assert_eq!(told(&before), format!("{allocated}; {allocated}; memory=64Mi"));
    // A running one has what its cgroup has, once that is known.
    let settings =
        CgroupSettings { cpu_shares: Some(102), memory_limit_bytes: Some(128 << 20), ..CgroupSettings::default() };
    let running = Case { cgroup: Some(settings), ..Case::new(spec, &["sandbox", "web/0 running"]) };
    assert_eq!(told(&running), format!("{allocated}; cpu=100m memory=64Mi; memory=128Mi"));
    // So has one that is being resized before it runs: the limit could not be lowered yet.
    let in_progress = Some(super::super::ResizeInProgress { generation: Some(2), error: None });
    let resized = Case {
        cgroup: running.cgroup.clone(),
        resize: super::super::Resize { pending: None, in_progress },
        ..Case::new(spec, &["sandbox", "web/0 created"])
    };
    assert_eq!(told(&resized), format!("{allocated}; cpu=100m memory=64Mi; memory=128Mi"));
    let adopted = Case { cgroup: None, ..running.then(&["sandbox", "web/0 running"]) };
    assert_eq!(told(&adopted), format!("{allocated}; cpu=100m memory=64Mi; memory=128Mi"));
    let nothing = Case::new(ONE, &["sandbox", "web/0 running"]);
    assert_eq!(told(&nothing), "; ; ");
}
