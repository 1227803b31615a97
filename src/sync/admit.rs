//! Asking whether the node takes a pod, and what the answer means for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use tokio::time::timeout;
use tracing::debug;

use super::Context;
use super::wish::Desired;
use crate::admission::{Allocation, Answer, NodeFacts};
use crate::events::EventType;
use crate::metrics;
use crate::node::NodeView;
use crate::pleg::PodRuntime;
use crate::pod::PodUid;
use crate::status::{Cause, Verdict};

/// For the Node from the API; without it, what is known of it has to do.
const NODE_DEADLINE: Duration = Duration::from_secs(10);
const REJECTED: &str = "Pod was rejected: ";

/// The verdict on a pod that is not taken. Waits until the node is known, and until those
/// have ended that have to end for this pod.
pub(super) async fn admit(context: &Context, uid: &PodUid, wish: &Desired, runtime: &PodRuntime) -> Option<Verdict> {
    let started = wish.pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
    if !runtime.is_empty() || (started && !wish.source.is_static()) {
        // Taken in an earlier life: whatever has changed since, it is not judged again.
        context.admission.take_over(uid);
        return None;
    }
    let mut node = context.node.clone();
    context.pleg.everything_listed().await;
    if node.wait_for(Option::is_some).await.is_err() {
        // Whoever knows is gone: the agent stops.
        return std::future::pending().await;
    }
    let mut freed = context.admission.freed();
    let mut fresh = None;
    let refusal = loop {
        match ask(context, uid, fresh.as_ref()) {
            Answer::Admitted => {
                // What a container runs on must not be given away after a crash.
                context.topology.kept().await;
                return None;
            }
            Answer::Refused(refusal) => break refusal,
            Answer::NeedsFreshNode => fresh = Some(read_node(context).await),
            Answer::AwaitsOthers => freed.changed().await,
        }
    };
    metrics::pods::REJECTIONS.add([reason_label(&refusal.reason)]);
    context.recorder.pod(&wish.pod, None, EventType::Warning, &refusal.reason, refusal.message.clone());
    Some(Verdict::refused(&refusal.reason, &refusal.message))
}

/// Resources have any name, and labels a bounded number of values.
fn reason_label(reason: &str) -> &str {
    match reason.strip_prefix("OutOf") {
        Some(resource) if !matches!(resource, "cpu" | "memory" | "ephemeral-storage" | "pods") => {
            "OutOfExtendedResources"
        }
        _ => reason,
    }
}

fn ask(context: &Context, uid: &PodUid, fresh: Option<&Option<Node>>) -> Answer {
    let view = context.node.borrow().clone();
    let Some(view) = view else { return Answer::NeedsFreshNode };
    let node = fresh.and_then(Option::as_ref).unwrap_or(&view.node);
    let facts = facts(context, &view, node);
    let known = known(context);
    context.admission.ask(uid, &facts, |uid| known.contains(uid), fresh.is_some())
}

fn known(context: &Context) -> BTreeSet<PodUid> {
    context.pleg.known().into_iter().collect()
}

fn facts<'a>(context: &'a Context, view: &'a NodeView, node: &'a Node) -> NodeFacts<'a> {
    let supplemental_groups_policy =
        context.pleg.health().borrow().status.as_ref().map(|(_, status)| status.supplemental_groups_policy);
    NodeFacts { config: &context.config.admission, node, allocatable: &view.allocatable, supplemental_groups_policy }
}

/// What the pod has by now of what it wishes for; `None` while nobody knows the node.
pub(super) fn resize(context: &Context, uid: &PodUid, pod: &Arc<Pod>) -> Option<Allocation> {
    let view = context.node.borrow().clone()?;
    let known = known(context);
    Some(context.admission.resize(uid, pod, &facts(context, &view, &view.node), |uid| known.contains(uid)))
}

/// `None` where nobody tells; what is known of the node then counts.
async fn read_node(context: &Context) -> Option<Node> {
    let cluster = context.cluster.as_ref()?;
    match timeout(NODE_DEADLINE, cluster.get_node()).await {
        Ok(Ok(node)) => Some(node),
        Ok(Err(error)) => {
            debug!(%error, "cannot read the Node anew");
            None
        }
        Err(_) => None,
    }
}

/// A pod that was refused in an earlier life, as its status tells it.
pub(super) fn earlier_refusal(pod: &Pod) -> Option<Verdict> {
    let status = pod.status.as_ref()?;
    let message = status.message.clone().filter(|message| message.starts_with(REJECTED))?;
    Some(Verdict { cause: Cause::Refusal, reason: status.reason.clone()?, message })
}
