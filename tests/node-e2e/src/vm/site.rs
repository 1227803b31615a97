//! What a case gets: the machine, the cluster beside it, and a namespace there.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::Api;
use kube::api::ListParams;
use serde_json::json;

use super::guest::Guest;
use super::{cluster, machine, payload};
use crate::harness::{Node, PodBuilder, PodHandle, is_ready, ready};
use crate::poll::{self, Look};
use crate::provision;
use crate::stack::{Agent, Stack};

/// The machine's own name, which it gives its node.
pub const NODE: &str = "node-vm";

/// Everything on an emulated machine takes its time.
pub const WITHIN: Duration = Duration::from_secs(180);

#[derive(Clone)]
pub struct Site {
    pub agent: Agent,
    pub stack: Rc<Stack>,
    pub guest: Guest,
    /// The namespace of the case.
    pub api: Node,
}

/// A world with a control plane, and room for a machine; one for each number.
pub async fn world(agent: Agent, number: usize) -> Result<Stack> {
    // Between two agents an emulated dpkg takes half a minute, and that is not what cases are about.
    let patient = "--node-monitor-grace-period=3m";
    let builder = Stack::builder().name(&format!("vm-{number}")).node(NODE).agent(agent).controller_argument(patient);
    builder.without_agent().without_containerd().start().await
}

/// A machine in it, and the cluster ready for it to join.
pub async fn machine(stack: &Stack) -> Result<Guest> {
    let files = provision::machine()?;
    let payload = payload::build(&stack.directory()).await.context("build the machine's second disk")?;
    let booted = async {
        let guest = machine::boot(stack, &files, &payload).await?;
        guest.expect("systemctl is-active containerd", "containerd serves", |it| it.trim() == "active").await?;
        anyhow::Ok(guest)
    };
    let (guest, ()) = futures::future::try_join(booted, cluster::prepare(stack)).await?;
    Ok(guest)
}

impl Site {
    /// Waits until the Node says so.
    pub async fn expect_ready(&self) -> Result<NodeObject> {
        let nodes: Api<NodeObject> = Api::all(self.api.client());
        poll::until(format!("node {NODE} Ready"), WITHIN, async || {
            Ok(match nodes.get_opt(NODE).await? {
                Some(node) if ready(&node) == Some("True") => Look::Done(node),
                Some(node) => {
                    let conditions = node.status.and_then(|status| status.conditions);
                    Look::NotYet(format!("conditions {}", serde_json::to_string(&conditions)?))
                }
                None => Look::NotYet("not registered".to_owned()),
            })
        })
        .await
    }

    /// A Deployment of one pod, which is its name's label, once all replicas are Ready.
    pub async fn deploy(&self, name: &str, replicas: usize, pod: PodBuilder) -> Result<Vec<PodHandle>> {
        let labels = json!({ "app": name });
        let pod = serde_json::to_value(pod.metadata(json!({ "labels": labels })).object()?)?;
        let template = json!({ "metadata": { "labels": labels }, "spec": pod["spec"] });
        let spec = json!({ "replicas": replicas, "selector": { "matchLabels": labels }, "template": template });
        self.api.create::<Deployment>(json!({ "metadata": { "name": name }, "spec": spec })).await?;
        self.expect_replicas(name, replicas).await
    }

    pub async fn expect_replicas(&self, name: &str, replicas: usize) -> Result<Vec<PodHandle>> {
        let wanted = ListParams::default().labels(&format!("app={name}"));
        poll::until(format!("{replicas} Ready pods of {name}"), WITHIN, async || {
            let pods = self.api.api::<Pod>().list(&wanted).await?.items;
            let ready: Vec<_> = pods.iter().filter(|pod| is_ready(pod) && !is_leaving(pod)).collect();
            Ok(match ready.len() == replicas {
                true => Look::Done(ready.into_iter().map(|pod| PodHandle::of(&self.api, pod)).collect::<Result<_>>()?),
                false => Look::NotYet(format!("{} of {}: {}", ready.len(), pods.len(), told(&pods))),
            })
        })
        .await
    }

    /// Has upstream's kube-proxy serve on the machine.
    pub async fn run_kube_proxy(&self) -> Result<()> {
        cluster::add_kube_proxy(&self.stack).await?;
        let pods: Api<Pod> = Api::namespaced(self.api.client(), "kube-system");
        let wanted = ListParams::default().labels("k8s-app=kube-proxy");
        poll::until("kube-proxy Ready", WITHIN, async || {
            let pods = pods.list(&wanted).await?.items;
            Ok(match pods.iter().any(|pod| is_ready(pod) && !is_leaving(pod)) {
                true => Look::Done(()),
                false => Look::NotYet(told(&pods)),
            })
        })
        .await
    }

    /// The containers that run, of which there have to be some, each with the number of its process:
    /// a restart changes both.
    pub async fn running(&self) -> Result<Vec<String>> {
        let tasks = self.tasks().await?;
        ensure!(!tasks.is_empty(), "no container runs");
        Ok(tasks)
    }

    /// The same where there may be none.
    pub async fn tasks(&self) -> Result<Vec<String>> {
        let listed = self.guest.run("ctr --namespace=k8s.io tasks ls").await?;
        let mut lines = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        let head = lines.next().unwrap_or_default();
        ensure!(head == "TASK PID STATUS", "not a list of tasks: {listed}");
        let mut tasks: Vec<String> = lines.collect();
        tasks.sort();
        Ok(tasks)
    }

    /// Waits for the end of another boot.
    pub async fn reboot(&self) -> Result<()> {
        let before = self.guest.boot_id().await?;
        // Answered before it happens, or never.
        let _ = self.guest.told("systemctl reboot", b"").await;
        self.guest.disconnect(&self.stack).await?;
        machine::await_up(&self.stack, &self.guest, &before).await
    }
}

fn is_leaving(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn told(pods: &[Pod]) -> String {
    serde_json::to_string(&pods.iter().map(|pod| &pod.status).collect::<Vec<_>>()).unwrap_or_default()
}
