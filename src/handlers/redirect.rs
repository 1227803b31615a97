//! Where a redirected GET goes next.

use super::resolve::wire_path;
use crate::net::{HttpAnswer, HttpGet, Scheme};

/// The next request, or `None` when the answer is the last one: it is no redirect, names no
/// place, or leads to another host than the one asked first, which a pod may not send the
/// agent to.
pub fn follow(first: &HttpGet, request: &HttpGet, answer: &HttpAnswer) -> Option<HttpGet> {
    if !matches!(answer.status, 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = answer.location.as_deref().filter(|location| !location.is_empty())?;
    let (next, is_relative) = resolve(request, location)?;
    if !next.host.eq_ignore_ascii_case(&first.host) {
        return None;
    }
    let mut next = next;
    // A Host of the author's own was meant for the place he wrote, not for another one.
    if !is_relative {
        next.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("host"));
    }
    Some(next)
}

/// The request that `location` means when it is met in the answer to `request`, and whether
/// it was given without a host.
fn resolve(request: &HttpGet, location: &str) -> Option<(HttpGet, bool)> {
    let absolute = |scheme: Scheme, rest: &str| {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (host, port) = split_authority(&rest[..end], scheme)?;
        let path = wire_path(&rest[end..]);
        Some((HttpGet { scheme, host, port, path, headers: request.headers.clone() }, false))
    };
    let lower = location.to_ascii_lowercase();
    if lower.starts_with("http://") {
        return absolute(Scheme::Http, &location["http://".len()..]);
    }
    if lower.starts_with("https://") {
        return absolute(Scheme::Https, &location["https://".len()..]);
    }
    if let Some(rest) = location.strip_prefix("//") {
        return absolute(request.scheme, rest);
    }
    let base = request.path.split('?').next().unwrap_or_default();
    let path = match location.chars().next() {
        Some('/') => location.to_owned(),
        Some('?') => format!("{base}{location}"),
        Some('#') | None => request.path.clone(),
        Some(_) => format!("{}{location}", &base[..=base.rfind('/')?]),
    };
    Some((HttpGet { path: wire_path(&without_dots(&path)), ..request.clone() }, true))
}

fn split_authority(authority: &str, scheme: Scheme) -> Option<(String, u16)> {
    let authority = authority.rsplit('@').next()?;
    let usual = match scheme {
        Scheme::Http => 80,
        Scheme::Https => 443,
    };
    let (host, port) = match authority.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':').unwrap_or(port)),
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let port = if port.is_empty() { usual } else { port.parse().ok()? };
    Some((host.to_owned(), port)).filter(|(host, _)| !host.is_empty())
}

/// A path without its `.` and `..` steps.
fn without_dots(path: &str) -> String {
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let mut steps: Vec<&str> = Vec::new();
    let last = path.rsplit('/').next();
    for step in path.split('/').skip(1) {
        match step {
            "." => {}
            ".." => {
                steps.pop();
            }
            step => steps.push(step),
        }
    }
    if matches!(last, Some("." | "..")) {
        steps.push("");
    }
    let mut clean = format!("/{}", steps.join("/"));
    if let Some(query) = query {
        clean.push('?');
        clean.push_str(query);
    }
    clean
}
