use std::collections::VecDeque;
use std::sync::Mutex;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};

use super::redirect::follow;
use super::*;
use crate::net::{self, Scheme};

fn yaml<T: serde::de::DeserializeOwned>(text: &str) -> T {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("test YAML: {error}\n{text}"))
}

fn container() -> Container {
    yaml("{name: web, ports: [{name: http, containerPort: 8080}, {name: '99', containerPort: 7000}]}")
}

fn get_of(action: &str) -> Result<HttpGet, ResolveError> {
    let container = container();
    let place = Place { ports: container.ports.as_deref().unwrap_or_default(), ip: "10.0.0.7".parse().ok() };
    http_get(&yaml::<HTTPGetAction>(action), place, "kube-probe/1.36")
}

#[test]
fn a_get_goes_to_the_pod_unless_it_says_otherwise() {
    let check = |action: &str, expected: &str| {
        let said = get_of(action).map_or_else(|error| error.to_string(), |get| get.to_string());
        assert_eq!(said, expected, "{action}");
    };
    check("{port: 80}", "http://10.0.0.7:80/");
    check("{port: http, path: /live}", "http://10.0.0.7:8080/live");
    check("{port: '8081', path: live}", "http://10.0.0.7:8081/live");
    check("{port: '99'}", "http://10.0.0.7:7000/");
    check("{port: 443, scheme: HTTPS, path: '/a?b=c#d'}", "https://10.0.0.7:443/a?b=c");
    check("{port: 80, host: example.com}", "http://example.com:80/");
    check("{port: 80, host: '::1'}", "http://[::1]:80/");
    check("{port: 80, path: '/a b/%20/ü'}", "http://10.0.0.7:80/a%20b/%20/%C3%BC");
    check("{port: 0}", "invalid port number: 0");
    check("{port: 65536}", "invalid port number: 65536");
    check("{port: other}", "couldn't find port \"other\" among the container's ports");
}

#[test]
fn without_an_address_only_a_handler_with_its_own_host_can_be_called() {
    let place = Place { ports: &[], ip: None };
    let get = |action: &str| http_get(&yaml::<HTTPGetAction>(action), place, "agent");
    assert_eq!(get("{port: 80}"), Err(ResolveError::NoAddress));
    assert!(get("{port: 80, host: example.com}").is_ok());
}

#[test]
fn headers_are_those_asked_for_and_the_usual_two() {
    let check = |headers: &str, expected: &[(&str, &str)]| {
        let get = get_of(&format!("{{port: 80, httpHeaders: {headers}}}")).expect("a valid action");
        let said: Vec<_> = get.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(said, expected, "{headers}");
    };
    check("[]", &[("User-Agent", "kube-probe/1.36"), ("Accept", "*/*")]);
    check("[{name: X-A, value: b}]", &[("X-A", "b"), ("User-Agent", "kube-probe/1.36"), ("Accept", "*/*")]);
    check("[{name: user-agent, value: me}]", &[("user-agent", "me"), ("Accept", "*/*")]);
    check("[{name: User-Agent, value: ''}, {name: Accept, value: ''}]", &[]);
    let twice = "[{name: Accept, value: a}, {name: Accept, value: b}]";
    check(twice, &[("Accept", "a"), ("Accept", "b"), ("User-Agent", "kube-probe/1.36")]);
}

#[test]
fn commands_see_the_variables_whose_value_is_in_the_spec() {
    let container: Container = yaml(
        "{name: web, env: [{name: A, value: '1'}, {name: A, value: '2'}, {name: FAR, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]}",
    );
    let action = yaml("{command: [sh, -c, 'x $(A) $(FAR) $(NONE) $$(A)']}");
    let expected = ["sh", "-c", "x 2  $(NONE) $(A)"].map(str::to_owned).to_vec();
    assert_eq!(exec_command(&action, &container), Call::Exec { command: expected });
}

fn get(url: &str) -> HttpGet {
    HttpGet {
        scheme: Scheme::Http,
        host: "pod".into(),
        port: 80,
        path: url.into(),
        headers: vec![("Host".into(), "shop".into()), ("X".into(), "y".into())],
    }
}

