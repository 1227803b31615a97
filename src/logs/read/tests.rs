//! Logs that are written, rotated, truncated and removed while they are read, on a real file system.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Mutex;

use futures::{FutureExt, StreamExt};
use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::clock::Clock;
use crate::cri::testing::{container, exited, noon, running};
use crate::cri::{ContainerId, ContainerState};
use crate::host::{Host, LinuxHost, Roots};

/// Nothing here waits for a timer: what takes so long has been missed.
const NEVER: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_secs(30);

type Shown = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// One container, and the runtime that writes its log.
struct Scene {
    dir: TempDir,
    file: Option<File>,
    runtime: Arc<Mutex<Arc<PodRuntime>>>,
    endings: Endings,
    reads: LogReads,
    /// Lines so far. Each says its number.
    said: u64,
    rotations: u64,
}

struct Runtime(Arc<Mutex<Arc<PodRuntime>>>);

#[async_trait]
impl Instances for Runtime {
    async fn current(&self, _: &PodUid) -> cri::Result<Arc<PodRuntime>> {
        Ok(self.0.lock().expect("nobody panics with it").clone())
    }

    fn cached(&self, _: &PodUid) -> Option<Arc<PodRuntime>> {
        Some(self.0.lock().expect("nobody panics with it").clone())
    }
}

fn uid() -> PodUid {
    PodUid::new("u")
}

fn options(follow: bool) -> LogOptions {
    LogOptions { follow, ..LogOptions::default() }
}

impl Scene {
    fn new() -> Self {
        Self::with_paces(Paces { slow_look: NEVER, look: NEVER, linger: NEVER })
    }

    fn with_paces(paces: Paces) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let runtime: Arc<Mutex<Arc<PodRuntime>>> = Arc::default();
        let endings = Endings::default();
        let disk = Disk::new(Duration::from_secs(20));
        let reads = LogReads { paces, ..LogReads::new(Arc::new(Runtime(runtime.clone())), endings.clone(), disk) };
        let mut scene = Scene { dir, file: None, runtime, endings, reads, said: 0, rotations: 0 };
        scene.file = Some(scene.open_file());
        scene.becomes(running());
        scene
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("0.log")
    }

    fn open_file(&self) -> File {
        OpenOptions::new().append(true).create(true).open(self.log()).expect("a log can be opened")
    }

    fn becomes(&self, state: ContainerState) {
        let log_path = self.log().to_string_lossy().into_owned();
        let container = cri::Container { log_path, ..container("main", 0, state) };
        let runtime = PodRuntime { containers: vec![container], ..PodRuntime::default() };
        *self.runtime.lock().expect("nobody panics with it") = Arc::new(runtime);
    }

    /// The container ends, and its worker reads so.
    fn ends(&mut self) {
        self.file = None;
        self.becomes(exited(0));
        self.observe();
    }

    fn observe(&self) {
        let runtime = self.runtime.lock().expect("nobody panics with it").clone();
        self.endings.observe(&uid(), &runtime);
    }

    async fn open(&self, options: &LogOptions) -> Result<Shown, OpenError> {
        let instance = Instance { id: ContainerId::new("main-0"), full_id: "containerd://main-0".into() };
        Ok(self.reads.open(&uid(), &instance, options).await?.boxed())
    }

    async fn read(&self, options: &LogOptions) -> Follower {
        let shown = self.open(options).await.expect("it can be opened");
        Follower { shown, text: String::new(), story: String::new() }
    }

    async fn follow(&self) -> Follower {
        self.read(&options(true)).await
    }

    async fn all(&self, options: &LogOptions) -> Follower {
        let mut follower = self.read(options).await;
        follower.end().await;
        follower
    }

    fn write(&mut self, bytes: &[u8]) {
        self.file.as_mut().expect("the log is open").write_all(bytes).expect("the log can be written");
    }

    /// The container says so many lines, some of them in pieces.
    fn say(&mut self, lines: u64, random: &mut fastrand::Rng) {
        for _ in 0..lines {
            let number = self.said.to_string();
            let (piece, rest) = number.split_at(random.usize(0..=number.len() / 2));
            let mut records = String::new();
            if random.bool() {
                records += &format!("{} stdout P {piece}\n", self.time(0));
                records += &format!("{} stdout F {rest}\n", self.time(1));
            } else {
                records += &format!("{} stderr F {number}\n", self.time(0));
            }
            self.write(records.as_bytes());
            self.said += 1;
        }
    }

    /// In the file that is written to.
    fn bytes(&self) -> u64 {
        let file = self.file.as_ref().expect("the log is open");
        file.metadata().expect("the log can be looked at").len()
    }

    fn say_plainly(&mut self, lines: u64) {
        self.say(lines, &mut fastrand::Rng::with_seed(0));
    }

    /// No two records have the same time.
    fn time(&self, piece: i64) -> Timestamp {
        noon() + SignedDuration::from_nanos(self.said as i64 * 2 + piece)
    }

    fn part(&mut self) -> PathBuf {
        self.rotations += 1;
        let (hours, minutes, seconds) = (self.rotations / 3600, self.rotations / 60 % 60, self.rotations % 60);
        self.dir.path().join(format!("0.log.20260101-{hours:02}{minutes:02}{seconds:02}"))
    }

    fn rename(&mut self) -> PathBuf {
        let part = self.part();
        fs::rename(self.log(), &part).expect("the log can be renamed");
        part
    }

    /// The runtime opens a new log, and lets go of the old one.
    fn reopen(&mut self) {
        self.file = Some(self.open_file());
    }

    fn rotate(&mut self) -> PathBuf {
        let part = self.rename();
        self.reopen();
        part
    }
}

