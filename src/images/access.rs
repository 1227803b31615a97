//! Who may use an image that is already on the node: whoever could have pulled it.
//!
//! The records are upstream's, in its files and formats, so that either agent goes on with
//! what the other knew: an intent before a pull, and after it which credentials worked. An
//! image of which there is neither was there before any agent. What an earlier life intended
//! and has not recorded becomes, once it is seen on the node, a record that allows nobody.
//!
//! Always true: an image that was pulled with a secret is given to a pod without it only
//! after the registry gave it to that pod; so is one whose pull was cut off by a kill -9, and
//! one whose record cannot be read.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use ring::digest;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use tracing::{debug, warn};

use super::credentials::{Credential, ObjectRef, Owner};
use super::reference::Reference;
use crate::clock::Clock;
use crate::config::PullCredentialsPolicy;
use crate::cri::{Auth, ImageService, ImageSpec};
use crate::host::{Durability, Host, HostError};
use crate::metrics;
use crate::pod::go_json;

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const FILE_PREFIX: &str = "sha256-";
const RECORD_BYTES_MAX: usize = 1 << 20;
/// Secrets, and service accounts, that one record remembers for a repository.
const OWNERS_MAX: usize = 1000;
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
#[derive(Clone)]
pub(super) struct Access(Arc<Shared>);

struct Shared {
    host: Arc<dyn Host>,
    runtime: Arc<dyn ImageService>,
    clock: Clock,
    config: AccessConfig,
    /// Read once, then kept: this agent is the only one that writes them.
    known: OnceCell<Mutex<Known>>,
    /// One writer of a file at a time; files share these by their names.
    writing: [tokio::sync::Mutex<()>; 16],
}

/// By file name, which is made of what the file is about.
#[derive(Default)]
struct Known {
    /// A record that could not be read allows nobody.
    pulled: BTreeMap<String, Option<PulledRecord>>,
    pulling: BTreeMap<String, Pulling>,
}

