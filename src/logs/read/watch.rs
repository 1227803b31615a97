//! Wakes those who follow a log when something happens to its files, for all of them with one inotify.
//!
//! The directory of the log is watched, not the file: names tell that a log was renamed, that
//! there is a new one, and that the runtime has closed the old one. Some containers write a
//! thousand times in a hundredth of a second; so the one task that listens pauses for as long
//! after each round of events, in which the kernel makes one event of many equal ones. The
//! inotify is there for as long as somebody follows.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::logs::disk::Disk;
use crate::logs::rotation::{self, GZIP};

/// Room for a burst of events of some fifty bytes each.
const BUFFER_BYTES: usize = 4096;
/// Events of one round.
const ROUND_MAX: usize = 256;
const PAUSE: Duration = Duration::from_millis(10);
/// Names of closed files that are remembered: the one that matters is among the last.
const CLOSED_MAX: usize = 8;

/// Clones share the inotify.
#[derive(Clone, Default)]
pub struct Watcher(Arc<Mutex<Weak<Shared>>>);

struct Shared {
    watches: Watches,
    table: Arc<Mutex<Table>>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Table {
    entries: Vec<Entry>,
    made: u64,
    /// Watches nobody wants any more. They are taken down when none is being made: the kernel
    /// may be about to give one of them to somebody else.
    surplus: Vec<WatchDescriptor>,
}

struct Entry {
    number: u64,
    /// Not known yet while the watch is made.
    descriptor: Option<WatchDescriptor>,
    seen: Arc<Seen>,
}

struct Seen {
    log: String,
    changed: Notify,
    closed: Mutex<Vec<String>>,
}

/// One who follows a log. Dropping it ends the watch.
pub struct Watch {
    shared: Arc<Shared>,
    number: u64,
    seen: Arc<Seen>,
}

impl Watcher {
    /// Watches the log of this name in `dir` from now on.
    pub async fn watch(&self, disk: &Disk, dir: &Path, log: &str) -> io::Result<Watch> {
        let shared = self.shared()?;
        let seen = Arc::new(Seen { log: log.to_owned(), changed: Notify::new(), closed: Mutex::default() });
        let number = shared.table().enter(seen.clone());
        let watch = Watch { shared: shared.clone(), number, seen };
        let (mut watches, owned) = (shared.watches.clone(), dir.to_owned());
        let mask = WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::MOVE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::ONLYDIR;
        let add = move || {
            let added = watches.add(&owned, mask);
            shared.settle(number, added.as_ref().ok());
            added.map(drop)
        };
        disk.run("watch", &dir.join(log), add).await?;
        Ok(watch)
    }

    #[cfg(test)]
    pub fn is_open(&self) -> bool {
        self.0.lock().expect("nothing that holds the slot of the inotify can panic").strong_count() > 0
    }

    fn shared(&self) -> io::Result<Arc<Shared>> {
        let mut slot = self.0.lock().expect("nothing that holds the slot of the inotify can panic");
        if let Some(shared) = slot.upgrade() {
            return Ok(shared);
        }
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        let events = inotify.into_event_stream(vec![0; BUFFER_BYTES])?;
        let table: Arc<Mutex<Table>> = Arc::default();
        let task = AbortOnDropHandle::new(tokio::spawn(listen(events, table.clone())));
        let shared = Arc::new(Shared { watches, table, _task: task });
        *slot = Arc::downgrade(&shared);
        Ok(shared)
    }
}

impl Watch {
    /// Returns when something has happened since it returned last. Cancel-safe.
    pub async fn changed(&self) {
        self.seen.changed.notified().await;
    }

    /// Names under which files of the log were closed by who wrote to them.
    pub fn closed(&self) -> Vec<String> {
        self.seen.closed().clone()
    }

    /// The file that was closed under this name was left: what is called so now is another one.
    pub fn forget_closed(&self, name: &str) {
        let mut closed = self.seen.closed();
        if let Some(at) = closed.iter().position(|closed| closed == name) {
            closed.remove(at);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.table().leave(self.number);
        self.shared.clear_up();
    }
}

impl Shared {
    /// The watch of an entry has been made, or could not be.
    fn settle(&self, number: u64, made: Option<&WatchDescriptor>) {
        {
            let mut table = self.table();
            match table.entries.iter_mut().find(|entry| entry.number == number) {
                Some(entry) => entry.descriptor = made.cloned(),
                None => table.surplus.extend(made.cloned()),
            }
            if made.is_none() {
                table.leave(number);
            }
        }
        self.clear_up();
    }

    fn clear_up(&self) {
        let mut table = self.table();
        if table.entries.iter().any(|entry| entry.descriptor.is_none()) {
            return;
        }
        for descriptor in std::mem::take(&mut table.surplus) {
            if !table.entries.iter().any(|entry| entry.descriptor.as_ref() == Some(&descriptor)) {
                // The kernel may have dropped it already, with the directory.
                let _ = self.watches.clone().remove(descriptor);
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().expect("nothing that holds the table of watches can panic")
}

impl Table {
    fn enter(&mut self, seen: Arc<Seen>) -> u64 {
        self.made += 1;
        self.entries.push(Entry { number: self.made, descriptor: None, seen });
        self.made
    }

    fn leave(&mut self, number: u64) {
        if let Some(at) = self.entries.iter().position(|entry| entry.number == number) {
            self.surplus.extend(self.entries.swap_remove(at).descriptor);
        }
    }

    fn note(&self, event: &EventOwned) {
        let is_all = event.mask.contains(EventMask::Q_OVERFLOW);
        for entry in &self.entries {
            // Whose watch is being made may have missed the event.
            if is_all || entry.descriptor.as_ref().is_none_or(|descriptor| *descriptor == event.wd) {
                entry.seen.note(event);
            }
        }
    }
}

impl Seen {
    fn note(&self, event: &EventOwned) {
        let name = event.name.as_ref().and_then(|name| name.to_str());
        if let Some(name) = name {
            // Other instances write beside it, and what is compressed was read before.
            let is_ours = name == self.log || (!name.ends_with(GZIP) && rotation::stamp(&self.log, name).is_some());
            if !is_ours {
                return;
            }
            if event.mask.contains(EventMask::CLOSE_WRITE) {
                let mut closed = self.closed();
                if closed.len() >= CLOSED_MAX {
                    closed.remove(0);
                }
                closed.push(name.to_owned());
            }
        }
        self.changed.notify_one();
    }

    fn closed(&self) -> MutexGuard<'_, Vec<String>> {
        self.closed.lock().expect("nothing that holds the names of closed files can panic")
    }
}

/// Ends with its handle, or with an inotify that fails: those who follow still look now and then.
async fn listen(mut events: EventStream<Vec<u8>>, table: Arc<Mutex<Table>>) {
    while let Some(Ok(event)) = events.next().await {
        lock(&table).note(&event);
        for _ in 1..ROUND_MAX {
            match events.next().now_or_never() {
                Some(Some(Ok(event))) => lock(&table).note(&event),
                Some(_) => return,
                None => break,
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
