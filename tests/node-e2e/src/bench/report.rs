//! The table.

use std::fmt::Write;

use super::agent::Measured;
use super::bare::Bare;
use super::{BURST_PODS, PROBED_CONTAINERS, PROBED_PODS, Part, RESTING_PODS, crowd, percentile};

#[derive(Default)]
pub struct Figures {
    pub bare: Bare,
    pub ferrolet: Measured,
    pub kubelet: Measured,
}

pub fn table(parts: &[Part], figures: &Figures) -> String {
    let Figures { bare, ferrolet, kubelet } = figures;
    let mut text = String::from("| what | bare CRI | Ferrolet | kubelet |\n| --- | --- | --- | --- |\n");
    for Row { what, unit, bare, of, .. } in rows(bare).into_iter().filter(|row| parts.contains(&row.part)) {
        let bare = cell(bare.unwrap_or(f64::NAN), unit);
        let cells = [bare, cell(of(ferrolet), unit), cell(of(kubelet), unit)];
        writeln!(text, "| {what} | {} |", cells.join(" | ")).expect("writing to a string");
    }
    text
}

/// What was not measured is no number.
fn cell(value: f64, unit: &str) -> String {
    if value.is_nan() { "–".to_owned() } else { format!("{value:.3} {unit}").trim_end().to_owned() }
}

fn rows(bare: &Bare) -> Vec<Row> {
    let probes = PROBED_PODS * PROBED_CONTAINERS * 2;
    let within = "  with a crowd";
    use Part::{Burst, Cgroups, Crowd, Hang, Pool, Probes, Rest, Restart, Scrape, Single, Static};
    vec![
        row(Single, "one pod, create → Ready, p50", "s", |agent| p50(&agent.singles)).bare(p50(&bare.singles)),
        row(Single, "one pod, create → Ready, p99", "s", |agent| p99(&agent.singles)).bare(p99(&bare.singles)),
        row(Burst, "100 pods at once, a pod", "s", |agent| a_pod(&agent.burst)).bare(a_pod(&bare.burst)),
        row(Burst, "agent CPU to start 100 pods", "s", |agent| p50(&agent.burst_cpu)),
        row(Rest, format!("agent CPU at rest, {RESTING_PODS} pods"), "%", |agent| p50(&agent.rest_cpu_percent)),
        row(Rest, format!("containerd CPU at rest, {RESTING_PODS} pods"), "%", |agent| {
            p50(&agent.rest_containerd_percent)
        }),
        row(Rest, "agent RSS, no pods", "MB", |agent| p50(&agent.rss_empty)),
        row(Rest, format!("agent RSS, {RESTING_PODS} pods"), "MB", |agent| p50(&agent.rss_full)),
        row(Rest, "  of it anonymous, not pages of the program", "MB", |agent| p50(&agent.anonymous_full)),
        row(Scrape, "/metrics/cadvisor, CPU of one scrape", "ms", |agent| agent.scrapes[0].cpu_ms),
        row(Scrape, "/metrics/cadvisor, as gzip", "ms", |agent| agent.scrapes[1].cpu_ms),
        row(Scrape, "/metrics/resource, CPU of one scrape", "ms", |agent| agent.scrapes[2].cpu_ms),
        row(Scrape, "/metrics/resource, as gzip", "ms", |agent| agent.scrapes[3].cpu_ms),
        row(Scrape, "/stats/summary, CPU of one answer", "ms", |agent| agent.scrapes[4].cpu_ms),
        row(Scrape, "/stats/summary, as gzip", "ms", |agent| agent.scrapes[5].cpu_ms),
        row(Scrape, "/metrics/cadvisor, bytes", "kB", |agent| agent.scrapes[0].kilobytes),
        row(Scrape, "/metrics/cadvisor, bytes as gzip", "kB", |agent| agent.scrapes[1].kilobytes),
        row(Scrape, "/metrics/resource, bytes", "kB", |agent| agent.scrapes[2].kilobytes),
        row(Scrape, "/metrics/resource, bytes as gzip", "kB", |agent| agent.scrapes[3].kilobytes),
        row(Scrape, "/stats/summary, bytes", "kB", |agent| agent.scrapes[4].kilobytes),
        row(Scrape, "/stats/summary, bytes as gzip", "kB", |agent| agent.scrapes[5].kilobytes),
        row(Scrape, "agent RSS before scrapes", "MB", |agent| p50(&agent.rss_before_scrapes)),
        row(Scrape, "agent RSS after scrapes", "MB", |agent| p50(&agent.rss_after_scrapes)),
        row(Crowd, "/healthz on a new connection, p50", "ms", |agent| p50(&agent.crowd.alone.new) * 1e3),
        row(Crowd, "/healthz on a new connection, p99", "ms", |agent| p99(&agent.crowd.alone.new) * 1e3),
        row(Crowd, "/healthz on a new connection, longest", "ms", |agent| longest(&agent.crowd.alone.new) * 1e3),
        row(Crowd, "/healthz on a kept connection, p50", "ms", |agent| p50(&agent.crowd.alone.kept) * 1e3),
        row(Crowd, "/healthz on a kept connection, p99", "ms", |agent| p99(&agent.crowd.alone.kept) * 1e3),
        row(Crowd, "/healthz on a kept connection, longest", "ms", |agent| longest(&agent.crowd.alone.kept) * 1e3),
        row(Crowd, format!("{within}, new connection, p50"), "ms", |agent| p50(&agent.crowd.crowded.new) * 1e3),
        row(Crowd, format!("{within}, new connection, p99"), "ms", |agent| p99(&agent.crowd.crowded.new) * 1e3),
        row(Crowd, format!("{within}, new connection, longest"), "ms", |agent| longest(&agent.crowd.crowded.new) * 1e3),
        row(Crowd, format!("{within}, new connection, late"), "%", |agent| late(&agent.crowd.crowded.new)),
        row(Crowd, format!("{within}, new connection, no answer"), "%", |agent| lost(&agent.crowd.crowded.new)),
        row(Crowd, format!("{within}, kept connection, p50"), "ms", |agent| p50(&agent.crowd.crowded.kept) * 1e3),
        row(Crowd, format!("{within}, kept connection, p99"), "ms", |agent| p99(&agent.crowd.crowded.kept) * 1e3),
        row(Crowd, format!("{within}, kept connection, longest"), "ms", |agent| {
            longest(&agent.crowd.crowded.kept) * 1e3
        }),
        row(Crowd, format!("{within}, kept connection, late"), "%", |agent| late(&agent.crowd.crowded.kept)),
        row(Crowd, format!("{within}, kept connection, no answer"), "%", |agent| lost(&agent.crowd.crowded.kept)),
        row(Crowd, "agent RSS before the crowd", "MB", |agent| p50(&agent.crowd.rss_alone)),
        row(Crowd, "agent RSS with it, the most", "MB", |agent| p50(&agent.crowd.rss_crowded)),
        row(Crowd, "agent RSS after it", "MB", |agent| p50(&agent.crowd.rss_after)),
        row(Crowd, "agent's open files with it, the most", "", |agent| p50(&agent.crowd.files)),
        row(Crowd, format!("connected of the {}", crowd::SIZE), "", |agent| p50(&agent.crowd.here)),
        row(Crowd, "  connections they make anew", "/s", |agent| p50(&agent.crowd.comings_a_second)),
        row(Crowd, "malformed requests", "/s", |agent| p50(&agent.crowd.malformed_a_second)),
        row(Crowd, "streams opened and reset", "/s", |agent| p50(&agent.crowd.resets_a_second)),
        row(Probes, format!("agent CPU with {probes} HTTP probes a second"), "%", |agent| {
            p50(&agent.probes_cpu_percent)
        }),
        row(Hang, "another pod's start, p50, nothing hangs", "s", |agent| p50(&agent.usual)),
        row(Hang, "another pod's start, p50, one pod's runtime call hangs", "s", |agent| p50(&agent.beside_hang)),
        row(Hang, "another pod's start, p99, nothing hangs", "s", |agent| p99(&agent.usual)),
        row(Hang, "another pod's start, p99, one pod's runtime call hangs", "s", |agent| p99(&agent.beside_hang)),
        row(Restart, "container exit → started again", "s", |agent| p50(&agent.restart)).bare(p50(&bare.containers)),
        row(Cgroups, "cgroups of one pod set up, system calls", "", |agent| agent.cgroups.set_up.calls),
        row(Cgroups, "cgroups of one pod set up, time in them", "ms", |agent| agent.cgroups.set_up.ms),
        row(Cgroups, "cgroups of one pod taken down, system calls", "", |agent| agent.cgroups.taken_down.calls),
        row(Cgroups, "cgroups of one pod taken down, time in them", "ms", |agent| agent.cgroups.taken_down.ms),
        row(Pool, format!("agent CPU at rest, {RESTING_PODS} pods, static CPU manager"), "%", |agent| {
            p50(&agent.pool.rest_cpu_percent)
        }),
        row(Pool, "containers in the shared pool of CPUs", "", |agent| p50(&agent.pool.containers)),
        row(Pool, "  a pod takes a CPU → all have the rest", "s", |agent| p50(&agent.pool.smaller)),
        row(Pool, "  it goes → all have it again", "s", |agent| p50(&agent.pool.larger)),
        row(Pool, "  agent CPU for both", "s", |agent| p50(&agent.pool.cpu)),
        row(Pool, "  cgroups and shares for one pod more, system calls", "", |agent| agent.pool.cgroups.set_up.calls),
        row(Pool, "  cgroups and shares for one pod more, time in them", "ms", |agent| agent.pool.cgroups.set_up.ms),
        row(Pool, "  cgroups and shares for one pod less, system calls", "", |agent| {
            agent.pool.cgroups.taken_down.calls
        }),
        row(Pool, "  cgroups and shares for one pod less, time in them", "ms", |agent| {
            agent.pool.cgroups.taken_down.ms
        }),
        row(Static, "agent start → static pod's sandbox", "s", |agent| p50(&agent.static_start)),
    ]
}

