//! Static pods and their mirrors, and the bad input a directory can hold.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferrolet::cri::ContainerStateKind;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::harness::{Case, Lab, Node, PodBuilder, WITHIN, pod};
use crate::poll::{self, Look};
use crate::stack::STATIC_PODS;
use crate::{own, shared};

pub const CASES: &[Case] = &[
    shared!(a_static_pod_runs_and_has_a_mirror).in_subset(),
    shared!(a_removed_file_ends_its_pod),
    shared!(a_changed_file_replaces_its_pod),
    shared!(a_deleted_mirror_comes_back_and_disturbs_nothing),
    shared!(a_half_written_file_is_taken_when_complete),
    own!(files_that_are_no_pods_disturb_nobody),
    own!(the_second_file_of_a_name_is_left_out),
    shared!(an_edit_of_the_mirror_leaves_the_pod_alone),
    shared!(a_manifest_that_needs_the_api_is_refused),
    shared!(a_renamed_file_is_another_pod),
    shared!(what_a_file_says_last_counts_once_the_pod_has_stopped),
    own!(pods_come_from_a_url),
    own!(a_url_that_is_away_keeps_its_pods_over_a_restart_of_the_agent),
];

/// The file of a static pod in the namespace of the case.
fn manifest(node: &Node, pod: PodBuilder) -> String {
    pod.metadata(json!({ "namespace": node.namespace() })).manifest()
}

fn file(node: &Node, name: &str) -> String {
    // The directory is one for all cases.
    format!("{}-{name}", node.namespace())
}

async fn a_static_pod_runs_and_has_a_mirror(node: Node) -> Result<()> {
    let web = pod("web").script("echo hello; exec sleep 1000000");
    node.static_pod(&file(&node, "web.json"), &manifest(&node, web))?;
    let mirror = node.mirror_pod("web").await?;
    let object = mirror.expect().ready().await?;
    let annotations = object.metadata.annotations.context("annotations")?;
    let annotation = |name: &str| annotations.get(&format!("kubernetes.io/config.{name}"));
    ensure!(annotation("source").is_some_and(|source| source == "file"), "{annotations:?}");
    ensure!(annotation("mirror") == annotation("hash"), "{annotations:?}");
    let owner = &object.metadata.owner_references.context("an owner")?[0];
    ensure!(owner.kind == "Node" && owner.name == node.name(), "{owner:?}");

    // On the node it goes by the UID that the annotation holds.
    let uid = annotation("hash").context("a hash")?;
    let directory = format!("{}_{}_{uid}", node.namespace(), mirror.name);
    let log = node.stack().read(&format!("/var/log/pods/{directory}/main/0.log"))?;
    ensure!(log.ends_with(" stdout F hello\n"), "{log:?}");
    Ok(())
}

async fn a_removed_file_ends_its_pod(node: Node) -> Result<()> {
    let file = file(&node, "web.json");
    node.static_pod(&file, &manifest(&node, pod("web")))?;
    let mirror = node.mirror_pod("web").await?;
    mirror.expect().ready().await?;
    node.remove_static_pod(&file)?;
    mirror.expect_gone().await?;
    node.expect_no_containers("web").await
}

async fn a_changed_file_replaces_its_pod(node: Node) -> Result<()> {
    let file = file(&node, "web.json");
    node.static_pod(&file, &manifest(&node, pod("web").script("echo first; exec sleep 1000000")))?;
    let first = node.mirror_pod("web").await?;
    first.expect().ready().await?;
    node.static_pod(&file, &manifest(&node, pod("web").script("echo second; exec sleep 2000000")))?;
    first.expect_gone().await?;
    let second = node.mirror_pod("web").await?;
    second.expect().ready().await?;
    let command = second.get().await?.spec.context("a spec")?.containers[0].command.clone();
    ensure!(format!("{command:?}").contains("second"), "{command:?}");
    Ok(())
}

