//! One who is known asks for `/healthz`, again and again.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::client::TlsStream;

use super::tls::{Door, HTTP1};
use crate::harness::Caller;
use crate::stack::Stack;

/// Of each kind.
const ASKS: usize = 200;
const PAUSE: Duration = Duration::from_millis(50);
/// Who has no answer by then has none.
const LIMIT: Duration = Duration::from_secs(5);
/// What issue 4 promises in spite of a crowd.
pub const PROMISED: Duration = Duration::from_millis(50);

/// The seconds that each ask took, without end where there was no answer: it counts as the worst.
#[derive(Default)]
pub struct Answers {
    /// On a connection of its own, handshake included.
    pub new: Vec<f64>,
    pub kept: Vec<f64>,
}

pub struct Asker {
    door: Door,
    /// None after it was lost.
    kept: Option<TlsStream<TcpStream>>,
}

impl Asker {
    /// Is known to the agent from now on.
    pub async fn new(stack: &Stack) -> Result<Asker> {
        let door = Door::new(stack, Caller::ApiServer, HTTP1).await?;
        let mut kept = door.connect().await?;
        healthz(&mut kept).await.context("ask for /healthz before there is a crowd")?;
        Ok(Asker { door, kept: Some(kept) })
    }

    /// Asks both ways by turns, and calls `look` after each turn.
    pub async fn ask(&mut self, answers: &mut Answers, mut look: impl FnMut() -> Result<()>) -> Result<()> {
        for _ in 0..ASKS {
            let on_new = async { healthz(&mut self.door.connect().await?).await };
            answers.new.push(seconds_of(on_new).await);
            answers.kept.push(self.ask_on_kept().await);
            look()?;
            sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn ask_on_kept(&mut self) -> f64 {
        let seconds = match &mut self.kept {
            Some(kept) => seconds_of(healthz(kept)).await,
            None => f64::INFINITY,
        };
        if seconds.is_infinite() {
            // Half an answer may be left on it.
            self.kept = timeout(LIMIT, self.door.connect()).await.ok().and_then(Result::ok);
        }
        seconds
    }
}

async fn seconds_of(ask: impl Future<Output = Result<()>>) -> f64 {
    let began = Instant::now();
    match timeout(LIMIT, ask).await {
        Ok(Ok(())) => began.elapsed().as_secs_f64(),
        Ok(Err(error)) => {
            eprintln!("/healthz is not answered: {error:#}");
            f64::INFINITY
        }
        Err(_) => f64::INFINITY,
    }
}

/// One GET, whose answer has to be the good one.
async fn healthz(stream: &mut TlsStream<TcpStream>) -> Result<()> {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n").await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok") {
        if stream.read_buf(&mut answer).await? == 0 {
            bail!("the connection ends after {:?}", String::from_utf8_lossy(&answer));
        }
        if !b"HTTP/1.1 200".iter().eq(answer.iter().take(12)) && answer.len() >= 12 {
            bail!("it says {:?}", String::from_utf8_lossy(&answer));
        }
    }
    Ok(())
}
