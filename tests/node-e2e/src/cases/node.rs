//! The Node object, its lease, and the agent's health.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::Api;
use kube::api::DeleteParams;

use crate::harness::{Case, Lab, Node, pod};
use crate::{own, shared};

pub const CASES: &[Case] = &[
    shared!(a_node_tells_what_it_is).in_subset(),
    shared!(a_node_tells_what_it_has),
    shared!(a_node_is_under_no_pressure),
    shared!(images_are_listed),
    shared!(the_lease_is_renewed),
    shared!(health_is_told_on_the_loopback).in_subset(),
    shared!(the_agents_memory_is_in_one_place).beyond_upstream("it has a memory of another kind"),
    own!(labels_and_taints_are_registered),
    own!(a_deleted_node_registers_again).beyond_upstream("it registers once, at its start"),
];

async fn object(node: &Node) -> Result<NodeObject> {
    let nodes: Api<NodeObject> = Api::all(node.client());
    Ok(nodes.get(node.name()).await?)
}

async fn a_node_tells_what_it_is(node: Node) -> Result<()> {
    let object = object(&node).await?;
    let labels = object.metadata.labels.context("labels")?;
    let label = |name: &str| labels.get(name).map(String::as_str);
    ensure!(label("kubernetes.io/hostname") == Some(node.name()), "{labels:?}");
    ensure!(label("kubernetes.io/os") == Some("linux"), "{labels:?}");
    ensure!(label("kubernetes.io/arch").is_some(), "{labels:?}");

    let status = object.status.context("a status")?;
    let addresses = status.addresses.context("addresses")?;
    let address = |kind: &str| addresses.iter().find(|it| it.type_ == kind).map(|it| &*it.address);
    ensure!(address("InternalIP") == Some(node.stack().node_address().to_string().as_str()));
    ensure!(address("Hostname") == Some(node.name()), "{addresses:?}");

    let info = status.node_info.context("node info")?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(info.kernel_version == kernel.trim(), "{info:?}");
    ensure!(info.kubelet_version.starts_with("v1."), "{info:?}");
    ensure!(info.container_runtime_version.starts_with("containerd://"), "{info:?}");
    ensure!(info.os_image.contains("Debian") || !info.os_image.is_empty(), "{info:?}");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    ensure!(info.boot_id == boot.trim(), "{info:?}");
    Ok(())
}

async fn the_agents_memory_is_in_one_place(node: Node) -> Result<()> {
    // Whatever it has done so far, it has used its threads for this.
    node.run(pod("passing")).await?.expect().ready().await?;
    let pid = node.stack().agent().pid().await?;
    let maps = std::fs::read_to_string(format!("/proc/{}/root/proc/{pid}/maps", node.stack().init_pid()))?;
    // Arenas of glibc, but for the first one, begin at multiples of this.
    const ARENA: u64 = 64 << 20;
    let arenas = maps.lines().filter(|line| {
        let start = line.split('-').next().and_then(|start| u64::from_str_radix(start, 16).ok());
        start.is_some_and(|start| start % ARENA == 0) && line.contains(" rw-p 00000000 00:00 0")
    });
    let arenas: Vec<_> = arenas.collect();
    ensure!(arenas.is_empty(), "{arenas:?}");
    Ok(())
}

async fn a_node_tells_what_it_has(node: Node) -> Result<()> {
    let status = object(&node).await?.status.context("a status")?;
    let (capacity, allocatable) = (status.capacity.context("capacity")?, status.allocatable.context("allocatable")?);
    let cpus = std::thread::available_parallelism()?.to_string();
    ensure!(capacity["cpu"].0 == cpus, "{capacity:?}");
    ensure!(capacity["pods"].0 == "110", "{capacity:?}");
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let total = memory.split_whitespace().nth(1).context("MemTotal")?;
    ensure!(capacity["memory"].0 == format!("{total}Ki"), "{capacity:?}");
    ensure!(capacity.contains_key("ephemeral-storage"), "{capacity:?}");
    // The hard eviction threshold of the test configuration is kept free.
    let left: u64 = allocatable["memory"].0.trim_end_matches("Ki").parse()?;
    ensure!(left == total.parse::<u64>()? - (50 << 10), "{allocatable:?}");
    Ok(())
}

async fn a_node_is_under_no_pressure(node: Node) -> Result<()> {
    let conditions = object(&node).await?.status.and_then(|status| status.conditions);
    let conditions = conditions.context("conditions")?;
    for (kind, status, reason) in [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID"),
        ("Ready", "True", "KubeletReady"),
    ] {
        let found = conditions.iter().find(|condition| condition.type_ == kind);
        let found = found.map(|it| (it.status.as_str(), it.reason.as_deref().unwrap_or("")));
        ensure!(found == Some((status, reason)), "{kind}: {found:?}");
    }
    Ok(())
}

async fn images_are_listed(node: Node) -> Result<()> {
    let listed = |node: &NodeObject| {
        let images = node.status.as_ref().and_then(|status| status.images.as_ref());
        let mut names = images.into_iter().flatten().filter_map(|image| image.names.as_ref());
        names.any(|names| names.iter().any(|name| name == crate::provision::BUSYBOX))
    };
    node.expect_node("busybox among its images", listed).await?;
    Ok(())
}

async fn the_lease_is_renewed(node: Node) -> Result<()> {
    let first = node.expect_lease_renewal().await?;
    ensure!(first.holder_identity.as_deref() == Some(node.name()), "{first:?}");
    ensure!(first.lease_duration_seconds == Some(40), "{first:?}");
    node.expect_lease_renewal().await?;
    Ok(())
}

async fn health_is_told_on_the_loopback(node: Node) -> Result<()> {
    let answer = node.http_get("http://127.0.0.1:10248/healthz").await?;
    ensure!(answer.starts_with("ok"), "{answer:?}");
    Ok(())
}

async fn labels_and_taints_are_registered(lab: Lab) -> Result<()> {
    let node = lab
        .node(|stack| {
            stack
                .flag("--node-labels=example.com/rack=seven")
                .flag("--register-with-taints=example.com/own=yes:NoSchedule")
                .config("maxPods", 7)
        })
        .await?;
    let object = object(&node).await?;
    let labels = object.metadata.labels.unwrap_or_default();
    ensure!(labels.get("example.com/rack").is_some_and(|rack| rack == "seven"), "{labels:?}");
    let taints = object.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let own = taints.iter().find(|taint| taint.key == "example.com/own");
    ensure!(own.is_some_and(|taint| taint.effect == "NoSchedule"), "{taints:?}");
    let capacity = object.status.and_then(|status| status.capacity).context("a capacity")?;
    ensure!(capacity["pods"].0 == "7", "{capacity:?}");
    Ok(())
}

async fn a_deleted_node_registers_again(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let running = node.run(pod("running")).await?;
    running.expect().ready().await?;
    let nodes: Api<NodeObject> = Api::all(node.client());
    let before = nodes.get(node.name()).await?.metadata.uid;
    nodes.delete(node.name(), &DeleteParams::default()).await?;
    node.expect_node("a new registration", |node| node.metadata.uid != before).await?;
    node.expect_node_ready("True").await?;

    Ok(())
}
