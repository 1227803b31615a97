//! Connections to the API server: which there are, when they are made anew, what their
//! failures are called.
//!
//! Requests and watches share one HTTP/2 connection, because a watch costs kilobytes there
//! and a TLS connection of its own on HTTP/1.1. A server lets 250 streams into one
//! connection and makes more wait without a word, so watches spread over further
//! connections (`Lane::Shared`) long before. Heartbeats go their own way over HTTP/1.1:
//! a request that is not answered in time then takes its connection with it, and the next
//! renewal starts on a fresh one whatever became of the rest.
//!
//! Always true: a connection on which nothing comes back for 30 s is closed, so that its
//! streams end and start over. The kubeconfig and the files it names are read again after a
//! failure, so that a corrected CA needs no restart; nothing is read while all goes well.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use http::header::USER_AGENT;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client as HyperClient, Error as HyperError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::Config;
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder, ServiceExt};
use tracing::{info, warn};

use super::errors::{ConnectError, LoadError};
use crate::clock::Clock;

/// TCP connect, and the head of an answer to anything but a heartbeat.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// As upstream: a heartbeat gives up before the next one is due.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which a connection is asked whether it lives, and its time to answer.
const PING_AFTER: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// Flow-control windows. hyper's defaults let a slow reader pile up 5 MB.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// The kubeconfig is looked at again at most this often, and its files are local.
const RELOAD_EVERY: Duration = Duration::from_secs(2);
const LOAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A failure that alternates between two texts is not logged more often than this.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Addresses, authenticates and sends requests; opens and reuses connections as needed.
type Connections = BoxCloneSyncService<Request<Body>, Response<Incoming>, BoxError>;

/// Which connection a request takes; carried in the request's extensions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Lane {
    Heartbeat,
    Shared(usize),
}

impl Lane {
    /// How long a request on this lane waits for its answer.
    pub(super) fn answer_within(self) -> Duration {
        match self {
            Lane::Heartbeat => HEARTBEAT_TIMEOUT,
            Lane::Shared(_) => REQUEST_TIMEOUT,
        }
    }
}

pub(super) struct Transport {
    kubeconfig: PathBuf,
    user_agent: HeaderValue,
    clock: Clock,
    current: RwLock<Arc<Loaded>>,
    health: Mutex<Health>,
    last_load: tokio::sync::Mutex<Instant>,
    /// Counts up whenever waiting makes no sense any more: the server is back, or the
    /// kubeconfig has changed.
    retry_now: watch::Sender<u64>,
}

/// One state of the kubeconfig, and the connections made with it.
struct Loaded {
    fingerprint: Vec<Vec<u8>>,
    config: Config,
    lanes: Mutex<BTreeMap<Lane, Connections>>,
}

/// What was last logged about the API server.
#[derive(Debug)]
enum Health {
    Reachable,
    Unreachable { told: String, at: Instant },
}

impl Transport {
    pub(super) async fn new(
        kubeconfig: &Path,
        user_agent: HeaderValue,
        clock: Clock,
    ) -> Result<Self, LoadError> {
        let loaded = load(kubeconfig.to_owned(), user_agent.clone()).await?;
        Ok(Transport {
            kubeconfig: kubeconfig.to_owned(),
            user_agent,
            clock,
            current: RwLock::new(Arc::new(loaded)),
            health: Mutex::new(Health::Reachable),
            last_load: tokio::sync::Mutex::new(Instant::now()),
            retry_now: watch::Sender::new(0),
        })
    }

    /// Changes whenever a failed request deserves another try at once.
    pub(super) fn retry_now(&self) -> watch::Receiver<u64> {
        self.retry_now.subscribe()
    }

    /// Sends over the lane named in the request's extensions.
    pub(super) async fn send(
        &self,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, ConnectError> {
        let lane = request
            .extensions_mut()
            .remove::<Lane>()
            .unwrap_or(Lane::Shared(0));
        let loaded = Arc::clone(
            &self
                .current
                .read()
                .expect("no holder of the config lock panics"),
        );
        let within = lane.answer_within();

        let failure = match timeout(within, loaded.send(lane, request)).await {
            Ok(Ok(response)) => {
                self.note_reachable();
                if response.status() == StatusCode::UNAUTHORIZED {
                    self.reload_if_changed(&loaded).await;
                }
                return Ok(response);
            }
            Ok(Err(error)) => ConnectError::explain(
                error.as_ref(),
                &loaded.server(),
                &self.kubeconfig,
                self.clock.wall(),
            ),
            Err(_) => ConnectError::NoAnswer {
                server: loaded.server(),
                within,
            },
        };
        self.note_unreachable(&failure);
        self.reload_if_changed(&loaded).await;
        Err(failure)
    }

    fn note_reachable(&self) {
        let mut health = self
            .health
            .lock()
            .expect("no holder of the health lock panics");
        if let Health::Unreachable { .. } = *health {
            *health = Health::Reachable;
            info!("API server is reachable again");
            self.retry_now.send_modify(|count| *count += 1);
        }
    }

    /// One line when it begins and one for each change of cause, however many requests fail.
    fn note_unreachable(&self, failure: &ConnectError) {
        let now = Instant::now();
        let text = failure.to_string();
        let mut health = self
            .health
            .lock()
            .expect("no holder of the health lock panics");
        let tell = match &*health {
            Health::Reachable => true,
            Health::Unreachable { told, at } => {
                *told != text && now.duration_since(*at) >= LOG_EVERY
            }
        };
        if tell {
            warn!(error = text, "API server is not reachable, will retry");
            *health = Health::Unreachable {
                told: text,
                at: now,
            };
        }
    }

    /// Takes up the kubeconfig as it is now if it differs from `failed`, with which a
    /// request has just failed.
    async fn reload_if_changed(&self, failed: &Arc<Loaded>) {
        // Whoever finds the lock taken leaves the look to its holder.
        let Ok(mut last_load) = self.last_load.try_lock() else {
            return;
        };
        if last_load.elapsed() < RELOAD_EVERY {
            return;
        }
        *last_load = Instant::now();
        // A file that is being replaced may be missing or half there: the next failure
        // looks again.
        let Ok(loaded) = load(self.kubeconfig.clone(), self.user_agent.clone()).await else {
            return;
        };
        if loaded.fingerprint != failed.fingerprint {
            info!(kubeconfig = %self.kubeconfig.display(), "kubeconfig has changed, connecting anew");
            *self
                .current
                .write()
                .expect("no holder of the config lock panics") = Arc::new(loaded);
            self.retry_now.send_modify(|count| *count += 1);
        }
    }
}

impl Loaded {
    /// The lane's connections, made when first used.
    fn lane(&self, lane: Lane) -> Result<Connections, kube::Error> {
        let mut lanes = self
            .lanes
            .lock()
            .expect("no holder of the lanes lock panics");
        if let Some(connections) = lanes.get(&lane) {
            return Ok(connections.clone());
        }
        let connections = connect(&self.config, lane)?;
        lanes.insert(lane, connections.clone());
        Ok(connections)
    }

