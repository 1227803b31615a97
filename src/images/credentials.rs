//! Which credentials fit an image.
//!
//! They come from the pod's pull secrets, from files of the node, and from credential
//! providers, and are tried in this order; of one source the most specific match comes first.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::{Pod, Secret};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::providers::Providers;
use super::reference::Reference;
use crate::cri::Auth;
use crate::host::Host;

/// Under this host the credentials for Docker Hub are written, whatever the image's domain says.
const DOCKER_HUB_HOST: &str = "index.docker.io";
/// More than anybody's logins need.
const DOCKER_CONFIG_BYTES_MAX: usize = 1 << 20;

/// Credentials that fit an image, and whose they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Credential {
    pub auth: Auth,
    pub owner: Owner,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// Of every pod of this node.
    Node,
    /// Of those that mention the secret.
    Secret(ObjectRef),
    /// Of those with this service account.
    Account(ObjectRef),
}

/// A secret or a service account.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub(super) struct ObjectRef {
    pub uid: String,
    pub namespace: String,
    pub name: String,
}

/// What there is to pull one image with.
#[derive(Debug, Default)]
pub(super) struct Credentials {
    /// In the order in which they are tried.
    pub list: Vec<Credential>,
    /// Secrets that cannot be read, so that a failed pull can tell.
    pub unreadable: Vec<String>,
}

/// What a registry is told, each once, whoever has it.
pub(super) fn distinct(credentials: &[Credential]) -> Vec<Auth> {
    let mut auths: Vec<Auth> = Vec::new();
    for Credential { auth, .. } in credentials {
        if !auths.contains(auth) {
            auths.push(auth.clone());
        }
    }
    auths
}

/// Everything on this node that knows credentials.
pub(super) struct Keyring {
    pub host: Arc<dyn Host>,
    /// Docker's configuration files; the first that is there counts.
    pub files: Vec<PathBuf>,
    pub providers: Providers,
}

impl Keyring {
    /// Asks everybody who may know how to pull the image for this pod.
    pub async fn credentials(&self, image: &Reference, pod: &Pod, secrets: &[Secret]) -> Credentials {
        let mut of_pod = Fitting::of(image);
        secrets.iter().for_each(|secret| of_pod.add_secret(secret));
        let mut credentials = of_pod.sorted();
        let of_files = vec![(Owner::Node, self.file_entries().await.into_iter().collect())];
        for source in [of_files, self.providers.entries(image, pod).await] {
            let mut fitting = Fitting::of(image);
            source.into_iter().for_each(|(owner, entries)| fitting.add(&owner, entries));
            credentials.list.extend(fitting.sorted().list);
        }
        credentials
    }

    /// Read anew each time: whoever logs in on the node need not tell the agent.
    async fn file_entries(&self) -> BTreeMap<String, Entry> {
        for path in &self.files {
            let failure = match self.host.read_file(path, DOCKER_CONFIG_BYTES_MAX).await {
                Ok(None) => continue,
                Ok(Some(text)) => match entries_of(&text, path.ends_with("config.json")) {
                    Some(entries) => return entries,
                    None => "neither of the two formats".to_owned(),
                },
                Err(error) => error.to_string(),
            };
            warn!(path = %path.display(), failure, "credentials of the node are not readable, images are pulled without");
        }
        BTreeMap::new()
    }
}

/// Credentials as they are found to fit.
struct Fitting<'a> {
    image: &'a Reference,
    repository: String,
    found: Vec<((usize, bool, usize), Credential)>,
    unreadable: Vec<String>,
}

impl<'a> Fitting<'a> {
    fn of(image: &'a Reference) -> Self {
        Fitting { image, repository: image.repository(), found: Vec::new(), unreadable: Vec::new() }
    }

    fn add_secret(&mut self, secret: &Secret) {
        let metadata = &secret.metadata;
        let reference = ObjectRef {
            uid: metadata.uid.clone().unwrap_or_default(),
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        };
        match secret_entries(secret) {
            Some(entries) => self.add(&Owner::Secret(reference), entries),
            None => self.unreadable.push(reference.name),
        }
    }

    fn add(&mut self, owner: &Owner, entries: impl IntoIterator<Item = (String, Entry)>) {
        for (server, entry) in entries {
            let place = Place::of(&server);
            let fits = place.holds(&self.repository) || (self.image.is_on_docker_hub() && place.holds(DOCKER_HUB_HOST));
            if fits && let Some(auth) = entry.into_auth() {
                self.found.push((place.specificity(), Credential { auth, owner: owner.clone() }));
            }
        }
    }

