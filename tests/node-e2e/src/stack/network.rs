//! The cable between the host and a stack: a veth pair, so that the host reaches the API
//! server and the pods, and the node has a default route as a real one has.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::slot::SlotNumber;

/// The node's end of the cable.
const NODE_INTERFACE: &str = "eth0";

/// Connects the network namespace of process `init` to the host.
pub async fn connect(slot: SlotNumber, init: Pid) -> Result<()> {
    let (cable, host, node) = (slot.interface(), slot.host_address(), slot.node_address());
    let pods = slot.pod_range();
    ip(
        None,
        &format!(
            "link add {cable} type veth peer name {NODE_INTERFACE} netns {init}
             address add {host}/30 dev {cable}
             link set {cable} up
             route add {pods} via {node}"
        ),
    )
    .await?;
    ip(
        Some(init),
        &format!(
            "link set lo up
             address add {node}/30 dev {NODE_INTERFACE}
             link set {NODE_INTERFACE} up
             route add default via {host}"
        ),
    )
    .await
}

/// Takes the cable away, if it is there. The kernel does that too once the namespace is gone,
/// but only some time later.
pub async fn disconnect(slot: SlotNumber) -> Result<()> {
    let cable = slot.interface();
    let exists = || Path::new("/sys/class/net").join(&cable).exists();
    if !exists() {
        return Ok(());
    }
    match ip(None, &format!("link delete {cable}")).await {
        Err(error) if exists() => Err(error),
        _ => Ok(()),
    }
}

/// Runs lines of ip(8), on the host or in the network namespace of a process.
async fn ip(namespace: Option<Pid>, lines: &str) -> Result<()> {
    let mut command = match namespace {
        None => Command::new("ip"),
        Some(pid) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/proc/{pid}/ns/net")).arg("ip");
            command
        }
    };
    command.args(["-batch", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().context("run ip(8)")?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all(lines.as_bytes()).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        bail!("ip {lines}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
