//! A limit on how many pulls run at once, in which those of important pods go first.

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
    free: usize,
    /// By priority, highest first, and within one in the order of arrival.
    waiting: BTreeMap<(Reverse<i32>, u64), oneshot::Sender<Ticket>>,
    arrivals: u64,
}

/// The right to pull, for as long as it is held.
pub struct Ticket {
    lane: Lane,
}

impl Lane {
    pub fn new(limit: usize) -> Self {
        Lane { queue: Arc::new(Mutex::new(Queue { free: limit, waiting: BTreeMap::new(), arrivals: 0 })) }
    }

    /// Waits for its turn. Dropping the future gives up the place.
    pub async fn ticket(&self, priority: i32) -> Ticket {
        let turn = {
            let mut queue = self.lock();
            if queue.free > 0 {
                queue.free -= 1;
                drop(queue);
                return Ticket { lane: self.clone() };
            }
            let (sender, turn) = oneshot::channel();
            let arrival = queue.arrivals;
            queue.arrivals += 1;
            queue.waiting.insert((Reverse(priority), arrival), sender);
            turn
        };
        turn.await.expect("the lane drops no sender without using it")
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("nothing that holds a lane's lock can panic")
    }
}

/// Hands the right on. A ticket sent to someone who then gives up without looking is dropped
/// with the channel, and so comes back to here and goes to the next.
impl Drop for Ticket {
    fn drop(&mut self) {
        let next = {
            let mut queue = self.lane.lock();
            let next = std::iter::from_fn(|| queue.waiting.pop_first()).find(|(_, sender)| !sender.is_closed());
            if next.is_none() {
                queue.free += 1;
            }
            next
        };
        if let Some((_, sender)) = next {
            // One that gave up this very moment leaves the ticket in the error.
            let _ = sender.send(Ticket { lane: self.lane.clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn the_important_go_first_and_equals_in_order() {
        let lane = Lane::new(1);
        let held = lane.ticket(0).await;
        let mut first = lane.ticket(0).boxed();
        let mut second = lane.ticket(0).boxed();
        let mut important = lane.ticket(9).boxed();
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
        let held = lane.ticket(0).await;
        let mut before = lane.ticket(0).boxed();
        let mut after = lane.ticket(0).boxed();
        assert!((&mut before).now_or_never().is_none());
        assert!((&mut after).now_or_never().is_none());
        let mut granted = lane.ticket(9).boxed();
        assert!((&mut granted).now_or_never().is_none());
        drop(before);
        drop(held);
        // It was this one's turn, but it never looks.
        drop(granted);
        assert!(after.now_or_never().is_some());
        assert!(lane.ticket(0).now_or_never().is_some(), "all tickets are back");
    }
}
