//! What a container finds in its environment, and how its command is made.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use serde_json::{Value, json};

use crate::harness::{Case, Node, PodBuilder, expect_lines, pod};
use crate::provision::BUSYBOX;
use crate::shared;

pub const CASES: &[Case] = &[
    shared!(variables_are_expanded).in_subset(),
    shared!(command_and_arguments_are_expanded),
    shared!(fields_of_the_pod_are_variables).in_subset(),
    shared!(resources_of_the_container_are_variables),
    shared!(config_maps_and_secrets_are_variables).in_subset(),
    shared!(whole_config_maps_and_secrets_are_variables),
    shared!(a_secret_that_is_no_text_holds_nobody_up),
    shared!(a_command_cannot_hold_what_is_no_text),
    shared!(services_are_variables),
    shared!(service_variables_can_be_declined),
    shared!(the_working_directory_is_set),
    shared!(a_missing_config_map_holds_up_only_its_container).in_subset(),
    shared!(a_missing_key_is_named),
    shared!(a_file_in_a_volume_gives_variables),
    shared!(a_file_of_variables_that_is_missing_or_broken_is_named),
];

/// A pod that prints its environment and ends.
fn printing(env: Value) -> PodBuilder {
    pod("printing").script("env").restart("Never").container(json!({ "env": env }))
}

async fn variables_are_expanded(node: Node) -> Result<()> {
    let env = json!([
        { "name": "FIRST", "value": "one" },
        { "name": "SECOND", "value": "$(FIRST) and two" },
        { "name": "ESCAPED", "value": "$$(FIRST)" },
        { "name": "UNKNOWN", "value": "$(NOBODY)" },
        { "name": "LATER", "value": "$(LAST)" },
        { "name": "LAST", "value": "last" },
        { "name": "EMPTY" },
    ]);
    let output = node.run(printing(env)).await?.output().await?;
    expect_lines(&output, &["SECOND=one and two", "ESCAPED=$(FIRST)", "UNKNOWN=$(NOBODY)", "LATER=$(LAST)", "EMPTY="])
}

async fn command_and_arguments_are_expanded(node: Node) -> Result<()> {
    let container = json!({
        "env": [{ "name": "WORD", "value": "hello" }],
        "command": ["echo", "$(WORD)"],
        "args": ["$(WORD) again", "$$(WORD)", "$(NOBODY)"],
    });
    let pod = node.run(pod("expanded").restart("Never").container(container)).await?;
    let output = pod.output().await?;
    ensure!(output == "hello hello again $(WORD) $(NOBODY)\n", "{output:?}");
    Ok(())
}

async fn fields_of_the_pod_are_variables(node: Node) -> Result<()> {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let env = json!([
        field("NAME", "metadata.name"),
        field("NAMESPACE", "metadata.namespace"),
        field("UID", "metadata.uid"),
        field("LABEL", "metadata.labels['app']"),
        field("ANNOTATION", "metadata.annotations['example.com/note']"),
        field("NODE", "spec.nodeName"),
        field("ACCOUNT", "spec.serviceAccountName"),
        field("HOST_IP", "status.hostIP"),
        field("POD_IP", "status.podIP"),
    ]);
    let metadata = json!({
        "labels": { "app": "labelled" },
        "annotations": { "example.com/note": "a note" },
    });
    let pod = node.run(printing(env).metadata(metadata)).await?;
    let output = pod.output().await?;
    let status = pod.get().await?.status.context("a status")?;
    expect_lines(
        &output,
        &[
            "NAME=printing",
            &format!("NAMESPACE={}", node.namespace()),
            &format!("UID={}", pod.uid),
            "LABEL=labelled",
            "ANNOTATION=a note",
            &format!("NODE={}", node.name()),
            "ACCOUNT=default",
            &format!("HOST_IP={}", node.stack().node_address()),
            &format!("POD_IP={}", status.pod_ip.context("an address")?),
        ],
    )
}

