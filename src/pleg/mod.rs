//! PLEG: what the runtime really holds, pod by pod.

mod state;

pub use state::PodRuntime;
