//! Serving `/healthz`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::body::in_words;
use super::health::Health;
use super::room::Room;
use super::routes::NOT_FOUND;

const BIND_RETRY: Duration = Duration::from_secs(5);
/// Connections that exist at once. One that has sent nothing is a socket and a small task.
const CONNECTIONS_MAX: usize = 1024;
/// Connections that are read from and answered at once, each with its buffers. Whoever has sent
/// its request is answered in the same turn of its task: those that stay have not sent all of
/// theirs or do not take the answer, and the oldest of them leaves when there are too many.
const SERVED_MAX: usize = 32;
/// How long a client may take to begin, and then to send its request and take the answer.
const IDLE_LIMIT: Duration = Duration::from_secs(5);
const SERVE_LIMIT: Duration = Duration::from_secs(5);
/// Together longer than an idle client may hold a descriptor that was missing.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
const ACCEPT_FAILURES_MAX: u32 = 100;

/// Serves for ever. Takes the port when it becomes free.
pub async fn run(address: SocketAddr, health: Arc<Health>) {
    let mut complained = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                info!(%address, "health endpoint listens");
                complained = false;
                let error = accept(listener, &health).await;
                warn!(%address, %error, "health endpoint closed, will listen again");
            }
            Err(error) if complained => {
                debug!(%address, %error, "health endpoint not bound, will retry")
            }
            Err(error) => {
                warn!(%address, %error, "health endpoint not bound, will retry every {BIND_RETRY:?}");
                complained = true;
            }
        }
        sleep(BIND_RETRY).await;
    }
}

/// Takes connections until the listener itself is broken.
async fn accept(listener: TcpListener, health: &Arc<Health>) -> std::io::Error {
    let (connections, served) = (Room::new(CONNECTIONS_MAX), Room::new(SERVED_MAX));
    let mut failures = 0;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                failures = 0;
                let (health, served, seat) = (Arc::clone(health), served.clone(), connections.enter());
                tokio::spawn(async move {
                    tokio::select! {
                        biased;
                        () = serve(stream, health, &served) => {}
                        // Cancel-safe: the connection is dropped.
                        () = seat.needed() => {}
                    }
                });
            }
            // A client that left already, or no descriptor free just now.
            Err(error) => {
                failures += 1;
                if failures > ACCEPT_FAILURES_MAX {
                    return error;
                }
                connections.make_room();
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, health: Arc<Health>, served: &Room) {
    // Nothing is allocated for a client before it speaks.
    if !matches!(timeout(IDLE_LIMIT, stream.peek(&mut [0])).await, Ok(Ok(1))) {
        return;
    }
    let seat = served.enter();
    let service = service_fn(move |request| {
        let response = respond(&request, &health);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        biased;
        // How a client leaves is its own affair.
        _ = timeout(SERVE_LIMIT, connection) => {}
        // Cancel-safe: the connection is dropped.
        () = seat.needed() => {}
    }
}

/// The answer to a request, whatever its method and body.
pub fn respond<B>(request: &Request<B>, health: &Health) -> Response<String> {
    let path = request.uri().path();
    let parameters = Parameters::of(request.uri().query().unwrap_or_default());
    if let Some(name) = path.strip_prefix("/healthz/").filter(|name| !name.is_empty()) {
        return match health.one(name) {
            Some(Ok(())) => in_words(StatusCode::OK, "ok".to_owned()),
            Some(Err(error)) => {
                in_words(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {error}\n"))
            }
            None => not_found(),
        };
    }
    if !matches!(path, "/healthz" | "/healthz/") {
        return not_found();
    }
    let findings = health.look(|name| !parameters.excluded.contains(&name));
    match (findings.is_healthy, parameters.verbose) {
        (true, false) => in_words(StatusCode::OK, "ok".to_owned()),
        (true, true) => in_words(StatusCode::OK, findings.text()),
        (false, _) => {
            for (name, result) in &findings.lines {
                if let Err(reason) = result {
                    warn!(check = name, reason, "health check failed");
                }
            }
            in_words(StatusCode::INTERNAL_SERVER_ERROR, findings.text())
        }
    }
}

/// What a query asks for. Check names are plain words, so nothing is percent-decoded.
#[derive(Default)]
struct Parameters<'a> {
    verbose: bool,
    excluded: Vec<&'a str>,
}

impl<'a> Parameters<'a> {
    fn of(query: &'a str) -> Self {
        let mut parameters = Parameters::default();
        for pair in query.split('&') {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("verbose", _) => parameters.verbose = true,
                ("exclude", name) => parameters.excluded.push(name),
                _ => {}
            }
        }
        parameters
    }
}

fn not_found() -> Response<String> {
    in_words(NOT_FOUND.status, NOT_FOUND.words.to_owned())
}
