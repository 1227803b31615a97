//! `/debug/flags/v`: how much is logged, changed while the agent runs.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;
use tracing::info;

use super::body::{self, Body};

/// A number, and whatever blanks are around it.
const BODY_BYTES_MAX: usize = 64;
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// What sets the verbosity of the whole process.
#[derive(Clone)]
pub struct Verbosity(Arc<dyn Fn(u32) + Send + Sync>);

impl fmt::Debug for Verbosity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verbosity")
    }
}

impl Verbosity {
    pub fn new(set: impl Fn(u32) + Send + Sync + 'static) -> Self {
        Verbosity(Arc::new(set))
    }

    pub async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if request.method() != Method::PUT {
            return body::text(StatusCode::NOT_ACCEPTABLE, "unsupported http method\n");
        }
        let given = match timeout(BODY_WITHIN, Limited::new(request.into_body(), BODY_BYTES_MAX).collect()).await {
            Ok(Ok(read)) => parse(&read.to_bytes()),
            Ok(Err(error)) => Err(format!("error reading request body: {error}")),
            Err(_) => Err(format!("error reading request body: it did not come within {BODY_WITHIN:?}")),
        };
        match given {
            Ok(level) => {
                // At the level that is always shown: who reads the log should know why it changes.
                info!(level, "log verbosity is set");
                (self.0)(level);
                body::text(StatusCode::OK, format!("successfully set klog.logging.verbosity to {level}\n"))
            }
            Err(why) => body::text(StatusCode::BAD_REQUEST, why + "\n"),
        }
    }
}

/// No sign, and no more than upstream's type holds.
fn parse(given: &[u8]) -> Result<u32, String> {
    let text = String::from_utf8_lossy(given);
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let level = text.parse::<i32>().ok().filter(|_| is_number).and_then(|level| u32::try_from(level).ok());
    level.ok_or_else(|| format!("expected a whole number up to {}, found {text:?}", i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_numbers_are_a_verbosity() {
        assert_eq!((parse(b"0"), parse(b"4"), parse(b"2147483647")), (Ok(0), Ok(4), Ok(i32::MAX as u32)));
        for wrong in [&b""[..], b"-1", b"+1", b"4 ", b"4\n", b"x", b"1.5", b"2147483648", b"\xff"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
