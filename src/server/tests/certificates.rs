//! The serving certificate and the client authorities, and what becomes of them when their files
//! change.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Method;
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use tracing_subscriber::layer::SubscriberExt;

use super::house::{Authority, House, NEVER, host, read, request};
use crate::clock::Clock;
use crate::config::TlsVersion;
use crate::server::{CertificateSource, Doors, ServerConfig};

/// Longer than a look at the files lasts.
const STALE: Duration = Duration::from_millis(1100);

async fn served(house: &House) -> CertificateDer<'static> {
    let stream = house.connect(None, b"http/1.1").await;
    stream.get_ref().1.peer_certificates().expect("the server shows one")[0].clone().into_owned()
}

fn replace(house: &House, certificate: &str, key: &str) {
    std::fs::write(house.path("tls.crt"), certificate).expect("the file is ours");
    std::fs::write(house.path("tls.key"), key).expect("the file is ours");
}

#[tokio::test]
async fn a_new_serving_certificate_is_taken_up_and_drops_no_connection() {
    let house = House::open(|_| {}).await;
    let admin = house.admin();
    let stream = house.connect(Some(&admin), b"http/1.1").await;
    let (mut before, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP begins");
    tokio::spawn(connection);
    let first = served(&house).await;

    // Half of a pair serves nobody, and changes nothing.
    let (certificate, key) = house.authority.server();
    std::fs::write(house.path("tls.crt"), &certificate).expect("the file is ours");
    tokio::time::sleep(STALE).await;
    assert_eq!(served(&house).await, first);
    replace(&house, &certificate, &key);
    tokio::time::sleep(STALE).await;
    assert_ne!(served(&house).await, first);
    // What is gone for a while leaves the last one in place.
    std::fs::remove_file(house.path("tls.key")).expect("the file is ours");
    tokio::time::sleep(STALE).await;
    assert_ne!(served(&house).await, first);

    let answer = before.send_request(request(Method::GET, None, "/healthz")).await.expect("it still lives");
    assert_eq!(read(answer).await, (200, "ok".to_owned()));
}

#[tokio::test]
async fn other_client_authorities_count_from_the_next_request() {
    let house = House::open(|_| {}).await;
    let admin = house.admin();
    let stream = house.connect(Some(&admin), b"http/1.1").await;
    let (mut old, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP begins");
    tokio::spawn(connection);
    let other = Authority::new("other");
    let newcomer = other.client("admin", &[], NEVER);
    assert_eq!(house.get(Some(&newcomer), None, "/healthz").await.0, 401);

    std::fs::write(house.path("ca.crt"), other.pem()).expect("the file is ours");
    tokio::time::sleep(STALE).await;
    assert_eq!(house.get(Some(&newcomer), None, "/healthz").await.0, 200);
    // The connection goes on, but whoever is on it is known no more.
    let answer = old.send_request(request(Method::GET, None, "/healthz")).await.expect("it still lives");
    assert_eq!(read(answer).await.0, 401);
}

#[tokio::test]
async fn without_a_client_ca_no_certificate_is_asked_for() {
    let house = House::open(|config| config.tls.client_ca = None).await;
    let admin = house.admin();
    assert_eq!(house.get(Some(&admin), None, "/healthz").await.0, 401);
}

#[tokio::test]
async fn a_certificate_is_made_once_where_none_is_configured() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let certificates = dir.path().join("pki");
    let mut served_by = Vec::new();
    for round in 0..3 {
        if round == 2 {
            std::fs::write(certificates.join("kubelet.key"), "").expect("it is ours");
        }
        let source = CertificateSource::SelfMade { dir: certificates.clone(), host_name: "node-1".into() };
        let house = House::open(|config| config.tls.certificate = source).await;
        assert!(house.address.port() > 0);
        served_by.push(std::fs::read(certificates.join("kubelet.crt")).expect("it was made"));
    }
    assert_eq!(served_by[0], served_by[1]);
    assert_ne!(served_by[1], served_by[2], "a broken one is replaced");
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(certificates.join("kubelet.key")).expect("it was made").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_certificate_that_was_made_here_is_made_anew_before_it_expires() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let source = CertificateSource::SelfMade { dir: dir.path().to_owned(), host_name: "node-1".into() };
    let (old, key) = Authority::new("node-1-ca@1").server_named("node-1@1", Duration::from_secs(24 * 3600));
    std::fs::write(dir.path().join("kubelet.crt"), &old).expect("it is ours");
    std::fs::write(dir.path().join("kubelet.key"), key).expect("it is ours");
    let house = House::open(|config| config.tls.certificate = source.clone()).await;
    assert_ne!(std::fs::read_to_string(dir.path().join("kubelet.crt")).expect("it is there"), old);
    drop(house);

    // One of somebody else's is left alone, whatever its time.
    let (other, key) = Authority::new("other").server_named("edge", Duration::from_secs(24 * 3600));
    std::fs::write(dir.path().join("kubelet.crt"), &other).expect("it is ours");
    std::fs::write(dir.path().join("kubelet.key"), key).expect("it is ours");
    let _house = House::open(|config| config.tls.certificate = source).await;
    assert_eq!(std::fs::read_to_string(dir.path().join("kubelet.crt")).expect("it is there"), other);
}

/// What is logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("nobody panics with it").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_certificate_that_has_expired_is_served_and_told_of_once() {
    let lines = Lines::default();
    let writer = lines.clone();
    let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
    let _logs = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
    let told = || {
        let lines = String::from_utf8_lossy(&lines.0.lock().expect("nobody panics with it")).into_owned();
        lines.matches("serving certificate is out of its time").count()
    };

    let house = House::open(|_| {}).await;
    assert_eq!(told(), 0);
    let (certificate, key) = house.authority.server_until(2001);
    replace(&house, &certificate, &key);
    tokio::time::sleep(STALE).await;
    for _ in 0..2 {
        let refused = house.connect_with(&rustls::version::TLS13).await.expect_err("a client that looks at it refuses");
        assert!(refused.to_string().contains("Expired") || refused.to_string().contains("expired"), "{refused}");
    }
    assert_eq!(told(), 1);
    // At a start too, before anybody calls.
    let mut kept = None;
    let second = House::open(|config| {
        kept = Some(config.clone());
    })
    .await;
    replace(&second, &certificate, &key);
    let config = ServerConfig { main: "127.0.0.1:0".parse().ok(), read_only: None, ..kept.expect("it was configured") };
    Doors::open(config, host(&second.dir), Clock::system()).await.expect("it is served");
    assert_eq!(told(), 2);
}

