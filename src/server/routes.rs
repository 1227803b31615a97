//! The table of what is served: which path, by which methods, by which handler, and where.
//!
//! To serve more, add a line, and answer it in `front.rs`.

use std::collections::BTreeSet;

use http::{Method, StatusCode};

use super::authz::is_at_or_below;
use super::config::Switches;

/// Where a request came in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Door {
    /// HTTPS, for callers who are known and may.
    Main,
    /// Plain HTTP, for everybody.
    ReadOnly,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handler {
    Health,
    Pods,
    RunningPods,
    Configz,
    Metrics(Page),
    Summary,
    ResourceMetrics,
    CadvisorMetrics,
    ContainerLogs,
    NodeLogs,
    /// exec, attach, port-forward and run.
    Streams,
    Checkpoint,
    Flagz,
    Statusz,
    /// The verbosity of the log.
    Verbosity,
    /// What upstream has here is Go's own.
    NotOurs,
}

/// A page of metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Page {
    All,
    Probes,
    Health,
}

/// What is under a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reach {
    /// This path, with or without a slash at its end.
    Only,
    /// What is below it too.
    Below,
}

/// Which switch turns a line off, and what is there then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Switch {
    AlwaysOn,
    /// Where debugging is off, and on the read-only port, it says so.
    Debugging,
    /// Where debugging is off, and on the read-only port, there is nothing.
    DebuggingOrNothing,
    /// The next three go off by a switch of their own too.
    SystemLogs,
    Profiling,
    DebugFlags,
}

struct Route {
    path: &'static str,
    reach: Reach,
    /// Empty for any.
    methods: &'static [Method],
    switch: Switch,
    handler: Handler,
}

const GET: &[Method] = &[Method::GET];
const POST: &[Method] = &[Method::POST];
const GET_POST: &[Method] = &[Method::GET, Method::POST];
const GET_DELETE: &[Method] = &[Method::GET, Method::DELETE];
const ANY: &[Method] = &[];

const fn route(
    path: &'static str,
    reach: Reach,
    methods: &'static [Method],
    switch: Switch,
    handler: Handler,
) -> Route {
    Route { path, reach, methods, switch, handler }
}

use Reach::{Below, Only};
use Switch::{AlwaysOn, DebugFlags, Debugging, DebuggingOrNothing, Profiling, SystemLogs};

/// The first that a path is under counts.
const ROUTES: &[Route] = &[
    route("/healthz", Below, ANY, AlwaysOn, Handler::Health),
    route("/pods", Only, GET, AlwaysOn, Handler::Pods),
    route("/runningpods", Only, GET, Debugging, Handler::RunningPods),
    route("/configz", Only, GET, DebuggingOrNothing, Handler::Configz),
    route("/stats/summary", Only, GET_POST, AlwaysOn, Handler::Summary),
    route("/metrics/resource", Only, GET, AlwaysOn, Handler::ResourceMetrics),
    route("/metrics/cadvisor", Only, GET, AlwaysOn, Handler::CadvisorMetrics),
    route("/metrics/slis", Only, GET_DELETE, AlwaysOn, Handler::Metrics(Page::Health)),
    route("/metrics/probes", Only, GET, AlwaysOn, Handler::Metrics(Page::Probes)),
    route("/metrics", Only, GET, AlwaysOn, Handler::Metrics(Page::All)),
    route("/containerLogs", Below, GET, Debugging, Handler::ContainerLogs),
    route("/logs", Below, GET, SystemLogs, Handler::NodeLogs),
    route("/run", Below, POST, Debugging, Handler::Streams),
    route("/exec", Below, GET_POST, Debugging, Handler::Streams),
    route("/attach", Below, GET_POST, Debugging, Handler::Streams),
    route("/portForward", Below, GET_POST, Debugging, Handler::Streams),
    route("/checkpoint", Below, POST, DebuggingOrNothing, Handler::Checkpoint),
    route("/debug/pprof", Below, ANY, Profiling, Handler::NotOurs),
    route("/debug/flags/v", Only, ANY, DebugFlags, Handler::Verbosity),
    route("/flagz", Only, ANY, DebuggingOrNothing, Handler::Flagz),
    route("/statusz", Only, ANY, DebuggingOrNothing, Handler::Statusz),
];

/// Why nothing handles a request, in upstream's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unhandled {
    pub status: StatusCode,
    pub words: &'static str,
}

pub const NOT_FOUND: Unhandled = Unhandled { status: StatusCode::NOT_FOUND, words: "404 page not found\n" };
const WRONG_METHOD: Unhandled = Unhandled { status: StatusCode::METHOD_NOT_ALLOWED, words: "405: Method Not Allowed" };

