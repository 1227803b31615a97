//! Images: pull policies and what goes wrong with them.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::harness::{Case, Node, pod};
use crate::shared;

pub const CASES: &[Case] = &[
    shared!(an_image_that_is_there_is_not_pulled).in_subset(),
    shared!(never_says_that_the_image_is_absent),
    shared!(an_image_that_cannot_be_pulled_backs_off).in_subset(),
    shared!(a_name_that_is_none_is_refused),
    shared!(the_other_container_does_not_wait_for_a_pull),
];

async fn an_image_that_is_there_is_not_pulled(node: Node) -> Result<()> {
    let pod = node.run(pod("present")).await?;
    pod.expect().ready().await?;
    let message = pod.expect_event("Pulled").await?;
    ensure!(message.contains("already present on machine"), "{message}");
    Ok(())
}

async fn never_says_that_the_image_is_absent(node: Node) -> Result<()> {
    let image = json!({ "image": "ferrolet.test/absent:1", "imagePullPolicy": "Never" });
    let pod = node.run(pod("absent").container(image)).await?;
    pod.expect().waiting("ErrImageNeverPull").phase("Pending").await?;
    pod.expect_event("ErrImageNeverPull").await?;
    Ok(())
}

async fn an_image_that_cannot_be_pulled_backs_off(node: Node) -> Result<()> {
    let image = json!({ "image": "ferrolet.test/absent:1" });
    let pod = node.run(pod("unpullable").container(image)).await?;
    pod.expect().waiting("ErrImagePull").await?;
    pod.expect().waiting("ImagePullBackOff").phase("Pending").await?;
    let message = pod.expect_event("BackOff").await?;
    ensure!(message.contains("ferrolet.test/absent:1"), "{message}");
    Ok(())
}

async fn a_name_that_is_none_is_refused(node: Node) -> Result<()> {
    let pod = node.run(pod("misnamed").container(json!({ "image": "Not//An:Image:Name" }))).await?;
    pod.expect().waiting("InvalidImageName").await?;
    pod.expect_event("InspectFailed").await?;
    Ok(())
}

async fn the_other_container_does_not_wait_for_a_pull(node: Node) -> Result<()> {
    let pod = pod("half").and_container("absent", "true", json!({ "image": "ferrolet.test/absent:1" }));
    let pod = node.run(pod).await?;
    pod.expect().running().container("absent").waiting("ImagePullBackOff").await?;
    Ok(())
}
