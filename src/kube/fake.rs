//! A cluster in memory for the tests of those who write to it: pods, the node and its lease.
//!
//! It applies strategic merge patches as far as these objects need them, counts resource
//! versions up, checks UID preconditions, and answers with prepared errors: a queue for
//! single calls ([`FakeCluster::fail_next`]), a switch for all of them
//! ([`FakeCluster::set_outage`]). Every call is recorded as `verb object`. Watches other than
//! the node's yield what the test sends to them, and nothing before that.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenReview, TokenReviewStatus, UserInfo};
use k8s_openapi::api::authorization::v1::{SubjectAccessReview, SubjectAccessReviewStatus};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::node::v1::RuntimeClass;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::{ApiError, Change, Cluster, ObjectState, Result, Reviews};

#[derive(Clone, Default)]
pub struct FakeCluster {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    version: u64,
    pods: BTreeMap<(String, String), Pod>,
    node: Option<Node>,
    lease: Option<Lease>,
    node_watchers: Vec<mpsc::UnboundedSender<Change<Node>>>,
    /// The sending ends of the other watches, by what is watched.
    feeds: BTreeMap<String, Box<dyn Any + Send>>,
    /// Answers to `request_token`, in order.
    tokens: VecDeque<TokenRequest>,
    service_accounts: BTreeMap<(String, String), ServiceAccount>,
    /// Whose each valid token is.
    token_owners: BTreeMap<String, UserInfo>,
    /// User, verb and subresource of the node that are allowed.
    grants: BTreeSet<(String, String, String)>,
    outage: Option<ApiError>,
    prepared: BTreeMap<String, VecDeque<ApiError>>,
    /// How long each answer takes.
    latency: Duration,
    calls: Vec<(String, Value)>,
    in_flight: usize,
    in_flight_max: usize,
}

impl FakeCluster {
    /// Every call ends with `error`, until it is `None` again.
    pub fn set_outage(&self, error: Option<ApiError>) {
        self.state().outage = error;
    }

    /// The next call of that kind on that object (`patch shop/web-0`) ends with `error`.
    pub fn fail_next(&self, call: &str, error: ApiError) {
        self.state().prepared.entry(call.to_owned()).or_default().push_back(error);
    }

    pub fn set_latency(&self, latency: Duration) {
        self.state().latency = latency;
    }

    /// All calls so far, with what they sent.
    pub fn calls(&self) -> Vec<(String, Value)> {
        self.state().calls.clone()
    }

    pub fn call_names(&self) -> Vec<String> {
        self.state().calls.iter().map(|(call, _)| call.clone()).collect()
    }

    /// What was sent with each call of that name.
    pub fn sent(&self, call: &str) -> Vec<Value> {
        let state = self.state();
        let matching = state.calls.iter().filter(|(name, _)| name == call);
        matching.map(|(_, sent)| sent.clone()).collect()
    }

    pub fn clear_calls(&self) {
        self.state().calls.clear();
    }

    /// The most calls that were ever under way at once.
    pub fn in_flight_max(&self) -> usize {
        self.state().in_flight_max
    }

