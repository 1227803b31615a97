//! Streams while they live, and how they end.

use super::*;

#[tokio::test]
async fn bytes_go_both_ways_also_those_right_behind_the_switch() {
    let bed = Bed::new(LIMITS).await;
    let mut client = bed.client(&format!("{SPDY}early")).await;
    let (mut server, _) = bed.accept().await;
    server.send(&format!("{SWITCHED}welcome")).await;
    let head = client.head().await.to_lowercase();
    assert!(head.starts_with("http/1.1 101 ") && head.contains("\r\nupgrade: spdy/3.1\r\n"), "{head}");
    assert!(head.contains("\r\nx-stream-protocol-version: v4.channel.k8s.io\r\n"), "{head}");
    assert_eq!(client.read(7).await, "welcome");
    assert_eq!(server.read(5).await, "early");
    let much = "x".repeat(1 << 20);
    let (_, read) = tokio::join!(client.send(&much), server.read(much.len()));
    assert_eq!(read, much);
    let (_, read) = tokio::join!(server.send(&much), client.read(much.len()));
    assert_eq!(read, much);
    drop(client);
    assert_eq!(server.rest().await, "");
    drop(server);
    bed.all_is_free().await;
}

#[tokio::test]
async fn who_has_ended_its_half_still_gets_the_other() {
    let bed = Bed::new(LIMITS).await;
    let (mut client, mut server) = bed.stream().await;
    client.send("last words").await;
    client.end_half().await;
    assert_eq!(server.rest().await, "last words");
    server.send("answer to them").await;
    drop(server);
    assert_eq!(client.rest().await, "answer to them");
    drop(client);
    bed.all_is_free().await;
}

#[tokio::test]
async fn a_client_that_dies_takes_its_stream_along() {
    let bed = Bed::new(LIMITS).await;
    let (client, mut server) = bed.stream().await;
    drop(client);
    assert_eq!(server.rest().await, "");
    drop(server);
    bed.all_is_free().await;
}

#[tokio::test]
async fn a_runtime_that_dies_takes_its_streams_along() {
    let bed = Bed::new(LIMITS).await;
    let (mut client, mut server) = bed.stream().await;
    server.send("that was all").await;
    drop(server);
    assert_eq!(client.rest().await, "that was all");
    drop(client);
    bed.all_is_free().await;
}

#[tokio::test]
async fn a_client_that_dies_before_the_answer_is_forgotten_and_its_connection_closed() {
    let bed = Bed::new(LIMITS).await;
    let client = bed.client(SPDY).await;
    let (mut server, _) = bed.accept().await;
    drop(client);
    assert_eq!(server.rest().await, "");
    bed.all_is_free().await;
}

#[tokio::test]
async fn a_stream_on_which_nothing_moves_is_closed_on_both_sides() {
    let idle = Duration::from_millis(50);
    let bed = Bed::new(Limits { idle, ..LIMITS }).await;
    let (mut client, mut server) = bed.stream().await;
    assert_eq!((client.rest().await.as_str(), server.rest().await.as_str()), ("", ""));
    bed.all_is_free().await;
}

#[tokio::test]
async fn a_hundred_at_once_do_not_mix() {
    let bed = Bed::new(LIMITS).await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(bed.stream().await);
    }
    for (number, (client, server)) in streams.iter_mut().enumerate() {
        client.send(&format!("question {number:03}")).await;
        server.send(&format!("answer {number:03}")).await;
    }
    for (number, (client, server)) in streams.iter_mut().enumerate().rev() {
        assert_eq!(server.read(12).await, format!("question {number:03}"));
        assert_eq!(client.read(10).await, format!("answer {number:03}"));
    }
    drop(streams);
    bed.all_is_free().await;
}

#[tokio::test]
async fn no_more_than_the_most_exist_and_one_that_ends_makes_room() {
    let bed = Bed::new(Limits { streams: 3, ..LIMITS }).await;
    let first = bed.stream().await;
    let _others = (bed.stream().await, bed.stream().await);
    let (head, body) = bed.client(SPDY).await.answer().await;
    assert!(head.starts_with("http/1.1 429 ") && head.contains("\r\nretry-after: 60\r\n"), "{head}");
    assert_eq!(body, "3 streams are open on this node, which is the most there may be");
    drop(first);
    let room = timeout(PATIENCE, bed.streaming.streams.acquire()).await;
    drop(room.expect("the first has ended").expect("nobody closes the semaphore"));
    bed.stream().await;
}

#[test]
fn no_idle_limit_is_one_that_nobody_lives_to_see() {
    let idle = |configured| Streaming::new(Told::new(|_| Ok(String::new())), configured).limits.idle;
    assert_eq!(idle(Duration::ZERO), IDLE_MAX);
    assert_eq!(idle(Duration::MAX), IDLE_MAX);
    assert_eq!(idle(Duration::from_secs(60)), Duration::from_secs(60));
}
