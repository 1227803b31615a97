//! Ports of the node that pods take for themselves.

use k8s_openapi::api::core::v1::Pod;

use crate::pod::containers::{Role, workload_containers};

const ANY: &str = "0.0.0.0";

#[derive(Clone, Debug, PartialEq, Eq)]
struct HostPort {
    ip: String,
    protocol: String,
    port: i32,
}

impl HostPort {
    /// The same port of one protocol, on addresses that overlap.
    fn conflicts(&self, other: &HostPort) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == ANY || other.ip == ANY)
    }
}

/// Those of containers that run together: ordinary init containers have ended by then.
fn host_ports(pod: &Pod) -> impl Iterator<Item = HostPort> {
    let lasting = workload_containers(pod).filter(|(role, _)| *role != Role::Init);
    lasting.flat_map(|(_, container)| container.ports.iter().flatten()).filter_map(|port| {
        let or = |text: &Option<String>, default: &str| {
            text.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| default.to_owned())
        };
        Some(HostPort {
            ip: or(&port.host_ip, ANY),
            protocol: or(&port.protocol, "TCP"),
            port: port.host_port.filter(|port| *port > 0)?,
        })
    })
}

/// Whether a port the pod wants belongs to one of the others.
pub(super) fn are_taken<'a>(pod: &Pod, others: impl Iterator<Item = &'a Pod>) -> bool {
    let wanted: Vec<HostPort> = host_ports(pod).collect();
    if wanted.is_empty() {
        return false;
    }
    others.flat_map(host_ports).any(|taken| wanted.iter().any(|wanted| wanted.conflicts(&taken)))
}
