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
use super::ours::{is_ours, make_way};
use super::validity::Notice;
use crate::clock::Clock;
use crate::clock::build::{built, is_impossible};
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

/// The certificate that is there, or a new one.
pub struct SelfMade {
    files: Reloading<CertifiedKey>,
    host: Arc<dyn Host>,
    clock: Clock,
    place: Place,
    /// Of one that an operator has put there.
    notice: Notice,
    /// When it was last found due. One after the other sees to it, and not again at once.
    tried: Mutex<Option<Instant>>,
}

/// Where the two files are, and for whom.
struct Place {
    dir: PathBuf,
    host_name: String,
    provider: Arc<CryptoProvider>,
}

impl SelfMade {
    pub async fn open(
        host: Arc<dyn Host>,
        dir: &Path,
        host_name: &str,
        provider: &Arc<CryptoProvider>,
        clock: &Clock,
    ) -> Result<Self, LoadError> {
        let place = Place { dir: dir.to_owned(), host_name: host_name.to_owned(), provider: provider.clone() };
        let files = match place.load(&host).await {
            Ok(found) => found,
            // A disk that does not answer says nothing of what is on it.
            Err(LoadError::Host(error)) if error.is_silence() => return Err(error.into()),
            Err(error) => {
                match &error {
                    LoadError::Missing(_) => info!(dir = %dir.display(), "no serving certificate yet, making one"),
                    error => warn!(%error, "serving certificate cannot be used, making a new one"),
                }
                place.make_anew(&*host, clock.wall()).await?;
                place.load(&host).await?
            }
        };
        let (clock, notice) = (clock.clone(), Notice::default());
        Ok(SelfMade { files, host, clock, place, notice, tried: Mutex::default() })
    }

    pub fn follow(&self) -> watch::Receiver<Arc<CertifiedKey>> {
        self.files.follow()
    }

    /// To be called before a connection begins.
    pub async fn look(&self) {
        let (served, now) = (self.files.current().await, self.clock.wall());
        if !is_due(&served, &self.place.host_name, now) {
            self.notice.look(&served, now);
            return;
        }
        let Ok(mut tried) = self.tried.try_lock() else { return };
        if tried.is_some_and(|tried| tried.elapsed() < TRY_AGAIN) {
            return;
        }
        *tried = Some(Instant::now());
        match self.place.make_anew(&*self.host, now).await {
            Ok(()) => {
                info!(dir = %self.place.dir.display(), "serving certificate is made anew for the time that it is now");
                // For the connection that waits: the old one may be good for nobody.
                self.files.look_now().await;
            }
            Err(error) => warn!(%error, "serving certificate is not made anew, will retry"),
        }
    }
}

impl Place {
    fn files(&self) -> [PathBuf; 2] {
        [CERTIFICATE, KEY].map(|name| self.dir.join(name))
    }

    async fn load(&self, host: &Arc<dyn Host>) -> Result<Reloading<CertifiedKey>, LoadError> {
        let [certificate, key] = self.files();
        certificate::load(host.clone(), certificate, key, self.provider.clone()).await
    }

    /// Writes both, unless what is there is somebody else's.
    async fn make_anew(&self, host: &dyn Host, now: Timestamp) -> Result<(), LoadError> {
        let [certificate_path, key_path] = self.files();
        let made = make(&self.host_name, now).map_err(|error| LoadError::unusable(&certificate_path, error));
        let (certificate, key) = made?;
        make_way(host, (&certificate_path, &key_path), &self.host_name, &self.provider, now).await?;
        host.make_dir(&self.dir, 0o755).await?;
        // The key first: a certificate without its key would be served by nobody.
        host.write_file(&key_path, key.as_bytes(), 0o600, Durability::ThroughPowerCut).await?;
        let written =
            host.write_file(&certificate_path, certificate.as_bytes(), 0o644, Durability::ThroughPowerCut).await;
        if written.is_err() {
            // Else the next try would set it aside as one whose owner is not known.
            let _ = host.remove_file(&key_path).await;
        }
        Ok(written?)
    }
}

