//! Answers with a page of samples, compressed for those who take that.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use futures::stream;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};

use super::body::{self, Body};
use crate::metrics::text;

/// What is compressed at once. Other requests get their turn in between.
const PIECE_BYTES: usize = 64 << 10;

/// Text is an answer to every `Accept` that a scraper sends.
pub fn page(request_headers: &HeaderMap, text: String) -> Response<Body> {
    match takes_gzip(request_headers) {
        true => answer(gzip(text), true),
        false => answer(body::full(text), false),
    }
}

pub fn answer(page: Body, is_gzip: bool) -> Response<Body> {
    let mut response = Response::new(page);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(text::CONTENT_TYPE));
    if is_gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

pub fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let is_gzip = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(Ok(1.0), str::parse::<f32>);
        is_gzip && weight.is_ok_and(|weight| weight > 0.0)
    })
}

/// Piece by piece, as the caller takes them.
fn gzip(text: String) -> Body {
    let text = Bytes::from(text);
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let pieces = stream::try_unfold(Some((text, encoder)), |state| async move {
        let Some((mut rest, mut encoder)) = state else { return Ok::<_, io::Error>(None) };
        loop {
            if rest.is_empty() {
                return Ok(Some((Frame::data(Bytes::from(encoder.finish()?)), None)));
            }
            let piece = rest.split_to(rest.len().min(PIECE_BYTES));
            encoder.write_all(&piece)?;
            let compressed = std::mem::take(encoder.get_mut());
            if !compressed.is_empty() {
                return Ok(Some((Frame::data(Bytes::from(compressed)), Some((rest, encoder)))));
            }
            tokio::task::yield_now().await;
        }
    });
    StreamBody::new(pieces).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn asking(accepted: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(accepted))])
    }

    #[test]
    fn only_who_takes_gzip_gets_it() {
        let check = |accepted, expected| assert_eq!(takes_gzip(&asking(accepted)), expected, "{accepted}");
        check("gzip", true);
        check("deflate, GZIP;q=0.5", true);
        check("gzip;q=0", false);
        check("gzip;q=nonsense", false);
        check("identity, xgzip", false);
        assert!(!takes_gzip(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn a_compressed_page_is_the_page() {
        for length in [0, 1, 10 * PIECE_BYTES + 1] {
            let text: String = (0..length).map(|at| char::from(b'a' + (at % 23) as u8)).collect();
            let response = page(&asking("gzip"), text.clone());
            assert_eq!(response.headers()[header::CONTENT_TYPE], text::CONTENT_TYPE);
            assert_eq!(response.headers()[header::CONTENT_ENCODING], "gzip");
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            let mut read = String::new();
            flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut read).unwrap();
            assert!(read == text, "{length}");
        }
        let plain = page(&HeaderMap::new(), "a 1\n".to_owned());
        assert!(!plain.headers().contains_key(header::CONTENT_ENCODING));
        assert_eq!(plain.into_body().collect().await.unwrap().to_bytes(), "a 1\n");
    }
}
