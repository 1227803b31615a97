//! The providers of this machine behind one handle.

use std::sync::{Arc, Mutex, MutexGuard};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use super::{Failure, Places};
use crate::pod::PodUid;

/// Who has which place; clones share it.
#[derive(Clone)]
pub struct Topology {
    state: Arc<Mutex<State>>,
    /// Counts the changes of what pods have.
    changes: watch::Sender<u64>,
    /// As many of them are on disk, or could not be put there.
    kept: watch::Sender<u64>,
}

#[derive(Default)]
struct State {}

impl Topology {
    /// Containers run anywhere.
    pub fn none() -> Self {
        Topology { state: Arc::default(), changes: watch::Sender::default(), kept: watch::Sender::default() }
    }

    /// Gives the containers of a pod that is taken their places; refused, it has none.
    pub fn take(&self, _uid: &PodUid, _pod: &Pod) -> Result<(), Failure> {
        Ok(())
    }

    /// The same for a pod that was taken in an earlier life, which cannot be refused.
    pub fn take_over(&self, _uid: &PodUid, _pod: &Pod) {}

    pub fn release(&self, _uid: &PodUid) {}

    /// Releases all pods but these.
    pub fn retain(&self, _holds: impl Fn(&PodUid) -> bool) {}

    /// Where the containers of a pod run now.
    pub fn places(&self, _uid: &PodUid) -> Arc<Places> {
        Arc::default()
    }

    /// Returns once what was given until now will outlive the agent.
    pub async fn kept(&self) {
        let now = *self.changes.borrow();
        let mut kept = self.kept.subscribe();
        // Without a keeper the agent stops.
        let _ = kept.wait_for(|kept| *kept >= now).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing that holds it can panic")
    }
}
