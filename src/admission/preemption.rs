//! Which pods have to go so that a critical one can start.

use std::fmt;

use k8s_openapi::api::core::v1::Pod;

use super::fit::{Figures, Shortage, requests};
use super::is_critical;
use super::judge::Taken;
use crate::pod::qos::{self, QosClass};
use crate::pod::{PodUid, Source};

/// Not even all pods that could go would be enough.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources: {0}")]
pub(super) struct Unmet(Needs);

/// What is missing yet, by resource. Nothing in it is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Needs(Figures);

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (resource, missing) in &self.0 {
            write!(f, "(res: {resource}, q: {missing}), ")?;
        }
        f.write_str("]")
    }
}

impl Needs {
    fn without<'a>(&self, pods: impl IntoIterator<Item = &'a Candidate<'a>>) -> Needs {
        let mut left = self.clone();
        for pod in pods {
            for (resource, missing) in &mut left.0 {
                *missing = missing.saturating_sub(pod.request(resource));
            }
        }
        left.0.retain(|_, missing| *missing > 0);
        left
    }

    /// How much of the need would be left without this pod: for each resource the square of
    /// the part that is.
    #[expect(clippy::cast_precision_loss, reason = "only the order of such figures counts")]
    fn distance(&self, pod: &Candidate<'_>) -> f64 {
        let parts = self.0.iter().map(|(resource, missing)| {
            let left = missing.saturating_sub(pod.request(resource)).max(0);
            (left as f64 / *missing as f64).powi(2)
        });
        parts.sum()
    }
}

struct Candidate<'a> {
    uid: &'a PodUid,
    class: QosClass,
    requests: Figures,
}

impl Candidate<'_> {
    fn request(&self, resource: &str) -> i64 {
        self.requests.get(resource).copied().unwrap_or(0)
    }

    /// Of two that serve as well, the one that asks for less goes.
    fn size(&self) -> (i64, i64) {
        (self.request("memory"), self.request("cpu"))
    }
}

/// Guaranteed pods are looked at first, as if all others were gone, so that none of them goes
/// without need; then burstable ones in the same way.
pub(super) fn victims(
    pod: &Pod,
    source: Source,
    taken: &[Taken<'_>],
    shortages: &[Shortage],
) -> Result<Vec<PodUid>, Unmet> {
    let needs = Needs(shortages.iter().map(|short| (short.resource.clone(), short.missing())).collect());
    let candidates: Vec<Candidate<'_>> = taken
        .iter()
        .filter(|taken| gives_way(pod, source, taken))
        .map(|taken| Candidate { uid: taken.uid, class: qos::class(taken.pod), requests: requests(taken.pod) })
        .collect();
    let unmet = needs.without(&candidates);
    if !unmet.0.is_empty() {
        return Err(Unmet(unmet));
    }
    let of = |class: QosClass| candidates.iter().filter(move |candidate| candidate.class == class).collect::<Vec<_>>();
    let (best_effort, burstable, guaranteed) =
        (of(QosClass::BestEffort), of(QosClass::Burstable), of(QosClass::Guaranteed));
    let mut chosen = nearest(guaranteed, needs.without(best_effort.iter().chain(&burstable).copied()))?;
    chosen.extend(nearest(burstable, needs.without(best_effort.iter().chain(&chosen).copied()))?);
    chosen.extend(nearest(best_effort, needs.without(chosen.iter().copied()))?);
    Ok(chosen.into_iter().map(|candidate| candidate.uid.clone()).collect())
}

/// Takes the pod that leaves least to be found, again and again, until nothing is missing.
fn nearest<'a>(mut pods: Vec<&'a Candidate<'a>>, mut needs: Needs) -> Result<Vec<&'a Candidate<'a>>, Unmet> {
    let mut chosen = Vec::new();
    while !needs.0.is_empty() {
        let order = |a: &&Candidate<'_>, b: &&Candidate<'_>| {
            needs.distance(a).total_cmp(&needs.distance(b)).then_with(|| a.size().cmp(&b.size()))
        };
        let best = pods.iter().enumerate().min_by(|(_, a), (_, b)| order(a, b)).map(|(index, _)| index);
        let Some(best) = best else { return Err(Unmet(needs)) };
        let pod = pods.remove(best);
        needs = needs.without([pod]);
        chosen.push(pod);
    }
    Ok(chosen)
}

fn gives_way(pod: &Pod, source: Source, taken: &Taken<'_>) -> bool {
    let priority = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.priority);
    (is_critical(pod, source) && !is_critical(taken.pod, taken.source))
        || matches!((priority(pod), priority(taken.pod)), (Some(own), Some(other)) if own > other)
}
