//! Drawn pods on Ferrolet and on upstream's kubelet, and where the two differ.
//!
//! `draft` draws a pod from a seed, the same for both nodes. Once what is to be seen of it has
//! come to rest, `observe` takes it all: the status at the API server, what was asked of the
//! runtime and what the runtime made of it, what the containers see themselves (`report`), the
//! events. `normal` takes out what no two nodes have in common, and `difference` tells where
//! they differ other than is known and wanted. To look into one, `SEED=… PODS=1`.

mod difference;
mod draft;
mod normal;
mod observe;
mod report;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::{join_all, try_join, try_join_all};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use kube::api::PostParams;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{Lab, Node, PodHandle};
use crate::poll::{self, Look};
use crate::provision::Containerd;
use crate::stack::Agent;
use difference::Difference;

/// Pods on each node at a time.
const AT_ONCE: usize = 8;
/// For how long nothing may change before a pod is taken to be at rest.
const AT_REST: Duration = Duration::from_secs(4);
/// The same for one that says it is still being made: it waits for what never comes.
const STUCK: Duration = Duration::from_secs(12);
/// How long the two may take to become the same.
const WITHIN: Duration = Duration::from_secs(75);
const GONE_WITHIN: Duration = Duration::from_secs(60);

const NODE: &str = "ferrolet-0";
const NAMESPACE: &str = "drawn";
/// How often a difference of one kind is shown in full.
const SHOWN: usize = 2;

/// What to run.
pub struct Choice {
    pub seed: u64,
    pub pods: u64,
}

/// The pod of a seed, as it is created.
pub fn draw(seed: u64) -> Value {
    draft::pod(seed, NODE)
}

/// Compares and tells; whether there was no difference.
pub async fn run(choice: &Choice) -> Result<bool> {
    let labs = [Agent::Ferrolet, Agent::Kubelet].map(|agent| Lab::new(agent, Containerd::Current));
    let result = compare(&labs, choice).await;
    for lab in &labs {
        lab.clear().await?;
    }
    result
}

async fn compare(labs: &[Lab; 2], choice: &Choice) -> Result<bool> {
    let [ferrolet, kubelet] = labs;
    let (ferrolet, kubelet) = try_join(node(ferrolet), node(kubelet)).await?;
    let mut tally = Tally::default();
    let seeds: Vec<u64> = (choice.seed..choice.seed + choice.pods).collect();
    for batch in seeds.chunks(AT_ONCE) {
        let ended = join_all(batch.iter().map(|&seed| one(seed, &ferrolet, &kubelet))).await;
        for (seed, outcome) in batch.iter().zip(ended) {
            tally.tell(*seed, outcome.with_context(|| format!("the pod of seed {seed}"))?);
        }
    }
    tally.sum_up();
    Ok(tally.different == 0)
}

/// With all that drawn pods refer to.
async fn node(lab: &Lab) -> Result<Node> {
    let stack = lab.node(|stack| stack.node(NODE)).await?.shared_stack();
    let node = Node::on(stack, NAMESPACE).await?;
    let data =
        json!({ "plain": "value", "multi.line": "one\ntwo\n", "UPPER_CASE": "X", "1-not-a-name": "n", "zero": "" });
    node.create::<ConfigMap>(json!({ "metadata": { "name": draft::CONFIG_MAP }, "data": data })).await?;
    node.create::<Secret>(json!({ "metadata": { "name": draft::SECRET }, "stringData": data })).await?;
    node.create::<Service>(json!({
        "metadata": { "name": draft::SERVICE },
        "spec": { "clusterIP": "10.96.77.7", "ports": [
            { "name": "http", "port": 80 }, { "name": "names", "port": 53, "protocol": "UDP" },
        ] },
    }))
    .await?;
    // Agents learn of a service by a watch; a pod that is faster goes without its variables.
    tokio::time::sleep(Duration::from_secs(2)).await;
    Ok(node)
}

