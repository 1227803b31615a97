//! The Linux machine through its trait.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::testing::{Scratch, may_mount, mode, names};
use super::*;
use crate::clock::Clock;

const PATIENCE: Duration = Duration::from_secs(30);

fn host(scratch: &Scratch) -> LinuxHost {
    LinuxHost::new(Roots::machine(scratch.path("kubelet")), PATIENCE, Clock::system())
}

fn text(error: HostError) -> String {
    let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
    error.to_string() + &source.unwrap_or_default()
}

#[tokio::test]
async fn files_are_replaced_whole_and_leave_nothing_behind() {
    let scratch = Scratch::new();
    let host = host(&scratch);
    let path = scratch.path("etc-hosts");
    for durability in [Durability::UntilReboot, Durability::ThroughPowerCut] {
        host.write_file(&path, b"one", 0o644, durability).await.unwrap();
        let reader = fs::File::open(&path).unwrap();
        // Left by a crash.
        fs::write(scratch.path(".etc-hosts.new"), "torn").unwrap();
        host.write_file(&path, b"two", 0o600, durability).await.unwrap();
        assert_eq!(std::io::read_to_string(reader).unwrap(), "one", "who has it open is not disturbed");
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), mode(&path)), ("two", 0o600));
        assert_eq!(names(scratch.root()).unwrap(), ["etc-hosts"]);
    }
    let written = fs::metadata(&path).unwrap().modified().unwrap();
    host.write_file(&path, b"two", 0o600, Durability::ThroughPowerCut).await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written);
}

#[tokio::test]
async fn files_are_read_within_bounds() {
    let scratch = Scratch::new();
    let host = host(&scratch);
    let path = scratch.file("file", "12345");
    assert_eq!(host.read_file(&path, 5).await.unwrap().unwrap(), b"12345");
    let error = text(host.read_file(&path, 4).await.unwrap_err());
    assert_eq!(error, format!("failed to read {}: larger than 4 bytes", path.display()));
    assert_eq!(host.read_file(&scratch.path("absent"), 4).await.unwrap(), None);
    assert!(host.read_file(scratch.root(), 4).await.is_err());

    // Nobody writes to it; opening it in the plain way would never come back.
    let fifo = scratch.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(
        text(host.read_file(&fifo, 4).await.unwrap_err()),
        format!("failed to read {}: not a regular file", fifo.display())
    );
}

#[tokio::test]
async fn the_end_of_a_file_is_cut_by_bytes_and_by_lines() {
    let scratch = Scratch::new();
    let host = host(&scratch);
    for (content, bytes, lines, tail) in [
        ("a\nb\nc\n", 100, None, "a\nb\nc\n"),
        ("a\nb\nc\n", 3, None, "\nc\n"),
        ("a\nb\nc\n", 100, Some(2), "b\nc\n"),
        ("a\nb\nc", 100, Some(2), "b\nc"),
        ("a\nb\nc\n", 100, Some(9), "a\nb\nc\n"),
        ("a\nb\nc\n", 3, Some(2), "\nc\n"),
        ("a\nb\n\n", 100, Some(1), "\n"),
        ("a\nb\n", 100, Some(0), ""),
        ("", 100, Some(2), ""),
    ] {
        let path = scratch.file("log", content);
        let read = host.read_tail(&path, bytes, lines).await.unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&read), tail, "{content:?} {bytes} {lines:?}");
    }
    assert_eq!(host.read_tail(&scratch.path("absent"), 9, None).await.unwrap(), None);
}

#[tokio::test]
async fn a_file_that_was_removed_meanwhile_is_not_compressed() {
    let scratch = Scratch::new();
    let host = host(&scratch);
    host.gzip(&scratch.path("gone")).await.unwrap();
    host.gzip(&scratch.file("here", "text")).await.unwrap();
    assert_eq!(names(scratch.root()).unwrap(), ["here.gz"]);
}

