//! What `make run` shows: a node that stays until `make down`, with a few pods on it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ferrolet::cri::{ContainerStateKind, Runtime, SandboxState, Scope};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use tokio::process::Command;
use tokio::time::Instant;

use crate::harness::{client, is_ready, runtime_of};
use crate::poll::{self, Look};
use crate::provision::{self, Containerd};
use crate::stack::{self, Agent, Made, Stack};

/// The name by which `down` finds it.
const NAME: &str = "run";

/// Images are there already, so this is many times what it takes.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// Pods that the manifests lead to: the Deployment's three and the one beside it.
const PODS_OF_MANIFESTS: usize = 4;

pub async fn up(standalone: bool) -> Result<()> {
    if let Some(made) = stack::find(NAME)? {
        println!("==> a node is up already; `make down` ends it");
        return show(&made).await;
    }
    let agent = Agent::from_env()?;
    let static_pods = manifests(&repository().join("static-pods"))?;
    let mut builder = Stack::builder().name(NAME).detached().agent(agent).containerd(Containerd::from_env()?);
    for (file, content) in &static_pods {
        builder = builder.static_pod(file, content);
    }
    let parts = match standalone {
        true => "containerd and the agent",
        false => "containerd, the control plane and the agent",
    };
    let step = Step::begin(&format!("starting {parts}"));
    let stack = if standalone { builder.standalone() } else { builder }.start().await?;
    step.end();

    let shown = match standalone {
        true => await_static_pods(&stack, static_pods.len()).await,
        false => await_pods(&stack, static_pods.len() + PODS_OF_MANIFESTS).await,
    };
    if let Err(error) = shown {
        bail!("{error:#}\nthe node is left as it is for a look; its logs end with\n{}", stack.log_tails());
    }
    show(stack.made()).await
}

pub async fn status() -> Result<()> {
    match stack::find(NAME)? {
        Some(made) => show(&made).await,
        None => {
            println!("no node is up; `make run` starts one");
            Ok(())
        }
    }
}

pub async fn down() -> Result<()> {
    match stack::down(NAME).await? {
        true => println!("==> the node is gone, with all that belonged to it"),
        false => println!("==> no node was up"),
    }
    for made in stack::living()? {
        println!("    (stack {} of a running test is left alone)", made.name);
    }
    Ok(())
}

async fn await_pods(stack: &Stack, expected: usize) -> Result<()> {
    let kubeconfig = stack.admin_kubeconfig().context("a stack with a control plane has one")?;
    let step = Step::begin("applying the manifests");
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests");
    kubectl(&kubeconfig, &["apply", "--filename", &manifests.to_string_lossy()]).await?;
    step.end();

    let step = Step::begin(&format!("waiting for {expected} pods to be Ready"));
    let pods: Api<Pod> = Api::all(client(&kubeconfig).await?);
    poll::until(format!("{expected} pods Ready"), READY_WITHIN, async || {
        let pods = pods.list(&ListParams::default()).await?.items;
        let ready = pods.iter().filter(|pod| is_ready(pod)).count();
        Ok(match ready == expected && pods.len() == expected {
            true => Look::Done(()),
            false => Look::NotYet(format!("{} pods, {ready} of them Ready", pods.len())),
        })
    })
    .await?;
    step.end();
    Ok(())
}

async fn await_static_pods(stack: &Stack, expected: usize) -> Result<()> {
    let step = Step::begin(&format!("waiting for {expected} static pods to run"));
    let runtime = runtime_of(stack.made())?;
    poll::until(format!("{expected} static pods"), READY_WITHIN, async || {
        // Every static pod of ours has one container.
        let containers = runtime.list_containers(&Scope::All).await?;
        let states = containers.iter().map(|container| container.state);
        let running = states.filter(|state| *state == ContainerStateKind::Running).count();
        Ok(match running == expected {
            true => Look::Done(()),
            false => Look::NotYet(format!("{running} containers run")),
        })
    })
    .await?;
    step.end();
    Ok(())
}

/// Prints what there is and how to go on.
async fn show(made: &Made) -> Result<()> {
    let kubeconfig = made.admin_kubeconfig();
    println!();
    if kubeconfig.exists() {
        for what in [&["get", "nodes", "--output=wide"][..], &["get", "pods", "--all-namespaces", "--output=wide"]] {
            println!("$ kubectl {}\n{}", what.join(" "), kubectl(&kubeconfig, what).await?);
        }
        println!("Go on with");
        println!("  export KUBECONFIG={}", kubeconfig.display());
        println!("  alias kubectl={}", provision::program("kubectl")?.display());
    } else {
        show_standalone(made).await?;
        println!("Go on with");
    }
    println!("  nsenter --target {} --all          # a shell on the node", made.init);
    println!("  less {}/log/agent.log", made.slot.directory().display());
    println!("  make down                          # ends it and leaves nothing behind");
    Ok(())
}

/// What kubectl would show, as the runtime knows it.
async fn show_standalone(made: &Made) -> Result<()> {
    let runtime = runtime_of(made)?;
    let containers = runtime.list_containers(&Scope::All).await?;
    println!("{:<12} {:<20} {:<9} {:<15} CONTAINERS", "NAMESPACE", "POD", "SANDBOX", "IP");
    for sandbox in runtime.list_sandboxes(&Scope::All).await? {
        let status = runtime.sandbox_status(&sandbox.id).await?;
        let address = status.ips.first().map_or_else(|| "host".to_owned(), ToString::to_string);
        let state = match sandbox.state {
            SandboxState::Ready => "Ready",
            SandboxState::NotReady => "NotReady",
        };
        let own = containers.iter().filter(|container| container.sandbox_id == sandbox.id);
        let own: Vec<_> = own.map(|it| format!("{} ({:?})", it.name, it.state)).collect();
        let (namespace, name) = (&sandbox.pod_namespace, &sandbox.pod_name);
        println!("{namespace:<12} {name:<20} {state:<9} {address:<15} {}", own.join(", "));
    }
    println!();
    Ok(())
}

async fn kubectl(kubeconfig: &Path, args: &[&str]) -> Result<String> {
    let mut command = Command::new(provision::program("kubectl")?);
    command.arg(format!("--kubeconfig={}", kubeconfig.display())).args(args);
    let output = command.output().await.context("run kubectl")?;
    ensure!(output.status.success(), "kubectl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The files of a directory by name.
fn manifests(directory: &Path) -> Result<BTreeMap<String, String>> {
    let entries = fs::read_dir(directory);
    let mut files = BTreeMap::new();
    for entry in entries.with_context(|| format!("read {}", directory.display()))? {
        let path = entry?.path();
        let name = path.file_name().context("an entry has a name")?.to_string_lossy().into_owned();
        let content = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        files.insert(name, content);
    }
    Ok(files)
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A progress line, and one with the time it took.
struct Step {
    what: String,
    begin: Instant,
}

impl Step {
    fn begin(what: &str) -> Step {
        println!("==> {what} ...");
        Step { what: what.to_owned(), begin: Instant::now() }
    }

    fn end(self) {
        println!("==> {}: {:.1} s", self.what, self.begin.elapsed().as_secs_f32());
    }
}
