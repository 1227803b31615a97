//! The table.

use std::fmt::Write;

use super::agent::Measured;
use super::bare::Bare;
use super::{BURST_PODS, PROBED_CONTAINERS, PROBED_PODS, Part, RESTING_PODS, percentile};

pub struct Figures {
    pub bare: Bare,
    pub ferrolet: Measured,
    pub kubelet: Measured,
}

pub fn table(parts: &[Part], figures: &Figures) -> String {
    let Figures { bare, ferrolet, kubelet } = figures;
    let mut text = String::from("| what | bare CRI | Ferrolet | kubelet |\n| --- | --- | --- | --- |\n");
    for Row { what, unit, bare, of, .. } in rows(bare).into_iter().filter(|row| parts.contains(&row.part)) {
        let bare = bare.map_or_else(|| "–".to_owned(), |value| format!("{value:.3} {unit}"));
        let cells = [bare, format!("{:.3} {unit}", of(ferrolet)), format!("{:.3} {unit}", of(kubelet))];
        writeln!(text, "| {what} | {} |", cells.join(" | ")).expect("writing to a string");
    }
    text
}

fn rows(bare: &Bare) -> Vec<Row> {
    let p50 = |values: &[f64]| percentile(values, 50.0);
    let p99 = |values: &[f64]| percentile(values, 99.0);
    let probes = PROBED_PODS * PROBED_CONTAINERS * 2;
    use Part::{Burst, Hang, Probes, Rest, Restart, Single, Static};
    vec![
        row(Single, "one pod, create → Ready, p50", "s", |agent| percentile(&agent.singles, 50.0))
            .bare(p50(&bare.singles)),
        row(Single, "one pod, create → Ready, p99", "s", |agent| percentile(&agent.singles, 99.0))
            .bare(p99(&bare.singles)),
        row(Burst, "100 pods at once, a pod", "s", |agent| agent.burst / BURST_PODS as f64)
            .bare(bare.burst / BURST_PODS as f64),
        row(Burst, "agent CPU to start 100 pods", "s", |agent| agent.burst_cpu),
        row(Rest, format!("agent CPU at rest, {RESTING_PODS} pods"), "%", |agent| agent.rest_cpu_percent),
        row(Rest, format!("containerd CPU at rest, {RESTING_PODS} pods"), "%", |agent| agent.rest_containerd_percent),
        row(Rest, "agent RSS, no pods", "MB", |agent| agent.rss_empty),
        row(Rest, format!("agent RSS, {RESTING_PODS} pods"), "MB", |agent| agent.rss_full),
        row(Rest, "  of it anonymous, not pages of the program", "MB", |agent| agent.anonymous_full),
        row(Probes, format!("agent CPU with {probes} HTTP probes a second"), "%", |agent| agent.probes_cpu_percent),
        row(Hang, "another pod's start, p99, nothing hangs", "s", |agent| percentile(&agent.usual, 99.0)),
        row(Hang, "another pod's start, p99, one pod's runtime call hangs", "s", |agent| {
            percentile(&agent.beside_hang, 99.0)
        }),
        row(Restart, "container exit → started again", "s", |agent| agent.restart).bare(bare.container),
        row(Static, "agent start → static pod's sandbox", "s", |agent| agent.static_start),
    ]
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
