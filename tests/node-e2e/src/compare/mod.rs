//! Drawn pods on Ferrolet and on upstream's kubelet, and where the two differ.
//!
//! `draft` draws a pod from a seed, the same for both nodes, and what is done to it while it
//! runs. Whenever what is to be seen of it has come to rest, `observe` takes it all: the status
//! at the API server, what was asked of the runtime and what the runtime made of it, what the
//! containers see themselves (`report`), the events; once it is deleted, how it ended. `normal`
//! takes out what no two nodes have in common, and `difference` tells where they differ other
//! than is known and wanted. To look into one, `SEED=… PODS=1`.

mod difference;
mod draft;
mod normal;
mod observe;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::{try_join, try_join_all};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{Lab, Node, PodHandle};
use crate::poll::{self, Look};
use crate::provision::{self, Containerd};
use crate::stack::{Agent, Builder};
use difference::Difference;
use draft::Act;

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

/// Where in the life of a pod it is looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Made,
    /// Something of it was changed.
    Changed,
    Deleted,
}

/// What a seed draws: the pod as it is created, and what is done to it then.
pub fn draw(seed: u64) -> Value {
    let drawn = draft::draw(seed, NODE);
    let acts: Vec<Value> = drawn.acts.iter().map(|act| json!({ "of": act.subresource, "patch": act.patch })).collect();
    json!({ "pod": drawn.pod, "acts": acts })
}

/// The few that CI runs, among them most of what can be drawn.
const QUICK: [u64; 16] = [0, 1, 7, 13, 14, 17, 23, 30, 31, 32, 37, 41, 52, 65, 82, 98];

/// Compares those few and counts as tests do; whether none differs.
pub async fn quick() -> Result<bool> {
    if let Some(reason) = missing() {
        println!("skip            compare  {reason}");
        println!("0 passed, 0 failed, {} skipped", QUICK.len());
        return Ok(true);
    }
    let tally = on_both(QUICK).await?;
    tally.sum_up();
    println!("{} passed, {} failed, 0 skipped", tally.same, tally.different + tally.refused);
    Ok(tally.different + tally.refused == 0)
}

/// What keeps the two from being run here.
fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    ["control-plane", "kubelet"].into_iter().find_map(|name| provision::program(name).err()).map(|it| it.to_string())
}

/// Compares the pods of these seeds and tells; whether there was no difference.
pub async fn run(seeds: impl IntoIterator<Item = u64>) -> Result<bool> {
    let tally = on_both(seeds).await?;
    tally.sum_up();
    Ok(tally.different == 0)
}

async fn on_both(seeds: impl IntoIterator<Item = u64>) -> Result<Tally> {
    let labs = [Agent::Ferrolet, Agent::Kubelet].map(|agent| Lab::new(agent, Containerd::Current));
    let result = compare(&labs, seeds).await;
    for lab in &labs {
        lab.clear().await?;
    }
    result
}

async fn compare(labs: &[Lab; 2], seeds: impl IntoIterator<Item = u64>) -> Result<Tally> {
    let [ferrolet, kubelet] = labs;
    let (ferrolet, kubelet) = try_join(node(ferrolet), node(kubelet)).await?;
    let mut tally = Tally::default();
    let mut ended =
        stream::iter(seeds).map(async |seed| (seed, twice(seed, &ferrolet, &kubelet).await)).buffer_unordered(AT_ONCE);
    while let Some((seed, outcome)) = ended.next().await {
        tally.tell(seed, outcome.with_context(|| format!("the pod of seed {seed}"))?);
    }
    Ok(tally)
}

/// With all that drawn pods refer to.
async fn node(lab: &Lab) -> Result<Node> {
    // Alpha, and so off where nobody asks for it.
    let gates = json!({ "ContainerStopSignals": true });
    let ask = |stack: Builder| stack.node(NODE).config("featureGates", gates).api_server_gate("ContainerStopSignals");
    let stack = lab.node(ask).await?.shared_stack();
    let node = Node::on(stack, NAMESPACE).await?;
    let data =
        json!({ "plain": "value", "multi.line": "one\ntwo\n", "UPPER_CASE": "X", "1-not-a-name": "n", "zero": "" });
    node.create::<ConfigMap>(json!({ "metadata": { "name": draft::CONFIG_MAP }, "data": data })).await?;
    node.create::<Secret>(json!({ "metadata": { "name": draft::SECRET }, "stringData": data })).await?;
    node.create::<ServiceAccount>(json!({ "metadata": { "name": draft::ACCOUNT } })).await?;
    node.create::<Service>(json!({
        "metadata": { "name": draft::SERVICE },
        "spec": { "clusterIP": "10.96.77.7", "ports": [
            { "name": "http", "port": 80 }, { "name": "names", "port": 53, "protocol": "UDP" },
        ] },
    }))
    .await?;
    let classes: Api<RuntimeClass> = Api::all(node.client());
    for class in draft::runtime_classes() {
        classes.create(&PostParams::default(), &serde_json::from_value(class)?).await?;
    }
    // Agents learn of a service by a watch; a pod that is faster goes without its variables.
    tokio::time::sleep(Duration::from_secs(2)).await;
    Ok(node)
}

