//! Named checks, and what they come to.

use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Clock;
use crate::metrics;

/// Says what is wrong, if anything. Must neither block nor take long.
pub type Check = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// How much a failing check means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Weight {
    /// The agent is not doing its work; whoever watches it should restart it.
    Vital,
    /// Worth showing. A restart of the agent would not help.
    Shown,
}

/// The checks of this agent, in the order they were added.
#[derive(Default)]
pub struct Health {
    checks: Vec<(&'static str, Weight, Check)>,
}

/// What a round of checks came to.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Findings {
    pub lines: Vec<(&'static str, Result<(), String>)>,
    pub is_healthy: bool,
}

impl Health {
    /// A registry with the check that always passes: the server answers.
    pub fn new() -> Self {
        Health::default().vital("ping", Box::new(|| Ok(())))
    }

    /// Adds a check that decides the answer.
    pub fn vital(mut self, name: &'static str, check: Check) -> Self {
        self.checks.push((name, Weight::Vital, check));
        self
    }

    /// Adds a check that is only shown.
    pub fn shown(mut self, name: &'static str, check: Check) -> Self {
        self.checks.push((name, Weight::Shown, check));
        self
    }

    pub(super) fn look(&self, wanted: impl Fn(&str) -> bool) -> Findings {
        let mut findings = Findings { lines: Vec::new(), is_healthy: true };
        for (name, weight, check) in self.checks.iter().filter(|(name, ..)| wanted(name)) {
            let result = counted(name, check);
            findings.is_healthy &= result.is_ok() || *weight == Weight::Shown;
            findings.lines.push((name, result));
        }
        findings
    }

    /// The first vital check that fails, with what is wrong.
    pub fn failure(&self) -> Option<(&'static str, String)> {
        let vital = self.checks.iter().filter(|(_, weight, _)| *weight == Weight::Vital);
        vital.into_iter().find_map(|(name, _, check)| check().err().map(|reason| (*name, reason)))
    }

    pub(super) fn one(&self, name: &str) -> Option<Result<(), String>> {
        self.checks.iter().find(|(known, ..)| *known == name).map(|(_, _, check)| counted(name, check))
    }
}

fn counted(name: &str, check: &Check) -> Result<(), String> {
    let result = check();
    metrics::health::checked(name, result.is_ok());
    result
}

impl Findings {
    /// One line per check and a last one, as the kubelet's health page has them.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, result) in &self.lines {
            let _ = match result {
                Ok(()) => writeln!(text, "[+]{name} ok"),
                Err(_) => writeln!(text, "[-]{name} failed: reason withheld"),
            };
        }
        text += if self.is_healthy { "healthz check passed\n" } else { "healthz check failed\n" };
        text
    }
}

/// When a loop last turned, for a check of it. Clones share the moment.
#[derive(Clone)]
pub struct Progress {
    clock: Clock,
    turned_at: Arc<Mutex<Instant>>,
}

impl Progress {
    pub fn new(clock: Clock) -> Self {
        let now = clock.now();
        Progress { clock, turned_at: Arc::new(Mutex::new(now)) }
    }

    /// Called by the loop in each turn.
    pub fn turned(&self) {
        *self.turned_at.lock().expect("nothing that holds the moment can panic") = self.clock.now();
    }

    /// Fails once the loop has not turned for `limit`.
    pub fn check(&self, limit: Duration) -> Check {
        let progress = self.clone();
        Box::new(move || {
            let turned_at = *progress.turned_at.lock().expect("nothing that holds the moment can panic");
            let still = progress.clock.now().saturating_duration_since(turned_at);
            if still <= limit {
                Ok(())
            } else {
                Err(format!("no turn for {} s, limit is {} s", still.as_secs(), limit.as_secs()))
            }
        })
    }
}
