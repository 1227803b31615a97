//! The certificate that is made here where none is configured: `kubelet.crt` and `kubelet.key`
//! in the certificate directory, where either agent finds what the other has made.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use tracing::{info, warn};

use super::super::reload::{LoadError, Reloading};
use super::certificate;
use crate::clock::Clock;
use crate::host::{Durability, Host};

const CERTIFICATE: &str = "kubelet.crt";
const KEY: &str = "kubelet.key";
/// As upstream's: nobody checks it, because nobody can know it.
const VALID_FOR: Duration = Duration::from_secs(365 * 24 * 3600);
/// Clocks differ.
const VALID_BEFORE: Duration = Duration::from_secs(3600);

/// The certificate that is there, or a new one.
pub async fn ensure(
    host: Arc<dyn Host>,
    dir: &Path,
    host_name: &str,
    provider: &Arc<CryptoProvider>,
    clock: &Clock,
) -> Result<Reloading<CertifiedKey>, LoadError> {
    let (certificate, key) = (dir.join(CERTIFICATE), dir.join(KEY));
    let load = || certificate::load(host.clone(), certificate.clone(), key.clone(), provider.clone());
    match load().await {
        Ok(found) => return Ok(found),
        Err(LoadError::Missing(_)) => info!(dir = %dir.display(), "no serving certificate yet, making one"),
        // A power cut may have left half of it.
        Err(error) => warn!(%error, "serving certificate cannot be used, making a new one"),
    }
    let (certificate_pem, key_pem) =
        make(host_name, clock.wall()).map_err(|error| LoadError::unusable(&certificate, error))?;
    host.make_dir(dir, 0o755).await?;
    // The key first: a certificate without its key would be served by nobody.
    host.write_file(&key, key_pem.as_bytes(), 0o600, Durability::ThroughPowerCut).await?;
    host.write_file(&certificate, certificate_pem.as_bytes(), 0o644, Durability::ThroughPowerCut).await?;
    load().await
}

fn make(host_name: &str, now: Timestamp) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::new([host_name.to_owned()])?;
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, format!("{host_name}@{}", now.as_second()));
    params.distinguished_name = name;
    let now = rcgen::date_time_ymd(1970, 1, 1) + now.duration_since(Timestamp::UNIX_EPOCH).unsigned_abs();
    params.not_before = now - VALID_BEFORE;
    params.not_after = now + VALID_FOR;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}
