//! On whose behalf a program is asked: a pod's service account, and a token of it.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tracing::{debug, warn};

use super::config::TokenAttributes;
use crate::clock::Clock;
use crate::images::credentials::ObjectRef;
use crate::kube::{ApiError, Cluster};
use crate::objects::tokens::{TokenError, Tokens};
use crate::pod::PodRef;

/// The API server's default, which upstream leaves it to.
const TOKEN_SECONDS: i64 = 3600;

/// Reads accounts and asks for tokens.
pub struct Accounts {
    cluster: Option<Arc<dyn Cluster>>,
    /// Others than those of volumes, whose renewal wakes their pods.
    tokens: Tokens,
}

/// An account, as far as a program is told of it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub reference: ObjectRef,
    pub annotations: BTreeMap<String, String>,
    pub token: Arc<str>,
}

/// Whom an answer is kept for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AccountKey {
    reference: ObjectRef,
    annotations: BTreeMap<String, String>,
    /// Only where the answer is good for one token. The token itself, which is held for as long
    /// anyway.
    token: Option<Arc<str>>,
}

impl Account {
    pub fn key(&self, attributes: &TokenAttributes) -> AccountKey {
        AccountKey {
            reference: self.reference.clone(),
            annotations: self.annotations.clone(),
            token: attributes.is_cached_by_token().then(|| self.token.clone()),
        }
    }
}

/// Why a program is not asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotAsked {
    #[error("the pod has no service account")]
    NoAccount,
    #[error("service account {account} has no annotation {key}, which is required")]
    NoAnnotation { account: String, key: String },
    #[error("service account {0} cannot be read: this node runs without an API server")]
    NoCluster(String),
    #[error("service account {account} cannot be read")]
    Account { account: String, source: ApiError },
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl NotAsked {
    pub fn tell(&self, provider: &str, image: &str, pod: &Pod) {
        let (error, pod) = (self as &dyn Error, PodRef::of(pod));
        match self {
            // This is how accounts choose which programs are for them.
            NotAsked::NoAccount | NotAsked::NoAnnotation { .. } => {
                debug!(provider, image, %pod, error, "credential provider is not asked");
            }
            _ => warn!(provider, image, %pod, error, "credential provider cannot be asked"),
        }
    }
}

impl Accounts {
    pub fn new(cluster: Option<Arc<dyn Cluster>>, clock: Clock) -> Self {
        Accounts { tokens: Tokens::new(cluster.clone(), clock), cluster }
    }

    /// What a program with these attributes is told for this pod; `None` if it is asked as any
    /// other program.
    pub(super) async fn of_pod(&self, pod: &Pod, attributes: &TokenAttributes) -> Result<Option<Account>, NotAsked> {
        let name = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or_default();
        if name.is_empty() {
            return if attributes.requires_account { Err(NotAsked::NoAccount) } else { Ok(None) };
        }
        let namespace = PodRef::of(pod).namespace;
        let full_name = || format!("{namespace}/{name}");
        let Some(cluster) = &self.cluster else { return Err(NotAsked::NoCluster(full_name())) };
        let found = cluster.get_service_account(&namespace, name).await;
        let found = found.map_err(|source| NotAsked::Account { account: full_name(), source })?;
        let written = found.metadata.annotations.unwrap_or_default();
        if let Some(key) = attributes.required_annotations.iter().find(|key| !written.contains_key(*key)) {
            return Err(NotAsked::NoAnnotation { account: full_name(), key: key.clone() });
        }
        let keys = attributes.required_annotations.iter().chain(&attributes.optional_annotations);
        let annotations = keys.filter_map(|key| written.get_key_value(key)).map(|(k, v)| (k.clone(), v.clone()));
        let annotations = annotations.collect();
        let uid = found.metadata.uid.unwrap_or_default();
        self.tokens.forget_ended();
        let account = Some(uid.as_str()).filter(|uid| !uid.is_empty());
        let token = self.tokens.get_of(pod, name, account, Some(&attributes.audience), TOKEN_SECONDS).await?;
        let reference = ObjectRef { uid, namespace: namespace.clone(), name: name.to_owned() };
        Ok(Some(Account { reference, annotations, token: token.token }))
    }
}