/// More than the records of one line have.
const LINE_BYTES_MAX: u64 = 200;

/// Who follows, and what it has seen.
struct Follower {
    shown: Shown,
    text: String,
    /// What has happened, to be told if it goes wrong.
    story: String,
}

impl Follower {
    async fn some(&mut self) -> bool {
        let next = timeout(SOON, self.shown.next()).await;
        let next = next.unwrap_or_else(|_| panic!("{}: nothing came after {:?}", self.story, self.text.lines().last()));
        let Some(bytes) = next else { return false };
        self.text += str::from_utf8(&bytes.expect("the log can be read")).expect("it is text");
        true
    }

    async fn lines(&mut self, lines: u64) {
        while (self.text.matches('\n').count() as u64) < lines {
            assert!(self.some().await, "it ended after {:?}", self.text.lines().last());
        }
    }

    async fn end(&mut self) {
        while self.some().await {}
    }

    /// Each line was seen once, in order.
    fn check(&self, said: u64) {
        let expected: String = (0..said).map(|line| format!("{line}\n")).collect();
        if self.text != expected {
            let at = self.text.lines().zip(0..said).position(|(line, number)| line != number.to_string());
            let seen: Vec<&str> = self.text.lines().skip(at.unwrap_or(0).saturating_sub(2)).take(6).collect();
            let story = &self.story;
            panic!("{story}: of {said} lines it saw {}; from line {at:?} on {seen:?}", self.text.lines().count());
        }
    }
}

#[tokio::test]
async fn a_log_is_shown_to_its_end() {
    let mut scene = Scene::new();
    scene.say_plainly(5000);
    scene.all(&options(false)).await.check(5000);
    let tail = LogOptions { tail_lines: Some(2), ..options(false) };
    assert_eq!(scene.all(&tail).await.text, "4998\n4999\n");
    assert_eq!(scene.all(&LogOptions { limit_bytes: Some(5), ..tail.clone() }).await.text, "4998\n");
    assert_eq!(scene.all(&LogOptions { tail_lines: Some(0), ..tail }).await.text, "");
    let since = Some(scene.time(0) - SignedDuration::from_nanos(4));
    let times = scene.all(&LogOptions { since, timestamps: true, ..options(false) }).await.text;
    assert!(times.starts_with("2026-01-01T12:00:00.00000999") && times.lines().count() == 2, "{times}");
}

#[tokio::test]
async fn broken_records_do_not_end_a_read() {
    let mut scene = Scene::new();
    scene.say_plainly(1);
    scene.write(b"\0\0\0\0\nwhat is this?\n");
    scene.say_plainly(1);
    scene.write(b"2026-01-01T12:00:00Z stdout F cut o");
    assert_eq!(scene.all(&options(false)).await.text, "0\n1\ncut o");
}

