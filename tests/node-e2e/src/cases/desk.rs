//! The node's own API: checkpoints, what the agent says of itself, and what says that it is off.

use anyhow::{Context, Result, bail, ensure};
use kube::client::Body;
use serde_json::Value;

use crate::harness::{Caller, Case, Lab, Node, pod};
use crate::{own, shared};

pub const CASES: &[Case] = &[
    shared!(a_container_is_checkpointed_or_the_runtime_says_why_not),
    shared!(a_timeout_that_is_no_number_is_the_callers_fault).beyond_upstream("it says 404"),
    shared!(the_flags_are_told_to_people_and_programs),
    shared!(the_state_is_told_to_people_and_programs),
    shared!(what_is_not_there_says_so),
    shared!(what_is_no_verbosity_is_refused),
    own!(a_new_verbosity_shows_in_the_log).beyond_upstream("it has no line for a request"),
    own!(single_handlers_that_are_off_say_so),
    own!(everything_for_debugging_that_is_off_says_so),
];

async fn ask(node: &Node, method: &str, path: &str, accept: &str, body: &str) -> Result<(u16, String)> {
    let request = http::Request::builder().method(method).uri(path).header("accept", accept);
    node.send(Caller::ApiServer, request.body(Body::from(body.to_owned().into_bytes()))?).await
}

async fn post(node: &Node, path: &str) -> Result<(u16, String)> {
    ask(node, "POST", path, "*/*", "").await
}

async fn a_container_is_checkpointed_or_the_runtime_says_why_not(node: Node) -> Result<()> {
    node.run(pod("frozen")).await?.expect().ready().await?;
    let namespace = node.namespace();
    let (status, text) = post(&node, &format!("/checkpoint/{namespace}/frozen/main")).await?;
    match status {
        // Where criu is installed.
        200 => {
            let answer: Value = serde_json::from_str(&text)?;
            let file = answer["items"][0].as_str().context("a file")?;
            let begin = format!("/var/lib/kubelet/checkpoints/checkpoint-frozen_{namespace}-main-");
            ensure!(file.starts_with(&begin) && node.stack().on_node(file).exists(), "{answer}");
        }
        500 => {
            let begin = format!("checkpointing of {namespace}/frozen/main failed (");
            let words = text.strip_prefix(&begin).and_then(|rest| rest.strip_suffix(')'));
            ensure!(words.is_some_and(|words| !words.is_empty()), "{text:?}");
        }
        other => bail!("{other} {text:?}"),
    }
    let missing = post(&node, &format!("/checkpoint/{namespace}/other/main")).await?;
    ensure!(missing == (404, "pod does not exist".to_owned()), "{missing:?}");
    let missing = post(&node, &format!("/checkpoint/{namespace}/frozen/other")).await?;
    ensure!(missing == (404, "container other does not exist".to_owned()), "{missing:?}");
    Ok(())
}

async fn a_timeout_that_is_no_number_is_the_callers_fault(node: Node) -> Result<()> {
    node.run(pod("frozen")).await?.expect().ready().await?;
    let path = format!("/checkpoint/{}/frozen/main?timeout=soon", node.namespace());
    let answer = post(&node, &path).await?;
    ensure!(answer == (400, "cannot parse value of timeout parameter".to_owned()), "{answer:?}");
    Ok(())
}

fn structured(media_type: &str, version: &str, kind: &str) -> String {
    format!("{media_type};g=config.k8s.io;v={version};as={kind}")
}

/// The same page in all forms there are; the structured ones as they were read.
async fn page(node: &Node, path: &str, kind: &str) -> Result<(String, Vec<Value>)> {
    let (status, text) = ask(node, "GET", path, "text/plain", "").await?;
    let head = format!("\nkubelet {}\nWarning: ", &path[1..]);
    ensure!(status == 200 && text.starts_with(&head), "{status} {text:?}");
    let mut read = Vec::new();
    for (media_type, version) in
        [("application/json", "v1beta1"), ("application/yaml", "v1beta1"), ("application/json", "v1alpha1")]
    {
        let (status, body) = ask(node, "GET", path, &structured(media_type, version, kind), "").await?;
        ensure!(status == 200, "{media_type} {version}: {status} {body:?}");
        let page: Value = serde_saphyr::from_str(&body).context("JSON is YAML too")?;
        ensure!(page["kind"] == kind && page["apiVersion"] == format!("config.k8s.io/{version}"), "{page}");
        ensure!(page["metadata"]["name"] == "kubelet", "{page}");
        read.push(page);
    }
    for unnamed in ["application/json", "text/html", &structured("application/json", "v1", kind)] {
        let (status, body) = ask(node, "GET", path, unnamed, "").await?;
        ensure!(status == 406 && body.contains("only the following media types are accepted"), "{status} {body:?}");
    }
    Ok((text, read))
}

async fn the_flags_are_told_to_people_and_programs(node: Node) -> Result<()> {
    let (text, read) = page(&node, "/flagz", "Flagz").await?;
    ensure!(text.contains("\ncert-dir"), "{text}");
    for page in read {
        let flags = &page["flags"];
        ensure!(flags["config"] == "/var/lib/kubelet/config.yaml" && flags["v"] == "2", "{page}");
        ensure!(flags["node-ip"] == node.stack().node_address().to_string(), "{page}");
        ensure!(flags["root-dir"] == "/var/lib/kubelet", "{page}");
    }
    Ok(())
}

