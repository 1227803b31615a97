//! `$(VAR)` in environment values, commands and arguments.

/// What all expansions of one container may come to. A program cannot be started with more
/// than some megabytes of arguments and variables anyway, and variables that name each other
/// grow exponentially: ten lines of a spec would ask for more memory than the node has.
pub const EXPANDED_BYTES_MAX: usize = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("variables and references expand to more than {EXPANDED_BYTES_MAX} bytes")]
pub struct TooLong;

/// Why text cannot be made of what references stand for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    #[error(transparent)]
    TooLong(#[from] TooLong),
    #[error("{0:?} refers to a variable whose value is not UTF-8 text")]
    NotText(String),
}

/// Bytes that may still come out of expansions.
pub struct Budget(usize);

impl Default for Budget {
    fn default() -> Self {
        Budget(EXPANDED_BYTES_MAX)
    }
}

impl Budget {
    pub fn of(bytes: usize) -> Self {
        Budget(bytes)
    }

    pub fn take(&mut self, bytes: usize) -> Result<(), TooLong> {
        self.0 = self.0.checked_sub(bytes).ok_or(TooLong)?;
        Ok(())
    }
}

/// Replaces each `$(NAME)` by what `lookup` knows of it. An unknown name stays as written,
/// `$$` is a plain `$`, and a `$` that begins neither stays too. Values need not be text.
pub fn expand<'v>(
    text: &str,
    budget: &mut Budget,
    lookup: impl Fn(&str) -> Option<&'v [u8]>,
) -> Result<Vec<u8>, TooLong> {
    budget.take(text.len())?;
    let mut expanded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        expanded.extend_from_slice(&rest.as_bytes()[..dollar]);
        let after = &rest[dollar + 1..];
        rest = match (after.strip_prefix('$'), after.strip_prefix('(').and_then(|inner| inner.split_once(')'))) {
            (Some(after_pair), _) => {
                expanded.push(b'$');
                after_pair
            }
            (None, Some((name, after_reference))) => {
                match lookup(name) {
                    Some(value) => {
                        budget.take(value.len())?;
                        expanded.extend_from_slice(value);
                    }
                    None => ["$(", name, ")"].iter().for_each(|part| expanded.extend_from_slice(part.as_bytes())),
                }
                after_reference
            }
            (None, None) => {
                expanded.push(b'$');
                after
            }
        };
    }
    expanded.extend_from_slice(rest.as_bytes());
    Ok(expanded)
}

/// The same where only text will do.
pub fn expand_text<'v>(
    text: &str,
    budget: &mut Budget,
    lookup: impl Fn(&str) -> Option<&'v [u8]>,
) -> Result<String, TextError> {
    String::from_utf8(expand(text, budget, lookup)?).map_err(|_| TextError::NotText(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_replaced_and_escapes_undone() {
        let lookup = |name: &str| match name {
            "A" => Some("a".as_bytes()),
            "EMPTY" => Some("".as_bytes()),
            "NESTED" => Some("$(A)".as_bytes()),
            _ => None,
        };
        let check = |text: &str, expected: &str| {
            assert_eq!(expand_text(text, &mut Budget::default(), lookup), Ok(expected.to_owned()), "{text}");
        };
        check("", "");
        check("plain", "plain");
        check("$(A)", "a");
        check("x-$(A)-$(A)-y", "x-a-a-y");
        check("[$(EMPTY)]", "[]");
        check("$(UNKNOWN)", "$(UNKNOWN)");
        check("$()", "$()");
        check("$$(A)", "$(A)");
        check("$$$(A)", "$a");
        check("$$$$(A)", "$$(A)");
        check("$(NESTED)", "$(A)");
        check("$", "$");
        check("$$", "$");
        check("$A", "$A");
        check("$(A", "$(A");
        check("$(A$(A)", "$(A$(A)");
        check("ü$(A)ü$", "üaü$");
        check("foo$$(", "foo$(");
    }

    #[test]
    fn values_that_are_no_text_go_where_bytes_may_and_nowhere_else() {
        let lookup = |name: &str| (name == "KEY").then_some(&b"\xff\xfe"[..]);
        assert_eq!(expand("<$(KEY)>", &mut Budget::default(), lookup), Ok(b"<\xff\xfe>".to_vec()));
        let refused = Err(TextError::NotText("<$(KEY)>".into()));
        assert_eq!(expand_text("<$(KEY)>", &mut Budget::default(), lookup), refused);
    }

    #[test]
    fn what_grows_without_bounds_is_refused() {
        let megabyte = "x".repeat(1 << 20);
        let lookup = |_: &str| Some(megabyte.as_bytes());
        let mut budget = Budget::default();
        assert_eq!(expand("$(A)$(A)", &mut budget, lookup).map(|value| value.len()), Ok(2 << 20));
        assert_eq!(expand("$(A)$(A)", &mut budget, lookup), Err(TooLong));
    }
}
