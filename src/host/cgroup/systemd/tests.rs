//! systemd is a thread that answers as it is told, and notes what it was asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;

use super::wire::{self, HEAD, Kind};
use super::*;
use crate::host::testing::Scratch;

/// What the other side says to a call.
enum Answer {
    /// The job that the call begins, and how it ends.
    Job(&'static str),
    Nothing,
    Error(&'static str),
}

/// A message as systemd makes it, of the kinds that it sends.
fn message(kind: u8, reply_to: u32, member: &str, error: &str, texts: &[&str]) -> Vec<u8> {
    // The same bytes as a call's but for the kind and the fields, which are put in by hand.
    let mut fields = Vec::new();
    let pad = |bytes: &mut Vec<u8>, to: usize| bytes.resize(bytes.len().next_multiple_of(to), 0);
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.push(0);
    };
    if reply_to > 0 {
        fields.extend([5, 1, b'u', 0]);
        fields.extend(reply_to.to_le_bytes());
    }
    for (code, name) in [(3, member), (4, error)] {
        if !name.is_empty() {
            pad(&mut fields, 8);
            fields.extend([code, 1, b's', 0]);
            text(&mut fields, name);
        }
    }
    pad(&mut fields, 8);
    fields.extend([8, 1, b'g', 0, texts.len() as u8]);
    fields.extend(texts.iter().map(|_| b's'));
    fields.push(0);
    let mut body = Vec::new();
    texts.iter().for_each(|it| text(&mut body, it));
    let mut bytes = vec![b'l', kind, 0, 1];
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(7u32.to_le_bytes());
    bytes.extend((fields.len() as u32).to_le_bytes());
    bytes.extend(fields);
    pad(&mut bytes, 8);
    bytes.extend(body);
    bytes
}

/// The member, the first text and all bytes of each call.
type Calls = Vec<(String, String, Vec<u8>)>;

/// Answers one connection, and returns what was called.
fn serve(stream: UnixStream, answers: Vec<Answer>) -> Calls {
    let mut writer = stream.try_clone().expect("a socket");
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).expect("it authenticates");
    assert!(line.starts_with("\0AUTH EXTERNAL "), "{line:?}");
    writer.write_all(b"OK 1234deadbeef\r\n").expect("it listens");
    line.clear();
    reader.read_line(&mut line).expect("it begins");
    assert_eq!(line, "BEGIN\r\n");
    let mut calls = Vec::new();
    for answer in answers {
        let mut head = [0; HEAD];
        reader.read_exact(&mut head).expect("a call");
        let mut bytes = head.to_vec();
        bytes.resize(HEAD + wire::rest_length(&head).expect("a head"), 0);
        reader.read_exact(&mut bytes[HEAD..]).expect("a whole call");
        let call = wire::parse(&bytes).expect("a message");
        assert_eq!(call.kind, Kind::Call);
        // News of others come in between.
        let mut said = message(4, 0, "UnitNew", "", &["a.service", "/a"]);
        match answer {
            Answer::Nothing => said.extend(message(2, call.serial, "", "", &[])),
            Answer::Error(name) => said.extend(message(3, call.serial, "", name, &["not so"])),
            Answer::Job(result) => {
                said.extend(message(4, 0, "JobRemoved", "", &["/job/1", "other.service", "failed"]));
                said.extend(message(2, call.serial, "", "", &["/job/2"]));
                said.extend(message(4, 0, "JobRemoved", "", &["/job/2", "x.slice", result]));
            }
        }
        writer.write_all(&said).expect("it listens");
        calls.push((call.member, call.texts.into_iter().next().unwrap_or_default(), bytes));
    }
    calls
}

