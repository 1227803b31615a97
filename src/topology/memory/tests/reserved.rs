//! What is kept from pods, and where.

use super::*;

fn on(node: i32, limits: &[(&str, &str)]) -> NumaMemory {
    NumaMemory { numa_node: node, limits: amounts(limits) }
}

fn read_layout(
    per_node: &[NumaMemory],
    kube: &Amounts,
    system: &Amounts,
    eviction_bytes: u64,
) -> Result<Layout, LayoutError> {
    let machine = machine(&[(10, 512), (10, 0)]);
    Layout::new(&machine, &Reservations { per_node, kube, system, eviction_bytes })
}

#[test]
fn a_node_gives_what_is_neither_reserved_nor_huge_pages() {
    let per_node = [on(0, &[("memory", "2Gi"), ("hugepages-2Mi", "24Mi")]), on(1, &[("memory", "600Mi")])];
    let kube = amounts(&[("memory", "2Gi"), ("cpu", "1")]);
    let system = amounts(&[("memory", "500Mi"), ("hugepages-2Mi", "24Mi")]);
    let layout = read_layout(&per_node, &kube, &system, 100 * MIB).expect("the sums are right");
    let check = |nodes: &[u32], resource: &str, expected: u64| {
        assert_eq!(layout.allocatable(set(nodes), resource), expected, "{resource} of {nodes:?}");
    };
    check(&[0], "memory", 7 * GIB);
    check(&[1], "memory", 10 * GIB - 600 * MIB);
    check(&[0, 1], "memory", 17 * GIB - 600 * MIB);
    check(&[0], "hugepages-2Mi", 1000 * MIB);
    check(&[0, 1], "hugepages-2Mi", 1000 * MIB);
    check(&[0], "hugepages-1Gi", 0);
}

#[test]
fn what_is_reserved_must_be_what_is_kept_from_pods() {
    let check = |per_node: &[NumaMemory], kube: &[(&str, &str)], system: &[(&str, &str)], expected: &str| {
        let error = read_layout(per_node, &amounts(kube), &amounts(system), 100 * MIB).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    };
    check(
        &[on(0, &[("memory", "1Gi")])],
        &[("memory", "1Gi")],
        &[("memory", "512Mi")],
        "reservedMemory: expected memory to add up to 1636Mi, which is kubeReserved 1Gi, systemReserved 512Mi and \
         evictionHard[\"memory.available\"] 100Mi; over all NUMA nodes it is 1Gi",
    );
    check(
        &[],
        &[],
        &[],
        "reservedMemory: expected memory to add up to 100Mi, which is kubeReserved 0, systemReserved 0 and \
         evictionHard[\"memory.available\"] 100Mi; over all NUMA nodes it is 0",
    );
    check(
        &[on(0, &[("memory", "100Mi")])],
        &[("hugepages-2Mi", "4Mi")],
        &[],
        "reservedMemory: expected hugepages-2Mi to add up to 4Mi, which is kubeReserved 4Mi and systemReserved 0; \
         over all NUMA nodes it is 0",
    );
    check(
        &[on(0, &[("memory", "100Mi")]), on(2, &[("memory", "1Gi")])],
        &[("memory", "1Gi")],
        &[],
        "reservedMemory[1].numaNode: the machine has no NUMA node 2",
    );
    check(
        &[on(1, &[("memory", "11Gi")])],
        &[("memory", "10Gi")],
        &[("memory", "924Mi")],
        "reservedMemory: 11Gi of memory reserved on NUMA node 1, which has 10Gi",
    );
    check(
        &[on(0, &[("memory", "100Mi")]), on(1, &[("hugepages-2Mi", "4Mi")])],
        &[("hugepages-2Mi", "4Mi")],
        &[],
        "reservedMemory: 4Mi of hugepages-2Mi reserved on NUMA node 1, which has 0",
    );
}

#[test]
fn something_must_be_reserved() {
    let none = Amounts::new();
    assert_eq!(read_layout(&[], &none, &none, 0), Err(LayoutError::NothingReserved));
    let mut machine = machine(&[(10, 0)]);
    machine.nodes[0].id = 70;
    let reservations = Reservations { per_node: &[], kube: &none, system: &none, eviction_bytes: 0 };
    assert_eq!(Layout::new(&machine, &reservations), Err(LayoutError::NodeNumber { node: 70 }));
}
