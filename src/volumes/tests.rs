//! Volumes on a real machine in a scratch directory, with a cluster in memory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;

use super::*;
use crate::causes::chain;
use crate::clock::Clock;
use crate::config::quantity;
use crate::host::testing::{Scratch, group, may_mount, mode, names};
use crate::host::{LinuxHost, Roots};
use crate::kube::fake::FakeCluster;
use crate::kube::{Cluster, ObjectState};
use crate::pod::testing::{pod_yaml, yaml};

const UID: &str = "0b1d2f6c-1111-2222-3333-444455556666";

struct Bed {
    scratch: Scratch,
    cluster: FakeCluster,
    objects: Objects,
    volumes: Volumes,
}

impl Bed {
    fn new() -> Self {
        let scratch = Scratch::new();
        let cluster = FakeCluster::default();
        let shared: Arc<dyn Cluster> = Arc::new(cluster.clone());
        let objects = Objects::new(Some(Arc::clone(&shared)), Arc::new(|_: &PodUid| {}));
        let tokens = Tokens::new(Some(shared), Clock::system());
        let volumes = volumes(&scratch, &objects, &tokens);
        Bed { scratch, cluster, objects, volumes }
    }

    /// What a new agent would see.
    fn restart(&mut self) {
        self.volumes = volumes(&self.scratch, &self.objects, &Tokens::new(None, Clock::system()));
    }

    fn pod_dir(&self) -> PathBuf {
        self.scratch.path("kubelet/pods").join(UID)
    }

    fn volume(&self, below: &str) -> PathBuf {
        self.pod_dir().join("volumes").join(below)
    }

    fn show(&self, name: &str, map: &str) {
        let map: ConfigMap = yaml(map);
        self.cluster.send_config_map("shop", name, ObjectState::Present(Box::new(map)));
    }

    async fn mounts(&self, pod: &Pod) -> Result<Vec<cri::Mount>, VolumeError> {
        let env = BTreeMap::from([("POD".to_owned(), b"web-0".to_vec())]);
        let image = ReadyImage { image_ref: "sha256:data".into(), uid: Some(0), username: String::new() };
        let images = BTreeMap::from([("image".to_owned(), image)]);
        let means = Means { env: &env, recursive_read_only: false, images: &images };
        self.volumes.container_mounts(pod, &spec(pod).containers[0], &means).await
    }
}

fn volumes(scratch: &Scratch, objects: &Objects, tokens: &Tokens) -> Volumes {
    let host = LinuxHost::new(Roots::machine(scratch.path("kubelet")), Duration::from_secs(30), Clock::system());
    let amounts: Amounts = BTreeMap::from([("memory".to_owned(), quantity::parse("1Gi").unwrap())]);
    let allocatable: Allocatable = Arc::new(move || amounts.clone());
    Volumes::new(Arc::new(host), objects.clone(), tokens.clone(), allocatable, scratch.path("kubelet"))
}

fn configured_pod(more: &str) -> Pod {
    pod_yaml(&format!(
        "
        spec:
          volumes: [{{name: conf, configMap: {{name: settings}}}}{more}]
          containers: [{{name: c, volumeMounts: [{{name: conf, mountPath: /conf}}]}}]
        "
    ))
}

