//! exec, attach, port-forward and run: clients that want to talk with what runs in a pod.
//!
//! For the first three the runtime has a streaming server of its own. The runtime is asked
//! where it waits (`Streaming::answer`), `upgrade.rs` sends the client's upgrade on to it and
//! takes its answer, and once both sides have switched, one task for each stream moves bytes
//! between them (`copy.rs`). What the bytes mean, SPDY or WebSocket, is between client and
//! runtime: a protocol that the runtime does not speak, such as `v5.channel.k8s.io` or port
//! forwarding tunnelled through a WebSocket, is refused by it, and the refusal is passed on. The
//! API server knows that of us: the feature `ExtendWebSocketsToKubelet` is not declared, so
//! that it translates to SPDY itself. run is a call that the runtime answers.
//!
//! `request.rs` reads what is wanted from path, query, pod and runtime; `refusal.rs` has all the
//! ways of saying no.
//!
//! In: requests whose sender was found to be allowed; what the runtime holds of the pod.
//! Out: answers, and streams. A client's connection has to be served `with_upgrades`.
//!
//! Always true: whatever comes before the bytes has a deadline; so many streams at most exist
//! at once, each with two buffers of 16 KiB at most and far less while it is at rest; when one
//! side goes, so does the other, and a stream on which nothing moves goes after
//! `streamingConnectionIdleTimeout`, which upstream reads and forgets. The headers
//! with credentials of a client are not passed on.

mod copy;
mod refusal;
mod request;
mod run;
#[cfg(test)]
mod tests;
mod upgrade;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{Request, Response};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{Instrument, debug, info_span};

pub use refusal::Refusal;
pub use request::{Act, StreamRequest, Target};

use super::body::Body;
use crate::cri::{self, ContainerId, Executed, Runtime, SandboxId, Streams, Uri};
use crate::pleg::{Pleg, PodRuntime};
use crate::sync::Roster;
use request::{Offer, Query};
use upgrade::Answer;

/// Far more than people have windows. A program that leaks streams does not take the node
/// along: with their buffers full, all of them together hold 16 MiB.
const STREAMS_MAX: usize = 500;
/// A command's whole output is in memory until it is sent.
const RUNS_MAX: usize = 8;
/// The runtime's streaming server answers before it starts anything.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// As good as for ever, and nothing that a clock cannot add.
const IDLE_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How long one side may go on without saying anything after the other has ended.
const LINGER: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
struct Limits {
    streams: usize,
    answer: Duration,
    linger: Duration,
    idle: Duration,
}

/// What of the runtime is needed here.
#[async_trait]
pub trait StreamSource: Send + Sync + 'static {
    async fn exec(&self, id: &ContainerId, command: &[String], timeout: Option<Duration>) -> cri::Result<Executed>;
    async fn exec_url(&self, id: &ContainerId, command: &[String], streams: Streams) -> cri::Result<Uri>;
    async fn attach_url(&self, id: &ContainerId, streams: Streams) -> cri::Result<Uri>;
    async fn port_forward_url(&self, id: &SandboxId, ports: &[u16]) -> cri::Result<Uri>;
}

#[async_trait]
impl StreamSource for Arc<dyn Runtime> {
    async fn exec(&self, id: &ContainerId, command: &[String], timeout: Option<Duration>) -> cri::Result<Executed> {
        (**self).exec(id, command, timeout).await
    }
    async fn exec_url(&self, id: &ContainerId, command: &[String], streams: Streams) -> cri::Result<Uri> {
        (**self).exec_url(id, command, streams).await
    }
    async fn attach_url(&self, id: &ContainerId, streams: Streams) -> cri::Result<Uri> {
        (**self).attach_url(id, streams).await
    }
    async fn port_forward_url(&self, id: &SandboxId, ports: &[u16]) -> cri::Result<Uri> {
        (**self).port_forward_url(id, ports).await
    }
}

/// Serves the four; one for the whole agent, because of what is counted.
pub struct Streaming {
    runtime: Arc<dyn StreamSource>,
    limits: Limits,
    /// One permit for each stream, from before the runtime is asked until both sides are closed.
    streams: Arc<Semaphore>,
    runs: Arc<Semaphore>,
}

impl Streaming {
    /// `idle` is the configuration's `streamingConnectionIdleTimeout`, of which zero is no limit.
    pub fn new(runtime: Arc<dyn StreamSource>, idle: Duration) -> Self {
        let idle = if idle.is_zero() { IDLE_MAX } else { idle.min(IDLE_MAX) };
        Streaming::within(runtime, Limits { streams: STREAMS_MAX, answer: ANSWER_WITHIN, linger: LINGER, idle })
    }

