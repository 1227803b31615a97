//! A pod, what the runtime says of it, and what follows, as text.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use super::{Resize, decide, first_pod_cgroup, pod_cgroup, summary};
use crate::config::{FeatureGates, Gate};
use crate::cri::testing::{container, exited, running as runs};
use crate::cri::{Container, ContainerId, LinuxResources};
use crate::host::CgroupSettings;
use crate::pleg::PodRuntime;
use crate::pod::testing::pod_yaml;
use crate::sync::launch::tests::config;
use crate::sync::launch::{LaunchConfig, container_resources};
use crate::topology::Places;

/// Containers `a`, `b`, … each with requests and limits of CPU in thousandths and memory in MiB.
fn pod(containers: &[(u32, u32)], more: &str) -> Pod {
    let names = ["a", "b", "c"];
    let list: Vec<String> = containers
        .iter()
        .zip(names)
        .map(|((cpu, memory), name)| {
            let amounts = format!("{{cpu: {cpu}m, memory: {memory}Mi}}");
            format!("{{name: {name}, image: i, resources: {{requests: {amounts}, limits: {amounts}}}{more}}}")
        })
        .collect();
    pod_yaml(&format!("{{metadata: {{generation: 2}}, spec: {{containers: [{}]}}}}", list.join(", ")))
}

/// The runtime as it is when all containers run with what `pod` says.
fn running(pod: &Pod) -> PodRuntime {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let named = containers.map(|spec| Container {
        resources: Some(container_resources(pod, spec, &Places::default(), &config())),
        ..container(&spec.name, 0, runs())
    });
    PodRuntime { containers: named.collect(), ..PodRuntime::default() }
}

