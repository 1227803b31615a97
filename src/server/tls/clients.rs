//! Client certificates: asked for in the handshake, held against the authorities with each
//! request.
//!
//! The handshake takes any certificate whose key the client has: one that no authority of ours
//! signed, or that has expired, is answered 401 like any other bad credential, instead of by an
//! alert that tells the caller nothing.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};

use super::super::ServerError;
use super::super::reload::{LoadError, Reloading};
use super::certificate::certificates;
use crate::host::Host;

/// Who may vouch for clients: the content of `clientCAFile`.
pub struct ClientAuthorities(Arc<dyn ClientCertVerifier>);

impl ClientAuthorities {
    /// Whether one of them vouches for the holder of this certificate now.
    pub fn vouch_for(&self, chain: &[CertificateDer<'_>], now: Timestamp) -> Result<(), Error> {
        let Some((own, between)) = chain.split_first() else { return Err(Error::NoCertificatesPresented) };
        let since_epoch = u64::try_from(now.as_second()).unwrap_or(0);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(since_epoch));
        self.0.verify_client_cert(own, between, now).map(drop)
    }
}

pub async fn load(
    host: Arc<dyn Host>,
    path: PathBuf,
    provider: &Arc<CryptoProvider>,
) -> super::Result<Reloading<ClientAuthorities>> {
    let provider = provider.clone();
    let named = path.clone();
    let parse = move |contents: &[Vec<u8>]| {
        let mut roots = RootCertStore::empty();
        for authority in certificates(&named, &contents[0])? {
            roots.add(authority).map_err(|error| LoadError::unusable(&named, error))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
        Ok(ClientAuthorities(verifier.map_err(|error| LoadError::unusable(&named, error))?))
    };
    let loaded = Reloading::load(host, vec![path], Box::new(parse)).await;
    loaded.map_err(|source| ServerError::Files { field: "authentication.x509.clientCAFile", source })
}

/// Asks for a certificate in the handshake, and takes any.
pub fn asking(authorities: Arc<ClientAuthorities>) -> Arc<dyn ClientCertVerifier> {
    Arc::new(Asking(authorities))
}

struct Asking(Arc<ClientAuthorities>);

impl fmt::Debug for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asking")
    }
}

impl ClientCertVerifier for Asking {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// By these a client with several certificates knows which one is meant.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.0.supported_verify_schemes()
    }
}
