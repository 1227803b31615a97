//! The ports: opened before anything else starts, served once the house stands.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::ServerError;
use super::authn::Authn;
use super::authz::Authz;
use super::checkpoints::CheckpointDesk;
use super::config::{Result, ServerConfig};
use super::connection::{self, Protocol};
use super::front::{Exhibits, Front, Peer};
use super::guests::{Guest, Guests};
use super::logs::LogDesk;
use super::metrics::MetricsDesk;
use super::routes::Door;
use super::streaming::Streaming;
use super::tls::Tls;
use super::turns::Client;
use super::zpages::ZPages;
use crate::clock::Clock;
use crate::config;
use crate::host::Host;
use crate::kube::Reviews;
use crate::logs::node::NodeLogs;

/// What `/logs/` shows.
const NODE_LOGS: &str = "/var/log";
/// For the first byte, and then for a handshake.
const GREETING_LIMIT: Duration = Duration::from_secs(10);
/// Between attempts where no descriptor is free.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// A client whose machine is gone is noticed by these, in seconds: what it held is freed.
const KEEPALIVE_AFTER: u32 = 30;
const KEEPALIVE_EVERY: u32 = 10;
const KEEPALIVE_TRIES: u32 = 3;

/// Ports that are bound, and what is needed to serve them.
pub struct Doors {
    config: ServerConfig,
    host: Arc<dyn Host>,
    clock: Clock,
    main: Option<(TcpListener, Arc<Tls>)>,
    read_only: Option<TcpListener>,
}

impl Doors {
    /// Binds what the configuration asks for. A server that cannot be had is no reason to go on
    /// without it: whoever watches the agent has to hear of it.
    pub async fn open(config: ServerConfig, host: Arc<dyn Host>, clock: Clock) -> Result<Self> {
        let main = match config.main {
            Some(address) => {
                let tls = Tls::open(&config.tls, host.clone(), &clock).await?;
                Some((bind(address, "address and port").await?, Arc::new(tls)))
            }
            None => None,
        };
        let read_only = match config.read_only {
            Some(address) => Some(bind(address, "address and readOnlyPort").await?),
            None => None,
        };
        Ok(Doors { config, host, clock, main, read_only })
    }

    /// Where HTTPS is served.
    pub fn address(&self) -> Option<SocketAddr> {
        self.main.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// Where plain HTTP is served.
    pub fn read_only_address(&self) -> Option<SocketAddr> {
        self.read_only.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until dropped, and all connections with it.
    pub async fn serve(self, exhibits: Exhibits, reviews: Option<Arc<dyn Reviews>>) {
        let Doors { config, host, clock, main, read_only } = self;
        let authorities = main.as_ref().and_then(|(_, tls)| tls.authorities());
        let front = Arc::new(Front {
            authn: Authn::new(&config.authn, authorities, reviews.clone(), clock.clone()),
            authz: Authz::new(&config.authz, reviews, clock.clone()),
            switches: config.switches,
            configz: config.configz,
            logs: LogDesk {
                containers: exhibits.log_reads.clone(),
                node: NodeLogs::new(NODE_LOGS.into(), exhibits.disk.clone(), config.log_queries),
                clock: clock.clone(),
                split_streams: config.split_streams,
            },
            metrics: MetricsDesk::new(clock.clone()),
            checkpoints: config.checkpoints.map(|dir| CheckpointDesk::new(dir, host, clock.clone())),
            zpages: ZPages {
                started: clock.wall(),
                clock,
                binary_version: config::VERSION.trim_start_matches('v').to_owned(),
                flags: config.flags,
            },
            flagz: config.flagz,
            statusz: config.statusz,
            verbosity: config.verbosity,
            streaming: Streaming::new(Arc::new(exhibits.runtime.clone()), config.stream_idle),
            exhibits,
        });
        let main = main.map(|(listener, tls)| accept(listener, Some(tls), front.clone()));
        let read_only = read_only.map(|listener| accept(listener, None, front.clone()));
        futures::future::join_all(main.into_iter().chain(read_only)).await;
    }
}

async fn bind(address: SocketAddr, fields: &'static str) -> Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| ServerError::Bind { address, fields, source })
}

/// Takes connections for ever, each with a task of its own.
async fn accept(listener: TcpListener, tls: Option<Arc<Tls>>, front: Arc<Front>) {
    let door = if tls.is_some() { Door::Main } else { Door::ReadOnly };
    if let Ok(address) = listener.local_addr() {
        info!(%address, ?door, "server listens");
    }
    let guests = Guests::default();
    let mut connections = JoinSet::new();
    let mut complained = false;
    loop {
        tokio::select! {
            // Cancel-safe: a connection is either taken or stays in the queue.
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    complained = false;
                    let attended = attend((stream, from.ip()), tls.clone(), front.clone(), guests.welcome());
                    connections.spawn(attended);
                }
                // A client that left already, or no descriptor free just now.
                Err(error) => {
                    let is_news = error.kind() != io::ErrorKind::ConnectionAborted && !complained;
                    match is_news {
                        true => warn!(%error, ?door, "connections are not taken"),
                        false => debug!(%error, "connection not taken"),
                    }
                    complained |= is_news;
                    guests.make_room();
                    sleep(ACCEPT_RETRY).await;
                }
            },
            // Cancel-safe: a task that ended stays in the set until taken out.
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    warn!(%error, "a connection's task failed");
                }
            }
        }
    }
}

