//! The real cluster: each call of [`Cluster`] as a request to the API server.

use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::future::ready;
use futures::stream::{BoxStream, StreamExt};
use http::HeaderValue;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenReview};
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::core::Request;
use kube::core::params::{DeleteParams, GetParams, Patch, PatchParams, PostParams, Preconditions};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

use super::errors::LoadError;
use super::limit::{Rate, Throttle};
use super::requester::Requester;
use super::transport::{Lane, Transport};
use super::watch::{Step, Target, Watch};
use super::{ApiError, ApiObject, CertificateRequests, Change, Cluster, ObjectState, Result, Reviews};
use crate::clock::Clock;
use crate::config::VERSION;
use crate::pod::PodRef;

/// The namespace of node leases.
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// An API server lets 100 streams into one connection and keeps further ones waiting
/// without a word. The first connection keeps most of them for requests and the long
/// watches; on the others a watch needs one stream, be it listing or following.
const WATCHES_BESIDE_REQUESTS: usize = 40;
const WATCHES_PER_LANE: usize = 90;

/// The API server as this node's client.
pub struct KubeCluster {
    requests: Requester,
    /// Their own limit is in `events/`, so that a flood of them holds up nothing else.
    events: Requester,
    heartbeats: Requester,
    /// Each with a limit of its own: callers of this node's API are not to keep the agent's own
    /// requests waiting, nor those without a valid token the others.
    token_reviews: Requester,
    access_reviews: Requester,
    node_name: String,
    clock: Clock,
    /// Watches of single objects on each connection.
    seats: Arc<Mutex<Vec<usize>>>,
}

impl KubeCluster {
    /// Reads the kubeconfig; connects only when first used. `rate` is `kubeAPIQPS` and
    /// `kubeAPIBurst`, which heartbeats are exempt from; `None` sends without limit.
    pub async fn from_kubeconfig(
        path: &Path,
        node_name: &str,
        rate: Option<Rate>,
        clock: Clock,
    ) -> std::result::Result<Self, LoadError> {
        let transport = Transport::new(path, user_agent(), clock.clone()).await?;
        Ok(KubeCluster::over(transport, node_name, rate, clock))
    }

    /// One without credentials, whose calls wait a little and then fail, until there is
    /// something to take up.
    pub fn awaiting_credentials(path: &Path, node_name: &str, rate: Option<Rate>, clock: Clock) -> Self {
        KubeCluster::over(Transport::awaiting(path, user_agent(), clock.clone()), node_name, rate, clock)
    }

    /// Reads the kubeconfig and connects anew, with the certificate and key in this file
    /// instead of those in the kubeconfig if there is one.
    pub async fn take_up(&self, certificate: Option<&Path>) -> std::result::Result<(), LoadError> {
        self.requests.transport().take_up(certificate).await
    }

    /// Changes when a kubeconfig that was found changed has been taken up after a failure.
    pub fn reloads(&self) -> watch::Receiver<u64> {
        self.requests.transport().reloads()
    }

    fn over(transport: Transport, node_name: &str, rate: Option<Rate>, clock: Clock) -> Self {
        let requests = Requester::new(Arc::new(transport), Lane::Shared(0), Throttle::new(rate));
        let events = requests.unlimited();
        let heartbeats = events.over(Lane::Heartbeat);
        KubeCluster {
            token_reviews: requests.under(Throttle::new(rate)),
            access_reviews: requests.under(Throttle::new(rate)),
            requests,
            events,
            heartbeats,
            node_name: node_name.to_owned(),
            clock,
            seats: Arc::default(),
        }
    }

    fn watch_collection<K: ApiObject>(&self, fields: Option<String>, what: &str) -> BoxStream<'static, Change<K>> {
        // The three long watches live on the first connection, beside the requests.
        let target = Target { path: K::url_path(&(), None), fields, what: what.to_owned(), told_by_consumer: false };
        Watch::new(self.requests.clone(), self.clock.clone(), target)
            .steps()
            .filter_map(|step| {
                ready(match step {
                    Step::Change(change) => Some(change),
                    Step::Failed(_) => None,
                })
            })
            .boxed()
    }

    fn watch_one<K: ApiObject>(
        &self,
        what: String,
        namespace: Option<&str>,
        name: &str,
    ) -> BoxStream<'static, ObjectState<K>> {
        let seat = Seat::take(&self.seats);
        let target = Target {
            path: K::url_path(&(), namespace),
            fields: Some(format!("metadata.name={name}")),
            what,
            told_by_consumer: true,
        };
        Watch::new(self.requests.over(Lane::Shared(seat.lane)), self.clock.clone(), target)
            .steps()
            .filter_map(move |step| {
                // Keeps the seat on the connection for as long as the stream lives.
                let _ = &seat;
                ready(state_of(step))
            })
            .boxed()
    }
}

