//! Version 2: all in one directory. Pure: contents of files in, figures out.

use super::{Cpu, DeviceIo, Memory, Spec, Stall, Throttling, Waiting};
use crate::host::cgroup_math::weight_to_shares;
use crate::stats::text::{NANOSECONDS_A_MICROSECOND, decimal, limit, lines, number, pairs, value_of, words};

/// Of `cpu.stat`. The root has no quota, and so no line about throttling.
pub fn cpu(text: &[u8]) -> (Cpu, Option<Throttling>) {
    let mut cpu = Cpu::default();
    let mut throttling = Throttling::default();
    let mut is_throttled = false;
    for (key, value) in pairs(text) {
        let nanoseconds = value.saturating_mul(NANOSECONDS_A_MICROSECOND);
        match key {
            b"usage_usec" => cpu.usage_ns = Some(nanoseconds),
            b"user_usec" => cpu.user_ns = Some(nanoseconds),
            b"system_usec" => cpu.system_ns = Some(nanoseconds),
            b"nr_periods" => (throttling.periods, is_throttled) = (value, true),
            b"nr_throttled" => throttling.throttled_periods = value,
            b"throttled_usec" => throttling.throttled_ns = nanoseconds,
            b"nr_bursts" => throttling.bursts = value,
            b"burst_usec" => throttling.burst_ns = nanoseconds,
            _ => {}
        }
    }
    (cpu, is_throttled.then_some(throttling))
}

/// Of `memory.stat`. The root has no `memory.current`: its usage is what processes hold.
pub fn memory(text: &[u8], usage: Option<u64>) -> Memory {
    let mut found = Memory { usage, ..Memory::default() };
    for (key, value) in pairs(text) {
        let value = Some(value);
        match key {
            b"anon" => found.rss = value,
            b"file" => found.cache = value,
            b"kernel" => found.kernel = value,
            b"file_mapped" => found.mapped_file = value,
            b"inactive_file" => found.inactive_file = value,
            b"active_file" => found.active_file = value,
            b"pgfault" => found.faults.all = value,
            b"pgmajfault" => found.faults.major = value,
            _ => {}
        }
    }
    found.usage = found.usage.or_else(|| found.rss?.checked_add(found.cache?));
    found.with_working_set()
}

pub fn oom_kills(memory_events: &[u8]) -> Option<u64> {
    value_of(memory_events, "oom_kill")
}

/// Of `io.stat`: lines of `major:minor rbytes=1 wbytes=2 …`. Kernels of some years leave out the end
/// of the line of a device that has no figures: `7:0 8:0 rbytes=1 …` is about the last one named.
pub fn devices(text: &[u8]) -> Vec<DeviceIo> {
    let mut found = Vec::new();
    for line in lines(text) {
        let mut current = None;
        for word in words(line) {
            let Some(equals) = word.iter().position(|byte| *byte == b'=') else {
                current = device_number(word);
                continue;
            };
            if let (Some(current), Some(value)) = (current, number(&word[equals + 1..])) {
                enter(&mut found, current, &word[..equals], value);
            }
        }
    }
    found
}

fn enter(found: &mut Vec<DeviceIo>, number: (u32, u32), key: &[u8], value: u64) {
    let field: fn(&mut DeviceIo) -> &mut u64 = match key {
        b"rbytes" => |device| &mut device.read_bytes,
        b"wbytes" => |device| &mut device.write_bytes,
        b"rios" => |device| &mut device.reads,
        b"wios" => |device| &mut device.writes,
        b"dbytes" => |device| &mut device.discard_bytes,
        _ => return,
    };
    *field(device(found, number)) = value;
}

pub fn device_number(text: &[u8]) -> Option<(u32, u32)> {
    let colon = text.iter().position(|byte| *byte == b':')?;
    let part = |text: &[u8]| number(text).and_then(|number| u32::try_from(number).ok());
    Some((part(&text[..colon])?, part(&text[colon + 1..])?))
}

pub fn device(found: &mut Vec<DeviceIo>, (major, minor): (u32, u32)) -> &mut DeviceIo {
    let place = found.iter().position(|device| (device.major, device.minor) == (major, minor));
    let place = place.unwrap_or_else(|| {
        found.push(DeviceIo { major, minor, ..DeviceIo::default() });
        found.len() - 1
    });
    &mut found[place]
}

/// Of a pressure file. The `full` line of the CPU is missing on older kernels.
pub fn stall(text: &[u8]) -> Stall {
    let mut found = Stall::default();
    for line in lines(text) {
        let mut words = words(line);
        match words.next() {
            Some(b"some") => found.some = waiting(words),
            Some(b"full") => found.full = waiting(words),
            _ => {}
        }
    }
    found
}

fn waiting<'a>(words: impl Iterator<Item = &'a [u8]>) -> Waiting {
    let mut found = Waiting::default();
    for word in words {
        let Some(equals) = word.iter().position(|byte| *byte == b'=') else { continue };
        let (key, value) = (&word[..equals], &word[equals + 1..]);
        match key {
            b"avg10" => found.avg10 = decimal(value).unwrap_or(0.0),
            b"avg60" => found.avg60 = decimal(value).unwrap_or(0.0),
            b"avg300" => found.avg300 = decimal(value).unwrap_or(0.0),
            b"total" => found.total_us = number(value).unwrap_or(0),
            _ => {}
        }
    }
    found
}

/// Of `cpu.max`: quota, or `max`, and period.
pub fn quota(spec: &mut Spec, text: &[u8]) {
    let mut words = words(text.trim_ascii_end());
    spec.cpu_quota_us = words.next().and_then(limit).flatten();
    spec.cpu_period_us = words.next().and_then(number);
}

pub fn shares(weight: &[u8]) -> Option<u64> {
    number(weight).map(weight_to_shares)
}
