//! What a container said last: its termination message, out of the file it wrote or the end of
//! its log. Pure.

use crate::host;

/// Upstream's figures: the last lines of the log, as the runtime wrote them, and of their
/// text the last bytes.
pub const LOG_LINES_MAX: usize = 80;
const LOG_TEXT_BYTES_MAX: usize = 2048;
/// So much of the log's end is read: of a long line, which runtimes write in parts of at most
/// 32 KiB, two whole parts with time, stream and tag; and of lines that say little, all 80.
pub const LOG_TAIL_BYTES: usize = 70 << 10;

/// What the termination file at `path` holds; what is wrong with it tells more than nothing.
pub fn of_file(path: &str, read: host::Result<Option<Vec<u8>>>) -> String {
    match read {
        Ok(bytes) => String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned(),
        Err(error) => format!("Error on reading termination log {path}: {:#}", anyhow::Error::new(error)),
    }
}

/// What the application wrote, out of the end of its log: lines `time stream tag text`, of
/// which the tag `P` says that the line goes on in the next.
pub fn of_log(tail: &[u8]) -> String {
    let mut text = Vec::new();
    for (nth, line) in tail.split_inclusive(|byte| *byte == b'\n').enumerate() {
        // A tail of full size begins within a line: what is left of that is all text, or there
        // is so much behind it that it does not count.
        let is_cut = nth == 0 && tail.len() == LOG_TAIL_BYTES;
        let fields: Vec<_> = line.splitn(4, |byte| *byte == b' ').collect();
        match fields[..] {
            [_, _, tag, said] if !is_cut => {
                let goes_on = tag.split(|byte| *byte == b':').next() == Some(b"P");
                text.extend_from_slice(if goes_on { said.strip_suffix(b"\n").unwrap_or(said) } else { said });
            }
            _ => text.extend_from_slice(line),
        }
    }
    let mut last = &text[text.len().saturating_sub(LOG_TEXT_BYTES_MAX)..];
    if last.len() < text.len() {
        // The cut may have gone through a character, of four bytes at most.
        last = &last[last.iter().take(3).take_while(|byte| (0x80..=0xbf).contains(*byte)).count()..];
    }
    String::from_utf8_lossy(last).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::HostError;

    #[test]
    fn a_termination_file_that_cannot_be_read_says_so() {
        assert_eq!(of_file("/m", Ok(Some(b"bye".to_vec()))), "bye");
        assert_eq!(of_file("/m", Ok(None)), "", "it wrote none");
        let told = of_file("/m", Err(HostError::Refused("it is a directory".into())));
        assert_eq!(told, "Error on reading termination log /m: it is a directory");
    }

    fn line(tag: &str, said: &str) -> String {
        format!("2026-01-01T00:00:00.000000001+01:00 stderr {tag} {said}\n")
    }

    /// As the host reads the end of this log.
    fn said(log: &str) -> String {
        of_log(&log.as_bytes()[log.len().saturating_sub(LOG_TAIL_BYTES)..])
    }

    #[test]
    fn of_a_log_the_text_counts_and_not_what_the_runtime_writes_before_it() {
        assert_eq!(said(&line("F", "a  b \r")), "a  b \r\n");
        assert_eq!(said(&(line("F", "") + &line("F", "x"))), "\nx\n");
        assert_eq!(said(line("F", "not written to its end").trim_end()), "not written to its end");
        assert_eq!(said("by hand\n"), "by hand\n");
        let lines: String = (0..80).map(|nth| line("F", &format!("line {nth}"))).collect();
        let expected: String = (0..80).map(|nth| format!("line {nth}\n")).collect();
        assert_eq!(said(&lines), expected, "more than two thousand bytes with times and all");
    }

    #[test]
    fn a_line_in_parts_is_one_line() {
        assert_eq!(said(&(line("P", "one ") + &line("P:tag", "and ") + &line("F", "the same"))), "one and the same\n");
    }

    #[test]
    fn no_more_than_the_last_2048_bytes_of_the_text_count() {
        let log = line("F", &"a".repeat(100)) + &line("P", &"b".repeat(1500)) + &line("F", &"c".repeat(999));
        assert_eq!(said(&log), format!("{}{}\n", "b".repeat(1048), "c".repeat(999)));
        let umlauts = "\u{e4}".repeat(1500);
        assert_eq!(said(&line("F", &umlauts)), format!("{}\n", "\u{e4}".repeat(1023)), "no half a character");
    }

    #[test]
    fn what_is_read_is_enough_for_lines_in_parts() {
        let part = line("P", &"x".repeat(32 << 10));
        let log = part.repeat(3) + &line("F", "the end");
        assert_eq!(said(&log), format!("{}the end\n", "x".repeat(2040)));
    }

    #[test]
    fn a_line_that_is_in_no_parts_is_cut_within_its_text() {
        let log = line("F", &"y".repeat(2 * LOG_TAIL_BYTES));
        assert_eq!(said(&log), format!("{}\n", "y".repeat(2047)));
        // What looks like a tag in there is none.
        let log = line("F", &"P ".repeat(LOG_TAIL_BYTES));
        assert_eq!(said(&log), format!(" {}\n", "P ".repeat(1023)));
    }
}
