//! The place of a value in the configuration document.

use std::fmt;

/// The keys that lead to a value. Printed as `authentication.webhook.cacheTTL`,
/// `evictionHard[memory.available]` or `reservedMemory[0].limits`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct FieldPath(Vec<String>);

impl FieldPath {
    /// The path of a field as the table writes it, with dots between the keys.
    pub fn of_field(dotted: &str) -> Self {
        FieldPath(dotted.split('.').map(str::to_owned).collect())
    }

    pub fn child(&self, key: impl ToString) -> Self {
        let mut keys = self.0.clone();
        keys.push(key.to_string());
        FieldPath(keys)
    }

    pub fn keys(&self) -> &[String] {
        &self.0
    }

    /// Whether this is `ancestor` or lies below it.
    pub fn is_within(&self, ancestor: &FieldPath) -> bool {
        self.0.starts_with(&ancestor.0)
    }

    /// The path one key up; the root is its own parent.
    pub fn parent(&self) -> FieldPath {
        FieldPath(self.0[..self.0.len().saturating_sub(1)].to_vec())
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, key) in self.0.iter().enumerate() {
            let index = key.bytes().all(|b| b.is_ascii_digit());
            let plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            match (plain && !index, position) {
                (true, 0) => f.write_str(key)?,
                (true, _) => write!(f, ".{key}")?,
                (false, _) => write!(f, "[{key}]")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_print_as_users_write_them() {
        let check = |path: FieldPath, expected: &str| assert_eq!(path.to_string(), expected);
        check(FieldPath::of_field("authentication.webhook.cacheTTL"), "authentication.webhook.cacheTTL");
        check(FieldPath::of_field("evictionHard").child("memory.available"), "evictionHard[memory.available]");
        check(FieldPath::of_field("reservedMemory").child(0).child("limits"), "reservedMemory[0].limits");
        check(FieldPath::of_field("systemReserved").child("cpu"), "systemReserved.cpu");
    }
}
