//! Static pods and their mirrors, and the bad input a directory can hold.

use std::fs;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use serde_json::json;

use crate::harness::{Case, Lab, Node, PodBuilder, pod};
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
