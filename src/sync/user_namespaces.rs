//! Ranges of the node's user ids, one for each pod that has users of its own.
//!
//! A pod with `hostUsers: false` sees the ids 0 to 65535, which are other ids on the node, of
//! a range that no other pod has. The range is written into the pod's directory, in
//! upstream's format, before anything is made with it, and goes with that directory.
//!
//! Always true: two pods never have the same id; the files are the only record, so that a
//! new agent, or upstream's, goes on with the ranges there are. Where a file cannot be read,
//! the runtime knows what runs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use tracing::warn;

use crate::cri::{CriError, IdRange, Runtime, Scope};
use crate::host::{Durability, Host, HostError};
use crate::pod::PodUid;

const FILE: &str = "userns";
/// Upstream's mode, which some tool may look at.
const FILE_MODE: u32 = 0o644;
const DIR_MODE: u32 = 0o750;
/// Many times what one mapping takes.
const FILE_BYTES_MAX: usize = 64 << 10;

/// The node's ids that pods may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdPool {
    pub first: u32,
    pub length: u32,
    pub per_pod: u32,
}

impl IdPool {
    /// All ids but the first `per_pod`, which are the node's own.
    pub fn above_the_nodes(per_pod: u32) -> Self {
        IdPool { first: per_pod, length: u32::MAX - per_pod, per_pod }
    }

    pub fn pods_max(&self) -> u32 {
        self.length / self.per_pod
    }

    /// The first free range.
    fn free(&self, taken: &BTreeMap<PodUid, Taken>) -> Option<IdRange> {
        let slots = (0..self.pods_max())
            .map(|slot| IdRange { host_id: self.first + slot * self.per_pod, length: self.per_pod });
        slots.into_iter().find(|range| !taken.values().any(|other| overlap(range, &other.range)))
    }
}

fn overlap(one: &IdRange, other: &IdRange) -> bool {
    let end = |range: &IdRange| u64::from(range.host_id) + u64::from(range.length);
    u64::from(one.host_id) < end(other) && u64::from(other.host_id) < end(one)
}

