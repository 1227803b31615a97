//! Changes that many wait for, who are woken in the order in which they began to wait.
//!
//! A watch wakes its listeners in an order of its own making, another one in each run: the pods of a
//! seed would not tell the same story twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Counts the changes of something; clones share it.
#[derive(Clone, Default)]
pub struct Changes(Arc<Shared>);

#[derive(Default)]
struct Shared {
    count: AtomicU64,
    notify: Notify,
}

impl Changes {
    /// Something has changed.
    pub fn tell(&self) {
        self.0.count.fetch_add(1, Ordering::AcqRel);
        self.0.notify.notify_waiters();
    }

    /// As many changes as were told elsewhere.
    pub fn tell_all(&self, count: u64) {
        self.0.count.store(count, Ordering::Release);
        self.0.notify.notify_waiters();
    }

    pub fn count(&self) -> u64 {
        self.0.count.load(Ordering::Acquire)
    }

    /// Returns once there were as many. Cancel-safe.
    pub async fn reach(&self, count: u64) {
        loop {
            let mut notified = std::pin::pin!(self.0.notify.notified());
            // Before the look, so that no change is lost between it and the wait.
            notified.as_mut().enable();
            if self.count() >= count {
                return;
            }
            notified.await;
        }
    }

    /// Of all that came before, it hears nothing.
    pub fn listen(&self) -> Listener {
        Listener { changes: self.clone(), seen: self.count() }
    }
}

/// One who wants to hear of changes.
pub struct Listener {
    changes: Changes,
    seen: u64,
}

impl Listener {
    /// What changed so far is no news any more.
    pub fn mark_seen(&mut self) {
        self.seen = self.changes.count();
    }

    pub fn has_news(&self) -> bool {
        self.changes.count() != self.seen
    }

    /// Returns when something changes, or has since the last time. Cancel-safe: what changes stays news
    /// until it was told.
    pub async fn changed(&mut self) {
        self.changes.reach(self.seen + 1).await;
        self.mark_seen();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_are_woken_in_turn() {
        let (changes, woken) = (Changes::default(), Arc::new(Mutex::new(Vec::new())));
        let waits = Arc::new(AtomicU64::new(0));
        let waiting: Vec<_> = (0..100)
            .map(|turn| {
                let (mut listener, woken, waits) = (changes.listen(), woken.clone(), waits.clone());
                tokio::spawn(async move {
                    waits.fetch_add(1, Ordering::Relaxed);
                    listener.changed().await;
                    woken.lock().expect("nobody panics").push(turn);
                })
            })
            .collect();
        while waits.load(Ordering::Relaxed) < 100 {
            tokio::task::yield_now().await;
        }
        changes.tell();
        for task in waiting {
            task.await.expect("it is woken");
        }
        assert_eq!(*woken.lock().expect("nobody panics"), Vec::from_iter(0..100));
    }

    #[tokio::test]
    async fn a_change_is_news_once_and_is_not_lost_before_the_wait() {
        let changes = Changes::default();
        let mut listener = changes.listen();
        assert_eq!(listener.changed().now_or_never(), None);
        changes.tell();
        changes.tell();
        assert!(listener.has_news());
        assert_eq!(listener.changed().now_or_never(), Some(()));
        assert_eq!(listener.changed().now_or_never(), None);
        assert_eq!(changes.reach(2).now_or_never(), Some(()));
        assert_eq!(changes.reach(3).now_or_never(), None);
    }
}
