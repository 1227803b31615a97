//! What an agent makes of it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use ferrolet::cri::{Runtime, Scope};
use futures::future::try_join_all;
use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{BURST_PODS, Part, RESTING_PODS, SINGLE_PODS, cgroups, crowd, load, pool, scrape};
use crate::harness::{Process, client, is_ready, runtime_of};
use crate::poll::{self, Look};
use crate::provision::BUSYBOX;
use crate::stack::Stack;

pub(super) const WITHIN: Duration = Duration::from_secs(300);
/// A runtime has nothing left to do when it used less than this share of a CPU for so long.
const CALM_CPU: f64 = 0.05;
const CALM_FOR: Duration = Duration::from_secs(5);

/// What was measured of one agent, each thing as often as it was.
#[derive(Default)]
pub struct Measured {
    pub singles: Vec<f64>,
    pub burst: Vec<f64>,
    pub burst_cpu: Vec<f64>,
    pub rest_cpu_percent: Vec<f64>,
    pub rest_containerd_percent: Vec<f64>,
    pub rss_empty: Vec<f64>,
    pub rss_full: Vec<f64>,
    pub anonymous_full: Vec<f64>,
    pub probes_cpu_percent: Vec<f64>,
    /// In the order of [`scrape::SCRAPES`].
    pub scrapes: [scrape::Cost; 6],
    pub rss_before_scrapes: Vec<f64>,
    pub rss_after_scrapes: Vec<f64>,
    pub crowd: crowd::Found,
    /// Starts of pods while nothing is wrong, and while a call about another pod hangs.
    pub usual: Vec<f64>,
    pub beside_hang: Vec<f64>,
    pub restart: Vec<f64>,
    pub static_start: Vec<f64>,
    pub cgroups: cgroups::Found,
    pub pool: pool::Found,
}

/// An agent under measurement.
pub(super) struct Bench {
    pub stack: Stack,
    pub pods: Api<Pod>,
    pub node: String,
    pub agent: Process,
}

pub async fn measure(stack: Stack, parts: &[Part], rest_seconds: u64, found: &mut Measured) -> Result<()> {
    let kubeconfig = stack.admin_kubeconfig().context("a stack with a control plane")?;
    let pods: Api<Pod> = Api::namespaced(client(&kubeconfig).await?, "default");
    let node = stack.node_name().to_owned();

    // Let what follows the start be over: registration, first lists, garbage collection.
    run_one(&pods, &pod(&node, "warm-up")?).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let pid = stack.agent().pid().await?;
    let agent = Process::inside(&stack, pid)?;
    let bench = Bench { stack, pods, node, agent };
    if !parts.contains(&Part::Pool) {
        found.rss_empty.push(bench.agent.memory_mb("VmRSS")?);
    }

    for &part in parts {
        match part {
            Part::Single => found.singles.extend(bench.one_after_another("single").await?),
            Part::Burst => bench.burst(found).await?,
            Part::Rest => bench.rest(found, rest_seconds).await?,
            Part::Scrape => scrape::measure(&bench, found).await?,
            Part::Crowd => crowd::measure(&bench, &mut found.crowd).await?,
            Part::Probes => found.probes_cpu_percent.push(load::probes(&bench, rest_seconds).await?),
            Part::Hang => load::beside_a_hanging_call(&bench, found).await?,
            Part::Restart => found.restart.extend(restart_gaps(&bench).await?),
            Part::Cgroups => cgroups::measure(&bench, cgroups::PODS, &mut found.cgroups).await?,
            Part::Pool => pool::measure(&bench, &mut found.pool, rest_seconds).await?,
            Part::Static => found.static_start.push(static_start(&bench.stack).await?),
        }
        // A static pod stays, and its mirror with it; nothing comes after it.
        if part != Part::Static {
            bench.clear().await?;
        }
    }
    bench.stack.end().await
}

