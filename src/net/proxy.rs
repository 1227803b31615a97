//! Which proxy a document is fetched through, as the environment says it: `HTTP_PROXY`,
//! `HTTPS_PROXY` and `NO_PROXY`, or the same in small letters, by the rules of upstream's
//! HTTP client. This machine itself is never asked through a proxy.

use std::net::IpAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::names::Names;
use super::{BODY_BYTES_MAX, HttpGet, NetError, Result, Scheme, authority, basic_authorization, connect};

/// A proxy spoken to in plain HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    host: String,
    port: u16,
    /// The value of a `Proxy-Authorization` header.
    pub authorization: Option<String>,
}

/// Who goes through which proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    http: Option<Choice>,
    https: Option<Choice>,
    exceptions: Vec<Exception>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    Through(Proxy),
    /// None that we can speak to, and why. To go around it would be against the operator's word.
    Unusable(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Exception {
    whom: Whom,
    /// Any, where it is not given.
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Whom {
    All,
    Address(IpAddr),
    /// An address and how many of its first bits count.
    Net(IpAddr, u8),
    /// What stands below this name, which begins with a dot; and perhaps the name itself.
    Domain {
        below: String,
        itself: bool,
    },
}

impl Proxies {
    /// `variable` looks a variable of the environment up.
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let filled = |name: String| variable(&name).filter(|value| !value.is_empty()).map(|value| (name, value));
        let either = |name: &str| filled(name.to_owned()).or_else(|| filled(name.to_ascii_lowercase()));
        let choice = |name: &str| either(name).map(|(name, value)| choice(&name, &value));
        let (_, exceptions) = either("NO_PROXY").unwrap_or_default();
        Proxies {
            http: choice("HTTP_PROXY"),
            https: choice("HTTPS_PROXY"),
            exceptions: exceptions.split(',').filter_map(exception).collect(),
        }
    }

    /// The proxy that this request goes through, if any.
    pub fn for_request(&self, request: &HttpGet) -> Result<Option<&Proxy>> {
        let choice = match request.scheme {
            Scheme::Http => &self.http,
            Scheme::Https => &self.https,
        };
        match choice {
            Some(choice) if !self.is_excepted(&request.host, request.port) => match choice {
                Choice::Through(proxy) => Ok(Some(proxy)),
                Choice::Unusable(why) => Err(NetError::Request(why.clone())),
            },
            _ => Ok(None),
        }
    }

    fn is_excepted(&self, host: &str, port: u16) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let address: Option<IpAddr> = host.parse().ok();
        if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        self.exceptions.iter().any(|exception| {
            let meant = match &exception.whom {
                Whom::All => true,
                Whom::Address(excepted) => address == Some(*excepted),
                Whom::Net(net, bits) => address.is_some_and(|address| is_in(address, *net, *bits)),
                Whom::Domain { below, itself } => host.ends_with(below) || (*itself && host == below[1..]),
            };
            meant && exception.port.is_none_or(|excepted| excepted == port)
        })
    }
}

/// A URL, or `host:port` for one of plain HTTP. What is written may hold a password: it is not told.
fn choice(variable: &str, written: &str) -> Choice {
    let url = match written.split_once("://") {
        None => format!("http://{written}"),
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("http") => written.to_owned(),
        Some((scheme, _)) => {
            let scheme = scheme.to_ascii_lowercase();
            return Choice::Unusable(format!("proxies by {scheme} are not supported, as {variable} has it"));
        }
    };
    match HttpGet::of_url(&url) {
        Some(HttpGet { host, port, .. }) => {
            Choice::Through(Proxy { host, port, authorization: basic_authorization(&url) })
        }
        None => Choice::Unusable(format!("the environment variable {variable} is no URL of a proxy")),
    }
}

fn exception(written: &str) -> Option<Exception> {
    let written = written.trim().to_ascii_lowercase();
    if written == "*" {
        return Some(Exception { whom: Whom::All, port: None });
    }
    if let Some((net, bits)) = written.split_once('/') {
        let (net, bits): (IpAddr, u8) = (net.parse().ok()?, bits.parse().ok()?);
        let longest = if net.is_ipv4() { 32 } else { 128 };
        return (bits <= longest).then_some(Exception { whom: Whom::Net(net, bits), port: None });
    }
    let bare = |host: &str| host.parse::<IpAddr>().is_ok();
    let (host, port) = match written.rsplit_once(':') {
        Some((host, port)) if !bare(&written) => (host, Some(port.parse().ok()?)),
        _ => (written.as_str(), None),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = host.parse() {
        return Some(Exception { whom: Whom::Address(address), port });
    }
    let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
    let whom = match host {
        "" => return None,
        below if below.starts_with('.') => Whom::Domain { below: below.to_owned(), itself: false },
        name => Whom::Domain { below: format!(".{name}"), itself: true },
    };
    Some(Exception { whom, port })
}

fn is_in(address: IpAddr, net: IpAddr, bits: u8) -> bool {
    // The first bits as the highest ones of a number.
    let number = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
        IpAddr::V6(address) => u128::from(address),
    };
    let differing = number(address) ^ number(net);
    address.is_ipv4() == net.is_ipv4() && differing.leading_zeros() >= u32::from(bits)
}

impl Proxy {
    pub async fn connect(&self, names: &Names) -> Result<TcpStream> {
        connect(names, &self.host, self.port).await
    }

