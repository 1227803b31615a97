//! What a node says to pods, each as a few lines of YAML.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};

use super::judge::{Judgement, Taken, judge};
use super::{Admission, AdmissionConfig, Answer, NodeFacts, is_critical};
use crate::clock::Clock;
use crate::config::{CpuSet, FeatureGates, Gate, TopologyManagerPolicy, TopologyManagerScope};
use crate::host::{Cpu, LinuxHost, Machine, NumaNode, Roots};
use crate::pod::resources::{Amounts, amounts};
use crate::pod::testing::{pod_yaml, yaml};
use crate::pod::{PodRef, PodUid, Source};
use crate::sync::testing::FakeRuntime;
use crate::topology::affinity::Aligner;
use crate::topology::cpus::{self, Reservation};
use crate::topology::{self, Topology, TopologyConfig};

const NODE: &str = "
    metadata:
      name: board
      labels: {kubernetes.io/os: linux, disk: ssd, cores: '4'}
    spec:
      taints:
      - {key: power, value: low, effect: NoExecute}
      - {key: new, effect: NoSchedule}
    status:
      allocatable: {cpu: '99', example.com/gpu: '2'}
    ";

struct Bed {
    config: AdmissionConfig,
    node: Node,
    allocatable: Amounts,
    supplemental_groups_policy: Option<bool>,
}

impl Bed {
    fn new() -> Self {
        let list = yaml("{cpu: '4', memory: 4Gi, ephemeral-storage: 10Gi, pods: '3'}");
        Bed {
            config: AdmissionConfig {
                node_name: "board".into(),
                allowed_unsafe_sysctls: vec!["net.core.*".into(), "kernel/msgmax".into()],
                kernel_version: "4.14.0-rpi".into(),
                app_armor: false,
                statics: [false, false],
                gates: FeatureGates::default(),
            },
            node: yaml(NODE),
            allocatable: amounts(Some(&list)),
            supplemental_groups_policy: Some(false),
        }
    }

    fn facts(&self) -> NodeFacts<'_> {
        NodeFacts {
            config: &self.config,
            node: &self.node,
            allocatable: &self.allocatable,
            supplemental_groups_policy: self.supplemental_groups_policy,
        }
    }

    fn judge(&self, others: &[(&str, Pod)], pod: &Pod, source: Source) -> String {
        let uids: Vec<PodUid> = others.iter().map(|(name, _)| PodUid::new(name)).collect();
        let taken: Vec<_> =
            others.iter().zip(&uids).map(|((_, pod), uid)| Taken { uid, pod, source: Source::Api }).collect();
        match judge(&self.facts(), &taken, pod, source) {
            Judgement::Admitted => "admitted".to_owned(),
            Judgement::Refused(refusal) => format!("{}: {}", refusal.reason, refusal.message),
            Judgement::Preempts(victims) => format!("preempts {victims:?}"),
        }
    }
}

const TOLERANT: &str = "tolerations: [{operator: Exists}]";

/// A pod that tolerates everything, with more fields of its spec.
fn pod(fields: &str) -> Pod {
    let containers = if fields.contains("containers:") { "" } else { "containers: [{name: c, image: a}]," };
    pod_yaml(&format!("spec: {{{TOLERANT}, {containers} {fields}}}"))
}

fn asking(requests: &str) -> Pod {
    pod(&format!("containers: [{{name: c, image: a, resources: {{requests: {{{requests}}}}}}}]"))
}

/// Requests and limits the same.
fn guaranteed(amounts: &str) -> Pod {
    pod(&format!("containers: [{{name: c, image: a, resources: {{requests: {{{amounts}}}, limits: {{{amounts}}}}}}}]"))
}

#[track_caller]
fn check(pod: &Pod, expected: &str) {
    assert_eq!(Bed::new().judge(&[], pod, Source::Api), expected);
}

#[test]
fn a_pod_that_asks_for_nothing_special_is_admitted() {
    check(&pod(""), "admitted");
    check(&pod("nodeName: board"), "admitted");
}

