use std::fs;
use std::path::Path;

use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;
use crate::pod::PodRef;

fn manifest(name: &str, image: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{containers: [{{name: c, image: {image}}}]}}}}"
    )
}

/// Files in memory, as a scan would find them.
struct Directory {
    files: Files,
    found: files::Found,
}

impl Directory {
    fn new() -> Self {
        Directory { files: Files::new("n1"), found: files::Found::new() }
    }

    fn write(&mut self, file: &str, content: &str) -> Vec<String> {
        self.found.insert(file.into(), Ok(content.as_bytes().to_vec()));
        self.look()
    }

    fn look(&mut self) -> Vec<String> {
        let found = self.found.clone();
        let notes = self.files.update(found, "2026-01-01T00:00:00Z".parse().expect("a test time parses"));
        notes.iter().map(text).collect()
    }

    /// Name and image of each pod.
    fn pods(&self) -> String {
        let pods = self.files.pods();
        let image = |pod: &Pod| pod.spec.clone().expect("a static pod has a spec").containers[0].image.clone();
        let one = |pod: &Arc<Pod>| format!("{}={}", PodRef::of(pod).name, image(pod).unwrap_or_default());
        pods.iter().map(one).collect::<Vec<_>>().join(" ")
    }
}

fn text(note: &Note) -> String {
    match note {
        Note::Read { path, pod } => format!("{}: {pod}", path.display()),
        Note::Warning { path, warning } => format!("{}: {warning}", path.display()),
        Note::Broken { path, error, keeps: Some(pod) } => format!("{} keeps {pod}: {error}", path.display()),
        Note::Broken { path, error, keeps: None } => format!("{}: {error}", path.display()),
        Note::Taken { path, what, by } => {
            format!("{}: {what} is of {}", path.display(), by.display())
        }
        Note::Gone { path } => format!("{} is gone", path.display()),
    }
}

#[test]
fn each_file_is_a_pod_for_as_long_as_it_is_there() {
    let mut dir = Directory::new();
    assert_eq!(dir.write("a", &manifest("web", "i:1")), ["a: default/web-n1"]);
    assert_eq!(dir.write("b", &manifest("db", "i:2")), ["b: default/db-n1"]);
    assert_eq!(dir.pods(), "web-n1=i:1 db-n1=i:2");
    assert_eq!(dir.look(), [""; 0]);
    assert_eq!(dir.write("a", &manifest("web", "i:3")), ["a: default/web-n1"]);
    assert_eq!(dir.pods(), "web-n1=i:3 db-n1=i:2");
    dir.found.remove(Path::new("a"));
    assert_eq!(dir.look(), ["a is gone"]);
    assert_eq!(dir.pods(), "db-n1=i:2");
}

#[test]
fn a_broken_manifest_keeps_its_pod_and_hurts_no_other() {
    let mut dir = Directory::new();
    dir.write("a", &manifest("web", "i:1"));
    assert_eq!(
        dir.write("a", "kind: Po"),
        ["a keeps default/web-n1: expected a Pod of apiVersion v1, found kind \"Po\" of apiVersion \"\"",]
    );
    assert_eq!(dir.write("b", ""), ["b: manifest is empty"]);
    assert_eq!(dir.write("c", &manifest("db", "i:2")), ["c: default/db-n1"]);
    assert_eq!(dir.pods(), "web-n1=i:1 db-n1=i:2");
    assert_eq!(dir.look(), [""; 0], "a broken manifest is told of once");
    dir.found.insert("a".into(), Err("failed to read it: input/output error".into()));
    assert_eq!(dir.look(), ["a keeps default/web-n1: failed to read it: input/output error"]);
    assert_eq!(dir.pods(), "web-n1=i:1 db-n1=i:2");
    assert_eq!(dir.write("b", &manifest("late", "i:3")), ["b: default/late-n1"]);
    assert_eq!(dir.pods(), "web-n1=i:1 late-n1=i:3 db-n1=i:2");
}

#[test]
fn an_edit_that_says_the_same_leaves_the_pod_alone() {
    let mut dir = Directory::new();
    dir.write("a", &manifest("web", "i:1"));
    let before = dir.files.pods();
    dir.found.insert("a".into(), Ok(format!("# a comment\n{}", manifest("web", "i:1")).into_bytes()));
    dir.files.update(dir.found.clone(), "2027-01-01T00:00:00Z".parse().expect("a test time parses"));
    assert!(Arc::ptr_eq(&before[0], &dir.files.pods()[0]));
}

#[test]
fn the_first_of_two_files_speaks_for_a_name_or_a_uid() {
    let mut dir = Directory::new();
    dir.write("b", &manifest("web", "i:1"));
    assert_eq!(dir.write("c", &manifest("web", "i:2")), ["c: default/web-n1", "c: pod default/web-n1 is of b"]);
    assert_eq!(dir.pods(), "web-n1=i:1");
    assert_eq!(dir.look(), [""; 0], "a conflict is told of once");
    assert_eq!(
        dir.write("a", &manifest("web", "i:3")),
        ["a: default/web-n1", "b: pod default/web-n1 is of a", "c: pod default/web-n1 is of a",]
    );
    assert_eq!(dir.pods(), "web-n1=i:3");
    dir.found.remove(Path::new("a"));
    dir.found.remove(Path::new("b"));
    dir.look();
    assert_eq!(dir.pods(), "web-n1=i:2");

    let with_uid = |name: &str| manifest(name, "i:1").replace("name: web", "uid: u1, name: web");
    let mut dir = Directory::new();
    dir.write("a", &with_uid("web-a"));
    assert_eq!(dir.write("b", &with_uid("web-b")), ["b: default/web-b-n1", "b: uid u1 is of a"]);
}

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
        let dir = StaticDir { path: path.to_owned(), node_name: "n1".into(), rescan_period };
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