#[tokio::test]
async fn directories_get_their_mode_and_keep_what_others_set() {
    let scratch = Scratch::new();
    let host = host(&scratch);
    let path = scratch.path("a/b/c");
    host.make_dir(&path, 0o777).await.unwrap();
    assert_eq!((mode(&path), mode(&scratch.path("a"))), (0o777, 0o777));
    host.make_dir(&path, 0o700).await.unwrap();
    assert_eq!(mode(&path), 0o777);
    let file = scratch.file("file", "");
    assert!(host.make_dir(&file, 0o700).await.is_err());
    assert!(host.make_dir(&file.join("below"), 0o700).await.is_err());
    assert_eq!(host.list_dir(&scratch.path("a")).await.unwrap(), ["b"]);
    assert_eq!(host.list_dir(&scratch.path("absent")).await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn links_are_moved_and_what_is_gone_is_gone() {
    let scratch = Scratch::new();
    let host = host(&scratch);
    let link = scratch.path("link");
    for target in ["/one", "/two", "/two"] {
        host.symlink(Path::new(target), &link).await.unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
    }
    assert_eq!(names(scratch.root()).unwrap(), ["link"]);
    host.remove_file(&link).await.unwrap();
    host.remove_file(&link).await.unwrap();
    host.remove_tree(&link).await.unwrap();
}

#[tokio::test]
async fn pods_and_their_volumes_are_listed_off_the_disk() {
    let scratch = Scratch::new();
    let host = host(&scratch);
    assert_eq!(host.list_pod_dirs().await.unwrap(), []);
    for volume in ["kubernetes.io~secret/s", "kubernetes.io~secret/t", "kubernetes.io~csi/pv/mount"] {
        scratch.dir(&format!("kubelet/pods/u-1/volumes/{volume}"));
    }
    scratch.dir("kubelet/pods/u-2");
    let uid = PodUid::new("u-1");
    assert_eq!(host.list_pod_dirs().await.unwrap(), [uid.clone(), PodUid::new("u-2")]);
    let volumes: Vec<_> = host
        .list_pod_volumes(&uid)
        .await
        .unwrap()
        .into_iter()
        .map(|(plugin, name)| format!("{plugin}/{name}"))
        .collect();
    assert_eq!(volumes, ["kubernetes.io~csi/pv", "kubernetes.io~secret/s", "kubernetes.io~secret/t"]);
    assert_eq!(host.list_pod_volumes(&PodUid::new("u-2")).await.unwrap(), []);
}

#[tokio::test]
async fn a_mount_made_by_another_is_unmounted_before_anything_is_removed() {
    if !may_mount("mounting below a pod") {
        return;
    }
    let scratch = Scratch::new();
    let host = host(&scratch);
    let kept = scratch.file("data/kept", "x");
    let pod = scratch.dir("kubelet/pods/u-1");
    // Two on top of each other, one below a third.
    for point in ["volumes/p/v", "volumes/p/v", "volumes/p/v/deeper"] {
        fs::create_dir_all(pod.join(point)).unwrap();
        mounts::bind(scratch.path("data").to_str().unwrap(), &pod.join(point)).unwrap();
        fs::create_dir_all(scratch.path("data/deeper")).unwrap();
    }
    assert_eq!(scratch.mounts().len(), 3);
    host.remove_tree(&pod).await.unwrap();
    assert!(scratch.mounts().is_empty(), "{:?}", scratch.mounts());
    assert!(!pod.exists());
    assert!(kept.exists());
}

#[tokio::test]
async fn a_busy_mount_that_may_lose_data_keeps_the_tree() {
    if !may_mount("mounting below a pod") {
        return;
    }
    let scratch = Scratch::new();
    let host = host(&scratch);
    let pod = scratch.dir("kubelet/pods/u-1");
    let point = scratch.dir("kubelet/pods/u-1/volumes/p/v");
    scratch.file("kubelet/pods/u-1/beside", "x");
    // A stand-in for a block device or a file server: neither tmpfs nor a bind mount.
    let mounted = nix::mount::mount(Some("t"), &point, Some("ramfs"), nix::mount::MsFlags::empty(), None::<&str>);
    if let Err(error) = mounted {
        println!("skipped: no ramfs on this machine: {error}");
        return;
    }
    fs::write(point.join("file"), "x").unwrap();
    let open = fs::File::open(point.join("file")).unwrap();
    let error = text(host.remove_tree(&pod).await.unwrap_err());
    assert!(error.contains("cannot unmount") && error.contains("ramfs"), "{error}");
    assert!(pod.join("beside").exists() && point.join("file").exists());
    drop(open);
    host.remove_tree(&pod).await.unwrap();
    assert!(!pod.exists());
}

#[tokio::test]
async fn the_facts_of_this_machine_make_sense() {
    let scratch = Scratch::new();
    let facts = host(&scratch).facts().await.unwrap();
    assert!(facts.cpus > 0 && facts.memory_bytes > 1 << 20 && facts.root_fs_bytes > 1 << 20, "{facts:?}");
    assert!(facts.max_pids > 0 && !facts.kernel_version.is_empty() && !facts.boot_id.is_empty(), "{facts:?}");
    assert!(!facts.hostname.is_empty() && !facts.os_image.is_empty(), "{facts:?}");
}

#[tokio::test]
async fn a_cgroup_with_a_process_in_it_goes() {
    if !may_mount("making cgroups on this machine") {
        return;
    }
    let scratch = Scratch::new();
    let host = host(&scratch);
    let cgroup = CgroupPath(format!("/ferrolet-host-test-{}", std::process::id()));
    if let Err(error) = host.ensure_cgroup(&cgroup, &CgroupSettings::default()).await {
        println!("skipped: no cgroups can be made on this machine: {error}");
        return;
    }
    let directory = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].map(|root| Path::new(root).join(&cgroup.0[1..]));
    let directory = directory.into_iter().find(|directory| directory.exists()).unwrap();
    let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    fs::write(directory.join("cgroup.procs"), child.id().to_string()).unwrap();
    // Reaped by a thread of its own, as a shim would.
    let reaper = std::thread::spawn(move || child.wait());
    host.destroy_cgroup(&cgroup).await.unwrap();
    assert!(!directory.exists());
    assert!(!reaper.join().unwrap().unwrap().success());
    host.destroy_cgroup(&cgroup).await.unwrap();
}

#[test]
fn only_a_disk_that_does_not_answer_leaves_open_what_is_on_it() {
    let (what, path) = ("read", PathBuf::from("/a"));
    let second = Duration::from_secs(1);
    assert!(HostError::Timeout { what, path: path.clone(), after: second }.is_silence());
    assert!(HostError::Busy { what, path: path.clone(), doing: what, stuck: second }.is_silence());
    assert!(!HostError::Io { what, path, source: std::io::Error::other("bad block") }.is_silence());
}
