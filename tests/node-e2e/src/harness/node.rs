//! What a case gets: a node, and a namespace on it.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ferrolet::cri::{
    Container, ContainerId, ContainerStateKind, ContainerSummary, CriError, Executed, GrpcRuntime, Runtime, Scope,
};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{self as core, Namespace, ServiceAccount};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::expect::WITHIN;
use super::{PodBuilder, PodHandle, without_scheme};
use crate::poll::{self, Look};
use crate::stack::{Made, RUNTIME_SOCKET, STATIC_PODS, Stack, State};

/// A node and a namespace on it.
#[derive(Clone)]
pub struct Node(Rc<Inner>);

struct Inner {
    stack: Rc<Stack>,
    /// None on a standalone node.
    client: Option<Client>,
    namespace: String,
    static_pods: RefCell<Vec<PathBuf>>,
}

impl Node {
    /// A namespace of its own for one case on a stack that others use too.
    pub(crate) async fn on(stack: Rc<Stack>, namespace: &str) -> Result<Node> {
        let node = Node::in_namespace(stack, namespace).await?;
        let Some(client) = &node.0.client else {
            return Ok(node);
        };
        let object: Namespace = serde_json::from_value(json!({ "metadata": { "name": namespace } }))?;
        let created = Api::all(client.clone()).create(&PostParams::default(), &object).await;
        created.context("create the namespace of the case")?;
        // Without it the API server refuses pods.
        poll::until("service account of the namespace", WITHIN, async || {
            Ok(match node.api::<ServiceAccount>().get_opt("default").await? {
                Some(_) => Look::Done(()),
                None => Look::NotYet("none".to_owned()),
            })
        })
        .await?;
        Ok(node)
    }

    /// In a namespace that is there already.
    pub(super) async fn in_namespace(stack: Rc<Stack>, namespace: &str) -> Result<Node> {
        let client = match stack.admin_kubeconfig().filter(|path| path.exists()) {
            Some(path) => Some(client(&path).await?),
            None => None,
        };
        let (namespace, static_pods) = (namespace.to_owned(), RefCell::default());
        Ok(Node(Rc::new(Inner { stack, client, namespace, static_pods })))
    }

    pub(crate) fn shared_stack(&self) -> Rc<Stack> {
        self.0.stack.clone()
    }

    pub fn stack(&self) -> &Stack {
        &self.0.stack
    }

    pub fn name(&self) -> &str {
        self.stack().node_name()
    }

    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    pub fn client(&self) -> Client {
        self.0.client.clone().expect("the case asked for a node with a control plane")
    }

