//! Requests as they are counted: by words of a fixed list, whatever a client makes up.

use http::Method;
use tokio::time::Instant;

use crate::metrics::InProgress;
use crate::metrics::http::{Labels, begun, ended};
use crate::server::routes::{self, Door};

/// A request that is under way. Dropped with the end of its answer, or of the stream that follows.
pub struct Counted {
    labels: Labels,
    began: Instant,
    _in_progress: InProgress<4>,
}

impl Counted {
    pub fn begin(method: &Method, path: &str, door: Door) -> Self {
        let labels = labels(method, path, door);
        Counted { labels, began: Instant::now(), _in_progress: begun(labels) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        ended(self.labels, self.began.elapsed());
    }
}

const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"];
const OTHER: &str = "other";

fn labels(method: &Method, path: &str, door: Door) -> Labels {
    let path = counted_path(path);
    let server = match door {
        Door::Main => "readwrite",
        Door::ReadOnly => "readonly",
    };
    // Upstream means portForward too, and misses it by comparing in lower case.
    let is_long = matches!(path, "exec" | "attach" | "portForward" | "debug");
    [known(METHODS, method.as_str()), path, server, if is_long { "true" } else { "false" }]
}

/// The first step of a path that is served, and all of one to metrics.
fn counted_path(path: &str) -> &'static str {
    let path = path.trim_matches('/');
    let found = match path.split('/').next() {
        Some("metrics") => routes::paths().map(|served| &served[1..]).find(|served| *served == path),
        first => routes::paths().map(|served| &routes::first_step(served)[1..]).find(|served| Some(*served) == first),
    };
    found.unwrap_or(OTHER)
}

fn known(words: &[&'static str], word: &str) -> &'static str {
    words.iter().copied().find(|known| *known == word).unwrap_or(OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_asked_is_counted_under_a_known_word() {
        let check = |method: &str, path: &str, expected: Labels| {
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            assert_eq!(labels(&method, path, Door::Main), expected, "{method:?} {path}");
        };
        check("GET", "/pods", ["GET", "pods", "readwrite", "false"]);
        check("GET", "/runningpods/", ["GET", "runningpods", "readwrite", "false"]);
        check("GET", "/metrics", ["GET", "metrics", "readwrite", "false"]);
        check("GET", "/metrics/cadvisor", ["GET", "metrics/cadvisor", "readwrite", "false"]);
        check("GET", "/metrics/made-up", ["GET", "other", "readwrite", "false"]);
        check("POST", "/exec/a/b/c", ["POST", "exec", "readwrite", "true"]);
        check("POST", "/portForward/a/b", ["POST", "portForward", "readwrite", "true"]);
        check("GET", "/debug/flags/v", ["GET", "debug", "readwrite", "true"]);
        check("GET", "/stats/summary", ["GET", "stats", "readwrite", "false"]);
        check("MADEUP", "/made-up", ["other", "other", "readwrite", "false"]);
        for path in routes::paths() {
            assert_ne!(counted_path(path), OTHER, "{path}");
        }
        assert_eq!(labels(&Method::GET, "/", Door::ReadOnly), ["GET", "other", "readonly", "false"]);
    }
}
