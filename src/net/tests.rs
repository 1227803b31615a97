//! The real network against servers on loopback.

use rcgen::generate_simple_self_signed;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{ServerConfig, SignatureAlgorithm, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// Answers one request with this text and returns what was asked.
async fn serve_once(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8]) -> String {
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await.unwrap_or(0) == 0 {
            break;
        }
        asked.push(byte[0]);
    }
    let _ = stream.write_all(answer).await;
    let _ = stream.shutdown().await;
    String::from_utf8_lossy(&asked).into_owned()
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    (listener, port)
}

fn get(scheme: Scheme, port: u16, headers: &[(&str, &str)]) -> HttpGet {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    HttpGet { scheme, host: "127.0.0.1".into(), port, path: "/live?x=%20".into(), headers }
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

#[tokio::test]
async fn a_get_says_what_it_was_told_to_say_and_no_more() {
    let (listener, port) = listen().await;
    let server = tokio::spawn(async move { serve_once(listener.accept().await.expect("a caller").0, OK).await });
    let request = get(Scheme::Http, port, &[("User-Agent", "kube-probe/1.36"), ("X-Twice", "1"), ("X-Twice", "2")]);
    let answer = MachineNet::new().http_get(&request).await.expect("an answer");
    assert_eq!(answer, HttpAnswer { status: 200, body: b"hi".to_vec(), ..HttpAnswer::default() });
    let asked = server.await.expect("the server is well");
    let expected = format!(
        "GET /live?x=%20 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\nUser-Agent: kube-probe/1.36\r\n\
         X-Twice: 1\r\nX-Twice: 2\r\n\r\n"
    );
    assert_eq!(asked, expected);
}

#[tokio::test]
async fn a_peer_that_vanishes_is_noticed() {
    use nix::sys::socket::getsockopt;
    let (_listener, port) = listen().await;
    let stream = connect(&Names::new(), "127.0.0.1", port).await.expect("a connection");
    assert_eq!(getsockopt(&stream, sockopt::KeepAlive), Ok(true));
    assert_eq!(getsockopt(&stream, sockopt::TcpKeepIdle), Ok(15));
    assert_eq!(getsockopt(&stream, sockopt::TcpKeepInterval), Ok(15));
    assert_eq!(getsockopt(&stream, sockopt::TcpKeepCount), Ok(9));
}

#[tokio::test]
async fn a_host_header_replaces_the_usual_one() {
    let (listener, port) = listen().await;
    let server = tokio::spawn(async move { serve_once(listener.accept().await.expect("a caller").0, OK).await });
    MachineNet::new().http_get(&get(Scheme::Http, port, &[("host", "shop.example")])).await.expect("an answer");
    let asked = server.await.expect("the server is well");
    assert_eq!(asked.matches("ost:").count(), 1, "{asked}");
    assert!(asked.contains("Host: shop.example\r\n"), "{asked}");
}

#[tokio::test]
async fn a_redirect_is_told_and_not_followed() {
    let (listener, port) = listen().await;
    let answer = b"HTTP/1.1 302 Found\r\nLocation: /next\r\nContent-Length: 0\r\n\r\n";
    tokio::spawn(async move { serve_once(listener.accept().await.expect("a caller").0, answer).await });
    let answer = MachineNet::new().http_get(&get(Scheme::Http, port, &[])).await.expect("an answer");
    assert_eq!((answer.status, answer.location.as_deref()), (302, Some("/next")));
}

#[tokio::test]
async fn of_a_long_answer_only_the_beginning_is_read() {
    let (listener, port) = listen().await;
    let mut answer = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    answer.resize(3 << 20, b'x');
    tokio::spawn(async move { serve_once(listener.accept().await.expect("a caller").0, &answer).await });
    let answer = MachineNet::new().http_get(&get(Scheme::Http, port, &[])).await.expect("an answer");
    assert_eq!(answer.body.len(), BODY_BYTES_MAX);
}

#[tokio::test]
async fn a_server_that_hangs_up_or_talks_rubbish_is_an_error() {
    for answer in [&b""[..], b"220 mail.example ESMTP\r\n"] {
        let (listener, port) = listen().await;
        tokio::spawn(async move { serve_once(listener.accept().await.expect("a caller").0, answer).await });
        let error = MachineNet::new().http_get(&get(Scheme::Http, port, &[])).await.expect_err("no HTTP");
        assert!(matches!(error, NetError::Exchange(_)), "{error:?}");
    }
}

fn acceptor(protocols: &[&[u8]]) -> TlsAcceptor {
    let certified = generate_simple_self_signed(vec!["someone.else".into()]).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("a key");
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("default versions")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .expect("a valid pair");
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn any_certificate_is_good_enough() {
    let (listener, port) = listen().await;
    tokio::spawn(async move {
        let stream = listener.accept().await.expect("a caller").0;
        serve_once(acceptor(&[]).accept(stream).await.expect("a handshake"), OK).await
    });
    let answer = MachineNet::new().http_get(&get(Scheme::Https, port, &[])).await.expect("an answer");
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"hi"[..]));
}

