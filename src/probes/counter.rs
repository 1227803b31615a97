//! From single results to decisions.

use super::settings::Settings;

/// Counts results of one kind in a row.
#[derive(Debug, Default)]
pub struct Counter {
    last: Option<bool>,
    in_a_row: u32,
}

impl Counter {
    /// Takes one result; `Some` once enough of the same came in a row.
    pub fn note(&mut self, success: bool, settings: &Settings) -> Option<bool> {
        self.in_a_row = if self.last == Some(success) { self.in_a_row.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let threshold = if success { settings.success_threshold } else { settings.failure_threshold };
        (self.in_a_row >= threshold).then_some(success)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_decision_needs_its_threshold_in_a_row() {
        let settings = Settings {
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            success_threshold: 2,
            failure_threshold: 3,
        };
        let check = |results: &str, expected: &str| {
            let mut counter = Counter::default();
            let decided = results.chars().map(|result| match counter.note(result == '+', &settings) {
                None => '.',
                Some(true) => '+',
                Some(false) => '-',
            });
            assert_eq!(decided.collect::<String>(), expected, "{results}");
        };
        check("---", "..-");
        check("----", "..--");
        check("--+--", ".....");
        check("--+---", ".....-");
        check("+-++", "...+");
        check("+-+-+-", "......");
        check("+++---+", ".++..-.");
    }
}
