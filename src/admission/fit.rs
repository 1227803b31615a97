//! Whether what a pod asks for is still there.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use super::Refusal;
use crate::config::Quantity;
use crate::pod::resources::{Amounts, pod_resources};

pub(super) const PODS: &str = "pods";

/// Amounts as they are compared and told: CPU in thousandths, all else in whole units.
pub(super) type Figures = BTreeMap<String, i64>;

/// A resource of which the node has less than the pod wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shortage {
    pub resource: String,
    pub requested: i64,
    pub used: i64,
    pub capacity: i64,
}

impl Shortage {
    /// What would have to be given back.
    pub fn missing(&self) -> i64 {
        self.requested - (self.capacity - self.used)
    }

    pub fn refusal(&self) -> Refusal {
        let Shortage { resource, requested, used, capacity } = self;
        Refusal::new(
            format!("OutOf{resource}"),
            format!(
                "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
            ),
        )
    }
}

/// What one pod takes of the node, itself among the pods.
pub(super) fn requests(pod: &Pod) -> Figures {
    let mut figures = figures(&pod_resources(pod).requests);
    figures.insert(PODS.to_owned(), 1);
    figures
}

pub(super) fn figures(amounts: &Amounts) -> Figures {
    let figure = |name: &str, amount: &Quantity| if name == "cpu" { amount.milli_value() } else { amount.value() };
    amounts.iter().map(|(name, amount)| (name.clone(), figure(name, amount))).collect()
}

pub(super) fn sum<'a>(pods: impl Iterator<Item = &'a Pod>) -> Figures {
    let mut sum = Figures::new();
    for (name, figure) in pods.flat_map(requests) {
        let total = sum.entry(name).or_default();
        *total = total.saturating_add(figure);
    }
    sum
}

/// The resources of which there is too little, the number of pods first, then those that
/// every node has.
pub(super) fn shortages(pod: &Pod, used: &Figures, allocatable: &Figures) -> Vec<Shortage> {
    let rank = |name: &str| ["ephemeral-storage", "memory", "cpu", PODS].iter().position(|usual| *usual == name);
    let mut wanted: Vec<_> = requests(pod).into_iter().collect();
    // A resource that no device plugin has announced is left to whoever else gives it out.
    wanted.retain(|(name, figure)| *figure > 0 && (!is_extended(name) || allocatable.contains_key(name)));
    wanted.sort_by_key(|(name, _)| std::cmp::Reverse(rank(name)));
    let short = wanted.into_iter().filter_map(|(resource, requested)| {
        let used = used.get(&resource).copied().unwrap_or(0);
        let capacity = allocatable.get(&resource).copied().unwrap_or(0);
        (requested > capacity.saturating_sub(used)).then_some(Shortage { resource, requested, used, capacity })
    });
    short.collect()
}

/// A resource with a name of somebody's own.
fn is_extended(name: &str) -> bool {
    match name.split_once('/') {
        Some((domain, _)) => domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io"),
        None => false,
    }
}
