//! What is remembered of a cgroup from one reading to the next.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::cgroup::{Created, Detail, Figures, Glance, Spec, Tree};
use super::processes::{self, Open};
use super::rates::Samples;
use super::reader::Reader;
use super::survey::PodView;
use crate::pleg::PodRuntime;

/// Limits are set when a pod or a container is made or resized, after which the runtime is read
/// anew. This is for who changes them behind our back.
const SPEC_KEPT_FOR: Duration = Duration::from_secs(60);
/// A cgroup that used no CPU and holds as much memory as before is told as it was: most pods rest
/// most of the time, and a full reading is a dozen files of each. What others change of it, such as
/// its share of the page cache or what is written back for it, is told so much later at most.
const REST_KEPT_FOR: Duration = Duration::from_secs(60);

/// When something is read, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub wall: Timestamp,
    pub now: Instant,
}

#[derive(Default)]
pub struct Memory {
    pub spec: Arc<Spec>,
    pub created: Option<Created>,
    spec_at: Option<Instant>,
    /// Of what the runtime said when the spec was read.
    of: Option<Arc<PodRuntime>>,
    pub samples: Samples,
    last: Option<Last>,
    /// Nothing happened in it, nor in any cgroup below it, between the last two readings.
    pub rests: bool,
    /// Of a pod, its containers' cgroups by the container's id.
    pub containers: Vec<(String, String)>,
    /// The reading that saw it last.
    pub seen: u64,
}

/// How one cgroup is read.
pub struct Look<'a> {
    pub id: &'a str,
    pub detail: Detail,
    pub now: Instant,
    /// Of the cgroup around it, in the same reading: what happens in one is counted in both.
    pub parent_rests: bool,
}

/// The last full reading of a cgroup.
struct Last {
    glance: Glance,
    detail: Detail,
    at: Instant,
    figures: Figures,
    inside: Option<Inside>,
}

/// Of a container, its processes and what they hold open.
#[derive(Clone, Debug)]
pub struct Inside {
    /// How much of it was read, which may be less than of the figures beside it: processes that
    /// could not be listed then are asked for again.
    detail: Detail,
    /// `None` where there are too many cgroups to look at all.
    pub processes: Option<u64>,
    pub first: Option<u32>,
    /// Only with [`Detail::All`].
    pub open: Open,
}

impl Inside {
    /// `None` where processes cannot be listed.
    pub fn read(id: &str, detail: Detail, proc: &Path, tree: &Tree, reader: &mut Reader) -> Option<Self> {
        let found = tree.processes(id, reader)?;
        let mut open = match detail {
            Detail::All => processes::read(proc, &found.pids, reader),
            Detail::Usage | Detail::Pods => Open::default(),
        };
        if !found.is_all {
            open = Open { files_max: open.files_max, ..Open::default() };
        }
        let processes = u64::try_from(found.pids.len()).ok().filter(|_| found.is_all);
        Some(Inside { detail, processes, first: found.pids.first().copied(), open })
    }
}

impl Memory {
    pub fn refresh_spec(&mut self, id: &str, view: Option<&PodView>, now: Instant, tree: &Tree, reader: &mut Reader) {
        let is_same = match (&self.of, view) {
            (Some(of), Some(view)) => Arc::ptr_eq(of, &view.runtime),
            _ => false,
        };
        let is_young = self.spec_at.is_some_and(|at| now.saturating_duration_since(at) < SPEC_KEPT_FOR);
        if !(is_same && is_young) {
            self.spec = Arc::new(tree.spec(id, reader));
            self.created = tree.created(id).map(|created| created.after(self.created)).or(self.created);
            self.spec_at = Some(now);
            self.of = view.map(|view| view.runtime.clone());
        }
    }

    pub fn figures(&mut self, look: &Look<'_>, tree: &Tree, reader: &mut Reader) -> Option<Figures> {
        let Look { id, detail, now, parent_rests } = *look;
        let known = self.last.as_ref().map(|last| last.glance);
        let glance = known.filter(|_| parent_rests).or_else(|| tree.glance(id, reader));
        self.rests = known.is_some() && known == glance;
        let is_told_again = |last: &&Last| {
            let is_young = now.saturating_duration_since(last.at) < REST_KEPT_FOR;
            last.detail >= detail && is_young
        };
        if let Some(last) = self.last.as_ref().filter(|_| self.rests).filter(is_told_again) {
            return Some(Figures { pressure: tree.pressure(id, reader), ..last.figures.clone() });
        }
        let figures = tree.figures(id, &self.spec, detail, reader);
        let last = glance.zip(figures.clone());
        self.last = last.map(|(glance, figures)| Last { glance, detail, at: now, figures, inside: None });
        figures
    }

    /// What is inside as it was when the figures were read, or what `read` finds.
    pub fn inside(&mut self, detail: Detail, read: impl FnOnce() -> Option<Inside>) -> Option<Inside> {
        let known = self.last.as_ref().and_then(|last| last.inside.as_ref());
        if let Some(inside) = known.filter(|inside| inside.detail >= detail) {
            return Some(inside.clone());
        }
        let inside = read();
        if let (Some(last), Some(_)) = (&mut self.last, &inside) {
            last.inside = inside.clone();
        }
        inside
    }
}