async fn resources_of_the_container_are_variables(node: Node) -> Result<()> {
    let resource = |name: &str, resource: &str, divisor: &str| {
        let source = json!({ "resource": resource, "divisor": divisor });
        json!({ "name": name, "valueFrom": { "resourceFieldRef": source } })
    };
    let env = json!([
        resource("REQUEST", "requests.cpu", "1m"),
        resource("LIMIT", "limits.cpu", "1"),
        resource("MEMORY", "limits.memory", "1Mi"),
        resource("BYTES", "requests.memory", "0"),
    ]);
    let resources = json!({ "resources": {
        "requests": { "cpu": "250m", "memory": "16Mi" },
        "limits": { "cpu": "1500m", "memory": "32Mi" },
    } });
    let output = node.run(printing(env).container(resources)).await?.output().await?;
    expect_lines(&output, &["REQUEST=250", "LIMIT=2", "MEMORY=32", "BYTES=16777216"])
}

async fn config_maps_and_secrets_are_variables(node: Node) -> Result<()> {
    node.create::<ConfigMap>(json!({ "metadata": { "name": "config" }, "data": { "key": "plain" } })).await?;
    node.create::<Secret>(json!({ "metadata": { "name": "secret" }, "stringData": { "key": "hidden" } })).await?;
    let reference = |name: &str, kind: &str, object: &str, key: &str, optional: bool| {
        let source = json!({ "name": object, "key": key, "optional": optional });
        json!({ "name": name, "valueFrom": { kind: source } })
    };
    let env = json!([
        reference("CONFIG", "configMapKeyRef", "config", "key", false),
        reference("SECRET", "secretKeyRef", "secret", "key", false),
        reference("NO_KEY", "configMapKeyRef", "config", "absent", true),
        reference("NO_OBJECT", "secretKeyRef", "absent", "key", true),
        { "name": "BOTH", "value": "$(CONFIG) $(SECRET)" },
    ]);
    let output = node.run(printing(env)).await?.output().await?;
    expect_lines(&output, &["CONFIG=plain", "SECRET=hidden", "BOTH=plain hidden"])?;
    ensure!(!output.contains("NO_KEY") && !output.contains("NO_OBJECT"), "{output}");
    Ok(())
}

async fn whole_config_maps_and_secrets_are_variables(node: Node) -> Result<()> {
    let data = json!({ "A": "config", "B": "config" });
    node.create::<ConfigMap>(json!({ "metadata": { "name": "config" }, "data": data })).await?;
    let data = json!({ "B": "secret", "C": "secret" });
    node.create::<Secret>(json!({ "metadata": { "name": "secret" }, "stringData": data })).await?;
    let from = json!({ "envFrom": [
        { "configMapRef": { "name": "config" } },
        { "secretRef": { "name": "secret" } },
        { "prefix": "P_", "configMapRef": { "name": "config" } },
        { "configMapRef": { "name": "absent", "optional": true } },
    ] });
    let env = json!([{ "name": "C", "value": "own" }]);
    let output = node.run(printing(env).container(from)).await?.output().await?;
    // Later sources win over earlier ones, and variables of the container's own over all.
    expect_lines(&output, &["A=config", "B=secret", "C=own", "P_A=config", "P_B=config"])
}

async fn a_secret_that_is_no_text_holds_nobody_up(node: Node) -> Result<()> {
    // The byte 0xff and the word "plain".
    let data = json!({ "KEYSTORE": "/w==", "PLAIN": "cGxhaW4=" });
    node.create::<Secret>(json!({ "metadata": { "name": "mixed" }, "data": data })).await?;
    let from = json!({ "envFrom": [{ "secretRef": { "name": "mixed" } }] });
    let key = json!({ "secretKeyRef": { "name": "mixed", "key": "KEYSTORE" } });
    let env = json!([
        { "name": "STORE", "valueFrom": key },
        { "name": "BOTH", "value": "<$(STORE)>" },
    ]);
    let pod = printing(env).script("echo $PLAIN; [ -n \"$KEYSTORE\" ] && [ \"<$STORE>\" = \"$BOTH\" ] && echo same");
    let output = node.run(pod.container(from)).await?.output().await?;
    ensure!(output == "plain\nsame\n", "{output:?}");
    Ok(())
}

