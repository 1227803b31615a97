//! Clients that are killed while the node serves them: nothing is kept for them.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use crate::harness::{Case, Lab, Node, Process, Transport, WITHIN, pod};
use crate::own;
use crate::poll::{self, Look};

pub const CASES: &[Case] = &[own!(a_client_that_is_killed_leaves_nothing_open)];

/// As many of each kind: more than what else may come or go meanwhile.
const CLIENTS: usize = 8;

async fn a_client_that_is_killed_leaves_nothing_open(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let script = "echo began; httpd -p 8080 -h /tmp; while read -r line; do echo \"heard $line\"; done; sleep 1000000";
    let pod = node.run(pod("server").script(script).container(json!({ "stdin": true }))).await?;
    pod.expect().ready().await?;
    pod.expect_log("began").await?;
    let agent = Process::inside(node.stack(), node.stack().agent().pid().await?)?;
    // Once for all: what each round left would be hidden from the next by a figure of its own.
    let idle = agent.open_files()?;
    for transport in Transport::ALL {
        are_forgotten(&node, &agent, idle, transport, &["attach", "-i", "server"], "heard").await?;
        are_forgotten(&node, &agent, idle, transport, &["port-forward", "server", ":8080"], "Forwarding").await?;
    }
    are_forgotten(&node, &agent, idle, Transport::Spdy, &["logs", "--follow", "server"], "began").await
}

/// Each client costs the agent a descriptor at least, until it is killed.
async fn are_forgotten(
    node: &Node,
    agent: &Process,
    idle: usize,
    transport: Transport,
    args: &[&str],
    sign: &str,
) -> Result<()> {
    let what = format!("{} by {transport:?}", args.join(" "));
    let before = agent.open_files()?;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let client = served(node, transport, args, sign).await;
        clients.push(client.with_context(|| what.clone())?);
    }
    let held = agent.open_file_targets()?;
    ensure!(held.len() >= before + CLIENTS, "{what}: {before} descriptors before, then {held:?}");
    for client in &mut clients {
        client.child.kill().await?;
    }
    poll::until(format!("all is closed of {what}, {idle} descriptors at the beginning"), WITHIN, async || {
        let now = agent.open_file_targets()?;
        // The API server keeps a connection for its next question.
        Ok(if now.len() <= idle + 1 { Look::Done(()) } else { Look::NotYet(format!("{}: {now:?}", now.len())) })
    })
    .await
}

struct Client {
    child: Child,
    /// With nobody at its other end the client would end by itself.
    _said: Lines<BufReader<ChildStdout>>,
}

/// A client that has seen the sign that it is connected.
async fn served(node: &Node, transport: Transport, args: &[&str], sign: &str) -> Result<Client> {
    let mut client = node.kubectl(transport, args)?;
    let mut child = client.stdin(Stdio::piped()).spawn().context("start kubectl")?;
    // Only one that attaches reads it.
    let stdin = child.stdin.as_mut().expect("stdin is piped");
    stdin.write_all(b"word\n").await?;
    let mut said = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
    let line = timeout(WITHIN, said.next_line()).await.context("nothing is said")??;
    ensure!(line.as_ref().is_some_and(|line| line.starts_with(sign)), "{line:?}");
    Ok(Client { child, _said: said })
}
