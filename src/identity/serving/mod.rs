//! The serving certificate where the cluster signs it (`serverTLSBootstrap`).
//!
//! One task waits for the Node's addresses, asks for a certificate that names them, asks again
//! when they change and before it expires. In: the watch of this Node. Out: the key to serve
//! with (watch), nothing until there is one, and nothing again once it has expired: whoever
//! serves fails handshakes meanwhile, as upstream does.

mod plan;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Node;
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use self::plan::{Step, next, wanted};
use super::certificate::Bundle;
use super::request::{Alternatives, Key, RequestError, serving_request};
use super::signing::{SigningError, obtain};
use super::store::Store;
use super::{Access, Backoff, Failure, LOOK_AGAIN, Role, SIGNED_WITHIN, rest, unix_seconds};
use crate::clock::Clock;
use crate::clock::build::built;
use crate::host::{Host, HostError};
use crate::kube::Change;
use crate::metrics;

/// What TLS connections are served with; `None` until the cluster has signed it, and once it has expired.
pub type ServingKey = watch::Receiver<Option<Arc<CertifiedKey>>>;

type Nodes = BoxStream<'static, Change<Node>>;

pub struct ServingIdentity {
    node_name: String,
    /// The gate AllowDNSOnlyNodeCSR: a name is enough to ask for a certificate.
    allows_names_only: bool,
    access: Arc<dyn Access>,
    clock: Clock,
    store: Store,
    key: watch::Sender<Option<Arc<CertifiedKey>>>,
    backoff: Backoff,
    told_of_clock: bool,
}

#[derive(Debug, thiserror::Error)]
enum ServingError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Signing(#[from] SigningError),
    #[error("the certificate that was signed last is of no use here: it is due again already, or names others")]
    NoHelp,
}

impl Failure for ServingError {
    fn is_refusal(&self) -> bool {
        match self {
            ServingError::Signing(error) => !error.may_be_answered_yet(),
            error => matches!(error, ServingError::NoHelp),
        }
    }
}

impl ServingIdentity {
    pub fn new(
        node_name: &str,
        cert_dir: &Path,
        allows_names_only: bool,
        host: Arc<dyn Host>,
        access: Arc<dyn Access>,
        clock: Clock,
    ) -> (Self, ServingKey) {
        let (key, receiver) = watch::channel(None);
        let store = Store::serving(host, cert_dir);
        let (backoff, node_name) = (Backoff::default(), node_name.to_owned());
        (
            ServingIdentity { node_name, allows_names_only, access, clock, store, key, backoff, told_of_clock: false },
            receiver,
        )
    }

