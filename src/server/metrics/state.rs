//! Gauges that follow from what others hold anyway: computed when the page is asked for.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodStatus;
use tokio::time::Instant;

use super::About;
use crate::config::Stage;
use crate::cri::ContainerStateKind;
use crate::host::CgroupVersion;
use crate::metrics::pods::static_label;
use crate::metrics::text::{Kind, Page};
use crate::pleg::Census;
use crate::pod::PodRef;
use crate::pod::containers::ephemeral_containers;
use crate::server::Exhibits;
use crate::sync::{Known, KnownBy, Lifecycle, Work};
use crate::volumes::Total;

pub fn write(page: &mut Page, exhibits: &Exhibits, now: Instant, unix_seconds: f64) {
    let pods = exhibits.roster.all();
    wanted(page, &pods);
    resizes(page, &pods);
    gauge(page, "kubelet_mirror_pods", "Mirrors of static pods that the API has.", exhibits.mirrors.count());
    working(page, &exhibits.roster.work());
    volumes(page, &exhibits.volumes.totals(pods.iter().filter(|pod| is_active(pod)).map(|pod| &*pod.pod)));
    running(page, &exhibits.pleg.census());
    if let Some(listed_at) = exhibits.pleg.health().borrow().listed_at {
        let seconds = unix_seconds - now.saturating_duration_since(listed_at).as_secs_f64();
        page.family(
            "kubelet_pleg_last_seen_seconds",
            Kind::Gauge,
            "When all that the runtime holds was listed last, since 1970.",
        )
        .sample(&[], seconds.trunc());
    }
    about(page, &exhibits.about);
}

/// The only pods that are named on this page, as upstream names them here.
pub fn logs(page: &mut Page, of_containers: &[(PodRef, String, u64)]) {
    let mut family = page.family(
        "kubelet_container_log_filesystem_used_bytes",
        Kind::Gauge,
        "Bytes that the logs of a container take on the disk.",
    );
    for (pod, container, bytes) in of_containers {
        let labels =
            [("uid", pod.uid.as_str()), ("namespace", &pod.namespace), ("pod", &pod.name), ("container", container)];
        family.sample(&labels, *bytes as f64);
    }
}

fn gauge(page: &mut Page, name: &'static str, help: &'static str, count: usize) {
    page.family(name, Kind::Gauge, help).sample(&[], count as f64);
}

fn is_active(pod: &Known) -> bool {
    !matches!(pod.status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

fn wanted(page: &mut Page, pods: &[Known]) {
    let count = |is_static: bool, holds: fn(&Known) -> bool| {
        pods.iter().filter(|pod| pod.source.is_static() == is_static && holds(pod)).count() as f64
    };
    let mut desired = page.family("kubelet_desired_pods", Kind::Gauge, "Pods that should be on this node.");
    for is_static in [false, true] {
        desired.sample(&[("static", static_label(is_static))], count(is_static, |_| true));
    }
    let mut active =
        page.family("kubelet_active_pods", Kind::Gauge, "Pods that should be on this node and have not ended.");
    for is_static in [false, true] {
        active.sample(&[("static", static_label(is_static))], count(is_static, is_active));
    }
    let ephemeral = pods.iter().map(|pod| ephemeral_containers(&pod.pod).len()).sum();
    gauge(page, "kubelet_managed_ephemeral_containers", "Ephemeral containers of pods on this node.", ephemeral);
}

fn resizes(page: &mut Page, pods: &[Known]) {
    let reasons = |kind: &'static str| pods.iter().filter_map(move |pod| condition(&pod.status, kind));
    let under_way = reasons("PodResizeInProgress").count();
    gauge(page, "kubelet_pod_in_progress_resizes", "Pods that are being given other resources.", under_way);
    let mut pending: BTreeMap<String, usize> = BTreeMap::new();
    for reason in reasons("PodResizePending") {
        *pending.entry(reason.to_lowercase()).or_default() += 1;
    }
    let mut family =
        page.family("kubelet_pod_pending_resizes", Kind::Gauge, "Pods that wait for other resources, by why they do.");
    for (reason, count) in pending {
        family.sample(&[("reason", &reason)], count as f64);
    }
}

/// The reason of a condition that holds.
fn condition<'a>(status: &'a PodStatus, kind: &str) -> Option<&'a str> {
    let mut conditions = status.conditions.iter().flatten();
    let condition = conditions.find(|condition| condition.type_ == kind && condition.status == "True")?;
    Some(condition.reason.as_deref().unwrap_or_default())
}

/// Every combination that there can be, so that one that is over is seen to be.
fn working(page: &mut Page, work: &[Work]) {
    let mut family = page.family(
        "kubelet_working_pods",
        Kind::Gauge,
        "Pods that are worked on, by how far that is and who knows them.",
    );
    for (known_by, config_word) in
        [(KnownBy::Desired, "desired"), (KnownBy::Orphan, "orphan"), (KnownBy::RuntimeOnly, "runtime_only")]
    {
        for (lifecycle, lifecycle_word) in
            [(Lifecycle::Sync, "sync"), (Lifecycle::Terminating, "terminating"), (Lifecycle::Terminated, "terminated")]
        {
            let here = || work.iter().filter(|work| work.known_by == known_by && work.lifecycle == lifecycle);
            let mut sample = |static_word: &str, count: usize| {
                let labels = [("lifecycle", lifecycle_word), ("config", config_word), ("static", static_word)];
                family.sample(&labels, count as f64);
            };
            if known_by == KnownBy::RuntimeOnly {
                sample("unknown", here().count());
                continue;
            }
            for is_static in [false, true] {
                sample(static_label(is_static), here().filter(|work| work.is_static == is_static).count());
            }
        }
    }
}

