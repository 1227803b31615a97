use std::ffi::OsString;

use super::*;
use crate::config::flags::Known;

fn read(args: &[&str]) -> Result<Args, ArgsError> {
    args::parse(args.iter().map(OsString::from))
}

/// The flags of a command line as `name=value`, joined by blanks.
fn flags_of(args: &[&str]) -> String {
    let args = read(args).unwrap_or_else(|error| panic!("{args:?}: {error}"));
    let uses = args.given.uses.iter().map(|(flag, value)| format!("{}={value}", flag.name()));
    uses.collect::<Vec<_>>().join(" ")
}

fn ask(argv0: &str, args: &[&str]) -> Result<Command, ArgsError> {
    let name = Name::of(Some(&OsString::from(argv0)));
    command(&name, args.iter().map(OsString::from))
}

#[test]
fn every_flag_is_taken_in_every_syntax() {
    for flag in flags::all() {
        let name = flag.name();
        let value = "value with = and blank";
        let expected = format!("{name}={value}");
        for dashes in ["--", "-"] {
            let glued = format!("{dashes}{name}={value}");
            assert_eq!(flags_of(&[&glued]), expected);
            let underscored = format!("{dashes}{}={value}", name.replace('-', "_"));
            assert_eq!(flags_of(&[&underscored]), expected);
            let bare = format!("{dashes}{name}");
            match flag.is_switch() {
                true => assert_eq!(flags_of(&[&bare]), format!("{name}=true")),
                false => assert_eq!(flags_of(&[&bare, value]), expected),
            }
        }
    }
}

#[test]
fn values_and_words_are_told_apart() {
    assert_eq!(flags_of(&["--config", "--max-pods=3"]), "config=--max-pods=3");
    assert_eq!(flags_of(&["--config="]), "config=");
    assert_eq!(flags_of(&["-v4", "-v=5", "-v", "6", "--v=7", "--v", "8"]), "v=4 v=5 v=6 v=7 v=8");
    assert_eq!(flags_of(&["--max_pods=3", "--fail_swap_on"]), "max-pods=3 fail-swap-on=true");
    assert_eq!(flags_of(&["-h", "--help=false"]), "help=true help=false");
    let words = |args: &[&str]| read(args).map(|args| args.words.join(" "));
    assert_eq!(words(&["--fail-swap-on", "false"]), Ok("false".to_owned()));
    assert_eq!(words(&["a", "--v=1", "-", "--", "--b"]), Ok("a - --b".to_owned()));
    assert_eq!(words(&["--"]), Ok(String::new()));
}

#[test]
fn what_is_no_flag_is_an_error() {
    let check = |args: &[&str], expected: &str| {
        let error = read(args).expect_err("should be refused").to_string();
        assert_eq!(error, expected, "{args:?}");
    };
    check(&["--maxpods=3"], "unknown flag --maxpods; the nearest known flag is --max-pods");
    check(&["--max-podz", "3"], "unknown flag --max-podz; the nearest known flag is --max-pods");
    check(&["-kubeconf=/x"], "unknown flag -kubeconf; the nearest known flag is --kubeconfig");
    check(&["--node_i=1"], "unknown flag --node_i; the nearest known flag is --node-ip");
    check(&["-v4x"], "unknown flag -v4x; the nearest known flag is --v");
    check(&["--v4"], "unknown flag --v4; the nearest known flag is --v");
    check(
        &["--pod-infra-container-image=x"],
        "unknown flag --pod-infra-container-image; the nearest known flag is --container-hints",
    );
    check(&["--config"], "flag --config needs a value");
    check(&["--=x"], "bad flag syntax: --=x");
    check(&["---v"], "bad flag syntax: ---v");
}

