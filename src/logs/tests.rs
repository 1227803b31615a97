//! Rotation on a real file system, with a runtime that is only a file handle.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::*;
use crate::cri::{Container, CriError};
use crate::host::{LinuxHost, Roots};

const LIMIT: u64 = 10_000;
const FILES: usize = 4;

/// One container and the runtime that writes its log.
struct Scene {
    dir: TempDir,
    file: Arc<Mutex<File>>,
    refuses: Arc<AtomicBool>,
    hangs: Arc<AtomicBool>,
    said: usize,
}

fn open(path: &Path) -> File {
    OpenOptions::new().append(true).create(true).open(path).expect("a log can be opened")
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let file = Arc::new(Mutex::new(open(&dir.path().join("0.log"))));
        Scene { dir, file, refuses: Arc::default(), hangs: Arc::default(), said: 0 }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("0.log")
    }

    /// A life of the agent.
    fn logs(&self) -> Logs {
        self.logs_looked_at_each(Duration::from_millis(200))
    }

    fn logs_looked_at_each(&self, monitor_interval: Duration) -> Logs {
        let clock = Clock::system();
        let roots = Roots::machine(self.dir.path().join("root"));
        let host = LinuxHost::new(roots, Duration::from_secs(10), clock.clone());
        let (path, file) = (self.log(), self.file.clone());
        let (refuses, hangs) = (self.refuses.clone(), self.hangs.clone());
        let reopen: Reopen = Arc::new(move |_| {
            let (path, file, refuses, hangs) = (path.clone(), file.clone(), refuses.clone(), hangs.clone());
            async move {
                if hangs.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
                if refuses.load(Ordering::Relaxed) {
                    return Err(CriError::Failed { call: "ReopenContainerLog", message: "no".into() });
                }
                *file.lock().expect("nobody panics with it") = open(&path);
                Ok(())
            }
            .boxed()
        });
        let config = LogsConfig {
            max_bytes: Some(LIMIT),
            max_files: FILES,
            workers: 1,
            monitor_interval,
            time_zone: TimeZone::UTC,
        };
        Logs::new(Arc::new(host), clock, reopen, config)
    }

    fn observe(&self, logs: &Logs, runs: bool) {
        let state = if runs { cri::testing::running() } else { cri::testing::exited(0) };
        let container = Container {
            id: ContainerId::new("c"),
            log_path: self.log().to_string_lossy().into_owned(),
            ..cri::testing::container("main", 0, state)
        };
        let runtime = PodRuntime { containers: vec![container], ..PodRuntime::default() };
        logs.observe(&PodUid::new("u"), &runtime);
    }

    /// The container writes so many lines of ten bytes, each with its number.
    fn say(&mut self, lines: usize) {
        let mut file = self.file.lock().expect("nobody panics with it");
        for _ in 0..lines {
            writeln!(file, "{:09}", self.said).expect("the log can be written");
            self.said += 1;
        }
    }

    /// All files, oldest first, and what is in them.
    fn files(&self) -> Vec<(String, String)> {
        loop {
            if let Some(files) = self.try_files() {
                return files;
            }
        }
    }

    /// `None` if one of them was renamed or compressed while we looked.
    fn try_files(&self) -> Option<Vec<(String, String)>> {
        let mut names = self.names();
        // The log itself, whose name is a prefix of all others, is the newest.
        names.sort_by_key(|name| (name == "0.log", name.clone()));
        names
            .into_iter()
            .map(|name| {
                let bytes = fs::read(self.dir.path().join(&name)).ok()?;
                let mut text = String::new();
                match name.ends_with(".gz") {
                    true => flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).map(drop),
                    false => (&bytes[..]).read_to_string(&mut text).map(drop),
                }
                .ok()?;
                Some((name, text))
            })
            .collect()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).expect("the directory can be read");
        let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
        names.filter(|name| name != "root").collect()
    }

    /// A part of the log that takes as long to compress as the file is held: it has no end before.
    fn slow(&self) -> (PathBuf, File) {
        let slow = self.dir.path().join("0.log.20200101-000000");
        nix::unistd::mkfifo(&slow, nix::sys::stat::Mode::S_IRWXU).expect("a pipe can be made");
        let end = OpenOptions::new().read(true).write(true).open(&slow).expect("it opens");
        (slow, end)
    }

    /// Writes as much as a log may have and waits until that has been moved away.
    async fn fill(&mut self) {
        self.say(1000);
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::metadata(self.log()).map_or(true, |stat| stat.len() > 0) {
            assert!(Instant::now() < deadline, "not rotated: {:?}", self.names());
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until(&self, what: &str, holds: impl Fn(&[(String, String)]) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let files = self.files();
            if holds(&files) {
                return;
            }
            let sizes: Vec<_> = files.iter().map(|(name, text)| (name, text.len())).collect();
            assert!(Instant::now() < deadline, "{what}: {sizes:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_rotated(&self, times: usize) {
        self.until("rotated", |files| files.len() == times + 1 && files.last().is_some_and(|(_, log)| log.is_empty()))
            .await;
    }

    /// Every line once, in order, up to the last.
    fn assert_complete(&self) {
        let all: String = self.files().into_iter().map(|(_, text)| text).collect();
        let expected: String = (0..self.said).map(|line| format!("{line:09}\n")).collect();
        assert!(all == expected, "lines are missing or doubled: {} bytes of {}", all.len(), expected.len());
    }
}

#[tokio::test]
async fn a_log_is_rotated_once_it_is_full_and_old_parts_are_compressed() {
    let mut scene = Scene::new();
    let logs = scene.logs();
    scene.observe(&logs, true);
    scene.say(999);
    sleep(Duration::from_millis(300)).await;
    assert_eq!(scene.files().len(), 1, "it is not full yet");
    scene.say(1);
    scene.until_rotated(1).await;
    for rotation in 2..FILES {
        scene.say(1000);
        scene.until_rotated(rotation).await;
    }
    scene
        .until("all but the newest compressed", |files| {
            let (compressed, plain): (Vec<_>, Vec<_>) = files.iter().partition(|(name, _)| name.ends_with(".gz"));
            compressed.len() == FILES - 2 && plain.len() == 2
        })
        .await;
    scene.assert_complete();
}

#[tokio::test]
async fn no_more_files_are_kept_than_allowed() {
    let mut scene = Scene::new();
    let logs = scene.logs();
    scene.observe(&logs, true);
    for _ in 0..FILES + 3 {
        let before = scene.files().last().map(|(_, log)| log.len());
        assert_eq!(before, Some(0));
        scene.say(1000);
        scene.until("rotated", |files| files.last().is_some_and(|(_, log)| log.is_empty())).await;
        // A part that is being compressed is there twice for a moment.
        let files = scene.files();
        let parts: BTreeSet<_> =
            files.iter().map(|(name, _)| name.trim_end_matches(".tmp").trim_end_matches(".gz")).collect();
        assert!(parts.len() <= FILES, "{parts:?}");
    }
    let oldest = scene.files().remove(0).1;
    assert!(oldest.starts_with(&format!("{:09}", 4000)), "the newest parts are the ones that stay");
}

#[tokio::test]
async fn a_flood_is_met_between_two_slow_looks() {
    let mut scene = Scene::new();
    let logs = scene.logs();
    scene.observe(&logs, true);
    sleep(Duration::from_millis(20)).await;
    let began = Instant::now();
    let mut largest = 0;
    while began.elapsed() < Duration::from_secs(1) {
        scene.say(20);
        largest = largest.max(fs::metadata(scene.log()).map_or(0, |stat| stat.len()));
        sleep(Duration::from_millis(5)).await;
    }
    // 40,000 bytes a second, looked at ten times a second.
    assert!(largest < 3 * LIMIT, "the log grew to {largest} bytes");
    assert!(scene.files().len() <= FILES + 1);
}

#[tokio::test]
async fn a_log_that_was_rotated_is_watched_at_once() {
    let mut scene = Scene::new();
    let logs = scene.logs_looked_at_each(Duration::from_secs(3600));
    scene.observe(&logs, true);
    for _ in 0..3 {
        scene.fill().await;
        // Nobody writes for a moment, and then as much as before.
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(scene.files().len(), 4);
}

#[tokio::test]
async fn a_log_is_looked_at_while_its_old_parts_wait_to_be_compressed() {
    let mut scene = Scene::new();
    let logs = scene.logs();
    let others = logs.env.compressing.acquire().await.expect("it is never closed");
    scene.observe(&logs, true);
    for _ in 0..FILES + 3 {
        scene.fill().await;
        assert!(scene.names().len() <= FILES, "{:?}", scene.names());
    }
    assert!(scene.names().iter().all(|name| !name.ends_with(".gz")));
    drop(others);
    scene.fill().await;
    scene.until("compressed", |files| files.iter().filter(|(name, _)| name.ends_with(".gz")).count() == 2).await;
    let oldest = scene.files().remove(0).1;
    assert!(oldest.starts_with(&format!("{:09}", (FILES + 4 - 3) * 1000)), "the newest parts are the ones that stay");
}

#[tokio::test]
async fn who_ends_waits_for_no_compression_of_others() {
    let mut scene = Scene::new();
    let logs = scene.logs();
    let _others = logs.env.compressing.acquire().await.expect("it is never closed");
    scene.observe(&logs, true);
    scene.fill().await;
    scene.fill().await;
    scene.observe(&logs, false);
    let (uid, id) = (PodUid::new("u"), ContainerId::new("c"));
    tokio::time::timeout(Duration::from_secs(5), logs.release(&uid, &id)).await.expect("it has let go");
    scene.assert_complete();
}

#[tokio::test]
async fn who_ends_waits_for_its_own_compression() {
    let mut scene = Scene::new();
    let (_, end) = scene.slow();
    let logs = scene.logs();
    scene.observe(&logs, true);
    scene.fill().await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !scene.names().iter().any(|name| name.ends_with(".tmp")) {
        assert!(Instant::now() < deadline, "not begun: {:?}", scene.names());
        sleep(Duration::from_millis(5)).await;
    }
    scene.observe(&logs, false);
    let (uid, id) = (PodUid::new("u"), ContainerId::new("c"));
    let mut release = pin!(logs.release(&uid, &id));
    let early = tokio::time::timeout(Duration::from_millis(100), &mut release).await;
    assert!(early.is_err(), "its directory may be removed now, and is still written to");
    drop(end);
    tokio::time::timeout(Duration::from_secs(5), release).await.expect("it has let go");
}

#[tokio::test]
async fn what_is_removed_while_it_is_compressed_does_not_come_back() {
    let mut scene = Scene::new();
    let (slow, end) = scene.slow();
    let logs = scene.logs();
    scene.observe(&logs, true);
    let is_left = |scene: &Scene| scene.names().iter().any(|name| name.starts_with("0.log.2020"));
    let deadline = Instant::now() + Duration::from_secs(10);
    for _ in 0..FILES {
        scene.fill().await;
    }
    assert!(!slow.exists() && is_left(&scene), "{:?}", scene.names());
    drop(end);
    while is_left(&scene) {
        assert!(Instant::now() < deadline, "{:?}", scene.names());
        sleep(Duration::from_millis(5)).await;
    }
    assert!(scene.names().len() <= FILES, "{:?}", scene.names());
}

#[tokio::test]
async fn a_refusing_runtime_loses_nothing_and_is_asked_again() {
    let mut scene = Scene::new();
    scene.refuses.store(true, Ordering::Relaxed);
    let logs = scene.logs();
    scene.observe(&logs, true);
    scene.say(1500);
    sleep(Duration::from_millis(150)).await;
    assert_eq!(scene.files().len(), 1, "renamed back");
    scene.say(10);
    scene.refuses.store(false, Ordering::Relaxed);
    scene.until_rotated(1).await;
    scene.assert_complete();
}

#[tokio::test]
async fn an_agent_killed_between_the_halves_of_a_rotation_goes_on_with_the_second() {
    let mut scene = Scene::new();
    scene.hangs.store(true, Ordering::Relaxed);
    let logs = scene.logs();
    scene.observe(&logs, true);
    scene.say(1000);
    scene.until("renamed", |files| files.len() == 1 && files[0].0 != "0.log").await;
    drop(logs);
    scene.say(5);
    scene.hangs.store(false, Ordering::Relaxed);

    let logs = scene.logs();
    scene.observe(&logs, true);
    scene.until_rotated(1).await;
    scene.say(5);
    scene.assert_complete();
}

#[tokio::test]
async fn an_agent_killed_between_the_halves_takes_the_first_back_if_the_container_has_ended() {
    let mut scene = Scene::new();
    scene.hangs.store(true, Ordering::Relaxed);
    let logs = scene.logs();
    scene.observe(&logs, true);
    scene.say(1000);
    scene.until("renamed", |files| files.len() == 1 && files[0].0 != "0.log").await;
    drop(logs);

    let logs = scene.logs();
    scene.observe(&logs, false);
    scene.until("renamed back", |files| files.len() == 1 && files[0].0 == "0.log").await;
    scene.assert_complete();
}

#[tokio::test]
async fn a_container_that_ends_while_the_runtime_hangs_keeps_its_log_under_its_name() {
    let mut scene = Scene::new();
    scene.hangs.store(true, Ordering::Relaxed);
    let logs = scene.logs();
    scene.observe(&logs, true);
    scene.say(1000);
    scene.until("renamed", |files| files.len() == 1 && files[0].0 != "0.log").await;
    scene.observe(&logs, false);
    logs.release(&PodUid::new("u"), &ContainerId::new("c")).await;
    assert_eq!(scene.files().len(), 1);
    assert_eq!(scene.files()[0].0, "0.log");
}

#[tokio::test]
async fn a_log_that_somebody_removed_is_opened_again() {
    let scene = Scene::new();
    let logs = scene.logs();
    scene.observe(&logs, true);
    fs::remove_file(scene.log()).expect("it is there");
    scene.until("opened again", |files| files.len() == 1).await;
}

#[tokio::test]
async fn what_a_cut_off_compression_left_goes_with_the_next_rotation() {
    let mut scene = Scene::new();
    scene.say(1000);
    fs::write(scene.dir.path().join("0.log.20200101-000000.tmp"), "half").expect("written");
    let logs = scene.logs();
    scene.observe(&logs, true);
    scene.until_rotated(1).await;
    scene.assert_complete();
}
