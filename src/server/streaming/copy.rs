//! Bytes between a client and the runtime, both ways, until one of them has had enough.
//!
//! The two sides are not alike. A client that does not take bytes any more is gone, and with it
//! all that its stream was for. A runtime that takes none any more may still have said
//! something: how its command ended, say. It is read to its end, and what the client sends
//! meanwhile is read too and thrown away: to close a connection with bytes unread would take
//! from the client what it has not read yet.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout};

/// For a stream at rest, or one that people type into.
const BUFFER_BYTES: usize = 1 << 10;
/// For one that moves files.
const BUFFER_BYTES_MAX: usize = 16 << 10;

/// Which side ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Client,
    Runtime,
    /// Nothing moved for too long.
    Idle,
}

/// Returns when there is nothing left to move. Both sides are closed by then.
pub async fn both_ways(
    client: impl AsyncRead + AsyncWrite,
    runtime: impl AsyncRead + AsyncWrite,
    idle: Duration,
    linger: Duration,
) -> Ended {
    let activity = Activity::new();
    let (from_client, to_client) = tokio::io::split(client);
    let (from_runtime, to_runtime) = tokio::io::split(runtime);
    let mut up = pin!(up(from_client, to_runtime, &activity));
    let mut down = pin!(down(from_runtime, to_client, &activity));
    // Cancel-safe, all: what loses here is either gone on with below, or over with the stream.
    tokio::select! {
        told = &mut down => {
            // A client that is still there closes as soon as it has read all.
            if told.is_ok() {
                let _ = timeout(linger, up).await;
            }
            if told.is_ok() { Ended::Runtime } else { Ended::Client }
        }
        () = &mut up => {
            // Only half of it may be closed, by one who waits for the rest of what is coming.
            activity.moved();
            tokio::select! {
                _ = down => {}
                () = activity.quiet_for(linger) => {}
            }
            Ended::Client
        }
        () = activity.quiet_for(idle) => Ended::Idle,
    }
}

/// What the client sends, until it ends. The runtime is told of the end.
async fn up(mut client: impl AsyncRead + Unpin, mut runtime: impl AsyncWrite + Unpin, activity: &Activity) {
    let mut buffer = Buffer::default();
    while let Ok(Some(bytes)) = buffer.read(&mut client).await {
        activity.moved();
        if send(&mut runtime, bytes).await.is_err() {
            while let Ok(Some(_)) = buffer.read(&mut client).await {}
            return;
        }
        activity.moved();
    }
    let _ = runtime.shutdown().await;
}

/// What the runtime sends, until it ends. An error is the client's.
async fn down(
    mut runtime: impl AsyncRead + Unpin,
    mut client: impl AsyncWrite + Unpin,
    activity: &Activity,
) -> io::Result<()> {
    let mut buffer = Buffer::default();
    while let Ok(Some(bytes)) = buffer.read(&mut runtime).await {
        activity.moved();
        send(&mut client, bytes).await?;
        activity.moved();
    }
    client.shutdown().await
}

/// TLS keeps what it is given until it is told to let go.
async fn send(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

/// As large as what came last makes likely.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    filled: usize,
}

impl Buffer {
    /// `None` is the end.
    async fn read(&mut self, from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<&[u8]>> {
        let size = match self.filled {
            filled if filled < BUFFER_BYTES => BUFFER_BYTES,
            filled if filled == self.bytes.len() => BUFFER_BYTES_MAX,
            _ => self.bytes.len(),
        };
        if size != self.bytes.len() {
            self.bytes = vec![0; size];
        }
        self.filled = from.read(&mut self.bytes).await?;
        Ok(Some(&self.bytes[..self.filled]).filter(|bytes| !bytes.is_empty()))
    }
}

/// When bytes last moved, in milliseconds since the stream began.
struct Activity {
    began: Instant,
    last: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Activity { began: Instant::now(), last: AtomicU64::new(0) }
    }

    fn moved(&self) {
        let after = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(after, Ordering::Relaxed);
    }

