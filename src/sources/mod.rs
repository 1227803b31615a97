//! Sources: where the pods of this node come from, as one stream of [`SourceEvent`]s.
//!
//! `api.rs` turns the API server's watch into it; the static-pod sources (`static_dir/`,
//! `static_url/`) do the same for what they read, through `manifests.rs`. Mirror pods come in as ordinary pods of the API source: telling them apart
//! is the dispatcher's business, who also knows the static pods they stand for.
//!
//! Out: a bounded channel of `SourceEvent` to the sync dispatcher.
//!
//! Always true: a source is silent until it has seen everything it has once, and its first
//! event is `Listed`. Until then nothing may be concluded from a pod's absence.

pub mod api;
mod manifests;
pub mod mirror;
pub mod static_dir;
pub mod static_url;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::pod::{PodUid, Source};

/// What a source has to say.
#[derive(Clone, PartialEq, Debug)]
pub enum SourceEvent {
    /// The whole set of one source: a pod of this source that is missing here is gone. Of two
    /// static pods of one name the first counts.
    Listed { source: Source, pods: Vec<Arc<Pod>> },
    /// The pod is new, or is now like this.
    Applied { source: Source, pod: Arc<Pod> },
    /// The pod is gone from its source.
    Removed { source: Source, uid: PodUid },
}
