//! `GrpcRuntime` against a server written by hand: deadlines, errors, connections that break.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;

use super::*;
use crate::metrics;

/// For tests that wait for it to pass. On real time: a paused clock would run ahead of the socket.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// For all others, so that a busy machine fails none of them.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the server does with a call.
enum Answer {
    Message(Vec<u8>),
    Error(Code, String),
    /// Nothing, ever. The flag is raised once the call is given up.
    Silence(Arc<AtomicBool>),
    /// Response headers only after a while, then one message, then nothing more.
    Late(Duration, Vec<u8>),
}

fn message(message: impl Message) -> Answer {
    Answer::Message(message.encode_to_vec())
}

/// Takes a method's name and the request's bytes.
type Handler = Arc<dyn Fn(&str, &[u8]) -> Answer + Send + Sync>;

/// A CRI server on a socket of its own. Dropping it closes the connections too.
struct Server {
    accepting: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Server {
    fn start(socket: &Path, handler: impl Fn(&str, &[u8]) -> Answer + Send + Sync + 'static) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).expect("the directory is ours");
        let handler: Handler = Arc::new(handler);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let handler = handler.clone();
                let service = service_fn(move |request| answer(handler.clone(), request));
                connections.spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .max_header_list_size(1 << 20)
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Server { accepting }
    }
}

type Body = BoxBody<Bytes, std::convert::Infallible>;

/// One call in gRPC's framing: a flag byte, four bytes of length, the message; status in trailers.
async fn answer(handler: Handler, request: http::Request<Incoming>) -> hyper::Result<http::Response<Body>> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let body = request.into_body().collect().await?.to_bytes();
    let reply = http::Response::builder().header("content-type", "application/grpc");
    let reply = match handler(&method, &body[5..]) {
        Answer::Message(message) => reply.body(framed(&message)),
        Answer::Error(code, text) => reply
            .header("grpc-status", (code as i32).to_string())
            .header("grpc-message", text)
            .body(Full::new(Bytes::new()).boxed()),
        Answer::Silence(given_up) => {
            let _guard = RaiseOnDrop(given_up);
            std::future::pending().await
        }
        Answer::Late(after, message) => {
            sleep(after).await;
            reply.body(BoxBody::new(Unending(Some(frame(&message)))))
        }
    };
    Ok(reply.expect("the parts of this response are valid"))
}

struct RaiseOnDrop(Arc<AtomicBool>);

impl Drop for RaiseOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn frame(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("test messages are small");
    [&[0], &length.to_be_bytes()[..], message].concat().into()
}

fn framed(message: &[u8]) -> Body {
    let trailers = http::HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), "0".parse().unwrap())]);
    Full::new(frame(message)).with_trailers(async { Some(Ok(trailers)) }).boxed()
}

/// A body of one frame that never ends.
struct Unending(Option<Bytes>);

impl hyper::body::Body for Unending {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<std::result::Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        match self.0.take() {
            Some(bytes) => std::task::Poll::Ready(Some(Ok(hyper::body::Frame::data(bytes)))),
            None => std::task::Poll::Pending,
        }
    }
}

/// A directory with one test's socket.
struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        Dir(TempDir::new().expect("the temporary directory is writable"))
    }
    fn socket(&self) -> PathBuf {
        self.0.path().join("cri.sock")
    }
    fn connect(&self) -> GrpcRuntime {
        self.connect_within(PATIENCE)
    }
    fn connect_within(&self, request_timeout: Duration) -> GrpcRuntime {
        let endpoint = format!("unix://{}", self.socket().display());
        GrpcRuntime::connect(&endpoint, "", request_timeout).expect("a valid endpoint")
    }
}

fn versions(method: &str, _: &[u8]) -> Answer {
    match method {
        "Version" => message(wire::VersionResponse { runtime_name: "fake".into(), ..Default::default() }),
        other => Answer::Error(Code::Unimplemented, format!("unknown method {other}")),
    }
}

