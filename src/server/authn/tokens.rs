//! Bearer tokens: the API server knows whose they are.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};

use super::User;
use crate::clock::Clock;
use crate::kube::Reviews;
use crate::server::answers::{Answer, Answers, Asking, ReviewError, question};

/// An answer of somebody who was not sure; long enough to hold off those who guess.
const KEPT_UNSURE: Duration = Duration::from_secs(5);

pub struct Tokens {
    /// Absent in standalone mode.
    reviews: Option<Arc<dyn Reviews>>,
    keep: Duration,
    answers: Answers<Option<Arc<User>>>,
}

impl Tokens {
    pub fn new(reviews: Option<Arc<dyn Reviews>>, keep: Duration, clock: Clock) -> Self {
        Tokens { reviews, keep, answers: Answers::new(clock) }
    }

    /// Whose token this is, if anybody's.
    pub async fn owner(&self, asking: Asking, token: &str) -> Result<Option<Arc<User>>, ReviewError> {
        let reviews = self.reviews.clone().ok_or(ReviewError::NobodyToAsk)?;
        let keep = self.keep;
        let spec = TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() };
        let review = Arc::new(TokenReview { spec, ..TokenReview::default() });
        let ask = move || {
            let (reviews, review) = (reviews.clone(), review.clone());
            async move {
                let status = reviews.review_token(&review).await?.status.unwrap_or_default();
                // Who was to know could not say: that may be otherwise in a moment.
                let is_unsure = status.error.as_deref().is_some_and(|error| !error.is_empty());
                let keep = if is_unsure { keep.min(KEPT_UNSURE) } else { keep };
                let owner = status.user.filter(|_| status.authenticated == Some(true));
                let owner = owner.map(|owner| Arc::new(user(owner)));
                Ok(Answer { is_favourable: owner.is_some(), value: owner, keep })
            }
        };
        self.answers.get(asking, question(token.as_bytes()), ask).await
    }
}

fn user(info: UserInfo) -> User {
    let user = User {
        name: info.username.unwrap_or_default(),
        uid: info.uid.filter(|uid| !uid.is_empty()),
        groups: info.groups.unwrap_or_default(),
        extra: info.extra.unwrap_or_default(),
    };
    user.authenticated()
}

/// The token a request carries. Other schemes, and none, are no credential.
pub fn bearer(headers: &HeaderMap) -> Option<String> {
    // What is no text is a credential all the same, and a bad one.
    let value = String::from_utf8_lossy(headers.get(header::AUTHORIZATION)?.as_bytes());
    let mut words = value.trim().split(' ');
    let (scheme, token) = (words.next()?, words.next()?);
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: &'static str, expected: Option<&str>) {
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, header::HeaderValue::from_static(value))]);
        assert_eq!(bearer(&headers).as_deref(), expected, "{value:?}");
    }

    #[test]
    fn only_bearer_tokens_are_looked_at() {
        check("Bearer abc", Some("abc"));
        check("bearer abc def", Some("abc"));
        check("Bearer", None);
        check("Bearer ", None);
        check("Basic YTpi", None);
        assert_eq!(bearer(&HeaderMap::new()), None);
        let no_text = header::HeaderValue::from_bytes(b"Bearer \xff").expect("a header may hold it");
        assert!(bearer(&HeaderMap::from_iter([(header::AUTHORIZATION, no_text)])).is_some());
    }
}
