//! The help page, made from the tables of flags and fields.

use std::fmt::{self, Write};

use crate::config::field::{Field, Kind, Preset, Status, Syntax};
use crate::config::fields::FIELDS;
use crate::config::options::{Group, OPTION_FLAGS, OptionFlag, OptionKind};

use super::Name;

/// Where the description of a flag starts, and how wide the page is.
const ABOUT_COLUMN: usize = 38;
const WIDTH: usize = 96;

/// Headings among the fields, each before the field that starts its topic.
const TOPICS: &[(&str, &str)] = &[
    ("enableServer", "The API as a whole"),
    ("staticPodPath", "Static pods, and how often things are looked at"),
    ("address", "The HTTPS API and who may call it"),
    ("registryPullQPS", "Pulls, events, health and DNS"),
    ("nodeStatusUpdateFrequency", "Node status, images and volumes"),
    ("kubeletCgroups", "Cgroups and resource managers"),
    ("runtimeRequestTimeout", "Pods, limits and the API client"),
    ("evictionHard", "Eviction"),
    ("podsPerCore", "The host"),
    ("containerLogMaxSize", "Container logs and reservations"),
    ("logging.format", "Logging"),
    ("reservedMemory", "Registration and the runtime"),
];

pub fn page(name: &Name) -> String {
    let mut page = String::new();
    write_page(&mut page, name).expect("writing to a string cannot fail");
    page
}

fn write_page(page: &mut String, name: &Name) -> fmt::Result {
    let program = &name.program;
    writeln!(
        page,
        "{program}: a Kubernetes node agent. It stands where the kubelet stands: the same flags,\n\
         files, API and names on disk. It registers this machine as a node, and runs the pods that\n\
         the API server and the static pod directory assign to it on a CRI runtime.\n"
    )?;
    writeln!(page, "Usage:")?;
    writeln!(page, "  {program} [flags]")?;
    if name.has_subcommands {
        writeln!(page, "  {program} config [--check] [flags]")?;
        writeln!(page, "      print the effective configuration and where each value came from;")?;
        writeln!(page, "      with --check, say what is wrong with it and exit 1 if anything is")?;
    }
    writeln!(page, "\nA typical node:")?;
    writeln!(page, "  {program} --config=/var/lib/kubelet/config.yaml --kubeconfig=/etc/kubernetes/kubelet.conf")?;
    writeln!(page, "Without an API server, static pods only:")?;
    writeln!(page, "  {program} --pod-manifest-path=/etc/kubernetes/manifests")?;
    for (group, title) in [
        (Group::Files, "Files"),
        (Group::Node, "The node"),
        (Group::Process, "The process"),
        (Group::Deprecated, "Deprecated upstream, without a field in the file"),
    ] {
        writeln!(page, "\n{title}:")?;
        for flag in OPTION_FLAGS.iter().filter(|flag| flag.group == group) {
            option_entry(page, flag)?;
        }
    }
    writeln!(
        page,
        "\nFlags that set one field of the configuration file, and win over it. In brackets the\n\
         field and its default. (Without --config and --config-dir, some older defaults hold:\n\
         anonymous requests are accepted, all requests are allowed, the read-only port is 10255.)"
    )?;
    for field in FIELDS {
        if let Some((_, title)) = TOPICS.iter().find(|(first, _)| *first == field.path) {
            writeln!(page, "\n{title}:")?;
        }
        field_entry(page, field)?;
    }
    writeln!(page, "\nFields of the file that have no flag are not listed here; `ferrolet config` prints all.")?;
    writeln!(page, "(not yet) marks what is accepted and changes nothing so far.")
}