impl Bench {
    /// The seconds that each of some pods takes from its creation to Ready.
    pub async fn one_after_another(&self, name: &str) -> Result<Vec<f64>> {
        let mut seconds = Vec::new();
        for number in 0..SINGLE_PODS {
            seconds.push(run_one(&self.pods, &pod(&self.node, &format!("{name}-{number}"))?).await?);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(seconds)
    }

    async fn burst(&self, found: &mut Measured) -> Result<()> {
        let cpu = self.agent.cpu_seconds()?;
        found.burst.push(run_many(&self.pods, &self.node, BURST_PODS).await?);
        // Statuses and events of the burst may still be on their way.
        tokio::time::sleep(Duration::from_secs(3)).await;
        found.burst_cpu.push(self.agent.cpu_seconds()? - cpu);
        Ok(())
    }

    async fn rest(&self, found: &mut Measured, seconds: u64) -> Result<()> {
        run_many(&self.pods, &self.node, RESTING_PODS).await?;
        tokio::time::sleep(Duration::from_secs(15)).await;
        found.rss_full.push(self.agent.memory_mb("VmRSS")?);
        found.anonymous_full.push(self.agent.memory_mb("RssAnon")?);
        let containerd = Process::inside(&self.stack, self.stack.containerd().pid().await?)?;
        let cpu = containerd.cpu_seconds()?;
        found.rest_cpu_percent.push(self.cpu_percent(seconds).await?);
        found.rest_containerd_percent.push((containerd.cpu_seconds()? - cpu) / seconds as f64 * 100.0);
        Ok(())
    }

    /// How much of one CPU the agent uses in the time to come.
    pub async fn cpu_percent(&self, seconds: u64) -> Result<f64> {
        let cpu = self.agent.cpu_seconds()?;
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        Ok((self.agent.cpu_seconds()? - cpu) / seconds as f64 * 100.0)
    }

    /// Removes all pods, and waits until the runtime has done its part: teardown behind the
    /// API's back must not weigh on what comes next.
    pub async fn clear(&self) -> Result<()> {
        self.pods.delete_collection(&DeleteParams::default().grace_period(0), &ListParams::default()).await?;
        poll::until("no pods in the API", WITHIN, async || {
            let left = self.pods.list_metadata(&ListParams::default()).await?.items.len();
            Ok(if left == 0 { Look::Done(()) } else { Look::NotYet(format!("{left} pods")) })
        })
        .await?;
        let containerd = Process::inside(&self.stack, self.stack.containerd().pid().await?)?;
        poll::until("a runtime at rest", WITHIN, async || {
            let cpu = containerd.cpu_seconds()?;
            tokio::time::sleep(CALM_FOR).await;
            let used = containerd.cpu_seconds()? - cpu;
            Ok(if used < CALM_CPU * CALM_FOR.as_secs_f64() {
                Look::Done(())
            } else {
                Look::NotYet(format!("{used:.2} s of CPU in {CALM_FOR:?}"))
            })
        })
        .await
    }
}

fn pod(node: &str, name: &str) -> Result<Pod> {
    pod_of(node, name, json!([container("main", &["sleep", "1000000"])]))
}

pub(super) fn container(name: &str, command: &[&str]) -> Value {
    json!({ "name": name, "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": command })
}

pub(super) fn pod_of(node: &str, name: &str, containers: Value) -> Result<Pod> {
    Ok(serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": { "nodeName": node, "terminationGracePeriodSeconds": 0, "containers": containers },
    }))?)
}

/// Creates a pod and waits until a watch shows it Ready; the seconds that took.
pub(super) async fn run_one(pods: &Api<Pod>, pod: &Pod) -> Result<f64> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let changes = watcher(pods.clone(), watcher::Config::default().fields(&format!("metadata.name={name}")));
    pin_mut!(changes);
    // The watch is up before the pod exists.
    while !matches!(changes.next().await.context("the watch goes on")??, Event::InitDone) {}
    let begun = Instant::now();
    pods.create(&PostParams::default(), pod).await?;
    let ready = async {
        loop {
            if let Event::Apply(pod) = changes.next().await.context("the watch goes on")??
                && is_ready(&pod)
            {
                return anyhow::Ok(begun.elapsed().as_secs_f64());
            }
        }
    };
    tokio::time::timeout(WITHIN, ready).await.with_context(|| format!("pod {name} is not Ready"))?
}

