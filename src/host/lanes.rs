//! Runs blocking work under a deadline and bounds how many threads one place can hold up.
//!
//! A thread that waits for a dead file server cannot be taken back; only the wait for it
//! can end. So each place (a pod's directory, a cgroup, a foreign mount) is a lane with few
//! slots. Work on one lane beyond them waits for a slot within its own deadline, and once
//! any of it is overdue, the lane refuses more until that has come back: the thread count
//! stays bounded however often a pod worker tries again, and other lanes do not notice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::{HostError, Result};

/// Work of one pod at a time: enough to set up its volumes side by side, few enough that
/// every pod of a full node could hang at once and leave tokio's pool of 512 working.
const SLOTS: usize = 4;
/// Overdue work on all lanes together. Beyond it only an answer frees a thread, so that
/// the pool never runs dry for the healthy.
const OVERDUE_MAX: usize = 256;

#[derive(Clone)]
pub struct Lanes {
    deadline: Duration,
    overdue_max: usize,
    /// For all lanes together, where their work is bounded by more than its own lane.
    places: Option<Arc<Semaphore>>,
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    lanes: BTreeMap<PathBuf, Lane>,
    /// Names running work, so that it can be taken off its lane when it ends.
    next_id: u64,
}

struct Lane {
    slots: Arc<Semaphore>,
    running: BTreeMap<u64, Running>,
}

struct Running {
    what: &'static str,
    since: Instant,
    /// When whoever asked for it gave it up. From the same moment on it keeps others away.
    due: Instant,
}

impl Running {
    fn is_overdue(&self, now: Instant) -> bool {
        now >= self.due
    }
}

impl Lanes {
    pub fn new(deadline: Duration) -> Self {
        Lanes { deadline, overdue_max: OVERDUE_MAX, places: None, table: Arc::default() }
    }

    /// With no more than `places` pieces of work at the same time, whatever their lanes. Who waits
    /// for its lane holds none of them.
    pub fn sharing(deadline: Duration, places: usize) -> Self {
        Lanes { places: Some(Arc::new(Semaphore::new(places))), ..Lanes::new(deadline) }
    }

    /// Runs `work` on the blocking pool. `path` is what it is about, for the error text.
    ///
    /// Dropping the future does not stop the work; it keeps its slot until it ends.
    pub async fn run<T: Send + 'static>(
        &self,
        lane: &Path,
        what: &'static str,
        path: &Path,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let deadline = Instant::now() + self.deadline;
        let late = |_| HostError::Timeout { what, path: path.to_owned(), after: self.deadline };

        let waiter = self.admit(lane, what, path)?;
        let permit = timeout_at(deadline, waiter.slots().acquire_owned())
            .await
            .map_err(late)?
            .expect("the semaphore of a lane is never closed");
        let place = match &self.places {
            Some(places) => Some(timeout_at(deadline, places.clone().acquire_owned()).await.map_err(late)?),
            None => None,
        };
        let place = place.transpose().expect("the places are never closed");
        let occupied = self.enter(lane, what, deadline, permit, place);
        drop(waiter);
        let work = tokio::task::spawn_blocking(move || {
            let _occupied = occupied;
            work()
        });
        match timeout_at(deadline, work).await.map_err(late)? {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // Blocking work is never aborted; the runtime itself is going down.
            Err(_) => Err(HostError::Refused(format!("cannot {what} {}: shutting down", path.display()))),
        }
    }

    fn admit(&self, lane: &Path, what: &'static str, path: &Path) -> Result<Waiter> {
        let mut table = self.lock();
        let busy = |doing, stuck| HostError::Busy { what, path: path.to_owned(), doing, stuck };
        let now = Instant::now();
        if let Some(own) = table.lanes.get(lane)
            && let Some(stuck) = own.running.values().find(|running| running.is_overdue(now))
        {
            return Err(busy(stuck.what, now.duration_since(stuck.since)));
        }
        let all =
            || table.lanes.values().flat_map(|lane| lane.running.values()).filter(|running| running.is_overdue(now));
        if all().count() >= self.overdue_max
            && let Some(oldest) = all().min_by_key(|running| running.since)
        {
            return Err(busy("too much other work", now.duration_since(oldest.since)));
        }
        let slots = Some(table.lane(lane).slots.clone());
        Ok(Waiter { table: self.table.clone(), lane: lane.to_owned(), slots })
    }

    fn enter(
        &self,
        lane: &Path,
        what: &'static str,
        due: Instant,
        permit: OwnedSemaphorePermit,
        place: Option<OwnedSemaphorePermit>,
    ) -> Occupied {
        let mut table = self.lock();
        let id = table.next_id;
        table.next_id += 1;
        table.lane(lane).running.insert(id, Running { what, since: Instant::now(), due });
        Occupied { table: self.table.clone(), lane: lane.to_owned(), id, permit: Some(permit), _place: place }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no holder of the lane table panics")
    }
}

