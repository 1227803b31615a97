//! Node logs from a directory, and from a program that stands in for journalctl.

use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;

use futures::TryStreamExt;

use super::*;
use crate::host::testing::Scratch;

/// Tells its arguments; has something of `kubelet.service`; and hangs for `sleeper`.
const JOURNALCTL: &str = r#"#!/bin/sh
case "$*" in
  "--field _SYSTEMD_UNIT") printf 'kubelet.service\nsleeper.service\n' ;;
  *--unit=sleeper*) echo $$; exec sleep 1000 ;;
  *) echo "said: $*"; echo "complained" >&2 ;;
esac
"#;

struct Scene {
    scratch: Scratch,
    logs: NodeLogs,
}

impl Scene {
    fn new() -> Self {
        let scratch = Scratch::new();
        let program = scratch.path("journalctl");
        // By another process: a program that is open for writing here, which every child of another
        // test inherits for a moment, cannot be run.
        let write = std::process::Command::new("sh")
            .args(["-c", r#"printf %s "$1" > "$0" && chmod 755 "$0""#])
            .arg(&program)
            .arg(JOURNALCTL)
            .status();
        assert!(write.is_ok_and(|status| status.success()), "the program can be written");
        let disk = Disk::new(Duration::from_secs(10));
        let logs = NodeLogs::with_journal(scratch.dir("log"), disk, true, program);
        Scene { scratch, logs }
    }

    async fn answer(&self, path: &str, query: &[(&str, &str)]) -> Result<NodeLog, NodeLogError> {
        let query: Vec<_> = query.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.logs.answer(path, &query, false).await
    }

    /// Type and text, where it leads, or status and text of the refusal.
    async fn text(&self, path: &str, query: &[(&str, &str)]) -> Result<(&'static str, String), (u16, String)> {
        match self.answer(path, query).await {
            Ok(NodeLog::Content { content_type, body, .. }) => Ok((content_type, read(body).await)),
            Ok(NodeLog::Elsewhere(other)) => Err((301, other)),
            Err(error) => Err((error.status(), error.to_string())),
        }
    }
}

async fn read(body: Body) -> String {
    let pieces: Vec<Bytes> = body.try_collect().await.expect("it can be read");
    String::from_utf8(pieces.concat()).expect("it is text")
}

fn refused(status: u16, text: &str) -> Result<(&'static str, String), (u16, String)> {
    Err((status, text.to_owned()))
}

#[tokio::test]
async fn files_come_as_they_are_and_directories_as_lists() {
    let scene = Scene::new();
    let long = "0123456789\n".repeat(10_000);
    scene.scratch.file("log/long.log", &long);
    scene.scratch.file("log/pods/a <b>&.log", "<script>");
    scene.scratch.file("log/page.html", "<script>");
    scene.scratch.file("log/binary", "a\0b");
    assert_eq!(scene.text("long.log", &[]).await, Ok(("text/plain; charset=utf-8", long)));
    let page = scene.text("page.html", &[]).await.expect("it is there");
    assert_eq!(page.0, "text/plain; charset=utf-8", "nothing runs in a browser");
    assert_eq!(scene.text("binary", &[]).await.expect("it is there").0, "application/octet-stream");

    let (html, list) = scene.text("pods/", &[]).await.expect("it is there");
    assert_eq!(html, "text/html; charset=utf-8");
    assert!(list.contains("\n<a href=\"a%20%3Cb%3E%26.log\">a &lt;b&gt;&amp;.log</a>\n</pre>\n"), "{list}");
    assert!(scene.text("", &[]).await.expect("it is there").1.contains("<a href=\"pods/\">pods/</a>\n"));
    assert_eq!(scene.text("pods", &[]).await, refused(301, "pods/"));
    assert_eq!(scene.text("long.log/", &[]).await, refused(301, "../long.log"));
    assert_eq!(scene.text("absent", &[]).await, refused(404, "404 page not found"));
    assert_eq!(scene.text("long.log/x", &[]).await, refused(404, "404 page not found"));
}

#[tokio::test]
async fn nobody_gets_out_of_the_directory() {
    let scene = Scene::new();
    scene.scratch.file("secret", "secret");
    symlink("../secret", scene.scratch.path("log/link")).expect("a link");
    symlink("/", scene.scratch.path("log/root")).expect("a link");
    symlink(scene.scratch.path("secret"), scene.scratch.path("log/kubectl.log")).expect("a link");
    for path in ["../secret", "a/../../secret", "link", "root/etc/passwd", "root/"] {
        assert_eq!(scene.text(path, &[]).await, refused(403, "403 Forbidden"), "{path}");
    }
    assert_eq!(scene.text("", &[("query", "../secret")]).await.expect_err("it leads out").0, 406);
    let (_, text) = scene.text("", &[("query", "kubectl")]).await.expect("words");
    assert!(text.starts_with("\nerror getting log for kubectl: "), "{text}");
    let (_, text) = scene.text("", &[("query", "..")]).await.expect("words");
    assert!(text.starts_with("\nerror getting log for ..: "), "{text}");
}

#[tokio::test]
async fn services_are_answered_by_the_journal_or_by_their_files() {
    let scene = Scene::new();
    scene.scratch.file("log/a/a.log", "text of a\n");
    scene.scratch.file("log/b.log", "text of b\n");
    scene.scratch.file("log/c", "text of c\n");
    let (content_type, text) = scene.text("/", &[("query", "kubelet"), ("tailLines", "5")]).await.expect("words");
    assert_eq!(content_type, "text/plain;charset=UTF-8");
    let said = "said: --utc --no-pager --output=short-precise --pager-end --lines=5 --unit=kubelet\ncomplained\n";
    assert_eq!(text, said);
    let services = [("query", "a"), ("query", "b"), ("query", "c"), ("query", "let")];
    let expected = "text of a\ntext of b\ntext of c\n\nlog not found for let\n";
    assert_eq!(scene.text("", &services).await.expect("words").1, expected);
    let text = scene.text("", &[("query", "a"), ("query", "b"), ("boot", "0")]).await.expect("words").1;
    assert!(text.contains("log files for [a b]\n"), "{text}");
}

#[tokio::test]
async fn a_query_for_a_file_is_that_file() {
    let scene = Scene::new();
    scene.scratch.file("log/pods/0.log", "said\n");
    assert_eq!(scene.text("", &[("query", "/pods/0.log")]).await.expect("it is there").1, "said\n");
    assert_eq!(scene.text("", &[("query", "/absent")]).await.expect_err("it is not").0, 406);
    assert_eq!(scene.text("pods", &[("query", "kubelet")]).await, refused(406, "path not allowed in query mode"));
    assert_eq!(scene.text("", &[("query", " ")]).await.expect_err("nothing is asked for").0, 400);
    assert_eq!(scene.text("", &[("tailLines", "5")]).await.expect_err("of what?").0, 406);
}

#[tokio::test]
async fn without_queries_only_the_path_counts() {
    let mut scene = Scene::new();
    scene.logs.queries_enabled = false;
    scene.scratch.file("log/a.log", "said\n");
    assert_eq!(scene.text("a.log", &[("query", "kubelet")]).await.expect("it is there").1, "said\n");
}

#[tokio::test]
async fn who_asks_for_gzip_gets_gzip() {
    let scene = Scene::new();
    let query = [("query".to_owned(), "kubelet".to_owned())];
    let Ok(NodeLog::Content { is_gzip: true, body, .. }) = scene.logs.answer("", &query, true).await else {
        panic!("it is not compressed");
    };
    let pieces: Vec<Bytes> = body.try_collect().await.expect("it can be read");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&pieces.concat()[..]).read_to_string(&mut text).expect("it is gzip");
    assert!(text.ends_with("--unit=kubelet\ncomplained\n"), "{text}");
}

#[tokio::test]
async fn a_journalctl_is_killed_when_its_reader_goes() {
    let scene = Scene::new();
    let Ok(NodeLog::Content { mut body, .. }) = scene.answer("", &[("query", "sleeper")]).await else {
        panic!("it is a service");
    };
    let first = body.next().await.expect("it says its number").expect("it can be read");
    let process = format!("/proc/{}", String::from_utf8_lossy(&first).trim());
    assert!(Path::new(&process).exists());
    assert_eq!(scene.logs.queries.available_permits(), QUERIES_MAX - 1);
    drop(body);
    let deadline = Instant::now() + Duration::from_secs(20);
    while Path::new(&process).exists() || scene.logs.queries.available_permits() < QUERIES_MAX {
        assert!(Instant::now() < deadline, "it still runs");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn only_so_many_are_answered_at_once() {
    let scene = Scene::new();
    scene.scratch.file("log/a.log", "said\n");
    let mut given = Vec::new();
    for _ in 0..ANSWERS_MAX {
        given.push(scene.answer("a.log", &[]).await.expect("there is room"));
    }
    assert_eq!(scene.text("a.log", &[]).await.expect_err("there is none").0, 429);
    given.pop();
    assert_eq!(scene.text("a.log", &[]).await.expect("there is room").1, "said\n");
}
