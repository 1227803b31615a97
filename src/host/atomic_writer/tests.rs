use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use super::*;
use crate::host::testing::{Scratch, group, may_mount, mode, names};

fn file(path: &str, text: &str) -> PayloadFile {
    PayloadFile { path: path.into(), data: text.into(), mode: 0o644, uid: None }
}

fn options(stamp: &str) -> Options<'_> {
    Options { stamp, fs_group: None, durable: true }
}

/// A volume, and a writer that makes up its stamps.
struct Volume {
    _scratch: Scratch,
    path: PathBuf,
    writes: u32,
}

impl Volume {
    fn new() -> Self {
        let scratch = Scratch::new();
        Volume { path: scratch.dir("volume"), _scratch: scratch, writes: 0 }
    }

    fn write(&mut self, files: &[PayloadFile]) -> io::Result<bool> {
        self.write_until(files, usize::MAX).0
    }

    /// Stops before the step of that number. Also tells how many steps there were.
    fn write_until(&mut self, files: &[PayloadFile], stop: usize) -> (io::Result<bool>, usize) {
        self.writes += 1;
        let stamp = format!("..2026_03_01_08_00_00.{}", self.writes);
        let mut steps = 0;
        let result = write(&self.path, files, &options(&stamp), &mut |_| {
            steps += 1;
            if steps > stop { Err(io::Error::other("power cut")) } else { Ok(()) }
        });
        (result, steps)
    }

    /// What a container finds under the visible names; links to nothing are not found.
    fn visible(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for name in names(&self.path).unwrap().into_iter().filter(|name| !name.starts_with("..")) {
            collect(&self.path.join(&name), &name, &mut found);
        }
        found
    }

    /// What an application finds that follows `..data` itself.
    fn behind_data(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for name in names(&self.path.join(DATA)).unwrap() {
            collect(&self.path.join(DATA).join(&name), &name, &mut found);
        }
        found
    }

    fn hidden_names(&self) -> Vec<String> {
        names(&self.path).unwrap().into_iter().filter(|name| name.starts_with("..")).collect()
    }
}

fn collect(path: &Path, name: &str, found: &mut BTreeMap<String, String>) {
    if path.is_dir() {
        for below in names(path).unwrap() {
            collect(&path.join(&below), &format!("{name}/{below}"), found);
        }
    } else if let Ok(text) = fs::read_to_string(path) {
        found.insert(name.to_owned(), text);
    }
}

fn content(files: &[PayloadFile]) -> BTreeMap<String, String> {
    files.iter().map(|file| (file.path.clone(), String::from_utf8(file.data.clone()).unwrap())).collect()
}

#[test]
fn the_layout_is_the_one_applications_know() {
    let mut volume = Volume::new();
    assert!(volume.write(&[file("key", "1"), file("dir/below", "2")]).unwrap());

    let link = |name: &str| fs::read_link(volume.path.join(name)).unwrap();
    assert_eq!(link("..data"), Path::new("..2026_03_01_08_00_00.1"));
    assert_eq!(link("key"), Path::new("..data/key"));
    assert_eq!(link("dir"), Path::new("..data/dir"));
    assert_eq!(fs::read_to_string(volume.path.join("dir/below")).unwrap(), "2");
    assert_eq!(mode(&volume.path.join("..2026_03_01_08_00_00.1")), 0o755);
    assert_eq!(directory_name("2026-03-01T08:09:10Z".parse().unwrap(), 42), "..2026_03_01_08_09_10.42");
}

#[test]
fn equal_content_is_not_written_again() {
    let mut volume = Volume::new();
    let files = [file("a", "1"), file("d/b", "2")];
    assert!(volume.write(&files).unwrap());
    let (result, _) = volume.write_until(&files, usize::MAX);
    assert!(!result.unwrap());
    assert_eq!(volume.hidden_names(), ["..2026_03_01_08_00_00.1", "..data"]);
}

