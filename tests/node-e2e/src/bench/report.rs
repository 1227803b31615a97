//! The table.

use std::fmt::Write;

use super::agent::Measured;
use super::bare::Bare;
use super::{BURST_PODS, RESTING_PODS, percentile};

pub struct Figures {
    pub bare: Bare,
    pub ferrolet: Measured,
    pub kubelet: Measured,
}

pub fn table(figures: &Figures) -> String {
    let Figures { bare, ferrolet, kubelet } = figures;
    let mut rows = vec![
        row("one pod, create → Ready, p50", "s", Some(percentile(&bare.singles, 50.0)), |agent| {
            percentile(&agent.singles, 50.0)
        }),
        row("one pod, create → Ready, p99", "s", Some(percentile(&bare.singles, 99.0)), |agent| {
            percentile(&agent.singles, 99.0)
        }),
    ];
    rows.push(row("100 pods at once, a pod", "s", Some(bare.burst / BURST_PODS as f64), |agent| {
        agent.burst / BURST_PODS as f64
    }));
    rows.push(row("agent CPU to start 100 pods", "s", None, |agent| agent.burst_cpu));
    rows.push(row(&format!("agent CPU at rest, {RESTING_PODS} pods"), "%", None, |agent| agent.rest_cpu_percent));
    rows.push(row(&format!("containerd CPU at rest, {RESTING_PODS} pods"), "%", None, |agent| {
        agent.rest_containerd_percent
    }));
    rows.push(row("agent RSS, no pods", "MB", None, |agent| agent.rss_empty));
    rows.push(row(&format!("agent RSS, {RESTING_PODS} pods"), "MB", None, |agent| agent.rss_full));
    rows.push(row("  of it anonymous, not pages of the program", "MB", None, |agent| agent.anonymous_full));
    rows.push(row("container exit → started again", "s", Some(bare.container), |agent| agent.restart));
    rows.push(row("agent start → static pod's sandbox", "s", None, |agent| agent.static_start));

    let mut text = String::from("| what | bare CRI | Ferrolet | kubelet |\n| --- | --- | --- | --- |\n");
    for Row { what, unit, bare, of } in rows {
        let bare = bare.map_or_else(|| "–".to_owned(), |value| format!("{value:.3} {unit}"));
        let cells = [bare, format!("{:.3} {unit}", of(ferrolet)), format!("{:.3} {unit}", of(kubelet))];
        writeln!(text, "| {what} | {} |", cells.join(" | ")).expect("writing to a string");
    }
    text
}

struct Row {
    what: String,
    unit: &'static str,
    bare: Option<f64>,
    of: fn(&Measured) -> f64,
}

fn row(what: &str, unit: &'static str, bare: Option<f64>, of: fn(&Measured) -> f64) -> Row {
    Row { what: what.to_owned(), unit, bare, of }
}
