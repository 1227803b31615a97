use std::cell::Cell;
use std::fs;

use nix::sys::stat::lstat;

use super::measure::{pod_disk, pod_logs};
use super::*;

const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

struct World {
    directory: tempfile::TempDir,
    disks: Disks,
}

const PERIOD: Duration = Duration::from_secs(3600);

impl World {
    fn new(period: Option<Duration>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| directory.path().join(name);
        let disks = Disks::new(at("kubelet"), at("logs"), period, Lanes::new(Duration::from_secs(10)));
        World { directory, disks }
    }

    fn write(&self, path: &str, bytes: usize) {
        let path = self.directory.path().join(path);
        fs::create_dir_all(path.parent().expect("it is below the root")).expect("a directory");
        fs::write(path, vec![b'x'; bytes]).expect("a file");
    }

    fn usage(&self, path: &str) -> DiskUsage {
        DiskUsage::of(&lstat(&self.directory.path().join(path)).expect("it is there"))
    }
}

fn uid() -> PodUid {
    PodUid::new("a")
}

#[tokio::test]
async fn volumes_are_what_lies_in_them_and_are_walked_once_a_period() {
    let world = World::new(Some(PERIOD));
    let of = |plugin: &str| format!("kubelet/pods/a/volumes/{plugin}/v");
    for plugin in [EMPTY_DIR, "kubernetes.io~configmap", "kubernetes.io~secret", "kubernetes.io~csi"] {
        world.write(&format!("{}/file", of(plugin)), 10_000);
    }
    world.write("kubelet/pods/a/etc-hosts", 100);
    let pods = [uid()];
    let found = world.disks.volumes(&pods).await;
    let disk = &found[&uid()];
    let sum = [world.usage(&of(EMPTY_DIR)), world.usage(&format!("{}/file", of(EMPTY_DIR)))].into_iter().sum();
    let told: Vec<_> = disk.volumes.iter().map(|it| (it.name.as_str(), it.usage, it.is_ephemeral)).collect();
    assert_eq!(told, [("v", sum, true), ("v", sum, true), ("v", sum, false)], "a plugin's own tells otherwise");
    assert!(disk.volumes.iter().all(|it| it.file_system.capacity > 0));
    assert_eq!(disk.etc_hosts, world.usage("kubelet/pods/a/etc-hosts"));

    world.write(&format!("{}/more", of(EMPTY_DIR)), 10_000);
    let again = world.disks.volumes(&pods).await;
    assert_eq!(again[&uid()], *disk, "it is not due");
    assert!(world.disks.volumes(&[PodUid::new("b")]).await.is_empty(), "there is no such pod any more");
    let anew = world.disks.volumes(&pods).await;
    assert_ne!(anew[&uid()], *disk, "what was forgotten is walked anew");
}

#[tokio::test]
async fn nothing_is_walked_where_that_is_off_or_somebody_is_at_it() {
    let off = World::new(None);
    off.write("kubelet/pods/a/etc-hosts", 1);
    assert!(off.disks.volumes(&[uid()]).await.is_empty());
    let busy = World::new(Some(PERIOD));
    busy.write("kubelet/pods/a/etc-hosts", 1);
    let turn = busy.disks.turn(&uid()).expect("it is due");
    assert!(busy.disks.volumes(&[uid()]).await.is_empty());
    drop(turn);
    assert_eq!(busy.disks.volumes(&[uid()]).await.len(), 1);
}

