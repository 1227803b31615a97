//! The node's lease: proof of life for the control plane, apart from everything else.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::NodeView;
use super::config::NodeConfig;
use crate::clock::Clock;
use crate::kube::{ApiError, Cluster, Result};

const NAMESPACE: &str = "kube-node-lease";
/// Of the lease's duration, so that several renewals may fail before it runs out.
const RENEW_FRACTION: f64 = 0.25;
const RENEW_JITTER: f64 = 0.04;
/// Calls that one renewal may take: a conflict or a lost lease is put right at once.
const CALLS_MAX: usize = 5;
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(7);

/// Renews the lease for ever. The view says which Node owns it.
pub async fn run(
    cluster: Arc<dyn Cluster>,
    clock: Clock,
    config: NodeConfig,
    view: watch::Receiver<Option<Arc<NodeView>>>,
) {
    let interval =
        Duration::from_secs(u64::try_from(config.lease_duration_seconds).unwrap_or(40)).mul_f64(RENEW_FRACTION);
    let mut keeper = Keeper { cluster, clock, config, view, held: None };
    let mut failures = 0;
    loop {
        // No answer before the next renewal is due is none.
        let renewed = timeout(interval, keeper.renew()).await.unwrap_or_else(|_| {
            Err(ApiError::Unavailable { what: "renew lease".into(), message: format!("no answer within {interval:?}") })
        });
        match renewed {
            Ok(()) => {
                if failures > 0 {
                    info!(failures, "node lease renewed again");
                }
                failures = 0;
                sleep(keeper.clock.jitter(interval, RENEW_JITTER)).await;
            }
            Err(error) => {
                failures += 1;
                let delay = RETRY_MIN.saturating_mul(1 << (failures - 1).min(16)).min(RETRY_MAX).min(interval);
                if failures == 1 {
                    warn!(%error, "node lease not renewed, will retry");
                } else {
                    debug!(%error, failures, "node lease not renewed, will retry");
                }
                sleep(keeper.clock.jitter(delay, RENEW_JITTER)).await;
            }
        }
    }
}

struct Keeper {
    cluster: Arc<dyn Cluster>,
    clock: Clock,
    config: NodeConfig,
    view: watch::Receiver<Option<Arc<NodeView>>>,
    /// The lease as the API had it last.
    held: Option<Lease>,
}

impl Keeper {
    async fn renew(&mut self) -> Result<()> {
        let mut result = Ok(());
        for _ in 0..CALLS_MAX {
            let lease = renewed(self.held.as_ref(), &self.config, self.owner(), self.clock.wall());
            let answer = match &self.held {
                Some(_) => self.cluster.update_lease(&lease).await,
                None => self.cluster.create_lease(&lease).await,
            };
            match answer {
                Ok(lease) => {
                    self.held = Some(lease);
                    return Ok(());
                }
                Err(error) => {
                    self.held = match error {
                        ApiError::NotFound { .. } => None,
                        ApiError::Conflict { .. } | ApiError::AlreadyExists { .. } => self.look().await?,
                        error => return Err(error),
                    };
                    result = Err(error);
                }
            }
        }
        result
    }

    async fn look(&self) -> Result<Option<Lease>> {
        match self.cluster.get_lease().await {
            Ok(lease) => Ok(Some(lease)),
            Err(ApiError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The Node, once there is one: the lease goes when it goes.
    fn owner(&self) -> Option<OwnerReference> {
        let view = self.view.borrow().clone().filter(|view| view.is_registered)?;
        Some(OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.config.name.clone(),
            uid: view.node.metadata.uid.clone()?,
            ..OwnerReference::default()
        })
    }
}

/// The lease held until now, or a first one, as renewed at `now`.
fn renewed(held: Option<&Lease>, config: &NodeConfig, owner: Option<OwnerReference>, now: Timestamp) -> Lease {
    let mut lease = held.cloned().unwrap_or_default();
    lease.metadata.name = Some(config.name.clone());
    lease.metadata.namespace = Some(NAMESPACE.to_owned());
    if let Some(owner) = owner {
        let owners = lease.metadata.owner_references.get_or_insert_default();
        owners.retain(|other| other.kind != owner.kind);
        owners.push(owner);
    }
    let spec = lease.spec.take().unwrap_or_default();
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(config.name.clone()),
        lease_duration_seconds: Some(config.lease_duration_seconds),
        renew_time: Some(MicroTime(now)),
        ..spec
    });
    lease
}
