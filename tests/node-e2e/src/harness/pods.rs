//! Pods of the tests: building them, and holding on to one that was created.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use ferrolet::cri::ContainerId;
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};

use super::{Expect, Node};
use crate::poll::{self, Look};
use crate::provision::BUSYBOX;

/// A pod of one container named `main`, from the busybox image.
pub fn pod(name: &str) -> PodBuilder {
    PodBuilder(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            // A shell as process 1 does not react to SIGTERM, and most stories are not about that.
            "terminationGracePeriodSeconds": 1,
            "containers": [{ "name": "main", "image": BUSYBOX, "command": ["sleep", "1000000"] }],
        },
    }))
}

/// A container's id as the runtime knows it; the API has it behind the runtime's name.
pub fn without_scheme(id: &str) -> &str {
    id.split_once("://").map_or(id, |(_, id)| id)
}

#[derive(Clone)]
pub struct PodBuilder(Value);

impl PodBuilder {
    /// Runs a shell script in place of sleeping for ever.
    pub fn script(self, script: &str) -> Self {
        self.container(json!({ "command": ["sh", "-c", script] }))
    }

    pub fn restart(self, policy: &str) -> Self {
        self.spec(json!({ "restartPolicy": policy }))
    }

    /// Sets fields of the container.
    pub fn container(mut self, fields: Value) -> Self {
        merge(&mut self.0["spec"]["containers"][0], fields);
        self
    }

    /// Adds a second, third, ... container.
    pub fn and_container(mut self, name: &str, script: &str, fields: Value) -> Self {
        let mut container = json!({ "name": name, "image": BUSYBOX, "command": ["sh", "-c", script] });
        merge(&mut container, fields);
        self.0["spec"]["containers"].as_array_mut().expect("built as a list").push(container);
        self
    }

    /// Mounts a volume in the container. `source` is the volume without its name.
    pub fn volume(mut self, name: &str, mount_path: &str, mut source: Value) -> Self {
        source["name"] = name.into();
        push(&mut self.0["spec"]["volumes"], source);
        let mount = json!({ "name": name, "mountPath": mount_path });
        push(&mut self.0["spec"]["containers"][0]["volumeMounts"], mount);
        self
    }

    /// Sets fields of the spec.
    pub fn spec(mut self, fields: Value) -> Self {
        merge(&mut self.0["spec"], fields);
        self
    }

    pub fn metadata(mut self, fields: Value) -> Self {
        merge(&mut self.0["metadata"], fields);
        self
    }

    /// Its manifest, as for the static-pod directory. JSON is YAML too.
    pub fn manifest(&self) -> String {
        self.0.to_string()
    }

    pub fn object(&self) -> Result<Pod> {
        serde_json::from_value(self.0.clone()).context("read the pod of the test")
    }
}

fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(items) => items.push(item),
        absent => *absent = json!([item]),
    }
}