#[test]
fn a_drop_in_has_no_subcommands() {
    let check = |argv0: &str, args: &[&str], expected: Result<Command, &str>| {
        assert_eq!(ask(argv0, args).map_err(|e| e.to_string()), expected.map_err(str::to_owned));
    };
    let none = GivenFlags::default;
    for own in ["ferrolet", "/usr/bin/ferrolet", "./target/debug/ferrolet"] {
        check(own, &[], Ok(Command::Run { given: none() }));
        check(own, &["config"], Ok(Command::Config { given: none(), check: false }));
        check(own, &["config", "--check"], Ok(Command::Config { given: none(), check: true }));
        check(own, &["--check", "config"], Ok(Command::Config { given: none(), check: true }));
        check(own, &["--check"], Err("--check: belongs to the config subcommand"));
        check(own, &["config", "config"], Err("unknown command config"));
        check(own, &["start"], Err("unknown command start"));
    }
    for drop_in in ["kubelet", "/usr/bin/kubelet"] {
        check(drop_in, &[], Ok(Command::Run { given: none() }));
        check(drop_in, &["config"], Err("unknown command config"));
        check(drop_in, &["--fail-swap-on", "false"], Err("unknown command false"));
    }
}

#[test]
fn help_and_version_answer_first() {
    let check = |args: &[&str], expected: Command| assert_eq!(ask("kubelet", args), Ok(expected));
    check(&["--help"], Command::Help);
    check(&["-h", "word"], Command::Help);
    check(&["--config=/x", "-h"], Command::Help);
    check(&["--version"], Command::Version { raw: false });
    check(&["--version=true", "--config=/x"], Command::Version { raw: false });
    check(&["--version=raw"], Command::Version { raw: true });
    assert!(matches!(ask("kubelet", &["--version=false"]), Ok(Command::Run { .. })));
    assert!(matches!(ask("kubelet", &["--version=v1.36.2-x"]), Ok(Command::Run { .. })));
    assert!(matches!(ask("kubelet", &["--version=foo"]), Err(ArgsError::BadValue { .. })));
    assert!(matches!(ask("kubelet", &["--help=foo"]), Err(ArgsError::BadValue { .. })));
}

#[test]
fn the_version_is_one_line_that_kubeadm_takes() {
    let named = |argv0: &str| Name::of(Some(&OsString::from(argv0)));
    let told = |argv0: &str| {
        let line = version(false, &named(argv0));
        let version = line.strip_prefix("Kubernetes v").and_then(|rest| rest.strip_suffix('\n'));
        version.expect("name, v, version, end of line").to_owned()
    };
    let of_kubelet = told("/usr/bin/kubelet");
    assert_eq!(of_kubelet.split('.').filter(|part| part.parse::<u32>().is_ok()).count(), 3);
    assert_eq!(of_kubelet.split('.').count(), 3, "no more than the kubelet's own tells");
    let own = told("ferrolet");
    let build = own.strip_prefix(&of_kubelet).and_then(|rest| rest.strip_prefix("+ferrolet."));
    let build = build.expect("our own version is build metadata of the kubelet's");
    assert!(build.chars().all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '-'), "{build}");
    assert_eq!(version(true, &named("kubelet")).lines().count(), 1);
}

#[test]
fn the_help_page_names_every_flag_once_and_fits() {
    let name = Name::of(Some(&OsString::from("ferrolet")));
    let page = help::page(&name);
    for flag in flags::all() {
        let dashes = if flag.name().len() == 1 { "-" } else { "--" };
        let start = format!("{dashes}{}", flag.name());
        let entries = page.lines().filter(|line| {
            let entry = line.strip_prefix("  ").unwrap_or_default().trim_start_matches("-h, ");
            entry.strip_prefix(&start).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '[']))
        });
        // The example at the top starts with the name of the program.
        assert_eq!(entries.count(), 1, "{start}");
    }
    for line in page.lines() {
        assert!(line.chars().count() <= 96, "{line}");
        assert!(!line.contains('\u{a0}') && line.trim_end() == line, "{line:?}");
    }
    assert!(page.contains("ferrolet config [--check]"));
    let drop_in = help::page(&Name::of(Some(&OsString::from("/usr/bin/kubelet"))));
    assert!(drop_in.contains("  kubelet [flags]") && !drop_in.contains("--check"));
}

#[test]
fn no_two_flags_share_a_name() {
    let mut names: Vec<_> = flags::all().map(Known::name).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
}
