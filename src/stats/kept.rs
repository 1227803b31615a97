//! What was read is kept for a moment, and read once for all who ask meanwhile. That it could not be
//! read is kept as well: a runtime that hangs is waited for once, and not by everybody in turn.

use std::future::Future;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// An error is kept no longer than this, however long a value would be: what failed may be well.
const ERROR_KEPT_FOR: Duration = Duration::from_secs(10);

/// Dropping who reads drops his reading, and the next one reads: a deadline belongs into it.
pub struct Kept<T, E> {
    time: Duration,
    /// Held while somebody reads, so that the others wait for what he gets.
    last: Mutex<Option<(Instant, Result<T, E>)>>,
}

impl<T: Clone, E: Clone> Kept<T, E> {
    pub fn new(time: Duration) -> Self {
        Kept { time, last: Mutex::new(None) }
    }

    /// What was read of late and `is_enough`, or what `read` gives. Who came before its reading had
    /// ended gets that, however long it took.
    pub async fn get(
        &self,
        asked: Instant,
        is_enough: impl Fn(&T) -> bool,
        read: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let mut last = self.last.lock().await;
        let kept = last.as_ref().filter(|(at, result)| match result {
            Ok(value) => *at + self.time > asked && is_enough(value),
            Err(_) => *at + self.time.min(ERROR_KEPT_FOR) > asked,
        });
        if let Some((_, result)) = kept {
            return result.clone();
        }
        let result = read.await;
        *last = Some((Instant::now(), result.clone()));
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    async fn ask(kept: &Kept<u32, ()>, count: &AtomicU32, takes: Duration) -> Result<u32, ()> {
        let read = async {
            tokio::time::sleep(takes).await;
            Ok(count.fetch_add(1, Ordering::Relaxed) + 1)
        };
        kept.get(Instant::now(), |_| true, read).await
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_ask_at_once_share_one_reading_for_its_time() {
        let (kept, count) = (Kept::new(Duration::from_secs(1)), AtomicU32::new(0));
        // Longer than it is kept: who waited still gets it.
        let slow = Duration::from_secs(3);
        let both = futures::future::join(ask(&kept, &count, slow), ask(&kept, &count, slow)).await;
        assert_eq!(both, (Ok(1), Ok(1)));
        assert_eq!(ask(&kept, &count, slow).await, Ok(1));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(ask(&kept, &count, slow).await, Ok(2));
    }

    #[tokio::test(start_paused = true)]
    async fn who_wants_more_reads_anew_and_a_reader_may_leave() {
        let (kept, count) = (Kept::new(Duration::from_secs(1)), AtomicU32::new(0));
        assert_eq!(ask(&kept, &count, Duration::ZERO).await, Ok(1));
        let more = kept.get(Instant::now(), |value| *value > 1, async { Ok(7) });
        assert_eq!(more.await, Ok(7));
        tokio::time::advance(Duration::from_secs(2)).await;
        let left = tokio::time::timeout(Duration::from_millis(1), ask(&kept, &count, Duration::from_secs(9))).await;
        assert!(left.is_err());
        assert_eq!(ask(&kept, &count, Duration::ZERO).await, Ok(2));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waited_shares_the_error_and_nobody_waits_anew_for_its_time() {
        let kept = Kept::<u32, &str>::new(Duration::from_secs(300));
        let hang = || async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Err("it hangs")
        };
        let begun = Instant::now();
        let three = [(); 3].map(|()| kept.get(begun, |_| true, hang()));
        assert_eq!(futures::future::join_all(three).await, [Err("it hangs"); 3]);
        assert_eq!(kept.get(Instant::now(), |_| true, hang()).await, Err("it hangs"));
        assert_eq!(begun.elapsed(), Duration::from_secs(2), "it was waited for once");
        tokio::time::advance(ERROR_KEPT_FOR).await;
        assert_eq!(kept.get(Instant::now(), |_| true, async { Ok(7) }).await, Ok(7));
        assert_eq!(kept.get(Instant::now(), |_| true, hang()).await, Ok(7));
    }
}
