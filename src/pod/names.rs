//! The forms that names must have. Each check says what is asked, for the person who wrote
//! the name.

const LABEL_LENGTH_MAX: usize = 63;
const SUBDOMAIN_LENGTH_MAX: usize = 253;

/// A DNS label: what container names, host names and namespaces are.
pub fn dns_label(name: &str) -> Result<(), &'static str> {
    if name.len() > LABEL_LENGTH_MAX {
        return Err("must be no more than 63 characters");
    }
    if !is_lower_case_word(name, b"-") {
        return Err("must consist of lower case letters, digits or '-', and start and end with a letter or digit");
    }
    Ok(())
}

/// DNS labels joined by dots: what pod names are.
pub fn dns_subdomain(name: &str) -> Result<(), &'static str> {
    if name.len() > SUBDOMAIN_LENGTH_MAX {
        return Err("must be no more than 253 characters");
    }
    if !name.split('.').all(|part| is_lower_case_word(part, b"-")) {
        return Err(
            "must consist of lower case letters, digits, '-' or '.', and each part between dots must start and end \
             with a letter or digit",
        );
    }
    Ok(())
}

/// A label or annotation key: a name, with an optional DNS prefix before a slash.
pub fn qualified_name(name: &str) -> Result<(), &'static str> {
    let name = match name.split_once('/') {
        Some((prefix, _)) if dns_subdomain(prefix).is_err() => {
            return Err("prefix part before the '/' must be a DNS subdomain");
        }
        Some((_, name)) => name,
        None => name,
    };
    if name.is_empty() || name.len() > LABEL_LENGTH_MAX {
        return Err("name part must have 1 to 63 characters");
    }
    if !is_word(name) {
        return Err(
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
             alphanumeric character",
        );
    }
    Ok(())
}

/// The value of a label, which may be empty.
pub fn label_value(value: &str) -> Result<(), &'static str> {
    if value.len() > LABEL_LENGTH_MAX {
        return Err("value must have no more than 63 characters");
    }
    if !value.is_empty() && !is_word(value) {
        return Err("value must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
             alphanumeric character");
    }
    Ok(())
}

/// The name of an environment variable: printable ASCII without `=`.
pub fn env_var(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("must not be empty");
    }
    if !name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        return Err("must consist of printable ASCII characters other than '='");
    }
    Ok(())
}

fn is_word(word: &str) -> bool {
    let inner = |b: &u8| b.is_ascii_alphanumeric() || b"-_.".contains(b);
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = word.as_bytes();
    bytes.iter().all(inner) && edge(bytes.first()) && edge(bytes.last())
}

fn is_lower_case_word(word: &str, also: &[u8]) -> bool {
    let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = word.as_bytes();
    bytes.iter().all(|b| edge(b) || also.contains(b))
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(form: fn(&str) -> Result<(), &'static str>, good: &[&str], bad: &[&str]) {
        for name in good {
            assert_eq!(form(name), Ok(()), "{name:?}");
        }
        for name in bad {
            assert!(form(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn names_have_their_forms() {
        let long = "a".repeat(64);
        check(dns_label, &["a", "web-0", "0a", &long[..63]], &["", "-a", "a-", "A", "a.b", "a_b", "ä", &long]);
        check(dns_subdomain, &["a", "a.b-c.d"], &["", "a..b", ".a", "a.", "a.-b", "A.b", &"a.".repeat(127)]);
        check(qualified_name, &["a", "A_b.c-d", "example.com/x"], &["", "/x", "Ex.com/x", "a/b/c", "-a", "a b", &long]);
        check(label_value, &["", "A_b.c-1", &long[..63]], &["-a", "a ", "a/b", &long]);
        check(env_var, &["A", "a b", "1", "x.y-z", "."], &["", "A=B", "ä", "a\n", "\x7f"]);
    }
}
