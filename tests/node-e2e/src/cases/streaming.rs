//! exec, attach, cp and port-forward: through kubectl and the API server, both ways kubectl
//! knows of talking to it.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use crate::harness::{Case, Node, PodHandle, Transport, WITHIN, pod};
use crate::poll::{self, Look};
use crate::shared;

pub const CASES: &[Case] = &[
    shared!(a_command_gives_its_outputs_apart_and_its_exit_code).in_subset(),
    shared!(a_command_gets_its_input_to_the_end),
    shared!(a_terminal_has_the_size_of_the_one_it_is_seen_in),
    shared!(a_command_whose_client_is_killed_sees_the_end_of_its_input),
    shared!(who_attaches_talks_with_the_process_itself),
    shared!(a_file_is_copied_in_and_out_unchanged),
    shared!(a_port_is_forwarded_for_one_connection_after_the_other).in_subset(),
    shared!(who_asks_for_a_container_that_does_not_run_is_told_so),
];

async fn running(node: &Node, name: &str) -> Result<PodHandle> {
    let pod = node.run(pod(name)).await?;
    pod.expect().ready().await?;
    Ok(pod)
}

async fn a_command_gives_its_outputs_apart_and_its_exit_code(node: Node) -> Result<()> {
    running(&node, "box").await?;
    for transport in Transport::ALL {
        let script = "echo out; echo err >&2; exit 7";
        let ended = node.kubectl_told(transport, &["exec", "box", "--", "sh", "-c", script], b"").await?;
        let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
        ensure!(out == "out\n" && err.starts_with("err\n"), "{transport:?}: {out:?} and {err:?}");
        ensure!(ended.status.code() == Some(7), "{transport:?}: {} {err}", ended.status);
        let said = node.kubectl_well(transport, &["exec", "box", "--", "echo", "a  b", "$c"], b"").await?;
        ensure!(said == b"a  b $c\n", "{transport:?}: {}", String::from_utf8_lossy(&said));
    }
    Ok(())
}

/// Bytes of all values, too many for any buffer on the way.
fn much() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(1);
    (0..4 << 20).map(|_| random.u8(..)).collect()
}

async fn a_command_gets_its_input_to_the_end(node: Node) -> Result<()> {
    running(&node, "box").await?;
    let much = much();
    for transport in Transport::ALL {
        let count = node.kubectl_well(transport, &["exec", "-i", "box", "--", "wc", "-c"], &much).await?;
        let count = String::from_utf8_lossy(&count).trim().to_owned();
        ensure!(count == much.len().to_string(), "{transport:?}: {count} bytes");
        let back = node.kubectl_well(transport, &["exec", "-i", "box", "--", "cat"], &much).await?;
        ensure!(back == much, "{transport:?}: {} bytes came back, or other ones", back.len());
    }
    Ok(())
}

async fn a_terminal_has_the_size_of_the_one_it_is_seen_in(node: Node) -> Result<()> {
    running(&node, "box").await?;
    for transport in Transport::ALL {
        // The size is told after the command has begun.
        let wait = "until stty size | grep -x '33 77'; do sleep 0.1; done";
        let exec = ["exec", "-it", "box", "--", "sh", "-c", wait];
        let mut script = node.kubectl_in_terminal(transport, &exec, "stty rows 33 cols 77")?;
        let ended =
            timeout(WITHIN, script.output()).await.context("the size never arrives")?.context("run script(1)")?;
        let said = String::from_utf8_lossy(&ended.stdout);
        ensure!(ended.status.success() && said.contains("33 77"), "{transport:?}: {} {said}", ended.status);
    }
    Ok(())
}

/// What a client says, line by line.
fn lines(child: &mut Child) -> Lines<BufReader<ChildStdout>> {
    BufReader::new(child.stdout.take().expect("stdout is piped")).lines()
}

