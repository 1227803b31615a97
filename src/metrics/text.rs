//! Prometheus' text format 0.0.4, written sample by sample into one string.
//!
//! Nothing is collected first: a page of many thousand samples costs the string that it is.

use std::fmt::Write;

/// What `Content-Type` a page has.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Counter,
    Gauge,
    /// Of which a sample is told by [`Family::distribution`].
    Histogram,
}

#[derive(Default)]
pub struct Page {
    text: String,
}

/// The samples of one name. They stand together, so that the page cannot be used beside it.
pub struct Family<'p> {
    text: &'p mut String,
    name: &'static str,
    kind: Kind,
    help: &'static str,
    is_begun: bool,
}

/// Labels as they stand between braces, for samples of many families that share them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Labels(String);

/// What a histogram has counted.
pub struct Distribution<'a> {
    /// Upper bounds, rising.
    pub bounds: &'a [f64],
    /// As many as there are bounds, and one more: what lay in each, and what was above all.
    pub counts: &'a [u64],
    pub sum: f64,
}

pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    let mut rendered = String::new();
    write_pairs(&mut rendered, pairs);
    Labels(rendered)
}

impl Page {
    pub fn new() -> Self {
        Page::default()
    }

    /// One that need not grow up to so many bytes.
    pub fn with_room(bytes: usize) -> Self {
        Page { text: String::with_capacity(bytes) }
    }

    /// HELP and TYPE are written with the first sample, so that an empty family is not shown.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &'static str) -> Family<'_> {
        Family { text: &mut self.text, name, kind, help, is_begun: false }
    }

    pub fn into_string(self) -> String {
        self.text
    }
}

impl Family<'_> {
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        self.line("", "", labels, value, None);
    }

    /// Labels already rendered by [`labels`], for families that share them.
    pub fn sample_of(&mut self, rendered: &Labels, more: &[(&str, &str)], value: f64, unix_millis: Option<i64>) {
        self.line("", &rendered.0, more, value, unix_millis);
    }

    pub fn distribution(&mut self, pairs: &[(&str, &str)], distribution: &Distribution<'_>) {
        let Labels(rendered) = labels(pairs);
        let mut so_far = 0;
        for (place, count) in distribution.counts.iter().enumerate() {
            so_far += count;
            let mut bound = String::new();
            write_value(&mut bound, distribution.bounds.get(place).copied().unwrap_or(f64::INFINITY));
            self.line("_bucket", &rendered, &[("le", &bound)], so_far as f64, None);
        }
        self.line("_sum", &rendered, &[], distribution.sum, None);
        self.line("_count", &rendered, &[], so_far as f64, None);
    }

    fn line(&mut self, suffix: &str, rendered: &str, more: &[(&str, &str)], value: f64, unix_millis: Option<i64>) {
        self.begin();
        let text = &mut *self.text;
        text.push_str(self.name);
        text.push_str(suffix);
        if !rendered.is_empty() || !more.is_empty() {
            text.push('{');
            text.push_str(rendered);
            if !rendered.is_empty() && !more.is_empty() {
                text.push(',');
            }
            write_pairs(text, more);
            text.push('}');
        }
        text.push(' ');
        write_value(text, value);
        if let Some(at) = unix_millis {
            text.push(' ');
            text.push_str(itoa::Buffer::new().format(at));
        }
        text.push('\n');
    }

    fn begin(&mut self) {
        if std::mem::replace(&mut self.is_begun, true) {
            return;
        }
        let name = self.name;
        let kind = match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = write!(self.text, "# HELP {name} ");
        write_escaped(self.text, self.help, &['\\', '\n']);
        let _ = write!(self.text, "\n# TYPE {name} {kind}\n");
    }
}