fn running(page: &mut Page, census: &Census) {
    gauge(page, "kubelet_running_pods", "Pods whose sandbox is ready.", census.running_pods);
    let mut family =
        page.family("kubelet_running_containers", Kind::Gauge, "Containers that the runtime holds, by their state.");
    for (state, count) in &census.containers {
        let word = match state {
            ContainerStateKind::Created => "created",
            ContainerStateKind::Running => "running",
            ContainerStateKind::Exited => "exited",
            ContainerStateKind::Unknown => "unknown",
        };
        family.sample(&[("container_state", word)], *count as f64);
    }
}

fn volumes(page: &mut Page, totals: &BTreeMap<&'static str, Total>) {
    let mut family =
        page.family("volume_manager_total_volumes", Kind::Gauge, "Volumes of pods: those wanted, and those set up.");
    for (plugin, total) in totals {
        for (state, count) in [("desired_state_of_world", total.wanted), ("actual_state_of_world", total.set_up)] {
            family.sample(&[("plugin_name", plugin), ("state", state)], count as f64);
        }
    }
}

fn about(page: &mut Page, about: &About) {
    page.family("kubelet_node_name", Kind::Gauge, "The name of this node; always 1.")
        .sample(&[("node", &about.node_name)], 1.0);
    let version = match about.cgroup_version {
        CgroupVersion::V1 => 1,
        CgroupVersion::V2 => 2,
    };
    gauge(page, "kubelet_cgroup_version", "The version of cgroups that pods are in.", version);
    // That is what upstream calls figures that are read from cgroups and not asked of the runtime.
    page.family("kubelet_metrics_provider", Kind::Gauge, "Where /metrics/cadvisor has its figures from; always 1.")
        .sample(&[("provider", "cadvisor")], 1.0);
    let mut parts = about.version.trim_start_matches('v').split('.');
    let platform = format!("linux/{}", go_architecture());
    let labels = [
        ("major", parts.next().unwrap_or_default()),
        ("minor", parts.next().unwrap_or_default()),
        ("git_version", &about.version),
        ("git_commit", ""),
        ("git_tree_state", ""),
        ("build_date", ""),
        ("go_version", ""),
        ("compiler", "rustc"),
        ("platform", &platform),
    ];
    page.family("kubernetes_build_info", Kind::Gauge, "What this agent stands for; always 1.").sample(&labels, 1.0);
    let mut gates = page.family("kubernetes_feature_enabled", Kind::Gauge, "Whether a feature gate is on.");
    for (name, stage, is_on) in about.gates.all() {
        gates.sample(&[("name", name), ("stage", stage_label(stage))], if is_on { 1.0 } else { 0.0 });
    }
}

fn stage_label(stage: Stage) -> &'static str {
    match stage {
        Stage::Alpha => "ALPHA",
        Stage::Beta => "BETA",
        Stage::GA => "",
        Stage::Deprecated => "DEPRECATED",
    }
}

/// As the API names architectures.
fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(write: impl FnOnce(&mut Page)) -> Vec<String> {
        let mut page = Page::new();
        write(&mut page);
        page.into_string().lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    #[test]
    fn all_combinations_of_work_are_shown() {
        let work = |lifecycle, known_by, is_static| Work { lifecycle, known_by, is_static };
        let all = [
            work(Lifecycle::Sync, KnownBy::Desired, false),
            work(Lifecycle::Sync, KnownBy::Desired, false),
            work(Lifecycle::Terminating, KnownBy::Orphan, true),
            work(Lifecycle::Terminated, KnownBy::RuntimeOnly, true),
        ];
        let lines = lines(|page| working(page, &all));
        assert_eq!(lines.len(), 15);
        for expected in [
            "kubelet_working_pods{lifecycle=\"sync\",config=\"desired\",static=\"\"} 2",
            "kubelet_working_pods{lifecycle=\"terminating\",config=\"orphan\",static=\"true\"} 1",
            "kubelet_working_pods{lifecycle=\"terminated\",config=\"runtime_only\",static=\"unknown\"} 1",
            "kubelet_working_pods{lifecycle=\"sync\",config=\"desired\",static=\"true\"} 0",
        ] {
            assert!(lines.iter().any(|line| line == expected), "{expected} in {lines:?}");
        }
    }

    #[test]
    fn containers_are_counted_by_state() {
        let containers = BTreeMap::from([(ContainerStateKind::Running, 3), (ContainerStateKind::Exited, 1)]);
        let lines = lines(|page| running(page, &Census { running_pods: 2, containers }));
        let expected = [
            "kubelet_running_pods 2",
            "kubelet_running_containers{container_state=\"running\"} 3",
            "kubelet_running_containers{container_state=\"exited\"} 1",
        ];
        assert_eq!(lines, expected);
    }
}