#[tokio::test]
async fn a_config_map_is_written_and_a_change_reaches_the_file() {
    let bed = Bed::new();
    let pod = configured_pod("");
    bed.objects.register(&pod);
    bed.show("settings", "{metadata: {resourceVersion: '1'}, data: {k: one}}");
    bed.volumes.mount(&pod).await.unwrap();
    let file = bed.volume("kubernetes.io~configmap/conf/k");
    assert_eq!(fs::read_to_string(&file).unwrap(), "one");
    assert_eq!(
        bed.mounts(&pod).await.unwrap()[0].host_path,
        bed.volume("kubernetes.io~configmap/conf").to_str().unwrap()
    );

    bed.show("settings", "{metadata: {resourceVersion: '2'}, data: {k: two, new: x}}");
    // The watch is read by a task of its own.
    while fs::read_to_string(&file).unwrap() != "two" {
        bed.volumes.refresh(&pod).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(fs::read_to_string(file.with_file_name("new")).unwrap(), "x");
}

/// A mounted pod whose config map is deleted, so that it cannot be refreshed any more.
async fn bereft_of_a_map() -> (Bed, Pod) {
    let bed = Bed::new();
    let pod = configured_pod("");
    bed.objects.register(&pod);
    bed.show("settings", "{data: {k: one}}");
    bed.volumes.mount(&pod).await.unwrap();
    bed.cluster.send_config_map("shop", "settings", ObjectState::Absent);
    // The watch is read by a task of its own.
    while bed.volumes.refresh(&pod).await.is_ok() {
        tokio::task::yield_now().await;
    }
    (bed, pod)
}

#[tokio::test]
async fn a_container_starts_again_although_what_its_volume_shows_is_gone() {
    let (bed, pod) = bereft_of_a_map().await;
    bed.volumes.mount_missing(&pod, &spec(&pod).containers[0]).await.unwrap();
}

#[tokio::test]
async fn nothing_is_written_when_nothing_changed_even_by_a_new_agent() {
    let mut bed = Bed::new();
    let pod = configured_pod("");
    bed.objects.register(&pod);
    bed.show("settings", "{data: {k: one}}");
    bed.volumes.mount(&pod).await.unwrap();
    let data = || {
        fs::read_link(bed.scratch.path("kubelet/pods").join(UID).join("volumes/kubernetes.io~configmap/conf/..data"))
            .unwrap()
    };
    let first = data();
    bed.volumes.mount(&pod).await.unwrap();
    bed.volumes.refresh(&pod).await.unwrap();
    assert_eq!(data(), first);

    let file = bed.volume("kubernetes.io~configmap/conf/k");
    bed.restart();
    bed.volumes.mount(&pod).await.unwrap();
    assert_eq!(fs::read_link(file.with_file_name("..data")).unwrap(), first);

    // A new agent does look at the disk: it repairs what was torn meanwhile.
    fs::write(&file, "torn").unwrap();
    bed.restart();
    bed.volumes.mount(&pod).await.unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "one");
}

#[tokio::test]
async fn each_volume_that_fails_is_named_and_the_others_are_set_up() {
    let bed = Bed::new();
    let pod = pod_yaml(
        "
        spec:
          volumes:
          - {name: conf, configMap: {name: settings, items: [{key: nope, path: x}]}}
          - {name: none, configMap: {name: gone}}
          - {name: share, nfs: {server: s, path: /}}
          - {name: dev, hostPath: {path: /dev/null, type: Directory}}
          - {name: bad, configMap: {name: settings, items: [{key: k, path: ../../escape}]}}
          - {name: good}
          containers:
          - name: c
            volumeMounts:
            - {name: conf, mountPath: /a}
            - {name: none, mountPath: /b}
            - {name: share, mountPath: /c}
            - {name: dev, mountPath: /d}
            - {name: good, mountPath: /e}
            - {name: bad, mountPath: /f}
        ",
    );
    bed.objects.register(&pod);
    bed.show("settings", "{data: {k: one}}");
    bed.cluster.send_config_map("shop", "gone", ObjectState::Absent);
    let error = bed.volumes.mount(&pod).await.unwrap_err();
    let VolumeError::SetUp(failed) = &error else { panic!("{error}") };
    let texts: Vec<_> = failed.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 5, "{texts:?}");
    assert!(
        texts[0].starts_with("MountVolume.SetUp failed for volume \"bad\" : failed to write volume "),
        "{}",
        texts[0]
    );
    assert!(texts[0].ends_with("path \"../../escape\" starts with '..'"), "{}", texts[0]);
    assert_eq!(
        texts[1..],
        [
            "MountVolume.SetUp failed for volume \"conf\" : configmap references non-existent config key: nope",
            "MountVolume.SetUp failed for volume \"dev\" : hostPath type check failed: /dev/null is not a directory",
            "MountVolume.SetUp failed for volume \"none\" : configmap \"gone\" not found",
            "MountVolume.SetUp failed for volume \"share\" : volume type \"nfs\" is not supported yet",
        ]
    );
    assert_eq!(error.to_string(), texts.join("; "));
    assert_eq!(error.texts(), texts, "one event for each");
    assert!(bed.volume("kubernetes.io~empty-dir/good").is_dir());
    assert!(!bed.scratch.path("kubelet/pods/escape").exists());
}

#[tokio::test]
async fn a_failed_refresh_leaves_the_old_content() {
    let (bed, _) = bereft_of_a_map().await;
    assert_eq!(fs::read_to_string(bed.volume("kubernetes.io~configmap/conf/k")).unwrap(), "one");
}

