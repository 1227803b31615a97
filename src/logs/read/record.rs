//! The head of a CRI log record: `2026-01-01T12:00:00.5Z stdout F `, before what was said.

use jiff::Timestamp;

/// A head has some fifty bytes. What goes on for longer is none.
pub const HEAD_BYTES_MAX: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub time: Timestamp,
    /// Bytes of the time, which comes first.
    pub time_bytes: usize,
    pub stream: Stream,
    /// The line goes on in another record.
    pub is_partial: bool,
    /// Bytes of the whole head.
    pub bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    Head(Head),
    /// It may become a head with more bytes.
    Short,
    Broken,
}

/// Reads the head at the start of `bytes`; what comes after its line does not matter.
pub fn parse(bytes: &[u8]) -> Parsed {
    let bytes = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
    let line = &bytes[..line_bytes(bytes)];
    let mut words = line.splitn(4, |byte| *byte == b' ');
    let (Some(time), Some(stream), Some(tags), Some(_)) = (words.next(), words.next(), words.next(), words.next())
    else {
        let is_whole = line.ends_with(b"\n") || line.len() == HEAD_BYTES_MAX;
        return if is_whole { Parsed::Broken } else { Parsed::Short };
    };
    let bytes = time.len() + stream.len() + tags.len() + 3;
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return Parsed::Broken,
    };
    let Some(at) = str::from_utf8(time).ok().and_then(|time| time.parse().ok()) else {
        return Parsed::Broken;
    };
    let is_partial = tags.split(|byte| *byte == b':').next() == Some(b"P");
    Parsed::Head(Head { time: at, time_bytes: time.len(), stream, is_partial, bytes })
}

/// Bytes of the first line, its end included; of all if it has none.
pub fn line_bytes(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1)
}

/// `2026-01-01T12:00:00`, to which fractions of a second are added.
const SECONDS_BYTES: usize = 19;
const FRACTION_DIGITS: usize = 9;

/// Writes a time as it is in the log, with nine digits after the second: columns stay in line.
pub fn write_time(time: &[u8], out: &mut Vec<u8>) {
    let (seconds, rest) = time.split_at(time.len().min(SECONDS_BYTES));
    let rest = rest.strip_prefix(b".").unwrap_or(rest);
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (fraction, zone) = rest.split_at(digits);
    out.extend_from_slice(seconds);
    out.push(b'.');
    out.extend(fraction.iter().copied().chain(std::iter::repeat(b'0')).take(FRACTION_DIGITS));
    out.extend_from_slice(zone);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Option<(Stream, bool, &str)> {
        match parse(text.as_bytes()) {
            Parsed::Head(head) => Some((head.stream, head.is_partial, &text[head.bytes..])),
            Parsed::Short | Parsed::Broken => None,
        }
    }

    #[test]
    fn heads_of_all_runtimes_are_read() {
        for (text, expected) in [
            ("2016-10-06T00:17:09.669794202Z stdout F a b\n", (Stream::Stdout, false, "a b\n")),
            ("2016-10-06T00:17:09.669794202+02:00 stderr P a", (Stream::Stderr, true, "a")),
            ("2016-10-06T00:17:09Z stdout F \nnext", (Stream::Stdout, false, "\nnext")),
            ("2016-10-06T00:17:09Z stdout P:some:tag x", (Stream::Stdout, true, "x")),
            ("2016-10-06T00:17:09Z stdout F:P x", (Stream::Stdout, false, "x")),
        ] {
            assert_eq!(head(text), Some(expected), "{text:?}");
        }
    }

    #[test]
    fn a_head_that_may_go_on_is_short_and_one_that_cannot_be_is_broken() {
        let whole = "2016-10-06T00:17:09Z stdout F ";
        for end in 0..whole.len() {
            assert_eq!(parse(&whole.as_bytes()[..end]), Parsed::Short, "{end}");
        }
        let long = "x".repeat(HEAD_BYTES_MAX);
        for text in [
            "2016-10-06T00:17:09Z stdout F\n",
            "\n2016-10-06T00:17:09Z stdout F x",
            "2016-10-06T00:17:09Z stdin F x",
            "yesterday stdout F x",
            "\0\0\0 stdout F x",
            &long,
        ] {
            assert_eq!(parse(text.as_bytes()), Parsed::Broken, "{text:?}");
        }
    }

    #[test]
    fn times_are_written_with_nine_digits() {
        for (time, expected) in [
            ("2016-10-06T00:17:09.669794202Z", "2016-10-06T00:17:09.669794202Z"),
            ("2016-10-06T00:17:09.5+02:00", "2016-10-06T00:17:09.500000000+02:00"),
            ("2016-10-06T00:17:09Z", "2016-10-06T00:17:09.000000000Z"),
        ] {
            let mut out = Vec::new();
            write_time(time.as_bytes(), &mut out);
            assert_eq!(String::from_utf8_lossy(&out), expected);
        }
    }
}
