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
use super::answers::Asking;
use super::config::AuthnConfig;
use super::reload::Reloading;
use super::websocket::{self, BadProtocols};
use crate::authorities::Authorities;
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

/// Who somebody was found to be.
pub struct Caller {
    pub user: Arc<User>,
    /// An authority of the operator's says so, and nobody had to be asked. A token is no such
    /// thing: every pod of the cluster has one.
    pub is_vouched_for: bool,
}

/// The caller has shown nothing, or nothing good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unauthorized;

pub struct Authn {
    authorities: Option<Arc<Reloading<Authorities>>>,
    tokens: Option<Tokens>,
    anonymous: bool,
    clock: Clock,
}

impl Authn {
    pub fn new(
        config: &AuthnConfig,
        authorities: Option<Arc<Reloading<Authorities>>>,
        reviews: Option<Arc<dyn Reviews>>,
        clock: Clock,
    ) -> Self {
        let tokens = config.tokens.map(|keep| Tokens::new(reviews, keep, clock.clone()));
        Authn { authorities, tokens, anonymous: config.anonymous, clock }
    }

    pub async fn identify(
        &self,
        asking: Asking,
        chain: Option<&[CertificateDer<'static>]>,
        headers: &HeaderMap,
    ) -> Result<Caller, Unauthorized> {
        let mut has_shown_something = false;
        if let (Some(authorities), Some(chain)) = (&self.authorities, chain) {
            match certificate::holder(&*authorities.current().await, chain, self.clock.wall()) {
                Ok(Some(user)) => return Ok(Caller { user: Arc::new(user.authenticated()), is_vouched_for: true }),
                Ok(None) => {}
                Err(error) => {
                    debug!(error, "client certificate not accepted");
                    has_shown_something = true;
                }
            }
        }
        if let Some(tokens) = &self.tokens {
            for shown in [tokens::bearer(headers).map(Ok), websocket::token(headers).transpose()].into_iter().flatten()
            {
                has_shown_something = true;
                if let Some(user) = owner(tokens, asking, shown).await {
                    return Ok(Caller { user, is_vouched_for: false });
                }
            }
        }
        match self.anonymous && !has_shown_something {
            true => Ok(Caller { user: Arc::new(User::anonymous()), is_vouched_for: false }),
            false => Err(Unauthorized),
        }
    }
}

async fn owner(tokens: &Tokens, asking: Asking, shown: Result<String, BadProtocols>) -> Option<Arc<User>> {
    match shown {
        // Not known is not good. Who asks tells of it, once for all.
        Ok(token) => tokens.owner(asking, &token).await.unwrap_or_else(|error| {
            debug!(%error, "nobody says whose a caller's token is, so it is nobody's");
            None
        }),
        Err(error) => {
            debug!(%error, "protocols of a WebSocket not accepted");
            None
        }
    }
}
