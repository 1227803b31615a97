//! Client certificates: the user is the common name, the groups are the organizations.

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;

use super::User;
use super::subject::Subject;
use crate::server::tls::ClientAuthorities;

/// Whose certificate this is; nobody's if it names no user.
pub fn holder(
    authorities: &ClientAuthorities,
    chain: &[CertificateDer<'_>],
    now: Timestamp,
) -> Result<Option<User>, String> {
    authorities.vouch_for(chain, now).map_err(|error| error.to_string())?;
    let Some(own) = chain.first() else { return Ok(None) };
    let own = webpki::EndEntityCert::try_from(own).map_err(|error| error.to_string())?;
    let subject = Subject::read(own.subject()).ok_or("its subject cannot be read")?;
    Ok(subject.common_name.map(|name| User { name, groups: subject.organizations, ..User::default() }))
}
