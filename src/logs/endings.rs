//! Tells those who follow a container's log when nobody writes to it any more.
//!
//! What workers read of their pods passes through here; it costs nothing while nobody waits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

use crate::cri::ContainerId;
use crate::pleg::PodRuntime;
use crate::pod::PodUid;

/// Clones share the table.
#[derive(Clone, Default)]
pub struct Endings(Arc<Mutex<Table>>);

type Table = BTreeMap<(PodUid, ContainerId), watch::Sender<bool>>;

/// Of one container: turns true when it has ended.
pub type Ending = watch::Receiver<bool>;

impl Endings {
    /// Hears of all that is observed from now on.
    pub fn subscribe(&self, uid: &PodUid, id: &ContainerId) -> Ending {
        let mut table = self.table();
        // Whoever subscribes clears up after those who went, so that the table stays as small as
        // the number of those who follow.
        table.retain(|_, sender| sender.receiver_count() > 0);
        table.entry((uid.clone(), id.clone())).or_insert_with(|| watch::Sender::new(false)).subscribe()
    }

    /// Takes note of what a pod has in the runtime now.
    pub fn observe(&self, uid: &PodUid, runtime: &PodRuntime) {
        for ((_, id), sender) in self.table().iter().filter(|((of, _), _)| of == uid) {
            if has_ended(runtime, id) {
                sender.send_replace(true);
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().expect("nothing that holds the table of endings can panic")
    }
}

/// One that the runtime has lost says nothing either.
pub fn has_ended(runtime: &PodRuntime, id: &ContainerId) -> bool {
    runtime.containers.iter().find(|container| container.id == *id).is_none_or(|container| container.exit().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::ContainerState;
    use crate::cri::testing::{container, exited, running};

    #[test]
    fn who_follows_hears_of_its_own_container_only() {
        let endings = Endings::default();
        let uid = PodUid::new("u");
        let [main, side] = ["main-0", "side-0"].map(|id| endings.subscribe(&uid, &ContainerId::new(id)));
        let observe = |uid: &str, main: ContainerState| {
            let containers = vec![container("main", 0, main), container("side", 0, ContainerState::Unknown)];
            endings.observe(&PodUid::new(uid), &PodRuntime { containers, ..PodRuntime::default() });
        };
        observe("u", running());
        observe("other", exited(0));
        assert!(!*main.borrow());
        observe("u", exited(0));
        assert!(*main.borrow() && !*side.borrow());
        endings.observe(&uid, &PodRuntime::default());
        assert!(*side.borrow(), "the runtime has lost it");
    }

    #[test]
    fn nothing_is_kept_of_those_who_went() {
        let endings = Endings::default();
        for attempt in 0..10 {
            drop(endings.subscribe(&PodUid::new("u"), &ContainerId::new(format!("main-{attempt}"))));
        }
        assert_eq!(endings.table().len(), 1);
    }
}
