//! Where the files of a cgroup lie, and which of them are read.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Cpu, Created, Detail, Figures, Glance, Memory, Pressure, Spec, Throttling, v1, v2};
use crate::stats::reader::Reader;
use crate::stats::text::{limit, number};

/// The cgroups of a machine. A cgroup's id is its path from the root: `/kubepods/…`.
#[derive(Clone, Debug)]
pub enum Tree {
    /// Controllers to the directory of their hierarchy.
    V1(BTreeMap<&'static str, PathBuf>),
    V2(PathBuf),
}

const CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "blkio"];

impl Tree {
    pub fn find(root: &Path) -> Self {
        if root.join("cgroup.controllers").exists() {
            return Tree::V2(root.to_owned());
        }
        let mut hierarchies = BTreeMap::new();
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            let name = entry.file_name();
            // Those that are mounted together have their names in one.
            for part in name.to_str().unwrap_or_default().split(',') {
                if let Some(controller) = CONTROLLERS.into_iter().find(|controller| *controller == part) {
                    hierarchies.insert(controller, root.join(&name));
                }
            }
        }
        Tree::V1(hierarchies)
    }

    /// The names of the cgroups in one; none where it is not there.
    pub fn children(&self, id: &str) -> Vec<String> {
        let Some(directory) = self.main(id) else { return Vec::new() };
        directories(&directory).filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Of the cgroup and of those below it, which systemd, another runtime or crun make within a
    /// container. `None` where there is no such cgroup.
    pub fn processes(&self, id: &str, reader: &mut Reader) -> Option<Processes> {
        let directory = self.main(id)?;
        let mut found = Processes { pids: pids(&directory, reader)?, is_all: true };
        let mut below = sub_cgroups(&directory, DEPTH_MAX);
        let mut read = 0;
        while let Some((directory, depth)) = below.pop() {
            if depth == 0 || read == CGROUPS_MAX {
                found.is_all = false;
                continue;
            }
            read += 1;
            // One that is gone by now has none; those of a threaded one are listed further up.
            found.pids.extend(pids(&directory, reader).unwrap_or_default());
            below.extend(sub_cgroups(&directory, depth - 1));
        }
        Some(found)
    }

    /// Two figures that change when anything does; `None` where one is missing.
    pub fn glance(&self, id: &str, reader: &mut Reader) -> Option<Glance> {
        match self {
            Tree::V1(hierarchies) => OfV1 { hierarchies, id, reader }.glance(),
            Tree::V2(root) => OfV2 { directory: below(root, id), reader }.glance(),
        }
    }

    /// What grows and fades while nothing happens.
    pub fn pressure(&self, id: &str, reader: &mut Reader) -> Option<Pressure> {
        match self {
            Tree::V1(_) => None,
            Tree::V2(root) => OfV2 { directory: below(root, id), reader }.pressure(),
        }
    }

    /// `None` once the cgroup is gone.
    pub fn figures(&self, id: &str, spec: &Spec, detail: Detail, reader: &mut Reader) -> Option<Figures> {
        let figures = match self {
            Tree::V1(hierarchies) => OfV1 { hierarchies, id, reader }.figures(spec, detail),
            Tree::V2(root) => OfV2 { directory: below(root, id), reader }.figures(detail),
        };
        (figures.cpu != Cpu::default() || figures.memory != Memory::default()).then_some(figures)
    }

    pub fn spec(&self, id: &str, reader: &mut Reader) -> Spec {
        match self {
            Tree::V1(hierarchies) => OfV1 { hierarchies, id, reader }.spec(),
            Tree::V2(root) => OfV2 { directory: below(root, id), reader }.spec(),
        }
    }

    /// The hierarchy that is asked for what all have.
    fn main(&self, id: &str) -> Option<PathBuf> {
        match self {
            Tree::V1(hierarchies) => Some(below(hierarchies.get("memory").or(hierarchies.get("cpu"))?, id)),
            Tree::V2(root) => Some(below(root, id)),
        }
    }

    /// Nobody writes to this file, so that its time is the one when the kernel first showed it.
    pub fn created(&self, id: &str) -> Option<Created> {
        let file = match self {
            Tree::V1(_) => "cgroup.clone_children",
            Tree::V2(_) => "cgroup.controllers",
        };
        let metadata = fs::metadata(self.main(id)?.join(file)).ok()?;
        Some(Created { inode: metadata.ino(), unix_seconds: metadata.mtime() })
    }
}

