//! TLS of the main server: versions, cipher suites, the serving certificate, and whose client
//! certificates are asked for.
//!
//! A change of the serving certificate or of the client authorities counts from the next
//! connection on; those that are there go on with what they began with.

mod certificate;
mod clients;
mod offered;
mod ours;
mod self_made;
mod validity;

use std::sync::{Arc, Mutex};

use rustls::ServerConfig as Rustls;
use rustls::server::NoServerSessionStorage;

use self::certificate::Serving;
use super::config::{Result, TlsConfig};
use super::reload::Reloading;
use crate::authorities::Authorities;
use crate::clock::Clock;
use crate::host::Host;

/// What the main server's connections begin with.
pub struct Tls {
    offered: offered::Offered,
    serving: Serving,
    /// `None` where no client certificate is asked for.
    authorities: Option<Arc<Reloading<Authorities>>>,
    /// The last one made.
    made: Mutex<Option<Made>>,
}

struct Made {
    config: Arc<Rustls>,
    /// Of these.
    authorities: Option<Arc<Authorities>>,
}

impl Tls {
    pub async fn open(config: &TlsConfig, host: Arc<dyn Host>, clock: &Clock) -> Result<Self> {
        let offered = offered::Offered::of(config)?;
        let serving = Serving::open(config, offered.provider(), &host, clock).await?;
        let authorities = match &config.client_ca {
            Some(path) => Some(Arc::new(clients::load(host, path.clone()).await?)),
            None => None,
        };
        Ok(Tls { offered, serving, authorities, made: Mutex::default() })
    }

    /// Whom to hold client certificates against.
    pub fn authorities(&self) -> Option<Arc<Reloading<Authorities>>> {
        self.authorities.clone()
    }

    /// For a connection that begins now.
    pub async fn current(&self) -> Result<Arc<Rustls>> {
        self.serving.look().await;
        let authorities = match &self.authorities {
            Some(authorities) => Some(authorities.current().await),
            None => None,
        };
        let mut made = self.made.lock().expect("nothing that holds the TLS settings can panic");
        if let Some(made) = &*made
            && same(made.authorities.as_ref(), authorities.as_ref())
        {
            return Ok(made.config.clone());
        }
        let config = Arc::new(self.make(authorities.clone())?);
        *made = Some(Made { config: config.clone(), authorities });
        Ok(config)
    }

    fn make(&self, authorities: Option<Arc<Authorities>>) -> Result<Rustls> {
        let builder = Rustls::builder_with_provider(self.offered.provider().clone())
            .with_protocol_versions(self.offered.versions())?;
        let builder = match authorities {
            Some(authorities) => builder.with_client_cert_verifier(clients::asking(authorities)),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(self.serving.resolver());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Whoever comes again shows a certificate again: one that has expired meanwhile, or whose
        // authority is trusted no more, must not live on in a resumed session.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

fn same(one: Option<&Arc<Authorities>>, other: Option<&Arc<Authorities>>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        _ => false,
    }
}
