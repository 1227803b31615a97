//! Counters of network interfaces, from the table the kernel shows to each network namespace. Pure.

use super::text::{lines, number, words};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub received: Traffic,
    pub sent: Traffic,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// Loopback, and the node's ends of what pods count themselves; upstream leaves out these too.
const LEFT_OUT: [&[u8]; 4] = [b"lo", b"veth", b"docker", b"nerdctl"];

/// Of `net/dev`: two lines of heading, then `name: 8 figures received, 8 figures sent`.
pub fn interfaces(text: &[u8]) -> Vec<Interface> {
    lines(text).filter_map(interface).collect()
}

fn interface(line: &[u8]) -> Option<Interface> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let name = line[..colon].trim_ascii();
    if LEFT_OUT.iter().any(|start| name.starts_with(start)) {
        return None;
    }
    let mut figures = [0; 16];
    let mut words = words(&line[colon + 1..]);
    for figure in &mut figures {
        *figure = words.next().and_then(number)?;
    }
    let traffic = |at: usize| Traffic {
        bytes: figures[at],
        packets: figures[at + 1],
        errors: figures[at + 2],
        dropped: figures[at + 3],
    };
    let name = std::str::from_utf8(name).ok()?.to_owned();
    Some(Interface { name, received: traffic(0), sent: traffic(8) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADING: &str = "Inter-|   Receive                                                |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n";

    #[test]
    fn what_is_the_pods_own_is_counted() {
        let text = format!(
            "{HEADING}    lo:     100       2    0    0    0     0          0         0      100       2    0    0    0     0       0          0\n  \
             eth0:    3026      43    1    2    0     0          0         0      682       9    3    4    0     0       0          0\n\
             veth12ab: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n"
        );
        let received = Traffic { bytes: 3026, packets: 43, errors: 1, dropped: 2 };
        let sent = Traffic { bytes: 682, packets: 9, errors: 3, dropped: 4 };
        assert_eq!(interfaces(text.as_bytes()), [Interface { name: "eth0".into(), received, sent }]);
    }

    #[test]
    fn lines_that_are_cut_are_left_out() {
        assert_eq!(interfaces(format!("{HEADING}eth0: 1 2 3\neth1 nonsense\n").as_bytes()), []);
        assert_eq!(interfaces(b""), []);
    }
}
