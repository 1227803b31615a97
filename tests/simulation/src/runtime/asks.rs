//! Probes and hooks, from the side of the containers: who is asked, what is answered, and what
//! may be concluded from the answers.
//!
//! The record holds every answer that the agent was given, so it knows when a threshold is met
//! as the agent has to know it.

use std::net::IpAddr;
use std::time::Duration;

use ferrolet::cri::{ContainerId, ContainerState, CriError, Executed, Result};
use tokio::time::{Instant, sleep, timeout};

use super::stops::HookRun;
use super::{CALL_DEADLINE, SIDECAR_PREFIX, SimRuntime, State, is_work};
use crate::faults::Fate;
use crate::invariants::Invariant;
use crate::programs::{Ask, Deed, Illness, at_port};

/// The ports of the first sidecar are those of this container.
pub const SIDECAR_SLOT: u16 = 50;
/// After so long a connection over which nothing comes is given up by both sides.
pub const BROKEN_AFTER: Duration = Duration::from_secs(30);
/// So soon a hook notices that its container has ended.
const NOTICE_EVERY: Duration = Duration::from_millis(500);

/// What the readiness probe of one instance decided, as far as the agent was given answers.
#[derive(Default)]
pub(super) struct Decisions {
    /// In turn; at first it is not ready.
    all: Vec<bool>,
    /// How far the API was told of them.
    told: usize,
}

impl Decisions {
    fn note(&mut self, ready: bool) {
        if self.all.last().copied().unwrap_or(false) != ready {
            self.all.push(ready);
        }
    }

    /// Whether this may be told now: it was decided, and not before what was told last.
    fn tell(&mut self, ready: bool) -> bool {
        if self.told == 0 && !ready {
            return true;
        }
        let from = self.told.saturating_sub(1);
        let found = self.all[from..].iter().position(|decided| *decided == ready);
        self.told = found.map_or(self.told, |at| from + at + 1);
        found.is_some()
    }
}

/// A question on its way. Dropped before it is answered it was a silence, which a caller who
/// waited long enough takes for a failure.
pub struct Asked {
    runtime: SimRuntime,
    id: ContainerId,
    ask: Ask,
    begun: Instant,
    /// The caller keeps the time, not the runtime.
    timeout: Option<Duration>,
    is_over: bool,
}

impl Asked {
    pub fn is_hook(&self) -> bool {
        self.ask.is_hook()
    }

    /// What the container says, after as long as it takes; `None` if it lets nobody in.
    pub async fn answer(&mut self) -> Option<bool> {
        let Some(lasted) = self.runtime.lasted(&self.id) else {
            self.fail();
            return None;
        };
        let manners = self.runtime.state().manners.get(&self.id).cloned().unwrap_or_default();
        if self.ask.is_hook() {
            let hook = *manners.hook(self.ask)?;
            let lasts = if hook.deed == Deed::NeverReturns { Duration::MAX } else { hook.lasts };
            let is_done = self.runtime.runs_for(&self.id, lasts).await && hook.deed == Deed::Succeeds;
            self.end(is_done);
            return is_done.then_some(true);
        }
        let exam = *manners.exam(self.ask)?;
        let is_well = exam.health.is_well_after(lasted);
        if !is_well && exam.illness == Illness::Hangs {
            std::future::pending::<()>().await;
        }
        self.end(is_well);
        (is_well || exam.illness == Illness::SaysNo).then_some(is_well)
    }

    /// The agent has to take it for a failure.
    pub fn fail(&mut self) {
        self.end(false);
    }

    /// A hook has failed; of a probe nothing was learnt.
    fn give_up(&mut self) {
        if self.ask.is_hook() {
            self.end(false);
        }
        self.is_over = true;
    }

