//! An API server of a few lines that answers as the test says, well or badly.
//!
//! It writes HTTP/1.1 by hand, because half of its answers no HTTP library would send.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures::future::pending;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What the server does with one request.
pub(super) enum Answer {
    Json(u16, Value),
    /// An answer that is not JSON, as a proxy in between might give.
    Text(u16, &'static str),
    /// A watch that sends these lines and then ends.
    Watch(Vec<String>),
    /// A watch that sends these lines and then stays open.
    OpenWatch(Vec<String>),
    /// A watch that breaks off in the middle of a line.
    CutWatch(&'static str),
    /// No answer, ever.
    Silence,
    /// Closes the connection.
    HangUp,
}

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Which connection it came over, counted from 0.
    pub(super) connection: usize,
    /// Method and target, such as `GET /api/v1/pods?limit=500`.
    pub(super) line: String,
    /// The rest of the head, lower case.
    pub(super) head: String,
    pub(super) body: String,
}

pub(super) struct Server {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

type Script = Arc<Mutex<dyn FnMut(&Seen) -> Answer + Send>>;

impl Server {
    /// Answers each request as `script` says.
    pub(super) async fn start(script: impl FnMut(&Seen) -> Answer + Send + 'static) -> Self {
        Server::listen(None, Arc::new(Mutex::new(script))).await
    }

    pub(super) async fn start_tls(tls: TlsAcceptor, script: impl FnMut(&Seen) -> Answer + Send + 'static) -> Self {
        Server::listen(Some(tls), Arc::new(Mutex::new(script))).await
    }

    async fn listen(tls: Option<TlsAcceptor>, script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let record = Arc::clone(&seen);
        tokio::spawn(async move {
            for connection in 0.. {
                let (stream, _) = listener.accept().await.expect("a listening socket accepts");
                let serve = Serve { connection, script: Arc::clone(&script), seen: Arc::clone(&record) };
                let tls = tls.clone();
                // What goes wrong on a connection is the client's to notice.
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => serve.run(tls.accept(stream).await?).await,
                        None => serve.run(stream).await,
                    }
                });
            }
        });
        Server { address, seen }
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no test panics with the lock").clone()
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.line).collect()
    }
}

struct Serve {
    connection: usize,
    script: Script,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Serve {
    async fn run(self, stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        while let Some(seen) = self.read(&mut stream).await? {
            self.seen.lock().expect("no test panics with the lock").push(seen.clone());
            let answer = (self.script.lock().expect("no script panics"))(&seen);
            match answer {
                Answer::Json(status, body) => send(&mut stream, status, &body.to_string()).await?,
                Answer::Text(status, body) => send(&mut stream, status, body).await?,
                Answer::Watch(lines) => {
                    send_lines(&mut stream, &lines).await?;
                    stream.write_all(b"0\r\n\r\n").await?;
                }
                Answer::OpenWatch(lines) => {
                    send_lines(&mut stream, &lines).await?;
                    pending().await
                }
                Answer::CutWatch(part) => {
                    send_lines(&mut stream, &[]).await?;
                    send_chunk(&mut stream, part).await?;
                    return Ok(());
                }
                Answer::Silence => pending().await,
                Answer::HangUp => return Ok(()),
            }
            stream.flush().await?;
        }
        Ok(())
    }

    async fn read(&self, stream: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<Option<Seen>> {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") && head != "\r\n" {
            stream.read_line(&mut head).await?;
        }
        let head = head.to_lowercase();
        let length = head.lines().find_map(|field| field.strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body).await?;
        let line = line.trim().trim_end_matches(" HTTP/1.1").to_owned();
        let body = String::from_utf8(body).expect("the client sends text");
        Ok(Some(Seen { connection: self.connection, line, head, body }))
    }
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), status: u16, body: &str) -> io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).await
}

async fn send_lines(stream: &mut (impl AsyncWrite + Unpin), lines: &[String]) -> io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
    for line in lines {
        send_chunk(stream, &format!("{line}\n")).await?;
    }
    stream.flush().await
}

async fn send_chunk(stream: &mut (impl AsyncWrite + Unpin), text: &str) -> io::Result<()> {
    stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await?;
    stream.flush().await
}