#[tokio::test]
async fn a_missing_socket_fails_at_once_and_is_found_when_it_appears_and_again_after_it_broke() {
    let dir = Dir::new();
    let runtime = dir.connect();

    let error = runtime.version().await.expect_err("nobody listens");
    assert!(matches!(&error, CriError::Unavailable { message, .. } if message.contains("No such file")), "{error:?}");

    let server = Server::start(&dir.socket(), versions);
    assert_eq!(runtime.version().await.expect("somebody listens").runtime_name, "fake");

    drop(server);
    // The first call after the break may find the old connection or none.
    let error = runtime.version().await.expect_err("nobody listens again");
    assert!(matches!(error, CriError::Unavailable { .. }), "{error:?}");

    let _server = Server::start(&dir.socket(), versions);
    assert_eq!(runtime.version().await.expect("somebody listens again").runtime_name, "fake");
}

#[tokio::test]
async fn a_connection_that_breaks_under_a_call_is_unavailable() {
    let dir = Dir::new();
    let server = Server::start(&dir.socket(), |_, _| Answer::Silence(Arc::default()));
    let runtime = dir.connect();
    let (result, ()) = tokio::join!(runtime.version(), async {
        sleep(Duration::from_millis(100)).await;
        drop(server);
    });
    assert!(matches!(result, Err(CriError::Unavailable { .. })), "{result:?}");
}

#[tokio::test]
async fn a_silent_call_times_out_and_holds_up_no_other() {
    let dir = Dir::new();
    let given_up = Arc::new(AtomicBool::new(false));
    let flag = given_up.clone();
    let _server = Server::start(&dir.socket(), move |method, request| match method {
        "ContainerStatus" => Answer::Silence(flag.clone()),
        _ => versions(method, request),
    });
    let runtime = dir.connect_within(REQUEST_TIMEOUT);
    let id = ContainerId::new("a");
    let mut silent = runtime.container_status(&id);
    let answered = tokio::select! {
        biased;
        // Polled first, so that its request is the one that others could wait behind.
        early = &mut silent => panic!("the silent call ended first: {early:?}"),
        answered = runtime.version() => answered,
    };
    assert!(answered.is_ok(), "{answered:?}");
    let silent = silent.await;
    assert!(matches!(silent, Err(CriError::Timeout { call: "ContainerStatus", after: REQUEST_TIMEOUT })), "{silent:?}");
    eventually(|| given_up.load(Ordering::SeqCst)).await;
}

#[tokio::test]
async fn a_dropped_pull_is_cancelled_in_the_runtime() {
    let dir = Dir::new();
    let given_up = Arc::new(AtomicBool::new(false));
    let flag = given_up.clone();
    let _server = Server::start(&dir.socket(), move |_, _| Answer::Silence(flag.clone()));
    let runtime = dir.connect_within(REQUEST_TIMEOUT / 10);
    // Longer than the request timeout: a pull has none.
    let pulled = timeout(REQUEST_TIMEOUT, runtime.pull_image(&ImageSpec::default(), None, None)).await;
    assert!(pulled.is_err(), "{pulled:?}");
    eventually(|| given_up.load(Ordering::SeqCst)).await;
}

#[tokio::test]
async fn what_is_being_made_is_waited_for_and_nothing_more_is_asked_for() {
    let dir = Dir::new();
    let calls = Arc::new(Mutex::new(Vec::new()));
    let heard = calls.clone();
    let _server = Server::start(&dir.socket(), move |method, request| {
        heard.lock().unwrap().push(method.to_owned());
        match method {
            "RunPodSandbox" => Answer::Silence(Arc::default()),
            _ => versions(method, request),
        }
    });
    let runtime = Arc::new(dir.connect());
    let making = tokio::spawn({
        let runtime = runtime.clone();
        async move { runtime.run_sandbox(&SandboxConfig::default()).await }
    });
    eventually(|| !calls.lock().unwrap().is_empty()).await;
    let mut no_more = pin!(runtime.make_no_more());
    assert!(no_more.as_mut().now_or_never().is_none());
    let id = ContainerId::new("a");
    let mut another = pin!(runtime.start_container(&id));
    assert!(another.as_mut().now_or_never().is_none());
    runtime.version().await.expect("whatever makes nothing goes on");
    making.abort();
    let _no_more = no_more.await;
    assert!(another.now_or_never().is_none());
    assert_eq!(*calls.lock().unwrap(), ["RunPodSandbox", "Version"]);
}

