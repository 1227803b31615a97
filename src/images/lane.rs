//! A limit on how many pulls run at once, in which those of important pods go first.
//!
//! A registry that says nothing must not hold up what comes from others: a pull that lasts
//! long counts only against those from its own registry. So of each registry no more run at
//! once than the limit says, and of all together no more but for the long ones.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

/// Clones share the limit.
#[derive(Clone)]
pub struct Lane {
    queue: Arc<Mutex<Queue>>,
}

struct Queue {
    limit: usize,
    /// By priority, highest first, and within one in the order of arrival. Nobody waits who
    /// has room.
    waiting: BTreeMap<(Reverse<i32>, u64), Waiting>,
    running: BTreeMap<u64, Running>,
    arrivals: u64,
}

struct Waiting {
    registry: String,
    turn: oneshot::Sender<Ticket>,
}

struct Running {
    registry: String,
    lasts_long: bool,
}

/// The right to pull, for as long as it is held.
pub struct Ticket {
    lane: Lane,
    number: u64,
}

impl Lane {
    pub fn new(limit: usize) -> Self {
        let queue = Queue { limit, waiting: BTreeMap::new(), running: BTreeMap::new(), arrivals: 0 };
        Lane { queue: Arc::new(Mutex::new(queue)) }
    }

    /// Waits for its turn. Dropping the future gives up the place.
    pub async fn ticket(&self, registry: &str, priority: i32) -> Ticket {
        let turn = {
            let mut queue = self.lock();
            let number = queue.arrivals;
            queue.arrivals += 1;
            let registry = registry.to_owned();
            if queue.has_room_for(&registry) {
                queue.running.insert(number, Running { registry, lasts_long: false });
                return Ticket { lane: self.clone(), number };
            }
            let (sender, turn) = oneshot::channel();
            queue.waiting.insert((Reverse(priority), number), Waiting { registry, turn: sender });
            turn
        };
        turn.await.expect("the lane drops no sender of one who waits")
    }

    /// Changes the queue and lets those go who then have room.
    fn change(&self, change: impl FnOnce(&mut Queue)) {
        let admitted = {
            let mut queue = self.lock();
            change(&mut queue);
            queue.admit()
        };
        for (number, turn) in admitted {
            // Of one that gave up this very moment the ticket is dropped here, and goes on.
            let _ = turn.send(Ticket { lane: self.clone(), number });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("nothing that holds a lane's lock can panic")
    }
}

impl Queue {
    fn has_room_for(&self, registry: &str) -> bool {
        let counts = |pull: &&Running| !pull.lasts_long || pull.registry == registry;
        self.running.values().filter(counts).count() < self.limit
    }

    fn admit(&mut self) -> Vec<(u64, oneshot::Sender<Ticket>)> {
        let mut admitted = Vec::new();
        for (place, Waiting { registry, turn }) in std::mem::take(&mut self.waiting) {
            let (_, number) = place;
            if turn.is_closed() {
                continue;
            }
            if self.has_room_for(&registry) {
                self.running.insert(number, Running { registry, lasts_long: false });
                admitted.push((number, turn));
            } else {
                self.waiting.insert(place, Waiting { registry, turn });
            }
        }
        admitted
    }
}

impl Ticket {
    /// From now on it holds up those only who wait for the same registry.
    pub fn lasts_long(&self) {
        self.lane.change(|queue| {
            queue.running.get_mut(&self.number).expect("it runs while its ticket is held").lasts_long = true;
        });
    }
}

/// Hands the right on. A ticket sent to someone who then gives up without looking is dropped
/// with the channel, and so comes back to here and goes to the next.
impl Drop for Ticket {
    fn drop(&mut self) {
        self.lane.change(|queue| drop(queue.running.remove(&self.number)));
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn the_important_go_first_and_equals_in_order() {
        let lane = Lane::new(1);
        let held = lane.ticket("a", 0).await;
        let mut first = lane.ticket("a", 0).boxed();
        let mut second = lane.ticket("a", 0).boxed();
        let mut important = lane.ticket("a", 9).boxed();
        assert!((&mut first).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut important).now_or_never().is_none());
        drop(held);
        let important = important.now_or_never().expect("it is the turn of the important one");
        assert!((&mut first).now_or_never().is_none());
        drop(important);
        let first = first.now_or_never().expect("it is the turn of the first");
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        assert!(second.now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_gives_up_loses_no_ticket() {
        let lane = Lane::new(1);
        let held = lane.ticket("a", 0).await;
        let mut before = lane.ticket("a", 0).boxed();
        let mut after = lane.ticket("a", 0).boxed();
        assert!((&mut before).now_or_never().is_none());
        assert!((&mut after).now_or_never().is_none());
        let mut granted = lane.ticket("a", 9).boxed();
        assert!((&mut granted).now_or_never().is_none());
        drop(before);
        drop(held);
        // It was this one's turn, but it never looks.
        drop(granted);
        assert!(after.now_or_never().is_some());
        assert!(lane.ticket("a", 0).now_or_never().is_some(), "all tickets are back");
    }

    #[tokio::test]
    async fn a_long_pull_holds_up_its_own_registry_only() {
        let lane = Lane::new(1);
        let silent = lane.ticket("silent", 0).await;
        let mut same = lane.ticket("silent", 9).boxed();
        let mut other = lane.ticket("other", 0).boxed();
        let mut third = lane.ticket("third", 0).boxed();
        for waiting in [&mut same, &mut other, &mut third] {
            assert!(waiting.now_or_never().is_none());
        }
        silent.lasts_long();
        assert!((&mut same).now_or_never().is_none());
        let other = other.now_or_never().expect("the long one does not count");
        assert!((&mut third).now_or_never().is_none(), "but one at a time");
        other.lasts_long();
        let third = third.now_or_never().expect("neither counts");
        drop(silent);
        assert!((&mut same).now_or_never().is_none());
        drop(third);
        assert!(same.now_or_never().is_some());
        drop(other);
        assert!(lane.ticket("silent", 0).now_or_never().is_some(), "all tickets are back");
    }
}