/// The pulls of one image.
#[derive(Default)]
struct Pulling {
    under_way: usize,
    /// What came of one of them is not known: the image may come yet. Only a pull that
    /// succeeds ends this.
    is_in_doubt: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Intent {
    kind: String,
    api_version: String,
    image: String,
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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    kubernetes_service_accounts: Vec<ObjectRef>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AllowedSecret {
    #[serde(flatten)]
    secret: ObjectRef,
    #[serde(default)]
    credential_hash: String,
}

impl Allowed {
    /// These credentials worked.
    fn note(&mut self, worked: &[&Credential]) {
        if self.node_pods_accessible {
            return;
        }
        if worked.is_empty() || worked.iter().any(|credential| credential.owner == Owner::Node) {
            *self = Allowed { node_pods_accessible: true, ..Allowed::default() };
            return;
        }
        for Credential { auth, owner } in worked {
            match owner {
                Owner::Node => {}
                Owner::Secret(secret) => {
                    self.kubernetes_secrets.retain(|known| known.secret != *secret);
                    self.kubernetes_secrets.push(AllowedSecret { secret: secret.clone(), credential_hash: hash(auth) });
                }
                Owner::Account(account) if self.kubernetes_service_accounts.contains(account) => {}
                Owner::Account(account) => self.kubernetes_service_accounts.push(account.clone()),
            }
        }
        // Whose credentials are forgotten asks the registry again.
        forget_first(&mut self.kubernetes_secrets);
        forget_first(&mut self.kubernetes_service_accounts);
    }

    /// A secret is known by its name and UID, or by what is in it; an account, whose credentials
    /// are others each time, by its name and UID alone.
    fn holds(&self, credentials: &[Credential]) -> bool {
        let is_known = |Credential { auth, owner }: &Credential| {
            if let Owner::Account(account) = owner {
                return self.kubernetes_service_accounts.contains(account);
            }
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
    fn count(&self) {
        metrics::images::recorded(self.pulled.len(), self.pulling.len());
    }

    /// Whether a pod with these credentials may use what is on the node.
    fn allows(&self, config: &AccessConfig, used: &Use<'_>, credentials: &[Credential]) -> bool {
        let repository = used.image.repository();
        let record = self.pulled.get(&file_name(used.image_ref));
        let is_preloaded = record.is_none() && !self.pulling.contains_key(&file_name(&used.image.to_string()));
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

/// A pull that has begun. Dropped without an end, it was cut off, and what came of it is
/// looked at.
pub(super) struct Begun {
    access: Access,
    image: String,
    /// What the runtime had under this name before.
    before: Option<String>,
    has_ended: bool,
}

impl Begun {
    /// In a task of its own: a pod that goes away meanwhile must not leave half of it.
    async fn ended(mut self, end: End) {
        self.has_ended = true;
        let (access, image) = (self.access.clone(), std::mem::take(&mut self.image));
        let _ = tokio::spawn(async move { access.end(&image, end).await }).await;
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let (access, image, before) = (self.access.clone(), self.image.clone(), self.before.clone());
        // Without a runtime the agent ends, and its next life looks.
        if let Ok(tokio) = tokio::runtime::Handle::try_current() {
            tokio.spawn(async move { access.cut_off(image, before).await });
        }
    }
}

impl Access {
    pub fn new(host: Arc<dyn Host>, runtime: Arc<dyn ImageService>, clock: Clock, config: AccessConfig) -> Self {
        let (known, writing) = (OnceCell::new(), Default::default());
        Access(Arc::new(Shared { host, runtime, clock, config, known, writing }))
    }

    /// The gate KubeletEnsureSecretPulledImages is off.
    pub fn is_off(&self) -> bool {
        self.0.config.policy == PullCredentialsPolicy::Unset
    }

    /// Whether a pod with these credentials may use an image that is on the node.
    pub async fn allows(&self, used: &Use<'_>, credentials: &[Credential]) -> bool {
        let config = &self.0.config;
        if matches!(config.policy, PullCredentialsPolicy::Unset | PullCredentialsPolicy::NeverVerify) {
            return true;
        }
        match self.known().await {
            Ok(known) => lock(known).allows(config, used, credentials),
            Err(error) => {
                warn!(error, "records of pulled images are not readable, the registry is asked");
                false
            }
        }
    }

    /// Whether it is by a record of its pulls that an image may be used. Where nobody has looked
    /// at records yet, none was needed.
    pub fn has_record(&self, image_ref: &str) -> bool {
        self.0.known.get().is_some_and(|known| lock(known).pulled.contains_key(&file_name(image_ref)))
    }

    /// Notes that a pull begins. Without the note it does not: an image that nobody knows to
    /// be pulled would be everybody's.
    pub async fn begin(&self, image: &Reference, before: Option<String>) -> Result<Option<Begun>, String> {
        if self.0.config.policy == PullCredentialsPolicy::Unset {
            return Ok(None);
        }
        let known = self.known().await?;
        let image = image.to_string();
        let name = file_name(&image);
        let _writing = self.writing(&name).lock().await;
        if !lock(known).pulling.contains_key(&name) {
            let (kind, api_version) = ("ImagePullIntent".to_owned(), API_VERSION.to_owned());
            let intent = Intent { kind, api_version, image: image.clone() };
            self.write("pulling", &name, &intent).await.map_err(|error| error.to_string())?;
        }
        let mut known = lock(known);
        known.pulling.entry(name).or_default().under_way += 1;
        known.count();
        Ok(Some(Begun { access: self.clone(), image, before, has_ended: false }))
    }

    /// The pull brought nothing, and nothing will come of it if that `is_certain`.
    pub async fn failed(&self, begun: Option<Begun>, is_certain: bool) {
        if let Some(begun) = begun {
            begun.ended(if is_certain { End::Nothing } else { End::Unknown }).await;
        }
    }

    /// The pull brought this image, with these credentials; with none it was anybody's.
    pub async fn pulled(&self, begun: Option<Begun>, used: &Use<'_>, worked: &[&Credential]) {
        let Some(begun) = begun else { return };
        let is_recorded = self.record(used.image_ref, |record| {
            record.credential_mapping.entry(used.image.repository()).or_default().note(worked);
        });
        match is_recorded.await {
            Ok(()) => begun.ended(End::Recorded).await,
            // The intent stays, and with it the doubt.
            Err(error) => {
                warn!(error, image = used.image_ref, "pulled image is not recorded");
                begun.ended(End::Unknown).await;
            }
        }
    }

    /// Nobody waits for the pull any more. The runtime gives it up then, but it may have been
    /// there already.
    async fn cut_off(&self, image: String, before: Option<String>) {
        let spec = ImageSpec { image: image.clone(), ..ImageSpec::default() };
        let now = self.0.runtime.image_status(&spec).await.map(|image| image.map(|image| image.id));
        let end = match now {
            Ok(now) if now == before => End::Nothing,
            Ok(_) | Err(_) => End::Unknown,
        };
        self.end(&image, end).await;
    }

    /// Takes the intent back, unless something may come yet.
    async fn end(&self, image: &str, end: End) {
        let Some(known) = self.0.known.get() else { return };
        let name = file_name(image);
        let _writing = self.writing(&name).lock().await;
        {
            let mut known = lock(known);
            let Some(pulling) = known.pulling.get_mut(&name) else { return };
            pulling.under_way = pulling.under_way.saturating_sub(1);
            match end {
                End::Nothing => {}
                End::Unknown => pulling.is_in_doubt = true,
                End::Recorded => pulling.is_in_doubt = false,
            }
            if pulling.under_way > 0 || pulling.is_in_doubt {
                return;
            }
            // Before the file: a pull that begins while that goes must write it again.
            known.pulling.remove(&name);
            known.count();
        }
        if let Err(error) = self.0.host.remove_file(&self.0.config.dir.join("pulling").join(&name)).await {
            warn!(%error, image, "note of a pull that has ended is not removed");
        }
    }

    /// Changes the record of an image, or makes it.
    async fn record(&self, image_ref: &str, change: impl FnOnce(&mut PulledRecord)) -> Result<(), String> {
        let known = self.known().await?;
        let name = file_name(image_ref);
        let _writing = self.writing(&name).lock().await;
        let before = lock(known).pulled.get(&name).cloned().flatten();
        let mut record = before.clone().unwrap_or_else(|| PulledRecord::of_nobody(image_ref));
        change(&mut record);
        if before.as_ref() == Some(&record) {
            return Ok(());
        }
        self.write_record(&name, &mut record).await?;
        let mut known = lock(known);
        known.pulled.insert(name, Some(record));
        known.count();
        Ok(())
    }

    async fn write_record(&self, name: &str, record: &mut PulledRecord) -> Result<(), String> {
        record.last_updated_time = self.0.clock.wall().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        self.write("pulled", name, record).await.map_err(|error| error.to_string())?;
        debug!(image = record.image_ref, "pulled image recorded");
        Ok(())
    }

    async fn known(&self) -> Result<&Mutex<Known>, String> {
        self.0.known.get_or_try_init(|| self.read()).await
    }

    async fn read(&self) -> Result<Mutex<Known>, String> {
        let mut known = Known::default();
        for (name, text) in self.files("pulled").await? {
            let record = text.and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()));
            if let Err(error) = &record {
                warn!(error, name, "record of a pulled image is broken, the registry is asked for its image");
            }
            known.pulled.insert(name, record.ok());
        }
        for (name, text) in self.files("pulling").await? {
            let intent = text.and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()));
            match intent {
                Ok(intent) => self.take_over(&mut known, &name, intent).await?,
                // For which image it was is not known; its name is.
                Err(error) => {
                    warn!(error, name, "note of a pull is broken, the registry is asked for its image");
                    known.pulling.insert(name, Pulling { under_way: 0, is_in_doubt: true });
                }
            }
        }
        known.count();
        Ok(Mutex::new(known))
    }

    /// A pull that an earlier life began and did not end: if its image is there, it is
    /// nobody's, under whatever name.
    async fn take_over(&self, known: &mut Known, name: &str, intent: Intent) -> Result<(), String> {
        let spec = ImageSpec { image: intent.image, ..ImageSpec::default() };
        let found = self.0.runtime.image_status(&spec).await.map_err(|error| error.to_string())?;
        if let Some(image) = found {
            let of_image = file_name(&image.id);
            if let Entry::Vacant(vacant) = known.pulled.entry(of_image) {
                let mut record = PulledRecord::of_nobody(&image.id);
                self.write_record(vacant.key(), &mut record).await?;
                vacant.insert(Some(record));
            }
        }
        let path = self.0.config.dir.join("pulling").join(name);
        self.0.host.remove_file(&path).await.map_err(|error| error.to_string())
    }

    /// The files of one kind, each with its content or why there is none.
    async fn files(&self, kind: &str) -> Result<Vec<(String, Result<Vec<u8>, String>)>, String> {
        let dir = self.0.config.dir.join(kind);
        let names = self.0.host.list_dir(&dir).await.map_err(|error| error.to_string())?;
        let mut files = Vec::new();
        for name in names.into_iter().filter(|name| name.starts_with(FILE_PREFIX)) {
            let text = self.0.host.read_file(&dir.join(&name), RECORD_BYTES_MAX).await;
            files.push((name, text.map(Option::unwrap_or_default).map_err(|error| error.to_string())));
        }
        Ok(files)
    }

    async fn write(&self, kind: &str, name: &str, content: &impl Serialize) -> Result<(), HostError> {
        let dir = self.0.config.dir.join(kind);
        self.0.host.make_dir(&dir, DIR_MODE).await?;
        let text = serde_json::to_vec(content).expect("texts and maps of texts serialize");
        self.0.host.write_file(&dir.join(name), &text, FILE_MODE, Durability::ThroughPowerCut).await
    }

    fn writing(&self, name: &str) -> &tokio::sync::Mutex<()> {
        let digit = name.chars().last().and_then(|digit| digit.to_digit(16)).unwrap_or_default();
        &self.0.writing[digit as usize % self.0.writing.len()]
    }
}

/// What came of a pull.
enum End {
    Nothing,
    Unknown,
    Recorded,
}

impl PulledRecord {
    fn of_nobody(image_ref: &str) -> Self {
        PulledRecord {
            kind: "ImagePulledRecord".into(),
            api_version: API_VERSION.into(),
            last_updated_time: String::new(),
            image_ref: image_ref.to_owned(),
            credential_mapping: BTreeMap::new(),
        }
    }
}

fn forget_first<T>(owners: &mut Vec<T>) {
    let surplus = owners.len().saturating_sub(OWNERS_MAX);
    owners.drain(..surplus);
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
    format!("{FILE_PREFIX}{}", sha256(of.as_bytes()))
}

fn sha256(data: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, data);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Tells credentials apart without keeping them; upstream's agent makes the same of them.
fn hash(auth: &Auth) -> String {
    let content = HashedAuth {
        username: &auth.username,
        password: &auth.password,
        auth: &auth.auth,
        serveraddress: &auth.server_address,
        identitytoken: &auth.identity_token,
        registrytoken: &auth.registry_token,
    };
    sha256(go_json(&serde_json::to_string(&content).expect("texts serialize")).as_bytes())
}

/// The names and their order are part of the hash.
#[derive(Serialize)]
struct HashedAuth<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    username: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    password: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    auth: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    serveraddress: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    identitytoken: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    registrytoken: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(secret: &str, password: &str) -> Credential {
        let auth = Auth { username: "puller".into(), password: password.into(), ..Auth::default() };
        let secret = ObjectRef { uid: format!("uid-{secret}"), namespace: "shop".into(), name: secret.into() };
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
        // As Go's own JSON writer and SHA-256 make it.
        let escaped = "ab97f5a7dd967fabffd35ebf3f961672417593db26ed2982fb674f4b47f35aa9";
        assert_eq!(hash(&credential("login", "a&b<\"é").auth), escaped);
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
    fn a_service_account_is_known_by_its_name_and_uid() {
        let of = |uid: &str, password: &str| {
            let account = ObjectRef { uid: uid.into(), namespace: "shop".into(), name: "robot".into() };
            Credential { owner: Owner::Account(account), ..credential("none", password) }
        };
        let mut allowed = Allowed::default();
        allowed.note(&[&of("u1", "old")]);
        allowed.note(&[&of("u1", "new")]);
        let expected = serde_json::json!({"kubernetesServiceAccounts": [
            { "uid": "u1", "namespace": "shop", "name": "robot" },
        ]});
        assert_eq!(serde_json::to_value(&allowed).expect("texts serialize"), expected);
        assert!(allowed.holds(&[of("u1", "yet another")]));
        assert!(!allowed.holds(&[of("u2", "old")]), "another account of the name");
        assert!(!allowed.holds(&[credential("login", "old")]));
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
                known.pulling.insert(file_name("reg.io/team/app:1"), Pulling::default());
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
