//! Eviction thresholds: `memory.available` below `100Mi`, `nodefs.available` below `10%`.

use std::collections::BTreeMap;

use super::quantity::{self, Quantity};
use super::words::words;

words! {
    /// What eviction looks at.
    Signal {
        ImageFsAvailable = "imagefs.available",
        ImageFsInodesFree = "imagefs.inodesFree",
        ContainerFsAvailable = "containerfs.available",
        ContainerFsInodesFree = "containerfs.inodesFree",
        MemoryAvailable = "memory.available",
        AllocatableMemoryAvailable = "allocatableMemory.available",
        NodeFsAvailable = "nodefs.available",
        NodeFsInodesFree = "nodefs.inodesFree",
        PidAvailable = "pid.available",
    }
}

/// An amount of the resource behind a signal.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Limit {
    Quantity(Quantity),
    /// Of the capacity, from 0 to 100.
    Percent(f64),
}

impl Limit {
    /// The amount in whole units of the resource, for a node with this capacity.
    pub fn of(self, capacity: i64) -> i64 {
        match self {
            Limit::Quantity(quantity) => quantity.value(),
            // Cut off, not rounded, and of a share in single precision, as upstream has it: what a
            // node has to give must not change by some bytes with its agent.
            Limit::Percent(percent) => (capacity as f64 * f64::from(percent as f32 / 100.0)) as i64,
        }
    }
}

pub type Thresholds = BTreeMap<Signal, Limit>;

/// What a threshold may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// A limit for eviction: more than nothing; 0 % and 100 % turn the signal off.
    Limit,
    /// A minimum reclaim: may be zero bytes, but not zero percent.
    Reclaim,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    #[error("unknown eviction signal; known are {}", Signal::WORDS.join(", "))]
    UnknownSignal,
    #[error("expected a quantity such as 100Mi or a percentage such as 10%, found {0:?}")]
    NotALimit(String),
    #[error("percentage must be from 0 to 100, found {0}")]
    PercentOutOfRange(String),
    #[error("must be more than zero, found {0}")]
    NotPositive(String),
    #[error("must not be negative, found {0}")]
    Negative(String),
}

pub fn parse_signal(text: &str) -> Result<Signal, ThresholdError> {
    Signal::parse(text).ok_or(ThresholdError::UnknownSignal)
}

/// Reads a limit; `None` when it turns its signal off.
pub fn parse_limit(text: &str, purpose: Purpose) -> Result<Option<Limit>, ThresholdError> {
    let not_a_limit = || ThresholdError::NotALimit(text.to_owned());
    if let Some(number) = text.strip_suffix('%') {
        let percent: f64 = number.parse().map_err(|_| not_a_limit())?;
        if purpose == Purpose::Limit && (percent == 0.0 || percent == 100.0) {
            return Ok(None);
        }
        return match percent {
            p if !p.is_finite() || !(0.0..=100.0).contains(&p) => {
                Err(ThresholdError::PercentOutOfRange(text.to_owned()))
            }
            0.0 => Err(ThresholdError::NotPositive(text.to_owned())),
            p => Ok(Some(Limit::Percent(p))),
        };
    }
    let quantity = quantity::parse(text).map_err(|_| not_a_limit())?;
    match purpose {
        _ if quantity.is_negative() => Err(ThresholdError::Negative(text.to_owned())),
        Purpose::Limit if quantity.is_zero() => Err(ThresholdError::NotPositive(text.to_owned())),
        _ => Ok(Some(Limit::Quantity(quantity))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_quantities_or_percentages() {
        let check = |text: &str, purpose, expected: Option<Limit>| {
            assert_eq!(parse_limit(text, purpose), Ok(expected), "{text}");
        };
        let quantity = |text| Some(Limit::Quantity(quantity::parse(text).expect(text)));
        check("100Mi", Purpose::Limit, quantity("100Mi"));
        check("1000", Purpose::Limit, quantity("1000"));
        check("10%", Purpose::Limit, Some(Limit::Percent(10.0)));
        check("0.5%", Purpose::Limit, Some(Limit::Percent(0.5)));
        check("0%", Purpose::Limit, None);
        check("100%", Purpose::Limit, None);
        check("0", Purpose::Reclaim, quantity("0"));
        check("100%", Purpose::Reclaim, Some(Limit::Percent(100.0)));
    }

    #[test]
    fn a_share_is_as_large_as_upstream_has_it() {
        assert_eq!(Limit::Percent(1.0).of(270_553_174_016), 270_553_174_016 - 267_847_642_337);
        assert_eq!(Limit::Percent(10.0).of(1000), 100);
        assert_eq!(Limit::Percent(0.5).of(1 << 30), 5_368_709);
    }

    #[test]
    fn what_is_no_limit_is_refused_with_the_reason() {
        let check = |text: &str, purpose, expected: &str| {
            let error = parse_limit(text, purpose).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("", Purpose::Limit, "expected a quantity");
        check("%", Purpose::Limit, "expected a quantity");
        check("ten%", Purpose::Limit, "expected a quantity");
        check("0", Purpose::Limit, "more than zero");
        check("-1Mi", Purpose::Limit, "negative");
        check("-1Mi", Purpose::Reclaim, "negative");
        check("101%", Purpose::Limit, "from 0 to 100");
        check("-5%", Purpose::Limit, "from 0 to 100");
        check("NaN%", Purpose::Limit, "from 0 to 100");
        check("0%", Purpose::Reclaim, "more than zero");
        assert_eq!(parse_signal("memory.free"), Err(ThresholdError::UnknownSignal));
        assert_eq!(parse_signal("memory.available"), Ok(Signal::MemoryAvailable));
    }

    #[test]
    fn a_limit_is_an_amount_of_a_capacity() {
        let check = |text, capacity, expected| {
            let limit = parse_limit(text, Purpose::Limit).expect(text).expect(text);
            assert_eq!(limit.of(capacity), expected, "{text} of {capacity}");
        };
        check("100Mi", 1 << 40, 100 << 20);
        check("10%", 1_000, 100);
        check("15%", 999, 149);
    }
}
