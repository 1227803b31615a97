//! subPath: one place inside a volume, bind-mounted where no pod can move it.
//!
//! The pod writes to the volume while we look for the place, so the place is found by
//! descriptors, and what gets mounted is the descriptor found, not a name. A symlink inside
//! the volume is followed as long as it stays inside.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};

use super::{beneath, files, mounts, tree};

const TARGET_DIRECTORY_MODE: u32 = 0o750;
const TARGET_FILE_MODE: u32 = 0o640;

/// Finds or makes `sub_path` in the volume and mounts it at `target`. What is mounted there
/// already and is the same stays.
pub fn prepare(volume: &Path, sub_path: &str, target: &Path) -> io::Result<()> {
    let sub_path = check(sub_path)?;
    // An administrator's hostPath may itself be a symlink.
    let root = open(volume, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let source = find_or_make(&root, volume, sub_path)?;
    mount_at(&source, target)
}

/// A regular file in the volume; `None` if it is not there. As upstream has it, the volume is all
/// there is: what a symlink in it says of other places is looked for in the volume, so that no
/// answer tells what the machine has there.
pub fn read(volume: &Path, sub_path: &str, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
    let sub_path = check(sub_path)?;
    let root = open(volume, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    match find_in_root(&root, sub_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => {
            let found = found?;
            // Some devices act when they are but opened, and a pod can make any.
            if !beneath::is_kind(&fstat(&found)?, SFlag::S_IFREG) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
            }
            files::read_file(Path::new(&beneath::magic_path(&found)), bytes_max)
        }
    }
}

fn check(sub_path: &str) -> io::Result<&Path> {
    let path = Path::new(sub_path);
    let is_plain = |component| matches!(component, Component::Normal(_) | Component::CurDir);
    if path.components().all(is_plain) {
        return Ok(path);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{sub_path:?} is not relative or has '..'")))
}

fn find_or_make(root: &OwnedFd, volume: &Path, sub_path: &Path) -> io::Result<OwnedFd> {
    match find(root, volume, sub_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return found,
    }
    // Missing directories get the volume's own mode, so that whoever may write to the
    // volume may write to them, fsGroup's setgid bit included.
    let mode = fstat(root)?.st_mode & 0o7777;
    let mut missing: Vec<OsString> = Vec::new();
    let mut present = sub_path;
    let mut at = loop {
        let (Some(parent), Some(name)) = (present.parent(), present.file_name()) else {
            return Err(Errno::ENOENT.into());
        };
        missing.push(name.to_owned());
        present = parent;
        match find(root, volume, present) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => break found?,
        }
    };
    while let Some(name) = missing.pop() {
        match mkdirat(&at, name.as_os_str(), Mode::from_bits_truncate(mode)) {
            // Another container of the pod needs it too.
            Err(Errno::EEXIST) => at = beneath::walk(&at, Path::new(&name))?,
            made => {
                made?;
                at = beneath::walk(&at, Path::new(&name))?;
                tree::set_mode(&at, mode)?;
            }
        }
    }
    Ok(at)
}

/// What `sub_path` leads to, symlinks followed as long as they stay in the volume.
pub(super) fn find(root: &OwnedFd, volume: &Path, sub_path: &Path) -> io::Result<OwnedFd> {
    if sub_path.as_os_str().is_empty() {
        return beneath::walk(root, sub_path);
    }
    match beneath::resolve(root, sub_path) {
        Err(error) if needs_names(&error) => find_by_names(root, volume, sub_path),
        found => found,
    }
}

/// On an old kernel no symlink is followed at all.
fn find_in_root(root: &OwnedFd, sub_path: &Path) -> io::Result<OwnedFd> {
    match beneath::resolve_in_root(root, sub_path) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOSYS as i32) => beneath::walk(root, sub_path),
        found => found,
    }
}

fn needs_names(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EXDEV | Errno::ENOSYS))
}

/// An absolute symlink (`current -> /srv/releases/7` in the hostPath `/srv`) may still end
/// inside the volume. Names tell where; the way there is then gone again without
/// following any symlink, so that one swapped in meanwhile is an error.
fn find_by_names(root: &OwnedFd, volume: &Path, sub_path: &Path) -> io::Result<OwnedFd> {
    let volume = fs::canonicalize(volume)?;
    let resolved = fs::canonicalize(volume.join(sub_path))?;
    match resolved.strip_prefix(&volume) {
        Ok(inside) => beneath::walk(root, inside),
        Err(_) => Err(io::Error::new(io::ErrorKind::PermissionDenied, "leads out of the volume")),
    }
}

