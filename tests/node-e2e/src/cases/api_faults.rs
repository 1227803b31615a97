//! The API server is away, hangs, is somebody else, or refuses the node.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ferrolet::cri::{Runtime, Scope};
use tokio::time::Instant;

use crate::harness::{self, Case, Lab, Node, WITHIN, pod};
use crate::own;
use crate::poll::{self, Look};
use crate::stack::{Agent, KUBECONFIG, State};

pub const CASES: &[Case] = &[
    own!(an_api_server_away_at_start_holds_up_no_static_pod),
    own!(an_api_server_that_goes_away_takes_no_pod_along).in_subset(),
    own!(an_api_server_that_hangs_during_a_start_is_survived),
    own!(a_wrong_authority_is_told_and_holds_up_no_static_pod),
    own!(a_corrected_kubeconfig_is_taken_up).beyond_upstream("it reads its kubeconfig once, at its start"),
    own!(a_new_certificate_of_the_api_server_is_followed),
    own!(a_foreign_certificate_of_the_api_server_is_told_and_takes_no_pod_along),
    own!(a_refused_node_name_is_told_and_holds_up_no_static_pod),
];

async fn an_api_server_away_at_start_holds_up_no_static_pod(lab: Lab) -> Result<()> {
    let fixed = pod("fixed").manifest();
    let node = lab.node(|stack| stack.without_agent().static_pod("fixed.json", &fixed)).await?;
    node.stack().control_plane().stop().await?;
    node.stack().agent().start().await?;
    let before = node.expect_static_pod_runs("fixed").await?;

    node.stack().control_plane().start().await?;
    node.expect_node_ready("True").await?;
    node.mirror_pod("fixed").await?.expect().ready().await?;
    node.run(pod("later")).await?.expect().ready().await?;
    let after = node.expect_static_pod_runs("fixed").await?;
    ensure!(after.id == before.id, "{before:?} became {after:?}");
    Ok(())
}

async fn an_api_server_that_goes_away_takes_no_pod_along(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let script = "until [ -e /tmp/end ]; do sleep 0.1; done; exit 7";
    let running = node.run(pod("running")).await?;
    let ending = node.run(pod("ending").script(script)).await?;
    for pod in [&running, &ending] {
        pod.expect().ready().await?;
    }
    let before = running.instance().await?;
    let first = node.containers_of(&ending).await?;

    node.stack().control_plane().stop().await?;
    node.exec(&first[0].id, "touch /tmp/end").await?;
    // It is restarted by what the node knows.
    poll::until("a second instance", WITHIN, async || {
        let containers = node.containers_of(&ending).await?;
        Ok(match containers.iter().any(|it| it.attempt == first[0].attempt + 1) {
            true => Look::Done(()),
            false => Look::NotYet(format!("{containers:?}")),
        })
    })
    .await?;
    node.stack().control_plane().start().await?;

    ending.expect().restarts(1).await?;
    running.expect().ready().await?;
    let now = running.instance().await?;
    ensure!(now == before, "{before:?} became {now:?}");
    node.run(pod("after")).await?.expect().ready().await?;
    Ok(())
}

async fn an_api_server_that_hangs_during_a_start_is_survived(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let caught = node.run(pod("caught")).await?;
    caught.expect().condition("PodScheduled", "True").await?;
    node.stack().control_plane().freeze().await?;
    // Long enough for a request to hang and for a lease to be missed.
    let frozen = Instant::now();
    poll::until("a missed renewal", WITHIN, async || {
        Ok(match frozen.elapsed() > Duration::from_secs(12) {
            true => Look::Done(()),
            false => Look::NotYet("not long enough".to_owned()),
        })
    })
    .await?;
    node.stack().control_plane().thaw().await?;
    caught.expect().ready().await?;
    node.expect_node_ready("True").await?;
    ensure!(node.containers_of(&caught).await?.len() == 1);
    Ok(())
}

/// A node whose kubeconfig names another authority than the API server's, and the right one.
async fn with_wrong_authority(lab: &Lab) -> Result<(Node, String)> {
    let fixed = pod("fixed").manifest();
    let node = lab.node(|stack| stack.without_agent().static_pod("fixed.json", &fixed)).await?;
    let directory = node.stack().directory().join("control-plane");
    let own = directory.join(format!("node-{}.kubeconfig", node.name()));
    let right = std::fs::read_to_string(own)?;
    let authority =
        |name: &str| -> Result<String> { Ok(BASE64.encode(std::fs::read(directory.join("pki").join(name))?)) };
    let wrong = right.replace(&authority("ca.crt")?, &authority("front-proxy-ca.crt")?);
    ensure!(wrong != right, "the kubeconfig does not hold the authority as expected");
    node.stack().write(KUBECONFIG, wrong)?;
    node.stack().write("/etc/kubernetes/pki/ca.crt", std::fs::read(directory.join("pki/ca.crt"))?)?;
    node.stack().agent().start().await?;
    Ok((node, right))
}