async fn a_deleted_mirror_comes_back_and_disturbs_nothing(node: Node) -> Result<()> {
    node.static_pod(&file(&node, "web.json"), &manifest(&node, pod("web")))?;
    let mirror = node.mirror_pod("web").await?;
    mirror.expect().ready().await?;
    let before = mirror.instance().await?;
    let now = DeleteParams::default().grace_period(0);
    node.api::<Pod>().delete(&mirror.name, &now).await?;
    mirror.expect_gone().await?;
    let again = node.mirror_pod("web").await?;
    again.expect().ready().await?;
    ensure!(again.uid != mirror.uid);
    let after = again.instance().await?;
    ensure!(after == before, "{before:?} became {after:?}");
    Ok(())
}

async fn a_half_written_file_is_taken_when_complete(node: Node) -> Result<()> {
    let (file, whole) = (file(&node, "web.json"), manifest(&node, pod("web")));
    let (half, rest) = whole.split_at(whole.len() / 2);
    node.static_pod(&file, half)?;
    node.expect_agent_log(&file).await?;
    let path = node.stack().on_node(&format!("{STATIC_PODS}/{file}"));
    let mut open = fs::OpenOptions::new().append(true).open(path)?;
    std::io::Write::write_all(&mut open, rest.as_bytes())?;
    drop(open);
    node.mirror_pod("web").await?.expect().ready().await?;
    Ok(())
}

async fn an_edit_of_the_mirror_leaves_the_pod_alone(node: Node) -> Result<()> {
    node.static_pod(&file(&node, "web.json"), &manifest(&node, pod("web")))?;
    let mirror = node.mirror_pod("web").await?;
    mirror.expect().ready().await?;
    let before = mirror.instance().await?;
    let edit = json!({
        "metadata": { "labels": { "edited": "yes" } },
        "spec": { "activeDeadlineSeconds": 1, "containers": [{ "name": "main", "image": "ferrolet.test/other:1" }] },
    });
    node.api::<Pod>().patch(&mirror.name, &PatchParams::default(), &Patch::Strategic(edit)).await?;
    // Longer than the deadline that was written into it.
    tokio::time::sleep(Duration::from_secs(5)).await;
    mirror.expect().ready().await?;
    let after = mirror.instance().await?;
    ensure!(after == before, "{before:?} became {after:?}");
    Ok(())
}

async fn a_manifest_that_needs_the_api_is_refused(node: Node) -> Result<()> {
    let secret = json!({ "volumes": [{ "name": "s", "secret": { "secretName": "any" } }] });
    node.static_pod(&file(&node, "needy.json"), &manifest(&node, pod("needy").spec(secret)))?;
    node.static_pod(&file(&node, "web.json"), &manifest(&node, pod("web")))?;
    node.mirror_pod("web").await?.expect().ready().await?;
    node.expect_agent_log("static pods may not reference secrets").await?;
    node.expect_no_containers("needy").await
}

async fn a_renamed_file_is_another_pod(node: Node) -> Result<()> {
    let content = manifest(&node, pod("web"));
    node.static_pod(&file(&node, "old.json"), &content)?;
    let old = node.mirror_pod("web").await?;
    old.expect().ready().await?;
    let before = node.expect_static_pod_runs("web").await?;
    node.remove_static_pod(&file(&node, "old.json"))?;
    node.static_pod(&file(&node, "new.json"), &content)?;
    old.expect_gone().await?;
    node.mirror_pod("web").await?.expect().ready().await?;
    let after = node.expect_static_pod_runs("web").await?;
    ensure!(after.pod_uid != before.pod_uid, "the path of the file is a part of the pod's identity");
    Ok(())
}

