//! Who may use an image that is already on the node: whoever could have pulled it.
//!
//! The records are upstream's, in its files and formats, so that either agent goes on with
//! what the other knew: an intent before a pull, and after it which credentials worked. An
//! image of which there is neither was there before any agent.
//!
//! Always true: an image that was pulled with a secret is given to a pod without it only
//! after the registry was asked anew; so is one whose pull was cut off by a kill -9, and one
//! whose record cannot be read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use ring::digest;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use tracing::{debug, warn};

use super::credentials::{Credential, Owner, SecretRef};
use super::reference::Reference;
use crate::clock::Clock;
use crate::config::PullCredentialsPolicy;
use crate::cri::Auth;
use crate::host::{Durability, Host, HostError};

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const RECORD_BYTES_MAX: usize = 1 << 20;
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// The part of the configuration that is about access to images.
#[derive(Clone, Debug)]
pub struct AccessConfig {
    /// `image_manager` in the root directory.
    pub dir: PathBuf,
    pub policy: PullCredentialsPolicy,
    /// Repositories, or prefixes that end in `/*`.
    pub allowlist: Vec<String>,
}

/// What is known of the pulls of this node.
pub(super) struct Access {
    host: Arc<dyn Host>,
    clock: Clock,
    config: AccessConfig,
    /// Read once, then kept: this agent is the only one that writes them.
    known: OnceCell<Mutex<Known>>,
    /// One writer at a time. Who only asks waits for none.
    writing: tokio::sync::Mutex<()>,
    /// Pulls that are under way, by image.
    under_way: Arc<Mutex<BTreeMap<String, usize>>>,
}

/// By file name, which is made of what the file is about.
#[derive(Debug, Default)]
struct Known {
    /// A record that could not be read allows nobody.
    pulled: BTreeMap<String, Option<PulledRecord>>,
    pulling: BTreeSet<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Intent<'a> {
    kind: &'static str,
    api_version: &'static str,
    image: &'a str,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PulledRecord {
    kind: String,
    api_version: String,
    last_updated_time: String,
    image_ref: String,
    /// By repository.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    credential_mapping: BTreeMap<String, Allowed>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Allowed {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    node_pods_accessible: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    kubernetes_secrets: Vec<AllowedSecret>,
    /// Written by upstream's agent only; kept as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    kubernetes_service_accounts: Vec<serde_json::Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AllowedSecret {
    #[serde(flatten)]
    secret: SecretRef,
    #[serde(default)]
    credential_hash: String,
}

impl Allowed {
    /// These credentials worked.
    fn note(&mut self, worked: &[&Credential]) {
        if worked.is_empty() || worked.iter().any(|credential| credential.owner == Owner::Node) {
            *self = Allowed { node_pods_accessible: true, ..Allowed::default() };
            return;
        }
        for Credential { auth, owner } in worked {
            let Owner::Secret(secret) = owner else { continue };
            self.kubernetes_secrets.retain(|known| known.secret != *secret);
            self.kubernetes_secrets.push(AllowedSecret { secret: secret.clone(), credential_hash: hash(auth) });
        }
    }

    /// A secret is known by its name and UID, or by what is in it.
    fn holds(&self, credentials: &[Credential]) -> bool {
        let is_known = |Credential { auth, owner }: &Credential| {
            let hash = hash(auth);
            let same = |known: &AllowedSecret| {
                known.credential_hash == hash || matches!(owner, Owner::Secret(secret) if *secret == known.secret)
            };
            self.kubernetes_secrets.iter().any(same)
        };
        self.node_pods_accessible || credentials.iter().any(is_known)
    }
}

impl Known {
    /// Whether a pod with these credentials may use what is on the node.
    fn allows(&self, config: &AccessConfig, used: &Use<'_>, credentials: &[Credential]) -> bool {
        let repository = used.image.repository();
        let record = self.pulled.get(&file_name(used.image_ref));
        let is_preloaded = record.is_none() && !self.pulling.contains(&file_name(&used.image.to_string()));
        match config.policy {
            PullCredentialsPolicy::Unset | PullCredentialsPolicy::NeverVerify => true,
            PullCredentialsPolicy::NeverVerifyPreloadedImages if is_preloaded => true,
            PullCredentialsPolicy::NeverVerifyAllowlistedImages
                if is_preloaded && is_listed(&config.allowlist, &repository) =>
            {
                true
            }
            _ => {
                let allowed = record.and_then(|record| record.as_ref()?.credential_mapping.get(&repository));
                allowed.is_some_and(|allowed| allowed.holds(credentials))
            }
        }
    }
}

/// An image on the node, and the name under which a pod wants it.
pub(super) struct Use<'a> {
    pub image: &'a Reference,
    /// What the runtime calls it.
    pub image_ref: &'a str,
}