impl Table {
    fn lane(&mut self, path: &Path) -> &mut Lane {
        self.lanes
            .entry(path.to_owned())
            .or_insert_with(|| Lane { slots: Arc::new(Semaphore::new(SLOTS)), running: BTreeMap::new() })
    }

    /// Forgets a lane on which nothing runs and for which nobody waits: all of those hold its slots.
    fn tidy(&mut self, path: &Path) {
        if let Some(lane) = self.lanes.get(path)
            && lane.running.is_empty()
            && Arc::strong_count(&lane.slots) == 1
        {
            self.lanes.remove(path);
        }
    }
}

/// Somebody on the way into a lane. He may give up at any moment, and be the last who wanted it.
struct Waiter {
    table: Arc<Mutex<Table>>,
    lane: PathBuf,
    slots: Option<Arc<Semaphore>>,
}

impl Waiter {
    fn slots(&self) -> Arc<Semaphore> {
        self.slots.clone().expect("only the drop takes them")
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut table = self.table.lock().expect("no holder of the lane table panics");
        // Under the lock, so that of two who leave at once the second sees that he is the last.
        self.slots = None;
        table.tidy(&self.lane);
    }
}

/// A slot in use. Dropped where the work ends, whoever still waits for its result.
struct Occupied {
    table: Arc<Mutex<Table>>,
    lane: PathBuf,
    id: u64,
    permit: Option<OwnedSemaphorePermit>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Drop for Occupied {
    fn drop(&mut self) {
        let mut table = self.table.lock().expect("no holder of the lane table panics");
        // Before they are counted: the permit holds the slots, as does each who waits.
        self.permit = None;
        if let Some(lane) = table.lanes.get_mut(&self.lane) {
            lane.running.remove(&self.id);
        }
        table.tidy(&self.lane);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures::FutureExt;

    use super::*;

    const DEADLINE: Duration = Duration::from_millis(50);
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Work that hangs until the sender is dropped.
    fn hung(lanes: &Lanes, lane: &'static str) -> (mpsc::Sender<()>, tokio::task::JoinHandle<Result<()>>) {
        let (release, wait) = mpsc::channel::<()>();
        let lanes = lanes.clone();
        let task = tokio::spawn(async move {
            lanes
                .run(Path::new(lane), "mount", Path::new(lane), move || {
                    let _ = wait.recv();
                    Ok(())
                })
                .await
        });
        (release, task)
    }

    /// On the same lanes, but with time enough on any machine.
    async fn quick(lanes: &Lanes, lane: &str) -> Result<u8> {
        let patient = Lanes { deadline: PATIENCE, ..lanes.clone() };
        patient.run(Path::new(lane), "list", Path::new(lane), || Ok(7)).await
    }

    #[tokio::test]
    async fn stuck_work_times_out_and_closes_its_lane_until_it_comes_back() {
        let lanes = Lanes::new(DEADLINE);
        let (release, stuck) = hung(&lanes, "/pods/a");
        assert!(matches!(stuck.await.unwrap(), Err(HostError::Timeout { what: "mount", .. })));

        let refused = quick(&lanes, "/pods/a").await;
        assert!(matches!(refused, Err(HostError::Busy { doing: "mount", .. })), "{refused:?}");
        assert_eq!(quick(&lanes, "/pods/b").await.unwrap(), 7);

        drop(release);
        let deadline = Instant::now() + Duration::from_secs(5);
        while quick(&lanes, "/pods/a").await.is_err() {
            assert!(Instant::now() < deadline, "the lane never opened again");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn a_hung_place_takes_no_more_threads_than_its_slots() {
        // None of it is overdue while we look: then the lane would be closed, and show less.
        let lanes = Lanes::new(PATIENCE);
        let (releases, tasks): (Vec<_>, Vec<_>) = (0..50).map(|_| hung(&lanes, "/mnt/nfs")).unzip();
        let running = || lanes.lock().lanes.get(Path::new("/mnt/nfs")).map_or(0, |lane| lane.running.len());
        while running() < SLOTS {
            tokio::task::yield_now().await;
        }
        for _ in 0..1000 {
            tokio::task::yield_now().await;
            assert_eq!(running(), SLOTS);
        }
        drop(releases);
        for task in tasks {
            task.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn when_too_much_is_stuck_everyone_is_refused_before_the_pool_runs_dry() {
        let lanes = Lanes { overdue_max: 2, ..Lanes::new(DEADLINE) };
        let (first, one) = hung(&lanes, "/pods/a");
        let (second, two) = hung(&lanes, "/pods/b");
        assert!(one.await.unwrap().is_err() && two.await.unwrap().is_err());
        let refused = quick(&lanes, "/pods/c").await;
        assert!(matches!(refused, Err(HostError::Busy { doing: "too much other work", .. })), "{refused:?}");

        drop((first, second));
        let deadline = Instant::now() + Duration::from_secs(5);
        while quick(&lanes, "/pods/c").await.is_err() {
            assert!(Instant::now() < deadline, "it was refused for ever");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn a_lane_is_closed_from_the_very_moment_its_work_is_given_up() {
        for round in 0..200 {
            let lanes = Lanes::new(Duration::from_millis(1));
            let (_release, stuck) = hung(&lanes, "/pods/a");
            assert!(stuck.await.unwrap().is_err());
            let refused = quick(&lanes, "/pods/a").await;
            assert!(matches!(refused, Err(HostError::Busy { .. })), "round {round}: {refused:?}");
        }
    }

    #[tokio::test]
    async fn who_waits_for_a_hung_lane_holds_no_place_of_all() {
        let lanes = Lanes::sharing(PATIENCE, SLOTS + 1);
        let (releases, tasks): (Vec<_>, Vec<_>) = (0..50).map(|_| hung(&lanes, "/mnt/nfs")).unzip();
        while lanes.lock().lanes.get(Path::new("/mnt/nfs")).is_none_or(|lane| lane.running.len() < SLOTS) {
            tokio::task::yield_now().await;
        }
        assert_eq!(quick(&lanes, "/var/log").await.unwrap(), 7);
        drop(releases);
        for task in tasks {
            task.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn who_gives_up_on_the_way_in_leaves_no_lane_behind() {
        let lanes = Lanes::sharing(PATIENCE, 1);
        let knows = |lane: &str| lanes.lock().lanes.contains_key(Path::new(lane));
        // It has the only place there is.
        let (release, task) = hung(&lanes, "/mnt/nfs");
        while lanes.lock().lanes.get(Path::new("/mnt/nfs")).is_none_or(|lane| lane.running.is_empty()) {
            tokio::task::yield_now().await;
        }
        let mut first = Box::pin(quick(&lanes, "/var/log"));
        let mut second = Box::pin(quick(&lanes, "/var/log"));
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        drop(first);
        assert!(knows("/var/log"), "somebody waits for it yet");
        drop(second);
        assert!(!knows("/var/log"), "nobody wants it any more");

        let hasty = Lanes { deadline: DEADLINE, ..lanes.clone() };
        let late = hasty.run(Path::new("/pods/a"), "list", Path::new("/pods/a"), || Ok(())).await;
        assert!(matches!(late, Err(HostError::Timeout { .. })), "{late:?}");
        assert!(!knows("/pods/a") && knows("/mnt/nfs"));
        drop(release);
        task.await.unwrap().unwrap();
        assert_eq!(lanes.lock().lanes.len(), 0);
    }

    #[tokio::test]
    async fn a_quiet_lane_is_forgotten() {
        let lanes = Lanes::new(PATIENCE);
        let all = (0..100).map(|n| {
            let lanes = lanes.clone();
            tokio::spawn(async move { quick(&lanes, &format!("/pods/{}", n % 10)).await })
        });
        for task in all.collect::<Vec<_>>() {
            assert_eq!(task.await.unwrap().unwrap(), 7);
        }
        assert_eq!(lanes.lock().lanes.len(), 0);
    }
}
