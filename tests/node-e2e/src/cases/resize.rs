//! Pods that are given other amounts of CPU and memory while they run.

use anyhow::{Context, Result, ensure};
use ferrolet::config::quantity::parse;
use ferrolet::cri::{ContainerId, Runtime};
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::harness::{Case, Expect, Lab, Node, PodBuilder, PodCgroup, PodHandle, pod};
use crate::provision::BUSYBOX;
use crate::{own, shared};

pub const CASES: &[Case] = &[
    shared!(cpu_goes_up_and_down_without_a_restart).in_subset(),
    shared!(memory_goes_up_and_down_without_a_restart),
    shared!(whoever_wants_it_is_restarted_for_memory),
    shared!(memory_in_use_is_not_taken_away),
    shared!(a_sidecar_is_resized_too),
    shared!(an_init_container_is_resized_while_it_runs),
    shared!(a_pod_as_a_whole_is_resized),
    own!(what_does_not_fit_waits_for_room),
    own!(a_resize_outlives_the_agent),
    own!(memory_in_use_by_a_pod_as_a_whole_is_not_taken_away),
];

/// Requests of CPU in thousandths and memory in MiB, and limits of twice that.
fn amounts(cpu: u32, memory: u32) -> Value {
    json!({ "resources": {
        "requests": { "cpu": format!("{cpu}m"), "memory": format!("{memory}Mi") },
        "limits": { "cpu": format!("{}m", cpu * 2), "memory": format!("{}Mi", memory * 2) },
    } })
}

fn sized(name: &str, cpu: u32, memory: u32) -> PodBuilder {
    pod(name).container(amounts(cpu, memory))
}

async fn resize(pod: &PodHandle, cpu: u32, memory: u32) -> Result<()> {
    resize_in(pod, "containers", "main", cpu, memory).await
}

async fn resize_in(pod: &PodHandle, list: &str, container: &str, cpu: u32, memory: u32) -> Result<()> {
    let mut wish = amounts(cpu, memory);
    wish["name"] = container.into();
    let patch = Patch::Strategic(json!({ "spec": { list: [wish] } }));
    let pods: Api<Pod> = pod.node.api();
    let patched = pods.patch_subresource("resize", &pod.name, &PatchParams::default(), &patch).await;
    patched.map(drop).with_context(|| format!("resize pod {}", pod.name))
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<(&'a str, &'a str)> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let condition = conditions.iter().find(|condition| condition.type_ == kind && condition.status == "True")?;
    Some((condition.reason.as_deref().unwrap_or_default(), condition.message.as_deref().unwrap_or_default()))
}

fn has_failed(pod: &Pod) -> bool {
    condition(pod, "PodResizeInProgress").is_some_and(|(reason, _)| reason == "Error")
}

/// The container is told to have these resources, and nothing more is to come.
fn has<'a>(expect: Expect<'a>, cpu: u32, memory: u32) -> Expect<'a> {
    let allocated = expect.status(format!("{cpu}m and {memory}Mi"), move |status| {
        let told = |amounts: Option<
            &std::collections::BTreeMap<_, k8s_openapi::apimachinery::pkg::api::resource::Quantity>,
        >| {
            let amount = |name: &str| amounts.and_then(|amounts| parse(&amounts.get(name)?.0).ok());
            (amount("cpu").map(|cpu| cpu.milli_value()), amount("memory").map(|memory| memory.value()))
        };
        let wanted = |times: u32| (Some(i64::from(cpu * times)), Some(i64::from(memory * times) << 20));
        let resources = status.resources.as_ref();
        told(status.allocated_resources.as_ref()) == wanted(1)
            && told(resources.and_then(|it| it.requests.as_ref())) == wanted(1)
            && told(resources.and_then(|it| it.limits.as_ref())) == wanted(2)
    });
    let generation =
        |pod: &Pod| pod.status.as_ref().and_then(|status| status.observed_generation) == pod.metadata.generation;
    allocated
        .that("no resize under way", |pod| condition(pod, "PodResizeInProgress").is_none())
        .that("the newest generation", generation)
}

