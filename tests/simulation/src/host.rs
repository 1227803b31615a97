//! A simulated machine: the directories, volumes and cgroups of pods, and what may go wrong
//! with them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use ferrolet::host::{
    CgroupDriver, CgroupPath, CgroupSettings, CgroupVersion, DirMedium, Durability, Host, HostError, HostPathKind,
    Machine, MachineFacts, PayloadFile, Result, Written,
};
use ferrolet::pod::PodUid;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::faults::Fate;
use crate::invariants::Invariant;
use crate::pins::{self, Pins, RESERVED, THREADS};
use crate::runtime::SimRuntime;
use crate::world::World;

const CPUS: u32 = 4;
const MEMORY_BYTES: u64 = 8 << 30;
/// How long the real machine waits for a stuck disk.
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct SimHost {
    world: World,
    /// What runs here, to hold against what is taken away.
    runtime: SimRuntime,
    root_dir: PathBuf,
    ground: Ground,
    /// Pods may have CPUs of their own.
    has_pins: bool,
}

/// What the agent and the runtime both stand on. Clones share it.
#[derive(Clone, Default)]
pub struct Ground(Arc<Mutex<State>>);

impl Ground {
    /// A file that is there before any agent.
    pub fn write(&self, path: &str, text: &str) {
        put(&mut self.state(), Path::new(path), Some(text.as_bytes().to_vec()));
    }

    /// The runtime opens a container's log, which makes it if it is not there.
    pub fn open_log(&self, container: &str, path: &Path) {
        let mut state = self.state();
        if !state.tree.contains_key(path) {
            put(&mut state, path, Some(Vec::new()));
        }
        state.open_logs.insert(container.to_owned(), path.to_owned());
    }

    /// A container says a line; false if the file it is written to has no name any more.
    pub fn say(&self, container: &str, line: &str) -> bool {
        let mut state = self.state();
        let State { tree, open_logs, written, .. } = &mut *state;
        let content = open_logs.get(container).and_then(|path| tree.get_mut(path)).and_then(Option::as_mut);
        if let Some(content) = content {
            content.extend_from_slice(line.as_bytes());
            written.notify_waiters();
            return true;
        }
        false
    }

    pub fn has(&self, path: &Path) -> bool {
        self.state().tree.contains_key(path)
    }

    /// The runtime makes a cgroup below that of a pod, and so that as well, if it is not there.
    pub fn need_cgroup(&self, path: &str) {
        self.state().cgroups.entry(path.to_owned()).or_default();
    }

    /// What all containers of a pod may use together, if that is limited.
    pub fn pod_memory_limit(&self, uid: &str) -> Option<u64> {
        pod_cgroup(&self.state(), uid)?.memory_limit_bytes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing that holds the ground can panic")
    }
}

#[derive(Default)]
struct State {
    /// Directories and files; the content of files.
    tree: BTreeMap<PathBuf, Option<Vec<u8>>>,
    cgroups: BTreeMap<String, CgroupSettings>,
    /// Where the file is by now that the runtime writes a container's log to.
    open_logs: BTreeMap<String, PathBuf>,
    /// Somebody wrote to some log.
    written: Arc<Notify>,
}

impl State {
    /// A directory and all that is in it, however deep.
    fn within<'a>(&'a self, dir: &'a Path) -> impl Iterator<Item = (&'a PathBuf, &'a Option<Vec<u8>>)> {
        // Paths are ordered part by part, so these stand together.
        let from = (Bound::Included(dir), Bound::Unbounded);
        self.tree.range::<Path, _>(from).take_while(move |(path, _)| path.starts_with(dir))
    }

    /// The names of what is in a directory.
    fn names_in<'a>(&'a self, dir: &'a Path) -> impl Iterator<Item = String> {
        let children = self.within(dir).filter(move |(path, _)| path.parent() == Some(dir));
        children.filter_map(|(path, _)| path.file_name()).map(|name| name.to_string_lossy().into_owned())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> bool {
        let Some(content) = self.tree.remove(from) else { return false };
        self.tree.insert(to.to_owned(), content);
        self.open_logs.values_mut().filter(|path| *path == from).for_each(|path| *path = to.to_owned());
        true
    }
}

impl SimHost {
    pub fn new(world: World, ground: Ground, runtime: SimRuntime, root_dir: PathBuf, has_pins: bool) -> Self {
        SimHost { world, runtime, root_dir, ground, has_pins }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.ground.state()
    }

    /// All that pods may have, in thousandths.
    pub fn milli_cpus(&self) -> u64 {
        u64::from(if self.has_pins { THREADS - RESERVED.len() as u32 } else { CPUS }) * 1000
    }

