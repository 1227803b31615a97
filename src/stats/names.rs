//! What the name of a cgroup tells, by the cgroupfs and the systemd driver. Pure.

/// What a cgroup below kubepods is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// All pods of a class.
    Class,
    /// One pod, by its UID.
    Pod(String),
    /// A container or a sandbox, by the runtime's id.
    Container(&'a str),
    Other,
}

const CLASSES: [&str; 2] = ["burstable", "besteffort"];

pub fn kind(name: &str) -> Kind<'_> {
    if let Some(slice) = name.strip_suffix(".slice") {
        let last = slice.rsplit('-').next().unwrap_or(slice);
        return match last.strip_prefix("pod") {
            // A dash separates levels in a slice's name, so those of the UID are written otherwise.
            Some(uid) if !uid.is_empty() && !CLASSES.contains(&last) => Kind::Pod(uid.replace('_', "-")),
            _ if CLASSES.contains(&last) => Kind::Class,
            _ => Kind::Other,
        };
    }
    let id = name.strip_suffix(".scope").unwrap_or(name);
    match id.strip_prefix("pod") {
        Some(uid) if !uid.is_empty() => Kind::Pod(uid.to_owned()),
        _ if CLASSES.contains(&id) => Kind::Class,
        // CRI-O's monitor beside its container.
        _ if id.starts_with("crio-conmon-") => Kind::Other,
        // `cri-containerd-<id>.scope`, `crio-<id>`: no id has a dash.
        _ => Kind::Container(id.rsplit('-').next().unwrap_or(id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_drivers_names_are_told_apart() {
        let pod = |uid: &str| Kind::Pod(uid.to_owned());
        for (name, expected) in [
            ("burstable", Kind::Class),
            ("besteffort", Kind::Class),
            ("kubepods-besteffort.slice", Kind::Class),
            ("poda0c6-1fef", pod("a0c6-1fef")),
            ("pod1ad415c3c1ddd4d4737ee363153168cb", pod("1ad415c3c1ddd4d4737ee363153168cb")),
            ("kubepods-burstable-poda0c6_1fef.slice", pod("a0c6-1fef")),
            ("kubepods-pod1ad4.slice", pod("1ad4")),
            ("0597b88f", Kind::Container("0597b88f")),
            ("cri-containerd-0597b88f.scope", Kind::Container("0597b88f")),
            ("crio-0597b88f.scope", Kind::Container("0597b88f")),
            ("crio-0597b88f", Kind::Container("0597b88f")),
            ("crio-conmon-0597b88f.scope", Kind::Other),
            ("pod", Kind::Container("pod")),
            ("system.slice", Kind::Other),
        ] {
            assert_eq!(kind(name), expected, "{name}");
        }
    }
}
