//! A token bucket: so many at once, then so many in a second.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// What a configuration says of a client: `kubeAPIQPS` and `kubeAPIBurst`, or the events'.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rate {
    pub per_second: f64,
    pub burst: u32,
}

/// The bucket alone, with `now` passed in.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate: Rate,
    /// Below zero when callers have taken tokens that they are still waiting for.
    tokens: f64,
    filled: Instant,
}

impl TokenBucket {
    pub fn new(rate: Rate, now: Instant) -> Self {
        TokenBucket { rate, tokens: f64::from(rate.burst), filled: now }
    }

    /// Takes a token if there is one.
    pub fn try_take(&mut self, now: Instant) -> bool {
        self.try_take_leaving(now, 0)
    }

    /// Takes a token if so many are left then.
    pub fn try_take_leaving(&mut self, now: Instant, rest: u32) -> bool {
        self.fill(now);
        let taken = self.tokens >= 1.0 + f64::from(rest);
        if taken {
            self.tokens -= 1.0;
        }
        taken
    }

    /// Takes a token, on credit if need be, and says how long to wait before using it.
    pub fn take(&mut self, now: Instant) -> Duration {
        self.fill(now);
        self.tokens -= 1.0;
        if self.tokens >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.tokens / self.rate.per_second) }
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.rate.per_second).min(f64::from(self.rate.burst));
        self.filled = now;
    }
}

/// A bucket that many callers wait at, in the order they came.
pub struct Throttle(Option<Mutex<TokenBucket>>);

impl Throttle {
    /// `None` lets everyone through at once.
    pub fn new(rate: Option<Rate>) -> Self {
        Throttle(rate.map(|rate| Mutex::new(TokenBucket::new(rate, Instant::now()))))
    }

    /// Waits for this caller's turn. A caller that gives up has used its token: under a
    /// limit, asking too little is the better mistake.
    pub async fn turn(&self) {
        let Some(bucket) = &self.0 else { return };
        let wait = bucket.lock().expect("no holder of the bucket lock panics").take(Instant::now());
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `steps`: seconds after the start at which a token is asked for, and whether it is given.
    fn check(rate: Rate, steps: &[(f64, bool)]) {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(rate, start);
        for &(seconds, given) in steps {
            assert_eq!(bucket.try_take(start + Duration::from_secs_f64(seconds)), given, "after {seconds} s");
        }
    }

    #[tokio::test]
    async fn a_burst_is_spent_then_refilled_at_the_rate() {
        check(
            Rate { per_second: 2.0, burst: 2 },
            &[(0.0, true), (0.0, true), (0.0, false), (0.4, false), (0.5, true), (0.6, false)],
        );
    }

    #[tokio::test]
    async fn a_rest_never_gives_more_than_the_burst() {
        check(Rate { per_second: 10.0, burst: 1 }, &[(100.0, true), (100.0, false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_callers_go_one_after_the_other() {
        let throttle = Throttle::new(Some(Rate { per_second: 10.0, burst: 1 }));
        let start = Instant::now();
        futures::future::join_all([throttle.turn(), throttle.turn(), throttle.turn()]).await;
        assert_eq!(start.elapsed(), Duration::from_millis(200));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_rate_nobody_waits() {
        let throttle = Throttle::new(None);
        for _ in 0..1000 {
            throttle.turn().await;
        }
    }
}
