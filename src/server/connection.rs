//! One connection: HTTP/1.1 or HTTP/2 on it, within bounds, until it is idle for too long.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::front::{Front, Peer};

/// The head of a request. Upstream takes 1 MiB. Whoever connects makes us keep as much before
/// anything is known of him: 256 strangers have 16 MiB so, and would have 256 MiB, on machines
/// that have no more. Tokens, the longest that belongs into a head, have some KiB.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Requests at once on one connection.
const STREAMS_MAX: u32 = 100;
/// Streams that a client has reset before they were looked at; one more ends the connection.
const PENDING_RESETS_MAX: usize = 20;
/// Streams that were reset here for a fault of the client.
const OWN_RESETS_MAX: usize = 64;
/// What may pile up for a client that reads slowly, and from one that writes fast.
const SEND_BYTES_MAX: usize = 64 * 1024;
const WINDOW_BYTES: u32 = 64 * 1024;
/// A client that is gone without a word is noticed by these.
const PING_AFTER: Duration = Duration::from_secs(30);
const PING_LIMIT: Duration = Duration::from_secs(15);
/// For what is left to say once a connection was idle for too long.
const FAREWELL_LIMIT: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    Http1,
    Http2,
}

pub async fn serve<S>(stream: S, protocol: Protocol, front: Arc<Front>, peer: Peer) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let guest = peer.guest.clone();
    let peer = Arc::new(peer);
    let service = service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        let (front, peer) = (front.clone(), peer.clone());
        async move {
            // For those who take the connection over.
            request.extensions_mut().insert(peer.guest.clone());
            Ok::<_, Infallible>(front.answer(request, &peer).await)
        }
    });
    let io = TokioIo::new(stream);
    // Both ways the same, for two types of connections: serve until idle, say goodbye, go.
    macro_rules! until_idle {
        ($connection:expr) => {{
            let mut connection = std::pin::pin!($connection);
            tokio::select! {
                ended = connection.as_mut() => return ended.map_err(io::Error::other),
                // Cancel-safe: the connection is only borrowed.
                () = guest.idle_too_long() => {}
            }
            connection.as_mut().graceful_shutdown();
            // What is half said by then is lost.
            let _ = timeout(FAREWELL_LIMIT, connection).await;
        }};
    }
    match protocol {
        Protocol::Http1 => {
            let mut builder = http1::Builder::new();
            // How long a head may take is the guest's to say, who may be idle for as long.
            builder.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEAD_BYTES_MAX);
            until_idle!(builder.serve_connection(io, service).with_upgrades());
        }
        Protocol::Http2 => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(STREAMS_MAX)
                .max_header_list_size(HEAD_BYTES_MAX as u32)
                .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
                .max_local_error_reset_streams(OWN_RESETS_MAX)
                .max_send_buf_size(SEND_BYTES_MAX)
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES)
                .keep_alive_interval(PING_AFTER)
                .keep_alive_timeout(PING_LIMIT);
            until_idle!(builder.serve_connection(io, service));
        }
    }
    Ok(())
}
