//! Figures of the machine as a whole. Contents of files in, figures out; the thin part reads them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::cgroup::{Pressure, Stall};
use super::network::{self, Interface};
use super::reader::Reader;
use super::text::{kibibytes_of, lines, number, words};

/// What may change from one moment to the next.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    pub memory_bytes: Option<u64>,
    pub swap_bytes: Option<u64>,
    pub swap_free_bytes: Option<u64>,
    pub pressure: Option<Pressure>,
    pub boot_unix_seconds: Option<i64>,
    pub interfaces: Vec<Interface>,
    pub disks: Vec<Disk>,
    pub processes_max: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
}

/// What a block device has done since the machine was started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    pub major: u32,
    pub minor: u32,
    pub name: String,
    pub reads: u64,
    pub reads_merged: u64,
    pub sectors_read: u64,
    pub read_ms: u64,
    pub writes: u64,
    pub writes_merged: u64,
    pub sectors_written: u64,
    pub write_ms: u64,
    pub in_flight: u64,
    pub busy_ms: u64,
    pub weighted_ms: u64,
}

/// CPUs that are more than one for the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    pub cores: u32,
    pub sockets: u32,
}

pub fn read(proc: &Path, reader: &mut Reader) -> Machine {
    let mut found = Machine::default();
    if let Some(text) = reader.read(proc, "meminfo") {
        found.memory_bytes = kibibytes_of(text, "MemTotal");
        found.swap_bytes = kibibytes_of(text, "SwapTotal");
        found.swap_free_bytes = kibibytes_of(text, "SwapFree");
    }
    found.pressure = pressure(proc, reader);
    found.boot_unix_seconds = reader.read(proc, "stat").and_then(boot_time);
    found.interfaces = reader.read(proc, "net/dev").map(network::interfaces).unwrap_or_default();
    found.disks = reader.read(proc, "diskstats").map(disks).unwrap_or_default();
    let mut limit = |name: &str| reader.read(proc, name).and_then(number);
    let limits = [limit("sys/kernel/pid_max"), limit("sys/kernel/threads-max")];
    found.processes_max = limits.into_iter().flatten().min();
    found.tasks = reader.read(proc, "loadavg").and_then(tasks);
    found
}

/// The same for the whole machine, whatever its version of cgroups.
fn pressure(proc: &Path, reader: &mut Reader) -> Option<Pressure> {
    let mut of = |file| -> Option<Stall> { reader.read(proc, file).map(super::cgroup::stall) };
    Some(Pressure { cpu: of("pressure/cpu")?, memory: of("pressure/memory")?, io: of("pressure/io")? })
}

fn boot_time(stat: &[u8]) -> Option<i64> {
    let line = lines(stat).find_map(|line| line.strip_prefix(b"btime "))?;
    number(line).and_then(|seconds| i64::try_from(seconds).ok())
}

/// Of `loadavg`: the fourth word is `running/all`.
fn tasks(loadavg: &[u8]) -> Option<u64> {
    let word = words(loadavg).nth(3)?;
    let slash = word.iter().position(|byte| *byte == b'/')?;
    number(&word[slash + 1..])
}

fn disks(text: &[u8]) -> Vec<Disk> {
    lines(text).filter_map(disk).collect()
}

/// `major minor name` and figures, of which newer kernels have more.
fn disk(line: &[u8]) -> Option<Disk> {
    let mut words = words(line);
    let mut device = || words.next().and_then(number).and_then(|number| u32::try_from(number).ok());
    let (major, minor) = (device()?, device()?);
    let name = std::str::from_utf8(words.next()?).ok()?.to_owned();
    let mut next = || words.next().and_then(number);
    Some(Disk {
        major,
        minor,
        name,
        reads: next()?,
        reads_merged: next()?,
        sectors_read: next()?,
        read_ms: next()?,
        writes: next()?,
        writes_merged: next()?,
        sectors_written: next()?,
        write_ms: next()?,
        in_flight: next()?,
        busy_ms: next()?,
        weighted_ms: next()?,
    })
}

