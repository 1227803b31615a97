//! Users, capabilities and the other fields of the security context.

use std::time::Duration;

use anyhow::{Result, ensure};
use ferrolet::cri::{ContainerId, Runtime, Scope};
use ferrolet::pod::PodUid;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use crate::harness::{Case, Lab, Node, PodBuilder, PodHandle, expect_lines, pod};
use crate::provision::NONROOT;
use crate::{own, shared};

pub const CASES: &[Case] = &[
    shared!(user_and_groups_are_set).in_subset(),
    shared!(a_container_overrides_its_pod),
    shared!(root_is_refused_where_it_must_not_be),
    shared!(a_named_user_proves_nothing),
    shared!(a_numeric_user_of_the_image_will_do),
    shared!(capabilities_are_added_and_dropped),
    shared!(new_privileges_can_be_forbidden),
    shared!(the_root_file_system_can_be_read_only),
    shared!(a_privileged_container_may_do_all),
    shared!(seccomp_can_be_the_runtimes),
    shared!(safe_sysctls_are_set),
    shared!(a_pod_has_users_of_its_own),
    shared!(two_pods_have_different_users),
    own!(users_of_a_pod_stay_over_a_restart_of_the_agent),
    shared!(a_runtime_class_that_is_missing_is_named),
    own!(a_runtime_class_names_the_handler),
    shared!(proc_can_be_unmasked_where_users_are_its_own),
    shared!(a_mount_is_read_only_with_all_below_it),
    shared!(an_image_can_be_a_volume),
    own!(a_pod_has_the_hostname_it_asks_for),
];

/// A pod that says who it is and what it may do.
fn telling(context: serde_json::Value) -> PodBuilder {
    let script = "id -u; id -G; grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status";
    pod("telling").script(script).restart("Never").container(json!({ "securityContext": context }))
}

async fn user_and_groups_are_set(node: Node) -> Result<()> {
    let context = json!({ "runAsUser": 1234, "runAsGroup": 2345, "supplementalGroups": [3456] });
    let pod = telling(json!({})).spec(json!({ "securityContext": context }));
    let output = node.run(pod).await?.output().await?;
    expect_lines(&output, &["1234", "2345 3456"])
}

async fn a_container_overrides_its_pod(node: Node) -> Result<()> {
    let pod = telling(json!({ "runAsUser": 99 }));
    let pod = pod.spec(json!({ "securityContext": { "runAsUser": 1234, "runAsGroup": 5 } }));
    expect_lines(&node.run(pod).await?.output().await?, &["99", "5"])
}

async fn refused(node: &Node, pod: PodBuilder, because: &'static str) -> Result<()> {
    let pod = node.run(pod).await?;
    pod.expect()
        .waiting("CreateContainerConfigError")
        .state(format!("message {because:?}"), move |state| {
            let waiting = state.waiting.as_ref().and_then(|waiting| waiting.message.as_deref());
            waiting.is_some_and(|message| message.contains(because))
        })
        .await?;
    Ok(())
}

async fn root_is_refused_where_it_must_not_be(node: Node) -> Result<()> {
    let pod = telling(json!({ "runAsNonRoot": true }));
    refused(&node, pod, "container has runAsNonRoot and image will run as root").await
}

async fn a_named_user_proves_nothing(node: Node) -> Result<()> {
    let pod = telling(json!({ "runAsNonRoot": true }));
    let pod = pod.container(json!({ "image": "ferrolet.test/named-user:1" }));
    let because = "container has runAsNonRoot and image has non-numeric user (user)";
    refused(&node, pod, because).await
}

async fn a_numeric_user_of_the_image_will_do(node: Node) -> Result<()> {
    let pod = telling(json!({ "runAsNonRoot": true })).container(json!({ "image": NONROOT }));
    expect_lines(&node.run(pod).await?.output().await?, &["1000"])
}

async fn capabilities_are_added_and_dropped(node: Node) -> Result<()> {
    let context = json!({ "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN", "CHOWN"] } });
    let output = node.run(telling(context)).await?.output().await?;
    // CHOWN is bit 0, NET_ADMIN bit 12.
    expect_lines(&output, &["CapEff:\t0000000000001001"])
}

async fn new_privileges_can_be_forbidden(node: Node) -> Result<()> {
    let output = node.run(telling(json!({ "allowPrivilegeEscalation": false }))).await?;
    expect_lines(&output.output().await?, &["NoNewPrivs:\t1"])
}

async fn the_root_file_system_can_be_read_only(node: Node) -> Result<()> {
    let context = json!({ "securityContext": { "readOnlyRootFilesystem": true } });
    let pod = pod("fixed").script("touch /x").restart("Never").container(context);
    let output = node.run(pod).await?.output().await?;
    ensure!(output.contains("Read-only file system"), "{output:?}");
    Ok(())
}

async fn a_privileged_container_may_do_all(node: Node) -> Result<()> {
    let pod = pod("mighty").script("mount -t tmpfs none /mnt").restart("Never");
    let pod = pod.container(json!({ "securityContext": { "privileged": true } }));
    let pod = pod.volume("mnt", "/mnt", json!({ "emptyDir": {} }));
    node.run(pod).await?.expect().phase("Succeeded").await?;
    Ok(())
}

