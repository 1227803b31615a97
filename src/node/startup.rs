//! How long the node took to come up, for those who count.

use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::node::Phases;

/// The times of a start that goes on, or has been told.
pub struct Startup {
    began: Instant,
    attempted: Option<Instant>,
    /// Only a Node that was not there before has been registered.
    registered: Option<Instant>,
    is_told: bool,
}

impl Startup {
    pub fn new(now: Instant) -> Self {
        Startup { began: now, attempted: None, registered: None, is_told: false }
    }

    pub fn registering(&mut self, now: Instant) {
        self.attempted.get_or_insert(now);
    }

    pub fn registered(&mut self, now: Instant) {
        self.registered.get_or_insert(now);
    }

    /// The phases, once the API has heard that the node is Ready. A node that only came back has
    /// none, and neither has one that is made again later.
    pub fn told(&mut self, is_ready: bool, now: Instant) -> Option<Phases> {
        if !is_ready || std::mem::replace(&mut self.is_told, true) {
            return None;
        }
        let (attempted, registered) = self.attempted.zip(self.registered)?;
        let between = |from: Instant, to: Instant| -> Duration { to.saturating_duration_since(from) };
        Some(Phases {
            before_registration: between(self.began, attempted),
            registration: between(attempted, registered),
            after_registration: between(registered, now),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_start_has_three_phases_and_is_told_once() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut startup = Startup::new(began);
        startup.registering(at(1));
        startup.registering(at(2));
        startup.registered(at(4));
        assert_eq!(startup.told(false, at(5)), None);
        let phases = Phases {
            before_registration: Duration::from_secs(1),
            registration: Duration::from_secs(3),
            after_registration: Duration::from_secs(6),
        };
        assert_eq!(startup.told(true, at(10)), Some(phases));
        assert_eq!(startup.told(true, at(20)), None);
    }

    #[tokio::test]
    async fn a_node_that_was_there_before_has_not_started() {
        let now = Instant::now();
        let mut startup = Startup::new(now);
        startup.registering(now);
        assert_eq!(startup.told(true, now), None);
        startup.registered(now);
        assert_eq!(startup.told(true, now), None);
    }
}
