//! Where the last lines of a log begin, found from its end in blocks.
//!
//! Lines are counted as people see them: one that the runtime wrote in many records is one.
//! Upstream counts records, so that long lines leave less than was asked for.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::record::{self, HEAD_BYTES_MAX, Parsed};
use crate::logs::disk::{Disk, read_at};

const BLOCK_BYTES: u64 = 32 * 1024;

/// Where to begin, so that `lines` lines come up to `end`, and what follows the last of them.
pub async fn start(disk: &Disk, path: &Path, file: Arc<File>, end: u64, lines: u64) -> io::Result<u64> {
    let mut scan = Scan { lines, end, next_start: end, is_ended: false };
    let mut until = end;
    while until > 0 {
        let from = until.saturating_sub(BLOCK_BYTES);
        // A record that begins in this block may have its head in the one after it.
        let bytes = (until - from + HEAD_BYTES_MAX as u64).min(end - from);
        let file = file.clone();
        let block = disk.run("read", path, move || read_at(&file, from, bytes as usize)).await?;
        if let Some(start) = scan.block(from, &block, (until - from) as usize) {
            return Ok(start);
        }
        until = from;
    }
    Ok(0)
}

struct Scan {
    /// Lines that may still be passed.
    lines: u64,
    end: u64,
    /// Where the record begins that was looked at last, the one after those to come.
    next_start: u64,
    /// The end of a record was seen: what begins before it is whole.
    is_ended: bool,
}

impl Scan {
    /// Looks at the records that begin in the block at `from`, the last one first. `owned` bytes
    /// of it are its own, the others belong to the block after it.
    fn block(&mut self, from: u64, block: &[u8], owned: usize) -> Option<u64> {
        let owned = owned.min(block.len());
        for at in (0..owned).rev() {
            if block[at] != b'\n' {
                continue;
            }
            if let Some(start) = self.record(from + at as u64 + 1, &block[at + 1..]) {
                return Some(start);
            }
            self.is_ended = true;
        }
        if from == 0 { self.record(0, block) } else { None }
    }

    /// Looks at the record that begins at `start`. The answer is where the tail begins.
    fn record(&mut self, start: u64, bytes: &[u8]) -> Option<u64> {
        if start == self.end {
            return None;
        }
        // One that has no end yet is shown beside those asked for.
        let ends_line = self.is_ended && matches!(record::parse(bytes), Parsed::Head(head) if !head.is_partial);
        if ends_line {
            if self.lines == 0 {
                return Some(self.next_start);
            }
            self.lines -= 1;
        }
        self.next_start = start;
        None
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use super::*;

    async fn tail(log: &str, lines: u64) -> String {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(log.as_bytes()).expect("it can be written");
        let disk = Disk::new(Duration::from_secs(10));
        let start = start(&disk, Path::new("/x/0.log"), Arc::new(file), log.len() as u64, lines).await;
        log[start.expect("it can be read") as usize..].to_owned()
    }

    /// Records in short: `1F` is a whole line, `1P` a piece of one.
    fn log(records: &str) -> String {
        let full = |record: &str| {
            let (said, tag) = record.split_at(record.len() - 1);
            format!("2026-01-01T12:00:00Z stdout {tag} {said}\n")
        };
        records.split_whitespace().map(full).collect()
    }

    async fn check(records: &str, lines: u64, expected: &str) {
        assert_eq!(tail(&log(records), lines).await, log(expected), "the last {lines} of {records}");
    }

    #[tokio::test]
    async fn lines_are_counted_from_the_end() {
        check("1F 2F 3F", 1, "3F").await;
        check("1F 2F 3F", 2, "2F 3F").await;
        check("1F 2F 3F", 3, "1F 2F 3F").await;
        check("1F 2F 3F", 4, "1F 2F 3F").await;
        check("1F 2F 3F", 0, "").await;
        check("", 5, "").await;
    }

    #[tokio::test]
    async fn a_line_in_pieces_is_one_line() {
        check("1F 2P 2P 2F 3F", 2, "2P 2P 2F 3F").await;
        check("1F 2P 2P 2F 3F", 1, "3F").await;
        check("1P 1F 2P 2F", 1, "2P 2F").await;
    }

    #[tokio::test]
    async fn a_line_that_has_no_end_yet_comes_beside_those_asked_for() {
        check("1F 2F 3P 3P", 1, "2F 3P 3P").await;
        check("1F 2F 3P", 0, "3P").await;
        let cut_off = "2026-01-01T12:00:00Z stdout F thr";
        assert_eq!(tail(&(log("1F 2F") + cut_off), 1).await, log("2F") + cut_off);
        assert_eq!(tail(&(log("1F 2F") + cut_off), 0).await, cut_off);
        assert_eq!(tail(cut_off, 0).await, cut_off);
    }

    #[tokio::test]
    async fn broken_records_are_not_counted() {
        let text = log("1F 2F") + "garbage\n\n" + &log("3F");
        assert_eq!(tail(&text, 2).await, log("2F") + "garbage\n\n" + &log("3F"));
    }

    #[tokio::test]
    async fn blocks_end_anywhere_in_a_record() {
        for bytes in (0..120).chain([40_000, 100_000]) {
            let (first, last) = ("x".repeat(bytes), "y".repeat(32 * 1024 - 60));
            let text = log(&format!("0F {first}F 2F {last}F 4F"));
            assert_eq!(tail(&text, 3).await, log(&format!("2F {last}F 4F")), "after {bytes} bytes");
            assert_eq!(tail(&text, 4).await, log(&format!("{first}F 2F {last}F 4F")), "after {bytes} bytes");
        }
    }
}