/// Objects are merged field by field; anything else is replaced.
pub(crate) fn merge(into: &mut Value, fields: Value) {
    match (into, fields) {
        (Value::Object(into), Value::Object(fields)) => {
            for (name, value) in fields {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, fields) => *into = fields,
    }
}

/// A pod that is, or was, at the API server.
#[derive(Clone)]
pub struct PodHandle {
    pub node: Node,
    pub name: String,
    pub uid: String,
}

impl PodHandle {
    pub(super) async fn create(node: &Node, builder: PodBuilder) -> Result<PodHandle> {
        let object = builder.object()?;
        let created = node.api::<Pod>().create(&PostParams::default(), &object).await;
        let created = created.context("create the pod")?;
        PodHandle::of(node, &created)
    }

    /// A pod that something else created.
    pub fn of(node: &Node, pod: &Pod) -> Result<PodHandle> {
        let name = pod.metadata.name.clone().context("a pod has a name")?;
        let uid = pod.metadata.uid.clone().context("a pod has a UID")?;
        Ok(PodHandle { node: node.clone(), name, uid })
    }

    /// What should become of it; ends in `.await?`.
    pub fn expect(&self) -> Expect<'_> {
        Expect::of(self)
    }

    pub async fn get(&self) -> Result<Pod> {
        self.api().get(&self.name).await.with_context(|| format!("get pod {}", self.name))
    }

    /// Asks for its deletion with the grace period of its spec.
    pub async fn delete(&self) -> Result<()> {
        let deleted = self.api().delete(&self.name, &DeleteParams::default()).await;
        deleted.map(drop).with_context(|| format!("delete pod {}", self.name))
    }

    /// Waits until the object is gone, or another pod has taken the name.
    pub async fn expect_gone(&self) -> Result<()> {
        poll::until(format!("pod {} gone", self.name), super::expect::WITHIN, async || {
            Ok(match self.api().get_opt(&self.name).await? {
                None => Look::Done(()),
                Some(pod) if pod.metadata.uid.as_deref() != Some(&self.uid) => Look::Done(()),
                Some(pod) => Look::NotYet(super::expect::summary(&pod)),
            })
        })
        .await
    }

    /// Waits for an event with this reason and returns its message.
    pub async fn expect_event(&self, reason: &str) -> Result<String> {
        let goal = format!("event {reason} of pod {}", self.name);
        poll::until(goal, super::expect::WITHIN, async || {
            let events = self.events().await?;
            let found = events.iter().find(|event| event.reason.as_deref() == Some(reason));
            Ok(match found {
                Some(event) => Look::Done(event.message.clone().unwrap_or_default()),
                None => Look::NotYet(format!("events {}", reasons(&events).join(", "))),
            })
        })
        .await
    }

    /// There may be others of this reason: of a new pod, the API server gives a node no token before all
    /// parts of the server have heard of it.
    pub async fn expect_failed_mount(&self, words: &str) -> Result<()> {
        poll::until(format!("event of pod {} that says {words:?}", self.name), super::expect::WITHIN, async || {
            let mut told: Vec<_> = self.events().await?.into_iter().filter_map(|event| event.message).collect();
            told.retain(|message| message.contains("MountVolume.SetUp"));
            let is_there = told.iter().any(|message| message.contains(words));
            Ok(if is_there { Look::Done(()) } else { Look::NotYet(told.join("\n")) })
        })
        .await
    }

    pub async fn events(&self) -> Result<Vec<Event>> {
        let fields = format!("involvedObject.name={}", self.name);
        let list = self.node.api::<Event>().list(&ListParams::default().fields(&fields)).await;
        Ok(list.context("list events")?.items)
    }

    /// The directory of its logs on the node, as seen from here.
    pub fn log_directory(&self) -> PathBuf {
        let directory = format!("{}_{}_{}", self.node.namespace(), self.name, self.uid);
        self.node.stack().on_node(&format!("/var/log/pods/{directory}"))
    }

    /// What instance `attempt` of a container wrote, without the stamps of the log format.
    pub fn log_of(&self, container: &str, attempt: u32) -> Result<String> {
        let path = self.log_directory().join(container).join(format!("{attempt}.log"));
        let raw =
            std::fs::read_to_string(&path).with_context(|| format!("read log {attempt} of container {container}"))?;
        let text = raw.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
        Ok(text.flat_map(|line| [line, "\n"]).collect())
    }

    /// Waits until the first instance of `main` has written this.
    pub async fn expect_log(&self, text: &str) -> Result<()> {
        self.expect_log_of("main", 0, text).await
    }

    pub async fn expect_log_of(&self, container: &str, attempt: u32, text: &str) -> Result<()> {
        let goal = format!("{text:?} in log {attempt} of {container} of pod {}", self.name);
        poll::until(goal, super::expect::WITHIN, async || {
            Ok(match self.log_of(container, attempt) {
                Ok(log) if log.contains(text) => Look::Done(()),
                Ok(log) => Look::NotYet(format!("{log:?}")),
                Err(error) => Look::NotYet(format!("{error:#}")),
            })
        })
        .await
    }

    /// What the first instance of `main` wrote.
    pub fn log(&self) -> Result<String> {
        self.log_of("main", 0)
    }

    /// Waits for its end, whatever the exit code, and returns what it wrote.
    pub async fn output(&self) -> Result<String> {
        self.expect().ended().await?;
        self.log()
    }

    /// Runs a shell command in the container `main`.
    pub async fn exec(&self, script: &str) -> Result<String> {
        self.exec_in("main", script).await
    }

    pub async fn exec_in(&self, container: &str, script: &str) -> Result<String> {
        // It may run for a moment before the API knows.
        let id =
            poll::until(format!("the container of {container} told by the API"), super::expect::WITHIN, async || {
                let pod = self.get().await?;
                let id = container_status(&pod, container).and_then(|status| status.container_id.clone());
                Ok(id.map_or_else(|| Look::NotYet("no container".to_owned()), Look::Done))
            });
        let id = id.await?;
        self.node.exec(&ContainerId::new(without_scheme(&id)), script).await
    }

    /// The container's instance as the API tells it: its id and how often it was restarted.
    pub async fn instance(&self) -> Result<(String, i32)> {
        let pod = self.get().await?;
        let status = container_status(&pod, "main").context("main has no status yet")?;
        let id = status.container_id.clone().unwrap_or_default();
        ensure!(!id.is_empty(), "main has no container yet");
        Ok((id, status.restart_count))
    }

    /// What a node's summary of statistics has of the pod.
    pub fn in_summary<'a>(&self, summary: &'a Value) -> Option<&'a Value> {
        summary["pods"].as_array()?.iter().find(|it| it["podRef"]["uid"] == *self.uid)
    }

    fn api(&self) -> Api<Pod> {
        self.node.api()
    }
}

pub(super) fn container_status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let mut all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    all.find(|status| status.name == name)
}

/// Fails unless each of these is a line of the text.
pub fn expect_lines(text: &str, lines: &[&str]) -> Result<()> {
    let present: Vec<&str> = text.lines().collect();
    let missing: Vec<_> = lines.iter().filter(|line| !present.contains(line)).collect();
    ensure!(missing.is_empty(), "missing {missing:?} in\n{text}");
    Ok(())
}

fn reasons(events: &[Event]) -> Vec<&str> {
    events.iter().filter_map(|event| event.reason.as_deref()).collect()
}
