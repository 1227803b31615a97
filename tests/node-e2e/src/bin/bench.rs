//! `make bench`: Ferrolet, upstream's kubelet and the bare CRI calls in turn, in one table.

use std::process::ExitCode;

use node_e2e::{bench, stack};

fn main() -> ExitCode {
    if let Some(code) = stack::play_role() {
        return code;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio starts");
    match runtime.block_on(bench::run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
