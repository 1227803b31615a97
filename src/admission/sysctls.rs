//! Sysctls a pod may set: those that stay in its own namespaces.

use k8s_openapi::api::core::v1::Pod;

use super::{AdmissionConfig, Refusal};
use crate::pod::spec;
use crate::pod::sysctls::dotted;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Namespace {
    Ipc,
    Net,
}

/// Sysctls that do no harm, with the first kernel that keeps each to a namespace.
const SAFE: [(&str, (u32, u32)); 12] = [
    ("kernel.shm_rmid_forced", (0, 0)),
    ("net.ipv4.ip_local_port_range", (0, 0)),
    ("net.ipv4.tcp_syncookies", (0, 0)),
    ("net.ipv4.ping_group_range", (0, 0)),
    ("net.ipv4.ip_unprivileged_port_start", (0, 0)),
    ("net.ipv4.ip_local_reserved_ports", (3, 16)),
    ("net.ipv4.tcp_keepalive_time", (4, 5)),
    ("net.ipv4.tcp_fin_timeout", (4, 6)),
    ("net.ipv4.tcp_keepalive_intvl", (4, 5)),
    ("net.ipv4.tcp_keepalive_probes", (4, 5)),
    ("net.ipv4.tcp_rmem", (4, 15)),
    ("net.ipv4.tcp_wmem", (4, 15)),
];

pub(super) fn check(config: &AdmissionConfig, pod: &Pod) -> Option<Refusal> {
    let spec = spec(pod);
    let sysctls = spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
    let forbidden = sysctls.map(|sysctl| dotted(&sysctl.name)).find_map(|name| {
        if !is_allowed(config, &name) {
            return Some(format!("\"{name}\" not allowlisted"));
        }
        let shared = match namespace(&name)? {
            Namespace::Ipc if spec.host_ipc == Some(true) => "IPC",
            Namespace::Net if spec.host_network == Some(true) => "Net",
            Namespace::Ipc | Namespace::Net => return None,
        };
        Some(format!("\"{name}\" not allowed with host {shared} enabled"))
    });
    forbidden.map(|what| Refusal::new("SysctlForbidden", format!("forbidden sysctl: {what}")))
}

fn is_allowed(config: &AdmissionConfig, name: &str) -> bool {
    let kernel = kernel(&config.kernel_version);
    let safe = SAFE.iter().any(|(safe, since)| *safe == name && kernel.is_none_or(|kernel| kernel >= *since));
    safe || config.allowed_unsafe_sysctls.iter().any(|pattern| match dotted(pattern).strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => dotted(pattern) == name,
    })
}

fn namespace(name: &str) -> Option<Namespace> {
    const IPC: [&str; 4] = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
    if name.starts_with("net.") {
        return Some(Namespace::Net);
    }
    IPC.iter().any(|prefix| name.starts_with(prefix)).then_some(Namespace::Ipc)
}

/// Major and minor version; of a name nobody can read it is taken to be new enough.
fn kernel(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(|sign: char| !sign.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}
