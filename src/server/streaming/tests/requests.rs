//! From a path and a query to a stream in the runtime's terms.

use http::HeaderMap;
use http::header::{CONNECTION, SEC_WEBSOCKET_PROTOCOL, UPGRADE};

use super::*;
use crate::cri::SandboxState;
use crate::cri::testing::{container, exited, running, sandbox};
use crate::pod::testing::pod_yaml;

fn pod() -> Pod {
    pod_yaml(
        "{metadata: {name: web, namespace: shop, uid: u1},
          spec: {initContainers: [{name: init}], containers: [{name: main}, {name: shell, stdin: true, tty: true}]}}",
    )
}

fn held() -> PodRuntime {
    let containers = vec![
        container("main", 0, exited(1)),
        container("main", 1, running()),
        container("shell", 0, running()),
        container("init", 0, exited(0)),
    ];
    let sandboxes = vec![sandbox("old", 0, SandboxState::NotReady), sandbox("new", 1, SandboxState::Ready)];
    PodRuntime { sandboxes, containers }.sorted()
}

fn asked(path: &str, query: &str, offer: Offer) -> Result<StreamRequest, Refusal> {
    let target = Target::of_path(path).expect(path);
    target.check_uid(&pod())?;
    StreamRequest::of(&target, &Query::of(query), Some(offer), &pod(), &held())
}

const WEBSOCKET: Offer = Offer::WebSocket { tunnels: false };

fn streams(names: &str) -> Streams {
    let has = |name| names.contains(name);
    Streams { stdin: has("in"), stdout: has("out"), stderr: has("err"), tty: has("tty") }
}

#[track_caller]
fn check_exec(query: &str, command: &[&str], names: &str) {
    let expected = StreamRequest::Exec {
        container: ContainerId::new("main-1"),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        streams: streams(names),
    };
    assert_eq!(asked("/exec/shop/web/main", query, Offer::Spdy).expect(query), expected, "{query}");
}

#[test]
fn an_exec_has_its_words_and_its_streams_from_the_query() {
    check_exec("command=ls&output=1", &["ls"], "out");
    check_exec("command=sh&command=-c&command=echo+a%20b%26c&input=1&error=1", &["sh", "-c", "echo a b&c"], "in err");
    check_exec("input=1&output=1&tty=1&command=sh", &["sh"], "in out tty");
    check_exec("output=1&error=1&tty=1&command=sh", &["sh"], "out tty");
    check_exec("output=1&input=true&error=0&command=%3d&command=", &["=", ""], "out");
}

#[track_caller]
fn check_refused(path: &str, query: &str, offer: Offer, status: u16, words: &str) {
    let refusal = asked(path, query, offer).expect_err(path);
    assert_eq!((refusal.status().as_u16(), refusal.to_string().as_str()), (status, words), "{path}?{query}");
}

#[test]
fn who_asks_for_nothing_or_for_what_is_not_there_is_told() {
    let none = "at least one of input, output and error has to be asked for";
    check_refused("/exec/shop/web/main", "command=ls", Offer::Spdy, 400, none);
    check_refused("/exec/shop/web/main", "command=ls&error=1&tty=1", Offer::Spdy, 400, none);
    check_refused("/attach/shop/web/shell", "error=1", Offer::Spdy, 400, none);
    check_refused("/exec/shop/web/init", "output=1", Offer::Spdy, 500, "container not found (\"init\")");
    check_refused("/attach/shop/web/other", "output=1", Offer::Spdy, 500, "container not found (\"other\")");
    check_refused("/portForward/shop/web/u2", "", Offer::Spdy, 404, "pod not found");
    check_refused("/exec/shop/web/u2/main", "output=1", Offer::Spdy, 404, "pod not found");
}

#[test]
fn an_attach_has_its_terminal_from_the_spec() {
    let check = |name: &str, query: &str, id: &str, names: &str| {
        let expected = StreamRequest::Attach { container: ContainerId::new(id), streams: streams(names) };
        let path = format!("/attach/shop/web/u1/{name}");
        assert_eq!(asked(&path, query, WEBSOCKET).expect(query), expected, "{query}");
    };
    check("shell", "input=1&output=1&tty=0", "shell-0", "in out tty");
    check("shell", "output=1&error=1", "shell-0", "out tty");
    check("main", "output=1&error=1&tty=1", "main-1", "out err");
}

