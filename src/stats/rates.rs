//! How fast a counter of CPU time grows. Pure.
//!
//! Nothing is read unless somebody asks, so the first who asks gets no rate: there is one reading
//! only, and to wait for a second one would keep him waiting. metrics-server and Prometheus take
//! rates from the counters themselves.

use std::time::Duration;

use tokio::time::Instant;

/// A rate is over this time at least, if somebody asked so long ago: over less, it jumps about.
const WINDOW: Duration = Duration::from_secs(10);
const WINDOW_MIN: Duration = Duration::from_millis(500);
/// What is older says nothing about now.
const WINDOW_MAX: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    usage_ns: u64,
}

/// The last two samples of a cgroup that are worth a comparison.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    older: Option<Sample>,
    newer: Option<Sample>,
}

impl Samples {
    /// Takes note of a reading; the rate since an earlier one, in billionths of a CPU.
    pub fn rate(&mut self, now: Instant, usage_ns: u64) -> Option<u64> {
        let age = |sample: &Sample| now.saturating_duration_since(sample.at);
        // A counter that went back is another cgroup of the same name.
        let is_use = |sample: &Sample| sample.usage_ns <= usage_ns && age(sample) <= WINDOW_MAX;
        self.older = self.older.filter(is_use);
        self.newer = self.newer.filter(is_use);
        let is_due = self.newer.is_none_or(|newer| age(&newer) >= WINDOW);
        let base = if is_due { self.newer } else { self.older.or(self.newer) };
        let rate = base.filter(|base| age(base) >= WINDOW_MIN).map(|base| {
            let (used, time) = (u128::from(usage_ns - base.usage_ns), age(&base).as_nanos());
            u64::try_from(used * 1_000_000_000 / time).unwrap_or(u64::MAX)
        });
        if is_due {
            (self.older, self.newer) = (self.newer, Some(Sample { at: now, usage_ns }));
        }
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Readings at these milliseconds with these milliseconds of CPU; the rates in thousandths.
    fn check(readings: &[(u64, u64)], expected: &[Option<u64>]) {
        let start = Instant::now();
        let mut samples = Samples::default();
        let rates = readings.iter().map(|(at, used)| {
            let rate = samples.rate(start + Duration::from_millis(*at), used * 1_000_000);
            rate.map(|rate| rate / 1_000_000)
        });
        assert_eq!(rates.collect::<Vec<_>>(), expected, "{readings:?}");
    }

    #[tokio::test]
    async fn a_rate_takes_two_readings_some_time_apart() {
        check(&[(0, 7)], &[None]);
        check(&[(0, 7), (100, 8)], &[None, None]);
        check(&[(0, 0), (1000, 500)], &[None, Some(500)]);
        check(&[(0, 0), (60_000, 6_000)], &[None, Some(100)]);
    }

    #[tokio::test]
    async fn those_who_ask_often_get_it_over_some_time() {
        check(
            &[(0, 0), (5_000, 5_000), (10_000, 5_000), (12_000, 6_000), (20_000, 10_000)],
            &[None, Some(1000), Some(500), Some(500), Some(500)],
        );
    }

    #[tokio::test]
    async fn what_went_back_or_is_old_is_no_base() {
        check(&[(0, 100), (10_000, 50), (20_000, 1_050)], &[None, None, Some(100)]);
        check(&[(0, 100), (700_000, 200), (710_000, 300)], &[None, None, Some(10)]);
    }
}
