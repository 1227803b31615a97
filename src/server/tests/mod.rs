mod callers;
mod certificates;
mod desk;
mod house;
mod limits;
mod served;
mod streams;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{Health, Progress, respond, run};
use crate::clock::Clock;

fn failing(text: &'static str) -> super::Check {
    Box::new(move || Err(text.to_owned()))
}

#[track_caller]
fn check(health: &Health, target: &str, status: u16, body: &str) {
    let request = Request::builder().uri(target).body(()).expect("a request");
    let response = respond(&request, health);
    assert_eq!((response.status().as_u16(), response.body().as_str()), (status, body), "{target}");
}

#[test]
fn a_healthy_agent_says_ok() {
    let health = Health::new().vital("syncloop", Box::new(|| Ok(())));
    check(&health, "/healthz", 200, "ok");
    check(&health, "/healthz/", 200, "ok");
    check(&health, "/healthz?verbose", 200, "[+]ping ok\n[+]syncloop ok\nhealthz check passed\n");
    check(&health, "/healthz?verbose=true&exclude=syncloop", 200, "[+]ping ok\nhealthz check passed\n");
    check(&health, "/healthz/syncloop", 200, "ok");
    check(&health, "/healthz/other", 404, "404 page not found\n");
    check(&health, "/metrics", 404, "404 page not found\n");
}

#[test]
fn a_loop_that_stands_still_is_told() {
    let health = Health::new().vital("syncloop", failing("no turn"));
    let text = "[+]ping ok\n[-]syncloop failed: reason withheld\nhealthz check failed\n";
    check(&health, "/healthz", 500, text);
    check(&health, "/healthz?exclude=syncloop", 200, "ok");
    check(&health, "/healthz/syncloop", 500, "internal server error: no turn\n");
}

#[test]
fn a_check_that_is_only_shown_fails_nothing() {
    let health = Health::new().shown("pleg", failing("runtime is down"));
    check(&health, "/healthz", 200, "ok");
    check(&health, "/healthz?verbose", 200, "[+]ping ok\n[-]pleg failed: reason withheld\nhealthz check passed\n");
    check(&health, "/healthz/pleg", 500, "internal server error: runtime is down\n");
}

#[tokio::test(start_paused = true)]
async fn progress_counts_from_the_last_turn() {
    let progress = Progress::new(Clock::simulated(Timestamp::UNIX_EPOCH, 1));
    let check = progress.check(Duration::from_secs(300));
    tokio::time::advance(Duration::from_secs(300)).await;
    assert_eq!(check(), Ok(()));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(check(), Err("no turn for 301 s, limit is 300 s".to_owned()));
    progress.turned();
    assert_eq!(check(), Ok(()));
}

async fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    listener.local_addr().expect("an address")
}

async fn connect(address: SocketAddr) -> TcpStream {
    for _ in 0..500 {
        if let Ok(stream) = TcpStream::connect(address).await {
            return stream;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nobody listens on {address}");
}

async fn get(address: SocketAddr) -> String {
    let mut stream = connect(address).await;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: node\r\n\r\n").await.expect("a request sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

#[tokio::test]
async fn a_request_is_answered_over_the_wire() {
    let address = free_address().await;
    let server = tokio::spawn(run(address, Arc::new(Health::new())));
    let answer = get(address).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
    server.abort();
}

#[tokio::test]
async fn a_thousand_idle_clients_keep_nobody_waiting() {
    let address = free_address().await;
    let server = tokio::spawn(run(address, Arc::new(Health::new())));
    let mut idle = Vec::new();
    for _ in 0..1000 {
        idle.push(connect(address).await);
    }
    let answer = timeout(Duration::from_secs(2), get(address)).await.expect("an answer in spite of them");
    assert!(answer.ends_with("ok"), "{answer}");
    // They are sent away when their time is over.
    let mut byte = [0];
    let left = timeout(Duration::from_secs(10), idle[0].read(&mut byte)).await;
    assert!(matches!(left, Ok(Ok(0) | Err(_))), "{left:?}");
    server.abort();
}

#[tokio::test]
async fn hundreds_of_clients_that_begin_and_say_no_more_keep_nobody_waiting() {
    let address = free_address().await;
    let server = tokio::spawn(run(address, Arc::new(Health::new())));
    let mut slow = Vec::new();
    for _ in 0..300 {
        let mut stream = connect(address).await;
        // The oldest of them are sent away again meanwhile.
        let _ = stream.write_all(b"G").await;
        slow.push(stream);
    }
    let answer = timeout(Duration::from_secs(4), get(address)).await.expect("an answer in spite of them");
    assert!(answer.ends_with("ok"), "{answer}");
    server.abort();
}

#[tokio::test]
async fn a_request_that_never_ends_is_given_up() {
    let address = free_address().await;
    let server = tokio::spawn(run(address, Arc::new(Health::new())));
    let mut slow = connect(address).await;
    slow.write_all(b"GET /healthz HTTP/1.1\r\nhost:").await.expect("half a request sent");
    let mut rest = Vec::new();
    let end = timeout(Duration::from_secs(10), slow.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "the connection stays open");
    server.abort();
}

#[tokio::test]
async fn a_port_that_is_taken_is_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn(run(address, Arc::new(Health::new())));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!server.is_finished());
    drop(listener);
    let answer =
        timeout(Duration::from_secs(10), async { get(address).await }).await.expect("the server took the port");
    assert!(answer.ends_with("ok"), "{answer}");
    server.abort();
}
