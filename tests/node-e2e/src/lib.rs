//! Tests of the agent on real nodes: containerd, runc and the real control plane, each node in
//! a private world on this machine.
//!
//! `stack` makes such nodes, `harness` lets a case read like a story, `cases` are the stories
//! by theme, and `vm` tells those that need a machine of their own. On such nodes too `compare` runs
//! drawn pods beside upstream's kubelet, `bench` measures, and `showcase` is what `make run` shows.

pub mod bench;
pub mod cases;
pub mod compare;
pub mod harness;
pub mod poll;
pub mod provision;
pub mod showcase;
pub mod stack;
pub mod vm;
