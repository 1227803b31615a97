//! Room for so many, where one more sends the oldest away: those who stay long push out one
//! another, and whoever needs a moment only has it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

/// Clones share the room.
#[derive(Clone)]
pub struct Room(Arc<Inner>);

struct Inner {
    max: usize,
    seats: Mutex<Seats>,
}

#[derive(Default)]
struct Seats {
    next: u64,
    /// The oldest first, each with what tells it to leave.
    taken: BTreeMap<u64, Arc<Notify>>,
}

/// Held until dropped.
pub struct Seat {
    room: Room,
    number: u64,
    leave: Arc<Notify>,
}

impl Room {
    pub fn new(max: usize) -> Self {
        Room(Arc::new(Inner { max, seats: Mutex::default() }))
    }

    /// Never waits.
    pub fn enter(&self) -> Seat {
        let mut seats = self.seats();
        if seats.taken.len() >= self.0.max {
            seats.show_out_oldest();
        }
        let (number, leave) = (seats.next, Arc::new(Notify::new()));
        seats.next += 1;
        seats.taken.insert(number, leave.clone());
        Seat { room: self.clone(), number, leave }
    }

    /// Sends the oldest away without anybody in its place.
    pub fn make_room(&self) {
        self.seats().show_out_oldest();
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.0.seats.lock().expect("nothing that holds the seats can panic")
    }
}

impl Seats {
    fn show_out_oldest(&mut self) {
        if let Some((_, leave)) = self.taken.pop_first() {
            leave.notify_one();
        }
    }
}

impl Seat {
    /// Returns when another needs it.
    pub async fn needed(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.room.seats().taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn has_to_leave(seat: &Seat) -> bool {
        seat.needed().now_or_never().is_some()
    }

    #[tokio::test]
    async fn one_too_many_sends_the_oldest_away() {
        let room = Room::new(2);
        let [first, second] = [room.enter(), room.enter()];
        assert!(!has_to_leave(&first));
        let third = room.enter();
        assert!(has_to_leave(&first) && !has_to_leave(&second) && !has_to_leave(&third));
        // It had no seat any more to give back.
        drop(first);
        let fourth = room.enter();
        assert!(has_to_leave(&second) && !has_to_leave(&third));
        drop(third);
        drop(room.enter());
        assert!(!has_to_leave(&fourth));
        room.make_room();
        assert!(has_to_leave(&fourth));
    }
}