enum Outcome {
    Refused(String),
    Compared(Vec<(Difference, Option<&'static str>)>),
}

#[derive(Default)]
struct Tally {
    same: usize,
    different: usize,
    refused: usize,
    /// By kind, to see what is one and the same difference.
    kinds: BTreeMap<String, Vec<u64>>,
    /// How often a known one was met, by its reason.
    known: BTreeMap<&'static str, usize>,
}

impl Tally {
    fn tell(&mut self, seed: u64, outcome: Outcome) {
        match outcome {
            Outcome::Refused(why) => {
                self.refused += 1;
                println!("refused  {seed}  {why}");
            }
            Outcome::Compared(all) => {
                let is_new = all.iter().any(|(_, why)| why.is_none());
                *if is_new { &mut self.different } else { &mut self.same } += 1;
                println!("{} {seed}", if is_new { "DIFFERS " } else { "same    " });
                for (one, why) in all {
                    if let Some(why) = why {
                        *self.known.entry(why).or_default() += 1;
                        continue;
                    }
                    let seeds = self.kinds.entry(one.kind()).or_default();
                    // The same thing over and over would bury the others.
                    if seeds.len() < SHOWN {
                        println!("  {one}");
                    }
                    seeds.push(seed);
                }
            }
        }
    }

    fn sum_up(&self) {
        for (why, times) in &self.known {
            println!("known {times:6} times: {why}");
        }
        for (kind, seeds) in &self.kinds {
            println!("NEW   {:6} times, first in {}: {kind}", seeds.len(), seeds[0]);
        }
        println!("{} pods are the same, {} differ, {} were refused", self.same, self.different, self.refused);
    }
}

/// One pod on both nodes, from its creation to its end.
async fn one(seed: u64, ferrolet: &Node, kubelet: &Node) -> Result<Outcome> {
    let drawn = draw(seed);
    let mut handles = Vec::new();
    for node in [ferrolet, kubelet] {
        match create(node, &drawn).await? {
            Ok(handle) => handles.push(handle),
            Err(refusal) => {
                ensure!(handles.is_empty(), "only one API server refuses: {refusal}");
                return Ok(Outcome::Refused(refusal));
            }
        }
    }
    let deadline = Instant::now() + WITHIN;
    let differences = loop {
        let seen = try_join_all(handles.iter().map(|handle| at_rest(handle, deadline))).await?;
        let differences = difference::all(&seen[0], &seen[1]);
        if differences.iter().all(|(_, why)| why.is_some()) || Instant::now() >= deadline {
            break differences;
        }
    };
    for handle in &handles {
        handle.delete().await?;
    }
    try_join_all(handles.iter().map(gone)).await?;
    Ok(Outcome::Compared(differences))
}

async fn create(node: &Node, drawn: &Value) -> Result<Result<PodHandle, String>> {
    let object: Pod = serde_json::from_value(drawn.clone())?;
    match node.api::<Pod>().create(&PostParams::default(), &object).await {
        Ok(created) => Ok(Ok(PodHandle::of(node, &created)?)),
        Err(kube::Error::Api(status)) => Ok(Err(status.message.clone())),
        Err(error) => Err(error).context("create a drawn pod"),
    }
}

/// What is to be seen of the pod once it has not changed for a while, or when time is up.
async fn at_rest(handle: &PodHandle, deadline: Instant) -> Result<Value> {
    let mut since = Instant::now();
    let mut last = Value::Null;
    loop {
        let pod = handle.get().await?;
        let status = normal::status(serde_json::to_value(&pod.status)?);
        if status != last {
            (last, since) = (status, Instant::now());
        }
        let calm = since.elapsed();
        let wanted = if is_settled(&last) { AT_REST } else { STUCK };
        if calm >= wanted || Instant::now() >= deadline {
            return observe::pod(&handle.node, handle, &pod).await;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Whether all its containers are in a state to stay in, or to come back to again and again.
fn is_settled(status: &Value) -> bool {
    if matches!(status["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return true;
    }
    let containers = ["initContainerStatuses", "containerStatuses"].map(|list| status[list].as_object());
    let mut all = containers.into_iter().flatten().flat_map(|list| list.values()).peekable();
    all.peek().is_some()
        && all.all(|one| {
            let waiting = one["state"]["waiting"]["reason"].as_str();
            !matches!(waiting, Some("ContainerCreating" | "PodInitializing"))
                && (waiting == Some("CrashLoopBackOff")) == (one["restartCount"] == "some")
        })
}

async fn gone(handle: &PodHandle) -> Result<()> {
    poll::until(format!("pod {} gone", handle.name), GONE_WITHIN, async || {
        Ok(match handle.node.api::<Pod>().get_opt(&handle.name).await? {
            None => Look::Done(()),
            Some(pod) => Look::NotYet(serde_json::to_string(&pod.status)?),
        })
    })
    .await
}