/// A key of a kind that our library cannot make, nor check what it signs: it only scribbles.
#[derive(Clone, Copy, Debug)]
struct Scribbler(SignatureScheme);

impl SigningKey for Scribbler {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&self.0).then(|| Box::new(*self) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.0 {
            SignatureScheme::ECDSA_NISTP521_SHA512 => SignatureAlgorithm::ECDSA,
            _ => SignatureAlgorithm::RSA,
        }
    }
}

impl Signer for Scribbler {
    fn sign(&self, _: &[u8]) -> std::result::Result<Vec<u8>, rustls::Error> {
        Ok(b"scribble".to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        self.0
    }
}

#[tokio::test]
async fn a_certificate_that_our_library_cannot_read_and_a_key_it_does_not_know_are_good_enough() {
    use rustls::version::{TLS12, TLS13};
    let version1 = &include_bytes!("testdata/v1.pem")[..];
    let p521 = &include_bytes!("testdata/p521.pem")[..];
    let rsa1024 = &include_bytes!("testdata/rsa1024.pem")[..];
    for (certificate, version, scheme) in [
        (version1, &TLS13, SignatureScheme::RSA_PSS_SHA256),
        (version1, &TLS12, SignatureScheme::RSA_PKCS1_SHA256),
        (p521, &TLS13, SignatureScheme::ECDSA_NISTP521_SHA512),
        (p521, &TLS12, SignatureScheme::ECDSA_NISTP521_SHA512),
        (rsa1024, &TLS13, SignatureScheme::RSA_PSS_SHA256),
        (rsa1024, &TLS12, SignatureScheme::RSA_PKCS1_SHA512),
    ] {
        let chain = vec![CertificateDer::from_pem_slice(certificate).expect("a certificate")];
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[version])
            .expect("a version the provider has")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(
                chain,
                Arc::new(Scribbler(scheme)),
            ))));
        let (listener, port) = listen().await;
        tokio::spawn(async move {
            let stream = listener.accept().await.expect("a caller").0;
            if let Ok(stream) = TlsAcceptor::from(Arc::new(config)).accept(stream).await {
                serve_once(stream, OK).await;
            }
        });
        let answer = MachineNet::new().http_get(&get(Scheme::Https, port, &[])).await;
        let status = answer.map(|answer| answer.status);
        assert_eq!(status, Ok(200), "{scheme:?} in {version:?}");
    }
}

#[tokio::test]
async fn a_server_that_offers_http2_is_spoken_to_in_it() {
    let (listener, port) = listen().await;
    let server = tokio::spawn(async move {
        let stream = listener.accept().await.expect("a caller").0;
        let stream = acceptor(&[b"h2", b"http/1.1"]).accept(stream).await.expect("a handshake");
        let service = hyper::service::service_fn(async |request: ::http::Request<hyper::body::Incoming>| {
            let said = format!("{:?} {}", request.version(), request.uri());
            Ok::<_, std::convert::Infallible>(::http::Response::new(said))
        });
        let executor = hyper_util::rt::TokioExecutor::new();
        let stream = hyper_util::rt::TokioIo::new(stream);
        let _ = hyper::server::conn::http2::Builder::new(executor).serve_connection(stream, service).await;
    });
    let answer = MachineNet::new().http_get(&get(Scheme::Https, port, &[])).await.expect("an answer");
    let body = String::from_utf8(answer.body).expect("text");
    assert_eq!(body, format!("HTTP/2.0 https://127.0.0.1:{port}/live?x=%20"));
    server.abort();
}

