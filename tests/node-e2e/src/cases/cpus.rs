//! CPUs of their own for Guaranteed pods. This machine has two: one is reserved, the other can be had.

use anyhow::{Context, Result, ensure};
use ferrolet::cri::{ContainerId, ContainerStateKind};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use super::images::bad_registry;
use crate::harness::{Case, Lab, Node, PodBuilder, PodCgroup, PodHandle, WITHIN, pod, without_scheme};
use crate::own;
use crate::poll::{self, Look};
use crate::provision::BUSYBOX;
use crate::stack::Builder;

pub const CASES: &[Case] = &[
    own!(a_guaranteed_pod_has_cpus_of_its_own).in_subset(),
    own!(others_leave_its_cpus_whatever_they_wait_for)
        .beyond_upstream("it leaves what ends where it is, and takes an empty pool for all CPUs"),
    own!(a_crowd_keeps_to_its_cpus_through_a_crash_and_a_runtime_that_hangs),
    own!(the_policy_goes_to_none_and_back_below_running_pods).beyond_upstream("it does not start with such a file"),
    own!(cpus_stay_over_restarts_of_the_agent).beyond_upstream("it does not start with such a file"),
];

const STATE: &str = "/var/lib/kubelet/cpu_manager_state";

fn static_cpus(stack: Builder) -> Builder {
    stack.config("cpuManagerPolicy", "static").config("reservedSystemCPUs", "0")
}

/// Guaranteed, with CPUs of its own if `cpu` is whole.
fn guaranteed(name: &str, cpu: &str) -> PodBuilder {
    pod(name).container(json!({ "resources": { "limits": { "cpu": cpu, "memory": "32Mi" } } }))
}

/// Where the kernel lets the container run.
async fn allowed(pod: &PodHandle) -> Result<String> {
    let status = pod.exec("grep Cpus_allowed_list /proc/1/status").await?;
    Ok(status.split_whitespace().nth(1).unwrap_or_default().to_owned())
}

async fn expect_allowed(pod: &PodHandle, cpus: &str) -> Result<()> {
    poll::until(format!("pod {} on CPUs {cpus}", pod.name), WITHIN, async || {
        let allowed = allowed(pod).await?;
        Ok(if allowed == cpus { Look::Done(()) } else { Look::NotYet(allowed) })
    })
    .await
}

async fn ready(node: &Node, pod: PodBuilder) -> Result<PodHandle> {
    let pod = node.run(pod).await?;
    pod.expect().ready().await?;
    Ok(pod)
}

async fn a_guaranteed_pod_has_cpus_of_its_own(lab: Lab) -> Result<()> {
    let node = lab.node(static_cpus).await?;
    let shared = ready(&node, pod("shared")).await?;
    ensure!(allowed(&shared).await? == "0-1");
    let before = shared.instance().await?;

    // What is done before the rest begins lends its CPUs to it.
    let setup = json!({ "initContainers": [{
        "name": "setup", "image": BUSYBOX,
        "command": ["sh", "-c", "grep Cpus_allowed_list /proc/1/status"],
        "resources": { "limits": { "cpu": "1", "memory": "32Mi" } },
    }] });
    let pinned = ready(&node, guaranteed("pinned", "1").spec(setup)).await?;
    ensure!(allowed(&pinned).await? == "1");
    pinned.expect_log_of("setup", 0, "Cpus_allowed_list:\t1\n").await?;
    // It shall not wait for a quota on a CPU that nobody else has.
    let cgroup = PodCgroup::of(&pinned, "Guaranteed");
    ensure!(cgroup.cpu_quota()?.is_none() && cgroup.cpu_shares()? == 1024, "{:?}", cgroup.cpu_quota()?);
    let container = ContainerId::new(without_scheme(&pinned.instance().await?.0));
    ensure!(cgroup.of_container(&container).cpu_quota()?.is_none());
    // Others make room, without a restart, and whoever comes later stays away.
    expect_allowed(&shared, "0").await?;
    let later = ready(&node, pod("later")).await?;
    ensure!(allowed(&later).await? == "0");

    pinned.delete().await?;
    pinned.expect_gone().await?;
    expect_allowed(&shared, "0-1").await?;
    expect_allowed(&later, "0-1").await?;
    ensure!(shared.instance().await? == before, "it was restarted");
    // Part of a CPU cannot be had alone.
    let parts = ready(&node, guaranteed("parts", "100m")).await?;
    ensure!(allowed(&parts).await? == "0-1");
    ensure!(PodCgroup::of(&parts, "Guaranteed").cpu_quota()? == Some(10_000));
    parts.delete().await?;
    parts.expect_gone().await?;
    let again = ready(&node, guaranteed("again", "1")).await?;
    ensure!(allowed(&again).await? == "1");
    // More than the node ever had are refused at once, and others start.
    let greedy = node.run(guaranteed("greedy", "3").spec(json!({ "nodeName": node.name() }))).await?;
    let greedy = greedy.expect().phase("Failed").await?.status.unwrap_or_default();
    let message = greedy.message.unwrap_or_default();
    ensure!(greedy.reason.as_deref() == Some("OutOfcpu"), "{:?}", greedy.reason);
    ensure!(message.contains("cpu, requested: 3000, used: 1000, capacity: 1000"), "{message}");
    ready(&node, pod("neighbour")).await?;
    Ok(())
}