/// What runs in a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processes {
    /// Its own come first.
    pub pids: Vec<u32>,
    /// False where so much lies below it that some was left out.
    pub is_all: bool,
}

/// Levels below a container, and cgroups in them all, in which processes are looked for. A node
/// within a container has about eight levels.
const DEPTH_MAX: usize = 10;
const CGROUPS_MAX: usize = 256;

fn pids(directory: &Path, reader: &mut Reader) -> Option<Vec<u32>> {
    let text = reader.read(directory, "cgroup.procs")?;
    let pids = text.split(|byte| *byte == b'\n').filter_map(number);
    // 0 is a process that is not to be seen from here.
    Some(pids.filter_map(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0).collect())
}

/// The cgroups in one, each with the levels that may yet be looked at.
fn sub_cgroups(directory: &Path, depth: usize) -> Vec<(PathBuf, usize)> {
    // A directory has a name in each one below it, beside its own two. Most have none below, and
    // to be told so is much cheaper than a list of all their files. Who does not count says 1.
    const OF_ITS_OWN: u64 = 2;
    if fs::metadata(directory).is_ok_and(|metadata| metadata.nlink() == OF_ITS_OWN) {
        return Vec::new();
    }
    directories(directory).map(|entry| (entry.path(), depth)).collect()
}

fn directories(directory: &Path) -> impl Iterator<Item = fs::DirEntry> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
}

fn below(root: &Path, id: &str) -> PathBuf {
    root.join(id.trim_start_matches('/'))
}

struct OfV1<'a> {
    hierarchies: &'a BTreeMap<&'static str, PathBuf>,
    id: &'a str,
    reader: &'a mut Reader,
}

impl OfV1<'_> {
    fn glance(&mut self) -> Option<Glance> {
        let cpu_ns = self.of("cpuacct", "cpuacct.usage", number)?;
        Some(Glance { cpu_ns, memory: self.of("memory", "memory.usage_in_bytes", number)? })
    }

    fn figures(&mut self, spec: &Spec, detail: Detail) -> Figures {
        let mut found = Figures::default();
        let acct = self.directory("cpuacct");
        found.cpu.usage_ns = self.in_(acct.as_deref(), "cpuacct.usage", number);
        let memory = self.directory("memory");
        let usage = self.in_(memory.as_deref(), "memory.usage_in_bytes", number);
        let stat = self.in_(memory.as_deref(), "memory.stat", |text| Some(v1::memory(text, usage)));
        found.memory = stat.unwrap_or_default();
        if detail < Detail::All {
            return found;
        }
        if let Some(text) = acct.as_deref().and_then(|directory| self.reader.read(directory, "cpuacct.stat")) {
            v1::shares_of_cpu(&mut found.cpu, text);
        }
        // Without a quota nobody is throttled.
        if spec.cpu_quota_us.is_some() {
            found.throttling = self.of("cpu", "cpu.stat", |text| Some(v1::throttling(text)));
        }
        found.memory.usage_max = self.in_(memory.as_deref(), "memory.max_usage_in_bytes", number);
        found.memory.limit_hits = self.in_(memory.as_deref(), "memory.failcnt", number);
        found.memory.kernel = self.in_(memory.as_deref(), "memory.kmem.usage_in_bytes", number);
        found.oom_kills = self.in_(memory.as_deref(), "memory.oom_control", v2::oom_kills);
        found.threads = self.of("pids", "pids.current", number);
        if let Some(blkio) = self.directory("blkio") {
            let bytes = self.reader.read(&blkio, "blkio.throttle.io_service_bytes_recursive");
            let bytes = bytes.unwrap_or_default().to_vec();
            // One who moved no bytes has asked for none.
            if bytes.contains(&b':') {
                let operations = self.reader.read(&blkio, "blkio.throttle.io_serviced_recursive");
                found.devices = v1::devices(&bytes, operations.unwrap_or_default());
            }
        }
        found
    }

    fn spec(&mut self) -> Spec {
        let memory_limit = self.of("memory", "memory.limit_in_bytes", v1::bytes_limit);
        let memory_and_swap_limit = self.of("memory", "memory.memsw.limit_in_bytes", v1::bytes_limit);
        Spec {
            cpu_shares: self.of("cpu", "cpu.shares", number),
            cpu_period_us: self.of("cpu", "cpu.cfs_period_us", number),
            // -1 is none, and no number here.
            cpu_quota_us: self.of("cpu", "cpu.cfs_quota_us", number),
            memory_limit,
            memory_reservation: self.of("memory", "memory.soft_limit_in_bytes", v1::bytes_limit),
            swap_limit: memory_and_swap_limit.zip(memory_limit).map(|(both, memory)| both.saturating_sub(memory)),
            memory_and_swap_limit,
            threads_max: self.of("pids", "pids.max", |text| limit(text).flatten()),
        }
    }

    fn directory(&self, controller: &str) -> Option<PathBuf> {
        self.hierarchies.get(controller).map(|root| below(root, self.id))
    }

    fn of<T>(&mut self, controller: &str, file: &str, parse: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
        let directory = self.directory(controller);
        self.in_(directory.as_deref(), file, parse)
    }

    fn in_<T>(&mut self, directory: Option<&Path>, file: &str, parse: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
        self.reader.read(directory?, file).and_then(parse)
    }
}

