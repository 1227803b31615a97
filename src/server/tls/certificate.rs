//! The serving certificate: where it comes from, and its way into handshakes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use super::super::ServerError;
use super::super::config::{CertificateSource, Result, TlsConfig};
use super::super::reload::{LoadError, Reloading};
use super::self_made::SelfMade;
use super::validity::Notice;
use crate::clock::Clock;
use crate::host::Host;
use crate::identity::ServingKey;

pub enum Serving {
    /// Read again when they have changed.
    Files { files: Reloading<CertifiedKey>, notice: Notice, clock: Clock },
    /// The same of files that are ours to write.
    SelfMade(SelfMade),
    /// Whoever has it signed tells of it. Handshakes fail meanwhile, as upstream's do.
    Signed(ServingKey),
}

impl Serving {
    pub async fn open(
        config: &TlsConfig,
        provider: &Arc<CryptoProvider>,
        host: &Arc<dyn Host>,
        clock: &Clock,
    ) -> Result<Self> {
        let serving = match &config.certificate {
            CertificateSource::Files { certificate, key } => {
                let loaded = load(host.clone(), certificate.clone(), key.clone(), provider.clone()).await;
                let named = |source| ServerError::Files { field: "tlsCertFile and tlsPrivateKeyFile", source };
                Serving::Files { files: loaded.map_err(named)?, notice: Notice::default(), clock: clock.clone() }
            }
            CertificateSource::SelfMade { dir, host_name } => {
                let made = SelfMade::open(host.clone(), dir, host_name, provider, clock).await;
                Serving::SelfMade(made.map_err(ServerError::SelfMade)?)
            }
            CertificateSource::Signed(key) => Serving::Signed(key.clone()),
        };
        // What is to be said of it is said at the start, whoever calls and whenever.
        serving.look().await;
        Ok(serving)
    }

    /// To be called before a connection begins.
    pub async fn look(&self) {
        match self {
            Serving::Files { files, notice, clock } => notice.look(&files.current().await, clock.wall()),
            Serving::SelfMade(made) => made.look().await,
            Serving::Signed(_) => {}
        }
    }

    pub fn resolver(&self) -> Arc<dyn ResolvesServerCert> {
        match self {
            Serving::Files { files, .. } => Arc::new(Newest(files.follow())),
            Serving::SelfMade(made) => Arc::new(Newest(made.follow())),
            Serving::Signed(key) => Arc::new(Granted(key.clone())),
        }
    }
}

/// Certificate and key from their files.
pub async fn load(
    host: Arc<dyn Host>,
    certificate: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
) -> std::result::Result<Reloading<CertifiedKey>, LoadError> {
    let paths = vec![certificate, key];
    let named = paths.clone();
    let parse = move |contents: &[Vec<u8>]| match contents {
        [certificate, key] => pair((&named[0], certificate), (&named[1], key), &provider),
        _ => unreachable!("two files were read"),
    };
    Reloading::load(host, paths, Box::new(parse)).await
}

/// The two as they are served together.
pub fn pair(
    (certificate_path, certificate): (&Path, &[u8]),
    (key_path, key): (&Path, &[u8]),
    provider: &CryptoProvider,
) -> std::result::Result<CertifiedKey, LoadError> {
    let chain = certificates(certificate_path, certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| LoadError::unusable(key_path, error))?;
    match CertifiedKey::from_der(chain, key, provider) {
        Ok(pair) => Ok(pair),
        Err(error @ rustls::Error::InconsistentKeys(_)) => Err(LoadError::unusable(
            key_path,
            format!("it is not the key of the certificate in {} ({error})", certificate_path.display()),
        )),
        Err(error) => Err(LoadError::unusable(key_path, error)),
    }
}

/// All certificates of a file, of which there must be one at least.
pub fn certificates(path: &Path, pem: &[u8]) -> std::result::Result<Vec<CertificateDer<'static>>, LoadError> {
    let read: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.map_err(|error| LoadError::unusable(path, error))?;
    match read.is_empty() {
        true => Err(LoadError::unusable(path, "it holds no certificate")),
        false => Ok(read),
    }
}

/// Serves whatever certificate is the newest when a handshake needs one.
#[derive(Debug)]
struct Newest(watch::Receiver<Arc<CertifiedKey>>);

impl ResolvesServerCert for Newest {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.borrow().clone())
    }
}

/// The same for one that may not be there.
#[derive(Debug)]
struct Granted(ServingKey);

impl ResolvesServerCert for Granted {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.borrow().clone()
    }
}
