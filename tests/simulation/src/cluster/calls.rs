//! What the agent may ask of the API server, behind its trait.

use async_trait::async_trait;
use ferrolet::kube::{ApiError, Change, Cluster, ObjectState, Result, Reviews};
use futures::StreamExt;
use futures::stream::BoxStream;
use jiff::SignedDuration;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestStatus, TokenReview};
use k8s_openapi::api::authorization::v1::{SubjectAccessReview, SubjectAccessReviewStatus};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod, PodStatus, Secret, Service, ServiceAccount};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::merge::merged;
use super::{SimCluster, key, map_state, secret_state, told};

/// Nobody calls a simulated node: no token is valid, and everybody may do everything.
#[async_trait]
impl Reviews for SimCluster {
    async fn review_token(&self, review: &TokenReview) -> Result<TokenReview> {
        let review = review.clone();
        self.call("review token".into(), Box::new(move |_| Ok(review))).await
    }

    async fn review_access(&self, review: &SubjectAccessReview) -> Result<SubjectAccessReview> {
        let status = SubjectAccessReviewStatus { allowed: true, ..SubjectAccessReviewStatus::default() };
        let review = SubjectAccessReview { status: Some(status), ..review.clone() };
        self.call("review access".into(), Box::new(move |_| Ok(review))).await
    }
}

