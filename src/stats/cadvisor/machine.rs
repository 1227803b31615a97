//! What the machine is, and what would be cAdvisor's own version.

use super::Context;
use crate::metrics::text::{Kind, Page, labels};

pub fn write(page: &mut Page, context: &Context<'_>) {
    // Its ids are labels of all that is told of it.
    let Some(facts) = context.facts else { return };
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
    let (cores, sockets) = (context.topology.map(|found| found.cores), context.topology.map(|found| found.sockets));
    let of_machine = [
        ("machine_cpu_cores", "CPUs, as the kernel counts them", Some(f64::from(facts.cpus))),
        ("machine_cpu_physical_cores", "Cores", cores.map(f64::from)),
        ("machine_cpu_sockets", "Sockets", sockets.map(f64::from)),
        ("machine_memory_bytes", "Memory", Some(facts.memory_bytes as f64)),
        ("machine_swap_bytes", "Swap", Some(facts.swap_bytes as f64)),
    ];
    for (name, help, value) in of_machine {
        if let Some(value) = value {
            page.family(name, Kind::Gauge, help).sample_of(&ids, &[], value, None);
        }
    }
}
