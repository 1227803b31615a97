//! Bad clients, and that the others notice nothing of them.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::Method;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::house::{House, Identity, read, request};
use crate::server::guests::STRANGER_IDLE_LIMIT;

/// Much longer than an answer takes: a machine may be busy, and these tests are about being
/// answered at all.
const WITHIN: Duration = Duration::from_secs(30);

/// Less than anybody may be idle: what ends by then does not end by that.
const AT_ONCE: Duration = Duration::from_secs(STRANGER_IDLE_LIMIT.as_secs() / 2);

/// Both ends of the crowd are in this process.
fn allow_many_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(16_384), hard).expect("up to the hard limit it may be raised");
}

async fn is_healthy(house: &House, admin: &Identity) {
    let answer = timeout(WITHIN, house.get(Some(admin), None, "/healthz")).await;
    assert_eq!(answer.expect("an answer in spite of the crowd"), (200, "ok".to_owned()));
}

/// Speaks HTTP/2, with one connection for all its clones.
async fn http2(house: &House, who: &Identity) -> SendRequest<Empty<Bytes>> {
    let stream = TokioIo::new(house.connect(Some(who), b"h2").await);
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.expect("HTTP begins");
    tokio::spawn(connection);
    sender
}

/// Connects, and says so much.
async fn begin(house: &House, words: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(house.address).await.expect("a connection");
    // It may have been sent away already.
    let _ = stream.write_all(words).await;
    stream
}

#[tokio::test]
async fn a_thousand_idle_and_a_thousand_slow_clients_keep_nobody_waiting() {
    allow_many_files();
    let house = House::open(|_| {}).await;
    let admin = house.admin();
    // Somebody who is known before they come.
    let stream = house.connect(Some(&admin), b"http/1.1").await;
    let (mut known, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP begins");
    tokio::spawn(connection);
    let answer = known.send_request(request(Method::GET, None, "/healthz")).await.expect("an answer");
    assert_eq!(read(answer).await.0, 200);

    let mut crowd = Vec::new();
    for _ in 0..1000 {
        crowd.push(begin(&house, b"").await);
        // The beginning of a ClientHello.
        crowd.push(begin(&house, &[0x16, 0x03, 0x01, 0x02]).await);
    }
    is_healthy(&house, &admin).await;
    // Slow with their requests, once they have shown who they are not.
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut stream = house.connect(None, b"http/1.1").await;
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nhost:").await;
        slow.push(stream);
    }
    is_healthy(&house, &admin).await;
    let answer = known.send_request(request(Method::GET, None, "/healthz")).await.expect("it was not sent away");
    assert_eq!(read(answer).await.0, 200);
    // The oldest of the crowd had to go.
    let mut byte = [0];
    let gone = timeout(WITHIN, crowd[0].read(&mut byte)).await.expect("it hears of it");
    assert!(matches!(gone, Ok(0) | Err(_)), "{gone:?}");
}

#[tokio::test]
async fn what_is_no_request_ends_its_connection() {
    let house = House::open(|_| {}).await;
    let admin = house.admin();
    let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(100 * 1024));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(1000));
    for words in ["\0\0\0\0\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", &long, &many] {
        let mut stream = house.connect(None, b"http/1.1").await;
        let _ = stream.write_all(words.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = timeout(AT_ONCE, stream.read_to_end(&mut answer)).await.expect("the connection ends");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    // And what is not even TLS.
    let mut plain = begin(&house, b"GET / HTTP/1.1\r\nhost: node\r\n\r\n").await;
    let _ = timeout(AT_ONCE, plain.read_to_end(&mut Vec::new())).await.expect("the connection ends");
    is_healthy(&house, &admin).await;
}

#[tokio::test]
async fn a_huge_body_is_not_read() {
    let house = House::open(|_| {}).await;
    let admin = house.admin();
    house.cluster.grant("admin", "create", "pods");
    let mut stream = house.connect(Some(&admin), b"http/1.1").await;
    let head = format!("POST /pods HTTP/1.1\r\nhost: node\r\ncontent-length: {}\r\n\r\n", 64 << 20);
    stream.write_all(head.as_bytes()).await.expect("the head is taken");
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sender = tokio::spawn(async move {
        let part = [0; 64 * 1024];
        let mut sent = 0;
        while sent < 64 << 20 && writer.write_all(&part).await.is_ok() {
            sent += part.len();
        }
        sent
    });
    let mut answer = [0; 12];
    timeout(WITHIN, reader.read_exact(&mut answer)).await.expect("an answer").expect("an answer before the end");
    assert_eq!(&answer, b"HTTP/1.1 405");
    let _ = timeout(WITHIN, reader.read_to_end(&mut Vec::new())).await.expect("the connection ends");
    assert!(sender.await.expect("it ends") < 64 << 20);
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("a short one").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), content].concat()
}

