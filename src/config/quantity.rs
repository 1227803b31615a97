//! Kubernetes quantities: `100Mi`, `250m`, `1.5`, `12e6`.
//!
//! A quantity is a fixed-point number with nine decimal places, rounded away from zero where
//! the text says more and capped at ±(2⁶³−1) where it says bigger, plus the notation it was
//! written in, so that printing it gives what the API server would print.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Sub};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Nano-units in one unit.
const NANO: i128 = 1_000_000_000;
/// The largest magnitude a quantity can have, in nano-units.
const CAP: i128 = i64::MAX as i128 * NANO;

/// An amount of some resource.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    notation: Notation,
}

/// How a quantity is printed; no part of its value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notation {
    /// `Ki`, `Mi`, `Gi`, …
    BinarySi,
    /// `m`, `k`, `M`, …, and plain numbers.
    DecimalSi,
    /// `e3`, `e6`, …
    DecimalExponent,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a quantity such as 100Mi, 250m or 1.5, found {0:?}")]
pub struct QuantityError(String);

pub fn parse(text: &str) -> Result<Quantity, QuantityError> {
    try_parse(text).ok_or_else(|| QuantityError(text.to_owned()))
}

impl Quantity {
    pub const ZERO: Quantity = Quantity { nanos: 0, notation: Notation::DecimalSi };

    /// `value` whole units.
    pub const fn new(value: i64, notation: Notation) -> Self {
        Quantity { nanos: value as i128 * NANO, notation }
    }

    /// A number of bytes, printed as `Ki`, `Mi`, ….
    pub const fn bytes(value: i64) -> Self {
        Quantity::new(value, Notation::BinarySi)
    }

    /// `value` thousandths, as CPU is counted.
    pub const fn milli(value: i64) -> Self {
        Quantity { nanos: value as i128 * (NANO / 1_000), notation: Notation::DecimalSi }
    }

    /// Whole units, rounded away from zero.
    pub fn value(self) -> i64 {
        saturate(div_away(self.nanos, NANO))
    }

    /// Thousandths, rounded away from zero.
    pub fn milli_value(self) -> i64 {
        saturate(div_away(self.nanos, NANO / 1_000))
    }

