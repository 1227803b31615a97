//! Names of sysctls.

/// Slashes may stand for dots, and then dots for slashes, as for the sysctl program.
pub fn dotted(name: &str) -> String {
    if name.find(['.', '/']).is_none_or(|first| name.as_bytes()[first] == b'.') {
        return name.to_owned();
    }
    let swap = |sign| match sign {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    name.chars().map(swap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sign_tells_what_separates() {
        let names =
            ["kernel/shm_rmid_forced", "net/ipv4/conf/eth0.1/x", "net.ipv4.conf.eth0/1.x", "plain", "kernel.sem"];
        let dotted = names.map(dotted);
        let expected =
            ["kernel.shm_rmid_forced", "net.ipv4.conf.eth0/1.x", "net.ipv4.conf.eth0/1.x", "plain", "kernel.sem"];
        assert_eq!(dotted, expected);
    }
}
