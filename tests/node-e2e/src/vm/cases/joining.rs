//! `kubeadm join` and `kubeadm reset`.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::Api;

use crate::vm::site::{NODE, Site};
use crate::vm::{Case, case};

pub const CASES: &[Case] = &[case!(a_machine_joins_with_a_token_leaves_and_joins_again)];

async fn a_machine_joins_with_a_token_leaves_and_joins_again(site: Site) -> Result<()> {
    site.bare().await?;
    site.install(site.agent).await?;
    let operators = site.guest.run("cat /etc/default/kubelet").await?;
    site.guest.write("/etc/default/kubelet", "KUBELET_EXTRA_ARGS=--node-labels=vm=yes\n").await?;
    for round in 0..2 {
        let said = site.join().await?;
        ensure!(said.contains("This node has joined the cluster"), "{said}");
        let node = site.expect_ready().await?;
        let is_labelled = node.metadata.labels.iter().flatten().any(|it| it == (&"vm".to_owned(), &"yes".to_owned()));
        ensure!(is_labelled == (round == 0), "in round {round}, labels are {:?}", node.metadata.labels);
        let info = node.status.and_then(|status| status.node_info).unwrap_or_default();
        ensure!(info.container_runtime_version.starts_with("containerd://"), "{info:?}");
        is_bootstrapped(&site).await?;

        let said = site.reset().await?;
        ensure!(said.contains("Stopping the kubelet service"), "{said}");
        is_clean(&site).await?;
        site.guest.write("/etc/default/kubelet", &operators).await?;
    }
    Ok(())
}

/// The token was good for the first request only; what counts from then on is the certificate.
async fn is_bootstrapped(site: &Site) -> Result<()> {
    let pem = "/var/lib/kubelet/pki/kubelet-client-current.pem";
    let kubeconfig = site.guest.run("cat /etc/kubernetes/kubelet.conf").await?;
    ensure!(kubeconfig.contains(pem), "{kubeconfig}");
    let target = site.guest.run(&format!("readlink {pem}")).await?;
    ensure!(target.contains("kubelet-client-2"), "{pem} is not a link to a dated file but to {target:?}");
    // kubeadm removes it once it has seen the other.
    site.guest.run("! test -e /etc/kubernetes/bootstrap-kubelet.conf").await?;
    Ok(())
}

async fn is_clean(site: &Site) -> Result<()> {
    let left = site.tasks().await?;
    ensure!(left.is_empty(), "containers are left: {left:?}");
    site.guest.run("! systemctl is-active kubelet").await?;
    let mounts = site.guest.run("grep -c /var/lib/kubelet /proc/mounts || true").await?;
    ensure!(mounts.trim() == "0", "{mounts} mounts are left");
    let nodes: Api<NodeObject> = Api::all(site.api.client());
    ensure!(nodes.get_opt(NODE).await?.is_none(), "the agent goes on and has registered the node again");
    Ok(())
}
