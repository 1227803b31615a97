//! Wake-ups: how anything in the house says "look again at this pod".
//!
//! A wake-up carries nothing and may be lost among others or doubled; whoever is woken reads
//! a snapshot of all its inputs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::pod::PodUid;

/// The bells of all pod workers; clones share them.
#[derive(Clone, Default)]
pub struct Wakes {
    bells: Arc<Mutex<BTreeMap<PodUid, Arc<Bell>>>>,
    /// Rings for pods nobody works on: the dispatcher asks where they came from.
    pub strangers: Arc<Notify>,
}

/// One worker's bell.
#[derive(Default)]
pub struct Bell {
    notify: Notify,
    inputs_changed: AtomicBool,
}

impl Wakes {
    /// The runtime hinted at something.
    pub fn wake(&self, uid: &PodUid) {
        match self.bells().get(uid) {
            Some(bell) => bell.notify.notify_one(),
            None => self.strangers.notify_one(),
        }
    }

    /// An object the pod depends on changed: what failed for want of it may work now, so
    /// the worker does not sit out its retry delay.
    pub fn inputs_changed(&self, uid: &PodUid) {
        if let Some(bell) = self.bells().get(uid) {
            bell.inputs_changed.store(true, Ordering::Relaxed);
            bell.notify.notify_one();
        }
    }

    pub(super) fn hang_up(&self, uid: &PodUid) -> Arc<Bell> {
        self.bells().entry(uid.clone()).or_default().clone()
    }

    pub(super) fn take_down(&self, uid: &PodUid) {
        self.bells().remove(uid);
    }

    fn bells(&self) -> std::sync::MutexGuard<'_, BTreeMap<PodUid, Arc<Bell>>> {
        self.bells.lock().expect("nothing that holds the bells can panic")
    }
}

impl Bell {
    pub(super) async fn rung(&self) {
        self.notify.notified().await;
    }

    /// Whether inputs changed since the last call.
    pub(super) fn take_inputs_changed(&self) -> bool {
        self.inputs_changed.swap(false, Ordering::Relaxed)
    }
}