#[tokio::test]
async fn a_flood_of_resets_ends_its_connection_and_disturbs_nobody() {
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    const ENHANCE_YOUR_CALM: u8 = 11;
    let house = House::open(|_| {}).await;
    let admin = house.admin();
    let mut stream = house.connect(Some(&admin), b"h2").await;
    let mut flood = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(SETTINGS, 0, 0, &[])[..]].concat();
    for number in 0..1000 {
        let id = 2 * number + 1;
        // GET https://node/, all of it and no body; then no longer wanted.
        flood.extend(frame(HEADERS, 0x05, id, b"\x82\x87\x84\x41\x04node"));
        flood.extend(frame(RST_STREAM, 0, id, &8_u32.to_be_bytes()));
    }
    // It may be sent away before it has said all.
    let _ = stream.write_all(&flood).await;
    let mut answer = Vec::new();
    let _ = timeout(WITHIN, stream.read_to_end(&mut answer)).await.expect("the connection ends");
    let calm = frame(GOAWAY, 0, 0, &[]);
    let goaway = answer.windows(9).position(|bytes| bytes[3..] == calm[3..]);
    let code = goaway.and_then(|at| answer.get(at + 9 + 7));
    assert!(matches!(code, None | Some(&ENHANCE_YOUR_CALM)), "{answer:?}");
    is_healthy(&house, &admin).await;
}

#[tokio::test]
async fn resets_now_and_then_are_nothing_bad() {
    let house = House::open(|_| {}).await;
    let admin = house.admin();
    let mut sender = http2(&house, &admin).await;
    for _ in 0..10 {
        sender.ready().await.expect("the connection is there");
        // Dropped before it is answered, which resets its stream.
        let answer = sender.send_request(request(Method::GET, None, "https://node/healthz"));
        let _ = timeout(Duration::ZERO, answer).await;
    }
    let answer = sender.send_request(request(Method::GET, None, "https://node/healthz")).await;
    assert_eq!(read(answer.expect("the connection is there")).await.0, 200);
}

#[tokio::test]
async fn many_requests_share_a_connection() {
    let house = House::open(|_| {}).await;
    let admin = house.admin();
    let sender = http2(&house, &admin).await;
    let answers = (0..200).map(|_| {
        let mut sender = sender.clone();
        async move {
            read(sender.send_request(request(Method::GET, None, "https://node/pods")).await.expect("an answer")).await.0
        }
    });
    let answers = timeout(WITHIN, futures::future::join_all(answers)).await.expect("all are answered");
    assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
    // All of them at once asked one question.
    assert_eq!(house.cluster.call_names().len(), 1);
}

#[tokio::test]
async fn readers_that_stall_keep_nobody_from_the_statistics() {
    let house = House::open(|_| {}).await;
    let admin = house.admin();
    let stream = TokioIo::new(house.connect(Some(&admin), b"h2").await);
    let mut begun = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    // It lets nothing of an answer come but its head.
    let (sender, connection) = begun.initial_stream_window_size(0).handshake(stream).await.expect("HTTP begins");
    tokio::spawn(connection);
    let mut stalled: FuturesUnordered<_> = (0..20)
        .map(|_| {
            let mut sender = sender.clone();
            async move { sender.send_request(request(Method::GET, None, "https://node/metrics")).await }
        })
        .collect();
    // They have all the turns that they can have.
    let mut held = Vec::new();
    while held.len() < 4 {
        let answer = timeout(WITHIN, stalled.next()).await.expect("some are answered");
        held.push(answer.expect("there are as many").expect("the head of an answer"));
    }
    for path in ["/metrics", "/metrics/probes", "/metrics/slis"] {
        let (status, page) = timeout(WITHIN, house.get(Some(&admin), None, path)).await.expect("an answer");
        assert_eq!(status, 200, "{path}: {page}");
    }
}