#[async_trait]
impl Reviews for KubeCluster {
    async fn review_token(&self, review: &TokenReview) -> Result<TokenReview> {
        let what = "review a token";
        let request = all::<TokenReview>(None).create(&PostParams::default(), body(review, what)?);
        self.token_reviews.fetch(what, request).await
    }

    async fn review_access(&self, review: &SubjectAccessReview) -> Result<SubjectAccessReview> {
        let what = "review access to this node";
        let request = all::<SubjectAccessReview>(None).create(&PostParams::default(), body(review, what)?);
        self.access_reviews.fetch(what, request).await
    }
}

#[async_trait]
impl Cluster for KubeCluster {
    fn watch_pods(&self) -> BoxStream<'static, Change<Pod>> {
        self.watch_collection(Some(format!("spec.nodeName={}", self.node_name)), "pods of this node")
    }

    fn watch_services(&self) -> BoxStream<'static, Change<Service>> {
        self.watch_collection(None, "services")
    }

    fn watch_node(&self) -> BoxStream<'static, Change<Node>> {
        self.watch_collection(Some(format!("metadata.name={}", self.node_name)), "this node")
    }

    fn watch_config_map(&self, namespace: &str, name: &str) -> BoxStream<'static, ObjectState<ConfigMap>> {
        self.watch_one(format!("config map {namespace}/{name}"), Some(namespace), name)
    }

    fn watch_secret(&self, namespace: &str, name: &str) -> BoxStream<'static, ObjectState<Secret>> {
        self.watch_one(format!("secret {namespace}/{name}"), Some(namespace), name)
    }

    async fn get_pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        let request = all::<Pod>(Some(namespace)).get(name, &GetParams::default());
        self.requests.fetch(&format!("get pod {namespace}/{name}"), request).await
    }

    async fn patch_pod_status(&self, namespace: &str, name: &str, patch: &Value) -> Result<Pod> {
        let patch = Patch::Strategic(patch);
        let request = all::<Pod>(Some(namespace)).patch_subresource("status", name, &PatchParams::default(), &patch);
        self.requests.fetch(&format!("patch status of pod {namespace}/{name}"), request).await
    }

    async fn create_pod(&self, pod: &Pod) -> Result<Pod> {
        let PodRef { namespace, name, .. } = PodRef::of(pod);
        let what = format!("create pod {namespace}/{name}");
        let request = all::<Pod>(Some(&namespace)).create(&PostParams::default(), body(pod, &what)?);
        self.requests.fetch(&what, request).await
    }

    async fn delete_pod(&self, namespace: &str, name: &str, uid: &str, grace_seconds: i64) -> Result<()> {
        let what = format!("delete pod {namespace}/{name}");
        let grace_period_seconds = Some(u32::try_from(grace_seconds).unwrap_or(0));
        let preconditions = Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
        let params = DeleteParams { grace_period_seconds, preconditions, ..DeleteParams::default() };
        let request = all::<Pod>(Some(namespace)).delete(name, &params);
        self.requests.send(&what, request).await
    }

    async fn get_node(&self) -> Result<Node> {
        let request = all::<Node>(None).get(&self.node_name, &GetParams::default());
        self.heartbeats.fetch(&format!("get node {}", self.node_name), request).await
    }

    async fn create_node(&self, node: &Node) -> Result<Node> {
        let what = format!("create node {}", self.node_name);
        let request = all::<Node>(None).create(&PostParams::default(), body(node, &what)?);
        self.requests.fetch(&what, request).await
    }

    async fn patch_node(&self, patch: &Value) -> Result<Node> {
        let request = all::<Node>(None).patch(&self.node_name, &PatchParams::default(), &Patch::Strategic(patch));
        self.requests.fetch(&format!("patch node {}", self.node_name), request).await
    }

    async fn patch_node_status(&self, patch: &Value) -> Result<Node> {
        let patch = Patch::Strategic(patch);
        let request = all::<Node>(None).patch_subresource("status", &self.node_name, &PatchParams::default(), &patch);
        self.heartbeats.fetch(&format!("patch status of node {}", self.node_name), request).await
    }

    async fn get_service_account(&self, namespace: &str, name: &str) -> Result<ServiceAccount> {
        let request = all::<ServiceAccount>(Some(namespace)).get(name, &GetParams::default());
        self.requests.fetch(&format!("get service account {namespace}/{name}"), request).await
    }

    async fn get_runtime_class(&self, name: &str) -> Result<RuntimeClass> {
        let request = all::<RuntimeClass>(None).get(name, &GetParams::default());
        self.requests.fetch(&format!("get runtime class {name}"), request).await
    }

    async fn get_lease(&self) -> Result<Lease> {
        let request = all::<Lease>(Some(LEASE_NAMESPACE)).get(&self.node_name, &GetParams::default());
        self.heartbeats.fetch(&format!("get lease {}", self.node_name), request).await
    }

    async fn create_lease(&self, lease: &Lease) -> Result<Lease> {
        let what = format!("create lease {}", self.node_name);
        let request = all::<Lease>(Some(LEASE_NAMESPACE)).create(&PostParams::default(), body(lease, &what)?);
        self.heartbeats.fetch(&what, request).await
    }

    async fn update_lease(&self, lease: &Lease) -> Result<Lease> {
        let what = format!("update lease {}", self.node_name);
        let leases = all::<Lease>(Some(LEASE_NAMESPACE));
        let request = leases.replace(&self.node_name, &PostParams::default(), body(lease, &what)?);
        self.heartbeats.fetch(&what, request).await
    }

    async fn create_event(&self, event: &Event) -> Result<Event> {
        let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
        let what = format!("create event {namespace}/{}", event.metadata.name.as_deref().unwrap_or_default());
        let request = all::<Event>(Some(namespace)).create(&PostParams::default(), body(event, &what)?);
        self.events.fetch(&what, request).await
    }

    async fn patch_event(&self, namespace: &str, name: &str, patch: &Value) -> Result<Event> {
        let request = all::<Event>(Some(namespace)).patch(name, &PatchParams::default(), &Patch::Strategic(patch));
        self.events.fetch(&format!("patch event {namespace}/{name}"), request).await
    }

    async fn request_token(
        &self,
        namespace: &str,
        service_account: &str,
        request: &TokenRequest,
    ) -> Result<TokenRequest> {
        let what = format!("request token of service account {namespace}/{service_account}");
        let accounts = all::<ServiceAccount>(Some(namespace));
        let request =
            accounts.create_subresource("token", service_account, &PostParams::default(), body(request, &what)?);
        self.requests.fetch(&what, request).await
    }
}