    fn end(&mut self, is_good: bool) {
        self.is_over = true;
        let mut state = self.runtime.state();
        if self.ask.is_hook() {
            state.end_hook(&self.id, self.ask, is_good);
        } else {
            state.note(&self.id, self.ask, is_good);
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.is_over && self.timeout.is_some_and(|timeout| self.begun.elapsed() >= timeout) {
            self.end(false);
        } else if !self.is_over && self.ask == Ask::PostStart {
            // Given up, for a stop: nobody waits for it any more.
            if let Some(run) = self.runtime.state().hooks.get_mut(&(self.id.clone(), self.ask)) {
                run.ended.get_or_insert_with(Instant::now);
            }
        }
    }
}

impl State {
    /// The agent was given an answer to a probe.
    fn note(&mut self, id: &ContainerId, ask: Ask, is_good: bool) {
        let Some(exam) = self.manners.get(id).and_then(|manners| manners.exam(ask)).copied() else { return };
        let (last, count) = self.in_a_row.entry((id.clone(), ask)).or_insert((is_good, 0));
        *count = if *last == is_good { *count + 1 } else { 1 };
        *last = is_good;
        let needed = if is_good { exam.successes } else { exam.failures };
        if *count < needed {
            return;
        }
        match (ask, is_good) {
            (Ask::Readiness, ready) => self.readiness.entry(id.clone()).or_default().note(ready),
            (Ask::Startup, true) => {
                self.started.insert(id.clone());
            }
            (Ask::Startup | Ask::Liveness, false) => self.give_up(id, ask),
            _ => {}
        }
    }

    /// From now on the agent may stop this instance.
    fn give_up(&mut self, id: &ContainerId, ask: Ask) {
        self.given_up.entry(id.clone()).or_default().insert(ask);
        if let Some(instance) = self.containers.get(id) {
            self.hit_pods.insert(instance.pod_uid.clone());
        }
    }

    fn end_hook(&mut self, id: &ContainerId, ask: Ask, is_good: bool) {
        if let Some(run) = self.hooks.get_mut(&(id.clone(), ask)) {
            run.ended = Some(Instant::now());
        }
        if ask == Ask::PostStart && !is_good {
            self.give_up(id, ask);
        }
    }
}

impl SimRuntime {
    /// Who listens at this address, or did.
    pub fn reach(&self, ip: IpAddr, port: u16) -> Option<Asked> {
        let (slot, ask) = at_port(port)?;
        let name = match slot.checked_sub(SIDECAR_SLOT) {
            Some(index) => format!("{SIDECAR_PREFIX}{index}"),
            None => format!("c{slot}"),
        };
        let (id, timeout) = {
            let state = self.state();
            let home = state.sandboxes.values().find(|sandbox| sandbox.ips.contains(&ip))?;
            // Where one has ended nobody listens, and that is its answer.
            let of_name = state.containers.values().map(|instance| &instance.container).filter(|container| {
                container.sandbox_id == home.id && container.name == name && container.state != ContainerState::Created
            });
            let newest = of_name.max_by_key(|container| (container.is_running(), container.attempt))?;
            let id = newest.id.clone();
            let timeout = state.manners.get(&id).and_then(|manners| Some(manners.exam(ask)?.timeout));
            (id, timeout)
        };
        Some(self.ask(&id, ask, timeout))
    }

    fn ask(&self, id: &ContainerId, ask: Ask, timeout: Option<Duration>) -> Asked {
        let begun = Instant::now();
        if ask.is_hook() {
            let mut state = self.state();
            let run = HookRun { life: state.life, begun, ended: None };
            let before = state.hooks.insert((id.clone(), ask), run);
            if before.is_some_and(|before| before.life == state.life || ask == Ask::PostStart) {
                self.world.violation(Invariant::HooksRunOnce, format!("{} of {id}", ask.word()));
            }
            self.world.log(|| format!("{} hook of {id} is called", ask.word()));
        }
        Asked { runtime: self.clone(), id: id.clone(), ask, begun, timeout, is_over: false }
    }