    /// A kind of object in the namespace of the case.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client(), self.namespace())
    }

    /// Creates a pod.
    pub async fn run(&self, pod: PodBuilder) -> Result<PodHandle> {
        PodHandle::create(self, pod).await
    }

    /// Creates any other object, from its JSON.
    pub async fn create<K>(&self, object: serde_json::Value) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + Serialize
            + DeserializeOwned,
    {
        let object: K = serde_json::from_value(object)?;
        let created = self.api().create(&PostParams::default(), &object).await;
        created.with_context(|| format!("create {} for the case", K::kind(&())))
    }

    /// Waits until an object in the namespace of the case satisfies `holds`.
    pub async fn expect_object<K>(&self, name: &str, goal: &str, holds: impl Fn(&K) -> bool) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + Serialize
            + DeserializeOwned,
    {
        poll::until(format!("{} {name}: {goal}", K::kind(&())), WITHIN, async || {
            let object = self.api::<K>().get_opt(name).await?;
            Ok(match object {
                Some(object) if holds(&object) => Look::Done(object),
                other => Look::NotYet(serde_json::to_string(&other)?),
            })
        })
        .await
    }

    /// Waits until there is no such file or directory, given as seen from here. Upstream removes
    /// some of what a pod leaves only once a minute.
    pub async fn expect_absent(&self, path: &Path) -> Result<()> {
        poll::until(format!("{} gone", path.display()), WITHIN * 2, async || {
            Ok(match path.exists() {
                true => Look::NotYet("it is still there".to_owned()),
                false => Look::Done(()),
            })
        })
        .await
    }

    /// The pod's containers in the runtime, whatever their state.
    pub async fn containers_of(&self, pod: &PodHandle) -> Result<Vec<ContainerSummary>> {
        let all = self.runtime()?.list_containers(&Scope::All).await?;
        Ok(all.into_iter().filter(|container| container.pod_uid == pod.uid).collect())
    }

    /// The runtime has these containers of the pod, and as they were.
    pub async fn expect_untouched(&self, pod: &PodHandle, before: &[ContainerSummary]) -> Result<()> {
        let now = self.containers_of(pod).await?;
        ensure!(now == before, "{before:?} became {now:?}");
        Ok(())
    }

    /// The same with all that the runtime says of them. One that goes between the list and the
    /// question was none.
    pub async fn instances_of(&self, pod: &PodHandle) -> Result<Vec<Container>> {
        let runtime = self.runtime()?;
        let mut instances = Vec::new();
        for summary in self.containers_of(pod).await? {
            match runtime.container_status(&summary.id).await {
                Err(CriError::NotFound { .. }) => {}
                answer => instances.push(answer?),
            }
        }
        Ok(instances)
    }

    /// Takes a pod's container `main` out of the runtime, behind the agent's back.
    pub async fn take_away(&self, pod: &PodHandle) -> Result<()> {
        let (id, _) = pod.instance().await?;
        Ok(self.runtime()?.remove_container(&ContainerId::new(without_scheme(&id))).await?)
    }

    /// Waits until the runtime has none of the pod's containers any more. They may be collected
    /// later than the pod is gone.
    pub async fn expect_no_containers_of(&self, pod: &PodHandle) -> Result<()> {
        let goal = format!("no container of pod {}", pod.name);
        poll::until(goal, WITHIN * 2, async || {
            let containers = self.containers_of(pod).await?;
            Ok(match containers.is_empty() {
                true => Look::Done(()),
                false => Look::NotYet(format!("{containers:?}")),
            })
        })
        .await
    }

    /// The containers in the runtime of the static pod of this name, whatever their state.
    pub async fn containers_named(&self, name: &str) -> Result<Vec<ContainerSummary>> {
        let name = format!("{name}-{}", self.name());
        let mut all = self.runtime()?.list_containers(&Scope::All).await?;
        all.retain(|it| it.pod_name == name && it.pod_namespace == self.namespace());
        Ok(all)
    }

    /// Waits until a container of the static pod of this name runs, and gives it.
    pub async fn expect_static_pod_runs(&self, name: &str) -> Result<ContainerSummary> {
        poll::until(format!("static pod {name} runs"), WITHIN, async || {
            let containers = self.containers_named(name).await?;
            let running = containers.iter().find(|it| it.state == ContainerStateKind::Running);
            Ok(match running {
                Some(container) => Look::Done(container.clone()),
                None => Look::NotYet(format!("{containers:?}")),
            })
        })
        .await
    }

    pub async fn expect_no_containers(&self, name: &str) -> Result<()> {
        poll::until(format!("no container of static pod {name}"), WITHIN, async || {
            let containers = self.containers_named(name).await?;
            Ok(match containers.is_empty() {
                true => Look::Done(()),
                false => Look::NotYet(format!("{containers:?}")),
            })
        })
        .await
    }

    /// Waits until the agent has logged this.
    pub async fn expect_agent_log(&self, text: &str) -> Result<()> {
        poll::until(format!("{text:?} in the agent's log"), WITHIN, async || {
            Ok(match self.stack().agent().log()?.contains(text) {
                true => Look::Done(()),
                false => Look::NotYet("it is not there".to_owned()),
            })
        })
        .await
    }

    /// Puts a file into the static-pod directory; it is removed when the case ends.
    pub fn static_pod(&self, file: &str, content: &str) -> Result<()> {
        let path = format!("{STATIC_PODS}/{file}");
        self.stack().write(&path, content)?;
        self.0.static_pods.borrow_mut().push(self.stack().on_node(&path));
        Ok(())
    }

    pub fn remove_static_pod(&self, file: &str) -> Result<()> {
        let path = self.stack().on_node(&format!("{STATIC_PODS}/{file}"));
        std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// The mirror at the API server of the static pod of this name. Upstream makes a deleted one
    /// anew only with its next look at the pod, which may be more than a minute away.
    pub async fn mirror_pod(&self, name: &str) -> Result<PodHandle> {
        let name = format!("{name}-{}", self.name());
        poll::until(format!("mirror pod {name}"), WITHIN * 2, async || {
            Ok(match self.api::<core::Pod>().get_opt(&name).await? {
                Some(pod) => Look::Done(PodHandle::of(self, &pod)?),
                None => Look::NotYet("none".to_owned()),
            })
        })
        .await
    }

    /// The Node object, once it satisfies `holds`.
    pub async fn expect_node(&self, goal: &str, holds: impl Fn(&core::Node) -> bool) -> Result<core::Node> {
        let nodes: Api<core::Node> = Api::all(self.client());
        poll::until(format!("node {}: {goal}", self.name()), WITHIN * 2, async || {
            let agent = self.stack().agent().state().await?;
            ensure!(matches!(agent, State::Running { .. }), "the agent has ended: {agent:?}");
            Ok(match nodes.get_opt(self.name()).await? {
                Some(node) if holds(&node) => Look::Done(node),
                Some(node) => {
                    let conditions = node.status.and_then(|status| status.conditions);
                    let conditions = serde_json::to_string(&conditions)?;
                    Look::NotYet(format!("registered, conditions {conditions}"))
                }
                None => Look::NotYet("not registered".to_owned()),
            })
        })
        .await
    }

    pub async fn expect_node_ready(&self, value: &str) -> Result<core::Node> {
        self.expect_node(&format!("Ready={value}"), |node| ready(node) == Some(value)).await
    }

    /// Waits for an event of the node itself with this reason and returns its message.
    pub async fn expect_own_event(&self, reason: &str) -> Result<String> {
        let events: Api<core::Event> = Api::default_namespaced(self.client());
        let fields = format!("involvedObject.kind=Node,involvedObject.name={},reason={reason}", self.name());
        poll::until(format!("event {reason} of the node"), WITHIN, async || {
            let found = events.list(&ListParams::default().fields(&fields)).await.context("list events")?.items.pop();
            Ok(match found {
                Some(event) => Look::Done(event.message.unwrap_or_default()),
                None => Look::NotYet("none".to_owned()),
            })
        })
        .await
    }

    /// The node's lease, once it is there and was renewed after the moment of the call.
    pub async fn expect_lease_renewal(&self) -> Result<LeaseSpec> {
        let leases: Api<Lease> = Api::namespaced(self.client(), "kube-node-lease");
        let look = async || -> Result<Option<LeaseSpec>> {
            Ok(leases.get_opt(self.name()).await?.and_then(|lease| lease.spec))
        };
        let before = look().await?.and_then(|spec| spec.renew_time);
        poll::until("renewal of the lease", WITHIN, async || {
            Ok(match look().await? {
                Some(spec) if spec.renew_time > before => Look::Done(spec),
                last => Look::NotYet(format!("{last:?}")),
            })
        })
        .await
    }

    /// Runs a shell command in a container, past the agent. The runtime waits until it has all the
    /// command wrote; containerd's `ctr` cuts off what is still on its way when the command ends.
    pub async fn exec(&self, container: &ContainerId, script: &str) -> Result<String> {
        let command = ["sh", "-c", script].map(str::to_owned);
        match self.runtime()?.exec(container, &command, Some(WITHIN)).await? {
            Executed::Exited { code: 0, output } => Ok(String::from_utf8(output)?),
            Executed::Exited { code, output } => {
                bail!("{script:?} ended with {code}: {}", String::from_utf8_lossy(&output))
            }
            Executed::TimedOut => bail!("{script:?} did not end within {WITHIN:?}"),
        }
    }

    /// What the node itself gets from an HTTP server, such as the agent's on its loopback.
    pub async fn http_get(&self, url: &str) -> Result<String> {
        self.stack().run(&["timeout", "5", "busybox", "wget", "-q", "-O", "-", url]).await
    }

    /// The runtime below the agent, by way of Ferrolet's own client.
    pub fn runtime(&self) -> Result<GrpcRuntime> {
        runtime_of(self.stack().made())
    }

    /// Gives back what the case used on a shared node. Nothing waits for the end of its pods.
    pub(crate) async fn clean_up(&self) -> Result<()> {
        for path in self.0.static_pods.borrow().iter().filter(|path| path.exists()) {
            std::fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
        }
        if let Some(client) = &self.0.client {
            let namespaces: Api<Namespace> = Api::all(client.clone());
            namespaces.delete(self.namespace(), &DeleteParams::default()).await?;
        }
        Ok(())
    }
}

pub(crate) fn ready(node: &core::Node) -> Option<&str> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    Some(&ready.status)
}

/// A client of a stack's runtime, on the host.
pub fn runtime_of(made: &Made) -> Result<GrpcRuntime> {
    let socket = made.on_node(RUNTIME_SOCKET);
    Ok(GrpcRuntime::connect(&socket.to_string_lossy(), "", Duration::from_secs(10))?)
}

/// A client of the API server, on the host.
pub async fn client(kubeconfig: &Path) -> Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}
