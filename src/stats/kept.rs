//! What was read is kept for a moment, and read once for all who ask meanwhile.

use std::future::Future;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

pub struct Kept<T> {
    time: Duration,
    /// Held while somebody reads, so that the others wait for what he gets.
    last: Mutex<Option<(Instant, T)>>,
}

impl<T: Clone> Kept<T> {
    pub fn new(time: Duration) -> Self {
        Kept { time, last: Mutex::new(None) }
    }

    /// What was read of late and `is_enough`, or what `read` gives. Who came before its reading had
    /// ended gets that, however long it took.
    pub async fn get<E>(
        &self,
        asked: Instant,
        is_enough: impl Fn(&T) -> bool,
        read: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let mut last = self.last.lock().await;
        if let Some((at, value)) = &*last
            && *at + self.time > asked
            && is_enough(value)
        {
            return Ok(value.clone());
        }
        let value = read.await?;
        *last = Some((Instant::now(), value.clone()));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    async fn ask(kept: &Kept<u32>, count: &AtomicU32, takes: Duration) -> Result<u32, ()> {
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
        let more = kept.get(Instant::now(), |value| *value > 1, async { Ok::<_, ()>(7) });
        assert_eq!(more.await, Ok(7));
        tokio::time::advance(Duration::from_secs(2)).await;
        let left = tokio::time::timeout(Duration::from_millis(1), ask(&kept, &count, Duration::from_secs(9))).await;
        assert!(left.is_err());
        assert_eq!(ask(&kept, &count, Duration::ZERO).await, Ok(2));
        // A reading that failed is not kept.
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(kept.get(Instant::now(), |_| true, async { Err::<u32, _>(()) }).await, Err(()));
        assert_eq!(ask(&kept, &count, Duration::ZERO).await, Ok(3));
    }
}
