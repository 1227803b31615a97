//! Log lines on stderr: one line per decision, text or JSON, verbosity as `-v` says.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

use crate::config::{LogFormat, Logging, VModule};
use crate::server::Verbosity as SetVerbosity;

/// Starts logging for the whole process, and gives what changes its verbosity. Later calls change
/// nothing.
pub fn init(logging: &Logging) -> SetVerbosity {
    let modules = logging.vmodule.clone();
    let (shown, reload) = reload::Layer::new(filter(logging.verbosity, modules.clone()));
    let lines = fmt::layer().with_writer(std::io::stderr);
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match logging.format {
        LogFormat::Text => lines.compact().with_ansi(std::io::stderr().is_terminal()).with_filter(shown).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_filter(shown).boxed(),
    };
    // Only a test harness that has installed its own makes this fail.
    let _ = tracing_subscriber::registry().with(layer).try_init();
    // It fails where the line above did: then nothing of ours is shown at any verbosity.
    SetVerbosity::new(move |level| {
        let _ = reload.reload(filter(level, modules.clone()));
    })
}

type Filter = FilterFn<Box<dyn Fn(&Metadata<'_>) -> bool + Send + Sync>>;

fn filter(level: u32, modules: Vec<VModule>) -> Filter {
    let verbosity = Verbosity { level, modules };
    let max = verbosity.max();
    let shows: Box<dyn Fn(&Metadata<'_>) -> bool + Send + Sync> = Box::new(move |line| verbosity.shows(line));
    FilterFn::new(shows).with_max_level_hint(max)
}

/// Which lines are shown.
struct Verbosity {
    level: u32,
    modules: Vec<VModule>,
}

impl Verbosity {
    fn shows(&self, line: &Metadata<'_>) -> bool {
        *line.level() <= self.limit(line.target(), line.file())
    }

    /// The most talkative level shown of lines with this target, from this source file.
    fn limit(&self, target: &str, file: Option<&str>) -> Level {
        let ours = target == "ferrolet" || target.starts_with("ferrolet::");
        match ours {
            true => level_of(self.verbosity_of(file)),
            // The libraries talk about their insides; that is for the last resort.
            false if self.level >= 8 => Level::TRACE,
            false => Level::WARN,
        }
    }

    /// What `--vmodule` says about a source file, else `-v`. The first pattern that fits
    /// decides; it is matched against the file's name without `.rs`, or its directory's where
    /// the file is called `mod`.
    fn verbosity_of(&self, file: Option<&str>) -> u32 {
        let module = file.map(|file| {
            let stem = file.strip_suffix(".rs").unwrap_or(file);
            let stem = stem.strip_suffix("/mod").unwrap_or(stem);
            stem.rsplit('/').next().unwrap_or(stem)
        });
        let named =
            module.and_then(|name| self.modules.iter().find(|m| matches(m.file_pattern.as_bytes(), name.as_bytes())));
        named.map_or(self.level, |module| module.verbosity)
    }

    fn max(&self) -> LevelFilter {
        let modules = self.modules.iter().map(|m| m.verbosity);
        let most = modules.chain([self.level]).max().unwrap_or_default();
        LevelFilter::from_level(level_of(most))
    }
}

fn level_of(verbosity: u32) -> Level {
    match verbosity {
        0..=3 => Level::INFO,
        4 | 5 => Level::DEBUG,
        _ => Level::TRACE,
    }
}

/// Shell patterns with `*` and `?`.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|skip| matches(rest, &name[skip..])),
        ([b'?', rest @ ..], [_, tail @ ..]) => matches(rest, tail),
        ([p, rest @ ..], [n, tail @ ..]) => p == n && matches(rest, tail),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbosity_opens_our_own_lines_first() {
        let check = |level, target, expected| {
            let verbosity = Verbosity { level, modules: Vec::new() };
            assert_eq!(verbosity.limit(target, None), expected, "-v={level} {target}");
        };
        check(0, "ferrolet::sync", Level::INFO);
        check(3, "ferrolet::sync", Level::INFO);
        check(4, "ferrolet::sync", Level::DEBUG);
        check(6, "ferrolet", Level::TRACE);
        check(0, "hyper::proto", Level::WARN);
        check(6, "hyper::proto", Level::WARN);
        check(6, "ferroletter", Level::WARN);
        check(8, "hyper::proto", Level::TRACE);
    }

    #[test]
    fn a_new_verbosity_counts_for_the_lines_that_follow() {
        let (shown, reload) = reload::Layer::new(filter(2, Vec::new()));
        let lines = fmt::layer().with_writer(std::io::sink).with_filter(shown);
        let subscriber = tracing_subscriber::registry().with(lines);
        tracing::subscriber::with_default(subscriber, || {
            let shows = || tracing::enabled!(target: "ferrolet::test", Level::DEBUG);
            assert!(!shows());
            reload.reload(filter(4, Vec::new())).expect("the subscriber is there");
            assert!(shows());
            reload.reload(filter(2, Vec::new())).expect("the subscriber is there");
            assert!(!shows());
        });
    }

    #[test]
    fn vmodule_speaks_of_single_files() {
        let module = |pattern: &str, verbosity| VModule { file_pattern: pattern.into(), verbosity };
        let verbosity = Verbosity { level: 2, modules: vec![module("plan", 6), module("pl?g*", 4)] };
        let check = |file, expected| {
            assert_eq!(verbosity.limit("ferrolet::x", Some(file)), expected, "{file}");
        };
        check("src/sync/plan.rs", Level::TRACE);
        check("src/pleg/mod.rs", Level::DEBUG);
        check("src/sync/execute.rs", Level::INFO);
        assert_eq!(verbosity.max(), LevelFilter::TRACE);
    }
}
