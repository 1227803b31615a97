//! What the kernel says of this process.

use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

use super::text::{Kind, Page};

/// Of `/proc/self/stat`: the kernel counts in hundredths of a second towards programs, whatever it
/// does inside.
const TICKS_PER_SECOND: f64 = 100.0;

/// How long the machine has been up.
pub fn since_boot() -> Option<Duration> {
    let text = fs::read_to_string("/proc/uptime").ok()?;
    Duration::try_from_secs_f64(text.split_whitespace().next()?.parse().ok()?).ok()
}

/// Reads files of the kernel; to be called where that may wait.
pub fn write(page: &mut Page, unix_seconds: f64) {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    if let Some(stat) = Stat::parse(&read("/proc/self/stat")) {
        let pages = f64::from(u32::try_from(page_bytes()).unwrap_or(4096));
        let gauge = Kind::Gauge;
        page.family("process_cpu_seconds_total", Kind::Counter, "CPU time of this process.")
            .sample(&[], stat.cpu_ticks / TICKS_PER_SECOND);
        page.family("process_resident_memory_bytes", gauge, "Memory of this process that is in RAM.")
            .sample(&[], stat.resident_pages * pages);
        page.family("process_virtual_memory_bytes", gauge, "Address space of this process.")
            .sample(&[], stat.virtual_bytes);
    }
    let limits = read("/proc/self/limits");
    if let Some(bytes) = limit(&limits, "Max address space") {
        page.family("process_virtual_memory_max_bytes", Kind::Gauge, "How much address space it may have.")
            .sample(&[], bytes);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // The one that reads the list is in it.
        page.family("process_open_fds", Kind::Gauge, "Files that this process has open.")
            .sample(&[], open.count().saturating_sub(1) as f64);
    }
    if let Some(files) = limit(&limits, "Max open files") {
        page.family("process_max_fds", Kind::Gauge, "How many it may have open.").sample(&[], files);
    }
    let network = read("/proc/self/net/netstat");
    for (name, help, field) in [
        ("process_network_receive_bytes_total", "Bytes that came in, in the network of this process.", "InOctets"),
        ("process_network_transmit_bytes_total", "Bytes that went out, in the network of this process.", "OutOctets"),
    ] {
        if let Some(bytes) = of_protocol(&network, "IpExt", field) {
            page.family(name, Kind::Counter, help).sample(&[], bytes);
        }
    }
    write_start_time(page, unix_seconds);
}

/// Every page of upstream's has it.
pub fn write_start_time(page: &mut Page, unix_seconds: f64) {
    // Reckoned once: who sees it change takes it for a restart.
    static STARTED: OnceLock<Option<f64>> = OnceLock::new();
    if let Some(started) = *STARTED.get_or_init(|| started(unix_seconds)) {
        page.family("process_start_time_seconds", Kind::Gauge, "When this process began, since 1970.")
            .sample(&[], started);
    }
}

fn started(unix_seconds: f64) -> Option<f64> {
    let stat = Stat::parse(&fs::read_to_string("/proc/self/stat").ok()?)?;
    let age = since_boot()?.as_secs_f64() - stat.start_ticks / TICKS_PER_SECOND;
    // To the hundredth, as far as the kernel tells it.
    Some(((unix_seconds - age) * TICKS_PER_SECOND).round() / TICKS_PER_SECOND)
}

fn page_bytes() -> i64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096)
}

#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: f64,
    start_ticks: f64,
    virtual_bytes: f64,
    resident_pages: f64,
}

impl Stat {
    /// Its second field is the program's name, in parentheses, which may hold anything.
    fn parse(text: &str) -> Option<Stat> {
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // By the numbers of proc(5), which begin at 1; the first of these is the third.
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        Some(Stat {
            cpu_ticks: field(14)? + field(15)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// A figure of a table of two lines for each protocol: names, and then values.
fn of_protocol(table: &str, protocol: &str, field: &str) -> Option<f64> {
    let mut lines = table.lines().filter_map(|line| line.strip_prefix(protocol)?.strip_prefix(':'));
    let (names, values) = (lines.next()?, lines.next()?);
    let place = names.split_whitespace().position(|name| name == field)?;
    values.split_whitespace().nth(place)?.parse().ok()
}

/// The soft limit of this name; without one it is as good as endless.
fn limit(limits: &str, name: &str) -> Option<f64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX as f64),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines_are_read() {
        let fields: Vec<String> = (4..=30).map(|number| number.to_string()).collect();
        let text = format!("7 (a (b) c) S {}\n", fields.join(" "));
        let expected = Stat { cpu_ticks: 29.0, start_ticks: 22.0, virtual_bytes: 23.0, resident_pages: 24.0 };
        assert_eq!(Stat::parse(&text), Some(expected));
        assert_eq!(Stat::parse("7 (a) S 1 2\n"), None);
        let limits = "Limit  Soft Limit Hard Limit Units\nMax open files    1024   4096  files\n\
                      Max address space  unlimited unlimited bytes\n";
        assert_eq!(limit(limits, "Max open files"), Some(1024.0));
        assert_eq!(limit(limits, "Max address space"), Some(18_446_744_073_709_551_615.0));
        assert_eq!(limit(limits, "Max nothing"), None);
        let table = "TcpExt: A B\nTcpExt: 1 2\nIpExt: InOctets OutOctets\nIpExt: 3 4\n";
        assert_eq!(of_protocol(table, "IpExt", "OutOctets"), Some(4.0));
        assert_eq!(of_protocol(table, "IpExt", "B"), None);
    }

    #[test]
    fn this_process_has_begun_after_the_machine_and_before_now() {
        let mut page = Page::new();
        let now = 2_000_000_000.0;
        write(&mut page, now);
        let text = page.into_string();
        let line = text.lines().find_map(|line| line.strip_prefix("process_start_time_seconds "));
        let started: f64 = line.expect("it is told").parse().expect("a number");
        let up = since_boot().expect("the machine is up").as_secs_f64();
        assert!(started <= now + 0.1 && started >= now - up - 0.1, "{started}");
        assert!(text.contains("\nprocess_open_fds ") && text.contains("\nprocess_resident_memory_bytes "), "{text}");
    }
}