#[tokio::test]
async fn stopping_may_last_as_long_as_the_grace_and_then_some() {
    let dir = Dir::new();
    let _server = Server::start(&dir.socket(), |_, request| {
        let request = wire::StopContainerRequest::decode(request).expect("the request is well-formed");
        assert_eq!(request.timeout, 1, "a part of a second counts as one");
        Answer::Silence(Arc::default())
    });
    let grace = Duration::from_millis(300);
    let began = Instant::now();
    let stopped = dir.connect_within(REQUEST_TIMEOUT).stop_container(&ContainerId::new("a"), grace).await;
    assert!(matches!(stopped, Err(CriError::Timeout { .. })), "{stopped:?}");
    assert!(began.elapsed() >= grace + REQUEST_TIMEOUT, "{:?}", began.elapsed());
}

#[tokio::test]
async fn errors_are_told_apart_by_what_a_caller_does_about_them() {
    let dir = Dir::new();
    let long = "x".repeat(100 << 10);
    let reserved = r#"failed to reserve container name "web_0": name "web_0" is reserved for "4f1c""#;
    let cases = [
        (Code::NotFound, "no such container", "NotFound"),
        (Code::AlreadyExists, "there is one", "AlreadyExists"),
        (Code::Unknown, reserved, "AlreadyExists"),
        (Code::Unimplemented, "what?", "Unimplemented"),
        (Code::DeadlineExceeded, "too slow", "Timeout"),
        (Code::ResourceExhausted, "too many", "Exhausted"),
        (Code::Unavailable, "starting", "Unavailable"),
        (Code::Unknown, "runc failed", "Failed"),
        (Code::Internal, long.as_str(), "Failed"),
        (Code::Cancelled, "context canceled", "Failed"),
    ];
    for (code, text, kind) in cases {
        let told = text.to_owned();
        let _server = Server::start(&dir.socket(), move |_, _| Answer::Error(code, told.clone()));
        let error = dir.connect().start_container(&ContainerId::new("a")).await.expect_err("the server refuses");
        assert!(format!("{error:?}").starts_with(kind), "{code:?} became {error:?}");
        if matches!(kind, "NotFound" | "AlreadyExists" | "Exhausted" | "Unavailable" | "Failed") {
            assert!(error.to_string().ends_with(text), "{error}");
        }
    }
}

#[tokio::test]
async fn a_list_beyond_the_usual_message_limit_is_read() {
    let dir = Dir::new();
    let _server = Server::start(&dir.socket(), |_, _| {
        let annotations = BTreeMap::from([("a".to_owned(), "x".repeat(256 << 10))]);
        let metadata = Some(wire::PodSandboxMetadata::default());
        let sandbox = wire::PodSandbox { metadata, annotations, ..Default::default() };
        message(wire::ListPodSandboxResponse { items: vec![sandbox; 80] })
    });
    assert_eq!(dir.connect().list_sandboxes(&Scope::All).await.map(|list| list.len()).ok(), Some(80));
}