/// Of the seconds that many took at once.
fn a_pod(bursts: &[f64]) -> f64 {
    p50(bursts) / BURST_PODS as f64
}

fn p50(values: &[f64]) -> f64 {
    percentile(values, 50.0)
}

fn p99(values: &[f64]) -> f64 {
    percentile(values, 99.0)
}

fn longest(seconds: &[f64]) -> f64 {
    percentile(seconds, 100.0)
}

/// How many of a hundred took longer than was promised, those without an answer included.
fn late(seconds: &[f64]) -> f64 {
    percent_over(seconds, crowd::PROMISED.as_secs_f64())
}

fn lost(seconds: &[f64]) -> f64 {
    percent_over(seconds, f64::MAX)
}

fn percent_over(values: &[f64], limit: f64) -> f64 {
    let over = values.iter().filter(|value| **value > limit).count();
    over as f64 / values.len() as f64 * 100.0
}

struct Row {
    part: Part,
    what: String,
    unit: &'static str,
    bare: Option<f64>,
    of: fn(&Measured) -> f64,
}

impl Row {
    fn bare(self, value: f64) -> Row {
        Row { bare: Some(value), ..self }
    }
}

fn row(part: Part, what: impl Into<String>, unit: &'static str, of: fn(&Measured) -> f64) -> Row {
    Row { part, what: what.into(), unit, bare: None, of }
}
