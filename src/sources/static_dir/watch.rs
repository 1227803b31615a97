//! Tells when something happened in the directory, or where it may come to be.

use std::io;
use std::path::Path;

use futures::{FutureExt, StreamExt};
use inotify::{EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use tracing::warn;

/// Room for a burst of events. They only say "look again", so what overflows is no loss.
const BUFFER_BYTES: usize = 4096;

/// What is watched and, if inotify works at all, by what.
pub(super) struct Watch {
    events: Option<EventStream<Vec<u8>>>,
    placed: Option<WatchDescriptor>,
}

/// Puts the watch where it belongs. Its calls reach the file system and so may block.
pub(super) struct Placer {
    watches: Option<Watches>,
    before: Option<WatchDescriptor>,
}

impl Watch {
    pub(super) fn new() -> Self {
        let opened = Inotify::init().and_then(|inotify| inotify.into_event_stream(vec![0; BUFFER_BYTES]));
        if let Err(error) = &opened {
            warn!(%error, "inotify is not available, static pods are only looked for now and then");
        }
        Watch { events: opened.ok(), placed: None }
    }

    pub(super) fn placer(&self) -> Placer {
        let watches = self.events.as_ref().map(EventStream::watches);
        Placer { watches, before: self.placed.clone() }
    }

    pub(super) fn placed(&mut self, placed: Option<WatchDescriptor>) {
        self.placed = placed;
    }

    /// Returns when something happened. Never, if inotify is of no use: there is still the
    /// rescan.
    pub(super) async fn changed(&mut self) {
        let event = match &mut self.events {
            Some(events) => events.next().await,
            None => None,
        };
        if !matches!(event, Some(Ok(_))) {
            std::future::pending().await
        }
    }

    /// Forgets what happened up to now, as the next look will see it.
    pub(super) fn drain(&mut self) {
        let Some(events) = &mut self.events else {
            return;
        };
        while let Some(Some(Ok(_))) = events.next().now_or_never() {}
    }
}

impl Placer {
    /// Watches the directory, or the one that holds the manifest, or as much of the way to
    /// it as there is.
    pub(super) fn place(self, path: &Path) -> Option<WatchDescriptor> {
        let Placer { mut watches, before } = self;
        let watches = watches.as_mut()?;
        let placed = path.ancestors().find_map(|dir| {
            let on_the_way = dir != path && Some(dir) != path.parent();
            watch_dir(watches, dir, if on_the_way { WAY_EVENTS } else { MANIFEST_EVENTS }).ok()
        });
        if let Some(before) = before
            && placed.as_ref() != Some(&before)
        {
            // The kernel has dropped it already if the directory is gone.
            let _ = watches.remove(before);
        }
        placed
    }
}

/// A directory that comes into being or goes.
const WAY_EVENTS: WatchMask =
    WatchMask::CREATE.union(WatchMask::MOVED_TO).union(WatchMask::DELETE_SELF).union(WatchMask::MOVE_SELF);

/// Besides, a manifest that is written, goes, or becomes readable.
const MANIFEST_EVENTS: WatchMask = WAY_EVENTS
    .union(WatchMask::CLOSE_WRITE)
    .union(WatchMask::DELETE)
    .union(WatchMask::MOVED_FROM)
    .union(WatchMask::ATTRIB);

/// Adding a watch twice changes nothing; where the directory was replaced by another of its
/// name, the new one gets a watch of its own.
fn watch_dir(watches: &mut Watches, dir: &Path, events: WatchMask) -> io::Result<WatchDescriptor> {
    // A relative path has an empty last ancestor.
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    watches.add(dir, events.union(WatchMask::ONLYDIR))
}
