//! Expectations: what a pod should be like, all at once, within a bound.

use std::future::IntoFuture;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::LocalBoxFuture;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};

use super::PodHandle;
use super::pods::container_status;
use crate::poll::{self, Look};

/// Far above what any node needs, so that only a wrong one or a stuck one takes it.
pub const WITHIN: Duration = Duration::from_secs(60);

type Holds = Box<dyn Fn(&Pod) -> bool>;

/// Goals for a pod; awaiting it waits until all hold in one look, and gives that pod.
#[must_use = "an expectation does nothing until it is awaited"]
pub struct Expect<'a> {
    pod: &'a PodHandle,
    goals: Vec<(String, Holds)>,
    container: String,
    within: Duration,
    phase: Option<&'static str>,
}

impl<'a> Expect<'a> {
    pub(super) fn of(pod: &'a PodHandle) -> Expect<'a> {
        Expect { pod, goals: Vec::new(), container: "main".to_owned(), within: WITHIN, phase: None }
    }

    pub fn within(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }

    /// The container that the goals after this one are about; `main` before.
    pub fn container(mut self, name: &str) -> Self {
        self.container = name.to_owned();
        self
    }

    pub fn ready(self) -> Self {
        self.condition("Ready", "True")
    }

    pub fn condition(self, kind: &'static str, value: &'static str) -> Self {
        self.that(format!("condition {kind}={value}"), move |pod| has_condition(pod, kind, value))
    }

    /// No phase follows Succeeded or Failed, so the wrong one of them ends the wait.
    pub fn phase(mut self, phase: &'static str) -> Self {
        self.phase = Some(phase);
        self.that(format!("phase {phase}"), move |pod| phase_of(pod) == phase)
    }

    /// Succeeded or failed.
    pub fn ended(self) -> Self {
        self.that("end", |pod| matches!(phase_of(pod), "Succeeded" | "Failed"))
    }

    pub fn running(self) -> Self {
        self.state("running", |state| state.running.is_some())
    }

    pub fn waiting(self, reason: &'static str) -> Self {
        self.state(format!("waiting for {reason}"), move |state| {
            state.waiting.as_ref().is_some_and(|it| it.reason.as_deref() == Some(reason))
        })
    }

    pub fn exit_code(self, code: i32) -> Self {
        self.state(format!("exit code {code}"), move |state| {
            state.terminated.as_ref().is_some_and(|it| it.exit_code == code)
        })
    }

    pub fn terminated(self, reason: &'static str) -> Self {
        self.state(format!("terminated by {reason}"), move |state| {
            state.terminated.as_ref().is_some_and(|it| it.reason.as_deref() == Some(reason))
        })
    }

    pub fn restarts(self, at_least: i32) -> Self {
        self.status(format!("{at_least} restarts"), move |status| status.restart_count >= at_least)
    }

    /// A goal about the state of the container.
    pub fn state(self, text: impl Into<String>, holds: impl Fn(&ContainerState) -> bool + 'static) -> Self {
        self.status(text, move |status| status.state.as_ref().is_some_and(&holds))
    }

    /// A goal about the status of the container.
    pub fn status(self, text: impl Into<String>, holds: impl Fn(&ContainerStatus) -> bool + 'static) -> Self {
        let container = self.container.clone();
        let text = format!("{container}: {}", text.into());
        self.that(text, move |pod| container_status(pod, &container).is_some_and(&holds))
    }

    /// Any goal.
    pub fn that(mut self, text: impl Into<String>, holds: impl Fn(&Pod) -> bool + 'static) -> Self {
        self.goals.push((text.into(), Box::new(holds)));
        self
    }

    async fn look(&self) -> Result<Look<Pod>> {
        let pod = self.pod.get().await?;
        if let (Some(wanted), "Succeeded" | "Failed") = (self.phase, phase_of(&pod)) {
            ensure!(phase_of(&pod) == wanted, "it will never be {wanted}; {}", summary(&pod));
        }
        let missing: Vec<&str> =
            self.goals.iter().filter(|(_, holds)| !holds(&pod)).map(|(text, _)| text.as_str()).collect();
        Ok(match missing.is_empty() {
            true => Look::Done(pod),
            false => Look::NotYet(format!("no {}; {}", missing.join(", no "), summary(&pod))),
        })
    }
}

impl<'a> IntoFuture for Expect<'a> {
    type Output = Result<Pod>;
    type IntoFuture = LocalBoxFuture<'a, Result<Pod>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let goal = format!("expectations of pod {}", self.pod.name);
            match poll::until(goal, self.within, async || self.look().await).await {
                Ok(pod) => Ok(pod),
                Err(error) => {
                    let events = self.pod.events().await.unwrap_or_default();
                    let mut told = String::new();
                    for event in events {
                        let reason = event.reason.unwrap_or_default();
                        told += &format!("\n  {reason}: {}", event.message.unwrap_or_default());
                    }
                    Err(anyhow::anyhow!("{error:#}\nevents:{told}"))
                }
            }
        })
    }
}

pub fn is_ready(pod: &Pod) -> bool {
    has_condition(pod, "Ready", "True")
}

fn has_condition(pod: &Pod, kind: &str, value: &str) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref());
    let mut conditions = conditions.unwrap_or_default().iter();
    conditions.any(|condition| condition.type_ == kind && condition.status == value)
}

fn phase_of(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("")
}

/// A pod's status in a few words, for the error of a wait that ran out.
pub fn summary(pod: &Pod) -> String {
    let Some(status) = &pod.status else {
        return "no status".to_owned();
    };
    let mut words = vec![format!("phase {}", phase_of(pod))];
    if let Some(reason) = &status.reason {
        words.push(format!("reason {reason} ({})", status.message.as_deref().unwrap_or("")));
    }
    for condition in status.conditions.iter().flatten().filter(|it| it.status != "True") {
        let reason = condition.reason.as_deref().unwrap_or("");
        words.push(format!("{}={} {reason}", condition.type_, condition.status));
    }
    for container in status.container_statuses.iter().flatten() {
        let state = serde_json::to_string(&container.state).unwrap_or_default();
        words.push(format!("{} ({} restarts) {state}", container.name, container.restart_count));
    }
    if pod.metadata.deletion_timestamp.is_some() {
        words.push("being deleted".to_owned());
    }
    words.join("; ")
}
