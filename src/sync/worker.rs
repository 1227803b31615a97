//! One pod's worker: a serial loop of passes over one pod.
//!
//! A pass reads a snapshot, makes a plan, carries it out, and starts over until the plan is
//! empty; then the worker sleeps until something hints at a change or a deadline comes.
//!
//! ```text
//!   Syncing ──── nothing will ever run again, or a stop is wished ───▶ Stopping
//!   Stopping ─── nothing runs any more ──────────────────────────────▶ Cleaning
//!   Cleaning ─── volumes and cgroup are gone ────────────────────────▶ Ended
//!   Ended ────── the pod is wished away: runtime emptied, API object deleted ─▶ worker ends
//! ```
//!
//! Always true: a stage is never gone back; a wish to stop (or to stop sooner) interrupts
//! whatever pass is under way, and the next pass reads the runtime anew.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::dead::Condemned;
use super::execute::{Done, Round, StartFailure};
use super::hooks::{BegunHooks, PostStarts, as_shown};
use super::plan::{self, Action, Plan, Snapshot, StopWhy};
use super::report::{Progress, Reporter};
use super::resize::{Resize, Resizing};
use super::retries::{self, Retries, Retry, Step};
use super::roster::{KnownBy, Lifecycle, Work};
use super::upkeep::{self, LogLinks};
use super::wish::{Desired, StopCause, stop_wished};
use super::{Context, admit, execute, hooks, pins, report};
use crate::cri::{ContainerId, SandboxId};
use crate::events::EventType;
use crate::metrics;
use crate::pleg::PodRuntime;
use crate::pod::{self, PodUid};
use crate::probes::{self, Look, PodProbes, Standings};
use crate::status::{self, Phase, Verdict};

/// How far the pod is on its way; see the diagram above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Syncing,
    Stopping,
    Cleaning,
    Ended,
}

/// What one pass leaves to do.
enum Outcome {
    /// Something changed: look again now.
    Again,
    /// Nothing to do before this time, or before anything happens.
    Idle { until: Option<Instant> },
    /// The pod is gone from this machine and from the API.
    Gone,
}

struct Worker {
    context: Arc<Context>,
    uid: PodUid,
    stage: Stage,
    /// Directories, cgroup and volumes were made by this worker.
    prepared: bool,
    /// When each exit was first seen, for back-offs that outlive a jump of the wall clock.
    exits_seen: BTreeMap<ContainerId, Instant>,
    /// What has ended by then was counted by an earlier life.
    has_read: bool,
    /// Why containers could not be started at the last try.
    start_failures: BTreeMap<String, StartFailure>,
    retries: Retries,
    /// What the last round did, as far as it was told, and how often it had failed before.
    done: Vec<(Action, Option<Retry>)>,
    /// What containers carry that are made after a restart of all.
    restart_all_wait: Duration,
    probes: PodProbes,
    resizing: Resizing,
    /// Rung when the pod was looked at, and the node has taken it.
    looked: Arc<Notify>,
    begun_hooks: Arc<BegunHooks>,
    log_links: LogLinks,
    reporter: Reporter,
    began: Instant,
    /// Since when the pod stops, or what it runs ends for another sandbox, and under which grace.
    stopping: Option<(Instant, Option<i64>)>,
    /// The node has taken the pod.
    admitted: bool,
    /// Why the pod ends, whatever its containers do.
    verdict: Option<Verdict>,
    /// A call failed or was given up, and may have had its effect all the same, long after.
    is_unsure: bool,
    /// Sandboxes that were stopped in this life.
    stopped: BTreeSet<SandboxId>,
    /// What the runtime had of the pod when all else of it was taken down, if nothing was done since.
    clean_with: Option<Arc<PodRuntime>>,
}

