//! Tells when somebody writes to a file or takes its name away, for many files with one inotify.
//!
//! Each watch is for one event: a container that writes a thousand lines wakes nobody a
//! thousand times. Who wants to hear of the next write watches again.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use futures::{FutureExt, StreamExt};
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::Written;

/// Room for a burst of events: 16 bytes each, as files that are watched have no name in them.
const BUFFER_BYTES: usize = 4096;

/// Those of watches that were dropped stay among the early ones; so many are kept.
const EARLY_MAX: usize = 256;

/// Clones share the inotify, which is opened with the first watch.
#[derive(Clone, Default)]
pub(super) struct Writes(Arc<OnceLock<Option<Reader>>>);

struct Reader {
    watches: Watches,
    waiting: Arc<Mutex<Waiting>>,
    _task: AbortOnDropHandle<()>,
}

/// Who waits for which watch, and the number that tells one wait from the next on the same
/// file, which has the same descriptor.
#[derive(Default)]
struct Waiting {
    senders: HashMap<WatchDescriptor, (u64, oneshot::Sender<()>)>,
    /// Events that were read before their watch was noted here.
    early: HashSet<WatchDescriptor>,
    made: u64,
}

/// Takes a watch down with the wait for it.
struct Watch {
    watches: Watches,
    waiting: Arc<Mutex<Waiting>>,
    descriptor: WatchDescriptor,
    number: u64,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut waiting = lock(&self.waiting);
        if waiting.senders.get(&self.descriptor).is_some_and(|(number, _)| *number == self.number) {
            waiting.senders.remove(&self.descriptor);
            // The kernel may have dropped it already, with the file.
            let _ = self.watches.remove(self.descriptor.clone());
        }
    }
}

impl Writes {
    /// Reaches the file system and so may block; to be called on tokio.
    pub(super) fn watch(&self, path: &Path) -> io::Result<Written> {
        let reader = self.0.get_or_init(|| Reader::open().ok());
        let reader = reader.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let mut watches = reader.watches.clone();
        // An unlinked file that is still open is told of by the change of its link count.
        let mask = WatchMask::MODIFY | WatchMask::ATTRIB | WatchMask::ONESHOT;
        let descriptor = watches.add(path, mask)?;
        let (sender, receiver) = oneshot::channel();
        let mut waiting = lock(&reader.waiting);
        if waiting.early.remove(&descriptor) {
            return Ok(futures::future::ready(()).boxed());
        }
        waiting.made += 1;
        let number = waiting.made;
        waiting.senders.insert(descriptor.clone(), (number, sender));
        let watch = Watch { watches, waiting: reader.waiting.clone(), descriptor, number };
        Ok(async move {
            let _watch = watch;
            // A sender that is gone gave way to a newer watch, or to the end of the agent.
            if receiver.await.is_err() {
                std::future::pending().await
            }
        }
        .boxed())
    }
}

impl Reader {
    fn open() -> io::Result<Reader> {
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        let waiting: Arc<Mutex<Waiting>> = Arc::default();
        let mut events = inotify.into_event_stream(vec![0; BUFFER_BYTES])?;
        let task = {
            let waiting = waiting.clone();
            tokio::spawn(async move {
                while let Some(Ok(event)) = events.next().await {
                    let mut waiting = lock(&waiting);
                    if event.mask.contains(EventMask::Q_OVERFLOW) {
                        // Whose event was lost is not told: all look.
                        for (_, (_, sender)) in waiting.senders.drain() {
                            let _ = sender.send(());
                        }
                    } else if event.mask.intersects(EventMask::MODIFY | EventMask::ATTRIB) {
                        match waiting.senders.remove(&event.wd) {
                            Some((_, sender)) => {
                                let _ = sender.send(());
                            }
                            None => {
                                if waiting.early.len() >= EARLY_MAX {
                                    waiting.early.clear();
                                }
                                waiting.early.insert(event.wd);
                            }
                        }
                    }
                }
            })
        };
        Ok(Reader { watches, waiting, _task: AbortOnDropHandle::new(task) })
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().expect("no holder of the table of watches panics")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::super::testing::Scratch;
    use super::*;

    const SOON: Duration = Duration::from_secs(5);
    const NEVER: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn each_watch_tells_of_its_own_file_once() {
        let scratch = Scratch::new();
        let (one, other) = (scratch.file("one", ""), scratch.file("other", ""));
        let writes = Writes::default();
        let mut of_one = writes.watch(&one).expect("inotify works here");
        let of_other = writes.watch(&other).expect("inotify works here");
        assert!(timeout(NEVER, &mut of_one).await.is_err(), "nobody wrote");
        fs::write(&one, "text").expect("written");
        timeout(SOON, of_one).await.expect("somebody wrote");
        assert!(timeout(NEVER, of_other).await.is_err());

        let again = writes.watch(&one).expect("inotify works here");
        fs::write(&one, "more").expect("written");
        timeout(SOON, again).await.expect("a new watch hears the next write");
    }

    #[tokio::test]
    async fn a_file_that_loses_its_name_is_told_of() {
        let scratch = Scratch::new();
        let path = scratch.file("file", "");
        let _open = fs::File::open(&path).expect("it is there");
        let writes = Writes::default();
        let lost = writes.watch(&path).expect("inotify works here");
        fs::remove_file(&path).expect("removed");
        timeout(SOON, lost).await.expect("it was removed");
    }

    #[tokio::test]
    async fn dropping_a_watch_takes_it_down_but_not_its_successor() {
        let scratch = Scratch::new();
        let file = scratch.file("file", "");
        let writes = Writes::default();
        let before = writes.watch(&file).expect("inotify works here");
        let after = writes.watch(&file).expect("inotify works here");
        drop(before);
        fs::write(&file, "text").expect("written");
        timeout(SOON, after).await.expect("somebody wrote");
        let reader = writes.0.get().and_then(Option::as_ref).expect("opened");
        assert!(lock(&reader.waiting).senders.is_empty());
    }

    #[tokio::test]
    async fn what_is_not_there_cannot_be_watched() {
        assert!(Writes::default().watch(Path::new("/nonexistent/file")).is_err());
    }
}