#[test]
fn sysctls_must_be_safe_or_allowed() {
    let setting =
        |name: &str, more: &str| pod(&format!("securityContext: {{sysctls: [{{name: {name}, value: '1'}}]}}{more}"));
    check(&setting("net.ipv4.tcp_syncookies", ""), "admitted");
    check(&setting("net/ipv4/tcp_syncookies", ""), "admitted");
    check(&setting("net.core.somaxconn", ""), "admitted");
    check(&setting("kernel.msgmax", ""), "admitted");
    check(
        &setting("net.unix.max_dgram_qlen", ""),
        "SysctlForbidden: forbidden sysctl: \"net.unix.max_dgram_qlen\" not allowlisted",
    );
    check(
        &setting("net.ipv4.tcp_syncookies", ", hostNetwork: true"),
        "SysctlForbidden: forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host Net enabled",
    );
    check(
        &setting("kernel.shm_rmid_forced", ", hostIPC: true"),
        "SysctlForbidden: forbidden sysctl: \"kernel.shm_rmid_forced\" not allowed with host IPC enabled",
    );
    check(&setting("kernel.shm_rmid_forced", ", hostNetwork: true"), "admitted");
}

#[test]
fn a_young_sysctl_is_safe_only_on_a_kernel_that_keeps_it_in_its_namespace() {
    let pod = pod("securityContext: {sysctls: [{name: net.ipv4.tcp_rmem, value: '1'}]}");
    let mut bed = Bed::new();
    assert!(bed.judge(&[], &pod, Source::Api).starts_with("SysctlForbidden"));
    bed.config.kernel_version = "4.15.0".into();
    assert_eq!(bed.judge(&[], &pod, Source::Api), "admitted");
    bed.config.kernel_version = "6.1-rc1".into();
    assert_eq!(bed.judge(&[], &pod, Source::Api), "admitted");
}

#[test]
fn pods_for_other_systems_are_refused() {
    check(&pod("nodeSelector: {kubernetes.io/os: linux}, os: {name: linux}"), "admitted");
    let mut labelled = pod("");
    labelled.metadata.labels = Some([("kubernetes.io/os".to_owned(), "windows".to_owned())].into());
    check(
        &labelled,
        "PodOSSelectorNodeLabelDoesNotMatch: Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
    );
    check(&pod("os: {name: windows}"), "PodOSNotSupported: Failed to admit pod as the OS field doesn't match node OS");
}

#[test]
fn strict_groups_need_a_runtime_that_has_them() {
    let strict = pod("securityContext: {supplementalGroupsPolicy: Strict}");
    check(
        &strict,
        "SupplementalGroupsPolicyNotSupported: SupplementalGroupsPolicy=Strict is not supported in this node",
    );
    for known in [Some(true), None] {
        let bed = Bed { supplemental_groups_policy: known, ..Bed::new() };
        assert_eq!(bed.judge(&[], &strict, Source::Api), "admitted");
    }
}

