//! What an operator does where the control plane is: kubeadm's own phases, run natively.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tokio::process::Command;

use super::machine::PODS;
use crate::provision;
use crate::stack::Stack;

/// Prepares the cluster for machines that join with kubeadm: its ConfigMaps and bindings, and the
/// signed cluster-info.
pub async fn prepare(stack: &Stack) -> Result<()> {
    std::fs::write(config_file(stack), configuration(stack).await?)?;
    init_phase(stack, &["upload-config", "all"]).await?;
    init_phase(stack, &["bootstrap-token"]).await
}

/// Has upstream's kube-proxy run on every node from now on. Left out until a case needs it, as it
/// is the heaviest thing on an emulated machine.
pub async fn add_kube_proxy(stack: &Stack) -> Result<()> {
    init_phase(stack, &["addon", "kube-proxy"]).await
}

async fn init_phase(stack: &Stack, phase: &[&str]) -> Result<()> {
    let config = format!("--config={}", config_file(stack).display());
    kubeadm(stack, &[&["init", "phase"], phase, &[&config]].concat()).await.map(drop)
}

fn config_file(stack: &Stack) -> PathBuf {
    stack.directory().join("kubeadm.yaml")
}

/// A token of its own for one join, as the command line that an operator copies to the machine.
pub async fn join_command(stack: &Stack) -> Result<String> {
    kubeadm(stack, &["token", "create", "--print-join-command"]).await
}

async fn kubeadm(stack: &Stack, args: &[&str]) -> Result<String> {
    let kubeadm = provision::program("kubeadm")?.display().to_string();
    let kubeconfig = stack.admin_kubeconfig().context("there is a control plane")?;
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    let command = [&[kubeadm.as_str()], args, &[kubeconfig.as_str()]].concat();
    stack.run(&command).await.with_context(|| format!("kubeadm {}", args.join(" ")))
}

async fn configuration(stack: &Stack) -> Result<String> {
    let address = stack.node_address();
    let version = version().await?;
    Ok(format!(
        r#"apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {{ advertiseAddress: {address}, bindPort: 6443 }}
nodeRegistration: {{ criSocket: unix:///run/containerd/containerd.sock }}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: {version}
controlPlaneEndpoint: {address}:6443
# No registry is near; the images are on the machine.
imageRepository: ferrolet.test
networking: {{ serviceSubnet: 10.96.0.0/16, podSubnet: {PODS}, dnsDomain: cluster.local }}
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
# As in vm/root/etc/containerd/config.toml, which says why.
cgroupDriver: cgroupfs
# Off unless asked for.
enableSystemLogQuery: true
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
"#
    ))
}

/// That of the control plane, which is the kubelet's.
async fn version() -> Result<String> {
    let output = Command::new(provision::program("kubelet")?).arg("--version").output().await?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.trim().strip_prefix("Kubernetes ").context("a version has this form")?.to_owned())
}
