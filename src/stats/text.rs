//! The few formats of the kernel's figures. Pure: bytes in, numbers out; what makes no sense is
//! no number, so that one odd line costs one figure.

/// Microseconds, as most of the kernel's counters of time have it.
pub const NANOSECONDS_A_MICROSECOND: u64 = 1_000;

/// A number by itself; blanks around it do not count.
pub fn number(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii();
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |sum, byte| match byte {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// A number, or `max` for no limit: the outer `None` is nonsense, the inner one no limit.
pub fn limit(text: &[u8]) -> Option<Option<u64>> {
    match text.trim_ascii() {
        b"max" => Some(None),
        other => number(other).map(Some),
    }
}

pub fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

pub fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty())
}

/// Lines of `name value`.
pub fn pairs(text: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    lines(text).filter_map(|line| {
        let blank = line.iter().position(|byte| *byte == b' ')?;
        Some((&line[..blank], number(&line[blank..])?))
    })
}

/// One value of lines of `name value`.
pub fn value_of(text: &[u8], name: &str) -> Option<u64> {
    pairs(text).find(|(key, _)| *key == name.as_bytes()).map(|(_, value)| value)
}

/// Lines of `Name:  value kB`, in bytes.
pub fn kibibytes_of(text: &[u8], name: &str) -> Option<u64> {
    lines(text).find_map(|line| {
        let mut words = words(line);
        let is_it = words.next()?.strip_suffix(b":") == Some(name.as_bytes());
        let value = is_it.then(|| words.next().and_then(number)).flatten()?;
        value.checked_mul(1024)
    })
}

/// A number of the form `12.34`.
pub fn decimal(text: &[u8]) -> Option<f64> {
    std::str::from_utf8(text.trim_ascii()).ok()?.parse().ok().filter(|value: &f64| value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_and_nonsense_is_none() {
        for (text, expected) in [
            ("0", Some(0)),
            ("54057647\n", Some(54_057_647)),
            (" 12 ", Some(12)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("max", None),
            ("-1", None),
            ("", None),
            ("\n", None),
            ("12 13", None),
        ] {
            assert_eq!(number(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!((limit(b"max\n"), limit(b"7\n"), limit(b"seven")), (Some(None), Some(Some(7)), None));
        assert_eq!((decimal(b"1.74\n"), decimal(b"NaN"), decimal(b"x")), (Some(1.74), None, None));
    }

    #[test]
    fn a_line_of_nonsense_costs_itself_only() {
        let text = b"anon 10\n\ngarbage\nfile x\n 5\ninactive_file 3\ncut";
        assert_eq!(pairs(text).collect::<Vec<_>>(), [(&b"anon"[..], 10), (b"", 5), (b"inactive_file", 3)]);
        assert_eq!((value_of(text, "inactive_file"), value_of(text, "file")), (Some(3), None));
        assert_eq!(value_of(b"", "anon"), None);
    }

    #[test]
    fn sizes_of_memory_are_bytes() {
        let text = b"MemTotal:       24684096 kB\nMemFree:  oops kB\nSwapTotal:             0 kB\n";
        assert_eq!(kibibytes_of(text, "MemTotal"), Some(24_684_096 * 1024));
        assert_eq!((kibibytes_of(text, "SwapTotal"), kibibytes_of(text, "MemFree")), (Some(0), None));
        assert_eq!(kibibytes_of(text, "SwapFree"), None);
    }
}
