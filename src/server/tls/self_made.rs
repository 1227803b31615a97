//! The certificate that is made here where none is configured: `kubelet.crt` and `kubelet.key`
//! in the certificate directory, where either agent finds what the other has made.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tracing::{info, warn};
use x509_parser::parse_x509_certificate;

use super::super::reload::{LoadError, Reloading};
use super::certificate;
use super::validity::Notice;
use crate::clock::Clock;
use crate::host::{Durability, Host};

const CERTIFICATE: &str = "kubelet.crt";
const KEY: &str = "kubelet.key";
/// As upstream's: nobody checks it, because nobody can know it.
const VALID_FOR: Duration = Duration::from_secs(365 * 24 * 3600);
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Where the disk is full, say. What there is serves on.
const TRY_AGAIN: Duration = Duration::from_secs(60);
/// Clocks differ.
const VALID_BEFORE: Duration = Duration::from_secs(3600);
const BUILD_CLOCK_DIFFERS: Duration = Duration::from_secs(24 * 3600);

/// The certificate that is there, or a new one.
pub struct SelfMade {
    files: Reloading<CertifiedKey>,
    host: Arc<dyn Host>,
    clock: Clock,
    dir: PathBuf,
    host_name: String,
    /// Of one that an operator has put there.
    notice: Notice,
    /// When it was last found due. One after the other sees to it, and not again at once.
    tried: Mutex<Option<Instant>>,
}

impl SelfMade {
    pub async fn open(
        host: Arc<dyn Host>,
        dir: &Path,
        host_name: &str,
        provider: &Arc<CryptoProvider>,
        clock: &Clock,
    ) -> Result<Self, LoadError> {
        let load = || certificate::load(host.clone(), dir.join(CERTIFICATE), dir.join(KEY), provider.clone());
        let files = match load().await {
            Ok(found) => found,
            Err(error) => {
                match &error {
                    LoadError::Missing(_) => info!(dir = %dir.display(), "no serving certificate yet, making one"),
                    // A power cut may have left half of it.
                    error => warn!(%error, "serving certificate cannot be used, making a new one"),
                }
                write(&*host, dir, host_name, clock.wall()).await?;
                load().await?
            }
        };
        let (dir, host_name, clock) = (dir.to_owned(), host_name.to_owned(), clock.clone());
        let notice = Notice::default();
        Ok(SelfMade { files, host, clock, dir, host_name, notice, tried: Mutex::default() })
    }

    pub fn follow(&self) -> watch::Receiver<Arc<CertifiedKey>> {
        self.files.follow()
    }

    /// To be called before a connection begins.
    pub async fn look(&self) {
        let (served, now) = (self.files.current().await, self.clock.wall());
        if !is_due(&served, &self.host_name, now) {
            self.notice.look(&served, now);
            return;
        }
        let Ok(mut tried) = self.tried.try_lock() else { return };
        if tried.is_some_and(|tried| tried.elapsed() < TRY_AGAIN) {
            return;
        }
        *tried = Some(Instant::now());
        match write(&*self.host, &self.dir, &self.host_name, now).await {
            Ok(()) => info!(dir = %self.dir.display(), "serving certificate is made anew for the time that it is now"),
            Err(error) => warn!(%error, "serving certificate is not made anew, will retry"),
        }
        self.files.current().await;
    }
}

/// Whether it is one that an agent has made for this host, and near its end, or made by a clock that
/// was ahead: that one would be good for nobody until it is due. What an operator has put in its
/// place is the operator's.
fn is_due(served: &CertifiedKey, host_name: &str, now: Timestamp) -> bool {
    let Some(Ok((_, parsed))) = served.cert.first().map(|own| parse_x509_certificate(own)) else { return false };
    let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    let is_ours = name.is_some_and(|name| name.strip_prefix(host_name).is_some_and(|rest| rest.starts_with('@')));
    let is_near_its_end = parsed.validity().not_after.timestamp() < (now + RENEW_BEFORE).as_second();
    // A board without a clock of its own starts in the past, and makes nothing anew for that.
    let is_early = parsed.validity().not_before.timestamp() > now.as_second() && now + BUILD_CLOCK_DIFFERS >= built();
    is_ours && (is_near_its_end || is_early)
}

/// When this program was built. It never runs before that.
fn built() -> Timestamp {
    let seconds = env!("FERROLET_BUILT_SECONDS").parse().expect("the build script writes a number");
    Timestamp::from_second(seconds).expect("builds happen in years that have a name")
}

async fn write(host: &dyn Host, dir: &Path, host_name: &str, now: Timestamp) -> Result<(), LoadError> {
    let made = make(host_name, now).map_err(|error| LoadError::unusable(&dir.join(CERTIFICATE), error));
    let (certificate, key) = made?;
    host.make_dir(dir, 0o755).await?;
    // The key first: a certificate without its key would be served by nobody.
    host.write_file(&dir.join(KEY), key.as_bytes(), 0o600, Durability::ThroughPowerCut).await?;
    host.write_file(&dir.join(CERTIFICATE), certificate.as_bytes(), 0o644, Durability::ThroughPowerCut).await?;
    Ok(())
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

#[cfg(test)]
mod tests {
    use rustls::crypto::ring::default_provider;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    use super::*;

    fn served(host_name: &str, made_at: Timestamp) -> CertifiedKey {
        let (certificate, key) = make(host_name, made_at).expect("it can be made");
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
        CertifiedKey::from_der(vec![certificate], key, &default_provider()).expect("they fit")
    }

    #[test]
    fn what_an_agent_has_made_is_made_anew_in_its_last_month() {
        let now: Timestamp = "2026-11-22T08:00:00Z".parse().expect("a time");
        let day = Duration::from_secs(24 * 3600);
        for (name, age, expected) in [
            ("node-1", 0, false),
            ("node-1", 334, false),
            ("node-1", 336, true),
            ("node-1", 1000, true),
            ("node-10", 336, false),
            ("www.example.org", 336, false),
        ] {
            assert_eq!(is_due(&served(name, now - age * day), "node-1", now), expected, "{name} {age}");
        }
    }

    #[test]
    fn what_a_clock_that_was_ahead_has_made_is_made_anew_once_it_is_right() {
        let (right, day) = (built() + Duration::from_secs(3600), Duration::from_secs(24 * 3600));
        let ahead = served("node-1", right + 1000 * day);
        assert!(is_due(&ahead, "node-1", right));
        assert!(!is_due(&served("node-10", right + 1000 * day), "node-1", right));
        // Not by one that is wrong now.
        let long_ago = built() - 1000 * day;
        assert!(!is_due(&served("node-1", right), "node-1", long_ago));
        // Nor by one that differs a little.
        assert!(!is_due(&served("node-1", right + VALID_BEFORE), "node-1", right));
    }
}
