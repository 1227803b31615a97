//! The addresses under which this node is known.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Node, NodeAddress};

use super::config::NodeConfig;
use crate::config::NodeIp;

/// Why the node has no address of its own.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum AddressError {
    #[error("--node-ip: {0} is on no interface of this host")]
    NotOurs(IpAddr),
    #[error("no interface has an address that others can reach")]
    None,
}

/// The addresses to publish. `local` are those on interfaces, the default route's first;
/// `resolved` is what the node's name resolves to; `existing` what the API has.
///
/// An error comes with what can be said nevertheless.
pub(super) fn addresses(
    config: &NodeConfig,
    local: &[IpAddr],
    resolved: &[IpAddr],
    existing: &[NodeAddress],
) -> (Vec<NodeAddress>, Option<AddressError>) {
    let host_name = address("Hostname", &config.name);
    if config.external_cloud_provider {
        if !existing.is_empty() {
            return (existing.to_vec(), None);
        }
        if matches!(config.node_ip, NodeIp::Unset | NodeIp::PreferV4 | NodeIp::PreferV6) {
            return (vec![host_name], None);
        }
    }
    match own(config, local, resolved) {
        Ok(ips) => {
            let internal = ips.iter().map(|ip| address("InternalIP", &ip.to_string()));
            (internal.chain([host_name]).collect(), None)
        }
        Err(error) => (vec![host_name], Some(error)),
    }
}

fn own(config: &NodeConfig, local: &[IpAddr], resolved: &[IpAddr]) -> Result<Vec<IpAddr>, AddressError> {
    let given = |ip: IpAddr| {
        if local.contains(&ip) { Ok(ip) } else { Err(AddressError::NotOurs(ip)) }
    };
    let prefers_v6 = match config.node_ip {
        NodeIp::Single(ip) => return Ok(vec![given(ip)?]),
        NodeIp::Dual(first, second) => return Ok(vec![given(first)?, given(second)?]),
        NodeIp::Unset | NodeIp::PreferV4 => false,
        NodeIp::PreferV6 => true,
    };
    if let Ok(ip) = config.name.parse() {
        return Ok(vec![ip]);
    }
    let preferred = |ips: &mut dyn Iterator<Item = IpAddr>| {
        let ips: Vec<IpAddr> = ips.collect();
        ips.iter().find(|ip| ip.is_ipv6() == prefers_v6).or(ips.first()).copied()
    };
    let named = preferred(&mut resolved.iter().copied().filter(|ip| local.contains(ip)));
    let ip = named.or_else(|| preferred(&mut local.iter().copied()));
    ip.map(|ip| vec![ip]).ok_or(AddressError::None)
}

fn address(kind: &str, address: &str) -> NodeAddress {
    NodeAddress { type_: kind.to_owned(), address: address.to_owned() }
}

/// The addresses pods are told as their host's: internal ones, else external ones; the first
/// of them, and the first of the other family.
pub(super) fn host_ips(node: &Node) -> Vec<IpAddr> {
    let all = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let of = |kind: &'static str| {
        all.iter().filter(move |address| address.type_ == kind).filter_map(|address| address.address.parse().ok())
    };
    let ips: Vec<IpAddr> = of("InternalIP").chain(of("ExternalIP")).collect();
    let Some(first) = ips.first() else {
        return Vec::new();
    };
    let second = ips.iter().find(|ip| ip.is_ipv4() != first.is_ipv4());
    [Some(first), second].into_iter().flatten().copied().collect()
}
