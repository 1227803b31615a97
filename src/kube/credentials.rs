//! Credentials that a program gives, and renews.
//!
//! kube asks the program anew within the request that finds the credentials near their end, and
//! lets go of it with the request. One that hangs would be started again by each request, and
//! each time hold up one more thread. Here it is asked on behalf of all: who comes while it thinks
//! waits for the same answer, and who leaves leaves the others their answer.

use std::fmt;
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use kube::Config;
use kube::client::{Body, ConfigExt};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};

type Answer = Result<Option<HeaderValue>, Failure>;

/// Clones share the question.
#[derive(Clone)]
pub(super) struct Credentials {
    /// Gives back what kube adds to a request, which it has of the program or gets of it.
    ask: BoxCloneSyncService<Request<Body>, Response<()>, BoxError>,
    asked: Arc<Mutex<Option<Shared<BoxFuture<'static, Answer>>>>>,
}

/// What went wrong, for all who wait.
#[derive(Clone, Debug)]
pub(super) struct Failure(Arc<BoxError>);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no credentials")
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&**self.0)
    }
}

impl Credentials {
    /// Asks the program for the first time, and waits for it right here.
    pub(super) fn of(config: &Config) -> Result<Self, kube::Error> {
        let ask = ServiceBuilder::new().option_layer(config.auth_layer()?).service(service_fn(carried));
        Ok(Credentials { ask: BoxCloneSyncService::new(ask), asked: Arc::default() })
    }

    /// What requests carry now; `None` where the program gave a certificate.
    pub(super) async fn header(&self) -> Answer {
        let answer = {
            let mut asked = self.asked.lock().expect("no holder of the question's lock panics");
            match &*asked {
                Some(answer) if answer.peek().is_none() => answer.clone(),
                _ => asked.insert(self.question()).clone(),
            }
        };
        answer.await
    }

    /// Goes on when nobody waits for it any more.
    fn question(&self) -> Shared<BoxFuture<'static, Answer>> {
        let ask = self.ask.clone();
        let asking = tokio::spawn(async move {
            let asked = ask.oneshot(Request::new(Body::empty())).await?;
            Ok::<_, BoxError>(asked.headers().get(AUTHORIZATION).cloned())
        });
        let answer = asking.map(|ended| ended.unwrap_or_else(|error| Err(error.into())));
        answer.map(|answer| answer.map_err(|error| Failure(Arc::new(error)))).boxed().shared()
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
