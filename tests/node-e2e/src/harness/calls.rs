//! Requests to the node's own API, past the API server.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::PostParams;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};

use super::Node;
use super::exposition::{self, Family};
use crate::stack::Stack;

/// Who asks.
pub enum Caller<'a> {
    /// Without any credential.
    Nobody,
    /// With the certificate that the API server shows to nodes.
    ApiServer,
    Token(&'a str),
}

/// How a node's own API is reached, as a kubeconfig would tell it.
pub async fn node_config(stack: &Stack, caller: Caller<'_>) -> Result<Config> {
    let user = match caller {
        Caller::Nobody => json!({}),
        Caller::Token(token) => json!({ "token": token }),
        Caller::ApiServer => {
            let [certificate, key] = stack.kubelet_client();
            json!({ "client-certificate": certificate, "client-key": key })
        }
    };
    // Whoever the node is, nobody but itself has signed for it.
    let server = format!("https://{}:10250", stack.node_address());
    let kubeconfig: Kubeconfig = serde_json::from_value(json!({
        "clusters": [{ "name": "node", "cluster": { "server": server, "insecure-skip-tls-verify": true } }],
        "users": [{ "name": "caller", "user": user }],
        "contexts": [{ "name": "it", "context": { "cluster": "node", "user": "caller" } }],
        "current-context": "it",
    }))?;
    Ok(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}

pub async fn node_client(stack: &Stack, caller: Caller<'_>) -> Result<Client> {
    Ok(Client::try_from(node_config(stack, caller).await?)?)
}

impl Node {
    /// What the node says to a GET: status and body.
    pub async fn call(&self, caller: Caller<'_>, path: &str) -> Result<(u16, String)> {
        self.send(caller, http::Request::get(path).body(Body::empty())?).await
    }

    /// What the node says to a request: status and body.
    pub async fn send(&self, caller: Caller<'_>, request: http::Request<Body>) -> Result<(u16, String)> {
        let client = node_client(self.stack(), caller).await?;
        let what = format!("{} {} of the node", request.method(), request.uri());
        let answer = client.send(request).await.context(what)?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect_bytes().await?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// What the node says to a GET of JSON by the API server.
    /// A page of metrics, read.
    pub async fn families(&self, path: &str) -> Result<Vec<Family>> {
        let (status, text) = self.call(Caller::ApiServer, path).await?;
        ensure!(status == 200, "{path}: {status} {text:?}");
        exposition::parse(&text).with_context(|| format!("read {path}"))
    }

    pub async fn call_json(&self, path: &str) -> Result<Value> {
        let (status, body) = self.call(Caller::ApiServer, path).await?;
        anyhow::ensure!(status == 200, "{path}: {status} {body:?}");
        serde_json::from_str(&body).with_context(|| format!("{path}: {body:?}"))
    }

    /// A token of a new service account that may do this with these subresources of nodes.
    pub async fn robot(&self, name: &str, verbs: &[&str], subresources: &[&str]) -> Result<String> {
        // Not of the namespace, so named after it.
        let role = format!("{}-{name}", self.namespace());
        let resources: Vec<_> = subresources.iter().map(|subresource| format!("nodes/{subresource}")).collect();
        if !resources.is_empty() {
            let rules = json!([{ "apiGroups": [""], "resources": resources, "verbs": verbs }]);
            let object: ClusterRole = serde_json::from_value(json!({ "metadata": { "name": role }, "rules": rules }))?;
            Api::all(self.client()).create(&PostParams::default(), &object).await?;
            let object: ClusterRoleBinding = serde_json::from_value(json!({
                "metadata": { "name": role },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
                "subjects": [{ "kind": "ServiceAccount", "namespace": self.namespace(), "name": name }],
            }))?;
            Api::all(self.client()).create(&PostParams::default(), &object).await?;
        }
        self.create::<ServiceAccount>(json!({ "metadata": { "name": name } })).await?;
        let accounts = self.api::<ServiceAccount>();
        let issued = accounts.create_token_request(name, &PostParams::default(), &TokenRequest::default()).await?;
        issued.status.and_then(|status| status.token).context("a token")
    }
}
