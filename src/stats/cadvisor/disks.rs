//! What cgroups move to and from block devices, and what the machine's own disks have.

use super::{Context, Row};
use crate::metrics::text::{Family, Kind, Page};
use crate::stats::cgroup::DeviceIo;
use crate::stats::disks::FileSystem;
use crate::stats::machine::{Disk, Machine};
use crate::stats::survey::ROOT;

/// Hands a family to whoever takes the page.
type Tell<'t> = dyn FnMut(&mut dyn FnMut(&mut Page)) + 't;

/// What is told of the machine's own disks, as part of the root.
struct Node<'a> {
    root: &'a Row<'a>,
    machine: &'a Machine,
    file_systems: &'a [FileSystem],
    unix_millis: i64,
}

pub fn write(tell: &mut Tell<'_>, rows: &[Row<'_>], context: &Context<'_>) {
    let Some(survey) = context.survey else { return };
    let machine = &survey.machine;
    for (name, help, value) in OF_CGROUPS {
        tell(&mut |page| {
            let mut family = page.family(name, Kind::Counter, help);
            rows.iter().for_each(|row| of_devices(&mut family, *value, row, machine));
        });
    }
    tell(&mut |page| by_operation(page, rows, machine));
    let Some(root) = rows.iter().find(|row| row.cgroup.id == ROOT) else { return };
    let node = Node { root, machine, file_systems: &context.file_systems, unix_millis: context.unix_millis };
    for (name, help, value) in OF_FILE_SYSTEMS {
        tell(&mut |page| of_file_systems(&mut page.family(name, Kind::Gauge, help), *value, &node));
    }
    for (name, kind, help, value) in OF_DISKS {
        tell(&mut |page| of_disks(&mut page.family(name, *kind, help), *value, &node));
    }
    for (name, help, of_disk, of_device) in OF_BOTH {
        tell(&mut |page| {
            let mut family = page.family(name, Kind::Counter, help);
            of_disks(&mut family, *of_disk, &node);
            let others = rows.iter().filter(|row| row.cgroup.id != ROOT);
            others.for_each(|row| of_devices(&mut family, *of_device, row, machine));
        });
    }
}

type OfDevice = fn(&DeviceIo) -> u64;

const OF_CGROUPS: &[(&str, &str, OfDevice)] = &[
    ("container_fs_reads_bytes_total", "Bytes read from a device", |it| it.read_bytes),
    ("container_fs_writes_bytes_total", "Bytes written to a device", |it| it.write_bytes),
];

fn of_devices(family: &mut Family<'_>, value: OfDevice, row: &Row<'_>, machine: &Machine) {
    for device in &row.cgroup.figures.devices {
        let at = Some(row.cgroup.figures.unix_millis);
        let name = name_of(machine, device.major, device.minor);
        family.sample_of(&row.labels, &[("device", &name)], value(device) as f64, at);
    }
}

fn by_operation(page: &mut Page, rows: &[Row<'_>], machine: &Machine) {
    let mut family = page.family("container_blkio_device_usage_total", Kind::Counter, "Bytes moved by an operation");
    for row in rows {
        for device in &row.cgroup.figures.devices {
            let name = name_of(machine, device.major, device.minor);
            let (major, minor) = (device.major.to_string(), device.minor.to_string());
            let bytes = [("Read", device.read_bytes), ("Write", device.write_bytes), ("Discard", device.discard_bytes)];
            for (operation, bytes) in bytes {
                let more = [("device", &*name), ("major", &major), ("minor", &minor), ("operation", operation)];
                family.sample_of(&row.labels, &more, bytes as f64, Some(row.cgroup.figures.unix_millis));
            }
        }
    }
}

type OfFileSystem = fn(&FileSystem) -> u64;

const OF_FILE_SYSTEMS: &[(&str, &str, OfFileSystem)] = &[
    ("container_fs_inodes_free", "Inodes that are free", |it| it.inodes_free),
    ("container_fs_inodes_total", "Inodes there are", |it| it.inodes),
    ("container_fs_limit_bytes", "Size of a file system", |it| it.capacity),
    ("container_fs_usage_bytes", "Bytes in use on a file system", |it| it.used),
];

fn of_file_systems(family: &mut Family<'_>, value: OfFileSystem, node: &Node<'_>) {
    for file_system in node.file_systems {
        let (major, minor) = file_system.device;
        let device = name_of(node.machine, major, minor);
        family.sample_of(&node.root.labels, &[("device", &device)], value(file_system) as f64, Some(node.unix_millis));
    }
}

type OfDisk = fn(&Disk) -> f64;

const MILLISECONDS: f64 = 1e3;

const OF_DISKS: &[(&str, Kind, &str, OfDisk)] = &[
    ("container_fs_reads_merged_total", Kind::Counter, "Reads that were merged", |it| it.reads_merged as f64),
    ("container_fs_sector_reads_total", Kind::Counter, "Sectors read", |it| it.sectors_read as f64),
    ("container_fs_read_seconds_total", Kind::Counter, "Time spent reading", |it| it.read_ms as f64 / MILLISECONDS),
    ("container_fs_writes_merged_total", Kind::Counter, "Writes that were merged", |it| it.writes_merged as f64),
    ("container_fs_sector_writes_total", Kind::Counter, "Sectors written", |it| it.sectors_written as f64),
    ("container_fs_write_seconds_total", Kind::Counter, "Time spent writing", |it| it.write_ms as f64 / MILLISECONDS),
    ("container_fs_io_current", Kind::Gauge, "Requests under way", |it| it.in_flight as f64),
    ("container_fs_io_time_seconds_total", Kind::Counter, "Time in which it was busy", |it| {
        it.busy_ms as f64 / MILLISECONDS
    }),
    ("container_fs_io_time_weighted_seconds_total", Kind::Counter, "The same, for each request under way", |it| {
        it.weighted_ms as f64 / MILLISECONDS
    }),
];

/// Of the root the machine's disks tell, of the others what the kernel counts for each.
const OF_BOTH: &[(&str, &str, OfDisk, OfDevice)] = &[
    ("container_fs_reads_total", "Reads from a device", |it| it.reads as f64, |it| it.reads),
    ("container_fs_writes_total", "Writes to a device", |it| it.writes as f64, |it| it.writes),
];

fn of_disks(family: &mut Family<'_>, value: OfDisk, node: &Node<'_>) {
    let is_used = |disk: &&Disk| node.file_systems.iter().any(|fs| fs.device == (disk.major, disk.minor));
    for disk in node.machine.disks.iter().filter(is_used) {
        let device = format!("/dev/{}", disk.name);
        family.sample_of(&node.root.labels, &[("device", &device)], value(disk), Some(node.unix_millis));
    }
}

/// Of a device without a disk, such as that of a file system of several, its number.
fn name_of(machine: &Machine, major: u32, minor: u32) -> String {
    let disk = machine.disks.iter().find(|disk| (disk.major, disk.minor) == (major, minor));
    disk.map_or_else(|| format!("{major}:{minor}"), |disk| format!("/dev/{}", disk.name))
}
