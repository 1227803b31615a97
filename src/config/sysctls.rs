//! Which sysctls belong to a namespace, so that a pod's setting of them stays in the pod.

/// Names, or prefixes where they end in a dot or in the middle of a word.
const NAMESPACED: &[&str] = &["kernel.shm", "kernel.msg", "fs.mqueue.", "net."];

/// Checks an entry of `allowedUnsafeSysctls`: a name, or a prefix followed by `*`.
pub fn check_pattern(pattern: &str) -> Result<(), String> {
    let name = pattern.strip_suffix('*').unwrap_or(pattern);
    // A prefix may end where a name may not.
    let whole = name.trim_end_matches(['.', '/', '_', '-']);
    let is_prefix = pattern.ends_with('*');
    if !is_name(if is_prefix { whole } else { name }) {
        return Err(format!("expected a sysctl such as net.core.somaxconn or net.*, found {pattern:?}"));
    }
    // Slashes may stand for dots, as for the sysctl program.
    let dotted = name.replace('/', ".");
    let namespaced =
        (dotted == "kernel.sem" && !is_prefix) || NAMESPACED.iter().any(|prefix| dotted.starts_with(prefix));
    match namespaced {
        true => Ok(()),
        false => Err(format!("{pattern:?} is not of a namespace, so no pod may set it")),
    }
}

fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= 253
        && name.split(['.', '/']).all(|part| {
            part.bytes().next().is_some_and(plain)
                && part.bytes().last().is_some_and(plain)
                && part.bytes().all(|b| plain(b) || b == b'_' || b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaced_sysctls_may_be_allowed() {
        for pattern in [
            "kernel.shm*",
            "kernel.msgmax",
            "kernel.sem",
            "fs.mqueue.*",
            "net.*",
            "net.ipv4.tcp_mem",
            "net/core/somaxconn",
        ] {
            assert_eq!(check_pattern(pattern), Ok(()), "{pattern}");
        }
    }

    #[test]
    fn others_are_refused() {
        let check = |pattern: &str, expected: &str| {
            let reason = check_pattern(pattern).expect_err(pattern);
            assert!(reason.contains(expected), "{pattern}: {reason}");
        };
        check("vm.swappiness", "not of a namespace");
        check("kernel.sem*", "not of a namespace");
        check("*", "expected a sysctl");
        check("", "expected a sysctl");
        check("net..core", "expected a sysctl");
        check("Net.core", "expected a sysctl");
        check("net.*.foo", "expected a sysctl");
    }
}