#[async_trait]
impl Cluster for SimCluster {
    fn watch_pods(&self) -> BoxStream<'static, Change<Pod>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.state();
        if state.down_until.is_none() {
            let _ = sender.send(Change::Listed(state.pods.values().cloned().collect()));
        }
        state.watchers.push(sender);
        UnboundedReceiverStream::new(receiver).boxed()
    }

    fn watch_services(&self) -> BoxStream<'static, Change<Service>> {
        futures::stream::iter([Change::Listed(Vec::new())]).chain(futures::stream::pending()).boxed()
    }

    fn watch_node(&self) -> BoxStream<'static, Change<Node>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.state();
        if state.down_until.is_none() {
            let _ = sender.send(Change::Listed(state.node.iter().cloned().collect()));
        }
        state.node_watchers.push(sender);
        UnboundedReceiverStream::new(receiver).boxed()
    }

    fn watch_config_map(&self, _namespace: &str, name: &str) -> BoxStream<'static, ObjectState<ConfigMap>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.state();
        if state.down_until.is_none() {
            let _ = sender.send(map_state(&state.config_maps, name));
        }
        state.map_watchers.push((name.to_owned(), sender));
        UnboundedReceiverStream::new(receiver).boxed()
    }

    fn watch_secret(&self, _namespace: &str, name: &str) -> BoxStream<'static, ObjectState<Secret>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.state();
        if state.down_until.is_none() {
            let _ = sender.send(secret_state(&state.config_maps, name));
        }
        state.secret_watchers.push((name.to_owned(), sender));
        UnboundedReceiverStream::new(receiver).boxed()
    }

    async fn get_pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        let (what, wanted) = (format!("get pod {namespace}/{name}"), key(namespace, name));
        let missing = what.clone();
        self.call(
            what,
            Box::new(move |cluster| {
                cluster.state().pods.get(&wanted).cloned().ok_or(ApiError::NotFound { what: missing })
            }),
        )
        .await
    }

    async fn patch_pod_status(&self, namespace: &str, name: &str, patch: &Value) -> Result<Pod> {
        let what = format!("patch status of pod {namespace}/{name}");
        let (wanted, patch, missing) = (key(namespace, name), patch.clone(), what.clone());
        self.call(
            what,
            Box::new(move |cluster| {
                let mut state = cluster.state();
                let Some(pod) = state.pods.get(&wanted).cloned() else {
                    return Err(ApiError::NotFound { what: missing });
                };
                let uid = patch["metadata"]["uid"].as_str();
                if uid.is_some_and(|uid| Some(uid) != pod.metadata.uid.as_deref()) {
                    return Err(ApiError::Conflict { what: missing, message: "another uid".into() });
                }
                state.writes.push((wanted.1.clone(), "patch status"));
                let before = pod.status.clone().unwrap_or_default();
                let after: PodStatus = merged(&missing, &before, &patch["status"])?;
                cluster.check_patch(&wanted.1, &patch["status"]);
                if !state.put_back.contains(&wanted.1) {
                    cluster.check_successor(&state, &pod, &after);
                }
                cluster.note_end(&mut state, &pod, &after);
                cluster.tell_runtime(&pod, &after);
                cluster.world.log(|| format!("status of {}: {}", wanted.1, told(&after)));
                Ok(cluster.put(&mut state, Pod { status: Some(after), ..pod }))
            }),
        )
        .await
    }

    async fn create_pod(&self, pod: &Pod) -> Result<Pod> {
        let mut pod = pod.clone();
        let wanted = key(
            pod.metadata.namespace.as_deref().unwrap_or_default(),
            pod.metadata.name.as_deref().unwrap_or_default(),
        );
        let what = format!("create pod {}/{}", wanted.0, wanted.1);
        let taken = what.clone();
        self.call(
            what,
            Box::new(move |cluster| {
                let mut state = cluster.state();
                if state.pods.contains_key(&wanted) {
                    return Err(ApiError::AlreadyExists { what: taken });
                }
                pod.metadata.uid = Some(format!("mirror-{}", state.version));
                pod.metadata.creation_timestamp = Some(Time(cluster.world.clock.wall()));
                pod.status = Some(PodStatus { phase: Some("Pending".into()), ..PodStatus::default() });
                cluster.world.log(|| format!("mirror pod {} created", wanted.1));
                Ok(cluster.put(&mut state, pod))
            }),
        )
        .await
    }

    async fn delete_pod(&self, namespace: &str, name: &str, uid: &str, grace_seconds: i64) -> Result<()> {
        let what = format!("delete pod {namespace}/{name}");
        let (namespace, name, uid, missing) = (namespace.to_owned(), name.to_owned(), uid.to_owned(), what.clone());
        self.call(
            what,
            Box::new(move |cluster| {
                let mut state = cluster.state();
                let Some(pod) = state.pods.get(&key(&namespace, &name)) else {
                    return Err(ApiError::NotFound { what: missing });
                };
                if pod.metadata.uid.as_deref() != Some(&uid) {
                    return Err(ApiError::Conflict { what: missing, message: "another uid".into() });
                }
                cluster.check_leaving(pod);
                assert_eq!(grace_seconds, 0, "a node agent deletes finally or not at all");
                cluster.remove(&mut state, &namespace, &name);
                Ok(())
            }),
        )
        .await
    }

    /// No simulated pod asks for one.
    async fn get_service_account(&self, namespace: &str, name: &str) -> Result<ServiceAccount> {
        Err(ApiError::NotFound { what: format!("get service account {namespace}/{name}") })
    }

    /// No simulated pod asks for one.
    async fn get_runtime_class(&self, name: &str) -> Result<RuntimeClass> {
        Err(ApiError::NotFound { what: format!("get runtime class {name}") })
    }

    async fn get_node(&self) -> Result<Node> {
        self.call(
            "get node".into(),
            Box::new(|cluster| cluster.state().node.clone().ok_or(ApiError::NotFound { what: "get node".into() })),
        )
        .await
    }

    async fn create_node(&self, node: &Node) -> Result<Node> {
        let mut node = node.clone();
        self.call(
            "create node".into(),
            Box::new(move |cluster| {
                let mut state = cluster.state();
                if state.node.is_some() {
                    return Err(ApiError::AlreadyExists { what: "create node".into() });
                }
                state.version += 1;
                node.metadata.uid = Some(format!("node-{}", state.version));
                node.metadata.resource_version = Some(state.version.to_string());
                state.node = Some(node.clone());
                cluster.tell_node(&mut state, Change::Applied(Box::new(node.clone())));
                Ok(node)
            }),
        )
        .await
    }

    async fn patch_node(&self, patch: &Value) -> Result<Node> {
        self.patch("patch node", patch.clone()).await
    }

    async fn patch_node_status(&self, patch: &Value) -> Result<Node> {
        self.patch("patch node status", patch.clone()).await
    }

    async fn get_lease(&self) -> Result<Lease> {
        self.call(
            "get lease".into(),
            Box::new(|cluster| cluster.state().lease.clone().ok_or(ApiError::NotFound { what: "get lease".into() })),
        )
        .await
    }

    async fn create_lease(&self, lease: &Lease) -> Result<Lease> {
        self.update_lease(lease).await
    }

    async fn update_lease(&self, lease: &Lease) -> Result<Lease> {
        let lease = lease.clone();
        self.call(
            "write lease".into(),
            Box::new(move |cluster| {
                cluster.state().lease = Some(lease.clone());
                Ok(lease)
            }),
        )
        .await
    }

    async fn create_event(&self, event: &Event) -> Result<Event> {
        let record = event.clone();
        self.call(
            "create event".into(),
            Box::new(move |cluster| {
                cluster.tell_event(&record);
                Ok(record)
            }),
        )
        .await
    }

    async fn patch_event(&self, _namespace: &str, name: &str, _patch: &Value) -> Result<Event> {
        // Events are named after their object.
        let object = name.split('.').next().unwrap_or_default().to_owned();
        self.call(
            "patch event".into(),
            Box::new(move |cluster| {
                cluster.state().writes.push((object, "patch event"));
                Ok(Event::default())
            }),
        )
        .await
    }

    async fn request_token(
        &self,
        _namespace: &str,
        _service_account: &str,
        request: &TokenRequest,
    ) -> Result<TokenRequest> {
        let mut request = request.clone();
        self.call(
            "request token".into(),
            Box::new(move |cluster| {
                let lifetime = request.spec.as_ref().and_then(|spec| spec.expiration_seconds).unwrap_or(3600);
                let expires = cluster.world.clock.wall() + SignedDuration::from_secs(lifetime);
                let token = cluster.world.token_for(lifetime.unsigned_abs());
                request.status =
                    Some(TokenRequestStatus { expiration_timestamp: Some(Time(expires)), token: Some(token) });
                Ok(request)
            }),
        )
        .await
    }
}

impl SimCluster {
    fn tell_event(&self, event: &Event) {
        let name = event.involved_object.name.clone().unwrap_or_default();
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        self.world.log(|| format!("event of {name}: {} {}", text(&event.reason), text(&event.message)));
        self.check_event(event);
        self.state().writes.push((name, "create event"));
    }

    async fn patch(&self, what: &'static str, patch: Value) -> Result<Node> {
        self.call(
            what.into(),
            Box::new(move |cluster| {
                let mut state = cluster.state();
                let Some(node) = state.node.clone() else { return Err(ApiError::NotFound { what: what.into() }) };
                let mut next: Node = merged(what, &node, &patch)?;
                state.version += 1;
                next.metadata.resource_version = Some(state.version.to_string());
                state.node = Some(next.clone());
                cluster.tell_node(&mut state, Change::Applied(Box::new(next.clone())));
                Ok(next)
            }),
        )
        .await
    }
}