    /// Puts a pod in as somebody else would, and returns it as stored.
    pub fn put_pod(&self, pod: Pod) -> Arc<Pod> {
        let mut state = self.state();
        let pod = state.stored(pod, |pod| &mut pod.metadata);
        state.pods.insert(key(&pod), pod.clone());
        Arc::new(pod)
    }

    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.state().pods.get(&(namespace.to_owned(), name.to_owned())).cloned().map(Arc::new)
    }

    pub fn remove_pod(&self, namespace: &str, name: &str) {
        self.state().pods.remove(&(namespace.to_owned(), name.to_owned()));
    }

    pub fn node(&self) -> Option<Node> {
        self.state().node.clone()
    }

    /// Puts the node in, or removes it, as somebody else would.
    pub fn put_node(&self, node: Option<Node>) {
        let mut state = self.state();
        let change = match node {
            Some(node) => {
                let node = state.stored(node, |node| &mut node.metadata);
                state.node = Some(node.clone());
                Some(Change::Applied(Box::new(node)))
            }
            None => state.node.take().map(|node| Change::Deleted(Box::new(node))),
        };
        if let Some(change) = change {
            state.tell(&change);
        }
    }

    pub fn lease(&self) -> Option<Lease> {
        self.state().lease.clone()
    }

    pub fn put_lease(&self, lease: Option<Lease>) {
        let mut state = self.state();
        state.lease = lease.map(|lease| state.stored(lease, |lease| &mut lease.metadata));
    }

    pub fn send_pods(&self, change: Change<Pod>) {
        self.feed("watch pods", change);
    }

    pub fn send_services(&self, change: Change<Service>) {
        self.feed("watch services", change);
    }

    pub fn send_config_map(&self, namespace: &str, name: &str, state: ObjectState<ConfigMap>) {
        self.feed(&format!("watch config map {namespace}/{name}"), state);
    }

    pub fn send_secret(&self, namespace: &str, name: &str, state: ObjectState<Secret>) {
        self.feed(&format!("watch secret {namespace}/{name}"), state);
    }

    /// Whether someone still listens to the watch last opened of this config map.
    pub fn is_config_map_watched(&self, namespace: &str, name: &str) -> bool {
        type Feed = mpsc::UnboundedSender<ObjectState<ConfigMap>>;
        let state = self.state();
        let feed = state.feeds.get(&format!("watch config map {namespace}/{name}"));
        feed.and_then(|feed| feed.downcast_ref::<Feed>()).is_some_and(|feed| !feed.is_closed())
    }

    pub fn grant_token(&self, answer: TokenRequest) {
        self.state().tokens.push_back(answer);
    }

    pub fn put_service_account(&self, account: ServiceAccount) {
        let metadata = &account.metadata;
        let key = (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default());
        self.state().service_accounts.insert(key, account);
    }

    /// From now on this token is valid, or no more.
    pub fn set_token_owner(&self, token: &str, owner: Option<UserInfo>) {
        let owners = &mut self.state().token_owners;
        match owner {
            Some(owner) => drop(owners.insert(token.to_owned(), owner)),
            None => drop(owners.remove(token)),
        }
    }

    /// Lets a user do this with a subresource of the node.
    pub fn grant(&self, user: &str, verb: &str, subresource: &str) {
        self.state().grants.insert((user.to_owned(), verb.to_owned(), subresource.to_owned()));
    }

    pub fn revoke_all(&self) {
        self.state().grants.clear();
    }

    fn feed<T: Send + 'static>(&self, watch: &str, item: T) {
        let state = self.state();
        let feed = state.feeds.get(watch).unwrap_or_else(|| panic!("nobody has opened {watch:?}"));
        let feed: &mpsc::UnboundedSender<T> = feed.downcast_ref().expect("a name stands for one type");
        feed.send(item).unwrap_or_else(|_| panic!("{watch:?} is closed"));
    }

    fn open_feed<T: Send + 'static>(&self, watch: String) -> BoxStream<'static, T> {
        let (sender, receiver) = mpsc::unbounded_channel::<T>();
        let mut state = self.state();
        state.calls.push((watch.clone(), Value::Null));
        state.feeds.insert(watch, Box::new(sender));
        received(receiver)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the fake's lock panics")
    }

    /// Records the call, waits as long as it takes, and answers with a prepared error.
    async fn enter(&self, call: String, sent: Value) -> Result<()> {
        let latency = {
            let mut state = self.state();
            state.calls.push((call.clone(), sent));
            state.in_flight += 1;
            state.in_flight_max = state.in_flight_max.max(state.in_flight);
            state.latency
        };
        if !latency.is_zero() {
            sleep(latency).await;
        }
        let mut state = self.state();
        state.in_flight -= 1;
        if let Some(error) = state.prepared.get_mut(&call).and_then(VecDeque::pop_front) {
            return Err(error);
        }
        state.outage.clone().map_or(Ok(()), Err)
    }

    async fn patch_the_node(&self, call: &str, patch: &Value, part: &[&str]) -> Result<Node> {
        self.enter(call.to_owned(), patch.clone()).await?;
        let mut state = self.state();
        let node = state.node.clone().ok_or(ApiError::NotFound { what: call.to_owned() })?;
        let patched = patched(&node, &only(patch, part));
        let node = state.stored(patched, |node| &mut node.metadata);
        state.node = Some(node.clone());
        state.tell(&Change::Applied(Box::new(node.clone())));
        Ok(node)
    }
}

impl State {
    /// The object with what the API server fills in.
    fn stored<T>(
        &mut self,
        mut object: T,
        metadata: impl Fn(&mut T) -> &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    ) -> T {
        self.version += 1;
        let metadata = metadata(&mut object);
        metadata.resource_version = Some(self.version.to_string());
        metadata.uid.get_or_insert_with(|| format!("api-{}", self.version));
        object
    }

    fn tell(&mut self, change: &Change<Node>) {
        self.node_watchers.retain(|watcher| watcher.send(change.clone()).is_ok());
    }
}

/// Never ends, as no watch does.
fn received<T: Send + 'static>(receiver: mpsc::UnboundedReceiver<T>) -> BoxStream<'static, T> {
    stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) })
        .chain(stream::pending())
        .boxed()
}

