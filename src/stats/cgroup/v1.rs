//! Version 1: each controller in a hierarchy of its own. Pure: contents of files in, figures out.

use super::{Cpu, DeviceIo, Faults, Memory, Throttling, v2};
use crate::stats::text::{lines, number, pairs, words};

/// Of `cpuacct.stat`, which counts in hundredths of a second on every Linux there is.
const NANOSECONDS_A_TICK: u64 = 10_000_000;

/// What the kernel calls no limit: the largest number of whole pages, whatever their size.
const UNLIMITED_FROM: u64 = 1 << 62;

/// Limits of bytes, as all files of version 1 show them.
pub fn bytes_limit(text: &[u8]) -> Option<u64> {
    number(text).filter(|bytes| *bytes < UNLIMITED_FROM)
}

/// Of `cpuacct.stat`.
pub fn shares_of_cpu(cpu: &mut Cpu, text: &[u8]) {
    for (key, ticks) in pairs(text) {
        let nanoseconds = Some(ticks.saturating_mul(NANOSECONDS_A_TICK));
        match key {
            b"user" => cpu.user_ns = nanoseconds,
            b"system" => cpu.system_ns = nanoseconds,
            _ => {}
        }
    }
}

/// Of `cpu.stat`, whose times are nanoseconds here.
pub fn throttling(text: &[u8]) -> Throttling {
    let mut found = Throttling::default();
    for (key, value) in pairs(text) {
        match key {
            b"nr_periods" => found.periods = value,
            b"nr_throttled" => found.throttled_periods = value,
            b"throttled_time" => found.throttled_ns = value,
            b"nr_bursts" => found.bursts = value,
            b"burst_time" => found.burst_ns = value,
            _ => {}
        }
    }
    found
}

/// Of `memory.stat`: the sums over the cgroup and all below it, which is what usage counts too.
pub fn memory(text: &[u8], usage: Option<u64>) -> Memory {
    let mut found = Memory { usage, ..Memory::default() };
    let mut own = Faults::default();
    for (key, value) in pairs(text) {
        let value = Some(value);
        match key {
            b"pgfault" => own.all = value,
            b"pgmajfault" => own.major = value,
            b"total_cache" => found.cache = value,
            b"total_rss" => found.rss = value,
            b"total_mapped_file" => found.mapped_file = value,
            b"total_swap" => found.swap = value,
            b"total_pgfault" => found.faults.all = value,
            b"total_pgmajfault" => found.faults.major = value,
            b"total_inactive_file" => found.inactive_file = value,
            b"total_active_file" => found.active_file = value,
            _ => {}
        }
    }
    found.own_faults = Some(own);
    found.with_working_set()
}

/// Of the two files of blkio: lines of `major:minor Operation count`, and a sum at the end.
pub fn devices(bytes: &[u8], operations: &[u8]) -> Vec<DeviceIo> {
    let mut found: Vec<DeviceIo> = Vec::new();
    for (device, operation, count) in counts(bytes) {
        let device = v2::device(&mut found, device);
        match operation {
            b"Read" => device.read_bytes = count,
            b"Write" => device.write_bytes = count,
            b"Discard" => device.discard_bytes = count,
            _ => {}
        }
    }
    for (device, operation, count) in counts(operations) {
        let device = v2::device(&mut found, device);
        match operation {
            b"Read" => device.reads = count,
            b"Write" => device.writes = count,
            _ => {}
        }
    }
    found
}

fn counts(text: &[u8]) -> impl Iterator<Item = ((u32, u32), &[u8], u64)> {
    lines(text).filter_map(|line| {
        let mut words = words(line);
        Some((v2::device_number(words.next()?)?, words.next()?, number(words.next()?)?))
    })
}