async fn next(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<String> {
    let line = timeout(WITHIN, lines.next_line()).await.context("nothing is said")??;
    line.context("the client ended")
}

async fn a_command_whose_client_is_killed_sees_the_end_of_its_input(node: Node) -> Result<()> {
    let pod = running(&node, "box").await?;
    // By SPDY containerd never closes the input, whichever agent leads there.
    let transport = Transport::WebSocket;
    let script = "echo began; cat; touch /tmp/over";
    let mut client = node.kubectl(transport, &["exec", "-i", "box", "--", "sh", "-c", script])?;
    let mut client = client.stdin(Stdio::piped()).spawn().context("start kubectl")?;
    ensure!(next(&mut lines(&mut client)).await? == "began");
    client.kill().await?;
    poll::until("the command of a killed client is over", WITHIN, async || {
        let found = pod.exec("ls /tmp").await?;
        Ok(if found.contains("over") { Look::Done(()) } else { Look::NotYet(found) })
    })
    .await
}

async fn who_attaches_talks_with_the_process_itself(node: Node) -> Result<()> {
    let script = "while read -r line; do echo \"heard $line\"; done; sleep 1000000";
    let pod = node.run(pod("listener").script(script).container(json!({ "stdin": true }))).await?;
    pod.expect().ready().await?;
    for transport in Transport::ALL {
        let mut client = node.kubectl(transport, &["attach", "-i", "listener"])?;
        let mut client = client.stdin(Stdio::piped()).spawn().context("start kubectl")?;
        let mut stdin = client.stdin.take().expect("stdin is piped");
        let mut said = lines(&mut client);
        for number in 0..3 {
            stdin.write_all(format!("{transport:?} {number}\n").as_bytes()).await?;
            stdin.flush().await?;
            let heard = next(&mut said).await?;
            ensure!(heard == format!("heard {transport:?} {number}"), "{heard}");
        }
        client.kill().await?;
    }
    Ok(())
}

async fn a_file_is_copied_in_and_out_unchanged(node: Node) -> Result<()> {
    running(&node, "box").await?;
    let directory = node.stack().on_node("/tmp");
    std::fs::create_dir_all(&directory)?;
    let (original, copy) = (directory.join("original"), directory.join("copy"));
    std::fs::write(&original, much())?;
    let (original, copy) = (original.to_string_lossy(), copy.to_string_lossy());
    for transport in Transport::ALL {
        node.kubectl_well(transport, &["cp", &original, "box:/tmp/there"], b"").await?;
        node.kubectl_well(transport, &["cp", "box:/tmp/there", &copy], b"").await?;
        ensure!(std::fs::read(&*copy)? == much(), "{transport:?}: it is another file");
        std::fs::remove_file(&*copy)?;
    }
    Ok(())
}

async fn a_port_is_forwarded_for_one_connection_after_the_other(node: Node) -> Result<()> {
    let script = "echo welcome > /tmp/index.html; exec httpd -f -p 8080 -h /tmp";
    let probe = json!({ "readinessProbe": { "tcpSocket": { "port": 8080 }, "periodSeconds": 1 } });
    let pod = node.run(pod("server").script(script).container(probe)).await?;
    pod.expect().ready().await?;
    for transport in Transport::ALL {
        let mut client = node.kubectl(transport, &["port-forward", "--address=127.0.0.1", "server", ":8080"])?;
        let mut client = client.spawn().context("start kubectl")?;
        let mut said = lines(&mut client);
        // Forwarding from 127.0.0.1:34567 -> 8080
        let line = next(&mut said).await?;
        let address = line.split_whitespace().nth(2).with_context(|| format!("it says {line:?}"))?.to_owned();
        for connection in 0..5 {
            let page =
                timeout(WITHIN, get(&address)).await.with_context(|| format!("connection {connection} hangs"))?;
            let page = page.with_context(|| format!("connection {connection} by {transport:?}"))?;
            ensure!(page.starts_with("HTTP/1.") && page.ends_with("welcome\n"), "{transport:?}: {page:?}");
        }
        ensure!(client.try_wait()?.is_none(), "{transport:?}: it ends of itself");
        client.kill().await?;
    }
    Ok(())
}

async fn get(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    Ok(page)
}

async fn who_asks_for_a_container_that_does_not_run_is_told_so(node: Node) -> Result<()> {
    let init = json!({ "initContainers": [{
        "name": "early", "image": crate::provision::BUSYBOX, "command": ["true"],
    }] });
    let pod = node.run(pod("box").spec(init)).await?;
    pod.expect().ready().await?;
    for transport in Transport::ALL {
        let ended = node.kubectl_told(transport, &["exec", "box", "-c", "early", "--", "true"], b"").await?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(!ended.status.success() && said.contains("container not found (\"early\")"), "{transport:?}: {said}");
    }
    Ok(())
}
