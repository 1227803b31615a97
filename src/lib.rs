//! Ferrolet, a kubelet-compatible node agent. `ARCHITECTURE.md` has the plan of the house.

// Ground: facts and edges.
mod authorities;
pub mod causes;
pub mod changes;
pub mod clock;
pub mod config;
pub mod cri;
pub mod host;
pub mod kube;
pub mod metrics;
pub mod net;
pub mod pod;

// Capabilities.
pub mod admission;
pub mod events;
pub mod handlers;
pub mod identity;
pub mod images;
pub mod logs;
pub mod objects;
pub mod pleg;
pub mod probes;
pub mod sources;
pub mod stats;
pub mod status;
pub mod topology;
pub mod volumes;

// Loops that decide.
pub mod node;
pub mod server;
pub mod service_manager;
pub mod sync;

// The composition root and the command line.
pub mod agent;
pub mod cli;