    fn within(runtime: Arc<dyn StreamSource>, limits: Limits) -> Self {
        let streams = Arc::new(Semaphore::new(limits.streams));
        Streaming { runtime, limits, streams, runs: Arc::new(Semaphore::new(RUNS_MAX)) }
    }

    /// The answer to a request for what its path names.
    pub async fn answer(
        &self,
        request: Request<Incoming>,
        target: &Target,
        roster: &Roster,
        pleg: &Pleg,
    ) -> Response<Body> {
        let Some(known) = roster.find(&target.namespace, &target.pod) else {
            return Refusal::NoPod.into_response();
        };
        match pleg.current(&known.uid).await {
            Ok(held) => self.serve(request, target, &known.pod, &held).await,
            Err(error) => Refusal::Runtime(error).into_response(),
        }
    }

    /// The same for a pod that is here. `held` is what the runtime has of it.
    async fn serve(&self, request: Request<Incoming>, target: &Target, pod: &Pod, held: &PodRuntime) -> Response<Body> {
        let query = Query::of(request.uri().query().unwrap_or_default());
        let answer = match target.check_uid(pod) {
            Err(refusal) => Err(refusal),
            Ok(()) => match &target.act {
                Act::Run { container } => self.run(container, &query, held).await,
                _ => match StreamRequest::of(target, &query, Offer::of(request.headers()), pod, held) {
                    Ok(what) => return self.proxy(request, what).await,
                    Err(refusal) => Err(refusal),
                },
            },
        };
        answer.unwrap_or_else(|refusal| refusal.into_response())
    }

    /// Leads a client to the runtime's streaming server.
    pub async fn proxy(&self, request: Request<Incoming>, what: StreamRequest) -> Response<Body> {
        let span = info_span!("stream", what = %what);
        let answer = self.open(request, &what).instrument(span).await;
        answer.unwrap_or_else(|refusal| refusal.into_response())
    }

    async fn open(&self, mut request: Request<Incoming>, what: &StreamRequest) -> Result<Response<Body>, Refusal> {
        let offer = Offer::of(request.headers()).ok_or(Refusal::NoUpgrade)?;
        if !request.body().is_end_stream() {
            return Err(Refusal::HasBody);
        }
        let permit = Arc::clone(&self.streams).try_acquire_owned();
        let permit = permit.map_err(|_| Refusal::TooManyStreams { max: self.limits.streams })?;
        let url = self.reserve(what).await?;
        debug!(%url, "runtime waits for the stream");
        let client = hyper::upgrade::on(&mut request);
        // Among them what counts the client's connection and its request, for as long as they live.
        let counted = std::mem::take(request.extensions_mut());
        let answer = upgrade::ask(&url, offer, request.method(), request.headers(), self.limits.answer).await?;
        match answer {
            Answer::Refused(response) => {
                debug!(status = response.status().as_u16(), "runtime refused the stream");
                Ok(response)
            }
            Answer::Switched { response, runtime } => {
                let stream = carry(client, TokioIo::new(runtime), self.limits, (permit, counted));
                tokio::spawn(stream.in_current_span());
                Ok(response)
            }
        }
    }

    async fn reserve(&self, what: &StreamRequest) -> cri::Result<Uri> {
        match what {
            StreamRequest::Exec { container, command, streams } => {
                self.runtime.exec_url(container, command, *streams).await
            }
            StreamRequest::Attach { container, streams } => self.runtime.attach_url(container, *streams).await,
            StreamRequest::PortForward { sandbox, ports } => self.runtime.port_forward_url(sandbox, ports).await,
        }
    }
}

/// Waits for the client to have been told, then moves bytes. Returning frees all there is.
async fn carry(
    client: OnUpgrade,
    runtime: TokioIo<hyper::upgrade::Upgraded>,
    limits: Limits,
    _counted: (OwnedSemaphorePermit, http::Extensions),
) {
    let client = match tokio::time::timeout(limits.answer, client).await {
        Ok(Ok(client)) => TokioIo::new(client),
        Ok(Err(error)) => return debug!(%error, "client left before its stream began"),
        Err(_) => return debug!("client took no answer"),
    };
    let ended = copy::both_ways(client, runtime, limits.idle, limits.linger).await;
    debug!(by = ?ended, "stream ended");
}