/// A pull that has begun. Dropped without an end, what came of it is unknown.
pub(super) struct Begun {
    image: String,
    under_way: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Begun {
    fn new(image: String, under_way: &Arc<Mutex<BTreeMap<String, usize>>>) -> Self {
        *lock(under_way).entry(image.clone()).or_default() += 1;
        Begun { image, under_way: under_way.clone() }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut under_way = lock(&self.under_way);
        if let Some(count) = under_way.get_mut(&self.image) {
            *count -= 1;
            if *count == 0 {
                under_way.remove(&self.image);
            }
        }
    }
}

impl Access {
    pub fn new(host: Arc<dyn Host>, clock: Clock, config: AccessConfig) -> Self {
        let (known, writing) = (OnceCell::new(), tokio::sync::Mutex::default());
        Access { host, clock, config, known, writing, under_way: Arc::default() }
    }

    /// Whether a pod with these credentials may use an image that is on the node.
    pub async fn allows(&self, used: &Use<'_>, credentials: &[Credential]) -> bool {
        if matches!(self.config.policy, PullCredentialsPolicy::Unset | PullCredentialsPolicy::NeverVerify) {
            return true;
        }
        match self.known().await {
            Ok(known) => lock(known).allows(&self.config, used, credentials),
            Err(error) => {
                warn!(%error, "records of pulled images are not readable, the registry is asked");
                false
            }
        }
    }

    /// Notes that a pull begins. Without the note it does not: an image that nobody knows to
    /// be pulled would be everybody's.
    pub async fn begin(&self, image: &Reference) -> Result<Option<Begun>, HostError> {
        if self.config.policy == PullCredentialsPolicy::Unset {
            return Ok(None);
        }
        let known = self.known().await?;
        let image = image.to_string();
        let begun = Begun::new(image.clone(), &self.under_way);
        let _writing = self.writing.lock().await;
        let name = file_name(&image);
        if !lock(known).pulling.contains(&name) {
            let intent = Intent { kind: "ImagePullIntent", api_version: API_VERSION, image: &image };
            self.write("pulling", &name, &intent).await?;
            lock(known).pulling.insert(name);
        }
        Ok(Some(begun))
    }

    /// The pull brought nothing, which is certain.
    pub async fn failed(&self, begun: Option<Begun>) {
        if let (Some(begun), Some(known)) = (begun, self.known.get()) {
            let _writing = self.writing.lock().await;
            self.end(begun, known).await;
        }
    }

    /// The pull brought this image, with these credentials; with none it was anybody's.
    pub async fn pulled(&self, begun: Option<Begun>, used: &Use<'_>, worked: &[&Credential]) {
        let (Some(begun), Some(known)) = (begun, self.known.get()) else { return };
        let _writing = self.writing.lock().await;
        let name = file_name(used.image_ref);
        let before = lock(known).pulled.get(&name).cloned().flatten();
        let mut record = before.clone().unwrap_or_else(|| PulledRecord {
            kind: "ImagePulledRecord".into(),
            api_version: API_VERSION.into(),
            last_updated_time: String::new(),
            image_ref: used.image_ref.to_owned(),
            credential_mapping: BTreeMap::new(),
        });
        record.credential_mapping.entry(used.image.repository()).or_default().note(worked);
        if before.as_ref() != Some(&record) {
            record.last_updated_time = self.clock.wall().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            if let Err(error) = self.write("pulled", &name, &record).await {
                // The intent stays, and so the next pod has to ask the registry.
                warn!(%error, image = used.image_ref, "pulled image is not recorded");
                return;
            }
            debug!(image = used.image_ref, "pulled image recorded");
            lock(known).pulled.insert(name, Some(record));
        }
        self.end(begun, known).await;
    }

    /// Takes the intent back, unless another pull of the image is under way.
    async fn end(&self, begun: Begun, known: &Mutex<Known>) {
        let image = begun.image.clone();
        drop(begun);
        if lock(&self.under_way).contains_key(&image) {
            return;
        }
        let name = file_name(&image);
        match self.host.remove_file(&self.config.dir.join("pulling").join(&name)).await {
            Ok(()) => {
                lock(known).pulling.remove(&name);
            }
            Err(error) => warn!(%error, image, "note of a pull that has ended is not removed"),
        }
    }

    async fn known(&self) -> Result<&Mutex<Known>, HostError> {
        self.known.get_or_try_init(|| self.read()).await
    }

    async fn read(&self) -> Result<Mutex<Known>, HostError> {
        let pulling = self.host.list_dir(&self.config.dir.join("pulling")).await?;
        let mut known = Known { pulling: pulling.into_iter().collect(), pulled: BTreeMap::new() };
        let dir = self.config.dir.join("pulled");
        for name in self.host.list_dir(&dir).await? {
            let file = dir.join(&name);
            let text = self.host.read_file(&file, RECORD_BYTES_MAX).await?;
            let record = serde_json::from_slice(&text.unwrap_or_default());
            if let Err(error) = &record {
                warn!(%error, file = %file.display(), "record of a pulled image is broken, the registry is asked for its image");
            }
            known.pulled.insert(name, record.ok());
        }
        Ok(Mutex::new(known))
    }