    /// Something may have happened to a file while nobody looked.
    pub fn break_file(&self, path: &Path, random: &mut fastrand::Rng) {
        let mut state = self.state();
        let Some(Some(content)) = state.tree.get_mut(path) else { return };
        match random.u32(0..6) {
            0 => content.truncate(random.usize(..=content.len())),
            1 => *content = b"{\"policyName\": \"none\", \"defaultCpuSet\": \"\", \"checksum\": 0}".to_vec(),
            2 => drop(state.tree.remove(path)),
            _ => return,
        }
        self.world.log(|| format!("{} is broken", path.display()));
    }

    /// What the pod still holds: its directories and its cgroup.
    pub fn leftovers(&self, uid: &str) -> Vec<String> {
        let state = self.state();
        let pod_dir = self.root_dir.join("pods").join(uid);
        let files = state.within(&pod_dir).map(|(path, _)| path.display().to_string());
        files.chain(state.cgroups.keys().filter(|path| pod_of_cgroup(path) == Some(uid)).cloned()).collect()
    }

    /// Whether the pod has a cgroup that the agent made.
    pub fn has_cgroup(&self, uid: &str) -> bool {
        self.pod_cgroup(uid).is_some_and(|settings| settings != CgroupSettings::default())
    }

    /// What the cgroup of a pod is set to.
    pub fn pod_cgroup(&self, uid: &str) -> Option<CgroupSettings> {
        pod_cgroup(&self.state(), uid).cloned()
    }

    /// The content of a file.
    pub fn file(&self, path: &Path) -> Option<Vec<u8>> {
        self.state().tree.get(path).cloned().flatten()
    }

    /// Paths below a directory.
    pub fn below(&self, dir: &Path) -> Vec<String> {
        let state = self.state();
        let inside = state.within(dir).filter(|(path, _)| *path != dir);
        inside.map(|(path, _)| path.display().to_string()).collect()
    }

    /// Where a link points.
    pub fn target(&self, link: &Path) -> Option<String> {
        Some(String::from_utf8_lossy(&self.file(link)?).into_owned())
    }

    /// How large a file is.
    pub fn size(&self, path: &Path) -> Option<usize> {
        self.state().tree.get(path)?.as_ref().map(Vec::len)
    }

    /// Nothing may be taken from under a container that runs.
    fn check_taking(&self, what: &str, uid: &str) {
        let running = self.runtime.running_in(uid);
        if !running.is_empty() {
            self.world.violation(
                Invariant::NothingTakenFromARunningContainer,
                format!("{what} of {uid} goes while {running:?} run"),
            );
        }
    }

    pub fn pod_uids(&self) -> BTreeSet<String> {
        let state = self.state();
        let pods = self.root_dir.join("pods");
        let dirs = state.within(&pods).filter_map(|(path, _)| {
            path.strip_prefix(&pods).ok()?.components().next().map(|uid| uid.as_os_str().to_string_lossy().into_owned())
        });
        let cgroups = state.cgroups.keys().filter_map(|path| pod_of_cgroup(path).map(str::to_owned));
        dirs.chain(cgroups).filter(|uid| !uid.is_empty()).collect()
    }

    async fn call<T>(&self, what: &'static str, path: &Path, effect: impl FnOnce(&mut State) -> T + Send) -> Result<T> {
        let failure = |kind| HostError::Io { what, path: path.to_owned(), source: std::io::Error::from(kind) };
        match self.world.fate().await {
            Fate::Good => Ok(effect(&mut self.state())),
            Fate::Refused => Err(failure(std::io::ErrorKind::StorageFull)),
            Fate::Lost => {
                effect(&mut self.state());
                Err(failure(std::io::ErrorKind::Interrupted))
            }
            Fate::Hangs { takes_effect } => {
                let deadline = Instant::now() + DEADLINE;
                if takes_effect {
                    self.world.be_late(DEADLINE).await;
                    effect(&mut self.state());
                }
                tokio::time::sleep_until(deadline).await;
                Err(HostError::Timeout { what, path: path.to_owned(), after: DEADLINE })
            }
        }
    }
}

fn pod_cgroup<'a>(state: &'a State, uid: &str) -> Option<&'a CgroupSettings> {
    state.cgroups.iter().find(|(path, _)| pod_of_cgroup(path) == Some(uid)).map(|(_, settings)| settings)
}

fn pod_of_cgroup(path: &str) -> Option<&str> {
    path.rsplit('/').next()?.strip_prefix("pod")
}

