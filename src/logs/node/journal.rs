//! What services have logged, by journalctl.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;

use futures::StreamExt;
use futures::stream;
use hyper::body::Bytes;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use super::files::Body;
use super::query::Narrowing;

const PIECE_BYTES: usize = 32 * 1024;
/// The list of units is not read beyond this: some thousand of them.
const UNITS_BYTES_MAX: u64 = 1 << 20;

#[derive(Clone)]
pub struct Journal {
    program: PathBuf,
}

impl Journal {
    pub fn new(program: PathBuf) -> Self {
        Journal { program }
    }

    /// The units the journal has something of; none if there is no journal.
    pub async fn units(&self) -> Vec<String> {
        self.try_units().await.unwrap_or_default()
    }

    async fn try_units(&self) -> io::Result<Vec<String>> {
        let mut command = Command::new(&self.program);
        command.args(["--field", "_SYSTEMD_UNIT"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.kill_on_drop(true).spawn()?;
        let mut text = String::new();
        if let Some(output) = child.stdout.take() {
            output.take(UNITS_BYTES_MAX).read_to_string(&mut text).await?;
        }
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// What journalctl says, as it says it, complaints included. It is killed with the stream.
    pub fn lines(&self, services: &[String], options: &Narrowing) -> Body {
        match self.start(&arguments(services, options)) {
            Ok(running) => stream::try_unfold(running, |mut running| async move {
                let mut piece = vec![0; PIECE_BYTES];
                let read = running.output.read(&mut piece).await?;
                piece.truncate(read);
                if read == 0 {
                    // Nothing more comes; how it ended says nothing that it did not say itself.
                    running.child.wait().await?;
                    return Ok(None);
                }
                Ok(Some((Bytes::from(piece), running)))
            })
            .boxed(),
            Err(_) => stream::iter([Ok(Bytes::from_static(b"\nerror: journal output not available\n"))]).boxed(),
        }
    }

    /// Both its streams go into one pipe, so that they come in the order they were written.
    fn start(&self, arguments: &[String]) -> io::Result<Running> {
        let (sender, output) = pipe::pipe()?;
        let sender = sender.into_blocking_fd()?;
        let mut command = Command::new(&self.program);
        command.args(arguments).stdin(Stdio::null()).stdout(sender.try_clone()?).stderr(sender);
        Ok(Running { child: command.kill_on_drop(true).spawn()?, output })
    }
}

struct Running {
    child: Child,
    output: pipe::Receiver,
}

fn arguments(services: &[String], options: &Narrowing) -> Vec<String> {
    let mut arguments: Vec<String> = ["--utc", "--no-pager", "--output=short-precise"].map(str::to_owned).to_vec();
    if let Some(since) = options.since {
        arguments.push(format!("--since={}", time(since)));
    }
    if let Some(until) = options.until {
        arguments.push(format!("--until={}", time(until)));
    }
    if let Some(lines) = options.tail_lines {
        arguments.extend(["--pager-end".to_owned(), format!("--lines={lines}")]);
    }
    arguments.extend(services.iter().map(|service| format!("--unit={service}")));
    if let Some(pattern) = &options.pattern {
        arguments.extend([format!("--grep={pattern}"), "--case-sensitive=false".to_owned()]);
    }
    if let Some(boot) = options.boot {
        arguments.push(format!("--boot={boot}"));
    }
    arguments
}

/// With its zone: `--utc` is about what is shown. Upstream leaves it out, and is hours off elsewhere.
fn time(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S%.f UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_option_has_its_argument() {
        let options = Narrowing {
            since: "2026-01-01T12:00:00Z".parse().ok(),
            until: "2026-01-01T14:00:00.5+01:00".parse().ok(),
            tail_lines: Some(7),
            boot: Some(-1),
            pattern: Some("a b".to_owned()),
        };
        let expected = [
            "--utc",
            "--no-pager",
            "--output=short-precise",
            "--since=2026-01-01 12:00:00 UTC",
            "--until=2026-01-01 13:00:00.5 UTC",
            "--pager-end",
            "--lines=7",
            "--unit=kubelet",
            "--unit=containerd",
            "--grep=a b",
            "--case-sensitive=false",
            "--boot=-1",
        ];
        assert_eq!(arguments(&["kubelet".to_owned(), "containerd".to_owned()], &options), expected);
        assert_eq!(arguments(&[], &Narrowing::default()), expected[..3]);
    }
}
