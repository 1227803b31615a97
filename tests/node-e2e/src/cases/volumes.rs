//! Volumes without a driver: emptyDir, hostPath, and the contents of API objects.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authentication::v1::TokenReview;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::harness::{Case, Lab, Node, PodHandle, expect_lines, pod};
use crate::poll::{self, Look};
use crate::provision::BUSYBOX;
use crate::{own, shared};

pub const CASES: &[Case] = &[
    shared!(an_empty_directory_is_shared_and_outlives_containers).in_subset(),
    shared!(an_empty_directory_can_be_in_memory),
    shared!(a_host_path_is_the_nodes),
    shared!(a_host_path_is_created_if_asked),
    shared!(a_host_path_of_another_kind_is_refused),
    shared!(a_read_only_mount_cannot_be_written),
    shared!(a_part_of_a_volume_is_mounted),
    shared!(a_link_that_leads_out_of_a_volume_is_not_followed),
    shared!(each_volume_that_fails_is_told_of),
    own!(mounts_propagate_where_it_is_asked_for),
    shared!(a_config_map_becomes_files).in_subset(),
    shared!(keys_of_a_config_map_are_chosen_and_placed),
    shared!(another_volume_is_mounted_where_a_key_would_be),
    shared!(an_optional_config_map_may_be_absent),
    shared!(a_missing_config_map_holds_up_the_pod_until_it_appears).in_subset(),
    shared!(a_changed_config_map_reaches_the_pod_at_once)
        .beyond_upstream("its files follow a timer of a minute and more"),
    shared!(a_secret_becomes_files_in_memory),
    shared!(the_pods_own_fields_become_files),
    shared!(a_changed_label_reaches_the_pod_at_once).beyond_upstream("its files follow a timer of a minute and more"),
    shared!(sources_are_projected_into_one_directory),
    shared!(the_service_account_token_is_accepted).in_subset(),
    shared!(a_token_can_have_an_audience_and_an_end),
    shared!(a_group_owns_the_files_it_is_given),
];

async fn an_empty_directory_is_shared_and_outlives_containers(node: Node) -> Result<()> {
    let script = "echo life >> /own/lives; [ $(wc -l < /own/lives) -ge 2 ] && exec sleep 1000000";
    let mounts = json!({ "volumeMounts": [{ "name": "own", "mountPath": "/other" }] });
    let sharing = pod("sharing").script(script).volume("own", "/own", json!({ "emptyDir": {} })).and_container(
        "other",
        "exec sleep 1000000",
        mounts,
    );
    let sharing = node.run(sharing).await?;
    sharing.expect().ready().restarts(1).await?;
    ensure!(sharing.exec_in("other", "cat /other/lives").await? == "life\nlife\n");
    let mode = sharing.exec("stat -c %a /own").await?;
    ensure!(mode == "777\n", "mode {mode}");
    Ok(())
}

async fn an_empty_directory_can_be_in_memory(node: Node) -> Result<()> {
    let source = json!({ "emptyDir": { "medium": "Memory", "sizeLimit": "8Mi" } });
    let pod = pod("memory").script("grep ' /m ' /proc/mounts; df -k /m | tail -1").restart("Never");
    let output = node.run(pod.volume("m", "/m", source)).await?.output().await?;
    ensure!(output.starts_with("tmpfs "), "{output}");
    ensure!(output.contains("size=8192k"), "{output}");
    Ok(())
}

/// A directory on the node for this case.
fn place(node: &Node) -> String {
    format!("/var/lib/places/{}", node.namespace())
}

async fn a_host_path_is_the_nodes(node: Node) -> Result<()> {
    let place = place(&node);
    node.stack().write(&format!("{place}/in"), "from the node")?;
    let source = json!({ "hostPath": { "path": place, "type": "Directory" } });
    let pod = pod("there").script("cat /there/in; echo -n from the pod > /there/out");
    let output = node.run(pod.restart("Never").volume("there", "/there", source)).await?.output().await?;
    ensure!(output == "from the node\n" || output == "from the node", "{output:?}");
    ensure!(node.stack().read(&format!("{place}/out"))? == "from the pod");
    Ok(())
}