#[test]
fn what_is_not_there_is_refused() {
    let short = |resource: &str, requested: i64, used: i64, capacity: i64| {
        format!(
            "OutOf{resource}: Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        )
    };
    check(&asking("cpu: '4', memory: 4Gi, ephemeral-storage: 10Gi"), "admitted");
    check(&asking("cpu: 4001m"), &short("cpu", 4001, 0, 4000));
    check(&asking("memory: 5Gi"), &short("memory", 5 << 30, 0, 4 << 30));
    check(&asking("ephemeral-storage: 11Gi"), &short("ephemeral-storage", 11 << 30, 0, 10 << 30));
    check(&asking("hugepages-2Mi: 2Mi"), &short("hugepages-2Mi", 2 << 20, 0, 0));
    check(&asking("example.com/gpu: 3"), &short("example.com/gpu", 3, 0, 2));
    // Of several the first one counts, in this order.
    check(&asking("ephemeral-storage: 11Gi, memory: 5Gi, cpu: 5"), &short("cpu", 5000, 0, 4000));
    // Nobody announced it here: somebody else gives it out, or nobody does.
    check(&asking("example.com/unheard-of: 3"), "admitted");

    let bed = Bed::new();
    let taken = [("a", asking("cpu: 1500m")), ("b", asking("cpu: '2'"))];
    assert_eq!(bed.judge(&taken, &asking("cpu: 500m"), Source::Api), "admitted");
    assert_eq!(bed.judge(&taken, &asking("cpu: 501m"), Source::Api), short("cpu", 501, 3500, 4000));
    let three = [("a", pod("")), ("b", pod("")), ("c", pod(""))];
    assert_eq!(bed.judge(&three, &pod(""), Source::Api), short("pods", 1, 3, 3));
}

#[test]
fn the_node_must_be_the_one_that_is_asked_for() {
    let mismatch = "NodeAffinity: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
    check(&pod("nodeSelector: {disk: ssd}"), "admitted");
    check(&pod("nodeSelector: {disk: tape}"), mismatch);
    check(&pod("nodeSelector: {tape: ''}"), mismatch);
    check(&pod("nodeName: other"), "NodeName: Predicate NodeName failed: node(s) didn't match the requested node name");

    let required = |terms: &str| {
        pod(&format!(
            "affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{terms}]}}}}}}"
        ))
    };
    let labelled = |expression: &str| required(&format!("{{matchExpressions: [{{{expression}}}]}}"));
    check(&labelled("key: disk, operator: In, values: [tape, ssd]"), "admitted");
    check(&labelled("key: disk, operator: In, values: [tape]"), mismatch);
    check(&labelled("key: disk, operator: NotIn, values: [tape]"), "admitted");
    check(&labelled("key: tape, operator: NotIn, values: [tape]"), "admitted");
    check(&labelled("key: disk, operator: NotIn, values: [ssd]"), mismatch);
    check(&labelled("key: disk, operator: Exists"), "admitted");
    check(&labelled("key: disk, operator: DoesNotExist"), mismatch);
    check(&labelled("key: cores, operator: Gt, values: ['3']"), "admitted");
    check(&labelled("key: cores, operator: Gt, values: ['4']"), mismatch);
    check(&labelled("key: cores, operator: Lt, values: ['5']"), "admitted");
    check(&labelled("key: disk, operator: Lt, values: ['5']"), mismatch);
    check(&required("{matchFields: [{key: metadata.name, operator: In, values: [board]}]}"), "admitted");
    check(&required("{matchFields: [{key: metadata.name, operator: In, values: [other]}]}"), mismatch);
    // One term of several is enough; one that says nothing fits no node.
    check(&required("{}, {matchExpressions: [{key: disk, operator: Exists}]}"), "admitted");
    check(&required("{}"), mismatch);
}

#[test]
fn a_port_of_the_node_has_one_owner() {
    let port = |port: &str| pod(&format!("containers: [{{name: c, image: a, ports: [{{containerPort: 1, {port}}}]}}]"));
    let taken = "NodePorts: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
    let bed = Bed::new();
    let check = |first: &str, second: &str, expected: &str| {
        assert_eq!(bed.judge(&[("a", port(first))], &port(second), Source::Api), expected, "{first} / {second}");
    };
    check("hostPort: 80", "hostPort: 80", taken);
    check("hostPort: 80", "hostPort: 81", "admitted");
    check("hostPort: 80", "hostPort: 80, protocol: UDP", "admitted");
    check("hostPort: 80, hostIP: 192.0.2.1", "hostPort: 80, hostIP: 192.0.2.2", "admitted");
    check("hostPort: 80, hostIP: 192.0.2.1", "hostPort: 80, hostIP: 192.0.2.1", taken);
    check("hostPort: 80, hostIP: 192.0.2.1", "hostPort: 80", taken);
    check("hostPort: 0", "hostPort: 0", "admitted");
}

#[test]
fn ports_of_sidecars_count_and_those_of_other_init_containers_do_not() {
    let init = |policy: &str| {
        pod(&format!("initContainers: [{{name: i, image: a, {policy} ports: [{{containerPort: 1, hostPort: 80}}]}}]"))
    };
    let bed = Bed::new();
    assert!(
        bed.judge(&[("a", init("restartPolicy: Always,"))], &init("restartPolicy: Always,"), Source::Api)
            .starts_with("NodePorts")
    );
    assert_eq!(bed.judge(&[("a", init(""))], &init(""), Source::Api), "admitted");
}

#[test]
fn taints_that_evict_must_be_tolerated() {
    let refused = "TaintToleration: Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate";
    let bed = Bed::new();
    let check = |toleration: &str, expected: &str| {
        let pod = pod_yaml(&format!("spec: {{containers: [{{name: c, image: a}}], tolerations: [{toleration}]}}"));
        assert_eq!(bed.judge(&[], &pod, Source::Api), expected, "{toleration}");
        // Whoever put a manifest on the node means it.
        assert_eq!(bed.judge(&[], &pod, Source::File), "admitted", "{toleration}");
    };
    check("", refused);
    check("{key: power, value: low}", "admitted");
    check("{key: power, operator: Equal, value: low, effect: NoExecute}", "admitted");
    check("{key: power, value: high}", refused);
    check("{key: power, operator: Exists}", "admitted");
    check("{key: power, operator: Exists, effect: NoSchedule}", refused);
    check("{operator: Exists}", "admitted");
}

#[test]
fn taints_are_compared_where_the_gate_says_so() {
    let mut bed = Bed::new();
    let check = |bed: &Bed, taint: &str, operator: &str, bound: &str, is_tolerated: bool| {
        let taint = format!("{{spec: {{taints: [{{key: load, value: '{taint}', effect: NoExecute}}]}}}}");
        let toleration = format!("{{key: load, operator: {operator}, value: '{bound}'}}");
        let pod = pod_yaml(&format!("spec: {{containers: [{{name: c, image: a}}], tolerations: [{toleration}]}}"));
        assert_eq!(
            super::taints::are_tolerated(&pod, &yaml(&taint), &bed.config.gates),
            is_tolerated,
            "{operator}{bound}"
        );
    };
    check(&bed, "9", "Lt", "10", false);
    bed.config.gates = FeatureGates::with(&[(Gate::TaintTolerationComparisonOperators, true)]);
    check(&bed, "9", "Lt", "10", true);
    check(&bed, "10", "Lt", "10", false);
    check(&bed, "10", "Gt", "10", false);
    check(&bed, "10", "Gt", "-1", true);
    check(&bed, "10", "Gt", "07", false);
    check(&bed, "+10", "Gt", "7", false);
    check(&bed, "high", "Gt", "7", false);
}

#[test]
fn app_armor_profiles_need_app_armor() {
    let refused = "AppArmor: Cannot enforce AppArmor: AppArmor is not enabled on the host";
    let confined = pod("securityContext: {appArmorProfile: {type: RuntimeDefault}}");
    check(&confined, refused);
    check(&pod("securityContext: {appArmorProfile: {type: Unconfined}}"), "admitted");
    let of_both = |pods: &str, own: &str| {
        pod(&format!(
            "securityContext: {{appArmorProfile: {{type: {pods}}}}},
             containers: [{{name: c, image: a, securityContext: {{appArmorProfile: {{type: {own}}}}}}}]"
        ))
    };
    check(&of_both("Unconfined", "Unconfined"), "admitted");
    check(&of_both("RuntimeDefault", "Unconfined"), refused);
    check(&of_both("Unconfined", "Localhost"), refused);
    let mut annotated = pod("");
    let key = "container.apparmor.security.beta.kubernetes.io/c".to_owned();
    annotated.metadata.annotations = Some([(key, "runtime/default".to_owned())].into());
    check(&annotated, refused);

    let mut bed = Bed::new();
    bed.config.app_armor = true;
    assert_eq!(bed.judge(&[], &confined, Source::Api), "admitted");
}

fn critical(mut pod: Pod) -> Pod {
    pod.spec.as_mut().expect("made with a spec").priority = Some(2_000_000_000);
    pod
}

#[test]
fn static_pods_and_system_priorities_are_critical() {
    assert!(is_critical(&critical(pod("")), Source::Api));
    assert!(is_critical(&pod(""), Source::File));
    assert!(!is_critical(&pod("priority: 1999999999"), Source::Api));
    assert!(!is_critical(&pod(""), Source::Api));
}

#[test]
fn a_critical_pod_makes_itself_room() {
    let bed = Bed::new();
    let preempts = |taken: &[(&str, Pod)], wanted: &str, expected: &str| {
        assert_eq!(bed.judge(taken, &critical(asking(wanted)), Source::Api), expected, "{wanted}");
    };
    let taken = [("small", asking("cpu: '1'")), ("large", asking("cpu: '3'"))];
    preempts(&taken, "cpu: '1'", "preempts [small]");
    preempts(&taken, "cpu: '2'", "preempts [large]");
    preempts(&taken, "cpu: '4'", "preempts [large, small]");
    // Of two that would do, the one that asks for less.
    let equals = [("fat", asking("cpu: '2', memory: 2Gi")), ("thin", asking("cpu: '2', memory: 1Gi"))];
    preempts(&equals, "cpu: '2'", "preempts [thin]");
    // Guaranteed pods go last.
    let classes = [("guaranteed", guaranteed("cpu: '2', memory: 1Gi")), ("burstable", asking("cpu: '2'"))];
    preempts(&classes, "cpu: '2'", "preempts [burstable]");
    preempts(&classes, "cpu: '3'", "preempts [guaranteed, burstable]");
    // For a place among the pods, one that asks for nothing is enough.
    let three = [("a", asking("cpu: '1'")), ("b", pod("")), ("c", guaranteed("cpu: '1', memory: 1Gi"))];
    preempts(&three, "cpu: '1'", "preempts [b]");
}

#[test]
fn critical_pods_give_way_only_to_higher_priorities() {
    let bed = Bed::new();
    let taken = [("other", critical(asking("cpu: '4'")))];
    assert_eq!(
        bed.judge(&taken, &critical(asking("cpu: '1'")), Source::Api),
        "UnexpectedAdmissionError: Unexpected error while attempting to recover from admission failure: preemption: \
         error finding a set of pods to preempt: no set of running pods found to reclaim resources: \
         [(res: cpu, q: 1000), ]"
    );
    let mut higher = critical(asking("cpu: '1'"));
    higher.spec.as_mut().expect("made with a spec").priority = Some(2_000_001_000);
    assert_eq!(bed.judge(&taken, &higher, Source::Api), "preempts [other]");
}

#[test]
fn no_pod_has_to_go_for_one_that_could_not_stay() {
    let bed = Bed::new();
    let taken = [("other", asking("cpu: '4'"))];
    let mut pod = critical(asking("cpu: '1'"));
    pod.spec.as_mut().expect("made with a spec").node_name = Some("elsewhere".into());
    assert!(bed.judge(&taken, &pod, Source::Api).starts_with("NodeName"));
    let plain = asking("cpu: '1'");
    assert!(bed.judge(&taken, &plain, Source::Api).starts_with("OutOfcpu"));
}

/// A pod with a name of its own, born at this second.
fn born(name: &str, second: i64, mut pod: Pod) -> Arc<Pod> {
    pod.metadata.uid = Some(name.into());
    let time = jiff::Timestamp::from_second(second).expect("within range");
    pod.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(time));
    Arc::new(pod)
}