#[tokio::test]
async fn without_follow_a_read_ends_where_the_log_ended_when_it_began() {
    let mut scene = Scene::new();
    scene.say_plainly(3);
    let mut follower = scene.read(&options(false)).await;
    scene.say_plainly(3);
    follower.end().await;
    assert_eq!(follower.text, "0\n1\n2\n");
}

#[tokio::test]
async fn who_follows_sees_each_line_until_the_container_ends() {
    let mut scene = Scene::new();
    scene.say_plainly(1);
    let mut follower = scene.follow().await;
    for lines in 1..20 {
        follower.lines(lines).await;
        assert!(follower.shown.next().now_or_never().is_none(), "it waits");
        scene.say_plainly(1);
    }
    scene.ends();
    follower.end().await;
    follower.check(20);
}

#[tokio::test]
async fn who_follows_a_container_that_has_ended_does_not_wait() {
    let mut scene = Scene::new();
    scene.say_plainly(3);
    scene.ends();
    assert_eq!(scene.all(&options(true)).await.text, "0\n1\n2\n");
}

#[tokio::test]
async fn an_end_nobody_told_of_is_found_by_the_slow_look() {
    let moment = Duration::from_millis(10);
    let mut scene = Scene::with_paces(Paces { slow_look: moment, look: moment, linger: moment });
    scene.say_plainly(3);
    let mut follower = scene.follow().await;
    follower.lines(3).await;
    scene.becomes(exited(0));
    follower.end().await;
    follower.check(3);
}

#[tokio::test]
async fn the_tail_of_what_is_followed_goes_on() {
    let mut scene = Scene::new();
    scene.say_plainly(10);
    let mut follower = scene.read(&LogOptions { tail_lines: Some(0), ..options(true) }).await;
    scene.say_plainly(1);
    follower.lines(1).await;
    scene.rotate();
    scene.say_plainly(1);
    follower.lines(2).await;
    assert_eq!(follower.text, "10\n11\n");
}

#[tokio::test]
async fn what_is_written_to_the_old_log_after_there_is_a_new_one_is_not_lost() {
    let mut scene = Scene::new();
    scene.say_plainly(3);
    let mut follower = scene.follow().await;
    follower.lines(3).await;
    scene.rename();
    let new = scene.open_file();
    for line in 4..8 {
        // It has seen that there is a new one, and waits for the old one to be closed.
        assert!(follower.shown.next().now_or_never().is_none());
        scene.say_plainly(1);
        follower.lines(line).await;
    }
    scene.file = Some(new);
    scene.say_plainly(3);
    follower.lines(10).await;
    follower.check(10);
}

#[tokio::test]
async fn a_log_that_was_just_renamed_is_read_under_its_new_name() {
    let mut scene = Scene::new();
    scene.say_plainly(3);
    scene.rename();
    assert_eq!(scene.all(&options(false)).await.text, "0\n1\n2\n");
    let mut follower = scene.follow().await;
    follower.lines(3).await;
    scene.say_plainly(1);
    scene.reopen();
    scene.say_plainly(1);
    follower.lines(5).await;
    follower.check(5);
    fs::remove_file(scene.log()).expect("it can be removed");
    fs::remove_dir_all(scene.dir.path()).expect("it can be removed");
    assert!(matches!(scene.open(&options(false)).await.err(), Some(OpenError::Open { .. })));
}

#[tokio::test]
async fn of_an_instance_the_runtime_has_lost_there_is_no_log() {
    let scene = Scene::new();
    *scene.runtime.lock().expect("nobody panics with it") = Arc::default();
    let gone = scene.open(&options(false)).await.err().expect("it is gone");
    assert_eq!(
        (gone.status(), gone.to_string().as_str()),
        (400, "unable to retrieve container logs for containerd://main-0")
    );
}

#[tokio::test]
async fn who_goes_leaves_nothing_behind() {
    let mut scene = Scene::new();
    scene.say_plainly(1);
    let mut followers = vec![scene.follow().await, scene.follow().await];
    for follower in &mut followers {
        follower.lines(1).await;
    }
    assert_eq!(scene.reads.readers.free(), READERS_MAX - 2);
    followers.pop();
    scene.say_plainly(1);
    followers[0].lines(2).await;
    drop(followers);
    assert_eq!(scene.reads.readers.free(), READERS_MAX);
    assert!(!scene.reads.watcher.is_open(), "there is no inotify without a reader");
}