fn make_parents(state: &mut State, path: &Path) {
    for ancestor in path.ancestors().skip(1).filter(|ancestor| ancestor.parent().is_some()) {
        state.tree.entry(ancestor.to_owned()).or_insert(None);
    }
}

fn put(state: &mut State, path: &Path, content: Option<Vec<u8>>) -> bool {
    make_parents(state, path);
    state.tree.insert(path.to_owned(), content.clone()) != Some(content)
}

#[async_trait]
impl Host for SimHost {
    async fn facts(&self) -> Result<MachineFacts> {
        Ok(MachineFacts {
            hostname: "sim".into(),
            machine_id: "machine".into(),
            boot_id: "boot".into(),
            architecture: "amd64".into(),
            cpus: if self.has_pins { THREADS } else { CPUS },
            machine: Arc::new(if self.has_pins { Pins::hardware() } else { Machine::default() }),
            memory_bytes: if self.has_pins { pins::MEMORY_BYTES } else { MEMORY_BYTES },
            root_fs_bytes: 100 << 30,
            max_pids: 32768,
            addresses: vec!["192.0.2.1".parse().expect("a literal address")],
            cgroup_version: CgroupVersion::V2,
            ..MachineFacts::default()
        })
    }

    async fn resolve(&self, _name: &str) -> Vec<IpAddr> {
        Vec::new()
    }

    async fn use_cgroup_driver(&self, _driver: CgroupDriver) -> Result<()> {
        Ok(())
    }

    async fn check_cgroup(&self, _cgroup: &CgroupPath) -> Result<()> {
        Ok(())
    }

    async fn ensure_cgroup(&self, cgroup: &CgroupPath, settings: &CgroupSettings) -> Result<bool> {
        self.call("make cgroup", Path::new(&cgroup.0), |state| {
            state.cgroups.insert(cgroup.0.clone(), settings.clone()).as_ref() != Some(settings)
        })
        .await
    }

    async fn destroy_cgroup(&self, cgroup: &CgroupPath) -> Result<()> {
        self.call("remove cgroup", Path::new(&cgroup.0), |state| {
            if let Some(uid) = pod_of_cgroup(&cgroup.0).filter(|_| state.cgroups.contains_key(&cgroup.0)) {
                self.check_taking("the cgroup", uid);
            }
            let below = format!("{}/", cgroup.0);
            state.cgroups.retain(|path, _| *path != cgroup.0 && !path.starts_with(&below));
        })
        .await
    }

    async fn list_pod_cgroups(&self, root: &CgroupPath) -> Result<Vec<(PodUid, CgroupPath)>> {
        self.call("list cgroups", Path::new(&root.0), |state| {
            let pods = state
                .cgroups
                .keys()
                .filter_map(|path| Some((PodUid::new(pod_of_cgroup(path)?), CgroupPath(path.clone()))));
            pods.collect()
        })
        .await
    }

    async fn list_pod_dirs(&self) -> Result<Vec<PodUid>> {
        let pods = self.root_dir.join("pods");
        self.call("list", &pods, |state| state.names_in(&pods).map(PodUid::new).collect()).await
    }

    async fn list_pod_volumes(&self, uid: &PodUid) -> Result<Vec<(String, String)>> {
        let volumes = self.root_dir.join("pods").join(uid.as_str()).join("volumes");
        self.call("list", &volumes, |state| {
            let below = state.within(&volumes).filter_map(|(path, _)| path.strip_prefix(&volumes).ok());
            let pairs = below.filter_map(|path| {
                let mut parts = path.components().map(|part| part.as_os_str().to_string_lossy().into_owned());
                Some((parts.next()?, parts.next()?))
            });
            pairs.collect::<BTreeSet<_>>().into_iter().collect()
        })
        .await
    }

    async fn make_dir(&self, path: &Path, _mode: u32) -> Result<()> {
        self.call("make directory", path, |state| {
            put(state, path, None);
        })
        .await
    }

    async fn make_empty_dir(&self, path: &Path, _medium: &DirMedium) -> Result<bool> {
        self.call("make directory", path, |state| put(state, path, None)).await
    }

    async fn write_payload(
        &self,
        path: &Path,
        _medium: &DirMedium,
        files: &[PayloadFile],
        _fs_group: Option<u32>,
    ) -> Result<bool> {
        self.call("write volume", path, |state| {
            let wanted: BTreeMap<PathBuf, Option<Vec<u8>>> =
                files.iter().map(|file| (path.join(&file.path), Some(file.data.clone()))).collect();
            let has = state.within(path).filter(|(_, content)| content.is_some());
            let has: BTreeMap<PathBuf, Option<Vec<u8>>> =
                has.map(|(entry, content)| (entry.clone(), content.clone())).collect();
            has.keys().for_each(|entry| drop(state.tree.remove(entry)));
            put(state, path, None);
            for (file, data) in &wanted {
                put(state, file, data.clone());
            }
            has != wanted
        })
        .await
    }