    async fn send(
        &self,
        lane: Lane,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, BoxError> {
        self.lane(lane)?.oneshot(request).await
    }

    fn server(&self) -> String {
        self.config
            .cluster_url
            .authority()
            .map_or_else(|| self.config.cluster_url.to_string(), ToString::to_string)
    }
}

async fn load(kubeconfig: PathBuf, user_agent: HeaderValue) -> Result<Loaded, LoadError> {
    let path = kubeconfig.clone();
    let reading = tokio::task::spawn_blocking(move || read(&kubeconfig));
    let (kubeconfig, fingerprint) = match timeout(LOAD_TIMEOUT, reading).await {
        Ok(Ok(read)) => read?,
        Ok(Err(_)) | Err(_) => {
            return Err(LoadError::TooSlow {
                path,
                within: LOAD_TIMEOUT,
            });
        }
    };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|source| LoadError::Invalid {
            path: path.clone(),
            source,
        })?;
    config.headers.push((USER_AGENT, user_agent));
    let loaded = Loaded {
        fingerprint,
        config,
        lanes: Mutex::default(),
    };
    // Made now so that unusable certificates are told at the start.
    loaded
        .lane(Lane::Shared(0))
        .map_err(|source| LoadError::Credentials { path, source })?;
    Ok(loaded)
}

/// The kubeconfig, and the bytes of it and of every file it names.
fn read(path: &Path) -> Result<(Kubeconfig, Vec<Vec<u8>>), LoadError> {
    let failed = |path: &Path, source| LoadError::Read {
        path: path.to_owned(),
        source,
    };
    let mut fingerprint = vec![std::fs::read(path).map_err(|source| failed(path, source))?];
    let kubeconfig = Kubeconfig::read_from(path).map_err(|source| LoadError::Invalid {
        path: path.to_owned(),
        source,
    })?;
    let authorities = kubeconfig
        .clusters
        .iter()
        .filter_map(|named| named.cluster.as_ref()?.certificate_authority.as_ref());
    let users = kubeconfig
        .auth_infos
        .iter()
        .filter_map(|named| named.auth_info.as_ref());
    let identities = users
        .flat_map(|user| [&user.client_certificate, &user.client_key])
        .flatten();
    for named in authorities.chain(identities).map(Path::new) {
        fingerprint.push(std::fs::read(named).map_err(|source| failed(named, source))?);
    }
    Ok((kubeconfig, fingerprint))
}

fn connect(config: &Config, lane: Lane) -> Result<Connections, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    // For a server that speaks only HTTP/1.1, where there is no ping.
    tcp.set_keepalive(Some(PING_AFTER));
    tcp.set_keepalive_interval(Some(PING_TIMEOUT / 3));
    tcp.set_keepalive_retries(Some(3));
    tcp.set_tcp_user_timeout(Some(PING_AFTER + PING_TIMEOUT));

    let mut tls = config.rustls_client_config()?;
    // The default keeps room for 256 servers; there is one.
    tls.resumption = rustls::client::Resumption::in_memory_sessions(2);
    let builder = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http();
    let builder = match config
        .tls_server_name
        .as_deref()
        .map(rustls::pki_types::ServerName::try_from)
    {
        Some(Ok(name)) => {
            builder.with_server_name_resolver(FixedServerNameResolver::new(name.to_owned()))
        }
        _ => builder,
    };
    let connector = match lane {
        Lane::Heartbeat => builder.enable_http1().wrap_connector(tcp),
        Lane::Shared(_) => builder.enable_all_versions().wrap_connector(tcp),
    };

    let mut builder = HyperClient::builder(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(2)
        .http2_keep_alive_interval(PING_AFTER)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        // Without this a connection that only ever times out is never asked: no stream is
        // open on it by the time the ping is due.
        .http2_keep_alive_while_idle(true)
        .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let client: HyperClient<_, Body> = builder.build(connector);

    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(|error: HyperError| -> BoxError { Box::new(error) })
        .service(client);
    Ok(BoxCloneSyncService::new(service))
}
