//! Counters, gauges and histograms, as statics.

use std::cmp::Ordering;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::text::{Distribution, Kind, Page};

/// Series of one family. Labels are chosen so that there are far fewer; if there are not, the
/// rest counts as one.
const SERIES_MAX: usize = 500;
/// The value of all labels of that one.
const REST: &str = "other";

/// One family of a page.
pub trait Instrument: Sync {
    #[cfg(test)]
    fn name(&self) -> &'static str;
    fn write(&self, page: &mut Page);
}

/// What all families are: a name, what it means, and the names of its labels.
struct Head<const L: usize> {
    name: &'static str,
    help: &'static str,
    labels: [&'static str; L],
}

/// Values by the values of the labels, in their order.
struct Series<V, const L: usize>(Mutex<Vec<([Box<str>; L], V)>>);

impl<V, const L: usize> Series<V, L> {
    const fn new() -> Self {
        Series(Mutex::new(Vec::new()))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<([Box<str>; L], V)>> {
        self.0.lock().expect("nothing that counts can panic")
    }

    /// Changes the value under these labels, which is `first` if there is none yet.
    fn change(&self, labels: [&str; L], first: impl FnOnce() -> V, change: impl FnOnce(&mut V)) {
        let mut all = self.lock();
        let found = match find(&all, &labels) {
            Err(_) if all.len() >= SERIES_MAX => find(&all, &[REST; L]).map_err(|place| (place, [REST; L])),
            Err(place) => Err((place, labels)),
            Ok(place) => Ok(place),
        };
        let place = found.unwrap_or_else(|(place, labels)| {
            all.insert(place, (labels.map(Box::from), first()));
            place
        });
        change(&mut all[place].1);
    }
}

fn find<V, const L: usize>(all: &[([Box<str>; L], V)], labels: &[&str; L]) -> Result<usize, usize> {
    all.binary_search_by(|(known, _)| known.iter().map(|value| &**value).cmp(labels.iter().copied()))
}

impl<const L: usize> Head<L> {
    /// Writes each series. A family without labels is shown before anything was counted.
    fn write<V>(
        &self,
        page: &mut Page,
        kind: Kind,
        series: &Series<V, L>,
        empty: &V,
        write: impl Fn(&mut super::text::Family<'_>, &[(&str, &str)], &V),
    ) {
        let mut family = page.family(self.name, kind, self.help);
        let all = series.lock();
        if L == 0 && all.is_empty() {
            return write(&mut family, &[], empty);
        }
        for (values, value) in all.iter() {
            let labels: Vec<(&str, &str)> =
                self.labels.iter().copied().zip(values.iter().map(|value| &**value)).collect();
            write(&mut family, &labels, value);
        }
    }
}

/// A number of things that have happened.
pub struct Counter<const L: usize> {
    head: Head<L>,
    series: Series<u64, L>,
}

impl<const L: usize> Counter<L> {
    pub const fn new(name: &'static str, help: &'static str, labels: [&'static str; L]) -> Self {
        Counter { head: Head { name, help, labels }, series: Series::new() }
    }

    /// One more.
    pub fn add(&self, labels: [&str; L]) {
        self.series.change(labels, || 0, |count| *count += 1);
    }

    pub fn add_all(&self, labels: [&str; L], count: u64) {
        if count > 0 {
            self.series.change(labels, || 0, |sum| *sum += count);
        }
    }

    /// Shown from now on, though nothing was counted.
    pub fn begin(&self, labels: [&str; L]) {
        self.series.change(labels, || 0, |_| {});
    }

    #[cfg(test)]
    pub fn count(&self, labels: [&str; L]) -> u64 {
        let all = self.series.lock();
        find(&all, &labels).map_or(0, |place| all[place].1)
    }

    pub fn reset(&self) {
        self.series.lock().clear();
    }
}

impl<const L: usize> Instrument for Counter<L> {
    #[cfg(test)]
    fn name(&self) -> &'static str {
        self.head.name
    }

    fn write(&self, page: &mut Page) {
        self.head.write(page, Kind::Counter, &self.series, &0, |family, labels, count| {
            family.sample(labels, *count as f64);
        });
    }
}

/// A figure that rises and falls.
pub struct Gauge<const L: usize> {
    head: Head<L>,
    series: Series<f64, L>,
}

impl<const L: usize> Gauge<L> {
    pub const fn new(name: &'static str, help: &'static str, labels: [&'static str; L]) -> Self {
        Gauge { head: Head { name, help, labels }, series: Series::new() }
    }

    pub fn set(&self, labels: [&str; L], value: f64) {
        self.series.change(labels, || 0.0, |current| *current = value);
    }

    pub fn value(&self, labels: [&str; L]) -> Option<f64> {
        let all = self.series.lock();
        find(&all, &labels).ok().map(|place| all[place].1)
    }

    /// Counts one up, and down again when the answer is dropped.
    pub fn in_progress(&'static self, labels: [&str; L]) -> InProgress<L> {
        self.series.change(labels, || 0.0, |current| *current += 1.0);
        InProgress { gauge: self, labels: labels.map(Box::from) }
    }

    pub fn reset(&self) {
        self.series.lock().clear();
    }
}

impl<const L: usize> Instrument for Gauge<L> {
    #[cfg(test)]
    fn name(&self) -> &'static str {
        self.head.name
    }

