//! Commands whose output is the answer.

use super::*;
use crate::cri::testing::{container, running};

/// A request to run `query` in a container that runs, and what the runtime is asked.
async fn run(query: &str, says: impl Fn(&str) -> cri::Result<String> + Send + Sync + 'static) -> (u16, String, String) {
    let runtime = Told::new(says);
    let streaming = Streaming::within(runtime.clone(), LIMITS);
    let held = PodRuntime { containers: vec![container("main", 0, running())], ..PodRuntime::default() };
    let answer = streaming.run("main", &Query::of(query), &held).await;
    let response = answer.unwrap_or_else(|refusal| refusal.into_response());
    let kind = response.headers()[http::header::CONTENT_TYPE].to_str().expect("text").to_owned();
    assert!(kind.starts_with("text/plain"), "{kind}");
    (response.status().as_u16(), body_of(response).await, runtime.calls().join("; "))
}

#[tokio::test]
async fn a_command_is_split_at_single_blanks_and_its_output_is_the_answer() {
    let (status, body, calls) = run("cmd=ls%20-l++/tmp", |_| Ok("0 a\nb\n".into())).await;
    assert_eq!((status, body.as_str()), (200, "a\nb\n"));
    assert_eq!(calls, r#"run ["ls", "-l", "", "/tmp"] in main-0 within Some(14400s)"#);
    let (status, body, _) = run("cmd=true", |_| Ok("0 ".into())).await;
    assert_eq!((status, body.as_str()), (200, ""));
}

#[tokio::test]
async fn what_goes_wrong_is_told() {
    let (status, body, _) = run("cmd=false+x", |_| Ok("3 no".into())).await;
    assert_eq!((status, body.as_str()), (500, "command 'false x' exited with 3: no"));
    let (status, body, _) = run("cmd=sleep", |_| Ok("late".into())).await;
    assert_eq!((status, body.as_str()), (500, "command 'sleep' still ran after 14400s"));
    let (status, body, calls) = run("", |_| Ok("0 ".into())).await;
    assert_eq!((status, body.as_str(), calls.as_str()), (400, "cmd is missing in the query", ""));
    let gone = |_: &str| Err(CriError::NotFound { call: "ExecSync", message: "no such container".into() });
    let (status, body, _) = run("cmd=ls", gone).await;
    assert_eq!((status, body.as_str()), (404, "no such container"));
}

#[tokio::test]
async fn no_more_output_is_passed_on_than_upstream_takes() {
    let max = 16 << 20;
    let (status, body, _) = run("cmd=cat", move |_| Ok(format!("0 {}", "x".repeat(max)))).await;
    assert_eq!((status, body.len()), (200, max));
    let (status, body, _) = run("cmd=cat", move |_| Ok(format!("0 {}", "x".repeat(max + 1)))).await;
    let words = "command 'cat' wrote 16777217 bytes, at most 16777216 are passed on";
    assert_eq!((status, body.as_str()), (500, words));
    let (status, body, _) = run("cmd=cat", move |_| Ok(format!("1 {}", "x".repeat(max)))).await;
    assert!(status == 500 && body.len() < 11 << 10, "{status} with {} bytes", body.len());
}

#[tokio::test]
async fn an_output_that_nobody_takes_counts_until_it_goes() {
    let streaming = Streaming::within(Told::new(|_| Ok("0 much".into())), LIMITS);
    let held = PodRuntime { containers: vec![container("main", 0, running())], ..PodRuntime::default() };
    let untaken = streaming.run("main", &Query::of("cmd=ls"), &held).await.expect("it ends well");
    assert_eq!(streaming.runs.available_permits(), RUNS_MAX - 1);
    drop(untaken);
    assert_eq!(streaming.runs.available_permits(), RUNS_MAX);
}

#[tokio::test]
async fn commands_that_never_end_do_not_pile_up() {
    let streaming = Streaming::within(Told::new(|_| Ok("0 ".into())), LIMITS);
    let held = PodRuntime { containers: vec![container("main", 0, running())], ..PodRuntime::default() };
    let query = Query::of("cmd=ls");
    let busy = streaming.runs.acquire_many(RUNS_MAX as u32).await.expect("nobody closes the semaphore");
    let refusal = streaming.run("main", &query, &held).await.expect_err("all are busy");
    assert_eq!(refusal.into_response().status().as_u16(), 429);
    drop(busy);
    assert!(streaming.run("main", &query, &held).await.is_ok());
    let gone = streaming.run("other", &query, &held).await.expect_err("there is none");
    assert_eq!(gone.to_string(), "container not found (\"other\")");
}
