//! Waiting: a condition is looked at again and again until it holds or its time is up.
//!
//! Always on level, never on edge, and the error says what was seen last. What is to happen is waited
//! for in this way only; who sleeps does so for what is not to happen meanwhile.

use std::fmt::Display;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

/// Short enough not to show in the figures of a test, long enough to leave the CPU to it.
const INTERVAL: Duration = Duration::from_millis(50);

/// What one look at a condition found.
pub enum Look<T> {
    Done(T),
    /// Not yet; the text says what is there instead.
    NotYet(String),
}

/// Looks until `look` says done. An error from `look` ends the wait at once.
pub async fn until<T>(
    goal: impl Display,
    within: Duration,
    mut look: impl AsyncFnMut() -> Result<Look<T>>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        match look().await? {
            Look::Done(value) => return Ok(value),
            Look::NotYet(last) if Instant::now() >= deadline => {
                bail!("{goal}: not within {within:?}; last seen: {last}")
            }
            Look::NotYet(_) => tokio::time::sleep(INTERVAL).await,
        }
    }
}
