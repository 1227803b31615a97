//! Image names, as registries and runtimes understand them.
//!
//! `[domain[:port]/]path[:tag][@digest]`, where a first component that does not look like a
//! host belongs to the path, and a path on Docker Hub without a `/` gets `library/`.

use std::fmt;

const DEFAULT_DOMAIN: &str = "docker.io";
/// The name under which Docker Hub was once reached; it means the same.
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const OFFICIAL_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";
const NAME_LENGTH_MAX: usize = 255;
const TAG_LENGTH_MAX: usize = 128;

/// An image name taken apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    pub domain: String,
    pub path: String,
    pub tag: Option<String>,
    pub digest: Option<String>,
}

/// Why a text names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("invalid reference format: the name is empty")]
    Empty,
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    #[error("invalid reference format: {0:?} is not a registry host")]
    Domain(String),
    #[error("invalid reference format: {0:?} is not a repository name")]
    Path(String),
    #[error("invalid reference format: repository name must not be more than 255 characters")]
    TooLong,
    #[error("invalid reference format: {0:?} is not a tag")]
    Tag(String),
    #[error("invalid reference format: {0:?} is not a digest")]
    Digest(String),
    #[error("invalid repository name ({0}): 64 hexadecimal characters are an image id, not a name")]
    Id(String),
}

impl Reference {
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() == 64 && text.bytes().all(is_lower_hex) {
            return Err(ReferenceError::Id(text.to_owned()));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        // A colon before the last slash belongs to a port.
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        let (domain, path) = match name.split_once('/') {
            Some((first, rest)) if looks_like_host(first) => (first, rest),
            _ => (DEFAULT_DOMAIN, name),
        };
        let domain = if domain == LEGACY_DEFAULT_DOMAIN { DEFAULT_DOMAIN } else { domain };
        let path = match domain == DEFAULT_DOMAIN && !path.contains('/') {
            true => format!("{OFFICIAL_NAMESPACE}/{path}"),
            false => path.to_owned(),
        };

        if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(ReferenceError::Uppercase(path));
        }
        if !is_host(domain) {
            return Err(ReferenceError::Domain(domain.to_owned()));
        }
        if !path.split('/').all(is_path_component) {
            return Err(ReferenceError::Path(path));
        }
        if domain.len() + 1 + path.len() > NAME_LENGTH_MAX {
            return Err(ReferenceError::TooLong);
        }
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag(tag.to_owned()));
        }
        if let Some(digest) = digest.filter(|digest| !is_digest(digest)) {
            return Err(ReferenceError::Digest(digest.to_owned()));
        }
        Ok(Reference {
            domain: domain.to_owned(),
            path,
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }

    /// Domain and path, which is what credentials are matched against.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    pub fn is_on_docker_hub(&self) -> bool {
        self.domain == DEFAULT_DOMAIN
    }

    /// A name that may stand for another image tomorrow: `:latest`, or neither tag nor digest.
    pub fn is_latest(&self) -> bool {
        match &self.tag {
            Some(tag) => tag == DEFAULT_TAG,
            None => self.digest.is_none(),
        }
    }

    /// What the runtime is asked for: the text as written, with the default tag where it names
    /// neither tag nor digest. The domain is not filled in, as a runtime may have a search
    /// list of its own for short names (CRI-O's `unqualified-search-registries`).
    pub fn for_runtime(&self, text: &str) -> String {
        match self.tag.is_none() && self.digest.is_none() {
            true => format!("{text}:{DEFAULT_TAG}"),
            false => text.to_owned(),
        }
    }
}

/// The full form: two texts with the same one name the same image.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        match (&self.tag, &self.digest) {
            (None, None) => write!(f, ":{DEFAULT_TAG}"),
            (tag, digest) => {
                if let Some(tag) = tag {
                    write!(f, ":{tag}")?;
                }
                if let Some(digest) = digest {
                    write!(f, "@{digest}")?;
                }
                Ok(())
            }
        }
    }
}

