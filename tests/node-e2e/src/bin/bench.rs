//! `make bench`: Ferrolet, upstream's kubelet and the bare CRI calls in turn, in one table; `bench probes hang`
//! measures these parts alone, `AGENT=ferrolet` or `AGENT=kubelet` this agent alone.

use std::process::ExitCode;

use node_e2e::{bench, stack};

fn main() -> ExitCode {
    if let Some(code) = stack::play_role() {
        return code;
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio starts");
    match runtime.block_on(bench::run(&words)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