#[test]
fn each_kind_of_difference_is_seen() {
    let before = [file("a", "1"), file("d/b", "2")];
    let with_mode = |mode| PayloadFile { mode, ..file("a", "1") };
    for (what, after) in [
        ("content", vec![file("a", "x"), file("d/b", "2")]),
        ("length", vec![file("a", "11"), file("d/b", "2")]),
        ("mode", vec![with_mode(0o600), file("d/b", "2")]),
        ("added", vec![file("a", "1"), file("d/b", "2"), file("d/c", "3")]),
        ("removed", vec![file("a", "1")]),
        ("moved", vec![file("a", "1"), file("e/b", "2")]),
        ("file instead of directory", vec![file("a", "1"), file("d", "2")]),
        ("emptied", vec![]),
    ] {
        let mut volume = Volume::new();
        volume.write(&before).unwrap();
        assert!(volume.write(&after).unwrap(), "{what}");
        assert_eq!(volume.visible(), content(&after), "{what}");
        assert!(!volume.write(&after).unwrap(), "{what}, again");
    }
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    let mut volume = Volume::new();
    volume
        .write(&[PayloadFile { mode: 0o666, ..file("a", "1") }, PayloadFile { mode: 0o400, ..file("b", "1") }])
        .unwrap();
    assert_eq!(mode(&volume.path.join("..data/a")), 0o666);
    assert_eq!(mode(&volume.path.join("..data/b")), 0o400);
}

#[test]
fn a_crash_at_any_step_leaves_old_or_new_and_the_next_write_recovers() {
    let old = [file("a", "old"), file("gone", "old"), file("d/x", "old")];
    let new = [file("a", "new"), file("added", "new"), file("d/y", "new"), file("e/f/g", "new")];
    let mut crashes = 0;
    loop {
        let mut volume = Volume::new();
        volume.write(&old).unwrap();
        let (result, _) = volume.write_until(&new, crashes);
        let whole = result.is_ok();

        let seen = volume.visible();
        assert!(seen == content(&old) || seen == content(&new), "after {crashes} steps: {seen:?}");
        assert_eq!(volume.behind_data(), seen, "after {crashes} steps");

        // A second crash on top of the first, at each place in turn.
        for second in 0..3 {
            let _ = volume.write_until(&new, second);
            let seen = volume.visible();
            assert!(seen == content(&old) || seen == content(&new), "after {crashes} and {second} steps: {seen:?}");
        }
        volume.write(&new).unwrap();
        assert_eq!(volume.visible(), content(&new), "recovered from {crashes} steps");
        assert_eq!(volume.hidden_names().len(), 2, "recovered from {crashes} steps: {:?}", volume.hidden_names());
        let dangling = names(&volume.path).unwrap().into_iter().find(|name| !volume.path.join(name).exists());
        assert_eq!(dangling, None, "recovered from {crashes} steps");
        if whole {
            break;
        }
        crashes += 1;
    }
    assert!(crashes > 12, "only {crashes} steps were tried");
}

#[test]
fn a_crash_of_the_first_write_shows_nothing_or_all() {
    let files = [file("a", "1"), file("d/b", "2")];
    for stop in 0.. {
        let mut volume = Volume::new();
        let (result, _) = volume.write_until(&files, stop);
        let seen = volume.visible();
        assert!(seen.is_empty() || seen == content(&files), "after {stop} steps: {seen:?}");
        volume.write(&files).unwrap();
        assert_eq!(volume.visible(), content(&files));
        if result.is_ok() {
            return;
        }
    }
}

#[test]
fn leftovers_of_another_agent_are_cleaned_up() {
    let mut volume = Volume::new();
    let files = [file("a", "1")];
    volume.write(&files).unwrap();
    symlink("..2020_01_01_00_00_00.7", volume.path.join("..data_tmp")).unwrap();
    fs::create_dir_all(volume.path.join("..2020_01_01_00_00_00.7/deep")).unwrap();
    fs::write(volume.path.join("..2020_01_01_00_00_00.7/deep/file"), "x").unwrap();
    symlink("..data/stale", volume.path.join("stale")).unwrap();
    fs::remove_file(volume.path.join("a")).unwrap();
    symlink("elsewhere", volume.path.join("a")).unwrap();
    // A mount point made for another volume, and what is none of our business.
    fs::create_dir(volume.path.join("mount-point")).unwrap();
    symlink("/etc", volume.path.join("foreign")).unwrap();

    assert!(!volume.write(&files).unwrap());
    assert_eq!(names(&volume.path).unwrap(), ["..2026_03_01_08_00_00.1", "..data", "a", "foreign", "mount-point"]);
    assert_eq!(fs::read_to_string(volume.path.join("a")).unwrap(), "1");
}

