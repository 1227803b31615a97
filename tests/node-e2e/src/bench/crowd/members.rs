//! The crowd: 1,000 idle clients, 1,000 slow ones, one who talks nonsense and one who opens streams of
//! HTTP/2 and resets them. Who is sent away comes back after some seconds, as an attacker would. They have
//! two threads: those who come and stay must not slow down those who do their worst.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::CONNECTS_WITHIN;
use super::tls::{Door, HTTP1, HTTP2};
use crate::harness::Caller;
use crate::poll::{self, Look};
use crate::stack::Stack;

/// Idle ones and slow ones together. Each wants to keep a connection and says nothing, or little.
pub const SIZE: usize = IDLE + SLOW_TO_GREET + SLOW_TO_ASK;
const IDLE: usize = 1000;
const SLOW_TO_GREET: usize = 500;
const SLOW_TO_ASK: usize = 500;

/// They do not all come at the same moment.
const COME_WITHIN: Duration = Duration::from_secs(2);
const GATHERED_WITHIN: Duration = Duration::from_secs(120);
/// Who was sent away stays away for so long, up to twice. All who come back in less would be more
/// handshakes than their one thread can make.
const AWAY: Duration = Duration::from_secs(4);
/// Of those who do their worst.
const BREATH: Duration = Duration::from_millis(10);
const BYTE_EVERY: Duration = Duration::from_secs(1);
/// For an agent's last words to who makes no sense.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Streams that are opened and reset in one write.
const RESETS_AT_ONCE: u32 = 100;

/// The first bytes of a ClientHello, which says that more come.
const HALF_HELLO: [u8; 6] = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01];
const BEGINNING: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: node\r\nX: ";

/// What the crowd has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Members that have a connection now.
    pub here: u64,
    pub came: u64,
    pub malformed: u64,
    pub resets: u64,
}

#[derive(Default)]
struct Counters {
    here: AtomicU64,
    came: AtomicU64,
    malformed: AtomicU64,
    resets: AtomicU64,
    /// Members that have tried to come.
    tried: AtomicU64,
}

fn add(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Ordering::Relaxed);
}

/// Dropping it sends everybody home.
pub struct Crowd {
    counters: Arc<Counters>,
    /// Gone when the crowd is to end.
    stays: Option<watch::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Crowd {
    /// All have come, or were refused, at least once.
    pub async fn gather(stack: &Stack) -> Result<Crowd> {
        let counters = Arc::new(Counters::default());
        let http1 = Door::new(stack, Caller::Nobody, HTTP1).await?;
        let http2 = Door::new(stack, Caller::Nobody, HTTP2).await?;
        let mut crowd = Crowd { counters: counters.clone(), stays: Some(watch::Sender::new(())), threads: Vec::new() };
        let (door, of_members) = (http1.clone(), counters.clone());
        crowd.send(move || come_and_stay(door, of_members))?;
        crowd.send(move || {
            tokio::spawn(talk_nonsense(http1, counters.clone()));
            tokio::spawn(open_and_reset(http2, counters));
        })?;
        poll::until("a crowd", GATHERED_WITHIN, async || {
            let tried = crowd.counters.tried.load(Ordering::Relaxed);
            Ok(if tried >= SIZE as u64 { Look::Done(()) } else { Look::NotYet(format!("{tried} members")) })
        })
        .await?;
        Ok(crowd)
    }

    /// Starts a thread for the tasks that `spawn` spawns. With its runtime they end, and their
    /// connections with them.
    fn send(&mut self, spawn: impl FnOnce() + Send + 'static) -> Result<()> {
        let mut ends = self.stays.as_ref().expect("it goes when the crowd is dropped").subscribe();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let work = move || {
            runtime.block_on(async {
                spawn();
                // The sender says nothing but that it is gone.
                let _ = ends.changed().await;
            });
        };
        let thread = thread::Builder::new().name("crowd".to_owned()).spawn(work);
        self.threads.push(thread.context("a thread for the crowd")?);
        Ok(())
    }

    pub fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { here, came, malformed, resets, .. } = &*self.counters;
        Counts { here: of(here), came: of(came), malformed: of(malformed), resets: of(resets) }
    }

    /// Returns when nobody is left.
    pub fn leave(self) {}
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stays = None;
        for thread in self.threads.drain(..) {
            // One that panicked has let go of everything as well.
            let _ = thread.join();
        }
    }
}

