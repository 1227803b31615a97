use std::collections::VecDeque;
use std::sync::Mutex;

use async_trait::async_trait;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;
use crate::net::{self, HttpAnswer, ServingStatus};
use crate::pod::PodRef;
use crate::sources::testing::manifest;

const PERIOD: Duration = Duration::from_secs(20);

/// What the server says next. The last of what it was told it says for ever.
#[derive(Clone)]
enum Say {
    Answer(HttpAnswer),
    Refused,
    Nothing,
}

#[derive(Default)]
struct Server {
    says: Mutex<VecDeque<Say>>,
    asked: Mutex<Vec<(Instant, HttpGet)>>,
}

impl Server {
    fn say(&self, says: impl IntoIterator<Item = Say>) {
        let mut queue = self.says.lock().expect("not poisoned");
        queue.clear();
        queue.extend(says);
    }

    fn asked(&self) -> Vec<HttpGet> {
        self.asked.lock().expect("not poisoned").iter().map(|(_, request)| request.clone()).collect()
    }
}

#[async_trait]
impl Net for Server {
    async fn http_get(&self, _: &HttpGet) -> net::Result<HttpAnswer> {
        unreachable!("any certificate would do")
    }
    async fn fetch(&self, request: &HttpGet, bytes_max: usize) -> net::Result<HttpAnswer> {
        self.asked.lock().expect("not poisoned").push((Instant::now(), request.clone()));
        let say = {
            let mut says = self.says.lock().expect("not poisoned");
            if says.len() > 1 { says.pop_front() } else { says.front().cloned() }
        };
        match say {
            Some(Say::Answer(mut answer)) => {
                answer.body.truncate(bytes_max);
                Ok(answer)
            }
            Some(Say::Refused) => {
                Err(NetError::Connect { address: "s:80".into(), message: "connect: connection refused".into() })
            }
            None | Some(Say::Nothing) => std::future::pending().await,
        }
    }
    async fn tcp_connect(&self, _: &str, _: u16) -> net::Result<()> {
        unreachable!("documents are fetched")
    }
    async fn grpc_check(&self, _: &str, _: u16, _: &str, _: &str) -> net::Result<ServingStatus> {
        unreachable!("documents are fetched")
    }
}

fn ok(body: impl Into<Vec<u8>>) -> Say {
    Say::Answer(HttpAnswer { status: 200, body: body.into(), ..HttpAnswer::default() })
}

fn status(status: u16) -> Say {
    Say::Answer(HttpAnswer { status, body: manifest("other", "i").into(), ..HttpAnswer::default() })
}

fn list(items: &[String]) -> Say {
    ok(format!("{{apiVersion: v1, kind: PodList, items: [{}]}}", items.join(", ")))
}

struct Running {
    server: Arc<Server>,
    events: mpsc::Receiver<SourceEvent>,
    task: JoinHandle<()>,
}

impl Running {
    fn start(says: impl IntoIterator<Item = Say>) -> Self {
        Running::start_with("http://s/pods", &[], says)
    }

    fn start_with(url: &str, headers: &[(&str, &[&str])], says: impl IntoIterator<Item = Say>) -> Self {
        let server = Arc::new(Server::default());
        server.say(says);
        let (sender, events) = mpsc::channel(1);
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        let config = StaticUrl {
            url: url.into(),
            headers: headers.iter().map(|(name, values)| ((*name).to_owned(), texts(values))).collect(),
            user_agent: "ferrolet/test".into(),
            node_name: "n1".into(),
            may_need_api: false,
            period: PERIOD,
        };
        let task = tokio::spawn(run(config, server.clone(), Clock::system(), sender));
        Running { server, events, task }
    }

