//! What is done and told at the desk: checkpoints, flags, the state, the verbosity of the log.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::{HeaderMap, Method, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::house::{House, read, request};
use crate::clock::Clock;
use crate::cri::testing::{container, running};
use crate::server::Verbosity;

async fn checkpoint(house: &House, path: &str) -> (u16, String) {
    house.ask(Method::POST, Some(&house.admin()), None, path).await
}

#[tokio::test]
async fn a_checkpoint_is_written_where_upstream_writes_it() {
    let house = House::open(|_| {}).await;
    house.cluster.grant("admin", "create", "checkpoint");
    house.runtime.hold(container("main", 0, running()));
    let (status, body) = checkpoint(&house, "/checkpoint/shop/web/main?timeout=20").await;
    assert_eq!(status, 200, "{body}");
    let answer: Value = serde_json::from_str(&body).expect("JSON");
    let [file] = answer["items"].as_array().expect("items").as_slice() else { panic!("{answer}") };
    let file = file.as_str().expect("a path");
    let dir = house.path("checkpoints");
    assert!(file.starts_with(&format!("{}/checkpoint-web_shop-main-20", dir.display())), "{file}");
    assert!(file.ends_with(".tar"), "{file}");
    assert_eq!(house.runtime.calls(), [format!("CheckpointContainer main-0 to {file} within 20s")]);
    let mode = std::fs::metadata(dir).expect("it was made").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_says_why() {
    let house = House::open(|_| {}).await;
    house.cluster.grant("admin", "create", "checkpoint");
    let check = async |path: &str, status: u16, words: &str| {
        assert_eq!(checkpoint(&house, path).await, (status, words.to_owned()), "{path}");
    };
    check("/checkpoint/shop/other/main", 404, "pod does not exist").await;
    check("/checkpoint/shop/web/other", 404, "container other does not exist").await;
    check("/checkpoint/shop/web", 404, "404 page not found\n").await;
    check("/checkpoint/shop/web/main?timeout=soon", 400, "cannot parse value of timeout parameter").await;
    let words = "checkpointing of shop/web/main failed (container main not found)";
    check("/checkpoint/shop/web/main", 500, words).await;
}

#[tokio::test]
async fn a_runtime_that_cannot_says_so_in_its_own_words() {
    let house = House::open(|_| {}).await;
    house.cluster.grant("admin", "create", "checkpoint");
    house.runtime.hold(container("main", 0, running()));
    house.runtime.refuse("CheckpointContainer", "criu is missing");
    let words = "checkpointing of shop/web/main failed (criu is missing)".to_owned();
    assert_eq!(checkpoint(&house, "/checkpoint/shop/web/main").await, (500, words));
}

#[tokio::test]
async fn what_a_gate_turns_off_is_not_there() {
    let house = House::open(|config| {
        config.checkpoints = None;
        (config.flagz, config.statusz) = (false, false);
    })
    .await;
    let admin = house.admin();
    house.cluster.grant("admin", "create", "checkpoint");
    house.cluster.grant("admin", "get", "statusz");
    let nothing = (404, "404 page not found\n".to_owned());
    assert_eq!(checkpoint(&house, "/checkpoint/shop/web/main").await, nothing);
    assert_eq!(house.get(Some(&admin), None, "/flagz").await, nothing);
    assert_eq!(house.get(Some(&admin), None, "/statusz").await, nothing);
}

/// Status, headers and body of a page in the form that is asked for.
async fn page(house: &House, path: &str, accept: &str) -> (u16, HeaderMap, String) {
    house.cluster.grant("admin", "get", "statusz");
    let stream = house.connect(Some(&house.admin()), b"http/1.1").await;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP begins");
    tokio::spawn(connection);
    let mut asked = request(Method::GET, None, path);
    asked.headers_mut().insert(header::ACCEPT, accept.parse().expect("a header"));
    let answer = sender.send_request(asked).await.expect("an answer");
    let headers = answer.headers().clone();
    let (status, body) = read(answer).await;
    (status, headers, body)
}

#[tokio::test]
async fn flags_are_told_in_the_form_that_is_asked_for() {
    let house = House::open(|_| {}).await;
    let (status, headers, text) = page(&house, "/flagz", "*/*").await;
    assert_eq!(
        (status, &headers[header::CONTENT_TYPE]),
        (200, &"text/plain; charset=utf-8".parse().expect("a header"))
    );
    assert!(text.starts_with("\nkubelet flagz\nWarning: "), "{text}");
    assert!(text.ends_with("\nconfig=/etc/config.yaml\n"), "{text}");

    let asked = "application/json;g=config.k8s.io;v=v1beta1;as=Flagz";
    let (status, headers, body) = page(&house, "/flagz", asked).await;
    assert_eq!((status, &headers[header::CONTENT_TYPE]), (200, &asked.parse().expect("a header")));
    assert!(!headers.contains_key(header::WARNING));
    let expected = json!({
        "kind": "Flagz", "apiVersion": "config.k8s.io/v1beta1", "metadata": { "name": "kubelet" },
        "flags": { "config": "/etc/config.yaml" },
    });
    assert_eq!(serde_json::from_str::<Value>(&body).expect("JSON"), expected);

    let (_, headers, body) = page(&house, "/flagz", "application/yaml;g=config.k8s.io;v=v1alpha1;as=Flagz").await;
    assert!(headers.contains_key(header::WARNING), "{headers:?}");
    let yaml: Value = serde_saphyr::from_str(&body).expect("YAML");
    assert_eq!((&yaml["apiVersion"], &yaml["flags"]), (&json!("config.k8s.io/v1alpha1"), &expected["flags"]));

    let (status, _, body) = page(&house, "/flagz", "application/json").await;
    assert_eq!(status, 406);
    assert_eq!(serde_json::from_str::<Value>(&body).expect("JSON")["reason"], "NotAcceptable");
}

#[tokio::test]
async fn the_state_is_told_in_the_form_that_is_asked_for() {
    let house = House::open(|_| {}).await;
    let (status, _, text) = page(&house, "/statusz", "text/plain").await;
    assert_eq!(status, 200);
    for line in ["\nkubelet statusz\n", "\nUp: 0 hr 00 min 0", "\nEmulation version: 1.36\n", " /pods "] {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
    let (_, _, body) = page(&house, "/statusz", "application/json;g=config.k8s.io;v=v1beta1;as=Statusz").await;
    let state: Value = serde_json::from_str(&body).expect("JSON");
    let started: jiff::Timestamp = state["startTime"].as_str().expect("text").parse().expect("a time");
    let ago = Clock::system().wall().duration_since(started).as_secs();
    assert!((0..60).contains(&ago), "{state}");
    assert!(state["uptimeSeconds"].as_i64().is_some_and(|up| (0..60).contains(&up)), "{state}");
    assert!(state["binaryVersion"].as_str().is_some_and(|version| version.starts_with("1.36.")), "{state}");
    assert_eq!((&state["emulationVersion"], &state["goVersion"]), (&json!("1.36"), &json!("")));
    assert!(state["paths"].as_array().expect("paths").contains(&json!("/configz")), "{state}");
}

#[tokio::test]
async fn the_verbosity_of_the_log_is_put_and_nothing_else() {
    let level = Arc::new(AtomicU32::new(2));
    let set = level.clone();
    let house = House::open(|config| {
        config.verbosity = Verbosity::new(move |level| set.store(level, Ordering::Relaxed));
    })
    .await;
    let admin = house.admin();
    house.cluster.grant("admin", "update", "proxy");
    let put = async |body: &str| {
        let mut stream = house.connect(Some(&admin), b"http/1.1").await;
        let length = body.len();
        let sent = format!(
            "PUT /debug/flags/v HTTP/1.1\r\nhost: node\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(sent.as_bytes()).await.expect("it is taken");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer
    };
    let answer = put("5").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nsuccessfully set klog.logging.verbosity to 5\n"), "{answer}");
    assert_eq!(level.load(Ordering::Relaxed), 5);
    for wrong in ["much", "", "-1", &"9".repeat(100)] {
        let answer = put(wrong).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{wrong:?}: {answer}");
    }
    let answer = house.get(Some(&admin), None, "/debug/flags/v").await;
    assert_eq!(answer, (406, "unsupported http method\n".to_owned()));
    assert_eq!(level.load(Ordering::Relaxed), 5);
}
