//! Which files a rotation keeps, and what it calls the new one. Pure.

use jiff::civil::DateTime;
use jiff::{Span, Timestamp, tz::TimeZone};

/// Upstream's stamp, as `strftime` has it. Names with it sort by age.
const STAMP: &str = "%Y%m%d-%H%M%S";
pub const GZIP: &str = ".gz";
const TEMPORARY: &str = ".tmp";

/// What to do with the files beside a log that has reached its limit.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Before anything else: room is made before it is taken.
    pub remove: Vec<String>,
    /// What the log is called from now on.
    pub rename_to: String,
    /// Once nobody writes to the renamed one; first what stays longest.
    pub compress: Vec<String>,
}

/// The plan for `log`, a file name, among the `names` in its directory. After it there are
/// at most `max_files`, the new log included.
///
/// While an earlier compression `is_behind`, nothing else is compressed, and what it writes
/// is left alone: its file may be among those that go, and it takes long enough without others.
pub fn plan(log: &str, names: &[String], max_files: usize, is_behind: bool, now: Timestamp, zone: &TimeZone) -> Plan {
    let mut remove = if is_behind { Vec::new() } else { temporaries(log, names) };
    let (mut kept, superseded) = kept(log, names);
    remove.extend(superseded);
    let newest = kept.last().and_then(|name| stamp(log, name));
    let surplus = kept.len().saturating_sub(max_files.saturating_sub(2));
    remove.extend(kept.drain(..surplus));
    kept.retain(|name| !is_behind && !name.ends_with(GZIP));
    let compress = kept.into_iter().rev().collect();
    let stamp = stamp_after(now.to_zoned(zone.clone()).datetime(), newest).strftime(STAMP);
    Plan { remove, rename_to: format!("{log}.{stamp}"), compress }
}

/// What is one too many beside the log, because it was removed while it was compressed.
pub fn surplus(log: &str, names: &[String], max_files: usize) -> Vec<String> {
    let (mut kept, _) = kept(log, names);
    kept.truncate(kept.len().saturating_sub(max_files.saturating_sub(1)));
    kept
}

/// The file that was the log before a rename that was not finished: the newest, and never
/// compressed, because it is compressed only once there is a newer one.
pub fn unfinished(log: &str, names: &[String]) -> Option<String> {
    rotated(log, names).pop().filter(|name| !name.ends_with(GZIP))
}

/// Names stay in order and apart, whatever the wall clock does: two rotations within a
/// second, an hour repeated in autumn, a clock set back.
fn stamp_after(now: DateTime, newest: Option<DateTime>) -> DateTime {
    match newest.and_then(|newest| newest.checked_add(Span::new().seconds(1)).ok()) {
        Some(next) => next.max(now),
        None => now,
    }
}

/// Rotated files of this log, oldest first. Files somebody else put there are not counted.
fn rotated(log: &str, names: &[String]) -> Vec<String> {
    let mut found: Vec<String> = names.iter().filter(|name| stamp(log, name).is_some()).cloned().collect();
    found.sort_unstable();
    found
}

/// Rotated files, oldest first; and those that were compressed and not removed any more.
fn kept(log: &str, names: &[String]) -> (Vec<String>, Vec<String>) {
    let is_superseded = |name: &String| names.contains(&format!("{name}{GZIP}"));
    rotated(log, names).into_iter().partition(|name| !is_superseded(name))
}

/// What a compression that was cut off left behind.
fn temporaries(log: &str, names: &[String]) -> Vec<String> {
    let is_ours = |name: &&String| name.strip_suffix(TEMPORARY).is_some_and(|name| stamp(log, name).is_some());
    names.iter().filter(is_ours).cloned().collect()
}

