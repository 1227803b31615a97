//! What it takes until every running container has the CPUs that are left when a pod gets one of its
//! own, and what the CPU manager costs when nothing happens. On a node of its own, with that manager.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;
use tokio::time::Instant;

use super::agent::{Bench, container, pod_of, run_one};
use super::{RESTING_PODS, cgroups};
use crate::harness::without_scheme;

/// As many as are asked for by `BENCH_POOL_PODS`.
pub(crate) const PODS: usize = 500;
/// Pods whose cgroups are looked at when all the others are there.
const NEWCOMERS: usize = 5;
/// Pods that are started at once.
const STARTED_AT_ONCE: usize = 10;
const SETTLES_WITHIN: Duration = Duration::from_secs(15);
/// Short beside what an update takes, long enough to leave the CPU to it.
const INTERVAL: Duration = Duration::from_millis(100);
/// Upstream looks at its containers every ten seconds, one after another.
const WITHIN: Duration = Duration::from_secs(600);

/// What the agent is told beside what all stacks have.
pub(super) fn config() -> [(&'static str, serde_json::Value); 3] {
    // For the one who looks, too; what is left of a small machine is for one pod.
    [("cpuManagerPolicy", "static".into()), ("reservedSystemCPUs", "0".into()), ("maxPods", (PODS + 10).into())]
}

#[derive(Default)]
pub struct Found {
    pub containers: Vec<f64>,
    pub rest_cpu_percent: Vec<f64>,
    /// Seconds from the creation of the pod that takes a CPU, and from its deletion.
    pub smaller: Vec<f64>,
    pub larger: Vec<f64>,
    /// The agent's CPU seconds for both.
    pub cpu: Vec<f64>,
    /// Of a pod that comes and goes beside all the others, whose classes' shares follow it.
    pub cgroups: cgroups::Found,
}

pub(super) async fn measure(bench: &Bench, found: &mut Found, rest_seconds: u64) -> Result<()> {
    let wanted = std::env::var("BENCH_POOL_PODS").ok().and_then(|text| text.parse().ok()).unwrap_or(PODS);
    ensure!(wanted <= PODS, "at most {PODS} pods have room");
    let resting = RESTING_PODS.min(wanted);
    start(bench, 0..resting).await?;
    tokio::time::sleep(SETTLES_WITHIN).await;
    found.rest_cpu_percent.push(bench.cpu_percent(rest_seconds).await?);
    start(bench, resting..wanted).await?;
    tokio::time::sleep(SETTLES_WITHIN).await;

    let files = cpu_files(bench).await?;
    ensure!(files.len() >= wanted, "{wanted} pods have only {} containers", files.len());
    found.containers.push(files.len() as f64);
    let all = read(&files[0])?;
    let (begun, cpu) = (Instant::now(), bench.agent.cpu_seconds()?);
    let mut pinned = container("main", &["sleep", "1000000"]);
    pinned["resources"] = json!({ "limits": { "cpu": "1", "memory": "64Mi" } });
    let pinned = pod_of(&bench.node, "pinned", json!([pinned]))?;
    bench.pods.create(&PostParams::default(), &pinned).await?;
    until_each(&files, |cpus| cpus != all).await?;
    found.smaller.push(begun.elapsed().as_secs_f64());

    let begun = Instant::now();
    bench.pods.delete("pinned", &DeleteParams::default()).await?;
    until_each(&files, |cpus| cpus == all).await?;
    found.larger.push(begun.elapsed().as_secs_f64());
    found.cpu.push(bench.agent.cpu_seconds()? - cpu);
    cgroups::measure(bench, NEWCOMERS, &mut found.cgroups).await
}

/// In the network of the node, which has not that many addresses.
async fn start(bench: &Bench, numbers: std::ops::Range<usize>) -> Result<()> {
    let numbers: Vec<usize> = numbers.collect();
    for batch in numbers.chunks(STARTED_AT_ONCE) {
        try_join_all(batch.iter().map(async |number| {
            let containers = json!([container("main", &["sleep", "1000000"])]);
            let mut pod = pod_of(&bench.node, &format!("pooled-{number}"), containers)?;
            pod.spec.as_mut().context("written above")?.host_network = Some(true);
            run_one(&bench.pods, &pod).await
        }))
        .await?;
    }
    Ok(())
}

/// Where the kernel tells the CPUs of each running container.
async fn cpu_files(bench: &Bench) -> Result<Vec<PathBuf>> {
    let root = bench.stack.on_node("/sys/fs/cgroup");
    let is_v2 = root.join("cgroup.controllers").exists();
    let (root, file) = if is_v2 { (root, "cpuset.cpus.effective") } else { (root.join("cpuset"), "cpuset.cpus") };
    let mut files = Vec::new();
    for pod in bench.pods.list(&ListParams::default()).await?.items {
        let uid = pod.metadata.uid.unwrap_or_default();
        for status in pod.status.and_then(|status| status.container_statuses).into_iter().flatten() {
            let id = status.container_id.unwrap_or_default();
            files.push(root.join(format!("kubepods/besteffort/pod{uid}/{}/{file}", without_scheme(&id))));
        }
    }
    Ok(files)
}

fn read(file: &PathBuf) -> Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    Ok(text.trim().to_owned())
}

async fn until_each(files: &[PathBuf], holds: impl Fn(&str) -> bool) -> Result<()> {
    let deadline = Instant::now() + WITHIN;
    let mut left: Vec<&PathBuf> = files.iter().collect();
    loop {
        let mut still = Vec::new();
        for file in left {
            if !holds(&read(file)?) {
                still.push(file);
            }
        }
        if still.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{} of {} containers have other CPUs still", still.len(), files.len());
        left = still;
        tokio::time::sleep(INTERVAL).await;
    }
}
