//! What comes next for the serving certificate: a pure decision.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;

use crate::clock::{CLOCKS_DIFFER, build};
use crate::identity::certificate::Certificate;
use crate::identity::request::{Alternatives, user};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// No address is known that the signer would take.
    AwaitAddresses,
    AwaitClock,
    Obtain,
    Rest {
        until: Timestamp,
    },
}

/// The names and addresses that the API server knows of this node.
pub fn wanted(node: Option<&Node>) -> Alternatives {
    let mut wanted = Alternatives::default();
    let addresses = node.and_then(|node| node.status.as_ref()?.addresses.as_deref());
    for address in addresses.unwrap_or_default() {
        // A host name may be written as an address, and the other way round it is none.
        match (address.type_.as_str(), address.address.parse()) {
            ("Hostname" | "InternalIP" | "ExternalIP", Ok(ip)) => drop(wanted.addresses.insert(ip)),
            ("Hostname" | "InternalDNS" | "ExternalDNS", Err(_)) => drop(wanted.names.insert(address.address.clone())),
            _ => {}
        }
    }
    wanted
}

pub fn next(
    now: Timestamp,
    built: Timestamp,
    node_name: &str,
    leaf: Option<&Certificate>,
    wanted: &Alternatives,
    allows_names_only: bool,
) -> Step {
    let is_early = leaf.is_some_and(|leaf| now + CLOCKS_DIFFER < leaf.not_before);
    if is_early || build::is_impossible(now, built) {
        return Step::AwaitClock;
    }
    if wanted.addresses.is_empty() && (wanted.names.is_empty() || !allows_names_only) {
        return Step::AwaitAddresses;
    }
    let fits = |leaf: &&Certificate| {
        leaf.common_name == user(node_name)
            && leaf.names.is_superset(&wanted.names)
            && leaf.addresses.is_superset(&wanted.addresses)
    };
    match leaf.filter(fits) {
        Some(leaf) if now < leaf.renew_at() => Step::Rest { until: leaf.renew_at() },
        _ => Step::Obtain,
    }
}