/// Works on one pod until it is gone; returns its UID.
pub async fn run(context: Arc<Context>, uid: PodUid, mut wishes: watch::Receiver<Desired>) -> PodUid {
    let bell = context.wakes.hang_up(&uid);
    let mut worker = Worker {
        context: context.clone(),
        uid: uid.clone(),
        stage: Stage::Syncing,
        prepared: false,
        exits_seen: BTreeMap::new(),
        has_read: false,
        start_failures: BTreeMap::new(),
        retries: Retries::new(context.clock.clone()),
        done: Vec::new(),
        restart_all_wait: Duration::ZERO,
        probes: context.probes.of_pod(&uid),
        resizing: Resizing::new(&context),
        looked: Arc::default(),
        begun_hooks: Arc::default(),
        log_links: LogLinks::default(),
        reporter: Reporter::new(&context),
        began: context.clock.now(),
        stopping: None,
        admitted: false,
        verdict: None,
        is_unsure: false,
        stopped: BTreeSet::new(),
        clean_with: None,
    };
    metrics::starts::worked_on(uid.as_str(), worker.began);
    let mut operation_of_pass = "create";
    // Beside all that the worker does: what it waits for is no reason to run on CPUs of others.
    let followed = uid.clone();
    let mut following = pins::follow(&context, &followed, worker.looked.clone());
    loop {
        // It may have come in the middle of the last pass.
        let is_changed = wishes.has_changed().unwrap_or(false);
        if is_changed {
            worker.retries.clear();
        }
        let wish = wishes.borrow_and_update().clone();
        let began = context.clock.now();
        let outcome = tokio::select! {
            biased;
            // Cancel-safe: the watch keeps the newest wish. The pass is dropped wherever it
            // waits; calls it had sent may still take effect, which the next read shows.
            () = stop_wished(&wishes, wish.grace_seconds()) => {
                worker.is_unsure = true;
                worker.retries.clear();
                continue;
            }
            outcome = worker.pass(&wish) => outcome,
            // Cancel-safe: polled on in the next turn.
            never = &mut following => match never {},
        };
        let operation = worker.operation_of_end(&wish).unwrap_or(if is_changed { "update" } else { operation_of_pass });
        metrics::pods::WORKER_DURATION.took([operation], context.clock.now() - began);
        operation_of_pass = "sync";
        let until = match outcome {
            Outcome::Gone => break,
            Outcome::Again => continue,
            Outcome::Idle { until } => until,
        };
        tokio::select! {
            biased;
            // Cancel-safe: the watch keeps the newest wish.
            changed = wishes.changed() => {
                if changed.is_err() {
                    return uid; // The dispatcher is gone: the agent stops, the pod goes on.
                }
                operation_of_pass = "update";
                worker.retries.clear();
            }
            // Cancel-safe: an unused permit stays with the bell.
            () = bell.rung() => {
                if bell.take_inputs_changed() {
                    worker.retries.clear();
                }
            }
            // Cancel-safe: a change stays marked unseen until the next look.
            () = worker.resizing.room_changed() => {}
            // Cancel-safe: a timer.
            () = sleep_until(until) => {}
            // Cancel-safe: polled on in the next turn.
            never = &mut following => match never {},
        }
    }
    context.wakes.take_down(&uid);
    context.dead.forget(&uid);
    context.roster.has_left(&uid);
    uid
}

pub(super) async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

