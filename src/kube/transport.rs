//! Connections to the API server: which there are, when they are made anew, what their
//! failures are called.
//!
//! Requests and watches share one HTTP/2 connection, because a watch costs kilobytes there
//! and a TLS connection of its own on HTTP/1.1. A server lets 100 streams into one
//! connection and makes more wait without a word, so watches spread over further
//! connections (`Lane::Shared`) before that. Heartbeats go their own way over HTTP/1.1:
//! a request that is not answered in time then takes its connection with it, and the next
//! renewal starts on a fresh one whatever became of the rest. A server without HTTP/2 gets
//! HTTP/1.1 throughout.
//!
//! Always true: a connection on which nothing comes back for 30 s is closed, so that its
//! streams end and start over. The kubeconfig and the files it names are read again after a
//! failure, so that a corrected CA needs no restart; nothing is read while all goes well.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use http::header::USER_AGENT;
use http::uri::Scheme;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use kube::Config;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tower::{BoxError, ServiceExt};
use tracing::{info, warn};

use super::connect::{Connections, NoHttp2, Protocol, connect};
use super::errors::{ConnectError, LoadError, caused_by};
use super::health::{Health, Success};
use crate::clock::Clock;

/// The head of an answer to anything but a heartbeat.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// As upstream: a heartbeat gives up before the next one is due.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(10);
/// The kubeconfig is looked at again at most this often, and its files are local.
const RELOAD_EVERY: Duration = Duration::from_secs(2);
const LOAD_TIMEOUT: Duration = Duration::from_secs(10);

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

    fn describe(self) -> &'static str {
        match self {
            Lane::Heartbeat => "heartbeats",
            Lane::Shared(_) => "requests and watches",
        }
    }
}

pub(super) struct Transport {
    kubeconfig: PathBuf,
    user_agent: HeaderValue,
    clock: Clock,
    current: RwLock<Arc<Loaded>>,
    heartbeat_health: Mutex<Health>,
    shared_health: Mutex<Health>,
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
    /// Set once the server has shown that it speaks HTTP/1.1 only.
    without_http2: AtomicBool,
}

impl Transport {
    pub(super) async fn new(kubeconfig: &Path, user_agent: HeaderValue, clock: Clock) -> Result<Self, LoadError> {
        let loaded = load(kubeconfig.to_owned(), user_agent.clone()).await?;
        Ok(Transport {
            kubeconfig: kubeconfig.to_owned(),
            user_agent,
            clock,
            current: RwLock::new(Arc::new(loaded)),
            heartbeat_health: Mutex::default(),
            shared_health: Mutex::default(),
            last_load: tokio::sync::Mutex::new(Instant::now()),
            retry_now: watch::Sender::new(0),
        })
    }

    /// Changes whenever a failed request deserves another try at once.
    pub(super) fn retry_now(&self) -> watch::Receiver<u64> {
        self.retry_now.subscribe()
    }

    /// Sends over the lane named in the request's extensions.
    pub(super) async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, ConnectError> {
        let lane = request.extensions_mut().remove::<Lane>().unwrap_or(Lane::Shared(0));
        let loaded = Arc::clone(&self.current.read().expect("no holder of the config lock panics"));
        let within = lane.answer_within();

        let failure = match timeout(within, loaded.send(lane, request)).await {
            Ok(Ok(response)) => {
                self.note_success(lane);
                if response.status() == StatusCode::UNAUTHORIZED {
                    self.reload_if_changed(&loaded).await;
                }
                return Ok(response);
            }
            Ok(Err(error)) => {
                if caused_by::<NoHttp2>(error.as_ref()) {
                    loaded.give_up_http2();
                }
                let (server, now) = (loaded.server(), self.clock.wall());
                ConnectError::explain(error.as_ref(), &server, &self.kubeconfig, now)
            }
            Err(_) => ConnectError::NoAnswer { server: loaded.server(), within },
        };
        self.note_failure(lane, &failure);
        self.reload_if_changed(&loaded).await;
        Err(failure)
    }

    fn note_success(&self, lane: Lane) {
        if let Success::Again { announced } = self.health(lane).succeed() {
            if announced {
                info!(connection = lane.describe(), "API server is reachable again");
            }
            self.retry_now.send_modify(|count| *count += 1);
        }
    }

