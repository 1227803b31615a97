//! What people do with a node that joined: run, look, reach.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Service;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{PodHandle, Transport, pod};
use crate::poll::{self, Look};
use crate::vm::site::{NODE, Site, WITHIN};
use crate::vm::{Case, case};

pub const CASES: &[Case] = &[case!(a_deployment_runs_and_is_reached_in_every_way)];

const SERVER: &str = "echo serving; mkdir /www; hostname >/www/name; exec httpd -f -p 8080 -h /www";
const SPDY: Transport = Transport::Spdy;

async fn a_deployment_runs_and_is_reached_in_every_way(site: Site) -> Result<()> {
    site.joined(site.agent).await?;
    let ready = json!({ "httpGet": { "path": "/name", "port": 8080 }, "periodSeconds": 1, "timeoutSeconds": 10 });
    let server = pod("web").script(SERVER).container(json!({ "readinessProbe": ready }));
    let pods = site.deploy("web", 2, server).await?;

    logs_and_exec(&site, &pods[0]).await?;
    port_forward(&site, &pods[0]).await?;
    dns_settings(&site, &pods[0]).await?;
    journal(&site).await?;
    cluster_ip(&site, &pods).await
}

async fn logs_and_exec(site: &Site, pod: &PodHandle) -> Result<()> {
    let log = site.api.kubectl_well(SPDY, &["logs", &pod.name], b"").await?;
    ensure!(log == b"serving\n", "{}", String::from_utf8_lossy(&log));
    for transport in Transport::ALL {
        let exec = ["exec", "-i", &pod.name, "--", "sh", "-c", "read it; echo got $it from $(hostname)"];
        let said = site.api.kubectl_well(transport, &exec, b"word\n").await?;
        let expected = format!("got word from {}\n", pod.name);
        ensure!(said == expected.as_bytes(), "{}", String::from_utf8_lossy(&said));
    }
    Ok(())
}

async fn port_forward(site: &Site, pod: &PodHandle) -> Result<()> {
    let mut kubectl = site.api.kubectl(SPDY, &["port-forward", &pod.name, ":8080"])?.spawn()?;
    let mut lines = BufReader::new(kubectl.stdout.take().context("stdout is piped")?).lines();
    let line = timeout(WITHIN, lines.next_line()).await.context("kubectl says nothing")??.unwrap_or_default();
    // Forwarding from 127.0.0.1:40123 -> 8080
    let address = line.split_whitespace().nth(2).with_context(|| format!("no address in {line:?}"))?;
    let mut connection = TcpStream::connect(address).await?;
    connection.write_all(b"GET /name HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    timeout(WITHIN, connection.read_to_string(&mut answer)).await.context("no answer")??;
    ensure!(answer.ends_with(&format!("{}\n", pod.name)), "{answer:?}");
    Ok(())
}

/// What services of the machine said, as its own journal has it.
async fn journal(site: &Site) -> Result<()> {
    let said = logs_of_node(site, "query=containerd&tailLines=5").await?;
    let lines: Vec<&str> = said.lines().collect();
    ensure!(lines.len() == 5 && lines.iter().all(|line| line.contains("]: ")), "{said}");
    // It goes on talking meanwhile.
    let journal = site.guest.run("journalctl --no-pager --output=cat --lines=1000 --unit=containerd").await?;
    for (_, text) in lines.iter().filter_map(|line| line.split_once("]: ")) {
        ensure!(journal.contains(text), "{text:?} is not in {journal}");
    }

    // Of an empty answer journalctl says so, in place of lines.
    let none = logs_of_node(site, "query=containerd&pattern=no-such-words-anywhere").await?;
    ensure!(none.lines().all(|line| line.starts_with("-- ")), "{none}");
    let unknown = logs_of_node(site, "query=no-such-service").await?;
    ensure!(unknown.trim() == "log not found for no-such-service", "{unknown}");
    Ok(())
}

async fn logs_of_node(site: &Site, query: &str) -> Result<String> {
    let path = format!("/api/v1/nodes/{NODE}/proxy/logs/?{query}");
    Ok(String::from_utf8(site.api.kubectl_well(SPDY, &["get", "--raw", &path], b"").await?)?)
}

/// As the cluster's configuration has them, which came by `kubeadm join`.
async fn dns_settings(site: &Site, pod: &PodHandle) -> Result<()> {
    let cat = ["exec", &pod.name, "--", "cat", "/etc/resolv.conf"];
    let settings = String::from_utf8(site.api.kubectl_well(SPDY, &cat, b"").await?)?;
    let namespace = site.api.namespace();
    let search = format!("search {namespace}.svc.cluster.local svc.cluster.local cluster.local ferrolet.test");
    let expected = [search.as_str(), "nameserver 10.96.0.10", "options ndots:5"];
    let mut lines: Vec<&str> = settings.lines().collect();
    lines.sort_by_key(|line| expected.iter().position(|it| it == line));
    ensure!(lines == expected, "{settings}");
    Ok(())
}

/// Both pods answer on the Service's address: upstream's kube-proxy runs and does its work.
async fn cluster_ip(site: &Site, pods: &[PodHandle]) -> Result<()> {
    site.run_kube_proxy().await?;
    let spec = json!({ "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": 8080 }] });
    let service = site.api.create::<Service>(json!({ "metadata": { "name": "web" }, "spec": spec })).await?;
    let address = service.spec.and_then(|spec| spec.cluster_ip).context("it has an address")?;
    let mut missing: Vec<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
    let get = format!("timeout 20 wget -q -O - http://{address}/name");
    poll::until("every pod answers on the Service's address", Duration::from_secs(120), async || {
        let exec = ["exec", &pods[0].name, "--", "sh", "-c", &get];
        let output = site.api.kubectl_told(SPDY, &exec, b"").await?;
        let answer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        missing.retain(|name| *name != answer);
        Ok(match missing.is_empty() {
            true => Look::Done(()),
            false => Look::NotYet(format!("{answer:?} {}", String::from_utf8_lossy(&output.stderr))),
        })
    })
    .await
}
