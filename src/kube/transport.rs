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
//! Whoever renews the client certificate says so (`take_up`): requests under way end where
//! they began, watches start over on new connections, and the old ones close behind the last.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use http::header::USER_AGENT;
use http::uri::Scheme;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use kube::Config;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout, timeout_at};
use tower::{BoxError, ServiceExt};
use tracing::{info, warn};

use super::connect::{Connections, NoHttp2, Protocol, connect};
use super::credentials::Asking;
use super::errors::{ConnectError, LoadError, PluginError, caused_by};
use super::health::{Health, Success};
use crate::clock::Clock;
use crate::metrics;

/// The head of an answer to anything but a heartbeat.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// As upstream: a heartbeat gives up before the next one is due.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(10);
/// The kubeconfig is looked at again at most this often, and its files are local.
const RELOAD_EVERY: Duration = Duration::from_secs(2);
const LOAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Credentials from a program are asked for again at most this often when they are refused.
const ASK_PLUGIN_EVERY: Duration = Duration::from_secs(30);
/// How long a request waits for credentials that are not there yet, less than its caller
/// waits for it, so that the caller learns why.
const CREDENTIALS_WITHIN: Duration = Duration::from_secs(5);

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

    /// How long it waits for a program that gives credentials: less, so that it is the program
    /// that is blamed.
    fn credentials_within(self) -> Duration {
        self.answer_within() * 4 / 5
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
    /// `None` until there are credentials at all.
    current: watch::Sender<Option<Arc<Loaded>>>,
    /// A file with certificate and key that counts instead of those in the kubeconfig.
    certificate: Mutex<Option<PathBuf>>,
    heartbeat_health: Mutex<Health>,
    shared_health: Mutex<Health>,
    last_load: tokio::sync::Mutex<Instant>,
    /// Counts up when the kubeconfig was found changed.
    reloads: watch::Sender<u64>,
    /// Counts up whenever waiting makes no sense any more: the server is back, or the
    /// kubeconfig has changed.
    retry_now: watch::Sender<u64>,
}

/// One state of the kubeconfig, and the connections made with it.
pub(super) struct Loaded {
    since: Instant,
    fingerprint: Vec<Vec<u8>>,
    config: Config,
    lanes: Mutex<BTreeMap<Lane, Connections>>,
    /// How a program is asked for credentials, for connections that are to be made.
    asking: Asking<()>,
    /// Set once the server has shown that it speaks HTTP/1.1 only.
    without_http2: AtomicBool,
}

impl Transport {
    pub(super) async fn new(kubeconfig: &Path, user_agent: HeaderValue, clock: Clock) -> Result<Self, LoadError> {
        let transport = Transport::awaiting(kubeconfig, user_agent, clock);
        transport.take_up(None).await?;
        Ok(transport)
    }

    /// One whose requests wait until there is something to `take_up`.
    pub(super) fn awaiting(kubeconfig: &Path, user_agent: HeaderValue, clock: Clock) -> Self {
        Transport {
            kubeconfig: kubeconfig.to_owned(),
            user_agent,
            clock,
            current: watch::Sender::new(None),
            certificate: Mutex::default(),
            heartbeat_health: Mutex::default(),
            shared_health: Mutex::default(),
            last_load: tokio::sync::Mutex::new(Instant::now()),
            reloads: watch::Sender::new(0),
            retry_now: watch::Sender::new(0),
        }
    }

    /// Reads the kubeconfig now and connects anew with what it says, and with `certificate`
    /// instead of a client certificate in it. If that fails, everything stays as it was.
    pub(super) async fn take_up(&self, certificate: Option<&Path>) -> Result<(), LoadError> {
        // A reload under way may have read what was there before.
        let mut last_load = self.last_load.lock().await;
        *last_load = Instant::now();
        let loaded = load(&self.kubeconfig, certificate, &self.user_agent).await?;
        *self.certificate.lock().expect("no holder of the certificate lock panics") = certificate.map(Path::to_owned);
        self.replace(loaded);
        Ok(())
    }

    fn replace(&self, loaded: Loaded) {
        self.current.send_replace(Some(Arc::new(loaded)));
        self.retry_now.send_modify(|count| *count += 1);
    }