    async fn apply_fs_group(&self, path: &Path, _gid: u32) -> Result<()> {
        self.call("set group", path, |_| ()).await
    }

    async fn check_host_path(&self, path: &Path, _kind: HostPathKind) -> Result<()> {
        self.call("check", path, |_| ()).await
    }

    async fn prepare_sub_path(&self, volume: &Path, sub_path: &str, target: &Path) -> Result<PathBuf> {
        self.call("prepare sub-path", volume, |state| {
            put(state, &volume.join(sub_path), None);
            put(state, target, None);
            target.to_owned()
        })
        .await
    }

    async fn remove_tree(&self, path: &Path) -> Result<()> {
        self.call("remove", path, |state| {
            if let Some(uid) = path.strip_prefix(self.root_dir.join("pods")).ok().and_then(Path::to_str) {
                self.check_taking("the directory", uid);
            }
            let gone: Vec<_> = state.within(path).map(|(entry, _)| entry.clone()).collect();
            gone.iter().for_each(|entry| drop(state.tree.remove(entry)));
        })
        .await
    }

    async fn write_file(&self, path: &Path, data: &[u8], _mode: u32, _durability: Durability) -> Result<()> {
        self.call("write", path, |state| {
            put(state, path, Some(data.to_vec()));
        })
        .await
    }

    async fn read_file(&self, path: &Path, _bytes_max: usize) -> Result<Option<Vec<u8>>> {
        self.call("read", path, |state| state.tree.get(path).cloned().flatten()).await
    }

    async fn read_file_in(&self, volume: &Path, path: &str, bytes_max: usize) -> Result<Option<Vec<u8>>> {
        self.read_file(&volume.join(path), bytes_max).await
    }

    async fn read_tail(&self, path: &Path, _bytes_max: usize, _lines_max: Option<usize>) -> Result<Option<Vec<u8>>> {
        self.read_file(path, usize::MAX).await
    }

    async fn list_dir(&self, path: &Path) -> Result<Vec<String>> {
        self.call("list", path, |state| state.names_in(path).collect()).await
    }

    async fn symlink(&self, target: &Path, link: &Path) -> Result<()> {
        self.call("link", link, |state| {
            put(state, link, Some(target.to_string_lossy().into_owned().into_bytes()));
        })
        .await
    }

    async fn dangling_links(&self, path: &Path) -> Result<Vec<String>> {
        self.call("look for dangling links", path, |state| {
            let links = state.within(path).filter(|(entry, _)| entry.parent() == Some(path));
            let dangling = links.filter(|(_, target)| {
                let target =
                    target.as_deref().map(|target| PathBuf::from(String::from_utf8_lossy(target).into_owned()));
                target.is_some_and(|target| !state.tree.contains_key(&target))
            });
            dangling.filter_map(|(entry, _)| Some(entry.file_name()?.to_string_lossy().into_owned())).collect()
        })
        .await
    }

    async fn remove_file(&self, path: &Path) -> Result<()> {
        self.call("remove", path, |state| {
            state.tree.remove(path);
        })
        .await
    }

    async fn file_size(&self, path: &Path) -> Result<Option<u64>> {
        self.call("look at", path, |state| Some(state.tree.get(path)?.as_ref()?.len() as u64)).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let source = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let missing = || HostError::Io { what: "rename", path: from.to_owned(), source: source() };
        self.call("rename", from, |state| state.rename(from, to)).await?.then_some(()).ok_or_else(missing)
    }

    async fn rename_new(&self, from: &Path, to: &Path) -> Result<bool> {
        self.call("rename", from, |state| !state.tree.contains_key(to) && state.rename(from, to)).await
    }

    async fn gzip(&self, path: &Path) -> Result<()> {
        self.call("compress", path, |state| {
            if let Some(content) = state.tree.remove(path) {
                state.tree.insert(PathBuf::from(format!("{}.gz", path.display())), content);
            }
        })
        .await
    }

    /// Hears of writes to any file: looking once too often is harmless.
    async fn watch_writes(&self, path: &Path) -> Result<Written> {
        let written = self.call("watch", path, |state| state.written.clone().notified_owned()).await?;
        Ok(Box::pin(written))
    }
}
