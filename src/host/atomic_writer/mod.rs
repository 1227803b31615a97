//! Writes API content into a volume so that a reader sees the old files or the new, never
//! a mixture.
//!
//! The layout is the one every kubelet volume has, and applications watch for it:
//!
//! ```text
//! volume/..2026_03_01_08_00_00.123456/key     the files
//! volume/..data -> ..2026_03_01_08_00_00.123456
//! volume/key -> ..data/key
//! ```
//!
//! A change makes a new time-stamped directory and renames a new `..data` over the old one.
//! The links for new names are there *before* that instant and those for old names go
//! *after* it, so whoever sees the new `..data` finds every name of it.
//!
//! Crash safety comes from starting over: nothing is cleaned up on failure, because every
//! run begins by comparing what is visible and ends by removing whatever is not referenced.
//! The names beginning with two dots are the writer's alone; pods mount the volume
//! read-only and API content may not use such names.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use nix::dir::Type;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, fdatasync, fsync, geteuid, symlinkat, unlinkat};

use crate::host::tree::{self, GroupAccess};
use crate::host::{PayloadFile, beneath};

#[cfg(test)]
mod tests;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";
const LINK_NEW: &str = "..link_tmp";

const DIRECTORY_MODE: u32 = 0o755;
const NAME_BYTES_MAX: usize = 255;
const PATH_BYTES_MAX: usize = 4096;

/// How to write, apart from what.
pub struct Options<'a> {
    /// Name of the new directory, unused so far; see `directory_name`.
    pub stamp: &'a str,
    pub fs_group: Option<u32>,
    /// Whether new files must be on the disk before they take the place of old ones. A
    /// power cut could otherwise leave the new names with empty files. Of no use on tmpfs.
    pub durable: bool,
}

/// `..2026_03_01_08_00_00.123456`: sorts by time, and tells who looks when it was written.
pub fn directory_name(now: jiff::Timestamp, random: u32) -> String {
    format!("{}.{random}", now.strftime("..%Y_%m_%d_%H_%M_%S"))
}

/// Makes the volume at `path`, a directory, hold exactly `files`. True if that took a
/// write. `before` is told of each step that changes the disk; its error stops the writer
/// on the spot, which is how a test takes away the power.
pub fn write(
    path: &Path,
    files: &[PayloadFile],
    options: &Options<'_>,
    before: &mut dyn FnMut(&'static str) -> io::Result<()>,
) -> io::Result<bool> {
    for file in files {
        check_path(&file.path)?;
    }
    let volume = beneath::directory(path)?;
    let mut writer = Writer { volume: &volume, group: options.fs_group.map(Gid::from_raw), durable: false };
    let names = visible_names(files);

    let current = writer.current()?;
    // A first write has nothing old to protect, and a pod's start waits for it: torn by a
    // power cut, it is found different and written again before any container runs.
    writer.durable = options.durable && current.is_some();
    if let Some(current) = &current
        && writer.holds(current, files)?
    {
        writer.link(&names, before)?;
        writer.tidy(&names, current, before)?;
        return Ok(false);
    }
    before("remove orphans")?;
    writer.remove_directories_but(current.as_deref())?;
    writer.write_directory(options.stamp, files, before)?;
    writer.link(&names, before)?;
    writer.switch_to(options.stamp, before)?;
    writer.tidy(&names, OsStr::new(options.stamp), before)?;
    Ok(true)
}

fn check_path(path: &str) -> io::Result<()> {
    let refuse = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, format!("path {path:?} {why}")));
    if path.is_empty() || path.len() > PATH_BYTES_MAX {
        return refuse("is empty or too long");
    }
    if path.starts_with("..") {
        return refuse("starts with '..'");
    }
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) if name.len() <= NAME_BYTES_MAX => {}
            Component::Normal(_) => return refuse("has a name that is too long"),
            _ => return refuse("is not relative and plain"),
        }
    }
    Ok(())
}

/// First path elements: what stands in the volume itself, and whose it is.
type Names<'a> = BTreeMap<&'a OsStr, Option<u32>>;

fn visible_names(files: &[PayloadFile]) -> Names<'_> {
    files.iter().filter_map(|file| Some((Path::new(&file.path).iter().next()?, file.uid))).collect()
}

