//! Addresses, names and ports.

use anyhow::{Context, Result, bail, ensure};
use ferrolet::cri::{ContainerId, Runtime, Scope};
use ferrolet::pod::PodUid;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Case, Lab, Node, PodBuilder, PodCgroup, PodHandle, WITHIN, expect_lines, pod};
use crate::poll::{self, Look};
use crate::stack::Builder;
use crate::{own, shared};

pub const CASES: &[Case] = &[
    shared!(pods_reach_each_other).in_subset(),
    shared!(a_pod_on_the_host_network_has_the_nodes_address).in_subset(),
    shared!(a_host_port_leads_to_the_pod).in_subset(),
    shared!(a_sandbox_that_died_gives_its_address_back),
    shared!(the_hosts_file_names_the_pod_and_its_aliases),
    shared!(the_hosts_file_of_the_host_network_is_the_nodes),
    shared!(a_host_name_and_a_domain_can_be_chosen),
    shared!(names_are_looked_up_in_the_cluster_first).in_subset(),
    shared!(names_can_be_looked_up_as_the_node_does),
    own!(the_nodes_names_are_read_anew_for_each_pod),
    shared!(names_can_be_looked_up_by_the_pods_own_rules),
    shared!(the_host_network_falls_back_to_the_nodes_names),
    own!(what_is_wrong_with_name_servers_is_told),
    shared!(containers_can_share_their_processes),
    shared!(host_namespaces_are_the_nodes),
];

fn server(name: &str, port: u16) -> PodBuilder {
    pod(name).script(&format!("echo {name} > /tmp/index.html; exec httpd -f -p {port} -h /tmp"))
}

async fn address(pod: &PodHandle) -> Result<String> {
    let status = pod.expect().ready().await?.status.context("a status")?;
    status.pod_ip.context("an address")
}

async fn pods_reach_each_other(node: Node) -> Result<()> {
    let server = node.run(server("server", 8080)).await?;
    let address = address(&server).await?;
    // The server listens a moment after its container runs.
    let script = format!("until wget -q -O - http://{address}:8080/; do sleep 0.1; done");
    let client = node.run(pod("client").script(&script).restart("Never")).await?;
    client.expect().phase("Succeeded").await?;
    ensure!(client.log()?.ends_with("server\n"), "{:?}", client.log()?);
    Ok(())
}

async fn a_pod_on_the_host_network_has_the_nodes_address(node: Node) -> Result<()> {
    let pod = pod("host").script("hostname; ip -o -4 address show eth0; sleep 1000000");
    let pod = node.run(pod.spec(json!({ "hostNetwork": true }))).await?;
    let expected = node.stack().node_address().to_string();
    ensure!(address(&pod).await? == expected);
    pod.expect_log(&expected).await?;
    ensure!(pod.log()?.starts_with(node.name()), "{:?}", pod.log()?);
    Ok(())
}

async fn a_host_port_leads_to_the_pod(node: Node) -> Result<()> {
    let ports = json!({ "ports": [{ "containerPort": 8080, "hostPort": 18080 }] });
    let pod = node.run(server("ported", 8080).container(ports)).await?;
    pod.expect().ready().await?;
    poll::until("the server's answer at the host port", WITHIN, async || {
        Ok(match page(&node, 18080).await {
            Ok(answer) if answer.ends_with("ported\n") => Look::Done(()),
            Ok(answer) => Look::NotYet(format!("{answer:?}")),
            // It listens a moment after its container runs.
            Err(error) => Look::NotYet(error.to_string()),
        })
    })
    .await
}

