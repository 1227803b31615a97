//! The watch of all services.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1;
use tokio_util::task::AbortOnDropHandle;

use super::Wake;
use crate::kube::{Change, Cluster};
use crate::pod::PodUid;
use crate::pod::services::Services;

/// The watch of all services, and who waits for its first answer.
pub(super) struct ServiceWatch {
    state: Arc<Mutex<State>>,
    _task: AbortOnDropHandle<()>,
}

enum State {
    /// Not listed yet; these pods are woken when it is.
    Unread {
        pods: BTreeSet<PodUid>,
    },
    Read(Services),
}

impl ServiceWatch {
    pub(super) fn start(cluster: &dyn Cluster, wake: Wake) -> Self {
        let state = Arc::new(Mutex::new(State::Unread { pods: BTreeSet::new() }));
        let task = tokio::spawn(follow(cluster.watch_services(), Arc::clone(&state), wake));
        ServiceWatch { state, _task: AbortOnDropHandle::new(task) }
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
        (_, Change::Listed(services)) => match std::mem::replace(state, State::Read(services.into_iter().collect())) {
            State::Unread { pods } => return pods,
            State::Read(_) => {}
        },
        (State::Read(services), Change::Applied(service)) => services.set(&service),
        (State::Read(services), Change::Deleted(service)) => services.remove(&service),
        // A watch lists before anything else.
        (State::Unread { .. }, _) => {}
    }
    BTreeSet::new()
}
