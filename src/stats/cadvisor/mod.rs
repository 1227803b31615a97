//! `/metrics/cadvisor`: all that is known of every cgroup, in cAdvisor's names. Pure.
//!
//! Left out of what upstream shows is what never has another value there: load averages, states of
//! tasks and health (nothing fills them in), and what machines of other kinds have.
//!
//! A page of many pods is megabytes, so it is handed over family by family.

mod columns;
mod disks;
mod machine;

use super::cgroup::Figures;
use super::disks::FileSystem;
use super::machine::Topology;
use super::network::{Interface, Traffic};
use super::survey::{Cgroup, Instance, PodSurvey, ROOT, Survey};
use crate::host::MachineFacts;
use crate::metrics::text::{Kind, Labels, Page, labels};
use columns::{COLUMNS, Column, Stamp};

/// What beside the survey is on the page.
pub struct Context<'a> {
    /// For the next three: `None` where it could not be read, which costs what is told of it only.
    pub survey: Option<&'a Survey>,
    pub facts: Option<&'a MachineFacts>,
    pub topology: Option<Topology>,
    /// The node's own file system and that of images; one may be both.
    pub file_systems: Vec<FileSystem>,
    pub unix_millis: i64,
}

/// One cgroup, with the labels all its samples have.
struct Row<'a> {
    labels: Labels,
    cgroup: &'a Cgroup,
    /// Of the root and of sandboxes.
    interfaces: &'a [Interface],
}

/// Hands the page to `take`, a family at a time.
pub fn write(context: &Context<'_>, mut take: impl FnMut(String)) {
    let rows = context.survey.map(rows).unwrap_or_default();
    let mut room = 0;
    let mut tell = |write: &mut dyn FnMut(&mut Page)| {
        // Most families are about as long as the one before.
        let mut page = Page::with_room(room);
        write(&mut page);
        let text = page.into_string();
        if !text.is_empty() {
            room = text.len() + text.len() / 8;
            take(text);
        }
    };
    tell(&mut |page| machine::write(page, context));
    for column in COLUMNS {
        tell(&mut |page| of_column(page, column, &rows));
    }
    tell(&mut |page| last_seen(page, &rows, context.unix_millis));
    tell(&mut |page| faults(page, &rows));
    disks::write(&mut tell, &rows, context);
    for (name, help, value) in NETWORK {
        tell(&mut |page| network(page, name, help, *value, &rows));
    }
    tell(&mut |page| errors(page, context));
}

fn errors(page: &mut Page, context: &Context<'_>) {
    let mut tell = |name, help, has_failed| {
        page.family(name, Kind::Gauge, help).sample(&[], if has_failed { 1.0 } else { 0.0 });
    };
    tell("container_scrape_error", "1 if cgroups could not be read", context.survey.is_none());
    let of_machine = context.facts.is_none() || context.topology.is_none();
    tell("machine_scrape_error", "1 if the machine could not be read", of_machine);
}

fn rows(survey: &Survey) -> Vec<Row<'_>> {
    let levels = survey.levels.iter().chain(&survey.strays).map(|cgroup| Row {
        labels: rendered(cgroup, None, None),
        cgroup,
        interfaces: if cgroup.id == ROOT { &survey.machine.interfaces } else { &[] },
    });
    levels.chain(survey.pods.iter().flat_map(rows_of_pod)).collect()
}

fn rows_of_pod(pod: &PodSurvey) -> impl Iterator<Item = Row<'_>> {
    let own =
        pod.cgroup.as_ref().map(|cgroup| Row { labels: rendered(cgroup, Some(pod), None), cgroup, interfaces: &[] });
    let sandbox = pod.sandbox.as_ref().and_then(|sandbox| row_of(pod, sandbox, &pod.network));
    let containers = pod.containers.iter().filter_map(move |container| row_of(pod, container, &[]));
    own.into_iter().chain(sandbox).chain(containers)
}

