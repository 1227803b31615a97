//! What it costs to set up the cgroups of a pod, and to take them down.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;

use super::agent::{Bench, WITHIN, container, pod_of, run_one};
use super::trace::{Calls, Trace};
use crate::poll::{self, Look};

/// Pods that are made one after another, and taken down at once.
pub(super) const PODS: usize = 20;
/// What an agent still does for a pod that is Ready.
const SETTLES_WITHIN: Duration = Duration::from_secs(2);

/// A pod each.
#[derive(Clone, Copy)]
pub struct Cost {
    pub calls: f64,
    pub ms: f64,
}

impl Default for Cost {
    fn default() -> Self {
        Cost { calls: f64::NAN, ms: f64::NAN }
    }
}

impl Cost {
    fn of_each(calls: Calls, pods: usize) -> Cost {
        Cost { calls: calls.number as f64 / pods as f64, ms: calls.seconds * 1000.0 / pods as f64 }
    }
}

#[derive(Default)]
pub struct Found {
    pub set_up: Cost,
    pub taken_down: Cost,
}

/// Of so many pods, beside those that are there.
pub(super) async fn measure(bench: &Bench, pods: usize, found: &mut Found) -> Result<()> {
    let pid = bench.stack.agent().pid().await?;
    let trace = Trace::begin(&bench.stack, pid, "set-up").await?;
    let names: Vec<String> = (0..pods).map(|number| format!("limited-{number}")).collect();
    for name in &names {
        run_one(&bench.pods, &limited(&bench.node, name)?).await?;
    }
    tokio::time::sleep(SETTLES_WITHIN).await;
    found.set_up = Cost::of_each(trace.end().await?, pods);

    let groups = groups(bench, &names).await?;
    let trace = Trace::begin(&bench.stack, pid, "taking-down").await?;
    try_join_all(names.iter().map(async |name| bench.pods.delete(name, &DeleteParams::default()).await)).await?;
    poll::until("the groups of all pods are gone", WITHIN, async || {
        let left = groups.iter().filter(|group| group.exists()).count();
        Ok(if left == 0 { Look::Done(()) } else { Look::NotYet(format!("{left}")) })
    })
    .await?;
    tokio::time::sleep(SETTLES_WITHIN).await;
    found.taken_down = Cost::of_each(trace.end().await?, pods);
    Ok(())
}

/// Of the class with most levels, and with all that can be limited.
fn limited(node: &str, name: &str) -> Result<Pod> {
    let mut container = container("main", &["sleep", "1000000"]);
    let requests = json!({ "cpu": "1m", "memory": "1Mi" });
    container["resources"] = json!({ "requests": requests, "limits": { "cpu": "100m", "memory": "64Mi" } });
    // Where many pods are there is no address left.
    let mut pod = pod_of(node, name, json!([container]))?;
    pod.spec.as_mut().context("written by pod_of")?.host_network = Some(true);
    Ok(pod)
}

/// The directories of these pods, in every hierarchy.
async fn groups(bench: &Bench, names: &[String]) -> Result<Vec<PathBuf>> {
    let root = bench.stack.on_node("/sys/fs/cgroup");
    let mut hierarchies = vec![root.clone()];
    for entry in std::fs::read_dir(&root).context("list the cgroup hierarchies")? {
        hierarchies.push(entry?.path());
    }
    let pods = bench.pods.list_metadata(&ListParams::default()).await?.items.into_iter().map(|pod| pod.metadata);
    let ours = pods.filter(|pod| pod.name.as_ref().is_some_and(|name| names.contains(name)));
    let uids: Vec<String> = ours.filter_map(|pod| pod.uid).collect();
    let groups = hierarchies.iter().flat_map(|hierarchy| {
        let place = |uid: &String| hierarchy.join(format!("kubepods/burstable/pod{uid}"));
        uids.iter().map(place).collect::<Vec<_>>()
    });
    let groups: Vec<PathBuf> = groups.filter(|group| group.exists()).collect();
    anyhow::ensure!(groups.len() >= names.len(), "{names:?} have only {groups:?}");
    Ok(groups)
}
