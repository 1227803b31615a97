//! What holds on the machines that the generator makes, under every set of options that may be had
//! together, and beside a model that tries all sets of nodes.

use super::properties::{World, fewest, spans};
use super::*;
use crate::host::testing::machines;

/// `align-by-socket` cannot be had where a node holds several sockets: none of these machines is one.
fn all_options() -> Vec<Options> {
    let options = (0..1_u32 << 6).map(|bits| Options {
        full_cores_only: bits & 1 != 0,
        across_nodes: bits & 2 != 0,
        across_cores: bits & 4 != 0,
        align_by_socket: bits & 8 != 0,
        strict_reservation: bits & 16 != 0,
        by_cache: bits & 32 != 0,
    });
    let is_allowed = |of: &Options| {
        !(of.across_cores && (of.full_cores_only || of.across_nodes || of.by_cache) || of.across_nodes && of.by_cache)
    };
    options.filter(is_allowed).collect()
}

fn some(rng: &mut fastrand::Rng, of: &CpuSet) -> CpuSet {
    let often = rng.u8(1..=4);
    of.iter().filter(|_| rng.u8(..4) < often).collect()
}

fn on_nodes(machine: &Machine, cpus: &CpuSet) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    for cpu in machine.cpus.iter().filter(|cpu| cpus.contains(cpu.id)) {
        *counts.entry(cpu.node).or_default() += 1;
    }
    counts
}

fn all_sets(machine: &Machine) -> Vec<NumaSet> {
    let ids: Vec<u32> = machine.nodes.iter().map(|node| node.id).collect();
    let of = |mask: u32| ids.iter().enumerate().filter(|(n, _)| mask >> n & 1 == 1).map(|(_, id)| *id).collect();
    (1..1 << ids.len()).map(of).collect()
}

fn there(machine: &Machine, cpus: &CpuSet, set: NumaSet) -> usize {
    on_nodes(machine, cpus).iter().filter(|(node, _)| set.contains(**node)).map(|(_, count)| count).sum()
}

#[test]
fn on_every_machine_with_any_options_no_cpu_is_given_twice_or_lost_or_reserved() {
    assert_eq!(all_options().len(), 28);
    for (name, machine) in machines() {
        let machine = Arc::new(machine);
        for options in all_options() {
            for seed in 0..4 {
                let mut rng = fastrand::Rng::with_seed(seed);
                let count = machine.cpus.len();
                let reserved = (0..rng.usize(1..=2)).map(|_| machine.cpus[rng.usize(..count)].id).collect();
                let ground = Ground::new(machine.clone(), &Reservation::Cpus(reserved), options).expect(name);
                let mut world = World::on(ground, rng);
                for n in 0..10 {
                    world.step(n);
                    world.check();
                }
            }
        }
    }
}