    /// A connection to the server of `request` through the proxy, on which nothing was said yet.
    pub async fn tunnel(&self, names: &Names, request: &HttpGet) -> Result<TcpStream> {
        let mut stream = self.connect(names).await?;
        let server = request.authority();
        let mut ask = format!("CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n");
        if let Some(authorization) = &self.authorization {
            ask.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
        }
        ask.push_str("\r\n");
        let broken = |error: std::io::Error| NetError::Exchange(error.to_string());
        stream.write_all(ask.as_bytes()).await.map_err(broken)?;
        // One by one: what follows the head is of the server.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() == BODY_BYTES_MAX {
                return Err(self.refusal("its answer has no end"));
            }
            head.push(stream.read_u8().await.map_err(broken)?);
        }
        let head = String::from_utf8_lossy(&head);
        let status = head.lines().next().unwrap_or_default();
        match status.strip_prefix("HTTP/1.").and_then(|rest| rest.split_once(' ')) {
            Some((_, status)) if status.starts_with("200") => Ok(stream),
            Some((_, status)) => Err(self.refusal(status)),
            None => Err(self.refusal("its answer is not HTTP")),
        }
    }

    fn refusal(&self, why: &str) -> NetError {
        NetError::Exchange(format!("proxy {}: {why}", authority(&self.host, self.port)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::of(|asked| variables.iter().find(|(name, _)| *name == asked).map(|(_, value)| (*value).to_owned()))
    }

    /// The proxy of a request, or why there is none.
    fn proxy(proxies: &Proxies, url: &str) -> String {
        match proxies.for_request(&HttpGet::of_url(url).expect("a URL")) {
            Ok(Some(proxy)) => authority(&proxy.host, proxy.port),
            Ok(None) => "none".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn each_scheme_has_a_proxy_of_its_own() {
        let both = proxies(&[("HTTP_PROXY", "http://me:pass@plain:3128/"), ("https_proxy", "secret")]);
        assert_eq!(proxy(&both, "http://a"), "plain:3128");
        assert_eq!(proxy(&both, "https://a"), "secret:80");
        let Some(Choice::Through(plain)) = &both.http else { panic!("{both:?}") };
        assert_eq!(plain.authorization, basic_authorization("http://me:pass@a"));
        assert_eq!(proxy(&proxies(&[("HTTP_PROXY", "plain")]), "https://a"), "none");
        assert_eq!(proxy(&proxies(&[("HTTP_PROXY", ""), ("http_proxy", "[::1]:8080")]), "http://a"), "[::1]:8080");
        assert_eq!(proxies(&[]), Proxies::default());
    }

    #[test]
    fn a_proxy_that_nobody_can_speak_to_is_not_gone_around() {
        let by = |proxy: &'static str| proxies(&[("HTTP_PROXY", proxy), ("NO_PROXY", "b")]);
        let refused = "invalid request: proxies by socks5 are not supported, as HTTP_PROXY has it";
        assert_eq!(proxy(&by("socks5://p:1080"), "http://a"), refused);
        assert_eq!(proxy(&by("socks5://p:1080"), "http://b"), "none");
        let malformed = "invalid request: the environment variable HTTP_PROXY is no URL of a proxy";
        for written in ["p:port", "http://", "http://me:secret@p:99999"] {
            assert_eq!(proxy(&by(written), "http://a"), malformed, "{written}");
            assert_eq!(proxy(&by(written), "http://b"), "none", "{written}");
        }
        let small = proxies(&[("https_proxy", "p:port")]);
        assert_eq!(proxy(&small, "https://a"), malformed.replace("HTTP_PROXY", "https_proxy"));
        assert_eq!(proxy(&small, "http://a"), "none");
    }

    #[test]
    fn exceptions_go_straight() {
        let check = |exceptions: &str, straight: &[&str], through: &[&str]| {
            let proxies = proxies(&[("HTTP_PROXY", "p:1"), ("NO_PROXY", exceptions)]);
            for url in straight {
                assert_eq!(proxy(&proxies, url), "none", "{url} with {exceptions:?}");
            }
            for url in through {
                assert_eq!(proxy(&proxies, url), "p:1", "{url} with {exceptions:?}");
            }
        };
        check("", &["http://localhost:8080", "http://127.0.0.9", "http://[::1]:1"], &["http://a", "http://10.0.0.1"]);
        check("*", &["http://a", "http://10.0.0.1"], &[]);
        check(
            "example.com, ,other",
            &["http://Example.com", "http://a.example.com.", "http://other"],
            &["http://notexample.com"],
        );
        check(".example.com", &["http://a.example.com"], &["http://example.com"]);
        check("*.example.com", &["http://a.example.com"], &["http://example.com"]);
        check("a:8080", &["http://a:8080", "http://b.a:8080"], &["http://a"]);
        check(
            "10.0.0.1,[fd00::1]:99,fd00::2",
            &["http://10.0.0.1", "http://[fd00::1]:99", "http://[fd00::2]"],
            &["http://10.0.0.2", "http://[fd00::1]"],
        );
        check(
            "10.1.0.0/16,fd00::/8",
            &["http://10.1.9.9", "http://[fd12::1]"],
            &["http://10.2.0.1", "http://[fe80::1]"],
        );
        check("0.0.0.0/0", &["http://10.1.9.9"], &["http://a", "http://[fd12::1]"]);
        check("10.0.0.0/33,a:port", &[], &["http://10.0.0.0", "http://a"]);
    }
}
