//! One reading of all cgroups: the machine, the levels above pods, pods, and what is in them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::cgroup::{Detail, Figures, Spec, Tree};
use super::machine::{self, Machine};
use super::map::Map;
use super::network::{self, Interface};
use super::places::Places;
use super::processes::Open;
use super::reader::Reader;
use super::remembered::{Inside, Look, Memory, Moment};
use crate::pleg::PodRuntime;
use crate::pod::PodUid;

pub const ROOT: &str = "/";

/// A pod as the runtime knows it, and so as its figures are labelled.
#[derive(Clone, Debug)]
pub struct PodView {
    pub uid: PodUid,
    pub runtime: Arc<PodRuntime>,
    /// The image of its sandbox, once known.
    pub sandbox_image: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub struct Survey {
    pub machine: Machine,
    /// The root, kubepods and the classes, the node's own parts.
    pub levels: Vec<Cgroup>,
    pub pods: Vec<PodSurvey>,
    /// Pods' cgroups whose pod nobody knows (any more).
    pub strays: Vec<Cgroup>,
    /// Which of the levels holds all pods.
    kubepods: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub struct Cgroup {
    pub id: String,
    pub spec: Arc<Spec>,
    /// Of a container what the runtime says, of others what the kernel shows.
    pub created_unix_seconds: Option<i64>,
    pub figures: Figures,
    /// Billionths of a CPU, of late.
    pub cpu_rate: Option<u64>,
    /// The next two are of containers and sandboxes only.
    pub processes: Option<u64>,
    pub open: Open,
}

#[derive(Clone, Debug)]
pub struct PodSurvey {
    pub uid: PodUid,
    pub name: String,
    pub namespace: String,
    pub created_at: Timestamp,
    pub cgroup: Option<Cgroup>,
    pub sandbox: Option<Instance>,
    /// Those that run.
    pub containers: Vec<Instance>,
    pub network: Vec<Interface>,
}

impl PodSurvey {
    /// What all of it uses: by its own cgroup, or else by those of its containers.
    pub fn whole(&self) -> Option<Cow<'_, Cgroup>> {
        if let Some(own) = &self.cgroup {
            return Some(Cow::Borrowed(own));
        }
        let mut cgroups = self.containers.iter().filter_map(|container| container.cgroup.as_ref());
        let first = cgroups.next()?;
        let mut sum = Cgroup { figures: first.figures.usage(), cpu_rate: first.cpu_rate, ..Cgroup::default() };
        for cgroup in cgroups {
            sum.figures.add(&cgroup.figures);
            sum.cpu_rate = sum.cpu_rate.zip(cgroup.cpu_rate).map(|(sum, more)| sum + more);
        }
        Some(Cow::Owned(sum))
    }
}

#[derive(Clone, Debug)]
pub struct Instance {
    /// Empty for the sandbox.
    pub name: String,
    pub id: String,
    pub image: String,
    pub created_at: Timestamp,
    /// `None` where it lies elsewhere, or is gone.
    pub cgroup: Option<Cgroup>,
}

impl Survey {
    pub fn level(&self, id: &str) -> Option<&Cgroup> {
        self.levels.iter().find(|level| level.id == id)
    }

    pub fn kubepods(&self) -> Option<&Cgroup> {
        self.level(self.kubepods.as_deref()?)
    }
}

/// Reads when asked, one reading at a time.
pub struct Surveyor {
    places: Places,
    tree: Tree,
    reader: Reader,
    memories: HashMap<String, Memory>,
    readings: u64,
}

/// What a reading is about.
pub struct Order {
    pub pods: Vec<PodView>,
    pub detail: Detail,
    /// Asked for each cgroup, as it is read: a reading may have to wait for its turn, and take long.
    pub moment: Box<dyn Fn() -> Moment + Send>,
}

impl Surveyor {
    pub fn new(places: Places) -> Self {
        let tree = Tree::find(&places.roots.cgroup);
        Surveyor { places, tree, reader: Reader::default(), memories: HashMap::new(), readings: 0 }
    }

    pub fn read(&mut self, order: Order) -> Survey {
        self.readings += 1;
        let Self { places, tree, memories, .. } = &mut *self;
        let mut map = Map::of(places, tree, memories, &order.pods);
        let machine = machine::read(&self.places.roots.proc, &mut self.reader);
        let root = self.cgroup(ROOT, None, &order).map(|root| of_machine(root, &machine));
        let system: Vec<String> = self.places.system.iter().map(|(_, id)| id.clone()).collect();
        let mut levels = std::mem::take(&mut map.levels);
        // Two parts of the node may share a cgroup, and each cgroup is told once.
        for id in system {
            if !levels.contains(&id) {
                levels.push(id);
            }
        }
        let below: Vec<Cgroup> = levels.iter().filter_map(|id| self.cgroup(id, None, &order)).collect();
        let pods = order.pods.iter().filter_map(|view| self.pod(view, &mut map, &order)).collect();
        let unknown = map.pods.values().filter(|id| !levels.contains(id));
        let strays = unknown.filter_map(|id| self.cgroup(id, None, &order)).collect();
        let levels = root.into_iter().chain(below).collect();
        let readings = self.readings;
        self.memories.retain(|_, memory| memory.seen == readings);
        Survey { machine, levels, pods, strays, kubepods: map.kubepods }
    }

