//! The API objects that pods on this node mention: config maps, secrets, services, tokens.
//!
//! A pod is registered while it is here; each config map and secret it mentions is watched
//! by itself, because the Node authorizer lets a node read those and no others. However
//! many pods mention an object, it has one watch (`store.rs`), and all of them share a few
//! HTTP/2 connections. Services are watched as a whole and kept as the few fields that
//! environment variables are made of (`services.rs`). Tokens are asked for when a volume
//! needs one, and kept until it is time for the next (`tokens.rs`).
//!
//! In: `register` and `unregister` from the sync loop; the cluster's watches.
//! Out: answers to `config_map`, `secret`, `services`; `wake` for exactly the pods that
//! mention an object that changed.
//!
//! Always true: what was once read is served until something newer is, whether the API
//! server is there or not; nobody waits longer than `store::ANSWER_WITHIN`.

mod services;
mod store;
pub mod tokens;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};

use crate::kube::{ApiError, Cluster};
use crate::pod::references::References;
use crate::pod::services::Services;
use crate::pod::{PodRef, PodUid};
use services::ServiceWatch;
use store::Store;

/// Tells the sync loop to look at a pod again.
pub type Wake = Arc<dyn Fn(&PodUid) + Send + Sync>;

/// Why an object cannot be given. That it does not exist is an answer and not an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// The pods that mention it are woken as soon as it is known.
    #[error("{kind} {namespace}/{name} is not known yet: {why}")]
    NotYet { kind: &'static str, namespace: String, name: String, why: String },
    #[error("{kind} {namespace}/{name} is not mentioned by any pod registered here")]
    NotRegistered { kind: &'static str, namespace: String, name: String },
    #[error("{kind} {namespace}/{name} cannot be read: this node runs without an API server")]
    NoCluster { kind: &'static str, namespace: String, name: String },
    #[error("RuntimeClass {name:?} cannot be read: {why}")]
    RuntimeClass { name: String, why: String },
    #[error("RuntimeClass {0:?} not found")]
    NoRuntimeClass(String),
}

/// Handle to the cache. Clones share it.
#[derive(Clone)]
pub struct Objects(Option<Arc<Stores>>);

struct Stores {
    config_maps: Store<ConfigMap>,
    secrets: Store<Secret>,
    services: ServiceWatch,
    cluster: Arc<dyn Cluster>,
    /// Handlers by RuntimeClass, as last read.
    runtime_handlers: Mutex<BTreeMap<String, String>>,
}

impl Objects {
    /// Starts the watch of services. Without a cluster every question is answered
    /// `NoCluster`.
    pub fn new(cluster: Option<Arc<dyn Cluster>>, wake: Wake) -> Self {
        Objects(cluster.map(|cluster| {
            Arc::new(Stores {
                config_maps: Store::new(Arc::clone(&cluster), Arc::clone(&wake)),
                secrets: Store::new(Arc::clone(&cluster), Arc::clone(&wake)),
                services: ServiceWatch::start(cluster.as_ref(), wake),
                cluster,
                runtime_handlers: Mutex::default(),
            })
        }))
    }

    /// Watches what the pod mentions, and stops watching what its earlier spec did.
    pub fn register(&self, pod: &Pod) {
        let Some(stores) = &self.0 else { return };
        let PodRef { namespace, uid, .. } = PodRef::of(pod);
        let References { config_maps, secrets } = References::of(pod);
        stores.config_maps.want(&uid, &namespace, config_maps);
        stores.secrets.want(&uid, &namespace, secrets);
        stores.services.add_pod(&uid);
    }

    /// Ends the pod's interest. Watches without another user linger a while, because a pod
    /// that is replaced mentions the same objects again.
    pub fn unregister(&self, uid: &PodUid) {
        let Some(stores) = &self.0 else { return };
        stores.config_maps.want_nothing(uid);
        stores.secrets.want_nothing(uid);
        stores.services.remove_pod(uid);
    }

    /// The config map as last seen, `None` when there is none of that name. Waits, within
    /// bounds, for the first answer.
    pub async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, ObjectError> {
        match &self.0 {
            Some(stores) => stores.config_maps.get(namespace, name).await,
            None => Err(no_cluster("config map", namespace, name)),
        }
    }

    /// As [`Objects::config_map`].
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, ObjectError> {
        match &self.0 {
            Some(stores) => stores.secrets.get(namespace, name).await,
            None => Err(no_cluster("secret", namespace, name)),
        }
    }

    /// The runtime's name for a RuntimeClass. What was read once serves while the API server
    /// is away.
    pub async fn runtime_handler(&self, class: &str) -> Result<String, ObjectError> {
        let Some(stores) = &self.0 else { return Err(no_cluster("runtime class", "", class)) };
        let handlers = || stores.runtime_handlers.lock().expect("nothing that holds the handlers can panic");
        match stores.cluster.get_runtime_class(class).await {
            Ok(found) => {
                handlers().insert(class.to_owned(), found.handler.clone());
                Ok(found.handler)
            }
            Err(ApiError::NotFound { .. }) => {
                handlers().remove(class);
                Err(ObjectError::NoRuntimeClass(class.to_owned()))
            }
            Err(error) => match handlers().get(class) {
                Some(handler) => Ok(handler.clone()),
                None => Err(ObjectError::RuntimeClass { name: class.to_owned(), why: error.to_string() }),
            },
        }
    }

    /// The services, `None` until they have been listed once; the pods registered here are
    /// then woken. Without a cluster there are none.
    pub fn services(&self) -> Option<Services> {
        match &self.0 {
            Some(stores) => stores.services.latest(),
            None => Some(Services::default()),
        }
    }
}

fn no_cluster(kind: &'static str, namespace: &str, name: &str) -> ObjectError {
    ObjectError::NoCluster { kind, namespace: namespace.to_owned(), name: name.to_owned() }
}

#[cfg(test)]
mod tests;