/// All CPUs but the reserved one are given: what ends, what waits for an image, and what starts later
/// runs on that one.
async fn others_leave_its_cpus_whatever_they_wait_for(lab: Lab) -> Result<()> {
    let strict = json!({ "strict-cpu-reservation": "true" });
    let node = lab.node(|stack| static_cpus(stack).config("cpuManagerPolicyOptions", strict)).await?;
    let stubborn = "trap : TERM; while :; do sleep 0.1; done";
    let ending = pod("ending").script(stubborn).spec(json!({ "terminationGracePeriodSeconds": 600 }));
    let ending = ready(&node, ending).await?;
    // Its second image is where nobody answers.
    ready(&node, bad_registry("silent", 5480)).await?;
    let silence = json!({ "image": "127.0.0.1:5480/silence/app:1" });
    let pulling = node.run(pod("pulling").and_container("second", "true", silence)).await?;
    pulling.expect_event("Pulling").await?;
    expect_allowed(&ending, "1").await?;
    ending.delete().await?;

    let pinned = ready(&node, guaranteed("pinned", "1")).await?;
    ensure!(allowed(&pinned).await? == "1");
    expect_allowed(&ending, "0").await?;
    // The API hears of its first container once the round has ended that waits for the image.
    poll::until("the first container of what pulls on CPU 0", WITHIN, async || {
        let containers = node.containers_of(&pulling).await?;
        let first = containers.iter().find(|one| one.name == "main").context("it has started")?;
        let allowed = node.exec(&first.id, "grep Cpus_allowed_list /proc/1/status").await?;
        Ok(if allowed.trim().ends_with("\t0") { Look::Done(()) } else { Look::NotYet(allowed) })
    })
    .await?;
    let later = ready(&node, pod("later")).await?;
    ensure!(allowed(&later).await? == "0");
    let at_once = DeleteParams::default().grace_period(0);
    node.api::<Pod>().delete(&ending.name, &at_once).await?;
    Ok(())
}

/// Enough that they still start, move and are resized when the agent is killed and the runtime stopped.
const CROWD: usize = 24;

async fn a_crowd_keeps_to_its_cpus_through_a_crash_and_a_runtime_that_hangs(lab: Lab) -> Result<()> {
    let node = lab.node(static_cpus).await?;
    let mib = |limit: u32| json!({ "resources": { "limits": { "memory": format!("{limit}Mi") }, "requests": { "memory": "4Mi" } } });
    let mut crowd = Vec::new();
    for number in 0..CROWD {
        crowd.push(node.run(pod(&format!("one-{number}")).container(mib(16))).await?);
    }
    let pinned = node.run(guaranteed("pinned", "1")).await?;
    crowd[CROWD / 4].expect().ready().await?;
    node.stack().agent().kill().await?;
    node.stack().agent().start().await?;
    pinned.expect().ready().within(WITHIN * 2).await?;
    for one in &crowd {
        one.expect().ready().within(WITHIN * 2).await?;
        expect_allowed(one, "0").await?;
        // One that was being started when the agent was killed may have failed for that.
        let running =
            node.containers_of(one).await?.iter().filter(|it| it.state == ContainerStateKind::Running).count();
        ensure!(running == 1, "{} runs {running} times", one.name);
    }
    ensure!(allowed(&pinned).await? == "1");

    let before = instances(&crowd).await?;
    node.stack().containerd().freeze().await?;
    pinned.delete().await?;
    let (resized, others) = crowd.split_at(CROWD / 2);
    for one in resized {
        let mut wish = mib(32);
        wish["name"] = "main".into();
        let patch = Patch::Strategic(json!({ "spec": { "containers": [wish] } }));
        node.api::<Pod>().patch_subresource("resize", &one.name, &PatchParams::default(), &patch).await?;
    }
    node.expect_node_ready("False").await?;
    node.stack().containerd().thaw().await?;
    pinned.expect_gone().await?;
    for (pods, limit) in [(resized, 32 << 20), (others, 16 << 20)] {
        for one in pods {
            expect_allowed(one, "0-1").await?;
            let id = ContainerId::new(without_scheme(&one.instance().await?.0));
            let cgroup = PodCgroup::of(one, "Burstable").of_container(&id);
            poll::until(format!("the limit of {}", one.name), WITHIN, async || {
                let has = cgroup.memory_limit()?;
                Ok(if has == Some(limit) { Look::Done(()) } else { Look::NotYet(format!("{has:?}")) })
            })
            .await?;
        }
    }
    ensure!(instances(&crowd).await? == before, "{before:?} became others");
    let again = ready(&node, guaranteed("again", "1")).await?;
    ensure!(allowed(&again).await? == "1");
    Ok(())
}

