//! What a request asks for: of which pod by its path, what by its query, and what that is in
//! the runtime by what the runtime holds. No step of this asks anybody.

use std::fmt;

use http::HeaderMap;
use k8s_openapi::api::core::v1::Pod;

use super::Refusal;
use crate::cri::{Container, ContainerId, SandboxId, Streams};
use crate::pleg::PodRuntime;
use crate::pod::containers::all_containers;
use crate::server::query;
use crate::server::websocket::{protocols, upgrades};

const SPDY: &str = "SPDY/3.1";
const WEBSOCKET: &str = "websocket";

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub act: Act,
    pub namespace: String,
    pub pod: String,
    pub uid: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Exec { container: String },
    Attach { container: String },
    Run { container: String },
    PortForward,
}

impl Target {
    /// `/exec/{namespace}/{pod}[/{uid}]/{container}` and the like; `None` for any other path.
    pub fn of_path(path: &str) -> Option<Target> {
        let (act, rest) = path.strip_prefix('/')?.split_once('/')?;
        let mut steps: Vec<&str> = rest.split('/').collect();
        let named = |container: &str| container.to_owned();
        let act = match act {
            "portForward" => Act::PortForward,
            "exec" => Act::Exec { container: named(steps.pop()?) },
            "attach" => Act::Attach { container: named(steps.pop()?) },
            "run" => Act::Run { container: named(steps.pop()?) },
            _ => return None,
        };
        let (namespace, pod, uid) = match steps.as_slice() {
            [namespace, pod] => (*namespace, *pod, None),
            [namespace, pod, uid] => (*namespace, *pod, Some((*uid).to_owned())),
            _ => return None,
        };
        let has_all = !rest.split('/').any(str::is_empty);
        has_all.then(|| Target { act, namespace: namespace.to_owned(), pod: pod.to_owned(), uid })
    }

    /// Who names a UID means that pod and not its successor. Upstream looks at it for a port-forward
    /// only; for the rest, with another UID it finds no container.
    pub fn check_uid(&self, pod: &Pod) -> Result<(), Refusal> {
        match &self.uid {
            Some(uid) if pod.metadata.uid.as_ref() != Some(uid) => Err(Refusal::OtherPod),
            _ => Ok(()),
        }
    }
}

/// How a client wants to go on after the upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    Spdy,
    /// `tunnels` SPDY inside, which names its ports by itself.
    WebSocket {
        tunnels: bool,
    },
}

impl Offer {
    pub fn of(headers: &HeaderMap) -> Option<Offer> {
        let is_tunnel = |token: &str| token.starts_with("SPDY/3.1+") && token.ends_with("portforward.k8s.io");
        upgrades(headers).find_map(|to| match () {
            () if to.eq_ignore_ascii_case(SPDY) => Some(Offer::Spdy),
            () if to.eq_ignore_ascii_case(WEBSOCKET) => {
                Some(Offer::WebSocket { tunnels: protocols(headers).any(is_tunnel) })
            }
            () => None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Offer::Spdy => SPDY,
            Offer::WebSocket { .. } => WEBSOCKET,
        }
    }
}

/// A query's pairs, decoded as forms are.
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn of(query: &str) -> Self {
        Query(query::pairs(query))
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(named, _)| named == key).map(|(_, value)| value.as_str())
    }

    pub fn first<'a>(&'a self, key: &'a str) -> Option<&'a str> {
        self.all(key).next()
    }

    /// As upstream reads them: no other word but this one means yes.
    fn says(&self, key: &str) -> bool {
        self.first(key) == Some("1")
    }

    /// A terminal has one output, so that with it nobody gets an error stream.
    fn streams(&self, tty: bool) -> Result<Streams, Refusal> {
        let (stdin, stdout) = (self.says("input"), self.says("output"));
        let streams = Streams { stdin, stdout, stderr: self.says("error") && !tty, tty };
        let any = streams.stdin || streams.stdout || streams.stderr;
        any.then_some(streams).ok_or(Refusal::NoStream)
    }

    fn ports(&self) -> Result<Vec<u16>, Refusal> {
        let port = |text: &str| match text.parse() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(Refusal::BadPort(text.chars().take(20).collect())),
        };
        let ports: Vec<u16> =
            self.all("port").flat_map(|ports| ports.split(',')).map(port).collect::<Result<_, _>>()?;
        if ports.is_empty() { Err(Refusal::NoPort) } else { Ok(ports) }
    }
}

/// A stream in the runtime's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamRequest {
    Exec { container: ContainerId, command: Vec<String>, streams: Streams },
    Attach { container: ContainerId, streams: Streams },
    PortForward { sandbox: SandboxId, ports: Vec<u16> },
}

impl fmt::Display for StreamRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StreamRequest::Exec { container, .. } => write!(f, "exec in {container}"),
            StreamRequest::Attach { container, .. } => write!(f, "attach to {container}"),
            StreamRequest::PortForward { sandbox, .. } => write!(f, "port-forward to {sandbox}"),
        }
    }
}

impl StreamRequest {
    /// `run` is none: asked for one, this says that there is no upgrade in it.
    pub fn of(
        target: &Target,
        query: &Query,
        offer: Option<Offer>,
        pod: &Pod,
        held: &PodRuntime,
    ) -> Result<StreamRequest, Refusal> {
        let offer = offer.ok_or(Refusal::NoUpgrade)?;
        match &target.act {
            Act::Exec { container } => {
                let streams = query.streams(query.says("tty"))?;
                let command = query.all("command").map(str::to_owned).collect();
                Ok(StreamRequest::Exec { container: running(held, container)?.id.clone(), command, streams })
            }
            Act::Attach { container } => {
                // The process has a terminal or has none; nobody can change that now.
                let streams = query.streams(has_tty(pod, container))?;
                Ok(StreamRequest::Attach { container: running(held, container)?.id.clone(), streams })
            }
            Act::PortForward => {
                let ports = match offer {
                    Offer::WebSocket { tunnels: false } => query.ports()?,
                    Offer::WebSocket { tunnels: true } | Offer::Spdy => Vec::new(),
                };
                let sandbox = held.sandbox().ok_or(Refusal::NoSandbox)?;
                Ok(StreamRequest::PortForward { sandbox: sandbox.id.clone(), ports })
            }
            Act::Run { .. } => Err(Refusal::NoUpgrade),
        }
    }
}

/// The instance that one can do something with.
pub fn running<'a>(held: &'a PodRuntime, name: &'a str) -> Result<&'a Container, Refusal> {
    let mut instances = held.instances(name);
    instances.find(|instance| instance.is_running()).ok_or_else(|| Refusal::NoContainer(name.to_owned()))
}

fn has_tty(pod: &Pod, name: &str) -> bool {
    all_containers(pod).any(|(_, container)| container.name == name && container.tty == Some(true))
}