async fn the_state_is_told_to_people_and_programs(node: Node) -> Result<()> {
    let (text, read) = page(&node, "/statusz", "Statusz").await?;
    for line in ["\nStarted", "\nUp", "\nGo version", "\nBinary version", "\nEmulation version", "\nPaths"] {
        ensure!(text.contains(line), "{line:?} is not in {text:?}");
    }
    for page in read {
        ensure!(page["emulationVersion"] == "1.36", "{page}");
        ensure!(page["binaryVersion"].as_str().is_some_and(|version| version.starts_with("1.36")), "{page}");
        ensure!(page["startTime"].as_str().is_some_and(|time| time.ends_with('Z')), "{page}");
        ensure!(page["uptimeSeconds"].is_u64() && page["goVersion"].is_string(), "{page}");
        let paths = page["paths"].as_array().context("paths")?;
        ensure!(paths.iter().any(|path| path == "/configz"), "{page}");
    }
    Ok(())
}

/// A method, a path, and what is said to it.
type Line = (&'static str, &'static str, u16, &'static str);

/// All that differs at once.
async fn check(node: &Node, lines: &[Line]) -> Result<()> {
    let mut wrong = Vec::new();
    for (method, path, status, text) in lines {
        let answer = ask(node, method, path, "*/*", "").await?;
        if answer != (*status, (*text).to_owned()) {
            wrong.push(format!("{method} {path}: {answer:?}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

const NOT_FOUND: &str = "404 page not found\n";
const WRONG_METHOD: &str = "405: Method Not Allowed";

async fn what_is_not_there_says_so(node: Node) -> Result<()> {
    let lines = [
        ("GET", "/nothing", 404, NOT_FOUND),
        ("POST", "/pods", 405, WRONG_METHOD),
        ("GET", "/run/a/b/c", 405, WRONG_METHOD),
        ("GET", "/checkpoint/a/b/c", 405, WRONG_METHOD),
        ("PUT", "/exec/a/b/c", 405, WRONG_METHOD),
        ("POST", "/containerLogs/a/b/c", 405, WRONG_METHOD),
        ("GET", "/debug/flags/v", 406, "unsupported http method\n"),
        ("GET", "/debug/flags", 404, NOT_FOUND),
    ];
    check(&node, &lines).await
}

async fn put_verbosity(node: &Node, level: &str) -> Result<(u16, String)> {
    ask(node, "PUT", "/debug/flags/v", "*/*", level).await
}

async fn what_is_no_verbosity_is_refused(node: Node) -> Result<()> {
    for wrong in ["much", "", "-1", "4294967296"] {
        let (status, text) = put_verbosity(&node, wrong).await?;
        ensure!(status == 400 && !text.is_empty(), "{wrong:?}: {status} {text:?}");
    }
    Ok(())
}

async fn a_new_verbosity_shows_in_the_log(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    ensure!(node.call(Caller::ApiServer, "/healthz/ping?before").await?.0 == 200);
    let answer = put_verbosity(&node, "4").await?;
    ensure!(answer == (200, "successfully set klog.logging.verbosity to 4\n".to_owned()), "{answer:?}");
    ensure!(node.call(Caller::ApiServer, "/healthz/log").await?.0 == 200);
    node.expect_agent_log("/healthz/log").await?;
    ensure!(!node.stack().agent().log()?.contains("/healthz/ping"), "what came before is told");
    Ok(())
}

async fn single_handlers_that_are_off_say_so(lab: Lab) -> Result<()> {
    let node = lab
        .node(|stack| {
            let stack = stack.config("enableProfilingHandler", false).config("enableSystemLogHandler", false);
            stack.config("enableDebugFlagsHandler", false)
        })
        .await?;
    let lines = [
        ("GET", "/debug/pprof/", 405, "profiling endpoint is disabled.\n"),
        ("GET", "/debug/pprof/heap", 405, "profiling endpoint is disabled.\n"),
        ("GET", "/logs/", 405, "logs endpoint is disabled.\n"),
        ("GET", "/logs/syslog", 405, "logs endpoint is disabled.\n"),
        ("PUT", "/debug/flags/v", 405, "flags endpoint is disabled.\n"),
        ("GET", "/debug/flags/v", 405, "flags endpoint is disabled.\n"),
        ("GET", "/healthz", 200, "ok"),
    ];
    check(&node, &lines).await
}

async fn everything_for_debugging_that_is_off_says_so(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack.config("enableDebuggingHandlers", false)).await?;
    const OFF: &str = "Debug endpoints are disabled.\n";
    let lines = [
        ("POST", "/run/a/b/c", 405, OFF),
        ("GET", "/exec/a/b/c", 405, OFF),
        ("POST", "/attach/a/b/c", 405, OFF),
        ("GET", "/portForward/a/b", 405, OFF),
        ("GET", "/containerLogs/a/b/c", 405, OFF),
        ("GET", "/runningpods/", 405, OFF),
        ("GET", "/debug/pprof/heap", 405, OFF),
        ("GET", "/logs/", 405, OFF),
        ("GET", "/configz", 404, NOT_FOUND),
        ("POST", "/checkpoint/a/b/c", 404, NOT_FOUND),
        ("GET", "/flagz", 404, NOT_FOUND),
        ("GET", "/statusz", 404, NOT_FOUND),
        ("PUT", "/debug/flags/v", 404, NOT_FOUND),
        ("GET", "/healthz", 200, "ok"),
    ];
    check(&node, &lines).await?;
    ensure!(node.call(Caller::ApiServer, "/pods").await?.0 == 200);
    Ok(())
}
