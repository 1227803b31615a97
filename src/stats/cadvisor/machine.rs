//! What the machine is, and what would be cAdvisor's own version.

use super::Context;
use crate::metrics::text::{Kind, Page, labels};

pub fn write(page: &mut Page, context: &Context<'_>) {
    let Context { facts, topology, .. } = context;
    let version = [
        ("cadvisorRevision", ""),
        ("cadvisorVersion", ""),
        ("dockerVersion", ""),
        ("kernelVersion", facts.kernel_version.as_str()),
        ("osVersion", facts.os_image.as_str()),
    ];
    page.family("cadvisor_version_info", Kind::Gauge, "Versions of kernel and system, as labels").sample(&version, 1.0);
    let ids =
        labels(&[("boot_id", &facts.boot_id), ("machine_id", &facts.machine_id), ("system_uuid", &facts.system_uuid)]);
    let of_machine = [
        ("machine_cpu_cores", "CPUs, as the kernel counts them", f64::from(facts.cpus)),
        ("machine_cpu_physical_cores", "Cores", f64::from(topology.cores)),
        ("machine_cpu_sockets", "Sockets", f64::from(topology.sockets)),
        ("machine_memory_bytes", "Memory", facts.memory_bytes as f64),
        ("machine_swap_bytes", "Swap", facts.swap_bytes as f64),
    ];
    for (name, help, value) in of_machine {
        page.family(name, Kind::Gauge, help).sample_of(&ids, &[], value, None);
    }
}