async fn seccomp_can_be_the_runtimes(node: Node) -> Result<()> {
    let output = node.run(telling(json!({}))).await?.output().await?;
    expect_lines(&output, &["Seccomp:\t0"])?;
    let context = json!({ "seccompProfile": { "type": "RuntimeDefault" } });
    let filtered = telling(context).metadata(json!({ "name": "filtered" }));
    expect_lines(&node.run(filtered).await?.output().await?, &["Seccomp:\t2"])
}

async fn safe_sysctls_are_set(node: Node) -> Result<()> {
    let sysctls = json!([{ "name": "net.ipv4.ip_unprivileged_port_start", "value": "80" }]);
    let pod = pod("tuned").script("cat /proc/sys/net/ipv4/ip_unprivileged_port_start");
    let pod = pod.restart("Never").spec(json!({ "securityContext": { "sysctls": sysctls } }));
    ensure!(node.run(pod).await?.output().await? == "80\n");
    Ok(())
}

/// Prints the mapping of its users, what it sees of files, and what it writes.
fn own_users(name: &str) -> PodBuilder {
    let script = "cat /proc/self/uid_map; stat -c 'owner %u' /data /etc/hosts; touch /data/file; sleep 1000000";
    pod(name).script(script).volume("data", "/data", json!({ "emptyDir": {} })).spec(json!({ "hostUsers": false }))
}

/// The first id on the node of the pod's users, as its process sees it.
async fn first_id(pod: &PodHandle) -> Result<u32> {
    let map = pod.exec("cat /proc/self/uid_map").await?;
    let fields: Vec<_> = map.split_whitespace().collect();
    ensure!(matches!(fields.as_slice(), ["0", _, "65536"]), "map {map:?}");
    Ok(fields[1].parse()?)
}

/// Whether the runtime can give a pod users of its own: an old runc cannot.
async fn can_map_users(node: &Node) -> Result<bool> {
    let status = node.runtime()?.status().await?;
    Ok(status.handlers.iter().any(|handler| handler.name.is_empty() && handler.user_namespaces))
}

/// Less isolation than was asked for is not an answer.
async fn expect_refused_users(pod: &PodHandle) -> Result<()> {
    let message = pod.expect_event("FailedCreatePodSandBox").await?;
    let because = "can't set `spec.hostUsers: false`, runtime does not support user namespaces";
    ensure!(message.contains(because), "{message}");
    pod.expect().phase("Pending").await?;
    Ok(())
}

async fn a_pod_has_users_of_its_own(node: Node) -> Result<()> {
    let pod = node.run(own_users("apart")).await?;
    if !can_map_users(&node).await? {
        return expect_refused_users(&pod).await;
    }
    pod.expect().ready().await?;
    let first = first_id(&pod).await?;
    ensure!(first >= 65536, "first id {first}");
    pod.expect_log("owner 0\nowner 0\n").await?;
    let dir = node.stack().on_node(&format!("/var/lib/kubelet/pods/{}", pod.uid));
    let text = std::fs::read_to_string(dir.join("userns"))?;
    let file: serde_json::Value = serde_json::from_str(&text)?;
    let expected = json!([{ "hostId": first, "containerId": 0, "length": 65536 }]);
    ensure!(file == json!({ "uidMappings": expected, "gidMappings": expected }), "{text}");
    // What it writes as root belongs to root outside too: the ids are mapped at the mount.
    let written = std::fs::metadata(dir.join("volumes/kubernetes.io~empty-dir/data/file"))?;
    ensure!(std::os::unix::fs::MetadataExt::uid(&written) == 0);
    Ok(())
}

async fn two_pods_have_different_users(node: Node) -> Result<()> {
    let one = node.run(own_users("one")).await?;
    let other = node.run(own_users("other")).await?;
    if !can_map_users(&node).await? {
        return expect_refused_users(&other).await;
    }
    one.expect().ready().await?;
    other.expect().ready().await?;
    ensure!(first_id(&one).await? != first_id(&other).await?);
    Ok(())
}

async fn users_of_a_pod_stay_over_a_restart_of_the_agent(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let before = node.run(own_users("before")).await?;
    if !can_map_users(&node).await? {
        return expect_refused_users(&before).await;
    }
    before.expect().ready().await?;
    let first = first_id(&before).await?;
    node.stack().agent().kill().await?;
    node.stack().agent().start().await?;
    let after = node.run(own_users("after")).await?;
    after.expect().ready().await?;
    ensure!(first_id(&before).await? == first && first_id(&after).await? != first);
    // A new container of the old pod lives among the old users.
    before.exec("kill -9 1; kill 1; true").await.ok();
    let id = before.instance().await?.0;
    node.runtime()?.stop_container(&ContainerId::new(id.trim_start_matches("containerd://")), Duration::ZERO).await?;
    before.expect().restarts(1).ready().await?;
    ensure!(first_id(&before).await? == first);
    Ok(())
}

