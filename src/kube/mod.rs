//! The cluster as the agent sees it: one trait over the API server.
//!
//! `client.rs` turns its calls into requests, `watch.rs` lists and follows, `requester.rs`
//! sends and decodes, `transport.rs` keeps the connections that `connect.rs` opens, and
//! `credentials.rs` asks the programs that give credentials. Of the kube crate they use requests,
//! kubeconfigs and credentials. The simulation has a cluster of its own. Only `status/` patches
//! pods, only `node/` writes Node and Lease, only `events/` writes events: the trait offers
//! exactly their calls. What `server/` asks of those who call it is a trait of its own beside
//! it, [`Reviews`]; so is what `identity/` asks of whoever signs certificates,
//! [`CertificateRequests`], which is asked with other credentials first.
//!
//! Always true: a watch stream never ends and never gives up; it reconnects with back-off
//! and replays the whole list when it had to start over.

mod client;
mod connect;
mod credentials;
mod errors;
#[cfg(test)]
pub(crate) mod fake;
mod health;
pub mod limit;
mod requester;
#[cfg(test)]
mod tests;
mod transport;
mod version;
mod watch;

use async_trait::async_trait;
use futures::stream::BoxStream;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenReview};
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::node::v1::RuntimeClass;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use client::KubeCluster;
pub use errors::LoadError;
pub use version::is_older;

/// What every object of the API can do.
trait ApiObject: kube::Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned + Send + 'static {}

impl<K: kube::Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned + Send + 'static> ApiObject for K {}

/// How an API call can end badly, told apart by what a caller does about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    #[error("{what}: not found")]
    NotFound { what: String },
    #[error("{what}: already exists")]
    AlreadyExists { what: String },
    /// A precondition (UID, resource version) does not hold any more.
    #[error("{what}: conflict: {message}")]
    Conflict { what: String, message: String },
    /// 401 and 403: retrying the same request is of no use until someone acts.
    #[error("{what}: refused: {message}")]
    Refused { what: String, message: String },
    /// 400 and 422: the request itself is wrong.
    #[error("{what}: invalid: {message}")]
    Invalid { what: String, message: String },
    /// 429, 5xx, no connection, no answer in time: try again later.
    #[error("{what}: {message}")]
    Unavailable { what: String, message: String },
}

impl ApiError {
    pub fn is_retryable(&self) -> bool {
        matches!(self, ApiError::Unavailable { .. } | ApiError::Conflict { .. })
    }
}

pub type Result<T> = std::result::Result<T, ApiError>;

/// One step of a watch.
#[derive(Clone, Debug, PartialEq)]
pub enum Change<T> {
    /// Everything there is; what is not in it is gone. Sent first, and after each restart.
    Listed(Vec<T>),
    Applied(Box<T>),
    Deleted(Box<T>),
}

/// State of one named object that is watched by itself.
#[derive(Clone, Debug, PartialEq)]
pub enum ObjectState<T> {
    Present(Box<T>),
    Absent,
    /// The API server refuses us the object (403: no pod on this node mentions it yet).
    Refused(String),
}

/// What the API server is asked about those who call this node's own API.
#[async_trait]
pub trait Reviews: Send + Sync + 'static {
    /// Whose token this is, if anybody's.
    async fn review_token(&self, review: &TokenReview) -> Result<TokenReview>;
    /// Whether somebody may do something.
    async fn review_access(&self, review: &SubjectAccessReview) -> Result<SubjectAccessReview>;
}

/// The API server.
#[async_trait]
pub trait Cluster: Reviews {
    /// Pods bound to this node (`spec.nodeName`).
    fn watch_pods(&self) -> BoxStream<'static, Change<Pod>>;
    fn watch_services(&self) -> BoxStream<'static, Change<Service>>;
    /// This node's own object.
    fn watch_node(&self) -> BoxStream<'static, Change<Node>>;
    fn watch_config_map(&self, namespace: &str, name: &str) -> BoxStream<'static, ObjectState<ConfigMap>>;
    fn watch_secret(&self, namespace: &str, name: &str) -> BoxStream<'static, ObjectState<Secret>>;

    async fn get_pod(&self, namespace: &str, name: &str) -> Result<Pod>;
    /// Strategic merge patch of the status subresource.
    async fn patch_pod_status(&self, namespace: &str, name: &str, patch: &Value) -> Result<Pod>;
    async fn create_pod(&self, pod: &Pod) -> Result<Pod>;
    /// Deletes with `grace_seconds`, only while the UID is still `uid`.
    async fn delete_pod(&self, namespace: &str, name: &str, uid: &str, grace_seconds: i64) -> Result<()>;

    async fn get_node(&self) -> Result<Node>;
    async fn create_node(&self, node: &Node) -> Result<Node>;
    /// Strategic merge patch of metadata and spec.
    async fn patch_node(&self, patch: &Value) -> Result<Node>;
    /// Strategic merge patch of the status subresource.
    async fn patch_node_status(&self, patch: &Value) -> Result<Node>;

    async fn get_service_account(&self, namespace: &str, name: &str) -> Result<ServiceAccount>;
    async fn get_runtime_class(&self, name: &str) -> Result<RuntimeClass>;

    async fn get_lease(&self) -> Result<Lease>;
    async fn create_lease(&self, lease: &Lease) -> Result<Lease>;
    async fn update_lease(&self, lease: &Lease) -> Result<Lease>;

    async fn create_event(&self, event: &Event) -> Result<Event>;
    /// Strategic merge patch, for the count of a repeated event.
    async fn patch_event(&self, namespace: &str, name: &str, patch: &Value) -> Result<Event>;

    async fn request_token(
        &self,
        namespace: &str,
        service_account: &str,
        request: &TokenRequest,
    ) -> Result<TokenRequest>;
}

/// The part of the API server that hands requests for certificates to their signers.
#[async_trait]
pub trait CertificateRequests: Send + Sync + 'static {
    async fn create_certificate_request(
        &self,
        request: &CertificateSigningRequest,
    ) -> Result<CertificateSigningRequest>;
    /// What has become of one: approved, denied, signed, gone.
    fn watch_certificate_request(&self, name: &str) -> BoxStream<'static, ObjectState<CertificateSigningRequest>>;
}
