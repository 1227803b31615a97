//! `/containerLogs/` and `/logs/`: what containers and the machine have logged.

use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;

use super::body::{self, Body};
use super::query;
use super::routes::{self, NOT_FOUND};
use crate::causes::chain;
use crate::clock::Clock;
use crate::logs::node::{NodeLog, NodeLogs};
use crate::logs::read::{LogOptions, LogReads, NoLog, choose};
use crate::sync::Roster;

/// What log requests are answered from.
pub struct LogDesk {
    pub containers: LogReads,
    pub node: NodeLogs,
    pub clock: Clock,
    pub split_streams: bool,
}

impl LogDesk {
    /// `/containerLogs/{namespace}/{pod}/{container}`.
    pub async fn of_container(&self, roster: &Roster, path: &str, query: &str) -> Response<Body> {
        self.read(roster, path, query).await.unwrap_or_else(|refused| refused)
    }

    async fn read(&self, roster: &Roster, path: &str, query: &str) -> Result<Response<Body>, Response<Body>> {
        let Some([namespace, pod, container]) = routes::three_names(path) else {
            return Err(body::text(NOT_FOUND.status, NOT_FOUND.words));
        };
        let options = LogOptions::parse(&query::pairs(query), self.clock.wall(), self.split_streams);
        let options = options.map_err(|error| refusal(error.status(), &error))?;
        let none = |error: NoLog| refusal(error.status(), &error);
        let known = roster.find(namespace, pod).ok_or_else(|| none(NoLog::NoPod { pod: pod.to_owned() }))?;
        let instance = choose(&known.pod, &known.status, container, options.previous).map_err(none)?;
        let opened = self.containers.open(&known.uid, &instance, &options).await;
        let pieces = opened.map_err(|error| refusal(error.status(), &error))?;
        Ok(body::text_in_pieces(StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync()))
    }

    /// `/logs/` and what is below it.
    pub async fn of_node(&self, path: &str, query: &str, headers: &HeaderMap) -> Response<Body> {
        let Some(below) = path.strip_prefix("/logs/") else {
            return moved("logs/");
        };
        let may_gzip = headers.get(header::ACCEPT_ENCODING).is_some_and(|accepted| accepted == "gzip");
        match self.node.answer(below, &query::pairs(query), may_gzip).await {
            Ok(NodeLog::Content { content_type, is_gzip, body }) => {
                let pieces = StreamBody::new(body.map(|piece| piece.map(Frame::data)));
                let mut response = body::text_in_pieces(pieces.boxed_unsync());
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
                if is_gzip {
                    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                }
                response
            }
            Ok(NodeLog::Elsewhere(location)) => moved(&location),
            Err(error) => refusal(error.status(), &error),
        }
    }
}

fn moved(location: &str) -> Response<Body> {
    let mut response = body::text(StatusCode::MOVED_PERMANENTLY, "");
    // Names are escaped in it.
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn refusal(status: u16, error: &dyn std::error::Error) -> Response<Body> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    body::text(status, format!("{}\n", chain(error)))
}
