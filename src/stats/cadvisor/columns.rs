//! Families that have one sample for each cgroup, as a table.

use crate::metrics::text::Kind;
use crate::stats::cgroup::{Pressure, Throttling};
use crate::stats::survey::Cgroup;

/// Which time a sample carries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stamp {
    /// When it was read.
    Read,
    /// None: what it tells was decided before.
    None,
}

type Value = fn(&Cgroup) -> Option<f64>;

pub struct Column {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    pub more: &'static [(&'static str, &'static str)],
    pub stamp: Stamp,
    pub value: Value,
}

const fn counter(name: &'static str, help: &'static str, value: Value) -> Column {
    Column { name, kind: Kind::Counter, help, more: &[], stamp: Stamp::Read, value }
}

const fn gauge(name: &'static str, help: &'static str, value: Value) -> Column {
    Column { name, kind: Kind::Gauge, help, more: &[], stamp: Stamp::Read, value }
}

const fn set(name: &'static str, help: &'static str, value: Value) -> Column {
    Column { name, kind: Kind::Gauge, help, more: &[], stamp: Stamp::None, value }
}

fn count(value: Option<u64>) -> Option<f64> {
    value.map(|value| value as f64)
}

fn seconds(nanoseconds: Option<u64>) -> Option<f64> {
    nanoseconds.map(|nanoseconds| nanoseconds as f64 / 1e9)
}

/// Where there is no quota, nobody is throttled, and nothing is told of it.
fn throttling(cgroup: &Cgroup, value: fn(&Throttling) -> f64) -> Option<f64> {
    cgroup.spec.cpu_quota_us.and(cgroup.figures.throttling.as_ref()).map(value)
}

/// Pressure of the machine is the machine's, so the root has none here on version 1.
fn stalled(cgroup: &Cgroup, microseconds: fn(&Pressure) -> u64) -> Option<f64> {
    cgroup.figures.pressure.as_ref().map(|pressure| microseconds(pressure) as f64 / 1e6)
}

/// 0 is how no limit is told here.
fn limit(value: Option<u64>) -> Option<f64> {
    Some(count(value).unwrap_or(0.0))
}

pub const COLUMNS: &[Column] = &[
    Column {
        more: &[("cpu", "total")],
        ..counter("container_cpu_usage_seconds_total", "CPU time used", |it| seconds(it.figures.cpu.usage_ns))
    },
    counter("container_cpu_user_seconds_total", "CPU time used by programs", |it| seconds(it.figures.cpu.user_ns)),
    counter("container_cpu_system_seconds_total", "CPU time used by the kernel", |it| {
        seconds(it.figures.cpu.system_ns)
    }),
    counter("container_cpu_cfs_periods_total", "Periods in which a quota was enforced", |it| {
        throttling(it, |found| found.periods as f64)
    }),
    counter("container_cpu_cfs_throttled_periods_total", "Periods in which the quota was used up", |it| {
        throttling(it, |found| found.throttled_periods as f64)
    }),
    counter("container_cpu_cfs_throttled_seconds_total", "Time for which it was held back", |it| {
        throttling(it, |found| found.throttled_ns as f64 / 1e9)
    }),
    counter("container_cpu_cfs_burst_periods_total", "Periods with a burst above the quota", |it| {
        throttling(it, |found| found.bursts as f64)
    }),
    counter("container_cpu_cfs_burst_seconds_total", "Time used in bursts above the quota", |it| {
        throttling(it, |found| found.burst_ns as f64 / 1e9)
    }),
    gauge("container_memory_usage_bytes", "Memory in use, with the page cache", |it| count(it.figures.memory.usage)),
    gauge("container_memory_max_usage_bytes", "The most memory that was in use", |it| {
        count(it.figures.memory.usage_max)
    }),
    gauge("container_memory_working_set_bytes", "Memory that cannot be given up at once", |it| {
        count(it.figures.memory.working_set)
    }),
    gauge("container_memory_cache", "Page cache", |it| count(it.figures.memory.cache)),
    gauge("container_memory_rss", "Anonymous memory", |it| count(it.figures.memory.rss)),
    gauge("container_memory_mapped_file", "Files mapped into memory", |it| count(it.figures.memory.mapped_file)),
    gauge("container_memory_swap", "Memory that is in swap", |it| count(it.figures.memory.swap)),
    gauge("container_memory_kernel_usage", "Memory of the kernel", |it| count(it.figures.memory.kernel)),
    gauge("container_memory_total_active_file_bytes", "Page cache in use of late", |it| {
        count(it.figures.memory.active_file)
    }),
    gauge("container_memory_total_inactive_file_bytes", "Page cache nobody used of late", |it| {
        count(it.figures.memory.inactive_file)
    }),
    counter("container_memory_failcnt", "How often the memory limit was reached", |it| {
        count(it.figures.memory.limit_hits)
    }),
    counter("container_oom_events_total", "Processes killed for want of memory", |it| count(it.figures.oom_kills)),
    counter("container_pressure_cpu_stalled_seconds_total", "Time in which all waited for a CPU", |it| {
        stalled(it, |found| found.cpu.full.total_us)
    }),
    counter("container_pressure_cpu_waiting_seconds_total", "Time in which some waited for a CPU", |it| {
        stalled(it, |found| found.cpu.some.total_us)
    }),
    counter("container_pressure_memory_stalled_seconds_total", "Time in which all waited for memory", |it| {
        stalled(it, |found| found.memory.full.total_us)
    }),
    counter("container_pressure_memory_waiting_seconds_total", "Time in which some waited for memory", |it| {
        stalled(it, |found| found.memory.some.total_us)
    }),
    counter("container_pressure_io_stalled_seconds_total", "Time in which all waited for a device", |it| {
        stalled(it, |found| found.io.full.total_us)
    }),
    counter("container_pressure_io_waiting_seconds_total", "Time in which some waited for a device", |it| {
        stalled(it, |found| found.io.some.total_us)
    }),
    gauge("container_processes", "Processes", |it| count(it.processes)),
    gauge("container_file_descriptors", "Open file descriptors", |it| count(it.open.descriptors)),
    gauge("container_sockets", "Open sockets", |it| count(it.open.sockets)),
    Column {
        more: &[("ulimit", "max_open_files")],
        ..gauge("container_ulimits_soft", "Soft limits of the first process", |it| count(it.open.files_max))
    },
    gauge("container_threads", "Threads", |it| count(it.figures.threads)),
    gauge("container_threads_max", "How many threads there may be, 0 for any number", |it| {
        it.figures.threads.and(limit(it.spec.threads_max))
    }),
    set("container_start_time_seconds", "When the cgroup was made, in Unix time", |it| {
        it.created_unix_seconds.map(|seconds| seconds as f64)
    }),
    set("container_spec_cpu_period", "Period of the CPU quota in microseconds", |it| count(it.spec.cpu_period_us)),
    set("container_spec_cpu_quota", "CPU quota in microseconds", |it| count(it.spec.cpu_quota_us)),
    set("container_spec_cpu_shares", "CPU shares", |it| count(it.spec.cpu_shares)),
    set("container_spec_memory_limit_bytes", "Memory limit, 0 for none", |it| limit(it.spec.memory_limit)),
    set("container_spec_memory_reservation_limit_bytes", "Memory that is kept for it, 0 for none", |it| {
        limit(it.spec.memory_reservation)
    }),
    set("container_spec_memory_swap_limit_bytes", "Limit of swap, on version 1 with memory, 0 for none", |it| {
        limit(it.spec.memory_and_swap_limit.or(it.spec.swap_limit))
    }),
];