    fn note_failure(&self, lane: Lane, failure: &ConnectError) {
        if let ConnectError::Lost { .. } = failure {
            self.health(lane).lose();
            return;
        }
        let error = failure.to_string();
        if self.health(lane).fail(&error, Instant::now()) {
            let connection = lane.describe();
            warn!(connection, error, "API server is not reachable, will retry");
        }
    }

    fn health(&self, lane: Lane) -> MutexGuard<'_, Health> {
        let health = match lane {
            Lane::Heartbeat => &self.heartbeat_health,
            Lane::Shared(_) => &self.shared_health,
        };
        health.lock().expect("no holder of a health lock panics")
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
            *self.current.write().expect("no holder of the config lock panics") = Arc::new(loaded);
            self.retry_now.send_modify(|count| *count += 1);
        }
    }
}

impl Loaded {
    /// The lane's connections, made when first used.
    fn lane(&self, lane: Lane) -> Result<Connections, kube::Error> {
        let mut lanes = self.lanes.lock().expect("no holder of the lanes lock panics");
        if let Some(connections) = lanes.get(&lane) {
            return Ok(connections.clone());
        }
        let connections = connect(&self.config, self.protocol(lane))?;
        lanes.insert(lane, connections.clone());
        Ok(connections)
    }

    fn protocol(&self, lane: Lane) -> Protocol {
        match lane {
            Lane::Shared(_) if !self.without_http2.load(Ordering::Relaxed) => Protocol::Http2,
            Lane::Shared(_) | Lane::Heartbeat => Protocol::Http1,
        }
    }

    fn give_up_http2(&self) {
        if !self.without_http2.swap(true, Ordering::Relaxed) {
            warn!(server = self.server(), "API server does not speak HTTP/2, each watch needs a connection of its own");
            self.lanes.lock().expect("no holder of the lanes lock panics").clear();
        }
    }

    async fn send(&self, lane: Lane, request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
        self.lane(lane)?.oneshot(request).await
    }

    fn server(&self) -> String {
        self.config.cluster_url.authority().map_or_else(|| self.config.cluster_url.to_string(), ToString::to_string)
    }
}

async fn load(kubeconfig: PathBuf, user_agent: HeaderValue) -> Result<Loaded, LoadError> {
    let path = kubeconfig.clone();
    let reading = tokio::task::spawn_blocking(move || read(&kubeconfig));
    let (kubeconfig, fingerprint) = match timeout(LOAD_TIMEOUT, reading).await {
        Ok(Ok(read)) => read?,
        Ok(Err(_)) | Err(_) => {
            return Err(LoadError::TooSlow { path, within: LOAD_TIMEOUT });
        }
    };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|source| LoadError::Invalid { path: path.clone(), source })?;
    config.headers.push((USER_AGENT, user_agent));
    // Without TLS there is no agreement on a protocol.
    let without_http2 = config.cluster_url.scheme() != Some(&Scheme::HTTPS);
    let loaded = Loaded { fingerprint, config, lanes: Mutex::default(), without_http2: AtomicBool::new(without_http2) };
    // Made now so that unusable certificates are told at the start.
    loaded.lane(Lane::Shared(0)).map_err(|source| LoadError::Credentials { path, source })?;
    Ok(loaded)
}

/// The kubeconfig, and the bytes of it and of every file it names.
fn read(path: &Path) -> Result<(Kubeconfig, Vec<Vec<u8>>), LoadError> {
    let failed = |path: &Path, source| LoadError::Read { path: path.to_owned(), source };
    let mut fingerprint = vec![std::fs::read(path).map_err(|source| failed(path, source))?];
    let kubeconfig =
        Kubeconfig::read_from(path).map_err(|source| LoadError::Invalid { path: path.to_owned(), source })?;
    let authorities =
        kubeconfig.clusters.iter().filter_map(|named| named.cluster.as_ref()?.certificate_authority.as_ref());
    let users = kubeconfig.auth_infos.iter().filter_map(|named| named.auth_info.as_ref());
    let identities = users.flat_map(|user| [&user.client_certificate, &user.client_key]).flatten();
    for named in authorities.chain(identities).map(Path::new) {
        fingerprint.push(std::fs::read(named).map_err(|source| failed(named, source))?);
    }
    Ok((kubeconfig, fingerprint))
}
