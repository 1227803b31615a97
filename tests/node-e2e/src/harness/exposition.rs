//! Pages of samples in Prometheus' text format: reading them, and telling what of two pages
//! differs in kind. Values differ between any two nodes; families, types and labels must not.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    pub name: String,
    /// `counter`, `gauge`, `histogram`, ...
    pub kind: String,
    pub samples: Vec<Sample>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// With what the family's samples are called beside its name: `_bucket`, `_sum`, `_count`.
    pub suffix: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
    /// In milliseconds.
    pub at: Option<i64>,
}

/// Refuses what a scraper would refuse, and what no page should have: a family that comes twice,
/// a sample that comes twice, a last line that does not end.
pub fn parse(text: &str) -> Result<Vec<Family>> {
    ensure!(text.is_empty() || text.ends_with('\n'), "the last line does not end: {:?}", text.lines().last());
    let mut families: Vec<Family> = Vec::new();
    let mut told = BTreeSet::new();
    for line in text.lines() {
        match line.strip_prefix("# ").map(|comment| comment.split_once(' ')) {
            Some(Some(("TYPE", rest))) => {
                let (name, kind) = rest.split_once(' ').with_context(|| format!("no type in {line:?}"))?;
                ensure!(families.iter().all(|family| family.name != name), "family {name} comes twice");
                families.push(Family { name: name.to_owned(), kind: kind.to_owned(), samples: Vec::new() });
            }
            Some(_) => {}
            None => {
                let family = families.last_mut().with_context(|| format!("no family before {line:?}"))?;
                let (series, sample) = sample(line, family).with_context(|| format!("line {line:?}"))?;
                ensure!(told.insert(series.to_owned()), "sample {series} comes twice");
                family.samples.push(sample);
            }
        }
    }
    Ok(families)
}

/// A sample, and by what it is told from others.
fn sample<'a>(line: &'a str, family: &Family) -> Result<(&'a str, Sample)> {
    let name_end = line.find(['{', ' ']).context("a name only")?;
    let suffix = line[..name_end].strip_prefix(&family.name).context("of another family")?;
    let suffixes: &[&str] = match family.kind.as_str() {
        "histogram" => &["_bucket", "_sum", "_count"],
        "summary" => &["", "_sum", "_count"],
        _ => &[""],
    };
    ensure!(suffixes.contains(&suffix), "of another family than {}", family.name);
    let (labels, rest) = match line[name_end..].strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), &line[name_end..]),
    };
    let series = &line[..line.len() - rest.len()];
    let mut words = rest.split_whitespace();
    let value = words.next().context("no value")?.parse().context("value")?;
    let at = words.next().map(|at| at.parse().context("time")).transpose()?;
    ensure!(words.next().is_none(), "words after its end");
    Ok((series, Sample { suffix: suffix.to_owned(), labels, value, at }))
}

/// What stands in the braces, and what comes after them.
fn labels(mut rest: &str) -> Result<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((labels, after));
        }
        let (name, after) = rest.split_once("=\"").context("no label where one should be")?;
        let (value, after) = quoted(after)?;
        ensure!(labels.insert(name.to_owned(), value).is_none(), "label {name} comes twice");
        rest = after.strip_prefix(',').unwrap_or(after);
    }
}

/// A value up to its closing quote, and what comes after it.
fn quoted(text: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => value.push(match chars.next().map(|(_, escaped)| escaped) {
                Some('n') => '\n',
                Some(escaped @ ('\\' | '"')) => escaped,
                escaped => bail!("{escaped:?} is escaped"),
            }),
            char => value.push(char),
        }
    }
    bail!("a quote is not closed")
}

/// The sum of the samples of this name that have these labels; of a histogram the `_count` and
/// `_sum` by their full names. None if there are none.
pub fn value(families: &[Family], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let found = families.iter().flat_map(|family| {
        let suffix = name.strip_prefix(&family.name);
        let is_it = move |sample: &&Sample| {
            let has = |(name, value): &(&str, &str)| sample.labels.get(*name).is_some_and(|it| it == value);
            suffix == Some(&sample.suffix) && labels.iter().all(has)
        };
        family.samples.iter().filter(is_it)
    });
    found.map(|sample| sample.value).reduce(|sum, value| sum + value)
}

/// What a page is made of, without its figures: a line for each family with its type and its
/// labels, with the bounds of its buckets, and with the values of those labels whose values are words
/// of the API.
pub fn shape(families: &[Family], words: &[&str]) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for family in families {
        for sample in family.samples.iter().filter(|sample| sample.suffix.is_empty() || sample.suffix == "_bucket") {
            let labels = sample.labels.iter().map(|(name, value)| match name.as_str() {
                // However it is written.
                "le" => format!("le={}", value.parse().unwrap_or(f64::NAN)),
                name if words.contains(&name) => format!("{name}={value}"),
                name => name.to_owned(),
            });
            let labels: Vec<String> = labels.collect();
            lines.insert(format!("{}\t{}\t{}", family.name, family.kind, labels.join(",")));
        }
    }
    lines
}

