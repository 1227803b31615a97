//! One request and its answer: throttled, bounded in time, decoded, its failure classified.
//!
//! Answers are decoded here and not by kube's client, which logs what it cannot decode:
//! that may be a Secret or a token.

use std::sync::Arc;
use std::time::Duration;

use futures::io::{AsyncBufRead, AsyncBufReadExt};
use futures::stream::{BoxStream, StreamExt, unfold};
use http::Request;
use kube::core::WatchEvent;
use kube::core::request::Error as BuildError;
use kube::{Client, Error};
use serde::de::DeserializeOwned;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, timeout};

use super::errors::classify;
use super::limit::Throttle;
use super::transport::{Lane, Transport};
use super::watch::slim;
use super::{ApiError, ApiObject};
use crate::metrics;

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
        Requester { client: Client::new(service, "default"), transport, lane, throttle: Arc::new(throttle) }
    }

    /// The same under the same limit, over another lane.
    pub(super) fn over(&self, lane: Lane) -> Self {
        Requester { lane, ..self.clone() }
    }

    /// The same over the same lane, without a limit.
    pub(super) fn unlimited(&self) -> Self {
        self.under(Throttle::new(None))
    }

    /// The same over the same lane, under another limit.
    pub(super) fn under(&self, throttle: Throttle) -> Self {
        Requester { throttle: Arc::new(throttle), ..self.clone() }
    }

    pub(super) fn transport(&self) -> &Transport {
        &self.transport
    }

    pub(super) fn retry_now(&self) -> Receiver<u64> {
        self.transport.retry_now()
    }

    /// Sends and decodes the answer. `what` is the act and its object, for the error.
    pub(super) async fn fetch<K: ApiObject>(&self, what: &str, request: Built) -> Result<K, ApiError> {
        let answer = self.try_fetch(request).await;
        answer.map(slim).map_err(|error| classify(what, &error))
    }

    /// Sends, for an answer that tells no more than its arrival.
    pub(super) async fn send(&self, what: &str, request: Built) -> Result<(), ApiError> {
        match self.text(request).await {
            Ok(_) => Ok(()),
            Err(error) => Err(classify(what, &error)),
        }
    }

    pub(super) async fn try_fetch<T: DeserializeOwned>(&self, request: Built) -> kube::Result<T> {
        serde_json::from_str(&self.text(request).await?).map_err(Error::SerdeError)
    }

    async fn text(&self, request: Built) -> kube::Result<String> {
        let request = self.admit(request).await?;
        let method = request.method().clone();
        let text = self.in_time(self.client.request_text(request)).await?;
        metrics::api::read(method.as_str(), &self.transport.server(), text.len());
        Ok(text)
    }

    /// Opens a watch. Only its beginning is bounded in time. It ends when other connections
    /// take the place of those it was opened on.
    pub(super) async fn stream<K: ApiObject>(&self, request: Built) -> kube::Result<Events<K>> {
        let request = self.admit(request).await?;
        let mut renewal = self.transport.renewal().await;
        let lines = self.in_time(self.client.request_stream(request)).await?;
        let renewed = async move { drop(renewal.changed().await) };
        Ok(decoded(lines).take_until(Box::pin(renewed)).boxed())
    }

    async fn in_time<T>(&self, answer: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
        let within = self.lane.answer_within() + BODY_TIMEOUT;
        match timeout(within, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::Service(Incomplete { within }.into())),
        }
    }

    async fn admit(&self, request: Built) -> kube::Result<Request<Vec<u8>>> {
        let mut request = request.map_err(Error::BuildRequest)?;
        request.extensions_mut().insert(self.lane);
        let began = Instant::now();
        self.throttle.turn().await;
        let (method, bytes) = (request.method().as_str(), request.body().len());
        metrics::api::admitted(method, &self.transport.server(), began.elapsed(), bytes);
        Ok(request)
    }
}

/// One event from each line. Nothing is held between two of them: of the many watches most
/// are silent for hours.
fn decoded<K: ApiObject>(lines: impl AsyncBufRead + Send + 'static) -> Events<K> {
    unfold(Box::pin(lines), |mut lines| async {
        let mut line = Vec::new();
        let event = match lines.read_until(b'\n', &mut line).await {
            Ok(_) if line.last() == Some(&b'\n') => serde_json::from_slice(&line).map_err(Error::SerdeError),
            // The end, perhaps in the middle of a line.
            Ok(_) => return None,
            Err(error) => Err(Error::ReadEvents(error)),
        };
        Some((event, lines))
    })
    .boxed()
}

/// The events of one watch request.
pub(super) type Events<K> = BoxStream<'static, kube::Result<WatchEvent<K>>>;

#[derive(Debug, thiserror::Error)]
#[error("no complete answer within {within:?}")]
struct Incomplete {
    within: Duration,
}
