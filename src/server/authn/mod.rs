//! Who calls: by client certificate, by bearer token, or nobody in particular.
//!
//! In upstream's order. A credential that is there and not good is never taken for none: such a
//! caller is refused even where anybody may call.

mod certificate;
mod subject;
mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;
use rustls::pki_types::CertificateDer;
use tracing::debug;

use self::tokens::Tokens;
use super::config::AuthnConfig;
use super::reload::Reloading;
use super::tls::ClientAuthorities;
use crate::clock::Clock;
use crate::kube::Reviews;

const AUTHENTICATED: &str = "system:authenticated";
const ANONYMOUS: &str = "system:anonymous";
const UNAUTHENTICATED: &str = "system:unauthenticated";

/// Somebody, in the words of the API server's authorizers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: Option<String>,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    fn anonymous() -> Self {
        User { name: ANONYMOUS.to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..User::default() }
    }

    pub fn is_anonymous(&self) -> bool {
        self.name == ANONYMOUS
    }

    /// The group of all who have shown who they are.
    fn authenticated(mut self) -> Self {
        if !self.is_anonymous() && !self.groups.iter().any(|group| group == AUTHENTICATED) {
            self.groups.push(AUTHENTICATED.to_owned());
        }
        self
    }
}

/// The caller has shown nothing, or nothing good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unauthorized;

pub struct Authn {
    authorities: Option<Arc<Reloading<ClientAuthorities>>>,
    tokens: Option<Tokens>,
    anonymous: bool,
    clock: Clock,
}

impl Authn {
    pub fn new(
        config: &AuthnConfig,
        authorities: Option<Arc<Reloading<ClientAuthorities>>>,
        reviews: Option<Arc<dyn Reviews>>,
        clock: Clock,
    ) -> Self {
        let tokens = config.tokens.map(|keep| Tokens::new(reviews, keep, clock.clone()));
        Authn { authorities, tokens, anonymous: config.anonymous, clock }
    }

    pub async fn identify(
        &self,
        chain: Option<&[CertificateDer<'static>]>,
        headers: &HeaderMap,
    ) -> Result<Arc<User>, Unauthorized> {
        let mut has_shown_something = false;
        if let (Some(authorities), Some(chain)) = (&self.authorities, chain) {
            match certificate::holder(&*authorities.current().await, chain, self.clock.wall()) {
                Ok(Some(user)) => return Ok(Arc::new(user.authenticated())),
                Ok(None) => {}
                Err(error) => {
                    debug!(error, "client certificate not accepted");
                    has_shown_something = true;
                }
            }
        }
        if let (Some(tokens), Some(token)) = (&self.tokens, tokens::bearer(headers)) {
            match tokens.owner(&token).await {
                Ok(Some(user)) => return Ok(user),
                Ok(None) => {}
                // Not known is not good. Who asks tells of it, once for all.
                Err(error) => debug!(%error, "nobody says whose a caller's token is, so it is nobody's"),
            }
            has_shown_something = true;
        }
        match self.anonymous && !has_shown_something {
            true => Ok(Arc::new(User::anonymous())),
            false => Err(Unauthorized),
        }
    }
}