async fn what_a_file_says_last_counts_once_the_pod_has_stopped(node: Node) -> Result<()> {
    let slow = |number: u32| {
        let script = format!("trap '' TERM; while true; do sleep 1; done # {number}");
        pod("web").script(&script).spec(json!({ "terminationGracePeriodSeconds": 4 }))
    };
    let file = file(&node, "web.json");
    node.static_pod(&file, &manifest(&node, slow(1)))?;
    node.mirror_pod("web").await?.expect().ready().await?;
    let first = node.expect_static_pod_runs("web").await?.pod_uid;
    node.static_pod(&file, &manifest(&node, slow(2)))?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.static_pod(&file, &manifest(&node, slow(3)))?;
    let wanted = "the third pod";
    let third = poll::until(wanted, WITHIN, async || {
        let containers = node.containers_named("web").await?;
        let mut running = containers.iter().filter(|it| it.state == ContainerStateKind::Running);
        let now = running.next().map(|it| it.pod_uid.clone());
        ensure!(running.next().is_none(), "two pods of one name run: {containers:?}");
        Ok(match now {
            Some(uid) if uid != first => Look::Done(uid),
            other => Look::NotYet(format!("{other:?}")),
        })
    })
    .await?;
    let mirror = node.mirror_pod("web").await?;
    mirror.expect().ready().await?;
    let command = mirror.get().await?.spec.context("a spec")?.containers[0].command.clone();
    ensure!(format!("{command:?}").contains("# 3"), "{command:?}");

    // Removed while it makes room for a fourth, which is not to run at all.
    node.static_pod(&file, &manifest(&node, slow(4)))?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.remove_static_pod(&file)?;
    poll::until("the end of all", WITHIN, async || {
        let containers = node.containers_named("web").await?;
        ensure!(containers.iter().all(|it| it.pod_uid == third), "{containers:?}");
        let is_over = containers.iter().all(|it| it.state != ContainerStateKind::Running);
        Ok(if is_over { Look::Done(()) } else { Look::NotYet(format!("{containers:?}")) })
    })
    .await?;
    mirror.expect_gone().await
}

/// Where the server of the stories below has its answer, the whole of it, and notes what it
/// was asked.
const ANSWER: &str = "/var/lib/static-url/answer";
const ASKED: &str = "/var/lib/static-url/asked";

/// Answers with what is written for it; with nothing, it is silent.
const SERVER: &str = r#"cat > /tmp/answer <<'END'
#!/bin/sh
while read -r line && [ "${#line}" -gt 1 ]; do echo "$line" >> /static-url/asked; done
echo . >> /static-url/asked
[ -s /static-url/answer ] || exec sleep 1000
cat /static-url/answer
END
chmod 755 /tmp/answer
exec nc -ll -p 5481 -e /tmp/answer"#;

/// A node that is told of its static pods by a server that runs on it.
async fn node_with_url(lab: &Lab) -> Result<Node> {
    let node = lab
        .node(|stack| {
            stack
                .config("staticPodURL", "http://127.0.0.1:5481/pods")
                .config("staticPodURLHeader", json!({ "X-Story": ["told"] }))
                .config("httpCheckFrequency", "1s")
        })
        .await?;
    let server = json!({
        "hostNetwork": true,
        "volumes": [{ "name": "d", "hostPath": { "path": "/var/lib/static-url", "type": "DirectoryOrCreate" } }],
    });
    let mount = json!({ "volumeMounts": [{ "name": "d", "mountPath": "/static-url" }] });
    node.run(pod("server").script(SERVER).spec(server).container(mount)).await?.expect().ready().await?;
    Ok(node)
}

fn answer(node: &Node, status: &str, body: &str) -> Result<()> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    node.stack().write(ANSWER, head + body)
}

/// Waits until the server has been asked and has answered since.
async fn expect_asked(node: &Node) -> Result<()> {
    let count = || node.stack().read(ASKED).unwrap_or_default().matches("\n.\n").count();
    let before = count();
    poll::until("two more questions", WITHIN, async || {
        let now = count();
        Ok(if now >= before + 2 { Look::Done(()) } else { Look::NotYet(format!("{before}, now {now}")) })
    })
    .await
}

