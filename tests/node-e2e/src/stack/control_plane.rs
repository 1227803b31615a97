//! The control plane of a stack: one program of ours that runs the real components.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use super::part::Part;
use super::slot::SlotNumber;
use super::supervisor::State;
use crate::poll::{self, Look};
use crate::provision;

pub const PORT: u16 = 6443;

/// The names under which its processes run.
pub const COMPONENTS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

/// It takes some seconds alone, and much longer beside a build.
const READY_WITHIN: Duration = Duration::from_secs(120);

pub async fn start(part: Part<'_>) -> Result<()> {
    let stack = part.stack;
    let data = data_directory(stack.made.slot);
    let address = stack.node_address();
    let mut args = vec![
        format!("--data-dir={}", data.display()),
        format!("--log-dir={}", stack.log_directory().join("control-plane").display()),
        "--bind-address=0.0.0.0".to_owned(),
        format!("--advertise-address={address}"),
        format!("--port={PORT}"),
        format!("--node={}", stack.node_name()),
    ];
    if !stack.spec.api_server_gates.is_empty() {
        let gates: Vec<String> = stack.spec.api_server_gates.iter().map(|gate| format!("{gate}=true")).collect();
        args.push(format!("--kube-apiserver-arg=--feature-gates={}", gates.join(",")));
    }
    args.extend(stack.spec.controller_arguments.iter().map(|it| format!("--kube-controller-manager-arg={it}")));
    part.start_program(provision::program("control-plane")?, args).await?;
    poll::until("control plane ready", READY_WITHIN, async || {
        if data.join("ready").exists() {
            return Ok(Look::Done(()));
        }
        match part.state().await? {
            State::Running { .. } => Ok(Look::NotYet("it runs, but is not ready".to_owned())),
            ended => bail!("the control plane ended with {ended:?}"),
        }
    })
    .await
}

/// The kubeconfig of `admin` or of `node-<name>`.
pub fn kubeconfig(slot: SlotNumber, client: &str) -> PathBuf {
    data_directory(slot).join(format!("{client}.kubeconfig"))
}

pub fn certificate_authority(slot: SlotNumber) -> PathBuf {
    data_directory(slot).join("pki/ca.crt")
}

/// Certificate and key that the API server shows to nodes.
pub fn kubelet_client(slot: SlotNumber) -> [PathBuf; 2] {
    ["crt", "key"].map(|end| data_directory(slot).join(format!("pki/apiserver-kubelet-client.{end}")))
}

fn data_directory(slot: SlotNumber) -> PathBuf {
    slot.directory().join("control-plane")
}
