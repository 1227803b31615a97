//! Places for those who read logs, of which there are so many.
//!
//! A client that stops reading, in `kubectl logs | less` say, holds its place for as long as its
//! connection lives, and nobody minds. Only where all places are taken and one more wants to
//! read, whoever has not taken anything for longest gives way: its log is closed at once, and it
//! hears of it when it reads on.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use futures::stream::{BoxStream, StreamExt};
use hyper::body::Bytes;
use tokio::time::Instant;

/// Whoever took something since then reads on, however slowly.
const STALLED_AFTER: Duration = Duration::from_secs(60);

type Pieces = BoxStream<'static, io::Result<Bytes>>;

/// Clones share the places.
#[derive(Clone)]
pub struct Places(Arc<Inner>);

struct Inner {
    max: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next_id: u64,
    /// Nothing to close yet for one whose log is being opened.
    taken: BTreeMap<u64, Option<Arc<Mutex<Reading>>>>,
}

struct Reading {
    /// Gone once it has ended, or the place was needed.
    pieces: Option<Pieces>,
    /// When the last piece was handed over that nobody has asked beyond.
    handed: Option<Instant>,
    was_closed: bool,
}

/// Held until dropped.
pub struct Place {
    places: Places,
    id: u64,
}

/// What is read from a place.
pub struct Held {
    reading: Arc<Mutex<Reading>>,
    _place: Place,
}

impl Places {
    pub fn new(max: usize) -> Self {
        Places(Arc::new(Inner { max, table: Mutex::default() }))
    }

    /// A place that is free, or becomes so by this.
    pub fn take(&self) -> Option<Place> {
        let mut table = self.table();
        // Dropped after the lock: closing a log takes others.
        let mut _closed = None;
        if table.taken.len() >= self.0.max {
            let now = Instant::now();
            let stalled = table.taken.iter().filter_map(|(id, reading)| Some((*id, reading.as_ref()?.clone())));
            let stalled = stalled.filter_map(|(id, reading)| Some((stalled_since(&reading, now)?, id, reading)));
            let (_, id, reading) = stalled.min_by_key(|(since, id, _)| (*since, *id))?;
            table.taken.remove(&id);
            let mut reading = lock(&reading);
            reading.was_closed = true;
            _closed = reading.pieces.take();
        }
        let id = table.next_id;
        table.next_id += 1;
        table.taken.insert(id, None);
        drop(table);
        Some(Place { places: self.clone(), id })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().expect("nothing that holds the table of places can panic")
    }

    #[cfg(test)]
    pub fn free(&self) -> usize {
        self.0.max - self.table().taken.len()
    }
}

/// `None` for one that reads. One that is being asked just now, and so locked, reads.
fn stalled_since(reading: &Mutex<Reading>, now: Instant) -> Option<Instant> {
    let handed = reading.try_lock().ok()?.handed?;
    (now.duration_since(handed) >= STALLED_AFTER).then_some(handed)
}

fn lock(reading: &Mutex<Reading>) -> MutexGuard<'_, Reading> {
    // A log that panics is read no further by anybody.
    reading.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Place {
    /// The same pieces, which hold the place until they end, are dropped, or have to give way.
    pub fn hold(self, pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Held {
        let reading = Reading { pieces: Some(pieces.boxed()), handed: None, was_closed: false };
        let reading = Arc::new(Mutex::new(reading));
        if let Some(taken) = self.places.table().taken.get_mut(&self.id) {
            *taken = Some(reading.clone());
        }
        Held { reading, _place: self }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.table().taken.remove(&self.id);
    }
}

impl Stream for Held {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut reading = lock(&self.reading);
        if std::mem::take(&mut reading.was_closed) {
            let why = format!("nothing was read for {STALLED_AFTER:?} or longer, and others wanted to read");
            return Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::TimedOut, why))));
        }
        reading.handed = None;
        let Some(pieces) = &mut reading.pieces else { return Poll::Ready(None) };
        let polled = pieces.poll_next_unpin(context);
        match &polled {
            Poll::Ready(Some(Ok(_))) => reading.handed = Some(Instant::now()),
            Poll::Ready(_) => reading.pieces = None,
            Poll::Pending => {}
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    /// Pieces without end, and what tells whether they are still there.
    fn endless() -> (Pieces, std::sync::Weak<()>) {
        let alive = Arc::new(());
        let weak = Arc::downgrade(&alive);
        let pieces = stream::repeat_with(move || {
            let _ = &alive;
            Ok(Bytes::from_static(b"line\n"))
        });
        (pieces.boxed(), weak)
    }

    async fn reads(held: &mut Held) -> bool {
        matches!(held.next().await, Some(Ok(_)))
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_nothing_gives_way_only_when_others_want_the_place() {
        let places = Places::new(2);
        let (pieces, paused_log) = endless();
        let mut paused = places.take().expect("there is room").hold(pieces);
        let mut other = places.take().expect("there is room").hold(endless().0);
        assert!(reads(&mut paused).await && reads(&mut other).await);
        tokio::time::advance(Duration::from_secs(24 * 3600)).await;
        assert!(reads(&mut paused).await, "nobody needed its place");

        tokio::time::advance(STALLED_AFTER).await;
        assert!(reads(&mut other).await);
        let newcomer = places.take().expect("one has stalled");
        assert!(paused_log.upgrade().is_none(), "its log is closed at once");
        assert!(paused.next().await.is_some_and(|piece| piece.is_err()), "it hears of it");
        assert!(paused.next().await.is_none());
        assert!(reads(&mut other).await);
        assert!(places.take().is_none(), "who reads keeps its place");
        // It has none any more to give back.
        drop(paused);
        assert!(places.take().is_none());
        drop(newcomer);
        assert_eq!(places.free(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_silent_log_does_not_stall() {
        let places = Places::new(1);
        let mut silent = places.take().expect("there is room").hold(stream::pending());
        assert!(futures::poll!(silent.next()).is_pending());
        tokio::time::advance(10 * STALLED_AFTER).await;
        assert!(places.take().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_is_being_opened_or_has_ended_gives_no_way_and_is_given_back() {
        let places = Places::new(1);
        let opening = places.take().expect("there is room");
        tokio::time::advance(10 * STALLED_AFTER).await;
        assert!(places.take().is_none());
        let mut held = opening.hold(stream::iter([Ok(Bytes::new())]));
        assert!(reads(&mut held).await && held.next().await.is_none() && held.next().await.is_none());
        drop(held);
        assert_eq!(places.free(), 1);
    }
}