    /// Sleeps as long as there is no news to expect; a stream in use costs one timer.
    async fn quiet_for(&self, limit: Duration) {
        loop {
            let due = self.began + Duration::from_millis(self.last.load(Ordering::Relaxed)) + limit;
            if Instant::now() >= due {
                return;
            }
            sleep_until(due).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    const IDLE: Duration = Duration::from_secs(4 * 60 * 60);
    const LINGER: Duration = Duration::from_secs(10);

    /// A stream, and what is left of both sides to whoever tests it.
    fn stream() -> (impl Future<Output = Ended>, DuplexStream, DuplexStream) {
        let (client, clients) = duplex(64 << 10);
        let (runtime, runtimes) = duplex(64 << 10);
        (both_ways(clients, runtimes, IDLE, LINGER), client, runtime)
    }

    async fn read(from: &mut DuplexStream, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes).await.expect("the bytes arrive");
        bytes
    }

    async fn rest(from: &mut DuplexStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).await.expect("a duplex has no errors");
        bytes
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_ends_its_half_gets_what_is_still_coming() {
        let (stream, mut client, mut runtime) = stream();
        let stream = tokio::spawn(stream);
        client.write_all(b"question").await.expect("a duplex takes it");
        client.shutdown().await.expect("a duplex can be shut down");
        assert_eq!(rest(&mut runtime).await, b"question", "and the end is told");
        for _ in 0..5 {
            tokio::time::sleep(LINGER / 2).await;
            runtime.write_all(b"answer ").await.expect("the stream is there as long as bytes come");
        }
        drop(runtime);
        assert_eq!(rest(&mut client).await, b"answer answer answer answer answer ");
        assert_eq!(stream.await.expect("no panic"), Ended::Client);
    }

    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_does_not_see_its_client_leave_is_left() {
        let (stream, client, mut runtime) = stream();
        let began = Instant::now();
        let stream = tokio::spawn(stream);
        drop(client);
        assert_eq!(stream.await.expect("no panic"), Ended::Client);
        assert_eq!(began.elapsed(), LINGER);
        assert_eq!(rest(&mut runtime).await, b"");
    }

    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_still_talks_to_a_dead_client_is_left_at_once() {
        let (stream, client, mut runtime) = stream();
        drop(client);
        runtime.write_all(b"are you there").await.expect("a duplex takes it");
        let began = Instant::now();
        assert_eq!(stream.await, Ended::Client);
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_runtime_said_last_reaches_a_client_that_still_talks() {
        let (stream, mut client, mut runtime) = stream();
        let stream = tokio::spawn(stream);
        runtime.write_all(b"exit code 3").await.expect("a duplex takes it");
        // Gone for both directions: nothing more can be written to it.
        drop(runtime);
        // More than both pipes hold, so that somebody has to read it.
        let talk = vec![b'x'; 1 << 20];
        client.write_all(&talk).await.expect("it is read and thrown away");
        assert_eq!(read(&mut client, 11).await, b"exit code 3");
        drop(client);
        assert_eq!(stream.await.expect("no panic"), Ended::Runtime);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_leave_a_dead_runtime_is_left() {
        let (stream, mut client, runtime) = stream();
        drop(runtime);
        let began = Instant::now();
        assert_eq!(stream.await, Ended::Runtime);
        assert_eq!(began.elapsed(), LINGER);
        assert_eq!(rest(&mut client).await, b"");
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_stream_on_which_nothing_moves_is_idle() {
        let (stream, mut client, mut runtime) = stream();
        let stream = tokio::spawn(stream);
        for _ in 0..3 {
            tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
            client.write_all(b"still here").await.expect("the stream is there");
            assert_eq!(read(&mut runtime, 10).await, b"still here");
            tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
            runtime.write_all(b"so am I").await.expect("the stream is there");
            assert_eq!(read(&mut client, 7).await, b"so am I");
        }
        let began = Instant::now();
        assert_eq!(stream.await.expect("no panic"), Ended::Idle);
        assert_eq!(began.elapsed(), IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_holds_its_stream_no_longer_than_an_idle_one() {
        let (stream, client, mut runtime) = stream();
        let stream = tokio::spawn(stream);
        let flood = tokio::spawn(async move { runtime.write_all(&vec![0; 1 << 20]).await });
        assert_eq!(stream.await.expect("no panic"), Ended::Idle);
        assert!(flood.await.expect("no panic").is_err(), "the runtime is not read from any more");
        drop(client);
    }

    #[tokio::test]
    async fn a_buffer_is_large_only_while_much_comes() {
        let (mut near, mut far) = duplex(1 << 20);
        far.write_all(&[7; 40 << 10]).await.expect("it fits");
        let mut buffer = Buffer::default();
        let mut sizes = Vec::new();
        for _ in 0..4 {
            let read = buffer.read(&mut near).await.expect("no errors").expect("no end").len();
            sizes.push((read, buffer.bytes.len()));
        }
        let most = BUFFER_BYTES_MAX;
        assert_eq!(sizes, [(1024, 1024), (most, most), (most, most), (7 << 10, most)]);
        far.write_all(b"a").await.expect("it fits");
        assert_eq!(buffer.read(&mut near).await.expect("no errors"), Some(&b"a"[..]));
        far.write_all(b"b").await.expect("it fits");
        assert_eq!(buffer.read(&mut near).await.expect("no errors"), Some(&b"b"[..]));
        assert_eq!(buffer.bytes.len(), BUFFER_BYTES);
    }
}