#[tokio::test]
async fn what_is_obeyed_comes_from_a_server_that_the_machine_trusts() {
    let (listener, port) = listen().await;
    tokio::spawn(async move {
        let stream = listener.accept().await.expect("a caller").0;
        if let Ok(stream) = acceptor(&[]).accept(stream).await {
            serve_once(stream, OK).await;
        }
    });
    let error = MachineNet::new().fetch(&get(Scheme::Https, port, &[]), 100).await.expect_err("a stranger");
    assert!(matches!(error, NetError::Tls(_)), "{error:?}");
}

#[tokio::test]
async fn a_document_is_fetched_as_far_as_asked_for_with_its_name() {
    let (listener, port) = listen().await;
    let mut answer = b"HTTP/1.1 200 OK\r\nETag: \"v1\"\r\n\r\n".to_vec();
    answer.resize(1 << 20, b'x');
    tokio::spawn(async move { serve_once(listener.accept().await.expect("a caller").0, &answer).await });
    let answer = MachineNet::new().fetch(&get(Scheme::Http, port, &[]), 100_000).await.expect("an answer");
    assert_eq!((answer.body.len(), answer.etag.as_deref()), (100_000, Some("\"v1\"")));
}

#[tokio::test]
async fn plain_http_is_told_from_broken_tls() {
    let (listener, port) = listen().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a caller");
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    });
    let error = MachineNet::new().http_get(&get(Scheme::Https, port, &[])).await.expect_err("no TLS");
    assert_eq!(error, NetError::NotTls);
}

#[tokio::test]
async fn a_port_without_a_listener_refuses() {
    let (listener, port) = listen().await;
    MachineNet::new().tcp_connect("127.0.0.1", port).await.expect("somebody listens");
    drop(listener);
    let error = MachineNet::new().tcp_connect("127.0.0.1", port).await.expect_err("nobody listens");
    assert_eq!(error.to_string(), format!("dial tcp 127.0.0.1:{port}: connect: connection refused"));
}

/// A gRPC server of one answer: the message's bytes, or a status.
async fn health_server(answer: std::result::Result<Vec<u8>, &'static str>) -> u16 {
    use http_body_util::{BodyExt, Full};
    use hyper::body::Bytes;
    let (listener, port) = listen().await;
    tokio::spawn(async move {
        let stream = listener.accept().await.expect("a caller").0;
        let service = hyper::service::service_fn(move |request: ::http::Request<hyper::body::Incoming>| {
            let answer = answer.clone();
            async move {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                assert_eq!(request.headers()["user-agent"], "kube-probe/1.36");
                let asked = request.into_body().collect().await.expect("a request").to_bytes();
                // One field of length-delimited bytes: the service's name.
                assert_eq!(&asked[5..], b"\x0a\x04shop");
                let reply = ::http::Response::builder().header("content-type", "application/grpc");
                let (status, body) = match answer {
                    Ok(message) => {
                        let length = u32::try_from(message.len()).expect("a short message").to_be_bytes();
                        ("0", [&[0], &length[..], &message].concat())
                    }
                    Err(status) => (status, Vec::new()),
                };
                let trailers = async move {
                    let mut trailers = ::http::HeaderMap::new();
                    trailers.insert("grpc-status", ::http::HeaderValue::from_static(status));
                    Some(Ok(trailers))
                };
                let body = Full::new(Bytes::from(body)).with_trailers(trailers);
                Ok::<_, std::convert::Infallible>(reply.body(body.boxed()).expect("a valid response"))
            }
        });
        let executor = hyper_util::rt::TokioExecutor::new();
        let stream = hyper_util::rt::TokioIo::new(stream);
        let _ = hyper::server::conn::http2::Builder::new(executor).serve_connection(stream, service).await;
    });
    port
}

