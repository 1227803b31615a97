//! Answers on their way to whoever asked, in pieces, and given up where nobody takes them.
//!
//! Nobody asks a body for more while its client takes nothing: so it cannot notice that itself,
//! and the connection's task looks after all that are under way on it. What is given up lets go
//! at once of all it held, and counts as under way no more; its client hears of it when it reads
//! on, or its connection ends as one that is idle.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Response;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Bytes, Frame, SizeHint};
use tokio::time::Instant;

use super::body::{self, Body};
use super::guests::UnderWay;

/// How long nothing of an answer may be taken where its handler says nothing else. Somebody who
/// reads a log in a pager may have lunch meanwhile. Upstream ends every answer after four hours,
/// also one that is read.
const STALL_LIMIT: Duration = Duration::from_secs(60 * 60);
/// What goes out at once: what somebody has taken is known so exactly.
const PIECE_BYTES: usize = 64 * 1024;

/// Shorter times, which a handler puts among an answer's extensions.
#[derive(Clone, Copy)]
pub struct Haste {
    /// Within which some of it has to be taken.
    pub piece: Duration,
    /// And all of it.
    pub whole: Duration,
}

pub struct Flow {
    limit: Duration,
    /// By when all of it has to be taken.
    end: Option<Instant>,
    state: Mutex<State>,
}

struct State {
    /// Gone once it was given up.
    content: Option<Content>,
    /// When the last piece was handed over that nobody has asked beyond. An answer that waits
    /// for something to say has none.
    handed: Option<Instant>,
    /// Which was not told yet.
    was_given_up: bool,
}

struct Content {
    body: Body,
    /// Of the last frame.
    rest: Bytes,
}

/// The answer, which keeps the request under way, and what else is `kept`, until it was taken or
/// given up.
pub fn carry(response: Response<Body>, under_way: UnderWay, kept: impl Send + 'static) -> Response<Body> {
    let (haste, now) = (response.extensions().get::<Haste>().copied(), Instant::now());
    let limit = haste.map_or(STALL_LIMIT, |haste| haste.piece);
    let end = haste.map(|haste| now + haste.whole);
    let state = State { content: None, handed: Some(now), was_given_up: false };
    let flow = Arc::new(Flow { limit, end, state: Mutex::new(state) });
    under_way.follow(&flow);
    response.map(|body| {
        let body = body::keeping(body, (under_way, kept));
        lock(&flow.state).content = Some(Content { body, rest: Bytes::new() });
        Taken(flow).boxed_unsync()
    })
}