    /// Whether the amount is whole, so that `value` loses nothing.
    pub fn is_whole(self) -> bool {
        self.nanos % NANO == 0
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    pub fn notation(self) -> Notation {
        self.notation
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// Division that rounds away from zero.
fn div_away(value: i128, by: i128) -> i128 {
    let (quotient, rest) = (value / by, value % by);
    quotient + rest.signum()
}

fn try_parse(text: &str) -> Option<Quantity> {
    let (sign, unsigned) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let number_end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(number_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let (scale, notation) = scale_of(suffix)?;
    let nanos = match scale {
        Scale::Binary(shift) => binary_nanos(whole, fraction, shift),
        Scale::Decimal(exponent) => decimal_nanos(whole, fraction, exponent),
    };
    Some(Quantity { nanos: sign * nanos.min(CAP), notation })
}

/// What a suffix multiplies by.
enum Scale {
    /// 2 to this power.
    Binary(u32),
    /// 10 to this power.
    Decimal(i64),
}

fn scale_of(suffix: &str) -> Option<(Scale, Notation)> {
    let binary = |shift| Some((Scale::Binary(shift), Notation::BinarySi));
    let decimal = |exponent| Some((Scale::Decimal(exponent), Notation::DecimalSi));
    match suffix {
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            // An exponent too long for 64 bits is refused, as upstream does.
            let exponent = exponent.strip_prefix('+').unwrap_or(exponent).parse().ok()?;
            Some((Scale::Decimal(exponent), Notation::DecimalExponent))
        }
    }
}

fn binary_nanos(whole: &str, fraction: &str, shift: u32) -> i128 {
    let multiplier = (1_i128 << shift) * NANO;
    // From the last decimal place to the first: dividing by ten at each step gives the same
    // as one long division, and stays small. What is left over rounds the result up.
    let mut below = 0;
    let mut left_over = false;
    for digit in fraction.bytes().rev() {
        let sum = below + i128::from(digit - b'0') * multiplier;
        below = sum / 10;
        left_over |= sum % 10 != 0;
    }
    digits(whole).saturating_mul(multiplier).saturating_add(below + i128::from(left_over))
}

fn decimal_nanos(whole: &str, fraction: &str, exponent: i64) -> i128 {
    let significant = format!("{whole}{fraction}");
    let significant = significant.trim_start_matches('0');
    if significant.is_empty() {
        return 0;
    }
    // The value is `significant` times ten to `power` nano-units.
    let power = exponent.saturating_add(9).saturating_sub(fraction.len() as i64);
    let magnitude = power.saturating_add(significant.len() as i64);
    if magnitude > 30 {
        return i128::MAX;
    }
    if power >= 0 {
        return digits(significant).saturating_mul(10_i128.pow(power as u32));
    }
    // Digits past the ninth decimal place round the result up.
    let kept = usize::try_from(magnitude).unwrap_or(0);
    let (kept, cut) = significant.split_at(kept.min(significant.len()));
    digits(kept) + i128::from(magnitude < 0 || cut.bytes().any(|b| b != b'0'))
}

/// A run of decimal digits, capped far above every value that counts.
fn digits(text: &str) -> i128 {
    text.bytes().fold(0_i128, |n, b| n.saturating_mul(10).saturating_add(i128::from(b - b'0')))
}

impl fmt::Display for Quantity {
    /// The canonical text: the largest suffix that leaves a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let small = self.nanos.abs() < 1_024 * NANO;
        match self.notation {
            _ if self.nanos == 0 => f.write_str("0"),
            // Below 1Ki, and where a fraction would be lost, binary notation has no suffix.
            Notation::BinarySi if !small && self.is_whole() => {
                let (mantissa, power) = factor_out(self.nanos / NANO, 1_024, 6);
                write!(f, "{mantissa}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power])
            }
            Notation::BinarySi | Notation::DecimalSi => {
                let (mantissa, power) = factor_out(self.nanos, 1_000, 9);
                write!(f, "{mantissa}{}", ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][power])
            }
            Notation::DecimalExponent => {
                let (mantissa, power) = factor_out(self.nanos, 1_000, 9);
                match power as i32 * 3 - 9 {
                    0 => write!(f, "{mantissa}"),
                    exponent => write!(f, "{mantissa}e{exponent}"),
                }
            }
        }
    }
}

/// Divides by `base` as often as nothing is lost, at most `limit` times.
fn factor_out(mut value: i128, base: i128, limit: usize) -> (i128, usize) {
    let mut power = 0;
    while power < limit && value % base == 0 {
        value /= base;
        power += 1;
    }
    (value, power)
}

// The notation is how an amount is written, not how much it is.
impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Quantity;

    /// The sum, in the left side's notation unless that side is zero.
    fn add(self, other: Quantity) -> Quantity {
        let notation = if self.is_zero() { other.notation } else { self.notation };
        Quantity { nanos: (self.nanos + other.nanos).clamp(-CAP, CAP), notation }
    }
}

impl Sub for Quantity {
    type Output = Quantity;