    /// Name and image of each pod that is listed next.
    async fn listed(&mut self) -> String {
        let event = timeout(Duration::from_secs(600), self.events.recv()).await.expect("an event within the deadline");
        let SourceEvent::Listed { source: Source::Http, pods } = event.expect("the task runs") else {
            panic!("a list of this source is expected")
        };
        let image = |pod: &Pod| pod.spec.clone().expect("a static pod has a spec").containers[0].image.clone();
        let one = |pod: &Arc<Pod>| format!("{}={}", PodRef::of(pod).name, image(pod).unwrap_or_default());
        pods.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    /// Whether nothing is listed for so long.
    async fn is_silent(&mut self, periods: u32) -> bool {
        timeout(PERIOD * periods, self.events.recv()).await.is_err()
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_or_a_list_of_pods_is_followed() {
    let mut running = Running::start([ok(manifest("web", "i:1"))]);
    assert_eq!(running.listed().await, "web-n1=i:1");
    running.server.say([list(&[manifest("web", "i:1"), manifest("db", "i:2")])]);
    assert_eq!(running.listed().await, "db-n1=i:2 web-n1=i:1");
    running.server.say([list(&[manifest("db", "i:3")])]);
    assert_eq!(running.listed().await, "db-n1=i:3");
    running.server.say([list(&[])]);
    assert_eq!(running.listed().await, "");
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_the_same_alone_and_in_a_list() {
    let mut running = Running::start([ok(manifest("web", "i:1"))]);
    running.listed().await;
    // Items of a list need not say what they are.
    running.server.say([list(&["{metadata: {name: web}, spec: {containers: [{name: c, image: 'i:1'}]}}".to_owned()])]);
    assert!(running.is_silent(5).await, "nothing has changed");
}

#[tokio::test(start_paused = true)]
async fn a_pod_bears_the_marks_of_its_source() {
    let mut running = Running::start([ok(manifest("web", "i:1"))]);
    let event = running.events.recv().await.expect("the task runs");
    let SourceEvent::Listed { pods, .. } = event else { panic!("a list is expected") };
    let pod = &pods[0];
    let annotations = pod.metadata.annotations.as_ref().expect("a static pod has annotations");
    assert_eq!(annotations["kubernetes.io/config.source"], "http");
    assert_eq!(Some(&annotations["kubernetes.io/config.hash"]), pod.metadata.uid.as_ref());
    // Unlike that of a file it may be evicted by a taint, as upstream has it.
    assert_eq!(pod.spec.as_ref().expect("a spec").tolerations, None);
    let other = Running::start_with("http://t/pods", &[], [ok(manifest("web", "i:1"))]).events.recv().await;
    let Some(SourceEvent::Listed { pods: others, .. }) = other else { panic!("a list is expected") };
    assert_ne!(pod.metadata.uid, others[0].metadata.uid, "the URL is a part of the pod's identity");
}

#[tokio::test(start_paused = true)]
async fn what_says_nothing_keeps_the_pods() {
    let mut running = Running::start([ok(manifest("web", "i:1"))]);
    assert_eq!(running.listed().await, "web-n1=i:1");
    let garbage =
        ["gibberish: [", "  # a comment\n", "{kind: Service, apiVersion: v1}", "{kind: List, apiVersion: v1}"];
    let too_long = format!("# {}\n{}", "x".repeat(10 << 20), manifest("other", "i"));
    let bad = [Say::Refused, Say::Nothing, status(500), status(404), status(204), status(304), ok(too_long)];
    for say in bad.into_iter().chain(garbage.map(ok)) {
        running.server.say([say]);
        assert!(running.is_silent(3).await);
    }
    running.server.say([ok(manifest("web", "i:2"))]);
    assert_eq!(running.listed().await, "web-n1=i:2");
}

#[tokio::test(start_paused = true)]
async fn an_empty_answer_says_that_there_are_no_pods() {
    let mut running = Running::start([ok(manifest("web", "i:1"))]);
    running.listed().await;
    running.server.say([ok("")]);
    assert_eq!(running.listed().await, "");
    running.server.say([ok(manifest("web", "i:1"))]);
    assert_eq!(running.listed().await, "web-n1=i:1", "and what was there before may come again");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_never_had_an_answer_is_silent_and_asks_more_often() {
    let mut running = Running::start([Say::Refused]);
    let began = Instant::now();
    assert!(running.is_silent(6).await, "nothing is known, so nothing is said");
    let asked = running.server.asked.lock().expect("not poisoned").clone();
    let after: Vec<_> = asked.iter().map(|(at, _)| (*at - began).as_secs()).collect();
    assert_eq!(after[..8], [0, 1, 3, 7, 15, 31, 51, 71]);
    running.server.say([ok("")]);
    assert_eq!(running.listed().await, "", "an answer, if an empty one");
}

#[tokio::test(start_paused = true)]
async fn one_broken_item_hurts_no_other() {
    let broken = |name: &str| manifest(name, "i").replace("containers", "containres");
    let mut running = Running::start([list(&[manifest("a", "i:1"), broken("b"), manifest("c", "i:1")])]);
    assert_eq!(running.listed().await, "a-n1=i:1 c-n1=i:1");
    running.server.say([list(&[broken("a"), manifest("b", "i:2"), manifest("c", "i:2")])]);
    assert_eq!(running.listed().await, "a-n1=i:1 b-n1=i:2 c-n1=i:2", "it keeps the pod that it was");
    running.server.say([list(&["{metadata: {}}".to_owned(), "3".to_owned(), manifest("c", "i:3")])]);
    assert_eq!(running.listed().await, "a-n1=i:1 b-n1=i:2 c-n1=i:3", "who can tell which pods they are?");
    running.server.say([list(&[manifest("c", "i:3"), manifest("c", "i:4")])]);
    assert_eq!(running.listed().await, "c-n1=i:3 c-n1=i:4", "who takes in the first tells of the second");
}

#[tokio::test(start_paused = true)]
async fn it_is_asked_as_configured_and_whether_something_is_new() {
    let etag = |say: Say| match say {
        Say::Answer(answer) => Say::Answer(HttpAnswer { etag: Some("\"v1\"".into()), ..answer }),
        other => other,
    };
    let headers: [(&str, &[&str]); 3] = [("Metadata", &["a", "b"]), ("Host", &["x"]), ("user-agent", &["own"])];
    let says = [etag(ok(manifest("web", "i:1"))), status(304)];
    let mut running = Running::start_with("https://me@s:8443/pods?node=1#x", &headers, says);
    running.listed().await;
    assert!(running.is_silent(3).await);
    let asked = running.server.asked();
    assert_eq!(asked[0].to_string(), "https://s:8443/pods?node=1");
    let texts =
        |request: &HttpGet| request.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>();
    assert_eq!(texts(&asked[0]), ["Metadata: a", "Metadata: b", "user-agent: own", "Authorization: Basic bWU6"]);
    assert_eq!(texts(&asked[1])[3..], ["If-None-Match: \"v1\"", "Authorization: Basic bWU6"]);
    let no_url = Running::start_with("s/pods", &[], [ok("")]).is_silent(3).await;
    assert!(no_url, "what cannot be asked has not spoken");
}

#[tokio::test(start_paused = true)]
async fn redirects_are_followed_and_secrets_stay_with_their_host() {
    let to = |location: &str| {
        Say::Answer(HttpAnswer { status: 302, location: Some(location.into()), ..HttpAnswer::default() })
    };
    let headers: [(&str, &[&str]); 2] = [("Authorization", &["Bearer x"]), ("X", &["y"])];
    let says = [to("/next"), to("http://t/pods"), ok(manifest("web", "i:1"))];
    let mut running = Running::start_with("http://s/pods", &headers, says);
    assert_eq!(running.listed().await, "web-n1=i:1");
    let asked = running.server.asked();
    let names = |request: &HttpGet| {
        let names = request.headers.iter().map(|(name, _)| name.as_str());
        format!("{request} {}", names.collect::<Vec<_>>().join(" "))
    };
    assert_eq!(names(&asked[1]), "http://s:80/next Authorization X User-Agent");
    assert_eq!(names(&asked[2]), "http://t:80/pods X User-Agent");
    running.server.say([to("/next")]);
    let before = asked.len();
    sleep(PERIOD * 3 / 2).await;
    assert_eq!(running.server.asked().len() - before, REQUESTS_MAX, "a circle ends");
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_its_listener() {
    let Running { events, task, .. } = Running::start([Say::Refused]);
    drop(events);
    timeout(PERIOD * 2, task).await.expect("it ends").expect("it does not panic");
}
