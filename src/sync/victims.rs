//! How long pods may take to end for others before somebody is told.

use std::collections::BTreeMap;
use std::mem::take;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::{Instant, sleep_until};

use crate::pod::{self, PodUid};

/// Upstream's figure, for graces that leave the runtime no time.
const PATIENCE_MIN: Duration = Duration::from_secs(10);

/// When those that are to end for others are late.
#[derive(Default)]
pub struct Victims {
    late_at: BTreeMap<PodUid, Instant>,
}

impl Victims {
    /// To be called when a pod is told to end under its own grace.
    pub fn watch(&mut self, uid: &PodUid, pod: &Pod, now: Instant) {
        // Beyond what a clock can show nobody is late.
        if let Some(late_at) = now.checked_add(patience(pod)) {
            self.late_at.insert(uid.clone(), late_at);
        }
    }

    pub async fn one_is_late(&self) {
        match self.late_at.values().min() {
            Some(at) => sleep_until(*at).await,
            None => std::future::pending().await,
        }
    }

    /// Those whose time is over, each once, whether or not they have ended.
    pub fn take_late(&mut self, now: Instant) -> Vec<PodUid> {
        let (late, others): (BTreeMap<_, _>, _) = take(&mut self.late_at).into_iter().partition(|(_, at)| *at <= now);
        self.late_at = others;
        late.into_keys().collect()
    }
}

fn patience(pod: &Pod) -> Duration {
    let grace = pod::spec(pod).termination_grace_period_seconds.unwrap_or(0).max(0).unsigned_abs();
    Duration::from_secs(grace.saturating_add(grace / 2)).max(PATIENCE_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::pod_yaml;

    fn pod_with(grace: &str) -> Pod {
        pod_yaml(&format!("spec: {{containers: [], terminationGracePeriodSeconds: {grace}}}"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_victim_is_late_after_half_as_long_again_as_its_grace() {
        let began = Instant::now();
        let mut victims = Victims::default();
        for (uid, grace) in [("long", "30"), ("short", "2"), ("endless", "9223372036854775807")] {
            victims.watch(&PodUid::new(uid), &pod_with(grace), began);
        }
        for (uid, after) in [("short", 10), ("long", 45)] {
            victims.one_is_late().await;
            assert_eq!(began.elapsed().as_secs(), after);
            assert_eq!(victims.take_late(Instant::now()), [PodUid::new(uid)]);
        }
        assert_eq!(victims.take_late(Instant::now()), [], "told once");
    }
}
