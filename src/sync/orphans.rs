//! What only this machine still knows: pods that no source has, and links to logs that are gone.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tracing::{debug, warn};

use super::{Context, start};
use crate::pleg::Named;
use crate::pod::{self, PodUid, Source};

/// Pods in the runtime, on disk or in a cgroup that are not among `known`, and where they came from.
pub async fn find(context: &Context, known: &BTreeSet<PodUid>) -> Vec<(Pod, Source)> {
    remove_dangling_links(context).await;
    context.cgroups.put_right().await;
    let mut found: BTreeSet<PodUid> = context.pleg.known().into_iter().collect();
    match context.volumes.known_on_disk().await {
        Ok(uids) => found.extend(uids),
        Err(error) => {
            warn!(error = &error as &dyn std::error::Error, "cannot look for leftover pod directories, will retry")
        }
    }
    match context.cgroups.found().await {
        Ok(uids) => found.extend(uids),
        Err(error) => {
            warn!(error = &error as &dyn std::error::Error, "cannot look for leftover pod cgroups, will retry")
        }
    }
    match context.host.list_dir(&context.config.pod_logs_dir).await {
        Ok(names) => found.extend(names.iter().filter_map(|name| pod::uid_of_log_directory(name)).map(PodUid::new)),
        Err(error) => {
            warn!(error = &error as &dyn std::error::Error, "cannot look for leftover pod logs, will retry")
        }
    }
    let mut pods = Vec::new();
    for uid in found.into_iter().filter(|uid| !known.contains(uid) && !uid.as_str().is_empty()) {
        // Of one that no list had yet only a read tells.
        if context.pleg.named(&uid).is_none()
            && let Err(error) = context.pleg.current(&uid).await
        {
            debug!(%uid, %error, "cannot read whose leftovers these are");
        }
        let pod = match context.pleg.named(&uid) {
            Some(Named { name, namespace, source }) => (orphan(&name, &namespace, &uid), source),
            None => (orphan("unknown", "unknown", &uid), Source::Api),
        };
        pods.push(pod);
    }
    pods
}

/// A pod of which nothing more is known, so that nothing of it can be started.
pub fn orphan(name: &str, namespace: &str, uid: &PodUid) -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            uid: Some(uid.to_string()),
            ..ObjectMeta::default()
        },
        ..Pod::default()
    }
}

