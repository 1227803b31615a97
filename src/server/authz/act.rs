//! What a request does, as a verb on subresources of the node.

use http::Method;

/// Where code is run or its streams are read and written.
const STREAMS: &[&str] = &["/exec", "/attach", "/portForward", "/run"];

/// Paths that have a subresource of their own beside `proxy`: the narrower one is tried first.
const FINE: &[(&str, &[&str])] = &[
    ("/pods", &["pods", "proxy"]),
    ("/runningpods", &["pods", "proxy"]),
    ("/healthz", &["healthz", "proxy"]),
    ("/configz", &["configz", "proxy"]),
];

/// Paths that have one instead of `proxy`.
const OWN: &[(&str, &[&str])] = &[
    ("/stats", &["stats"]),
    ("/metrics", &["metrics"]),
    ("/logs", &["log"]),
    ("/checkpoint", &["checkpoint"]),
    ("/statusz", &["statusz"]),
    ("/flagz", &["configz"]),
];

const PROXY: &[&str] = &["proxy"];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Act {
    pub verb: &'static str,
    /// Tried in this order.
    pub subresources: &'static [&'static str],
}

impl Act {
    pub fn of(method: &Method, path: &str) -> Self {
        let is_of = |(root, _): &&(&str, _)| is_at_or_below(path, root);
        let named = FINE.iter().chain(OWN).find(is_of);
        Act { verb: verb(method, path), subresources: named.map_or(PROXY, |(_, subresources)| subresources) }
    }
}

/// As upstream's, but for streams: a WebSocket begins with a GET, and whoever may only look is
/// not to run code through it.
fn verb(method: &Method, path: &str) -> &'static str {
    if STREAMS.iter().any(|root| is_at_or_below(path, root)) {
        return "create";
    }
    match *method {
        Method::POST => "create",
        Method::GET => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// Whether a path is this one, or leads below it.
pub fn is_at_or_below(path: &str, root: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: Method, path: &str, verb: &str, subresources: &[&str]) {
        let act = Act::of(&method, path);
        assert_eq!((act.verb, act.subresources), (verb, subresources), "{method} {path}");
    }

    #[test]
    fn requests_are_acts_on_subresources_of_the_node() {
        check(Method::GET, "/pods", "get", &["pods", "proxy"]);
        check(Method::GET, "/runningpods/", "get", &["pods", "proxy"]);
        check(Method::GET, "/healthz/syncloop", "get", &["healthz", "proxy"]);
        check(Method::GET, "/configz", "get", &["configz", "proxy"]);
        check(Method::GET, "/configzz", "get", &["proxy"]);
        check(Method::POST, "/stats/summary", "create", &["stats"]);
        check(Method::GET, "/metrics", "get", &["metrics"]);
        check(Method::DELETE, "/metrics/slis", "delete", &["metrics"]);
        check(Method::GET, "/logs/syslog", "get", &["log"]);
        check(Method::POST, "/checkpoint/a/b/c", "create", &["checkpoint"]);
        check(Method::GET, "/statusz", "get", &["statusz"]);
        check(Method::GET, "/flagz", "get", &["configz"]);
        check(Method::GET, "/containerLogs/a/b/c", "get", &["proxy"]);
        check(Method::PUT, "/debug/flags/v", "update", &["proxy"]);
        check(Method::PATCH, "/", "patch", &["proxy"]);
        check(Method::OPTIONS, "/", "", &["proxy"]);
    }

    #[test]
    fn to_run_code_is_to_create_whatever_the_method() {
        for path in ["/exec/a/b/c", "/attach/a/b/c", "/portForward/a/b", "/run/a/b/c"] {
            check(Method::GET, path, "create", &["proxy"]);
            check(Method::POST, path, "create", &["proxy"]);
        }
    }
}
