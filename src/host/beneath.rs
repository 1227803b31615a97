//! Opening what lies below a directory without being led astray.
//!
//! A pod may swap a directory for a symlink between our look and our act, and a mount may
//! lie where we are about to delete. Descriptors held by us cannot be swapped, and
//! `openat2` refuses symlinks and mount crossings inside the kernel. Kernels before 5.6
//! and some sandboxes lack it; there the same is put together from single steps.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag};

/// A pod that renames without end gets an error, not a busy loop.
const RESOLVE_TRIES: usize = 32;

/// A directory by path. Its own last component may not be a symlink.
pub fn directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, directory_flags(), Mode::empty())?)
}

fn directory_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

/// The sub-directory `name`; `ELOOP` or `ENOTDIR` if it is none (any more), `EXDEV` if
/// something is mounted there, bind mounts of the same file system included.
pub fn sub_directory(parent: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = directory_flags();
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    match openat2(&parent, name, OpenHow::new().flags(flags).resolve(resolve)) {
        Err(error) if is_missing_syscall(error) => sub_directory_in_steps(parent, name, flags),
        opened => Ok(opened?),
    }
}

fn sub_directory_in_steps(parent: impl AsFd, name: &OsStr, flags: OFlag) -> io::Result<OwnedFd> {
    let child = openat(&parent, name, flags, Mode::empty())?;
    if mount_id(&child)? != mount_id(&parent)? {
        return Err(Errno::EXDEV.into());
    }
    Ok(child)
}

/// Whatever `name` is, as a handle that opens nothing: a fifo does not block, a device
/// does not notice. A symlink is opened itself.
pub fn handle(parent: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(openat(parent, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Resolves `path` below `parent`, symlinks included as long as none leads out of it.
/// `EXDEV` means that one would, `ENOSYS` that this kernel cannot tell.
pub fn resolve(parent: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    resolve_by(ResolveFlag::RESOLVE_BENEATH, parent, path)
}

/// Resolves `path` as if `root` were all there is: where a symlink leads out of it, it is its own
/// places that are meant. `ENOSYS` means that this kernel cannot.
pub fn resolve_in_root(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    resolve_by(ResolveFlag::RESOLVE_IN_ROOT, root, path)
}

fn resolve_by(bound: ResolveFlag, parent: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let how =
        OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(bound | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    for _ in 0..RESOLVE_TRIES {
        match openat2(&parent, path, how) {
            // Something was renamed on the way, by the pod or anyone on this machine.
            Err(Errno::EAGAIN) => {}
            Err(error) if is_missing_syscall(error) => return Err(Errno::ENOSYS.into()),
            opened => return Ok(opened?),
        }
    }
    Err(Errno::EAGAIN.into())
}

/// Goes down `path` one component at a time and follows no symlink at all.
pub fn walk(parent: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let mut at = openat(parent, ".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    for name in path {
        let next = handle(&at, name)?;
        if is_kind(&nix::sys::stat::fstat(&next)?, SFlag::S_IFLNK) {
            return Err(Errno::ELOOP.into());
        }
        at = next;
    }
    Ok(at)
}

pub fn is_kind(stat: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == kind
}

/// A path that leads to exactly what `fd` has open, whatever happens to names meanwhile.
/// This is about our own process, so it is not one of the roots passed in.
pub fn magic_path(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Which mount a descriptor is on, without asking its file system.
pub fn mount_id(fd: impl AsFd) -> io::Result<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd()))?;
    info.lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no mnt_id in fdinfo"))
}

/// Container sandboxes answer EPERM to system calls newer than themselves.
fn is_missing_syscall(error: Errno) -> bool {
    matches!(error, Errno::ENOSYS | Errno::EPERM)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::host::mounts;
    use crate::host::testing::{Scratch, may_mount};

    /// What `sub_directory` says of a name, on a new kernel and on an old one.
    fn check(scratch: &Scratch, name: &str, expected: Option<Errno>) {
        let parent = directory(scratch.root()).unwrap();
        let name = OsStr::new(name);
        for (kernel, opened) in
            [("new", sub_directory(&parent, name)), ("old", sub_directory_in_steps(&parent, name, directory_flags()))]
        {
            let error = opened.err().and_then(|error| error.raw_os_error()).map(Errno::from_raw);
            // Old and new differ in how they call a link that is no directory.
            let error = error.map(|error| if error == Errno::ELOOP { Errno::ENOTDIR } else { error });
            assert_eq!(error, expected, "{name:?} on a {kernel} kernel");
        }
    }

    #[test]
    fn only_a_plain_directory_below_is_opened() {
        let scratch = Scratch::new();
        scratch.dir("dir");
        scratch.file("file", "");
        symlink("dir", scratch.path("link")).unwrap();
        check(&scratch, "dir", None);
        check(&scratch, "file", Some(Errno::ENOTDIR));
        check(&scratch, "link", Some(Errno::ENOTDIR));
        check(&scratch, "absent", Some(Errno::ENOENT));
    }

    #[test]
    fn a_mount_is_not_entered_even_if_the_device_is_the_same() {
        if !may_mount("opening a bind mount") {
            return;
        }
        let scratch = Scratch::new();
        let mounted = scratch.dir("mounted");
        mounts::bind(scratch.dir("source").to_str().unwrap(), &mounted).unwrap();
        check(&scratch, "mounted", Some(Errno::EXDEV));
    }
}
