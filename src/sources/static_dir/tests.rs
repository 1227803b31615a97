use std::fs;
use std::path::Path;

use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;
use crate::pod::PodRef;
use crate::sources::testing::manifest;

fn scanned(path: &Path) -> Vec<String> {
    let found = scan(path).expect("the directory is readable");
    let name = |path: &PathBuf| path.file_name().expect("a manifest has a name").to_string_lossy().into_owned();
    let text = |(path, content): (&PathBuf, &Result<Vec<u8>, String>)| match content {
        Ok(bytes) => format!("{}: {} bytes", name(path), bytes.len()),
        Err(error) => format!("{}: {error}", name(path)),
    };
    found.iter().map(text).collect()
}

#[test]
fn a_scan_finds_the_files_that_are_meant() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let path = |name: &str| dir.path().join(name);
    fs::write(path("b.yaml"), "bb").expect("writable");
    fs::write(path("a.json"), "a").expect("writable");
    fs::write(path(".hidden"), "x").expect("writable");
    fs::create_dir(path("sub")).expect("writable");
    fs::write(path("sub/c.yaml"), "c").expect("writable");
    std::os::unix::fs::symlink(path("sub/c.yaml"), path("link")).expect("writable");
    std::os::unix::fs::symlink(path("nowhere"), path("dangling")).expect("writable");
    nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("writable");
    let large = fs::File::create(path("large")).expect("writable");
    large.set_len((10 << 20) + 1).expect("writable");
    assert_eq!(
        scanned(dir.path()),
        [
            "a.json: 1 bytes",
            "b.yaml: 2 bytes",
            "dangling: failed to read it: No such file or directory (os error 2)",
            "large: it is larger than 10 MiB",
            "link: 1 bytes",
            "pipe: failed to read it: not a regular file",
        ]
    );
    assert_eq!(scanned(&path("b.yaml")), ["b.yaml: 2 bytes"]);
    assert_eq!(scanned(&path("absent")), [""; 0]);
}

/// A running source over a real directory, and what it says.
struct Running {
    events: mpsc::Receiver<SourceEvent>,
    task: JoinHandle<()>,
}

impl Running {
    fn start(path: &Path, rescan_period: Duration) -> Self {
        let (sender, events) = mpsc::channel(1);
        let dir = StaticDir { path: path.to_owned(), node_name: "n1".into(), may_need_api: false, rescan_period };
        Running { events, task: tokio::spawn(run(dir, Clock::system(), sender)) }
    }

    /// Names of the pods that are listed next.
    async fn listed(&mut self) -> Vec<String> {
        let event = timeout(Duration::from_secs(10), self.events.recv()).await.expect("an event within the deadline");
        match event.expect("the task runs") {
            SourceEvent::Listed { source: Source::File, pods } => pods.iter().map(|pod| PodRef::of(pod).name).collect(),
            other => panic!("unexpected {other:?}"),
        }
    }
}

/// Only inotify can be as quick as the tests that use this are patient.
const NO_RESCAN: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn changes_are_seen_at_once() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let file = |name: &str| dir.path().join(name);
    fs::write(file("a"), manifest("web", "i")).expect("writable");
    let mut running = Running::start(dir.path(), NO_RESCAN);
    assert_eq!(running.listed().await, ["web-n1"]);
    let started = Instant::now();
    fs::write(file("b"), manifest("db", "i")).expect("writable");
    assert_eq!(running.listed().await, ["web-n1", "db-n1"]);
    fs::rename(file("b"), file(".b")).expect("writable");
    assert_eq!(running.listed().await, ["web-n1"]);
    fs::rename(file(".b"), file("b")).expect("writable");
    assert_eq!(running.listed().await, ["web-n1", "db-n1"]);
    fs::remove_file(file("a")).expect("writable");
    assert_eq!(running.listed().await, ["db-n1"]);
    assert!(started.elapsed() < Duration::from_secs(5), "inotify told of it");
}

