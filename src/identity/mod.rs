//! Who this node is: its client certificate towards the API server, and its serving
//! certificate where the cluster signs that.
//!
//! `plan.rs` and `serving/plan.rs` decide, as pure functions of what is on disk, the time and
//! the settings. Two tasks act: `client.rs` bootstraps (a key, a request made with the bootstrap
//! kubeconfig, the certificate, the kubeconfig), keeps a certificate that a kubeconfig holds with
//! ours, renews after 70 to 90 % of a certificate's life and tells the connections to the API
//! server; `serving/` asks for a certificate with the addresses of the Node. `store.rs` knows the
//! files, `request.rs` makes requests, `signing.rs` waits for their signature.
//!
//! In: kubeconfigs and certificates on disk, the wall clock, the watch of this Node, and that a
//! kubeconfig was found changed. Out: files in `--cert-dir`, the kubeconfig, `KubeCluster::take_up`, a serving key (watch).
//!
//! Always true: nothing waits for an identity but what needs it, so static pods start without;
//! what is on disk is replaced only by what works better and is there already; a clock that
//! is wrong by what we know makes us wait; every end in between is understood by the next start.

mod certificate;
mod client;
mod kubeconfig;
mod plan;
mod request;
mod serving;
mod signing;
mod store;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::causes::chain;
use crate::clock::Clock;
use crate::kube::{CertificateRequests, KubeCluster, LoadError};
use crate::metrics;

pub use client::ClientIdentity;
pub use serving::{ServingIdentity, ServingKey};

/// What the operator said about the node's identity.
#[derive(Clone, Debug)]
pub struct IdentityConfig {
    pub node_name: String,
    pub kubeconfig: PathBuf,
    pub bootstrap_kubeconfig: Option<PathBuf>,
    pub cert_dir: PathBuf,
    /// `rotateCertificates`.
    pub rotates: bool,
}

impl IdentityConfig {
    /// Otherwise the kubeconfig is used as it is, and is somebody else's to keep valid.
    pub fn is_managed(&self) -> bool {
        self.rotates || self.bootstrap_kubeconfig.is_some()
    }
}

/// The API server, as this room needs it.
#[async_trait]
pub trait Access: Send + Sync + 'static {
    /// With the node's own credentials.
    fn own(&self) -> &dyn CertificateRequests;
    /// With those of the bootstrap kubeconfig.
    async fn bootstrap(&self, kubeconfig: &Path) -> Result<Box<dyn CertificateRequests>, LoadError>;
    /// Connections are made anew with the kubeconfig of now, and with this file for certificate
    /// and key instead of those it names.
    async fn take_up(&self, certificate: Option<&Path>) -> Result<(), LoadError>;
    /// Changes when connections were made anew because the kubeconfig was found changed.
    fn reloads(&self) -> watch::Receiver<u64>;
}

/// The real one.
pub struct ClusterAccess {
    pub cluster: Arc<KubeCluster>,
    pub node_name: String,
    pub clock: Clock,
}

#[async_trait]
impl Access for ClusterAccess {
    fn own(&self) -> &dyn CertificateRequests {
        &*self.cluster
    }

    async fn bootstrap(&self, kubeconfig: &Path) -> Result<Box<dyn CertificateRequests>, LoadError> {
        let cluster = KubeCluster::from_kubeconfig(kubeconfig, &self.node_name, None, self.clock.clone()).await?;
        Ok(Box::new(cluster))
    }

    async fn take_up(&self, certificate: Option<&Path>) -> Result<(), LoadError> {
        self.cluster.take_up(certificate).await
    }

    fn reloads(&self) -> watch::Receiver<u64> {
        self.cluster.reloads()
    }
}

/// As metrics tell times.
fn unix_seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1000.0
}

/// A signer that does its work has answered by then.
const SIGNED_WITHIN: Duration = Duration::from_secs(15 * 60);
/// A clock that may be wrong, and a fault that somebody has to mend, are looked at this often.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// The wall clock is compared with the one that cannot jump.
const WATCH_CLOCK: Duration = Duration::from_secs(60);
const JUMP: SignedDuration = SignedDuration::from_secs(30);

/// Waits until the wall clock shows `until`, or has jumped, by hand or because the machine
/// slept: then everything that was decided by dates is decided again.
async fn rest(clock: &Clock, until: Option<Timestamp>) {
    loop {
        let (wall, now) = (clock.wall(), clock.now());
        let left =
            until.map_or(WATCH_CLOCK, |until| Duration::try_from(until.duration_since(wall)).unwrap_or(Duration::ZERO));
        if left.is_zero() {
            return;
        }
        sleep(left.min(WATCH_CLOCK)).await;
        if has_jumped(clock, wall, now) {
            return;
        }
    }
}

fn has_jumped(clock: &Clock, wall: Timestamp, now: Instant) -> bool {
    let by_wall = clock.wall().duration_since(wall);
    let by_now = SignedDuration::try_from(clock.now().duration_since(now)).unwrap_or(SignedDuration::MAX);
    by_wall.checked_sub(by_now).is_none_or(|difference| difference.abs() > JUMP)
}

/// Why there is no new certificate.
trait Failure: std::error::Error + 'static {
    /// Whether to ask again soon would only be refused again.
    fn is_refusal(&self) -> bool;
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug)]
enum Role {
    Client,
    Serving,
}

/// Pauses between attempts, doubled up to a limit.
#[derive(Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_secs(2);
    /// As upstream: an API server that is away is asked this often.
    const LONGEST: Duration = Duration::from_secs(32);
    /// Each attempt leaves an object in the API where somebody denies or does not sign.
    const LONGEST_REFUSED: Duration = Duration::from_secs(15 * 60);

    /// Tells of a failure and when the next attempt is due.
    fn note(&mut self, clock: &Clock, role: Role, error: &dyn Failure) -> Duration {
        let retry_in = self.fail(clock, error.is_refusal());
        match role {
            Role::Client => metrics::certificates::client_not_renewed(),
            Role::Serving => metrics::certificates::server_not_renewed(),
        }
        warn!(?role, error = chain(error), ?retry_in, "the node has no new certificate, will retry");
        retry_in
    }

    fn fail(&mut self, clock: &Clock, is_refused: bool) -> Duration {
        let longest = if is_refused { Self::LONGEST_REFUSED } else { Self::LONGEST };
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.failures = (self.failures + 1).min(31);
        clock.jitter(Self::FIRST.saturating_mul(factor).min(longest), 0.1)
    }
}
