//! Watches, for as long as it lives, that nothing which is Ready stops being so.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use anyhow::{Result, ensure};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

use crate::harness::{is_ready, ready};

/// Each change at the API is seen, however short: watches leave none out.
pub struct Witness {
    seen: Arc<Mutex<Seen>>,
    tasks: [JoinHandle<()>; 2],
}

#[derive(Default)]
struct Seen {
    /// What was Ready at least once.
    ready: BTreeSet<String>,
    wrong: Vec<String>,
    /// Why a watch broke off, after which it may have missed something.
    broken: Vec<String>,
}

impl Seen {
    fn look(&mut self, what: &str, is_ready: bool, told: impl FnOnce() -> String) {
        if is_ready {
            self.ready.insert(what.to_owned());
        } else if self.ready.contains(what) {
            self.wrong.push(format!("{what}: {}", told()));
        }
    }
}

impl Witness {
    /// Of all nodes and pods.
    pub fn new(client: &Client) -> Witness {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let nodes = watch(client, seen.clone(), |seen, node: NodeObject| {
            let told = || serde_json::to_string(&node.status.as_ref().map(|it| &it.conditions)).unwrap_or_default();
            seen.look("the node", ready(&node) == Some("True"), told);
        });
        let pods = watch(client, seen.clone(), |seen, pod: Pod| {
            // One that somebody deleted may go, and one that is meant to end may end.
            let is_to_stay = pod.spec.as_ref().is_some_and(|spec| spec.restart_policy.as_deref() != Some("Never"));
            if is_to_stay && pod.metadata.deletion_timestamp.is_none() {
                let told = || serde_json::to_string(&pod.status).unwrap_or_default();
                let name = format!("pod {}", pod.metadata.name.as_deref().unwrap_or_default());
                seen.look(&name, is_ready(&pod), told);
            }
        });
        Witness { seen, tasks: [nodes, pods] }
    }

    /// Fails unless it watched these, and all that was Ready stayed so.
    pub fn testify(&self, at_least: usize) -> Result<()> {
        ensure!(self.tasks.iter().all(|task| !task.is_finished()), "the watch ended");
        let seen = self.seen.lock().expect("no holder panics");
        ensure!(seen.broken.is_empty(), "the watch broke off: {}\nseen: {:?}", seen.broken.join("; "), seen.wrong);
        ensure!(seen.ready.len() >= at_least, "only these were ever Ready: {:?}", seen.ready);
        ensure!(seen.wrong.is_empty(), "stopped being Ready:\n{}", seen.wrong.join("\n"));
        Ok(())
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Tells `look` of every change of every object of a kind, and goes on after errors.
fn watch<K>(client: &Client, seen: Arc<Mutex<Seen>>, look: fn(&mut Seen, K)) -> JoinHandle<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let objects = watcher(Api::<K>::all(client.clone()), watcher::Config::default());
    let changes = objects.default_backoff().applied_objects();
    tokio::spawn(changes.for_each(move |change| {
        let mut seen = seen.lock().expect("no holder panics");
        match change {
            Ok(object) => look(&mut seen, object),
            Err(error) => seen.broken.push(format!("{error:#}")),
        }
        std::future::ready(())
    }))
}
