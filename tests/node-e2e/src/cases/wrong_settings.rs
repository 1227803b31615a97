//! Settings that cannot be: the agent ends and names them, and nothing that runs is touched.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use ferrolet::cri::ContainerSummary;
use serde_json::{Value, json};

use crate::harness::{Case, Lab, Node, WITHIN, pod};
use crate::own;
use crate::poll::{self, Look};
use crate::provision::Containerd;
use crate::stack::{Builder, State};

pub const CASES: &[Case] = &[
    own!(resources_that_cannot_be_promised_are_refused_by_the_name_of_their_setting)
        .standalone()
        .beyond_upstream("it names no setting for most of them, and starts with some"),
    own!(cgroups_that_cannot_be_used_are_refused_by_the_name_of_their_setting)
        .standalone()
        .beyond_upstream("it starts and refuses pods, or names no setting"),
    own!(an_old_runtime_that_makes_cgroups_otherwise_is_refused)
        .standalone()
        .beyond_upstream("it asks newer runtimes only"),
];

/// Where its configuration is, and so there before it starts.
const DROP_INS: &str = "/var/lib/kubelet";

/// A node on which a static pod runs.
async fn running(lab: &Lab, ask: impl FnOnce(Builder) -> Builder) -> Result<(Node, ContainerSummary)> {
    let web = pod("web").manifest();
    let flag = format!("--config-dir={DROP_INS}");
    let node = lab.node(|stack| ask(stack.standalone().static_pod("web.json", &web).flag(&flag))).await?;
    let web = node.expect_static_pod_runs("web").await?;
    Ok((node, web))
}

/// What the agent says with these settings before it ends.
async fn refusal(node: &Node, settings: &Value) -> Result<String> {
    let mut document = json!({ "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration" });
    document.as_object_mut().context("written above")?.extend(settings.as_object().context("fields")?.clone());
    node.stack().write(&format!("{DROP_INS}/10-wrong.conf"), document.to_string())?;
    let agent = node.stack().agent();
    let said = agent.log()?.len();
    agent.start().await?;
    let code = poll::until(format!("the agent to end with {settings}"), WITHIN, async || {
        Ok(match agent.state().await? {
            State::Exited { code } => Look::Done(code),
            other => Look::NotYet(format!("{other:?}")),
        })
    })
    .await?;
    let log = agent.log()?;
    ensure!(code != 0, "ended well with {settings}: {log}");
    Ok(log.get(said..).unwrap_or(&log).to_owned())
}

/// Each by itself.
async fn expect_refusals(node: &Node, wrong: &[(Value, &str)]) -> Result<()> {
    node.stack().agent().kill().await?;
    for (settings, expected) in wrong {
        let said = refusal(node, settings).await?;
        ensure!(said.contains(expected), "{settings} is to be refused with {expected:?}, not with {said}");
        ensure!(!said.contains("panicked"), "{settings}: {said}");
    }
    Ok(())
}

/// The pod that ran before runs on, and others start once the settings are right.
async fn expect_no_trace(node: &Node, before: &ContainerSummary) -> Result<()> {
    fs::remove_file(node.stack().on_node(&format!("{DROP_INS}/10-wrong.conf")))?;
    node.stack().agent().start().await?;
    node.static_pod("later.json", &pod("later").manifest())?;
    node.expect_static_pod_runs("later").await?;
    let after = node.expect_static_pod_runs("web").await?;
    ensure!(after.id == before.id && node.containers_named("web").await?.len() == 1, "{after:?}");
    Ok(())
}

