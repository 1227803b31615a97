//! The pages of metrics: what was counted, and what others hold at the moment when it is asked.

mod requests;
mod state;

use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::body::{self, Body};
use super::flow::Haste;
use super::front::{Exhibits, Peer};
use super::page::page;
use super::routes::{Door, Page};
use super::turns::{Bounds, Turns};
use crate::clock::Clock;
use crate::config::FeatureGates;
use crate::host::CgroupVersion;
use crate::metrics::{self, certificates, health, probes, process, text};

pub use requests::Counted;

/// Pages on their way through one port. Each is some hundred KiB until its reader has taken it.
/// Half of them may be one address's: scrapers are few, and none of them asks for as many.
const PAGES: Bounds = Bounds { at_once: 8, share: 4, waiting: 64 };
/// For one of those to be taken. A scraper gives up at about the same time.
const TURN_WITHIN: Duration = Duration::from_secs(10);
/// How slowly a page may be read: over a bad line, it takes a minute.
const AT_LEISURE: Haste = Haste { piece: Duration::from_secs(60), whole: Duration::from_secs(300) };
/// Where many others are being read. A reader that stalls makes room before those who wait for
/// their turn give up.
const IN_HASTE: Haste = Haste { piece: Duration::from_secs(5), whole: Duration::from_secs(30) };

/// What this node and this agent are.
pub struct About {
    pub node_name: String,
    /// What this agent claims to be: `v1.36.0+…`.
    pub version: String,
    pub cgroup_version: CgroupVersion,
    pub gates: FeatureGates,
}

pub struct MetricsDesk {
    clock: Clock,
    /// Who reads slowly on the port for everybody is in nobody's way on the other.
    turns: [Turns; 2],
}

impl MetricsDesk {
    pub fn new(clock: Clock) -> Self {
        metrics::pods::begin();
        MetricsDesk { clock, turns: [PAGES; 2].map(Turns::new) }
    }

    pub async fn answer(
        &self,
        which: Page,
        peer: &Peer,
        request: &Request<Incoming>,
        exhibits: &Exhibits,
    ) -> Response<Body> {
        if which == Page::Health && request.method() == Method::DELETE {
            health::reset();
            return body::text(StatusCode::OK, "metrics reset\n");
        }
        let answer = async {
            match self.write(which, exhibits).await {
                Some(text) => page(request.headers(), text),
                None => body::text(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be written\n"),
            }
        };
        self.in_turn(peer, answer).await
    }

    /// A page that may be long, once few enough others are being written and read.
    pub async fn in_turn(&self, peer: &Peer, answer: impl Future<Output = Response<Body>>) -> Response<Body> {
        let turns = &self.turns[usize::from(peer.door == Door::ReadOnly)];
        let Ok(Some(turn)) = timeout(TURN_WITHIN, turns.take(peer.client)).await else {
            return body::text(StatusCode::SERVICE_UNAVAILABLE, "too many pages of metrics are being read\n");
        };
        let haste = if turns.are_scarce_for(&peer.client) { IN_HASTE } else { AT_LEISURE };
        let mut response = answer.await.map(|page| body::keeping(page, turn));
        response.extensions_mut().insert(haste);
        response
    }

    /// `None` if something in it panicked.
    async fn write(&self, which: Page, exhibits: &Exhibits) -> Option<String> {
        let unix_seconds = self.clock.wall().as_millisecond() as f64 / 1000.0;
        let mut text = text::Page::new();
        match which {
            Page::All => {
                metrics::write(&mut text);
                certificates::write(&mut text, unix_seconds);
                state::write(&mut text, exhibits, self.clock.now(), unix_seconds);
                state::logs(&mut text, &exhibits.stats.log_bytes().await);
            }
            Page::Probes => probes::write(&mut text),
            Page::Health => health::write(&mut text),
        }
        let text = tokio::task::spawn_blocking(move || {
            match which {
                Page::All => process::write(&mut text, unix_seconds),
                Page::Probes | Page::Health => process::write_start_time(&mut text, unix_seconds),
            }
            text.into_string()
        });
        text.await.ok()
    }
}
