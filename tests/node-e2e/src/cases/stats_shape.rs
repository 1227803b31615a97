//! The same pods on Ferrolet and on upstream's kubelet: what their statistics are made of. Families,
//! types, labels and fields have to be the same, but where a difference is wanted and says why.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use futures::future::try_join;
use serde_json::{Value, json};

use crate::harness::exposition::{self, Family, Wanted};
use crate::harness::{Case, Lab, PodHandle, WITHIN, pod};
use crate::own;
use crate::poll::{self, Look};
use crate::stack::Agent;

pub const CASES: &[Case] =
    &[own!(statistics_are_made_as_upstreams_are).beyond_upstream("it is what Ferrolet is compared with")];

const NEVER_ELSE: &str = "upstream never has another value there, for want of what would fill it in";
const OTHER_MACHINES: &str = "0 on all machines but s390 or those with Optane memory";
const OF_LEVELS: &str =
    "upstream has 0 for cgroups without processes of their own; of the root it is the node's parts'";
const DEVICES: &str = "upstream shows tmpfs as well, and needs a device that was used";
const PRESSURE: &str = "version 1 does not count it, and upstream shows 0";

/// Beginnings of lines `family type labels`; the label `id` has what kind of cgroup it is.
const WANTED: &[Wanted] = &[
    ("container_cpu_load_average_10s", NEVER_ELSE),
    ("container_cpu_load_d_average_10s", NEVER_ELSE),
    ("container_tasks_state", NEVER_ELSE),
    ("container_health_state", NEVER_ELSE),
    ("machine_cpu_books", OTHER_MACHINES),
    ("machine_cpu_drawers", OTHER_MACHINES),
    ("machine_nvm_*", OTHER_MACHINES),
    ("container_processes", OF_LEVELS),
    ("container_file_descriptors", OF_LEVELS),
    ("container_sockets", OF_LEVELS),
    ("container_ulimits_soft", OF_LEVELS),
    ("container_blkio_device_usage_total", DEVICES),
    ("container_fs_reads_bytes_total", DEVICES),
    ("container_fs_reads_total", DEVICES),
    ("container_fs_writes_bytes_total", DEVICES),
    ("container_fs_writes_total", DEVICES),
    ("container_pressure_*", PRESSURE),
];

/// Beginnings of paths of the summary.
const WANTED_FIELDS: &[Wanted] = &[
    ("/node/systemContainers/*", PRESSURE),
    ("/pods/cpu/psi*", PRESSURE),
    ("/pods/memory/psi*", PRESSURE),
    ("/pods/io*", PRESSURE),
    ("/pods/containers/cpu/psi*", PRESSURE),
    ("/pods/containers/memory/psi*", PRESSURE),
    ("/pods/containers/io*", PRESSURE),
];

async fn statistics_are_made_as_upstreams_are(lab: Lab) -> Result<()> {
    let (ours, theirs) = try_join(look(&lab, Agent::Ferrolet), look(&lab, Agent::Kubelet)).await?;
    let mut found = Vec::new();
    // A reason is needed if it is on one of the pages that it is given for.
    let mut idle: Vec<Vec<&str>> = Vec::new();
    for ((ours, theirs), wanted) in ours.iter().zip(&theirs).zip([WANTED, WANTED, WANTED_FIELDS, WANTED_FIELDS]) {
        ensure!(ours.len() > 10 && theirs.len() > 10, "too little to compare: {ours:?} and {theirs:?}");
        found.extend(exposition::unexplained(ours, theirs, wanted));
        idle.push(exposition::idle(ours, theirs, wanted));
    }
    let [metrics, resources, whole, short] = &idle[..] else { unreachable!("there are four pages") };
    let on_neither = |one: &[&'static str], other: &[&'static str]| -> Vec<&str> {
        one.iter().filter(|line| other.contains(line)).copied().collect()
    };
    let mut idle = [on_neither(metrics, resources), on_neither(whole, short)].concat();
    // On version 2 both tell of pressure, and whether a device is used is chance.
    let is_counted = ours[2].iter().any(|line| line.starts_with("/pods/cpu/psi"));
    let may_be_idle = |why: &str| why == DEVICES || (why == PRESSURE && is_counted);
    idle.retain(|line| !WANTED.iter().chain(WANTED_FIELDS).any(|(it, why)| it == line && may_be_idle(why)));
    ensure!(found.is_empty() && idle.is_empty(), "{}\nreasons that nothing needs: {idle:?}", found.join("\n"));
    Ok(())
}