/// When the file was the log last, from its name; `None` if it is no rotated file of this log.
pub fn stamp(log: &str, name: &str) -> Option<DateTime> {
    let stamp = name.strip_prefix(log)?.strip_prefix('.')?;
    DateTime::strptime(STAMP, stamp.strip_suffix(GZIP).unwrap_or(stamp)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn planned(present: &[&str], max_files: usize) -> Plan {
        let now = "2026-01-01T12:00:00Z".parse().expect("a literal time");
        plan("0.log", &names(present), max_files, false, now, &TimeZone::UTC)
    }

    #[test]
    fn the_first_rotation_only_renames() {
        let expected = Plan { remove: vec![], rename_to: "0.log.20260101-120000".into(), compress: vec![] };
        assert_eq!(planned(&["0.log", "1.log", "1.log.20250101-000000"], 5), expected);
    }

    #[test]
    fn the_oldest_go_and_the_others_are_compressed() {
        let present =
            ["0.log", "0.log.20250101-000000.gz", "0.log.20250102-000000.gz", "0.log.20250103-000000"].as_slice();
        let plan = planned(present, 4);
        assert_eq!(plan.remove, ["0.log.20250101-000000.gz"]);
        assert_eq!(plan.compress, ["0.log.20250103-000000"]);
        let plan = planned(present, 2);
        assert_eq!(plan.remove.len(), 3, "with two files there is the log and the one before it");
        assert_eq!(plan.compress, Vec::<String>::new());
    }

    #[test]
    fn what_stays_longest_is_compressed_first() {
        let present = ["0.log.20250101-000000", "0.log.20250102-000000", "0.log.20250103-000000"];
        assert_eq!(planned(&present, 4).compress, ["0.log.20250103-000000", "0.log.20250102-000000"]);
    }

    #[test]
    fn while_a_compression_is_behind_files_are_only_counted() {
        let present = names(&[
            "0.log.20250101-000000",
            "0.log.20250101-000000.tmp",
            "0.log.20250102-000000",
            "0.log.20250103-000000",
        ]);
        let now = "2026-01-01T12:00:00Z".parse().expect("a literal time");
        let plan = plan("0.log", &present, 4, true, now, &TimeZone::UTC);
        assert_eq!((plan.remove, plan.compress), (names(&["0.log.20250101-000000"]), Vec::new()));
    }

    #[test]
    fn what_comes_back_by_its_compression_is_one_too_many() {
        let of = |present: &[&str]| surplus("0.log", &names(present), 3);
        let two = ["0.log", "0.log.20250102-000000.gz", "0.log.20250103-000000"];
        assert_eq!(of(&two), [""; 0]);
        let three = [&two[..], &["0.log.20250101-000000.gz", "0.log.20250103-000000.tmp"]].concat();
        assert_eq!(of(&three), ["0.log.20250101-000000.gz"]);
        assert_eq!(of(&[&two[..], &["0.log.20250102-000000"]].concat()), [""; 0], "one of both names is one");
    }

    #[test]
    fn what_a_cut_off_compression_left_is_cleared_away() {
        let present = [
            "0.log.20250101-000000",
            "0.log.20250101-000000.gz",
            "0.log.20250102-000000",
            "0.log.20250102-000000.tmp",
            "0.log.notes.tmp",
        ];
        let plan = planned(&present, 5);
        assert_eq!(plan.remove, ["0.log.20250102-000000.tmp", "0.log.20250101-000000"]);
        assert_eq!(plan.compress, ["0.log.20250102-000000"]);
    }

    #[test]
    fn names_go_on_in_order_when_the_clock_does_not() {
        assert_eq!(planned(&["0.log.20260101-120000"], 5).rename_to, "0.log.20260101-120001");
        assert_eq!(planned(&["0.log.20260101-125959.gz"], 5).rename_to, "0.log.20260101-130000");
    }

    #[test]
    fn the_stamp_is_local_time() {
        let now = "2026-01-01T23:30:00Z".parse().expect("a literal time");
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        assert_eq!(plan("3.log", &[], 2, false, now, &zone).rename_to, "3.log.20260102-003000");
    }

    #[test]
    fn an_unfinished_rename_is_the_newest_and_not_compressed() {
        let of = |present: &[&str]| unfinished("0.log", &names(present));
        assert_eq!(of(&["0.log.20250101-000000.gz", "0.log.20250102-000000"]), Some("0.log.20250102-000000".into()));
        assert_eq!(of(&["0.log.20250102-000000", "0.log.20250103-000000.gz"]), None);
        assert_eq!(of(&["1.log.20250102-000000"]), None);
    }
}
