//! Probes of one pod on a paused clock, against a container whose health is a function of
//! time.

use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ContainerStatus;
use tokio::time::{Instant, sleep, sleep_until};

use super::*;
use crate::cri::{self, Container, ContainerState, CriError, Executed};
use crate::events::Recorded;
use crate::handlers::Execute;
use crate::net::{self, GrpcFailure, HttpAnswer, HttpGet, Net, NetError, ServingStatus};
use crate::pod::testing::pod_yaml;

/// How the container answers at a time since the beginning of the test.
type Health = fn(Duration) -> Saying;

#[derive(Clone, Debug)]
enum Saying {
    Good,
    Bad,
    Away,
    Silent,
    Redirects,
    /// The runtime does not do it.
    Refused,
}

#[derive(Clone)]
struct World {
    health: Arc<Mutex<Health>>,
    asked: Arc<Mutex<Vec<u128>>>,
    begin: Instant,
}

impl World {
    async fn say(&self) -> Saying {
        let at = self.begin.elapsed();
        self.asked.lock().expect("not poisoned").push(at.as_millis());
        let saying = (self.health.lock().expect("not poisoned"))(at);
        if matches!(saying, Saying::Silent) {
            std::future::pending::<()>().await;
        }
        saying
    }
}

#[async_trait]
impl Net for World {
    async fn http_get(&self, _: &HttpGet) -> net::Result<HttpAnswer> {
        let answer = |status| Ok(HttpAnswer { status, body: b"body".to_vec(), ..HttpAnswer::default() });
        match self.say().await {
            Saying::Good => answer(200),
            Saying::Redirects => answer(302),
            Saying::Bad => answer(503),
            _ => Err(refused()),
        }
    }
    async fn fetch(&self, _: &HttpGet, _: usize) -> net::Result<HttpAnswer> {
        unreachable!("a probe obeys nobody")
    }
    async fn tcp_connect(&self, _: &str, _: u16) -> net::Result<()> {
        if matches!(self.say().await, Saying::Good) { Ok(()) } else { Err(refused()) }
    }
    async fn grpc_check(&self, _: &str, _: u16, _: &str, _: &str) -> net::Result<ServingStatus> {
        match self.say().await {
            Saying::Good => Ok(ServingStatus::Serving),
            Saying::Bad => Ok(ServingStatus::NotServing),
            Saying::Refused => Err(NetError::Grpc(GrpcFailure::Unimplemented("no such service".into()))),
            _ => Err(refused()),
        }
    }
}

fn refused() -> NetError {
    NetError::Connect { address: "10.0.0.7:80".into(), message: "connect: connection refused".into() }
}

#[async_trait]
impl Execute for World {
    async fn exec(&self, _: &ContainerId, _: &[String], _: Option<Duration>) -> cri::Result<Executed> {
        match self.say().await {
            Saying::Good => Ok(Executed::Exited { code: 0, output: Vec::new() }),
            Saying::Bad => Ok(Executed::Exited { code: 7, output: b"no disk\n".to_vec() }),
            Saying::Away => Ok(Executed::TimedOut),
            _ => Err(CriError::Failed { call: "ExecSync", message: "no".into() }),
        }
    }
}

/// A pod of one running container with these probes.
struct Bench {
    world: World,
    probes: PodProbes,
    recorded: Recorded,
    woken: Arc<Mutex<Vec<u128>>>,
    pod: Arc<Pod>,
    runtime: PodRuntime,
    told: Option<PodStatus>,
    /// Nobody can say yet what was told.
    is_unknown: bool,
    stage: Stage,
}

fn noon() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().expect("a literal time")
}

impl Bench {
    fn new(probes: &str, health: Health) -> Self {
        let world = World { health: Arc::new(Mutex::new(health)), asked: Arc::default(), begin: Instant::now() };
        let (recorder, recorded) = Recorder::for_tests();
        let woken = Arc::<Mutex<Vec<u128>>>::default();
        let caller = Caller::new(Arc::new(world.clone()), Arc::new(world.clone()));
        let begin = world.begin;
        let wake = {
            let woken = woken.clone();
            move |_: &PodUid| woken.lock().expect("not poisoned").push(begin.elapsed().as_millis())
        };
        let clock = Clock::simulated(noon(), 1);
        let probes_of = Probes::new(caller, clock, recorder, "v1.36.2+x", wake).of_pod(&PodUid::new("u"));
        let pod = pod_yaml(&format!("spec: {{containers: [{{name: web, {probes}}}]}}"));
        let mut bench = Bench {
            world,
            probes: probes_of,
            recorded,
            woken,
            pod: Arc::new(pod),
            runtime: PodRuntime::default(),
            told: None,
            is_unknown: false,
            stage: Stage::Syncing,
        };
        // A pod is looked at before its containers run.
        bench.look();
        bench.runtime.containers.push(running("one"));
        bench
    }