async fn resources_that_cannot_be_promised_are_refused_by_the_name_of_their_setting(lab: Lab) -> Result<()> {
    let (node, web) = running(&lab, |stack| stack).await?;
    let with_static = |more: Value| {
        let mut settings = json!({ "cpuManagerPolicy": "static", "reservedSystemCPUs": "0" });
        settings.as_object_mut().expect("written above").extend(more.as_object().expect("fields").clone());
        settings
    };
    let one_node = |memory: &str| json!([{ "numaNode": 0, "limits": { "memory": memory } }]);
    let wrong = [
        (json!({ "cpuManagerPolicy": "dynamic" }), "cpuManagerPolicy: must be one of none, static"),
        (
            with_static(json!({ "cpuManagerPolicyOptions": { "full-pcpus-onyl": "true" } })),
            "cpuManagerPolicyOptions.full-pcpus-onyl: unknown option",
        ),
        (
            json!({ "cpuManagerPolicyOptions": { "full-pcpus-only": "true" } }),
            "cpuManagerPolicyOptions: needs cpuManagerPolicy static",
        ),
        (json!({ "cpuManagerPolicy": "static" }), "cpuManagerPolicy static needs CPUs for everything else"),
        (with_static(json!({ "reservedSystemCPUs": "0,4000" })), "reservedSystemCPUs 0,4000: the machine has the CPUs"),
        (
            with_static(json!({ "reservedSystemCPUs": "1-0" })),
            "reservedSystemCPUs: CPU range \"1-0\" ends before it starts",
        ),
        (
            json!({ "kubeReserved": { "cpu": "4000" } }),
            "systemReserved, kubeReserved and evictionHard ask for too much: invalid Node Allocatable configuration: cpu",
        ),
        (
            json!({ "systemReserved": { "memory": "1Ei" } }),
            "systemReserved, kubeReserved and evictionHard ask for too much: invalid Node Allocatable configuration: memory",
        ),
        (json!({ "systemReserved": { "pid": "5000000" } }), "systemReserved and kubeReserved ask for too much: pid"),
        (json!({ "memoryManagerPolicy": "static" }), "memoryManagerPolicy: must be one of None, Static"),
        (json!({ "memoryManagerPolicy": "Static" }), "reservedMemory"),
        (json!({ "memoryManagerPolicy": "Static", "reservedMemory": one_node("1Gi") }), "reservedMemory"),
        (json!({ "topologyManagerPolicy": "single" }), "topologyManagerPolicy: must be one of none"),
        (json!({ "topologyManagerScope": "node" }), "topologyManagerScope: must be one of container, pod"),
        (
            json!({ "topologyManagerPolicyOptions": { "prefer-closest": "true" } }),
            "topologyManagerPolicyOptions.prefer-closest: unknown option",
        ),
    ];
    expect_refusals(&node, &wrong).await?;
    expect_no_trace(&node, &web).await
}

async fn cgroups_that_cannot_be_used_are_refused_by_the_name_of_their_setting(lab: Lab) -> Result<()> {
    let (node, web) = running(&lab, |stack| stack).await?;
    let root = node.stack().on_node("/sys/fs/cgroup");
    let memory = |name: &str| root.join("memory").join(name);
    for directory in hierarchies(&root)? {
        fs::create_dir(directory.join("whole"))?;
        if directory != memory("") {
            fs::create_dir(directory.join("halved"))?;
        }
    }
    // In this node's mount namespace alone, and of this directory alone.
    node.stack().run(&["mount", "--bind", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory"]).await?;
    node.stack().run(&["mount", "-o", "remount,bind,ro", "/sys/fs/cgroup/memory"]).await?;
    let reserved = |name: &str| {
        json!({
            "enforceNodeAllocatable": ["pods", "system-reserved"],
            "systemReservedCgroup": name, "systemReserved": { "memory": "64Mi" },
        })
    };
    let wrong = [
        (json!({ "cgroupRoot": "/none" }), "cgroupRoot \"/none\" cannot be used: there is no cgroup"),
        (
            json!({ "cgroupRoot": "/halved" }),
            "cgroupRoot \"/halved\" cannot be used: there is no cgroup /sys/fs/cgroup/memory/halved",
        ),
        (json!({ "cgroupRoot": "/whole" }), "cannot make the cgroups that cgroupsPerQOS stands for"),
        (json!({ "cgroupRoot": "/whole" }), "/sys/fs/cgroup/memory/whole/kubepods: Read-only file system"),
        (reserved("/none"), "systemReservedCgroup \"/none\" cannot be held to what enforceNodeAllocatable wants"),
        (reserved("/whole"), "systemReservedCgroup \"/whole\" cannot be held to what enforceNodeAllocatable wants"),
        (reserved(""), "enforceNodeAllocatable[1]: system-reserved needs systemReservedCgroup"),
        (json!({ "cgroupDriver": "cgroupd" }), "cgroupDriver: must be one of cgroupfs, systemd"),
        (
            json!({ "memorySwap": { "swapBehavior": "LimitedSwap" } }),
            "memorySwap.swapBehavior LimitedSwap needs cgroup v2",
        ),
    ];
    expect_refusals(&node, &wrong).await?;
    node.stack().run(&["umount", "/sys/fs/cgroup/memory"]).await?;
    expect_no_trace(&node, &web).await
}

/// Pods would start, in cgroups that nobody else knows by that name.
async fn an_old_runtime_that_makes_cgroups_otherwise_is_refused(lab: Lab) -> Result<()> {
    let (node, web) = running(&lab, |stack| stack.containerd(Containerd::Debian16)).await?;
    let refused = "cgroupDriver is systemd, but containerd 1.6";
    expect_refusals(&node, &[(json!({ "cgroupDriver": "systemd" }), refused)]).await?;
    expect_no_trace(&node, &web).await
}

fn hierarchies(root: &PathBuf) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(root)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(entries.into_iter().filter(|directory| directory.join("cgroup.procs").exists()).collect())
}
