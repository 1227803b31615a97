//! What the streaming server is asked, and the many ways in which it may answer.

use super::*;

#[tokio::test]
async fn the_server_gets_the_clients_upgrade_without_its_credentials() {
    let bed = Bed::new(LIMITS).await;
    let _client = bed.client(SPDY).await;
    let (_server, head) = bed.accept().await;
    let address = bed.server.local_addr().expect("an address");
    assert!(head.starts_with("POST /exec/token?a=b HTTP/1.1\r\n"), "{head}");
    for line in [
        &format!("Host: {address}"),
        "Connection: Upgrade",
        "Upgrade: SPDY/3.1",
        "X-Stream-Protocol-Version: v4.channel.k8s.io",
        "X-Stream-Protocol-Version: v3.channel.k8s.io",
    ] {
        assert_eq!(head.matches(&format!("\r\n{line}\r\n")).count(), 1, "{line} in {head}");
    }
    assert!(!head.to_lowercase().contains("authorization"), "{head}");
}

#[tokio::test]
async fn a_websocket_is_led_on_with_all_protocols_it_offers_but_a_token() {
    let bed = Bed::new(LIMITS).await;
    let request = "GET /any HTTP/1.1\r\nHost: node\r\nConnection: keep-alive, upgrade\r\nUpgrade: WebSocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
        Sec-WebSocket-Protocol: v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.aHVzaA\r\n\
        Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n";
    let mut client = bed.client(request).await;
    let (mut server, head) = bed.accept().await;
    assert!(head.starts_with("GET /exec/token?a=b HTTP/1.1\r\n"), "{head}");
    let head = head.to_lowercase();
    assert!(!head.contains("bearer"), "a credential is not passed on: {head}");
    for line in [
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-protocol: v5.channel.k8s.io, v4.channel.k8s.io",
        "sec-websocket-key: aaaaaaaaaaaaaaaaaaaaaa==",
    ] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
    }
    server.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n").await;
    server.send("Sec-WebSocket-Accept: it\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\nframe").await;
    let head = client.head().await.to_lowercase();
    assert!(head.contains("\r\nsec-websocket-accept: it\r\nsec-websocket-protocol: v4.channel.k8s.io\r\n"), "{head}");
    assert_eq!(client.read(5).await, "frame");
}

/// What a client is told when the streaming server answers so and hangs up.
async fn check(answer: &str, status: &str, body: &str) -> String {
    let bed = Bed::new(LIMITS).await;
    let mut client = bed.client(SPDY).await;
    let (mut server, _) = bed.accept().await;
    server.send(answer).await;
    drop(server);
    let (head, told) = client.answer().await;
    assert!(head.starts_with(&format!("http/1.1 {status} ")), "{answer:?} became {head}");
    assert!(told.contains(body), "{answer:?} became {told}");
    assert!(told.len() <= 17 << 10, "{answer:?} became {} bytes", told.len());
    bed.all_is_free().await;
    head
}

#[tokio::test]
async fn a_refusal_is_passed_on() {
    let ours = "the container runtime refused the upgrade: 403 Forbidden";
    // As Go's WebSocket server does it for protocols that it does not speak.
    check("HTTP/1.1 403 Forbidden\r\n\r\n", "403", ours).await;
    let head = check(
        "HTTP/1.1 403 Forbidden\r\nContent-Type: text/x\r\nContent-Length: 4\r\nConnection: close\r\n\
         X-Accepted-Stream-Protocol-Versions: v4.channel.k8s.io\r\n\
         X-Accepted-Stream-Protocol-Versions: v3.channel.k8s.io\r\n\r\nnone",
        "403",
        "none",
    )
    .await;
    assert_eq!(head.matches("\r\nx-accepted-stream-protocol-versions: v").count(), 2, "{head}");
    assert_eq!(head.matches("content-type: text/x").count(), 1, "{head}");
    assert_eq!(head.matches("\r\ncontent-type").count(), 1, "{head}");
    check("HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngone\r\n0\r\n\r\n", "404", "gone").await;
    check(&format!("HTTP/1.1 500 Oh\r\n\r\n{}", "x".repeat(60_000)), "500", "xxx").await;
}

