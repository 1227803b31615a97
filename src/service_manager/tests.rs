use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::{Instant, advance, sleep};

use super::*;

/// A service manager of the test's own, which listens on a socket in the file system.
struct Listener {
    socket: UnixDatagram,
    directory: tempfile::TempDir,
}

impl Listener {
    fn new() -> Listener {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Listener { socket, directory }
    }

    fn given(&self, watchdog: Option<Duration>) -> Given {
        Given {
            notify_socket: Some(self.directory.path().join("notify").into()),
            watchdog_usec: watchdog.map(|interval| interval.as_micros().to_string().into()),
            watchdog_pid: None,
        }
    }

    /// All that has been said and not been heard yet.
    fn heard(&self) -> Vec<String> {
        heard(&self.socket)
    }
}

fn heard(socket: &UnixDatagram) -> Vec<String> {
    let mut buffer = [0; 64];
    let one = || socket.recv(&mut buffer).ok().map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned());
    std::iter::from_fn(one).collect()
}

fn named(notify_socket: &str) -> Given {
    Given { notify_socket: Some(notify_socket.into()), ..Given::default() }
}

#[test]
fn ready_and_stopping_are_told_by_a_path() {
    let listener = Listener::new();
    let manager = ServiceManager::of(listener.given(None)).unwrap();
    manager.ready();
    manager.stopping();
    assert_eq!(listener.heard(), ["READY=1", "STOPPING=1"]);
}

#[test]
fn an_abstract_name_is_reached() {
    let name = format!("ferrolet-test-{}", std::process::id());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    socket.set_nonblocking(true).unwrap();
    ServiceManager::of(named(&format!("@{name}"))).unwrap().ready();
    assert_eq!(heard(&socket), ["READY=1"]);
}

#[tokio::test]
async fn without_a_socket_nobody_is_told_and_no_watchdog_runs() {
    let given = Given { watchdog_usec: Some("30000000".into()), ..Given::default() };
    let manager = ServiceManager::of(given).unwrap();
    manager.ready();
    manager.feed_watchdog(|| Ok(())).await;
}

#[test]
fn what_cannot_be_understood_or_reached_is_an_error_that_names_it() {
    let check = |given: Given, expected: &str| {
        assert_eq!(ServiceManager::of(given).unwrap_err().to_string(), expected);
    };
    check(named("run/notify"), "NOTIFY_SOCKET \"run/notify\" is neither an absolute path nor an abstract name");
    check(named("@"), "NOTIFY_SOCKET \"@\" is neither an absolute path nor an abstract name");
    check(named("/nowhere/notify"), "cannot reach NOTIFY_SOCKET \"/nowhere/notify\"");
}

#[test]
fn a_watchdog_that_cannot_be_fed_keeps_nobody_from_hearing_that_we_are_up() {
    let error = interval("soon".into()).unwrap_err();
    assert_eq!(error.to_string(), "WATCHDOG_USEC \"soon\" is not a number of microseconds");
    // One that is short for a busy machine is fed all the same.
    for (usec, expected) in [("soon", None), ("2000000", Some(Duration::from_secs(2)))] {
        let listener = Listener::new();
        let given = Given { watchdog_usec: Some(usec.into()), ..listener.given(None) };
        let manager = ServiceManager::of(given).unwrap();
        assert_eq!(manager.watchdog, expected);
        manager.ready();
        assert_eq!(listener.heard(), ["READY=1"], "{usec}");
    }
}

#[test]
fn a_watchdog_for_another_process_is_not_ours() {
    let listener = Listener::new();
    let mut given = listener.given(Some(Duration::from_secs(30)));
    given.watchdog_pid = Some("1".into());
    assert_eq!(ServiceManager::of(given.clone()).unwrap().watchdog, None);
    given.watchdog_pid = Some(std::process::id().to_string().into());
    assert_eq!(ServiceManager::of(given).unwrap().watchdog, Some(Duration::from_secs(30)));
}

#[tokio::test(start_paused = true)]
async fn the_watchdog_is_fed_at_half_its_interval_while_the_checks_pass() {
    let listener = Listener::new();
    let manager = ServiceManager::of(listener.given(Some(Duration::from_secs(30)))).unwrap();
    let turns = Arc::new(AtomicBool::new(true));
    let turning = turns.clone();
    let check = move || if turning.load(Ordering::Relaxed) { Ok(()) } else { Err("no turn".to_owned()) };
    let task = tokio::spawn(manager.feed_watchdog(check));

    sleep(Duration::from_secs(1)).await;
    assert_eq!(listener.heard(), ["WATCHDOG=1"], "at once");
    sleep(Duration::from_secs(30)).await;
    assert_eq!(listener.heard(), ["WATCHDOG=1", "WATCHDOG=1"]);

    turns.store(false, Ordering::Relaxed);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(listener.heard(), [""; 0], "who does no work is not alive");

    turns.store(true, Ordering::Relaxed);
    sleep(Duration::from_secs(15)).await;
    assert_eq!(listener.heard(), ["WATCHDOG=1"]);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_does_not_read_holds_nothing_up_and_is_told_again() {
    let listener = Listener::new();
    let manager = ServiceManager::of(listener.given(Some(Duration::from_secs(30)))).unwrap();
    while manager.tell("FILLING=1").is_ok() {}
    let task = tokio::spawn(manager.feed_watchdog(|| Ok(())));
    advance(Duration::from_millis(1)).await;
    let begin = Instant::now();
    listener.heard();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(listener.heard(), ["WATCHDOG=1"], "before the next is due, {:?} later", begin.elapsed());
    task.abort();
}
