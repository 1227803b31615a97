//! What the API server said of callers, kept for a while; and equal questions asked once.
//!
//! A question is known by a digest, so that no token stays in memory for it. Whoever asks while
//! the same question is under way waits for its answer; when all who wait have gone, it is given
//! up. Everything is bounded: answers kept, questions under way, and how long one may take.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use crate::clock::Clock;
use crate::kube::ApiError;

/// Answers kept of one kind.
const KEPT_MAX: usize = 1024;
/// Questions under way at once, and those that wait for their turn.
const ASKED_MAX: usize = 16;
const WAITING_MAX: usize = 256;
/// From the question to the answer, retries and waiting included. A caller who is refused after
/// that asks again; one who hears nothing does not know what is wrong.
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
    turns: Semaphore,
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
        Answers(Arc::new(Inner { clock, turns: Semaphore::new(ASKED_MAX), complained: AtomicBool::new(false), state }))
    }

    /// The answer that is known, or what `ask` says; `ask` may be called again and again.
    pub async fn get<A, F>(&self, question: Question, ask: A) -> Result<V, ReviewError>
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
                None => self.ask(&mut state, question, ask)?,
            }
        };
        pending.await
    }

    fn ask<A, F>(&self, state: &mut State<V>, question: Question, ask: A) -> Result<Shared<Pending<V>>, ReviewError>
    where
        A: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<Answer<V>, ApiError>> + Send + 'static,
    {
        if state.asked.len() >= WAITING_MAX {
            // Those that all who waited have left.
            state.asked.retain(|_, pending| pending.upgrade().is_some());
        }
        if state.asked.len() >= WAITING_MAX {
            return Err(ReviewError::TooMany);
        }
        let inner = self.0.clone();
        let pending = async move {
            let answer = timeout(ANSWER_WITHIN, inner.patiently(ask)).await.unwrap_or(Err(ReviewError::NoAnswer));
            let mut state = inner.state();
            state.asked.remove(&question);
            inner.note(&answer);
            let answer = answer?;
            let value = answer.value.clone();
            state.keep(question, answer, inner.clock.now());
            Ok(value)
        };
        let pending = pending.boxed().shared();
        let weak = pending.downgrade().expect("it was not polled yet");
        state.asked.insert(question, weak);
        Ok(pending)
    }
}

impl<V: Clone> Inner<V> {
    fn state(&self) -> MutexGuard<'_, State<V>> {
        self.state.lock().expect("nothing that holds the answers can panic")
    }

    /// Callers may come at any rate, and the journal is for those who look after the node.
    fn note(&self, answer: &Result<Answer<V>, ReviewError>) {
        let had_complained = self.complained.swap(answer.is_err(), Ordering::Relaxed);
        if let Err(error) = answer {
            match had_complained {
                true => debug!(%error, "callers are refused, because nobody says who they are or what they may"),
                false => warn!(%error, "callers are refused, because nobody says who they are or what they may"),
            }
        }
    }

    async fn patiently<A, F>(&self, ask: A) -> Result<Answer<V>, ReviewError>
    where
        A: Fn() -> F,
        F: Future<Output = Result<Answer<V>, ApiError>>,
    {
        let _turn = self.turns.acquire().await.expect("it is never closed");
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn answers() -> Answers<u32> {
        Answers::new(Clock::simulated(jiff::Timestamp::UNIX_EPOCH, 1))
    }

    /// Asks `question`, which is answered by its number after `takes`, and counts.
    async fn ask(answers: &Answers<u32>, number: u32, favourable: bool, count: &Arc<AtomicUsize>) -> Option<u32> {
        let count = count.clone();
        let asked = answers.get(question(&number.to_be_bytes()), move || {
            count.fetch_add(1, Ordering::Relaxed);
            async move {
                sleep(Duration::from_secs(1)).await;
                Ok(Answer { value: number, keep: Duration::from_secs(600), is_favourable: favourable })
            }
        });
        asked.await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn equal_questions_are_asked_once_and_their_answer_is_kept_for_its_time() {
        let (answers, count) = (answers(), Arc::default());
        let both = futures::future::join(ask(&answers, 1, true, &count), ask(&answers, 1, true, &count)).await;
        assert_eq!((both, count.load(Ordering::Relaxed)), ((Some(1), Some(1)), 1));
        ask(&answers, 1, true, &count).await;
        assert_eq!(count.load(Ordering::Relaxed), 1);
        tokio::time::advance(Duration::from_secs(600)).await;
        ask(&answers, 1, true, &count).await;
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asked_first_may_leave_and_the_others_still_hear() {
        let (answers, count) = (answers(), Arc::default());
        let first = timeout(Duration::from_millis(10), ask(&answers, 1, true, &count));
        let (first, second) = futures::future::join(first, ask(&answers, 1, true, &count)).await;
        assert_eq!((first.is_err(), second, count.load(Ordering::Relaxed)), (true, Some(1), 1));
        // One that everybody has left is asked anew.
        let left = timeout(Duration::from_millis(10), ask(&answers, 2, true, &count)).await;
        assert!(left.is_err());
        assert_eq!((ask(&answers, 2, true, &count).await, count.load(Ordering::Relaxed)), (Some(2), 3));
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_give_way_first_when_there_are_too_many_answers() {
        let (answers, count) = (answers(), Arc::default());
        ask(&answers, 0, true, &count).await;
        for chunk in (1..=2 * KEPT_MAX as u32).collect::<Vec<_>>().chunks(ASKED_MAX * 4) {
            futures::future::join_all(chunk.iter().map(|number| ask(&answers, *number, false, &count))).await;
            assert!(answers.0.state().kept.len() <= KEPT_MAX);
        }
        let before = count.load(Ordering::Relaxed);
        assert_eq!(ask(&answers, 0, true, &count).await, Some(0));
        assert_eq!(count.load(Ordering::Relaxed), before);
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_is_away_is_asked_again_and_one_that_hangs_is_given_up() {
        let (answers, count) = (answers(), Arc::new(AtomicUsize::new(0)));
        let calls = count.clone();
        let recovered = answers.get(question(b"away"), move || {
            let nth = calls.fetch_add(1, Ordering::Relaxed);
            async move {
                match nth {
                    0 => Err(ApiError::Unavailable { what: "review".into(), message: "away".into() }),
                    _ => Ok(Answer { value: 7, keep: Duration::ZERO, is_favourable: true }),
                }
            }
        });
        assert_eq!(recovered.await.ok(), Some(7));
        let start = Instant::now();
        let hung = answers.get(question(b"hangs"), futures::future::pending).await;
        assert!(matches!(hung, Err(ReviewError::NoAnswer)), "{hung:?}");
        // Timers count in milliseconds.
        assert_eq!(start.elapsed().as_secs(), ANSWER_WITHIN.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_when_too_many_wait_is_turned_away_at_once() {
        let answers = answers();
        let crowd = (0..WAITING_MAX as u32)
            .map(|number| answers.get(question(&number.to_be_bytes()), futures::future::pending));
        let mut crowd = Box::pin(futures::future::join_all(crowd));
        assert!(futures::poll!(&mut crowd).is_pending());
        let late = answers.get(question(b"late"), futures::future::pending).await;
        assert!(matches!(late, Err(ReviewError::TooMany)), "{late:?}");
        drop(crowd);
        // Once they have left, there is room.
        let asked = answers
            .get(question(b"late"), || async { Ok(Answer { value: 1, keep: Duration::ZERO, is_favourable: true }) });
        assert_eq!(asked.await.ok(), Some(1));
    }
}
