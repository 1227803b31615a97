//! Services, as far as environment variables are made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1;
use tokio::task::JoinHandle;

use super::Wake;
use crate::kube::{Change, Cluster};
use crate::pod::PodUid;

/// A service with an address of its own. The others (headless, ExternalName) have no
/// environment variables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub cluster_ip: String,
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    pub name: Option<String>,
    pub port: i32,
    /// `TCP` unless the service says otherwise.
    pub protocol: String,
}

/// All services of one moment, by namespace and name.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Services(Arc<ByName>);

type ByName = BTreeMap<String, BTreeMap<String, Arc<Service>>>;

impl Services {
    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Service> {
        self.0.get(namespace).into_iter().flat_map(|services| services.values().map(Arc::as_ref))
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.0.get(namespace)?.get(name).map(Arc::as_ref)
    }

    fn set(&mut self, service: &v1::Service) {
        self.remove(service);
        if let Some(service) = Service::with_address(service) {
            let namespace = Arc::make_mut(&mut self.0).entry(service.namespace.clone()).or_default();
            namespace.insert(service.name.clone(), Arc::new(service));
        }
    }

    fn remove(&mut self, service: &v1::Service) {
        let (Some(namespace), Some(name)) = (&service.metadata.namespace, &service.metadata.name) else { return };
        if let Some(services) = Arc::make_mut(&mut self.0).get_mut(namespace) {
            services.remove(name);
        }
    }
}

impl FromIterator<v1::Service> for Services {
    fn from_iter<I: IntoIterator<Item = v1::Service>>(services: I) -> Self {
        let mut all = Services::default();
        services.into_iter().for_each(|service| all.set(&service));
        all
    }
}

impl Service {
    fn with_address(service: &v1::Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let cluster_ip = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None")?;
        let ports = spec.ports.iter().flatten().map(|port| ServicePort {
            name: port.name.clone().filter(|name| !name.is_empty()),
            port: port.port,
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        });
        Some(Service {
            namespace: service.metadata.namespace.clone()?,
            name: service.metadata.name.clone()?,
            cluster_ip: cluster_ip.to_owned(),
            ports: ports.collect(),
        })
    }
}

/// The watch of all services, and who waits for its first answer.
pub(super) struct ServiceWatch {
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

enum State {
    /// Not listed yet; these pods are woken when it is.
    Unread { pods: BTreeSet<PodUid> },
    Read(Services),
}

impl ServiceWatch {
    pub(super) fn start(cluster: &dyn Cluster, wake: Wake) -> Self {
        let state = Arc::new(Mutex::new(State::Unread { pods: BTreeSet::new() }));
        let task = tokio::spawn(follow(cluster.watch_services(), Arc::clone(&state), wake));
        ServiceWatch { state, task }
    }

    pub(super) fn add_pod(&self, uid: &PodUid) {
        if let State::Unread { pods } = &mut *self.state.lock().expect("no holder of the services lock panics") {
            pods.insert(uid.clone());
        }
    }

    pub(super) fn remove_pod(&self, uid: &PodUid) {
        if let State::Unread { pods } = &mut *self.state.lock().expect("no holder of the services lock panics") {
            pods.remove(uid);
        }
    }

    pub(super) fn latest(&self) -> Option<Services> {
        match &*self.state.lock().expect("no holder of the services lock panics") {
            State::Unread { .. } => None,
            State::Read(services) => Some(services.clone()),
        }
    }
}

impl Drop for ServiceWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(mut changes: BoxStream<'static, Change<v1::Service>>, state: Arc<Mutex<State>>, wake: Wake) {
    while let Some(change) = changes.next().await {
        let waiting = {
            let mut state = state.lock().expect("no holder of the services lock panics");
            take_up(&mut state, change)
        };
        waiting.iter().for_each(|uid| wake(uid));
    }
}

/// Returns the pods that waited for the first list.
fn take_up(state: &mut State, change: Change<v1::Service>) -> BTreeSet<PodUid> {
    match (&mut *state, change) {
        (_, Change::Listed(services)) => {
            match std::mem::replace(state, State::Read(services.into_iter().collect())) {
                State::Unread { pods } => return pods,
                State::Read(_) => {}
            }
        }
        (State::Read(services), Change::Applied(service)) => services.set(&service),
        (State::Read(services), Change::Deleted(service)) => services.remove(&service),
        // A watch lists before anything else.
        (State::Unread { .. }, _) => {}
    }
    BTreeSet::new()
}