async fn instances(pods: &[PodHandle]) -> Result<Vec<(String, i32)>> {
    let mut all = Vec::new();
    for pod in pods {
        all.push(pod.instance().await?);
    }
    Ok(all)
}

async fn the_policy_goes_to_none_and_back_below_running_pods(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| static_cpus(stack).flag("--config-dir=/var/lib/kubelet")).await?;
    let shared = ready(&node, pod("shared")).await?;
    let pinned = ready(&node, guaranteed("pinned", "1")).await?;
    expect_allowed(&shared, "0").await?;
    let before = [shared.instance().await?, pinned.instance().await?];
    for (policy, of_shared, of_pinned) in [("none", "0-1", "0-1"), ("static", "0", "1")] {
        node.stack().agent().kill().await?;
        let drop_in = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "cpuManagerPolicy": policy,
        });
        node.stack().write("/var/lib/kubelet/10-policy.conf", drop_in.to_string())?;
        node.stack().agent().start().await?;
        expect_allowed(&shared, of_shared).await?;
        expect_allowed(&pinned, of_pinned).await?;
        poll::until(format!("a state file of the policy {policy}"), WITHIN, async || {
            let file: serde_json::Value = serde_json::from_str(&node.stack().read(STATE)?)?;
            Ok(if file["policyName"] == policy { Look::Done(()) } else { Look::NotYet(file.to_string()) })
        })
        .await?;
    }
    ensure!([shared.instance().await?, pinned.instance().await?] == before, "restarted");
    Ok(())
}

/// Whatever the state file says by then, what runs stays where it is and counts.
async fn cpus_stay_over_restarts_of_the_agent(lab: Lab) -> Result<()> {
    let node = lab.node(static_cpus).await?;
    let shared = ready(&node, pod("shared")).await?;
    let pinned = ready(&node, guaranteed("pinned", "1")).await?;
    let before = [shared.instance().await?, pinned.instance().await?];
    let good = node.stack().read(STATE)?;
    let file: serde_json::Value = serde_json::from_str(&good)?;
    ensure!(
        file["policyName"] == "static"
            && file["defaultCpuSet"] == "0"
            && file["entries"] == json!({ &pinned.uid: { "main": "1" } }),
        "{good}"
    );
    let elsewhere = json!({
        "policyName": "static", "defaultCpuSet": "0,2-63", "checksum": 0,
        "entries": { &pinned.uid: { "main": "1" }, "of-nobody": { "main": "64" } },
    });
    let broken = [
        good.clone(),
        good[..good.len() / 2].to_owned(),
        json!({ "policyName": "none", "defaultCpuSet": "", "checksum": 0 }).to_string(),
        elsewhere.to_string(),
        json!({ "policyName": "static", "defaultCpuSet": "0-1", "entries": {}, "checksum": 0 }).to_string(),
    ];
    for (round, text) in broken.iter().enumerate() {
        node.stack().agent().kill().await?;
        node.stack().write(STATE, text)?;
        node.stack().agent().start().await?;
        let witness = ready(&node, pod(&format!("witness-{round}"))).await?;
        expect_allowed(&witness, "0").await?;
        expect_allowed(&shared, "0").await?;
        ensure!(allowed(&pinned).await? == "1");
        ensure!([shared.instance().await?, pinned.instance().await?] == before, "restarted by {text}");
        poll::until(format!("the state file right again after {text}"), WITHIN, async || {
            let now: serde_json::Value = serde_json::from_str(&node.stack().read(STATE)?)?;
            Ok(if now == file { Look::Done(()) } else { Look::NotYet(now.to_string()) })
        })
        .await?;
    }
    // What it has is free once it is gone, although it was given in another life.
    pinned.delete().await?;
    pinned.expect_gone().await?;
    expect_allowed(&shared, "0-1").await
}