    /// Keeps the certificate valid and fitting, for ever.
    pub async fn run(mut self, mut nodes: Nodes) {
        let mut bundle = self.current_bundle().await;
        let mut wanted = Alternatives::default();
        let mut has_obtained = false;
        loop {
            let leaf = bundle.as_ref().map(|bundle| &bundle.leaf);
            let now = self.clock.wall();
            self.serve(bundle.as_ref().filter(|bundle| now < bundle.leaf.not_after));
            // What is served ends with its time, whatever is waited for.
            let left = leaf.and_then(|leaf| Duration::try_from(leaf.not_after.duration_since(now)).ok());
            let within = left.filter(|left| !left.is_zero()).unwrap_or(Duration::MAX);
            let step = next(now, built(), &self.node_name, leaf, &wanted, self.allows_names_only);
            let wait = match step {
                Step::AwaitAddresses => Wait::Until(leaf.map(|leaf| leaf.not_after).filter(|end| now < *end)),
                Step::AwaitClock => {
                    self.tell_of_clock();
                    Wait::For(LOOK_AGAIN)
                }
                Step::Rest { until } => {
                    has_obtained = false;
                    self.backoff = Backoff::default();
                    Wait::Until(Some(until))
                }
                // Another one would be as bad: a clock or a signer is wrong.
                Step::Obtain if std::mem::take(&mut has_obtained) => {
                    Wait::For(self.backoff.note(&self.clock, Role::Serving, &ServingError::NoHelp).min(within))
                }
                Step::Obtain => tokio::select! {
                    biased;
                    // Addresses that change make the question another one.
                    // Cancel-safe: a stream keeps what was not taken from it.
                    other = changed(&mut nodes, &wanted) => {
                        (wanted, has_obtained) = (other, false);
                        continue;
                    }
                    // Dropping it leaves a request that nobody waits for; its key is lost.
                    obtained = self.obtain(&wanted, within.min(SIGNED_WITHIN)) => match obtained {
                        Ok(new) => {
                            if let Some(old) = &bundle {
                                let age = self.clock.wall().duration_since(old.leaf.not_before);
                                metrics::certificates::server_rotated(age.as_secs_f64().max(0.0));
                            }
                            (bundle, has_obtained) = (Some(new), true);
                            continue;
                        }
                        Err(error) => Wait::For(self.backoff.note(&self.clock, Role::Serving, &error).min(within)),
                    },
                },
            };
            tokio::select! {
                biased;
                // Cancel-safe: see above.
                other = changed(&mut nodes, &wanted) => (wanted, has_obtained) = (other, false),
                // Cancel-safe: it only waits.
                () = wait.over(&self.clock) => {}
            }
        }
    }

    /// What is on disk. A disk that does not answer is no reason to ask for another one.
    async fn current_bundle(&mut self) -> Option<Bundle> {
        loop {
            match self.store.current_bundle().await {
                Ok(bundle) => return bundle,
                Err(error) => sleep(self.backoff.note(&self.clock, Role::Serving, &ServingError::Host(error))).await,
            }
        }
    }

    fn serve(&self, bundle: Option<&Bundle>) {
        metrics::certificates::server_expires(bundle.map(|bundle| unix_seconds(bundle.leaf.not_after)));
        self.key.send_if_modified(|served| {
            let is_same = match (&*served, bundle) {
                (Some(served), Some(bundle)) => Arc::ptr_eq(served, &bundle.key),
                (served, bundle) => served.is_none() && bundle.is_none(),
            };
            *served = bundle.map(|bundle| bundle.key.clone());
            !is_same
        });
    }

    async fn obtain(&self, wanted: &Alternatives, within: Duration) -> Result<Bundle, ServingError> {
        let key = Key::generate()?;
        let request = serving_request(&self.node_name, &key, wanted)?;
        let signed = obtain(self.access.own(), &request, &key, within).await?;
        self.store.put(&signed.pem, self.clock.wall()).await?;
        info!(valid_until = %signed.bundle.leaf.not_after, addresses = ?wanted.addresses, "this node has a serving certificate");
        Ok(signed.bundle)
    }

    fn tell_of_clock(&mut self) {
        if !std::mem::replace(&mut self.told_of_clock, true) {
            warn!(shows = %self.clock.wall(), "the clock is wrong, no serving certificate is asked for");
        }
    }
}

enum Wait {
    Until(Option<jiff::Timestamp>),
    For(Duration),
}

impl Wait {
    async fn over(self, clock: &Clock) {
        match self {
            Wait::Until(until) => rest(clock, until).await,
            Wait::For(pause) => sleep(pause).await,
        }
    }
}

/// What is wanted once that is something else.
async fn changed(nodes: &mut Nodes, known: &Alternatives) -> Alternatives {
    loop {
        let Some(change) = nodes.next().await else {
            // A watch never ends; nothing more would ever change.
            return std::future::pending().await;
        };
        let wanted = match change {
            Change::Listed(nodes) => wanted(nodes.first()),
            Change::Applied(node) => wanted(Some(&node)),
            Change::Deleted(_) => wanted(None),
        };
        if wanted != *known {
            return wanted;
        }
    }
}