type Differences = Vec<(Difference, Option<&'static str>)>;

enum Outcome {
    Refused(String),
    Compared(Differences),
    /// The same, but only the second time.
    AtLast(Differences),
}

fn is_same(differences: &Differences) -> bool {
    differences.iter().all(|(_, why)| why.is_some())
}

#[derive(Default)]
struct Tally {
    same: usize,
    different: usize,
    refused: usize,
    /// By kind, to see what is one and the same difference.
    kinds: BTreeMap<String, Vec<u64>>,
    /// Where a known one was met, by its reason.
    known: BTreeMap<&'static str, Vec<u64>>,
}

impl Tally {
    fn tell(&mut self, seed: u64, outcome: Outcome) {
        match outcome {
            Outcome::Refused(why) => {
                self.refused += 1;
                println!("refused  {seed}  {why}");
            }
            Outcome::AtLast(before) => {
                self.same += 1;
                let kinds = before.iter().filter(|(_, why)| why.is_none()).map(|(one, _)| one.kind());
                let kinds: BTreeSet<String> = kinds.collect();
                println!("same     {seed}, but not the first time: {kinds:?}");
            }
            Outcome::Compared(all) => {
                let is_new = !is_same(&all);
                *if is_new { &mut self.different } else { &mut self.same } += 1;
                println!("{} {seed}", if is_new { "DIFFERS " } else { "same    " });
                for (one, why) in all {
                    if let Some(why) = why {
                        self.known.entry(why).or_default().push(seed);
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
        for (why, seeds) in &self.known {
            println!("known {:6} times, first in {}: {why}", seeds.len(), seeds[0]);
        }
        for (kind, seeds) in &self.kinds {
            println!("NEW   {:6} times, first in {}: {kind}", seeds.len(), seeds[0]);
        }
        println!("{} pods are the same, {} differ, {} were refused", self.same, self.different, self.refused);
    }
}

/// A pod that differs has a second try: on a busy machine chance has its part in what happens,
/// such as when a probe meets the end of its container.
async fn twice(seed: u64, ferrolet: &Node, kubelet: &Node) -> Result<Outcome> {
    let before = match one(seed, ferrolet, kubelet).await? {
        Outcome::Compared(before) if !is_same(&before) => before,
        outcome => return Ok(outcome),
    };
    Ok(match one(seed, ferrolet, kubelet).await? {
        Outcome::Compared(after) if is_same(&after) => Outcome::AtLast(before),
        outcome => outcome,
    })
}

/// One pod on both nodes, from its creation to its end.
async fn one(seed: u64, ferrolet: &Node, kubelet: &Node) -> Result<Outcome> {
    let drawn = draft::draw(seed, NODE);
    let mut handles = Vec::new();
    for node in [ferrolet, kubelet] {
        match create(node, &drawn.pod).await? {
            Ok(handle) => handles.push(handle),
            Err(refusal) => {
                ensure!(handles.is_empty(), "only one API server refuses: {refusal}");
                return Ok(Outcome::Refused(refusal));
            }
        }
    }
    let mut differences = compare_at_rest(&handles, Stage::Made).await?;
    // What follows from a difference tells nothing new.
    for act in &drawn.acts {
        if is_same(&differences) && change(&handles, act).await? {
            differences.extend(compare_at_rest(&handles, Stage::Changed).await?);
        }
    }
    for handle in &handles {
        handle.delete().await?;
    }
    if is_same(&differences) {
        differences.extend(compare_at_rest(&handles, Stage::Deleted).await?);
    }
    try_join_all(handles.iter().map(let_go)).await?;
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

/// Whether the API servers accept it.
async fn change(handles: &[PodHandle], act: &Act) -> Result<bool> {
    let mut accepted = Vec::new();
    for handle in handles {
        let (pods, params) = (handle.node.api::<Pod>(), PatchParams::default());
        let patch = Patch::Strategic(&act.patch);
        let patched = match act.subresource {
            Some(subresource) => pods.patch_subresource(subresource, &handle.name, &params, &patch).await,
            None => pods.patch(&handle.name, &params, &patch).await,
        };
        accepted.push(match patched {
            Ok(_) => true,
            Err(kube::Error::Api(_)) => false,
            Err(error) => return Err(error).context("change a drawn pod"),
        });
    }
    ensure!(accepted[0] == accepted[1], "only one API server refuses the change {act:?}");
    Ok(accepted[0])
}

/// Where the two differ once both have come to rest, or when time is up.
async fn compare_at_rest(handles: &[PodHandle], stage: Stage) -> Result<Differences> {
    let deadline = Instant::now() + WITHIN;
    loop {
        let seen = try_join_all(handles.iter().map(|handle| at_rest(handle, stage, deadline))).await?;
        let differences = difference::all(stage, &seen[0], &seen[1]);
        if is_same(&differences) || Instant::now() >= deadline {
            return Ok(differences);
        }
    }
}

/// What is to be seen of the pod once it has not changed for a while, or when time is up.
async fn at_rest(handle: &PodHandle, stage: Stage, deadline: Instant) -> Result<Value> {
    let mut since = Instant::now();
    let mut last = Value::Null;
    loop {
        let pod = handle.get().await?;
        let status = normal::status(serde_json::to_value(&pod.status)?);
        if status != last {
            (last, since) = (status, Instant::now());
        }
        let calm = since.elapsed();
        let wanted = if is_settled(&pod, &last, stage) { AT_REST } else { STUCK };
        if calm >= wanted || Instant::now() >= deadline {
            return match stage {
                Stage::Deleted => observe::end(handle, &pod).await,
                Stage::Made | Stage::Changed => observe::pod(handle, &pod).await,
            };
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Whether the agent knows of the last change, and all containers are in a state to stay in, or
/// to come back to again and again.
fn is_settled(pod: &Pod, status: &Value, stage: Stage) -> bool {
    let has_ended = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
    let lists = normal::CONTAINERS.map(|list| status[list].as_object());
    let all: Vec<&Value> = lists.into_iter().flatten().flat_map(|list| list.values()).collect();
    if has_ended || stage == Stage::Deleted {
        return has_ended && all.iter().all(|one| one["state"]["running"].is_null());
    }
    let deadline = pod.spec.as_ref().is_some_and(|spec| spec.active_deadline_seconds.is_some());
    let is_known = status["observedGeneration"].as_i64() == pod.metadata.generation;
    !deadline
        && is_known
        && !all.is_empty()
        && all.iter().all(|one| {
            let waiting = one["state"]["waiting"]["reason"].as_str();
            !matches!(waiting, Some("ContainerCreating" | "PodInitializing"))
                && (waiting == Some("CrashLoopBackOff")) == (one["restartCount"] == "some")
        })
}

/// Nothing keeps the deleted pod any more.
async fn let_go(handle: &PodHandle) -> Result<()> {
    let free = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    handle.node.api::<Pod>().patch(&handle.name, &PatchParams::default(), &free).await?;
    poll::until(format!("pod {} gone", handle.name), GONE_WITHIN, async || {
        Ok(match handle.node.api::<Pod>().get_opt(&handle.name).await? {
            None => Look::Done(()),
            Some(pod) => Look::NotYet(serde_json::to_string(&pod.status)?),
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields of a value, with what is in them where that is a word of the API.
    fn features(value: &Value, path: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                fields.iter().for_each(|(name, value)| features(value, &format!("{path}.{name}"), found));
            }
            Value::Array(items) => items.iter().for_each(|item| features(item, path, found)),
            Value::String(word) if word.chars().all(char::is_alphabetic) => {
                found.insert(format!("{path}={word}"));
            }
            _ => {
                found.insert(path.to_owned());
            }
        }
    }

    fn drawn(seeds: impl IntoIterator<Item = u64>) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        seeds.into_iter().for_each(|seed| features(&draw(seed), "", &mut found));
        found
    }

    #[test]
    fn the_quick_ones_have_most_of_what_can_be_drawn() {
        let (quick, all) = (drawn(QUICK), drawn(0..600));
        let missing: Vec<&String> = all.difference(&quick).collect();
        let share = 100 * quick.len() / all.len();
        assert!(share >= 55, "{share} %; choose seeds that have more of these:\n{missing:#?}");
    }
}
