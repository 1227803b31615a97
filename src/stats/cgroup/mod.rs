//! Figures of one cgroup, the same for both versions. What a machine does not count is `None`.

mod tree;
mod v1;
mod v2;

#[cfg(test)]
mod tests;

pub use tree::Tree;
pub use v2::stall;

/// How much is read of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// What `/metrics/resource` and the short summary tell.
    Usage,
    /// The same, and the network and the processes of pods, for the whole summary.
    Pods,
    /// What `/metrics/cadvisor` tells beyond that.
    All,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Of the wall clock, when it was read.
    pub unix_millis: i64,
    pub cpu: Cpu,
    pub memory: Memory,
    pub pressure: Option<Pressure>,
    /// The rest is read with [`Detail::All`].
    pub throttling: Option<Throttling>,
    pub oom_kills: Option<u64>,
    pub threads: Option<u64>,
    pub devices: Vec<DeviceIo>,
}

/// What tells whether anything happened in a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glance {
    cpu_ns: u64,
    memory: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cpu {
    pub usage_ns: Option<u64>,
    pub user_ns: Option<u64>,
    pub system_ns: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Throttling {
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_ns: u64,
    pub bursts: u64,
    pub burst_ns: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    pub usage: Option<u64>,
    /// What cannot be given up at once: usage without files that nobody used of late.
    pub working_set: Option<u64>,
    pub rss: Option<u64>,
    pub cache: Option<u64>,
    pub mapped_file: Option<u64>,
    pub active_file: Option<u64>,
    pub inactive_file: Option<u64>,
    pub swap: Option<u64>,
    pub faults: Faults,
    /// Of the processes in the cgroup itself, where that is counted apart.
    pub own_faults: Option<Faults>,
    pub kernel: Option<u64>,
    pub usage_max: Option<u64>,
    pub limit_hits: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    pub all: Option<u64>,
    pub major: Option<u64>,
}

/// For how much of the time some, or all, waited for something.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pressure {
    pub cpu: Stall,
    pub memory: Stall,
    pub io: Stall,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    pub some: Waiting,
    pub full: Waiting,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Waiting {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total_us: u64,
}

/// What a cgroup read from and wrote to a block device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceIo {
    pub major: u32,
    pub minor: u32,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub reads: u64,
    pub writes: u64,
    pub discard_bytes: u64,
}

/// What a cgroup was set to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spec {
    pub cpu_shares: Option<u64>,
    pub cpu_period_us: Option<u64>,
    /// `None` is no quota.
    pub cpu_quota_us: Option<u64>,
    /// For the next five: `None` is no limit.
    pub memory_limit: Option<u64>,
    pub memory_reservation: Option<u64>,
    pub swap_limit: Option<u64>,
    /// Version 1 limits both together.
    pub memory_and_swap_limit: Option<u64>,
    pub threads_max: Option<u64>,
}

/// When a cgroup was made, as far as the kernel tells: it makes up the time of a file when somebody
/// looks at it, and again when it has forgotten that somebody did. Its number stays for the life of
/// the cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    pub inode: u64,
    pub unix_seconds: i64,
}

impl Created {
    /// What is told, once it was told otherwise before: of the same cgroup the earliest is nearest
    /// to the truth, and another one of the same name has a time of its own.
    pub fn after(self, before: Option<Created>) -> Created {
        let same = before.filter(|before| before.inode == self.inode);
        let earliest = same.map_or(self.unix_seconds, |before| before.unix_seconds.min(self.unix_seconds));
        Created { unix_seconds: earliest, ..self }
    }
}

impl Figures {
    /// What adds up with that of another cgroup beside it.
    pub fn usage(&self) -> Figures {
        let Memory { usage, working_set, rss, swap, faults, .. } = self.memory;
        let memory = Memory { usage, working_set, rss, swap, faults, ..Memory::default() };
        Figures { unix_millis: self.unix_millis, cpu: self.cpu.clone(), memory, ..Figures::default() }
    }

    pub fn add(&mut self, other: &Figures) {
        fn add(sum: &mut Option<u64>, more: Option<u64>) {
            *sum = sum.zip(more).map(|(sum, more)| sum.saturating_add(more));
        }
        self.unix_millis = self.unix_millis.max(other.unix_millis);
        let (memory, more) = (&mut self.memory, &other.memory);
        add(&mut self.cpu.usage_ns, other.cpu.usage_ns);
        add(&mut memory.usage, more.usage);
        add(&mut memory.working_set, more.working_set);
        add(&mut memory.rss, more.rss);
        add(&mut memory.swap, more.swap);
        add(&mut memory.faults.all, more.faults.all);
        add(&mut memory.faults.major, more.faults.major);
    }
}

impl Memory {
    fn with_working_set(mut self) -> Self {
        self.working_set = self.usage.map(|usage| usage.saturating_sub(self.inactive_file.unwrap_or(0)));
        self
    }
}
