//! Clients, an agent and a streaming server of a runtime on the loopback.

mod requests;
mod runs;
mod streams;
mod upgrades;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::BodyExt;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::cri::CriError;

/// Nothing here takes that long, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

const LIMITS: Limits = Limits { streams: 200, answer: PATIENCE, linger: PATIENCE, idle: PATIENCE };

/// What a test says for the runtime, to a call told as text.
type Says = Box<dyn Fn(&str) -> cri::Result<String> + Send + Sync>;

/// A runtime that is asked where its streaming server is, or to run a command.
struct Told {
    says: Says,
    calls: Mutex<Vec<String>>,
}

impl Told {
    fn new(says: impl Fn(&str) -> cri::Result<String> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Told { says: Box::new(says), calls: Mutex::default() })
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().expect("no holder panics").clone()
    }

    fn asked(&self, call: String) -> cri::Result<String> {
        self.calls.lock().expect("no holder panics").push(call.clone());
        (self.says)(&call)
    }

    fn url(&self, call: String) -> cri::Result<Uri> {
        self.asked(call).map(|url| url.parse().expect("tests give URLs"))
    }
}

#[async_trait]
impl StreamSource for Told {
    async fn exec(&self, id: &ContainerId, command: &[String], timeout: Option<Duration>) -> cri::Result<Executed> {
        let output = self.asked(format!("run {command:?} in {id} within {timeout:?}"))?;
        // `3 words` is an exit code and the output.
        match output.split_once(' ') {
            Some((code, output)) => {
                let code = code.parse().expect("tests give an exit code");
                Ok(Executed::Exited { code, output: output.as_bytes().to_vec() })
            }
            None => Ok(Executed::TimedOut),
        }
    }
    async fn exec_url(&self, id: &ContainerId, command: &[String], streams: Streams) -> cri::Result<Uri> {
        self.url(format!("exec {command:?} in {id}: {streams:?}"))
    }
    async fn attach_url(&self, id: &ContainerId, streams: Streams) -> cri::Result<Uri> {
        self.url(format!("attach to {id}: {streams:?}"))
    }
    async fn port_forward_url(&self, id: &SandboxId, ports: &[u16]) -> cri::Result<Uri> {
        self.url(format!("forward to {id}: {ports:?}"))
    }
}

/// An agent whose every path leads to one container, and the streaming server it is led to.
struct Bed {
    streaming: Arc<Streaming>,
    agent: SocketAddr,
    server: TcpListener,
    _serving: AbortOnDropHandle<()>,
}

impl Bed {
    async fn new(limits: Limits) -> Self {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/exec/token?a=b", server.local_addr().expect("an address"));
        Bed::on(server, limits, Told::new(move |_| Ok(url.clone()))).await
    }

    /// Where the runtime says something else.
    async fn saying(says: impl Fn(&str) -> cri::Result<String> + Send + Sync + 'static) -> Self {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Bed::on(server, LIMITS, Told::new(says)).await
    }

    async fn on(server: TcpListener, limits: Limits, runtime: Arc<Told>) -> Self {
        let streaming = Arc::new(Streaming::within(runtime, limits));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let agent = listener.local_addr().expect("an address");
        let serving = tokio::spawn(serve(listener, streaming.clone()));
        Bed { streaming, agent, server, _serving: AbortOnDropHandle::new(serving) }
    }

    /// A client that has sent its request.
    async fn client(&self, request: &str) -> Peer {
        let mut client = Peer(TcpStream::connect(self.agent).await.expect("the agent listens"));
        client.send(request).await;
        client
    }

    /// The connection that the agent makes, and what it asks for on it.
    async fn accept(&self) -> (Peer, String) {
        let accepted = timeout(PATIENCE, self.server.accept()).await.expect("the agent comes").expect("a connection");
        let mut server = Peer(accepted.0);
        let head = server.head().await;
        (server, head)
    }

    /// Both ends of a stream.
    async fn stream(&self) -> (Peer, Peer) {
        let mut client = self.client(SPDY).await;
        let (mut server, _) = self.accept().await;
        server.send(SWITCHED).await;
        assert!(client.head().await.starts_with("HTTP/1.1 101 "));
        (client, server)
    }

    /// Returns when nothing is left of any stream.
    async fn all_is_free(&self) {
        let permits = self.streaming.limits.streams.try_into().expect("few");
        let all = timeout(PATIENCE, self.streaming.streams.acquire_many(permits)).await;
        drop(all.expect("every stream ends").expect("nobody closes the semaphore"));
    }
}

async fn serve(listener: TcpListener, streaming: Arc<Streaming>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let streaming = streaming.clone();
        let service = service_fn(move |request| {
            let streaming = streaming.clone();
            async move { Ok::<_, std::convert::Infallible>(streaming.proxy(request, what()).await) }
        });
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades());
    }
}

fn what() -> StreamRequest {
    let streams = Streams { stdin: true, stdout: true, ..Streams::default() };
    StreamRequest::Exec { container: ContainerId::new("c"), command: vec!["cat".into()], streams }
}

const SPDY: &str = "POST /any HTTP/1.1\r\nHost: node:10250\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
    X-Stream-Protocol-Version: v4.channel.k8s.io\r\nX-Stream-Protocol-Version: v3.channel.k8s.io\r\n\
    Authorization: Bearer secret\r\nContent-Length: 0\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
    X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n";

/// One end of a connection, in the hands of a test.
struct Peer(TcpStream);

impl Peer {
    async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.expect("the other side reads");
    }

    /// As many bytes as that.
    async fn read(&mut self, length: usize) -> String {
        let mut bytes = vec![0; length];
        let read = timeout(PATIENCE, self.0.read_exact(&mut bytes)).await;
        read.expect("the other side writes").expect("so much of it");
        String::from_utf8(bytes).expect("tests write text")
    }

    /// The beginning of an HTTP message, byte by byte, so that nothing behind it is lost.
    async fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            head.push_str(&self.read(1).await);
        }
        head
    }

    /// All until the other side closes. That it did so by a reset is the same here.
    async fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        let _ = timeout(PATIENCE, self.0.read_to_end(&mut bytes)).await.expect("the other side closes");
        String::from_utf8(bytes).expect("tests write text")
    }

    async fn end_half(&mut self) {
        self.0.shutdown().await.expect("the connection is open");
    }

    /// The answer to a request that is no upgrade: its head, and the body as long as that says.
    async fn answer(&mut self) -> (String, String) {
        let head = self.head().await.to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        let body = self.read(length.parse().expect("a number")).await;
        (head, body)
    }
}

async fn body_of(response: Response<Body>) -> String {
    let bytes = response.into_body().collect().await.expect("it is at hand").to_bytes();
    String::from_utf8_lossy(&bytes).into_owned()
}
