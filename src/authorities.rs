//! Certificate authorities, and whose certificates they signed.
//!
//! webpki does the looking. It takes authorities as they are, however old, and refuses what it
//! finds odd in the certificate of a client, where Go, which upstream and its users go by, does
//! the opposite: the authority has to be valid too, and the certificate may be one that openssl
//! makes when nobody tells it otherwise (X.509 v1), or one of an authority. For those two there
//! is a narrower way of our own: signed by an authority directly, and nothing in it that limits it.

use std::time::Duration;

use jiff::Timestamp;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::ring::default_provider;
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{
    CertificateDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, TrustAnchor, UnixTime,
};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName};
use webpki::{EndEntityCert, KeyUsage, RawPublicKeyEntity, anchor_from_trusted_cert};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::parse_x509_certificate;

/// Why a certificate is not vouched for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unvouched {
    #[error("there is no certificate")]
    Absent,
    #[error("the certificate cannot be read")]
    Unreadable,
    #[error("every authority has expired, or is not valid yet")]
    NoAuthority,
    #[error("the certificate has expired, or is not valid yet")]
    NotNow,
    #[error("the certificate is limited in a way that is not understood here, or is not a client's")]
    Limited,
    #[error("{0}")]
    Refused(webpki::Error),
}

pub struct Authorities {
    anchors: Vec<Anchor>,
    subjects: Vec<DistinguishedName>,
}

struct Anchor {
    trusted: TrustAnchor<'static>,
    /// Name and key as certificates have them, which `trusted` holds without their beginnings.
    name: Vec<u8>,
    key: Vec<u8>,
    valid: Validity,
}

/// In seconds since the epoch.
#[derive(Clone, Copy)]
struct Validity {
    from: i64,
    until: i64,
}

impl Validity {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        let validity = certificate.validity();
        Validity { from: validity.not_before.timestamp(), until: validity.not_after.timestamp() }
    }

    fn holds(self, at: i64) -> bool {
        (self.from..=self.until).contains(&at)
    }
}