fn key(pod: &Pod) -> (String, String) {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

/// Only these top-level fields of a patch, as the API server does for subresources.
fn only(patch: &Value, fields: &[&str]) -> Value {
    let fields = fields.iter().filter_map(|field| Some(((*field).to_owned(), patch.get(*field)?.clone())));
    Value::Object(fields.collect())
}

fn patched<T: Serialize + DeserializeOwned>(object: &T, patch: &Value) -> T {
    let mut value = json!(object);
    merge(&mut value, patch, "");
    serde_json::from_value(value).expect("a patched object keeps its form")
}

/// Lists that are merged element by element, and by what.
fn merge_key(field: &str) -> Option<&'static str> {
    match field {
        "conditions" | "addresses" => Some("type"),
        "podIPs" | "hostIPs" => Some("ip"),
        "ownerReferences" => Some("uid"),
        _ => None,
    }
}

fn merge(value: &mut Value, patch: &Value, field: &str) {
    match (&mut *value, patch) {
        (Value::Object(old), Value::Object(new)) => {
            for (name, part) in new {
                if part.is_null() {
                    old.remove(name);
                } else {
                    merge(old.entry(name.clone()).or_insert(Value::Null), part, name);
                }
            }
        }
        (_, Value::Array(new)) => {
            let Some(key) = merge_key(field) else {
                *value = patch.clone();
                return;
            };
            let directive = |element: &Value| element.get("$patch").and_then(Value::as_str).map(str::to_owned);
            let mut list = value.as_array().cloned().unwrap_or_default();
            if new.iter().any(|element| directive(element).as_deref() == Some("replace")) {
                list.clear();
            }
            for element in new {
                let place = list.iter().position(|old| old[key] == element[key]);
                match (directive(element).as_deref(), place) {
                    (Some("delete"), Some(place)) => drop(list.remove(place)),
                    (Some(_), _) => {}
                    (None, Some(place)) => merge(&mut list[place], element, ""),
                    (None, None) => {
                        let mut fresh = Value::Object(serde_json::Map::new());
                        merge(&mut fresh, element, "");
                        list.push(fresh);
                    }
                }
            }
            *value = Value::Array(list);
        }
        (_, Value::Object(_)) => {
            *value = Value::Object(serde_json::Map::new());
            merge(value, patch, field);
        }
        _ => *value = patch.clone(),
    }
}

#[async_trait]
impl Reviews for FakeCluster {
    async fn review_token(&self, review: &TokenReview) -> Result<TokenReview> {
        self.enter("review token".into(), json!(review)).await?;
        let owner = self.state().token_owners.get(&review.spec.token).cloned();
        let status =
            TokenReviewStatus { authenticated: Some(owner.is_some()), user: owner, ..TokenReviewStatus::default() };
        Ok(TokenReview { status: Some(status), ..review.clone() })
    }

    async fn review_access(&self, review: &SubjectAccessReview) -> Result<SubjectAccessReview> {
        self.enter("review access".into(), json!(review)).await?;
        let act = review.spec.resource_attributes.clone().unwrap_or_default();
        let text = |part: Option<String>| part.unwrap_or_default();
        let wanted = (text(review.spec.user.clone()), text(act.verb), text(act.subresource));
        let allowed = self.state().grants.contains(&wanted);
        let status = SubjectAccessReviewStatus { allowed, ..SubjectAccessReviewStatus::default() };
        Ok(SubjectAccessReview { status: Some(status), ..review.clone() })
    }
}