    fn look(&mut self) -> Standings {
        self.probes.look(&Look {
            pod: &self.pod,
            runtime: &self.runtime,
            ip: "10.0.0.7".parse().ok(),
            told: match self.is_unknown {
                true => Told::Unknown { by: noon() },
                false => Told::Known(self.told.as_ref()),
            },
            stage: self.stage,
        })
    }

    /// As the worker does: looks again whenever it is woken, until so long after the begin.
    async fn live_until(&mut self, seconds: u64) -> Standing {
        let end = self.world.begin + Duration::from_secs(seconds);
        let mut standings = self.look();
        loop {
            let over = tokio::select! {
                biased;
                () = self.probes.changed() => false,
                () = sleep_until(end) => true,
            };
            if over {
                return standings.values().next().copied().unwrap_or_default();
            }
            standings = self.look();
        }
    }

    fn asked(&self) -> Vec<u128> {
        self.world.asked.lock().expect("not poisoned").clone()
    }

    fn messages(&self) -> Vec<String> {
        self.recorded.list().into_iter().map(|event| format!("{}: {}", event.reason, event.message)).collect()
    }
}

fn running(id: &str) -> Container {
    Container { id: ContainerId::new(id), ..cri::testing::container("web", 0, cri::testing::running()) }
}

const GET: &str = "httpGet: {port: 80}";

#[tokio::test(start_paused = true)]
async fn a_liveness_probe_runs_in_its_rhythm_after_its_delay() {
    let liveness = format!("livenessProbe: {{{GET}, initialDelaySeconds: 5, periodSeconds: 3}}");
    let mut bench = Bench::new(&liveness, |_| Saying::Good);
    let standing = bench.live_until(15).await;
    assert_eq!(bench.asked(), [5000, 8000, 11000, 14000]);
    assert_eq!(standing, Standing::default());
    assert!(bench.woken.lock().expect("not poisoned").is_empty(), "there was nothing to decide");
}

#[tokio::test(start_paused = true)]
async fn a_delay_is_counted_from_the_start_of_the_container_and_never_longer() {
    for (started, first) in [(-3, 2000), (-60, 0), (3600, 5000)] {
        let mut bench = Bench::new(&format!("livenessProbe: {{{GET}, initialDelaySeconds: 5}}"), |_| Saying::Good);
        let started_at = noon() + SignedDuration::from_secs(started);
        bench.runtime.containers[0].state = ContainerState::Running { started_at };
        bench.live_until(7).await;
        assert_eq!(bench.asked(), [first], "started at {started}");
    }
}

#[tokio::test(start_paused = true)]
async fn liveness_gives_up_after_its_threshold_and_asks_no_more() {
    let mut bench = Bench::new(&format!("livenessProbe: {{{GET}, periodSeconds: 2, failureThreshold: 3}}"), |at| {
        if at < Duration::from_secs(3) { Saying::Good } else { Saying::Bad }
    });
    assert_eq!(bench.live_until(7).await.failed, None);
    assert_eq!(bench.live_until(60).await.failed, Some(ProbeKind::Liveness));
    assert_eq!(bench.asked(), [0, 2000, 4000, 6000, 8000]);
    assert_eq!(*bench.woken.lock().expect("not poisoned"), [8000]);
    let message = "Unhealthy: Liveness probe failed: HTTP probe failed with statuscode: 503";
    assert_eq!(bench.messages(), [message; 3]);
    assert_eq!(bench.recorded.list()[0].about.field_path.as_deref(), Some("spec.containers{web}"));

    // Another instance starts with a clean slate.
    bench.runtime.containers = vec![running("two")];
    *bench.world.health.lock().expect("not poisoned") = |_| Saying::Good;
    assert_eq!(bench.live_until(70).await, Standing::default());
    assert_eq!(bench.asked().len(), 5 + 5);
}

