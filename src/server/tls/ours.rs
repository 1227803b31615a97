//! Whose certificate and key are where ours are made. What an operator has put there is the
//! operator's, also while only half of it is there or it cannot be used.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use tracing::warn;
use x509_parser::parse_x509_certificate;

use super::super::reload::{FILE_BYTES_MAX, LoadError};
use super::certificate::{certificates, pair};
use crate::host::Host;

/// Whether an agent has made this certificate for this host.
pub fn is_ours(certificate: &CertificateDer<'_>, host_name: &str) -> bool {
    let Ok((_, parsed)) = parse_x509_certificate(certificate) else { return false };
    let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    name.is_some_and(|name| name.strip_prefix(host_name).is_some_and(|rest| rest.starts_with('@')))
}

/// Sees to it that new files may be written over these two: only what was made here is lost. With an
/// error, which says what is wrong with them, nothing has changed.
pub async fn make_way(
    host: &dyn Host,
    (certificate_path, key_path): (&Path, &Path),
    host_name: &str,
    provider: &CryptoProvider,
    now: Timestamp,
) -> Result<(), LoadError> {
    let certificate = content(host, certificate_path).await?;
    let key = content(host, key_path).await?;
    if let Some(certificate) = certificate {
        let fault = match &key {
            None => Some(LoadError::Missing(key_path.to_owned())),
            Some(key) => pair((certificate_path, &certificate), (key_path, key), provider).err(),
        };
        // What is none at all is nothing of ours either: our files are whole or not there.
        let chain = certificates(certificate_path, &certificate)?;
        if !is_ours(&chain[0], host_name) {
            let fault = fault.map(|fault| format!(": {fault}")).unwrap_or_default();
            return Err(LoadError::unusable(certificate_path, format!("it was not made here, and stays{fault}")));
        }
        if fault.is_none() {
            return Ok(());
        }
    }
    // One whose certificate was not written any more, or the first half of what somebody brings.
    match key {
        Some(_) => set_aside(host, key_path, now).await,
        None => Ok(()),
    }
}

/// Of a file that holds anything.
async fn content(host: &dyn Host, path: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    let content = host.read_file(path, FILE_BYTES_MAX).await?;
    Ok(content.filter(|content| !content.trim_ascii().is_empty()))
}

async fn set_aside(host: &dyn Host, path: &Path, now: Timestamp) -> Result<(), LoadError> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", now.as_second()));
    let aside = PathBuf::from(name);
    if !host.rename_new(path, &aside).await? {
        return Err(LoadError::unusable(path, format!("its certificate is not there, and {} is", aside.display())));
    }
    warn!(key = %path.display(), kept_as = %aside.display(), "a key without its certificate makes way for a new pair");
    Ok(())
}
