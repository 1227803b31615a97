//! URLs: which request one means, and where a redirect leads.

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;

use super::{HttpGet, Scheme};

impl HttpGet {
    /// The request that a URL means, without headers; `None` if it is no HTTP URL.
    pub fn of_url(url: &str) -> Option<HttpGet> {
        let (scheme, rest) = split_scheme(url)?;
        HttpGet::of_authority(scheme, rest)
    }

    /// The request that `location` means when it is met in the answer to this one, and whether
    /// it was given without a host.
    pub fn redirected(&self, location: &str) -> Option<(HttpGet, bool)> {
        let absolute = match location.strip_prefix("//") {
            Some(rest) => Some((self.scheme, rest)),
            None => split_scheme(location),
        };
        if let Some((scheme, rest)) = absolute {
            let next = HttpGet::of_authority(scheme, rest)?;
            return Some((HttpGet { headers: self.headers.clone(), ..next }, false));
        }
        let base = self.path.split('?').next().unwrap_or_default();
        let path = match location.chars().next() {
            Some('/') => location.to_owned(),
            Some('?') => format!("{base}{location}"),
            Some('#') | None => self.path.clone(),
            Some(_) => format!("{}{location}", &base[..=base.rfind('/')?]),
        };
        Some((HttpGet { path: wire_path(&without_dots(&path)), ..self.clone() }, true))
    }

    fn of_authority(scheme: Scheme, rest: &str) -> Option<HttpGet> {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (host, port) = split_authority(&rest[..end], scheme)?;
        Some(HttpGet { scheme, host, port, path: wire_path(&rest[end..]), headers: Vec::new() })
    }
}

/// What an `Authorization` header says for the user and the password in a URL.
pub fn basic_authorization(url: &str) -> Option<String> {
    let (range, _) = userinfo(url)?;
    let user: Vec<u8> = percent_decode_str(&url[range]).collect();
    // A colon belongs to the form, whether there is a password or not.
    let user = if user.contains(&b':') { user } else { [user, vec![b':']].concat() };
    Some(format!("Basic {}", STANDARD.encode(user)))
}

/// The URL as it may be told to anyone.
pub fn without_userinfo(url: &str) -> String {
    match userinfo(url) {
        Some((range, after)) => format!("{}{}", &url[..range.start], &url[after..]),
        None => url.to_owned(),
    }
}

/// Where user and password stand in a URL, and where the host begins after them.
fn userinfo(url: &str) -> Option<(Range<usize>, usize)> {
    let start = url.find("://")? + "://".len();
    let rest = &url[start..];
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let at = authority.rfind('@')?;
    Some((start..start + at, start + at + 1))
}

fn split_scheme(url: &str) -> Option<(Scheme, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    match () {
        () if scheme.eq_ignore_ascii_case("http") => Some((Scheme::Http, rest)),
        () if scheme.eq_ignore_ascii_case("https") => Some((Scheme::Https, rest)),
        () => None,
    }
}

/// Path and query as they may stand in a request line: from a slash, without fragment, and
/// what is no URL character escaped.
pub fn wire_path(written: &str) -> String {
    let written = written.split('#').next().unwrap_or_default();
    let mut path = String::with_capacity(written.len() + 1);
    if !written.starts_with('/') {
        path.push('/');
    }
    for byte in written.bytes() {
        match byte {
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => path.push_str(&format!("%{byte:02X}")),
            0x21..=0x7e => path.push(char::from(byte)),
            _ => path.push_str(&format!("%{byte:02X}")),
        }
    }
    path
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_password_of_a_url_become_a_header_and_are_not_told() {
        let check = |url: &str, user: Option<&str>, told: &str| {
            let expected = user.map(|user| format!("Basic {}", STANDARD.encode(user)));
            assert_eq!((basic_authorization(url), without_userinfo(url)), (expected, told.to_owned()));
        };
        check("http://me:se%2Fcr%40t@a:1/b@c", Some("me:se/cr@t"), "http://a:1/b@c");
        check("http://me@a/b", Some("me:"), "http://a/b");
        check("http://a/b@c", None, "http://a/b@c");
        check("nothing", None, "nothing");
    }

    #[test]
    fn a_url_means_one_request() {
        let check = |url: &str, expected: Option<&str>| {
            assert_eq!(HttpGet::of_url(url).map(|get| get.to_string()).as_deref(), expected, "{url}");
        };
        check("http://a", Some("http://a:80/"));
        check("HTTPS://a:1/b?c#d", Some("https://a:1/b?c"));
        check("http://[::1]:8080/b", Some("http://[::1]:8080/b"));
        check("http://me:secret@a/b", Some("http://a:80/b"));
        check("a/b", None);
        check("ftp://a/b", None);
        check("http:///b", None);
        check("http://a:port/b", None);
    }
}