fn write_pairs(text: &mut String, pairs: &[(&str, &str)]) {
    for (place, (name, value)) in pairs.iter().enumerate() {
        if place > 0 {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        write_escaped(text, value, &['\\', '"', '\n']);
        text.push('"');
    }
}

fn write_escaped(text: &mut String, value: &str, special: &[char]) {
    if !value.bytes().any(|byte| matches!(byte, b'\\' | b'"' | b'\n')) {
        return text.push_str(value);
    }
    let mut rest = value;
    while let Some(place) = rest.find(special) {
        let (plain, tail) = rest.split_at(place);
        text.push_str(plain);
        text.push('\\');
        match tail.as_bytes()[0] {
            b'\n' => text.push('n'),
            other => text.push(char::from(other)),
        }
        rest = &tail[1..];
    }
    text.push_str(rest);
}

/// Whole numbers up to here are exact, and written much faster as what they are.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// So that reading it gives the same value again.
fn write_value(text: &mut String, value: f64) {
    let size = value.abs();
    if size <= WHOLE_MAX && value.fract() == 0.0 {
        return text.push_str(itoa::Buffer::new().format(value as i64));
    }
    let _ = if value.is_nan() {
        text.write_str("NaN")
    } else if value.is_infinite() {
        text.write_str(if value > 0.0 { "+Inf" } else { "-Inf" })
    } else if !(1e-6..=WHOLE_MAX).contains(&size) {
        write!(text, "{value:e}")
    } else {
        write!(text, "{value}")
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_begins_with_its_first_sample_and_an_empty_one_is_not_shown() {
        let mut page = Page::new();
        page.family("empty", Kind::Gauge, "Nothing.");
        let mut pods = page.family("pods", Kind::Gauge, "Pods, a\\b\nc.");
        pods.sample(&[], 3.0);
        pods.sample(&[("static", "true")], 0.5);
        let seen = [("a", "1"), ("b", "2")];
        page.family("seen_total", Kind::Counter, "Seen.").sample_of(&labels(&seen), &[], 7.0, Some(1_700_000_000_123));
        let expected = "# HELP pods Pods, a\\\\b\\nc.\n# TYPE pods gauge\npods 3\npods{static=\"true\"} 0.5\n\
                        # HELP seen_total Seen.\n# TYPE seen_total counter\nseen_total{a=\"1\",b=\"2\"} 7 1700000000123\n";
        assert_eq!(page.into_string(), expected);
    }

    #[test]
    fn labels_that_families_share_are_rendered_once() {
        let check = |shared: &[(&str, &str)], more: &[(&str, &str)], at, expected| {
            let mut page = Page::new();
            page.family("x", Kind::Gauge, "").sample_of(&labels(shared), more, 1.0, at);
            assert_eq!(page.into_string().lines().last(), Some(expected));
        };
        check(&[("a", "b")], &[("c", "d")], None, "x{a=\"b\",c=\"d\"} 1");
        check(&[("a", "b")], &[], Some(5), "x{a=\"b\"} 1 5");
        check(&[], &[("c", "d")], None, "x{c=\"d\"} 1");
        check(&[], &[], None, "x 1");
    }

    #[test]
    fn what_would_end_a_label_is_escaped() {
        let check = |value, expected: &str| assert_eq!(labels(&[("l", value)]).0, format!("l=\"{expected}\""));
        check("plain ü", "plain ü");
        check("a\\b\"c\nd", "a\\\\b\\\"c\\nd");
        check("\"", "\\\"");
        check("", "");
    }

    #[test]
    fn values_are_read_back_as_they_were() {
        let check = |value: f64, expected| {
            let mut text = String::new();
            write_value(&mut text, value);
            assert_eq!(text, expected);
            let read: f64 = text.parse().unwrap();
            assert!(read == value || (read.is_nan() && value.is_nan()), "{value}");
        };
        check(0.0, "0");
        check(-3.0, "-3");
        check(0.1 + 0.2, "0.30000000000000004");
        check(1_700_000_000.25, "1700000000.25");
        check(WHOLE_MAX, "9007199254740992");
        check(1e300, "1e300");
        check(1.5e-9, "1.5e-9");
        check(f64::NAN, "NaN");
        check(f64::INFINITY, "+Inf");
        check(f64::NEG_INFINITY, "-Inf");
    }

    #[test]
    fn a_distribution_adds_up_from_bound_to_bound() {
        let mut page = Page::new();
        let seen = Distribution { bounds: &[0.5, 1.0], counts: &[2, 0, 1], sum: 4.25 };
        page.family("took", Kind::Histogram, "Took.").distribution(&[("of", "x")], &seen);
        let text = page.into_string();
        let expected = [
            "# HELP took Took.",
            "# TYPE took histogram",
            "took_bucket{of=\"x\",le=\"0.5\"} 2",
            "took_bucket{of=\"x\",le=\"1\"} 2",
            "took_bucket{of=\"x\",le=\"+Inf\"} 3",
            "took_sum{of=\"x\"} 4.25",
            "took_count{of=\"x\"} 3",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }
}