/// The cgroups of a container and of its pod have what `cpu` and `memory` come to.
async fn check_cgroups(pod: &PodHandle, cpu: u32, memory: u32) -> Result<()> {
    let of_pod = PodCgroup::of(pod, "Burstable");
    let own = of_pod.of_container(&id(pod).await?);
    for (which, cgroup) in [("pod", of_pod), ("container", own)] {
        let (quota, limit) = (cgroup.cpu_quota()?, cgroup.memory_limit()?);
        ensure!(quota == Some(u64::from(cpu) * 200), "quota of the {which} {quota:?}");
        ensure!(limit == Some(u64::from(memory) << 21), "limit of the {which} {limit:?}");
    }
    Ok(())
}

async fn id(pod: &PodHandle) -> Result<ContainerId> {
    let (id, _) = pod.instance().await?;
    Ok(ContainerId::new(id.rsplit('/').next().unwrap_or_default()))
}

async fn cpu_goes_up_and_down_without_a_restart(node: Node) -> Result<()> {
    let pod = node.run(sized("fast", 100, 32)).await?;
    has(pod.expect().ready(), 100, 32).await?;
    let before = pod.instance().await?;
    for cpu in [200, 50] {
        resize(&pod, cpu, 32).await?;
        has(pod.expect().ready(), cpu, 32).await?;
        check_cgroups(&pod, cpu, 32).await?;
        let own = PodCgroup::of(&pod, "Burstable").of_container(&id(&pod).await?);
        // On version 2 runtimes have a curve of their own.
        let wanted = u64::from(cpu) * 1024 / 1000;
        ensure!(own.is_v2() || own.cpu_shares()? == wanted, "shares {}", own.cpu_shares()?);
    }
    ensure!(pod.instance().await? == before, "{before:?} became {:?}", pod.instance().await?);
    let summary = |cpu: u32, generation: u32| {
        format!(
            r#"{{"containers":[{{"name":"main","resources":{{"limits":{{"cpu":"{}m","memory":"64Mi"}},"requests":{{"cpu":"{cpu}m","memory":"32Mi"}}}}}}],"generation":{generation}}}"#,
            cpu * 2
        )
    };
    let started = pod.expect_event("ResizeStarted").await?;
    ensure!(started == format!("Pod resize started: {}", summary(200, 2)), "{started}");
    let completed = pod.expect_event("ResizeCompleted").await?;
    // Upstream sometimes tells the resources from before.
    ensure!(
        completed.starts_with(r#"Pod resize completed: {"containers":[{"name":"main","resources":{"#),
        "{completed}"
    );
    ensure!(completed.ends_with(r#""generation":2}"#), "{completed}");
    Ok(())
}

/// The pod is told to have these resources as a whole, and limits of twice that.
fn has_as_a_whole(pod: &PodHandle, cpu: u32, memory: u32) -> Expect<'_> {
    let amount = |list: &Option<std::collections::BTreeMap<String, Quantity>>, name: &str| {
        parse(&list.as_ref()?.get(name)?.0).ok()
    };
    let holds = move |pod: &Pod| {
        let status = pod.status.clone().unwrap_or_default();
        let limits = status.resources.and_then(|resources| resources.limits);
        let wanted =
            |times: u32| [format!("{}m", cpu * times), format!("{}Mi", memory * times)].map(|it| parse(&it).ok());
        ["cpu", "memory"].map(|name| amount(&status.allocated_resources, name)) == wanted(1)
            && ["cpu", "memory"].map(|name| amount(&limits, name)) == wanted(2)
    };
    pod.expect().ready().that("its resources as a whole", holds)
}

fn as_a_whole(cpu: u32, memory: u32) -> Value {
    json!({ "resources": amounts(cpu, memory)["resources"] })
}

async fn resize_as_a_whole(pod: &PodHandle, cpu: u32, memory: u32) -> Result<()> {
    let patch = Patch::Strategic(json!({ "spec": as_a_whole(cpu, memory) }));
    let pods: Api<Pod> = pod.node.api();
    let patched = pods.patch_subresource("resize", &pod.name, &PatchParams::default(), &patch).await;
    patched.map(drop).with_context(|| format!("resize pod {} as a whole", pod.name))
}

async fn an_init_container_is_resized_while_it_runs(node: Node) -> Result<()> {
    let mut setup = amounts(100, 32);
    setup["name"] = "setup".into();
    setup["image"] = BUSYBOX.into();
    setup["command"] = json!(["sh", "-c", "until [ -e /tmp/done ]; do sleep 0.2; done"]);
    let pod = node.run(sized("slow", 100, 32).spec(json!({ "initContainers": [setup] }))).await?;
    has(pod.expect().container("setup").running(), 100, 32).await?;
    resize_in(&pod, "initContainers", "setup", 200, 48).await?;
    let resized = has(pod.expect().container("setup").running(), 200, 48).await?;
    let status = resized.status.context("a status")?;
    let setup = status.init_container_statuses.into_iter().flatten().next().context("an init container")?;
    ensure!(setup.restart_count == 0, "{setup:?}");
    let id = setup.container_id.as_deref().and_then(|id| id.rsplit('/').next()).map(ContainerId::new);
    let own = PodCgroup::of(&pod, "Burstable").of_container(&id.context("an id")?);
    ensure!(own.memory_limit()? == Some(96 << 20) && own.cpu_quota()? == Some(40_000));
    pod.exec_in("setup", "touch /tmp/done").await?;
    has(pod.expect().ready(), 100, 32).await?;
    Ok(())
}

async fn a_pod_as_a_whole_is_resized(node: Node) -> Result<()> {
    let pod = node.run(pod("whole").spec(as_a_whole(100, 32))).await?;
    has_as_a_whole(&pod, 100, 32).await?;
    check_cgroups(&pod, 100, 32).await?;
    let before = pod.instance().await?;
    for (cpu, memory) in [(200, 32), (200, 64), (50, 16)] {
        resize_as_a_whole(&pod, cpu, memory).await?;
        let over = |pod: &Pod| condition(pod, "PodResizeInProgress").is_none();
        has_as_a_whole(&pod, cpu, memory).that("no resize under way", over).await?;
        // What stands under the limits of the pod goes with them.
        check_cgroups(&pod, cpu, memory).await?;
    }
    ensure!(pod.instance().await? == before, "{before:?} became {:?}", pod.instance().await?);
    Ok(())
}

async fn memory_goes_up_and_down_without_a_restart(node: Node) -> Result<()> {
    let pod = node.run(sized("wide", 100, 32)).await?;
    has(pod.expect().ready(), 100, 32).await?;
    let before = pod.instance().await?;
    for memory in [64, 16] {
        resize(&pod, 100, memory).await?;
        has(pod.expect().ready(), 100, memory).await?;
        check_cgroups(&pod, 100, memory).await?;
    }
    // Both at once, one up and one down.
    resize(&pod, 50, 48).await?;
    has(pod.expect().ready(), 50, 48).await?;
    check_cgroups(&pod, 50, 48).await?;
    ensure!(pod.instance().await? == before, "{before:?} became {:?}", pod.instance().await?);
    Ok(())
}

async fn whoever_wants_it_is_restarted_for_memory(node: Node) -> Result<()> {
    let policy = json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" }]);
    let pod = node.run(sized("stiff", 100, 32).container(json!({ "resizePolicy": policy }))).await?;
    has(pod.expect().ready(), 100, 32).await?;
    let first = pod.instance().await?;
    resize(&pod, 200, 32).await?;
    has(pod.expect().ready(), 200, 32).await?;
    ensure!(pod.instance().await? == first, "restarted for CPU");
    for (restarts, memory) in [(1, 64), (2, 16)] {
        resize(&pod, 200, memory).await?;
        has(pod.expect().ready().restarts(restarts), 200, memory).await?;
        check_cgroups(&pod, 200, memory).await?;
    }
    ensure!(pod.instance().await?.1 == 2, "{:?}", pod.instance().await?);
    let killing = pod.expect_event("Killing").await?;
    ensure!(killing == "Container main resize requires restart", "{killing}");
    Ok(())
}

async fn memory_in_use_is_not_taken_away(node: Node) -> Result<()> {
    let memory = json!({ "emptyDir": { "medium": "Memory" } });
    let full = "dd if=/dev/zero of=/m/f bs=1M count=40 2>/dev/null; echo full; exec sleep 1000000";
    let pod = node.run(sized("full", 100, 48).script(full).volume("m", "/m", memory)).await?;
    has(pod.expect().ready(), 100, 48).await?;
    pod.expect_log("full").await?;
    let before = pod.instance().await?;
    resize(&pod, 100, 16).await?;
    let told = pod.expect().ready().that("an error", has_failed).await?;
    let (_, message) = condition(&told, "PodResizeInProgress").unwrap_or_default();
    ensure!(message.contains("below current usage"), "{message}");
    let event = pod.expect_event("ResizeError").await?;
    ensure!(event.starts_with("Pod resize error: {") && event.contains("below current usage"), "{event}");
    check_cgroups(&pod, 100, 48).await?;
    pod.exec("rm /m/f").await?;
    has(pod.expect().ready(), 100, 16).await?;
    check_cgroups(&pod, 100, 16).await?;
    ensure!(pod.instance().await? == before, "{before:?} became {:?}", pod.instance().await?);
    Ok(())
}

async fn a_sidecar_is_resized_too(node: Node) -> Result<()> {
    let mut sidecar = json!({
        "name": "proxy", "image": crate::provision::BUSYBOX, "restartPolicy": "Always",
        "command": ["sleep", "1000000"],
    });
    sidecar["resources"] = amounts(50, 16)["resources"].clone();
    let pod = node.run(sized("served", 100, 32).spec(json!({ "initContainers": [sidecar] }))).await?;
    pod.expect().ready().await?;
    resize_in(&pod, "initContainers", "proxy", 100, 16).await?;
    let told = |pod: &Pod| {
        let statuses = pod.status.as_ref().and_then(|status| status.init_container_statuses.as_ref());
        let proxy = statuses.and_then(|statuses| statuses.first());
        let limits = proxy.and_then(|proxy| proxy.resources.as_ref()?.limits.as_ref());
        proxy.is_some_and(|proxy| proxy.restart_count == 0) && limits.is_some_and(|limits| limits["cpu"].0 == "200m")
    };
    has(pod.expect().ready().that("200m for proxy", told), 100, 32).await?;
    let quota = PodCgroup::of(&pod, "Burstable").cpu_quota()?;
    ensure!(quota == Some(40_000), "quota of the pod {quota:?}");
    Ok(())
}

/// Takes all CPU of the node but so much.
async fn all_but(node: &Node, left: u32) -> Result<PodHandle> {
    let nodes: Api<NodeObject> = Api::all(node.client());
    let allocatable = nodes.get(node.name()).await?.status.and_then(|status| status.allocatable);
    let cpu = parse(&allocatable.context("the node has something")?["cpu"].0)?.milli_value();
    let requests = json!({ "resources": { "requests": { "cpu": format!("{}m", cpu - i64::from(left)) } } });
    let hog = node.run(pod("hog").container(requests)).await?;
    hog.expect().ready().await?;
    Ok(hog)
}

fn deferred<'a>(expect: Expect<'a>) -> Expect<'a> {
    let is_deferred = |pod: &Pod| condition(pod, "PodResizePending").is_some_and(|(reason, _)| reason == "Deferred");
    expect.that("a deferred resize", is_deferred)
}