async fn a_host_path_is_created_if_asked(node: Node) -> Result<()> {
    let place = place(&node);
    let directory = json!({ "hostPath": { "path": format!("{place}/a/b"), "type": "DirectoryOrCreate" } });
    let file = json!({ "hostPath": { "path": format!("{place}/file"), "type": "FileOrCreate" } });
    std::fs::create_dir_all(node.stack().on_node(&place))?;
    let pod = pod("making").script("stat -c '%a %F' /directory /file").restart("Never");
    let pod = pod.volume("d", "/directory", directory).volume("f", "/file", file);
    let output = node.run(pod).await?.output().await?;
    expect_lines(&output, &["755 directory", "644 regular empty file"])
}

async fn a_host_path_of_another_kind_is_refused(node: Node) -> Result<()> {
    let place = format!("{}/file", place(&node));
    node.stack().write(&place, "")?;
    let source = json!({ "hostPath": { "path": place, "type": "Directory" } });
    let wrong = node.run(pod("wrong").volume("w", "/w", source)).await?;
    let bystander = node.run(pod("bystander")).await?;
    wrong.expect_failed_mount(&format!("hostPath type check failed: {place} is not a directory")).await?;
    wrong.expect().waiting("ContainerCreating").phase("Pending").await?;
    bystander.expect().ready().await?;
    Ok(())
}

async fn each_volume_that_fails_is_told_of(node: Node) -> Result<()> {
    let absent = |name: &str| json!({ "configMap": { "name": name } });
    let pod = pod("waiting").volume("one", "/one", absent("first")).volume("two", "/two", absent("second"));
    let waiting = node.run(pod).await?;
    for (volume, map) in [("one", "first"), ("two", "second")] {
        let words = format!("MountVolume.SetUp failed for volume \"{volume}\" : configmap \"{map}\" not found");
        waiting.expect_failed_mount(&words).await?;
    }
    Ok(())
}

async fn a_read_only_mount_cannot_be_written(node: Node) -> Result<()> {
    let pod = pod("reading").script("touch /r/x").restart("Never");
    let pod = pod.volume("r", "/r", json!({ "emptyDir": {} }));
    let read_only = json!({ "volumeMounts": [{ "name": "r", "mountPath": "/r", "readOnly": true }] });
    let pod = node.run(pod.container(read_only)).await?;
    let output = pod.output().await?;
    ensure!(output.contains("Read-only file system"), "{output:?}");
    Ok(())
}

