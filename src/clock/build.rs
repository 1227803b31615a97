//! When this program was built, which a clock that is right is not behind.

use jiff::{SignedDuration, Timestamp};

/// A machine that builds may be in another time zone than its clock believes.
const DIFFERENCE: SignedDuration = SignedDuration::from_hours(24);

pub fn built() -> Timestamp {
    let seconds = env!("FERROLET_BUILT_SECONDS").parse().expect("the build script writes a number");
    Timestamp::from_second(seconds).expect("builds happen in years that have a name")
}

/// Whether a clock that shows `now` is wrong: a program that was built then does not run before.
pub fn is_impossible(now: Timestamp, built: Timestamp) -> bool {
    now + DIFFERENCE < built
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_was_built() {
        assert!(built().as_second() > 1_700_000_000);
    }

    #[test]
    fn a_clock_is_wrong_that_is_more_than_a_day_behind_the_build() {
        let day = SignedDuration::from_hours(24);
        assert!(!is_impossible(built(), built()) && !is_impossible(built() - day, built()));
        assert!(is_impossible(built() - day - SignedDuration::from_secs(1), built()));
    }
}