#[async_trait]
impl CertificateRequests for KubeCluster {
    async fn create_certificate_request(
        &self,
        request: &CertificateSigningRequest,
    ) -> Result<CertificateSigningRequest> {
        let what = "create certificate signing request";
        let requests = all::<CertificateSigningRequest>(None);
        self.requests.fetch(what, requests.create(&PostParams::default(), body(request, what)?)).await
    }

    fn watch_certificate_request(&self, name: &str) -> BoxStream<'static, ObjectState<CertificateSigningRequest>> {
        self.watch_one(format!("certificate signing request {name}"), None, name)
    }
}

/// Requests about the objects of one kind.
fn all<K: ApiObject>(namespace: Option<&str>) -> Request {
    Request::new(K::url_path(&(), namespace))
}

fn body(object: &impl Serialize, what: &str) -> Result<Vec<u8>> {
    serde_json::to_vec(object).map_err(|error| ApiError::Invalid { what: what.to_owned(), message: error.to_string() })
}

/// Tools that read user agents know `kubelet/<version> (<os>/<architecture>)`.
fn user_agent() -> HeaderValue {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let version = VERSION.split('+').next().unwrap_or(VERSION);
    let ours = env!("CARGO_PKG_VERSION");
    let text = format!("kubelet/{version} (linux/{architecture}) ferrolet/{ours}");
    HeaderValue::from_str(&text).expect("version and architecture are plain ASCII")
}

fn state_of<K>(step: Step<K>) -> Option<ObjectState<K>> {
    match step {
        Step::Change(Change::Listed(objects)) => Some(
            objects.into_iter().next().map_or(ObjectState::Absent, |object| ObjectState::Present(Box::new(object))),
        ),
        Step::Change(Change::Applied(object)) => Some(ObjectState::Present(object)),
        Step::Change(Change::Deleted(_)) => Some(ObjectState::Absent),
        Step::Failed(ApiError::Refused { message, .. }) => Some(ObjectState::Refused(message)),
        Step::Failed(_) => None,
    }
}

/// A watch's place on one of the connections, given back when dropped.
struct Seat {
    lane: usize,
    seats: Arc<Mutex<Vec<usize>>>,
}

impl Seat {
    /// The first connection with room, so that emptied ones fall idle and close.
    fn take(seats: &Arc<Mutex<Vec<usize>>>) -> Self {
        let mut taken = seats.lock().expect("no holder of the seats lock panics");
        let has_room = |(lane, &count): (usize, &usize)| match lane {
            0 => count < WATCHES_BESIDE_REQUESTS,
            _ => count < WATCHES_PER_LANE,
        };
        let lane = taken.iter().enumerate().position(has_room).unwrap_or(taken.len());
        if lane == taken.len() {
            taken.push(0);
        }
        taken[lane] += 1;
        Seat { lane, seats: Arc::clone(seats) }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.lock().expect("no holder of the seats lock panics")[self.lane] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_fill_a_connection_before_they_open_another() {
        let seats = Arc::default();
        let mut taken: Vec<Seat> = (0..250).map(|_| Seat::take(&seats)).collect();
        let lanes: Vec<usize> = taken.iter().map(|seat| seat.lane).collect();
        assert_eq!([lanes[0], lanes[39], lanes[40], lanes[129], lanes[130]], [0, 0, 1, 1, 2]);
        // A seat given back is the next one taken.
        drop(taken.remove(50));
        assert_eq!(Seat::take(&seats).lane, 1);
    }
}