fn mount_at(source: &OwnedFd, target: &Path) -> io::Result<()> {
    let is_directory = beneath::is_kind(&fstat(source)?, SFlag::S_IFDIR);
    while let Some(present) = look(target)? {
        if same_file(&present, source)? {
            return Ok(());
        }
        if !is_mount_point(&present, target)? {
            break;
        }
        drop(present);
        mounts::unmount(target)?;
    }
    make_placeholder(target, is_directory)?;
    mounts::bind(&beneath::magic_path(source), target)
}

fn look(target: &Path) -> io::Result<Option<OwnedFd>> {
    match open(target, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(present) => Ok(Some(present)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn same_file(one: &OwnedFd, other: &OwnedFd) -> io::Result<bool> {
    let (one, other) = (fstat(one)?, fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

fn is_mount_point(present: &OwnedFd, target: &Path) -> io::Result<bool> {
    let parent = target.parent().map(look).transpose()?.flatten();
    Ok(match parent {
        Some(parent) => beneath::mount_id(present)? != beneath::mount_id(&parent)?,
        None => false,
    })
}

/// Something of the right kind to mount upon; one of the other kind is in the way.
fn make_placeholder(target: &Path, is_directory: bool) -> io::Result<()> {
    if fs::symlink_metadata(target).is_ok_and(|stat| stat.is_dir() != is_directory) {
        tree::remove(target)?;
    }
    if is_directory {
        return files::make_dir(target, TARGET_DIRECTORY_MODE);
    }
    if let Some(parent) = target.parent() {
        files::make_dir(parent, TARGET_DIRECTORY_MODE)?;
    }
    let placeholder =
        OpenOptions::new().write(true).create(true).truncate(false).mode(TARGET_FILE_MODE).open(target)?;
    placeholder.set_permissions(fs::Permissions::from_mode(TARGET_FILE_MODE))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::host::testing::{Scratch, may_mount, mode};

    /// A volume with the things a pod may leave in it.
    fn volume() -> Scratch {
        let scratch = Scratch::new();
        scratch.file("outside/secret", "host");
        scratch.file("volume/file", "in");
        scratch.file("volume/dir/inner", "in");
        let link = |target: &str, name: &str| symlink(target, scratch.path("volume").join(name)).unwrap();
        link("dir", "good");
        link("../outside", "up");
        link("dir/../../outside", "around");
        link("/etc", "absolute");
        link("/proc/self/root/etc", "magic");
        link("loop", "loop");
        link("nowhere", "dangling");
        symlink(scratch.path("volume/dir"), scratch.path("volume/absolute-inside")).unwrap();
        scratch
    }

    /// The place found, by its real path below the scratch directory.
    fn find_it(scratch: &Scratch, sub_path: &str) -> io::Result<String> {
        let volume = scratch.path("volume");
        let root = open(&volume, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())?;
        let found = find_or_make(&root, &volume, check(sub_path)?)?;
        let real = fs::read_link(beneath::magic_path(&found))?;
        Ok(real.strip_prefix(scratch.root().canonicalize()?).unwrap_or(&real).display().to_string())
    }

    #[test]
    fn places_inside_are_found_or_made() {
        let scratch = volume();
        for (sub_path, found) in [
            ("file", "volume/file"),
            ("dir", "volume/dir"),
            ("./dir/inner", "volume/dir/inner"),
            ("good/inner", "volume/dir/inner"),
            ("absolute-inside/inner", "volume/dir/inner"),
            ("new", "volume/new"),
            ("new/er/still", "volume/new/er/still"),
            ("good/made", "volume/dir/made"),
            ("absolute-inside/made2", "volume/dir/made2"),
            (".", "volume"),
        ] {
            assert_eq!(find_it(&scratch, sub_path).unwrap(), found, "{sub_path}");
        }
    }

    #[test]
    fn no_way_leads_out() {
        let scratch = volume();
        for sub_path in [
            "..",
            "dir/../..",
            "/etc",
            "up",
            "up/secret",
            "up/new",
            "around",
            "absolute",
            "absolute/passwd",
            "magic",
            "loop",
            "dangling",
            "file/below",
        ] {
            let found = find_it(&scratch, sub_path);
            assert!(found.is_err(), "{sub_path} led to {found:?}");
        }
        assert_eq!(fs::read_dir(scratch.path("outside")).unwrap().count(), 1);
    }

    #[test]
    fn only_files_inside_are_read() {
        let scratch = volume();
        nix::unistd::mkfifo(&scratch.path("volume/fifo"), Mode::from_bits_truncate(0o600)).unwrap();
        let read = |path: &str| super::read(&scratch.path("volume"), path, 2).map(|data| data.map(String::from_utf8));
        symlink("/dir/inner", scratch.path("volume/of-the-volume")).unwrap();
        for inside in ["file", "dir/inner", "good/inner", "of-the-volume"] {
            assert_eq!(read(inside).unwrap(), Some(Ok("in".to_owned())), "{inside}");
        }
        // Of what lies outside nothing is told, not even whether it is there.
        symlink("/nowhere", scratch.path("volume/absolute-nowhere")).unwrap();
        let outside = ["up/secret", "up/nothing", "around", "absolute/passwd", "absolute-nowhere", "magic/passwd"];
        for missing in ["new", "dir/new", "dangling", "absolute-inside/inner"].into_iter().chain(outside) {
            assert_eq!(read(missing).unwrap(), None, "{missing}");
        }
        for refused in ["..", "loop", "dir", "fifo", "/etc"] {
            assert!(read(refused).is_err(), "{refused} was read");
        }
        assert_eq!(scratch.path("volume/new").try_exists().ok(), Some(false), "nothing is made");
        scratch.file("volume/large", "abc");
        assert!(read("large").is_err());
    }

    /// Where `openat2` is missing, names and single steps have to do.
    #[test]
    fn an_old_kernel_finds_the_same_places_and_no_way_out() {
        let scratch = volume();
        let volume = scratch.path("volume");
        let root = open(&volume, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        let find = |sub_path: &str| find_by_names(&root, &volume, Path::new(sub_path));
        for inside in ["file", "dir/inner", "good/inner", "absolute-inside/inner"] {
            assert!(find(inside).is_ok(), "{inside}");
        }
        for outside in ["up", "up/secret", "around", "absolute", "absolute/passwd", "magic", "loop", "dangling"] {
            assert!(find(outside).is_err(), "{outside}");
        }
        // Swapped between our look and our act.
        assert_eq!(
            beneath::walk(&root, Path::new("good/inner")).unwrap_err().raw_os_error(),
            Some(Errno::ELOOP as i32)
        );
    }

    #[test]
    fn made_directories_are_as_open_as_the_volume() {
        let scratch = volume();
        fs::set_permissions(scratch.path("volume"), fs::Permissions::from_mode(0o2777)).unwrap();
        find_it(&scratch, "a/b").unwrap();
        assert_eq!((mode(&scratch.path("volume/a")), mode(&scratch.path("volume/a/b"))), (0o2777, 0o2777));
    }

    #[test]
    fn the_place_is_mounted_and_a_second_time_left_alone() {
        if !may_mount("mounting a subPath") {
            return;
        }
        let scratch = volume();
        let target = scratch.path("pod/volume-subpaths/v/c/0");
        prepare(&scratch.path("volume"), "dir", &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("inner")).unwrap(), "in");
        prepare(&scratch.path("volume"), "dir", &target).unwrap();
        assert_eq!(scratch.mounts(), std::slice::from_ref(&target));

        // The pod swaps the directory for a link; the next container start is refused and
        // what was mounted before did not move.
        fs::rename(scratch.path("volume/dir"), scratch.path("volume/moved")).unwrap();
        symlink("../outside", scratch.path("volume/dir")).unwrap();
        assert!(prepare(&scratch.path("volume"), "dir", &target).is_err());
        assert_eq!(fs::read_to_string(target.join("inner")).unwrap(), "in");
    }

    #[test]
    fn another_place_or_kind_replaces_what_was_mounted() {
        if !may_mount("mounting a subPath") {
            return;
        }
        let scratch = volume();
        let target = scratch.path("pod/0");
        let parent_mode = |path: &Path| mode(path.parent().unwrap());
        prepare(&scratch.path("volume"), "dir", &target).unwrap();
        prepare(&scratch.path("volume"), "file", &target).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "in");
        assert_eq!(scratch.mounts(), std::slice::from_ref(&target));
        assert_eq!(parent_mode(&target), TARGET_DIRECTORY_MODE);

        // An atomic writer replaces the file by another one of the same name.
        fs::remove_file(scratch.path("volume/file")).unwrap();
        fs::write(scratch.path("volume/file"), "newer").unwrap();
        prepare(&scratch.path("volume"), "file", &target).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "newer");
        prepare(&scratch.path("volume"), "dir", &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("inner")).unwrap(), "in");
        assert_eq!(scratch.mounts().len(), 1);
    }
}
