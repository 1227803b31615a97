//! What it costs to be asked for statistics.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::Client;
use kube::client::Body;

use super::RESTING_PODS;
use super::agent::{Bench, Measured, run_many};
use crate::harness::{Caller, node_client};

/// Page, and whether it is asked for as gzip.
pub(super) const SCRAPES: [(&str, bool); 6] = [
    ("/metrics/cadvisor", false),
    ("/metrics/cadvisor", true),
    ("/metrics/resource", false),
    ("/metrics/resource", true),
    ("/stats/summary", false),
    ("/stats/summary", true),
];
/// CPU time is counted in hundredths of a second, so that one scrape alone tells nothing.
const TIMES: u32 = 20;
/// Longer than an agent keeps what it has read.
const PAUSE: Duration = Duration::from_millis(1500);

/// Of one page, one way; no number where it was not measured.
#[derive(Clone, Copy)]
pub struct Cost {
    pub cpu_ms: f64,
    pub kilobytes: f64,
}

impl Default for Cost {
    fn default() -> Self {
        Cost { cpu_ms: f64::NAN, kilobytes: f64::NAN }
    }
}

/// On a node with many pods at rest; fewer, for a try, by `BENCH_SCRAPE_PODS`.
pub(super) async fn measure(bench: &Bench, found: &mut Measured) -> Result<()> {
    let pods = std::env::var("BENCH_SCRAPE_PODS").ok().and_then(|text| text.parse().ok()).unwrap_or(RESTING_PODS);
    run_many(&bench.pods, &bench.node, pods).await?;
    tokio::time::sleep(Duration::from_secs(15)).await;
    found.rss_before_scrapes.push(bench.agent.memory_mb("VmRSS")?);
    let client = node_client(&bench.stack, Caller::ApiServer).await?;
    let idle = cpu_of(bench, async || Ok(0)).await?.0;
    for (place, (path, is_gzip)) in SCRAPES.into_iter().enumerate() {
        // The first one of a page may have to ask for more.
        scrape(&client, path, is_gzip).await?;
        let (cpu, bytes) = cpu_of(bench, async || scrape(&client, path, is_gzip).await).await?;
        let cpu_ms = (cpu - idle) / f64::from(TIMES) * 1000.0;
        found.scrapes[place] = Cost { cpu_ms, kilobytes: bytes as f64 / 1000.0 };
    }
    found.rss_after_scrapes.push(bench.agent.memory_mb("VmRSS")?);
    Ok(())
}

/// The agent's CPU time while that is done some times, with pauses; and what it gave last.
async fn cpu_of(bench: &Bench, ask: impl AsyncFn() -> Result<usize>) -> Result<(f64, usize)> {
    let before = bench.agent.cpu_seconds()?;
    let mut bytes = 0;
    for _ in 0..TIMES {
        tokio::time::sleep(PAUSE).await;
        bytes = ask().await?;
    }
    Ok((bench.agent.cpu_seconds()? - before, bytes))
}

/// How many bytes come.
async fn scrape(client: &Client, path: &str, is_gzip: bool) -> Result<usize> {
    let coding = if is_gzip { "gzip" } else { "identity" };
    let request = http::Request::get(path).header(http::header::ACCEPT_ENCODING, coding).body(Body::empty())?;
    let answer = client.send(request).await.with_context(|| format!("GET {path} of the node"))?;
    ensure!(answer.status() == 200, "{path}: {}", answer.status());
    Ok(answer.into_body().collect_bytes().await?.len())
}