/// The shapes of all pages of a node with two pods.
async fn look(lab: &Lab, agent: Agent) -> Result<[BTreeSet<String>; 4]> {
    let node = lab.node_of(agent, |stack| stack).await?;
    let limits = json!({ "resources": {
        "requests": { "cpu": "100m", "memory": "32Mi" }, "limits": { "cpu": "200m", "memory": "64Mi" },
    } });
    let limited = pod("limited").script("echo hello; touch /file; exec sleep 1000000").container(limits);
    let limited = limited.volume("data", "/data", json!({ "emptyDir": {} }));
    let limited = node.run(limited.volume("memory", "/memory", json!({ "emptyDir": { "medium": "Memory" } }))).await?;
    let free = node.run(pod("free").script("echo hello; exec sleep 1000000")).await?;
    for pod in [&limited, &free] {
        pod.expect().ready().await?;
        settled(pod).await?;
    }
    let pods = [limited, free];
    let cadvisor = node.families("/metrics/cadvisor").await?;
    let resource = node.families("/metrics/resource").await?;
    let whole = node.call_json("/stats/summary").await?;
    let short = node.call_json("/stats/summary?only_cpu_and_memory=true").await?;
    Ok([
        of_cgroups(cadvisor),
        exposition::shape(&resource, &["pod", "container"]),
        paths(whole, &pods),
        paths(short, &pods),
    ])
}

/// Upstream learns of a pod bit by bit.
async fn settled(pod: &PodHandle) -> Result<()> {
    poll::until(format!("all figures of pod {}", pod.name), WITHIN * 3, async || {
        let summary = pod.node.call_json("/stats/summary").await?;
        let found = pod.in_summary(&summary);
        let main = found.map(|found| &found["containers"][0]);
        let has = |of: Option<&Value>, path: &str| of.and_then(|of| of.pointer(path)).is_some_and(|it| !it.is_null());
        let is_there =
            ["/cpu/usageNanoCores", "/rootfs/usedBytes", "/logs/usedBytes"].iter().all(|path| has(main, path))
                && ["/network/rxBytes", "/volume/0/name", "/cpu/usageNanoCores"].iter().all(|path| has(found, path));
        let families = pod.node.families("/metrics/cadvisor").await?;
        let labels = [("pod", pod.name.as_str())];
        let sent = exposition::value(&families, "container_network_transmit_bytes_total", &labels);
        Ok(match is_there && sent.is_some() {
            true => Look::Done(()),
            false => Look::NotYet(format!("{found:?}, network {sent:?}")),
        })
    })
    .await
}

/// With the kind of each cgroup in place of its name, and whether a sample says when it was read.
fn of_cgroups(mut families: Vec<Family>) -> BTreeSet<String> {
    for sample in families.iter_mut().flat_map(|family| &mut family.samples) {
        sample.labels.insert("at".to_owned(), sample.at.is_some().to_string());
        let Some(id) = sample.labels.get("id") else { continue };
        let is_told = |label: &str| sample.labels.get(label).is_some_and(|value| !value.is_empty());
        let kinds = [("container", "container"), ("name", "sandbox"), ("pod", "pod")];
        let kind = kinds.into_iter().find(|(label, _)| is_told(label)).map_or(id.as_str(), |(_, kind)| kind);
        let kind = kind.to_owned();
        sample.labels.insert("id".to_owned(), kind);
    }
    let words = ["id", "at", "cpu", "failure_type", "scope", "ulimit", "interface", "operation"];
    exposition::shape(&families, &words)
}

/// The paths of all fields, of our own pods only. A list is what its items have.
fn paths(mut summary: Value, pods: &[PodHandle]) -> BTreeSet<String> {
    if let Some(all) = summary["pods"].as_array_mut() {
        all.retain(|it| pods.iter().any(|pod| it["podRef"]["uid"] == *pod.uid));
    }
    let mut found = BTreeSet::new();
    collect(&summary, "", &mut found);
    found
}

fn collect(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| collect(value, &format!("{path}/{name}"), found));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, path, found)),
        Value::Number(_) => drop(found.insert(format!("{path}\tnumber"))),
        Value::String(_) => drop(found.insert(format!("{path}\ttext"))),
        other => drop(found.insert(format!("{path}\t{other}"))),
    }
}