#[tokio::test(start_paused = true)]
async fn one_success_in_between_forgives_all_failures() {
    let liveness = format!("livenessProbe: {{{GET}, periodSeconds: 1, failureThreshold: 3}}");
    let mut bench = Bench::new(&liveness, |at| if at.as_secs() % 3 == 0 { Saying::Good } else { Saying::Away });
    assert_eq!(bench.live_until(60).await.failed, None);
}

#[tokio::test(start_paused = true)]
async fn silence_is_a_failure_when_the_time_is_over() {
    let mut bench = Bench::new(&format!("livenessProbe: {{{GET}, timeoutSeconds: 4}}"), |_| Saying::Silent);
    assert_eq!(bench.live_until(25).await.failed, Some(ProbeKind::Liveness));
    let message = "Unhealthy: Liveness probe failed: Get \"http://10.0.0.7:80/\": context deadline exceeded \
                   (Client.Timeout exceeded while awaiting headers)";
    assert_eq!(bench.messages(), [message; 3]);
    assert_eq!(*bench.woken.lock().expect("not poisoned"), [24000]);
}

#[tokio::test(start_paused = true)]
async fn liveness_and_readiness_wait_for_the_startup_probe() {
    let probes = format!(
        "startupProbe: {{{GET}, periodSeconds: 1, failureThreshold: 30}}, livenessProbe: {{{GET}}}, readinessProbe: {{{GET}}}"
    );
    let mut bench = Bench::new(&probes, |at| if at < Duration::from_secs(4) { Saying::Away } else { Saying::Good });
    let standing = bench.live_until(3).await;
    assert_eq!((standing.started, standing.ready), (Some(false), Some(false)));
    let standing = bench.live_until(5).await;
    assert_eq!((standing.started, standing.ready), (Some(true), Some(true)));
    // Both others ran at once, and the startup probe no more.
    assert_eq!(bench.asked(), [0, 1000, 2000, 3000, 4000, 4000, 4000]);
}

