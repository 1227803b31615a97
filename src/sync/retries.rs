//! What failed, and when it is tried again. A container that cannot start does not hold up the
//! others: each step of a pod waits on its own, longer with each failure in a row.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::plan::Action;
use crate::clock::Clock;

// Delays between tries. Upstream tries again 10 to 15 s after any failure. Here the first tries
// follow sooner, because what fails is mostly well again in a moment, and from the sixth on the
// rhythm is upstream's. So a container that cannot be configured is tried nine times in its first
// minute and not five: a look at its image and two events more each, which are counted on the
// events that are there, as upstream's are.
const FIRST: Duration = Duration::from_millis(500);
const MAX: Duration = Duration::from_secs(10);
const JITTER: f64 = 0.5;

/// What can fail by itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Read,
    Prepare,
    Volumes,
    Sandbox,
    Container(String),
    /// A dead instance of a container goes: nobody stops or starts later because it does not.
    Removal(String),
    /// The links to the logs of what runs.
    Links,
    Resize,
    /// A running container is moved to other CPUs.
    Pin(String),
    Clean,
}

impl Step {
    pub fn of(action: &Action) -> Step {
        match action {
            Action::Prepare => Step::Prepare,
            Action::Resize(_) => Step::Resize,
            Action::CreateSandbox { .. } | Action::StopSandbox { .. } | Action::RemoveSandbox { .. } => Step::Sandbox,
            Action::StartContainer { name, .. }
            | Action::ResumeContainer { name, .. }
            | Action::StopContainer { name, .. } => Step::Container(name.clone()),
            Action::RemoveContainer { name, .. } => Step::Removal(name.clone()),
        }
    }
}

/// The container that waits because this action of a plan failed. Nobody waits for the removal of a
/// dead instance but a successor that follows it in the plan.
pub fn held_up_by<'a>(failed: &'a Action, plan: &[Action]) -> Option<&'a str> {
    match failed {
        Action::StartContainer { name, .. }
        | Action::ResumeContainer { name, .. }
        | Action::StopContainer { name, .. } => Some(name),
        Action::RemoveContainer { name, .. } => {
            let mut later = plan.iter().skip_while(|action| *action != failed);
            let starts = |action: &Action| matches!(action, Action::StartContainer { name: of, .. } if of == name);
            later.any(starts).then_some(name)
        }
        _ => None,
    }
}

/// A step that failed so many times in a row and is not tried again before then.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    failures: u32,
    not_before: Instant,
}

pub struct Retries {
    clock: Clock,
    waiting: BTreeMap<Step, Retry>,
}

impl Retries {
    pub fn new(clock: Clock) -> Self {
        Retries { clock, waiting: BTreeMap::new() }
    }

    /// Notes a failure and says when the step is tried again: at `retry_at`, if that is known
    /// better than by counting.
    pub fn failed(&mut self, step: Step, retry_at: Option<Instant>) -> Instant {
        let failures = self.waiting.get(&step).map_or(0, |retry| retry.failures);
        let delay = FIRST.saturating_mul(1 << failures.min(8)).min(MAX);
        let not_before = retry_at.unwrap_or_else(|| self.clock.now() + self.clock.jitter(delay, JITTER));
        self.waiting.insert(step, Retry { failures: failures + 1, not_before });
        not_before
    }

    /// Gives back what is forgotten by it.
    pub fn succeeded(&mut self, step: &Step) -> Option<Retry> {
        self.waiting.remove(step)
    }

    /// It was believed to have succeeded; before that it was waiting like this.
    pub fn failed_after_all(&mut self, step: Step, before: Option<Retry>) {
        self.waiting.extend(before.map(|before| (step.clone(), before)));
        self.failed(step, None);
    }

    pub fn has_failed(&self, step: &Step) -> bool {
        self.waiting.contains_key(step)
    }

    pub fn waits_for(&self, step: &Step) -> Option<Instant> {
        let not_before = self.waiting.get(step)?.not_before;
        Some(not_before).filter(|not_before| *not_before > self.clock.now())
    }