fn redirect(status: u16, location: &str) -> HttpAnswer {
    HttpAnswer { status, location: Some(location.into()), ..HttpAnswer::default() }
}

#[test]
fn redirects_are_followed_on_the_same_host_only() {
    let check = |location: &str, expected: Option<&str>| {
        let request = get("/a/b?c");
        let next = follow(&request, &request, &redirect(302, location));
        assert_eq!(next.map(|next| next.to_string()).as_deref(), expected, "{location}");
    };
    check("/d", Some("http://pod:80/d"));
    check("d", Some("http://pod:80/a/d"));
    check("../d?e", Some("http://pod:80/d?e"));
    check("./", Some("http://pod:80/a/"));
    check("?e", Some("http://pod:80/a/b?e"));
    check("http://pod/d", Some("http://pod:80/d"));
    check("https://POD:8443", Some("https://POD:8443/"));
    check("//pod:81/d", Some("http://pod:81/d"));
    check("http://other/d", None);
    check("//other/d", None);
    check("ftp://pod/d", Some("http://pod:80/a/ftp://pod/d"));
    check("", None);
}

#[test]
fn only_redirects_lead_on() {
    let request = get("/");
    for (status, leads_on) in
        [(200, false), (300, false), (301, true), (303, true), (304, false), (307, true), (308, true)]
    {
        assert_eq!(follow(&request, &request, &redirect(status, "/next")).is_some(), leads_on, "{status}");
    }
    assert!(follow(&request, &request, &HttpAnswer { status: 302, ..HttpAnswer::default() }).is_none());
}

#[test]
fn a_host_header_is_kept_only_where_no_host_is_named() {
    let request = get("/");
    let names = |location: &str| -> Vec<String> {
        let next = follow(&request, &request, &redirect(302, location)).expect("on the same host");
        next.headers.into_iter().map(|(name, _)| name).collect()
    };
    assert_eq!(names("/next"), ["Host", "X"]);
    assert_eq!(names("http://pod/next"), ["X"]);
}

/// Answers GETs one after another and remembers them.
#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<HttpAnswer>>,
    asked: Mutex<Vec<String>>,
}

#[async_trait]
impl Net for Script {
    async fn http_get(&self, request: &HttpGet) -> net::Result<HttpAnswer> {
        self.asked.lock().expect("not poisoned").push(request.to_string());
        let answer = self.answers.lock().expect("not poisoned").pop_front();
        Ok(answer.unwrap_or_else(|| redirect(302, "/again")))
    }
    async fn fetch(&self, _: &HttpGet, _: usize) -> net::Result<HttpAnswer> {
        unreachable!("a handler obeys nobody")
    }
    async fn tcp_connect(&self, _: &str, _: u16) -> net::Result<()> {
        Ok(())
    }
    async fn grpc_check(&self, _: &str, _: u16, _: &str, _: &str) -> net::Result<ServingStatus> {
        Ok(ServingStatus::Serving)
    }
}

struct NoRuntime;

#[async_trait]
impl Execute for NoRuntime {
    async fn exec(&self, _: &ContainerId, _: &[String], _: Option<Duration>) -> cri::Result<Executed> {
        unreachable!("nothing is executed here")
    }
}

async fn get_through(net: Arc<Script>) -> Result<HttpAnswer, CallError> {
    let caller = Caller::new(Arc::new(NoRuntime), net);
    caller.get(&get("/")).await
}

#[tokio::test]
async fn a_get_follows_its_redirects_to_the_end() {
    let net = Arc::new(Script::default());
    let end = HttpAnswer { status: 204, ..HttpAnswer::default() };
    net.answers.lock().expect("not poisoned").extend([redirect(302, "/a"), redirect(301, "b"), end.clone()]);
    assert_eq!(get_through(net.clone()).await.expect("an answer"), end);
    assert_eq!(*net.asked.lock().expect("not poisoned"), ["http://pod:80/", "http://pod:80/a", "http://pod:80/b"]);
}

#[tokio::test]
async fn a_circle_of_redirects_ends() {
    let net = Arc::new(Script::default());
    assert!(matches!(get_through(net.clone()).await, Err(CallError::TooManyRedirects)));
    assert_eq!(net.asked.lock().expect("not poisoned").len(), REDIRECTS_MAX);
}
