//! Users, capabilities and the other fields of the security context.

use anyhow::{Result, ensure};
use ferrolet::cri::{Runtime, Scope};
use ferrolet::pod::PodUid;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use crate::harness::{Case, Lab, Node, PodBuilder, expect_lines, pod};
use crate::provision::NONROOT;
use crate::{own, shared};

pub const CASES: &[Case] = &[
    shared!(user_and_groups_are_set).in_subset(),
    shared!(groups_of_the_image_count_unless_the_pod_is_strict),
    shared!(a_container_overrides_its_pod),
    shared!(root_is_refused_where_it_must_not_be),
    shared!(a_named_user_proves_nothing),
    shared!(a_numeric_user_of_the_image_will_do),
    shared!(capabilities_are_added_and_dropped),
    shared!(new_privileges_can_be_forbidden),
    shared!(the_root_file_system_can_be_read_only),
    shared!(a_privileged_container_may_do_all),
    shared!(seccomp_can_be_the_runtimes),
    own!(seccomp_can_be_a_profile_of_the_node),
    shared!(a_container_can_have_a_terminal_and_an_open_input),
    shared!(safe_sysctls_are_set),
    shared!(a_runtime_class_that_is_missing_is_named),
    own!(a_runtime_class_names_the_handler),
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

async fn groups_of_the_image_count_unless_the_pod_is_strict(node: Node) -> Result<()> {
    for (policy, groups) in [("Merge", "1000 2000 3456"), ("Strict", "1000 3456")] {
        let name = policy.to_lowercase();
        let context = json!({ "runAsUser": 1000, "supplementalGroups": [3456], "supplementalGroupsPolicy": policy });
        let script = "id -G | tr ' ' '\\n' | sort -n | xargs";
        let pod = pod(&name).script(script).restart("Never").spec(json!({ "securityContext": context }));
        expect_lines(&node.run(pod).await?.output().await?, &[groups])?;
    }
    Ok(())
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

async fn seccomp_can_be_a_profile_of_the_node(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let denied = json!({ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" });
    let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [denied] });
    node.stack().write("/var/lib/kubelet/seccomp/own/profile.json", profile.to_string())?;
    let of_node = |place: &str| json!({ "seccompProfile": { "type": "Localhost", "localhostProfile": place } });
    let pod = pod("held").script("mkdir /tmp/x; touch /tmp/y && echo touched").restart("Never");
    let held = pod.container(json!({ "securityContext": of_node("own/profile.json") }));
    let output = node.run(held).await?.output().await?;
    ensure!(output.contains("Operation not permitted") && output.contains("touched"), "{output:?}");
    let lost = telling(of_node("own/absent.json"));
    node.run(lost).await?.expect().waiting("CreateContainerError").await?;
    Ok(())
}

async fn a_container_can_have_a_terminal_and_an_open_input(node: Node) -> Result<()> {
    let pod = pod("talking").script("tty; stty size >/dev/null && echo a terminal; exec sleep 1000000");
    let pod = pod
        .container(json!({ "tty": true, "stdin": true }))
        // Nobody ever writes, and still it does not end.
        .and_container("open", "cat; echo ended; exec sleep 1000000", json!({ "stdin": true }))
        .and_container("closed", "cat; echo ended; exec sleep 1000000", json!({}));
    let pod = node.run(pod).await?;
    pod.expect().ready().await?;
    pod.expect_log_of("main", 0, "/dev/pts/").await?;
    pod.expect_log_of("main", 0, "a terminal").await?;
    pod.expect_log_of("closed", 0, "ended").await?;
    let open = pod.log_of("open", 0)?;
    ensure!(!open.contains("ended"), "{open:?}");
    Ok(())
}

async fn safe_sysctls_are_set(node: Node) -> Result<()> {
    let sysctls = json!([
        { "name": "net.ipv4.ip_unprivileged_port_start", "value": "80" },
        { "name": "net/ipv4/tcp_syncookies", "value": "0" },
    ]);
    let pod = pod("tuned").script("cd /proc/sys/net/ipv4; cat ip_unprivileged_port_start tcp_syncookies");
    let pod = pod.restart("Never").spec(json!({ "securityContext": { "sysctls": sysctls } }));
    ensure!(node.run(pod).await?.output().await? == "80\n0\n");
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
