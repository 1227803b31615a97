//! All there is to be seen of a pod on one node, as one JSON value that holds nothing of the
//! moment or of the node.

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ferrolet::cri::{Runtime, Scope};
use ferrolet::pod::PodUid;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};

use super::normal::{self, Names};
use super::report;
use crate::harness::{Node, PodHandle};

/// How a deleted pod ended: of its containers nothing is left.
pub async fn end(handle: &PodHandle, pod: &Pod) -> Result<Value> {
    let mut names = Names::of_pod(pod);
    let spec = pod.spec.as_ref().context("a pod has a spec")?;
    spec.containers.iter().for_each(|container| names.container(&container.name));
    let mut all = json!({ "status": normal::status(serde_json::to_value(&pod.status)?) });
    names.forget_in(&mut all);
    all["events"] = events(handle, &names).await?;
    Ok(all)
}

/// What came of a pod, as of now.
pub async fn pod(handle: &PodHandle, pod: &Pod) -> Result<Value> {
    let node = &handle.node;
    let mut names = Names::of_pod(pod);
    let status = normal::status(serde_json::to_value(&pod.status)?);
    let runtime = node.runtime()?;
    let scope = Scope::Pod(PodUid::new(&handle.uid));
    let mut sandboxes = runtime.list_sandboxes(&scope).await?;
    // Only the newest: a pod that failed to start may have had more of them, as many as it had time for.
    sandboxes.sort_by_key(|sandbox| sandbox.attempt);
    let mut containers = runtime.list_containers(&scope).await?;
    containers.sort_by_key(|container| container.attempt);

    let mut seen = Map::new();
    let mut made = Map::new();
    if let Some(sandbox) = sandboxes.last() {
        let sandbox = in_runtime(node, sandbox.id.as_str()).await?.unwrap_or_default();
        names.users(&sandbox);
        made.insert("(sandbox)".to_owned(), sandbox);
    }
    for container in &containers {
        // The newest of each name replaces those before it.
        if let Some(one) = in_runtime(node, container.id.as_str()).await? {
            made.insert(container.name.clone(), one);
        }
        names.container(&container.name);
        if let Some(said) = said(handle, &container.name)? {
            seen.insert(container.name.clone(), said);
        }
    }
    let events = events(handle, &names).await?;
    let mut all = json!({ "status": status, "made": made, "seen": seen });
    names.forget_in(&mut all);
    all["events"] = events;
    Ok(normal::whole(all))
}

/// What the agent asked of the runtime, and what the runtime made of it; None if it is gone.
async fn in_runtime(node: &Node, id: &str) -> Result<Option<Value>> {
    let text = match node.stack().run(&["ctr", "--namespace=k8s.io", "containers", "info", id]).await {
        Err(error) if error.to_string().contains("not found") => return Ok(None),
        text => text?,
    };
    let info: Value = serde_json::from_str(&text).context("read what containerd has of a container")?;
    let mut asked = Value::Null;
    for extension in info["Extensions"].as_object().into_iter().flat_map(Map::values) {
        let bytes = STANDARD.decode(extension["value"].as_str().unwrap_or_default())?;
        if let Ok(metadata) = serde_json::from_slice::<Value>(&bytes) {
            asked = metadata["Metadata"]["Config"].clone();
        }
    }
    Ok(Some(json!({ "asked": asked, "spec": info["Spec"] })))
}

/// What the last instance of the container wrote that has come to the end of its report.
fn said(handle: &PodHandle, container: &str) -> Result<Option<Value>> {
    let Ok(entries) = std::fs::read_dir(handle.log_directory().join(container)) else { return Ok(None) };
    let mut attempts: Vec<u32> =
        entries.flatten().filter_map(|entry| entry.path().file_stem()?.to_str()?.parse().ok()).collect();
    attempts.sort_unstable();
    let logs = attempts.iter().rev().map(|&attempt| handle.log_of(container, attempt));
    let whole = logs.flatten().find(|log| log.contains("[end]"));
    Ok(whole.map(|log| report::read(&log)))
}

/// Each event once, however often it was told. Those of a first try are of another pod of the same name.
async fn events(handle: &PodHandle, names: &Names) -> Result<Value> {
    let mut told = Map::new();
    let all = handle.events().await?;
    for event in all.iter().filter(|event| event.involved_object.uid.as_ref() == Some(&handle.uid)) {
        let field = event.involved_object.field_path.as_deref().unwrap_or_default();
        let kind = event.type_.as_deref().unwrap_or_default();
        let reason = event.reason.as_deref().unwrap_or_default();
        let message = normal::message(&names.forget(event.message.as_deref().unwrap_or_default()));
        told.insert(format!("{kind} {reason} {field}: {message}"), json!("told"));
    }
    Ok(told.into())
}