impl Worker {
    async fn pass(&mut self, wish: &Desired) -> Outcome {
        if let Some(until) = self.retries.waits_for(&Step::Read) {
            return Outcome::Idle { until: Some(until) };
        }
        let runtime = match self.context.pleg.current(&self.uid).await {
            Ok(runtime) => runtime,
            Err(error) => {
                debug!(%error, "cannot read the pod from the runtime");
                if !self.retries.has_failed(&Step::Read) {
                    let (reason, message) = report::read_failure(&error);
                    self.context.recorder.pod(&wish.pod, None, EventType::Warning, reason, message);
                }
                return self.failed(Step::Read, None);
            }
        };
        self.retries.succeeded(&Step::Read);
        self.context.logs.observe(&self.uid, &runtime);
        self.note_exits(wish, &runtime);
        self.reporter.recall(&self.context, wish, &runtime);
        self.judge(wish, &runtime).await;
        self.enter_stage(wish, &runtime);
        self.context.roster.works_on(&self.uid, self.work(wish));
        // From here on the pod is as it is wished for, but for what the node does not give it.
        let is_open = self.stage == Stage::Syncing && self.admitted;
        let wish = &self.resizing.allocate(&self.context, &self.uid, wish, is_open);
        let wish = &Desired { places: self.context.topology.places(&self.uid), ..wish.clone() };
        if self.stage == Stage::Stopping {
            // A shorter grace begins when it is asked for.
            let grace = wish.grace_seconds();
            if self.stopping.is_none_or(|(_, known)| known != grace) {
                self.stopping = Some((self.context.clock.now(), grace));
            }
        }
        self.begun_hooks.retain(&runtime);
        self.stopped.retain(|id| runtime.sandboxes.iter().any(|sandbox| sandbox.id == *id));
        match self.stage {
            Stage::Syncing => self.follow_late_starts(wish, &runtime),
            Stage::Stopping | Stage::Cleaning | Stage::Ended => self.begun_hooks.give_up_post_starts(),
        }
        let post_starts = self.begun_hooks.post_starts(&runtime);
        let shown = as_shown(&runtime, &post_starts);
        let standings = self.look_at_probes(wish, &shown);
        let condemned = self.condemned(wish, &runtime);
        let resize = match self.stage {
            Stage::Syncing => self.resizing.decide(&self.context, wish, &runtime),
            Stage::Stopping | Stage::Cleaning | Stage::Ended => Resize::default(),
        };
        if self.admitted {
            self.looked.notify_one();
        }
        let plan = self.plan(wish, &runtime, &standings, &post_starts, &condemned.containers, &resize);
        self.restart_all_wait = plan.restart_all_wait.unwrap_or(self.restart_all_wait);
        if self.stage == Stage::Syncing {
            let now = self.context.clock.now();
            self.stopping = plan.ends_sandbox().then(|| self.stopping.unwrap_or((now, None)));
        }
        if plan.reached && self.stage < Stage::Cleaning {
            self.advance();
            return Outcome::Again;
        }
        let phase = self.publish(wish, &shown, &plan);
        if self.stage == Stage::Syncing && phase.is_some_and(Phase::is_terminal) {
            self.advance();
            return Outcome::Again;
        }
        match self.stage {
            Stage::Syncing => self.keep_up(wish, &runtime).await,
            Stage::Cleaning => return self.clean(&runtime).await,
            Stage::Ended if self.is_unclean(&runtime, &plan) => return self.clean(&runtime).await,
            Stage::Ended if wish.stop.is_some() && plan.reached => return self.take_leave(wish).await,
            Stage::Stopping | Stage::Ended => {}
        }
        self.hold_what_had_no_effect(&plan);
        let actions = self.retries.due(&plan.actions);
        if actions.is_empty() {
            let later = condemned.look_again_in.map(|wait| self.context.clock.now() + wait);
            return Outcome::Idle { until: self.look_again(wish, &plan).into_iter().chain(later).min() };
        }
        self.execute(wish, &runtime, &plan, &actions).await
    }

    fn look_at_probes(&mut self, wish: &Desired, runtime: &PodRuntime) -> Standings {
        self.probes.look(&Look {
            pod: &wish.pod,
            runtime,
            ip: report::pod_ip(&self.context, wish, runtime),
            told: self.reporter.told(&self.context, wish),
            stage: match self.stage {
                Stage::Syncing => probes::Stage::Syncing,
                Stage::Stopping => probes::Stage::Stopping,
                Stage::Cleaning | Stage::Ended => probes::Stage::Over,
            },
        })
    }