impl Authorities {
    pub fn of(certificates: &[CertificateDer<'_>]) -> Result<Self, Unvouched> {
        let anchors: Vec<_> = certificates.iter().map(Anchor::of).collect::<Result<_, _>>()?;
        let subjects = anchors.iter().map(|anchor| DistinguishedName::in_sequence(&anchor.trusted.subject)).collect();
        Ok(Authorities { anchors, subjects })
    }

    /// By these a client with several certificates knows which one is meant.
    pub fn subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    /// Whether one of them vouches now, as for a client, for whoever has the first certificate of
    /// a chain.
    pub fn vouch_for(&self, chain: &[CertificateDer<'_>], now: Timestamp) -> Result<(), Unvouched> {
        let now = now.as_second();
        let valid: Vec<_> = self.anchors.iter().filter(|anchor| anchor.valid.holds(now)).collect();
        if valid.is_empty() {
            return Err(Unvouched::NoAuthority);
        }
        verify(&valid, chain, now)
    }

    /// Whether one of them has signed a chain that was valid then, whatever became of the authority.
    pub fn have_signed(&self, chain: &[CertificateDer<'_>], then: Timestamp) -> bool {
        verify(&self.anchors.iter().collect::<Vec<_>>(), chain, then.as_second()).is_ok()
    }
}

impl Anchor {
    fn of(certificate: &CertificateDer<'_>) -> Result<Self, Unvouched> {
        let trusted = anchor_from_trusted_cert(certificate).map_err(Unvouched::Refused)?.to_owned();
        let (_, parsed) = parse_x509_certificate(certificate).map_err(|_| Unvouched::Unreadable)?;
        let (name, key) = (parsed.subject().as_raw().to_vec(), parsed.public_key().raw.to_vec());
        Ok(Anchor { trusted, name, key, valid: Validity::of(&parsed) })
    }
}

fn verify(anchors: &[&Anchor], chain: &[CertificateDer<'_>], at: i64) -> Result<(), Unvouched> {
    let (own, between) = chain.split_first().ok_or(Unvouched::Absent)?;
    let trusted: Vec<_> = anchors.iter().map(|anchor| anchor.trusted.clone()).collect();
    let time = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(at).unwrap_or(0)));
    let usual = EndEntityCert::try_from(own).and_then(|certificate| {
        let usage = KeyUsage::client_auth();
        certificate.verify_for_usage(algorithms().all, &trusted, between, time, usage, None, None).map(drop)
    });
    match usual {
        Ok(()) => Ok(()),
        Err(webpki::Error::UnsupportedCertVersion | webpki::Error::CaUsedAsEndEntity) => verify_odd(anchors, own, at),
        Err(error) => Err(Unvouched::Refused(error)),
    }
}

/// The narrower way.
fn verify_odd(anchors: &[&Anchor], own: &CertificateDer<'_>, at: i64) -> Result<(), Unvouched> {
    let (_, parsed) = parse_x509_certificate(own).map_err(|_| Unvouched::Unreadable)?;
    if !Validity::of(&parsed).holds(at) {
        return Err(Unvouched::NotNow);
    }
    if !is_plain(&parsed) {
        return Err(Unvouched::Limited);
    }
    // Limits of an authority are not looked at here, so one that has some vouches for nobody.
    let issuer = parsed.issuer().as_raw();
    let mut could = anchors.iter().filter(|anchor| anchor.name == issuer && anchor.trusted.name_constraints.is_none());
    let (message, signature) = (parsed.tbs_certificate.as_ref(), &parsed.signature_value.data);
    match could.any(|anchor| is_signed(&anchor.key, algorithms().all, message, signature)) {
        true => Ok(()),
        false => Err(Unvouched::Refused(webpki::Error::UnknownIssuer)),
    }
}

/// Nothing in it but what says that it may be a client's, or an authority's.
fn is_plain(certificate: &X509Certificate<'_>) -> bool {
    certificate.extensions().iter().all(|extension| match extension.parsed_extension() {
        ParsedExtension::ExtendedKeyUsage(usage) => usage.client_auth || usage.any,
        ParsedExtension::BasicConstraints(_) | ParsedExtension::KeyUsage(_) => true,
        _ => !extension.critical,
    })
}

fn is_signed(key: &[u8], algorithms: &[&dyn SignatureVerificationAlgorithm], message: &[u8], signature: &[u8]) -> bool {
    let key = SubjectPublicKeyInfoDer::from(key);
    let Ok(key) = RawPublicKeyEntity::try_from(&key) else { return false };
    algorithms.iter().any(|algorithm| key.verify_signature(*algorithm, message, signature).is_ok())
}

/// All that we verify signatures with.
pub fn algorithms() -> WebPkiSupportedAlgorithms {
    default_provider().signature_verification_algorithms
}

/// Whether who shows a certificate in a handshake of TLS 1.2 has its key.
pub fn verify_tls12(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let Some(key) = key_of_old(certificate) else {
        return verify_tls12_signature(message, certificate, signed, &algorithms());
    };
    let of_scheme = algorithms().mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
    match of_scheme.is_some_and(|(_, fitting)| is_signed(&key, fitting, message, signed.signature())) {
        true => Ok(HandshakeSignatureValid::assertion()),
        false => Err(CertificateError::BadSignature.into()),
    }
}

/// The same for TLS 1.3.
pub fn verify_tls13(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    match key_of_old(certificate) {
        None => verify_tls13_signature(message, certificate, signed, &algorithms()),
        Some(key) => {
            let key = SubjectPublicKeyInfoDer::from(key);
            verify_tls13_signature_with_raw_key(message, &key, signed, &algorithms())
        }
    }
}

/// The key in a certificate that webpki does not read because of its age.
fn key_of_old(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    if EndEntityCert::try_from(certificate).err()? != webpki::Error::UnsupportedCertVersion {
        return None;
    }
    let (_, parsed) = parse_x509_certificate(certificate).ok()?;
    Some(parsed.public_key().raw.to_vec())
}

/// The name of who holds a certificate, from its beginning.
pub fn subject(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = parse_x509_certificate(certificate).ok()?;
    Some(parsed.subject().as_raw().to_vec())
}

#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
