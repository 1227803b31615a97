//! What the log was told about a connection, so that an outage is a line and not a flood.

use std::time::Duration;

use tokio::time::Instant;

/// Causes that alternate, or an outage that comes and goes, are not told more often.
const TELL_EVERY: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct Health {
    down: bool,
    /// The cause last told and when.
    told: Option<(String, Instant)>,
    /// The present outage has been told, so its end is to be told as well.
    announced: bool,
}

/// What a success means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Success {
    AsBefore,
    /// The end of an outage, which the log may or may not have heard of.
    Again {
        announced: bool,
    },
}

impl Health {
    /// A failure whose cause is someone else's to tell.
    pub(super) fn lose(&mut self) {
        self.down = true;
    }

    /// Whether the failure is worth a line: the first of an outage is, and a new cause.
    pub(super) fn fail(&mut self, cause: &str, now: Instant) -> bool {
        self.down = true;
        let (same, lately) = match &self.told {
            Some((told, at)) => (told == cause, now.duration_since(*at) < TELL_EVERY),
            None => (false, false),
        };
        if lately || (self.announced && same) {
            return false;
        }
        self.told = Some((cause.to_owned(), now));
        self.announced = true;
        true
    }

    pub(super) fn succeed(&mut self) -> Success {
        if !std::mem::take(&mut self.down) {
            return Success::AsBefore;
        }
        Success::Again { announced: std::mem::take(&mut self.announced) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `steps`: the second, `Some(cause)` of a failure or `None` for a success, and whether
    /// the log hears of it.
    fn check(steps: &[(u64, Option<&str>, bool)]) {
        let (mut health, start) = (Health::default(), Instant::now());
        for &(second, cause, told) in steps {
            let tell = match cause {
                Some(cause) => health.fail(cause, start + Duration::from_secs(second)),
                None => health.succeed() == Success::Again { announced: true },
            };
            assert_eq!(tell, told, "after {second} s");
        }
    }

    #[tokio::test]
    async fn an_outage_is_told_once_and_so_is_its_end() {
        check(&[
            (0, None, false),
            (1, Some("refused"), true),
            (2, Some("refused"), false),
            (100, Some("refused"), false),
            (101, None, true),
            (102, None, false),
        ]);
    }

    #[tokio::test]
    async fn a_new_cause_is_told_but_not_at_any_rate() {
        check(&[
            (0, Some("refused"), true),
            (1, Some("no answer"), false),
            (20, Some("no answer"), true),
            (21, Some("refused"), false),
        ]);
    }

    #[tokio::test]
    async fn what_comes_and_goes_is_told_now_and_then() {
        check(&[
            (0, Some("refused"), true),
            (1, None, true),
            (2, Some("refused"), false),
            (3, None, false),
            (11, Some("refused"), true),
            (12, None, true),
        ]);
    }
}