    /// What is dead and goes, while the pod stays.
    fn condemned(&self, wish: &Desired, runtime: &PodRuntime) -> Condemned {
        let stays = self.stage == Stage::Syncing || (self.stage == Stage::Ended && wish.stop.is_none());
        if !stays {
            return Condemned::default();
        }
        // The API never has the last word on a static pod: its containers alone tell that it ended.
        let is_told = self.stage == Stage::Ended && is_terminal(&wish.pod) && !wish.source.is_static();
        if self.stage == Stage::Ended && !is_told {
            return Condemned::default();
        }
        self.context.dead.look(&self.uid, runtime, is_told, self.context.clock.wall(), &self.context.wakes)
    }

    fn note_exits(&mut self, wish: &Desired, runtime: &PodRuntime) {
        let now = self.context.clock.now();
        let mut seen = BTreeMap::new();
        for container in &runtime.containers {
            let Some(exit) = container.exit() else { continue };
            let known = self.exits_seen.get(&container.id);
            if known.is_none() && self.has_read {
                let kind = pod::containers::kind_label(&wish.pod, &container.name);
                metrics::pods::TERMINATED_CONTAINERS.add([kind, &exit.exit_code.to_string(), &exit.reason]);
            }
            seen.insert(container.id.clone(), *known.unwrap_or(&now));
        }
        self.exits_seen = seen;
        self.has_read = true;
    }