impl Flow {
    /// When it will be given up, if nothing is taken until then. Does so if it is time.
    pub fn look(&self, now: Instant) -> Option<Instant> {
        // One that is asked just now, and so locked, is taken.
        let Ok(mut state) = self.state.try_lock() else { return Some(now + self.limit) };
        let stalled = state.handed.unwrap_or(now) + self.limit;
        let due = self.end.map_or(stalled, |end| end.min(stalled));
        if due > now {
            return Some(due);
        }
        // Dropped after the lock: what it held takes others.
        let content = state.content.take()?;
        state.was_given_up = true;
        drop(state);
        drop(content);
        None
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    // An answer that panics is taken no further by anybody.
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The body as it is taken. The only one that keeps its flow.
struct Taken(Arc<Flow>);

impl hyper::body::Body for Taken {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut state = lock(&self.0.state);
        if std::mem::take(&mut state.was_given_up) {
            let why = format!("nothing of the answer was taken for {:?}, or not all of it in time", self.0.limit);
            return Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::TimedOut, why))));
        }
        let Some(content) = &mut state.content else { return Poll::Ready(None) };
        let polled = content.poll(context);
        state.handed = polled.is_ready().then(Instant::now);
        polled
    }

    fn is_end_stream(&self) -> bool {
        let state = lock(&self.0.state);
        let is_taken = |content: &Content| content.rest.is_empty() && content.body.is_end_stream();
        !state.was_given_up && state.content.as_ref().is_none_or(is_taken)
    }

    fn size_hint(&self) -> SizeHint {
        let state = lock(&self.0.state);
        let Some(content) = &state.content else { return SizeHint::default() };
        let (rest, of_body) = (content.rest.len() as u64, content.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(of_body.lower() + rest);
        if let Some(upper) = of_body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

impl Content {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, poll, stream};
    use http_body_util::StreamBody;
    use tokio::time::{advance, timeout};

    use super::*;
    use crate::server::guests::{Guest, Guests};

    fn begin(guest: &Arc<Guest>, body: Body) -> (Body, std::sync::Weak<()>) {
        let kept = Arc::new(());
        let weak = Arc::downgrade(&kept);
        (carry(Response::new(body), guest.request(), kept).into_body(), weak)
    }

    async fn next(body: &mut Body) -> Option<io::Result<usize>> {
        let frame = body.frame().await?;
        Some(frame.map(|frame| frame.into_data().map_or(0, |data| data.len())))
    }

    #[tokio::test]
    async fn a_long_answer_goes_out_in_pieces_and_says_how_long_it_is() {
        let (mut body, kept) = begin(&Guests::default().welcome(), body::full(vec![0; 2 * PIECE_BYTES + 1]));
        for (piece, left) in [(PIECE_BYTES, PIECE_BYTES + 1), (PIECE_BYTES, 1), (1, 0)] {
            assert_eq!(body.size_hint().exact(), Some((left + piece) as u64));
            assert!(!body.is_end_stream() && kept.upgrade().is_some());
            assert!(matches!(next(&mut body).await, Some(Ok(length)) if length == piece));
        }
        assert!(body.is_end_stream() && next(&mut body).await.is_none());
        let (empty, _) = begin(&Guests::default().welcome(), body::empty());
        assert!(empty.is_end_stream());
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_takes_is_given_up_and_its_connection_is_idle_then() {
        let guest = Guests::default().welcome();
        let (mut body, kept) = begin(&guest, body::full(vec![0; 2 * PIECE_BYTES]));
        let start = Instant::now();
        assert!(matches!(next(&mut body).await, Some(Ok(_))));
        timeout(10 * STALL_LIMIT, guest.idle_too_long()).await.expect("it is idle at last");
        assert!(kept.upgrade().is_none());
        let idle = start.elapsed().checked_sub(STALL_LIMIT).expect("it had its time");
        assert_eq!(idle.as_secs(), crate::server::guests::STRANGER_IDLE_LIMIT.as_secs());
        assert!(matches!(next(&mut body).await, Some(Err(error)) if error.kind() == io::ErrorKind::TimedOut));
        assert!(next(&mut body).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_haste_is_given_up_however_steadily_it_is_taken() {
        let guest = Guests::default().welcome();
        let kept = Arc::new(());
        let weak = Arc::downgrade(&kept);
        let mut response = Response::new(body::full(vec![0; 20 * PIECE_BYTES]));
        let (piece, whole) = (Duration::from_secs(5), Duration::from_secs(30));
        response.extensions_mut().insert(Haste { piece, whole });
        let mut body = carry(response, guest.request(), kept).into_body();
        let mut idle = Box::pin(guest.idle_too_long());
        for _ in 0..7 {
            assert!(poll!(&mut idle).is_pending() && weak.upgrade().is_some());
            assert!(matches!(next(&mut body).await, Some(Ok(_))));
            advance(Duration::from_secs(4)).await;
        }
        advance(Duration::from_secs(4)).await;
        assert!(poll!(&mut idle).is_pending());
        assert!(weak.upgrade().is_none());
        assert!(matches!(next(&mut body).await, Some(Err(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_taken_slowly_or_waits_for_more_to_say_goes_on() {
        let guest = Guests::default().welcome();
        let pieces = stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(b"line\n")))).take(3);
        let silent = pieces.chain(stream::pending());
        let (mut body, kept) = begin(&guest, StreamBody::new(silent).boxed_unsync());
        let mut idle = Box::pin(guest.idle_too_long());
        for _ in 0..3 {
            advance(STALL_LIMIT / 2 + Duration::from_secs(1)).await;
            assert!(poll!(&mut idle).is_pending());
            assert!(matches!(next(&mut body).await, Some(Ok(5))));
        }
        assert!(poll!(Box::pin(next(&mut body))).is_pending());
        for _ in 0..10 {
            advance(STALL_LIMIT).await;
            assert!(poll!(&mut idle).is_pending());
        }
        assert!(kept.upgrade().is_some());
    }
}
