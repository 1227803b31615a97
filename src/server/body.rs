//! What answers are made of, and how much of a request's body is read.

use std::io;
use std::time::Duration;

use http::{Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Bytes;
use tokio::time::timeout;

pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// More than any of the few requests that have a body needs.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// For a body of that size over the worst of links.
const BODY_LIMIT: Duration = Duration::from_secs(30);

pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An answer in words, exactly these.
pub fn text(status: StatusCode, words: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(full(words.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}

/// An answer in words that come piece by piece.
pub fn text_in_pieces(pieces: Body) -> Response<Body> {
    let mut response = text(StatusCode::OK, "");
    *response.body_mut() = pieces;
    response
}

pub fn json(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}

/// The whole body of a request, or what to answer instead.
pub async fn read<B>(body: B) -> Result<Bytes, Response<Body>>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match timeout(BODY_LIMIT, Limited::new(body, BODY_BYTES_MAX).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(text(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {BODY_BYTES_MAX} bytes\n")))
        }
        Ok(Err(error)) => Err(text(StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}\n"))),
        Err(_) => Err(text(StatusCode::REQUEST_TIMEOUT, "the body did not come in time\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_is_read_up_to_its_limit() {
        for (length, expected) in [(BODY_BYTES_MAX, None), (BODY_BYTES_MAX + 1, Some(413))] {
            let read = read(full(vec![b'x'; length])).await;
            let status = read.as_ref().err().map(|response| response.status().as_u16());
            assert_eq!(status, expected, "{length} bytes");
            assert_eq!(read.map_or(0, |body| body.len()), if expected.is_none() { length } else { 0 });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_is_given_up() {
        let silent =
            http_body_util::StreamBody::new(futures::stream::pending::<io::Result<hyper::body::Frame<Bytes>>>());
        let refused = read(silent).await.expect_err("nothing came");
        assert_eq!(refused.status(), StatusCode::REQUEST_TIMEOUT);
    }
}
