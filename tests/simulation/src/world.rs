//! What all simulated edges share: chance, the weather, the log, and the verdicts.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ferrolet::clock::Clock;
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::faults::{Fate, Faults};
use crate::invariants::{Invariant, Violation};

/// Calls in one run beyond any that an agent with work to do has made: something spins.
const CALLS_MAX: u64 = 2_000_000;

/// What becomes of the lines of the log. They are formatted only where somebody reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogMode {
    Silent,
    Kept,
    /// As `tracing` events, between those of the agent.
    Told,
}

/// One late effect. A caller that dies may take it with it.
struct Late<'a>(&'a World);

impl Drop for Late<'_> {
    fn drop(&mut self) {
        self.0.inner().late -= 1;
    }
}

/// One simulated world. Clones share it.
#[derive(Clone)]
pub struct World {
    inner: Arc<Mutex<Inner>>,
    pub clock: Clock,
    started: Instant,
}

struct Inner {
    random: fastrand::Rng,
    faults: Faults,
    mode: LogMode,
    log: Vec<String>,
    violations: Vec<Violation>,
    calls: u64,
    /// Effects of calls that hang, still to come.
    late: usize,
    /// By how much the wall clock is off since when, in all.
    steps: Vec<(Instant, SignedDuration)>,
}

impl World {
    pub fn new(seed: u64, faults: Faults, mode: LogMode) -> Self {
        let epoch = "2026-01-01T00:00:00Z".parse().expect("a literal time");
        World {
            inner: Arc::new(Mutex::new(Inner {
                random: fastrand::Rng::with_seed(seed),
                faults,
                mode,
                log: Vec::new(),
                violations: Vec::new(),
                calls: 0,
                late: 0,
                steps: Vec::new(),
            })),
            // Its own stream of chance: a draw by the agent must not shift the weather.
            clock: Clock::simulated(epoch, seed ^ 0x5eed),
            started: Instant::now(),
        }
    }

    pub fn log(&self, line: impl FnOnce() -> String) {
        let mode = self.inner().mode;
        match mode {
            LogMode::Silent => {}
            LogMode::Kept => {
                let line = format!("{:>12.6} {}", self.started.elapsed().as_secs_f64(), line());
                self.inner().log.push(line);
            }
            LogMode::Told => tracing::info!(target: "world", "{}", line()),
        }
    }

    /// Somebody sets the wall clock.
    pub fn step_wall(&self, by: SignedDuration) {
        self.log(|| format!("wall clock steps by {by:?}"));
        self.clock.step_wall(by);
        let mut inner = self.inner();
        let before = inner.steps.last().map_or(SignedDuration::ZERO, |(_, step)| *step);
        inner.steps.push((Instant::now(), before + by));
    }

    /// What the wall clock would say now, had it stayed as far back as it ever was since then.
    pub fn earliest_wall_since(&self, then: Instant) -> Timestamp {
        let inner = self.inner();
        let step_at = |at: Instant| inner.steps.iter().rfind(|(since, _)| *since <= at).map(|(_, step)| *step);
        let later = inner.steps.iter().filter(|(since, _)| *since > then).map(|(_, step)| *step);
        let lowest = later.chain([step_at(then).unwrap_or_default()]).min().unwrap_or_default();
        let now = inner.steps.last().map_or(SignedDuration::ZERO, |(_, step)| *step);
        self.clock.wall() - (now - lowest)
    }

    /// A token that is good for so many seconds, by no clock that somebody may set.
    pub fn token_for(&self, seconds: u64) -> String {
        format!("good until {}", self.started.elapsed().as_secs() + seconds)
    }

    pub fn is_good(&self, token: &str) -> bool {
        let end = token.strip_prefix("good until ").and_then(|end| end.parse().ok());
        end.is_some_and(|end: u64| self.started.elapsed().as_secs() < end)
    }

    /// Something that must never happen happened.
    pub fn violation(&self, invariant: Invariant, what: String) {
        let violation = Violation { invariant, what };
        self.log(|| format!("VIOLATION {violation}"));
        let mut inner = self.inner();
        if !inner.violations.contains(&violation) {
            inner.violations.push(violation);
        }
    }

    pub fn violations(&self) -> Vec<Violation> {
        self.inner().violations.clone()
    }

    pub fn is_violated(&self) -> bool {
        !self.inner().violations.is_empty()
    }

    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.inner().log)
    }

    pub fn random<T>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        draw(&mut self.inner().random)
    }

    /// The fate of one call, after its latency has passed.
    pub async fn fate(&self) -> Fate {
        let (fate, latency, calls) = {
            let mut inner = self.inner();
            let Inner { random, faults, calls, .. } = &mut *inner;
            *calls += 1;
            (faults.draw(random), faults.latency(random), *calls)
        };
        if calls > CALLS_MAX {
            self.violation(Invariant::NoSpinning, format!("more than {CALLS_MAX} calls were made"));
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(latency).await;
        fate
    }

    pub fn stream_trouble(&self) -> bool {
        let mut inner = self.inner();
        let odds = inner.faults.stream;
        inner.random.u32(0..1000) < odds
    }

    pub fn set_faults(&self, faults: Faults) {
        self.inner().faults = faults;
    }

    /// Waits as long as the effect of a hanging call is late, which the world remembers.
    pub async fn be_late(&self, max: Duration) {
        let late = self
            .random(|random| Duration::from_millis(random.u64(0..=u64::try_from(max.as_millis()).unwrap_or(u64::MAX))));
        self.inner().late += 1;
        let _guard = Late(self);
        tokio::time::sleep(late).await;
    }

    /// Whether a call of before may still have an effect.
    pub fn has_late_effects(&self) -> bool {
        self.inner().late > 0
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing that holds the world can panic")
    }
}