fn text(resize: &Resize) -> String {
    let outgrown: Vec<_> = resize.outgrown.iter().map(ContainerId::as_str).collect();
    let words = [
        resize.is_action().then(|| resize.to_string()),
        (!outgrown.is_empty()).then(|| format!("restart {}", outgrown.join(" "))),
    ];
    words.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// What follows when all containers of `before` shall have what `after` says.
fn step(before: &Pod, after: &Pod) -> Resize {
    let runtime = running(before);
    let written = pod_cgroup(before, &runtime, &Places::default(), &config());
    decide(after, &runtime, &BTreeMap::new(), Some(&written), &Places::default(), &config())
}

#[track_caller]
fn check(before: &Pod, after: &Pod, expected: &str) {
    assert_eq!(text(&step(before, after)), expected);
}

fn mib(settings: &Option<CgroupSettings>) -> Option<u64> {
    settings.as_ref().and_then(|settings| settings.memory_limit_bytes).map(|bytes| bytes >> 20)
}

#[test]
fn a_pod_that_has_what_it_shall_have_is_left_alone() {
    let same = pod(&[(100, 64)], "");
    check(&same, &same, "");
    assert!(!step(&same, &same).is_under_way);
}

#[test]
fn a_pod_whose_spec_never_changed_is_not_even_compared() {
    let mut after = pod(&[(200, 64)], "");
    after.metadata.generation = Some(1);
    check(&pod(&[(100, 64)], ""), &after, "");
}

#[test]
fn memory_comes_before_cpu_and_what_is_given_back_before_what_is_taken() {
    check(
        &pod(&[(100, 64), (200, 128)], ""),
        &pod(&[(200, 128), (100, 32)], ""),
        "resize: less memory for b, more memory for a, less CPU for b, more CPU for a",
    );
}

#[test]
fn only_what_changes_is_sent() {
    let resize = step(&pod(&[(100, 64)], ""), &pod(&[(300, 64)], ""));
    let [update] = resize.updates.as_slice() else { panic!("{resize}") };
    let expected =
        LinuxResources { cpu_shares: 307, cpu_quota: 30_000, cpu_period: 100_000, ..LinuxResources::default() };
    assert_eq!(update.resources, expected);
}

#[test]
fn the_pods_cgroup_is_raised_before_and_lowered_after() {
    let (small, large) = (pod(&[(100, 64), (100, 64)], ""), pod(&[(100, 96), (100, 64)], ""));
    let up = step(&small, &large);
    assert_eq!(mib(&up.pod_cgroup), Some(160));
    // Down: the containers first, while the cgroup stays.
    let down = step(&large, &small);
    assert_eq!(text(&down), "resize: less memory for a");
    // And once they have what they shall have, the cgroup.
    let written = pod_cgroup(&large, &running(&large), &Places::default(), &config());
    let last = decide(&small, &running(&small), &BTreeMap::new(), Some(&written), &Places::default(), &config());
    assert_eq!((text(&last).as_str(), mib(&last.pod_cgroup)), ("resize: the pod's cgroup", Some(128)));
}

#[test]
fn one_up_and_one_down_has_room_for_both_meanwhile() {
    let resize = step(&pod(&[(100, 64), (100, 128)], ""), &pod(&[(100, 128), (100, 64)], ""));
    assert_eq!(mib(&resize.pod_cgroup), None, "192 MiB before and after");
    let resize = step(&pod(&[(100, 64), (100, 128)], ""), &pod(&[(100, 256), (100, 64)], ""));
    assert_eq!(mib(&resize.pod_cgroup), Some(320), "the larger sum");
}

#[test]
fn a_limit_that_is_new_bounds_the_pod_last() {
    let with = |resources: &str| {
        let container = format!("{{name: a, image: i, resources: {{{resources}}}}}");
        pod_yaml(&format!("{{metadata: {{generation: 2}}, spec: {{containers: [{container}]}}}}"))
    };
    let (none, some) = (
        with("requests: {cpu: 500m, memory: 64Mi}"),
        with("requests: {cpu: 500m, memory: 64Mi}, limits: {cpu: 500m, memory: 128Mi}"),
    );
    let resize = step(&none, &some);
    assert_eq!(text(&resize), "resize: less memory for a, less CPU for a");
    // And back, if it has to be.
    let resize = step(&some, &none);
    assert_eq!(text(&resize), "resize: the pod's cgroup, more memory for a, more CPU for a");
    let limits: Vec<_> =
        resize.updates.iter().map(|it| (it.resources.memory_limit_bytes, it.resources.cpu_quota)).collect();
    assert_eq!(limits, [(-1, 0), (0, -1)]);
}

#[test]
fn whoever_restarts_for_a_resource_is_restarted_once_there_is_room() {
    const MEMORY: &str = ", resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]";
    let (before, after) = (pod(&[(100, 64)], MEMORY), pod(&[(200, 64)], MEMORY));
    check(&before, &after, "resize: the pod's cgroup, more CPU for a");
    let after = pod(&[(100, 96)], MEMORY);
    check(&before, &after, "resize: the pod's cgroup");
    let runtime = running(&before);
    let written = pod_cgroup(&after, &runtime, &Places::default(), &config());
    let next = decide(&after, &runtime, &BTreeMap::new(), Some(&written), &Places::default(), &config());
    assert_eq!(text(&next), "restart a-0");
    // With less, there is room at once.
    check(&after, &before, "restart a-0");
}

#[test]
fn what_ended_with_other_resources_is_another_container() {
    let (before, after) = (pod(&[(100, 64)], ""), pod(&[(100, 96)], ""));
    let mut runtime = running(&before);
    runtime.containers[0].state = exited(137);
    let written = pod_cgroup(&after, &runtime, &Places::default(), &config());
    let resize = decide(&after, &runtime, &BTreeMap::new(), Some(&written), &Places::default(), &config());
    assert_eq!((text(&resize).as_str(), resize.is_under_way), ("restart a-0", false));
}

#[test]
fn before_the_pod_is_prepared_nothing_is_changed() {
    let (before, after) = (pod(&[(100, 64)], ""), pod(&[(200, 64)], ""));
    let resize = decide(&after, &running(&before), &BTreeMap::new(), None, &Places::default(), &config());
    assert_eq!((text(&resize).as_str(), resize.is_under_way), ("", true));
    // And it is prepared with room for what runs.
    assert_eq!(pod_cgroup(&before, &running(&after), &Places::default(), &config()).cpu_quota, Some(20_000));
}

#[test]
fn what_was_given_is_not_given_again_however_it_is_reported() {
    let (before, after) = (pod(&[(100, 64)], ""), pod(&[(200, 64)], ""));
    let runtime = running(&before);
    let given = |pod: &Pod| running(pod).containers[0].resources.clone().expect("it reports them");
    let written = pod_cgroup(&after, &runtime, &Places::default(), &config());
    let with = |given: LinuxResources, runtime: &PodRuntime| {
        let given = BTreeMap::from([(ContainerId::new("a-0"), given)]);
        text(&decide(&after, runtime, &given, Some(&written), &Places::default(), &config()))
    };
    assert_eq!(with(given(&after), &runtime), "");
    assert_eq!(with(given(&before), &runtime), "resize: more CPU for a");
    // A runtime that does not say what a container has.
    let mut silent = runtime.clone();
    silent.containers[0].resources = None;
    assert!(with(given(&before), &silent).ends_with("more CPU for a"));
    assert!(!with(given(&after), &silent).ends_with("more CPU for a"));
}

#[test]
fn events_tell_the_resources_on_one_line() {
    let amounts = r#"{"limits":{"cpu":"100m","memory":"64Mi"},"requests":{"cpu":"100m","memory":"64Mi"}}"#;
    let pod = pod(&[(100, 64)], "");
    let expected = format!(r#"{{"containers":[{{"name":"a","resources":{amounts}}}],"generation":2}}"#);
    assert_eq!(summary(&pod, None), expected);
    assert!(summary(&pod, Some("too late")).ends_with(r#","generation":2,"error":"too late"}"#));
}

/// A pod with limits as a whole, of whose containers the first one has none of its own.
fn whole(cpu: u32, memory: u32) -> Pod {
    let amounts = format!("{{cpu: {cpu}m, memory: {memory}Mi}}");
    let own = "resources: {limits: {cpu: 50m, memory: 16Mi}}";
    let containers = format!("[{{name: a, image: i}}, {{name: b, image: i, {own}}}]");
    let resources = format!("resources: {{requests: {amounts}, limits: {amounts}}}");
    pod_yaml(&format!("{{metadata: {{generation: 2}}, spec: {{{resources}, containers: {containers}}}}}"))
}

#[test]
fn a_pod_as_a_whole_is_raised_before_and_lowered_after_what_stands_under_its_limits() {
    let (small, large) = (whole(100, 64), whole(200, 128));
    check(&small, &large, "resize: the pod's cgroup, more memory for a, more CPU for a");
    assert_eq!(mib(&step(&small, &large).pod_cgroup), Some(128));
    // Its shares go first, which take nothing from anyone that he has; its limits stay.
    check(&large, &small, "resize: the pod's cgroup, less memory for a, less CPU for a");
    assert_eq!(mib(&step(&large, &small).pod_cgroup), Some(128));
    let after = running(&small);
    let written = pod_cgroup(&large, &after, &Places::default(), &config());
    let last = decide(&small, &after, &BTreeMap::new(), Some(&written), &Places::default(), &config());
    assert_eq!((text(&last).as_str(), mib(&last.pod_cgroup)), ("resize: the pod's cgroup", Some(64)));
}

#[test]
fn what_an_earlier_life_had_not_yet_taken_away_is_not_taken_unasked() {
    let mut small = whole(100, 64);
    let runtime = running(&small);
    assert_eq!(mib(&Some(first_pod_cgroup(&small, &runtime, &Places::default(), &config()))), Some(64));
    small.status = Some(crate::pod::testing::yaml("{resources: {limits: {memory: 128Mi}}}"));
    assert_eq!(mib(&Some(first_pod_cgroup(&small, &runtime, &Places::default(), &config()))), Some(128));
}

#[test]
fn init_containers_are_resized_where_the_gate_says_so() {
    let pod = |cpu: u32| {
        let init = format!("{{name: a, image: i, resources: {{requests: {{cpu: {cpu}m}}, limits: {{cpu: {cpu}m}}}}}}");
        let sidecar = init.replace("name: a", "name: b, restartPolicy: Always");
        let spec = format!("initContainers: [{init}, {sidecar}], containers: [{{name: c, image: i}}]");
        pod_yaml(&format!("{{metadata: {{generation: 2}}, spec: {{{spec}}}}}"))
    };
    let (before, after) = (pod(100), pod(200));
    let containers = before.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let resources = |spec| Some(container_resources(&before, spec, &Places::default(), &config()));
    let named = containers.map(|spec| Container { resources: resources(spec), ..container(&spec.name, 0, runs()) });
    let runtime = PodRuntime { containers: named.collect(), ..PodRuntime::default() };
    let decided = |on| {
        let gates = FeatureGates::with(&[(Gate::InPlacePodVerticalScalingInitContainers, on)]);
        let config = LaunchConfig { gates, ..config() };
        let written = pod_cgroup(&after, &runtime, &Places::default(), &config);
        text(&decide(&after, &runtime, &BTreeMap::new(), Some(&written), &Places::default(), &config))
    };
    assert_eq!(decided(true), "resize: more CPU for a, more CPU for b");
    assert_eq!(decided(false), "resize: more CPU for b");
}
