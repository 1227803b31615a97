//! What holds whatever pods come and go.

use super::*;
use crate::config::{TopologyManagerPolicy as Policy, TopologyManagerScope as Scope};
use crate::topology::affinity::Aligner;

/// CPUs that are anywhere, or on some nodes only: they make decisions that memory is not asked
/// about.
struct Cpus(Vec<Hint>);

impl Provider for Cpus {
    fn hints(&self, _: &Ask<'_>) -> Vec<ResourceHints> {
        vec![ResourceHints { resource: "cpu".to_owned(), hints: self.0.clone() }]
    }

    fn allocate(&mut self, _: &Ask<'_>, _: Affinity) -> Result<(), Failure> {
        Ok(())
    }

    fn release(&mut self, _: &PodUid) {}
}

struct World {
    rng: fastrand::Rng,
    nodes: u32,
    layout: Layout,
    state: Static,
    aligner: Aligner,
    alive: Vec<String>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = fastrand::Rng::with_seed(seed);
        let nodes = rng.u32(1..=4);
        let sizes: Vec<(u64, u64)> = (0..nodes).map(|_| (rng.u64(2..12), rng.u64(..3) * 100)).collect();
        let machine = machine(&sizes);
        let policy = [Policy::None, Policy::BestEffort, Policy::Restricted, Policy::SingleNumaNode][rng.usize(..4)];
        let scope = if rng.bool() { Scope::Container } else { Scope::Pod };
        let aligner = Aligner::new(policy, scope, &BTreeMap::new(), &machine).expect("few nodes");
        let layout = layout(&machine);
        World { rng, nodes, state: Static::new(layout.clone()), layout, aligner, alive: Vec::new() }
    }

    fn random_nodes(&mut self) -> NumaSet {
        (0..self.nodes).filter(|_| self.rng.bool()).collect()
    }

    fn random_pod(&mut self) -> Pod {
        let rng = &mut self.rng;
        let mut of = |prefix: &str, count: usize| -> Vec<String> {
            let item = |n| {
                let sidecar = if prefix == "i" && rng.u8(..4) == 0 { "*" } else { "" };
                let pages = if rng.u8(..4) == 0 { format!("+{}Mi", rng.u64(1..150) * 2) } else { String::new() };
                format!("{prefix}{n}{sidecar} {}Mi{pages}", rng.u64(1..5000))
            };
            (0..count).map(item).collect()
        };
        let init = of("i", 2);
        let regular = of("c", 2);
        let (some, more) = (self.rng.usize(..=2), self.rng.usize(1..=2));
        pod(&format!("{}|{}", init[..some].join(","), regular[..more].join(",")))
    }

    fn step(&mut self, n: usize) {
        if !self.alive.is_empty() && self.rng.u8(..3) == 0 {
            let gone = self.alive.swap_remove(self.rng.usize(..self.alive.len()));
            return self.state.release(&PodUid::new(gone));
        }
        let (name, pod) = (format!("u{n}"), self.random_pod());
        let hints = (0..self.rng.usize(..4)).map(|_| self.random_nodes()).filter(|nodes| !nodes.is_empty());
        let hints: Vec<Hint> = hints.map(|nodes| Hint { nodes: Some(nodes), preferred: nodes.len() == 1 }).collect();
        let uid = PodUid::new(&name);
        let before = self.state.entries().clone();
        let placed = self.aligner.place(&mut [&mut Cpus(hints), &mut self.state], &uid, &pod);
        match placed.result {
            Ok(()) => {
                self.served(&uid, &pod);
                self.alive.push(name);
            }
            Err(_) => assert_eq!(*self.state.entries(), before, "a refused pod holds nothing"),
        }
    }

    /// Each container has what it asked for, save for what later ones used again.
    fn served(&self, uid: &PodUid, pod: &Pod) {
        for (role, container) in workload_containers(pod) {
            let sizes = request::of_container(container).expect("whole bytes");
            let blocks = self.state.ledger.blocks(uid, &container.name).expect("it was placed");
            let held: BTreeMap<String, u64> =
                blocks.iter().map(|block| (block.resource.clone(), block.bytes)).collect();
            assert_eq!(held.len(), sizes.len());
            match role {
                Role::Init => assert!(held.iter().all(|(resource, bytes)| *bytes <= sizes[resource])),
                _ => assert_eq!(held, sizes, "{}", container.name),
            }
        }
    }

    fn check(&self) {
        let blocks: Vec<&Block> = self.state.entries().values().flat_map(|of| of.values().flatten()).collect();
        let mut sums: BTreeMap<(NumaSet, &str), u64> = BTreeMap::new();
        for block in &blocks {
            *sums.entry((block.nodes, &block.resource)).or_default() += block.bytes;
            let apart = |other: &&Block| other.nodes == block.nodes || other.nodes.intersection(block.nodes).is_empty();
            assert!(blocks.iter().all(apart), "groups mix: {blocks:?}");
        }
        for ((nodes, resource), given) in sums {
            assert!(given <= self.layout.allocatable(nodes, resource), "{given} of {resource} on {nodes}");
        }
        for (node, usage) in self.state.ledger.usage() {
            for (resource, given) in &usage.given {
                let there = self.layout.allocatable(NumaSet::from_iter([*node]), resource);
                assert!(*given <= there, "{given} of {there} {resource} on node {node}");
            }
        }
        let again = read(&write(&self.state), &self.layout);
        assert_eq!(again, Recorded { entries: self.state.entries().clone(), wrong: Vec::new() });
        let (healed, warnings) = heal(self.layout.clone(), again.entries, &[]);
        assert_eq!((healed.entries(), warnings), (self.state.entries(), Vec::new()));
    }
}

