//! One GET on a connection of its own, HTTP/1.1 or what TLS agreed on.

use std::pin::pin;
use std::sync::Arc;

use http::header::{ETAG, HOST, LOCATION, PROXY_AUTHORIZATION};
use http::{HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::names::Names;
use super::proxy::Proxy;
use super::{HttpAnswer, HttpGet, NetError, Result, Scheme, connect, tls};

pub async fn get(
    names: &Names,
    request: &HttpGet,
    config: impl FnOnce() -> Result<Arc<ClientConfig>>,
    bytes_max: usize,
    proxy: Option<&Proxy>,
) -> Result<HttpAnswer> {
    if request.scheme == Scheme::Http {
        let stream = match proxy {
            Some(proxy) => proxy.connect(names).await?,
            None => connect(names, &request.host, request.port).await?,
        };
        return over_http1(stream, request, bytes_max, proxy).await;
    }
    let stream = match proxy {
        Some(proxy) => proxy.tunnel(names, request).await?,
        None => connect(names, &request.host, request.port).await?,
    };
    let name = ServerName::try_from(request.host.clone()).map_err(|error| NetError::Request(error.to_string()))?;
    let stream = TlsConnector::from(config()?).connect(name, stream).await.map_err(tls_error)?;
    if stream.get_ref().1.alpn_protocol() == Some(tls::HTTP2) {
        over_http2(stream, request, bytes_max).await
    } else {
        over_http1(stream, request, bytes_max, None).await
    }
}

/// A server of plain HTTP answers a TLS greeting with text, which is no TLS record.
fn tls_error(error: std::io::Error) -> NetError {
    match error.get_ref().and_then(|cause| cause.downcast_ref()) {
        Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => NetError::NotTls,
        _ => NetError::Tls(error.to_string()),
    }
}

async fn over_http1<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    request: &HttpGet,
    bytes_max: usize,
    proxy: Option<&Proxy>,
) -> Result<HttpAnswer> {
    let wire = http1_request(request, proxy)?;
    let (mut sender, connection) =
        http1::Builder::new().title_case_headers(true).handshake(TokioIo::new(stream)).await.map_err(exchange_error)?;
    let exchange = async { read(sender.send_request(wire).await.map_err(exchange_error)?, bytes_max).await };
    beside(connection, exchange).await
}

async fn over_http2<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    request: &HttpGet,
    bytes_max: usize,
) -> Result<HttpAnswer> {
    let wire = http2_request(request)?;
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(exchange_error)?;
    let exchange = async { read(sender.send_request(wire).await.map_err(exchange_error)?, bytes_max).await };
    beside(connection, exchange).await
}

/// Runs the exchange; the connection moves its bytes meanwhile, in the same task.
async fn beside(
    connection: impl Future<Output = hyper::Result<()>>,
    exchange: impl Future<Output = Result<HttpAnswer>>,
) -> Result<HttpAnswer> {
    let mut exchange = pin!(exchange);
    tokio::select! {
        biased;
        // Cancel-safe: neither is polled again after its own end, and dropping both closes
        // the connection.
        answer = &mut exchange => answer,
        _ = connection => exchange.await,
    }
}

async fn read(response: Response<Incoming>, bytes_max: usize) -> Result<HttpAnswer> {
    let (head, mut incoming) = response.into_parts();
    let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut body = Vec::new();
    while body.len() < bytes_max
        && let Some(frame) = incoming.frame().await
    {
        if let Ok(data) = frame.map_err(exchange_error)?.into_data() {
            body.extend_from_slice(&data[..data.len().min(bytes_max - body.len())]);
        }
    }
    Ok(HttpAnswer { status: head.status.as_u16(), location: text(LOCATION), etag: text(ETAG), body })
}

/// A proxy is told of which server the document is, and who asks.
fn http1_request(request: &HttpGet, proxy: Option<&Proxy>) -> Result<Request<Empty<Bytes>>> {
    let mut wire = Request::new(Empty::new());
    *wire.method_mut() = Method::GET;
    let uri = if proxy.is_some() { request.to_string() } else { request.path.clone() };
    *wire.uri_mut() = uri.parse().map_err(|error: http::uri::InvalidUri| invalid(&error))?;
    if let Some(authorization) = proxy.and_then(|proxy| proxy.authorization.as_deref()) {
        let authorization = HeaderValue::try_from(authorization).map_err(|error| invalid(&error))?;
        wire.headers_mut().insert(PROXY_AUTHORIZATION, authorization);
    }
    let host = own_host(request).map_or_else(|| request.authority(), str::to_owned);
    wire.headers_mut().insert(HOST, HeaderValue::try_from(host).map_err(|error| invalid(&error))?);
    // Nothing follows on this connection; a server that knows so closes it first.
    wire.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    add_headers(&mut wire, request)?;
    Ok(wire)
}

fn http2_request(request: &HttpGet) -> Result<Request<Empty<Bytes>>> {
    let host = own_host(request).map_or_else(|| request.authority(), str::to_owned);
    let uri = http::Uri::builder().scheme(request.scheme.as_str()).authority(host).path_and_query(&*request.path);
    let mut wire = Request::new(Empty::new());
    *wire.uri_mut() = uri.build().map_err(|error| invalid(&error))?;
    add_headers(&mut wire, request)?;
    Ok(wire)
}

fn own_host(request: &HttpGet) -> Option<&str> {
    let host = request.headers.iter().find(|(name, value)| name.eq_ignore_ascii_case("host") && !value.is_empty());
    host.map(|(_, value)| value.as_str())
}

fn add_headers(wire: &mut Request<Empty<Bytes>>, request: &HttpGet) -> Result<()> {
    for (name, value) in request.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host")) {
        let name = HeaderName::try_from(name).map_err(|error| invalid(&error))?;
        let value = HeaderValue::try_from(value).map_err(|error| invalid(&error))?;
        wire.headers_mut().append(name, value);
    }
    Ok(())
}

fn invalid(error: &dyn std::error::Error) -> NetError {
    NetError::Request(error.to_string())
}

/// The innermost text: `error reading a body` says less than `connection reset by peer`.
fn exchange_error(error: hyper::Error) -> NetError {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    NetError::Exchange(if error.is_incomplete_message() { "EOF".to_owned() } else { text })
}
