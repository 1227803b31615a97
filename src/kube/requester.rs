//! One request and its answer: throttled, bounded in time, decoded, its failure classified.
//!
//! Answers are decoded here and not by kube's client, which logs what it cannot decode:
//! that may be a Secret or a token.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt};
use http::Request;
use kube::core::WatchEvent;
use kube::core::request::Error as BuildError;
use kube::{Client, Error};
use serde::de::DeserializeOwned;
use tokio::sync::watch::Receiver;
use tokio::time::timeout;

use super::errors::classify;
use super::limit::Throttle;
use super::transport::{Lane, Transport};
use super::{ApiError, ApiObject};

/// The transport bounds the wait for the head of an answer; its body may take this much
/// longer.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

type Built = std::result::Result<Request<Vec<u8>>, BuildError>;

/// Sends requests over one lane, under one limit. Clones share both.
#[derive(Clone)]
pub(super) struct Requester {
    client: Client,
    transport: Arc<Transport>,
    lane: Lane,
    throttle: Arc<Throttle>,
}

impl Requester {
    pub(super) fn new(transport: Arc<Transport>, lane: Lane, throttle: Throttle) -> Self {
        let sender = Arc::clone(&transport);
        let service = tower::service_fn(move |request| {
            let sender = Arc::clone(&sender);
            async move { sender.send(request).await }
        });
        Requester {
            client: Client::new(service, "default"),
            transport,
            lane,
            throttle: Arc::new(throttle),
        }
    }

    /// The same under the same limit, over another lane.
    pub(super) fn over(&self, lane: Lane) -> Self {
        Requester {
            lane,
            ..self.clone()
        }
    }

    /// The same over the same lane, without a limit.
    pub(super) fn unlimited(&self) -> Self {
        Requester {
            throttle: Arc::new(Throttle::new(None)),
            ..self.clone()
        }
    }

    pub(super) fn retry_now(&self) -> Receiver<u64> {
        self.transport.retry_now()
    }

    /// Sends and decodes the answer.
    pub(super) async fn fetch<T: DeserializeOwned>(
        &self,
        what: &str,
        request: Built,
    ) -> Result<T, ApiError> {
        let text = self.fetch_text(what, request).await?;
        serde_json::from_str(&text).map_err(|error| classify(what, &Error::SerdeError(error)))
    }

    /// Sends, and leaves the answer as it came.
    pub(super) async fn fetch_text(&self, what: &str, request: Built) -> Result<String, ApiError> {
        let within = self.lane.answer_within() + BODY_TIMEOUT;
        let request = self
            .admit(request)
            .await
            .map_err(|error| classify(what, &error))?;
        match timeout(within, self.client.request_text(request)).await {
            Ok(answer) => answer.map_err(|error| classify(what, &error)),
            Err(_) => Err(no_answer(what, within)),
        }
    }

    /// Opens a watch. Only its beginning is bounded in time.
    pub(super) async fn stream<K: ApiObject>(
        &self,
        what: &str,
        request: Built,
    ) -> Result<Events<K>, NotFollowed> {
        let failed = |error: Error| NotFollowed {
            version_lost: matches!(&error, Error::Api(status) if matches!(status.code, 400 | 410 | 504)),
            error: classify(what, &error),
        };
        let within = self.lane.answer_within() + BODY_TIMEOUT;
        let request = self.admit(request).await.map_err(failed)?;
        match timeout(within, self.client.request_events(request)).await {
            Ok(Ok(events)) => Ok(events.boxed()),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(NotFollowed {
                error: no_answer(what, within),
                version_lost: false,
            }),
        }
    }

    async fn admit(&self, request: Built) -> kube::Result<Request<Vec<u8>>> {
        let mut request = request.map_err(Error::BuildRequest)?;
        request.extensions_mut().insert(self.lane);
        self.throttle.turn().await;
        Ok(request)
    }
}

/// The events of one watch request.
pub(super) type Events<K> = BoxStream<'static, kube::Result<WatchEvent<K>>>;

/// A failed start of a watch, and whether its version is of any use still.
pub(super) struct NotFollowed {
    pub(super) error: ApiError,
    pub(super) version_lost: bool,
}

fn no_answer(what: &str, within: Duration) -> ApiError {
    ApiError::Unavailable {
        what: what.to_owned(),
        message: format!("no complete answer within {within:?}"),
    }
}
