//! One reading of all cgroups: the machine, the levels above pods, pods, and what is in them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::cgroup::{Detail, Figures, Glance, Spec, Tree};
use super::machine::{self, Machine};
use super::names::{self, Kind};
use super::network::{self, Interface};
use super::places::Places;
use super::processes::{self, Open};
use super::rates::Samples;
use super::reader::Reader;
use crate::pleg::PodRuntime;
use crate::pod::PodUid;

/// Limits are set when a pod or a container is made or resized, after which the runtime is read
/// anew. This is for who changes them behind our back.
const SPEC_KEPT_FOR: Duration = Duration::from_secs(60);
/// A cgroup that used no CPU and holds as much memory as before is told as it was: most pods rest
/// most of the time, and a full reading is a dozen files of each. What others change of it, such as
/// its share of the page cache or what is written back for it, is told so much later at most.
const REST_KEPT_FOR: Duration = Duration::from_secs(60);

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

/// What is remembered of a cgroup from one reading to the next.
#[derive(Default)]
struct Memory {
    spec: Arc<Spec>,
    spec_at: Option<Instant>,
    /// Of what the runtime said when the spec was read.
    of: Option<Arc<PodRuntime>>,
    samples: Samples,
    last: Option<Last>,
    /// The reading that saw it last.
    seen: u64,
}

/// The last full reading of a cgroup.
struct Last {
    glance: Glance,
    detail: Detail,
    at: Instant,
    figures: Figures,
    /// Of a container, its processes and what they hold open.
    inside: Option<Inside>,
}

#[derive(Clone, Default)]
struct Inside {
    pids: Vec<u32>,
    open: Open,
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
    pub wall: Timestamp,
    pub now: Instant,
}

/// Cgroups of pods as they lie in the tree.
#[derive(Default)]
struct Map {
    kubepods: Option<String>,
    levels: Vec<String>,
    pods: BTreeMap<String, String>,
    containers: HashMap<String, String>,
}

impl Surveyor {
    pub fn new(places: Places) -> Self {
        let tree = Tree::find(&places.roots.cgroup);
        Surveyor { places, tree, reader: Reader::default(), memories: HashMap::new(), readings: 0 }
    }

    pub fn read(&mut self, order: Order) -> Survey {
        self.readings += 1;
        let mut map = self.map();
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
        let levels = root.into_iter().chain(below).collect();
        let pods = order.pods.iter().filter_map(|view| self.pod(view, &mut map, &order)).collect();
        let strays = map.pods.values().filter_map(|id| self.cgroup(id, None, &order)).collect();
        let readings = self.readings;
        self.memories.retain(|_, memory| memory.seen == readings);
        Survey { machine, levels, pods, strays, kubepods: map.kubepods }
    }

    fn map(&self) -> Map {
        let mut map = Map::default();
        for kubepods in &self.places.kubepods {
            let names = self.tree.children(kubepods);
            if !names.is_empty() {
                map.levels.push(kubepods.clone());
                map.kubepods = Some(kubepods.clone());
            }
            self.enter(kubepods, names, &mut map);
        }
        for place in &self.places.unplaced {
            self.enter(place, self.tree.children(place), &mut map);
        }
        map
    }

    fn enter(&self, at: &str, names: Vec<String>, map: &mut Map) {
        for name in names {
            let id = format!("{}/{name}", at.trim_end_matches('/'));
            match names::kind(&name) {
                Kind::Class => {
                    let below = self.tree.children(&id);
                    map.levels.push(id.clone());
                    self.enter(&id, below, map);
                }
                Kind::Pod(uid) => {
                    self.enter(&id, self.tree.children(&id), map);
                    map.pods.insert(uid, id);
                }
                Kind::Container(container) => {
                    map.containers.insert(container.to_owned(), id);
                }
                Kind::Other => {}
            }
        }
    }

