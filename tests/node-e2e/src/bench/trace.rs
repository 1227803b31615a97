//! The system calls of an agent about the cgroups of pods, as strace(1) sees them.
//!
//! Counted is what makes, looks for, sets, empties and removes a group. What only reads figures is
//! not: statistics are other rows' business.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::poll::{self, Look};
use crate::stack::{Stack, State};

const PROGRAM: &str = "strace";
/// It stops each thread once to hold on to it.
const ATTACHES_WITHIN: Duration = Duration::from_secs(30);

/// Calls, and the seconds spent in them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Calls {
    pub number: usize,
    pub seconds: f64,
}

/// A trace that goes on until it ends, on the stack it runs in.
pub struct Trace<'a> {
    stack: &'a Stack,
    file: PathBuf,
}

impl<'a> Trace<'a> {
    /// Of the process of that number inside, with all its threads.
    pub async fn begin(stack: &'a Stack, pid: i32, name: &str) -> Result<Trace<'a>> {
        let file = stack.directory().join(format!("{name}.strace"));
        let (path, pid) = (file.display().to_string(), pid.to_string());
        let command = ["strace", "-f", "-y", "-T", "-s", "256", "-e", "signal=none", "-o", &path, "-p", &pid];
        stack.start_program(PROGRAM, &command).await.context("start strace(1); provision installs it for the bench")?;
        poll::until("strace(1) sees what the agent does", ATTACHES_WITHIN, async || {
            let state = stack.program_state(PROGRAM).await?;
            ensure!(matches!(state, State::Running { .. }), "strace(1) has ended: {state:?}");
            let is_there = std::fs::metadata(&file).is_ok_and(|file| file.len() > 0);
            Ok(if is_there { Look::Done(()) } else { Look::NotYet("no call yet".to_owned()) })
        })
        .await?;
        Ok(Trace { stack, file })
    }

    pub async fn end(self) -> Result<Calls> {
        self.stack.kill_program(PROGRAM).await?;
        let text = std::fs::read(&self.file).with_context(|| format!("read {}", self.file.display()))?;
        Ok(count(&String::from_utf8_lossy(&text)))
    }
}

fn count(text: &str) -> Calls {
    let (mut calls, mut begun, mut counted) = (Calls::default(), BTreeMap::new(), BTreeMap::new());
    for line in text.lines() {
        let Some((thread, call)) = line.trim_start().split_once(' ') else { continue };
        let call = call.trim_start();
        // A call that others came in between is told in two parts.
        let whole = if let Some(begin) = call.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, begin);
            continue;
        } else if let Some((_, rest)) = call.strip_prefix("<... ").and_then(|it| it.split_once(" resumed>")) {
            format!("{}{rest}", begun.remove(thread).unwrap_or_default())
        } else {
            call.to_owned()
        };
        if is_about_groups(&whole, &mut counted) {
            calls.number += 1;
            calls.seconds += seconds(&whole).unwrap_or_default();
        }
    }
    calls
}

/// Whether to count it; `counted` has the open descriptors whose opening was.
fn is_about_groups(call: &str, counted: &mut BTreeMap<i32, ()>) -> bool {
    let Some((name, arguments)) = call.split_once('(') else { return false };
    // `openat(AT_FDCWD</>, "/sys/...", O_WRONLY) = 7</sys/...> <0.000012>`
    if name.starts_with("open") {
        let sets = ["O_WRONLY", "O_RDWR", "O_DIRECTORY", "O_PATH"].iter().any(|flag| arguments.contains(flag));
        let counts =
            is_of_pods(arguments) && (sets || arguments.contains("cgroup.procs\"") || arguments.contains("/tasks\""));
        let opened = call.rsplit_once(" = ").and_then(|(_, result)| descriptor(result));
        if let Some(descriptor) = opened {
            counted.remove(&descriptor);
            if counts {
                counted.insert(descriptor, ());
            }
        }
        return counts;
    }
    match name {
        "mkdir" | "mkdirat" | "rmdir" | "unlink" | "unlinkat" | "rename" | "access" | "faccessat" | "faccessat2"
        | "stat" | "lstat" | "newfstatat" | "statx" | "statfs" | "readlinkat" => is_of_pods(arguments),
        // On what is open.
        _ => {
            let is_counted = descriptor(arguments).is_some_and(|it| counted.contains_key(&it)) && is_of_pods(arguments);
            if name == "close"
                && let Some(descriptor) = descriptor(arguments)
            {
                counted.remove(&descriptor);
            }
            is_counted
        }
    }
}

fn is_of_pods(arguments: &str) -> bool {
    arguments.contains("/sys/fs/cgroup") && arguments.contains("kubepods")
}

/// The number that a descriptor's argument begins with.
fn descriptor(text: &str) -> Option<i32> {
    text.split(|it: char| !it.is_ascii_digit()).next()?.parse().ok()
}

/// From the end of a line.
fn seconds(call: &str) -> Option<f64> {
    call.rsplit_once('<')?.1.strip_suffix('>')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[&str], number: usize) {
        assert_eq!(count(&lines.join("\n")).number, number, "{lines:?}");
    }

    #[test]
    fn what_makes_sets_and_removes_groups_is_counted() {
        let group = "/sys/fs/cgroup/cpu/kubepods/podx";
        check(&[&format!("7 mkdir(\"{group}\", 0755) = 0 <0.000020>")], 1);
        check(&[&format!("7 rmdir(\"{group}\") = 0 <0.000020>")], 1);
        check(&["7 mkdir(\"/var/lib/kubelet/pods/x\", 0755) = 0 <0.000020>"], 0);
        let set = [
            format!(
                "7 openat(AT_FDCWD</>, \"{group}/cpu.shares\", O_WRONLY|O_CLOEXEC) = 9<{group}/cpu.shares> <0.000020>"
            ),
            format!("7 write(9<{group}/cpu.shares>, \"102\", 3) = 3 <0.000010>"),
            format!("7 close(9<{group}/cpu.shares>) = 0 <0.000010>"),
        ];
        check(&set.each_ref().map(String::as_str), 3);
        assert!((count(&set.join("\n")).seconds - 0.00004).abs() < 1e-9);
    }

    #[test]
    fn what_reads_figures_is_not_counted() {
        let file = "/sys/fs/cgroup/memory/kubepods/podx/memory.stat";
        check(
            &[
                &format!("7 openat(AT_FDCWD</>, \"{file}\", O_RDONLY|O_CLOEXEC) = 9<{file}> <0.000020>"),
                &format!("7 read(9<{file}>, \"cache 0\", 4096) = 7 <0.000020>"),
                &format!("7 close(9<{file}>) = 0 <0.000020>"),
            ],
            0,
        );
    }

    #[test]
    fn a_call_in_two_parts_is_one() {
        check(
            &[
                "7 mkdir(\"/sys/fs/cgroup/cpu/kubepods/podx\", 0755 <unfinished ...>",
                "8 write(1</dev/null>, \"x\", 1) = 1 <0.000010>",
                "7 <... mkdir resumed>) = 0 <0.000020>",
            ],
            1,
        );
    }
}