#[tokio::test]
async fn a_large_config_map_is_no_problem() {
    let bed = Bed::new();
    let pod = configured_pod("");
    bed.objects.register(&pod);
    let text = "x".repeat(1 << 20);
    bed.show("settings", &format!("{{data: {{k: {text}}}}}"));
    bed.volumes.mount(&pod).await.unwrap();
    assert_eq!(fs::metadata(bed.volume("kubernetes.io~configmap/conf/k")).unwrap().len(), 1 << 20);
}

#[tokio::test]
async fn an_empty_dir_keeps_its_content_and_its_marker() {
    let mut bed = Bed::new();
    let pod = pod_yaml(
        "spec: {volumes: [{name: d, emptyDir: {}}], containers: [{name: c, volumeMounts: [{name: d, mountPath: /d}]}]}",
    );
    bed.volumes.mount(&pod).await.unwrap();
    let volume = bed.volume("kubernetes.io~empty-dir/d");
    let marker = bed.pod_dir().join("plugins/kubernetes.io~empty-dir/d/ready");
    assert_eq!(mode(&volume), 0o777);
    assert!(marker.is_file());

    fs::write(volume.join("file"), "kept").unwrap();
    // The container's own idea of its directory is left alone.
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o700)).unwrap();
    bed.restart();
    bed.volumes.mount(&pod).await.unwrap();
    assert_eq!((mode(&volume), names(&volume).unwrap()), (0o700, vec!["file".to_owned()]));

    // Set-up that was cut short before the marker is done again.
    fs::remove_file(&marker).unwrap();
    bed.restart();
    bed.volumes.mount(&pod).await.unwrap();
    assert!(marker.is_file());
}

