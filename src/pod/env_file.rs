//! Files of environment variables that a container leaves for those after it.
//!
//! A line is `NAME='value'`; what stands in the quotes is taken as it is, over several lines
//! too. Blank lines and those that begin with `#` are passed over, and so is a comment behind
//! the value. That is the little of a shell's syntax that upstream understands.

/// Why a file cannot be understood, with the line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct Broken {
    line: usize,
    what: &'static str,
}

/// The value of `key`; empty where nobody sets it. What follows it in the file is not looked at.
pub fn value(text: &str, key: &str) -> Result<String, Broken> {
    const BLANKS: [char; 2] = [' ', '\t'];
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        let broken = |line, what| Err(Broken { line, what });
        let line = line.trim_start_matches(BLANKS);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            return broken(number, "there is no '='");
        };
        if name.is_empty() {
            return broken(number, "the variable has no name");
        }
        if name.ends_with(BLANKS) {
            return broken(number, "there is a blank before the '='");
        }
        // To a shell, that is an empty value.
        if value.starts_with(BLANKS) {
            match name == key {
                true => return Ok(String::new()),
                false => continue,
            }
        }
        let Some(mut rest) = value.strip_prefix('\'') else {
            return broken(number, "the value is not in single quotes");
        };
        let mut value = String::new();
        let mut last = number;
        let behind = loop {
            if let Some((end, behind)) = rest.split_once('\'') {
                value.push_str(end);
                break behind;
            }
            value.push_str(rest);
            value.push('\n');
            let Some((next, number)) = lines.next() else {
                return broken(number, "the quote is not closed");
            };
            (rest, last) = (next, number);
        };
        let behind = behind.trim_start_matches(BLANKS);
        if !behind.is_empty() && !behind.starts_with('#') {
            return broken(last, "something follows the closing quote");
        }
        if name == key {
            return Ok(value);
        }
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        let got = value(text, "KEY").map_err(|broken| broken.to_string());
        assert_eq!(got.as_deref().map_err(String::as_str), expected, "{text:?}");
    }

    #[test]
    fn values_stand_in_single_quotes() {
        check("KEY='value'", Ok("value"));
        check("KEY='value'\n", Ok("value"));
        check("KEY='value'\r\n", Ok("value"));
        check("OTHER='x'\n\t KEY='a \"b\" $c \\d #e'  # why\n", Ok("a \"b\" $c \\d #e"));
        check("# KEY='no'\n\n   \nKEY=''\nKEY='second'", Ok(""));
        check("KEY='first'\nKEY='second'", Ok("first"));
        check("KEY='one\n  two\n'", Ok("one\n  two\n"));
        check("KEY= 'value'\nKEY='second'", Ok(""));
        check("OTHER= 'x\nKEY='value'", Ok("value"));
        check("OTHER='x'", Ok(""));
        check("", Ok(""));
    }

    #[test]
    fn what_cannot_be_understood_is_told_with_its_line() {
        check("\nKEY", Err("line 2: there is no '='"));
        check("='value'", Err("line 1: the variable has no name"));
        check("KEY ='value'", Err("line 1: there is a blank before the '='"));
        check("KEY=value", Err("line 1: the value is not in single quotes"));
        check("A='x\ny' z\nKEY='value'", Err("line 2: something follows the closing quote"));
        check("A='1'\nKEY='value\nB=2", Err("line 2: the quote is not closed"));
        check("export KEY='value'", Ok(""));
    }

    #[test]
    fn what_stands_behind_the_value_does_not_matter() {
        check("KEY='value'\nbroken", Ok("value"));
        check("broken\nKEY='value'", Err("line 1: there is no '='"));
    }
}