#[async_trait]
impl Cluster for FakeCluster {
    fn watch_pods(&self) -> BoxStream<'static, Change<Pod>> {
        self.open_feed("watch pods".into())
    }

    fn watch_services(&self) -> BoxStream<'static, Change<Service>> {
        self.open_feed("watch services".into())
    }

    fn watch_node(&self) -> BoxStream<'static, Change<Node>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.state();
        let _ = sender.send(Change::Listed(state.node.iter().cloned().collect()));
        state.node_watchers.push(sender);
        received(receiver)
    }

    fn watch_config_map(&self, namespace: &str, name: &str) -> BoxStream<'static, ObjectState<ConfigMap>> {
        self.open_feed(format!("watch config map {namespace}/{name}"))
    }

    fn watch_secret(&self, namespace: &str, name: &str) -> BoxStream<'static, ObjectState<Secret>> {
        self.open_feed(format!("watch secret {namespace}/{name}"))
    }

    async fn get_pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        let call = format!("get {namespace}/{name}");
        self.enter(call.clone(), Value::Null).await?;
        self.pod(namespace, name).map(|pod| (*pod).clone()).ok_or(ApiError::NotFound { what: call })
    }

    async fn patch_pod_status(&self, namespace: &str, name: &str, patch: &Value) -> Result<Pod> {
        let call = format!("patch {namespace}/{name}");
        self.enter(call.clone(), patch.clone()).await?;
        let pod = self.pod(namespace, name).ok_or(ApiError::NotFound { what: call.clone() })?;
        if patch["metadata"].get("uid").is_some_and(|uid| uid.as_str() != pod.metadata.uid.as_deref()) {
            return Err(ApiError::Conflict { what: call, message: "UID in precondition differs".into() });
        }
        Ok((*self.put_pod(patched(&*pod, &only(patch, &["status"])))).clone())
    }

    async fn create_pod(&self, pod: &Pod) -> Result<Pod> {
        let (namespace, name) = key(pod);
        self.enter(format!("create {namespace}/{name}"), json!(pod)).await?;
        Ok((*self.put_pod(pod.clone())).clone())
    }

    async fn delete_pod(&self, namespace: &str, name: &str, uid: &str, grace_seconds: i64) -> Result<()> {
        let call = format!("delete {namespace}/{name}");
        self.enter(call.clone(), json!({"uid": uid, "grace": grace_seconds})).await?;
        let pod = self.pod(namespace, name).ok_or(ApiError::NotFound { what: call.clone() })?;
        if pod.metadata.uid.as_deref() != Some(uid) {
            return Err(ApiError::Conflict { what: call, message: "UID in precondition differs".into() });
        }
        self.remove_pod(namespace, name);
        Ok(())
    }

    /// The one of its name that was put here.
    async fn get_service_account(&self, namespace: &str, name: &str) -> Result<ServiceAccount> {
        let what = format!("get service account {namespace}/{name}");
        self.enter(what.clone(), Value::Null).await?;
        let found = self.state().service_accounts.get(&(namespace.to_owned(), name.to_owned())).cloned();
        found.ok_or(ApiError::NotFound { what })
    }

    async fn get_runtime_class(&self, name: &str) -> Result<RuntimeClass> {
        let what = format!("get runtime class {name}");
        self.enter(what.clone(), Value::Null).await?;
        // Every class is there whose name says so.
        match name.strip_prefix("class-of-") {
            Some(handler) => Ok(RuntimeClass { handler: handler.to_owned(), ..RuntimeClass::default() }),
            None => Err(ApiError::NotFound { what }),
        }
    }

    async fn get_node(&self) -> Result<Node> {
        self.enter("get node".into(), Value::Null).await?;
        self.node().ok_or(ApiError::NotFound { what: "get node".into() })
    }

    async fn create_node(&self, node: &Node) -> Result<Node> {
        self.enter("create node".into(), json!(node)).await?;
        if self.node().is_some() {
            return Err(ApiError::AlreadyExists { what: "create node".into() });
        }
        self.put_node(Some(node.clone()));
        self.node().ok_or(ApiError::NotFound { what: "create node".into() })
    }

    async fn patch_node(&self, patch: &Value) -> Result<Node> {
        self.patch_the_node("patch node", patch, &["metadata", "spec"]).await
    }

    async fn patch_node_status(&self, patch: &Value) -> Result<Node> {
        // The status subresource takes metadata along, for the annotations of the node.
        self.patch_the_node("patch node status", patch, &["metadata", "status"]).await
    }

    async fn get_lease(&self) -> Result<Lease> {
        self.enter("get lease".into(), Value::Null).await?;
        self.lease().ok_or(ApiError::NotFound { what: "get lease".into() })
    }

    async fn create_lease(&self, lease: &Lease) -> Result<Lease> {
        self.enter("create lease".into(), json!(lease)).await?;
        if self.lease().is_some() {
            return Err(ApiError::AlreadyExists { what: "create lease".into() });
        }
        self.put_lease(Some(lease.clone()));
        self.lease().ok_or(ApiError::NotFound { what: "create lease".into() })
    }

    async fn update_lease(&self, lease: &Lease) -> Result<Lease> {
        let what = || "update lease".to_owned();
        self.enter(what(), json!(lease)).await?;
        let stored = self.lease().ok_or(ApiError::NotFound { what: what() })?;
        if stored.metadata.resource_version != lease.metadata.resource_version {
            return Err(ApiError::Conflict { what: what(), message: "the object has been modified".into() });
        }
        self.put_lease(Some(lease.clone()));
        self.lease().ok_or(ApiError::NotFound { what: what() })
    }

    async fn create_event(&self, event: &Event) -> Result<Event> {
        self.enter("create event".into(), json!(event)).await?;
        Ok(event.clone())
    }

    async fn patch_event(&self, _: &str, _: &str, patch: &Value) -> Result<Event> {
        self.enter("patch event".into(), patch.clone()).await?;
        Ok(Event::default())
    }

    async fn request_token(
        &self,
        namespace: &str,
        service_account: &str,
        request: &TokenRequest,
    ) -> Result<TokenRequest> {
        self.enter(format!("request token {namespace}/{service_account}"), json!(request)).await?;
        Ok(self.state().tokens.pop_front().unwrap_or_else(|| request.clone()))
    }
}