    /// What of a plan may be tried now. A successor waits with what it follows in the plan.
    pub fn due(&self, actions: &[Action]) -> Vec<Action> {
        let mut due = Vec::new();
        let mut held = BTreeSet::new();
        for action in actions {
            let step = Step::of(action);
            if let Step::Container(name) = &step
                && held.contains(name)
            {
                continue;
            }
            match (self.waits_for(&step), step) {
                (None, _) => due.push(action.clone()),
                (Some(_), Step::Removal(name)) => drop(held.insert(name)),
                (Some(_), _) => {}
            }
        }
        due
    }

    /// When the next of them may be tried.
    pub fn next(&self) -> Option<Instant> {
        let now = self.clock.now();
        self.waiting.values().map(|retry| retry.not_before).filter(|not_before| *not_before > now).min()
    }

    /// Whatever they waited for may have changed.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;
    use crate::cri::ContainerId;
    use crate::sync::plan::{Kind, StopWhy, Waits};

    #[tokio::test(start_paused = true)]
    async fn a_dead_instance_that_stays_holds_up_its_successor_alone() {
        let (name, id) = (|| "a".to_owned(), || ContainerId::new("a-0"));
        let removal = Action::RemoveContainer { name: name(), id: id(), keep_log: false };
        let start =
            Action::StartContainer { name: name(), kind: Kind::Regular, attempt: Some(1), waits: Waits::default() };
        let why = StopWhy::ProbeFailed { probe: crate::probes::ProbeKind::Liveness, will_restart: true };
        let stop = Action::StopContainer { name: name(), id: ContainerId::new("a-1"), why };
        let other = Action::StopContainer { name: "b".into(), id: ContainerId::new("b-0"), why };
        let mut retries = Retries::new(Clock::simulated(crate::cri::testing::noon(), 1));
        retries.failed(Step::of(&removal), None);
        let due =
            |actions: &[&Action]| retries.due(&actions.iter().map(|action| (*action).clone()).collect::<Vec<_>>());
        assert_eq!(due(&[&stop, &removal]), from_ref(&stop));
        assert_eq!(due(&[&start, &removal]), from_ref(&start));
        assert_eq!(due(&[&removal, &start, &other]), from_ref(&other), "they are one step");
        // And only who waits is told to.
        let pair = [removal.clone(), start.clone()];
        assert_eq!(held_up_by(&removal, &pair), Some("a"));
        assert_eq!(held_up_by(&start, &pair), Some("a"));
        assert_eq!(held_up_by(&removal, &[start.clone(), removal.clone()]), None);
        assert_eq!(held_up_by(&Action::Prepare, &[Action::Prepare]), None);
        let mut retries = Retries::new(Clock::simulated(crate::cri::testing::noon(), 1));
        retries.failed(Step::of(&stop), None);
        let next = [&stop, &start, &removal].map(Action::clone);
        assert_eq!(retries.due(&next), from_ref(&removal));
    }

    #[tokio::test(start_paused = true)]
    async fn first_tries_follow_soon_and_later_ones_as_upstreams_do() {
        let mut retries = Retries::new(Clock::simulated(crate::cri::testing::noon(), 1));
        let began = Instant::now();
        let mut tries = 1;
        loop {
            let next = retries.failed(Step::Prepare, None);
            let wait = (next - Instant::now()).as_secs_f64();
            let least = [0.5, 1.0, 2.0, 4.0, 8.0].get(tries - 1).copied().unwrap_or(10.0);
            assert!((least..=least * 1.5).contains(&wait), "{wait} s after {tries} tries");
            tokio::time::sleep_until(next).await;
            if began.elapsed() > Duration::from_secs(60) {
                break;
            }
            tries += 1;
        }
        assert!((8..=10).contains(&tries), "{tries} tries in a minute");
        assert!(retries.waits_for(&Step::Prepare).is_none() && retries.has_failed(&Step::Prepare));
    }
}
