//! The runtime's streaming server is sent a client's upgrade, and answers it.
//!
//! Until it has switched, the connection lives in the future that asks, and ends with it.

use std::pin::pin;
use std::time::Duration;

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, PROXY_AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::request::Offer;
use crate::server::body::{Body, empty, text};
use crate::server::websocket::without_token;

/// What the server may say before the bytes begin.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// More of a refusal is not read.
const REFUSAL_BYTES_MAX: usize = 16 << 10;

/// Not for the runtime: who the client is, what is about the client's own connection, and what
/// tells of a body.
const KEPT_BACK: [HeaderName; 12] = [
    AUTHORIZATION,
    PROXY_AUTHORIZATION,
    COOKIE,
    SEC_WEBSOCKET_PROTOCOL,
    HOST,
    CONNECTION,
    UPGRADE,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    TE,
    TRAILER,
    EXPECT,
];

/// Why the server gave no answer that can be passed on.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    #[error("failed to connect to the runtime's streaming server at {url}: {message}")]
    Connect { url: Uri, message: String },
    #[error("streaming over TLS is not supported, and the runtime asks for it: {url}")]
    Encrypted { url: Uri },
    #[error("runtime's streaming server at {url} hung up or answered no HTTP: {message}")]
    Exchange { url: Uri, message: String },
    #[error("runtime's streaming server at {url} did not answer within {after:?}")]
    Silence { url: Uri, after: Duration },
    #[error("runtime's streaming server at {url} answered {status}, neither an upgrade to {to} nor an error")]
    Odd { url: Uri, status: StatusCode, to: &'static str },
}

pub enum Answer {
    /// To be passed on as it is.
    Refused(Response<Body>),
    /// From here on it is bytes, once the client has been told.
    Switched { response: Response<Body>, runtime: Upgraded },
}

pub async fn ask(
    url: &Uri,
    offer: Offer,
    method: &Method,
    headers: &HeaderMap,
    within: Duration,
) -> Result<Answer, UpgradeError> {
    let answer = timeout(within, exchange(url, offer, request(url, offer, method, headers)));
    answer.await.unwrap_or_else(|_| Err(UpgradeError::Silence { url: url.clone(), after: within }))
}

fn request(url: &Uri, offer: Offer, method: &Method, headers: &HeaderMap) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = method.clone();
    if let Some(path) = url.path_and_query() {
        *request.uri_mut() = Uri::from(path.clone());
    }
    let sent = request.headers_mut();
    for (name, value) in headers.iter().filter(|(name, _)| !KEPT_BACK.contains(name)) {
        sent.append(name.clone(), value.clone());
    }
    // Among them there may be one that is a credential.
    if let Some(protocols) = without_token(headers) {
        sent.insert(SEC_WEBSOCKET_PROTOCOL, protocols);
    }
    let authority = url.authority().map(|authority| authority.as_str()).unwrap_or_default();
    if let Ok(host) = HeaderValue::from_str(authority) {
        sent.insert(HOST, host);
    }
    sent.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    sent.insert(UPGRADE, HeaderValue::from_static(offer.name()));
    request
}

async fn exchange(url: &Uri, offer: Offer, request: Request<Empty<Bytes>>) -> Result<Answer, UpgradeError> {
    let stream = connect(url).await?;
    let broken = |error: hyper::Error| UpgradeError::Exchange { url: url.clone(), message: root_cause(&error) };
    let mut builder = http1::Builder::new();
    builder.title_case_headers(true).max_buf_size(HEAD_BYTES_MAX);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let mut answer = pin!(async {
        let response = sender.send_request(request).await.map_err(broken)?;
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS if is_to(offer, response.headers()) => {
                switched(response).await.map_err(broken)
            }
            status if status.is_client_error() || status.is_server_error() => {
                refused(response).await.map(Answer::Refused).map_err(broken)
            }
            // Above all no redirect: whoever followed it would do so with rights of its own.
            status => Err(UpgradeError::Odd { url: url.clone(), status, to: offer.name() }),
        }
    });
    tokio::select! {
        biased;
        // Cancel-safe: neither is polled again after its own end, and dropping both closes the
        // connection.
        answer = &mut answer => answer,
        _ = connection.with_upgrades() => answer.await,
    }
}

async fn connect(url: &Uri) -> Result<TcpStream, UpgradeError> {
    if url.scheme_str() != Some("http") {
        return Err(UpgradeError::Encrypted { url: url.clone() });
    }
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, url.port_u16().unwrap_or(80))).await;
    let stream = stream.map_err(|error| UpgradeError::Connect { url: url.clone(), message: error.to_string() })?;
    // Single keys are typed into some of these.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

fn is_to(offer: Offer, headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(offer.name().as_bytes()))
}

async fn switched(mut response: Response<Incoming>) -> hyper::Result<Answer> {
    let runtime = hyper::upgrade::on(&mut response).await?;
    Ok(Answer::Switched { response: response.map(|_| empty()), runtime })
}

/// The refusal with the beginning of its body, and with words of ours where it has none.
async fn refused(response: Response<Incoming>) -> hyper::Result<Response<Body>> {
    let (mut head, mut incoming) = response.into_parts();
    let mut body = Vec::new();
    while body.len() < REFUSAL_BYTES_MAX
        && let Some(frame) = incoming.frame().await
    {
        if let Ok(data) = frame?.into_data() {
            body.extend_from_slice(&data[..data.len().min(REFUSAL_BYTES_MAX - body.len())]);
        }
    }
    if body.is_empty() {
        body = format!("the container runtime refused the upgrade: {}", head.status).into_bytes();
    }
    for name in KEPT_BACK {
        head.headers.remove(name);
    }
    let mut passed = text(head.status, String::from_utf8_lossy(&body));
    // In place of our own; of names that occur twice both values stay.
    passed.headers_mut().extend(head.headers);
    Ok(passed)
}

/// The innermost text: `connection reset by peer` says more than what is around it.
fn root_cause(error: &hyper::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
