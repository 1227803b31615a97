//! What is read of a pod, off a fake runtime and a real disk.

use std::fs;
use std::time::Duration;

use super::*;
use crate::clock::Clock;
use crate::cri::testing::{container, exited, running};
use crate::host::{LinuxHost, Roots};
use crate::sync::testing::FakeRuntime;

#[tokio::test]
async fn who_fails_without_a_word_is_told_by_the_last_80_lines_of_its_log() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let log = dir.path().join("0.log");
    let line = |nth| format!("2026-01-01T00:00:00.000000001+01:00 stderr F line {nth}\n");
    fs::write(&log, (0..100).map(line).collect::<String>()).expect("a scratch directory");
    let runtime = Arc::<FakeRuntime>::default();
    let policy = cri::annotations::TERMINATION_MESSAGE_POLICY.to_owned();
    runtime.hold(Container {
        annotations: [(policy, "FallbackToLogsOnError".to_owned())].into(),
        log_path: log.to_string_lossy().into_owned(),
        ..container("c", 0, exited(1))
    });
    let roots = Roots::machine(dir.path().to_owned());
    let host = LinuxHost::new(roots, Duration::from_secs(10), Clock::system());
    let pleg = Pleg::new(runtime, Arc::new(host), Arc::new(|_| {}));
    let read = pleg.current(&PodUid::new("u")).await.expect("the runtime answers");
    // With what the runtime writes before them they are more than 2048 bytes.
    let expected: String = (20..100).map(|nth| format!("line {nth}\n")).collect();
    assert_eq!(read.containers[0].exit().map(|exit| exit.message.as_str()), Some(expected.as_str()));
}

#[tokio::test]
async fn what_was_read_is_counted_by_its_state() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let runtime = Arc::<FakeRuntime>::default();
    for (name, state) in [("a", running()), ("b", running()), ("c", exited(0))] {
        runtime.hold(container(name, 0, state));
    }
    let host = LinuxHost::new(Roots::machine(dir.path().to_owned()), Duration::from_secs(10), Clock::system());
    let pleg = Pleg::new(runtime, Arc::new(host), Arc::new(|_| {}));
    assert_eq!(pleg.census(), Census::default());
    pleg.current(&PodUid::new("u")).await.expect("the runtime answers");
    let containers = BTreeMap::from([(ContainerStateKind::Running, 2), (ContainerStateKind::Exited, 1)]);
    assert_eq!(pleg.census(), Census { running_pods: 0, containers });
}