#[tokio::test]
async fn memory_volumes_are_mounted_once_and_taken_down_with_the_pod() {
    if !may_mount("mounting tmpfs") {
        return;
    }
    let mut bed = Bed::new();
    let pod = pod_yaml(
        "
        metadata: {labels: {app: web}}
        spec:
          securityContext: {fsGroup: 2000}
          volumes:
          - {name: mem, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
          - {name: info, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
          containers:
          - name: c
            volumeMounts:
            - {name: mem, mountPath: /m}
            - {name: mem, mountPath: /s, subPathExpr: logs/$(POD)}
            - {name: info, mountPath: /i}
        ",
    );
    bed.volumes.mount(&pod).await.unwrap();
    bed.volumes.mount(&pod).await.unwrap();
    let memory = bed.volume("kubernetes.io~empty-dir/mem");
    assert_eq!((mode(&memory), group(&memory)), (0o3777, 2000));
    assert!(fs::write(memory.join("too-large"), vec![0; 2 << 20]).is_err(), "the size limit holds");
    fs::remove_file(memory.join("too-large")).unwrap();
    let labels = bed.volume("kubernetes.io~downward-api/info/labels");
    assert_eq!(fs::read_to_string(&labels).unwrap(), "app=\"web\"");
    assert_eq!(group(&labels.canonicalize().unwrap()), 2000);
    assert_eq!(bed.scratch.mounts().len(), 2);

    let mounts = bed.mounts(&pod).await.unwrap();
    let sub_path = bed.pod_dir().join("volume-subpaths/mem/c/1");
    assert_eq!(mounts[1].host_path, sub_path.to_str().unwrap());
    assert_eq!(bed.scratch.mounts().len(), 3);
    fs::write(sub_path.join("log"), "line").unwrap();
    assert_eq!(fs::read_to_string(memory.join("logs/web-0/log")).unwrap(), "line");

    bed.restart();
    bed.volumes.mount(&pod).await.unwrap();
    assert_eq!(bed.scratch.mounts().len(), 3);
    assert_eq!(bed.volumes.known_on_disk().await.unwrap(), [PodUid::new(UID)]);

    // Someone still has a file open: the mount goes all the same.
    let open = fs::File::open(sub_path.join("log")).unwrap();
    bed.volumes.unmount(&PodUid::new(UID)).await.unwrap();
    drop(open);
    assert!(bed.scratch.mounts().is_empty(), "{:?}", bed.scratch.mounts());
    assert!(!bed.pod_dir().exists());
    assert!(bed.volumes.known_on_disk().await.unwrap().is_empty());
    bed.volumes.unmount(&PodUid::new(UID)).await.unwrap();
}

#[tokio::test]
async fn host_paths_and_what_lies_behind_sub_paths_outlive_the_pod() {
    if !may_mount("mounting a subPath") {
        return;
    }
    let bed = Bed::new();
    let kept = bed.scratch.file("srv/data/kept", "x");
    let srv = bed.scratch.path("srv");
    let pod = pod_yaml(&format!(
        "
        spec:
          volumes: [{{name: h, hostPath: {{path: {}, type: Directory}}}}]
          containers: [{{name: c, volumeMounts: [{{name: h, mountPath: /h, subPath: data}}]}}]
        ",
        srv.display()
    ));
    bed.volumes.mount(&pod).await.unwrap();
    let mounts = bed.mounts(&pod).await.unwrap();
    assert_eq!(fs::read_to_string(Path::new(&mounts[0].host_path).join("kept")).unwrap(), "x");
    bed.volumes.unmount(&PodUid::new(UID)).await.unwrap();
    assert_eq!(fs::read_to_string(kept).unwrap(), "x");
}

#[tokio::test]
async fn a_root_dir_behind_a_symlink_is_cleaned_up_just_the_same() {
    if !may_mount("mounting tmpfs") {
        return;
    }
    let bed = Bed::new();
    bed.scratch.dir("real");
    std::os::unix::fs::symlink("real", bed.scratch.path("kubelet")).unwrap();
    let pod = pod_yaml(
        "spec: {volumes: [{name: d, emptyDir: {medium: Memory}}], containers: [{name: c, volumeMounts: [{name: d, mountPath: /d}]}]}",
    );
    bed.volumes.mount(&pod).await.unwrap();
    assert_eq!(bed.scratch.mounts().len(), 1);
    bed.volumes.unmount(&PodUid::new(UID)).await.unwrap();
    assert!(bed.scratch.mounts().is_empty());
    assert!(!bed.scratch.path("real/pods").join(UID).exists());
}

#[tokio::test]
async fn sub_path_errors_do_not_show_the_host() {
    let bed = Bed::new();
    let pod = pod_yaml(
        "spec: {volumes: [{name: d, emptyDir: {}}], containers: [{name: c, volumeMounts: [{name: d, mountPath: /d, subPath: link/x}]}]}",
    );
    bed.volumes.mount(&pod).await.unwrap();
    std::os::unix::fs::symlink("/etc", bed.volume("kubernetes.io~empty-dir/d/link")).unwrap();
    let error = bed.mounts(&pod).await.unwrap_err();
    assert_eq!(error.to_string(), "failed to prepare subPath for volumeMount \"d\" of container \"c\"");
    assert!(chain(&error).contains("leads out of the volume"), "{}", chain(&error));
}

#[tokio::test]
async fn a_mount_of_no_volume_is_named() {
    let bed = Bed::new();
    let pod = pod_yaml("spec: {containers: [{name: c, volumeMounts: [{name: d, mountPath: /d}]}]}");
    bed.volumes.mount(&pod).await.unwrap();
    let error = bed.mounts(&pod).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot find volume \"d\" to mount into container \"c\"");
}

#[tokio::test]
async fn a_uid_that_leads_elsewhere_is_refused() {
    let bed = Bed::new();
    let kept = bed.scratch.file("kubelet/kept", "x");
    for uid in ["..", "", "a/../..", "/"] {
        let refused = bed.volumes.unmount(&PodUid::new(uid)).await;
        assert!(matches!(refused, Err(VolumeError::BadUid(_))), "{uid:?}");
    }
    assert!(kept.exists());
}

#[tokio::test]
async fn an_image_is_mounted_by_the_runtime() {
    let bed = Bed::new();
    let pod = pod_yaml(
        "
        metadata: {name: web, namespace: shop, uid: u, annotations: {a: b}}
        spec:
          volumes: [{name: image, image: {reference: 'reg.example/data:1'}}]
          containers:
          - name: c
            volumeMounts: [{name: image, mountPath: /all}, {name: image, mountPath: /part, subPath: a/b}]
        ",
    );
    bed.volumes.mount(&pod).await.expect("nothing is set up on the host");
    let mounts = bed.mounts(&pod).await.expect("the image is there");
    let told: Vec<_> = mounts
        .iter()
        .map(|mount| {
            let image = mount.image.as_ref().map(|image| image.image.as_str());
            (mount.container_path.as_str(), image, mount.image_sub_path.as_str(), mount.readonly)
        })
        .collect();
    assert_eq!(told, [("/all", Some("sha256:data"), "", true), ("/part", Some("sha256:data"), "a/b", true)]);
    assert!(mounts.iter().all(|mount| mount.host_path.is_empty() && !mount.selinux_relabel));
    let image = mounts[0].image.as_ref().expect("it is one");
    assert_eq!(image.user_specified_image, "reg.example/data:1");
    assert_eq!(image.annotations.get("a").map(String::as_str), Some("b"));
}