    pub(super) async fn execute(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout_after: Option<Duration>,
    ) -> Result<Executed> {
        const CALL: &str = "ExecSync";
        let gone = || CriError::NotFound { call: CALL, message: format!("{id} does not run") };
        let away = |message: &str| CriError::Unavailable { call: CALL, message: message.into() };
        let Some(ask) = command.last().and_then(|word| Ask::from_word(word)) else { return Err(gone()) };
        let mut asked = self.ask(id, ask, None);
        let fate = self.world.fate().await;
        if self.state().down_until.is_some() {
            asked.give_up();
            return Err(away("connection refused"));
        }
        match fate {
            Fate::Good if !self.is_running(id) => {
                asked.give_up();
                Err(gone())
            }
            Fate::Good => {
                let answer = match timeout_after {
                    None => asked.answer().await,
                    Some(after) => match timeout(after, asked.answer()).await {
                        Ok(answer) => answer,
                        Err(_) => {
                            asked.fail();
                            return Ok(Executed::TimedOut);
                        }
                    },
                };
                let code = i32::from(answer != Some(true));
                Ok(Executed::Exited { code, output: Vec::new() })
            }
            Fate::Refused => {
                asked.give_up();
                Err(CriError::Failed { call: CALL, message: "simulated refusal".into() })
            }
            Fate::Lost => {
                asked.give_up();
                Err(away("simulated loss of the answer"))
            }
            Fate::Hangs { .. } => {
                let Some(after) = timeout_after else {
                    // Nobody keeps the time, but the connection does not live for ever.
                    sleep(BROKEN_AFTER).await;
                    asked.give_up();
                    return Err(away("connection lost"));
                };
                let after = after + CALL_DEADLINE;
                sleep(after).await;
                asked.fail();
                Err(CriError::Timeout { call: CALL, after })
            }
        }
    }

    /// How long an instance has been running; `None` if it does not.
    fn lasted(&self, id: &ContainerId) -> Option<Duration> {
        let state = self.state();
        let instance = state.containers.get(id).filter(|instance| instance.container.is_running())?;
        Some(instance.started.map_or(Duration::ZERO, |started| started.elapsed()))
    }

    /// Waits so long; false if the container ends before.
    async fn runs_for(&self, id: &ContainerId, time: Duration) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < time {
            if !self.is_running(id) {
                return false;
            }
            sleep(NOTICE_EVERY.min(time - begun.elapsed())).await;
        }
        true
    }

    /// An object of the API that was made anew knows nothing of what an earlier one was told.
    pub fn nothing_is_told(&self, id: &str) {
        if let Some(decisions) = self.state().readiness.get_mut(&ContainerId::new(id)) {
            decisions.told = 0;
        }
    }

    /// Whether the API may be told now that an instance is ready, or not; `before` is what it
    /// was told last of this instance.
    pub fn may_tell_ready(&self, id: &str, before: Option<bool>, ready: bool) -> bool {
        let mut state = self.state();
        let id = ContainerId::new(id);
        let runs = state.containers.get(&id).is_some_and(|instance| instance.container.is_running());
        let Some(decisions) = state.readiness.get_mut(&id) else { return true };
        // What was stopped is not ready, whatever its probe said before.
        if !ready && !runs {
            return true;
        }
        before == Some(ready) || decisions.tell(ready)
    }

    /// Whether the API may be told now that an instance has started.
    pub fn may_tell_started(&self, id: &str) -> bool {
        let state = self.state();
        let id = ContainerId::new(id);
        let has_probe = state.manners.get(&id).is_some_and(|manners| manners.exam(Ask::Startup).is_some());
        if !has_probe || state.started.contains(&id) {
            return true;
        }
        // What stops is not waited for, and a pod whose containers have ended stops.
        let Some(instance) = state.containers.get(&id) else { return true };
        let mut others = state.containers.values().filter(|other| other.pod_uid == instance.pod_uid);
        let is_served = |other: &super::Instance| other.container.is_running() && is_work(&other.container.name);
        state.touched.contains(&instance.pod_uid) || !others.any(is_served)
    }

    /// Whether some instance of a container was given up by this probe, or is gone with nobody to say
    /// how its probes fared.
    pub fn was_given_up(&self, pod_uid: &str, name: &str, ask: Ask) -> bool {
        let state = self.state();
        let is_it = |id: &ContainerId| state.owners.get(id).is_some_and(|(uid, of)| uid == pod_uid && of == name);
        let given_up = state.given_up.iter().filter(|(_, asks)| asks.contains(&ask)).map(|(id, _)| id);
        given_up.chain(state.forgotten.keys()).any(is_it)
    }
}

#[cfg(test)]
mod tests {
    use super::Decisions;

    #[test]
    fn only_what_was_decided_may_be_told_and_in_its_order() {
        let mut decisions = Decisions::default();
        assert!(decisions.tell(false));
        assert!(!decisions.tell(true));
        decisions.note(true);
        assert!(decisions.tell(true));
        assert!(!decisions.tell(false));
        decisions.note(false);
        decisions.note(true);
        assert!(decisions.tell(false));
        assert!(decisions.tell(true));
        assert!(!decisions.tell(false));
    }
}