async fn a_runtime_class_that_is_missing_is_named(node: Node) -> Result<()> {
    // The API server would refuse a pod with a class that is not there.
    let class = format!("gone-{}", node.namespace());
    let classes: Api<RuntimeClass> = Api::all(node.client());
    let object = serde_json::from_value(json!({ "metadata": { "name": class }, "handler": "nobody-knows-it" }))?;
    classes.create(&PostParams::default(), &object).await?;
    let pod = node.run(pod("classy").spec(json!({ "runtimeClassName": class }))).await;
    classes.delete(&class, &DeleteParams::default()).await?;
    let message = pod?.expect_event("FailedCreatePodSandBox").await?;
    ensure!(message.contains("nobody-knows-it") || message.contains(&class), "{message}");
    Ok(())
}

async fn a_runtime_class_names_the_handler(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let classes: Api<RuntimeClass> = Api::all(node.client());
    let overhead = json!({ "podFixed": { "memory": "32Mi" } });
    let object = json!({ "metadata": { "name": "plain" }, "handler": "runc", "overhead": overhead });
    classes.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    let limits = json!({ "limits": { "memory": "64Mi", "cpu": "100m" } });
    let pod = pod("classy").container(json!({ "resources": limits })).spec(json!({ "runtimeClassName": "plain" }));
    let pod = node.run(pod).await?;
    pod.expect().ready().await?;
    let sandboxes = node.runtime()?.list_sandboxes(&Scope::Pod(PodUid::new(&pod.uid))).await?;
    ensure!(sandboxes[0].runtime_handler == "runc", "handler {:?}", sandboxes[0].runtime_handler);
    Ok(())
}

async fn proc_can_be_unmasked_where_users_are_its_own(node: Node) -> Result<()> {
    let masked = node.run(pod("masked").script("grep -c ' /proc/' /proc/mounts").restart("Never")).await?;
    ensure!(masked.output().await?.trim() != "0");
    let context = json!({ "securityContext": { "procMount": "Unmasked" } });
    let bare = pod("bare").script("grep -c ' /proc/' /proc/mounts").restart("Never").container(context);
    let bare = node.run(bare.spec(json!({ "hostUsers": false }))).await?;
    if !can_map_users(&node).await? {
        return expect_refused_users(&bare).await;
    }
    let output = bare.output().await?;
    ensure!(output.trim() == "0", "{output:?}");
    Ok(())
}

async fn a_mount_is_read_only_with_all_below_it(node: Node) -> Result<()> {
    let mount = json!([{ "name": "host", "mountPath": "/host", "readOnly": true, "recursiveReadOnly": "Enabled" }]);
    let pod = pod("fixed").script("touch /host/dev/shm/x; echo done").restart("Never");
    let pod = pod.container(json!({ "volumeMounts": mount }));
    let pod = pod.spec(json!({ "volumes": [{ "name": "host", "hostPath": { "path": "/" } }] }));
    let pod = node.run(pod).await?;
    let output = pod.output().await?;
    ensure!(output.contains("Read-only file system"), "{output:?}");
    let told = pod.get().await?.status.and_then(|status| status.container_statuses).unwrap_or_default();
    let mounts = told.first().and_then(|status| status.volume_mounts.clone()).unwrap_or_default();
    let told =
        mounts.iter().find(|mount| mount.mount_path == "/host").and_then(|mount| mount.recursive_read_only.clone());
    ensure!(told.as_deref() == Some("Enabled"), "{told:?}");
    Ok(())
}

async fn an_image_can_be_a_volume(node: Node) -> Result<()> {
    let pod = pod("reader").script("ls /image; touch /image/x; ls /image-bin").restart("Never");
    let pod = pod.container(json!({ "volumeMounts": [
        { "name": "image", "mountPath": "/image" },
        { "name": "image", "mountPath": "/image-bin", "subPath": "bin" },
    ] }));
    let pod = pod.spec(json!({ "volumes": [{ "name": "image", "image": { "reference": NONROOT } }] }));
    let output = node.run(pod).await?.output().await?;
    expect_lines(&output, &["bin"])?;
    ensure!(output.contains("Read-only file system"), "{output:?}");
    Ok(())
}

async fn a_pod_has_the_hostname_it_asks_for(lab: Lab) -> Result<()> {
    // The namespace of a shared node is too long a name for what the kernel takes.
    let node = lab.node(|stack| stack).await?;
    let script = "hostname; grep -o 'web.*' /etc/hosts";
    let named = pod("named").script(script).restart("Never");
    let named = named.spec(json!({ "hostname": "web", "subdomain": "shop", "setHostnameAsFQDN": true }));
    let output = node.run(named).await?.output().await?;
    let name = "web.shop.default.svc.cluster.local";
    expect_lines(&output, &[name, &format!("{name}\tweb")])?;
    let other = pod("other").script("hostname").restart("Never").spec(json!({ "hostnameOverride": "over.ridden" }));
    expect_lines(&node.run(other).await?.output().await?, &["over.ridden"])
}
