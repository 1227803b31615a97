//! systemd is a thread that answers as it is told, and notes what it was asked.

use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use futures::StreamExt;
use zbus::connection::Builder as Line;
use zbus::message::Message;
use zbus::{Connection, Guid, MessageStream, ObjectPath, OwnedVariant};

use super::*;
use crate::host::testing::Scratch;

/// What the other side says to a call.
enum Answer {
    /// The job that the call begins, and how it ends.
    Job(&'static str),
    /// The same, told before the job's name is.
    JobAtOnce(&'static str),
    /// A job of whose end nothing is told, for the connection is closed.
    JobCut,
    Text(&'static str),
    Nothing,
    Error(&'static str),
    /// None, for as long as the caller waits. Only where the test has the clock.
    Silence,
    /// None, and the connection is closed.
    Cut,
}

async fn job_removed(line: &Connection, job: &str, unit: &str, result: &str) {
    let (path, interface) = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");
    let body = (7u32, ObjectPath::try_from(job).expect("a path"), unit, result);
    line.emit_signal(None::<&str>, path, interface, "JobRemoved", &body).await.expect("it listens");
}

async fn answer(line: &Connection, call: &Message, answer: &Answer) {
    let (header, body) = (call.header(), call.body());
    let job = ObjectPath::from_static_str_unchecked("/job/2");
    let said = match answer {
        Answer::Nothing => line.reply(&header, &()).await,
        Answer::Text(text) => line.reply(&header, text).await,
        Answer::Error(name) => line.reply_error(&header, *name, &"not so").await,
        Answer::Silence => return tokio::time::pause(),
        Answer::Cut => return,
        Answer::Job(_) | Answer::JobAtOnce(_) | Answer::JobCut => {
            let unit: &str = body.deserialize_ignore_signature().expect("a unit");
            // News of others come in between, more than any queue takes, and of what the unit did before.
            for _ in 0..200 {
                job_removed(line, "/job/3", "other.service", "failed").await;
            }
            job_removed(line, "/job/1", unit, "failed").await;
            if let Answer::JobAtOnce(result) = answer {
                job_removed(line, &job, unit, result).await;
            }
            let said = line.reply(&header, &job).await;
            if let Answer::Job(result) = answer {
                job_removed(line, &job, unit, result).await;
            }
            said
        }
    };
    said.expect("it listens");
}

/// What was called.
type Calls = Vec<Message>;

/// Answers one connection until the other side closes it.
async fn serve(stream: std::os::unix::net::UnixStream, answers: Vec<Answer>) -> Calls {
    let line = Line::unix_stream(stream).server(Guid::generate()).p2p().build_message_stream();
    let mut said: MessageStream = line.await.expect("it authenticates");
    let line = Connection::from(&said);
    let mut calls = Vec::new();
    for answered in &answers {
        let call = said.next().await.expect("a call").expect("a whole call");
        answer(&line, &call, answered).await;
        calls.push(call);
    }
    if let Some(Answer::Cut | Answer::JobCut) = answers.last() {
        line.close().await.expect("it is open");
    } else {
        let more = said.next().await;
        assert!(!matches!(more, Some(Ok(_))), "it closes its connection, and does not say {more:?}");
    }
    calls
}

/// A machine with a socket at which one connection after another is answered.
fn machine(socket: &str, connections: Vec<Vec<Answer>>) -> (Scratch, Systemd, JoinHandle<Calls>) {
    let scratch = Scratch::new();
    scratch.dir("systemd/system");
    scratch.dir("dbus");
    let listener = UnixListener::bind(scratch.path(socket)).expect("a short path");
    let serving = std::thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut calls = Vec::new();
        for answers in connections {
            let stream = listener.accept().expect("it connects").0;
            calls.extend(runtime.block_on(serve(stream, answers)));
        }
        calls
    });
    let systemd = Systemd::new(scratch.root().to_owned());
    (scratch, systemd, serving)
}

/// One that has systemd's own socket.
fn systemd(connections: Vec<Vec<Answer>>) -> (Scratch, Systemd, JoinHandle<Calls>) {
    machine(OWN, connections)
}

const OWN: &str = "systemd/private";
const SHARED: &str = "dbus/system_bus_socket";

fn members(calls: &[Message]) -> Vec<String> {
    calls.iter().map(|call| call.header().member().expect("a call has one").to_string()).collect()
}

fn refusal(result: Result<()>) -> String {
    result.expect_err("it fails").to_string()
}

const V2: CgroupVersion = CgroupVersion::V2;

type Told = Vec<(String, OwnedVariant)>;

#[test]
fn a_slice_is_started_below_its_parent_and_waited_for() {
    let (_scratch, systemd, serving) = systemd(vec![vec![Answer::Job("done")]]);
    systemd.check_runs().expect("it does");
    let settings = CgroupSettings { pids_max: Some(7), ..CgroupSettings::default() };
    systemd.start("kubepods-burstable.slice", Some("kubepods.slice"), &settings, V2).expect("it is started");
    let calls = serving.join().expect("no surprise");
    assert_eq!(members(&calls), ["StartTransientUnit"]);
    let (slice, mode, properties, others): (String, String, Told, Vec<(String, Told)>) =
        calls[0].body().deserialize().expect("what systemd takes");
    assert_eq!((slice.as_str(), mode.as_str()), ("kubepods-burstable.slice", "replace"));
    assert_eq!(others, []);
    let expected = [
        ("Description", Variant::from("pods of this node, kubepods-burstable.slice")),
        ("DefaultDependencies", Variant::from(false)),
        ("Wants", Variant::from(vec!["kubepods.slice"])),
        ("CPUAccounting", Variant::from(true)),
        ("MemoryAccounting", Variant::from(true)),
        ("TasksAccounting", Variant::from(true)),
        ("IOAccounting", Variant::from(true)),
        ("TasksMax", Variant::from(7u64)),
    ];
    let told: Vec<_> = properties.iter().map(|(name, value)| (name.as_str(), &**value)).collect();
    assert_eq!(told, expected.iter().map(|(name, value)| (*name, value)).collect::<Vec<_>>());
}

#[test]
fn a_job_that_ends_before_its_name_is_told_has_ended() {
    let (_scratch, systemd, _serving) = systemd(vec![vec![Answer::JobAtOnce("done")]]);
    systemd.start("a.slice", None, &CgroupSettings::default(), V2).expect("it is started");
}

#[test]
fn a_job_that_fails_and_a_refusal_are_told() {
    let none = CgroupSettings::default();
    let (_scratch, failing, _serving) = systemd(vec![vec![Answer::Job("failed")]]);
    let error = refusal(failing.start("a.slice", None, &none, V2));
    assert_eq!(error, "cannot start a.slice by systemd: job ended with \"failed\"");
    // The second is one of D-Bus' own names.
    for name in ["org.x.AccessDenied", "org.freedesktop.DBus.Error.AccessDenied"] {
        let (_scratch, refusing, _serving) = systemd(vec![vec![Answer::Error(name)]]);
        let error = refusal(refusing.stop("a.slice"));
        assert_eq!(error, format!("cannot stop a.slice by systemd: {name}: not so"));
    }
}

#[test]
fn a_slice_that_is_there_already_is_told_its_values() {
    let exists = Answer::Error("org.freedesktop.systemd1.UnitExists");
    let (_scratch, systemd, serving) = systemd(vec![vec![exists], vec![Answer::Nothing, Answer::Nothing]]);
    let settings = CgroupSettings { pids_max: Some(7), ..CgroupSettings::default() };
    systemd.start("a.slice", None, &settings, V2).expect("it is there");
    let calls = serving.join().expect("no surprise");
    assert_eq!(members(&calls), ["StartTransientUnit", "SetUnitProperties", "Ping"]);
    let (slice, until_restart, properties): (String, bool, Told) =
        calls[1].body().deserialize().expect("what systemd takes");
    assert_eq!((slice.as_str(), until_restart), ("a.slice", true));
    assert_eq!(properties, [("TasksMax".to_owned(), Variant::from(7u64).try_into().expect("no file"))]);
}

#[test]
fn a_slice_that_nobody_knows_has_ended() {
    let (_scratch, systemd, serving) = systemd(vec![vec![Answer::Error("org.freedesktop.systemd1.NoSuchUnit")]]);
    systemd.stop("a.slice").expect("it is gone");
    assert_eq!(members(&serving.join().expect("no surprise")), ["StopUnit"]);
}

#[test]
fn a_slice_has_ended_when_its_job_has() {
    let (_scratch, systemd, serving) = systemd(vec![vec![Answer::Job("failed")]]);
    let error = systemd.stop("a.slice").expect_err("it is there still").to_string();
    assert!(error.contains("job ended with \"failed\""), "{error}");
    assert_eq!(members(&serving.join().expect("no surprise")), ["StopUnit"]);
}

#[test]
fn without_systemds_own_socket_the_bus_is_asked_for_news_of_the_job() {
    let answers = vec![Answer::Text(":1.7"), Answer::Nothing, Answer::Nothing, Answer::Job("done")];
    let (_scratch, systemd, serving) = machine(SHARED, vec![answers]);
    systemd.start("a.slice", None, &CgroupSettings::default(), V2).expect("it is started");
    let calls = serving.join().expect("no surprise");
    assert_eq!(members(&calls), ["Hello", "AddMatch", "Subscribe", "StartTransientUnit"]);
    let rule: String = calls[1].body().deserialize().expect("a rule");
    for part in ["sender='org.freedesktop.systemd1'", "member='JobRemoved'", "arg2='a.slice'"] {
        assert!(rule.contains(part), "{part} in {rule}");
    }
    for call in &calls[2..] {
        assert_eq!(call.header().destination().map(|it| it.as_str()), Some("org.freedesktop.systemd1"));
    }
}

#[test]
fn a_connection_that_is_cut_is_told() {
    let broke = "by systemd: connection to systemd broke: ";
    let (_scratch, cut, _serving) = systemd(vec![vec![Answer::Cut]]);
    let error = refusal(cut.stop("a.slice"));
    assert!(error.starts_with(&format!("cannot stop a.slice {broke}")), "{error}");
    let (_scratch, cut, _serving) = systemd(vec![vec![Answer::JobCut]]);
    let error = refusal(cut.start("a.slice", None, &CgroupSettings::default(), V2));
    assert!(error.starts_with(&format!("cannot start a.slice {broke}")), "{error}");
}

/// The clock is stopped once systemd hangs, so that the next thing to come is the deadline.
#[tokio::test]
async fn a_systemd_that_hangs_is_given_up() {
    let scratch = Scratch::new();
    scratch.dir("systemd");
    let listener = tokio::net::UnixListener::bind(scratch.path(OWN)).expect("a short path");
    let systemd = Systemd::new(scratch.root().to_owned());
    let serving = async {
        let stream = listener.accept().await.expect("it connects").0;
        serve(stream.into_std().expect("a socket"), vec![Answer::Silence]).await
    };
    let asking = systemd.converse("stop", "a.slice", async |bus| bus.ping().await);
    let (calls, answer) = tokio::join!(serving, asking);
    assert_eq!(members(&calls), ["Ping"]);
    assert_eq!(refusal(answer), "cannot stop a.slice by systemd: no answer within 10 seconds");

    // Now nobody takes the connection at all.
    let asking = systemd.converse("stop", "a.slice", async |bus| bus.ping().await);
    assert_eq!(refusal(asking.await), "cannot reach a.slice by systemd: no answer within 10 seconds");
}

#[test]
fn a_machine_without_systemd_is_told() {
    let scratch = Scratch::new();
    let systemd = Systemd::new(scratch.root().to_owned());
    let error = systemd.check_runs().expect_err("there is none").to_string();
    assert!(error.starts_with("systemd does not run on this machine"), "{error}");
    let error = systemd.stop("a.slice").expect_err("nobody listens").to_string();
    assert!(error.contains("dbus/system_bus_socket"), "{error}");
}

#[test]
fn values_are_told_in_systemds_words() {
    let settings = CgroupSettings {
        cpu_shares: Some(1024),
        cpu_quota: Some(25_250),
        cpu_period: Some(50_000),
        memory_limit_bytes: Some(10 << 20),
        memory_min_bytes: Some(0),
        memory_low_bytes: Some(4096),
        pids_max: Some(100),
        ..CgroupSettings::default()
    };
    let number = |value: u64| Variant::from(value);
    let v2 = [
        ("CPUWeight", number(39)),
        ("CPUQuotaPeriodUSec", number(50_000)),
        ("CPUQuotaPerSecUSec", number(510_000)),
        ("MemoryMax", number(10 << 20)),
        ("MemoryMin", number(0)),
        ("MemoryLow", number(4096)),
        ("TasksMax", number(100)),
    ];
    assert_eq!(limits(&settings, CgroupVersion::V2), v2);
    let v1 = [
        ("CPUShares", number(1024)),
        ("CPUQuotaPeriodUSec", number(50_000)),
        ("CPUQuotaPerSecUSec", number(510_000)),
        ("MemoryLimit", number(10 << 20)),
        ("TasksMax", number(100)),
    ];
    assert_eq!(limits(&settings, CgroupVersion::V1), v1);
    let unlimited =
        CgroupSettings { cpu_quota: Some(-1), memory_limit_bytes: Some(MEMORY_UNLIMITED), ..CgroupSettings::default() };
    let expected = [("CPUQuotaPerSecUSec", number(u64::MAX)), ("MemoryMax", number(u64::MAX))];
    assert_eq!(limits(&unlimited, CgroupVersion::V2), expected);
}
