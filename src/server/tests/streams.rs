//! Streams through the whole house: TLS, who calls, whether they may, and on to the runtime.

use std::time::Duration;

use http::Method;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::house::House;
use crate::cri::testing::{container, running};
use crate::metrics;

const PATIENCE: Duration = Duration::from_secs(30);
const EXEC: &str = "POST /exec/shop/web/main?command=cat&command=-u&input=1&output=1 HTTP/1.1\r\nHost: node\r\n\
    Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n";
const ATTACH: &str = "GET /attach/shop/web/main?output=1 HTTP/1.1\r\nHost: node\r\n\
    Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";

async fn read_until(from: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let byte = timeout(PATIENCE, from.read_u8()).await.expect("the other side writes").expect("so much of it");
        text.push(char::from(byte));
    }
    text
}

/// Both ends of a stream that an admin asks for, before the runtime has answered: the client's and
/// the runtime's, which serves it at this path.
async fn begun(house: &House, request: &str, path: &str) -> (TlsStream<TcpStream>, TcpStream) {
    let admin = house.admin();
    house.cluster.grant("admin", "create", "proxy");
    house.runtime.hold(container("main", 0, running()));
    let server = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}{path}", server.local_addr().expect("an address"));
    house.runtime.stream_at(url.parse().expect("a URL"));
    let mut client = house.connect(Some(&admin), b"http/1.1").await;
    client.write_all(request.as_bytes()).await.expect("the house reads");
    let accepted = timeout(PATIENCE, server.accept()).await.expect("the agent comes");
    let (runtime, _) = accepted.expect("a connection");
    (client, runtime)
}

#[tokio::test]
async fn a_command_is_talked_with_over_tls() {
    let house = House::open(|_| {}).await;
    let (mut client, mut runtime) = begun(&house, EXEC, "/exec/token").await;
    assert!(read_until(&mut runtime, "\r\n\r\n").await.starts_with("POST /exec/token HTTP/1.1\r\n"));
    assert_eq!(house.runtime.calls(), ["Exec cat -u in main-0"]);
    runtime.write_all(format!("{SWITCHED}welcome.").as_bytes()).await.expect("the agent reads");
    let told = read_until(&mut client, "welcome.").await;
    assert!(told.starts_with("HTTP/1.1 101 "), "{told}");
    client.write_all(b"question.").await.expect("the stream is open");
    client.flush().await.expect("the stream is open");
    assert_eq!(read_until(&mut runtime, ".").await, "question.");
    drop(client);
    let mut rest = Vec::new();
    let ended = timeout(PATIENCE, runtime.read_to_end(&mut rest)).await;
    assert!(matches!(ended.expect("it is closed"), Ok(0)), "{rest:?}");
}

#[tokio::test]
async fn a_stream_counts_as_under_way_for_as_long_as_it_is_open() {
    // No other test attaches.
    const COUNTED: metrics::http::Labels = ["GET", "attach", "readwrite", "true"];
    let house = House::open(|_| {}).await;
    let (mut client, mut runtime) = begun(&house, ATTACH, "/attach/token").await;
    read_until(&mut runtime, "\r\n\r\n").await;
    runtime.write_all(format!("{SWITCHED}welcome.").as_bytes()).await.expect("the agent reads");
    read_until(&mut client, "welcome.").await;
    // The answer was taken, as what came after it shows.
    assert_eq!(metrics::http::in_flight(COUNTED), 1.0);
}

#[tokio::test]
async fn what_is_not_here_is_said_in_upstreams_words() {
    let house = House::open(|_| {}).await;
    let admin = house.admin();
    house.cluster.grant("admin", "create", "proxy");
    let check = async |path: &str, status: u16, words: &str| {
        let answer = house.ask(Method::POST, Some(&admin), None, path).await;
        assert_eq!(answer, (status, words.to_owned()), "{path}");
    };
    check("/exec/shop/other/main?command=ls&output=1", 404, "pod does not exist").await;
    check("/portForward/shop/other", 404, "pod does not exist").await;
    check("/portForward/shop/web/u", 404, "pod not found").await;
    check("/run/shop/web/main?cmd=ls", 500, "container not found (\"main\")").await;
    check("/exec/shop/web", 404, "404 page not found\n").await;
    check("/exec/shop/web/main?command=ls&output=1", 400, "upgrade request required: SPDY/3.1 or websocket").await;
}
