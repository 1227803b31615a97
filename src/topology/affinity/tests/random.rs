//! Random hints against the walk over all combinations that upstream makes.

use super::*;

/// All combinations one by one, and the best of them by the rules as they are documented.
fn by_brute_force(aligner: &Aligner, lists: &[Vec<Hint>]) -> (Hint, bool) {
    let mut lists: Vec<Vec<Hint>> = lists.iter().map(|list| merge::choices(list)).collect();
    let single = aligner.policy == Policy::SingleNumaNode;
    if single {
        for list in &mut lists {
            list.retain(|hint| hint.preferred && hint.nodes.is_none_or(|nodes| nodes.len() < 2));
        }
    }
    let mut outcomes = Vec::new();
    walk(&lists, &mut Vec::new(), &mut |combination| {
        let named: Vec<NumaSet> = combination.iter().filter_map(|hint| hint.nodes).collect();
        let common = named.iter().fold(aligner.all, |common, nodes| common.intersection(*nodes));
        let agreed = named.iter().all(|nodes| *nodes == named[0]) && combination.iter().all(|hint| hint.preferred);
        if !common.is_empty() {
            outcomes.push((common, agreed));
        }
    });
    let mean =
        |nodes: NumaSet| aligner.distances.as_ref().map_or(0, |d| d.sum(nodes) * 1000 / (nodes.len() as u64).pow(2));
    let narrow = |nodes: &NumaSet| (nodes.len(), mean(*nodes), nodes.mask());
    let agreed = outcomes.iter().filter(|(_, agreed)| *agreed).map(|(nodes, _)| *nodes).min_by_key(narrow);
    let needed =
        lists.iter().filter_map(|list| list.iter().filter_map(|hint| hint.nodes).map(NumaSet::len).min()).max();
    let needed = needed.unwrap_or(0);
    let of_others = || outcomes.iter().map(|(nodes, _)| *nodes);
    let largest = of_others().map(NumaSet::len).filter(|len| *len <= needed).max();
    let size = largest.or_else(|| of_others().map(NumaSet::len).min());
    let other = of_others().filter(|nodes| Some(nodes.len()) == size).min_by_key(narrow);
    let mut best = Hint { nodes: Some(agreed.or(other).unwrap_or(aligner.all)), preferred: agreed.is_some() };
    if single && best.nodes == Some(aligner.all) {
        best.nodes = None;
    }
    (best, best.preferred || aligner.policy == Policy::BestEffort)
}

fn walk(lists: &[Vec<Hint>], taken: &mut Vec<Hint>, see: &mut impl FnMut(&[Hint])) {
    let Some((first, rest)) = lists.split_first() else {
        return see(taken);
    };
    for hint in first {
        taken.push(*hint);
        walk(rest, taken, see);
        taken.pop();
    }
}

fn random_list(rng: &mut fastrand::Rng, nodes: &[u32], longest: usize) -> Vec<Hint> {
    let mostly_preferred = rng.bool();
    let hint = |rng: &mut fastrand::Rng| {
        let few = rng.bool();
        let set = nodes.iter().copied().filter(|_| if few { rng.u8(..4) == 0 } else { rng.bool() }).collect();
        Hint { nodes: (rng.u8(..12) > 0).then_some(set), preferred: rng.bool() || mostly_preferred && rng.bool() }
    };
    (0..rng.usize(..=longest)).map(|_| hint(rng)).collect()
}

#[test]
fn the_place_found_is_the_best_of_all_combinations() {
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..6000 {
        let count = rng.u32(1..=6);
        let nodes: Vec<u32> = (0..count).map(|n| if rng.u8(..8) == 0 { n + 20 } else { n }).collect();
        let mut machine = machine(&nodes);
        for node in &mut machine.nodes {
            node.distances.iter_mut().for_each(|distance| *distance = rng.u32(1..4) * 10);
        }
        let policy = [Policy::BestEffort, Policy::Restricted, Policy::SingleNumaNode][rng.usize(..3)];
        let closest = [(PREFER_CLOSEST, if rng.bool() { "true" } else { "false" })];
        let aligner = Aligner::new(policy, Scope::Container, &options(&closest), &machine).expect("at most six nodes");
        // Also nodes that the machine does not have.
        let named: Vec<u32> = nodes.iter().copied().chain((rng.u8(..6) == 0).then_some(50)).collect();
        let lists: Vec<Vec<Hint>> = (0..rng.usize(..5)).map(|_| random_list(&mut rng, &named, 7)).collect();
        let given: Vec<ResourceHints> =
            lists.iter().map(|hints| ResourceHints { resource: String::new(), hints: hints.clone() }).collect();
        assert_eq!(aligner.decide(&given), by_brute_force(&aligner, &lists), "{policy:?} on {nodes:?}: {lists:?}");
    }
}

#[test]
fn ten_resources_that_can_be_anywhere_on_twelve_nodes_are_decided_upon() {
    let nodes: Vec<u32> = (0..12).collect();
    let aligner = Aligner::new(Policy::BestEffort, Scope::Pod, &options(&[(NODES_MAX, "12")]), &machine(&nodes))
        .expect("allowed");
    let everywhere: Vec<Hint> = (1..1_u32 << 12)
        .map(|mask| (0..12).filter(|node| mask >> node & 1 == 1).collect())
        .map(|nodes: NumaSet| Hint { nodes: Some(nodes), preferred: nodes.len() == 3 })
        .collect();
    let mut given: Vec<ResourceHints> =
        (0..10).map(|n| ResourceHints { resource: format!("r{n}"), hints: everywhere.clone() }).collect();
    assert_eq!(show(aligner.decide(&given).0), "0,1,2*");
    given.push(ResourceHints { resource: "last".into(), hints: hints("3,9") });
    assert_eq!(show(aligner.decide(&given).0), "3,9");
}