#[test]
fn data_that_leads_elsewhere_is_not_followed() {
    let outside = Scratch::new();
    outside.file("secret", "host's own");
    for target in [outside.root().to_owned(), PathBuf::from("../.."), PathBuf::from("..gone")] {
        let mut volume = Volume::new();
        symlink(&target, volume.path.join(DATA)).unwrap();
        assert!(volume.write(&[file("secret", "ours")]).unwrap());
        assert_eq!(volume.visible(), content(&[file("secret", "ours")]));
    }
    let mut volume = Volume::new();
    fs::create_dir_all(volume.path.join(DATA).join("x")).unwrap();
    assert!(volume.write(&[file("a", "1")]).unwrap());
    assert_eq!(fs::read_to_string(outside.path("secret")).unwrap(), "host's own");
}

#[test]
fn paths_that_are_not_plain_are_refused_before_anything_is_written() {
    let long_name = "n".repeat(256);
    let long_path = "d/".repeat(2100) + "f";
    for path in ["", "/abs", "..", "../up", "a/../b", "..data", "..x", ".", "./a", "a/..", &long_name, &long_path] {
        let mut volume = Volume::new();
        let refused = volume.write(&[file("good", "1"), file(path, "2")]);
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidInput, "{path:?}");
        assert_eq!(names(&volume.path).unwrap(), [""; 0], "{path:?}");
    }
    let mut volume = Volume::new();
    assert!(volume.write(&[file(".hidden", "1"), file("a/..b", "2"), file("a/b.c", "3")]).unwrap());
}

#[test]
fn a_name_that_is_file_and_directory_at_once_is_an_error_and_the_old_stays() {
    let mut volume = Volume::new();
    volume.write(&[file("a", "1")]).unwrap();
    let error = volume.write(&[file("a", "1"), file("b", "2"), file("b/c", "3")]).unwrap_err();
    assert!(error.to_string().contains("\"b/c\""), "{error}");
    assert_eq!(volume.visible(), content(&[file("a", "1")]));
    assert!(!volume.write(&[file("a", "1")]).unwrap());
    assert_eq!(volume.hidden_names().len(), 2);
}

#[test]
fn a_mount_point_of_another_volume_stays_where_a_link_would_go() {
    let mut volume = Volume::new();
    fs::create_dir(volume.path.join("d")).unwrap();
    volume.write(&[file("a", "1"), file("d/hidden", "2")]).unwrap();
    volume.write(&[file("a", "2"), file("d/hidden", "2")]).unwrap();
    assert!(fs::symlink_metadata(volume.path.join("d")).unwrap().is_dir());
    assert_eq!(fs::read_to_string(volume.path.join("a")).unwrap(), "2");
    assert!(!volume.write(&[file("a", "2"), file("d/hidden", "2")]).unwrap());
}

#[test]
fn the_group_gets_what_it_needs_and_the_user_its_own_files() {
    if !may_mount("changing owners") {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.dir("volume");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    let files = [
        file("open", "1"),
        PayloadFile { mode: 0o600, uid: Some(1001), ..file("token", "2") },
        PayloadFile { mode: 0o400, ..file("d/closed", "3") },
    ];
    let write = |stamp: &str, gid: u32| {
        let options = Options { stamp, fs_group: Some(gid), durable: false };
        write(&path, &files, &options, &mut |_| Ok(())).unwrap()
    };
    assert!(write("..2026.1", 2000));
    for (below, wanted) in [
        ("", 0o2777),
        ("..data/", 0o2755),
        ("..data/open", 0o644),
        ("..data/token", 0o640),
        ("..data/d", 0o2755),
        ("..data/d/closed", 0o440),
    ] {
        let path = path.join(below);
        assert_eq!(
            (mode(&path.canonicalize().unwrap()), group(&path.canonicalize().unwrap())),
            (wanted, 2000),
            "{below}"
        );
    }
    assert_eq!(fs::metadata(path.join("token")).unwrap().uid(), 1001);
    let owner_of_link = |name: &str| fs::symlink_metadata(path.join(name)).unwrap().uid();
    assert_eq!((owner_of_link("token"), owner_of_link("open")), (1001, geteuid().as_raw()));
    assert!(!write("..2026.2", 2000), "nothing changed");
    assert!(write("..2026.3", 2001), "another group");
    assert_eq!(group(&path.join("..data/open")), 2001);
}