#[tokio::test]
async fn a_half_written_manifest_becomes_a_pod_when_it_is_whole() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let mut running = Running::start(dir.path(), NO_RESCAN);
    assert_eq!(running.listed().await, [""; 0]);
    let whole = manifest("web", "i");
    fs::write(dir.path().join("a"), &whole[..whole.len() / 2]).expect("writable");
    sleep(Duration::from_millis(100)).await;
    assert!(running.events.try_recv().is_err(), "half a manifest is no pod");
    fs::write(dir.path().join("a"), &whole).expect("writable");
    assert_eq!(running.listed().await, ["web-n1"]);
}

#[tokio::test]
async fn a_directory_may_come_and_go() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let manifests = dir.path().join("etc/manifests");
    let mut running = Running::start(&manifests, NO_RESCAN);
    assert_eq!(running.listed().await, [""; 0]);
    // Made one level after the other, so that the watch has to follow.
    fs::create_dir(dir.path().join("etc")).expect("writable");
    sleep(Duration::from_millis(100)).await;
    fs::create_dir(&manifests).expect("writable");
    fs::write(manifests.join("a"), manifest("web", "i")).expect("writable");
    assert_eq!(running.listed().await, ["web-n1"]);
    fs::remove_dir_all(&manifests).expect("writable");
    assert_eq!(running.listed().await, [""; 0]);
    fs::create_dir(&manifests).expect("writable");
    fs::write(manifests.join("b"), manifest("db", "i")).expect("writable");
    assert_eq!(running.listed().await, ["db-n1"]);
}

#[tokio::test]
async fn a_single_file_is_followed_through_replacement() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let file = dir.path().join("only.yaml");
    let mut running = Running::start(&file, NO_RESCAN);
    assert_eq!(running.listed().await, [""; 0]);
    fs::write(&file, manifest("web", "i")).expect("writable");
    assert_eq!(running.listed().await, ["web-n1"]);
    fs::write(dir.path().join("new"), manifest("db", "i")).expect("writable");
    fs::rename(dir.path().join("new"), &file).expect("writable");
    assert_eq!(running.listed().await, ["db-n1"]);
}

#[tokio::test]
async fn the_rescan_finds_what_inotify_cannot_see() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let elsewhere = TempDir::new().expect("a temporary directory can be made");
    fs::write(elsewhere.path().join("a"), manifest("web", "i")).expect("writable");
    std::os::unix::fs::symlink(elsewhere.path().join("a"), dir.path().join("a")).expect("writable");
    let mut running = Running::start(dir.path(), Duration::from_millis(50));
    assert_eq!(running.listed().await, ["web-n1"]);
    fs::write(elsewhere.path().join("a"), manifest("db", "i")).expect("writable");
    assert_eq!(running.listed().await, ["db-n1"]);
}

#[tokio::test]
async fn an_unreadable_path_says_nothing_and_removes_nothing() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let path = dir.path().join("manifest");
    // A link to itself is not absent, but cannot be followed either.
    let put_loop = || {
        std::os::unix::fs::symlink("manifest", dir.path().join("loop")).expect("writable");
        fs::rename(dir.path().join("loop"), &path).expect("writable");
    };
    let put_manifest = |name: &str| {
        fs::write(dir.path().join("new"), manifest(name, "i")).expect("writable");
        fs::rename(dir.path().join("new"), &path).expect("writable");
    };
    std::os::unix::fs::symlink("manifest", &path).expect("writable");
    let mut running = Running::start(&path, Duration::from_millis(20));
    sleep(Duration::from_millis(100)).await;
    assert!(running.events.try_recv().is_err(), "nothing is known, so nothing is said");
    put_manifest("web");
    assert_eq!(running.listed().await, ["web-n1"]);
    put_loop();
    sleep(Duration::from_millis(100)).await;
    assert!(running.events.try_recv().is_err(), "the pod stays");
    put_manifest("db");
    assert_eq!(running.listed().await, ["db-n1"]);
}

#[tokio::test]
async fn the_task_ends_with_its_listener() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let Running { events, task } = Running::start(dir.path(), NO_RESCAN);
    drop(events);
    timeout(Duration::from_secs(10), task).await.expect("it ends").expect("it does not panic");
}
