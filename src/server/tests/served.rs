//! What is served, and where.

use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::house::{House, Identity, host};
use crate::clock::Clock;
use crate::cri::labels;
use crate::cri::testing::{container, exited, running};
use crate::server::{Doors, ServerError};

fn names(list: &str) -> Vec<String> {
    let list: Value = serde_json::from_str(list).expect("JSON");
    assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("PodList"), &json!("v1")));
    let items = list["items"].as_array().expect("items").iter();
    items.map(|pod| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn both_ports_show_the_pods() {
    let house = House::open(|_| {}).await;
    let admin = house.admin();
    for (status, body) in [house.get(Some(&admin), None, "/pods").await, house.get_plain("/pods").await] {
        assert_eq!((status, names(&body)), (200, vec!["web".to_owned(), "static".to_owned()]));
    }
}

#[tokio::test]
async fn what_runs_is_told_by_the_runtime() {
    let house = House::open(|_| {}).await;
    let admin = house.admin();
    assert_eq!(names(&house.get(Some(&admin), None, "/runningpods/").await.1), Vec::<String>::new());
    for (name, state) in [("main", running()), ("done", exited(0))] {
        let mut container = container(name, 0, state);
        container.labels = [(labels::POD_UID, "u"), (labels::POD_NAME, "wild"), (labels::POD_NAMESPACE, "shop")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        house.runtime.hold(container);
    }
    let (status, body) = house.get(Some(&admin), None, "/runningpods/").await;
    assert_eq!((status, names(&body)), (200, vec!["wild".to_owned()]));
    let list: Value = serde_json::from_str(&body).expect("JSON");
    let containers = list["items"][0]["spec"]["containers"].as_array().expect("containers");
    assert_eq!(containers.iter().map(|it| &it["name"]).collect::<Vec<_>>(), [&json!("main")]);
}

#[tokio::test]
async fn health_and_configuration_are_told() {
    let house = House::open(|_| {}).await;
    let admin = house.admin();
    let get = async |path: &str| house.get(Some(&admin), None, path).await;
    assert_eq!(get("/healthz").await, (200, "ok".to_owned()));
    assert_eq!(get("/healthz/ping").await, (200, "ok".to_owned()));
    assert_eq!(get("/healthz?verbose").await, (200, "[+]ping ok\nhealthz check passed\n".to_owned()));
    assert_eq!(get("/configz").await, (200, r#"{"kubeletconfig":{}}"#.to_owned()));
    assert_eq!(house.get_plain("/healthz").await, (200, "ok".to_owned()));
}

#[tokio::test]
async fn metrics_are_told_on_both_ports_and_count_who_asks() {
    let house = House::open(|_| {}).await;
    let admin = house.admin();
    for (status, page) in [house.get(Some(&admin), None, "/metrics").await, house.get_plain("/metrics").await] {
        assert_eq!(status, 200, "{page}");
        for line in [
            "kubelet_node_name{node=\"node-1\"} 1",
            "kubelet_desired_pods{static=\"\"} 1",
            "kubelet_desired_pods{static=\"true\"} 1",
            "kubelet_cgroup_version 2",
            "# TYPE kubelet_pod_start_sli_duration_seconds histogram",
            "# TYPE process_resident_memory_bytes gauge",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
        }
        assert!(page.contains("kubelet_http_inflight_requests{method=\"GET\",path=\"metrics\","), "{page}");
    }
}

#[tokio::test]
async fn checks_of_health_are_counted_until_somebody_resets_them() {
    let house = House::open(|_| {}).await;
    let admin = house.admin();
    house.cluster.grant("admin", "delete", "metrics");
    house.get(Some(&admin), None, "/healthz").await;
    let (status, page) = house.get(Some(&admin), None, "/metrics/slis").await;
    assert_eq!(status, 200, "{page}");
    assert!(page.contains("kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n"), "{page}");
    assert!(
        page.contains("kubernetes_healthchecks_total{name=\"ping\",type=\"healthz\",status=\"success\"} "),
        "{page}"
    );
    let (status, words) = house.ask(Method::DELETE, Some(&admin), None, "/metrics/slis").await;
    assert_eq!((status, words.as_str()), (200, "metrics reset\n"));
}

#[tokio::test]
async fn what_is_not_there_or_turned_off_says_so() {
    let house = House::open(|_| {}).await;
    let admin = house.admin();
    let get = async |path: &str| house.get(Some(&admin), None, path).await;
    assert_eq!(get("/nothing").await, (404, "404 page not found\n".to_owned()));
    assert_eq!(get("/logs/../../etc/shadow").await.0, 404);
    assert_eq!(get("/logs/%2e%2e/%2e%2e/etc/shadow").await.0, 404);
    house.cluster.grant("admin", "create", "pods");
    assert_eq!(house.ask(Method::POST, Some(&admin), None, "/pods").await.0, 405);
    let disabled = (405, "Debug endpoints are disabled.\n".to_owned());
    assert_eq!(house.get_plain("/containerLogs/a/b/c").await, disabled);
    assert_eq!(house.get_plain("/configz").await.0, 404);

    let off = House::open(|config| config.switches.debugging = false).await;
    let admin = off.admin();
    assert_eq!(off.get(Some(&admin), None, "/runningpods/").await, disabled);
    assert_eq!(off.get(Some(&admin), None, "/configz").await.0, 404);
}

/// Sent as it is: clients of ours would mend some of it.
async fn status_of(house: &House, admin: &Identity, target: &str) -> (String, String) {
    let mut stream = house.connect(Some(admin), b"http/1.1").await;
    let head = format!("GET {target} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("it is taken");
    let mut answer = Vec::new();
    // How a client is left is no matter here.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    (head.split(' ').nth(1).expect("a status").to_owned(), body.to_owned())
}

#[tokio::test]
async fn no_path_of_a_log_leads_out_of_its_pod() {
    let house = House::open(|_| {}).await;
    let admin = house.admin();
    // Nothing is here for what leads nowhere, and for what is no name of three.
    for below in [
        "shop/web/..%2f..",
        "shop/web/..",
        "shop/web/%2e%2e",
        "shop/%2e%2e/%2e%2e/etc/shadow",
        "shop/web/%2E%2E%2F%2E%2E%2Fetc%2Fshadow",
        "shop%2f..%2f..%2fetc/web/main",
        "../../etc/shadow",
        "shop/web/main%2f..%2fother",
        "shop/web/main%00",
        "shop/web/.%2e/main",
        "./web/main",
        "shop//main",
        "shop/web/main/",
        "shop/web%2fmain/main",
        "shop/web/main%ff",
    ] {
        let answer = status_of(&house, &admin, &format!("/containerLogs/{below}")).await;
        assert_eq!(answer, ("404".to_owned(), "404 page not found\n".to_owned()), "{below}");
    }
    // What is decoded twice would lead up, and is only a strange name when decoded once.
    for (below, words) in [
        ("shop/%252e%252e/main", "pod \"%2e%2e\" does not exist\n"),
        ("shop/web/%252e%252e", "container \"%2e%2e\" not found in pod \"web\"\n"),
        ("shop/web/..%255c..", "container \"..%5c..\" not found in pod \"web\"\n"),
        ("shop/web/..%5c..", "container \"..\\\\..\" not found in pod \"web\"\n"),
    ] {
        let answer = status_of(&house, &admin, &format!("/containerLogs/{below}")).await;
        assert_eq!(answer, ("404".to_owned(), words.to_owned()), "{below}");
    }
    // Nothing was looked for at the runtime either.
    assert_eq!(house.runtime.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_that_names_it() {
    let house = House::open(|_| {}).await;
    for is_main in [true, false] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut taken = None;
        let second = House::open(|config| {
            taken = Some(config.clone());
        })
        .await;
        let mut config = taken.expect("it was configured");
        match is_main {
            true => config.main = Some(house.address),
            false => config.read_only = Some(house.read_only),
        }
        let error = Doors::open(config, host(&dir), Clock::system()).await.err().expect("the port is taken");
        let (address, fields) = match is_main {
            true => (house.address, "address and port"),
            false => (house.read_only, "address and readOnlyPort"),
        };
        assert_eq!(error.to_string(), format!("failed to listen on {address} ({fields})"));
        assert!(matches!(error, ServerError::Bind { .. }));
        drop(second);
    }
}