/// A connection from its beginning to its end, or until its place is needed.
async fn attend(from: (TcpStream, IpAddr), tls: Option<Arc<Tls>>, front: Arc<Front>, guest: Arc<Guest>) {
    let connection = greet(from, tls, front, guest.clone());
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                debug!(%error, "connection ended");
            }
        }
        // Cancel-safe: the connection is dropped with all that is under way on it.
        () = guest.told_to_leave() => debug!("a stranger leaves for another"),
    }
}

async fn greet(
    (stream, address): (TcpStream, IpAddr),
    tls: Option<Arc<Tls>>,
    front: Arc<Front>,
    guest: Arc<Guest>,
) -> io::Result<()> {
    watch_over(&stream);
    let client = Client::new(address, guest.number());
    // Nothing is allocated for a client before it speaks.
    if timeout(GREETING_LIMIT, stream.peek(&mut [0])).await?? == 0 {
        return Ok(());
    }
    let Some(tls) = tls else {
        let peer = Peer { door: Door::ReadOnly, guest, client, certificates: None };
        return connection::serve(stream, Protocol::Http1, front, peer).await;
    };
    let config = tls.current().await.map_err(io::Error::other)?;
    let stream = timeout(GREETING_LIMIT, TlsAcceptor::from(config).accept(stream)).await??;
    let (_, session) = stream.get_ref();
    let protocol = match session.alpn_protocol() {
        Some(b"h2") => Protocol::Http2,
        _ => Protocol::Http1,
    };
    let certificates = session.peer_certificates().map(<[_]>::to_vec);
    connection::serve(stream, protocol, front, Peer { door: Door::Main, guest, client, certificates }).await
}

/// Has the kernel find out when the other end is gone. A socket without that serves all the same.
///
/// There is no TCP_USER_TIMEOUT. By tcp(7) it also counts the time for which a window is shut, so
/// that it ends those who are there and pause, `kubectl logs | less` say, and it overrides the
/// limits of keepalive. A machine that vanishes while something is on its way to it acknowledges
/// neither that nor the probes of a shut window: the kernel gives it up by `tcp_retries2`, after
/// a quarter of an hour by default. HTTP/2 pings sooner. And what somebody pauses in who is there
/// ends as `flow.rs` says.
fn watch_over(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_AFTER);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_EVERY);
    let _ = setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_TRIES);
}
