//! Durations in Go's notation (`1m30s`, `300ms`, `1.5h`), as KubeletConfiguration and the
//! flags write them.
//!
//! Go's durations are signed 64-bit nanoseconds; a few fields use the sign ("negative
//! disables"), so the sign survives here and each field decides what it means.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// A signed span of time, the way Go holds it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct GoDuration {
    nanos: i64,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    #[error("expected a duration such as 1m30s or 300ms, found an empty text")]
    Empty,
    #[error("expected a duration such as 1m30s or 300ms, found {0:?}")]
    NotADuration(String),
    #[error("duration {0:?} needs a unit: one of ns, us, ms, s, m, h")]
    NoUnit(String),
    #[error("duration {text:?} has the unknown unit {unit:?}: expected ns, us, ms, s, m or h")]
    UnknownUnit { text: String, unit: String },
    #[error("duration {0:?} is longer than 292 years")]
    TooLong(String),
}

impl GoDuration {
    pub const fn from_nanos(nanos: i64) -> Self {
        GoDuration { nanos }
    }

    pub const fn nanos(self) -> i64 {
        self.nanos
    }

    pub const fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// The same span as the standard type, `None` when negative.
    pub fn to_std(self) -> Option<Duration> {
        u64::try_from(self.nanos).ok().map(Duration::from_nanos)
    }

    pub fn parse(text: &str) -> Result<Self, DurationError> {
        parse(text)
    }
}

fn parse(text: &str) -> Result<GoDuration, DurationError> {
    if text.is_empty() {
        return Err(DurationError::Empty);
    }
    let (negative, mut rest) = match text.as_bytes()[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(GoDuration::default());
    }
    if rest.is_empty() {
        return Err(DurationError::NotADuration(text.to_owned()));
    }
    let too_long = || DurationError::TooLong(text.to_owned());
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let (nanos, tail) = one_term(text, rest)?;
        total = total.checked_add(nanos).ok_or_else(too_long)?;
        rest = tail;
    }
    let signed = if negative { -total } else { total };
    Ok(GoDuration { nanos: i64::try_from(signed).map_err(|_| too_long())? })
}

/// Reads one number with its unit off the front of `rest`.
fn one_term<'t>(text: &str, rest: &'t str) -> Result<(i128, &'t str), DurationError> {
    let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, tail) = rest.split_at(number_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(DurationError::NotADuration(text.to_owned()));
    }
    let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
    let (unit, tail) = tail.split_at(unit_end);
    let scale = match unit {
        "" => return Err(DurationError::NoUnit(text.to_owned())),
        "ns" => 1,
        // Both the micro sign and the Greek letter mu, as Go takes them.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000_i128,
        unit => {
            return Err(DurationError::UnknownUnit { text: text.to_owned(), unit: unit.to_owned() });
        }
    };
    let too_long = || DurationError::TooLong(text.to_owned());
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| too_long())? };
    // Digits below a nanosecond are cut off; fifteen of them are more than any unit needs.
    let fraction = &fraction[..fraction.len().min(15)];
    let below = match fraction.parse::<i128>() {
        Ok(digits) => digits * scale / 10_i128.pow(fraction.len() as u32),
        Err(_) => 0,
    };
    let nanos = whole.checked_mul(scale).and_then(|n| n.checked_add(below)).ok_or_else(too_long)?;
    Ok((nanos, tail))
}

impl fmt::Display for GoDuration {
    /// Go's canonical text: `1h0m0s`, `1m30s`, `1.5s`, `300ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.nanos.unsigned_abs();
        if self.nanos < 0 {
            f.write_str("-")?;
        }
        if nanos < 1_000_000_000 {
            return match nanos {
                0 => f.write_str("0s"),
                1..1_000 => write!(f, "{nanos}ns"),
                1_000..1_000_000 => write!(f, "{}\u{b5}s", decimal(nanos, 1_000)),
                _ => write!(f, "{}ms", decimal(nanos, 1_000_000)),
            };
        }
        let (minutes, below) = (nanos / 60_000_000_000, nanos % 60_000_000_000);
        if minutes >= 60 {
            write!(f, "{}h", minutes / 60)?;
        }
        if minutes > 0 {
            write!(f, "{}m", minutes % 60)?;
        }
        write!(f, "{}s", decimal(below, 1_000_000_000))
    }
}

/// `nanos / unit` in decimal without trailing zeros.
fn decimal(nanos: u64, unit: u64) -> String {
    let (whole, below) = (nanos / unit, nanos % unit);
    if below == 0 {
        return whole.to_string();
    }
    let width = unit.ilog10() as usize;
    format!("{whole}.{below:0width$}").trim_end_matches('0').to_owned()
}

impl From<Duration> for GoDuration {
    /// Durations beyond Go's 292 years become its longest.
    fn from(duration: Duration) -> Self {
        GoDuration::from_nanos(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_notation_is_read() {
        let check = |text: &str, nanos: i64| {
            assert_eq!(parse(text), Ok(GoDuration { nanos }), "{text}");
        };
        check("0", 0);
        check("0s", 0);
        check("5s", 5_000_000_000);
        check("1m30s", 90_000_000_000);
        check("300ms", 300_000_000);
        check("1h", 3_600_000_000_000);
        check("1h15m30.918273645s", 4_530_918_273_645);
        check("1.5h", 5_400_000_000_000);
        check(".5s", 500_000_000);
        check("5.s", 5_000_000_000);
        check("-1.5h", -5_400_000_000_000);
        check("+5s", 5_000_000_000);
        check("10us", 10_000);
        check("10\u{b5}s", 10_000);
        check("0.3333333333333333333h", 1_200_000_000_000 - 1);
        check("9223372036854775807ns", i64::MAX);
        check("-9223372036854775808ns", i64::MIN);
    }

    #[test]
    fn what_is_no_duration_is_refused_with_the_reason() {
        let check = |text: &str, expected: &str| {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("", "empty");
        check("3", "needs a unit");
        check("-", "expected a duration");
        check("s", "expected a duration");
        check(".s", "expected a duration");
        check("1.2.3s", "expected a duration");
        check("5d", "unknown unit \"d\"");
        check("1m30", "needs a unit");
        check("1 m", "unknown unit");
        check("9223372036854775808ns", "longer than 292 years");
        check("400000000000000000000000000000000000000000h", "longer than 292 years");
    }

    #[test]
    fn text_is_canonical_and_reads_back() {
        let check = |text: &str, canonical: &str| {
            let parsed = parse(text).expect(text);
            assert_eq!(parsed.to_string(), canonical);
            assert_eq!(parse(canonical), Ok(parsed));
        };
        check("60s", "1m0s");
        check("3600s", "1h0m0s");
        check("0.1s", "100ms");
        check("1500ms", "1.5s");
        check("1500ns", "1.5\u{b5}s");
        check("-90s", "-1m30s");
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..5_000 {
            let nanos = random.i64(..) >> random.u32(0..63);
            let duration = GoDuration { nanos };
            assert_eq!(parse(&duration.to_string()), Ok(duration));
        }
    }
}