#[tokio::test]
async fn a_health_check_tells_what_the_server_says() {
    let check = async |answer| {
        let port = health_server(answer).await;
        MachineNet::new().grpc_check("127.0.0.1", port, "shop", "kube-probe/1.36").await
    };
    assert_eq!(check(Ok(vec![0x08, 1])).await, Ok(ServingStatus::Serving));
    assert_eq!(check(Ok(vec![0x08, 2])).await, Ok(ServingStatus::NotServing));
    assert_eq!(check(Ok(Vec::new())).await, Ok(ServingStatus::Unknown));
    assert!(matches!(check(Err("12")).await, Err(NetError::Grpc(GrpcFailure::Unimplemented(_)))));
    assert!(matches!(check(Err("5")).await, Err(NetError::Grpc(GrpcFailure::Other(_)))));
}

/// The network of somebody whose environment names this machine's `port` as the proxy of all.
fn behind_proxy(port: u16) -> MachineNet {
    let proxy = format!("http://me:pass@127.0.0.1:{port}");
    MachineNet::with_proxies(Proxies::of(|name| ["HTTP_PROXY", "HTTPS_PROXY"].contains(&name).then(|| proxy.clone())))
}

fn of_example(scheme: Scheme) -> HttpGet {
    HttpGet { host: "pods.example".into(), ..get(scheme, 5480, &[]) }
}

#[tokio::test]
async fn a_document_is_fetched_through_the_proxy_of_the_environment() {
    let (listener, port) = listen().await;
    let proxy = tokio::spawn(async move { serve_once(listener.accept().await.expect("a caller").0, OK).await });
    let answer = behind_proxy(port).fetch(&of_example(Scheme::Http), 100).await.expect("an answer");
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"hi"[..]));
    let asked = proxy.await.expect("the proxy is well");
    assert!(asked.starts_with("GET http://pods.example:5480/live?x=%20 HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains("Host: pods.example:5480\r\n"), "{asked}");
    assert!(asked.contains("Proxy-Authorization: Basic bWU6cGFzcw==\r\n"), "{asked}");
}

#[tokio::test]
async fn through_a_proxy_too_the_server_itself_proves_who_it_is() {
    let (listener, port) = listen().await;
    let proxy = tokio::spawn(async move {
        let mut stream = listener.accept().await.expect("a caller").0;
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            asked.push(stream.read_u8().await.expect("a head"));
        }
        stream.write_all(b"HTTP/1.1 200 Connection established\r\nVia: us\r\n\r\n").await.expect("it listens");
        // From here on it is the server, and a stranger.
        let greeted = acceptor(&[]).accept(stream).await.map(drop).map_err(|error| error.to_string());
        (String::from_utf8(asked).expect("text"), greeted)
    });
    let error = behind_proxy(port).fetch(&of_example(Scheme::Https), 100).await.expect_err("a stranger");
    assert!(matches!(error, NetError::Tls(_)), "{error:?}");
    let (asked, greeted) = proxy.await.expect("the proxy is well");
    let authorization = "Proxy-Authorization: Basic bWU6cGFzcw==";
    assert_eq!(
        asked,
        format!("CONNECT pods.example:5480 HTTP/1.1\r\nHost: pods.example:5480\r\n{authorization}\r\n\r\n")
    );
    assert!(greeted.is_err(), "{greeted:?}");
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named() {
    let (listener, port) = listen().await;
    let answer = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
    tokio::spawn(async move { serve_once(listener.accept().await.expect("a caller").0, answer).await });
    let error = behind_proxy(port).fetch(&of_example(Scheme::Https), 100).await.expect_err("a refusal");
    assert_eq!(error.to_string(), format!("proxy 127.0.0.1:{port}: 407 Proxy Authentication Required"));
}

#[tokio::test]
async fn pods_are_asked_past_any_proxy() {
    let (listener, port) = listen().await;
    let error = behind_proxy(port).http_get(&of_example(Scheme::Http)).await.expect_err("no such host");
    assert!(error.to_string().starts_with("dial tcp pods.example:5480"), "{error}");
    drop(listener);
}