fn ask(admission: &Admission, bed: &Bed, pod: &Pod) -> String {
    ask_knowing(admission, bed, pod, &[], false)
}

fn ask_knowing(admission: &Admission, bed: &Bed, pod: &Pod, in_runtime: &[&str], is_fresh: bool) -> String {
    let holds = |uid: &PodUid| in_runtime.contains(&uid.as_str());
    match admission.ask(&PodRef::of(pod).uid, &bed.facts(), holds, is_fresh) {
        Answer::Admitted => "admitted".to_owned(),
        Answer::Refused(refusal) => refusal.reason,
        Answer::AwaitsOthers => "waits".to_owned(),
        Answer::NeedsFreshNode => "needs the node".to_owned(),
    }
}

#[test]
fn older_pods_are_judged_first_whoever_asks_first() {
    let (bed, admission) = (Bed::new(), Admission::new(Topology::none()));
    let young = born("young", 9, asking("cpu: '3'"));
    let old = born("old", 1, asking("cpu: '3'"));
    admission.enlist(&young, Source::Api);
    admission.enlist(&old, Source::Api);
    assert_eq!(ask(&admission, &bed, &young), "OutOfcpu");
    assert_eq!(ask(&admission, &bed, &old), "admitted");
}

#[test]
fn a_refusal_stays_when_room_comes() {
    let (bed, admission) = (Bed::new(), Admission::new(Topology::none()));
    let (first, second, third) =
        (born("a", 1, asking("cpu: '3'")), born("b", 2, asking("cpu: '3'")), born("c", 3, asking("cpu: '3'")));
    for pod in [&first, &second] {
        admission.enlist(pod, Source::Api);
    }
    assert_eq!(ask(&admission, &bed, &first), "admitted");
    assert_eq!(ask(&admission, &bed, &second), "OutOfcpu");
    admission.release(&PodRef::of(&first).uid);
    assert_eq!(ask(&admission, &bed, &second), "OutOfcpu");
    admission.release(&PodRef::of(&second).uid);
    assert_eq!(ask(&admission, &bed, &second), "OutOfcpu");
    admission.enlist(&third, Source::Api);
    assert_eq!(ask(&admission, &bed, &third), "admitted");
}