async fn a_wrong_authority_is_told_and_holds_up_no_static_pod(lab: Lab) -> Result<()> {
    let (node, _) = with_wrong_authority(&lab).await?;
    node.expect_static_pod_runs("fixed").await?;
    node.expect_agent_log("certificate").await?;
    ensure!(matches!(node.stack().agent().state().await?, State::Running { .. }));
    Ok(())
}

async fn a_corrected_kubeconfig_is_taken_up(lab: Lab) -> Result<()> {
    let (node, right) = with_wrong_authority(&lab).await?;
    node.expect_agent_log("certificate").await?;
    node.stack().write(KUBECONFIG, right)?;
    node.expect_node_ready("True").await?;
    Ok(())
}

async fn a_new_certificate_of_the_api_server_is_followed(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let running = node.run(pod("running")).await?;
    running.expect().ready().await?;
    let before = running.instance().await?;

    node.stack().control_plane().stop().await?;
    // It makes itself another one of the same authority.
    let [certificate, key] = serving(&node);
    let first = std::fs::read_to_string(&certificate)?;
    for file in [&certificate, &key] {
        std::fs::remove_file(file)?;
    }
    node.stack().control_plane().start().await?;

    ensure!(std::fs::read_to_string(&certificate)? != first);
    node.run(pod("after")).await?.expect().ready().await?;
    running.expect().ready().await?;
    let now = running.instance().await?;
    ensure!(now == before, "{before:?} became {now:?}");
    Ok(())
}

async fn a_foreign_certificate_of_the_api_server_is_told_and_takes_no_pod_along(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let running = node.run(pod("running")).await?;
    running.expect().ready().await?;
    let before = node.containers_of(&running).await?;

    // The node's own is signed by nobody that it trusts itself.
    let pairs = serving(&node).into_iter().zip(["kubelet.crt", "kubelet.key"]);
    let mut own = Vec::new();
    for (path, foreign) in pairs {
        own.push((path.clone(), std::fs::read(&path)?));
        std::fs::write(path, node.stack().read(&format!("/var/lib/kubelet/pki/{foreign}"))?)?;
    }
    node.stack().agent().stop().await?;
    let admin = node.stack().admin_kubeconfig().context("there is a control plane")?;
    poll::until("a certificate that nobody trusts", WITHIN * 2, async || {
        // Connections there were go on.
        let newcomer = harness::client(&admin).await?;
        Ok(match newcomer.apiserver_version().await {
            Err(_) => Look::Done(()),
            Ok(_) => Look::NotYet("the API server shows its own".to_owned()),
        })
    })
    .await?;
    node.stack().agent().start().await?;
    node.expect_agent_log(match lab.agent() {
        Agent::Ferrolet => "is not signed by the CA in",
        Agent::Kubelet => "certificate signed by unknown authority",
    })
    .await?;
    node.expect_untouched(&running, &before).await?;

    for (path, content) in own {
        std::fs::write(path, content)?;
    }
    node.run(pod("after")).await?.expect().ready().await?;
    node.expect_untouched(&running, &before).await
}

/// Certificate and key that the API server shows to all.
fn serving(node: &Node) -> [PathBuf; 2] {
    ["crt", "key"].map(|end| node.stack().directory().join(format!("control-plane/pki/serving.{end}")))
}

async fn a_refused_node_name_is_told_and_holds_up_no_static_pod(lab: Lab) -> Result<()> {
    let fixed = pod("fixed").manifest();
    let node = lab
        .node(|stack| stack.without_agent().flag("--hostname-override=somebody-else").static_pod("fixed.json", &fixed))
        .await?;
    node.stack().agent().start().await?;
    let runtime = node.runtime()?;
    poll::until("the static pod runs", WITHIN, async || {
        let containers = runtime.list_containers(&Scope::All).await?;
        Ok(match containers.iter().any(|it| it.pod_name == "fixed-somebody-else") {
            true => Look::Done(()),
            false => Look::NotYet(format!("{containers:?}")),
        })
    })
    .await?;
    node.expect_agent_log("forbidden").await?;
    ensure!(matches!(node.stack().agent().state().await?, State::Running { .. }));
    Ok(())
}