#[tokio::test]
async fn what_is_neither_an_upgrade_nor_a_refusal_is_an_error() {
    let odd = "neither an upgrade to SPDY/3.1 nor an error";
    check("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "500", odd).await;
    let head =
        check("HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n", "500", odd).await;
    assert!(!head.contains("elsewhere"), "{head}");
    check("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", "500", odd).await;
    check("HTTP/1.1 101 Switching Protocols\r\n\r\n", "500", odd).await;
    check("\u{1}\u{2}garbage of no protocol\r\n\r\n", "500", "hung up or answered no HTTP").await;
    check("HTTP/1.1 101", "500", "hung up or answered no HTTP").await;
    check("", "500", "hung up or answered no HTTP").await;
    check(&format!("HTTP/1.1 101 S\r\nx: {}\r\n\r\n", "x".repeat(60_000)), "500", "hung up or answered").await;
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    for said in ["", "HTTP/1.1 101 Switch", "HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\nhalf"] {
        let bed = Bed::new(Limits { answer: Duration::from_millis(200), ..LIMITS }).await;
        let mut client = bed.client(SPDY).await;
        let (mut server, _) = bed.accept().await;
        // The agent may have left already on a busy machine.
        let _ = server.0.write_all(said.as_bytes()).await;
        let (head, body) = client.answer().await;
        assert!(head.starts_with("http/1.1 500 ") && body.contains("did not answer within 200ms"), "{said}: {body}");
        assert_eq!(server.rest().await, "", "its connection is closed");
        bed.all_is_free().await;
    }
}

/// What a client is told when the runtime says this of where to go.
async fn refused(says: impl Fn(&str) -> cri::Result<String> + Send + Sync + 'static) -> (String, String) {
    let bed = Bed::saying(says).await;
    let answer = bed.client(SPDY).await.answer().await;
    bed.all_is_free().await;
    answer
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let nobody = format!("http://{}/", listener.local_addr().expect("an address"));
    drop(listener);
    let url = nobody.clone();
    let (head, body) = refused(move |_| Ok(url.clone())).await;
    assert!(head.starts_with("http/1.1 500 ") && body.contains(&nobody) && body.contains("refused"), "{body}");
    let (_, body) = refused(|_| Ok("https://127.0.0.1:1/exec/t".into())).await;
    assert!(body.contains("TLS is not supported") && body.contains("https://127.0.0.1:1/exec/t"), "{body}");
}

#[tokio::test]
async fn errors_of_the_runtime_have_upstreams_statuses() {
    let message = || "words".to_owned();
    let (head, body) = refused(move |_| Err(CriError::NotFound { call: "Exec", message: message() })).await;
    assert!(head.starts_with("http/1.1 404 ") && body == "words", "{head}{body}");
    let (head, _) = refused(move |_| Err(CriError::Exhausted { call: "Exec", message: message() })).await;
    assert!(head.starts_with("http/1.1 429 ") && head.contains("\r\nretry-after: 60\r\n"), "{head}");
    let (head, body) = refused(move |_| Err(CriError::Failed { call: "Exec", message: message() })).await;
    assert!(head.starts_with("http/1.1 500 ") && body == "words", "{head}{body}");
    assert!(head.contains("\r\ncontent-type: text/plain"), "{head}");
    let (head, body) = refused(move |_| Err(CriError::Unimplemented { call: "Exec" })).await;
    assert!(head.starts_with("http/1.1 500 ") && body.contains("not implemented by this runtime"), "{head}{body}");
}

#[tokio::test]
async fn who_wants_no_upgrade_costs_the_runtime_nothing() {
    let bed = Bed::saying(|call| panic!("{call}")).await;
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: SPDY/3.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 1\r\n\r\na",
    ] {
        let (head, body) = bed.client(request).await.answer().await;
        assert!(head.starts_with("http/1.1 400 ") && body.contains("upgrade"), "{request}: {head}{body}");
    }
}