#[test]
fn what_an_earlier_life_took_counts_and_is_not_judged_again() {
    let (bed, admission) = (Bed::new(), Admission::new(Topology::none()));
    let mut told = asking("cpu: '3'");
    told.status = Some(yaml("{phase: Running, startTime: '2026-01-01T00:00:00Z'}"));
    let told = born("told", 5, told);
    let running = born("running", 6, asking("memory: 3Gi"));
    let mut over = asking("ephemeral-storage: 9Gi");
    over.status = Some(yaml("{phase: Succeeded, startTime: '2026-01-01T00:00:00Z'}"));
    let over = born("over", 1, over);
    for pod in [&told, &running, &over] {
        admission.enlist(pod, Source::Api);
    }
    for (name, wants, expected) in [
        ("a", "cpu: '2'", "OutOfcpu"),
        ("b", "memory: 2Gi", "OutOfmemory"),
        ("c", "ephemeral-storage: 9Gi", "admitted"),
    ] {
        let new = born(name, 1, asking(wants));
        admission.enlist(&new, Source::Api);
        assert_eq!(ask_knowing(&admission, &bed, &new, &["running"], false), expected, "{wants}");
    }
    assert_eq!(ask(&admission, &bed, &told), "admitted");
}

/// CPUs 1 to 3 of four are for pods that want their own, and an earlier life gave them to these.
async fn topology(dir: &Path, given: &str) -> Topology {
    let cpu = |id| Cpu { id, core: id, socket: 0, node: 0, cache: 0 };
    let machine = Machine { cpus: (0..4).map(cpu).collect(), nodes: vec![NumaNode::default()] };
    let aligner = Aligner::new(TopologyManagerPolicy::None, TopologyManagerScope::Container, &[].into(), &machine);
    let reservation = Reservation::Cpus(CpuSet::from_iter([0]));
    let ground = cpus::Ground::new(machine.into(), &reservation, cpus::Options::default());
    let config = TopologyConfig {
        dir: dir.to_owned(),
        aligner: Some(aligner.expect("one node")),
        cpus: Some(ground.expect("CPU 0 is there")),
        ..TopologyConfig::default()
    };
    std::fs::write(dir.join(cpus::FILE), given).expect("the directory is there");
    let host = LinuxHost::new(Roots::machine(dir.to_owned()), Duration::from_secs(5), Clock::system());
    topology::begin(config, Arc::new(host), Arc::<FakeRuntime>::default(), Clock::system()).await.0
}