async fn a_command_cannot_hold_what_is_no_text(node: Node) -> Result<()> {
    node.create::<Secret>(json!({ "metadata": { "name": "store" }, "data": { "key": "/w==" } })).await?;
    let key = json!({ "secretKeyRef": { "name": "store", "key": "key" } });
    let container = json!({
        "env": [{ "name": "STORE", "valueFrom": key }],
        "command": ["echo", "$(STORE)"],
    });
    let pod = node.run(pod("refused").container(container)).await?;
    let message = pod.expect_event("Failed").await?;
    ensure!(message.contains("UTF-8"), "{message}");
    Ok(())
}

async fn services_are_variables(node: Node) -> Result<()> {
    let ports = json!([
        { "name": "http", "port": 80 },
        { "name": "dns", "port": 53, "protocol": "UDP" },
    ]);
    let service = json!({ "metadata": { "name": "back-end" }, "spec": { "ports": ports } });
    let service: Service = node.create(service).await?;
    let address = service.spec.and_then(|spec| spec.cluster_ip).context("a cluster address")?;
    let output = node.run(printing(json!([]))).await?.output().await?;
    expect_lines(
        &output,
        &[
            "KUBERNETES_SERVICE_HOST=10.96.0.1",
            "KUBERNETES_SERVICE_PORT=443",
            "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
            &format!("BACK_END_SERVICE_HOST={address}"),
            "BACK_END_SERVICE_PORT=80",
            "BACK_END_SERVICE_PORT_DNS=53",
            &format!("BACK_END_PORT=tcp://{address}:80"),
            &format!("BACK_END_PORT_53_UDP=udp://{address}:53"),
            "BACK_END_PORT_53_UDP_PROTO=udp",
        ],
    )
}

async fn service_variables_can_be_declined(node: Node) -> Result<()> {
    let service = json!({ "metadata": { "name": "back-end" }, "spec": { "ports": [{ "port": 80 }] } });
    node.create::<Service>(service).await?;
    let pod = printing(json!([])).spec(json!({ "enableServiceLinks": false }));
    let output = node.run(pod).await?.output().await?;
    expect_lines(&output, &["KUBERNETES_SERVICE_HOST=10.96.0.1"])?;
    ensure!(!output.contains("BACK_END"), "{output}");
    Ok(())
}

async fn the_working_directory_is_set(node: Node) -> Result<()> {
    let pod = pod("elsewhere").script("pwd").restart("Never");
    let output = node.run(pod.container(json!({ "workingDir": "/usr/bin" }))).await?.output().await?;
    ensure!(output == "/usr/bin\n", "{output:?}");
    Ok(())
}

async fn a_missing_config_map_holds_up_only_its_container(node: Node) -> Result<()> {
    let reference = json!({ "configMapKeyRef": { "name": "late", "key": "key" } });
    let env = json!([{ "name": "LATE", "valueFrom": reference }]);
    let waiting = pod("waiting").container(json!({ "env": env })).and_container("other", "sleep 1000000", json!({}));
    let waiting = node.run(waiting).await?;
    waiting
        .expect()
        .waiting("CreateContainerConfigError")
        .state("told of the config map", |state| {
            let waiting = state.waiting.as_ref().and_then(|waiting| waiting.message.as_deref());
            waiting == Some("configmap \"late\" not found")
        })
        .container("other")
        .running()
        .await?;

    node.create::<ConfigMap>(json!({ "metadata": { "name": "late" }, "data": { "key": "here" } })).await?;
    waiting.expect().ready().await?;
    let output = waiting.exec("cat /proc/1/environ").await?;
    ensure!(output.contains("LATE=here"), "{output:?}");
    Ok(())
}