#[tokio::test(start_paused = true)]
async fn a_startup_probe_gives_up_after_its_threshold() {
    let mut bench = Bench::new(
        &format!("startupProbe: {{{GET}, periodSeconds: 1, failureThreshold: 2}}, livenessProbe: {{{GET}}}"),
        |_| Saying::Away,
    );
    let standing = bench.live_until(30).await;
    assert_eq!((standing.started, standing.failed), (Some(false), Some(ProbeKind::Startup)));
    assert_eq!(bench.asked(), [0, 1000]);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_was_never_ready_is_asked_early() {
    let readiness = format!("readinessProbe: {{{GET}, periodSeconds: 10}}");
    let mut bench = Bench::new(&readiness, |at| if at < Duration::from_secs(3) { Saying::Away } else { Saying::Good });
    assert_eq!(bench.live_until(4).await.ready, Some(true));
    bench.live_until(25).await;
    // Early at first, then in its rhythm.
    assert_eq!(bench.asked(), [0, 500, 1500, 3500, 10000, 20000]);
}

#[tokio::test(start_paused = true)]
async fn readiness_goes_and_comes_by_its_thresholds() {
    let readiness = format!("readinessProbe: {{{GET}, periodSeconds: 1, failureThreshold: 2, successThreshold: 3}}");
    let mut bench = Bench::new(&readiness, |at| match at.as_secs() {
        10..20 => Saying::Bad,
        _ => Saying::Good,
    });
    assert_eq!(bench.live_until(10).await.ready, Some(true));
    assert_eq!(bench.live_until(11).await.ready, Some(true));
    assert_eq!(bench.live_until(12).await.ready, Some(false));
    assert_eq!(bench.live_until(22).await.ready, Some(false));
    assert_eq!(bench.live_until(23).await.ready, Some(true));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_asked_is_tried_thrice_and_is_no_result() {
    let exec = "exec: {command: [check]}";
    let mut bench = Bench::new(&format!("livenessProbe: {{{exec}, failureThreshold: 1}}"), |_| Saying::Refused);
    assert_eq!(bench.live_until(5).await.failed, None);
    assert_eq!(bench.asked(), [0, 0, 0]);
    let message = "Unhealthy: Liveness probe errored and resulted in unknown state: no";
    assert_eq!(bench.messages(), [message]);

    let mut bench = Bench::new("readinessProbe: {httpGet: {port: nobody}}", |_| Saying::Good);
    assert_eq!(bench.live_until(1).await.ready, Some(false));
    let message = "Unhealthy: Readiness probe errored and resulted in unknown state: \
                   couldn't find port \"nobody\" among the container's ports";
    assert_eq!(bench.messages()[0], message);
}

#[tokio::test(start_paused = true)]
async fn every_handler_has_its_own_words() {
    async fn check(handler: &str, health: Health, expected: &[&str]) {
        let mut bench = Bench::new(&format!("livenessProbe: {{{handler}}}"), health);
        bench.live_until(5).await;
        assert_eq!(bench.messages(), expected, "{handler}");
    }
    let exec = "exec: {command: [check, me]}";
    check(exec, |_| Saying::Good, &[]).await;
    check(exec, |_| Saying::Bad, &["Unhealthy: Liveness probe failed: no disk\n"]).await;
    let timed_out = "Unhealthy: Liveness probe failed: command timed out: \"check me\" timed out after 1s";
    check(exec, |_| Saying::Away, &[timed_out]).await;
    let refused = "Unhealthy: Liveness probe failed: dial tcp 10.0.0.7:80: connect: connection refused";
    check("tcpSocket: {port: 80}", |_| Saying::Away, &[refused]).await;
    let late = "Unhealthy: Liveness probe failed: dial tcp 10.0.0.7:80: i/o timeout";
    check("tcpSocket: {port: 80}", |_| Saying::Silent, &[late]).await;
    let refused = "Unhealthy: Liveness probe failed: Get \"http://10.0.0.7:80/\": \
                   dial tcp 10.0.0.7:80: connect: connection refused";
    check(GET, |_| Saying::Away, &[refused]).await;
    let led_away = "ProbeWarning: Liveness probe warning: Probe terminated redirects, Response body: body";
    check(GET, |_| Saying::Redirects, &[led_away]).await;
    let unhealthy = "Unhealthy: Liveness probe failed: service unhealthy (responded with \"NOT_SERVING\")";
    check("grpc: {port: 80}", |_| Saying::Bad, &[unhealthy]).await;
    let unknown = "Unhealthy: Liveness probe failed: error: this server does not implement the grpc health \
                   protocol (grpc.health.v1.Health): no such service";
    check("grpc: {port: 80}", |_| Saying::Refused, &[unknown]).await;
    let late = "Unhealthy: Liveness probe failed: timeout: health rpc did not complete within 1s";
    check("grpc: {port: 80}", |_| Saying::Silent, &[late]).await;
}

/// What the API has of a container.
fn told(id: &str, started: bool, ready: bool) -> PodStatus {
    let status = ContainerStatus {
        name: "web".into(),
        container_id: Some(format!("containerd://{id}")),
        started: Some(started),
        ready,
        ..ContainerStatus::default()
    };
    PodStatus { container_statuses: Some(vec![status]), ..PodStatus::default() }
}

#[tokio::test(start_paused = true)]
async fn what_was_ready_before_the_agent_stays_ready_until_its_threshold() {
    let probes = format!("startupProbe: {{{GET}}}, readinessProbe: {{{GET}, periodSeconds: 2}}");
    let mut bench = Bench::new(&probes, |_| Saying::Bad);
    bench.probes.has_looked = false;
    bench.told = Some(told("one", true, true));
    let ready = Standing { started: Some(true), ready: Some(true), failed: None };
    assert_eq!(bench.live_until(2).await, ready);
    assert_eq!(bench.live_until(10).await.ready, Some(false));
    let spread = bench.asked()[0];
    assert!(spread > 0 && spread < 2000, "the first run came after {spread} ms");

    // Of another instance nothing follows for this one.
    let mut bench = Bench::new(&probes, |_| Saying::Away);
    bench.told = Some(told("zero", true, true));
    let standing = bench.live_until(1).await;
    assert_eq!((standing.started, standing.ready), (Some(false), Some(false)));
}

/// A container that has run for so long when the agent comes, and what was told cannot be asked.
fn found_running(probes: &str, health: Health, seconds: i64) -> Bench {
    let mut bench = Bench::new(probes, health);
    let started_at = noon() - SignedDuration::from_secs(seconds);
    bench.runtime.containers[0].state = ContainerState::Running { started_at };
    bench.is_unknown = true;
    bench
}

#[tokio::test(start_paused = true)]
async fn until_one_can_ask_what_has_run_for_long_is_started_and_ready() {
    let check = |probes: String, age: i64, started: Option<bool>, ready: Option<bool>| {
        let standing = found_running(&probes, |_| Saying::Bad, age).look().into_values().next();
        assert_eq!(standing, Some(Standing { started, ready, failed: None }), "{probes} for {age} s");
    };
    let readiness = format!("readinessProbe: {{{GET}}}");
    check(readiness.clone(), 10, None, Some(false));
    check(readiness.clone(), 11, None, Some(true));
    // It would have been killed after 2 + 4 * 5 s.
    let startup = format!("startupProbe: {{{GET}, initialDelaySeconds: 2, periodSeconds: 4, failureThreshold: 5}}");
    check(format!("{startup}, {readiness}"), 22, Some(false), Some(false));
    check(format!("{startup}, {readiness}"), 23, Some(true), Some(true));
    let short = format!("startupProbe: {{{GET}, periodSeconds: 1, failureThreshold: 1}}");
    check(short.clone(), 10, Some(false), None);
    check(short, 11, Some(true), None);
    let mut ended = found_running(&readiness, |_| Saying::Bad, 60);
    ended.runtime.containers[0].state = cri::testing::exited(0);
    assert_eq!(ended.look().into_values().next().and_then(|standing| standing.ready), Some(false));
}

#[tokio::test(start_paused = true)]
async fn what_was_told_overrules_how_it_looked_but_not_what_a_probe_has_decided() {
    let probes = format!("startupProbe: {{{GET}, periodSeconds: 1}}, readinessProbe: {{{GET}, periodSeconds: 1}}");
    for (started, ready) in [(true, true), (true, false), (false, false)] {
        let mut bench = found_running(&probes, |_| Saying::Good, 60);
        bench.look();
        (bench.is_unknown, bench.told) = (false, Some(told("one", started, ready)));
        let standing = bench.look().into_values().next();
        assert_eq!(standing, Some(Standing { started: Some(started), ready: Some(ready), failed: None }));
    }
    // Of this instance nothing was told, so that it begins like any other.
    let mut bench = found_running(&probes, |_| Saying::Good, 60);
    bench.look();
    bench.is_unknown = false;
    assert_eq!(bench.look().into_values().next().and_then(|standing| standing.ready), Some(false));

    let mut bench = found_running(&probes, |_| Saying::Bad, 60);
    assert_eq!(bench.live_until(9).await.ready, Some(false));
    (bench.is_unknown, bench.told) = (false, Some(told("one", true, true)));
    assert_eq!(bench.look().into_values().next().and_then(|standing| standing.ready), Some(false));
}

#[tokio::test(start_paused = true)]
async fn whoever_is_found_ready_has_not_been_found_to_have_started() {
    let probes = format!("startupProbe: {{{GET}, periodSeconds: 1}}, readinessProbe: {{{GET}, periodSeconds: 1}}");
    let mut bench = found_running(&probes, |_| Saying::Good, 60);
    assert_eq!(bench.live_until(9).await, Standing { started: Some(true), ready: Some(true), failed: None });
    bench.is_unknown = false;
    let standing = bench.look().into_values().next();
    assert_eq!(standing, Some(Standing { started: Some(false), ready: Some(false), failed: None }));
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_nothing_has_followed_is_not_guessed_to_have_started() {
    let probes = format!("startupProbe: {{{GET}, periodSeconds: 1}}");
    let sidecar = format!("{{name: web, restartPolicy: Always, {probes}}}");
    let pod = Arc::new(pod_yaml(&format!("spec: {{initContainers: [{sidecar}], containers: [{{name: main}}]}}")));
    for (is_followed, started) in [(false, Some(false)), (true, Some(true))] {
        let mut bench = found_running(&probes, |_| Saying::Good, 60);
        bench.pod = pod.clone();
        if is_followed {
            bench.runtime.containers.push(cri::testing::container("main", 0, cri::testing::running()));
        }
        assert_eq!(bench.look().into_values().next().and_then(|standing| standing.started), started);
    }
}

#[tokio::test(start_paused = true)]
async fn that_it_is_well_does_not_make_a_guess_a_fact() {
    let liveness = format!("livenessProbe: {{{GET}, periodSeconds: 1}}");
    let readiness = format!("readinessProbe: {{{GET}, initialDelaySeconds: 3600}}");
    let mut bench = found_running(&format!("{liveness}, {readiness}"), |_| Saying::Good, 60);
    assert_eq!(bench.live_until(9).await.ready, Some(true));
    (bench.is_unknown, bench.told) = (false, Some(told("one", true, false)));
    assert_eq!(bench.look().into_values().next().and_then(|standing| standing.ready), Some(false));
}

#[tokio::test(start_paused = true)]
async fn five_hundred_probes_found_at_once_do_not_fire_at_once() {
    let mut benches: Vec<_> = (0..500)
        .map(|seed| {
            let mut bench = Bench::new(&format!("livenessProbe: {{{GET}}}"), |_| Saying::Good);
            bench.probes.has_looked = false;
            let shared = Arc::get_mut(&mut bench.probes.shared).expect("nobody else has it yet");
            shared.clock = Clock::simulated(noon(), seed);
            bench.look();
            bench
        })
        .collect();
    sleep(Duration::from_secs(10)).await;
    let mut seconds = [0; 10];
    for bench in &mut benches {
        let asked = bench.asked();
        assert_eq!(asked.len(), 1);
        seconds[usize::try_from(asked[0] / 1000).expect("a small number")] += 1;
    }
    assert!(seconds.iter().all(|in_it| (20..80).contains(in_it)), "{seconds:?}");
}

#[tokio::test(start_paused = true)]
async fn of_a_pod_that_stops_only_readiness_is_asked() {
    let probes = format!(
        "startupProbe: {{{GET}, periodSeconds: 1, failureThreshold: 99}}, livenessProbe: {{{GET}, periodSeconds: 1, failureThreshold: 1}}, \
         readinessProbe: {{{GET}, periodSeconds: 1, failureThreshold: 1}}"
    );
    let mut bench = Bench::new(&probes, |_| Saying::Away);
    bench.live_until(2).await;
    bench.stage = Stage::Stopping;
    *bench.world.health.lock().expect("not poisoned") = |_| Saying::Good;
    let standing = bench.live_until(4).await;
    assert_eq!(standing, Standing { started: Some(true), ready: Some(true), failed: None });
    *bench.world.health.lock().expect("not poisoned") = |_| Saying::Away;
    let standing = bench.live_until(8).await;
    assert_eq!((standing.ready, standing.failed), (Some(false), None));
    bench.stage = Stage::Over;
    bench.look();
    let before = bench.asked().len();
    bench.live_until(20).await;
    assert_eq!(bench.asked().len(), before);
}

#[tokio::test(start_paused = true)]
async fn probes_end_with_their_instance_but_what_it_was_killed_for_stays() {
    let mut bench = Bench::new(&format!("livenessProbe: {{{GET}, failureThreshold: 1}}"), |_| Saying::Bad);
    assert!(bench.live_until(1).await.failed.is_some());
    bench.runtime.containers[0].state = ContainerState::Unknown;
    assert_eq!(bench.look().values().next().and_then(|standing| standing.failed), Some(ProbeKind::Liveness));
    bench.runtime.containers = vec![running("two")];
    let standings = bench.look();
    assert_eq!(standings.keys().map(ContainerId::as_str).collect::<Vec<_>>(), ["two"]);
    assert!(bench.probes.tasks.keys().all(|(id, _)| id.as_str() == "two"));
}

#[tokio::test(start_paused = true)]
async fn ordinary_init_containers_have_no_probes_and_sidecars_have() {
    let mut bench = Bench::new("image: x", |_| Saying::Good);
    bench.pod = Arc::new(pod_yaml(&format!(
        "spec: {{initContainers: [{{name: setup, readinessProbe: {{{GET}}}}}, {{name: proxy, restartPolicy: Always, readinessProbe: {{{GET}}}}}], \
         containers: [{{name: web}}]}}"
    )));
    bench.runtime.containers =
        vec![Container { name: "setup".into(), ..running("s") }, Container { name: "proxy".into(), ..running("p") }];
    let standings = bench.look();
    assert_eq!(standings.keys().map(ContainerId::as_str).collect::<Vec<_>>(), ["p"]);
}

#[test]
fn the_user_agent_names_major_and_minor() {
    assert_eq!(user_agent("kube-probe", "v1.36.2+ferrolet"), "kube-probe/1.36");
    assert_eq!(user_agent("kube-lifecycle", "1.36.0"), "kube-lifecycle/1.36");
}
