//! From a request to its answer: who calls, whether they may, and who handles it.

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use hyper::body::{Bytes, Incoming};
use rustls::pki_types::CertificateDer;
use tracing::debug;

use super::answers::Asking;
use super::authn::{Authn, Caller};
use super::authz::{Act, Authz, Refusal};
use super::body::{self, Body};
use super::checkpoints::CheckpointDesk;
use super::config::Switches;
use super::flow;
use super::guests::Guest;
use super::health::Health;
use super::logs::LogDesk;
use super::metrics::{About, Counted, MetricsDesk};
use super::routes::{self, Door, Handler, Unhandled};
use super::streaming::{Streaming, Target};
use super::turns::Client;
use super::verbosity::Verbosity;
use super::zpages::ZPages;
use super::{healthz, pods, stats};
use crate::cri::Runtime;
use crate::logs::Disk;
use crate::logs::read::LogReads;
use crate::pleg::Pleg;
use crate::stats::Stats;
use crate::sync::Roster;
use crate::sync::mirror::Mirrors;
use crate::volumes::Volumes;

/// What handlers show.
pub struct Exhibits {
    pub health: Health,
    pub roster: Roster,
    pub runtime: Arc<dyn Runtime>,
    pub pleg: Pleg,
    pub log_reads: LogReads,
    pub stats: Stats,
    /// By which the logs of the node are read.
    pub disk: Disk,
    pub mirrors: Mirrors,
    pub volumes: Volumes,
    pub about: About,
}

pub struct Front {
    pub authn: Authn,
    pub authz: Authz,
    pub switches: Switches,
    pub configz: Bytes,
    pub logs: LogDesk,
    pub streaming: Streaming,
    pub metrics: MetricsDesk,
    pub checkpoints: Option<CheckpointDesk>,
    pub zpages: ZPages,
    /// Which of `/flagz` and `/statusz` there are.
    pub flagz: bool,
    pub statusz: bool,
    pub verbosity: Verbosity,
    pub exhibits: Exhibits,
}

/// What is known of a connection's other end.
pub struct Peer {
    pub door: Door,
    pub guest: Arc<Guest>,
    pub client: Client,
    /// What it showed in the handshake.
    pub certificates: Option<Vec<CertificateDer<'static>>>,
}

impl Front {
    /// The answer. The request counts as under way until it was taken, and a stream until it ends.
    pub async fn answer(&self, mut request: Request<Incoming>, peer: &Peer) -> Response<Body> {
        let under_way = peer.guest.request();
        let counted = Arc::new(Counted::begin(request.method(), request.uri().path(), peer.door));
        // For those who take the connection over: a stream is under way long after its answer.
        request.extensions_mut().insert(counted.clone());
        let response = match self.admit(&request, peer).await {
            Ok(path) => self.handle(request, &path, peer).await,
            Err(refused) => refused,
        };
        flow::carry(response, under_way, counted)
    }

    /// The plain path of a request that may be made.
    async fn admit(&self, request: &Request<Incoming>, peer: &Peer) -> Result<String, Response<Body>> {
        let path = routes::plain_path(request.uri().path());
        if peer.door == Door::Main {
            // Who it is and what it may have one deadline between them.
            let asking = Asking::begin(peer.client);
            let caller = self.authn.identify(asking, peer.certificates.as_deref(), request.headers()).await;
            let Caller { user, is_vouched_for } =
                caller.map_err(|_| body::text(StatusCode::UNAUTHORIZED, "Unauthorized"))?;
            // Now: while an API server that is slow says what it may, others come.
            if is_vouched_for {
                peer.guest.vouch();
            }
            // What leads nowhere takes the right to everything, and is not found then.
            let act = Act::of(request.method(), path.as_deref().unwrap_or("/"));
            let allowed = self.authz.check(asking, &user, &act).await;
            if let Err(Refusal::Forbidden { .. }) = allowed {
                peer.guest.doubt();
            }
            allowed.map_err(refused)?;
            if !user.is_anonymous() {
                peer.guest.vouch();
            }
            debug!(user = user.name, verb = act.verb, path = request.uri().path(), "request");
        }
        path.ok_or_else(|| unhandled(routes::NOT_FOUND))
    }

    async fn handle(&self, request: Request<Incoming>, path: &str, peer: &Peer) -> Response<Body> {
        let shown = &self.exhibits;
        let query = request.uri().query().unwrap_or_default();
        match routes::find(peer.door, request.method(), path, self.switches) {
            Ok(Handler::Health) => healthz::respond(&request, &shown.health).map(body::full),
            Ok(Handler::Pods) => pods::configured(&shown.roster),
            Ok(Handler::RunningPods) => pods::running(&*shown.runtime, &shown.pleg).await,
            Ok(Handler::Configz) => body::json(body::full(self.configz.clone())),
            Ok(Handler::Summary) => self.metrics.in_turn(peer, stats::summary(&shown.stats, query)).await,
            Ok(Handler::ResourceMetrics) => {
                self.metrics.in_turn(peer, stats::resource(&shown.stats, request.headers())).await
            }
            Ok(Handler::CadvisorMetrics) => {
                self.metrics.in_turn(peer, stats::cadvisor(&shown.stats, request.headers())).await
            }
            Ok(Handler::ContainerLogs) => self.logs.of_container(&shown.roster, path, query).await,
            Ok(Handler::NodeLogs) => self.logs.of_node(path, query, request.headers()).await,
            Ok(Handler::Streams) => match Target::of_path(path) {
                Some(target) => self.streaming.answer(request, &target, &shown.roster, &shown.pleg).await,
                None => unhandled(routes::NOT_FOUND),
            },
            Ok(Handler::Metrics(page)) => self.metrics.answer(page, peer, &request, shown).await,
            Ok(Handler::Checkpoint) => match &self.checkpoints {
                Some(desk) => desk.answer(path, query, shown).await,
                None => unhandled(routes::NOT_FOUND),
            },
            Ok(Handler::Flagz) if self.flagz => self.zpages.flagz(request.headers()),
            Ok(Handler::Statusz) if self.statusz => self.zpages.statusz(request.headers()),
            Ok(Handler::Verbosity) => self.verbosity.answer(request).await,
            Ok(Handler::Flagz | Handler::Statusz | Handler::NotOurs) => unhandled(routes::NOT_FOUND),
            Err(nobody) => unhandled(nobody),
        }
    }
}

fn unhandled(Unhandled { status, words }: Unhandled) -> Response<Body> {
    body::text(status, words)
}

fn refused(refusal: Refusal) -> Response<Body> {
    let status = match refusal {
        Refusal::Forbidden { .. } => StatusCode::FORBIDDEN,
        Refusal::Unknown { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    };
    // As upstream: the one ends its line, the other does not.
    let end = if status == StatusCode::FORBIDDEN { "\n" } else { "" };
    body::text(status, format!("{refusal}{end}"))
}
