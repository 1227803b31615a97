//! Commands on the virtual machine, as root, by ssh.
//!
//! A master connection runs inside the world, so that it ends with it; each command is a session
//! of that connection, which spares the emulated machine a handshake each.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::machine::ADDRESS;
use crate::poll::{self, Look};
use crate::stack::{Stack, State};

const MASTER: &str = "ssh-master";
/// A command that has not ended by then hangs.
const ENDS_WITHIN: Duration = Duration::from_secs(180);

#[derive(Clone)]
pub struct Guest {
    socket: PathBuf,
    key: PathBuf,
}

impl Guest {
    pub fn new(stack: &Stack, key: &Path) -> Guest {
        Guest { socket: stack.directory().join("ssh.sock"), key: key.to_owned() }
    }

    /// Starts the master connection unless there is one, without waiting for it.
    pub async fn connect(&self, stack: &Stack) -> Result<()> {
        if let State::Running { .. } = stack.program_state(MASTER).await? {
            return Ok(());
        }
        // What a killed one left would be taken for a connection.
        let _ = std::fs::remove_file(&self.socket);
        let mut words = vec!["ssh".to_owned(), "-M".into(), "-N".into(), "-i".into(), self.key.display().to_string()];
        words.extend(self.options());
        for option in ["BatchMode=yes", "ConnectTimeout=5", "ServerAliveInterval=5", "ServerAliveCountMax=6"] {
            words.extend(["-o".to_owned(), option.to_owned()]);
        }
        words.push(format!("root@{ADDRESS}"));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        stack.start_program(MASTER, &words).await
    }

    /// Lets go of a machine that is about to go down.
    pub async fn disconnect(&self, stack: &Stack) -> Result<()> {
        stack.kill_program(MASTER).await
    }

    /// Runs a shell script to its end, which has to be a good one. Returns what it wrote.
    pub async fn run(&self, script: &str) -> Result<String> {
        let output = self.told(script, b"").await?;
        let (written, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "on the machine, {script}: {}\n{written}{errors}", output.status);
        Ok(written.into_owned())
    }

    /// The same, whatever its end.
    pub async fn told(&self, script: &str, input: &[u8]) -> Result<Output> {
        let mut child = Command::new("ssh")
            .args(self.options())
            .args(["-o", "ControlMaster=no", "-o", "BatchMode=yes", &format!("root@{ADDRESS}")])
            .arg(format!("set -e; export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n{script}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("run ssh(1)")?;
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let talk = async {
            let _ = stdin.write_all(input).await;
            drop(stdin);
            child.wait_with_output().await
        };
        let output = timeout(ENDS_WITHIN, talk).await;
        output.with_context(|| format!("on the machine, {script} does not end"))?.context("wait for ssh(1)")
    }

    pub async fn write(&self, path: &str, content: &str) -> Result<()> {
        let script = format!("mkdir -p \"$(dirname {path})\"; cat >{path}");
        let output = self.told(&script, content.as_bytes()).await?;
        ensure!(output.status.success(), "write {path} on the machine: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    pub async fn boot_id(&self) -> Result<String> {
        ensure!(self.socket.exists(), "no connection yet");
        self.run("cat /proc/sys/kernel/random/boot_id").await
    }

    /// Runs a script again and again until `holds` is true of what it writes.
    pub async fn expect(&self, script: &str, goal: &str, holds: impl Fn(&str) -> bool) -> Result<String> {
        poll::until(goal, Duration::from_secs(120), async || {
            let output = self.told(script, b"").await?;
            let written = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok(match output.status.success() && holds(&written) {
                true => Look::Done(written),
                false => {
                    Look::NotYet(format!("{} {written}{}", output.status, String::from_utf8_lossy(&output.stderr)))
                }
            })
        })
        .await
    }

    fn options(&self) -> Vec<String> {
        // The world hides the machine's own configuration, and must not depend on it.
        let mut options = vec!["-F".to_owned(), "none".into(), "-S".into(), self.socket.display().to_string()];
        for option in ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"] {
            options.extend(["-o".to_owned(), option.to_owned()]);
        }
        options
    }
}
