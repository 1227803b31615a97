//! kubectl, as people have it: what it is told, what it says, and how it ends.

use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::Node;
use crate::provision;

/// A command that has not ended by then hangs.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// How it talks to the API server, which talks to the node as it sees fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    WebSocket,
    Spdy,
}

impl Transport {
    pub const ALL: [Transport; 2] = [Transport::WebSocket, Transport::Spdy];
}

impl Node {
    /// kubectl in the namespace of the case, not yet started. It is killed when it is dropped.
    pub fn kubectl(&self, transport: Transport, args: &[&str]) -> Result<Command> {
        let kubeconfig = self.stack().admin_kubeconfig().context("the node has a control plane")?;
        let is_websocket = (transport == Transport::WebSocket).to_string();
        let mut command = Command::new(provision::program("kubectl")?);
        command
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--namespace={}", self.namespace()))
            .args(args)
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", &is_websocket)
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", &is_websocket)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Ok(command)
    }

    /// The same in a terminal of its own, which a shell sets up with this first. The terminal goes
    /// when its owner is dropped.
    pub fn kubectl_in_terminal(&self, transport: Transport, args: &[&str], first: &str) -> Result<Command> {
        let kubectl = self.kubectl(transport, args)?;
        let kubectl = kubectl.as_std();
        let words = [kubectl.get_program()].into_iter().chain(kubectl.get_args());
        let quoted: Vec<_> = words.map(|word| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"))).collect();
        // script(1) makes a terminal for whoever has none.
        let mut script = Command::new("script");
        let line = format!("{first}\n{}", quoted.join(" "));
        script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        script.envs(kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))));
        script.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        Ok(script)
    }

    /// Runs it to its end, whatever that is.
    pub async fn kubectl_told(&self, transport: Transport, args: &[&str], input: &[u8]) -> Result<Output> {
        let mut child = self.kubectl(transport, args)?.stdin(Stdio::piped()).spawn().context("start kubectl")?;
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let talk = async {
            let written = stdin.write_all(input).await;
            drop(stdin);
            written
        };
        let (output, _) = timeout(ENDS_WITHIN, async { tokio::join!(child.wait_with_output(), talk) })
            .await
            .with_context(|| format!("kubectl {} by {transport:?} does not end", args.join(" ")))?;
        output.context("wait for kubectl")
    }

    /// The same, and it has to end well. Returns what it said.
    pub async fn kubectl_well(&self, transport: Transport, args: &[&str], input: &[u8]) -> Result<Vec<u8>> {
        let output = self.kubectl_told(transport, args, input).await?;
        let errors = String::from_utf8_lossy(&output.stderr);
        let what = args.join(" ");
        ensure!(output.status.success(), "kubectl {what} by {transport:?}: {} {errors}", output.status);
        Ok(output.stdout)
    }
}