/// Links to logs that are gone: the agent was cut off between a container and its link. Of what
/// still runs the log is only away for a moment, while it is rotated.
async fn remove_dangling_links(context: &Context) {
    let dir = &context.config.container_logs_dir;
    let dangling = match context.host.dangling_links(dir).await {
        Ok(names) => names,
        Err(error) => {
            return warn!(error = &error as &dyn std::error::Error, "cannot look for leftover log links, will retry");
        }
    };
    let known = context.pleg.known().into_iter().filter(|uid| !uid.as_str().is_empty());
    let pods: Vec<_> = known.filter_map(|uid| context.pleg.cached(&uid)).collect();
    // Of a pod that is listed and was not read yet nobody can tell what lives.
    if pods.iter().any(|pod| pod.is_empty()) {
        return;
    }
    let living = pods.iter().flat_map(|pod| &pod.containers).filter(|container| container.exit().is_none());
    let alive: BTreeSet<_> = living.map(start::link_to).collect();
    for link in dangling.iter().filter(|link| !alive.contains(*link)) {
        if let Err(error) = context.host.remove_file(&dir.join(link)).await {
            warn!(error = &error as &dyn std::error::Error, "leftover log link not removed, will retry");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::super::testing::Bed;
    use super::*;
    use crate::cri::testing::{container, exited, running};
    use crate::cri::{Container, ContainerState, Sandbox, SandboxState, labels};
    use crate::pleg::{self, PlegConfig};

    const GONE: &str = "gone_shop_c-1.log";

    /// A bed whose container logs directory has these links, which lead nowhere.
    fn with_links<'a>(names: impl IntoIterator<Item = &'a OsStr>) -> Bed {
        let bed = Bed::new("{containers: []}");
        let dir = &bed.context.config.container_logs_dir;
        fs::create_dir(dir).expect("a scratch directory");
        for name in names {
            symlink("/nowhere", dir.join(name)).expect("a scratch directory");
        }
        bed
    }

    /// Has all of this machine looked at, and says what is left in the container logs directory.
    async fn left(bed: &Bed) -> Vec<String> {
        find(&bed.context, &BTreeSet::from([PodUid::new("u")])).await;
        let left = fs::read_dir(&bed.context.config.container_logs_dir).expect("it is there");
        let mut left: Vec<_> =
            left.map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned()).collect();
        left.sort();
        left
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_to_a_log_that_is_gone_goes_unless_its_container_lives() {
        let of_pod = |container: Container| {
            let labels = [(labels::POD_UID, "u"), (labels::POD_NAME, "web-0"), (labels::POD_NAMESPACE, "shop")];
            let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
            Container { labels, ..container }
        };
        let cases = [
            ("web-0_shop_created-created-0.log", ContainerState::Created),
            ("web-0_shop_ended-ended-0.log", exited(0)),
            ("web-0_shop_lost-lost-0.log", ContainerState::Unknown),
            ("web-0_shop_runs-runs-0.log", running()),
        ];
        let [created, ended, lost, runs] = cases.each_ref().map(|(link, _)| *link);
        let bed = with_links([created, ended, lost, runs, GONE].map(OsStr::new));
        let dir = &bed.context.config.container_logs_dir;
        fs::write(dir.join("file"), "").expect("a scratch directory");
        symlink(dir.join("file"), dir.join("linked")).expect("a scratch directory");
        for ((_, state), name) in cases.into_iter().zip(["created", "ended", "lost", "runs"]) {
            bed.runtime.hold(of_pod(container(name, 0, state)));
        }
        // Of no pod, and so never read.
        bed.runtime.hold(container("foreign", 0, running()));
        let pleg = &bed.context.pleg;
        let listing = pleg::run(pleg.clone(), PlegConfig::default(), bed.context.clock.clone());
        timeout(Duration::from_millis(1), listing).await.expect_err("it goes on");
        let all = ["file", GONE, "linked", created, ended, lost, runs];
        assert_eq!(left(&bed).await, all, "the pod was not read yet");
        pleg.current(&PodUid::new("u")).await.expect("it is read");
        assert_eq!(left(&bed).await, ["file", "linked", created, lost, runs]);
    }

    #[tokio::test]
    async fn an_orphan_has_the_name_that_its_sandbox_has_although_no_list_had_it_yet() {
        let bed = Bed::new("{containers: []}");
        let uid = PodUid::new("late");
        fs::create_dir_all(bed.context.config.pod_logs_dir.join("shop_web-0_late")).expect("a scratch directory");
        bed.runtime.hold_sandbox(Sandbox {
            pod_uid: uid.to_string(),
            annotations: [("kubernetes.io/config.source".to_owned(), "file".to_owned())].into(),
            ..crate::cri::testing::sandbox("s", 0, SandboxState::Ready)
        });
        bed.context.pleg.mark_stale(&uid);
        let found = find(&bed.context, &BTreeSet::new()).await;
        assert_eq!(found, [(orphan("web-0", "shop", &uid), Source::File)]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_orphan_that_cannot_be_read_has_the_name_by_which_it_was_listed() {
        let bed = Bed::new("{containers: []}");
        let sandbox = crate::cri::testing::sandbox("s", 0, SandboxState::Ready);
        bed.runtime.hold_sandbox(Sandbox { pod_uid: "old".into(), ..sandbox });
        let listing = pleg::run(bed.context.pleg.clone(), PlegConfig::default(), bed.context.clock.clone());
        timeout(Duration::from_millis(1), listing).await.expect_err("it goes on");
        bed.runtime.refuse("PodSandboxStatus", "not now");
        let found = find(&bed.context, &BTreeSet::new()).await;
        assert_eq!(found, [(orphan("web-0", "shop", &PodUid::new("old")), Source::Api)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_that_cannot_be_removed_keeps_no_other_from_it() {
        // Names that are no text, whose nearest text is too long for a name.
        let odd: Vec<Vec<u8>> = (b'a'..=b'h').map(|letter| [&[letter][..], &[0xff; 99]].concat()).collect();
        let even: Vec<String> = (b'a'..=b'h').map(|letter| format!("{}_{GONE}", char::from(letter))).collect();
        let links = odd.iter().zip(&even).flat_map(|(odd, even)| [OsStr::from_bytes(odd), OsStr::new(even)]);
        let bed = with_links(links);
        let left = left(&bed).await;
        assert_eq!(left.len(), odd.len());
        assert!(left.iter().all(|name| !name.ends_with(".log")), "{left:?}");
    }
}
