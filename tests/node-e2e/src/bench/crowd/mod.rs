//! What a crowd of bad clients makes others wait.
//!
//! `members.rs` is the crowd: clients without any credential, on threads of their own so that they hold
//! up nobody here. `asks.rs` asks for `/healthz` as the API server would, on new connections and on
//! one that is kept. `tls.rs` is how both connect.
//!
//! In: an agent under measurement. Out: how long asks took without and with the crowd, what the
//! agent was made to hold, and how much the crowd did.
//!
//! Always true: the agent may send members away, or refuse them; they come back until the crowd is
//! dropped, and then nothing of it is left.

mod asks;
mod members;
mod tls;

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

pub(super) use self::asks::{Answers, PROMISED};
pub(super) use self::members::SIZE;

use self::asks::Asker;
use self::members::Crowd;
use super::agent::Bench;

/// For the crowd, and what this program has open anyway.
const FILES_NEEDED: rlim_t = members::SIZE as rlim_t + 1000;
/// Whoever comes, with or without a credential.
const CONNECTS_WITHIN: Duration = Duration::from_secs(10);
/// What was given to a crowd is given back when its connections are gone, not at once.
const LEAVES_WITHIN: Duration = Duration::from_secs(5);

/// Each figure as often as it was measured.
#[derive(Default)]
pub struct Found {
    pub alone: Answers,
    pub crowded: Answers,
    pub rss_alone: Vec<f64>,
    /// The most there was.
    pub rss_crowded: Vec<f64>,
    pub rss_after: Vec<f64>,
    /// The most there were.
    pub files: Vec<f64>,
    /// Members with a connection, on average.
    pub here: Vec<f64>,
    pub comings_a_second: Vec<f64>,
    pub malformed_a_second: Vec<f64>,
    pub resets_a_second: Vec<f64>,
}

pub(super) async fn measure(bench: &Bench, found: &mut Found) -> Result<()> {
    // The next stack must not inherit it.
    let _more_files = MoreFiles::allow()?;
    let mut asker = Asker::new(&bench.stack).await?;
    found.rss_alone.push(bench.agent.memory_mb("VmRSS")?);
    asker.ask(&mut found.alone, || Ok(())).await?;

    let crowd = Crowd::gather(&bench.stack).await?;
    let before = crowd.counts();
    let began = tokio::time::Instant::now();
    let (mut rss, mut files, mut here) = (0_f64, 0_f64, Vec::new());
    let look = || {
        rss = rss.max(bench.agent.memory_mb("VmRSS")?);
        files = files.max(bench.agent.open_files()? as f64);
        here.push(crowd.counts().here as f64);
        Ok(())
    };
    asker.ask(&mut found.crowded, look).await?;
    let seconds = began.elapsed().as_secs_f64();
    let after = crowd.counts();
    crowd.leave();

    let a_second = |after: u64, before: u64| (after - before) as f64 / seconds;
    found.rss_crowded.push(rss);
    found.files.push(files);
    found.here.push(here.iter().sum::<f64>() / here.len() as f64);
    found.comings_a_second.push(a_second(after.came, before.came));
    found.malformed_a_second.push(a_second(after.malformed, before.malformed));
    found.resets_a_second.push(a_second(after.resets, before.resets));
    tokio::time::sleep(LEAVES_WITHIN).await;
    found.rss_after.push(bench.agent.memory_mb("VmRSS")?);
    Ok(())
}

/// As many open files as a crowd takes, until dropped.
struct MoreFiles {
    before: rlim_t,
    hard: rlim_t,
}

impl MoreFiles {
    fn allow() -> Result<MoreFiles> {
        let (before, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        ensure!(hard >= FILES_NEEDED, "a crowd takes {FILES_NEEDED} open files, and no more than {hard} are allowed");
        setrlimit(Resource::RLIMIT_NOFILE, before.max(FILES_NEEDED), hard)?;
        Ok(MoreFiles { before, hard })
    }
}

impl Drop for MoreFiles {
    fn drop(&mut self) {
        // What cannot be taken back does no harm.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, self.before, self.hard);
    }
}