fn come_and_stay(door: Door, counters: Arc<Counters>) {
    let manners = [(Manner::Idle, IDLE), (Manner::SlowToGreet, SLOW_TO_GREET), (Manner::SlowToAsk, SLOW_TO_ASK)];
    for manner in manners.into_iter().flat_map(|(manner, number)| std::iter::repeat_n(manner, number)) {
        let member = Member { manner, door: door.clone() };
        tokio::spawn(member.haunt(counters.clone()));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Connects and says nothing.
    Idle,
    /// Says half of what TLS begins with.
    SlowToGreet,
    /// Says its request a byte at a time, and has no end of it.
    SlowToAsk,
}

struct Member {
    manner: Manner,
    door: Door,
}

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

impl Member {
    async fn haunt(self, counters: Arc<Counters>) {
        sleep(COME_WITHIN.mul_f64(fastrand::f64())).await;
        let mut is_first = true;
        loop {
            let begun = self.begin().await;
            add(&counters.tried, u64::from(std::mem::take(&mut is_first)));
            if let Ok(stream) = begun {
                let _here = Here::note(&counters);
                self.stay(stream).await;
            }
            sleep(AWAY.mul_f64(1.0 + fastrand::f64())).await;
        }
    }

    async fn begin(&self) -> Result<Box<dyn Wire>> {
        if self.manner == Manner::SlowToAsk {
            let mut stream = self.door.connect().await?;
            stream.write_all(BEGINNING).await?;
            return Ok(Box::new(stream));
        }
        let mut stream = timeout(CONNECTS_WITHIN, TcpStream::connect(self.door.address)).await??;
        if self.manner == Manner::SlowToGreet {
            stream.write_all(&HALF_HELLO).await?;
        }
        Ok(Box::new(stream))
    }

    /// Until it is sent away.
    async fn stay(&self, mut stream: Box<dyn Wire>) {
        let mut bytes = [0; 256];
        loop {
            let is_over = tokio::select! {
                // Cancel-safe: what is not read stays.
                read = stream.read(&mut bytes) => matches!(read, Ok(0) | Err(_)),
                // Cancel-safe: a timer.
                () = sleep(BYTE_EVERY), if self.manner == Manner::SlowToAsk => {
                    stream.write_all(b"x").await.is_err() || stream.flush().await.is_err()
                }
            };
            if is_over {
                return;
            }
        }
    }
}

/// A member that has a connection.
struct Here<'a>(&'a Counters);

impl Here<'_> {
    fn note(counters: &Counters) -> Here<'_> {
        add(&counters.here, 1);
        add(&counters.came, 1);
        Here(counters)
    }
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        self.0.here.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Requests that are none, one after the other, each on a connection of its own.
async fn talk_nonsense(door: Door, counters: Arc<Counters>) {
    let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(100 * 1024));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(1000));
    let two_lengths = "POST / HTTP/1.1\r\nHost: node\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n";
    let nonsense = ["\0\0\0\0\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", two_lengths, &long, &many];
    for words in nonsense.into_iter().cycle() {
        let Ok(mut stream) = door.connect().await else {
            sleep(BREATH).await;
            continue;
        };
        // An agent that has heard enough need not hear all.
        let _ = stream.write_all(words.as_bytes()).await;
        let _ = timeout(LAST_WORDS, stream.read_to_end(&mut Vec::new())).await;
        add(&counters.malformed, 1);
    }
}

/// Opens streams of HTTP/2 and resets them, as fast as they are taken.
async fn open_and_reset(door: Door, counters: Arc<Counters>) {
    loop {
        if let Ok(stream) = door.connect().await {
            let (mut reader, mut writer) = tokio::io::split(stream);
            // Unread, what the agent says would keep it from reading.
            let hear = async {
                let mut bytes = [0; 4096];
                while !matches!(reader.read(&mut bytes).await, Ok(0) | Err(_)) {}
            };
            let flood = async {
                let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(SETTINGS, 0, 0, &[])[..]].concat();
                writer.write_all(&preface).await?;
                for batch in 0..STREAMS_MAX / RESETS_AT_ONCE {
                    writer.write_all(&resets(batch * RESETS_AT_ONCE)).await?;
                    writer.flush().await?;
                    add(&counters.resets, u64::from(RESETS_AT_ONCE));
                    // Whoever talks nonsense is on this thread too.
                    tokio::task::yield_now().await;
                }
                std::io::Result::Ok(())
            };
            tokio::select! {
                // Cancel-safe: whoever is left is dropped with the connection.
                () = hear => {}
                _ = flood => {}
            }
        }
        sleep(BREATH).await;
    }
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
/// END_STREAM and END_HEADERS.
const WHOLE: u8 = 0x05;
const CANCEL: u32 = 8;
/// Of one connection; their numbers are odd.
const STREAMS_MAX: u32 = 1 << 30;

/// GET https://node/, and at once that it is no longer wanted; so many times, from this stream on.
fn resets(first: u32) -> Vec<u8> {
    let streams = (first..first + RESETS_AT_ONCE).map(|number| 2 * number + 1);
    let frames = streams.flat_map(|id| {
        // Method, scheme, path and authority, by their numbers in HPACK's table; the last is not kept.
        [frame(HEADERS, WHOLE, id, b"\x82\x87\x84\x01\x04node"), frame(RST_STREAM, 0, id, &CANCEL.to_be_bytes())]
    });
    frames.flatten().collect()
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("frames here are short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), content].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_opened_and_reset_in_turn() {
        let bytes = resets(3);
        assert_eq!(bytes[..9], [0, 0, 9, 1, 5, 0, 0, 0, 7]);
        assert_eq!(bytes[18..31], [0, 0, 4, 3, 0, 0, 0, 0, 7, 0, 0, 0, 8]);
        assert_eq!(bytes[31..40], [0, 0, 9, 1, 5, 0, 0, 0, 9]);
        assert_eq!(bytes.len(), 31 * RESETS_AT_ONCE as usize);
    }
}
