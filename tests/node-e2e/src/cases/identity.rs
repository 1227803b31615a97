//! Who the node is: joined with a token, renewed, lapsed, denied, and what it serves with.
//!
//! Requests are approved and signed by the controllers of the cluster itself, once the bindings are
//! there that kubeadm makes; those for serving certificates by the case, as an operator would.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{Case, Lab, Node, WITHIN, pod};
use crate::own;
use crate::poll::{self, Look};
use crate::stack::{BOOTSTRAP_KUBECONFIG, Builder, KUBECONFIG};

pub const CASES: &[Case] = &[
    own!(a_node_joins_with_a_token),
    own!(a_token_that_is_unknown_holds_up_no_static_pod),
    own!(a_certificate_in_the_kubeconfig_lies_where_kubeadm_looks_for_it),
    own!(a_certificate_is_renewed_before_it_expires),
    own!(a_certificate_that_lapsed_is_told_and_replaced_once_there_is_a_way)
        .beyond_upstream("it does not start without a valid certificate or a way to one"),
    own!(a_denied_request_is_told_and_followed_by_another)
        .beyond_upstream("it says in its log that it could not rotate, not that it was denied"),
    own!(a_program_gives_the_nodes_credential),
    own!(a_serving_certificate_names_the_nodes_addresses),
];

const TOKEN: &str = "abcdef.0123456789abcdef";
const CURRENT: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";
const SERVING: &str = "/var/lib/kubelet/pki/kubelet-server-current.pem";

/// A node that is about to join, with a bootstrap kubeconfig and a static pod.
async fn joining(lab: &Lab, ask: impl FnOnce(Builder) -> Builder) -> Result<Node> {
    let fixed = pod("fixed").manifest();
    let node = lab
        .node(|stack| {
            let stack = stack.joins().without_agent().static_pod("fixed.json", &fixed);
            ask(stack.config("rotateCertificates", true))
        })
        .await?;
    write_bootstrap_kubeconfig(&node)?;
    Ok(node)
}

/// The admin's kubeconfig with a token for user.
fn write_bootstrap_kubeconfig(node: &Node) -> Result<()> {
    let admin = node.stack().admin_kubeconfig().context("there is a control plane")?;
    let mut kubeconfig: Value = serde_saphyr::from_str(&std::fs::read_to_string(admin)?)?;
    kubeconfig["users"][0]["user"] = json!({ "token": TOKEN });
    node.stack().write(BOOTSTRAP_KUBECONFIG, kubeconfig.to_string())
}

async fn create_token(node: &Node) -> Result<()> {
    let (id, secret) = TOKEN.split_once('.').context("a token has two parts")?;
    let object: Secret = serde_json::from_value(json!({
        "metadata": { "name": format!("bootstrap-token-{id}"), "namespace": "kube-system" },
        "type": "bootstrap.kubernetes.io/token",
        "stringData": { "token-id": id, "token-secret": secret, "usage-bootstrap-authentication": "true" },
    }))?;
    let secrets: Api<Secret> = Api::namespaced(node.client(), "kube-system");
    secrets.create(&PostParams::default(), &object).await.context("create the bootstrap token")?;
    bind(node, "system:node-bootstrapper", "system:bootstrappers").await
}

/// Lets the controllers of the cluster approve what nodes ask for, as kubeadm does.
async fn approve_clients(node: &Node) -> Result<()> {
    let role = |act: &str| format!("system:certificates.k8s.io:certificatesigningrequests:{act}");
    bind(node, &role("nodeclient"), "system:bootstrappers").await?;
    bind(node, &role("selfnodeclient"), "system:nodes").await
}

async fn bind(node: &Node, role: &str, group: &str) -> Result<()> {
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": { "generateName": "identity-" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group }],
    }))?;
    let bindings: Api<ClusterRoleBinding> = Api::all(node.client());
    bindings.create(&PostParams::default(), &binding).await.with_context(|| format!("bind {role} to {group}"))?;
    Ok(())
}

fn requests(node: &Node) -> Api<CertificateSigningRequest> {
    Api::all(node.client())
}

