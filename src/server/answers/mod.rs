//! What the API server said of callers, kept for a while; and equal questions asked once.
//!
//! A question is known by a digest, so that no token stays in memory for it. Whoever asks while
//! the same question is under way waits for its answer; when all who wait have gone, it is given
//! up. Everything is bounded: answers kept, questions under way, of whom they are, how long one may
//! take, and how long all may that one request brings up.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, warn};

use super::turns::{Bounds, Client, Turns};
use crate::clock::Clock;
use crate::kube::ApiError;

/// Answers kept of one kind.
const KEPT_MAX: usize = 1024;
/// Questions under way at once, and those that wait for their turn. Whoever makes up a token
/// brings up a question: nobody's share is all of them.
const ASKED: Bounds = Bounds { at_once: 16, share: 8, waiting: 256 };
/// From a request to the last answer about it, retries and waiting included. A caller who is refused
/// after that asks again; one who hears nothing does not know what is wrong.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(8);
/// An API server that is away for a moment is asked again: upstream's figures.
const ATTEMPTS_MAX: u32 = 5;
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_FACTOR: f64 = 1.5;
const RETRY_JITTER: f64 = 0.2;

/// A digest of a question.
pub type Question = [u8; 32];

pub fn question(parts: &[u8]) -> Question {
    let digest = ring::digest::digest(&ring::digest::SHA256, parts);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// For whom questions are asked, and how long their answers are of use.
#[derive(Clone, Copy)]
pub struct Asking {
    client: Client,
    until: Instant,
}

impl Asking {
    /// For a request that came just now.
    pub fn begin(client: Client) -> Self {
        Asking { client, until: Instant::now() + ANSWER_WITHIN }
    }
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum ReviewError {
    #[error("the API server did not say within {ANSWER_WITHIN:?}")]
    NoAnswer,
    #[error("too many callers are waiting to be reviewed")]
    TooMany,
    #[error("there is no API server to ask")]
    NobodyToAsk,
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// An answer, how long it holds, and whether it is one that others should give way to.
#[derive(Clone)]
pub struct Answer<V> {
    pub value: V,
    pub keep: Duration,
    pub is_favourable: bool,
}

type Pending<V> = BoxFuture<'static, Result<V, ReviewError>>;

/// Clones share the answers.
#[derive(Clone)]
pub struct Answers<V: Clone>(Arc<Inner<V>>);

struct Inner<V: Clone> {
    clock: Clock,
    turns: Turns,
    /// The last question had no answer, which was told.
    complained: AtomicBool,
    state: Mutex<State<V>>,
}

struct State<V: Clone> {
    kept: BTreeMap<Question, Kept<V>>,
    asked: BTreeMap<Question, WeakShared<Pending<V>>>,
}

struct Kept<V> {
    value: V,
    until: Instant,
    is_favourable: bool,
}

impl<V: Clone + Send + Sync + 'static> Answers<V> {
    pub fn new(clock: Clock) -> Self {
        let state = Mutex::new(State { kept: BTreeMap::new(), asked: BTreeMap::new() });
        Answers(Arc::new(Inner { clock, turns: Turns::new(ASKED), complained: AtomicBool::new(false), state }))
    }

    /// The answer that is known, or what `ask` says; `ask` may be called again and again.
    pub async fn get<A, F>(&self, asking: Asking, question: Question, ask: A) -> Result<V, ReviewError>
    where
        A: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<Answer<V>, ApiError>> + Send + 'static,
    {
        let pending = {
            let mut state = self.0.state();
            if let Some(kept) = state.kept.get(&question).filter(|kept| kept.until > self.0.clock.now()) {
                return Ok(kept.value.clone());
            }
            match state.asked.get(&question).and_then(WeakShared::upgrade) {
                Some(pending) => pending,
                None => self.ask(&mut state, asking.client, question, ask),
            }
        };
        let answer = timeout_at(asking.until, pending).await;
        answer.unwrap_or_else(|_| {
            self.0.note(Some(&ReviewError::NoAnswer));
            Err(ReviewError::NoAnswer)
        })
    }

    fn ask<A, F>(&self, state: &mut State<V>, client: Client, question: Question, ask: A) -> Shared<Pending<V>>
    where
        A: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<Answer<V>, ApiError>> + Send + 'static,
    {
        if state.asked.len() >= ASKED.at_once + ASKED.waiting {
            // Those that all who waited have left. The others have a turn or wait for one.
            state.asked.retain(|_, pending| pending.upgrade().is_some());
        }
        let inner = self.0.clone();
        let pending = async move {
            let asked = timeout(ANSWER_WITHIN, inner.patiently(client, ask));
            let answer = asked.await.unwrap_or(Err(ReviewError::NoAnswer));
            let mut state = inner.state();
            state.asked.remove(&question);
            inner.note(answer.as_ref().err());
            let answer = answer?;
            let value = answer.value.clone();
            state.keep(question, answer, inner.clock.now());
            Ok(value)
        };
        let pending = pending.boxed().shared();
        let weak = pending.downgrade().expect("it was not polled yet");
        state.asked.insert(question, weak);
        pending
    }
}

impl<V: Clone> Inner<V> {
    fn state(&self) -> MutexGuard<'_, State<V>> {
        self.state.lock().expect("nothing that holds the answers can panic")
    }

    /// Callers may come at any rate, and the journal is for those who look after the node.
    fn note(&self, error: Option<&ReviewError>) {
        let had_complained = self.complained.swap(error.is_some(), Ordering::Relaxed);
        if let Some(error) = error {
            match had_complained {
                true => debug!(%error, "callers are refused, because nobody says who they are or what they may"),
                false => warn!(%error, "callers are refused, because nobody says who they are or what they may"),
            }
        }
    }

    async fn patiently<A, F>(&self, client: Client, ask: A) -> Result<Answer<V>, ReviewError>
    where
        A: Fn() -> F,
        F: Future<Output = Result<Answer<V>, ApiError>>,
    {
        let _turn = self.turns.take(client).await.ok_or(ReviewError::TooMany)?;
        let mut wait = RETRY_FIRST;
        for _ in 1..ATTEMPTS_MAX {
            match ask().await {
                Err(ApiError::Unavailable { .. }) => {}
                answer => return Ok(answer?),
            }
            sleep(self.clock.jitter(wait, RETRY_JITTER)).await;
            wait = wait.mul_f64(RETRY_FACTOR);
        }
        Ok(ask().await?)
    }
}

impl<V: Clone> State<V> {
    fn keep(&mut self, question: Question, answer: Answer<V>, now: Instant) {
        let Answer { value, keep, is_favourable } = answer;
        if keep.is_zero() {
            return;
        }
        if self.kept.len() >= KEPT_MAX {
            self.kept.retain(|_, kept| kept.until > now);
        }
        if self.kept.len() >= KEPT_MAX {
            // Somebody who tries tokens by the thousand pushes out his own refusals first.
            let first = self.kept.iter().min_by_key(|(_, kept)| (kept.is_favourable, kept.until));
            if let Some(question) = first.map(|(question, _)| *question) {
                self.kept.remove(&question);
            }
        }
        self.kept.insert(question, Kept { value, until: now + keep, is_favourable });
    }
}
