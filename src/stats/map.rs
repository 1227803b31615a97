//! Which cgroups there are below the levels of pods, by names that tell what they are.

use std::collections::{BTreeMap, HashMap};

use super::cgroup::Tree;
use super::names::{self, Kind};
use super::places::Places;
use super::remembered::Memory;
use super::survey::PodView;
use crate::pleg::PodRuntime;

/// Cgroups of pods as they lie in the tree.
#[derive(Default)]
pub struct Map {
    pub kubepods: Option<String>,
    pub levels: Vec<String>,
    pub pods: BTreeMap<String, String>,
    pub containers: HashMap<String, String>,
}

impl Map {
    /// Of these pods the kernel is asked no more than it has to be.
    pub fn of(places: &Places, tree: &Tree, memories: &mut HashMap<String, Memory>, pods: &[PodView]) -> Self {
        let views = pods.iter().map(|view| (view.uid.as_str(), &*view.runtime)).collect();
        let mut walk = Walk { tree, memories, views, map: Map::default() };
        for kubepods in &places.kubepods {
            let names = tree.children(kubepods);
            if !names.is_empty() {
                walk.map.levels.push(kubepods.clone());
                walk.map.kubepods = Some(kubepods.clone());
            }
            walk.enter(kubepods, names);
        }
        for place in &places.unplaced {
            walk.enter(place, tree.children(place));
        }
        walk.map
    }
}

/// On the way down the tree.
struct Walk<'a> {
    tree: &'a Tree,
    memories: &'a mut HashMap<String, Memory>,
    views: HashMap<&'a str, &'a PodRuntime>,
    map: Map,
}

impl Walk<'_> {
    fn enter(&mut self, at: &str, names: Vec<String>) {
        for name in names {
            let id = format!("{}/{name}", at.trim_end_matches('/'));
            match names::kind(&name) {
                Kind::Class => {
                    let below = self.tree.children(&id);
                    self.map.levels.push(id.clone());
                    self.enter(&id, below);
                }
                Kind::Pod(uid) => {
                    let containers = self.containers(&uid, &id);
                    self.map.containers.extend(containers);
                    self.map.pods.insert(uid, id);
                }
                Kind::Container(container) => {
                    self.map.containers.insert(container.to_owned(), id);
                }
                Kind::Other => {}
            }
        }
    }

    /// The kernel is asked only where the runtime knows of one that was not there before.
    fn containers(&mut self, uid: &str, id: &str) -> Vec<(String, String)> {
        let remembered = self.memories.get(id).map_or(&[][..], |memory| &memory.containers);
        let is_there = |wanted: &str| remembered.iter().any(|(container, _)| container == wanted);
        let all_there = self.views.get(uid).is_some_and(|view| {
            let sandbox = view.ready_sandbox().is_some_and(|sandbox| is_there(sandbox.id.as_str()));
            let mut running = view.containers.iter().filter(|container| container.is_running());
            sandbox && running.all(|container| is_there(container.id.as_str()))
        });
        if all_there {
            return remembered.to_vec();
        }
        let found: Vec<_> = self.tree.children(id).iter().filter_map(|name| container_at(id, name)).collect();
        self.memories.entry(id.to_owned()).or_default().containers.clone_from(&found);
        found
    }
}

fn container_at(pod: &str, name: &str) -> Option<(String, String)> {
    match names::kind(name) {
        Kind::Container(container) => Some((container.to_owned(), format!("{pod}/{name}"))),
        Kind::Class | Kind::Pod(_) | Kind::Other => None,
    }
}
