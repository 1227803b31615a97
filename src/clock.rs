//! Time and chance, the one edge every room shares.
//!
//! Deadlines and delays use `tokio::time`, which a test can pause; the wall clock is read
//! here and nowhere else, because on an edge board it may be years off and may jump.

pub mod build;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// Clocks of a cluster differ a little; a certificate from the future by more than this says
/// that ours is wrong.
pub const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_mins(5);

/// A cloneable source of wall time and of randomness.
#[derive(Clone)]
pub struct Clock {
    wall: Wall,
    random: Arc<Mutex<fastrand::Rng>>,
}

#[derive(Clone)]
enum Wall {
    /// The machine's own clock.
    System,
    /// Wall time that advances with tokio's (paused) clock, for simulations and tests.
    Virtual { epoch: Timestamp, started: Instant, step: Arc<Mutex<SignedDuration>> },
}

impl Clock {
    pub fn system() -> Self {
        Clock { wall: Wall::System, random: Arc::new(Mutex::new(fastrand::Rng::new())) }
    }

    /// A clock that starts at `epoch` now and draws its chance from `seed`.
    pub fn simulated(epoch: Timestamp, seed: u64) -> Self {
        Clock {
            wall: Wall::Virtual { epoch, started: Instant::now(), step: Arc::default() },
            random: Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))),
        }
    }

    /// What the wall clock shows. Never compare two of these for a deadline.
    pub fn wall(&self) -> Timestamp {
        match &self.wall {
            #[allow(clippy::disallowed_methods)] // The edge itself.
            Wall::System => Timestamp::now(),
            Wall::Virtual { epoch, started, step } => {
                let step = *step.lock().expect("no holder of the step lock panics");
                *epoch + SignedDuration::try_from(started.elapsed()).unwrap_or(SignedDuration::MAX) + step
            }
        }
    }

    /// The monotonic clock, pausable in tests.
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// Makes a simulated wall clock jump; the machine's own cannot be moved from here.
    pub fn step_wall(&self, by: SignedDuration) {
        if let Wall::Virtual { step, .. } = &self.wall {
            let mut step = step.lock().expect("no holder of the step lock panics");
            *step += by;
        }
    }

    /// A duration in `base ..= base * (1 + factor)`, so that equal timers drift apart.
    pub fn jitter(&self, base: Duration, factor: f64) -> Duration {
        base + self.part_of(base.mul_f64(factor))
    }

    /// A part of `whole` by chance, in whole milliseconds: that is what timers can tell apart,
    /// and a seed must not depend on how a fraction of one is rounded.
    pub fn part_of(&self, whole: Duration) -> Duration {
        let milliseconds = whole.as_secs_f64() * 1000.0 * self.with_random(|random| random.f64());
        Duration::from_millis(milliseconds as u64)
    }

    pub fn with_random<T>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        draw(&mut self.random.lock().expect("no holder of the random lock panics"))
    }
}
