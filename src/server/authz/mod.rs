//! Who may: what a request is about in the API server's words, and what the API server says.
//!
//! Always true: who gets no answer is refused, and soon.

mod act;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec, SubjectAccessReviewStatus,
};
use tracing::debug;

pub use self::act::{Act, is_at_or_below};
use super::answers::{Answer, Answers, Asking, ReviewError, question};
use super::authn::User;
use super::config::AuthzConfig;
use crate::clock::Clock;
use crate::kube::Reviews;

pub enum Authz {
    AlwaysAllow,
    Webhook(Webhook),
}

pub struct Webhook {
    /// Absent in standalone mode.
    reviews: Option<Arc<dyn Reviews>>,
    node_name: String,
    keep_allowed: Duration,
    keep_refused: Duration,
    answers: Answers<bool>,
}

/// Why somebody may not, in upstream's words.
#[derive(Debug)]
pub enum Refusal {
    Forbidden { user: String, verb: &'static str, subresources: &'static [&'static str] },
    Unknown { user: String, verb: &'static str, subresource: &'static str },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Forbidden { user, verb, subresources } => {
                let subresources = subresources.join(" ");
                write!(f, "Forbidden (user={user}, verb={verb}, resource=nodes, subresource(s)=[{subresources}])")
            }
            Refusal::Unknown { user, verb, subresource } => {
                write!(f, "Authorization error (user={user}, verb={verb}, resource=nodes, subresource={subresource})")
            }
        }
    }
}

impl Authz {
    pub fn new(config: &AuthzConfig, reviews: Option<Arc<dyn Reviews>>, clock: Clock) -> Self {
        match config {
            AuthzConfig::AlwaysAllow => Authz::AlwaysAllow,
            AuthzConfig::Webhook { node_name, keep_allowed, keep_refused } => Authz::Webhook(Webhook {
                reviews,
                node_name: node_name.clone(),
                keep_allowed: *keep_allowed,
                keep_refused: *keep_refused,
                answers: Answers::new(clock),
            }),
        }
    }

    /// The first subresource that is allowed decides.
    pub async fn check(&self, asking: Asking, user: &User, act: &Act) -> Result<(), Refusal> {
        let Authz::Webhook(webhook) = self else { return Ok(()) };
        let Act { verb, subresources } = *act;
        for subresource in subresources {
            match webhook.ask(asking, user, verb, subresource).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    debug!(%error, user = user.name, "nobody says whether a caller may, so it may not");
                    return Err(Refusal::Unknown { user: user.name.clone(), verb, subresource });
                }
            }
        }
        Err(Refusal::Forbidden { user: user.name.clone(), verb, subresources })
    }
}

impl Webhook {
    async fn ask(&self, asking: Asking, user: &User, verb: &str, subresource: &str) -> Result<bool, ReviewError> {
        let reviews = self.reviews.clone().ok_or(ReviewError::NobodyToAsk)?;
        let (keep_allowed, keep_refused) = (self.keep_allowed, self.keep_refused);
        let review = Arc::new(self.review(user, verb, subresource));
        let asked = serde_json::to_vec(&review.spec).expect("a review is made of text");
        let ask = move || {
            let (reviews, review) = (reviews.clone(), review.clone());
            async move {
                let status = reviews.review_access(&review).await?.status;
                let allowed = status
                    .is_some_and(|SubjectAccessReviewStatus { allowed, denied, .. }| allowed && denied != Some(true));
                let keep = if allowed { keep_allowed } else { keep_refused };
                Ok(Answer { value: allowed, keep, is_favourable: allowed })
            }
        };
        self.answers.get(asking, question(&asked), ask).await
    }

    fn review(&self, user: &User, verb: &str, subresource: &str) -> SubjectAccessReview {
        let act = ResourceAttributes {
            verb: Some(verb.to_owned()),
            version: Some("v1".to_owned()),
            resource: Some("nodes".to_owned()),
            subresource: Some(subresource.to_owned()),
            name: Some(self.node_name.clone()),
            ..ResourceAttributes::default()
        };
        let spec = SubjectAccessReviewSpec {
            resource_attributes: Some(act),
            user: Some(user.name.clone()),
            uid: user.uid.clone(),
            groups: Some(user.groups.clone()),
            extra: Some(user.extra.clone()),
            ..SubjectAccessReviewSpec::default()
        };
        SubjectAccessReview { spec, ..SubjectAccessReview::default() }
    }
}
