//! Faults: what may go wrong at an edge, drawn from the seed.
//!
//! Every outside call of the agent passes through [`Faults::draw`]. The odds differ from
//! seed to seed, so that some runs are calm, some are one long storm, and some have a single
//! kind of trouble only.

use std::time::Duration;

/// How one call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It takes effect and says so.
    Good,
    /// It says no and has no effect.
    Refused,
    /// It takes effect and yet reports a failure: a connection lost after the request.
    Lost,
    /// No answer comes. The effect may come late, or never.
    Hangs { takes_effect: bool },
}

/// The odds, in thousandths, for one run.
#[derive(Clone, Debug)]
pub struct Faults {
    pub refused: u32,
    pub lost: u32,
    pub hangs: u32,
    /// An event of a stream is dropped, doubled, or the stream breaks.
    pub stream: u32,
    /// Ordinary calls last up to this.
    pub latency_max: Duration,
}

impl Faults {
    pub fn none() -> Self {
        Faults { refused: 0, lost: 0, hangs: 0, stream: 0, latency_max: Duration::from_millis(20) }
    }

    /// The weather of a run.
    pub fn from_seed(random: &mut fastrand::Rng) -> Self {
        let mut odds = |most: u32| if random.bool() { 0 } else { random.u32(0..=most) };
        Faults {
            refused: odds(120),
            lost: odds(80),
            hangs: odds(30),
            stream: odds(150),
            latency_max: Duration::from_millis(u64::from(odds(400)) + 1),
        }
    }

    pub fn draw(&self, random: &mut fastrand::Rng) -> Fate {
        let roll = random.u32(0..1000);
        if roll < self.refused {
            Fate::Refused
        } else if roll < self.refused + self.lost {
            Fate::Lost
        } else if roll < self.refused + self.lost + self.hangs {
            Fate::Hangs { takes_effect: random.bool() }
        } else {
            Fate::Good
        }
    }

    pub fn latency(&self, random: &mut fastrand::Rng) -> Duration {
        Duration::from_micros(random.u64(0..=self.latency_max.as_micros() as u64))
    }
}
