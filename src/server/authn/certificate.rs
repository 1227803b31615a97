//! Client certificates: the user is the common name, the groups are the organizations.

use std::fmt::Write;

use jiff::Timestamp;
use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;

use super::User;
use super::subject::Subject;
use crate::authorities::{self, Authorities};

/// By this authorizers and audits know one credential of a user from another.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Whose certificate this is; nobody's if it names no user.
pub fn holder(authorities: &Authorities, chain: &[CertificateDer<'_>], now: Timestamp) -> Result<Option<User>, String> {
    authorities.vouch_for(chain, now).map_err(|error| error.to_string())?;
    let Some(own) = chain.first() else { return Ok(None) };
    let name = authorities::subject(own).and_then(|name| Subject::read(&name));
    let subject = name.ok_or("its subject cannot be read")?;
    Ok(subject.common_name.map(|name| User {
        name,
        groups: subject.organizations,
        uid: subject.uid,
        extra: [(CREDENTIAL_ID.to_owned(), vec![credential_id(own)])].into(),
    }))
}

fn credential_id(certificate: &CertificateDer<'_>) -> String {
    let mut id = "X509SHA256=".to_owned();
    for byte in digest(&SHA256, certificate).as_ref() {
        let _ = write!(id, "{byte:02x}");
    }
    id
}