fn row_of<'a>(pod: &'a PodSurvey, instance: &'a Instance, interfaces: &'a [Interface]) -> Option<Row<'a>> {
    let cgroup = instance.cgroup.as_ref()?;
    Some(Row { labels: rendered(cgroup, Some(pod), Some(instance)), cgroup, interfaces })
}

fn rendered(cgroup: &Cgroup, pod: Option<&PodSurvey>, instance: Option<&Instance>) -> Labels {
    let of_pod = |value: fn(&PodSurvey) -> &str| pod.map_or("", value);
    let of_instance = |value: fn(&Instance) -> &str| instance.map_or("", value);
    labels(&[
        ("container", of_instance(|instance| &instance.name)),
        ("id", &cgroup.id),
        ("image", of_instance(|instance| &instance.image)),
        ("name", of_instance(|instance| &instance.id)),
        ("namespace", of_pod(|pod| &pod.namespace)),
        ("pod", of_pod(|pod| &pod.name)),
    ])
}

fn of_column(page: &mut Page, column: &Column, rows: &[Row<'_>]) {
    let mut family = page.family(column.name, column.kind, column.help);
    for row in rows {
        if let Some(value) = (column.value)(row.cgroup) {
            family.sample_of(&row.labels, column.more, value, stamp(column.stamp, &row.cgroup.figures));
        }
    }
}

fn stamp(stamp: Stamp, figures: &Figures) -> Option<i64> {
    (stamp == Stamp::Read).then_some(figures.unix_millis)
}

fn last_seen(page: &mut Page, rows: &[Row<'_>], unix_millis: i64) {
    let mut family = page.family("container_last_seen", Kind::Gauge, "When a cgroup was read last, in Unix time");
    for row in rows {
        family.sample_of(&row.labels, &[], unix_millis.div_euclid(1000) as f64, Some(unix_millis));
    }
}

fn faults(page: &mut Page, rows: &[Row<'_>]) {
    let mut family = page.family("container_memory_failures_total", Kind::Counter, "Page faults");
    for row in rows {
        let (memory, at) = (&row.cgroup.figures.memory, Some(row.cgroup.figures.unix_millis));
        let own = memory.own_faults.unwrap_or(memory.faults);
        for (scope, found) in [("container", own), ("hierarchy", memory.faults)] {
            for (kind, count) in [("pgfault", found.all), ("pgmajfault", found.major)] {
                if let Some(count) = count {
                    family.sample_of(&row.labels, &[("failure_type", kind), ("scope", scope)], count as f64, at);
                }
            }
        }
    }
}

type OfTraffic = fn(&Interface) -> u64;

fn in_(interface: &Interface) -> &Traffic {
    &interface.received
}

fn out(interface: &Interface) -> &Traffic {
    &interface.sent
}

const NETWORK: &[(&str, &str, OfTraffic)] = &[
    ("container_network_receive_bytes_total", "Bytes received", |it| in_(it).bytes),
    ("container_network_receive_errors_total", "Packets received with errors", |it| in_(it).errors),
    ("container_network_receive_packets_dropped_total", "Packets dropped on receipt", |it| in_(it).dropped),
    ("container_network_receive_packets_total", "Packets received", |it| in_(it).packets),
    ("container_network_transmit_bytes_total", "Bytes sent", |it| out(it).bytes),
    ("container_network_transmit_errors_total", "Packets not sent for errors", |it| out(it).errors),
    ("container_network_transmit_packets_dropped_total", "Packets dropped before they were sent", |it| out(it).dropped),
    ("container_network_transmit_packets_total", "Packets sent", |it| out(it).packets),
];

fn network(page: &mut Page, name: &'static str, help: &'static str, value: OfTraffic, rows: &[Row<'_>]) {
    let mut family = page.family(name, Kind::Counter, help);
    for row in rows {
        for interface in row.interfaces {
            let at = Some(row.cgroup.figures.unix_millis);
            family.sample_of(&row.labels, &[("interface", &interface.name)], value(interface) as f64, at);
        }
    }
}