/// Whether the first component of a name is a host rather than part of the path.
fn looks_like_host(component: &str) -> bool {
    component.contains(['.', ':'])
        || component == "localhost"
        || component.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_host(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => return address.parse::<std::net::Ipv6Addr>().is_ok(),
            Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => {
                ("localhost", port.strip_prefix(':').or(Some("")))
            }
            _ => return false,
        },
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(is_label)
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Runs of lower-case letters and digits, parted by one `.`, one or two `_`, or any `-`s.
fn is_path_component(component: &str) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().is_some_and(is_word) || !bytes.last().is_some_and(is_word) {
        return false;
    }
    bytes
        .split(is_word)
        .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !tag.is_empty()
        && tag.len() <= TAG_LENGTH_MAX
        && is_word(tag.as_bytes()[0])
        && tag.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

/// The three algorithms that runtimes know, each with its length.
fn is_digest(digest: &str) -> bool {
    let Some((algorithm, hex)) = digest.split_once(':') else { return false };
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return false,
    };
    hex.len() == length && hex.bytes().all(is_lower_hex)
}

fn is_lower_hex(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, full: &str) {
        assert_eq!(Reference::parse(text).map(|reference| reference.to_string()), Ok(full.to_owned()), "{text}");
    }

    fn refuse(text: &str, expected: ReferenceError) {
        assert_eq!(Reference::parse(text), Err(expected), "{text}");
    }

    #[test]
    fn names_are_completed() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        check("busybox", "docker.io/library/busybox:latest");
        check("busybox:1.36", "docker.io/library/busybox:1.36");
        check("team/app", "docker.io/team/app:latest");
        check("docker.io/busybox", "docker.io/library/busybox:latest");
        check("index.docker.io/busybox", "docker.io/library/busybox:latest");
        check("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10");
        check("localhost/app", "localhost/app:latest");
        check("localhost:5000/app", "localhost:5000/app:latest");
        check("LOCAL/app", "LOCAL/app:latest");
        check("[::1]:5000/app:v1", "[::1]:5000/app:v1");
        check("[fd00::1]/app:v1", "[fd00::1]/app:v1");
        check("a.b/c/d/e--f/g__h/i.j:T_1.x-y", "a.b/c/d/e--f/g__h/i.j:T_1.x-y");
        check(&format!("busybox@{digest}"), &format!("docker.io/library/busybox@{digest}"));
        check(&format!("busybox:1@{digest}"), &format!("docker.io/library/busybox:1@{digest}"));
    }

    #[test]
    fn what_names_no_image_is_refused_with_its_reason() {
        refuse("", ReferenceError::Empty);
        refuse("Busybox", ReferenceError::Uppercase("library/Busybox".into()));
        refuse("team/App", ReferenceError::Uppercase("team/App".into()));
        refuse("-bad.host/app", ReferenceError::Domain("-bad.host".into()));
        refuse("host:port/app", ReferenceError::Domain("host:port".into()));
        refuse("[::1/app", ReferenceError::Domain("[::1".into()));
        refuse("[::1]x/app", ReferenceError::Domain("[::1]x".into()));
        refuse("a//b", ReferenceError::Path("a//b".into()));
        refuse("a_-b", ReferenceError::Path("library/a_-b".into()));
        refuse("a___b", ReferenceError::Path("library/a___b".into()));
        refuse("a..b", ReferenceError::Path("library/a..b".into()));
        refuse("app/", ReferenceError::Path("app/".into()));
        refuse("a b", ReferenceError::Path("library/a b".into()));
        refuse("https://a.b/c", ReferenceError::Domain("https:".into()));
        refuse("app:", ReferenceError::Tag("".into()));
        refuse("app:-x", ReferenceError::Tag("-x".into()));
        refuse("app@sha256:abc", ReferenceError::Digest("sha256:abc".into()));
        refuse("app@", ReferenceError::Digest("".into()));
        refuse(&"a".repeat(250), ReferenceError::TooLong);
        refuse(&"ab".repeat(32), ReferenceError::Id("ab".repeat(32)));
    }

    #[test]
    fn the_runtime_is_asked_for_the_name_as_written_with_a_tag() {
        let check = |text: &str, expected: &str| {
            let reference = Reference::parse(text).expect("a valid name");
            assert_eq!(reference.for_runtime(text), expected);
        };
        let digest = format!("sha256:{}", "0a".repeat(32));
        check("busybox", "busybox:latest");
        check("busybox:1", "busybox:1");
        check("localhost:5000/app", "localhost:5000/app:latest");
        check(&format!("busybox@{digest}"), &format!("busybox@{digest}"));
    }
}
