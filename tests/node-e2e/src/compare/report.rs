//! What a container tells about itself: a script that drawn containers begin with, and how to
//! read what it wrote.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Sections begin with a line like `[env]`. In a pod `$(...)` is a variable and `$$` one dollar.
const LOOK_AROUND: &str = r#"
exec 2>&1
echo "[args]"; for a in "$@"; do echo "<$a>"; done
echo "[env]"; env
echo "[id]"; id
echo "[directory]"; pwd
echo "[hostname]"; hostname
echo "[hosts]"; cat /etc/hosts
echo "[resolv.conf]"; cat /etc/resolv.conf
echo "[status]"; grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status
echo "[limits]"; cat /proc/self/limits
echo "[oom]"; cat /proc/self/oom_score_adj
echo "[mounts]"; cut -d' ' -f5- /proc/self/mountinfo
echo "[roots]"; cut -d' ' -f4,5 /proc/self/mountinfo | grep -v ' /proc' | grep -v ' /sys'
echo "[devices]"; ls -ln /dev | cut -c1-10
ls /dev
echo "[sysctls]"; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/tcp_syncookies
echo "[processes]"; test "$$$$" = 1 && echo first
echo "[log]"; ls -ln /dev/termination-log | cut -c1-33
if [ -d /v ]; then
echo "[files]"; find /v -path '*common-licenses*' -prune -o -exec stat -c '%A %u:%g %n' {} \; | grep -v '/\.\.[0-9]'
echo "[contents]"; for v in /v/*; do
  if [ -f "$v" ]; then echo "$v: `head -c 40 $v`"; else
  for f in `cd $v && find . -maxdepth 3 | grep -v '\.\.[0-9]' | sort | head -12`; do
    case $f in */token) ;; *) [ -f "$v/$f" ] && echo "$v/$f: `head -c 200 $v/$f`";; esac
  done; fi
done
echo "[writing]"; for v in /v/*; do ( : > $v/.written ) && rm $v/.written && echo "$v can be written"; done
fi
echo "[root]"; ( : > /written ) && echo can be written
echo "[end]"
"#;

/// The script of a container that looks around and then does this.
pub fn script(ending: &str) -> String {
    format!("{LOOK_AROUND}{ending}\n")
}

/// The sections of such a log. What is without order in itself is sorted or told by its name.
pub fn read(log: &str) -> Value {
    let mut sections: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut current = "";
    for line in log.lines().map(|line| line.trim_end_matches('\r')) {
        let name = line.strip_prefix('[').and_then(|line| line.strip_suffix(']'));
        let is_name = |name: &&str| name.starts_with(|first: char| first.is_ascii_lowercase()) && !name.contains(' ');
        match name.filter(is_name) {
            Some(name) => {
                current = name;
                sections.entry(current).or_default();
            }
            None => sections.entry(current).or_default().push(line),
        }
    }
    let told = sections.into_iter().map(|(name, mut lines)| {
        let value = match name {
            "env" => json!(
                lines.into_iter().map(|line| line.split_once('=').unwrap_or((line, ""))).collect::<BTreeMap<_, _>>()
            ),
            "mounts" => json!(lines.into_iter().filter_map(mount).collect::<BTreeMap<_, _>>()),
            "files" => json!(
                lines
                    .into_iter()
                    .filter_map(|line| line.rsplit_once(' '))
                    .map(|(mode, file)| (file, mode))
                    .collect::<BTreeMap<_, _>>()
            ),
            "contents" => {
                json!(lines.into_iter().map(without_notes).filter(|line| !line.is_empty()).collect::<Vec<_>>())
            }
            "roots" => json!(lines.into_iter().map(root).collect::<BTreeMap<_, _>>()),
            "devices" => {
                lines.sort_unstable();
                json!(lines)
            }
            _ => json!(lines),
        };
        (name.to_owned(), value)
    });
    Value::Object(told.collect())
}

/// Upstream shows a pod that reads its annotations what it noted there for itself.
fn without_notes(line: &str) -> &str {
    line.find("kubernetes.io/config.").map_or(line, |note| &line[..note])
}

/// Where it is mounted, and of what. A part of a volume is in a directory named by the time;
/// when the volume changes that is gone, which the machine tells.
fn root(line: &str) -> (&str, String) {
    let (root, place) = line.rsplit_once(' ').unwrap_or((line, ""));
    let root = root.trim_end_matches("//deleted");
    let names = root.split('/').map(|name| if name.starts_with("..20") { "..<time>" } else { name });
    (place, names.collect::<Vec<_>>().join("/"))
}

/// Where it is and how it is mounted, from a line of mountinfo without its first four fields.
fn mount(line: &str) -> Option<(String, String)> {
    let (here, there) = line.split_once(" - ")?;
    let mut here = here.split(' ');
    let (place, options) = (here.next()?, here.next()?);
    // Peer groups are numbered by the machine.
    let peers: Vec<&str> = here.filter_map(|field| field.split(':').next()).collect();
    let mut there = there.split(' ');
    let (kind, _, of_kind) = (there.next()?, there.next()?, there.next()?);
    // Those of others name directories and devices of the machine.
    let of_kind = if kind == "tmpfs" { of_kind } else { "" };
    Some((place.to_owned(), format!("{options} {} {kind} {of_kind}", peers.join(" "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read_by_its_sections() {
        let read = read("first\n[env]\nB=2\nA=1\n[end]\nthe last line\n");
        assert_eq!(read, json!({ "": ["first"], "env": { "A": "1", "B": "2" }, "end": ["the last line"] }));
    }

    #[test]
    fn of_a_mount_only_what_belongs_to_the_pod_is_told() {
        let told = mount("/v ro,relatime master:7 - tmpfs tmpfs rw,size=4k");
        assert_eq!(told, Some(("/v".into(), "ro,relatime master tmpfs rw,size=4k".into())));
    }

    #[test]
    fn a_part_of_a_volume_is_told_without_its_time() {
        assert_eq!(root("/..2026_11_21.91/dir/deep//deleted /v/v1"), ("/v/v1", "/..<time>/dir/deep".to_owned()));
        assert_eq!(root("/etc /v/v0"), ("/v/v0", "/etc".to_owned()));
    }

    #[test]
    fn nothing_in_the_script_is_a_variable_of_the_pod() {
        assert!(!LOOK_AROUND.contains("$("));
    }
}
