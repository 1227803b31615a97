//! Where a redirected GET goes next.

use crate::net::{HttpAnswer, HttpGet};

/// The next request, or `None` when the answer is the last one: it is no redirect, names no
/// place, or leads to another host than the one asked first, which a pod may not send the
/// agent to.
pub fn follow(first: &HttpGet, request: &HttpGet, answer: &HttpAnswer) -> Option<HttpGet> {
    if !matches!(answer.status, 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = answer.location.as_deref().filter(|location| !location.is_empty())?;
    let (mut next, is_relative) = request.redirected(location)?;
    if !next.host.eq_ignore_ascii_case(&first.host) {
        return None;
    }
    // A Host of the author's own was meant for the place he wrote, not for another one.
    if !is_relative {
        next.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("host"));
    }
    Some(next)
}
