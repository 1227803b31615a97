//! The programs themselves, as processes of this machine.

use std::io;
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::{Programs, Provider};

/// No answer comes near this.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// What a log line may hold of what a program says of its failure.
pub(super) const COMPLAINT_BYTES_MAX: usize = 1 << 10;
/// Between the end of a program and that of its pipes, whichever comes first.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);

/// The machine's own programs.
pub struct Processes;

#[async_trait]
impl Programs for Processes {
    async fn run(&self, provider: &Provider, input: &[u8]) -> Result<Vec<u8>, String> {
        let mut child = tokio::process::Command::new(&provider.program)
            .args(&provider.args)
            .envs(provider.env.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", provider.program.display()))?;
        let _group = Group(child.id());
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err("its pipes are not there".to_owned());
        };
        let (mut answer, mut complaint) = (Vec::new(), Vec::new());
        let status = {
            let feed = async {
                // One that does not want to hear it may still know the answer.
                let _ = stdin.write_all(input).await;
                drop(stdin);
            };
            let mut talk = pin!(async {
                tokio::join!(
                    feed,
                    beginning(stdout, &mut answer, ANSWER_BYTES_MAX + 1),
                    beginning_of_all(stderr, &mut complaint, COMPLAINT_BYTES_MAX)
                )
            });
            tokio::select! {
                biased;
                // Cancel-safe: polled on below. A child of the program may keep its pipes for as
                // long as it likes.
                status = child.wait() => {
                    let _ = tokio::time::timeout(LAST_WORDS_WITHIN, talk).await;
                    status
                }
                // Cancel-safe: it ends only once. One that talks on is not listened to.
                _ = &mut talk => match tokio::time::timeout(LAST_WORDS_WITHIN, child.wait()).await {
                    Ok(status) => status,
                    Err(_) => return Err("it does not end after it has answered".to_owned()),
                }
            }
        };
        let status = status.map_err(|error| error.to_string())?;
        match status.success() {
            true if answer.len() > ANSWER_BYTES_MAX => Err("its answer is too long".to_owned()),
            true => Ok(answer),
            false => Err(format!("it ended with {status}: {}", String::from_utf8_lossy(&complaint).trim())),
        }
    }
}

/// Ends a program with all that it has started.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0.and_then(|id| i32::try_from(id).ok()) {
            // All may have ended by themselves.
            let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
        }
    }
}

/// So much of what a program writes; then the pipe is closed, which ends one that talks on.
async fn beginning(from: impl AsyncRead + Unpin, text: &mut Vec<u8>, bytes_max: usize) -> io::Result<usize> {
    from.take(bytes_max as u64).read_to_end(text).await
}

/// So much of what a program writes; the rest is read and forgotten. A program may complain at
/// length and know the answer all the same.
async fn beginning_of_all(mut from: impl AsyncRead + Unpin, text: &mut Vec<u8>, bytes_max: usize) -> io::Result<u64> {
    beginning(&mut from, text, bytes_max).await?;
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await
}
