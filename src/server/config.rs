//! What the servers are told by the operator.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::body::Bytes;

use super::{ServerError, Verbosity};
use crate::config::TlsVersion;
use crate::identity::ServingKey;

#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where HTTPS is served, if at all.
    pub main: Option<SocketAddr>,
    /// Where plain HTTP is served to everybody.
    pub read_only: Option<SocketAddr>,
    pub tls: TlsConfig,
    pub authn: AuthnConfig,
    pub authz: AuthzConfig,
    pub switches: Switches,
    /// `enableSystemLogQuery`: the journal can be asked too.
    pub log_queries: bool,
    /// The feature gate `PodLogsQuerySplitStreams`.
    pub split_streams: bool,
    /// How long a stream may be silent.
    pub stream_idle: Duration,
    /// What `/configz` answers.
    pub configz: Bytes,
    /// Where checkpoints of containers go; `None` where the gate `ContainerCheckpoint` is off.
    pub checkpoints: Option<PathBuf>,
    /// The gate `ComponentFlagz`.
    pub flagz: bool,
    /// The gate `ComponentStatusz`.
    pub statusz: bool,
    /// The flags of the command line by their names, for `/flagz`.
    pub flags: BTreeMap<String, String>,
    pub verbosity: Verbosity,
}

#[derive(Clone, Debug)]
pub struct TlsConfig {
    pub certificate: CertificateSource,
    /// By Go's names; empty for all.
    pub cipher_suites: Vec<String>,
    /// By TLS' numbers; empty for all.
    pub curves: Vec<i32>,
    pub min_version: TlsVersion,
    pub client_ca: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub enum CertificateSource {
    /// `tlsCertFile` and `tlsPrivateKeyFile`.
    Files { certificate: PathBuf, key: PathBuf },
    /// Made here if it is not there yet.
    SelfMade { dir: PathBuf, host_name: String },
    /// Signed by the cluster (`serverTLSBootstrap`).
    Signed(ServingKey),
}

#[derive(Clone, Debug)]
pub struct AuthnConfig {
    /// How long answers about tokens are kept; `None` where nobody is asked about them.
    pub tokens: Option<Duration>,
    pub anonymous: bool,
}

#[derive(Clone, Debug)]
pub enum AuthzConfig {
    AlwaysAllow,
    Webhook { node_name: String, keep_allowed: Duration, keep_refused: Duration },
}

/// Handlers that can be turned off.
#[derive(Clone, Copy, Debug)]
pub struct Switches {
    pub debugging: bool,
    pub system_logs: bool,
    pub profiling: bool,
    pub debug_flags: bool,
}

pub type Result<T> = std::result::Result<T, ServerError>;
