use std::process::ExitCode;

fn main() -> ExitCode {
    ferrolet::cli::main(std::env::args_os())
}
