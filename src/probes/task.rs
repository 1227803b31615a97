//! One probe of one instance: sleeps, asks, counts, and says what it decided.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};

use super::attempt::{self, Subject, Verdict};
use super::counter::Counter;
use super::wanted::Target;
use super::{Assumed, Board, ProbeKind, Shared};
use crate::events::EventType;
use crate::metrics::probes::{Outcome, Tally};
use crate::pod::{self, PodUid};

/// A container that has never been ready is asked again after this, twice this, and so on up
/// to its period: most servers need a second, and nobody wants to wait ten for it. Upstream
/// asks again whenever it happens to compute the pod's status.
const EARLY_FIRST: Duration = Duration::from_millis(500);

pub struct Task {
    shared: Arc<Shared>,
    board: Arc<Board>,
    uid: PodUid,
    target: Target,
    counter: Counter,
    first_due: Instant,
    was_ready: bool,
    tally: Arc<Tally>,
}

/// Whether there is anything left to find out.
#[derive(PartialEq, Eq)]
enum Next {
    Again,
    Done,
}

impl Task {
    /// `adopted` is a container that ran before this agent did.
    pub fn new(
        shared: Arc<Shared>,
        board: Arc<Board>,
        uid: PodUid,
        target: Target,
        adopted: bool,
        tally: Arc<Tally>,
    ) -> Self {
        let now = shared.clock.now();
        let settings = &target.settings;
        let since_start = shared.clock.wall().duration_since(target.started_at);
        // By the wall clock, which may have jumped: never more than the delay that was asked for.
        let delay = settings.initial_delay.saturating_sub(Duration::try_from(since_start).unwrap_or_default());
        // Five hundred probes that are found at once shall not fire at once ever after.
        let spread = if adopted { shared.clock.part_of(settings.period) } else { Duration::ZERO };
        let first_due = now + delay.max(spread);
        let was_ready = board.state().standings.get(&target.id).is_some_and(|standing| standing.ready == Some(true));
        Task { shared, board, uid, target, counter: Counter::default(), first_due, was_ready, tally }
    }

    pub async fn run(mut self) {
        let period = self.target.settings.period;
        let mut due = self.first_due;
        let mut early = EARLY_FIRST;
        sleep_until(due).await;
        loop {
            // Boxed, so that a probe that only waits for its next run holds no more than that.
            let began = self.shared.clock.now();
            let verdict = Box::pin(self.ask()).await;
            self.tally.note(outcome(&verdict), self.shared.clock.now() - began);
            if self.take(verdict) == Next::Done {
                return;
            }
            // The rhythm is kept; a run that lasted over its successor's time is followed at once.
            let now = self.shared.clock.now();
            if now >= due {
                due = (due + period).max(now);
            }
            let mut next = due;
            if early < period && self.target.kind == ProbeKind::Readiness && !self.was_ready {
                next = next.min(now + early);
                early *= 2;
            }
            sleep_until(next).await;
        }
    }

    async fn ask(&self) -> Verdict {
        let Target { id, kind, container, settings, .. } = &self.target;
        let Some(probe) = kind.of(container) else { return Verdict::Error("the probe is gone".to_owned()) };
        let ip = self.board.state().ip;
        let subject = Subject { id, container, probe, settings, ip };
        attempt::run(&self.shared.caller, &subject, &self.shared.user_agent).await
    }

    fn take(&mut self, verdict: Verdict) -> Next {
        let kind = self.target.kind;
        let success = match verdict {
            Verdict::Success => true,
            Verdict::Warning(output) => {
                self.event("ProbeWarning", format!("{kind} probe warning: {output}"));
                true
            }
            Verdict::Failure(output) => {
                debug!(container = self.target.container.name, %kind, output, "probe failed");
                self.event("Unhealthy", format!("{kind} probe failed: {output}"));
                false
            }
            Verdict::Error(error) => {
                debug!(container = self.target.container.name, %kind, error, "probe could not run");
                self.event("Unhealthy", format!("{kind} probe errored and resulted in unknown state: {error}"));
                return Next::Again;
            }
        };
        match self.counter.note(success, &self.target.settings) {
            Some(decision) => self.decide(decision),
            None => Next::Again,
        }
    }

    fn decide(&mut self, success: bool) -> Next {
        self.was_ready |= success;
        let Target { id, kind, container, .. } = &self.target;
        let mut state = self.board.state();
        match (kind, success) {
            // That it is well says nothing of whether it has started or is ready.
            (ProbeKind::Liveness, true) => {}
            // Whether it has started is still what was assumed.
            (ProbeKind::Readiness, _) if container.startup_probe.is_some() => {
                if let Some(assumed) = state.assumed.get_mut(id) {
                    *assumed = Assumed::Start;
                }
            }
            _ => drop(state.assumed.remove(id)),
        }
        // Gone from the board: the worker has seen the instance end, or be replaced.
        let Some(standing) = state.standings.get_mut(id) else { return Next::Done };
        let before = *standing;
        let next = match (kind, success) {
            (ProbeKind::Startup, true) => {
                standing.started = Some(true);
                Next::Done
            }
            (ProbeKind::Startup | ProbeKind::Liveness, false) => {
                standing.failed = Some(*kind);
                Next::Done
            }
            (ProbeKind::Liveness, true) => Next::Again,
            (ProbeKind::Readiness, success) => {
                standing.ready = Some(success);
                Next::Again
            }
        };
        let changed = *standing != before;
        drop(state);
        if changed {
            info!(container = container.name, %id, %kind, success, "probe decided");
            self.board.changed.notify_one();
            (self.shared.wake)(&self.uid);
        }
        next
    }

    fn event(&self, reason: &str, message: String) {
        let pod = self.board.state().pod.clone();
        let path = pod::field_path(&pod, &self.target.container.name);
        self.shared.recorder.pod(&pod, path.as_deref(), EventType::Warning, reason, message);
    }
}

fn outcome(verdict: &Verdict) -> Outcome {
    match verdict {
        Verdict::Success | Verdict::Warning(_) => Outcome::Successful,
        Verdict::Failure(_) => Outcome::Failed,
        Verdict::Error(_) => Outcome::Unknown,
    }
}