/// Opens a house whose configuration or files were changed, and gives the error as an operator
/// reads it, with the directory left out.
async fn refused(change: impl FnOnce(&mut ServerConfig, &House)) -> String {
    let mut kept = None;
    let house = House::open(|config| kept = Some(config.clone())).await;
    let mut config = kept.expect("it was configured");
    change(&mut config, &house);
    let error = Doors::open(config, host(&house.dir), Clock::system()).await.err().expect("that cannot be served");
    let text = format!("{:#}", anyhow::Error::from(error));
    text.replace(&house.dir.path().display().to_string(), "DIR")
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_at_the_start() {
    let write = |house: &House, name: &str, text: &str| {
        std::fs::write(house.path(name), text).expect("the temporary directory is writable");
    };
    let text = refused(|_, house| write(house, "tls.crt", "")).await;
    assert_eq!(text, "tlsCertFile and tlsPrivateKeyFile: cannot use DIR/tls.crt: it holds no certificate");
    let text = refused(|_, house| write(house, "tls.key", &house.authority.server().1)).await;
    let expected = "tlsCertFile and tlsPrivateKeyFile: cannot use DIR/tls.key: it is not the key of the certificate in DIR/tls.crt";
    assert!(text.starts_with(expected), "{text}");
    let text = refused(|_, house| std::fs::remove_file(house.path("tls.key")).expect("it is there")).await;
    assert_eq!(text, "tlsCertFile and tlsPrivateKeyFile: DIR/tls.key is missing");
    let text = refused(|_, house| write(house, "ca.crt", "nothing")).await;
    assert_eq!(text, "authentication.x509.clientCAFile: cannot use DIR/ca.crt: it holds no certificate");
    let text = refused(|config, _| config.tls.cipher_suites = vec!["TLS_RSA_WITH_AES_128_CBC_SHA".into()]).await;
    assert_eq!(text, "tlsCipherSuites: none of what it names is offered here: TLS_RSA_WITH_AES_128_CBC_SHA");
}

#[tokio::test]
async fn the_lowest_version_and_the_suites_are_those_configured() {
    let version = async |house: &House| {
        let stream = house.connect(None, b"http/1.1").await;
        stream.get_ref().1.negotiated_cipher_suite().expect("a handshake").suite().as_str()
    };
    let house = House::open(|config| config.tls.min_version = TlsVersion::Tls13).await;
    assert!(version(&house).await.is_some_and(|suite| suite.starts_with("TLS13_")));
    let text = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305";
    let house = House::open(|config| config.tls.cipher_suites = vec![text.into()]).await;
    let old = house.connect_with(&rustls::version::TLS12).await.expect("a handshake of TLS 1.2");
    let suite = old.get_ref().1.negotiated_cipher_suite().expect("a handshake").suite();
    assert_eq!(suite.as_str(), Some("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"));
    let house = House::open(|config| config.tls.min_version = TlsVersion::Tls13).await;
    assert!(house.connect_with(&rustls::version::TLS12).await.is_err());
}
