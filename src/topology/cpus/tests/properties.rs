//! What holds on whatever machine, whatever pods come and go.

use std::collections::BTreeSet;

use super::*;

fn random_shape(rng: &mut fastrand::Rng) -> Shape {
    let outer = rng.u32(1..=3);
    let inner = outer * rng.u32(1..=2);
    let caches = inner * rng.u32(1..=2);
    let (sockets, nodes) = if rng.bool() { (outer, inner) } else { (inner, outer) };
    Shape { sockets, nodes, caches, cores: caches * rng.u32(1..=2), threads: rng.u32(1..=2) }
}

/// Only what the configuration allows together.
fn random_options(rng: &mut fastrand::Rng, shape: Shape) -> Options {
    let across_cores = rng.u8(..4) == 0;
    let across_nodes = !across_cores && rng.u8(..3) == 0;
    Options {
        across_cores,
        across_nodes,
        full_cores_only: !across_cores && rng.bool(),
        by_cache: !across_cores && !across_nodes && rng.bool(),
        align_by_socket: shape.sockets <= shape.nodes && rng.bool(),
        strict_reservation: rng.bool(),
    }
}

pub(super) struct World {
    rng: fastrand::Rng,
    state: Static,
    alive: Vec<(String, Pod)>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = fastrand::Rng::with_seed(seed);
        let shape = random_shape(&mut rng);
        let options = random_options(&mut rng, shape);
        let total = shape.cores * shape.threads;
        let reserved: CpuSet = (0..rng.usize(1..=2)).map(|_| rng.u32(..total)).collect();
        World::on(ground(shape, &reserved.to_string(), options), rng)
    }

    /// Nobody lives there yet.
    pub fn on(ground: Ground, rng: fastrand::Rng) -> World {
        World { rng, state: Static::new(ground), alive: Vec::new() }
    }

    fn random_pod(&mut self) -> Pod {
        let mut of = |name: &str, count: usize| -> String {
            let item = |n| {
                let star = if name == "i" && self.rng.bool() { "*" } else { "" };
                format!("{name}{n}{star} {}", self.rng.u32(0..=5))
            };
            (0..count).map(item).collect::<Vec<_>>().join(",")
        };
        let (init, regular) = (of("i", 2), of("c", 2));
        if self.rng.bool() { pod(&format!("{init}|{regular}")) } else { pod(&regular) }
    }

    pub fn step(&mut self, n: usize) {
        if !self.alive.is_empty() && self.rng.u8(..3) == 0 {
            let (gone, _) = self.alive.swap_remove(self.rng.usize(..self.alive.len()));
            return self.state.release(&PodUid::new(gone));
        }
        let (name, pod) = (format!("u{n}"), self.random_pod());
        let nodes: Vec<u32> =
            self.state.ground.machine.nodes.iter().map(|node| node.id).filter(|_| self.rng.bool()).collect();
        let near = if nodes.is_empty() { any() } else { at(&nodes) };
        let before = write(&self.state);
        match self.state.place(&name, &pod, near) {
            Ok(()) => self.alive.push((name, pod)),
            Err(_) => {
                // As the aligner does, who has all providers release a refused pod.
                self.state.release(&PodUid::new(&name));
                assert_eq!(write(&self.state), before, "a refused pod holds nothing");
            }
        }
    }

    pub fn check(&self) {
        let Static { ground, entries, shared, .. } = &self.state;
        let mut all = shared.clone();
        for (name, pod) in &self.alive {
            let uid = PodUid::new(name);
            let mut of_pod = CpuSet::default();
            let mut beside = CpuSet::default();
            for (role, container) in workload_containers(pod) {
                let cpus = self.state.assigned(&uid, &container.name).cloned().unwrap_or_default();
                assert_eq!(cpus.len(), whole_cpus(pod, container));
                assert!(cpus.intersection(&ground.reserved).is_empty(), "{cpus} of {}", ground.reserved);
                if ground.options.full_cores_only {
                    assert_eq!(in_whole_cores(&ground.machine, &cpus), cpus);
                }
                if role != Role::Init {
                    assert!(cpus.intersection(&beside).is_empty(), "{cpus} are used by another of {name}");
                    beside = beside.union(&cpus);
                }
                of_pod = of_pod.union(&cpus);
            }
            assert!(of_pod.intersection(&all).is_empty(), "{of_pod} of {name} are also somewhere else");
            all = all.union(&of_pod);
        }
        assert_eq!(all, ground.pool(), "nothing is lost");
        assert!(ground.options.strict_reservation || ground.reserved.is_subset(shared));
        assert!(entries.keys().all(|uid| self.alive.iter().any(|(name, _)| PodUid::new(name) == *uid)));
        let recorded = read(&write(&self.state), ground);
        assert_eq!(recorded, Recorded { entries: entries.clone(), wrong: Vec::new() });
        let (healed, warnings) = heal(ground.clone(), recorded.entries, &[]);
        assert_eq!((write(&healed), warnings), (write(&self.state), Vec::new()));
    }
}