struct OfV2<'a> {
    directory: PathBuf,
    reader: &'a mut Reader,
}

impl OfV2<'_> {
    fn glance(&mut self) -> Option<Glance> {
        let cpu_ns = self.of("cpu.stat", |text| v2::cpu(text).0.usage_ns)?;
        Some(Glance { cpu_ns, memory: self.of("memory.current", number)? })
    }

    fn figures(&mut self, detail: Detail) -> Figures {
        let mut found = Figures::default();
        let mut throttling: Option<Throttling> = None;
        if let Some(text) = self.reader.read(&self.directory, "cpu.stat") {
            (found.cpu, throttling) = v2::cpu(text);
        }
        let usage = self.of("memory.current", number);
        found.memory = self.of("memory.stat", |text| Some(v2::memory(text, usage))).unwrap_or_default();
        found.memory.swap = self.of("memory.swap.current", number);
        found.pressure = self.pressure();
        if detail < Detail::All {
            return found;
        }
        found.throttling = throttling;
        found.memory.usage_max = self.of("memory.peak", number);
        if let Some(text) = self.reader.read(&self.directory, "memory.events") {
            found.oom_kills = v2::oom_kills(text);
            found.memory.limit_hits = crate::stats::text::value_of(text, "max");
        }
        found.threads = self.of("pids.current", number);
        found.devices = self.of("io.stat", |text| Some(v2::devices(text))).unwrap_or_default();
        found
    }

    fn pressure(&mut self) -> Option<Pressure> {
        let mut of = |file| self.of(file, |text| Some(v2::stall(text)));
        Some(Pressure { cpu: of("cpu.pressure")?, memory: of("memory.pressure")?, io: of("io.pressure")? })
    }

    fn spec(&mut self) -> Spec {
        let mut spec = Spec {
            cpu_shares: self.of("cpu.weight", v2::shares),
            cpu_period_us: None,
            cpu_quota_us: None,
            memory_limit: self.of("memory.max", |text| limit(text).flatten()),
            memory_reservation: self.of("memory.low", |text| limit(text).flatten()),
            swap_limit: self.of("memory.swap.max", |text| limit(text).flatten()),
            memory_and_swap_limit: None,
            threads_max: self.of("pids.max", |text| limit(text).flatten()),
        };
        if let Some(text) = self.reader.read(&self.directory, "cpu.max") {
            v2::quota(&mut spec, text);
        }
        spec
    }

    fn of<T>(&mut self, file: &str, parse: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
        self.reader.read(&self.directory, file).and_then(parse)
    }
}
