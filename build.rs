//! Compiles our protobuf descriptions into OUT_DIR. protox does it without protoc, so that a
//! build needs nothing but cargo.

use std::env;
use std::error::Error;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo:rustc-env=FERROLET_BUILT_SECONDS={}", built_seconds()?);
    let files = protox::compile(["proto/cri.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false) // grpc.rs brings its own channel, over a unix socket.
        .btree_map(".") // Labels keep an order, as they do everywhere in the agent.
        .compile_fds(files)?;
    Ok(())
}

/// When this was built, which a clock that is right is not behind. Distributions that build
/// the same bytes twice say what it is to be.
fn built_seconds() -> Result<u64, Box<dyn Error>> {
    if let Ok(given) = env::var("SOURCE_DATE_EPOCH") {
        return Ok(given.parse()?);
    }
    #[allow(clippy::disallowed_methods)] // The agent's clock is not there while it is being built.
    let now = SystemTime::now();
    Ok(now.duration_since(UNIX_EPOCH)?.as_secs())
}
