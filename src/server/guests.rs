//! Who is connected, and who has to leave when there are too many.
//!
//! Nobody has vouched for a connection until a request on it was found to be somebody's with a
//! good client certificate, or somebody's who may make it; it is a stranger's till then, and again
//! once a request was forbidden. There is room for so many strangers, and one more sends the oldest of
//! them away: those who connect and say little or nothing push out one another,
//! while somebody with a credential needs a moment to become known. Those who are known have
//! room of their own.
//!
//! A connection goes when no request was under way for too long. One whose answer nobody takes is
//! not for ever: whoever waits for that looks after those too.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::flow::Flow;

/// Each costs at most some tens of KiB: buffers of TLS and of one request's head.
pub const STRANGERS_MAX: usize = 256;
/// Whoever is known beyond this stays a stranger.
pub const KNOWN_MAX: usize = 1024;
/// How long a connection may be without a request; the head of one that is being sent is none yet.
pub const STRANGER_IDLE_LIMIT: Duration = Duration::from_secs(10);
/// As upstream's.
const KNOWN_IDLE_LIMIT: Duration = Duration::from_secs(90);

/// Clones share the guests.
#[derive(Clone, Default)]
pub struct Guests(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    arrived: u64,
    /// The oldest first, each with what tells it to leave.
    strangers: BTreeMap<u64, Arc<Notify>>,
    known: usize,
}

/// One connection. Whoever takes over what it carries keeps this, so that it stays counted.
pub struct Guest {
    number: u64,
    guests: Guests,
    leave: Arc<Notify>,
    requests: Mutex<Requests>,
    changed: Notify,
}

struct Requests {
    began: u64,
    /// Each with its answer, once there is one.
    under_way: BTreeMap<u64, Weak<Flow>>,
    /// When the last one ended, or the connection began.
    since: Instant,
    known: bool,
}

/// A request on its way, until its answer has been sent or given up.
pub struct UnderWay {
    guest: Arc<Guest>,
    number: u64,
}

impl Guests {
    /// Takes in one more. Never waits.
    pub fn welcome(&self) -> Arc<Guest> {
        let leave = Arc::new(Notify::new());
        let mut state = self.state();
        if state.strangers.len() >= STRANGERS_MAX {
            Self::show_out_oldest(&mut state);
        }
        let number = state.arrived;
        state.arrived += 1;
        state.strangers.insert(number, leave.clone());
        let requests =
            Mutex::new(Requests { began: 0, under_way: BTreeMap::new(), since: Instant::now(), known: false });
        Arc::new(Guest { number, guests: self.clone(), leave, requests, changed: Notify::new() })
    }

    /// Makes room where even descriptors are missing.
    pub fn make_room(&self) {
        Self::show_out_oldest(&mut self.state());
    }

    fn show_out_oldest(state: &mut State) {
        if let Some((_, leave)) = state.strangers.pop_first() {
            leave.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing that holds the guests can panic")
    }
}

impl Guest {
    /// Somebody is known to use this connection rightly.
    pub fn vouch(&self) {
        let mut requests = self.requests();
        let mut state = self.guests.state();
        if requests.known || state.known >= KNOWN_MAX {
            return;
        }
        // One that was told to leave already leaves.
        if state.strangers.remove(&self.number).is_some() {
            state.known += 1;
            requests.known = true;
        }
    }

    /// Whoever was vouched for may do nothing here: a stranger again.
    pub fn doubt(&self) {
        let mut requests = self.requests();
        if !std::mem::replace(&mut requests.known, false) {
            return;
        }
        let mut state = self.guests.state();
        state.known -= 1;
        state.strangers.insert(self.number, self.leave.clone());
        if state.strangers.len() > STRANGERS_MAX {
            Guests::show_out_oldest(&mut state);
        }
    }

    /// By which connections are told apart.
    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn request(self: &Arc<Self>) -> UnderWay {
        let mut requests = self.requests();
        let number = requests.began;
        requests.began += 1;
        requests.under_way.insert(number, Weak::new());
        UnderWay { guest: self.clone(), number }
    }

    /// Returns when it has to leave for another.
    pub async fn told_to_leave(&self) {
        self.leave.notified().await;
    }