#[tokio::test]
async fn only_so_many_read_at_once() {
    let mut scene = Scene::new();
    scene.reads.readers = Places::new(1);
    let one = scene.open(&options(true)).await.expect("there is room");
    assert_eq!(scene.open(&options(false)).await.err().expect("there is none").status(), 429);
    drop(one);
    assert!(scene.open(&options(false)).await.is_ok());
}

/// What happens to a log, drawn from a seed; the reader comes to see it late, or in the middle.
async fn story(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut scene = Scene::new();
    let host = LinuxHost::new(Roots::machine(scene.dir.path().join("root")), SOON, Clock::system());
    let mut follower = scene.follow().await;
    let mut parts: Vec<PathBuf> = Vec::new();
    follower.story = format!("seed {seed}:");
    for _ in 0..random.u32(5..40) {
        let story = &mut follower.story;
        match random.u32(0..100) {
            0..30 => {
                *story += " say";
                let lines = random.u64(0..200);
                scene.say(lines, &mut random);
            }
            30..55 => {
                *story += " rotate";
                parts.push(scene.rename());
                scene.say(random.u64(0..3), &mut random);
                peek(&mut follower, &mut random).await;
                let new = random.bool().then(|| scene.open_file());
                peek(&mut follower, &mut random).await;
                scene.say(random.u64(0..3), &mut random);
                match new {
                    Some(new) => scene.file = Some(new),
                    None => scene.reopen(),
                }
            }
            // The newest is not compressed: its writer may not have let go of it.
            55..70 if parts.len() > 1 => {
                *story += " compress";
                let part = parts.remove(random.usize(..parts.len() - 1));
                host.gzip(&part).await.expect("it can be compressed");
            }
            70..80 => {
                *story += " delete";
                // Lines that were never in a file whose reader had it open are gone for everybody.
                scene.say(1, &mut random);
                follower.lines(scene.said).await;
                fs::remove_file(scene.log()).expect("the log can be removed");
                peek(&mut follower, &mut random).await;
                scene.say(random.u64(0..3), &mut random);
                scene.reopen();
            }
            80..88 => {
                *story += " truncate";
                follower.lines(scene.said).await;
                let bytes = scene.bytes();
                scene.file.as_ref().expect("the log is open").set_len(0).expect("it can be truncated");
                peek(&mut follower, &mut random).await;
                // Whoever looks when it has grown beyond where it was cannot know that it began anew.
                for _ in 0..random.u32(1..300) {
                    if scene.bytes() + LINE_BYTES_MAX > bytes {
                        break;
                    }
                    scene.say(1, &mut random);
                }
                follower.lines(scene.said).await;
            }
            88..94 if !parts.is_empty() => {
                *story += " forget";
                // It is in the newest file then, and looks for no name of the one before.
                scene.say(1, &mut random);
                follower.lines(scene.said).await;
                let part = parts.remove(0);
                fs::remove_file(&part).expect("it can be removed");
            }
            _ => {
                *story += " catch-up";
                follower.lines(scene.said).await;
                follower.check(scene.said);
            }
        }
        peek(&mut follower, &mut random).await;
    }
    // Two files of the same name that are closed one after the other make one event.
    scene.say(1, &mut random);
    scene.ends();
    follower.end().await;
    follower.check(scene.said);
}

/// The follower comes to read for a moment, or not.
async fn peek(follower: &mut Follower, random: &mut fastrand::Rng) {
    for _ in 0..random.u32(0..3) {
        let moment = Duration::from_millis(random.u64(0..4));
        if let Ok(Some(bytes)) = timeout(moment, follower.shown.next()).await {
            follower.text += str::from_utf8(&bytes.expect("the log can be read")).expect("it is text");
        }
    }
}

#[tokio::test]
async fn no_line_is_lost_or_doubled_whatever_happens_to_the_files() {
    let seeds = match std::env::var("FERROLET_LOG_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..40,
    };
    for seed in seeds {
        timeout(4 * SOON, story(seed)).await.unwrap_or_else(|_| panic!("seed {seed} has no end"));
    }
}
