//! Certificates as the decisions need them, read from PEM.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use ring::digest::{SHA256, digest};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::parse_x509_certificate;

use crate::authorities::Authorities;

/// Why a file holds no certificate that could be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBundle {
    #[error("it is empty")]
    Empty,
    #[error("it holds no certificate")]
    NoCertificate,
    #[error("it holds no private key")]
    NoKey,
    #[error("its certificate cannot be read")]
    Unreadable,
    #[error("its key is not that of its certificate")]
    WrongKey,
    #[error("its key cannot be used: {0}")]
    BadKey(String),
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq)]
pub struct Certificate {
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub common_name: String,
    pub names: BTreeSet<String>,
    pub addresses: BTreeSet<IpAddr>,
    pub issuer: Issuer,
    pub digest: [u8; 32],
}

/// Who signed a certificate. All clusters that kubeadm made have authorities of one name, so that
/// its key says more; some do not name it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Issuer {
    pub name: Vec<u8>,
    pub key_id: Option<Vec<u8>>,
}

/// A certificate with the chain above it and its key, as they lie in one file.
#[derive(Clone, Debug)]
pub struct Bundle {
    pub leaf: Certificate,
    pub key: Arc<CertifiedKey>,
}

impl Certificate {
    /// The first certificate in a PEM file.
    pub fn from_pem(pem: &[u8]) -> Result<Certificate, BadBundle> {
        if pem.trim_ascii().is_empty() {
            return Err(BadBundle::Empty);
        }
        match CertificateDer::pem_slice_iter(pem).next() {
            Some(Ok(der)) => Certificate::from_der(&der),
            Some(Err(_)) => Err(BadBundle::Unreadable),
            None => Err(BadBundle::NoCertificate),
        }
    }

    fn from_der(der: &[u8]) -> Result<Certificate, BadBundle> {
        let (_, parsed) = parse_x509_certificate(der).map_err(|_| BadBundle::Unreadable)?;
        // RFC 5280 has a time for "without end", which is later than any our clock knows.
        let last = Timestamp::MAX.as_second();
        let time = |seconds: i64| Timestamp::from_second(seconds.min(last)).map_err(|_| BadBundle::Unreadable);
        let validity = parsed.validity();
        let common_name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        let alternatives = parsed.subject_alternative_name().ok().flatten();
        for name in alternatives.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::DNSName(name) => drop(names.insert((*name).to_owned())),
                GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                _ => {}
            }
        }
        Ok(Certificate {
            not_before: time(validity.not_before.timestamp())?,
            not_after: time(validity.not_after.timestamp())?,
            common_name: common_name.unwrap_or_default().to_owned(),
            names,
            addresses,
            issuer: Issuer { name: parsed.issuer().as_raw().to_vec(), key_id: key_id_of_issuer(&parsed) },
            digest: digest(&SHA256, der).as_ref().try_into().expect("SHA-256 has 32 bytes"),
        })
    }

    /// When its successor is to be asked for: after 70 to 90 % of its life, as upstream. Where
    /// between is drawn from the certificate itself, so that nodes which joined together differ
    /// and a restart draws nothing anew.
    pub fn renew_at(&self) -> Timestamp {
        let drawn = u32::from_be_bytes(self.digest[..4].try_into().expect("four bytes are four bytes"));
        let part = 0.7 + 0.2 * (f64::from(drawn) / f64::from(u32::MAX));
        let life = self.not_after.duration_since(self.not_before).max(SignedDuration::ZERO);
        self.not_before + SignedDuration::from_millis((life.as_secs_f64() * 1000.0 * part) as i64)
    }
}

impl Bundle {
    /// Certificates and one key, in any order, as they are in `kubelet-client-current.pem`.
    pub fn parse(pem: &[u8]) -> Result<Bundle, BadBundle> {
        let leaf = Certificate::from_pem(pem)?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let chain = chain.map_err(|_| BadBundle::Unreadable)?;
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| BadBundle::NoKey)?;
        match CertifiedKey::from_der(chain, key, &default_provider()) {
            Ok(key) => Ok(Bundle { leaf, key: Arc::new(key) }),
            Err(rustls::Error::InconsistentKeys(_)) => Err(BadBundle::WrongKey),
            Err(error) => Err(BadBundle::BadKey(error.to_string())),
        }
    }

    /// Whether one of these authorities has issued it, at whatever time.
    pub fn is_issued_by(&self, authorities_pem: &[u8]) -> bool {
        let mut found = CertificateDer::pem_slice_iter(authorities_pem).flatten();
        // One that cannot be used takes nothing from the others.
        found.any(|one| {
            Authorities::of(&[one]).is_ok_and(|authority| authority.have_signed(&self.key.cert, self.leaf.not_before))
        })
    }
}

fn key_id_of_issuer(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(issuer) => Some(issuer.key_identifier.as_ref()?.0.to_vec()),
        _ => None,
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        _ => None,
    }
}