/// Whether it is one that an agent has made for this host, and near its end, or made by a clock that
/// was ahead: that one would be good for nobody until it is due. What an operator has put in its
/// place is the operator's.
fn is_due(served: &CertifiedKey, host_name: &str, now: Timestamp) -> bool {
    let Some(own) = served.cert.first().filter(|own| is_ours(own, host_name)) else { return false };
    let Ok((_, parsed)) = parse_x509_certificate(own) else { return false };
    let is_near_its_end = parsed.validity().not_after.timestamp() < (now + RENEW_BEFORE).as_second();
    // A board without a clock of its own starts in the past, and makes nothing anew for that.
    let is_early = parsed.validity().not_before.timestamp() > now.as_second() && !is_impossible(now, built());
    is_near_its_end || is_early
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
    const NOW: i64 = 1_795_000_000;

    fn now() -> Timestamp {
        Timestamp::from_second(NOW).expect("a time")
    }

    /// What becomes of files that were there: an error, and the names in the directory afterwards.
    async fn opened(files: &[(&str, &str)]) -> (tempfile::TempDir, Result<SelfMade, String>, Vec<String>) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).expect("it is ours");
        }
        let (result, names) = open_in(dir.path()).await;
        (dir, result, names)
    }

    async fn open_in(dir: &Path) -> (Result<SelfMade, String>, Vec<String>) {
        let roots = crate::host::Roots::machine(dir.to_owned());
        let host = crate::host::LinuxHost::new(roots, Duration::from_secs(10), Clock::system());
        let clock = Clock::simulated(now(), 1);
        let made = SelfMade::open(Arc::new(host), dir, "node-1", &Arc::new(default_provider()), &clock).await;
        let made = made.map_err(|error| error.to_string().replace(&dir.display().to_string(), "DIR"));
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .expect("it is there")
            .map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        (made, names)
    }

    fn read(dir: &tempfile::TempDir, name: &str) -> String {
        std::fs::read_to_string(dir.path().join(name)).expect("it is there")
    }

    #[tokio::test]
    async fn a_key_that_an_operator_has_put_there_is_never_lost() {
        let aside = format!("kubelet.key.{NOW}");
        let (dir, made, names) = opened(&[("kubelet.key", "the operator's")]).await;
        assert!(made.is_ok());
        assert_eq!(names, ["kubelet.crt", "kubelet.key", aside.as_str()]);
        assert_eq!(read(&dir, &aside), "the operator's");

        // Beside a certificate of ours too.
        let (ours, _) = make("node-1", now()).expect("it can be made");
        let (dir, made, names) = opened(&[("kubelet.crt", &ours), ("kubelet.key", "the operator's")]).await;
        assert!(made.is_ok());
        assert_eq!(names, ["kubelet.crt", "kubelet.key", aside.as_str()]);
        assert_eq!(read(&dir, &aside), "the operator's");
    }

    #[tokio::test]
    async fn a_pair_of_an_operator_that_cannot_be_used_stays_and_is_an_error_that_names_it() {
        let (other, _) = make("www.example.org", now()).expect("it can be made");
        let (_, wrong) = make("www.example.org", now()).expect("it can be made");
        for (files, expected) in [
            (
                vec![("kubelet.crt", &*other)],
                "cannot use DIR/kubelet.crt: it was not made here, and stays: DIR/kubelet.key is missing",
            ),
            (
                vec![("kubelet.crt", &other), ("kubelet.key", &wrong)],
                "cannot use DIR/kubelet.crt: it was not made here, and stays: cannot use DIR/kubelet.key: it is not the key",
            ),
        ] {
            let (dir, made, names) = opened(&files).await;
            let error = made.err().expect("it cannot be used");
            assert!(error.starts_with(expected), "{error}");
            assert_eq!(names.len(), files.len(), "{names:?}");
            for (name, content) in files {
                assert_eq!(read(&dir, name), content, "{name}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_certificate_at_all_is_set_aside_with_its_key() {
        let files = [("kubelet.crt", "\0\0\0\0"), ("kubelet.key", "of whoever")];
        let (dir, made, names) = opened(&files).await;
        assert!(made.is_ok());
        let aside = |name: &str| format!("{name}.{}", now().as_second());
        assert_eq!(names, ["kubelet.crt", &aside("kubelet.crt"), "kubelet.key", &aside("kubelet.key")]);
        for (name, content) in files {
            assert_eq!(read(&dir, &aside(name)), content);
        }
    }

    #[tokio::test]
    async fn a_certificate_that_cannot_be_read_is_not_taken_for_one_that_is_broken() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("kubelet.crt")).expect("it is ours");
        std::fs::write(dir.path().join("kubelet.key"), "the operator's").expect("it is ours");
        let (made, names) = open_in(dir.path()).await;
        assert!(made.is_err());
        assert_eq!(names, ["kubelet.crt", "kubelet.key"]);
        assert_eq!(read(&dir, "kubelet.key"), "the operator's");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_made_anew_is_served_to_the_connection_that_waited() {
        let (dir, made, _) = opened(&[]).await;
        let made = made.expect("it can be made");
        let before = made.follow().borrow().clone();
        made.clock.step_wall(jiff::SignedDuration::from_hours(24 * 350));
        made.look().await;
        let after = made.follow().borrow().clone();
        assert!(before.cert != after.cert);
        let pem = read(&dir, "kubelet.crt");
        assert_eq!(after.cert[0], CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate"));
        // What was made here and fits makes way without a trace.
        assert_eq!(std::fs::read_dir(dir.path()).expect("it is there").count(), 2);
    }
}
