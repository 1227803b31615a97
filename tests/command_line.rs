//! The binary as its users call it: exit codes, and what goes to which stream.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

/// Calls the binary under a name of its own choosing.
fn call(argv0: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferrolet"));
    command.arg0(argv0).args(args).output().expect("the binary was built for this test")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the agent writes UTF-8")
}

#[track_caller]
fn refused(argv0: &str, args: &[&str], expected: &str) {
    let output = call(argv0, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
    assert_eq!(text(&output.stdout), "", "{args:?}");
    assert_eq!(text(&output.stderr), expected, "{args:?}");
}

#[test]
fn version_is_one_line_on_stdout() {
    let own = concat!("Kubernetes v1.36.2+ferrolet.", env!("CARGO_PKG_VERSION"), "\n");
    for (argv0, expected) in [("ferrolet", own), ("kubelet", "Kubernetes v1.36.2\n")] {
        let output = call(argv0, &["--version"]);
        assert!(output.status.success());
        assert_eq!(text(&output.stdout), expected);
        assert_eq!(text(&output.stderr), "");
    }
}

#[test]
fn bad_command_lines_exit_with_1() {
    refused("kubelet", &["config"], "kubelet: unknown command config\n");
    refused("ferrolet", &["help"], "ferrolet: unknown command help\n");
    refused("ferrolet", &["--max-podz=1"], "ferrolet: unknown flag --max-podz; the nearest known flag is --max-pods\n");
    refused(
        "kubelet",
        &["--max-pods=x", "--cloud-provider=aws"],
        "kubelet: --cloud-provider: expected nothing or external, found \"aws\"\n\
         --max-pods: maxPods: expected a whole number, found \"x\"\n",
    );
    refused(
        "kubelet",
        &["--config=/nonexistent"],
        "kubelet: cannot read /nonexistent: No such file or directory (os error 2)\n",
    );
}

#[test]
fn config_prints_and_check_judges() {
    let file = std::env::temp_dir().join(format!("ferrolet-cli-{}.yaml", std::process::id()));
    let path = file.to_string_lossy().into_owned();
    let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    let flag = format!("--config={path}");
    let write = |text: &str| std::fs::write(&file, format!("{head}{text}")).expect("temp file");

    write("maxPods: 7\n");
    let output = call("ferrolet", &["config", &flag]);
    assert!(output.status.success());
    let page = text(&output.stdout);
    let line = page.lines().find(|line| line.starts_with("maxPods: 7 ")).expect("the field is there");
    assert!(line.ends_with(&format!("# {path}:3")), "{line}");
    assert_eq!(text(&output.stderr), "");
    let output = call("ferrolet", &["config", "--check", &flag]);
    assert!(output.status.success());
    assert_eq!(text(&output.stdout), "the configuration is fine\n");

    write("maxPods: 7\nmaxpod: 8\n");
    let output = call("ferrolet", &["config", &flag]);
    assert!(output.status.success());
    let warning = format!("warning: {path}:4: maxpod: unknown field, ignored; the nearest known one is maxPods\n");
    assert_eq!(text(&output.stderr), warning);
    refused(
        "ferrolet",
        &["config", "--check", &flag],
        &format!("{warning}ferrolet: the configuration works, with the warning above\n"),
    );

    write("maxPods: -1\n");
    let expected = format!("ferrolet: {path}:3: maxPods: must be at least 0, found -1\n");
    refused("ferrolet", &["config", &flag], &expected);
    refused("ferrolet", &[&flag], &expected);
    std::fs::remove_file(&file).expect("temp file");
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let script = format!("{} --help | head -n 1; echo ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_ferrolet"));
    let output = Command::new("bash").args(["-c", &script]).output().expect("bash");
    assert!(text(&output.stdout).ends_with("\n0\n"), "{output:?}");
}