/// A machine whose systemd takes one connection after another.
fn systemd(connections: Vec<Vec<Answer>>) -> (Scratch, Systemd, JoinHandle<Calls>) {
    let scratch = Scratch::new();
    scratch.dir("systemd/system");
    let listener = UnixListener::bind(scratch.path("systemd/private")).expect("a short path");
    let serving = std::thread::spawn(move || {
        let serve_next = |answers| serve(listener.accept().expect("it connects").0, answers);
        connections.into_iter().flat_map(serve_next).collect()
    });
    let systemd = Systemd::new(scratch.root().to_owned());
    (scratch, systemd, serving)
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

const V2: CgroupVersion = CgroupVersion::V2;

#[test]
fn a_slice_is_started_below_its_parent_and_waited_for() {
    let (_scratch, systemd, serving) = systemd(vec![vec![Answer::Job("done")]]);
    systemd.check_runs().expect("it does");
    let settings = CgroupSettings { pids_max: Some(7), ..CgroupSettings::default() };
    systemd.start("kubepods-burstable.slice", Some("kubepods.slice"), &settings, V2).expect("it is started");
    let calls = serving.join().expect("no surprise");
    let [(member, slice, bytes)] = calls.as_slice() else { panic!("one call, not {calls:?}") };
    assert_eq!((member.as_str(), slice.as_str()), ("StartTransientUnit", "kubepods-burstable.slice"));
    for text in ["Wants", "kubepods.slice", "DefaultDependencies", "MemoryAccounting", "IOAccounting", "TasksMax"] {
        assert!(contains(bytes, text), "{text} in {bytes:?}");
    }
}

#[test]
fn a_job_that_fails_and_a_refusal_are_told() {
    let none = CgroupSettings::default();
    let (_scratch, failing, _serving) = systemd(vec![vec![Answer::Job("failed")]]);
    let error = failing.start("a.slice", None, &none, V2).expect_err("it failed").to_string();
    assert_eq!(error, "cannot start a.slice by systemd: job ended with \"failed\"");
    let (_scratch, refusing, _serving) = systemd(vec![vec![Answer::Error("org.x.AccessDenied")]]);
    let error = refusing.stop("a.slice").expect_err("it was refused").to_string();
    assert_eq!(error, "cannot stop a.slice by systemd: org.x.AccessDenied: not so");
}

#[test]
fn a_slice_that_is_there_already_is_told_its_values() {
    let exists = Answer::Error("org.freedesktop.systemd1.UnitExists");
    let (_scratch, systemd, serving) = systemd(vec![vec![exists], vec![Answer::Nothing, Answer::Nothing]]);
    let settings = CgroupSettings { pids_max: Some(7), ..CgroupSettings::default() };
    systemd.start("a.slice", None, &settings, V2).expect("it is there");
    let members: Vec<_> = serving.join().expect("no surprise").into_iter().map(|(member, ..)| member).collect();
    assert_eq!(members, ["StartTransientUnit", "SetUnitProperties", "Ping"]);
}

#[test]
fn a_slice_that_nobody_knows_has_ended() {
    let (_scratch, systemd, _serving) = systemd(vec![vec![Answer::Error("org.freedesktop.systemd1.NoSuchUnit")]]);
    systemd.stop("a.slice").expect("it is gone");
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
    let number = |value| Value::U64(value);
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

/// Laid out by hand after the specification.
#[test]
fn a_call_is_laid_out_as_d_bus_wants_it() {
    let to = wire::Address { destination: None, path: "/o", interface: "i.f", member: "M" };
    let body = Body::new().text("a.slice").bool(true).properties(&[("T", Value::U64(5)), ("B", Value::Bool(true))]);
    let expected: Vec<u8> = [
        &[b'l', 1, 0, 1][..],
        // Length of the body, number of the call, length of the fields without the last gap.
        &[64, 0, 0, 0],
        &[1, 0, 0, 0],
        &[61, 0, 0, 0],
        // The path, the interface, the member, the signature: each begins at a multiple of eight.
        &[1, 1, b'o', 0, 2, 0, 0, 0, b'/', b'o', 0, 0, 0, 0, 0, 0],
        &[2, 1, b's', 0, 3, 0, 0, 0, b'i', b'.', b'f', 0, 0, 0, 0, 0],
        &[3, 1, b's', 0, 1, 0, 0, 0, b'M', 0, 0, 0, 0, 0, 0, 0],
        &[8, 1, b'g', 0, 7, b's', b'b', b'a', b'(', b's', b'v', b')', 0, 0, 0, 0],
        // Text, bool, length of the array.
        &[7, 0, 0, 0, b'a', b'.', b's', b'l', b'i', b'c', b'e', 0],
        &[1, 0, 0, 0],
        &[40, 0, 0, 0, 0, 0, 0, 0],
        &[1, 0, 0, 0, b'T', 0, 1, b't', 0, 0, 0, 0, 0, 0, 0, 0],
        &[5, 0, 0, 0, 0, 0, 0, 0],
        &[1, 0, 0, 0, b'B', 0, 1, b'b', 0, 0, 0, 0, 1, 0, 0, 0],
    ]
    .concat();
    assert_eq!(wire::call(1, &to, &body), expected);
}

#[test]
fn a_message_that_is_cut_off_or_foreign_makes_no_sense() {
    let whole = message(2, 1, "", "", &["/job/1"]);
    let head: [u8; HEAD] = whole[..HEAD].try_into().expect("it is longer");
    assert_eq!(wire::rest_length(&head), Some(whole.len() - HEAD));
    assert_eq!(wire::parse(&whole).expect("a message").texts, ["/job/1"]);
    for length in 0..whole.len() {
        assert_eq!(wire::parse(&whole[..length]), None, "{length} bytes");
    }
    assert_eq!(wire::parse(b"no D-Bus message"), None);
}