#[test]
fn ports_are_named_before_where_the_protocol_cannot_name_them_later() {
    let check = |query: &str, offer: Offer, ports: &[u16]| {
        let expected = StreamRequest::PortForward { sandbox: SandboxId::new("new"), ports: ports.to_vec() };
        assert_eq!(asked("/portForward/shop/web", query, offer).expect(query), expected, "{query}");
    };
    check("port=80&port=443,8080", WEBSOCKET, &[80, 443, 8080]);
    check("", Offer::Spdy, &[]);
    check("port=80", Offer::Spdy, &[]);
    check("", Offer::WebSocket { tunnels: true }, &[]);
    let missing = "port is missing in the query: this WebSocket protocol cannot name ports later";
    check_refused("/portForward/shop/web", "", WEBSOCKET, 400, missing);
    for bad in ["0", "65536", "http", "", "-1"] {
        let words = format!("{bad:?} is not a port");
        check_refused("/portForward/shop/web", &format!("port=80,{bad}"), WEBSOCKET, 400, &words);
    }
    let target = Target::of_path("/portForward/shop/web").expect("a path");
    let nothing = PodRuntime::default();
    let refusal = StreamRequest::of(&target, &Query::of(""), Some(Offer::Spdy), &pod(), &nothing);
    assert!(matches!(refusal, Err(Refusal::NoSandbox)), "{refusal:?}");
}

#[test]
fn only_whole_paths_name_something() {
    let container = || "main".to_owned();
    let check = |path: &str, expected: Option<(Act, Option<&str>)>| {
        let found = Target::of_path(path).map(|target| {
            assert_eq!((target.namespace.as_str(), target.pod.as_str()), ("shop", "web"), "{path}");
            (target.act, target.uid)
        });
        assert_eq!(found, expected.map(|(act, uid)| (act, uid.map(str::to_owned))), "{path}");
    };
    check("/exec/shop/web/main", Some((Act::Exec { container: container() }, None)));
    check("/exec/shop/web/u/main", Some((Act::Exec { container: container() }, Some("u"))));
    check("/attach/shop/web/main", Some((Act::Attach { container: container() }, None)));
    check("/run/shop/web/u/main", Some((Act::Run { container: container() }, Some("u"))));
    check("/portForward/shop/web", Some((Act::PortForward, None)));
    check("/portForward/shop/web/u", Some((Act::PortForward, Some("u"))));
    for path in ["/", "/exec", "/exec/", "/exec/shop", "/exec/shop/web", "/exec/shop/web/", "/exec//web/main"] {
        check(path, None);
    }
    for path in ["/exec/shop/web/u/main/more", "/portForward/shop", "/portForward/shop/web/u/x", "/pods/shop/web/main"]
    {
        check(path, None);
    }
}

#[test]
fn an_offer_is_read_from_headers_as_clients_write_them() {
    let check = |connection: &'static str, upgrade: &'static str, protocols: &'static str, expected: Option<Offer>| {
        let header = |value| http::HeaderValue::from_static(value);
        let headers = [(CONNECTION, connection), (UPGRADE, upgrade), (SEC_WEBSOCKET_PROTOCOL, protocols)];
        let headers: HeaderMap = headers.into_iter().map(|(name, value)| (name, header(value))).collect();
        assert_eq!(Offer::of(&headers), expected, "{connection} {upgrade} {protocols}");
    };
    let tunnel = Some(Offer::WebSocket { tunnels: true });
    check("Upgrade", "SPDY/3.1", "", Some(Offer::Spdy));
    check("Upgrade", "h2c, websocket", "", Some(WEBSOCKET));
    check("keep-alive, upgrade", "spdy/3.1", "", Some(Offer::Spdy));
    check("Upgrade", "websocket", "v5.channel.k8s.io", Some(WEBSOCKET));
    check("Upgrade", "WebSocket", "v4.channel.k8s.io, SPDY/3.1+portforward.k8s.io", tunnel);
    check("close", "websocket", "", None);
    check("Upgrade", "h2c", "", None);
}
