//! Service-account tokens: asked for once per volume, renewed in time, forgotten with the pod.
//!
//! Deadlines run on the monotonic clock from the lifetime the API server granted: the
//! moment it prints depends on this machine's idea of the date.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use tokio::time::Instant;
use tracing::warn;

use crate::clock::Clock;
use crate::kube::{ApiError, Cluster};
use crate::pod::{PodRef, PodUid};

/// A token is renewed after this part of its lifetime, or after a day, less a little so
/// that those asked for together are not renewed together.
const RENEW_AFTER_PART: f64 = 0.8;
const RENEW_AFTER: Duration = Duration::from_secs(24 * 3600);
const SPREAD: Duration = Duration::from_secs(10);
/// A renewal that failed is tried again after this long.
const RETRY_AFTER: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, thiserror::Error)]
pub enum TokenError {
    #[error("failed to get a token of service account {service_account} for pod {pod}")]
    Request {
        service_account: String,
        pod: PodRef,
        #[source]
        source: ApiError,
    },
    #[error(
        "failed to get a token of service account {service_account} for pod {pod}: the API server's answer has none"
    )]
    NoToken { service_account: String, pod: PodRef },
    #[error(
        "failed to get a token of service account {service_account} for pod {pod}: this node runs without an API server"
    )]
    NoCluster { service_account: String, pod: PodRef },
}

#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub token: Arc<str>,
    /// As the API server said, for those who print it.
    pub expires_at: Timestamp,
}

// A token must not get into a log through a careless `{:?}`.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// Handle to the cache. Clones share it.
#[derive(Clone)]
pub struct Tokens {
    cluster: Option<Arc<dyn Cluster>>,
    clock: Clock,
    held: Arc<Mutex<BTreeMap<PodUid, BTreeMap<Purpose, Held>>>>,
}

/// What tells a pod's tokens apart.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Purpose {
    service_account: String,
    /// Where it is known, a token of another account of this name will not do.
    service_account_uid: Option<String>,
    audience: Option<String>,
    expiration_seconds: i64,
}

struct Held {
    token: Token,
    renew_at: Instant,
    ends_at: Instant,
}

impl Tokens {
    pub fn new(cluster: Option<Arc<dyn Cluster>>, clock: Clock) -> Self {
        Tokens { cluster, clock, held: Arc::default() }
    }

    /// The token held, or a new one when it is time. When the renewal fails, the one held
    /// is given for as long as it is good.
    pub async fn get(
        &self,
        pod: &Pod,
        service_account: &str,
        audience: Option<&str>,
        expiration_seconds: i64,
    ) -> Result<Token, TokenError> {
        self.get_of(pod, service_account, None, audience, expiration_seconds).await
    }

    /// As [`Tokens::get`], of the account with this UID and no other.
    pub async fn get_of(
        &self,
        pod: &Pod,
        service_account: &str,
        service_account_uid: Option<&str>,
        audience: Option<&str>,
        expiration_seconds: i64,
    ) -> Result<Token, TokenError> {
        let uid = PodRef::of(pod).uid;
        let purpose = Purpose {
            service_account: service_account.to_owned(),
            service_account_uid: service_account_uid.map(str::to_owned),
            audience: audience.filter(|audience| !audience.is_empty()).map(str::to_owned),
            expiration_seconds,
        };
        let asked_at = Instant::now();
        if let Some(token) =
            self.held().get(&uid).and_then(|tokens| tokens.get(&purpose)).and_then(|held| held.fresh(asked_at))
        {
            return Ok(token);
        }
        match self.request(pod, &purpose).await {
            Ok(granted) => Ok(self.keep(uid, purpose, granted, asked_at)),
            Err(error) => match self.put_off(&uid, &purpose) {
                Some(token) => {
                    warn!(pod = %PodRef::of(pod), service_account, error = &error as &dyn std::error::Error, "token not renewed, will retry");
                    Ok(token)
                }
                None => Err(error),
            },
        }
    }

    /// When the first of a pod's tokens is due for renewal.
    pub fn next_refresh(&self, uid: &PodUid) -> Option<Instant> {
        self.held().get(uid)?.values().map(|held| held.renew_at).min()
    }

    pub fn forget(&self, uid: &PodUid) {
        self.held().remove(uid);
    }

    /// Forgets tokens that are no longer good, whosever they are: for those who are not told of
    /// the end of pods.
    pub fn forget_ended(&self) {
        let now = Instant::now();
        self.held().retain(|_, tokens| {
            tokens.retain(|_, held| now < held.ends_at);
            !tokens.is_empty()
        });
    }

    async fn request(&self, pod: &Pod, purpose: &Purpose) -> Result<Granted, TokenError> {
        let (pod, service_account) = (PodRef::of(pod), purpose.service_account.clone());
        let Some(cluster) = &self.cluster else {
            return Err(TokenError::NoCluster { service_account, pod });
        };
        let request = TokenRequest {
            metadata: ObjectMeta { uid: purpose.service_account_uid.clone(), ..ObjectMeta::default() },
            spec: Some(TokenRequestSpec {
                audiences: purpose.audience.clone().map(|audience| vec![audience]),
                expiration_seconds: Some(purpose.expiration_seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(pod.name.clone()),
                    uid: Some(pod.uid.to_string()),
                }),
            }),
            ..TokenRequest::default()
        };
        match cluster.request_token(&pod.namespace, &service_account, &request).await {
            Ok(answer) => Granted::of(answer).ok_or(TokenError::NoToken { service_account, pod }),
            Err(source) => Err(TokenError::Request { service_account, pod, source }),
        }
    }

    /// The lifetime is counted from when it was asked for, which is before it was granted.
    fn keep(&self, uid: PodUid, purpose: Purpose, granted: Granted, asked_at: Instant) -> Token {
        let Granted { token, lifetime } = granted;
        let early = self.clock.part_of(SPREAD);
        let renew_after = lifetime.mul_f64(RENEW_AFTER_PART).min(RENEW_AFTER).saturating_sub(early);
        let held = Held { token: token.clone(), renew_at: asked_at + renew_after, ends_at: asked_at + lifetime };
        self.held().entry(uid).or_default().insert(purpose, held);
        token
    }

    /// Sets the next try, if there is a token that is good until then.
    fn put_off(&self, uid: &PodUid, purpose: &Purpose) -> Option<Token> {
        let now = Instant::now();
        let mut all = self.held();
        let held = all.get_mut(uid)?.get_mut(purpose)?;
        held.renew_at = now + RETRY_AFTER;
        (now < held.ends_at).then(|| held.token.clone())
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<PodUid, BTreeMap<Purpose, Held>>> {
        self.held.lock().expect("no holder of the tokens lock panics")
    }
}

/// A token as granted, and for how long.
struct Granted {
    token: Token,
    lifetime: Duration,
}

impl Granted {
    fn of(answer: TokenRequest) -> Option<Self> {
        let status = answer.status?;
        let token = status.token.filter(|token| !token.is_empty())?;
        let Time(expires_at) = status.expiration_timestamp?;
        // The server writes the lifetime it granted over the one that was asked for.
        let seconds = u64::try_from(answer.spec?.expiration_seconds?).ok()?;
        Some(Granted { token: Token { token: token.into(), expires_at }, lifetime: Duration::from_secs(seconds) })
    }
}

impl Held {
    fn fresh(&self, now: Instant) -> Option<Token> {
        (now < self.renew_at).then(|| self.token.clone())
    }
}