    /// `None` for a pod of which nothing runs.
    fn pod(&mut self, view: &PodView, map: &mut Map, order: &Order) -> Option<PodSurvey> {
        let own = map.pods.remove(view.uid.as_str());
        let sandbox = view.runtime.ready_sandbox()?;
        let cgroup = own.and_then(|id| self.cgroup(&id, Some(view), order));
        let cgroup = cgroup.map(|cgroup| made_before(cgroup, sandbox.created_at));
        let mut pids = Vec::new();
        let mut instance = |name: &str, id: &str, image: &str, created_at: Timestamp| {
            let cgroup = map.containers.get(id).and_then(|path| self.container(path, view, &mut pids, order));
            // The runtime's word is the truth, whatever the kernel has forgotten.
            let cgroup = cgroup.map(|cgroup| Cgroup { created_unix_seconds: Some(created_at.as_second()), ..cgroup });
            Instance { name: name.to_owned(), id: id.to_owned(), image: image.to_owned(), created_at, cgroup }
        };
        let image = view.sandbox_image.as_deref().unwrap_or_default();
        let pause = instance("", sandbox.id.as_str(), image, sandbox.created_at);
        let running = view.runtime.containers.iter().filter(|container| container.is_running());
        let containers = running.map(|it| instance(&it.name, it.id.as_str(), &it.image, it.created_at)).collect();
        Some(PodSurvey {
            uid: view.uid.clone(),
            name: sandbox.pod_name.clone(),
            namespace: sandbox.pod_namespace.clone(),
            created_at: sandbox.created_at,
            cgroup,
            sandbox: Some(pause),
            containers,
            network: if order.detail > Detail::Usage { self.network(&pids) } else { Vec::new() },
        })
    }

    /// As the first of its processes sees it that is still there: the sandbox's, if it has one.
    fn network(&mut self, pids: &[u32]) -> Vec<Interface> {
        let Self { places, reader, .. } = self;
        let tables = pids.iter().find_map(|pid| {
            let process = places.roots.proc.join(pid.to_string());
            reader.read(&process, "net/dev").filter(|text| !text.is_empty()).map(network::interfaces)
        });
        tables.unwrap_or_default()
    }

    fn container(&mut self, id: &str, view: &PodView, pids: &mut Vec<u32>, order: &Order) -> Option<Cgroup> {
        let mut cgroup = self.cgroup(id, Some(view), order)?;
        if order.detail > Detail::Usage {
            let Some(Inside { processes, first, open, .. }) = self.inside(id, order) else { return Some(cgroup) };
            (cgroup.processes, cgroup.open) = (processes, open);
            pids.extend(first);
        }
        Some(cgroup)
    }

    /// Of a container that was read just now.
    fn inside(&mut self, id: &str, order: &Order) -> Option<Inside> {
        let Self { places, tree, reader, memories, .. } = self;
        let read = || Inside::read(id, order.detail, &places.roots.proc, tree, reader);
        memories.get_mut(id)?.inside(order.detail, read)
    }

    /// `None` once it is gone.
    fn cgroup(&mut self, id: &str, view: Option<&PodView>, order: &Order) -> Option<Cgroup> {
        // Levels are read before what is in them.
        let parent = id.rsplit_once('/').and_then(|(parent, _)| self.memories.get(parent));
        let parent_rests = parent.is_some_and(|parent| parent.rests && parent.seen == self.readings);
        if !self.memories.contains_key(id) {
            self.memories.insert(id.to_owned(), Memory::default());
        }
        let Self { tree, reader, memories, readings, .. } = self;
        let memory = memories.get_mut(id)?;
        memory.seen = *readings;
        let Moment { wall, now } = (order.moment)();
        memory.refresh_spec(id, view, now, tree, reader);
        let look = Look { id, detail: order.detail, now, parent_rests };
        let Some(mut figures) = memory.figures(&look, tree, reader) else {
            // The next one of that name is another.
            memories.remove(id);
            return None;
        };
        figures.unix_millis = wall.as_millisecond();
        Some(Cgroup {
            id: id.to_owned(),
            spec: memory.spec.clone(),
            created_unix_seconds: memory.created.map(|created| created.unix_seconds),
            cpu_rate: figures.cpu.usage_ns.and_then(|usage| memory.samples.rate(now, usage)),
            figures,
            ..Cgroup::default()
        })
    }
}

/// A pod's cgroup is older than its sandbox, though we may have seen it first much later.
fn made_before(pod: Cgroup, sandbox: Timestamp) -> Cgroup {
    let created = pod.created_unix_seconds.map(|seen| seen.min(sandbox.as_second()));
    Cgroup { created_unix_seconds: created, ..pod }
}

/// The root has no limits of its own: the machine is its limit.
fn of_machine(mut root: Cgroup, machine: &Machine) -> Cgroup {
    let spec = (*root.spec).clone();
    root.spec = Arc::new(Spec { memory_limit: machine.memory_bytes, swap_limit: machine.swap_bytes, ..spec });
    let memory = &mut root.figures.memory;
    memory.swap = memory.swap.or_else(|| machine.swap_bytes?.checked_sub(machine.swap_free_bytes?));
    root.figures.pressure = machine.pressure.clone();
    root
}