#[derive(Debug, thiserror::Error)]
pub enum UserNamespaceError {
    #[error("can't set `spec.hostUsers: false`, runtime does not support user namespaces")]
    Unsupported,
    #[error("no free range of user ids is left on this node")]
    Exhausted,
    #[error("cannot remember the pod's user ids")]
    Write(#[source] HostError),
    #[error("cannot read which user ids pods have")]
    Read(#[source] HostError),
    #[error("cannot ask the runtime for the user ids of pod {uid}, whose file cannot be read")]
    Ask { uid: PodUid, source: CriError },
}

/// A range, and whether its file is known to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Taken {
    range: IdRange,
    written: bool,
}

/// Asks which range a pod runs in, if anything of it runs in one.
type Ask = Box<dyn Fn(PodUid) -> BoxFuture<'static, Result<Option<IdRange>, CriError>> + Send + Sync>;

/// The range of a pod as the runtime tells it.
pub async fn range_in_use(runtime: &dyn Runtime, uid: PodUid) -> Result<Option<IdRange>, CriError> {
    for listed in runtime.list_sandboxes(&Scope::Pod(uid)).await? {
        match runtime.sandbox_status(&listed.id).await {
            Ok(sandbox) if sandbox.users.is_some() => return Ok(sandbox.users),
            Ok(_) | Err(CriError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Hands out the ranges.
pub struct UserNamespaces {
    host: Arc<dyn Host>,
    ask: Ask,
    root_dir: PathBuf,
    pool: IdPool,
    /// Read from disk before the first range is given.
    taken: OnceCell<Mutex<BTreeMap<PodUid, Taken>>>,
}

impl UserNamespaces {
    pub fn new(host: Arc<dyn Host>, ask: Ask, root_dir: PathBuf, pool: IdPool) -> Self {
        UserNamespaces { host, ask, root_dir, pool, taken: OnceCell::new() }
    }

    /// The pod's range: the one it has, or else a free one, which is then its own.
    pub async fn range(&self, uid: &PodUid) -> Result<IdRange, UserNamespaceError> {
        let taken = self.taken.get_or_try_init(|| self.read_all()).await?;
        let own = {
            let mut taken = lock(taken);
            match taken.get(uid) {
                Some(own) => *own,
                None => {
                    let range = self.pool.free(&taken).ok_or(UserNamespaceError::Exhausted)?;
                    let own = Taken { range, written: false };
                    taken.insert(uid.clone(), own);
                    own
                }
            }
        };
        if !own.written {
            self.write(uid, own.range).await.map_err(UserNamespaceError::Write)?;
            lock(taken).entry(uid.clone()).and_modify(|own| own.written = true);
        }
        Ok(own.range)
    }

    /// To be called once the pod's directory is gone, and with it all that ran in the range.
    pub fn release(&self, uid: &PodUid) {
        if let Some(taken) = self.taken.get() {
            lock(taken).remove(uid);
        }
    }

    fn file(&self, uid: &PodUid) -> PathBuf {
        self.root_dir.join("pods").join(uid.as_str()).join(FILE)
    }

    async fn write(&self, uid: &PodUid, range: IdRange) -> Result<(), HostError> {
        let file = self.file(uid);
        if let Some(dir) = file.parent() {
            self.host.make_dir(dir, DIR_MODE).await?;
        }
        let text = serde_json::to_vec(&Mappings::of(range)).expect("plain numbers serialize");
        self.host.write_file(&file, &text, FILE_MODE, Durability::ThroughPowerCut).await
    }

    async fn read_all(&self) -> Result<Mutex<BTreeMap<PodUid, Taken>>, UserNamespaceError> {
        let mut all = BTreeMap::new();
        for uid in self.host.list_pod_dirs().await.map_err(UserNamespaceError::Read)? {
            let path = self.file(&uid);
            let problem = match self.host.read_file(&path, FILE_BYTES_MAX).await {
                Ok(None) => continue,
                Ok(Some(text)) => match Mappings::parse(&text) {
                    Ok(range) => {
                        all.insert(uid, Taken { range, written: true });
                        continue;
                    }
                    Err(problem) => problem,
                },
                // One pod's disk must not hold up all others.
                Err(error) => error.to_string(),
            };
            let asked = (self.ask)(uid.clone()).await;
            let range = asked.map_err(|source| UserNamespaceError::Ask { uid: uid.clone(), source })?;
            warn!(%uid, path = %path.display(), problem, ?range, "cannot use the pod's file of user ids, it has what it runs with");
            if let Some(range) = range {
                all.insert(uid, Taken { range, written: false });
            }
        }
        Ok(Mutex::new(all))
    }
}

fn lock(taken: &Mutex<BTreeMap<PodUid, Taken>>) -> MutexGuard<'_, BTreeMap<PodUid, Taken>> {
    taken.lock().expect("nothing that holds the table of ranges can panic")
}

/// The file, as upstream writes it.
#[derive(Serialize, Deserialize)]
struct Mappings {
    #[serde(rename = "uidMappings")]
    uids: Vec<Mapping>,
    #[serde(rename = "gidMappings")]
    gids: Vec<Mapping>,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq)]
struct Mapping {
    #[serde(rename = "hostId")]
    host_id: u32,
    #[serde(rename = "containerId")]
    container_id: u32,
    length: u32,
}

impl Mappings {
    fn of(range: IdRange) -> Self {
        let all = vec![Mapping { host_id: range.host_id, container_id: 0, length: range.length }];
        Mappings { uids: all.clone(), gids: all }
    }

    fn parse(text: &[u8]) -> Result<IdRange, String> {
        let mappings: Mappings = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        mappings.range().ok_or_else(|| "it is not one range for users and groups alike".to_owned())
    }

    fn range(&self) -> Option<IdRange> {
        match (self.uids.as_slice(), self.gids.as_slice()) {
            ([uids], [gids]) if uids == gids && uids.container_id == 0 && uids.length > 0 => {
                Some(IdRange { host_id: uids.host_id, length: uids.length })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;
    use crate::host::{LinuxHost, Roots};

    const PER_POD: u32 = 65_536;

    fn agent(root: &tempfile::TempDir, length: u32) -> UserNamespaces {
        agent_beside(root, length, |_| Ok(None))
    }

    /// An agent whose runtime says which ranges are in use.
    fn agent_beside(
        root: &tempfile::TempDir,
        length: u32,
        says: fn(&str) -> Result<Option<IdRange>, CriError>,
    ) -> UserNamespaces {
        let roots = Roots::machine(root.path().to_owned());
        let host = Arc::new(LinuxHost::new(roots, Duration::from_secs(5), Clock::system()));
        let pool = IdPool { first: PER_POD, length, per_pod: PER_POD };
        let ask: Ask = Box::new(move |uid| Box::pin(std::future::ready(says(uid.as_str()))));
        UserNamespaces::new(host, ask, root.path().to_owned(), pool)
    }

    fn uid(name: &str) -> PodUid {
        PodUid::new(name)
    }

    #[tokio::test]
    async fn each_pod_has_a_range_of_its_own_and_keeps_it_over_a_restart() {
        let root = tempfile::tempdir().expect("a temporary directory can be made");
        let before = agent(&root, 10 * PER_POD);
        let a = before.range(&uid("a")).await.expect("there is room");
        let b = before.range(&uid("b")).await.expect("there is room");
        assert!(!overlap(&a, &b));
        assert_eq!(before.range(&uid("a")).await.expect("it has one"), a);
        let text = fs::read_to_string(root.path().join("pods/a/userns")).expect("it is remembered");
        let mapping = format!(r#"[{{"hostId":{PER_POD},"containerId":0,"length":{PER_POD}}}]"#);
        assert_eq!(text, format!(r#"{{"uidMappings":{mapping},"gidMappings":{mapping}}}"#));

        let after = agent(&root, 10 * PER_POD);
        let c = after.range(&uid("c")).await.expect("there is room");
        assert!(!overlap(&a, &c) && !overlap(&b, &c), "pods of the life before keep theirs");
        assert_eq!(after.range(&uid("b")).await.expect("it has one"), b);
    }

    #[tokio::test]
    async fn a_range_is_free_again_once_its_pod_is_gone() {
        let root = tempfile::tempdir().expect("a temporary directory can be made");
        let ranges = agent(&root, PER_POD);
        let only = ranges.range(&uid("a")).await.expect("there is room for one");
        assert!(matches!(ranges.range(&uid("b")).await, Err(UserNamespaceError::Exhausted)));
        fs::remove_dir_all(root.path().join("pods/a")).expect("it is there");
        ranges.release(&uid("a"));
        assert_eq!(ranges.range(&uid("b")).await.expect("there is room again"), only);
    }

    #[tokio::test]
    async fn ranges_of_another_size_are_respected() {
        let root = tempfile::tempdir().expect("a temporary directory can be made");
        fs::create_dir_all(root.path().join("pods/old")).expect("made");
        let mapping = format!(r#"[{{"hostId":{PER_POD},"containerId":0,"length":{}}}]"#, 2 * PER_POD);
        let text = format!(r#"{{"uidMappings":{mapping},"gidMappings":{mapping}}}"#);
        fs::write(root.path().join("pods/old/userns"), text).expect("written");
        let ranges = agent(&root, 10 * PER_POD);
        assert_eq!(ranges.range(&uid("new")).await.expect("there is room").host_id, 3 * PER_POD);
    }

    /// Files of two pods: one torn, one that is a directory.
    fn damaged() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary directory can be made");
        fs::create_dir_all(root.path().join("pods/torn")).expect("made");
        fs::write(root.path().join("pods/torn/userns"), "{").expect("written");
        fs::create_dir_all(root.path().join("pods/odd/userns")).expect("made");
        root
    }

    #[tokio::test]
    async fn a_pod_whose_file_is_damaged_keeps_what_it_runs_with() {
        let root = damaged();
        let ranges = agent_beside(&root, 10 * PER_POD, |uid| {
            Ok((uid == "torn").then_some(IdRange { host_id: PER_POD, length: PER_POD }))
        });
        let new = ranges.range(&uid("new")).await.expect("there is room");
        assert_eq!(new.host_id, 2 * PER_POD, "the first range runs");
        assert_eq!(ranges.range(&uid("torn")).await.expect("it has one").host_id, PER_POD);
        let text = fs::read(root.path().join("pods/torn/userns")).expect("it is there");
        assert_eq!(Mappings::parse(&text).expect("it is whole again").host_id, PER_POD);
    }

    #[tokio::test]
    async fn nobody_gets_a_range_while_the_runtime_does_not_say_what_runs() {
        let root = damaged();
        let ranges = agent_beside(&root, 10 * PER_POD, |_| {
            Err(CriError::Timeout { call: "ListPodSandbox", after: Duration::from_secs(1) })
        });
        assert!(matches!(ranges.range(&uid("new")).await, Err(UserNamespaceError::Ask { .. })));
    }

    #[test]
    fn the_node_keeps_the_first_ids() {
        let pool = IdPool::above_the_nodes(PER_POD);
        assert_eq!((pool.first, pool.pods_max()), (PER_POD, 65_534));
    }
}
