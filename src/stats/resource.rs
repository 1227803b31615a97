//! `/metrics/resource`: CPU, memory and swap of node, pods and containers, which is what
//! metrics-server reads. Pure.

use std::collections::BTreeMap;

use super::survey::{Cgroup, Instance, PodSurvey, ROOT, Survey};
use crate::metrics::text::{Kind, Labels, Page, labels};

const NANOSECONDS: f64 = 1e9;

/// Whose figures a family tells.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Node,
    Pods,
    Containers,
}

struct Column {
    name: &'static str,
    of: Of,
    kind: Kind,
    help: &'static str,
    value: fn(&Cgroup) -> Option<f64>,
}

const COLUMNS: &[Column] = &[
    column("container_cpu_usage_seconds_total", Of::Containers, Kind::Counter, "CPU time a container has used", cpu),
    column("container_memory_working_set_bytes", Of::Containers, Kind::Gauge, "Working set of a container", memory),
    column(
        "container_swap_limit_bytes",
        Of::Containers,
        Kind::Gauge,
        "How much a container may have in swap",
        swap_limit,
    ),
    column("container_swap_usage_bytes", Of::Containers, Kind::Gauge, "What a container has in swap", swap),
    column("node_cpu_usage_seconds_total", Of::Node, Kind::Counter, "CPU time the node has used", cpu),
    column("node_memory_working_set_bytes", Of::Node, Kind::Gauge, "Working set of the node", memory),
    column("node_swap_usage_bytes", Of::Node, Kind::Gauge, "What the node has in swap", swap),
    column("pod_cpu_usage_seconds_total", Of::Pods, Kind::Counter, "CPU time a pod has used", cpu),
    column("pod_memory_working_set_bytes", Of::Pods, Kind::Gauge, "Working set of a pod", memory),
    column("pod_swap_usage_bytes", Of::Pods, Kind::Gauge, "What a pod has in swap", swap),
];

const fn column(
    name: &'static str,
    of: Of,
    kind: Kind,
    help: &'static str,
    value: fn(&Cgroup) -> Option<f64>,
) -> Column {
    Column { name, of, kind, help, value }
}

fn cpu(cgroup: &Cgroup) -> Option<f64> {
    cgroup.figures.cpu.usage_ns.map(|usage| usage as f64 / NANOSECONDS)
}

fn memory(cgroup: &Cgroup) -> Option<f64> {
    cgroup.figures.memory.working_set.map(|bytes| bytes as f64)
}

fn swap(cgroup: &Cgroup) -> Option<f64> {
    cgroup.figures.memory.swap.map(|bytes| bytes as f64)
}

fn swap_limit(cgroup: &Cgroup) -> Option<f64> {
    cgroup.figures.memory.swap.and(cgroup.spec.swap_limit).map(|bytes| bytes as f64)
}

/// The page; of a reading that failed, that it did.
pub fn page(survey: Option<&Survey>) -> String {
    let mut page = Page::new();
    if let Some(survey) = survey {
        let newest = newest(&survey.pods);
        let pods: Vec<(Labels, &PodSurvey)> = newest.iter().map(|pod| (of_pod(pod), *pod)).collect();
        let containers: Vec<(Labels, &Instance)> = newest.iter().flat_map(|pod| of_containers(pod)).collect();
        let nobody = labels(&[]);
        for column in COLUMNS {
            let mut family = page.family(column.name, column.kind, column.help);
            let mut tell = |labels: &Labels, cgroup: Option<&Cgroup>| {
                if let Some((cgroup, value)) = cgroup.and_then(|cgroup| Some((cgroup, (column.value)(cgroup)?))) {
                    family.sample_of(labels, &[], value, Some(cgroup.figures.unix_millis));
                }
            };
            match column.of {
                Of::Node => tell(&nobody, survey.level(ROOT)),
                Of::Pods => pods.iter().for_each(|(labels, pod)| tell(labels, pod.whole().as_deref())),
                Of::Containers => containers.iter().for_each(|(labels, it)| tell(labels, it.cgroup.as_ref())),
            }
        }
        let mut family =
            page.family("container_start_time_seconds", Kind::Gauge, "When a container was made, in Unix time");
        for (labels, container) in &containers {
            family.sample_of(labels, &[], container.created_at.as_nanosecond() as f64 / NANOSECONDS, None);
        }
    }
    let failed = if survey.is_none() { 1.0 } else { 0.0 };
    page.family("resource_scrape_error", Kind::Gauge, "1 if the figures could not be read").sample(&[], failed);
    page.into_string()
}

/// Of pods of one name, the one that was made last. While one ends and another takes its place,
/// there are two, which this page cannot tell apart; a page that has a series twice is refused as a
/// whole. A sum of both would fall when the older one goes, which counters must not; a new pod's
/// counter that begins anew is what readers know from restarts.
fn newest(pods: &[PodSurvey]) -> Vec<&PodSurvey> {
    let mut by_name: BTreeMap<(&str, &str), &PodSurvey> = BTreeMap::new();
    for pod in pods {
        let known = by_name.entry((&pod.namespace, &pod.name)).or_insert(pod);
        let rank = |pod: &PodSurvey| (pod.whole().is_some(), pod.created_at, pod.uid.clone());
        if rank(pod) > rank(known) {
            *known = pod;
        }
    }
    by_name.into_values().collect()
}

fn of_pod(pod: &PodSurvey) -> Labels {
    labels(&[("namespace", &pod.namespace), ("pod", &pod.name)])
}

/// The newest instance of each container: one that cannot be killed may yet run beside it.
fn of_containers(pod: &PodSurvey) -> impl Iterator<Item = (Labels, &Instance)> {
    let mut by_name: BTreeMap<&str, &Instance> = BTreeMap::new();
    for container in &pod.containers {
        let known = by_name.entry(&container.name).or_insert(container);
        let rank = |container: &Instance| (container.cgroup.is_some(), container.created_at);
        if rank(container) > rank(known) {
            *known = container;
        }
    }
    by_name.into_values().map(|container| {
        let pairs = [("container", &*container.name), ("namespace", &*pod.namespace), ("pod", &*pod.name)];
        (labels(&pairs), container)
    })
}
