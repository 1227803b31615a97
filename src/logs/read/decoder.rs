//! From the bytes of a log to what a reader sees. Pure, and bounded: what a line says goes through
//! piece by piece, so that one of 100 MB takes no more memory than the piece it came with.

use jiff::Timestamp;

use super::options::{LogOptions, Streams};
use super::record::{self, HEAD_BYTES_MAX, Head, Parsed, Stream};

pub struct Decoder {
    since: Option<Timestamp>,
    streams: Streams,
    timestamps: bool,
    /// Bytes of output that may still come; `None` is all.
    left: Option<u64>,
    state: State,
    /// The last line shown has ended, or there was none: the next one begins with its time.
    at_line_start: bool,
    /// Records that were none.
    broken: u64,
}

enum State {
    /// In the head of a record, of which this was read.
    Head(Vec<u8>),
    /// In what it says.
    Body { is_shown: bool, is_partial: bool },
    /// In one that is broken, up to its end.
    Broken,
}

impl Decoder {
    pub fn new(options: &LogOptions) -> Self {
        Decoder {
            since: options.since,
            streams: options.streams,
            timestamps: options.timestamps,
            left: options.limit_bytes,
            state: State::Head(Vec::new()),
            at_line_start: true,
            broken: 0,
        }
    }

    /// No more will come: the limit is reached.
    pub fn is_over(&self) -> bool {
        self.left == Some(0)
    }

    /// How many records were left out because they were broken.
    pub fn broken(&self) -> u64 {
        self.broken
    }

    /// Adds to `out` what a reader sees of `bytes`, which follow those of before.
    pub fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() && !self.is_over() {
            let used = match &mut self.state {
                State::Head(_) => self.head(bytes, out),
                State::Body { is_shown, is_partial } => {
                    let (is_shown, is_partial) = (*is_shown, *is_partial);
                    self.body(bytes, is_shown, is_partial, out)
                }
                State::Broken => {
                    let used = record::line_bytes(bytes);
                    if bytes[used - 1] == b'\n' {
                        self.state = State::Head(Vec::new());
                    }
                    used
                }
            };
            bytes = &bytes[used..];
        }
    }

    /// What follows is the beginning of a file. A record that was cut off ends here.
    pub fn cut(&mut self, out: &mut Vec<u8>) {
        if let State::Body { is_shown: true, is_partial: false } = self.state {
            self.write(b"\n", out);
            self.at_line_start = true;
        }
        self.state = State::Head(Vec::new());
    }

    fn head(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let State::Head(read) = &mut self.state else { return 0 };
        let before = read.len();
        let more = &bytes[..bytes.len().min(HEAD_BYTES_MAX - before)];
        let more = &more[..record::line_bytes(more)];
        // Most heads come whole and need not be put together.
        let joined: &[u8] = if before == 0 {
            more
        } else {
            read.extend_from_slice(more);
            read
        };
        match record::parse(joined) {
            Parsed::Head(head) => {
                let time = if self.timestamps { joined[..head.time_bytes].to_vec() } else { Vec::new() };
                self.begin(&head, &time, out);
                head.bytes - before
            }
            Parsed::Short => {
                if before == 0 {
                    *read = more.to_vec();
                }
                more.len()
            }
            Parsed::Broken => {
                let is_whole = more.ends_with(b"\n");
                self.state = if is_whole { State::Head(Vec::new()) } else { State::Broken };
                self.broken += 1;
                more.len()
            }
        }
    }

    fn begin(&mut self, head: &Head, time: &[u8], out: &mut Vec<u8>) {
        let is_meant = match self.streams {
            Streams::All => true,
            Streams::Stdout => head.stream == Stream::Stdout,
            Streams::Stderr => head.stream == Stream::Stderr,
        };
        let is_shown = is_meant && self.since.is_none_or(|since| head.time >= since);
        self.state = State::Body { is_shown, is_partial: head.is_partial };
        if is_shown && self.timestamps && self.at_line_start {
            let mut prefix = Vec::with_capacity(time.len() + FRACTION_AND_BLANK_BYTES);
            record::write_time(time, &mut prefix);
            prefix.push(b' ');
            self.write(&prefix, out);
        }
        if is_shown {
            self.at_line_start = false;
        }
    }

    fn body(&mut self, bytes: &[u8], is_shown: bool, is_partial: bool, out: &mut Vec<u8>) -> usize {
        let used = record::line_bytes(bytes);
        let is_whole = bytes[used - 1] == b'\n';
        // The end of a piece is not the end of its line.
        let said = if is_whole && is_partial { &bytes[..used - 1] } else { &bytes[..used] };
        if is_shown {
            self.write(said, out);
        }
        if is_whole {
            if is_shown && !is_partial {
                self.at_line_start = true;
            }
            self.state = State::Head(Vec::new());
        }
        used
    }

    fn write(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let room = self.left.map_or(bytes.len(), |left| usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()));
        out.extend_from_slice(&bytes[..room]);
        self.left = self.left.map(|left| left - room as u64);
    }
}

const FRACTION_AND_BLANK_BYTES: usize = 11;