async fn a_part_of_a_volume_is_mounted(node: Node) -> Result<()> {
    let mounts = json!([
        { "name": "e", "mountPath": "/whole" },
        { "name": "e", "mountPath": "/named", "subPath": "a/b" },
        { "name": "e", "mountPath": "/own", "subPathExpr": "of-$(NAME)" },
    ]);
    let name = json!([{ "name": "NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }]);
    let pod = pod("parted").script("echo 1 > /named/x; echo 2 > /own/y; cd /whole; find * -type f").restart("Never");
    let pod = pod.spec(json!({ "volumes": [{ "name": "e", "emptyDir": {} }] }));
    let pod = node.run(pod.container(json!({ "volumeMounts": mounts, "env": name }))).await?;
    let output = pod.output().await?;
    ensure!(output.contains("a/b/x") && output.contains("of-parted/y"), "{output:?}");
    Ok(())
}

async fn a_link_that_leads_out_of_a_volume_is_not_followed(node: Node) -> Result<()> {
    let volume = json!({ "volumes": [{ "name": "e", "emptyDir": {} }] });
    let set_up = json!([{
        "name": "link",
        "image": BUSYBOX,
        "command": ["sh", "-c", "ln -s /etc /e/out && mkdir /e/in && ln -s in /e/inside"],
        "volumeMounts": [{ "name": "e", "mountPath": "/e" }],
    }]);
    let within = json!({ "volumeMounts": [{ "name": "e", "mountPath": "/m", "subPath": "inside" }] });
    let out = json!({ "volumeMounts": [{ "name": "e", "mountPath": "/m", "subPath": "out" }] });
    let pod = pod("linked").spec(volume).spec(json!({ "initContainers": set_up }));
    let pod = node.run(pod.container(within).and_container("curious", "ls /m", out)).await?;
    pod.expect().running().container("curious").waiting("CreateContainerConfigError").await?;
    let message = pod.expect_event("Failed").await?;
    ensure!(message.contains("failed to prepare subPath for volumeMount \"e\" of container \"curious\""), "{message}");
    Ok(())
}

async fn mounts_propagate_where_it_is_asked_for(lab: Lab) -> Result<()> {
    const PLACE: &str = "/var/lib/propagation";
    let node = lab.node(|stack| stack).await?;
    let volume = |mode: &str| {
        let mounts = json!([{ "name": "h", "mountPath": "/h", "mountPropagation": mode }]);
        let volume = json!({ "name": "h", "hostPath": { "path": PLACE, "type": "DirectoryOrCreate" } });
        (json!({ "volumeMounts": mounts }), json!({ "volumes": [volume] }))
    };
    let (mount, volumes) = volume("None");
    let deaf = node.run(pod("deaf").container(mount).spec(volumes)).await?;
    let (mount, volumes) = volume("HostToContainer");
    let hears = node.run(pod("hears").container(mount).spec(volumes)).await?;
    let (mount, volumes) = volume("Bidirectional");
    let speaks = pod("speaks").container(mount).spec(volumes);
    let speaks = node.run(speaks.container(json!({ "securityContext": { "privileged": true } }))).await?;
    for pod in [&deaf, &hears, &speaks] {
        pod.expect().ready().await?;
    }
    speaks.exec("mkdir /h/new && mount -t tmpfs none /h/new && touch /h/new/seen").await?;
    ensure!(node.stack().run(&["ls", &format!("{PLACE}/new")]).await?.trim() == "seen");
    ensure!(hears.exec("ls /h/new").await?.trim() == "seen");
    ensure!(deaf.exec("ls /h/new").await?.trim().is_empty());
    // Or it would stay with the node.
    speaks.exec("umount /h/new").await.map(drop)
}

async fn config_map(node: &Node, name: &str, data: serde_json::Value) -> Result<()> {
    let object = json!({ "metadata": { "name": name }, "data": data });
    node.create::<ConfigMap>(object).await.map(drop)
}

async fn a_config_map_becomes_files(node: Node) -> Result<()> {
    config_map(&node, "config", json!({ "one": "1", "two": "2" })).await?;
    let source = json!({ "configMap": { "name": "config", "defaultMode": 0o440 } });
    let script = "cd /c; cat one two; echo; stat -L -c '%a %n' one; readlink ..data; readlink two";
    let pod = pod("reading").script(script).restart("Never").volume("c", "/c", source);
    let output = node.run(pod).await?.output().await?;
    expect_lines(&output, &["12", "440 one", "..data/two"])?;
    // The link that is switched when the contents change, to a directory named after the time.
    let data = output.lines().nth(2).unwrap_or_default();
    ensure!(data.starts_with("..20"), "..data leads to {data:?}");
    Ok(())
}

async fn keys_of_a_config_map_are_chosen_and_placed(node: Node) -> Result<()> {
    config_map(&node, "config", json!({ "one": "1", "two": "2" })).await?;
    let items = json!([{ "key": "two", "path": "deep/down/zwei", "mode": 0o400 }]);
    let source = json!({ "configMap": { "name": "config", "items": items } });
    let script = "cd /c; ls; stat -L -c '%a %s' deep/down/zwei; cat deep/down/zwei";
    let pod = pod("reading").script(script).restart("Never").volume("c", "/c", source);
    let output = node.run(pod).await?.output().await?;
    ensure!(output.trim() == "deep\n400 1\n2", "{output:?}");
    Ok(())
}

async fn another_volume_is_mounted_where_a_key_would_be(node: Node) -> Result<()> {
    config_map(&node, "config", json!({ "one": "1", "two": "2" })).await?;
    let items = json!([{ "key": "one", "path": "one" }, { "key": "two", "path": "deep/two" }]);
    let source = json!({ "configMap": { "name": "config", "items": items } });
    let script = "cd /c; ls -d *; echo here > deep/three; ls deep; cut -d' ' -f5 /proc/self/mountinfo | grep ^/c/";
    let pod = pod("reading").script(script).restart("Never").volume("c", "/c", source);
    let output = node.run(pod.volume("e", "/c/deep", json!({ "emptyDir": {} }))).await?.output().await?;
    ensure!(output.trim() == "deep\none\nthree\n/c/deep", "{output:?}");
    Ok(())
}

async fn an_optional_config_map_may_be_absent(node: Node) -> Result<()> {
    let source = json!({ "configMap": { "name": "absent", "optional": true } });
    let pod = pod("content").script("ls /c | wc -l").restart("Never").volume("c", "/c", source);
    ensure!(node.run(pod).await?.output().await? == "0\n");
    Ok(())
}

async fn a_missing_config_map_holds_up_the_pod_until_it_appears(node: Node) -> Result<()> {
    let source = json!({ "configMap": { "name": "late" } });
    let waiting = node.run(pod("waiting").volume("c", "/c", source)).await?;
    let bystander = node.run(pod("bystander")).await?;
    waiting.expect_failed_mount("configmap \"late\" not found").await?;
    waiting.expect().waiting("ContainerCreating").phase("Pending").await?;
    bystander.expect().ready().await?;

    config_map(&node, "late", json!({ "key": "here" })).await?;
    waiting.expect().ready().await?;
    ensure!(waiting.exec("cat /c/key").await? == "here");
    Ok(())
}

/// Waits until a shell command in the pod prints this.
async fn expect_content(pod: &PodHandle, script: &str, content: &str, within: u64) -> Result<()> {
    let goal = format!("{content:?} from {script:?} in pod {}", pod.name);
    poll::until(goal, Duration::from_secs(within), async || {
        let output = pod.exec(script).await?;
        Ok(match output.trim() == content {
            true => Look::Done(()),
            false => Look::NotYet(format!("{output:?}")),
        })
    })
    .await
}

async fn a_changed_config_map_reaches_the_pod_at_once(node: Node) -> Result<()> {
    config_map(&node, "config", json!({ "key": "old", "gone": "" })).await?;
    let source = json!({ "configMap": { "name": "config" } });
    let pod = node.run(pod("reading").volume("c", "/c", source)).await?;
    pod.expect().ready().await?;
    let change = json!({ "data": { "key": "new", "gone": null, "more": "" } });
    let api: Api<ConfigMap> = node.api();
    api.patch("config", &PatchParams::default(), &Patch::Merge(change)).await?;
    expect_content(&pod, "cd /c; echo $(cat key) $(ls)", "new key more", 5).await
}

async fn a_secret_becomes_files_in_memory(node: Node) -> Result<()> {
    let data = json!({ "word": "hidden" });
    node.create::<Secret>(json!({ "metadata": { "name": "secret" }, "stringData": data })).await?;
    let source = json!({ "secret": { "secretName": "secret", "defaultMode": 0o400 } });
    let script = "cat /s/word; echo; stat -L -c %a /s/word; grep ' /s ' /proc/mounts";
    let pod = pod("reading").script(script).restart("Never").volume("s", "/s", source);
    let output = node.run(pod).await?.output().await?;
    expect_lines(&output, &["hidden", "400"])?;
    ensure!(output.contains("tmpfs /s tmpfs"), "{output}");
    Ok(())
}

async fn the_pods_own_fields_become_files(node: Node) -> Result<()> {
    let field = |path: &str, field: &str| json!({ "path": path, "fieldRef": { "fieldPath": field } });
    let limit = json!({ "containerName": "main", "resource": "limits.memory", "divisor": "1Mi" });
    let items = json!([
        field("name", "metadata.name"),
        field("labels", "metadata.labels"),
        field("annotations", "metadata.annotations"),
        { "path": "limit", "resourceFieldRef": limit },
    ]);
    let pod = pod("reading")
        .script("cd /d; cat name; echo; cat labels; echo; cat annotations; echo; cat limit; echo")
        .restart("Never")
        .metadata(json!({ "labels": { "b": "2", "a": "1" }, "annotations": { "note": "a \"b\"" } }))
        .container(json!({ "resources": { "limits": { "memory": "32Mi" } } }))
        .volume("d", "/d", json!({ "downwardAPI": { "items": items } }));
    let output = node.run(pod).await?.output().await?;
    expect_lines(&output, &["reading", "a=\"1\"", "b=\"2\"", r#"note="a \"b\"""#, "32"])
}

async fn a_changed_label_reaches_the_pod_at_once(node: Node) -> Result<()> {
    let items = json!([{ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } }]);
    let pod = pod("reading").metadata(json!({ "labels": { "a": "old" } }));
    let pod = node.run(pod.volume("d", "/d", json!({ "downwardAPI": { "items": items } }))).await?;
    pod.expect().ready().await?;
    let change = json!({ "metadata": { "labels": { "a": "new" } } });
    let api: Api<Pod> = node.api();
    api.patch(&pod.name, &PatchParams::default(), &Patch::Merge(change)).await?;
    expect_content(&pod, "cat /d/labels", "a=\"new\"", 5).await
}

async fn sources_are_projected_into_one_directory(node: Node) -> Result<()> {
    config_map(&node, "config", json!({ "shared": "config", "c": "config" })).await?;
    let data = json!({ "shared": "secret", "s": "secret" });
    node.create::<Secret>(json!({ "metadata": { "name": "secret" }, "stringData": data })).await?;
    let name = json!({ "path": "name", "fieldRef": { "fieldPath": "metadata.name" } });
    let sources = json!([
        { "configMap": { "name": "config" } },
        { "secret": { "name": "secret" } },
        { "downwardAPI": { "items": [name] } },
        { "configMap": { "name": "absent", "optional": true } },
    ]);
    let pod = pod("reading").script("cd /p; for f in *; do echo $f $(cat $f); done");
    let pod = pod.restart("Never").volume("p", "/p", json!({ "projected": { "sources": sources } }));
    let output = node.run(pod).await?.output().await?;
    ensure!(output == "c config\nname reading\ns secret\nshared secret\n", "{output:?}");
    Ok(())
}

const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

async fn review(node: &Node, token: &str, audiences: &[&str]) -> Result<TokenReview> {
    let review = json!({ "metadata": {}, "spec": { "token": token, "audiences": audiences } });
    let api: Api<TokenReview> = Api::all(node.client());
    Ok(api.create(&PostParams::default(), &serde_json::from_value(review)?).await?)
}

async fn the_service_account_token_is_accepted(node: Node) -> Result<()> {
    let pod = node.run(pod("trusted")).await?;
    pod.expect().ready().await?;
    let token = pod.exec(&format!("cat {ACCOUNT}/token")).await?;
    let status = review(&node, &token, &[]).await?.status.context("a review")?;
    ensure!(status.authenticated == Some(true), "{status:?}");
    let user = status.user.context("a user")?;
    let expected = format!("system:serviceaccount:{}:default", node.namespace());
    ensure!(user.username.as_deref() == Some(expected.as_str()), "{user:?}");
    let extra = user.extra.unwrap_or_default();
    let bound = extra.get("authentication.kubernetes.io/pod-uid");
    ensure!(bound == Some(&vec![pod.uid.clone()]), "bound to {bound:?}");

    ensure!(pod.exec(&format!("cat {ACCOUNT}/namespace")).await? == node.namespace());
    let authority = pod.exec(&format!("cat {ACCOUNT}/ca.crt")).await?;
    ensure!(authority.starts_with("-----BEGIN CERTIFICATE-----"), "{authority:?}");
    Ok(())
}

async fn a_token_can_have_an_audience_and_an_end(node: Node) -> Result<()> {
    let token = json!({ "path": "token", "audience": "vault", "expirationSeconds": 700 });
    let source = json!({ "projected": { "sources": [{ "serviceAccountToken": token }] } });
    let pod = node.run(pod("trusted").volume("t", "/t", source)).await?;
    pod.expect().ready().await?;
    let token = pod.exec("cat /t/token").await?;
    let status = review(&node, &token, &["vault"]).await?.status.context("a review")?;
    ensure!(status.authenticated == Some(true), "{status:?}");
    let status = review(&node, &token, &[]).await?.status.context("a review")?;
    ensure!(status.authenticated != Some(true), "the API server takes it for itself: {status:?}");
    Ok(())
}

async fn a_group_owns_the_files_it_is_given(node: Node) -> Result<()> {
    config_map(&node, "config", json!({ "key": "value" })).await?;
    let user = json!({ "securityContext": { "runAsUser": 1234, "fsGroup": 4242 } });
    let pod = pod("grouped")
        .script("stat -L -c '%g %a' /e /c/key; touch /e/new; stat -c %g /e/new; id -G")
        .restart("Never")
        .spec(user)
        .volume("e", "/e", json!({ "emptyDir": {} }))
        .volume("c", "/c", json!({ "configMap": { "name": "config" } }));
    let output = node.run(pod).await?.output().await?;
    expect_lines(&output, &["4242 2777", "4242 644", "4242", "0 4242"])
}