async fn what_does_not_fit_waits_for_room(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let pod = node.run(sized("patient", 100, 32)).await?;
    pod.expect().ready().await?;
    let hog = all_but(&node, 400).await?;
    resize(&pod, 500, 32).await?;
    let told = has(deferred(pod.expect().ready()), 100, 32).await?;
    let (_, message) = condition(&told, "PodResizePending").unwrap_or_default();
    ensure!(
        message.starts_with("Node didn't have enough resource: cpu, requested: 500, used: "),
        "message {message:?}"
    );
    let event = pod.expect_event("ResizeDeferred").await?;
    ensure!(event.starts_with("Pod resize OutOfcpu: {\"containers\":[{\"name\":\"main\""), "{event}");
    ensure!(event.contains(r#""generation":2,"error":"Node didn't have enough"#), "{event}");
    check_cgroups(&pod, 100, 32).await?;

    // A container that is made anew meanwhile gets what is allocated.
    node.runtime()?.stop_container(&id(&pod).await?, std::time::Duration::ZERO).await?;
    has(deferred(pod.expect().ready().restarts(1)), 100, 32).await?;
    check_cgroups(&pod, 100, 32).await?;

    hog.delete().await?;
    let over = |pod: &Pod| condition(pod, "PodResizePending").is_none();
    has(pod.expect().ready().that("no deferred resize", over), 500, 32).await?;
    check_cgroups(&pod, 500, 32).await?;
    ensure!(pod.instance().await?.1 == 1, "{:?}", pod.instance().await?);
    Ok(())
}

async fn a_resize_outlives_the_agent(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let (patient, quick, late) = (
        node.run(sized("patient", 100, 32)).await?,
        node.run(sized("quick", 100, 32)).await?,
        node.run(sized("late", 100, 32)).await?,
    );
    let mut before = Vec::new();
    for pod in [&patient, &quick, &late] {
        pod.expect().ready().await?;
        before.push(pod.instance().await?);
    }
    let hog = all_but(&node, 600).await?;
    resize(&patient, 900, 32).await?;
    has(deferred(patient.expect()), 100, 32).await?;
    // Killed at whatever it is at with this one, and dead when that one is resized.
    resize(&quick, 50, 64).await?;
    node.stack().agent().kill().await?;
    resize(&late, 50, 48).await?;
    node.stack().agent().start().await?;

    has(quick.expect().ready(), 50, 64).await?;
    has(late.expect().ready(), 50, 48).await?;
    check_cgroups(&quick, 50, 64).await?;
    check_cgroups(&late, 50, 48).await?;
    has(deferred(patient.expect().ready()), 100, 32).await?;
    check_cgroups(&patient, 100, 32).await?;
    hog.delete().await?;
    has(patient.expect().ready(), 900, 32).await?;
    for (pod, before) in [&patient, &quick, &late].into_iter().zip(&before) {
        let after = pod.instance().await?;
        ensure!(after == *before, "pod {}: {before:?} became {after:?}", pod.name);
    }
    Ok(())
}

/// Each container fits; both together do not. Whoever comes new has to know that too.
async fn memory_in_use_by_a_pod_as_a_whole_is_not_taken_away(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let fill = |directory| {
        format!("dd if=/dev/zero of={directory}/f bs=1M count=40 2>/dev/null; echo full; exec sleep 1000000")
    };
    let part = |volume: &str| {
        json!({
            "resources": { "requests": { "memory": "8Mi" }, "limits": { "memory": "60Mi" } },
            "volumeMounts": [{ "name": volume, "mountPath": format!("/{volume}") }],
        })
    };
    let volume = |name: &str| json!({ "name": name, "emptyDir": { "medium": "Memory" } });
    let both = pod("both").script(&fill("/m")).container(part("m")).and_container("other", &fill("/n"), part("n"));
    let both = both.spec(json!({ "volumes": [volume("m"), volume("n")] })).spec(as_a_whole(100, 64));
    let both = node.run(both).await?;
    both.expect_log("full\n").await?;
    both.expect_log_of("other", 0, "full\n").await?;
    // The log is there before the status is.
    both.expect().ready().await?;
    let before = (both.instance().await?, node.containers_of(&both).await?.len());

    resize_as_a_whole(&both, 100, 32).await?;
    for life in ["first", "second"] {
        both.expect().ready().that("an error", has_failed).await?;
        let limit = PodCgroup::of(&both, "Burstable").memory_limit()?;
        ensure!(limit == Some(128 << 20), "limit {limit:?}");
        let status = both.get().await?.status.unwrap_or_default();
        let told = status.resources.and_then(|resources| resources.limits?.get("memory").cloned());
        ensure!(told.as_ref().and_then(|it| parse(&it.0).ok()) == parse("128Mi").ok(), "told {told:?}");
        // The next look is at what a new agent makes of it.
        node.stack().agent().kill().await?;
        node.stack().agent().start().await?;
        node.run(pod(&format!("after-the-{life}"))).await?.expect().ready().await?;
    }
    both.exec("rm /m/f").await?;
    has_as_a_whole(&both, 100, 32).await?;
    let limit = PodCgroup::of(&both, "Burstable").memory_limit()?;
    ensure!(limit == Some(64 << 20), "limit {limit:?}");
    let after = (both.instance().await?, node.containers_of(&both).await?.len());
    ensure!(after == before, "{before:?} became {after:?}");
    Ok(())
}