async fn page(node: &Node, port: u16) -> std::io::Result<String> {
    let mut connection = TcpStream::connect((node.stack().node_address(), port)).await?;
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn a_sandbox_that_died_gives_its_address_back(node: Node) -> Result<()> {
    let unlucky = node.run(pod("unlucky").script("sleep 1000000")).await?;
    unlucky.expect().ready().await?;
    let runtime = node.runtime()?;
    let sandboxes = runtime.list_sandboxes(&Scope::Pod(PodUid::new(&unlucky.uid))).await?;
    let [sandbox] = sandboxes.as_slice() else { bail!("one sandbox was to be there: {sandboxes:?}") };
    for pid in PodCgroup::of(&unlucky, "BestEffort").of_container(&ContainerId::new(sandbox.id.as_str())).processes()? {
        let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
        ensure!(killed.success(), "kill {pid}");
    }
    unlucky.expect().restarts(1).ready().await?;
    // It is kept with the container that died in it; what it had of the network is not.
    let old = runtime.sandbox_status(&sandbox.id).await?;
    ensure!(old.ips.is_empty(), "{old:?}");
    Ok(())
}

async fn the_hosts_file_names_the_pod_and_its_aliases(node: Node) -> Result<()> {
    let aliases = json!({ "hostAliases": [{ "ip": "192.0.2.7", "hostnames": ["seven", "sept"] }] });
    let pod = node.run(pod("named").script("cat /etc/hosts").restart("Never").spec(aliases)).await?;
    let output = pod.output().await?;
    let address = pod.get().await?.status.and_then(|status| status.pod_ip).context("an address")?;
    expect_lines(
        &output,
        &[
            "# Kubernetes-managed hosts file.",
            "127.0.0.1\tlocalhost",
            &format!("{address}\tnamed"),
            "# Entries added by HostAliases.",
            "192.0.2.7\tseven\tsept",
        ],
    )
}

async fn the_hosts_file_of_the_host_network_is_the_nodes(node: Node) -> Result<()> {
    let pod = pod("named").script("cat /etc/hosts").restart("Never");
    let pod = node.run(pod.spec(json!({ "hostNetwork": true }))).await?;
    let own = format!("{} {}", node.stack().node_address(), node.name());
    let header = "# Kubernetes-managed hosts file (host network).";
    expect_lines(&pod.output().await?, &[header, &own])
}

async fn a_host_name_and_a_domain_can_be_chosen(node: Node) -> Result<()> {
    let pod = pod("plain").script("hostname; hostname -f").restart("Never");
    let pod = node.run(pod.spec(json!({ "hostname": "chosen", "subdomain": "group" }))).await?;
    let full = format!("chosen.group.{}.svc.cluster.local", node.namespace());
    expect_lines(&pod.output().await?, &["chosen", &full])
}

/// The resolv.conf of a pod with these fields in its spec.
async fn resolv_conf(node: &Node, fields: serde_json::Value) -> Result<String> {
    let pod = pod("resolving").script("cat /etc/resolv.conf").restart("Never");
    node.run(pod.spec(fields)).await?.output().await
}

async fn names_are_looked_up_in_the_cluster_first(node: Node) -> Result<()> {
    let namespace = node.namespace();
    let search = format!("search {namespace}.svc.cluster.local svc.cluster.local cluster.local ferrolet.test");
    let output = resolv_conf(&node, json!({})).await?;
    expect_lines(&output, &["nameserver 10.96.0.10", &search, "options ndots:5"])
}

async fn names_can_be_looked_up_as_the_node_does(node: Node) -> Result<()> {
    let output = resolv_conf(&node, json!({ "dnsPolicy": "Default" })).await?;
    expect_lines(&output, &node.stack().read("/etc/resolv.conf")?.lines().collect::<Vec<_>>())
}

async fn the_nodes_names_are_read_anew_for_each_pod(lab: Lab) -> Result<()> {
    const FILE: &str = "/run/dhcp/resolv.conf";
    let node = lab.node(|stack| stack.config("resolvConf", FILE)).await?;
    // The network has not told its names yet.
    let early = pod("early").script("cat /etc/resolv.conf").restart("Never").spec(json!({ "dnsPolicy": "Default" }));
    let early = node.run(early).await?;
    let message = early.expect_event("FailedCreatePodSandBox").await?;
    ensure!(message.contains(&format!("open {FILE}: no such file or directory")), "{message}");
    node.stack().write(FILE, "nameserver 192.0.2.1\n")?;
    ensure!(early.output().await? == "nameserver 192.0.2.1\n", "{}", early.log()?);
    node.stack().write(FILE, "nameserver 192.0.2.2\n")?;
    let output = resolv_conf(&node, json!({ "dnsPolicy": "Default" })).await?;
    ensure!(output == "nameserver 192.0.2.2\n", "{output:?}");
    Ok(())
}

async fn names_can_be_looked_up_by_the_pods_own_rules(node: Node) -> Result<()> {
    let config = json!({
        "nameservers": ["192.0.2.53"],
        "searches": ["example.com"],
        "options": [{ "name": "ndots", "value": "2" }],
    });
    let fields = json!({ "dnsPolicy": "None", "dnsConfig": config });
    let output = resolv_conf(&node, fields).await?;
    ensure!(output == "search example.com\nnameserver 192.0.2.53\noptions ndots:2\n", "{output:?}");
    Ok(())
}

async fn what_is_wrong_with_name_servers_is_told(lab: Lab) -> Result<()> {
    const CROWDED: &str = "/etc/crowded.conf";
    let crowded = |stack: Builder| stack.config("clusterDNS", json!([])).config("resolvConf", CROWDED).without_agent();
    let node = lab.node(crowded).await?;
    let searches = (0..33).map(|n| format!("d{n}.test")).collect::<Vec<_>>();
    node.stack().write(CROWDED, format!("nameserver 192.0.2.1\nsearch {}\n", searches.join(" ")))?;
    node.stack().agent().start().await?;
    node.expect_node_ready("True").await?;

    let pod = node.run(pod("asking").spec(json!({ "dnsPolicy": "ClusterFirst" }))).await?;
    pod.expect().ready().await?;
    let (namespace, uid) = (node.namespace(), pod.get().await?.metadata.uid.context("a UID")?);
    let of_node = "kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. \
                   Falling back to \"Default\" policy.";
    let of_pod = format!("pod: \"asking_{namespace}({uid})\". {of_node}");
    let told = pod.expect_event("MissingClusterDNS").await?;
    ensure!(told == of_pod, "{told:?}");
    let of_cut = format!(
        "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
        searches[..32].join(" ")
    );
    let told = pod.expect_event("DNSConfigForming").await?;
    ensure!(told == of_cut, "{told:?}");
    let told = node.expect_own_event("MissingClusterDNS").await?;
    ensure!(told == of_node, "{told:?}");
    let of_file = format!("Resolv.conf file '{CROWDED}' contains search line consisting of more than 29 domains!");
    let told = node.expect_own_event("CheckLimitsForResolvConf").await?;
    ensure!(told == of_file, "{told:?}");
    Ok(())
}

async fn the_host_network_falls_back_to_the_nodes_names(node: Node) -> Result<()> {
    let output = resolv_conf(&node, json!({ "hostNetwork": true })).await?;
    expect_lines(&output, &node.stack().read("/etc/resolv.conf")?.lines().collect::<Vec<_>>())
}

async fn containers_can_share_their_processes(node: Node) -> Result<()> {
    let shared = pod("shared").script("exec sleep 424242").and_container(
        "looking",
        "until pgrep -f 'sleep 424242'; do sleep 0.1; done; exec sleep 1000000",
        json!({}),
    );
    let shared = node.run(shared.spec(json!({ "shareProcessNamespace": true }))).await?;
    shared.expect().ready().await?;
    shared.expect_log_of("looking", 0, "\n").await
}

async fn host_namespaces_are_the_nodes(node: Node) -> Result<()> {
    let script = "readlink /proc/self/ns/pid; readlink /proc/self/ns/ipc";
    let spec = json!({ "hostPID": true, "hostIPC": true });
    let output = node.run(pod("inside").script(script).restart("Never").spec(spec)).await?;
    let output = output.output().await?;
    let on_node = node.stack().run(&["readlink", "/proc/self/ns/pid", "/proc/self/ns/ipc"]).await?;
    ensure!(output == on_node, "{output:?} where the node has {on_node:?}");
    Ok(())
}
