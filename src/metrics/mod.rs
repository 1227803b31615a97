//! What the agent counts of itself, under upstream's names.
//!
//! Like log lines, counts decide nothing and belong to the process: whoever does something adds
//! one to a static of the file of its subject, and nobody hands counters around. What follows
//! from a state that somebody holds anyway (how many pods run, when a certificate expires) is
//! not counted; the server asks for it when a page is read.
//!
//! `instruments.rs` has the kinds of counts, `text.rs` writes pages, `starts.rs` follows pods
//! until they run, `probes.rs` keeps the results of probes for as long as their pod is there,
//! `process.rs` reads what the kernel says of this process, `certificates.rs` keeps when certificates
//! expire. All others are lists of families.
//!
//! We have our own instruments because all are constants: no registry, nothing made lazily, and a
//! series is its label values and its figures. Of the crates, `prometheus-client` would add
//! `_total` to names, and `prometheus` keeps name, help and labels once more in each series,
//! which for 200 probes is half a megabyte of the twelve that are promised.
//!
//! Always true: counting never waits for anything but another count; a family has a bounded
//! number of series, whatever somebody sends; no pod is named by what is counted here, but for probes.

pub mod api;
pub mod certificates;
pub mod health;
pub mod http;
pub mod images;
mod instruments;
pub mod node;
pub mod pleg;
pub mod pods;
pub mod probes;
pub mod process;
pub mod resizes;
pub mod runtime;
pub mod starts;
pub mod text;
pub mod topology;
pub mod volumes;

pub use instruments::{Counter, Gauge, Histogram, InProgress, Instrument};

use text::Page;

/// Go's default bounds of durations in seconds.
const SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What a list of families looks like.
type Instruments = &'static [&'static dyn Instrument];

const ALL: &[Instruments] = &[
    pods::ALL,
    starts::ALL,
    pleg::ALL,
    runtime::ALL,
    images::ALL,
    volumes::ALL,
    resizes::ALL,
    topology::ALL,
    node::ALL,
    api::ALL,
    http::ALL,
];

/// Writes all that was counted, but for what has a page of its own.
pub fn write(page: &mut Page) {
    ALL.iter().copied().flatten().for_each(|instrument| instrument.write(page));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_families_have_one_name() {
        let names: Vec<&str> = ALL.iter().copied().flatten().map(|instrument| instrument.name()).collect();
        let distinct: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
    }
}
