//! A node without a control plane: static pods only.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::harness::{Case, Lab, WITHIN, pod};
use crate::own;
use crate::poll::{self, Look};

pub const CASES: &[Case] = &[
    own!(static_pods_need_no_control_plane).standalone().in_subset(),
    own!(static_pods_come_and_go_with_their_files).standalone(),
    own!(a_killed_standalone_agent_disturbs_no_container).standalone(),
];

async fn static_pods_need_no_control_plane(lab: Lab) -> Result<()> {
    let web = pod("web").spec(json!({ "hostNetwork": true }));
    let web = web.script("echo here > /tmp/index.html; exec httpd -f -p 8080 -h /tmp");
    let again = pod("again").script("sleep 1; exit 1");
    let node = lab
        .node(|stack| {
            stack.standalone().static_pod("web.json", &web.manifest()).static_pod("again.json", &again.manifest())
        })
        .await?;
    node.expect_static_pod_runs("web").await?;
    ensure!(node.http_get("http://127.0.0.1:8080/").await? == "here\n");
    // Restarted, without anybody to report it to.
    let first = node.expect_static_pod_runs("again").await?;
    poll::until("another instance", WITHIN, async || {
        let containers = node.containers_named("again").await?;
        Ok(match containers.iter().any(|it| it.attempt > first.attempt) {
            true => Look::Done(()),
            false => Look::NotYet(format!("{containers:?}")),
        })
    })
    .await?;
    ensure!(node.http_get("http://127.0.0.1:10248/healthz").await?.starts_with("ok"));
    Ok(())
}

async fn static_pods_come_and_go_with_their_files(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack.standalone()).await?;
    node.static_pod("web.json", &pod("web").manifest())?;
    node.expect_static_pod_runs("web").await?;
    node.remove_static_pod("web.json")?;
    node.expect_no_containers("web").await
}

async fn a_killed_standalone_agent_disturbs_no_container(lab: Lab) -> Result<()> {
    let web = pod("web").manifest();
    let node = lab.node(|stack| stack.standalone().static_pod("web.json", &web)).await?;
    let before = node.expect_static_pod_runs("web").await?;
    node.stack().agent().kill().await?;
    node.static_pod("later.json", &pod("later").manifest())?;
    node.stack().agent().start().await?;
    // By the time the new one runs, the old one has been looked at.
    node.expect_static_pod_runs("later").await?;
    let after = node.expect_static_pod_runs("web").await?;
    ensure!(after.id == before.id && node.containers_named("web").await?.len() == 1);
    Ok(())
}