    async fn write(&self, kind: &str, name: &str, content: &impl Serialize) -> Result<(), HostError> {
        let dir = self.config.dir.join(kind);
        self.host.make_dir(&dir, DIR_MODE).await?;
        let text = serde_json::to_vec(content).expect("texts and maps of texts serialize");
        self.host.write_file(&dir.join(name), &text, FILE_MODE, Durability::ThroughPowerCut).await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing that holds the records can panic")
}

fn is_listed(allowlist: &[String], repository: &str) -> bool {
    allowlist.iter().any(|entry| match entry.strip_suffix("/*") {
        Some(prefix) => repository.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/')),
        None => entry == repository,
    })
}

fn file_name(of: &str) -> String {
    format!("sha256-{}", sha256(of.as_bytes()))
}

fn sha256(data: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, data);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Tells credentials apart without keeping them; upstream's agent makes the same of them.
fn hash(auth: &Auth) -> String {
    let empty = |text: &&str| text.is_empty();
    let fields = [
        ("username", auth.username.as_str()),
        ("password", &auth.password),
        ("auth", &auth.auth),
        ("serveraddress", &auth.server_address),
        ("identitytoken", &auth.identity_token),
        ("registrytoken", &auth.registry_token),
    ];
    let text = |text: &str| serde_json::to_string(text).expect("a text serializes");
    let fields = fields.iter().filter(|(_, value)| !empty(value));
    let fields: Vec<_> = fields.map(|(name, value)| format!("{}:{}", text(name), text(value))).collect();
    sha256(format!("{{{}}}", fields.join(",")).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(secret: &str, password: &str) -> Credential {
        let auth = Auth { username: "puller".into(), password: password.into(), ..Auth::default() };
        let secret = SecretRef { uid: format!("uid-{secret}"), namespace: "shop".into(), name: secret.into() };
        Credential { auth, owner: Owner::Secret(secret) }
    }

    #[test]
    fn a_record_is_written_as_upstream_writes_it() {
        let mut allowed = Allowed::default();
        allowed.note(&[&credential("login", "open-sesame")]);
        let expected = serde_json::json!({"kubernetesSecrets": [{
            "uid": "uid-login",
            "namespace": "shop",
            "name": "login",
            // Seen in a record of the kubelet 1.36.
            "credentialHash": "739c7b2f869520e42e8dba8f0bf6247f854c678635d393e3e1baa34d12544fb6",
        }]});
        assert_eq!(serde_json::to_value(&allowed).expect("texts serialize"), expected);
        allowed.note(&[]);
        assert_eq!(serde_json::to_value(&allowed).expect("a flag"), serde_json::json!({"nodePodsAccessible": true}));
        let named = "sha256-2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";
        assert_eq!(file_name("foo"), named);
    }

    #[test]
    fn a_secret_is_known_by_its_name_or_by_its_content() {
        let mut allowed = Allowed::default();
        allowed.note(&[&credential("login", "old")]);
        assert!(allowed.holds(&[credential("login", "new")]), "the same secret, with a new password");
        assert!(allowed.holds(&[credential("other", "old")]), "another secret that says the same");
        assert!(!allowed.holds(&[credential("other", "new")]));
        assert!(!allowed.holds(&[]));
    }

    #[test]
    fn the_policy_says_what_was_there_before() {
        let image = Reference::parse("reg.io/team/app:1").expect("a valid name");
        let used = Use { image: &image, image_ref: "sha256:1" };
        let allows = |policy, allowlist: &[&str], pulling: bool| {
            let allowlist = allowlist.iter().map(|&entry| entry.to_owned()).collect();
            let config = AccessConfig { dir: PathBuf::new(), policy, allowlist };
            let mut known = Known::default();
            if pulling {
                known.pulling.insert(file_name("reg.io/team/app:1"));
            }
            known.allows(&config, &used, &[])
        };
        use PullCredentialsPolicy::{
            AlwaysVerify, NeverVerify, NeverVerifyAllowlistedImages, NeverVerifyPreloadedImages,
        };
        assert!(allows(NeverVerify, &[], true));
        assert!(allows(NeverVerifyPreloadedImages, &[], false));
        assert!(!allows(NeverVerifyPreloadedImages, &[], true), "its pull was cut off");
        assert!(!allows(AlwaysVerify, &[], false));
        for (entry, expected) in
            [("reg.io/team/app", true), ("reg.io/team/*", true), ("reg.io/*", true), ("reg.io/te/*", false)]
        {
            assert_eq!(allows(NeverVerifyAllowlistedImages, &[entry], false), expected, "{entry}");
            assert!(!allows(NeverVerifyAllowlistedImages, &[entry], true));
        }
    }
}