#[test]
fn no_node_gives_more_than_it_has_and_no_groups_mix() {
    for seed in 0..80 {
        let mut world = World::new(seed);
        for n in 0..25 {
            world.step(n);
            world.check();
        }
    }
}

#[test]
fn releasing_gives_everything_back_in_any_order() {
    for seed in 0..200 {
        let mut world = World::new(seed);
        (0..15).for_each(|n| world.step(n));
        let (mut there, mut back) = (world.state.clone(), world.state.clone());
        let half = world.alive.len() / 2;
        world.rng.shuffle(&mut world.alive);
        world.alive[..half].iter().for_each(|uid| there.release(&PodUid::new(uid)));
        world.alive[..half].iter().rev().for_each(|uid| back.release(&PodUid::new(uid)));
        assert_eq!(write(&there), write(&back));
        world.alive[half..].iter().for_each(|uid| there.release(&PodUid::new(uid)));
        assert_eq!(write(&there), write(&Static::new(world.layout.clone())));
    }
}

/// Where nothing else has a say, a container is refused only if no set of nodes could serve it.
#[test]
fn who_is_refused_could_not_be_served_anywhere() {
    for seed in 0..200 {
        let mut world = World::new(seed);
        (0..12).for_each(|n| world.step(n));
        let pod = pod(&format!("web {}Mi", world.rng.u64(1..12_000)));
        let wanted = request::of_container(&crate::pod::spec(&pod).containers[0]).expect("whole bytes")["memory"];
        let serves = |nodes: NumaSet| {
            let blocks = || world.state.entries().values().flat_map(|of| of.values().flatten());
            let apart = blocks().all(|block| block.nodes == nodes || block.nodes.intersection(nodes).is_empty());
            let given: u64 = blocks()
                .filter(|block| block.nodes == nodes && block.resource == "memory")
                .map(|block| block.bytes)
                .sum();
            apart && world.layout.allocatable(nodes, "memory") >= given + wanted
        };
        let sets =
            (1_u32..1 << world.nodes).map(|mask| (0..world.nodes).filter(|node| mask >> node & 1 == 1).collect());
        let best = sets.filter(|nodes| serves(*nodes)).min_by_key(|nodes: &NumaSet| (nodes.len(), nodes.mask()));
        let mut state = world.state.clone();
        assert_eq!(state.place("new", &pod, any()).is_ok(), best.is_some(), "seed {seed}");
        assert_eq!(state.nodes_of(&PodUid::new("new"), "web"), best, "seed {seed}");
    }
}
