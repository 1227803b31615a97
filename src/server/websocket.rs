//! What a client wants to go on with, and the protocols that a WebSocket offers. Browsers can set no
//! other header of one, so that a bearer token may be among them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{CONNECTION, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};

const TOKEN: &str = "base64url.bearer.authorization.k8s.io.";

/// Why a token in them is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadProtocols {
    #[error("they hold several bearer tokens")]
    Several,
    #[error("their bearer token is not base64 of a text")]
    NoText,
    #[error("there is no other beside the bearer token")]
    Alone,
}

/// The bearer token among the protocols.
pub fn token(headers: &HeaderMap) -> Result<Option<String>, BadProtocols> {
    if !is_websocket(headers) {
        return Ok(None);
    }
    let mut encoded = protocols(headers).filter_map(|protocol| protocol.strip_prefix(TOKEN));
    let Some(first) = encoded.next() else { return Ok(None) };
    if encoded.next().is_some() {
        return Err(BadProtocols::Several);
    }
    let decoded = URL_SAFE_NO_PAD.decode(first).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let token = decoded.ok_or(BadProtocols::NoText)?;
    match (token.is_empty(), without_token(headers)) {
        (true, _) => Ok(None),
        // The client is to be told one of those it offered, and that must not be the token.
        (false, None) => Err(BadProtocols::Alone),
        (false, Some(_)) => Ok(Some(token)),
    }
}

/// The protocols that are no token, for whoever is to speak one of them.
pub fn without_token(headers: &HeaderMap) -> Option<HeaderValue> {
    let others: Vec<_> = protocols(headers).filter(|protocol| !protocol.starts_with(TOKEN)).collect();
    HeaderValue::from_str(&others.join(", ")).ok().filter(|others| !others.is_empty())
}

/// What the client wants to speak after this request, if it wants to speak something else.
pub fn upgrades(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let is_wanted = listed(headers, CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    listed(headers, UPGRADE).filter(move |_| is_wanted)
}

fn is_websocket(headers: &HeaderMap) -> bool {
    upgrades(headers).any(|to| to.eq_ignore_ascii_case("websocket"))
}

pub fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    listed(headers, SEC_WEBSOCKET_PROTOCOL)
}

/// What a header lists, which may be there several times.
fn listed(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(protocols: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        for protocol in protocols {
            headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        }
        headers
    }

    #[track_caller]
    fn check(protocols: &[&'static str], expected: Result<Option<&str>, BadProtocols>, others: Option<&str>) {
        let headers = headers(protocols);
        let found = token(&headers);
        assert_eq!(found.as_ref().map(Option::as_deref).map_err(|error| *error), expected, "{protocols:?}");
        let rest = without_token(&headers);
        assert_eq!(rest.as_ref().and_then(|rest| rest.to_str().ok()), others, "{protocols:?}");
    }

    #[test]
    fn a_token_among_the_protocols_is_found_and_taken_out() {
        const GOOD: &str = "base64url.bearer.authorization.k8s.io.Z29vZA";
        check(&[], Ok(None), None);
        check(&["v4.channel.k8s.io"], Ok(None), Some("v4.channel.k8s.io"));
        check(&[GOOD, "v4.channel.k8s.io"], Ok(Some("good")), Some("v4.channel.k8s.io"));
        let one_line = "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.Z29vZA ,v4.channel.k8s.io";
        check(&[one_line], Ok(Some("good")), Some("v5.channel.k8s.io, v4.channel.k8s.io"));
        check(&[GOOD], Err(BadProtocols::Alone), None);
        check(&[GOOD, GOOD, "v4.channel.k8s.io"], Err(BadProtocols::Several), Some("v4.channel.k8s.io"));
        for broken in ["base64url.bearer.authorization.k8s.io.Z29vZA==", "base64url.bearer.authorization.k8s.io._w"] {
            check(&[broken, "x"], Err(BadProtocols::NoText), Some("x"));
        }
        check(&["base64url.bearer.authorization.k8s.io.", "x"], Ok(None), Some("x"));
    }

    #[test]
    fn only_a_websocket_has_protocols_that_count() {
        let mut spdy = headers(&["base64url.bearer.authorization.k8s.io.Z29vZA", "x"]);
        spdy.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        assert_eq!(token(&spdy), Ok(None));
    }
}