pub fn topology(sys: &Path, reader: &mut Reader) -> Topology {
    let (mut cores, mut sockets) = (BTreeSet::new(), BTreeSet::new());
    let cpus = sys.join("devices/system/cpu");
    for entry in fs::read_dir(&cpus).into_iter().flatten().flatten() {
        let topology = entry.path().join("topology");
        let mut id = |file| reader.read(&topology, file).and_then(number);
        if let (Some(socket), Some(core)) = (id("physical_package_id"), id("core_id")) {
            sockets.insert(socket);
            cores.insert((socket, core));
        }
    }
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    Topology { cores: count(cores.len()), sockets: count(sockets.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::network::Traffic;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("it is below the root")).expect("a directory");
        fs::write(path, text).expect("a file");
    }

    #[test]
    fn a_machine_is_read_off_its_files() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let proc = root.path();
        write(proc, "meminfo", "MemTotal: 2048 kB\nSwapTotal: 4 kB\nSwapFree: 3 kB\n");
        write(proc, "stat", "cpu  1 2 3\nbtime 1795342865\nprocesses 7\n");
        write(proc, "net/dev", "heading\nheading\neth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n");
        write(proc, "diskstats", " 254 0 vda 1 2 3 4 5 6 7 8 9 10 11 55 172 205 87018\n 7 0 loop0 1\ngarbage\n");
        write(proc, "sys/kernel/pid_max", "4194304\n");
        write(proc, "sys/kernel/threads-max", "192731\n");
        write(proc, "loadavg", "1.02 0.80 0.43 2/283 12345\n");
        for file in ["cpu", "memory", "io"] {
            write(proc, &format!("pressure/{file}"), "some avg10=1.74 avg60=2.59 avg300=15.18 total=7134\n");
        }
        let found = read(proc, &mut Reader::default());
        let disk = Disk {
            major: 254,
            minor: 0,
            name: "vda".into(),
            reads: 1,
            reads_merged: 2,
            sectors_read: 3,
            read_ms: 4,
            writes: 5,
            writes_merged: 6,
            sectors_written: 7,
            write_ms: 8,
            in_flight: 9,
            busy_ms: 10,
            weighted_ms: 11,
        };
        let interface = Interface {
            name: "eth0".into(),
            received: Traffic { bytes: 1, packets: 2, errors: 3, dropped: 4 },
            sent: Traffic { bytes: 5, packets: 6, errors: 7, dropped: 8 },
        };
        let pressure = found.pressure.clone().expect("there are pressure files");
        assert_eq!((pressure.io.some.avg300, pressure.io.full.total_us), (15.18, 0));
        let expected = Machine {
            memory_bytes: Some(2048 * 1024),
            swap_bytes: Some(4096),
            swap_free_bytes: Some(3072),
            pressure: Some(pressure),
            boot_unix_seconds: Some(1_795_342_865),
            interfaces: vec![interface],
            disks: vec![disk],
            processes_max: Some(192_731),
            tasks: Some(283),
        };
        assert_eq!(found, expected);
        assert_eq!(read(&proc.join("none"), &mut Reader::default()), Machine::default());
    }

    #[test]
    fn threads_of_one_core_are_one_core() {
        let root = tempfile::tempdir().expect("a temporary directory");
        for (cpu, socket, core) in [(0, 0, 0), (1, 0, 0), (2, 0, 1), (3, 1, 0)] {
            let topology = format!("devices/system/cpu/cpu{cpu}/topology");
            write(root.path(), &format!("{topology}/physical_package_id"), &format!("{socket}\n"));
            write(root.path(), &format!("{topology}/core_id"), &format!("{core}\n"));
        }
        write(root.path(), "devices/system/cpu/cpufreq/policy", "x");
        let found = topology(root.path(), &mut Reader::default());
        assert_eq!(found, Topology { cores: 3, sockets: 2 });
    }
}
