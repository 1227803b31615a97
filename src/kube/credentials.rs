//! Credentials that a program gives, and renews.
//!
//! kube asks the program anew within the request that finds the credentials near their end, and
//! lets go of it with the request. One that hangs would be started again by each request, and
//! each time hold up one more thread. Here it is asked on behalf of all: who comes while it thinks
//! waits for the same answer, and who leaves leaves the others their answer.
//!
//! Always true: a program that says nothing is given up, and asked again only after a pause that
//! grows. It cannot be ended from here, so that each one given up keeps its thread until it ends.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use kube::Config;
use kube::client::{Body, ConfigExt};
use tokio::time::{Instant, timeout};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};

use super::errors::PluginError;

/// A program that asks somebody far away over a bad line has answered by then.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// From when one was given up until it is asked again, doubled up to a limit.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(15 * 60);

/// Clones share the question.
#[derive(Clone)]
pub(super) struct Credentials {
    /// Gives back what kube adds to a request, which it has of the program or gets of it.
    ask: BoxCloneSyncService<Request<Body>, Response<()>, BoxError>,
    asking: Arc<Asking<Option<HeaderValue>>>,
    /// How long one request waits.
    wait: Duration,
}

impl Credentials {
    /// Asks the program for the first time, and waits for it right here.
    pub(super) fn of(config: &Config, program: &str, wait: Duration) -> Result<Self, kube::Error> {
        let ask = ServiceBuilder::new().option_layer(config.auth_layer()?).service(service_fn(carried));
        Ok(Credentials { ask: BoxCloneSyncService::new(ask), asking: Arc::new(Asking::of(program)), wait })
    }

    /// What requests carry now; `None` where the program gave a certificate.
    pub(super) async fn header(&self) -> Result<Option<HeaderValue>, Failure> {
        let (ask, program) = (self.ask.clone(), self.asking.program.clone());
        let question = || async move {
            let asked = ask.oneshot(Request::new(Body::empty())).await;
            let asked = asked.map_err(|error| PluginError::within_request(&program, &*error))?;
            Ok(asked.headers().get(AUTHORIZATION).cloned())
        };
        self.asking.answer(self.wait, question).await
    }
}

/// The authorization of a request, in an answer to it.
async fn carried(request: Request<Body>) -> Result<Response<()>, BoxError> {
    let mut answer = Response::new(());
    if let Some(header) = request.headers().get(AUTHORIZATION) {
        answer.headers_mut().insert(AUTHORIZATION, header.clone());
    }
    Ok(answer)
}

/// What a program is asked: one question at a time, whose answer is for all who wait.
pub(super) struct Asking<T> {
    program: String,
    last: Mutex<Option<Question<T>>>,
}

struct Question<T> {
    answer: Shared<BoxFuture<'static, Result<T, Failure>>>,
    began: Instant,
    /// How many just before it were given up.
    given_up: u32,
}

/// What went wrong, for all who wait.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    Failed(Arc<BoxError>),
    Silent(Arc<PluginError>),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no credentials")
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Failure::Failed(error) => Some(&***error),
            Failure::Silent(error) => Some(&**error),
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Asking<T> {
    pub(super) fn of(program: &str) -> Self {
        Asking { program: program.to_owned(), last: Mutex::default() }
    }

    /// The answer to the question that is being asked, which is `ask` if there is none.
    pub(super) async fn answer<F>(&self, wait: Duration, ask: impl FnOnce() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, BoxError>> + Send + 'static,
    {
        let answer = self.question(ask);
        timeout(wait, answer).await.unwrap_or_else(|_| Err(silent(&self.program, wait)))
    }

    fn question<F>(&self, ask: impl FnOnce() -> F) -> Shared<BoxFuture<'static, Result<T, Failure>>>
    where
        F: Future<Output = Result<T, BoxError>> + Send + 'static,
    {
        let mut last = self.last.lock().expect("no holder of the question's lock panics");
        if let Some(question) = last.as_ref().filter(|question| question.counts()) {
            return question.answer.clone();
        }
        let given_up = last.as_ref().filter(|last| last.is_given_up()).map_or(0, |last| last.given_up + 1);
        let program = self.program.clone();
        // Goes on when nobody waits for it any more.
        let asked = tokio::spawn(timeout(ANSWER_WITHIN, ask())).map(move |ended| match ended {
            Ok(Ok(answer)) => answer.map_err(|error| Failure::Failed(Arc::new(error))),
            Ok(Err(_)) => Err(silent(&program, ANSWER_WITHIN)),
            Err(panicked) => Err(Failure::Failed(Arc::new(panicked.into()))),
        });
        let answer = asked.boxed().shared();
        *last = Some(Question { answer: answer.clone(), began: Instant::now(), given_up });
        answer
    }
}

impl<T: Clone + Send + Sync + 'static> Question<T> {
    fn is_given_up(&self) -> bool {
        matches!(self.answer.peek(), Some(Err(Failure::Silent(_))))
    }

    /// Whether its answer is for whoever comes now.
    fn counts(&self) -> bool {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.given_up.min(16)).min(LONGEST_PAUSE);
        let is_told = self.answer.peek().is_some();
        match self.answer.clone().now_or_never() {
            Some(Err(Failure::Silent(_))) => self.began.elapsed() < ANSWER_WITHIN + pause,
            Some(_) => !is_told,
            None => true,
        }
    }
}

fn silent(program: &str, within: Duration) -> Failure {
    Failure::Silent(Arc::new(PluginError::silent(program, within)))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::sleep;

    use super::*;
    use crate::causes::chain;

    const WAIT: Duration = Duration::from_secs(24);

    #[tokio::test(start_paused = true)]
    async fn a_program_that_hangs_is_named_and_asked_again_after_pauses_that_grow() {
        let (asking, asked) = (Asking::<()>::of("/bin/login"), AtomicU32::new(0));
        let hang = || {
            asked.fetch_add(1, Ordering::Relaxed);
            std::future::pending()
        };
        let error = asking.answer(WAIT, hang).await.expect_err("it hangs");
        assert_eq!(chain(&error), "no credentials: credential plugin /bin/login: no answer within 24s");
        let mut times = Vec::new();
        let start = Instant::now() - WAIT;
        for _ in 0..3600 {
            let before = asked.load(Ordering::Relaxed);
            asking.answer(WAIT, hang).await.expect_err("it hangs");
            if asked.load(Ordering::Relaxed) > before {
                times.push(start.elapsed().as_secs() / 60);
            }
            sleep(Duration::from_secs(1)).await;
        }
        // A minute each, and pauses of 1, 2, 4, 8 and then 15 minutes.
        assert_eq!(times[..6], [2, 5, 10, 19, 35, 51], "{times:?}");

        // Whoever comes once it answers has the answer.
        sleep(ANSWER_WITHIN + LONGEST_PAUSE).await;
        asking.answer(WAIT, || async { Ok(()) }).await.expect("it answers");
        asking.answer(WAIT, hang).await.expect_err("it hangs anew");
        assert_eq!(asking.last.lock().expect("nobody panics").as_ref().map(|last| last.given_up), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_asked_again_at_once_and_who_leaves_leaves_the_answer() {
        let asking = Asking::<u32>::of("/bin/login");
        asking.answer(WAIT, || async { Err("not logged in".into()) }).await.expect_err("it fails");
        let slow = || async {
            sleep(2 * WAIT).await;
            Ok(7)
        };
        asking.answer(WAIT, slow).await.expect_err("it takes longer");
        let never = || async { Ok(8) };
        assert_eq!(asking.answer(2 * WAIT, never).await.expect("it has answered"), 7);
    }
}
