use std::time::Duration;

use crate::regressions::REGRESSIONS;
use crate::run::{Options, run};
use crate::world::LogMode;

const SHORT: Options = Options { storm: Some(Duration::from_secs(240)), log: LogMode::Kept };

#[test]
fn a_seed_tells_the_same_story_twice() {
    let mut lines = 0;
    for seed in 1..11 {
        let (first, second) = (run(seed, SHORT), run(seed, SHORT));
        lines += first.log.len();
        for (line, (a, b)) in first.log.iter().zip(&second.log).enumerate() {
            assert_eq!(a, b, "seed {seed} parts in line {line}");
        }
        assert_eq!(first.log.len(), second.log.len());
    }
    assert!(lines > 500, "these seeds have no story");
}

#[test]
fn what_failed_once_holds() {
    for (seed, bug) in REGRESSIONS {
        check(seed, &format!("{bug} is back"));
    }
}

/// The binary runs thousands; these are for `cargo test`.
#[test]
fn some_seeds_hold() {
    (0..20).for_each(|seed| check(seed, "see it with: cargo run --profile sim -p simulation -- --seed"));
}

fn check(seed: u64, message: &str) {
    let outcome = run(seed, Options { storm: None, log: LogMode::Silent });
    let broken: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
    assert!(broken.is_empty(), "seed {seed}, {message}: {broken:#?}");
}