#[tokio::test]
async fn a_list_for_one_pod_is_filtered_by_the_runtime() {
    let dir = Dir::new();
    let _server = Server::start(&dir.socket(), |_, request| {
        let request = wire::ListContainersRequest::decode(request).expect("the request is well-formed");
        let selector = request.filter.unwrap_or_default().label_selector;
        let (uid, name) = match selector.get(labels::POD_UID) {
            Some(uid) => (uid.clone(), "one"),
            None => (String::new(), "all"),
        };
        let metadata = Some(wire::ContainerMetadata { name: name.into(), attempt: 2 });
        let labels = [(labels::POD_UID.to_owned(), uid)].into();
        message(wire::ListContainersResponse {
            containers: vec![wire::Container { metadata, labels, ..Default::default() }],
        })
    });
    let runtime = dir.connect();
    let listed = |scope: Scope| {
        let runtime = &runtime;
        async move {
            let mut containers = runtime.list_containers(&scope).await.expect("the server answers");
            let container = containers.pop().expect("the server lists one");
            (container.name, container.pod_uid)
        }
    };
    assert_eq!(listed(Scope::All).await, ("all".into(), "".into()));
    assert_eq!(listed(Scope::Pod(crate::pod::PodUid::new("u1"))).await, ("one".into(), "u1".into()));
}

/// A server whose commands never end, and which may be silent about all else too.
fn commands_hang(dir: &Dir, all_hangs: bool) -> Server {
    Server::start(&dir.socket(), move |method, request| match method {
        "Version" if !all_hangs => versions(method, request),
        _ => Answer::Silence(Arc::default()),
    })
}

#[tokio::test]
async fn a_command_that_leaves_its_output_open_is_over_when_its_time_is() {
    let dir = Dir::new();
    let _server = commands_hang(&dir, false);
    let executed = dir.connect().exec(&ContainerId::new("c"), &[], Some(Duration::from_secs(1))).await;
    assert!(matches!(executed, Ok(Executed::TimedOut)), "{executed:?}");
}

#[tokio::test]
async fn of_a_runtime_that_hangs_no_command_is_told_to_have_ended() {
    let dir = Dir::new();
    let _server = commands_hang(&dir, true);
    // Longer than it takes to see that the runtime does not answer.
    let runtime = dir.connect_within(Duration::from_secs(20));
    let executed = runtime.exec(&ContainerId::new("c"), &[], Some(Duration::from_secs(1))).await;
    assert!(matches!(executed, Err(CriError::Timeout { call: "ExecSync", .. })), "{executed:?}");
}

