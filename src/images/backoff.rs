//! How long a pod waits before an image that could not be pulled is tried again.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::pod::PodUid;

const INITIAL: Duration = Duration::from_secs(10);
const MAX: Duration = Duration::from_secs(300);
/// A failure this long after the one before starts a new series.
const FORGET_AFTER: Duration = MAX.saturating_mul(2);

/// The failures that still count, by pod and image.
#[derive(Debug, Default)]
pub struct Backoff {
    series: BTreeMap<(PodUid, String), Series>,
}

#[derive(Debug)]
struct Series {
    failed_at: Instant,
    delay: Duration,
    error: String,
}

/// A pull that must wait, and why the last one failed.
#[derive(Debug, PartialEq, Eq)]
pub struct Held {
    pub until: Instant,
    pub error: String,
}

impl Backoff {
    pub fn held(&self, pod: &PodUid, image: &str, now: Instant) -> Option<Held> {
        let series = self.series.get(&key(pod, image))?;
        let until = series.failed_at + series.delay;
        (now < until).then(|| Held { until, error: series.error.clone() })
    }

    /// Notes a failure and returns when to try again. Series that no longer count are dropped
    /// here, which bounds the table by the failures of ten minutes.
    pub fn failed(&mut self, pod: &PodUid, image: &str, error: String, now: Instant) -> Instant {
        self.series.retain(|_, series| now.saturating_duration_since(series.failed_at) <= FORGET_AFTER);
        let delay = match self.series.get(&key(pod, image)) {
            Some(series) => MAX.min(series.delay * 2),
            None => INITIAL,
        };
        self.series.insert(key(pod, image), Series { failed_at: now, delay, error });
        now + delay
    }

    pub fn succeeded(&mut self, pod: &PodUid, image: &str) {
        self.series.remove(&key(pod, image));
    }
}

fn key(pod: &PodUid, image: &str) -> (PodUid, String) {
    (pod.clone(), image.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(backoff: &mut Backoff, now: &mut Instant, failures: usize) -> Vec<u64> {
        let pod = PodUid::new("pod");
        (0..failures)
            .map(|_| {
                let until = backoff.failed(&pod, "image", "no".into(), *now);
                let delay = until - *now;
                *now = until;
                delay.as_secs()
            })
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn delays_double_up_to_five_minutes() {
        let mut now = Instant::now();
        assert_eq!(delays(&mut Backoff::default(), &mut now, 7), [10, 20, 40, 80, 160, 300, 300]);
    }

    #[tokio::test(start_paused = true)]
    async fn ten_quiet_minutes_or_a_success_start_afresh() {
        let (mut backoff, mut now) = (Backoff::default(), Instant::now());
        delays(&mut backoff, &mut now, 3);
        // The delay of 40 s is over; 560 s more make ten minutes since the failure.
        now += Duration::from_secs(560);
        assert_eq!(delays(&mut backoff, &mut now, 1), [80]);
        now += Duration::from_secs(521);
        assert_eq!(delays(&mut backoff, &mut now, 2), [10, 20]);
        backoff.succeeded(&PodUid::new("pod"), "image");
        assert_eq!(delays(&mut backoff, &mut now, 1), [10]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_pod_and_image_that_failed_are_held_and_only_until_the_delay_is_over() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        let (pod, other) = (PodUid::new("pod"), PodUid::new("other"));
        let until = backoff.failed(&pod, "image", "no".into(), now);
        assert_eq!(backoff.held(&pod, "image", now), Some(Held { until, error: "no".into() }));
        assert_eq!(backoff.held(&pod, "image", until), None);
        assert_eq!(backoff.held(&other, "image", now), None);
        assert_eq!(backoff.held(&pod, "else", now), None);
    }
}
