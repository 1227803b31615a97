//! Terminals, as `kubectl attach -it` and `kubectl debug -it` give them: what is typed arrives, and so
//! does the size.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use crate::harness::{Case, Node, Transport, WITHIN, pod};
use crate::provision::BUSYBOX;
use crate::shared;

pub const CASES: &[Case] = &[
    shared!(a_terminal_that_is_attached_has_the_size_it_is_seen_in_also_once_that_changes),
    shared!(who_debugs_talks_with_a_container_beside_its_target),
];

/// What is seen in a client's terminal.
struct Seen(Lines<BufReader<ChildStdout>>);

impl Seen {
    fn of(client: &mut Child) -> Seen {
        Seen(BufReader::new(client.stdout.take().expect("stdout is piped")).lines())
    }

    /// Waits for a line with this in it, and gives it without what ends lines in terminals.
    async fn until(&mut self, text: &str) -> Result<String> {
        let mut last = String::new();
        let look = async {
            while let Some(line) = self.0.next_line().await? {
                last = line.trim().to_owned();
                if last.contains(text) {
                    return Ok(());
                }
            }
            anyhow::bail!("the client ended")
        };
        let found = timeout(WITHIN, look).await.context("it goes on").and_then(|it| it);
        found.with_context(|| format!("{text:?} is not seen, but last {last:?}"))?;
        Ok(last)
    }
}

async fn a_terminal_that_is_attached_has_the_size_it_is_seen_in_also_once_that_changes(node: Node) -> Result<()> {
    let script = "while sleep 0.2; do echo \"it has $(stty size).\"; done";
    let wide = pod("wide").script(script).container(json!({ "stdin": true, "tty": true }));
    node.run(wide).await?.expect().ready().await?;
    for transport in Transport::ALL {
        let mark = node.stack().directory().join(format!("{}-{transport:?}", node.namespace()));
        let shown = mark.display();
        // The second size is set from beside the client, as a window's owner does.
        let first = format!(
            "stty rows 33 cols 77; (until [ -e {shown} ]; do sleep 0.1; done; stty -F /dev/tty rows 44 cols 88) &"
        );
        let mut client = node.kubectl_in_terminal(transport, &["attach", "-it", "wide"], &first)?;
        let mut client = client.stdin(Stdio::piped()).spawn().context("run script(1)")?;
        let mut seen = Seen::of(&mut client);
        seen.until("it has 33 77.").await.with_context(|| format!("{transport:?}"))?;
        std::fs::write(&mark, "")?;
        seen.until("it has 44 88.").await.with_context(|| format!("{transport:?}"))?;
        client.kill().await?;
    }
    Ok(())
}

/// How an ephemeral container ended, if it has.
fn end_of(pod: &Pod, container: &str) -> Option<ContainerStateTerminated> {
    let statuses = pod.status.as_ref()?.ephemeral_container_statuses.as_ref()?;
    statuses.iter().find(|status| status.name == container)?.state.as_ref()?.terminated.clone()
}

async fn who_debugs_talks_with_a_container_beside_its_target(node: Node) -> Result<()> {
    let sick = node.run(pod("sick").script("exec sleep 1000000")).await?;
    sick.expect().ready().await?;
    let before = sick.instance().await?;
    // Its target's processes are its own.
    let script = "read -r word; echo \"heard $word beside $(tr '\\0' ' ' </proc/1/cmdline)\"; exit 5";
    for (transport, name) in Transport::ALL.into_iter().zip(["first", "second"]) {
        let (image, container) = (format!("--image={BUSYBOX}"), format!("--container={name}"));
        let debug = ["debug", "-it", "sick", &image, &container, "--target=main", "--", "sh", "-c", script];
        let mut client = node.kubectl_in_terminal(transport, &debug, "stty -echo")?;
        let mut client = client.stdin(Stdio::piped()).spawn().context("run script(1)")?;
        let mut stdin = client.stdin.take().expect("stdin is piped");
        let mut seen = Seen::of(&mut client);
        // kubectl says so once the container runs and before it attaches.
        seen.until("press").await.with_context(|| format!("{transport:?}"))?;
        stdin.write_all(format!("{name}\n").as_bytes()).await?;
        let line = seen.until("heard").await.with_context(|| format!("{transport:?}"))?;
        ensure!(line == format!("heard {name} beside sleep 1000000"), "{transport:?}: {line:?}");
        timeout(WITHIN, client.wait()).await.context("kubectl outlives what it is attached to")??;
        let ended = sick.expect().ready().that(format!("an end of {name}"), move |pod| end_of(pod, name).is_some());
        let end = end_of(&ended.await?, name).context("it has ended")?;
        ensure!(end.exit_code == 5, "{end:?}");
    }
    ensure!(sick.instance().await? == before, "its target was touched");
    Ok(())
}