pub(super) async fn run_many(pods: &Api<Pod>, node: &str, count: usize) -> Result<f64> {
    let changes = watcher(pods.clone(), watcher::Config::default());
    pin_mut!(changes);
    while !matches!(changes.next().await.context("the watch goes on")??, Event::InitDone) {}
    let begun = Instant::now();
    let names: Vec<_> = (0..count).map(|number| format!("burst-{number}")).collect();
    let created = try_join_all(names.iter().map(async |name| {
        pods.create(&PostParams::default(), &pod(node, name)?).await?;
        anyhow::Ok(())
    }));
    let all_ready = async {
        let mut ready = BTreeMap::new();
        while ready.len() < count {
            if let Event::Apply(pod) = changes.next().await.context("the watch goes on")??
                && is_ready(&pod)
            {
                ready.insert(pod.metadata.name.unwrap_or_default(), ());
            }
        }
        anyhow::Ok(begun.elapsed().as_secs_f64())
    };
    let both = async { tokio::try_join!(created, all_ready) };
    let (_, seconds) = tokio::time::timeout(WITHIN, both).await.context("not all pods are Ready")??;
    Ok(seconds)
}

/// From the first exit of a container to the start of its successor, by the runtime's clock.
async fn restart_gaps(bench: &Bench) -> Result<Vec<f64>> {
    let Bench { stack, pods, node, .. } = bench;
    let mut gaps = Vec::new();
    for number in 0..5 {
        let name = format!("restart-{number}");
        let script = "if [ -e /tmp/x ]; then sleep 1000000; fi; sleep 2; exit 1";
        let restarted = pod_of(node, &name, json!([container("main", &["sh", "-c", script])]))?;
        let created = pods.create(&PostParams::default(), &restarted).await?;
        let uid = ferrolet::pod::PodUid::new(created.metadata.uid.unwrap_or_default());
        let runtime = runtime_of(stack.made())?;
        let gap = poll::until("a second instance", WITHIN, async || {
            let mut instances = Vec::new();
            for container in runtime.list_containers(&Scope::Pod(uid.clone())).await? {
                instances.push(runtime.container_status(&container.id).await?);
            }
            instances.sort_by_key(|instance| instance.attempt);
            let [first, second, ..] = instances.as_slice() else {
                return Ok(Look::NotYet(format!("{} instances", instances.len())));
            };
            let finished = first.exit().and_then(|exit| exit.finished_at);
            let started = match &second.state {
                ferrolet::cri::ContainerState::Running { started_at } => Some(*started_at),
                other => return Ok(Look::NotYet(format!("the second instance is {other:?}"))),
            };
            let (Some(finished), Some(started)) = (finished, started) else {
                return Ok(Look::NotYet("no times yet".into()));
            };
            Ok(Look::Done(started.duration_since(finished).as_secs_f64()))
        });
        gaps.push(gap.await?);
    }
    Ok(gaps)
}

/// From the start of the agent's process to the creation of a static pod's sandbox.
async fn static_start(stack: &Stack) -> Result<f64> {
    stack.agent().stop().await?;
    let manifest = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "static", "namespace": "default" },
        "spec": { "containers": [{ "name": "main", "image": BUSYBOX, "command": ["sleep", "1000000"] }] },
    });
    stack.write(&format!("{}/static.yaml", crate::stack::STATIC_PODS), manifest.to_string())?;
    #[allow(clippy::disallowed_methods)] // Compared with the runtime's wall-clock timestamps.
    let begun = jiff::Timestamp::now();
    stack.agent().start().await?;
    let runtime = runtime_of(stack.made())?;
    let created = poll::until("the static pod's sandbox", WITHIN, async || {
        let sandboxes = runtime.list_sandboxes(&Scope::All).await?;
        let found =
            sandboxes.iter().find(|sandbox| sandbox.pod_name.starts_with("static-") && sandbox.created_at > begun);
        Ok(found.map_or_else(
            || Look::NotYet(format!("{} sandboxes", sandboxes.len())),
            |sandbox| Look::Done(sandbox.created_at),
        ))
    });
    Ok(created.await?.duration_since(begun).as_secs_f64())
}