    /// The difference, in the left side's notation unless that side is zero.
    fn sub(self, other: Quantity) -> Quantity {
        self + Quantity { nanos: -other.nanos, ..other }
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).map_err(serde::de::Error::custom)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notations_are_read_and_printed_canonically() {
        let check = |text: &str, value: i64, milli: i64, canonical: &str| {
            let quantity = parse(text).expect(text);
            assert_eq!(quantity.value(), value, "value of {text}");
            assert_eq!(quantity.milli_value(), milli, "milli value of {text}");
            assert_eq!(quantity.to_string(), canonical, "text of {text}");
        };
        check("0", 0, 0, "0");
        check("-0", 0, 0, "0");
        check("100", 100, 100_000, "100");
        check("1000", 1_000, 1_000_000, "1k");
        check("100Mi", 104_857_600, 104_857_600_000, "100Mi");
        check("1024Mi", 1 << 30, (1 << 30) * 1_000, "1Gi");
        check("1.5Gi", 1_610_612_736, 1_610_612_736_000, "1536Mi");
        check("0.5Ki", 512, 512_000, "512");
        check("1.001Ki", 1_026, 1_025_024, "1025024m");
        check("250m", 1, 250, "250m");
        check("1500m", 2, 1_500, "1500m");
        check("1.5", 2, 1_500, "1500m");
        check("0.1", 1, 100, "100m");
        check("2000m", 2, 2_000, "2");
        check("1n", 1, 1, "1n");
        check("0.1n", 1, 1, "1n");
        check("1.0000000001", 2, 1_001, "1000000001n");
        check("-1500m", -2, -1_500, "-1500m");
        check("+3", 3, 3_000, "3");
        check(".5", 1, 500, "500m");
        check("5.", 5, 5_000, "5");
        check("1E", 1_000_000_000_000_000_000, i64::MAX, "1E");
        check("1e3", 1_000, 1_000_000, "1e3");
        check("12E+6", 12_000_000, 12_000_000_000, "12e6");
        check("1e-1", 1, 100, "100e-3");
        check("1e4", 10_000, 10_000_000, "10e3");
        check("5e0", 5, 5_000, "5");
        check("1e-40", 1, 1, "1e-9");
        check("9223372036854775807", i64::MAX, i64::MAX, "9223372036854775807");
        check("99999999999999999999", i64::MAX, i64::MAX, "9223372036854775807");
        check("1e99", i64::MAX, i64::MAX, "9223372036854775807");
        check("16Ei", i64::MAX, i64::MAX, "9223372036854775807");
        check("0.000000000000000000001Ei", 1, 2, "1152922n");
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", " 1", "1 ", "-", "Mi", ".", "1.2.3", "1mi", "1KI", "1e", "1e+", "1e1.5", "1Kii", "0x10", "1µ"]
        {
            assert_eq!(parse(text), Err(QuantityError(text.to_owned())));
        }
    }

    #[test]
    fn canonical_text_reads_back_to_the_same_amount() {
        let mut random = fastrand::Rng::with_seed(11);
        let suffixes = ["Ki", "Mi", "Gi", "n", "u", "m", "", "k", "M", "e3", "e-3", "E2"];
        for _ in 0..20_000 {
            let whole = random.i64(-1_000_000..1_000_000);
            let suffix = random.choice(suffixes).expect("the list is not empty");
            let text = match random.bool() {
                true => format!("{whole}{suffix}"),
                false => format!("{whole}.{:03}{suffix}", random.u32(0..1_000)),
            };
            let quantity = parse(&text).expect(&text);
            let canonical = quantity.to_string();
            let again = parse(&canonical).expect(&canonical);
            assert_eq!(again, quantity, "{text} printed as {canonical}");
            assert_eq!(again.to_string(), canonical, "{text} is not printed canonically");
        }
    }

    #[test]
    fn sums_keep_the_notation_of_the_side_that_counts() {
        let check = |sum: Quantity, expected: &str| assert_eq!(sum.to_string(), expected);
        let quantity = |text| parse(text).expect(text);
        check(quantity("1Gi") + quantity("1024Mi"), "2Gi");
        check(quantity("0") + quantity("1Gi"), "1Gi");
        check(quantity("2") - quantity("500m"), "1500m");
        check(quantity("100Mi") - quantity("1Gi"), "-924Mi");
        check(quantity("8Ei") + quantity("8Ei"), "9223372036854775807");
        assert!(quantity("1Ki") > quantity("1k"));
        assert_eq!(quantity("1Ki"), quantity("1024"));
    }
}
