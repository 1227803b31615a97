//! Handlers: what a probe or a hook asks for, and the asking itself.
//!
//! `resolve.rs` turns the API's handler into a [`Call`] with all names looked up;
//! `redirect.rs` says where a redirected GET goes next. Both are pure. [`Caller`] makes the
//! call through the edges. What an answer means is for the caller to decide: a probe and a
//! hook see the same answer differently.
//!
//! No task of its own. In: the edges `Runtime` and `Net`.
//!
//! Always true: nothing here has a deadline, a retry or an event; whoever drops the future
//! ends the call.

mod redirect;
mod resolve;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

pub use resolve::{Place, ResolveError, exec_command, grpc, http_get, tcp};

use async_trait::async_trait;

use crate::cri::{self, ContainerId, CriError, Executed, Runtime};
use crate::net::{HttpAnswer, HttpGet, Net, NetError, ServingStatus};

/// As with Go's client, a GET is sent so often at most, the first time included.
const REDIRECTS_MAX: usize = 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Exec { command: Vec<String> },
    Http(HttpGet),
    Tcp { host: String, port: u16 },
    Grpc { host: String, port: u16, service: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Executed(Executed),
    Http(HttpAnswer),
    Connected,
    Health(ServingStatus),
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// Told to the pod's author, who knows nothing of calls.
    #[error("{}", .0.own_words())]
    Runtime(#[from] CriError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("stopped after {REDIRECTS_MAX} redirects")]
    TooManyRedirects,
}

/// What of the runtime is needed here.
#[async_trait]
pub trait Execute: Send + Sync {
    async fn exec(&self, id: &ContainerId, command: &[String], timeout: Option<Duration>) -> cri::Result<Executed>;
}

#[async_trait]
impl Execute for Arc<dyn Runtime> {
    async fn exec(&self, id: &ContainerId, command: &[String], timeout: Option<Duration>) -> cri::Result<Executed> {
        (**self).exec(id, command, timeout).await
    }
}

/// Makes calls. Clones share the edges.
#[derive(Clone)]
pub struct Caller {
    runtime: Arc<dyn Execute>,
    net: Arc<dyn Net>,
}

impl Caller {
    pub fn new(runtime: Arc<dyn Execute>, net: Arc<dyn Net>) -> Self {
        Caller { runtime, net }
    }

    /// `exec_timeout` is the runtime's to keep, since only it can end the command.
    pub async fn call(
        &self,
        call: &Call,
        container: &ContainerId,
        exec_timeout: Option<Duration>,
        user_agent: &str,
    ) -> Result<Answer, CallError> {
        match call {
            Call::Exec { command } => Ok(Answer::Executed(self.runtime.exec(container, command, exec_timeout).await?)),
            Call::Http(request) => Ok(Answer::Http(self.get(request).await?)),
            Call::Tcp { host, port } => {
                self.net.tcp_connect(host, *port).await?;
                Ok(Answer::Connected)
            }
            Call::Grpc { host, port, service } => {
                Ok(Answer::Health(self.net.grpc_check(host, *port, service, user_agent).await?))
            }
        }
    }

    /// A GET, sent on while redirects stay on the host that was asked first.
    async fn get(&self, first: &HttpGet) -> Result<HttpAnswer, CallError> {
        let mut request = first.clone();
        for _ in 0..REDIRECTS_MAX {
            let answer = self.net.http_get(&request).await?;
            match redirect::follow(first, &request, &answer) {
                Some(next) => request = next,
                None => return Ok(answer),
            }
        }
        Err(CallError::TooManyRedirects)
    }
}
