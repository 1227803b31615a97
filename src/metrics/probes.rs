//! Results of probes: the page `/metrics/probes`. They are kept with their pod: once nobody holds
//! a tally, its series are gone.
//!
//! A tally may be replaced while its predecessor is yet held, and the durations do not say of which
//! pod of a name they are. What has the same labels is one series, as upstream's is: a page that has
//! one twice is refused as a whole.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::SECONDS;
use super::instruments::Tally as Durations;
use super::text::{Kind, Page};

/// Which probe, in upstream's order of labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    pub kind: &'static str,
    pub container: String,
    pub pod: String,
    pub namespace: String,
    pub pod_uid: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Successful,
    Failed,
    /// Nothing was learnt.
    Unknown,
}

const OUTCOMES: [(Outcome, &str); 3] =
    [(Outcome::Successful, "successful"), (Outcome::Failed, "failed"), (Outcome::Unknown, "unknown")];

/// What became of one probe of one container so far.
pub struct Tally {
    probe: Probe,
    results: Mutex<Results>,
}

struct Results {
    /// As many as there are outcomes.
    counts: [u64; 3],
    /// Of those that succeeded.
    durations: Durations,
}

impl Results {
    fn new() -> Self {
        Results { counts: [0; 3], durations: Durations::new(SECONDS) }
    }

    fn add(&mut self, other: &Results) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
        self.durations.add(&other.durations);
    }
}

static TALLIES: Mutex<Vec<Weak<Tally>>> = Mutex::new(Vec::new());

/// A tally that is shown for as long as it is held.
pub fn tally(probe: Probe) -> Arc<Tally> {
    let tally = Arc::new(Tally { probe, results: Mutex::new(Results::new()) });
    let mut tallies = tallies();
    tallies.retain(|tally| tally.strong_count() > 0);
    tallies.push(Arc::downgrade(&tally));
    tally
}

fn tallies() -> MutexGuard<'static, Vec<Weak<Tally>>> {
    // A list of what is shown is right whatever happened to who changed it last.
    TALLIES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tally {
    pub fn note(&self, outcome: Outcome, took: Duration) {
        let mut results = self.results();
        results.counts[outcome as usize] += 1;
        if outcome == Outcome::Successful {
            results.durations.note(SECONDS, took.as_secs_f64());
        }
    }

    fn results(&self) -> MutexGuard<'_, Results> {
        self.results.lock().expect("nothing that holds results can panic")
    }
}

pub fn write(page: &mut Page) {
    let all: Vec<Arc<Tally>> = tallies().iter().filter_map(Weak::upgrade).collect();
    write_all(page, &all);
}

fn write_all(page: &mut Page, all: &[Arc<Tally>]) {
    let mut counts = page.family("prober_probe_total", Kind::Counter, "Results of probes.");
    for (probe, results) in sums(all, |probe| probe) {
        let Probe { kind, container, pod, namespace, pod_uid } = probe;
        for (outcome, word) in OUTCOMES {
            let count = results.counts[outcome as usize];
            if count > 0 {
                let labels = [
                    ("probe_type", *kind),
                    ("result", word),
                    ("container", container),
                    ("pod", pod),
                    ("namespace", namespace),
                    ("pod_uid", pod_uid),
                ];
                counts.sample(&labels, count as f64);
            }
        }
    }
    let mut durations =
        page.family("prober_probe_duration_seconds", Kind::Histogram, "How long probes took that succeeded.");
    let of_pods = sums(all, |Probe { kind, container, pod, namespace, .. }| {
        [("probe_type", *kind), ("container", &**container), ("pod", &**pod), ("namespace", &**namespace)]
    });
    for (labels, results) in of_pods {
        if !results.durations.is_empty() {
            durations.distribution(&labels, &results.durations.distribution(SECONDS));
        }
    }
}

/// The results of all that have the same key.
fn sums<'t, K: Ord>(all: &'t [Arc<Tally>], key: impl Fn(&'t Probe) -> K) -> BTreeMap<K, Results> {
    let mut sums = BTreeMap::new();
    for tally in all {
        sums.entry(key(&tally.probe)).or_insert_with(Results::new).add(&tally.results());
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(pod: &str) -> Probe {
        Probe {
            kind: "Liveness",
            container: "main".to_owned(),
            pod: pod.to_owned(),
            namespace: "shop".to_owned(),
            pod_uid: "u".to_owned(),
        }
    }

    #[test]
    fn only_what_came_is_shown_and_only_success_has_a_duration() {
        let (well, ill) = (tally(probe("well")), tally(probe("ill")));
        well.note(Outcome::Successful, Duration::from_millis(20));
        well.note(Outcome::Unknown, Duration::from_secs(9));
        ill.note(Outcome::Failed, Duration::from_secs(9));
        let mut page = Page::new();
        write_all(&mut page, &[well, ill]);
        let text = page.into_string();
        let labels = |result: &str, pod: &str| {
            let of = format!("result=\"{result}\",container=\"main\",pod=\"{pod}\",namespace=\"shop\",pod_uid=\"u\"");
            format!("prober_probe_total{{probe_type=\"Liveness\",{of}}} 1")
        };
        let counted: Vec<&str> = text.lines().filter(|line| line.starts_with("prober_probe_total")).collect();
        assert_eq!(counted, [labels("failed", "ill"), labels("successful", "well"), labels("unknown", "well")]);
        let sums: Vec<&str> = text.lines().filter(|line| line.contains("_seconds_sum")).collect();
        let expected = "prober_probe_duration_seconds_sum{probe_type=\"Liveness\",container=\"main\",pod=\"well\",namespace=\"shop\"} 0.02";
        assert_eq!(sums, [expected]);
    }

    #[test]
    fn pods_of_one_name_and_tallies_that_were_replaced_make_no_series_twice() {
        let old = tally(probe("web"));
        let replaced = tally(probe("web"));
        let successor = tally(Probe { pod_uid: "v".to_owned(), ..probe("web") });
        let all = [old, replaced, successor];
        all.iter().for_each(|tally| tally.note(Outcome::Successful, Duration::from_secs(1)));
        let mut page = Page::new();
        write_all(&mut page, &all);
        let text = page.into_string();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let values = |name: &str| {
            let found = lines.iter().filter(|line| line.starts_with(name));
            found.filter_map(|line| line.rsplit(' ').next()).collect::<Vec<_>>()
        };
        assert_eq!(values("prober_probe_total{"), ["2", "1"], "{text}");
        assert_eq!(values("prober_probe_duration_seconds_sum{"), ["3"], "{text}");
    }

    #[test]
    fn what_nobody_holds_is_not_shown() {
        let is_shown = || {
            let mut page = Page::new();
            write(&mut page);
            page.into_string().contains("pod=\"kept-for-a-while\"")
        };
        let tally = tally(probe("kept-for-a-while"));
        tally.note(Outcome::Failed, Duration::ZERO);
        assert!(is_shown());
        drop(tally);
        assert!(!is_shown());
    }
}