    /// What upstream's metrics call a pass over a pod that ends; `None` of one that goes on.
    fn operation_of_end(&self, wish: &Desired) -> Option<&'static str> {
        match self.stage {
            Stage::Cleaning | Stage::Ended => Some("terminated"),
            Stage::Stopping => Some("kill"),
            Stage::Syncing => wish.grace_seconds().map(|_| "kill"),
        }
    }

    fn work(&self, wish: &Desired) -> Work {
        Work {
            lifecycle: match self.stage {
                Stage::Syncing => Lifecycle::Sync,
                Stage::Stopping => Lifecycle::Terminating,
                Stage::Cleaning | Stage::Ended => Lifecycle::Terminated,
            },
            known_by: match wish.stop.map(|stop| stop.cause) {
                Some(StopCause::Orphaned) => KnownBy::RuntimeOnly,
                Some(StopCause::Removed) => KnownBy::Orphan,
                Some(StopCause::Deleted) | None => KnownBy::Desired,
            },
            is_static: wish.source.is_static(),
        }
    }

    /// A pod may be found anywhere on its way: stopped while we were away, or long finished.
    fn enter_stage(&mut self, wish: &Desired, runtime: &PodRuntime) {
        if self.stage != Stage::Syncing {
            return;
        }
        if let Some(stop) = wish.stop {
            info!(cause = ?stop.cause, grace_seconds = stop.grace_seconds, "stopping pod");
            self.stage = Stage::Stopping;
        } else if is_terminal(&wish.pod) && !wish.source.is_static() {
            debug!(containers = runtime.containers.len(), "pod has ended before");
            self.verdict = admit::earlier_refusal(&wish.pod);
            self.stage = Stage::Stopping;
        } else if let Some(verdict) = &self.verdict {
            info!(reason = verdict.reason, message = verdict.message, "the pod ends here");
            self.stage = Stage::Stopping;
        }
    }

    /// Looks for a reason why the pod may not run, or not any longer.
    async fn judge(&mut self, wish: &Desired, runtime: &PodRuntime) {
        let is_open = self.stage == Stage::Syncing && wish.stop.is_none() && self.verdict.is_none();
        if !is_open || (is_terminal(&wish.pod) && !wish.source.is_static()) {
            return;
        }
        if let Some(doom) = &wish.doom {
            self.verdict = Some(doom.verdict.clone());
            return;
        }
        if !self.admitted {
            self.verdict = admit::admit(&self.context, &self.uid, wish, runtime).await;
            self.admitted = self.verdict.is_none();
        }
        if self.verdict.is_none() && self.active_left(wish).is_some_and(|left| left.is_zero()) {
            let verdict = Verdict::deadline_exceeded();
            let message = verdict.message.clone();
            self.context.recorder.pod(&wish.pod, None, EventType::Normal, &verdict.reason, message);
            self.verdict = Some(verdict);
        }
    }

    /// How long the pod may still be active. It is over as soon as one of two clocks says so:
    /// the wall clock knows of the time before this worker, and may jump; the monotonic one
    /// cannot, but counts from when this worker began.
    fn active_left(&self, wish: &Desired) -> Option<Duration> {
        let start = self.reporter.start_time(&wish.pod);
        let deadline = status::deadline(&wish.pod, start)?;
        let allowed = Duration::try_from(deadline.duration_since(start)).unwrap_or_default();
        let on_the_wall = deadline.duration_since(self.context.clock.wall());
        let watched = self.context.clock.now().duration_since(self.began);
        Some(allowed.saturating_sub(watched).min(Duration::try_from(on_the_wall).unwrap_or_default()))
    }

    /// The aim of this stage is reached.
    fn advance(&mut self) {
        self.retries.clear();
        self.stage = match self.stage {
            Stage::Syncing => {
                info!("all containers have ended for good");
                Stage::Stopping
            }
            Stage::Stopping => {
                self.context.admission.release(&self.uid);
                Stage::Cleaning
            }
            Stage::Cleaning | Stage::Ended => Stage::Ended,
        };
    }

    fn plan(
        &mut self,
        wish: &Desired,
        runtime: &PodRuntime,
        standings: &Standings,
        post_starts: &PostStarts,
        condemned: &BTreeSet<ContainerId>,
        resize: &Resize,
    ) -> Plan {
        let restarts = status::Restarts::of(&wish.pod, &self.context.config.launch.gates);
        let told = self.reporter.earlier(&wish.pod);
        let lost = told.map(|told| restarts.over_and_lost(told, runtime)).unwrap_or_default();
        match self.stage {
            Stage::Syncing => plan::sync(&Snapshot {
                pod: &wish.pod,
                runtime,
                prepared: self.prepared,
                restarts,
                lost: &lost,
                network_ready: self.context.pleg.health().borrow().network_ready(),
                backoff: &self.context.config.backoff,
                exits_seen: &self.exits_seen,
                restart_all_wait: self.restart_all_wait,
                standings,
                post_starts,
                condemned,
                stopped: &self.stopped,
                resize,
                now: self.context.clock.now(),
                wall: self.context.clock.wall(),
            }),
            Stage::Stopping => plan::stop_pod(&wish.pod, runtime, &self.stopped),
            Stage::Cleaning => Plan::default(),
            Stage::Ended if wish.stop.is_none() => plan::keep_ended_pod(&wish.pod, runtime, condemned, &self.stopped),
            Stage::Ended => plan::remove_pod(&wish.pod, runtime, &self.stopped),
        }
    }

    async fn execute(&mut self, wish: &Desired, runtime: &PodRuntime, plan: &Plan, actions: &[Action]) -> Outcome {
        // What is about to be removed may have come to life by a call that was given up.
        self.clean_with = None;
        let (context, uid, hooks) = (self.context.clone(), self.uid.clone(), self.begun_hooks.clone());
        let stopping_since = self.stopping.map(|(since, _)| since);
        let round = Round { context: &context, uid: &uid, wish, runtime, begun_hooks: &hooks, stopping_since };
        let mut shown = as_shown(runtime, &hooks.post_starts(runtime));
        let mut executing = pin!(execute::execute(&round, actions));
        let report = loop {
            tokio::select! {
                biased;
                // Cancel-safe: polled on in the next turn.
                report = &mut executing => break report,
                // Cancel-safe: an unused permit stays. A pull may take minutes and a stop its
                // grace; meanwhile clients want to know which containers are ready.
                () = self.probes.changed() => {
                    self.publish(wish, &shown, plan);
                }
                // Cancel-safe: an unused permit stays. Nobody waits for the rest of the round to
                // hear that a container has begun; what else follows is for the next pass.
                () = hooks.post_start_ended() => {
                    shown = as_shown(runtime, &hooks.post_starts(runtime));
                    self.look_at_probes(wish, &shown);
                    self.publish(wish, &shown, plan);
                }
                // Cancel-safe: the gate stays open. What was held back until the past was known can be
                // told now, however long the round lasts.
                () = context.mirrors.api_has_spoken(), if !self.reporter.knows_the_past() => {
                    self.reporter.recall(&context, wish, runtime);
                    self.look_at_probes(wish, &shown);
                    self.publish(wish, &shown, plan);
                }
            }
        };
        for (Done { step, result }, action) in report.into_iter().zip(actions) {
            match result {
                Ok(()) => {
                    if step == Step::Prepare {
                        self.prepared = true;
                        self.resizing.prepared(&self.context, wish, runtime);
                    }
                    if let Action::Resize(resize) = action {
                        self.resizing.carried_out(&self.context, wish, resize, Ok(()));
                    }
                    if let Step::Container(name) = &step {
                        self.start_failures.remove(name);
                    }
                    if let Action::StopSandbox { id } = action {
                        self.stopped.insert(id.clone());
                    }
                    if let Action::StopContainer { name, id, why: StopWhy::HookFailed } = action {
                        let kind = pod::containers::kind_label(&wish.pod, name);
                        metrics::pods::STARTED_CONTAINERS_ERRORS.add([kind, "PostStartHookError"]);
                        let message = self.begun_hooks.failed_post_start(id).unwrap_or_default();
                        self.start_failures.insert(name.clone(), StartFailure::new("PostStartHookError", message));
                    }
                    let before = self.retries.succeeded(&step);
                    self.done.push((action.clone(), before));
                }
                Err(failure) => {
                    debug!(?step, %failure, "step failed");
                    self.is_unsure = true;
                    let retry_at = failure.retry_at;
                    if let Action::Resize(resize) = action {
                        self.resizing.carried_out(&self.context, wish, resize, Err(&failure));
                    }
                    if let Some(name) = retries::held_up_by(action, actions) {
                        self.start_failures.insert(name.to_owned(), failure);
                    }
                    self.failed(step, retry_at);
                }
            }
        }
        // Whatever happened, the next pass reads it; what failed waits its time.
        Outcome::Again
    }

    /// An action that is due again, right after it was done, did nothing, whatever was said:
    /// a runtime whose shim was killed answers so for a while. It waits like one that failed.
    fn hold_what_had_no_effect(&mut self, plan: &Plan) {
        for (action, before) in std::mem::take(&mut self.done) {
            if plan.actions.contains(&action) {
                debug!(?action, "had no effect, will retry");
                self.retries.failed_after_all(Step::of(&action), before);
            }
        }
    }

    /// Notes a failure and says when there is something to do next.
    fn failed(&mut self, step: Step, retry_at: Option<Instant>) -> Outcome {
        Outcome::Idle { until: Some(self.retries.failed(step, retry_at)) }
    }

    fn look_again(&self, wish: &Desired, plan: &Plan) -> Option<Instant> {
        let now = self.context.clock.now();
        let is_kept_up = self.stage == Stage::Syncing && self.prepared;
        let refresh = upkeep::next_refresh(&self.context, &self.uid, &self.retries).filter(|_| is_kept_up);
        // A moment more, so as not to come too soon.
        let deadline = self.active_left(wish).filter(|_| self.stage == Stage::Syncing);
        let deadline = deadline.map(|left| now + left + Duration::from_millis(1));
        self.retries.next().into_iter().chain(plan.look_again()).chain(refresh).chain(deadline).min()
    }

    async fn keep_up(&mut self, wish: &Desired, runtime: &PodRuntime) {
        if self.prepared {
            upkeep::refresh_volumes(&self.context, wish, &mut self.retries).await;
        }
        self.log_links.make(&self.context, wish, runtime, &mut self.retries).await;
    }

    /// A start that was taken for failed may have had its effect: what follows a start follows now.
    fn follow_late_starts(&mut self, wish: &Desired, runtime: &PodRuntime) {
        let (context, begun_hooks) = (&self.context, &self.begun_hooks);
        let round = Round { context, uid: &self.uid, wish, runtime, begun_hooks, stopping_since: None };
        for name in hooks::begin_late_post_starts(&round) {
            self.start_failures.remove(&name);
            self.retries.succeeded(&Step::Container(name));
        }
    }

    /// A call that was given up made something after all, and with it the pod's cgroup.
    fn is_unclean(&self, runtime: &PodRuntime, plan: &Plan) -> bool {
        let stops = |action: &Action| matches!(action, Action::StopContainer { .. } | Action::StopSandbox { .. });
        let is_as_it_was = self.clean_with.as_ref().is_some_and(|clean| !runtime.has_more_than(clean));
        !is_as_it_was && !plan.actions.iter().any(stops)
    }

    async fn clean(&mut self, runtime: &Arc<PodRuntime>) -> Outcome {
        if let Some(until) = self.retries.waits_for(&Step::Clean) {
            return Outcome::Idle { until: Some(until) };
        }
        match execute::clean(&self.context, &self.uid).await {
            Ok(()) => {
                self.clean_with = Some(runtime.clone());
                match self.stage {
                    // A later life of what was given up: what else failed waits on.
                    Stage::Ended => drop(self.retries.succeeded(&Step::Clean)),
                    Stage::Syncing | Stage::Stopping | Stage::Cleaning => self.advance(),
                }
                Outcome::Again
            }
            Err(error) => {
                warn!(%error, "pod not cleaned up yet, will retry");
                self.failed(Step::Clean, None)
            }
        }
    }

    async fn take_leave(&mut self, wish: &Desired) -> Outcome {
        if let Some(until) = self.retries.waits_for(&Step::Clean) {
            return Outcome::Idle { until: Some(until) };
        }
        execute::tell_the_end(&self.context, &self.uid, wish).await;
        // That may have taken long, and the event of a late effect may have been lost: what is left
        // here is asked once more.
        if std::mem::take(&mut self.is_unsure) {
            self.context.pleg.mark_stale(&self.uid);
            return Outcome::Again;
        }
        match execute::take_leave(&self.context, &self.uid, wish).await {
            Ok(()) => {
                info!("pod is gone");
                Outcome::Gone
            }
            Err(error) => {
                warn!(%error, "pod not removed yet, will retry");
                self.failed(Step::Clean, None)
            }
        }
    }

    /// The answer is the pod's true phase, if anything can be said of it.
    fn publish(&mut self, wish: &Desired, runtime: &PodRuntime, plan: &Plan) -> Option<Phase> {
        // Of a pod whose spec is lost nothing can be said; of one whose containers are being
        // removed, everything was.
        let orphaned = wish.stop.is_some_and(|stop| stop.cause == StopCause::Orphaned);
        // A static pod may have ended before there was anybody to be told.
        let is_told = self.reporter.has_told() || wish.stop.is_some();
        if orphaned || (self.stage == Stage::Ended && is_told) {
            return None;
        }
        let mut standings = self.probes.standings();
        self.begun_hooks.leave_out_stopped(&mut standings);
        let resize = match self.stage {
            Stage::Syncing => self.resizing.report(),
            Stage::Stopping | Stage::Cleaning | Stage::Ended => status::Resize::default(),
        };
        let progress = Progress {
            stage: self.stage,
            failures: &self.start_failures,
            verdict: self.verdict.as_ref(),
            standings: &standings,
            resize: &resize,
            cgroup: self.resizing.pod_cgroup(),
        };
        Some(self.reporter.publish(&self.context, wish, runtime, plan, &progress))
    }
}

pub fn is_terminal(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}
