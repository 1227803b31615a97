//! Watches, for as long as it lives, that nothing which is Ready stops being so.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use anyhow::{Result, ensure};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
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
        let (of_nodes, of_pods) = (seen.clone(), seen.clone());
        let nodes = watcher(Api::<NodeObject>::all(client.clone()), watcher::Config::default()).applied_objects();
        let nodes = nodes.try_for_each(move |node| {
            let told = || serde_json::to_string(&node.status.as_ref().map(|it| &it.conditions)).unwrap_or_default();
            let is_ready = ready(&node) == Some("True");
            of_nodes.lock().expect("no holder panics").look("the node", is_ready, told);
            std::future::ready(Ok(()))
        });
        let pods = watcher(Api::<Pod>::all(client.clone()), watcher::Config::default()).applied_objects();
        let pods = pods.try_for_each(move |pod| {
            // One that somebody deleted may go, and one that is meant to end may end.
            let is_to_stay = pod.spec.as_ref().is_some_and(|spec| spec.restart_policy.as_deref() != Some("Never"));
            if is_to_stay && pod.metadata.deletion_timestamp.is_none() {
                let told = || serde_json::to_string(&pod.status).unwrap_or_default();
                let name = format!("pod {}", pod.metadata.name.as_deref().unwrap_or_default());
                of_pods.lock().expect("no holder panics").look(&name, is_ready(&pod), told);
            }
            std::future::ready(Ok(()))
        });
        let nodes = tokio::spawn(async { drop(nodes.await) });
        let pods = tokio::spawn(async { drop(pods.await) });
        Witness { seen, tasks: [nodes, pods] }
    }

    /// Fails unless it watched these, and all that was Ready stayed so.
    pub fn testify(&self, at_least: usize) -> Result<()> {
        ensure!(self.tasks.iter().all(|task| !task.is_finished()), "the watch ended");
        let seen = self.seen.lock().expect("no holder panics");
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
