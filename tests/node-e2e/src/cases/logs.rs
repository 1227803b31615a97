//! Container logs on disk: rotation by size and count.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};

use crate::harness::{Case, Lab, Node, PodHandle, WITHIN, pod};
use crate::own;
use crate::poll::{self, Look};

pub const CASES: &[Case] = &[
    own!(a_full_log_is_rotated_and_compressed),
    own!(a_flood_stays_within_its_limits)
        .beyond_upstream("it looks at logs every containerLogMonitorInterval only, however fast they grow"),
    own!(no_line_is_lost_to_an_agent_that_is_killed_again_and_again),
];

async fn node(lab: &Lab, size: &str, files: u32) -> Result<Node> {
    lab.node(|stack| {
        stack
            .config("containerLogMaxSize", size)
            .config("containerLogMaxFiles", files)
            .config("containerLogMonitorInterval", "3s")
    })
    .await
}

/// Files of the first instance of `main`, oldest first: name, size on disk.
fn files(pod: &PodHandle) -> Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(pod.log_directory().join("main")).context("list the logs")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // One that is renamed between the two calls is seen by the next look.
        if let Ok(stat) = entry.metadata() {
            found.push((name, stat.len()));
        }
    }
    found.sort_by_key(|(name, _)| (name == "0.log", name.clone()));
    Ok(found)
}

fn text(path: &Path) -> Result<String> {
    if path.extension().is_some_and(|extension| extension == "gz") {
        let output = Command::new("gzip").args(["-dc"]).arg(path).output()?;
        ensure!(output.status.success(), "{} is no gzip file", path.display());
        return Ok(String::from_utf8(output.stdout)?);
    }
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

async fn a_full_log_is_rotated_and_compressed(lab: Lab) -> Result<()> {
    let node = node(&lab, "50Ki", 3).await?;
    // About 10 KiB of log every half second, so that each look finds it a bit over the limit.
    let script = "while :; do i=0; while [ $i -lt 100 ]; do echo 0123456789012345678901234567890123456789; \
                  i=$((i+1)); done; sleep 0.5; done";
    let pod = node.run(pod("talker").script(script)).await?;
    pod.expect().ready().await?;
    poll::until("three files, the oldest compressed", WITHIN, async || {
        let files = files(&pod)?;
        let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
        let done = match names.as_slice() {
            [old, before, "0.log"] => old.ends_with(".gz") && !before.ends_with(".gz"),
            _ => false,
        };
        Ok(if done { Look::Done(()) } else { Look::NotYet(format!("{files:?}")) })
    })
    .await?;
    for (name, _) in files(&pod)?.iter().filter(|(name, _)| name != "0.log" && !name.ends_with(".tmp")) {
        // 0.log.20260102-030405, perhaps with .gz
        let stamp = name.trim_start_matches("0.log.").trim_end_matches(".gz");
        let shape: String = stamp.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
        ensure!(shape == "99999999-999999", "name {name}");
    }
    let oldest = files(&pod)?.remove(0).0;
    let log = text(&pod.log_directory().join("main").join(oldest))?;
    ensure!(log.lines().count() > 100 && log.lines().all(|line| line.contains(" stdout F 0123456789")));
    // And it goes on: the number of files stays.
    let until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until {
        let files = files(&pod)?;
        // One more may be there while it is compressed, and while room is not yet made.
        let whole = files.iter().filter(|(name, _)| !name.ends_with(".tmp")).count();
        ensure!(whole <= 4, "{files:?}");
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn a_flood_stays_within_its_limits(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack.config("containerLogMaxSize", "10Mi").config("containerLogMaxFiles", 3)).await?;
    // Two at once, who share the one worker that compresses by default, of what hardly can be.
    let script = "head -c 30000000 /dev/urandom | base64 -w 2000 > /tmp/said; while :; do cat /tmp/said; done";
    let (one, two) = (node.run(pod("one").script(script)).await?, node.run(pod("two").script(script)).await?);
    for pod in [&one, &two] {
        pod.expect().ready().await?;
    }
    for pod in [&one, &two] {
        poll::until("a first rotation", WITHIN, async || {
            let files = files(pod)?;
            Ok(if files.len() > 1 { Look::Done(()) } else { Look::NotYet(format!("{files:?}")) })
        })
        .await?;
    }
    let (mut largest, mut most, mut rotations) = ([0; 2], [0; 2], [BTreeSet::new(), BTreeSet::new()]);
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        for (nth, pod) in [&one, &two].into_iter().enumerate() {
            let files = files(pod)?;
            largest[nth] = files.iter().map(|(_, size)| *size).fold(largest[nth], u64::max);
            most[nth] = files.iter().map(|(_, size)| size).sum::<u64>().max(most[nth]);
            rotations[nth].extend(files.into_iter().map(|(name, _)| name.trim_end_matches(".gz").to_owned()));
        }
        sleep(Duration::from_millis(20)).await;
    }
    for (nth, (largest, most)) in largest.into_iter().zip(most).enumerate() {
        let rotations = rotations[nth].len();
        println!("    at most {} MiB in a file and {} in all, {rotations} files", largest >> 20, most >> 20);
        ensure!(rotations > 4, "rotated too seldom: {rotations}");
        // The limit, and what comes between two looks, which a busy machine may delay: 95 MiB were seen.
        // Where looks waited for compressions, files grew without a bound.
        ensure!(largest < 160 << 20, "{} MiB in one file", largest >> 20);
        // Three such files, and one more while it is compressed.
        ensure!(most < 400 << 20, "{} MiB on disk", most >> 20);
    }
    Ok(())
}

async fn no_line_is_lost_to_an_agent_that_is_killed_again_and_again(lab: Lab) -> Result<()> {
    let node = node(&lab, "20Ki", 200).await?;
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; sleep 1000000";
    let pod = node.run(pod("counter").script(script)).await?;
    pod.expect().ready().await?;
    for _ in 0..5 {
        sleep(Duration::from_millis(300)).await;
        node.stack().agent().kill().await?;
        node.stack().agent().start().await?;
    }
    node.expect_node_ready("True").await?;
    // Without line ends: containerd cuts a line in two if it is half read when the log is
    // opened anew, and writes each part as a line of its own.
    let expected: String = (0..20_000).map(|line| format!("line {line}")).collect();
    poll::until("every line once and in order", WITHIN * 2, async || {
        let dir = pod.log_directory().join("main");
        let mut said = String::new();
        let files = files(&pod)?;
        // Killed between the two, the agent leaves the original beside what it was compressed to.
        let superseded = |name: &str| files.iter().any(|(other, _)| *other == format!("{name}.gz"));
        for (name, _) in files.iter().filter(|(name, _)| !name.ends_with(".tmp") && !superseded(name)) {
            // One that was compressed meanwhile is read by the next look.
            let Ok(text) = text(&dir.join(name)) else { return Ok(Look::NotYet(format!("{name} went"))) };
            said.extend(text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)));
        }
        let differs = said.bytes().zip(expected.bytes()).position(|(said, expected)| said != expected);
        Ok(match said == expected {
            true => Look::Done(()),
            false => {
                let around = said.get(differs.unwrap_or(0).saturating_sub(20)..).unwrap_or_default();
                let around: String = around.chars().take(60).collect();
                Look::NotYet(format!("{} of {} bytes, differs at {around:?}", said.len(), expected.len()))
            }
        })
    })
    .await
}
