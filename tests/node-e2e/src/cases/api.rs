//! The node's own API: who may call, and what it shows.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::harness::{Caller, Case, Lab, Node, WITHIN, pod};
use crate::poll::{self, Look};
use crate::{own, shared};

pub const CASES: &[Case] = &[
    shared!(the_api_server_sees_the_pods).in_subset(),
    shared!(without_a_good_credential_nobody_sees_anything),
    shared!(a_service_account_needs_the_right),
    shared!(a_look_is_no_leave_to_run_something).beyond_upstream("it takes a GET for a look, whatever it begins"),
    shared!(its_health_is_told_check_by_check),
    shared!(the_configuration_in_force_is_told),
    own!(what_everybody_may_see_is_in_plain_text),
    own!(anybody_is_somebody_where_that_is_configured),
];

/// The pod of this name in a list.
fn listed<'a>(list: &'a Value, namespace: &str, name: &str) -> Option<&'a Value> {
    let is_it = |pod: &&Value| pod["metadata"]["name"] == name && pod["metadata"]["namespace"] == namespace;
    list["items"].as_array()?.iter().find(is_it)
}

async fn the_api_server_sees_the_pods(node: Node) -> Result<()> {
    let pod = node.run(pod("seen")).await?;
    pod.expect().ready().await?;
    // A pod of the API is shown as the API has it, which has to come back first.
    poll::until("the pod Running at /pods", WITHIN, async || {
        let pods = node.call_json("/pods").await?;
        ensure!(pods["kind"] == "PodList", "{pods}");
        let seen = listed(&pods, node.namespace(), "seen").context("the pod at /pods")?;
        Ok(match seen["status"]["phase"] == "Running" && seen["metadata"]["uid"] == *pod.uid {
            true => Look::Done(()),
            false => Look::NotYet(seen.to_string()),
        })
    })
    .await?;
    // Upstream shows what it has read some time ago.
    let seen = poll::until("the pod at /runningpods/", WITHIN, async || {
        let running = node.call_json("/runningpods/").await?;
        Ok(match listed(&running, node.namespace(), "seen") {
            Some(seen) if seen["spec"]["containers"][0]["name"] == "main" => Look::Done(seen.clone()),
            seen => Look::NotYet(format!("{seen:?}")),
        })
    })
    .await?;
    ensure!(seen["metadata"]["uid"] == *pod.uid, "{seen}");
    Ok(())
}

async fn without_a_good_credential_nobody_sees_anything(node: Node) -> Result<()> {
    for path in ["/pods", "/healthz", "/metrics"] {
        let answer = node.call(Caller::Nobody, path).await?;
        ensure!(answer == (401, "Unauthorized".to_owned()), "{path}: {answer:?}");
    }
    let answer = node.call(Caller::Token("made-up"), "/pods").await?;
    ensure!(answer == (401, "Unauthorized".to_owned()), "{answer:?}");
    Ok(())
}

async fn a_service_account_needs_the_right(node: Node) -> Result<()> {
    let namespace = node.namespace();
    let stranger = node.robot("stranger", &[], &[]).await?;
    let (status, text) = node.call(Caller::Token(&stranger), "/pods").await?;
    let user = format!("system:serviceaccount:{namespace}:stranger");
    let expected = format!("Forbidden (user={user}, verb=get, resource=nodes, subresource(s)=[pods proxy])");
    ensure!((status, text.trim_end()) == (403, &expected), "{status} {text:?}");

    let reader = node.robot("reader", &["get"], &["pods"]).await?;
    // The API server's authorizer may hear of the right later, and a refusal is kept for 30 s.
    poll::until("the right to see pods", WITHIN * 2, async || {
        Ok(match node.call(Caller::Token(&reader), "/pods").await? {
            (200, _) => Look::Done(()),
            other => Look::NotYet(format!("{other:?}")),
        })
    })
    .await?;
    // One right is not another.
    let (status, text) = node.call(Caller::Token(&reader), "/configz").await?;
    ensure!(status == 403 && text.contains("subresource(s)=[configz proxy]"), "{status} {text:?}");
    Ok(())
}

async fn a_look_is_no_leave_to_run_something(node: Node) -> Result<()> {
    let looker = node.robot("looker", &["get"], &["proxy"]).await?;
    poll::until("the right to look", WITHIN * 2, async || {
        Ok(match node.call(Caller::Token(&looker), "/runningpods/").await? {
            (200, _) => Look::Done(()),
            other => Look::NotYet(format!("{other:?}")),
        })
    })
    .await?;
    let (status, text) = node.call(Caller::Token(&looker), "/exec/default/pod/main?command=id&output=1").await?;
    ensure!(status == 403 && text.contains("verb=create"), "{status} {text:?}");
    Ok(())
}

async fn its_health_is_told_check_by_check(node: Node) -> Result<()> {
    let (status, text) = node.call(Caller::ApiServer, "/healthz?verbose").await?;
    ensure!(status == 200 && text.ends_with("healthz check passed\n"), "{status} {text:?}");
    for check in ["ping", "log", "syncloop"] {
        ensure!(text.contains(&format!("[+]{check} ok\n")), "{text:?}");
        let answer = node.call(Caller::ApiServer, &format!("/healthz/{check}")).await?;
        ensure!(answer == (200, "ok".to_owned()), "{check}: {answer:?}");
    }
    Ok(())
}

async fn the_configuration_in_force_is_told(node: Node) -> Result<()> {
    let configz = node.call_json("/configz").await?;
    let config = &configz["kubeletconfig"];
    ensure!(config["clusterDomain"] == "cluster.local" && config["maxPods"] == 110, "{config}");
    ensure!(config["authentication"]["anonymous"]["enabled"] == false, "{config}");
    Ok(())
}

async fn what_everybody_may_see_is_in_plain_text(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack.config("readOnlyPort", 10_255)).await?;
    node.run(pod("seen")).await?.expect().ready().await?;
    let pods: Value = serde_json::from_str(&node.http_get("http://127.0.0.1:10255/pods").await?)?;
    ensure!(listed(&pods, node.namespace(), "seen").is_some(), "{pods}");
    ensure!(node.http_get("http://127.0.0.1:10255/healthz").await? == "ok");
    // No more than that.
    ensure!(node.http_get("http://127.0.0.1:10255/runningpods/").await.is_err());
    ensure!(node.http_get("http://127.0.0.1:10255/configz").await.is_err());
    Ok(())
}

async fn anybody_is_somebody_where_that_is_configured(lab: Lab) -> Result<()> {
    let authentication = serde_json::json!({
        "anonymous": { "enabled": true },
        "webhook": { "enabled": true },
        "x509": { "clientCAFile": "/etc/kubernetes/pki/ca.crt" },
    });
    let node = lab.node(|stack| stack.config("authentication", authentication)).await?;
    let (status, text) = node.call(Caller::Nobody, "/pods").await?;
    let expected = "Forbidden (user=system:anonymous, verb=get, resource=nodes, subresource(s)=[pods proxy])";
    ensure!((status, text.trim_end()) == (403, expected), "{status} {text:?}");
    // A bad credential is not none.
    let (status, _) = node.call(Caller::Token("made-up"), "/pods").await?;
    ensure!(status == 401, "{status}");
    Ok(())
}
