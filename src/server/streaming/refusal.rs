//! All the ways of saying no, each with its status and its words.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderValue, Response, StatusCode};

use super::upgrade::UpgradeError;
use crate::cri::CriError;
use crate::server::body::{Body, text};

/// What the runtime has reserved and nobody came for is free again after so long.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("60");

/// Why a client gets no stream, or no output. Where people may know the words from upstream, as
/// in the first three, they are the same.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("pod does not exist")]
    NoPod,
    /// There is one of the name, but not the one that is asked for.
    #[error("pod not found")]
    OtherPod,
    #[error("container not found ({0:?})")]
    NoContainer(String),
    #[error("pod has no sandbox now")]
    NoSandbox,
    #[error("at least one of input, output and error has to be asked for")]
    NoStream,
    #[error("port is missing in the query: this WebSocket protocol cannot name ports later")]
    NoPort,
    #[error("{0:?} is not a port")]
    BadPort(String),
    #[error("cmd is missing in the query")]
    NoCommand,
    #[error("upgrade request required: SPDY/3.1 or websocket")]
    NoUpgrade,
    #[error("an upgrade request has no body")]
    HasBody,
    #[error("{max} streams are open on this node, which is the most there may be")]
    TooManyStreams { max: usize },
    #[error("{max} commands run for others, which is the most there may be")]
    TooManyRuns { max: usize },
    #[error("command '{command}' exited with {code}: {output}")]
    Failed { command: String, code: i32, output: String },
    #[error("command '{command}' still ran after {after:?}")]
    TimedOut { command: String, after: Duration },
    #[error("command '{command}' wrote {bytes} bytes, at most {max} are passed on")]
    TooMuchOutput { command: String, bytes: usize, max: usize },
    /// Told to users, who know nothing of calls.
    #[error("{}", .0.own_words())]
    Runtime(#[from] CriError),
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
}

impl Refusal {
    pub fn status(&self) -> StatusCode {
        match self {
            Refusal::NoPod | Refusal::OtherPod | Refusal::Runtime(CriError::NotFound { .. }) => StatusCode::NOT_FOUND,
            Refusal::NoStream
            | Refusal::NoPort
            | Refusal::BadPort(_)
            | Refusal::NoCommand
            | Refusal::NoUpgrade
            | Refusal::HasBody => StatusCode::BAD_REQUEST,
            Refusal::TooManyStreams { .. }
            | Refusal::TooManyRuns { .. }
            | Refusal::Runtime(CriError::Exhausted { .. }) => StatusCode::TOO_MANY_REQUESTS,
            // That a container is not there is no 404 with upstream either.
            Refusal::NoContainer(_)
            | Refusal::NoSandbox
            | Refusal::Failed { .. }
            | Refusal::TimedOut { .. }
            | Refusal::TooMuchOutput { .. }
            | Refusal::Runtime(_)
            | Refusal::Upgrade(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub fn into_response(self) -> Response<Body> {
        let status = self.status();
        let mut response = text(status, self.to_string());
        if status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
        }
        response
    }
}
