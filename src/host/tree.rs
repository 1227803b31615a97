//! Whole trees: removing them, giving them a group.
//!
//! Both walk by directory descriptor, so that a symlink a pod swaps in leads nowhere, and
//! neither enters a mount.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat};
use nix::unistd::{Gid, UnlinkatFlags, fchownat, unlinkat};

use super::beneath;

/// Directories open at once. A pod can nest without end; deeper ones are moved up before
/// they are removed, and refused a group.
const DEPTH_MAX: usize = 128;

/// Passes over one directory. More than one is needed only where entries were moved up
/// into it, or where something still writes.
const PASSES_MAX: usize = 1000;

/// Removes `path` and all below it. What is gone already is fine; what is a mount point is
/// not touched, and is the error after everything else is gone.
pub fn remove(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a path with a parent"));
    };
    match open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(parent) => remove_at(parent, name),
        Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The same, below an open directory.
pub fn remove_at(parent: impl AsFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(error) => return Err(error.into()),
    }
    let top = match beneath::sub_directory(&parent, name) {
        Ok(top) => top,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    Removal { top: &top, moved: 0 }.remove_directory(parent.as_fd(), name, &top, 0)
}

struct Removal<'a> {
    /// Takes in what is nested too deep.
    top: &'a OwnedFd,
    moved: u64,
}

