//! The messages and clients of `runtime.v1`, generated from `proto/cri.proto` by `build.rs`.

// Generated names and documentation are not ours to arrange.
#![allow(clippy::all)]

include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));