#[test]
fn hints_are_those_of_all_sets_of_nodes_and_what_is_given_there_stays_there() {
    for (name, machine) in machines() {
        let machine = Arc::new(machine);
        let all = online(&machine);
        let even = machine.cpus.len().is_multiple_of(Units::new(&machine, &all).count(Kind::Core));
        for (seed, options) in (0..).zip(all_options().into_iter().cycle().take(28 * 15)) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let reserved = CpuSet::from_iter([machine.cpus[rng.usize(..machine.cpus.len())].id]);
            let ground = Ground::new(machine.clone(), &Reservation::Cpus(reserved), options).expect(name);
            let mut state = Static::new(ground);
            let taken = some(&mut rng, &state.available());
            state.entries.insert(PodUid::new("other"), BTreeMap::from([("c".to_owned(), taken)]));
            state.settle();
            let free = state.available();
            let count = rng.usize(1..=all.len() / 2);
            let asked = pod(&format!("web {count}"));
            let (uid, container) = (PodUid::new("p"), workload_containers(&asked).next());
            let ask = Ask { uid: &uid, pod: &asked, container };
            let hints = state.hints(&ask).remove(0).hints;
            let sets = all_sets(&machine);
            let possible: Vec<NumaSet> =
                sets.iter().copied().filter(|set| there(&machine, &free, *set) >= count).collect();
            let mut named: Vec<NumaSet> = hints.iter().filter_map(|hint| hint.nodes).collect();
            named.sort_by_key(|set| set.mask());
            assert_eq!(named, possible, "{count} of {free} on {name}");
            let enough = sets.iter().filter(|set| there(&machine, &all, **set) >= count);
            let least = enough.map(|set| set.len()).min();
            for hint in &hints {
                let nodes = hint.nodes.expect("it is named");
                assert!(hint.preferred || Some(nodes.len()) != least, "{hint:?} on {name}");
                assert!(options.align_by_socket || !hint.preferred || Some(nodes.len()) == least, "{hint:?} on {name}");
                let near = hints::cpus_near(&machine, nodes, &options).intersection(&free);
                let usable = if options.full_cores_only { in_whole_cores(&machine, &near) } else { near.clone() };
                let is_whole = !options.full_cores_only || even && count.is_multiple_of(machine_threads(&machine));
                if usable.len() < count || !is_whole {
                    continue;
                }
                let mut state = state.clone();
                assert_eq!(state.allocate(&ask, *hint), Ok(()), "{count} of {free} on {name}");
                let given = state.assigned(&uid, "web").expect("it was given some");
                assert!(given.len() == count && given.is_subset(&near), "{given} near {hint:?}, {options:?} on {name}");
            }
        }
    }
}

fn machine_threads(machine: &Machine) -> usize {
    Units::new(machine, &online(machine)).cpus_per_core()
}

#[test]
fn whatever_is_free_what_is_packed_breaks_no_more_cores_than_it_must() {
    for (name, machine) in machines().into_iter().filter(|(name, _)| *name != "laptop") {
        for seed in 0..600 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let free = some(&mut rng, &online(&machine));
            let count = rng.usize(0..=free.len());
            let chosen = choose(&machine, &free, count, &Options::default()).expect("as many are free");
            let expected = fewest(&machine, &free, count, Kind::Core);
            assert_eq!(spans(&machine, &chosen, Kind::Core), expected, "{count} of {free} on {name}: {chosen}");
            let across = Options { across_cores: true, ..Options::default() };
            let chosen = choose(&machine, &free, count, &across).expect("as many are free");
            assert_eq!((chosen.len(), chosen.is_subset(&free)), (count, true), "{count} of {free} on {name}");
        }
    }
}

/// The fewest nodes of which each can give its equal part, by trying all sets.
fn fewest_evenly(machine: &Machine, free: &CpuSet, count: usize) -> Option<usize> {
    let all = on_nodes(machine, &online(machine));
    let least = count.div_ceil(all.values().copied().max()?);
    let is_possible = |set: &NumaSet| {
        let each = count / set.len();
        let of = |node| on_nodes(machine, free).get(&node).copied().unwrap_or(0);
        set.len() >= least && each > 0 && set.iter().all(|node| of(node) >= each) && there(machine, free, *set) >= count
    };
    all_sets(machine).iter().filter(|set| is_possible(set)).map(|set| set.len()).min()
}

#[test]
fn across_nodes_as_few_as_can_give_equal_parts_do() {
    for (name, machine) in machines() {
        for seed in 0..300 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let free = some(&mut rng, &online(&machine));
            let count = rng.usize(0..=free.len());
            let across = Options { across_nodes: true, ..Options::default() };
            let chosen = choose(&machine, &free, count, &across).expect("as many are free");
            assert_eq!((chosen.len(), chosen.is_subset(&free)), (count, true), "{count} of {free} on {name}");
            let Some(nodes) = fewest_evenly(&machine, &free, count) else { continue };
            let given = on_nodes(&machine, &chosen);
            assert_eq!(given.len(), nodes, "{count} of {free} on {name}: {given:?}");
            assert!(given.values().all(|of| *of >= count / nodes), "{count} of {free} on {name}: {given:?}");
        }
    }
}