struct Writer<'a> {
    volume: &'a OwnedFd,
    group: Option<Gid>,
    durable: bool,
}

impl Writer<'_> {
    /// The directory that `..data` points at, if it is one of ours.
    fn current(&self) -> io::Result<Option<OsString>> {
        match readlinkat(self.volume, DATA) {
            Ok(target) if is_own(&target) && beneath::sub_directory(self.volume, &target).is_ok() => Ok(Some(target)),
            Ok(_) | Err(Errno::ENOENT) => Ok(None),
            // No link at all: nothing that a writer ever left there.
            Err(Errno::EINVAL) => {
                tree::remove_at(self.volume, OsStr::new(DATA))?;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the directory has these files and no others, content, modes and owners too.
    fn holds(&self, directory: &OsStr, files: &[PayloadFile]) -> io::Result<bool> {
        let directory = beneath::sub_directory(self.volume, directory)?;
        let mut expected: BTreeMap<&Path, &PayloadFile> =
            files.iter().map(|file| (Path::new(&file.path), file)).collect();
        if !self.is_right(&fstat(self.volume)?, 0) {
            return Ok(false);
        }
        Ok(self.holds_below(&directory, Path::new(""), &mut expected)? && expected.is_empty())
    }

    fn holds_below(
        &self,
        directory: &OwnedFd,
        at: &Path,
        expected: &mut BTreeMap<&Path, &PayloadFile>,
    ) -> io::Result<bool> {
        if !self.is_right(&fstat(directory)?, DIRECTORY_MODE) {
            return Ok(false);
        }
        for entry in tree::entries(directory)? {
            let (name, kind) = entry?;
            let path = at.join(&name);
            let same = if kind == Some(Type::Directory) {
                self.holds_below(&beneath::sub_directory(directory, &name)?, &path, expected)?
            } else {
                match expected.remove(path.as_path()) {
                    Some(file) => self.is_same(directory, &name, file)?,
                    None => false,
                }
            };
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_same(&self, directory: &OwnedFd, name: &OsStr, file: &PayloadFile) -> io::Result<bool> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let mut opened = File::from(openat(directory, name, flags, Mode::empty())?);
        let stat = fstat(&opened)?;
        let owner = file.uid.map_or(geteuid(), Uid::from_raw);
        if !beneath::is_kind(&stat, SFlag::S_IFREG)
            || !self.is_right(&stat, file.mode)
            || stat.st_uid != owner.as_raw()
            || stat.st_size != file.data.len() as i64
        {
            return Ok(false);
        }
        let mut data = Vec::with_capacity(file.data.len());
        opened.read_to_end(&mut data)?;
        Ok(data == file.data)
    }

    /// Mode and group as the writer would leave them. A mode of 0 stands for the volume's
    /// own, of which only what the group needs is looked at.
    fn is_right(&self, stat: &nix::sys::stat::FileStat, mode: u32) -> bool {
        let is_directory = beneath::is_kind(stat, SFlag::S_IFDIR);
        let present = stat.st_mode & 0o7777;
        let wanted = mode | self.group.map_or(0, |_| GroupAccess::Read.bits(is_directory));
        let mode_is_right = if mode == 0 { present & wanted == wanted } else { present == wanted };
        mode_is_right && self.group.is_none_or(|gid| stat.st_gid == gid.as_raw())
    }

    fn write_directory(
        &self,
        stamp: &str,
        files: &[PayloadFile],
        before: &mut dyn FnMut(&'static str) -> io::Result<()>,
    ) -> io::Result<()> {
        before("make the directory")?;
        let directory = make_directory(self.volume, OsStr::new(stamp))?;
        for file in files {
            before("write a file")?;
            self.write_file(&directory, file)
                .map_err(|error| io::Error::new(error.kind(), format!("cannot write {:?}: {error}", file.path)))?;
        }
        if let Some(gid) = self.group {
            before("give it to the group")?;
            tree::give_to_group(&directory, gid, GroupAccess::Read)?;
            tree::own(self.volume, gid, GroupAccess::Read)?;
        }
        if self.durable {
            before("sync the directory")?;
            fsync(&directory)?;
        }
        Ok(())
    }

    fn write_file(&self, directory: &OwnedFd, file: &PayloadFile) -> io::Result<()> {
        let path = Path::new(&file.path);
        let mut parent = directory.try_clone()?;
        for name in path.parent().into_iter().flat_map(Path::iter) {
            parent = match make_directory(&parent, name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => beneath::sub_directory(&parent, name)?,
                made => made?,
            };
        }
        let name = path.file_name().ok_or(Errno::EINVAL)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        // Closed to all until it has its owner and its own mode.
        let mut opened = File::from(openat(&parent, name, flags, Mode::empty())?);
        opened.write_all(&file.data)?;
        if let Some(uid) = file.uid {
            fchown(&opened, Some(Uid::from_raw(uid)), None)?;
        }
        nix::sys::stat::fchmod(&opened, Mode::from_bits_truncate(file.mode))?;
        if self.durable {
            fdatasync(&opened)?;
        }
        Ok(())
    }

    /// Makes the links for all `names`; one with another target is replaced.
    fn link(&self, names: &Names<'_>, before: &mut dyn FnMut(&'static str) -> io::Result<()>) -> io::Result<()> {
        for (name, owner) in names {
            let target = Path::new(DATA).join(name);
            match readlinkat(self.volume, *name) {
                Ok(present) if present == target => {}
                Err(Errno::ENOENT) => {
                    before("make a link")?;
                    symlinkat(&target, self.volume, *name)?;
                }
                // The agent made it for another volume to be mounted there, which would hide
                // what is below the link as well; a link would lead that mount into a directory
                // that goes with the next change.
                Err(Errno::EINVAL) if beneath::sub_directory(self.volume, name).is_ok() => continue,
                _ => {
                    before("replace a link")?;
                    replace_link(self.volume, &target, LINK_NEW, name)?;
                }
            }
            if let Some(uid) = owner {
                fchownat(self.volume, *name, Some(Uid::from_raw(*uid)), None, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            }
        }
        Ok(())
    }

    /// The instant of the change.
    fn switch_to(&self, stamp: &str, before: &mut dyn FnMut(&'static str) -> io::Result<()>) -> io::Result<()> {
        before("make the new data link")?;
        remove_name(self.volume, DATA_NEW)?;
        symlinkat(stamp, self.volume, DATA_NEW)?;
        before("switch")?;
        Ok(renameat(self.volume, DATA_NEW, self.volume, DATA)?)
    }

    /// Removes links to nothing and all directories but the current one. Containers that
    /// have an old file open keep it.
    fn tidy(
        &self,
        names: &Names<'_>,
        current: &OsStr,
        before: &mut dyn FnMut(&'static str) -> io::Result<()>,
    ) -> io::Result<()> {
        for entry in tree::entries(self.volume)? {
            let (name, _) = entry?;
            if is_own(&name) || names.contains_key(name.as_os_str()) {
                continue;
            }
            // Directories are mount points that the agent made for other volumes.
            if readlinkat(self.volume, name.as_os_str()).is_ok_and(|target| Path::new(&target).starts_with(DATA)) {
                before("remove a link")?;
                remove_name(self.volume, &name)?;
            }
        }
        before("remove the old directory")?;
        self.remove_directories_but(Some(current))
    }

    fn remove_directories_but(&self, current: Option<&OsStr>) -> io::Result<()> {
        for entry in tree::entries(self.volume)? {
            let (name, _) = entry?;
            if is_own(&name) && name != DATA && Some(name.as_os_str()) != current {
                tree::remove_at(self.volume, &name)?;
            }
        }
        Ok(())
    }
}

/// A single name that only the writer uses.
fn is_own(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    bytes.len() > 2 && bytes.starts_with(b"..") && !bytes.contains(&b'/')
}

fn make_directory(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    mkdirat(parent, name, Mode::from_bits_truncate(DIRECTORY_MODE))?;
    let made = beneath::sub_directory(parent, name)?;
    tree::set_mode(&made, DIRECTORY_MODE)?;
    Ok(made)
}

fn replace_link(directory: &OwnedFd, target: &Path, temporary: &str, name: &OsStr) -> io::Result<()> {
    remove_name(directory, temporary)?;
    symlinkat(target, directory, temporary)?;
    Ok(renameat(directory, temporary, directory, name)?)
}

fn remove_name(directory: impl AsFd, name: impl AsRef<OsStr>) -> io::Result<()> {
    match unlinkat(directory, name.as_ref(), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
