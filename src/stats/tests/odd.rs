//! What hangs, is there twice, lies elsewhere or has lost its memory.

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::SignedDuration;

use super::*;
use crate::cri::Sandbox;
use crate::cri::testing::noon;
use crate::stats::survey::Cgroup;

#[tokio::test]
async fn what_could_not_be_read_costs_its_own_families_only() {
    let survey = survey(&machine(), Detail::All);
    let has = |page: &str, family: &str| page.contains(&format!("# TYPE {family} "));
    for (survey, facts, cgroups_failed, machine_failed) in
        [(Some(&survey), None, 0, 1), (None, Some(&facts()), 1, 0), (None, None, 1, 1)]
    {
        let page = page_of(survey, facts);
        assert_eq!(has(&page, "container_memory_working_set_bytes"), survey.is_some(), "{page}");
        assert_eq!(has(&page, "container_fs_usage_bytes"), survey.is_some(), "{page}");
        assert_eq!(has(&page, "machine_memory_bytes"), facts.is_some(), "{page}");
        let errors =
            [format!("container_scrape_error {cgroups_failed}"), format!("machine_scrape_error {machine_failed}")];
        expect_lines(&page, &errors.each_ref().map(String::as_str));
    }
}

/// What names each sample: a page that has one twice is refused.
fn series(page: &str) -> Vec<&str> {
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    let mut names: Vec<&str> = samples.map(|line| line.rfind('}').map_or(line, |end| &line[..=end])).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn of_two_pods_of_one_name_the_newer_is_told_and_no_series_comes_twice() {
    let (machine, newer) = (machine(), "kubepods/burstable/podb-2");
    for (id, microseconds) in [("", 900_000), ("/t", 1), ("/d", 800_000), ("/e", 700_000)] {
        cgroup(machine.path(), &format!("{newer}{id}"), microseconds, 10);
    }
    let made = |at: i64| noon() + SignedDuration::from_secs(at);
    let instance =
        |id: &str, at| Container { id: ContainerId::new(id), created_at: made(at), ..container("c", 0, running()) };
    let successor = PodView {
        uid: PodUid::new("b-2"),
        sandbox_image: None,
        runtime: Arc::new(PodRuntime {
            sandboxes: vec![Sandbox { created_at: made(60), ..sandbox("t", 0, SandboxState::Ready) }],
            // One that cannot be killed runs beside the one that took its place.
            containers: vec![instance("d", 80), instance("e", 70)],
        }),
    };
    for pods in [vec![pod(), successor.clone()], vec![successor, pod()]] {
        let survey = surveyor(&machine).read(order(pods, Detail::All, Duration::ZERO));
        let resource = resource::page(Some(&survey));
        expect_lines(
            &resource,
            &[
                r#"pod_cpu_usage_seconds_total{namespace="shop",pod="web-0"} 0.9 1700000100000"#,
                r#"container_cpu_usage_seconds_total{container="c",namespace="shop",pod="web-0"} 0.8 1700000100000"#,
            ],
        );
        // The other page names cgroups, which are never the same.
        for page in [resource, page(&survey)] {
            let mut found = series(&page);
            let all = found.len();
            found.dedup();
            assert_eq!(found.len(), all, "{page}");
        }
    }
}

#[tokio::test]
async fn a_part_of_the_node_that_lies_where_a_pod_was_is_told_once() {
    let machine = machine();
    let places = Places::of(&StatsConfig { runtime_cgroups: format!("/{POD}"), ..config(machine.path()) });
    let survey = Surveyor::new(places).read(order(Vec::new(), Detail::All, Duration::ZERO));
    assert!(survey.level(&format!("/{POD}")).is_some() && survey.strays.is_empty());
    let page = page(&survey);
    let mut found = series(&page);
    let all = found.len();
    found.dedup();
    assert_eq!(found.len(), all, "{page}");
}

#[tokio::test]
async fn containers_were_made_when_the_runtime_says_so() {
    let machine = machine();
    let survey = surveyor(&machine).read(order(vec![pod()], Detail::Usage, Duration::ZERO));
    let created = |cgroup: &Option<Cgroup>| cgroup.as_ref().and_then(|it| it.created_unix_seconds);
    // The files here are as old as this test.
    let pod = &survey.pods[0];
    assert_eq!(created(&pod.containers[0].cgroup), Some(noon().as_second()));
    assert_eq!(created(&pod.cgroup), Some(noon().as_second()), "a pod is no younger than its sandbox");
    assert!(created(&survey.level("/kubepods").cloned()).is_some_and(|seen| seen > noon().as_second()));
}

#[tokio::test]
async fn figures_have_the_time_at_which_they_were_read() {
    let machine = machine();
    let readings = AtomicI64::new(0);
    let begun = Instant::now();
    let moment = move || {
        let seconds = readings.fetch_add(1, Ordering::Relaxed);
        Moment { wall: wall() + SignedDuration::from_secs(seconds), now: begun }
    };
    let order = Order { pods: vec![pod()], detail: Detail::Usage, moment: Box::new(moment) };
    let survey = surveyor(&machine).read(order);
    let container = survey.pods[0].containers[0].cgroup.as_ref().expect("it is there");
    let root = survey.level("/").expect("it is there");
    assert!(root.figures.unix_millis < container.figures.unix_millis, "the root is read before");
}

#[tokio::test]
async fn processes_that_could_not_be_listed_are_looked_at_as_closely_as_is_asked() {
    let machine = machine();
    let mut surveyor = surveyor(&machine);
    let pod = pod();
    let mut read = |detail| {
        let found = surveyor.read(order(vec![pod.clone()], detail, Duration::ZERO));
        let cgroup = found.pods[0].containers[0].cgroup.clone().expect("it is there");
        (cgroup.processes, cgroup.open.files_max)
    };
    let procs = machine.path().join(format!("cgroup/{POD}/c/cgroup.procs"));
    fs::remove_file(&procs).expect("it was there");
    assert_eq!(read(Detail::All), (None, None));
    fs::write(&procs, "7\n").expect("it is writable");
    assert_eq!(read(Detail::Pods), (Some(1), None));
    assert_eq!(read(Detail::All), (Some(1), Some(1024)), "nothing else has changed");
}

#[tokio::test]
async fn the_network_of_a_pod_is_seen_by_a_process_in_a_cgroup_below_its_container() {
    let machine = machine();
    for name in ["s", "c"] {
        write(machine.path(), &format!("cgroup/{POD}/{name}/cgroup.procs"), "");
    }
    write(machine.path(), &format!("cgroup/{POD}/c/container/cgroup.procs"), "6\n");
    let survey = survey(&machine, Detail::Pods);
    let pod = &survey.pods[0];
    assert_eq!(pod.containers[0].cgroup.as_ref().and_then(|it| it.processes), Some(1));
    assert_eq!(pod.network.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["eth0"]);
}