#[tokio::test]
async fn a_pod_waits_until_it_is_known_whether_who_has_its_cpus_is_gone() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let given =
        r#"{"policyName":"static","defaultCpuSet":"0","entries":{"gone":{"c":"1-2"},"here":{"c":"3"}},"checksum":1}"#;
    for (wants, expected) in [(2, "admitted"), (3, "UnexpectedAdmissionError")] {
        let (bed, admission) = (Bed::new(), Admission::new(topology(dir.path(), given).await));
        let pinned = pod(&format!("containers: [{{name: c, resources: {{limits: {{cpu: {wants}, memory: 1Mi}}}}}}]"));
        let pinned = born("new", 1, pinned);
        admission.enlist(&pinned, Source::Api);
        let mut freed = admission.freed();
        assert_eq!(ask(&admission, &bed, &pinned), "waits");
        admission.settle(|uid| uid.as_str() == "here");
        freed.changed().await;
        assert_eq!(ask(&admission, &bed, &pinned), expected);
    }
}

#[test]
fn labels_are_read_anew_before_they_are_held_against_a_pod() {
    let (mut bed, admission) = (Bed::new(), Admission::new(Topology::none()));
    let moved = born("moved", 1, pod("nodeSelector: {disk: tape}"));
    let other = born("other", 2, pod("nodeSelector: {disk: clay}"));
    admission.enlist(&moved, Source::Api);
    admission.enlist(&other, Source::Api);
    assert_eq!(ask(&admission, &bed, &moved), "needs the node");
    // Asked for another pod, it was not read for this one.
    assert_eq!(ask_knowing(&admission, &bed, &other, &[], true), "NodeAffinity");
    assert_eq!(ask(&admission, &bed, &moved), "needs the node");
    bed.node.metadata.labels = Some([("disk".to_owned(), "tape".to_owned())].into());
    assert_eq!(ask_knowing(&admission, &bed, &moved, &[], true), "admitted");
    assert_eq!(ask_knowing(&admission, &bed, &other, &[], true), "NodeAffinity");
}

