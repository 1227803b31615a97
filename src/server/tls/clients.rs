//! Client certificates: asked for in the handshake, held against the authorities with each
//! request.
//!
//! The handshake takes any certificate whose key the client has: one that no authority of ours
//! signed, or that has expired, is answered 401 like any other bad credential, instead of by an
//! alert that tells the caller nothing.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::super::ServerError;
use super::super::reload::{LoadError, Reloading};
use super::certificate::certificates;
use crate::authorities::{self, Authorities};
use crate::host::Host;

pub async fn load(host: Arc<dyn Host>, path: PathBuf) -> super::Result<Reloading<Authorities>> {
    let named = path.clone();
    let parse = move |contents: &[Vec<u8>]| {
        let authorities = Authorities::of(&certificates(&named, &contents[0])?);
        authorities.map_err(|error| LoadError::unusable(&named, error))
    };
    let loaded = Reloading::load(host, vec![path], Box::new(parse)).await;
    loaded.map_err(|source| ServerError::Files { field: "authentication.x509.clientCAFile", source })
}

/// Asks for a certificate in the handshake, and takes any.
pub fn asking(authorities: Arc<Authorities>) -> Arc<dyn ClientCertVerifier> {
    Arc::new(Asking(authorities))
}

struct Asking(Arc<Authorities>);

impl fmt::Debug for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asking")
    }
}

impl ClientCertVerifier for Asking {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.subjects()
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
        authorities::verify_tls12(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        authorities::verify_tls13(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        authorities::algorithms().supported_schemes()
    }
}