    fn sorted(self) -> Credentials {
        let mut found = self.found;
        // A stable sort: equal ones stay in the order in which they were added.
        found.sort_by_key(|(specificity, _)| std::cmp::Reverse(*specificity));
        let list = found.into_iter().map(|(_, credential)| credential).collect();
        Credentials { list, unreadable: self.unreadable }
    }
}

/// One line of a Docker configuration file, or of a provider's answer.
#[derive(Clone, Deserialize)]
pub(super) struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    /// `user:password` in base64, which is what `docker login` writes.
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

fn secret_entries(secret: &Secret) -> Option<BTreeMap<String, Entry>> {
    let data = |key: &str| secret.data.as_ref()?.get(key).map(|bytes| bytes.0.as_slice());
    // By key, not by the secret's type as upstream does: a wrong type is then no riddle.
    match data(".dockerconfigjson") {
        Some(config) => entries_of(config, true),
        None => entries_of(data(".dockercfg")?, false),
    }
}

/// The entries of a configuration; the old format has nothing around them.
fn entries_of(text: &[u8], is_new_format: bool) -> Option<BTreeMap<String, Entry>> {
    match is_new_format {
        true => serde_json::from_slice::<DockerConfig>(text).ok().map(|config| config.auths),
        false => serde_json::from_slice(text).ok(),
    }
}

impl Entry {
    pub fn has_password(&self, password: &str) -> bool {
        self.password == password
    }

    /// The server's address stays empty: containerd takes credentials for none when it
    /// differs from the registry it talks to, as `index.docker.io` does from the real one.
    fn into_auth(self) -> Option<Auth> {
        let (username, password) = match self.auth.is_empty() {
            true => (self.username, self.password),
            false => {
                // Old versions of docker padded the text with NUL bytes.
                let decoded = String::from_utf8(STANDARD.decode(self.auth.trim()).ok()?).ok()?;
                let (username, password) = decoded.split_once(':')?;
                (username.to_owned(), password.trim_end_matches('\0').to_owned())
            }
        };
        let auth = Auth {
            username,
            password,
            identity_token: self.identitytoken,
            registry_token: self.registrytoken,
            ..Auth::default()
        };
        (auth != Auth::default()).then_some(auth)
    }
}

/// Where an entry's credentials may be used: a host, perhaps with globs, and a path below it.
pub(super) struct Place<'a> {
    host: &'a str,
    path: &'a str,
}

impl<'a> Place<'a> {
    /// Of a server as Docker's files name it.
    pub fn of(server: &'a str) -> Self {
        let place = Place::of_pattern(server);
        // `docker login` writes the registry's API path, which is no part of image names.
        let path = place.path.strip_prefix("v1/").or_else(|| place.path.strip_prefix("v2/")).unwrap_or(place.path);
        Place { path, ..place }
    }

    /// Of what is meant for the beginning of image names. A slash at its end ends a part.
    pub fn of_pattern(pattern: &'a str) -> Self {
        let pattern = pattern.strip_prefix("https://").or_else(|| pattern.strip_prefix("http://")).unwrap_or(pattern);
        let (host, path) = pattern.split_once('/').unwrap_or((pattern, ""));
        Place { host, path }
    }

    /// Ports must be equal; each label of the host may hold `*`s; the path is a prefix.
    pub fn holds(&self, repository: &str) -> bool {
        let (host, path) = repository.split_once('/').unwrap_or((repository, ""));
        let (pattern, pattern_port) = self.host.split_once(':').unwrap_or((self.host, ""));
        let (host, port) = host.split_once(':').unwrap_or((host, ""));
        let labels = pattern.split('.').count();
        pattern_port == port
            && labels == host.split('.').count()
            && pattern.split('.').zip(host.split('.')).all(|(pattern, label)| glob(pattern, label))
            && path.starts_with(self.path)
    }

    /// A longer path says more than a longer host, and a host without globs more than one with.
    fn specificity(&self) -> (usize, bool, usize) {
        (self.path.len(), !self.host.contains('*'), self.host.len())
    }
}