async fn pods_come_from_a_url(lab: Lab) -> Result<()> {
    let node = node_with_url(&lab).await?;
    answer(&node, "200 OK", &pod("web").manifest())?;
    let web = node.mirror_pod("web").await?;
    let object = web.expect().ready().await?;
    let annotations = object.metadata.annotations.context("annotations")?;
    let annotation = |name: &str| annotations.get(&format!("kubernetes.io/config.{name}"));
    ensure!(annotation("source").is_some_and(|source| source == "http"), "{annotations:?}");
    ensure!(annotation("mirror") == annotation("hash"), "{annotations:?}");
    let asked = node.stack().read(ASKED)?;
    ensure!(asked.contains("GET /pods ") && asked.contains("X-Story: told"), "{asked}");

    let before = web.instance().await?;
    for (status, body) in
        [("500 No", ""), ("404 No", "none"), ("200 OK", "gibberish: ["), ("200 OK", "{kind: Service}")]
    {
        answer(&node, status, body)?;
        expect_asked(&node).await?;
    }
    let after = web.instance().await?;
    ensure!(after == before, "{before:?} became {after:?}");

    // The same pod in a list, which may be JSON or YAML.
    let list = |items: &[String]| {
        format!("{{\"apiVersion\": \"v1\", \"kind\": \"PodList\", \"items\": [{}]}}", items.join(", "))
    };
    answer(&node, "200 OK", &list(&[pod("web").manifest(), pod("db").manifest()]))?;
    node.mirror_pod("db").await?.expect().ready().await?;
    let after = web.instance().await?;
    ensure!(after == before, "{before:?} became {after:?}");
    answer(&node, "200 OK", &list(&[pod("db").manifest()]))?;
    web.expect_gone().await?;
    node.expect_no_containers("web").await?;
    answer(&node, "200 OK", "")?;
    node.expect_no_containers("db").await
}

async fn a_url_that_is_away_keeps_its_pods_over_a_restart_of_the_agent(lab: Lab) -> Result<()> {
    let node = node_with_url(&lab).await?;
    answer(&node, "200 OK", &pod("web").manifest())?;
    node.mirror_pod("web").await?.expect().ready().await?;
    let before = node.expect_static_pod_runs("web").await?;

    // Silent, and not only unwell: nobody may wait for it.
    node.stack().agent().kill().await?;
    node.stack().write(ANSWER, "")?;
    node.stack().agent().start().await?;
    node.run(pod("other")).await?.expect().ready().await?;
    tokio::time::sleep(Duration::from_secs(15)).await;
    let after = node.expect_static_pod_runs("web").await?;
    ensure!(after.id == before.id, "{before:?} became {after:?}");

    answer(&node, "200 OK", &pod("web").manifest())?;
    expect_asked(&node).await?;
    let after = node.expect_static_pod_runs("web").await?;
    ensure!(after.id == before.id, "{before:?} became {after:?}");
    answer(&node, "200 OK", "")?;
    node.expect_no_containers("web").await
}

async fn files_that_are_no_pods_disturb_nobody(lab: Lab) -> Result<()> {
    let not_pods = [
        ("a-empty.yaml", String::new()),
        ("b-prose.yaml", "this: is: not [yaml".to_owned()),
        ("c-service.yaml", "{apiVersion: v1, kind: Service, metadata: {name: s}}".to_owned()),
        ("d-huge.yaml", format!("# {}\n", "x".repeat(20 << 20)) + &pod("huge").manifest()),
        ("e-nameless.yaml", "{apiVersion: v1, kind: Pod, spec: {containers: []}}".to_owned()),
    ];
    let node = lab
        .node(|mut stack| {
            for (file, content) in &not_pods {
                stack = stack.static_pod(file, content);
            }
            stack.static_pod("z-good.yaml", &pod("good").manifest())
        })
        .await?;
    node.mirror_pod("good").await?.expect().ready().await?;
    for (file, _) in &not_pods {
        node.expect_agent_log(file).await?;
    }
    // And the directory is still watched.
    node.static_pod("zz-late.yaml", &pod("late").manifest())?;
    node.mirror_pod("late").await?.expect().ready().await?;
    Ok(())
}

async fn the_second_file_of_a_name_is_left_out(lab: Lab) -> Result<()> {
    let (one, two) = (pod("twin").script("sleep 111111"), pod("twin").script("sleep 222222"));
    let node = lab
        .node(|stack| {
            stack
                .static_pod("a.yaml", &one.manifest())
                .static_pod("b.yaml", &two.manifest())
                .static_pod("c.yaml", &pod("other").manifest())
        })
        .await?;
    node.mirror_pod("twin").await?.expect().ready().await?;
    node.mirror_pod("other").await?.expect().ready().await?;
    let twins = node.containers_named("twin").await?;
    ensure!(twins.len() == 1, "{} containers of the name", twins.len());
    Ok(())
}
