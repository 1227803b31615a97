//! `/stats/summary`, `/metrics/resource` and `/metrics/cadvisor`.

use std::collections::VecDeque;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, Response, StatusCode};
use hyper::body::Bytes;

use super::body::{self, Body};
use super::{page, query};
use crate::causes::chain;
use crate::stats::{Sink, Stats};

pub async fn summary(stats: &Stats, query: &str) -> Response<Body> {
    let values = query::pairs(query).into_iter().filter(|(key, _)| key == "only_cpu_and_memory");
    let values: Vec<String> = values.map(|(_, value)| value).collect();
    match stats.summary(values == ["true"]).await {
        Ok(json) => body::json(body::full(json)),
        Err(error) => failed(&error),
    }
}

pub async fn resource(stats: &Stats, headers: &HeaderMap) -> Response<Body> {
    page::page(headers, stats.resource().await)
}

pub async fn cadvisor(stats: &Stats, headers: &HeaderMap) -> Response<Body> {
    match stats.cadvisor(Encoded::of(headers)).await {
        Ok(page) => page.into_response(),
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::error::Error) -> Response<Body> {
    body::text(StatusCode::INTERNAL_SERVER_ERROR, format!("Internal Error: {}", chain(error)))
}

/// A page as it goes out. One of many pods is megabytes, which are not copied into one place; and of
/// which compression leaves a sixth, as they come, so that they never lie in memory all at once.
enum Encoded {
    Plain(VecDeque<Bytes>),
    Gzip(Box<GzEncoder<Vec<u8>>>),
}

impl Encoded {
    fn of(headers: &HeaderMap) -> Self {
        match page::takes_gzip(headers) {
            true => Encoded::Gzip(Box::new(GzEncoder::new(Vec::new(), Compression::fast()))),
            false => Encoded::Plain(VecDeque::new()),
        }
    }

    fn into_response(self) -> Response<Body> {
        match self {
            Encoded::Plain(pieces) => page::answer(body::of_pieces(pieces), false),
            Encoded::Gzip(encoder) => {
                let bytes = encoder.finish().expect("a vector takes all that is written");
                page::answer(body::full(bytes), true)
            }
        }
    }
}

impl Sink for Encoded {
    fn take(&mut self, piece: String) {
        match self {
            Encoded::Plain(pieces) => pieces.push_back(Bytes::from(piece)),
            Encoded::Gzip(encoder) => {
                encoder.write_all(piece.as_bytes()).expect("a vector takes all that is written");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;
    use http::{HeaderValue, header};
    use http_body_util::BodyExt;
    use hyper::body::Body as _;

    use super::*;

    fn headers(accepted: &[&'static str]) -> HeaderMap {
        let values = accepted.iter().map(|value| (header::ACCEPT_ENCODING, HeaderValue::from_static(value)));
        values.collect()
    }

    #[tokio::test]
    async fn pieces_make_one_page_either_way() {
        for accepted in [&["gzip"][..], &[]] {
            let mut page = Encoded::of(&headers(accepted));
            page.take("one ".to_owned());
            page.take("two".to_owned());
            let response = page.into_response();
            assert_ne!(response.body().size_hint().exact(), None);
            let is_gzip = response.headers().get(header::CONTENT_ENCODING).is_some_and(|it| it == "gzip");
            assert_eq!(is_gzip, !accepted.is_empty());
            let bytes = response.into_body().collect().await.expect("it is in memory").to_bytes();
            let mut text = String::new();
            match is_gzip {
                true => GzDecoder::new(&bytes[..]).read_to_string(&mut text).expect("it is gzip"),
                false => (&bytes[..]).read_to_string(&mut text).expect("it is text"),
            };
            assert_eq!(text, "one two");
        }
    }
}