/// Whether `text` fits a pattern in which `*` stands for any run of characters.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text
            .strip_prefix(before)
            .is_some_and(|rest| (0..=rest.len()).any(|at| rest.is_char_boundary(at) && glob(after, &rest[at..]))),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn secret(name: &str, key: &str, content: String) -> Secret {
        Secret {
            metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
            data: Some([(key.to_owned(), ByteString(content.into_bytes()))].into()),
            type_: Some(format!("kubernetes.io/{}", key.trim_start_matches('.'))),
            ..Secret::default()
        }
    }

    /// A secret with one user per server, the user named after it.
    fn config(servers: &[&str]) -> Secret {
        let auths: serde_json::Map<_, _> = servers
            .iter()
            .map(|server| ((*server).to_owned(), serde_json::json!({"username": server, "password": "p"})))
            .collect();
        secret("s", ".dockerconfigjson", serde_json::json!({ "auths": auths }).to_string())
    }

    fn of_secrets(image: &Reference, secrets: &[Secret]) -> Credentials {
        let mut fitting = Fitting::of(image);
        secrets.iter().for_each(|secret| fitting.add_secret(secret));
        fitting.sorted()
    }

    fn users(image: &str, secrets: &[Secret]) -> Vec<String> {
        let image = Reference::parse(image).expect("a valid name");
        distinct(&of_secrets(&image, secrets).list).into_iter().map(|auth| auth.username).collect()
    }

    fn check(image: &str, servers: &[&str], expected: &[&str]) {
        assert_eq!(users(image, &[config(servers)]), expected, "{image}");
    }

    #[test]
    fn credentials_fit_by_host_port_and_path() {
        check("reg.io/team/app", &["reg.io"], &["reg.io"]);
        check("reg.io/team/app", &["https://reg.io/v2/"], &["https://reg.io/v2/"]);
        check("reg.io/team/app", &["http://reg.io"], &["http://reg.io"]);
        check("reg.io/team/app", &["other.io"], &[]);
        check("reg.io/team/app", &["reg.io/team2"], &[]);
        check("reg.io/team-other/app", &["reg.io/team"], &["reg.io/team"]);
        check("reg.io/team-other/app", &["reg.io/team/"], &[]);
        check("reg.io/team/app", &["reg.io/team/"], &["reg.io/team/"]);
        check("reg.io:5000/app", &["reg.io"], &[]);
        check("reg.io:5000/app", &["reg.io:5000"], &["reg.io:5000"]);
        check("a.reg.io/app", &["*.reg.io", "reg.io"], &["*.reg.io"]);
        check("a.b.reg.io/app", &["*.reg.io"], &[]);
        check("eu-1.reg.io/app", &["eu-*.reg.io"], &["eu-*.reg.io"]);
    }

    #[test]
    fn docker_hub_is_known_under_its_names() {
        check("busybox", &["https://index.docker.io/v1/"], &["https://index.docker.io/v1/"]);
        check("busybox", &["docker.io"], &["docker.io"]);
        check("team/app", &["docker.io/team"], &["docker.io/team"]);
        check("reg.io/app", &["https://index.docker.io/v1/"], &[]);
    }

    #[test]
    fn the_most_specific_match_comes_first() {
        check(
            "a.reg.io/team/app",
            &["*.reg.io", "a.reg.io", "a.reg.io/team", "a.reg.io/team/app"],
            &["a.reg.io/team/app", "a.reg.io/team", "a.reg.io", "*.reg.io"],
        );
    }

    #[test]
    fn docker_login_and_the_old_format_are_read() {
        let auth = STANDARD.encode("me:pass:word");
        let old = secret("s", ".dockercfg", serde_json::json!({"reg.io": {"auth": auth}}).to_string());
        let found = of_secrets(&Reference::parse("reg.io/app").expect("a valid name"), &[old]);
        let expected = Auth { username: "me".into(), password: "pass:word".into(), ..Auth::default() };
        assert_eq!((distinct(&found.list), found.unreadable), (vec![expected], vec![]));
    }

    #[test]
    fn an_unreadable_secret_is_named_and_passed_over() {
        let broken = secret("broken", ".dockerconfigjson", "not JSON".into());
        let image = Reference::parse("reg.io/app").expect("a valid name");
        let found = of_secrets(&image, &[broken, config(&["reg.io"])]);
        assert_eq!(found.list.len(), 1);
        assert_eq!(found.unreadable, ["broken"]);
    }
}
