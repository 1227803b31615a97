//! Measures what lies in a pod's directories, on a thread that may wait. What cannot be measured
//! costs itself only: it is told as it was, or not at all, but never as nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::stat::{lstat, major, minor};
use nix::sys::statvfs::statvfs;
use tracing::debug;

use super::{FileSystem, PodDisk, PodLogs, Volume};
use crate::host::disk_usage::{self, DiskUsage};
use crate::pod::plugins::Plugin;

/// `before` is what was found the last time; a pod's volumes stay the same for all its life.
pub fn pod_disk(directory: &Path, before: Option<&PodDisk>, may_go_on: impl Fn() -> bool) -> io::Result<PodDisk> {
    let mut disk = PodDisk::default();
    let device = lstat(directory)?.st_dev;
    for plugin in Plugin::ALL {
        for (name, path) in sub_directories(&directory.join("volumes").join(plugin.directory()))? {
            match volume(&name, plugin, &path, device, &may_go_on) {
                Ok(volume) => disk.volumes.push(volume),
                Err(error) => {
                    debug!(path = %path.display(), %error, "volume not measured");
                    let known = before.and_then(|disk| disk.volumes.iter().find(|volume| volume.name == name));
                    disk.volumes.extend(known.cloned());
                }
            }
        }
    }
    if let Ok(stat) = lstat(&directory.join("etc-hosts")) {
        disk.etc_hosts = DiskUsage::of(&stat);
    }
    Ok(disk)
}

fn volume(
    name: &str,
    plugin: Plugin,
    path: &Path,
    device_of_pod: u64,
    may_go_on: impl Fn() -> bool,
) -> io::Result<Volume> {
    let usage = disk_usage::of_tree(path, may_go_on)?;
    let usage = usage.ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, "it is too large"))?;
    // One of memory is a mount, and takes nothing of the disk.
    let is_on_disk = matches!(plugin, Plugin::EmptyDir | Plugin::ConfigMap);
    let is_ephemeral = is_on_disk && lstat(path)?.st_dev == device_of_pod;
    Ok(Volume { name: name.to_owned(), usage, file_system: file_system(path)?, is_ephemeral })
}

/// `of_files` measures one directory. One of which a file cannot be read is not told of: a sum
/// without it would be a wrong one.
pub fn pod_logs(directory: &Path, of_files: impl Fn(&Path) -> io::Result<DiskUsage>) -> PodLogs {
    let known = |path: &Path| {
        let usage = of_files(path);
        usage.inspect_err(|error| debug!(path = %path.display(), %error, "logs not measured")).ok()
    };
    let containers = sub_directories(directory).unwrap_or_default();
    let containers = containers.into_iter().filter_map(|(name, path)| Some((name, known(&path)?))).collect();
    PodLogs { own: known(directory), containers }
}

fn sub_directories(directory: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if let (true, Ok(name)) = (entry.file_type()?.is_dir(), entry.file_name().into_string()) {
            found.push((name, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

pub fn file_system(path: &Path) -> io::Result<FileSystem> {
    let stat = statvfs(path)?;
    let device = nix::sys::stat::stat(path)?.st_dev;
    let number = |part: u64| u32::try_from(part).unwrap_or(u32::MAX);
    let block = stat.fragment_size();
    Ok(FileSystem {
        capacity: stat.blocks().saturating_mul(block),
        available: stat.blocks_available().saturating_mul(block),
        used: stat.blocks().saturating_sub(stat.blocks_free()).saturating_mul(block),
        inodes: stat.files(),
        inodes_free: stat.files_free(),
        device: (number(major(device)), number(minor(device))),
    })
}
