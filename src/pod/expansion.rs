//! `$(VAR)` in environment values, commands and arguments.

/// Replaces each `$(NAME)` by what `lookup` knows of it. An unknown name stays as written,
/// `$$` is a plain `$`, and a `$` that begins neither stays too.
pub fn expand<'v>(text: &str, lookup: impl Fn(&str) -> Option<&'v str>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        expanded.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        rest = match (after.strip_prefix('$'), after.strip_prefix('(').and_then(|inner| inner.split_once(')'))) {
            (Some(after_pair), _) => {
                expanded.push('$');
                after_pair
            }
            (None, Some((name, after_reference))) => {
                match lookup(name) {
                    Some(value) => expanded.push_str(value),
                    None => expanded.extend(["$(", name, ")"]),
                }
                after_reference
            }
            (None, None) => {
                expanded.push('$');
                after
            }
        };
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_replaced_and_escapes_undone() {
        let lookup = |name: &str| match name {
            "A" => Some("a"),
            "EMPTY" => Some(""),
            "NESTED" => Some("$(A)"),
            "" => None,
            _ => None,
        };
        let check = |text: &str, expected: &str| assert_eq!(expand(text, lookup), expected, "{text}");
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
}
