//! The network as the agent asks the pods over it: one GET, one TCP connection, one gRPC
//! health check; and whatever else it fetches. The fifth edge, beside runtime, API server,
//! machine and time.
//!
//! `http.rs` and `grpc.rs` are the real thing, `url.rs` says which request a URL means and
//! `proxy.rs` which proxy the environment wants for it, and `names.rs` looks names up; the
//! simulation has a network of its own behind the same trait. Nothing outlives its call but
//! the look-up of a name, which cannot be stopped.
//!
//! Always true: a call uses a connection of its own and reads a bounded part of the answer. To
//! pods no proxy is used, whatever the environment says. Of pods any certificate is trusted, since nobody tells the agent which one a
//! pod should have; what the agent obeys is fetched from servers that this machine trusts.
//! Calls have no deadline: the caller ends one by dropping it. But a peer that has vanished from
//! the network is noticed after two minutes and a half.

mod grpc;
mod http;
mod names;
mod proxy;
#[cfg(test)]
mod tests;
mod tls;
mod url;

use std::fmt;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;

pub use grpc::ServingStatus;
use names::Names;
use proxy::Proxies;
pub use url::{basic_authorization, wire_path, without_userinfo};

/// More of an answer's body than this is not read.
pub const BODY_BYTES_MAX: usize = 10 << 10;
/// How long a peer may be silent before it is asked whether it is there, and between the asks.
const SILENCE_SECONDS: u32 = 15;
/// Asked so often in vain, it is gone.
const SILENCE_ASKED: u32 = 9;

/// Why a call got no answer. The texts end up in events, where people look for the words
/// that upstream's probes have: `connection refused`, `no such host`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    #[error("dial tcp {address}: {message}")]
    Connect { address: String, message: String },
    /// The server does not speak TLS, most likely plain HTTP.
    #[error("server gave HTTP response to HTTPS client")]
    NotTls,
    #[error("tls: {0}")]
    Tls(String),
    /// The request cannot be put on the wire.
    #[error("invalid request: {0}")]
    Request(String),
    /// The server hung up, or its answer is not HTTP.
    #[error("{0}")]
    Exchange(String),
    #[error("{0}")]
    Grpc(GrpcFailure),
}

/// How a health check can fail, told apart as upstream does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrpcFailure {
    #[error("this server does not implement the grpc health protocol (grpc.health.v1.Health): {0}")]
    Unimplemented(String),
    #[error("health rpc did not complete: {0}")]
    Deadline(String),
    #[error("health rpc probe failed: {0}")]
    Other(String),
}

pub type Result<T> = std::result::Result<T, NetError>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

/// One GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpGet {
    pub scheme: Scheme,
    /// A name, or an address without brackets.
    pub host: String,
    pub port: u16,
    /// Path and query as on the wire, from the first slash.
    pub path: String,
    /// Sent as they are, in this order. One named `Host` replaces the usual one.
    pub headers: Vec<(String, String)>,
}

impl HttpGet {
    /// `host:port`, with brackets where the host has colons.
    pub fn authority(&self) -> String {
        authority(&self.host, self.port)
    }
}

impl fmt::Display for HttpGet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme.as_str(), self.authority(), self.path)
    }
}

/// `host:port`, with brackets where the host has colons.
pub fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpAnswer {
    pub status: u16,
    /// Where a redirect leads, as the server wrote it.
    pub location: Option<String>,
    /// What the server calls this state of the body.
    pub etag: Option<String>,
    /// The first `BODY_BYTES_MAX` bytes, or as many as were asked for.
    pub body: Vec<u8>,
}

/// The network.
#[async_trait]
pub trait Net: Send + Sync + 'static {
    /// A redirect is an answer like any other; nothing is followed.
    async fn http_get(&self, request: &HttpGet) -> Result<HttpAnswer>;
    /// So much of a document that the agent is going to obey, through the proxy that the
    /// environment names. Neither is anything followed.
    async fn fetch(&self, request: &HttpGet, bytes_max: usize) -> Result<HttpAnswer>;
    /// Opens a TCP connection and closes it.
    async fn tcp_connect(&self, host: &str, port: u16) -> Result<()>;
    /// `grpc.health.v1.Health/Check`, in plain text.
    async fn grpc_check(&self, host: &str, port: u16, service: &str, user_agent: &str) -> Result<ServingStatus>;
}

/// This machine's network.
pub struct MachineNet {
    /// Made once: a configuration costs more than a handshake.
    tls: Arc<rustls::ClientConfig>,
    /// Trusts whom the machine trusts. Made when somebody needs it, since that is a megabyte
    /// of certificates.
    verifying_tls: OnceLock<Arc<rustls::ClientConfig>>,
    proxies: Proxies,
    names: Names,
}

impl MachineNet {
    pub fn new() -> Self {
        MachineNet::with_proxies(Proxies::of(|name| std::env::var(name).ok()))
    }

    fn with_proxies(proxies: Proxies) -> Self {
        MachineNet { tls: tls::trusting_config(), verifying_tls: OnceLock::new(), proxies, names: Names::new() }
    }
}

impl Default for MachineNet {
    fn default() -> Self {
        MachineNet::new()
    }
}

#[async_trait]
impl Net for MachineNet {
    async fn http_get(&self, request: &HttpGet) -> Result<HttpAnswer> {
        http::get(&self.names, request, || Ok(self.tls.clone()), BODY_BYTES_MAX, None).await
    }

    async fn fetch(&self, request: &HttpGet, bytes_max: usize) -> Result<HttpAnswer> {
        let tls = || match self.verifying_tls.get() {
            Some(tls) => Ok(tls.clone()),
            None => tls::verifying_config().map(|tls| self.verifying_tls.get_or_init(|| tls).clone()),
        };
        http::get(&self.names, request, tls, bytes_max, self.proxies.for_request(request)?).await
    }

    async fn tcp_connect(&self, host: &str, port: u16) -> Result<()> {
        connect(&self.names, host, port).await.map(drop)
    }

    async fn grpc_check(&self, host: &str, port: u16, service: &str, user_agent: &str) -> Result<ServingStatus> {
        grpc::check(connect(&self.names, host, port).await?, &authority(host, port), service, user_agent).await
    }
}

async fn connect(names: &Names, host: &str, port: u16) -> Result<TcpStream> {
    let failed = |error: std::io::Error| {
        let message = match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
            _ => error.to_string(),
        };
        NetError::Connect { address: authority(host, port), message }
    };
    let addresses = names.look_up(host, port).await.map_err(failed)?;
    let stream = TcpStream::connect(&*addresses).await.map_err(failed)?;
    // A request is one packet; nothing follows it that would be worth waiting for.
    let _ = stream.set_nodelay(true);
    notice_silence(&stream).map_err(|error| failed(error.into()))?;
    Ok(stream)
}

/// A machine that has vanished says nothing for ever, and not every call here has a deadline:
/// the kernel asks whether it is still there, as often as it does for upstream.
fn notice_silence(stream: &TcpStream) -> nix::Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &SILENCE_SECONDS)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &SILENCE_SECONDS)?;
    setsockopt(stream, sockopt::TcpKeepCount, &SILENCE_ASKED)
}
