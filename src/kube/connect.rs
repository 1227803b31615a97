//! How a connection to the API server is opened, and what is spoken on it.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use futures::FutureExt;
use http::header::AUTHORIZATION;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::{Connection, HttpConnector};
use hyper_util::client::legacy::{Client as HyperClient, Error as HyperError};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::Config;
use kube::client::{Body, ConfigExt};
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};

use super::credentials::{self, Credentials};

/// Name, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which a connection is asked whether it lives, and its time to answer.
const PING_AFTER: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// Flow-control windows. hyper's defaults let a slow reader pile up 5 MB.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// Addresses, authenticates and sends requests; opens and reuses connections as needed.
pub(super) type Connections = BoxCloneSyncService<Request<Body>, Response<Incoming>, BoxError>;

type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Protocol {
    /// Any number of requests on one connection. Chosen beforehand and not by what the
    /// server picks, because only then does everyone wait for the one connection being
    /// opened; otherwise each of a hundred waiting watches opens its own.
    Http2,
    /// One request at a time on each connection.
    Http1,
}

/// The server is one that speaks HTTP/1.1 only, or something in between is.
#[derive(Debug)]
pub(super) struct NoHttp2;

impl fmt::Display for NoHttp2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server does not speak HTTP/2")
    }
}

impl Error for NoHttp2 {}

/// `wait` is for how long a request waits for a program that renews its credentials.
pub(super) fn connect(config: &Config, protocol: Protocol, wait: Duration) -> Result<Connections, kube::Error> {
    let program = config.auth_info.exec.as_ref().map(|exec| exec.command.as_deref().unwrap_or_default());
    let config = &credentials::bounded(config);
    let connector = connector(config, protocol)?;
    let open = service_fn(move |uri| open(connector.clone(), uri, protocol).boxed());

    let mut builder = HyperClient::builder(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(2)
        .http2_only(protocol == Protocol::Http2)
        .http2_keep_alive_interval(PING_AFTER)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        // Without this a connection that only ever times out is never asked: no stream is
        // open on it by the time the ping is due.
        .http2_keep_alive_while_idle(true)
        .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let client: HyperClient<_, Body> = builder.build(open);

    let auth = if program.is_some() { None } else { config.auth_layer()? };
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(auth)
        .layer(config.extra_headers_layer()?)
        .map_err(|error: HyperError| -> BoxError { Box::new(error) })
        .service(client);
    let connections = BoxCloneSyncService::new(service);
    match program {
        Some(program) => Ok(with(Credentials::of(config, program, wait)?, connections)),
        None => Ok(connections),
    }
}

/// The same connections for requests that carry these credentials.
fn with(credentials: Credentials, connections: Connections) -> Connections {
    BoxCloneSyncService::new(service_fn(move |mut request: Request<Body>| {
        let (credentials, connections) = (credentials.clone(), connections.clone());
        async move {
            if let Some(header) = credentials.header().await? {
                request.headers_mut().insert(AUTHORIZATION, header);
            }
            connections.oneshot(request).await
        }
    }))
}

fn connector(config: &Config, protocol: Protocol) -> Result<HttpsConnector<HttpConnector>, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    // For HTTP/1.1, where there is no ping.
    tcp.set_keepalive(Some(PING_AFTER));
    tcp.set_keepalive_interval(Some(PING_TIMEOUT / 3));
    tcp.set_keepalive_retries(Some(3));
    tcp.set_tcp_user_timeout(Some(PING_AFTER + PING_TIMEOUT));

    let mut tls = config.rustls_client_config()?;
    // The default keeps room for 256 servers; there is one.
    tls.resumption = Resumption::in_memory_sessions(2);
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    let name = config.tls_server_name.as_deref().map(ServerName::try_from);
    let builder = match name {
        Some(Ok(name)) => builder.with_server_name_resolver(FixedServerNameResolver::new(name.to_owned())),
        _ => builder,
    };
    Ok(match protocol {
        Protocol::Http1 => builder.enable_http1().wrap_connector(tcp),
        // Both are offered: a server that knows neither of those offered ends the handshake
        // without a reason that could be told from a refusal.
        Protocol::Http2 => builder.enable_all_versions().wrap_connector(tcp),
    })
}

async fn open(connector: HttpsConnector<HttpConnector>, server: Uri, protocol: Protocol) -> Result<Stream, BoxError> {
    let stream = match timeout(CONNECT_TIMEOUT, connector.oneshot(server)).await {
        Ok(stream) => stream?,
        Err(_) => return Err(format!("no connection within {CONNECT_TIMEOUT:?}").into()),
    };
    if protocol == Protocol::Http2 && !stream.connected().is_negotiated_h2() {
        return Err(NoHttp2.into());
    }
    Ok(stream)
}