/// Waits for a request for this signer that nobody has decided on, and decides.
async fn decide(node: &Node, signer: &str, decision: &str) -> Result<CertificateSigningRequest> {
    let request = poll::until(format!("a request for {signer}"), WITHIN, async || {
        let all = requests(node).list(&ListParams::default()).await?.items;
        let is_open = |request: &CertificateSigningRequest| {
            let conditions = request.status.as_ref().and_then(|status| status.conditions.as_ref());
            request.spec.signer_name == signer && conditions.is_none_or(Vec::is_empty)
        };
        Ok(match all.iter().find(|request| is_open(request)) {
            Some(request) => Look::Done(request.clone()),
            None => Look::NotYet(format!("{} others", all.len())),
        })
    })
    .await?;
    let condition = json!({ "type": decision, "status": "True", "reason": "Story", "message": "the case says so" });
    let patch = json!({ "status": { "conditions": [condition] } });
    let name = request.metadata.name.as_deref().unwrap_or_default();
    requests(node).patch_approval(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(request)
}

/// A file by the eyes of the node: links in it lead elsewhere from here.
async fn cat(node: &Node, path: &str) -> Result<String> {
    node.stack().run(&["busybox", "cat", path]).await
}

/// The file that a link on the node leads to.
async fn target(node: &Node, link: &str) -> Result<String> {
    Ok(node.stack().run(&["busybox", "readlink", link]).await?.trim().to_owned())
}

async fn a_node_joins_with_a_token(lab: Lab) -> Result<()> {
    let node = joining(&lab, |stack| stack).await?;
    create_token(&node).await?;
    approve_clients(&node).await?;
    node.stack().agent().start().await?;
    node.expect_node_ready("True").await?;
    node.run(pod("first")).await?.expect().ready().await?;

    // What kubeadm looks for.
    let dated = target(&node, CURRENT).await?;
    ensure!(dated.starts_with("/var/lib/kubelet/pki/kubelet-client-2"), "{dated}");
    let mode = node.stack().run(&["busybox", "stat", "-c", "%a", &dated]).await?;
    ensure!(mode.trim() == "600", "{mode}");
    let pem = cat(&node, CURRENT).await?;
    let [certificate, key] = ["-----BEGIN CERTIFICATE-----", "PRIVATE KEY-----"].map(|part| pem.find(part));
    ensure!(certificate.is_some() && key > certificate, "a certificate, then its key");
    let kubeconfig: Value = serde_saphyr::from_str(&node.stack().read(KUBECONFIG)?)?;
    ensure!(kubeconfig["users"][0]["user"] == json!({ "client-certificate": CURRENT, "client-key": CURRENT }));
    ensure!(kubeconfig["users"][0]["name"] == "default-auth" && kubeconfig["current-context"] == "default-context");

    // It takes the bootstrap kubeconfig away; the node goes on, over a restart too.
    std::fs::remove_file(node.stack().on_node(BOOTSTRAP_KUBECONFIG))?;
    let before = node.expect_static_pod_runs("fixed").await?;
    node.stack().agent().kill().await?;
    node.stack().agent().start().await?;
    node.expect_lease_renewal().await?;
    node.run(pod("second")).await?.expect().ready().await?;
    ensure!(target(&node, CURRENT).await? == dated, "nothing was asked for again");
    ensure!(node.expect_static_pod_runs("fixed").await?.id == before.id);
    Ok(())
}

async fn a_token_that_is_unknown_holds_up_no_static_pod(lab: Lab) -> Result<()> {
    let node = joining(&lab, |stack| stack).await?;
    approve_clients(&node).await?;
    node.stack().agent().start().await?;
    let before = node.expect_static_pod_runs("fixed").await?;
    node.expect_agent_log("Unauthorized").await?;
    ensure!(node.http_get("http://127.0.0.1:10248/healthz").await?.starts_with("ok"));
    create_token(&node).await?;
    node.expect_node_ready("True").await?;
    node.mirror_pod("fixed").await?.expect().ready().await?;
    ensure!(node.expect_static_pod_runs("fixed").await?.id == before.id);
    Ok(())
}

async fn a_certificate_in_the_kubeconfig_lies_where_kubeadm_looks_for_it(lab: Lab) -> Result<()> {
    // The kubeconfig of such a node holds certificate and key, as that of `kubeadm init` does.
    let node = lab.node(|stack| stack.config("rotateCertificates", true)).await?;
    node.expect_node_ready("True").await?;
    let pem = poll::until("the certificate", WITHIN, async || {
        Ok(match cat(&node, CURRENT).await {
            Ok(pem) if pem.contains("PRIVATE KEY") => Look::Done(pem),
            other => Look::NotYet(format!("{other:?}")),
        })
    })
    .await?;
    ensure!(pem.starts_with("-----BEGIN CERTIFICATE-----"), "a certificate, then its key");
    // The last step of `kubeadm init`.
    let mut kubeconfig: Value = serde_saphyr::from_str(&node.stack().read(KUBECONFIG)?)?;
    kubeconfig["users"][0]["user"] = json!({ "client-certificate": CURRENT, "client-key": CURRENT });
    node.stack().agent().kill().await?;
    node.stack().write(KUBECONFIG, kubeconfig.to_string())?;
    node.stack().agent().start().await?;
    node.expect_lease_renewal().await?;
    node.run(pod("later")).await?.expect().ready().await?;
    Ok(())
}

async fn a_certificate_is_renewed_before_it_expires(lab: Lab) -> Result<()> {
    let life = Duration::from_secs(60);
    let node = joining(&lab, |stack| stack.controller_argument("--cluster-signing-duration=60s")).await?;
    create_token(&node).await?;
    approve_clients(&node).await?;
    node.stack().agent().start().await?;
    node.expect_node_ready("True").await?;
    let running = node.run(pod("running")).await?;
    running.expect().ready().await?;
    let (first, joined) = (target(&node, CURRENT).await?, Instant::now());
    poll::until("another certificate", life, async || {
        let now = target(&node, CURRENT).await?;
        Ok(if now == first { Look::NotYet(now) } else { Look::Done(()) })
    })
    .await?;
    // Once the first has expired, everything goes by the second.
    poll::until("the end of the first certificate", life * 2, async || {
        Ok(match joined.elapsed() > life + Duration::from_secs(5) {
            true => Look::Done(()),
            false => Look::NotYet("not yet".to_owned()),
        })
    })
    .await?;
    node.expect_lease_renewal().await?;
    node.run(pod("later")).await?.expect().ready().await?;
    node.expect_node_ready("True").await?;
    let (_, restarts) = running.instance().await?;
    ensure!(restarts == 0, "the pod was restarted {restarts} times");
    Ok(())
}

async fn a_certificate_that_lapsed_is_told_and_replaced_once_there_is_a_way(lab: Lab) -> Result<()> {
    let life = Duration::from_secs(40);
    let node = joining(&lab, |stack| stack.controller_argument("--cluster-signing-duration=40s")).await?;
    create_token(&node).await?;
    approve_clients(&node).await?;
    let joined = Instant::now();
    node.stack().agent().start().await?;
    node.expect_node_ready("True").await?;
    let before = node.expect_static_pod_runs("fixed").await?;
    let running = node.run(pod("running")).await?;
    running.expect().ready().await?;
    let (instance, containers) = (running.instance().await?, node.containers_of(&running).await?);
    node.stack().agent().kill().await?;
    std::fs::remove_file(node.stack().on_node(BOOTSTRAP_KUBECONFIG))?;
    poll::until("the end of the certificate", life * 2, async || {
        Ok(match joined.elapsed() > life + Duration::from_secs(20) {
            true => Look::Done(()),
            false => Look::NotYet("not yet".to_owned()),
        })
    })
    .await?;
    node.stack().agent().start().await?;
    node.expect_agent_log(&format!("client certificate {CURRENT} expired at 2")).await?;
    ensure!(node.expect_static_pod_runs("fixed").await?.id == before.id);
    ensure!(node.http_get("http://127.0.0.1:10248/healthz").await?.starts_with("ok"));
    // Nobody tells it of this one, so it is none of its business.
    node.expect_untouched(&running, &containers).await?;

    write_bootstrap_kubeconfig(&node)?;
    node.expect_lease_renewal().await?;
    node.expect_node_ready("True").await?;
    ensure!(node.expect_static_pod_runs("fixed").await?.id == before.id);
    running.expect().ready().await?;
    node.expect_untouched(&running, &containers).await?;
    let now = running.instance().await?;
    ensure!(now == instance && now.1 == 0, "{instance:?} became {now:?}");
    Ok(())
}

async fn a_denied_request_is_told_and_followed_by_another(lab: Lab) -> Result<()> {
    let node = joining(&lab, |stack| stack).await?;
    create_token(&node).await?;
    node.stack().agent().start().await?;
    const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
    decide(&node, SIGNER, "Denied").await?;
    node.expect_agent_log("was denied: Story the case says so").await?;
    decide(&node, SIGNER, "Approved").await?;
    node.expect_node_ready("True").await?;
    Ok(())
}

/// The node's own certificate, by way of a program that the kubeconfig names.
async fn a_program_gives_the_nodes_credential(lab: Lab) -> Result<()> {
    let node = lab.node(Builder::without_agent).await?;
    let cluster = node.stack().directory().join("control-plane");
    let own = std::fs::read_to_string(cluster.join(format!("node-{}.kubeconfig", node.name())))?;
    let mut kubeconfig: Value = serde_saphyr::from_str(&own)?;
    let pem = |field: &str| -> Result<String> {
        let data = kubeconfig["users"][0]["user"][field].as_str().with_context(|| format!("no {field}"))?;
        Ok(String::from_utf8(BASE64.decode(data)?)?)
    };
    let credential = json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {
            "clientCertificateData": pem("client-certificate-data")?,
            "clientKeyData": pem("client-key-data")?,
        },
    });
    const CREDENTIAL: &str = "/etc/kubernetes/credential.json";
    kubeconfig["users"][0]["user"] = json!({ "exec": {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "busybox",
        "args": ["cat", CREDENTIAL],
        "interactiveMode": "Never",
    }});
    node.stack().write(KUBECONFIG, kubeconfig.to_string())?;
    node.stack().write("/etc/kubernetes/pki/ca.crt", std::fs::read(cluster.join("pki/ca.crt"))?)?;
    node.stack().agent().start().await?;
    node.expect_agent_log("busybox").await?;
    node.stack().write(CREDENTIAL, credential.to_string())?;
    node.expect_node_ready("True").await?;
    node.run(pod("running")).await?.expect().ready().await?;
    Ok(())
}

async fn a_serving_certificate_names_the_nodes_addresses(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack.config("serverTLSBootstrap", true)).await?;
    let request = decide(&node, "kubernetes.io/kubelet-serving", "Approved").await?;
    ensure!(request.spec.usages == Some(["digital signature", "server auth"].map(str::to_owned).into()));
    ensure!(request.spec.username == Some(format!("system:node:{}", node.name())));
    poll::until("the serving certificate", WITHIN, async || {
        Ok(match cat(&node, SERVING).await {
            Ok(pem) if pem.contains("PRIVATE KEY") => Look::Done(()),
            other => Look::NotYet(format!("{other:?}")),
        })
    })
    .await?;
    // The signer copies what was asked for; an address is four bytes behind its tag and length.
    let pem = cat(&node, SERVING).await?;
    let certificate: String = pem.lines().skip(1).take_while(|line| !line.starts_with("-----")).collect();
    let der = BASE64.decode(certificate)?;
    let address = [&[0x87, 4][..], &node.stack().node_address().octets()].concat();
    ensure!(der.windows(address.len()).any(|bytes| bytes == address), "the certificate does not name the address");
    ensure!(der.windows(node.name().len()).any(|bytes| bytes == node.name().as_bytes()));
    Ok(())
}
