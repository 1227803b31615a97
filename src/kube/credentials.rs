//! Credentials that a program gives, and renews.
//!
//! kube asks the program anew within the request that finds the credentials near their end, and
//! lets go of it with the request. One that hangs would be started again by each request, and
//! each time hold up one more thread. Here it is asked on behalf of all: who comes while it thinks
//! waits for the same answer, and who leaves leaves the others their answer.
//!
//! Always true: it runs once at a time, and a program that says nothing is ended. kube gives no handle
//! on it, so it is run by `timeout`, where the machine has that.

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
use tracing::debug;

use super::errors::PluginError;

/// A program that asks somebody far away over a bad line, and then somebody else, has answered by then.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(120);
/// From being asked to end until it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// What kube hands out is good for as long as that; nobody may have waited for an answer.
const ANSWER_KEPT_FOR: Duration = Duration::from_secs(60);

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

/// The same with a program that is ended where it does not end.
pub(super) fn bounded(config: &Config) -> Config {
    let mut config = config.clone();
    let Some(exec) = &mut config.auth_info.exec else { return config };
    let Some(timeout) = found_in_path("timeout") else {
        debug!("without `timeout` on this machine, a credential plugin that hangs is not ended");
        return config;
    };
    let Some(program) = exec.command.replace(timeout) else { return config };
    let bounds = ["-k".to_owned(), GRACE.as_secs().to_string(), ANSWER_WITHIN.as_secs().to_string(), program];
    exec.args = Some(bounds.into_iter().chain(exec.args.take().unwrap_or_default()).collect());
    config
}

fn found_in_path(program: &str) -> Option<String> {
    let directories = std::env::var_os("PATH")?;
    let mut paths = std::env::split_paths(&directories).map(|directory| directory.join(program));
    paths.find(|path| path.is_file())?.into_os_string().into_string().ok()
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
        let silent = |_| Err(Failure::Silent(Arc::new(PluginError::silent(&self.program))));
        timeout(wait, answer).await.unwrap_or_else(silent)
    }

    fn question<F>(&self, ask: impl FnOnce() -> F) -> Shared<BoxFuture<'static, Result<T, Failure>>>
    where
        F: Future<Output = Result<T, BoxError>> + Send + 'static,
    {
        let mut last = self.last.lock().expect("no holder of the question's lock panics");
        if let Some(question) = last.as_ref().filter(|question| question.counts()) {
            return question.answer.clone();
        }
        // Goes on when nobody waits for it any more.
        let asked = tokio::spawn(ask()).map(|ended| match ended {
            Ok(answer) => answer.map_err(|error| Failure::Failed(Arc::new(error))),
            Err(panicked) => Err(Failure::Failed(Arc::new(panicked.into()))),
        });
        let answer = asked.boxed().shared();
        *last = Some(Question { answer: answer.clone(), began: Instant::now() });
        answer
    }
}

impl<T: Clone + Send + Sync + 'static> Question<T> {
    /// Whether its answer is for whoever comes now.
    fn counts(&self) -> bool {
        let is_told = self.answer.peek().is_some();
        match self.answer.clone().now_or_never() {
            Some(_) => !is_told && self.began.elapsed() < ANSWER_KEPT_FOR,
            None => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::sleep;

    use super::*;
    use crate::causes::chain;

    const WAIT: Duration = Duration::from_secs(24);

    #[tokio::test(start_paused = true)]
    async fn a_program_that_hangs_is_named_and_asked_once_at_a_time() {
        let (asking, asked) = (Asking::<()>::of("/bin/login"), AtomicU32::new(0));
        let hang = || {
            asked.fetch_add(1, Ordering::Relaxed);
            std::future::pending()
        };
        for _ in 0..100 {
            let error = asking.answer(WAIT, hang).await.expect_err("it hangs");
            assert_eq!(chain(&error), "no credentials: credential plugin /bin/login: no answer yet");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_waited_for_is_of_no_use_later() {
        let asking = Asking::<u32>::of("/bin/login");
        let slow = || async {
            sleep(2 * WAIT).await;
            Ok(7)
        };
        asking.answer(WAIT, slow).await.expect_err("it takes longer");
        sleep(ANSWER_KEPT_FOR).await;
        assert_eq!(asking.answer(WAIT, || async { Ok(8) }).await.expect("it answers"), 8);
    }

    #[test]
    fn a_program_runs_within_bounds() {
        let mut config = Config::new(http::Uri::from_static("https://localhost"));
        let exec = serde_json::json!({ "command": "/bin/login", "args": ["--fast"] });
        config.auth_info.exec = serde_json::from_value(exec).expect("it is one");
        let exec = bounded(&config).auth_info.exec.expect("there is a program");
        assert!(exec.command.is_some_and(|command| command.ends_with("/timeout")), "Debian has it");
        assert_eq!(exec.args.expect("there are some"), ["-k", "5", "120", "/bin/login", "--fast"]);
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