fn disabled(words: &'static str) -> Unhandled {
    Unhandled { status: StatusCode::METHOD_NOT_ALLOWED, words }
}

/// Who handles a request. `path` is one that [`plain_path`] gave.
pub fn find(door: Door, method: &Method, path: &str, switches: Switches) -> Result<Handler, Unhandled> {
    let is_under = |route: &&Route| match route.reach {
        Below => is_at_or_below(path, route.path),
        Only => path.strip_suffix('/').unwrap_or(path) == route.path,
    };
    let route = ROUTES.iter().find(is_under).ok_or(NOT_FOUND)?;
    is_on(route.switch, door, switches)?;
    match route.handler {
        Handler::NotOurs => Err(NOT_FOUND),
        _ if !route.methods.is_empty() && !route.methods.contains(method) => Err(WRONG_METHOD),
        handler => Ok(handler),
    }
}

fn is_on(switch: Switch, door: Door, switches: Switches) -> Result<(), Unhandled> {
    if switch == AlwaysOn {
        return Ok(());
    }
    if door == Door::ReadOnly || !switches.debugging {
        return Err(match switch {
            DebuggingOrNothing | DebugFlags => NOT_FOUND,
            _ => disabled("Debug endpoints are disabled.\n"),
        });
    }
    match switch {
        SystemLogs if !switches.system_logs => Err(disabled("logs endpoint is disabled.\n")),
        Profiling if !switches.profiling => Err(disabled("profiling endpoint is disabled.\n")),
        DebugFlags if !switches.debug_flags => Err(disabled("flags endpoint is disabled.\n")),
        _ => Ok(()),
    }
}

/// All paths there are, as the table has them.
pub fn paths() -> impl Iterator<Item = &'static str> {
    ROUTES.iter().map(|route| route.path)
}

/// A path without what is below its first step.
pub fn first_step(path: &str) -> &str {
    path[1..].find('/').map_or(path, |slash| &path[..slash + 1])
}

/// The first steps of all paths there are, in order and each once.
pub fn first_segments() -> Vec<&'static str> {
    let all: BTreeSet<_> = paths().map(first_step).collect();
    all.into_iter().collect()
}

/// What a path names that has three names after its first step, and nothing else.
pub fn three_names(path: &str) -> Option<[&str; 3]> {
    let names: Vec<&str> = path.split('/').skip(2).collect();
    <[&str; 3]>::try_from(names).ok().filter(|names| !names.contains(&""))
}