fn option_entry(page: &mut String, flag: &OptionFlag) -> fmt::Result {
    let value = match flag.kind {
        OptionKind::Bool => "",
        OptionKind::Integer => " N",
        OptionKind::Duration => " DURATION",
        OptionKind::Text => " TEXT",
        OptionKind::Labels => " KEY=VALUE,...",
        OptionKind::Version => "[=raw|=vX.Y.Z]",
    };
    let default = match flag.default {
        "" | "false" => String::new(),
        default => format!(" [{default}]"),
    };
    let short = if flag.name == "help" { "-h, " } else { "" };
    let about = format!("{}{default}{}", flag.about, status(flag.status));
    entry(page, &format!("{short}--{}{value}", flag.name), &about)
}

fn field_entry(page: &mut String, field: &Field) -> fmt::Result {
    let Some(flag) = &field.flag else {
        return Ok(());
    };
    let value = match (flag.syntax, field.kind) {
        (Syntax::CommaList, _) => " A,B,...",
        (Syntax::Pairs, _) => " KEY=VALUE,...",
        (Syntax::LessThan, _) => " SIGNAL<LIMIT,...",
        (Syntax::OnePair, _) => " KEY=VALUE",
        (Syntax::Gates, _) => " GATE=BOOL,...",
        (Syntax::Headers, _) => " NAME:VALUE,...",
        (Syntax::Taints, _) => " KEY=VALUE:EFFECT,...",
        (Syntax::ReservedMemory, _) => " NODE:TYPE=QUANTITY,...",
        (Syntax::VModule, _) => " PATTERN=N,...",
        (Syntax::Scalar, Kind::Bool) => "",
        (Syntax::Scalar, Kind::Integer { .. } | Kind::Float) => " N",
        (Syntax::Scalar, Kind::Path) => " PATH",
        (Syntax::Scalar, Kind::Duration | Kind::SignedDuration | Kind::DurationOrNanos) => " DURATION",
        (Syntax::Scalar, Kind::Quantity) => " QUANTITY",
        (Syntax::Scalar, _) => " TEXT",
    };
    let default = match &field.default {
        Preset::Bool(on) => format!(": {on}"),
        Preset::Integer(number) => format!(": {number}"),
        Preset::Float(number) => format!(": {number}"),
        Preset::Text(text) if !text.is_empty() => format!(": {text}"),
        Preset::List(items) if !items.is_empty() => format!(": {}", items.join(",")),
        Preset::Map(entries) if !entries.is_empty() => {
            let entries: Vec<_> = entries.iter().map(|(k, v)| format!("{k}<{v}")).collect();
            format!(": {}", entries.join(", "))
        }
        _ => String::new(),
    };
    let dashes = if flag.name.len() == 1 { "-" } else { "--" };
    let setting = format!("[{}{default}]", field.path);
    let setting = match setting.len() > WIDTH - ABOUT_COLUMN {
        true => setting,
        false => setting.replace(' ', "\u{a0}"),
    };
    let about = format!("{} {setting}{}", field.about, status(field.status));
    entry(page, &format!("{dashes}{}{value}", flag.name), &about)
}

fn status(status: Status) -> &'static str {
    match status {
        Status::NotYet => " (not\u{a0}yet)",
        Status::Works | Status::NoEffect => "",
    }
}

/// A flag on the left, its description wrapped on the right. A no-break space holds two words
/// together and is printed as a plain one.
fn entry(page: &mut String, flag: &str, about: &str) -> fmt::Result {
    let mut line = format!("  {flag}");
    if line.len() + 2 > ABOUT_COLUMN {
        writeln!(page, "{line}")?;
        line.clear();
    }
    let pad = |line: &mut String| *line = format!("{line:<ABOUT_COLUMN$}");
    pad(&mut line);
    for word in about.split(' ') {
        if line.len() + 1 + word.chars().count() > WIDTH && line.len() > ABOUT_COLUMN {
            writeln!(page, "{}", line.trim_end().replace('\u{a0}', " "))?;
            line.clear();
            pad(&mut line);
        }
        if line.len() > ABOUT_COLUMN {
            line.push(' ');
        }
        line.push_str(word);
    }
    writeln!(page, "{}", line.replace('\u{a0}', " "))
}