    fn write(&self, page: &mut Page) {
        self.head.write(page, Kind::Gauge, &self.series, &0.0, |family, labels, value| {
            family.sample(labels, *value);
        });
    }
}

/// See [`Gauge::in_progress`].
#[must_use]
pub struct InProgress<const L: usize> {
    gauge: &'static Gauge<L>,
    labels: [Box<str>; L],
}

impl<const L: usize> Drop for InProgress<L> {
    fn drop(&mut self) {
        let labels = std::array::from_fn(|place| &*self.labels[place]);
        self.gauge.series.change(labels, || 0.0, |current| *current -= 1.0);
    }
}

/// How figures are distributed over buckets.
pub struct Histogram<const L: usize> {
    head: Head<L>,
    bounds: &'static [f64],
    series: Series<Tally, L>,
}

/// What one series of a histogram has counted.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tally {
    /// In each bucket, and above all of them.
    counts: Box<[u64]>,
    sum: f64,
}

impl Tally {
    pub(super) fn new(bounds: &[f64]) -> Self {
        Tally { counts: vec![0; bounds.len() + 1].into(), sum: 0.0 }
    }

    pub(super) fn note(&mut self, bounds: &[f64], value: f64) {
        let bucket = bounds.partition_point(|bound| bound.partial_cmp(&value) == Some(Ordering::Less));
        self.counts[bucket] += 1;
        self.sum += value;
    }

    /// Takes in what another one of the same bounds has counted.
    pub(super) fn add(&mut self, other: &Tally) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
        self.sum += other.sum;
    }

    pub(super) fn distribution<'a>(&'a self, bounds: &'a [f64]) -> Distribution<'a> {
        Distribution { bounds, counts: &self.counts, sum: self.sum }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.counts.iter().all(|count| *count == 0)
    }
}

impl<const L: usize> Histogram<L> {
    pub const fn new(
        name: &'static str,
        help: &'static str,
        labels: [&'static str; L],
        bounds: &'static [f64],
    ) -> Self {
        Histogram { head: Head { name, help, labels }, bounds, series: Series::new() }
    }

    pub fn observe(&self, labels: [&str; L], value: f64) {
        self.series.change(labels, || Tally::new(self.bounds), |tally| tally.note(self.bounds, value));
    }

    /// In seconds.
    pub fn took(&self, labels: [&str; L], duration: Duration) {
        self.observe(labels, duration.as_secs_f64());
    }
}

impl<const L: usize> Instrument for Histogram<L> {
    #[cfg(test)]
    fn name(&self) -> &'static str {
        self.head.name
    }

    fn write(&self, page: &mut Page) {
        let empty = Tally::new(self.bounds);
        self.head.write(page, Kind::Histogram, &self.series, &empty, |family, labels, tally| {
            family.distribution(labels, &tally.distribution(self.bounds));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(instrument: &dyn Instrument, expected: &[&str]) {
        let mut page = Page::new();
        instrument.write(&mut page);
        let text = page.into_string();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_counter_has_a_series_for_each_set_of_labels_in_their_order() {
        let counter = Counter::new("seen_total", "", ["kind", "code"]);
        check(&counter, &[]);
        for labels in [["b", "2"], ["a", "10"], ["b", "2"], ["a", "1"]] {
            counter.add(labels);
        }
        counter.begin(["c", ""]);
        let expected = [
            "seen_total{kind=\"a\",code=\"1\"} 1",
            "seen_total{kind=\"a\",code=\"10\"} 1",
            "seen_total{kind=\"b\",code=\"2\"} 2",
            "seen_total{kind=\"c\",code=\"\"} 0",
        ];
        check(&counter, &expected);
        assert_eq!((counter.count(["b", "2"]), counter.count(["b", "3"])), (2, 0));
        counter.reset();
        check(&counter, &[]);
    }

    #[test]
    fn what_has_no_labels_is_shown_from_the_start() {
        check(&Counter::new("a_total", "", []), &["a_total 0"]);
        check(&Gauge::new("a", "", []), &["a 0"]);
        let histogram = Histogram::new("a", "", [], &[1.0]);
        check(&histogram, &["a_bucket{le=\"1\"} 0", "a_bucket{le=\"+Inf\"} 0", "a_sum 0", "a_count 0"]);
    }

    #[test]
    fn too_many_series_count_as_one() {
        let counter = Counter::new("a_total", "", ["code"]);
        for code in 0..SERIES_MAX + 50 {
            counter.add([&code.to_string()]);
            counter.add([&code.to_string()]);
        }
        assert_eq!((counter.count(["1"]), counter.count([REST])), (2, 100));
        assert_eq!(counter.series.lock().len(), SERIES_MAX + 1);
    }

    #[test]
    fn what_is_in_progress_counts_until_it_is_dropped() {
        static GAUGE: Gauge<1> = Gauge::new("a", "", ["path"]);
        let first = GAUGE.in_progress(["x"]);
        let second = GAUGE.in_progress(["x"]);
        assert_eq!(GAUGE.value(["x"]), Some(2.0));
        drop((first, second));
        check(&GAUGE, &["a{path=\"x\"} 0"]);
    }

    #[test]
    fn a_figure_lies_in_the_bucket_whose_bound_it_reaches() {
        let histogram = Histogram::new("a", "", ["of"], &[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 2.0, 9.0] {
            histogram.observe(["x"], value);
        }
        let expected = [
            "a_bucket{of=\"x\",le=\"1\"} 2",
            "a_bucket{of=\"x\",le=\"2\"} 4",
            "a_bucket{of=\"x\",le=\"+Inf\"} 5",
            "a_sum{of=\"x\"} 14",
            "a_count{of=\"x\"} 5",
        ];
        check(&histogram, &expected);
    }
}