#[cfg(test)]
mod tests {
    use super::*;

    /// What is seen of a log that comes in pieces of every size.
    fn check(options: &LogOptions, log: &str, expected: &str) {
        for piece in [1, 2, 7, 30, 300, log.len().max(1)] {
            let mut decoder = Decoder::new(options);
            let mut out = Vec::new();
            for bytes in log.as_bytes().chunks(piece) {
                decoder.feed(bytes, &mut out);
            }
            assert_eq!(String::from_utf8_lossy(&out), expected, "in pieces of {piece}");
        }
    }

    const LOG: &str = "2026-01-01T12:00:01Z stdout F one\n\
                       2026-01-01T12:00:02.5Z stderr F two\n\
                       2026-01-01T12:00:03Z stdout P thr\n\
                       2026-01-01T12:00:04Z stdout P e\n\
                       2026-01-01T12:00:05Z stdout F e\n\
                       2026-01-01T12:00:06Z stdout F \n\
                       2026-01-01T12:00:07Z stdout F four\n";

    #[test]
    fn pieces_of_a_line_are_put_together() {
        check(&LogOptions::default(), LOG, "one\ntwo\nthree\n\nfour\n");
    }

    #[test]
    fn a_line_has_one_time() {
        let expected = "2026-01-01T12:00:01.000000000Z one\n\
                        2026-01-01T12:00:02.500000000Z two\n\
                        2026-01-01T12:00:03.000000000Z three\n\
                        2026-01-01T12:00:06.000000000Z \n\
                        2026-01-01T12:00:07.000000000Z four\n";
        check(&LogOptions { timestamps: true, ..LogOptions::default() }, LOG, expected);
    }

    #[test]
    fn one_stream_alone_is_shown_without_the_other() {
        check(&LogOptions { streams: Streams::Stderr, ..LogOptions::default() }, LOG, "two\n");
        check(&LogOptions { streams: Streams::Stdout, ..LogOptions::default() }, LOG, "one\nthree\n\nfour\n");
    }

    #[test]
    fn what_was_said_before_is_left_out() {
        let since = |text: &str| LogOptions { since: text.parse().ok(), ..LogOptions::default() };
        check(&since("2026-01-01T12:00:02.5Z"), LOG, "two\nthree\n\nfour\n");
        check(&since("2026-01-01T13:00:07+01:00"), LOG, "four\n");
        check(&since("2026-01-01T12:00:08Z"), LOG, "");
    }

    #[test]
    fn the_limit_counts_what_is_shown_times_included() {
        let limited = |bytes, timestamps| LogOptions { limit_bytes: Some(bytes), timestamps, ..LogOptions::default() };
        check(&limited(6, false), LOG, "one\ntw");
        check(&limited(8, false), LOG, "one\ntwo\n");
        check(&limited(33, true), LOG, "2026-01-01T12:00:01.000000000Z on");
        check(&limited(10, true), LOG, "2026-01-01");
    }

    #[test]
    fn broken_records_are_left_out_whatever_their_length() {
        let garbage = "x".repeat(1000);
        let log = format!(
            "\n\0\0\0\n{garbage}\n2026-01-01T12:00:01Z stdout F one\nno record\n\
             2026-01-01T12:00:01Z stdin F no\n{garbage} 2026-01-01T12:00:01Z stdout F no\n\
             2026-01-01T12:00:01Z stdout F two\n"
        );
        check(&LogOptions::default(), &log, "one\ntwo\n");
        let mut decoder = Decoder::new(&LogOptions::default());
        decoder.feed(log.as_bytes(), &mut Vec::new());
        assert_eq!(decoder.broken(), 6);
    }

    #[test]
    fn a_record_that_is_cut_off_ends_with_its_file() {
        let mut decoder = Decoder::new(&LogOptions::default());
        let mut out = Vec::new();
        for file in ["2026-01-01T12:00:01Z stdout F on", "2026-01-01T12:00:02Z stdout F two\n2026-01-01T12"] {
            decoder.feed(file.as_bytes(), &mut out);
            decoder.cut(&mut out);
        }
        decoder.feed(b"2026-01-01T12:00:03Z stdout P thr\n", &mut out);
        decoder.cut(&mut out);
        decoder.feed(b"2026-01-01T12:00:03Z stdout F ee\n", &mut out);
        assert_eq!(String::from_utf8_lossy(&out), "on\ntwo\nthree\n", "a line may go on in the next file");
    }

    #[test]
    fn a_line_of_a_hundred_megabytes_takes_the_memory_of_a_piece() {
        let mut decoder = Decoder::new(&LogOptions::default());
        let piece = vec![b'x'; 32 * 1024];
        let (mut out, mut shown) = (Vec::new(), 0);
        decoder.feed(b"2026-01-01T12:00:01Z stdout F ", &mut out);
        for _ in 0..3200 {
            decoder.feed(&piece, &mut out);
            shown += out.len();
            out.clear();
        }
        assert_eq!(shown, 3200 * piece.len());
        assert!(out.capacity() <= 2 * piece.len(), "{}", out.capacity());
    }
}