async fn a_missing_key_is_named(node: Node) -> Result<()> {
    node.create::<ConfigMap>(json!({ "metadata": { "name": "config" }, "data": {} })).await?;
    let reference = json!({ "configMapKeyRef": { "name": "config", "key": "absent" } });
    let pod = node.run(printing(json!([{ "name": "X", "valueFrom": reference }]))).await?;
    let expected = format!("couldn't find key absent in ConfigMap {}/config", node.namespace());
    pod.expect()
        .waiting("CreateContainerConfigError")
        .state("told of the key", move |state| {
            let waiting = state.waiting.as_ref().and_then(|waiting| waiting.message.as_ref());
            waiting == Some(&expected)
        })
        .await?;
    Ok(())
}

fn from_file(path: &str, key: &str, more: Value) -> Value {
    let mut selector = json!({ "volumeName": "notes", "path": path, "key": key });
    selector.as_object_mut().expect("it is one").extend(more.as_object().cloned().unwrap_or_default());
    json!({ "name": key, "valueFrom": { "fileKeyRef": selector } })
}

/// A pod whose init container runs `script` where it may write to the volume.
fn with_notes(name: &str, script: &str) -> PodBuilder {
    let mount = json!([{ "name": "notes", "mountPath": "/notes" }]);
    let writer = json!({
        "name": "writer", "image": BUSYBOX, "command": ["sh", "-c", script], "volumeMounts": mount,
    });
    let volume = json!({ "name": "notes", "emptyDir": {} });
    pod(name).spec(json!({ "initContainers": [writer], "volumes": [volume] }))
}

async fn a_file_in_a_volume_gives_variables(node: Node) -> Result<()> {
    let file = r#"# what was found out
FIRST='one'  # and nothing more
LINES='a
b $HOME "c"'
"#;
    let write = format!("mkdir /notes/deep; cat > /notes/deep/vars <<'END'\n{file}END\nln -s deep/vars /notes/link");
    let env = json!([
        from_file("deep/vars", "FIRST", json!({})),
        from_file("link", "LINES", json!({})),
        from_file("deep/vars", "NONE", json!({ "optional": true })),
        { "name": "USED", "value": "$(FIRST) and two" },
    ]);
    let told = with_notes("told", &write).script("env").restart("Never").container(json!({ "env": env }));
    let output = node.run(told).await?.output().await?;
    expect_lines(&output, &["FIRST=one", "LINES=a", "b $HOME \"c\"", "USED=one and two"])?;
    ensure!(!output.contains("NONE"), "{output:?}");
    Ok(())
}

async fn a_file_of_variables_that_is_missing_or_broken_is_named(node: Node) -> Result<()> {
    let write = "echo \"GOOD='x'\" > /notes/good; echo 'BAD=x' > /notes/bad; ln -s /etc/passwd /notes/out";
    let refers = |env: Value| json!({ "env": [env] });
    let waiting = with_notes("waiting", write)
        .container(refers(from_file("good", "ABSENT", json!({}))))
        .and_container("broken", "env", refers(from_file("bad", "BAD", json!({}))))
        .and_container("missing", "env", refers(from_file("none", "NONE", json!({ "optional": true }))))
        .and_container("outside", "env", refers(from_file("out", "ROOT", json!({}))));
    let waiting = node.run(waiting).await?;
    for (container, text) in [
        ("main", "environment variable key \"ABSENT\" not found in file \""),
        ("broken", "couldn't parse env file"),
        ("missing", "couldn't parse env file"),
        ("outside", "couldn't parse env file"),
    ] {
        let told = waiting.expect().container(container).waiting("CreateContainerConfigError");
        told.state(format!("told {text:?}"), move |state| {
            let message = state.waiting.as_ref().and_then(|waiting| waiting.message.as_deref());
            message.is_some_and(|message| message.starts_with(text))
        })
        .await?;
    }
    Ok(())
}