impl Removal<'_> {
    fn remove_directory(
        &mut self,
        parent: impl AsFd,
        name: &OsStr,
        directory: &OwnedFd,
        depth: usize,
    ) -> io::Result<()> {
        for _ in 0..PASSES_MAX {
            self.empty(directory, depth)?;
            match unlinkat(&parent, name, UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => return Ok(()),
                Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::ENOTEMPTY.into())
    }

    /// Goes on past an entry that cannot be removed, so that as much space as possible
    /// comes free, and reports the first of them.
    fn empty(&mut self, directory: &OwnedFd, depth: usize) -> io::Result<()> {
        let mut failed = Ok(());
        for entry in entries(directory)? {
            let (name, kind) = entry?;
            if let Err(error) = self.remove_entry(directory, &name, kind, depth) {
                failed = failed.and(Err(error));
            }
        }
        failed
    }

    fn remove_entry(&mut self, directory: &OwnedFd, name: &OsStr, kind: Option<Type>, depth: usize) -> io::Result<()> {
        if kind != Some(Type::Directory) {
            match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => return Ok(()),
                Err(Errno::EISDIR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if depth + 1 >= DEPTH_MAX {
            return self.move_up(directory, name);
        }
        match beneath::sub_directory(directory, name) {
            Ok(child) => self.remove_directory(directory, name, &child, depth + 1),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn move_up(&mut self, directory: &OwnedFd, name: &OsStr) -> io::Result<()> {
        loop {
            let moved = format!(".removing-{}", self.moved);
            self.moved += 1;
            match renameat(directory, name, self.top, moved.as_str()) {
                Ok(()) | Err(Errno::ENOENT) => return Ok(()),
                // Left by a removal that was cut short.
                Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// How an fsGroup shows in the mode bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupAccess {
    Read,
    ReadWrite,
}

impl GroupAccess {
    /// Bits added to a file or a directory. New files below inherit the group by setgid.
    pub fn bits(self, is_directory: bool) -> u32 {
        let bits = match self {
            GroupAccess::Read => 0o440,
            GroupAccess::ReadWrite => 0o660,
        };
        if is_directory { bits | 0o2110 } else { bits }
    }
}

/// Gives a directory and all below it to the group. Children come before their parent, so
/// that a walk cut short is seen by the state of the root.
pub fn give_to_group(directory: &OwnedFd, gid: Gid, access: GroupAccess) -> io::Result<()> {
    give_below(directory, gid, access, 0)?;
    own(directory, gid, access)
}

fn give_below(directory: &OwnedFd, gid: Gid, access: GroupAccess, depth: usize) -> io::Result<()> {
    if depth >= DEPTH_MAX {
        return Err(io::Error::other(format!("directories are nested more than {DEPTH_MAX} deep")));
    }
    for entry in entries(directory)? {
        let (name, kind) = entry?;
        if kind == Some(Type::Directory) {
            match beneath::sub_directory(directory, &name) {
                Ok(child) => give_below(&child, gid, access, depth + 1)?,
                // A mount has an owner of its own; what vanished or changed needs nothing.
                Err(error) if is_swapped(&error) => continue,
                Err(error) => return Err(error),
            }
        }
        match beneath::handle(directory, &name) {
            Ok(handle) => own(&handle, gid, access)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_swapped(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(code, Some(Errno::EXDEV | Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP))
}

/// Group first: changing it clears the setuid and setgid bits, which the mode restores.
pub fn own(handle: &OwnedFd, gid: Gid, access: GroupAccess) -> io::Result<()> {
    let stat = fstat(handle)?;
    if stat.st_gid != gid.as_raw() {
        fchownat(handle, "", None, Some(gid), AtFlags::AT_EMPTY_PATH | AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    if beneath::is_kind(&stat, SFlag::S_IFLNK) {
        return Ok(());
    }
    let mode = stat.st_mode & 0o7777;
    let wanted = mode | access.bits(beneath::is_kind(&stat, SFlag::S_IFDIR));
    if wanted != mode || stat.st_gid != gid.as_raw() {
        set_mode(handle, wanted)?;
    }
    Ok(())
}

/// chmod of exactly what is open, also of a handle, which `fchmod` refuses.
pub fn set_mode(handle: &OwnedFd, mode: u32) -> io::Result<()> {
    let path = beneath::magic_path(handle);
    let mode = Mode::from_bits_truncate(mode);
    Ok(fchmodat(nix::fcntl::AT_FDCWD, path.as_str(), mode, FchmodatFlags::FollowSymlink)?)
}

/// Entries but `.` and `..`, read as they come: a directory of a million names is not held
/// in memory.
pub fn entries(directory: &OwnedFd) -> io::Result<impl Iterator<Item = io::Result<(OsString, Option<Type>)>>> {
    // A descriptor of its own, so that the position is nobody else's.
    let here = CString::from(c".");
    let stream = Dir::openat(
        directory,
        here.as_c_str(),
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    Ok(stream.into_iter().filter_map(|entry| match entry {
        Ok(entry) => {
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            (name != "." && name != "..").then(|| Ok((name.to_owned(), entry.file_type())))
        }
        Err(error) => Some(Err(error.into())),
    }))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    use nix::sys::stat::mkdirat;

    use super::*;
    use crate::host::mounts;
    use crate::host::testing::{Scratch, group, may_mount, mode, names};

    #[test]
    fn a_tree_goes_whole_and_links_are_not_followed() {
        let scratch = Scratch::new();
        scratch.file("outside/kept", "x");
        scratch.file("tree/a/b/c", "x");
        scratch.dir("tree/empty");
        symlink(scratch.path("outside"), scratch.path("tree/link")).unwrap();
        symlink(scratch.path("outside"), scratch.path("tree/a/link")).unwrap();
        nix::unistd::mkfifo(&scratch.path("tree/fifo"), Mode::S_IRWXU).unwrap();

        remove(&scratch.path("tree")).unwrap();
        assert!(!scratch.path("tree").exists());
        assert!(scratch.path("outside/kept").exists());
        remove(&scratch.path("tree")).unwrap();
        remove(&scratch.path("no/such/parent")).unwrap();
    }

    #[test]
    fn a_symlink_in_place_of_the_tree_is_removed_itself() {
        let scratch = Scratch::new();
        scratch.file("outside/kept", "x");
        symlink(scratch.path("outside"), scratch.path("tree")).unwrap();
        remove(&scratch.path("tree")).unwrap();
        assert_eq!(names(scratch.root()).unwrap(), ["outside"]);
        assert!(scratch.path("outside/kept").exists());
    }

    #[test]
    fn nesting_deeper_than_descriptors_reach_goes_too() {
        let scratch = Scratch::new();
        let top = scratch.dir("tree");
        let mut at = beneath::directory(&top).unwrap();
        for _ in 0..DEPTH_MAX * 5 {
            mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
            at = beneath::sub_directory(&at, OsStr::new("d")).unwrap();
        }
        drop(at);
        // As if an earlier removal had been cut short.
        scratch.file("tree/.removing-0/x", "");
        remove(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn a_mount_stops_the_removal_of_its_place_only() {
        if !may_mount("removal beside a mount") {
            return;
        }
        let scratch = Scratch::new();
        let kept = scratch.file("volume/kept", "x");
        let mounted = scratch.dir("tree/a/mounted");
        scratch.file("tree/a/other", "x");
        // A bind mount of the same file system: the device number does not tell it apart.
        mounts::bind(scratch.path("volume").to_str().unwrap(), &mounted).unwrap();

        let error = remove(&scratch.path("tree")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::EXDEV as i32), "{error}");
        assert!(kept.exists());
        assert!(!scratch.path("tree/a/other").exists());

        mounts::unmount_below(Path::new("/proc"), &scratch.path("tree")).unwrap();
        remove(&scratch.path("tree")).unwrap();
        assert!(kept.exists());
    }

    #[test]
    fn the_group_is_given_to_all_but_what_links_lead_to() {
        if !may_mount("changing groups") {
            return;
        }
        let scratch = Scratch::new();
        let outside = scratch.file("outside", "x");
        fs::set_permissions(&outside, fs::Permissions::from_mode(0o600)).unwrap();
        let file = scratch.file("volume/d/file", "x");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4700)).unwrap();
        let link = scratch.path("volume/d/link");
        symlink(&outside, &link).unwrap();
        nix::unistd::mkfifo(&scratch.path("volume/fifo"), Mode::S_IRUSR).unwrap();
        fs::set_permissions(scratch.path("volume"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(scratch.path("volume/d"), fs::Permissions::from_mode(0o700)).unwrap();

        let volume = beneath::directory(&scratch.path("volume")).unwrap();
        give_to_group(&volume, Gid::from_raw(4242), GroupAccess::ReadWrite).unwrap();
        let see = |path: PathBuf| (mode(&path), group(&path));
        assert_eq!(see(scratch.path("volume")), (0o2775, 4242));
        assert_eq!(see(scratch.path("volume/d")), (0o2770, 4242));
        assert_eq!(see(file), (0o4760, 4242));
        assert_eq!(see(scratch.path("volume/fifo")), (0o660, 4242));
        assert_eq!(group(&link), 4242);
        assert_eq!((mode(&outside), group(&outside)), (0o600, 0));
    }
}
