//! What answers are made of.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Frame, SizeHint};

pub type Body = UnsyncBoxBody<Bytes, io::Error>;

pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// All of it is there, though not in one place.
pub fn of_pieces(pieces: VecDeque<Bytes>) -> Body {
    Pieces(pieces).map_err(|never: Infallible| match never {}).boxed_unsync()
}

struct Pieces(VecDeque<Bytes>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|piece| piece.len() as u64).sum())
    }
}

/// An answer in words, exactly these.
pub fn text(status: StatusCode, words: impl Into<String>) -> Response<Body> {
    in_words(status, full(words.into()))
}

/// The same of words in whatever form.
pub fn in_words<B>(status: StatusCode, words: B) -> Response<B> {
    let mut response = Response::new(words);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}

/// An answer in words that come piece by piece.
pub fn text_in_pieces(pieces: Body) -> Response<Body> {
    in_words(StatusCode::OK, pieces)
}

pub fn json(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}

/// The same body, which keeps something until it was sent or given up.
pub fn keeping(body: Body, kept: impl Send + 'static) -> Body {
    body.map_err(move |error| {
        let _ = &kept;
        error
    })
    .boxed_unsync()
}
