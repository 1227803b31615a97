//! What is wished for a pod: the dispatcher writes it, into a watch channel, and the pod's worker
//! reads it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use crate::pod::{self, Source};
use crate::status::Verdict;
use crate::topology::Places;

/// What the API server fills in where a pod says nothing.
pub const GRACE_SECONDS_DEFAULT: i64 = 30;

/// The newest wish for a pod.
#[derive(Clone, Debug)]
pub struct Desired {
    pub pod: Arc<Pod>,
    pub source: Source,
    /// Never taken back once set; the grace only shrinks.
    pub stop: Option<Stop>,
    /// Never taken back once set.
    pub doom: Option<Doom>,
    /// Where its containers run, once the node has taken it.
    pub places: Arc<Places>,
}

/// A decision that the pod ends, while its source still has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doom {
    pub verdict: Verdict,
    /// In place of the pod's own grace.
    pub grace_seconds: Option<i64>,
}

impl Desired {
    /// How long the pod may take to end; `None` if it may go on.
    pub fn grace_seconds(&self) -> Option<i64> {
        let own = pod::spec(&self.pod).termination_grace_period_seconds.unwrap_or(GRACE_SECONDS_DEFAULT);
        let doomed = self.doom.as_ref().map(|doom| doom.grace_seconds.unwrap_or(own).max(1));
        self.stop.map(|stop| stop.grace_seconds).into_iter().chain(doomed).min()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    pub cause: StopCause,
    pub grace_seconds: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// The API object carries a deletion timestamp.
    Deleted,
    /// The source no longer has the pod.
    Removed,
    /// No source ever spoke of it in this life of the agent.
    Orphaned,
}

/// Waits until the pod is to stop, or to stop sooner than the pass under way believes. Every
/// other wish is still news when the pass is over: who waits for a value has seen those before.
pub async fn stop_wished(wishes: &watch::Receiver<Desired>, known: Option<i64>) {
    let mut wishes = wishes.clone();
    let sooner = |wish: &Desired| match (wish.grace_seconds(), known) {
        (Some(_), None) => true,
        (Some(now), Some(before)) => now < before,
        (None, _) => false,
    };
    if wishes.wait_for(sooner).await.is_err() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::pod::testing::yaml;

    #[test]
    fn a_wish_that_comes_in_the_middle_of_a_pass_is_news_after_it() {
        let pod = |image: &str| -> Arc<Pod> {
            Arc::new(yaml(&format!("{{spec: {{containers: [{{name: c, image: {image}}}]}}}}")))
        };
        let (sender, wishes) = watch::channel(Desired {
            pod: pod("a"),
            source: Source::Api,
            stop: None,
            doom: None,
            places: Arc::default(),
        });
        sender.send_modify(|wish| wish.pod = pod("b"));
        assert!(stop_wished(&wishes, None).now_or_never().is_none(), "the pass goes on");
        assert!(wishes.has_changed().expect("the sender lives"));
        let stop = Stop { cause: StopCause::Deleted, grace_seconds: 5 };
        sender.send_modify(|wish| wish.stop = Some(stop));
        assert!(stop_wished(&wishes, None).now_or_never().is_some());
        assert!(stop_wished(&wishes, Some(5)).now_or_never().is_none(), "it is known");
        assert!(stop_wished(&wishes, Some(6)).now_or_never().is_some(), "a shorter grace is not");
    }
}
