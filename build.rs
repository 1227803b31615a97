//! Compiles our protobuf descriptions into OUT_DIR. protox does it without protoc, so that a
//! build needs nothing but cargo.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["proto/cri.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false) // grpc.rs brings its own channel, over a unix socket.
        .btree_map(".") // Labels keep an order, as they do everywhere in the agent.
        .compile_fds(files)?;
    Ok(())
}
