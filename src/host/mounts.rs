//! What is mounted where, and the few mounts the agent makes itself.
//!
//! The kernel's table is asked, never the mounted path: `/proc/self/mountinfo` answers at
//! once while a `stat` of a dead file server's mount would hang. Mounts are made by system
//! call, so that a pod start forks nothing.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{fstat, lstat};
use nix::sys::statfs::{HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};

use super::{DirMedium, beneath};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub point: PathBuf,
    pub fs_type: String,
    /// Which directory of the file system is seen; other than `/`, it is a bind mount.
    pub root: PathBuf,
}

/// All mounts of this mount namespace, oldest first.
pub fn table(proc: &Path) -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read(proc.join("self/mountinfo"))?))
}

fn parse(mountinfo: &[u8]) -> Vec<Mount> {
    mountinfo.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /point options optional… - type source super-options`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = fields.nth(3)?;
    let point = fields.next()?;
    let fs_type = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount { point: unescape(point), root: unescape(root), fs_type: String::from_utf8_lossy(fs_type).into_owned() })
}

/// Blanks, tabs, line ends and backslashes are written as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| tail.get(..3)).flatten();
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(byte) => {
                plain.push(byte);
                rest = &tail[3..];
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(plain))
}

/// The mount that holds `path`, by its name alone.
pub fn holding<'a>(table: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    table.iter().filter(|mount| path.starts_with(&mount.point)).max_by_key(|mount| mount.point.as_os_str().len())
}

/// Unmounts everything at `path` and below, newest first.
///
/// A busy tmpfs or bind mount is detached instead: nothing is lost by that, since its
/// content ends with its last user, and what is deleted afterwards is only the directory
/// it hid. A busy mount of any other kind is left alone and reported.
pub fn unmount_below(proc: &Path, path: &Path) -> io::Result<()> {
    for mount in table(proc)?.iter().rev().filter(|mount| mount.point.starts_with(path)) {
        match umount2(&mount.point, MntFlags::UMOUNT_NOFOLLOW) {
            // Propagation from another mount point was faster.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(Errno::EBUSY) if may_detach(mount) => {
                umount2(&mount.point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
            }
            Err(error) => {
                return Err(io::Error::new(
                    io::Error::from(error).kind(),
                    format!("cannot unmount {} ({}): {}", mount.point.display(), mount.fs_type, error.desc()),
                ));
            }
        }
    }
    Ok(())
}

fn may_detach(mount: &Mount) -> bool {
    matches!(mount.fs_type.as_str(), "tmpfs" | "hugetlbfs") || mount.root != Path::new("/")
}

/// Whether the kernel knows the tmpfs option `noswap` (6.4); asked once, by trying.
static NOSWAP: AtomicBool = AtomicBool::new(true);

/// Mounts what `medium` says on the directory `path`, unless it is there already. A mount
/// of another size counts as there: containers may be using it. True if it was mounted now.
pub fn mount_medium(path: &Path, medium: &DirMedium) -> io::Result<bool> {
    let magic = match medium {
        DirMedium::Disk => return Ok(false),
        DirMedium::Memory { .. } => TMPFS_MAGIC,
        DirMedium::HugePages { .. } => HUGETLBFS_MAGIC,
    };
    if is_mounted(&beneath::directory(path)?, path, magic)? {
        return Ok(false);
    }
    match medium {
        DirMedium::Disk => {}
        DirMedium::Memory { size_bytes } => mount_tmpfs(path, *size_bytes)?,
        DirMedium::HugePages { page_size, size_bytes } => mount_hugetlbfs(path, page_size, *size_bytes)?,
    }
    Ok(true)
}

/// Such a file system, and another than the parent's: the root dir may itself be on tmpfs.
/// Only ever asked of directories that the agent made, which no network mount covers.
fn is_mounted(directory: &OwnedFd, path: &Path, magic: nix::sys::statfs::FsType) -> io::Result<bool> {
    let parent = path.parent().unwrap_or(path);
    Ok(fstatfs(directory)?.filesystem_type() == magic && fstat(directory)?.st_dev != lstat(parent)?.st_dev)
}

fn mount_tmpfs(path: &Path, size_bytes: Option<u64>) -> io::Result<()> {
    // Anybody may write, and nobody remove what others wrote: the mode that a tmpfs has by itself.
    let mut options = "mode=1777".to_owned();
    if let Some(bytes) = size_bytes {
        options += &format!(",size={bytes}");
    }
    if NOSWAP.load(Ordering::Relaxed) {
        match mount_plain("tmpfs", path, &format!("{options},noswap")) {
            Err(Errno::EINVAL) => NOSWAP.store(false, Ordering::Relaxed),
            mounted => return Ok(mounted?),
        }
    }
    Ok(mount_plain("tmpfs", path, &options)?)
}

fn mount_hugetlbfs(path: &Path, page_size: &str, size_bytes: Option<u64>) -> io::Result<()> {
    let mut options = format!("mode=0777,pagesize={page_size}");
    if let Some(bytes) = size_bytes {
        options += &format!(",size={bytes}");
    }
    Ok(mount_plain("hugetlbfs", path, &options)?)
}

fn mount_plain(fs_type: &str, path: &Path, options: &str) -> nix::Result<()> {
    let source = if fs_type == "hugetlbfs" { "nodev" } else { fs_type };
    mount(Some(source), path, Some(fs_type), MsFlags::empty(), Some(options))
}

/// Shows what `source` leads to at `target` as well.
pub fn bind(source: &str, target: &Path) -> io::Result<()> {
    Ok(mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

pub fn unmount(target: &Path) -> io::Result<()> {
    Ok(umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &[u8] = b"\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
30 22 0:26 / /var/lib/kubelet/pods/a/volumes/kubernetes.io~secret/s rw shared:9 master:1 - tmpfs tmpfs rw,size=64k\n\
31 22 254:0 /srv/my\\040data /mnt/with\\040blank rw - ext4 /dev/vda rw\n\
32 22 0:40 / /mnt/nfs rw - nfs4 server:/x rw\n\
\n\
rubbish\n";

    fn mount(point: &str, root: &str, fs_type: &str) -> Mount {
        Mount { point: point.into(), root: root.into(), fs_type: fs_type.into() }
    }

    #[test]
    fn the_kernels_table_is_read_with_its_escapes() {
        assert_eq!(
            parse(MOUNTINFO),
            [
                mount("/", "/", "ext4"),
                mount("/var/lib/kubelet/pods/a/volumes/kubernetes.io~secret/s", "/", "tmpfs"),
                mount("/mnt/with blank", "/srv/my data", "ext4"),
                mount("/mnt/nfs", "/", "nfs4"),
            ]
        );
        assert_eq!(unescape(b"a\\134b\\0"), Path::new("a\\b\\0"));
    }

    #[test]
    fn a_path_is_held_by_its_longest_mount() {
        let table = parse(MOUNTINFO);
        for (path, point) in [("/etc", "/"), ("/mnt/nfs/a/b", "/mnt/nfs"), ("/mnt/nfs2", "/"), ("/mnt/nfs", "/mnt/nfs")]
        {
            assert_eq!(holding(&table, Path::new(path)).unwrap().point, Path::new(point), "{path}");
        }
    }

    #[test]
    fn only_mounts_that_lose_nothing_are_detached_while_busy() {
        assert!(may_detach(&mount("/p", "/", "tmpfs")));
        assert!(may_detach(&mount("/p", "/srv", "ext4")));
        assert!(!may_detach(&mount("/p", "/", "ext4")));
        assert!(!may_detach(&mount("/p", "/", "nfs4")));
    }
}