/// A difference that is known and wanted: where a line of a shape begins with this (and a tab or
/// the line's end follows, unless it ends in `*`), and why.
pub type Wanted = (&'static str, &'static str);

/// Lines that only one of the two has and nobody has given a reason for.
pub fn unexplained(ours: &BTreeSet<String>, theirs: &BTreeSet<String>, wanted: &[Wanted]) -> Vec<String> {
    let is_known = |line: &str| wanted.iter().any(|(beginning, _)| begins_with(line, beginning));
    let only = |one: &BTreeSet<String>, other: &BTreeSet<String>, who: &str| -> Vec<String> {
        let differing = one.difference(other).filter(|line| !is_known(line));
        differing.map(|line| format!("only {who}: {line}")).collect()
    };
    [only(ours, theirs, "Ferrolet"), only(theirs, ours, "upstream's kubelet")].concat()
}

/// Reasons that no difference needs any more.
pub fn idle(ours: &BTreeSet<String>, theirs: &BTreeSet<String>, wanted: &[Wanted]) -> Vec<&'static str> {
    let differing: Vec<&String> = ours.symmetric_difference(theirs).collect();
    let is_idle = |(beginning, _): &&Wanted| !differing.iter().any(|line| begins_with(line, beginning));
    wanted.iter().filter(is_idle).map(|(beginning, _)| *beginning).collect()
}

fn begins_with(line: &str, beginning: &str) -> bool {
    match beginning.strip_suffix('*') {
        Some(beginning) => line.starts_with(beginning),
        None => line.strip_prefix(beginning).is_some_and(|rest| rest.is_empty() || rest.starts_with('\t')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP pods Pods.\n# TYPE pods gauge\npods 3\npods{static=\"true\",say=\"a\\\"b\\\\c\\nd\"} 0.5 17\n\
                        # TYPE took histogram\ntook_bucket{of=\"x\",le=\"+Inf\"} 2\ntook_sum{of=\"x\"} 1e-3\n\
                        took_count{of=\"x\"} 2\n";

    #[test]
    fn a_page_is_read() {
        let families = parse(PAGE).unwrap();
        assert_eq!(families.iter().map(|family| family.kind.as_str()).collect::<Vec<_>>(), ["gauge", "histogram"]);
        let labelled = &families[0].samples[1];
        assert_eq!((labelled.labels["say"].as_str(), labelled.value, labelled.at), ("a\"b\\c\nd", 0.5, Some(17)));
        assert_eq!(value(&families, "took_count", &[("of", "x")]), Some(2.0));
        assert_eq!(value(&families, "took_sum", &[]), Some(0.001));
        assert_eq!(value(&families, "pods", &[]), Some(3.5));
        assert_eq!(value(&families, "pods", &[("static", "false")]), None);
    }

    #[test]
    fn what_no_scraper_takes_is_refused() {
        let check = |text: &str, because: &str| {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(because), "{text:?}: {error}");
        };
        check("# TYPE a gauge\na 1", "does not end");
        check("a 1\n", "no family");
        check("# TYPE a gauge\nab 1\n", "of another family");
        check("# TYPE a gauge\na_sum 1\n", "of another family");
        check("# TYPE a gauge\na{b=\"c} 1\n", "not closed");
        check("# TYPE a gauge\na{b=\"\\c\"} 1\n", "escaped");
        check("# TYPE a gauge\na one\n", "value");
        check("# TYPE a gauge\na 1 2 3\n", "after its end");
        check("# TYPE a gauge\na 1\na 2\n", "comes twice");
        check("# TYPE a gauge\n# TYPE a gauge\n", "comes twice");
    }

    #[test]
    fn shapes_differ_only_where_no_reason_is_given() {
        let ours = shape(&parse(PAGE).unwrap(), &["static"]);
        let theirs = BTreeSet::from(["pods\tgauge\t".to_owned(), "more\tcounter\t".to_owned()]);
        assert!(
            ours.contains("pods\tgauge\tsay,static=true") && ours.contains("took\thistogram\tle=inf,of"),
            "{ours:?}"
        );
        let check = |wanted: &[Wanted], left: usize| assert_eq!(unexplained(&ours, &theirs, wanted).len(), left);
        check(&[], 3);
        check(&[("took", "a reason")], 2);
        check(&[("pod", "a reason")], 3);
        check(&[("pod*", "a reason"), ("mor*", "another"), ("took\thistogram", "a third")], 0);
        assert_eq!(idle(&ours, &theirs, &[("took", ""), ("gone", "")]), ["gone"]);
    }
}
