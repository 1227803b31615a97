//! `/pods` and `/runningpods/`: lists of pods, written one pod after the other as the caller
//! takes them, so that nobody's slow reading keeps a whole list in memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use futures::stream;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::body::{self, Body};
use crate::cri::{ContainerStateKind, ContainerSummary, Runtime, Scope};
use crate::pleg::Pleg;
use crate::pod::PodUid;
use crate::sync::{Known, Roster};

const HEAD: &[u8] = br#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":["#;
const TAIL: &[u8] = b"]}\n";

/// All that sources have, mirrors left out.
pub fn configured(roster: &Roster) -> Response<Body> {
    list(roster.all(), |known: &Known| known.shown())
}

/// What runs according to the runtime, whoever wants it.
pub async fn running(runtime: &dyn Runtime, pleg: &Pleg) -> Response<Body> {
    match runtime.list_containers(&Scope::All).await {
        Ok(containers) => list(synthesised(containers, pleg), Clone::clone),
        Err(error) => body::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn list<T: Send + 'static>(items: Vec<T>, pod: impl Fn(&T) -> Arc<Pod> + Send + 'static) -> Response<Body> {
    let items = items.into_iter().enumerate().map(move |(place, item)| {
        let mut json = if place == 0 { Vec::new() } else { vec![b','] };
        serde_json::to_writer(&mut json, &*pod(&item)).map_err(io::Error::other)?;
        Ok(Bytes::from(json))
    });
    let ends = |bytes: &'static [u8]| std::iter::once(Ok(Bytes::from_static(bytes)));
    let frames = ends(HEAD).chain(items).chain(ends(TAIL)).map(|bytes: io::Result<Bytes>| bytes.map(Frame::data));
    body::json(StreamBody::new(stream::iter(frames)).boxed_unsync())
}

/// One pod of each UID that has something running: names and images, no more.
fn synthesised(containers: Vec<ContainerSummary>, pleg: &Pleg) -> Vec<Arc<Pod>> {
    let mut pods: BTreeMap<String, Vec<ContainerSummary>> = BTreeMap::new();
    for container in containers {
        if container.state == ContainerStateKind::Running && !container.pod_uid.is_empty() {
            pods.entry(container.pod_uid.clone()).or_default().push(container);
        }
    }
    pods.into_iter().map(|(uid, containers)| Arc::new(pod(&uid, &containers, pleg))).collect()
}

fn pod(uid: &str, containers: &[ContainerSummary], pleg: &Pleg) -> Pod {
    let read = pleg.cached(&PodUid::new(uid));
    let image = |container: &ContainerSummary| {
        let known = read.as_ref().and_then(|read| read.containers.iter().find(|known| known.id == container.id));
        known.map_or_else(|| container.image_id.clone(), |known| known.image.clone())
    };
    let mut pod = Pod::default();
    pod.metadata.uid = Some(uid.to_owned());
    pod.metadata.name = containers.first().map(|container| container.pod_name.clone());
    pod.metadata.namespace = containers.first().map(|container| container.pod_namespace.clone());
    let containers = containers.iter().map(|container| Container {
        name: container.name.clone(),
        image: Some(image(container)),
        ..Container::default()
    });
    pod.spec = Some(PodSpec { containers: containers.collect(), ..PodSpec::default() });
    pod
}
