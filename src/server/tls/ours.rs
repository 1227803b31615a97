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
    let certificate = content(host, certificate_path, now).await?;
    let key = content(host, key_path, now).await?;
    if let Some(certificate) = certificate {
        let fault = match &key {
            None => Some(LoadError::Missing(key_path.to_owned())),
            Some(key) => pair((certificate_path, &certificate), (key_path, key), provider).err(),
        };
        let Ok(chain) = certificates(certificate_path, &certificate) else {
            // None at all: a power cut, or a disk that forgets.
            set_aside(host, certificate_path, now).await?;
            return if key.is_some() { set_aside(host, key_path, now).await } else { Ok(()) };
        };
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
async fn content(host: &dyn Host, path: &Path, now: Timestamp) -> Result<Option<Vec<u8>>, LoadError> {
    match host.read_file(path, FILE_BYTES_MAX).await {
        Ok(content) => Ok(content.filter(|content| !content.trim_ascii().is_empty())),
        Err(error) if error.is_silence() => Err(error.into()),
        // Its name can be given to another though its content is lost.
        Err(_) => set_aside(host, path, now).await.map(|()| None),
    }
}

async fn set_aside(host: &dyn Host, path: &Path, now: Timestamp) -> Result<(), LoadError> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", now.as_second()));
    let aside = PathBuf::from(name);
    if !host.rename_new(path, &aside).await? {
        return Err(LoadError::unusable(path, format!("it is of no use, and {} is there", aside.display())));
    }
    warn!(file = %path.display(), kept_as = %aside.display(), "of no use for serving, makes way for a new pair");
    Ok(())
}