    /// Returns when there was no request for too long. Has answers given up meanwhile of which
    /// nothing is taken.
    pub async fn idle_too_long(&self) {
        loop {
            let now = Instant::now();
            let idle_until = self.idle_until();
            if idle_until.is_some_and(|until| until <= now) {
                return;
            }
            let changed = self.changed.notified();
            match idle_until.or_else(|| self.look_after_answers(now)) {
                // Whichever came first, all is looked at again.
                Some(until) => _ = timeout_at(until, changed).await,
                None => changed.await,
            }
        }
    }

    /// `None` while there are requests.
    fn idle_until(&self) -> Option<Instant> {
        let requests = self.requests();
        let limit = if requests.known { KNOWN_IDLE_LIMIT } else { STRANGER_IDLE_LIMIT };
        requests.under_way.is_empty().then(|| requests.since + limit)
    }

    /// When there is to be another look, if there is to be one.
    fn look_after_answers(&self, now: Instant) -> Option<Instant> {
        // The last of an answer ends its request, which takes the lock.
        let answers: Vec<_> = self.requests().under_way.values().filter_map(Weak::upgrade).collect();
        answers.iter().filter_map(|answer| answer.look(now)).min()
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().expect("nothing that holds a guest's requests can panic")
    }
}

impl UnderWay {
    /// This is its answer.
    pub fn follow(&self, answer: &Arc<Flow>) {
        self.guest.requests().under_way.insert(self.number, Arc::downgrade(answer));
        self.guest.changed.notify_one();
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut requests = self.guest.requests();
        requests.under_way.remove(&self.number);
        requests.since = Instant::now();
        drop(requests);
        self.guest.changed.notify_one();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let known = self.requests().known;
        let mut state = self.guests.state();
        match known {
            true => state.known -= 1,
            false => drop(state.strangers.remove(&self.number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn has_to_leave(guest: &Guest) -> bool {
        guest.told_to_leave().now_or_never().is_some()
    }

    #[tokio::test]
    async fn one_stranger_too_many_sends_the_oldest_away() {
        let guests = Guests::default();
        let first = guests.welcome();
        let second = guests.welcome();
        second.vouch();
        let crowd: Vec<_> = (0..STRANGERS_MAX).map(|_| guests.welcome()).collect();
        assert!(has_to_leave(&first) && !has_to_leave(&second));
        assert!(!crowd.iter().any(|guest| has_to_leave(guest)));
        guests.make_room();
        assert!(has_to_leave(&crowd[0]));
        // Too late to become known.
        first.vouch();
        drop((first, second, crowd));
        let state = guests.state();
        assert_eq!((state.known, state.strangers.len()), (0, 0));
    }

    #[tokio::test]
    async fn who_was_vouched_for_too_early_is_a_stranger_again() {
        let guests = Guests::default();
        let guest = guests.welcome();
        guest.doubt();
        guest.vouch();
        guest.doubt();
        assert_eq!(guests.state().known, 0);
        assert_eq!(guests.state().strangers.len(), 1);
        let crowd: Vec<_> = (0..STRANGERS_MAX).map(|_| guests.welcome()).collect();
        assert!(has_to_leave(&guest));
        crowd[0].vouch();
        let late = guests.welcome();
        crowd[0].doubt();
        assert!(has_to_leave(&crowd[0]) && !has_to_leave(&late));
    }

    #[tokio::test]
    async fn there_is_no_end_of_strangers_and_an_end_of_those_known() {
        let guests = Guests::default();
        let known: Vec<_> = (0..KNOWN_MAX).map(|_| guests.welcome()).inspect(|guest| guest.vouch()).collect();
        let last = guests.welcome();
        last.vouch();
        let crowd: Vec<_> = (0..STRANGERS_MAX).map(|_| guests.welcome()).collect();
        assert!(has_to_leave(&last));
        drop(known);
        crowd[0].vouch();
        assert_eq!(guests.state().known, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_goes_when_it_was_idle_for_too_long() {
        let check = async |known: bool, limit: Duration| {
            let start = Instant::now();
            let guest = Guests::default().welcome();
            if known {
                guest.vouch();
            }
            let request = guest.request();
            let ends = async {
                tokio::time::sleep(Duration::from_secs(600)).await;
                drop(request);
            };
            futures::future::join(guest.idle_too_long(), ends).await;
            assert_eq!(start.elapsed().as_secs(), 600 + limit.as_secs());
        };
        check(false, STRANGER_IDLE_LIMIT).await;
        check(true, KNOWN_IDLE_LIMIT).await;
    }
}