#[tokio::test]
async fn streams_are_asked_for_as_they_are_wanted() {
    let dir = Dir::new();
    let _server = Server::start(&dir.socket(), |method, request| {
        let read = "the request is well-formed";
        let url = match method {
            "Exec" => {
                let asked = wire::ExecRequest::decode(request).expect(read);
                assert_eq!((asked.stdin, asked.stdout, asked.stderr, asked.tty), (true, false, true, false));
                format!("http://a/{}/{}", asked.container_id, asked.cmd.join("/"))
            }
            "Attach" => {
                let asked = wire::AttachRequest::decode(request).expect(read);
                assert_eq!((asked.stdin, asked.stdout, asked.stderr, asked.tty), (false, true, false, true));
                format!("http://b/{}", asked.container_id)
            }
            _ => {
                let asked = wire::PortForwardRequest::decode(request).expect(read);
                format!("/{}/{:?}", asked.pod_sandbox_id, asked.port)
            }
        };
        message(wire::ExecResponse { url })
    });
    let runtime = dir.connect();
    let id = ContainerId::new("c");
    let streams = Streams { stdin: true, stderr: true, ..Streams::default() };
    let command = ["sh".to_owned(), "-c".to_owned()];
    assert_eq!(runtime.exec_url(&id, &command, streams).await.expect("a URL"), "http://a/c/sh/-c");
    let streams = Streams { stdout: true, tty: true, ..Streams::default() };
    assert_eq!(runtime.attach_url(&id, streams).await.expect("a URL"), "http://b/c");
    let refused = runtime.port_forward_url(&SandboxId::new("s"), &[80, 443]).await;
    assert!(
        matches!(&refused, Err(CriError::Malformed { message, .. }) if message.contains("/s/[80, 443]")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_runtime_without_events_says_so() {
    let dir = Dir::new();
    let _server = Server::start(&dir.socket(), versions);
    let refusal = match dir.connect().events().await {
        Err(error) => Some(Err(error)),
        // Only a very busy machine gets here.
        Ok(mut events) => events.next().await,
    };
    assert!(matches!(refusal, Some(Err(CriError::Unimplemented { .. }))), "{refusal:?}");
}

#[tokio::test]
async fn events_arrive_though_the_server_is_silent_until_the_first_and_end_with_the_connection() {
    let dir = Dir::new();
    let event = wire::ContainerEventResponse {
        container_id: "c".into(),
        container_event_type: wire::ContainerEventType::ContainerStoppedEvent.into(),
        ..Default::default()
    };
    let late = event.encode_to_vec();
    let server = Server::start(&dir.socket(), move |_, _| Answer::Late(Duration::from_millis(800), late.clone()));
    let mut events = timeout(PATIENCE, dir.connect().events()).await.expect("silence is taken as acceptance").unwrap();
    let first = timeout(PATIENCE, events.next()).await.expect("the event arrives");
    assert_eq!(
        first.expect("the stream goes on").expect("the event is whole"),
        RuntimeEvent { pod_uid: "".into(), container_id: "c".into(), kind: RuntimeEventKind::Stopped }
    );
    drop(server);
    let broken = timeout(PATIENCE, events.next()).await.expect("the end is noticed");
    assert!(matches!(broken, Some(Err(CriError::Unavailable { .. }))), "{broken:?}");
    assert!(timeout(PATIENCE, events.next()).await.expect("the end is final").is_none());
}

#[tokio::test]
async fn an_opening_of_events_that_fails_late_counts_as_a_failure() {
    let dir = Dir::new();
    let server = Server::start(&dir.socket(), |_, _| Answer::Silence(Arc::default()));
    let before = metrics::runtime::failures("GetContainerEvents");
    let mut events = timeout(PATIENCE, dir.connect().events()).await.expect("silence is taken as acceptance").unwrap();
    drop(server);
    let broken = timeout(PATIENCE, events.next()).await.expect("the end is noticed");
    assert!(matches!(broken, Some(Err(CriError::Unavailable { .. }))), "{broken:?}");
    assert!(metrics::runtime::failures("GetContainerEvents") > before);
}

#[tokio::test]
async fn an_endpoint_that_is_no_unix_socket_is_refused() {
    assert!(GrpcRuntime::connect("/run/a.sock", "unix:///run/b.sock", PATIENCE).is_ok());
    for endpoint in ["", "tcp://localhost:1234", "run/containerd.sock", "npipe:////./pipe/x", "unix://relative"] {
        assert!(GrpcRuntime::connect(endpoint, "", REQUEST_TIMEOUT).is_err(), "{endpoint:?}");
    }
    assert!(GrpcRuntime::connect("/run/a.sock", "tcp://b", REQUEST_TIMEOUT).is_err());
}

async fn eventually(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "the condition did not come about");
        sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn authors_of_pods_hear_what_the_runtime_said_and_nothing_of_calls() {
    let call = "StartContainer";
    let message = || "no such file".to_owned();
    let check = |error: CriError, expected: &str| assert_eq!(error.own_words(), expected, "{error:?}");
    check(CriError::Failed { call, message: message() }, "no such file");
    check(CriError::NotFound { call, message: message() }, "no such file");
    check(CriError::AlreadyExists { call, message: message() }, "no such file");
    // Where it said nothing, the call is all there is to tell.
    check(CriError::Timeout { call, after: Duration::from_secs(2) }, "StartContainer: no answer within 2s");
    check(CriError::Unavailable { call, message: message() }, "StartContainer: runtime is not reachable: no such file");
}