#[test]
fn no_cpu_is_given_twice_or_lost_or_reserved() {
    for seed in 0..300 {
        let mut world = World::new(seed);
        for n in 0..12 {
            world.step(n);
            world.check();
        }
    }
}

#[test]
fn releasing_gives_everything_back_in_any_order() {
    for seed in 0..300 {
        let mut world = World::new(seed);
        (0..8).for_each(|n| world.step(n));
        world.rng.shuffle(&mut world.alive);
        for (name, _) in &world.alive {
            world.state.release(&PodUid::new(name));
        }
        assert_eq!(write(&world.state), write(&Static::new(world.state.ground.clone())));
    }
}

/// The fewest units of a kind in which so many CPUs are free; those with the most are enough.
pub(super) fn fewest(machine: &Machine, free: &CpuSet, count: usize, kind: Kind) -> usize {
    let mut there: BTreeMap<u32, usize> = BTreeMap::new();
    for cpu in machine.cpus.iter().filter(|cpu| free.contains(cpu.id)) {
        *there.entry(kind.of(cpu)).or_default() += 1;
    }
    let mut there: Vec<usize> = there.into_values().collect();
    there.sort_unstable_by(|a, b| b.cmp(a));
    let sums = there.iter().scan(0, |sum, there| {
        *sum += there;
        Some(*sum)
    });
    sums.take_while(|sum| *sum < count).count() + usize::from(count > 0)
}

pub(super) fn spans(machine: &Machine, cpus: &CpuSet, kind: Kind) -> usize {
    let units = machine.cpus.iter().filter(|cpu| cpus.contains(cpu.id)).map(|cpu| kind.of(cpu));
    units.collect::<BTreeSet<_>>().len()
}

#[test]
fn on_a_free_machine_what_is_packed_is_on_as_few_units_of_each_kind_as_can_be() {
    for seed in 0..300 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let machine = random_shape(&mut rng).machine();
        let free = online(&machine);
        let count = rng.usize(1..=free.len());
        let chosen = choose(&machine, &free, count, &Options::default()).expect("all are free");
        assert_eq!(chosen.len(), count);
        for kind in [Kind::Node, Kind::Socket, Kind::Core] {
            let expected = fewest(&machine, &free, count, kind);
            assert_eq!(spans(&machine, &chosen, kind), expected, "{kind:?}, {count} of {machine:?}");
        }
        let by_cache = Options { by_cache: true, ..Options::default() };
        let chosen = choose(&machine, &free, count, &by_cache).expect("all are free");
        let expected = fewest(&machine, &free, count, Kind::Cache);
        assert_eq!(spans(&machine, &chosen, Kind::Cache), expected, "caches, {count} of {machine:?}");
    }
}

#[test]
fn whatever_is_free_the_number_chosen_is_exact_and_free() {
    for seed in 0..2000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let shape = random_shape(&mut rng);
        let (machine, options) = (shape.machine(), random_options(&mut rng, shape));
        let free: CpuSet = online(&machine).iter().filter(|_| rng.bool()).collect();
        let count = rng.usize(0..=free.len() + 1);
        match choose(&machine, &free, count, &options) {
            Ok(chosen) => assert!(chosen.len() == count && chosen.is_subset(&free), "{chosen} of {free}"),
            Err(error) => assert_eq!(error, TooFew { requested: free.len() + 1, available: free.len() }),
        }
    }
}

#[test]
fn across_nodes_no_node_gives_more_than_another_where_all_could() {
    for seed in 0..300 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let machine = random_shape(&mut rng).machine();
        let (free, options) = (online(&machine), Options { across_nodes: true, ..Options::default() });
        let chosen = choose(&machine, &free, rng.usize(1..=free.len()), &options).expect("all are free");
        let on =
            |node: &NumaNode| machine.cpus.iter().filter(|cpu| cpu.node == node.id && chosen.contains(cpu.id)).count();
        let counts: Vec<usize> = machine.nodes.iter().map(on).filter(|count| *count > 0).collect();
        let (least, most) = (counts.iter().min(), counts.iter().max());
        assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{counts:?}");
    }
}