/// The path of a request without percent signs, of which there is one reading only. What leads
/// up, or stands still, leads nowhere here.
pub fn plain_path(path: &str) -> Option<String> {
    let plain = percent_encoding::percent_decode_str(path).decode_utf8().ok()?;
    let (first, segments) = plain.split_once('/')?;
    let last = segments.split('/').count() - 1;
    let is_plain = |(place, segment): (usize, &str)| match segment {
        "" => place == last,
        _ => !matches!(segment, "." | "..") && !segment.contains('\0'),
    };
    let all = first.is_empty() && segments.split('/').enumerate().all(is_plain);
    all.then(|| plain.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL_ON: Switches = Switches { debugging: true, system_logs: true, profiling: true, debug_flags: true };

    #[track_caller]
    fn check(door: Door, method: Method, path: &str, switches: Switches, expected: Result<Handler, (u16, &str)>) {
        let found = find(door, &method, path, switches);
        let found = found.map_err(|unhandled| (unhandled.status.as_u16(), unhandled.words));
        assert_eq!(found, expected, "{door:?} {method} {path}");
    }

    const NOTHING: Result<Handler, (u16, &str)> = Err((404, "404 page not found\n"));
    const DISABLED: Result<Handler, (u16, &str)> = Err((405, "Debug endpoints are disabled.\n"));

    #[test]
    fn the_main_port_serves_what_is_switched_on() {
        for (path, handler) in [
            ("/healthz", Handler::Health),
            ("/healthz/ping", Handler::Health),
            ("/pods", Handler::Pods),
            ("/pods/", Handler::Pods),
            ("/runningpods/", Handler::RunningPods),
            ("/runningpods", Handler::RunningPods),
            ("/configz", Handler::Configz),
            ("/metrics", Handler::Metrics(Page::All)),
            ("/metrics/probes", Handler::Metrics(Page::Probes)),
            ("/metrics/slis", Handler::Metrics(Page::Health)),
            ("/stats/summary", Handler::Summary),
            ("/metrics/resource", Handler::ResourceMetrics),
            ("/metrics/cadvisor/", Handler::CadvisorMetrics),
            ("/containerLogs/a/b/c", Handler::ContainerLogs),
            ("/logs/", Handler::NodeLogs),
            ("/logs/a/b", Handler::NodeLogs),
            ("/exec/a/b/c", Handler::Streams),
            ("/portForward/a/b", Handler::Streams),
            ("/flagz", Handler::Flagz),
            ("/statusz", Handler::Statusz),
            ("/debug/flags/v", Handler::Verbosity),
        ] {
            check(Door::Main, Method::GET, path, ALL_ON, Ok(handler));
        }
        check(Door::Main, Method::PUT, "/healthz", ALL_ON, Ok(Handler::Health));
        check(Door::Main, Method::POST, "/run/a/b/c", ALL_ON, Ok(Handler::Streams));
        check(Door::Main, Method::POST, "/stats/summary", ALL_ON, Ok(Handler::Summary));
        check(Door::ReadOnly, Method::GET, "/metrics/cadvisor", ALL_ON, Ok(Handler::CadvisorMetrics));
        check(Door::Main, Method::POST, "/checkpoint/a/b/c", ALL_ON, Ok(Handler::Checkpoint));
        check(Door::Main, Method::GET, "/run/a/b/c", ALL_ON, Err((405, "405: Method Not Allowed")));
        check(Door::Main, Method::POST, "/pods", ALL_ON, Err((405, "405: Method Not Allowed")));
        check(Door::Main, Method::DELETE, "/metrics/slis", ALL_ON, Ok(Handler::Metrics(Page::Health)));
        check(Door::Main, Method::DELETE, "/metrics", ALL_ON, Err((405, "405: Method Not Allowed")));
        for path in
            ["/", "/podss", "/pods/x", "/nothing", "/metrics/x", "/stats", "/stats/summary/x", "/debug/pprof/heap"]
        {
            check(Door::Main, Method::GET, path, ALL_ON, NOTHING);
        }
    }

    #[test]
    fn without_debugging_some_say_so_and_some_are_not_there() {
        let off = Switches { debugging: false, ..ALL_ON };
        for (door, switches) in [(Door::Main, off), (Door::ReadOnly, ALL_ON)] {
            for path in [
                "/run/a",
                "/exec/a",
                "/attach/a",
                "/portForward/a",
                "/containerLogs/a",
                "/runningpods/",
                "/logs/",
                "/debug/pprof/heap",
            ] {
                check(door, Method::GET, path, switches, DISABLED);
            }
            for path in ["/configz", "/checkpoint/a", "/flagz", "/statusz", "/debug/flags/v"] {
                check(door, Method::GET, path, switches, NOTHING);
            }
            check(door, Method::GET, "/pods", switches, Ok(Handler::Pods));
            check(door, Method::GET, "/healthz", switches, Ok(Handler::Health));
        }
    }

    #[test]
    fn single_handlers_can_be_switched_off() {
        for (path, switches, words) in [
            ("/logs/", Switches { system_logs: false, ..ALL_ON }, "logs endpoint is disabled.\n"),
            ("/debug/pprof/", Switches { profiling: false, ..ALL_ON }, "profiling endpoint is disabled.\n"),
            ("/debug/flags/v", Switches { debug_flags: false, ..ALL_ON }, "flags endpoint is disabled.\n"),
        ] {
            check(Door::Main, Method::GET, path, switches, Err((405, words)));
        }
    }

    #[test]
    fn paths_are_told_by_their_first_steps() {
        let paths = first_segments();
        assert!(paths.is_sorted() && paths.contains(&"/debug") && paths.contains(&"/stats"), "{paths:?}");
        assert!(paths.iter().all(|path| path.matches('/').count() == 1), "{paths:?}");
    }

    #[test]
    fn three_names_are_three_and_none_is_empty() {
        assert_eq!(three_names("/checkpoint/a/b/c"), Some(["a", "b", "c"]));
        for path in ["/checkpoint/a/b", "/checkpoint/a/b/c/d", "/checkpoint/a//c", "/checkpoint/a/b/", "/checkpoint"] {
            assert_eq!(three_names(path), None, "{path}");
        }
    }

    #[test]
    fn a_path_has_one_reading_and_never_leads_up() {
        for (path, expected) in [
            ("/pods", Some("/pods")),
            ("/", Some("/")),
            ("/%70ods/", Some("/pods/")),
            ("/logs/a%20b", Some("/logs/a b")),
            ("/logs/..", None),
            ("/logs/%2e%2e/shadow", None),
            ("/logs/..%2fshadow", None),
            ("/./pods", None),
            ("//pods", None),
            ("/pods//", None),
            ("/logs/%ff", None),
            ("/logs/%00", None),
            ("pods", None),
            ("*", None),
            ("", None),
        ] {
            assert_eq!(plain_path(path).as_deref(), expected, "{path}");
        }
    }
}