    /// `None` for a pod of which nothing runs.
    fn pod(&mut self, view: &PodView, map: &mut Map, order: &Order) -> Option<PodSurvey> {
        let own = map.pods.remove(view.uid.as_str());
        let sandbox = view.runtime.ready_sandbox()?;
        let cgroup = own.and_then(|id| self.cgroup(&id, Some(view), order));
        let mut pids = Vec::new();
        let mut instance = |name: &str, id: &str, image: &str, created_at| {
            let cgroup = map.containers.get(id).and_then(|path| self.container(path, view, &mut pids, order));
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
            let Some(inside) = self.inside(id, order) else { return Some(cgroup) };
            cgroup.processes = u64::try_from(inside.pids.len()).ok();
            cgroup.open = inside.open;
            pids.extend(inside.pids.first());
        }
        Some(cgroup)
    }

    /// Of a container that was read just now.
    fn inside(&mut self, id: &str, order: &Order) -> Option<Inside> {
        let Self { places, tree, reader, memories, .. } = self;
        let last = memories.get_mut(id).and_then(|memory| memory.last.as_mut());
        if let Some(inside) = last.as_ref().and_then(|last| last.inside.as_ref()) {
            return Some(inside.clone());
        }
        let pids = tree.processes(id, reader)?;
        let open = match order.detail {
            Detail::All => processes::read(&places.roots.proc, &pids, reader),
            _ => Open::default(),
        };
        let inside = Inside { pids, open };
        if let Some(last) = last {
            last.inside = Some(inside.clone());
        }
        Some(inside)
    }

    /// `None` once it is gone.
    fn cgroup(&mut self, id: &str, view: Option<&PodView>, order: &Order) -> Option<Cgroup> {
        if !self.memories.contains_key(id) {
            self.memories.insert(id.to_owned(), Memory::default());
        }
        let Self { tree, reader, memories, readings, .. } = self;
        let memory = memories.get_mut(id)?;
        memory.seen = *readings;
        memory.refresh_spec(id, view, order.now, tree, reader);
        let mut figures = memory.figures(id, order, tree, reader)?;
        figures.unix_millis = order.wall.as_millisecond();
        let cpu_rate = figures.cpu.usage_ns.and_then(|usage| memory.samples.rate(order.now, usage));
        let spec = memory.spec.clone();
        Some(Cgroup { id: id.to_owned(), spec, figures, cpu_rate, ..Cgroup::default() })
    }
}

impl Memory {
    fn refresh_spec(&mut self, id: &str, view: Option<&PodView>, now: Instant, tree: &Tree, reader: &mut Reader) {
        let is_same = match (&self.of, view) {
            (Some(of), Some(view)) => Arc::ptr_eq(of, &view.runtime),
            _ => false,
        };
        let is_young = self.spec_at.is_some_and(|at| now.saturating_duration_since(at) < SPEC_KEPT_FOR);
        if !(is_same && is_young) {
            self.spec = Arc::new(tree.spec(id, reader));
            self.spec_at = Some(now);
            self.of = view.map(|view| view.runtime.clone());
        }
    }

    fn figures(&mut self, id: &str, order: &Order, tree: &Tree, reader: &mut Reader) -> Option<Figures> {
        let glance = tree.glance(id, reader);
        let is_at_rest = |last: &&Last| {
            let is_young = order.now.saturating_duration_since(last.at) < REST_KEPT_FOR;
            Some(last.glance) == glance && last.detail >= order.detail && is_young
        };
        if let Some(last) = self.last.as_ref().filter(is_at_rest) {
            return Some(Figures { pressure: tree.pressure(id, reader), ..last.figures.clone() });
        }
        let figures = tree.figures(id, &self.spec, order.detail, reader);
        let last = glance.zip(figures.clone()).map(|(glance, figures)| Last {
            glance,
            detail: order.detail,
            at: order.now,
            figures,
            inside: None,
        });
        self.last = last;
        figures
    }
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