    /// Changes once the connections of now have been replaced. If there are none yet it is the
    /// first ones whose replacement is told.
    pub(super) async fn renewal(&self) -> watch::Receiver<Option<Arc<Loaded>>> {
        let mut current = self.current.subscribe();
        let _ = timeout(CREDENTIALS_WITHIN, current.wait_for(Option::is_some)).await;
        current
    }

    async fn loaded(&self) -> Option<Arc<Loaded>> {
        if let Some(loaded) = &*self.current.borrow() {
            return Some(Arc::clone(loaded));
        }
        self.renewal().await.borrow().clone()
    }

    /// Whom requests of now are for.
    pub(super) fn server(&self) -> String {
        self.current.borrow().as_ref().map(|loaded| loaded.server()).unwrap_or_default()
    }

    /// Changes when the kubeconfig was found changed and taken up.
    pub(super) fn reloads(&self) -> watch::Receiver<u64> {
        self.reloads.subscribe()
    }

    /// Changes whenever a failed request deserves another try at once.
    pub(super) fn retry_now(&self) -> watch::Receiver<u64> {
        self.retry_now.subscribe()
    }

    /// Sends over the lane named in the request's extensions.
    pub(super) async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, ConnectError> {
        let lane = request.extensions_mut().remove::<Lane>().unwrap_or(Lane::Shared(0));
        let within = lane.answer_within();
        let deadline = Instant::now() + within;
        let Some(loaded) = self.loaded().await else {
            self.health(lane).lose();
            return Err(ConnectError::NoCredentials { kubeconfig: self.kubeconfig.clone() });
        };

        let (method, began) = (request.method().clone(), Instant::now());
        let answer = timeout_at(deadline, loaded.send(lane, request)).await;
        let status = answer.as_ref().ok().and_then(|answer| Some(answer.as_ref().ok()?.status().as_u16()));
        metrics::api::answered(method.as_str(), &loaded.server(), status, began.elapsed());
        let failure = match answer {
            Ok(Ok(response)) => {
                self.note_success(lane);
                if response.status() == StatusCode::UNAUTHORIZED {
                    self.reload_if_changed(&loaded, true).await;
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
        self.reload_if_changed(&loaded, false).await;
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
    /// request has just failed. Refused credentials may have come from a program, which
    /// may have others by now.
    async fn reload_if_changed(&self, failed: &Arc<Loaded>, is_refused: bool) {
        // Whoever finds the lock taken leaves the look to its holder.
        let Ok(mut last_load) = self.last_load.try_lock() else {
            return;
        };
        let is_failed_one = self.current.borrow().as_ref().is_some_and(|current| Arc::ptr_eq(current, failed));
        if last_load.elapsed() < RELOAD_EVERY || !is_failed_one {
            return;
        }
        *last_load = Instant::now();
        let certificate = self.certificate.lock().expect("no holder of the certificate lock panics").clone();
        // A file that is being replaced may be missing or half there: the next failure
        // looks again.
        let Ok(loaded) = load(&self.kubeconfig, certificate.as_deref(), &self.user_agent).await else {
            return;
        };
        if loaded.fingerprint != failed.fingerprint {
            info!(kubeconfig = %self.kubeconfig.display(), "kubeconfig has changed, connecting anew");
            self.replace(loaded);
            self.reloads.send_modify(|count| *count += 1);
        } else if is_refused && failed.plugin().is_some() && failed.since.elapsed() >= ASK_PLUGIN_EVERY {
            info!(kubeconfig = %self.kubeconfig.display(), "credentials are refused, asking the plugin for new ones");
            self.replace(loaded);
        }
    }
}

impl Loaded {
    /// The lane's connections, made when first used. A program that is to be asked for
    /// credentials runs on the blocking pool; kube would wait for it right here.
    async fn lane(self: &Arc<Self>, lane: Lane) -> Result<Connections, BoxError> {
        loop {
            if let Some(connections) = self.known(lane) {
                return Ok(connections);
            }
            if self.plugin().is_none() {
                return Ok(self.make(lane)?);
            }
            let loaded = Arc::clone(self);
            let make = move || {
                let explained = |error| PluginError::explain(loaded.plugin().unwrap_or_default(), error);
                loaded.make(lane).map(drop).map_err(explained)
            };
            // It may be asked for another lane just now.
            self.asking.answer(lane.credentials_within(), || async { Ok(spawn_blocking(make).await??) }).await?;
        }
    }

    fn known(&self, lane: Lane) -> Option<Connections> {
        self.lanes.lock().expect("no holder of the lanes lock panics").get(&lane).cloned()
    }

    fn make(&self, lane: Lane) -> Result<Connections, kube::Error> {
        loop {
            let protocol = self.protocol(lane);
            let connections = connect(&self.config, protocol, lane.credentials_within())?;
            let mut lanes = self.lanes.lock().expect("no holder of the lanes lock panics");
            // HTTP/2 may have been given up meanwhile, for all that was made by then.
            if self.protocol(lane) == protocol {
                return Ok(lanes.entry(lane).or_insert(connections).clone());
            }
        }
    }

    /// The program that gives credentials.
    fn plugin(&self) -> Option<&str> {
        let exec = self.config.auth_info.exec.as_ref()?;
        Some(exec.command.as_deref().unwrap_or_default())
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

    async fn send(self: &Arc<Self>, lane: Lane, request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
        self.lane(lane).await?.oneshot(request).await
    }

    fn server(&self) -> String {
        self.config.cluster_url.authority().map_or_else(|| self.config.cluster_url.to_string(), ToString::to_string)
    }
}

async fn load(path: &Path, certificate: Option<&Path>, user_agent: &HeaderValue) -> Result<Loaded, LoadError> {
    let (kubeconfig, certificate) = (path.to_owned(), certificate.map(Path::to_owned));
    let reading = spawn_blocking(move || read(&kubeconfig, certificate.as_deref()));
    let (kubeconfig, fingerprint) = match timeout(LOAD_TIMEOUT, reading).await {
        Ok(Ok(read)) => read?,
        Ok(Err(_)) | Err(_) => {
            return Err(LoadError::TooSlow { path: path.to_owned(), within: LOAD_TIMEOUT });
        }
    };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|source| LoadError::Invalid { path: path.to_owned(), source })?;
    config.headers.push((USER_AGENT, user_agent.clone()));
    // Without TLS there is no agreement on a protocol.
    let without_http2 = AtomicBool::new(config.cluster_url.scheme() != Some(&Scheme::HTTPS));
    let program = config.auth_info.exec.as_ref().and_then(|exec| exec.command.as_deref()).unwrap_or_default();
    let (since, lanes, asking) = (Instant::now(), Mutex::default(), Asking::of(program));
    let loaded = Loaded { since, fingerprint, config, lanes, asking, without_http2 };
    // Made now so that unusable certificates are told at the start. A program is another
    // matter: it may need a network that is not there yet.
    if loaded.plugin().is_none() {
        loaded.make(Lane::Shared(0)).map_err(|source| LoadError::Credentials { path: path.to_owned(), source })?;
    }
    Ok(loaded)
}

/// The kubeconfig, and the bytes of it and of every file it names.
fn read(path: &Path, certificate: Option<&Path>) -> Result<(Kubeconfig, Vec<Vec<u8>>), LoadError> {
    let failed = |path: &Path, source| LoadError::Read { path: path.to_owned(), source };
    let mut fingerprint = vec![std::fs::read(path).map_err(|source| failed(path, source))?];
    let mut kubeconfig =
        Kubeconfig::read_from(path).map_err(|source| LoadError::Invalid { path: path.to_owned(), source })?;
    if let Some(certificate) = certificate {
        let users = kubeconfig.auth_infos.iter_mut().filter_map(|named| named.auth_info.as_mut());
        for user in users {
            let certificate = Some(certificate.to_string_lossy().into_owned());
            (user.client_certificate, user.client_key) = (certificate.clone(), certificate);
            (user.client_certificate_data, user.client_key_data) = (None, None);
        }
    }
    let authorities =
        kubeconfig.clusters.iter().filter_map(|named| named.cluster.as_ref()?.certificate_authority.as_ref());
    let users = kubeconfig.auth_infos.iter().filter_map(|named| named.auth_info.as_ref());
    let identities = users.flat_map(|user| [&user.client_certificate, &user.client_key]).flatten();
    for named in authorities.chain(identities).map(Path::new) {
        fingerprint.push(std::fs::read(named).map_err(|source| failed(named, source))?);
    }
    Ok((kubeconfig, fingerprint))
}
