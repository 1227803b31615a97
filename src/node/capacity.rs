//! What the machine has, and what of it pods may have.

use std::collections::BTreeMap;

use super::config::NodeConfig;
use crate::config::{Quantity, Signal};
use crate::host::MachineFacts;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

const HUGE_PAGES: &str = "hugepages-";

/// More is reserved than there is.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("invalid Node Allocatable configuration: {resource}: {reserved} reserved of {capacity}")]
pub struct ReservationError {
    pub resource: String,
    pub reserved: Quantity,
    pub capacity: Quantity,
}

pub(super) fn capacity(facts: &MachineFacts, config: &NodeConfig) -> Amounts {
    let mut capacity = Amounts::new();
    let mut put = |name: &str, amount: Quantity| {
        capacity.insert(name.to_owned(), amount);
    };
    put("cpu", Quantity::milli(i64::from(facts.cpus) * 1000));
    put("memory", bytes(facts.memory_bytes));
    if config.local_storage_isolation {
        put("ephemeral-storage", bytes(facts.root_fs_bytes));
    }
    for (size, total) in &facts.hugepages {
        put(&format!("{HUGE_PAGES}{size}"), bytes(*total));
    }
    let pods = match config.pods_per_core {
        0 => config.max_pods,
        per_core => config.max_pods.min(per_core.saturating_mul(facts.cpus)),
    };
    put("pods", Quantity::milli(i64::from(pods) * 1000));
    capacity
}

/// What is left for pods; never less than nothing.
pub(super) fn allocatable(capacity: &Amounts, config: &NodeConfig) -> Amounts {
    let huge_pages = capacity
        .iter()
        .filter(|(name, _)| name.starts_with(HUGE_PAGES))
        .fold(Quantity::bytes(0), |sum, (_, amount)| sum + *amount);
    let left = |(name, amount): (&String, &Quantity)| {
        let mut left = *amount - reserved(name, *amount, config);
        // Huge pages are taken out of memory for good, whoever uses them.
        if name == "memory" {
            left = left - huge_pages;
        }
        (name.clone(), if left.is_negative() { Quantity::new(0, amount.notation()) } else { left })
    };
    capacity.iter().map(left).collect()
}

/// Refuses reservations that leave no machine to run pods on.
pub fn check_reservations(facts: &MachineFacts, config: &NodeConfig) -> Result<(), ReservationError> {
    for (resource, capacity) in capacity(facts, config) {
        let reserved = reserved(&resource, capacity, config);
        if (capacity - reserved).is_negative() {
            return Err(ReservationError { resource, reserved, capacity });
        }
    }
    Ok(())
}

fn reserved(resource: &str, capacity: Quantity, config: &NodeConfig) -> Quantity {
    let none = Quantity::new(0, capacity.notation());
    let of = |amounts: &BTreeMap<String, Quantity>| amounts.get(resource).copied().unwrap_or(none);
    let reserved = match (resource, config.reserved.cpus) {
        ("cpu", Some(cpus)) => Quantity::milli(i64::from(cpus) * 1000),
        _ => of(&config.reserved.system) + of(&config.reserved.kube),
    };
    let signal = match resource {
        "memory" => Signal::MemoryAvailable,
        "ephemeral-storage" => Signal::NodeFsAvailable,
        _ => return reserved,
    };
    let limit = config.reserved.eviction.get(&signal).map_or(0, |limit| limit.of(capacity.value()));
    reserved + Quantity::bytes(limit)
}

fn bytes(bytes: u64) -> Quantity {
    Quantity::bytes(i64::try_from(bytes).unwrap_or(i64::MAX))
}