#[test]
fn a_critical_pod_waits_for_the_end_of_its_victims() {
    let (mut bed, admission) = (Bed::new(), Admission::new(Topology::none()));
    bed.allocatable.insert("pods".to_owned(), crate::config::Quantity::milli(9000));
    let victim = born("victim", 1, asking("cpu: '4'"));
    let first = born("first", 2, critical(asking("cpu: '2'")));
    let second = born("second", 3, critical(asking("cpu: '2'")));
    let late = born("late", 4, asking("cpu: '1'"));
    for pod in [&victim, &first, &second, &late] {
        admission.enlist(pod, Source::Api);
    }
    assert_eq!(ask(&admission, &bed, &victim), "admitted");
    assert_eq!(ask(&admission, &bed, &first), "waits");
    let uid = PodRef::of(&victim).uid;
    assert_eq!(admission.victims().borrow().iter().collect::<Vec<_>>(), [&uid]);
    // Another one that the same end makes room for waits as well, and nobody else goes.
    assert_eq!(ask(&admission, &bed, &second), "waits");
    assert_eq!(admission.victims().borrow().len(), 1);
    assert_eq!(ask(&admission, &bed, &late), "OutOfcpu");
    admission.release(&uid);
    assert!(admission.victims().borrow().is_empty());
    assert_eq!(ask(&admission, &bed, &first), "admitted");
    assert_eq!(ask(&admission, &bed, &second), "admitted");
}

#[test]
fn what_this_node_does_not_declare_keeps_its_pods_away() {
    let rule = "{action: RestartAllContainers, exitCodes: {operator: In, values: [1]}}";
    let ruled = format!("{{name: c, image: a, restartPolicy: Never, restartPolicyRules: [{rule}]}}");
    let restarts_all = pod(&format!("containers: [{ruled}]"));
    let at_init = pod(&format!("containers: [{{name: d, image: a}}], initContainers: [{ruled}]"));
    let own_users = pod("hostNetwork: true, hostUsers: false");
    let judged = |off: &[Gate], pod: &Pod| {
        let off: Vec<_> = off.iter().map(|gate| (*gate, false)).collect();
        let mut bed = Bed::new();
        bed.config.gates = FeatureGates::with(&off);
        bed.judge(&[], pod, Source::Api)
    };
    let lacks =
        |feature| format!("PodFeatureUnsupported: Pod requires node features that are not available: {feature}");
    let restart_all = Gate::RestartAllContainersOnContainerExits;
    for pod in [&restarts_all, &at_init] {
        assert_eq!(judged(&[], pod), "admitted");
        assert_eq!(judged(&[restart_all], pod), lacks("RestartAllContainersOnContainerExits"));
        assert_eq!(judged(&[restart_all, Gate::NodeDeclaredFeatures], pod), "admitted", "nobody looks");
    }
    assert_eq!(judged(&[], &own_users), lacks("UserNamespacesHostNetworkSupport"));
    assert_eq!(judged(&[], &pod("hostNetwork: true")), "admitted");
    assert_eq!(judged(&[], &pod("hostUsers: false")), "admitted");
}

#[test]
fn resources_of_the_pod_as_a_whole_need_their_gate() {
    let judged = |on, fields: &str| {
        let mut bed = Bed::new();
        bed.config.gates = FeatureGates::with(&[(Gate::PodLevelResources, on)]);
        bed.judge(&[], &pod(fields), Source::Api)
    };
    let limited = "resources: {limits: {memory: 64Mi}}";
    assert_eq!(judged(true, limited), "admitted");
    assert_eq!(judged(false, limited), "PodLevelResourcesNotSupported: PodLevelResources feature gate is disabled");
    assert_eq!(judged(false, "resources: {}"), "admitted");
    assert_eq!(judged(false, ""), "admitted");
}