#[test]
fn a_volume_that_takes_too_long_is_told_as_it_was_or_not_at_all_and_costs_no_other() {
    let world = World::new(Some(PERIOD));
    for volume in ["a", "b"] {
        world.write(&format!("kubelet/pods/a/volumes/{EMPTY_DIR}/{volume}/file"), 1);
    }
    let directory = world.directory.path().join("kubelet/pods/a");
    let names = |disk: &PodDisk| disk.volumes.iter().map(|it| it.name.clone()).collect::<Vec<_>>();
    let once = |may: &Cell<bool>| may.replace(false);
    let may = Cell::new(true);
    let first = pod_disk(&directory, None, || once(&may)).expect("the first has its time");
    assert_eq!(names(&first), ["a"]);
    let whole = pod_disk(&directory, None, || true).expect("both have");
    let none = pod_disk(&directory, Some(&whole), || false).expect("none has");
    assert_eq!(none, whole);
    assert!(pod_disk(&world.directory.path().join("kubelet/pods/b"), None, || true).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_walk_that_brought_nothing_is_not_begun_anew_before_it_is_due() {
    let world = World::new(Some(PERIOD));
    world.write("kubelet/pods/a/etc-hosts", 1);
    let begun = Instant::now();
    tokio::time::advance(WALK_MAX).await;
    let turn = world.disks.turn(&uid()).expect("it is due");
    turn.end(Err(io::ErrorKind::TimedOut.into()), begun, PERIOD);
    drop(turn);
    assert!(world.disks.volumes(&[uid()]).await.is_empty());
    tokio::time::advance(WALK_MAX * WALK_SHARE).await;
    assert!(world.disks.turn(&uid()).is_some());
}

#[tokio::test]
async fn a_walk_that_outlives_who_asked_is_told_to_who_asks_next() {
    let world = World::new(Some(PERIOD));
    world.write("kubelet/pods/a/etc-hosts", 1);
    let turn = world.disks.turn(&uid()).expect("it is due");
    assert!(world.disks.volumes(&[uid()]).await.is_empty(), "who asks meanwhile begins none");
    turn.end(pod_disk(&world.directory.path().join("kubelet/pods/a"), None, || true), Instant::now(), PERIOD);
    drop(turn);
    assert_eq!(world.disks.volumes(&[uid()]).await.len(), 1);
}

#[tokio::test]
async fn however_many_walks_hang_no_more_are_begun_than_a_few() {
    let world = World::new(Some(PERIOD));
    let turns: Vec<_> = (0..20).filter_map(|pod| world.disks.turn(&PodUid::new(pod.to_string()))).collect();
    assert_eq!(turns.len(), AT_ONCE_MAX);
    drop(turns);
    assert!(world.disks.turn(&uid()).is_some());
}

#[tokio::test]
async fn logs_are_all_files_of_a_container() {
    let world = World::new(None);
    let pod = PodRef { namespace: "shop".into(), name: "web".into(), uid: uid() };
    for (file, bytes) in [("main/0.log", 5000), ("main/0.log.20260101-120000.gz", 9000), ("own", 10)] {
        world.write(&format!("logs/shop_web_a/{file}"), bytes);
    }
    let gone = PodRef { uid: PodUid::new("b"), ..pod.clone() };
    let logs = world.disks.logs(vec![pod, gone]).await;
    let at = |file: &str| world.usage(&format!("logs/shop_web_a/{file}"));
    let main: DiskUsage = [at("main/0.log"), at("main/0.log.20260101-120000.gz")].into_iter().sum();
    let expected = PodLogs { own: Some(at("own")), containers: [("main".to_owned(), main)].into() };
    assert_eq!(logs[&uid()], expected);
    assert_eq!(logs[&PodUid::new("b")], PodLogs { own: Some(DiskUsage::default()), ..PodLogs::default() });
}

#[test]
fn logs_that_cannot_be_read_are_left_out_and_not_told_to_be_nothing() {
    let world = World::new(None);
    for file in ["main/0.log", "broken/0.log", "own"] {
        world.write(&format!("logs/pod/{file}"), 10);
    }
    let broken = |bad: &'static str| {
        move |path: &Path| match path.ends_with(bad) {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => disk_usage::of_files(path),
        }
    };
    let (directory, at) =
        (world.directory.path().join("logs/pod"), |file: &str| world.usage(&format!("logs/pod/{file}")));
    let main = [("main".to_owned(), at("main/0.log"))];
    let found = pod_logs(&directory, broken("broken"));
    assert_eq!(found, PodLogs { own: Some(at("own")), containers: main.into() });
    let found = pod_logs(&directory, broken("pod"));
    assert_eq!((found.own, found.containers.len()), (None, 2));
}
