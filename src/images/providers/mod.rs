//! Kubelet credential providers: programs that know the password of a registry.
//!
//! [`read_config`] reads upstream's CredentialProviderConfig; [`Providers`] runs a program
//! whose patterns fit an image, with a request on its standard input, and keeps its answer
//! for as long as the answer says. A program that fails is passed over: the image is tried
//! with other credentials.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::{BoxFuture, WeakShared};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::credentials::{Entry, Place};
use super::reference::Reference;
use crate::clock::Clock;
use crate::config::GoDuration;
use crate::host::open_regular;

const CONFIG_KIND: &str = "CredentialProviderConfig";
const CONFIG_VERSIONS: [&str; 3] =
    ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"];
const CONFIG_EXTENSIONS: [&str; 3] = ["json", "yaml", "yml"];
const CONFIG_BYTES_MAX: u64 = 4 << 20;
const REQUEST_VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];
/// How long a program may take.
const RUN_WITHIN: Duration = Duration::from_secs(60);
/// No answer comes near this.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// What a log line may hold of what a program says of its failure.
const COMPLAINT_BYTES_MAX: usize = 1 << 10;
/// Answers kept; beyond it all are asked for again.
const CACHED_MAX: usize = 1000;
/// Programs that run at the same time.
const PROGRAMS_MAX: usize = 5;
/// Between the end of a program and that of its pipes, whichever comes first.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);

/// One program, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    pub name: String,
    pub program: PathBuf,
    match_images: Vec<String>,
    default_cache: Duration,
    api_version: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

#[derive(Debug, thiserror::Error)]
pub enum ProviderConfigError {
    #[error("{file}: not a readable {CONFIG_KIND}: {why}")]
    Unreadable { file: String, why: String },
    #[error("{file}: expected kind {CONFIG_KIND} of kubelet.config.k8s.io/v1, found {found}")]
    OtherKind { file: String, found: String },
    #[error("{file}: no provider is configured")]
    Empty { file: String },
    #[error("{file}: providers[{index}].name: no program {program}: {source}")]
    NoProgram { file: String, index: usize, program: String, source: io::Error },
    #[error("cannot read {file}: {source}")]
    Read { file: String, source: io::Error },
    #[error("{file}: providers[{index}].{field}: {why}")]
    Field { file: String, index: usize, field: &'static str, why: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ConfigFile {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    providers: Vec<ProviderEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ProviderEntry {
    #[serde(default)]
    name: String,
    #[serde(default)]
    match_images: Vec<String>,
    default_cache_duration: Option<GoDuration>,
    #[serde(default)]
    api_version: String,
    args: Option<Vec<String>>,
    env: Option<Vec<Variable>>,
    token_attributes: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    #[serde(default)]
    value: String,
}

/// Reads the configuration, a file or a directory of them.
pub fn read_config(path: &Path, bin_dir: &Path) -> Result<Vec<Provider>, ProviderConfigError> {
    let failed = |path: &Path| {
        let file = path.display().to_string();
        move |source| ProviderConfigError::Read { file, source }
    };
    let mut paths = BTreeSet::from([path.to_owned()]);
    if path.is_dir() {
        let found = std::fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(failed(path))?;
        let is_ours = |path: &PathBuf| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            extension.is_some_and(|extension| CONFIG_EXTENSIONS.contains(&extension))
        };
        paths = found.iter().map(std::fs::DirEntry::path).filter(is_ours).collect();
        if paths.is_empty() {
            return Err(ProviderConfigError::Empty { file: path.display().to_string() });
        }
    }
    let read = |path: PathBuf| {
        let mut text = String::new();
        let read = open_regular(&path).and_then(|file| file.take(CONFIG_BYTES_MAX).read_to_string(&mut text));
        if read.map_err(failed(&path))? as u64 == CONFIG_BYTES_MAX {
            return Err(failed(&path)(io::ErrorKind::FileTooLarge.into()));
        }
        Ok((path.display().to_string(), text))
    };
    let files = paths.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
    parse_config(&files, bin_dir)
}

/// Reads the files of a configuration, each with its name, in the order they count.
fn parse_config(files: &[(String, String)], bin_dir: &Path) -> Result<Vec<Provider>, ProviderConfigError> {
    let mut providers = Vec::new();
    let mut names = BTreeSet::new();
    for (file, text) in files {
        let unreadable = |why: String| ProviderConfigError::Unreadable { file: file.clone(), why };
        let config: ConfigFile = serde_saphyr::from_str(text).map_err(|error| unreadable(error.to_string()))?;
        if config.kind != CONFIG_KIND || !CONFIG_VERSIONS.contains(&config.api_version.as_str()) {
            let found = format!("{} of {}", config.kind, config.api_version);
            return Err(ProviderConfigError::OtherKind { file: file.clone(), found });
        }
        if config.providers.is_empty() {
            return Err(ProviderConfigError::Empty { file: file.clone() });
        }
        for (index, entry) in config.providers.into_iter().enumerate() {
            let provider = entry.check(bin_dir).map_err(|(field, why)| {
                let file = file.clone();
                ProviderConfigError::Field { file, index, field, why }
            })?;
            if !names.insert(provider.name.clone()) {
                let why = format!("{:?} is configured twice", provider.name);
                return Err(ProviderConfigError::Field { file: file.clone(), index, field: "name", why });
            }
            if let Err(source) = is_program(&provider.program) {
                let program = provider.program.display().to_string();
                return Err(ProviderConfigError::NoProgram { file: file.clone(), index, program, source });
            }
            providers.push(provider);
        }
    }
    Ok(providers)
}

fn is_program(path: &Path) -> io::Result<()> {
    let metadata = std::fs::metadata(path)?;
    match metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not an executable file")),
    }
}

impl ProviderEntry {
    fn check(self, bin_dir: &Path) -> Result<Provider, (&'static str, String)> {
        let name = self.name;
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', ' ']) {
            return Err(("name", format!("{name:?} is not the name of a program")));
        }
        if self.match_images.is_empty() {
            return Err(("matchImages", "at least one pattern is needed".to_owned()));
        }
        let default_cache = self.default_cache_duration.ok_or(("defaultCacheDuration", "is missing".to_owned()))?;
        let default_cache =
            default_cache.to_std().ok_or(("defaultCacheDuration", "must not be negative".to_owned()))?;
        if !REQUEST_VERSIONS.contains(&self.api_version.as_str()) {
            return Err(("apiVersion", format!("known are {REQUEST_VERSIONS:?}, found {:?}", self.api_version)));
        }
        if self.token_attributes.is_some() {
            let why = "this agent does not give service account tokens to credential providers".to_owned();
            return Err(("tokenAttributes", why));
        }
        Ok(Provider {
            program: bin_dir.join(&name),
            name,
            match_images: self.match_images,
            default_cache,
            api_version: self.api_version,
            args: self.args.unwrap_or_default(),
            env: self.env.into_iter().flatten().map(|variable| (variable.name, variable.value)).collect(),
        })
    }
}

/// Runs programs: the one thing here that reaches outside.
#[async_trait]
pub trait Programs: Send + Sync + 'static {
    /// What the program wrote to its standard output, or why it did not come to that.
    async fn run(&self, provider: &Provider, input: &[u8]) -> Result<Vec<u8>, String>;
}

/// The machine's own programs.
pub struct Processes;

#[async_trait]
impl Programs for Processes {
    async fn run(&self, provider: &Provider, input: &[u8]) -> Result<Vec<u8>, String> {
        let mut child = tokio::process::Command::new(&provider.program)
            .args(&provider.args)
            .envs(provider.env.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", provider.program.display()))?;
        let _group = Group(child.id());
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err("its pipes are not there".to_owned());
        };
        let (mut answer, mut complaint) = (Vec::new(), Vec::new());
        let status = {
            let feed = async {
                // One that does not want to hear it may still know the answer.
                let _ = stdin.write_all(input).await;
                drop(stdin);
            };
            let mut talk = pin!(async {
                tokio::join!(
                    feed,
                    beginning(stdout, &mut answer, ANSWER_BYTES_MAX + 1),
                    beginning_of_all(stderr, &mut complaint, COMPLAINT_BYTES_MAX)
                )
            });
            tokio::select! {
                biased;
                // Cancel-safe: polled on below. A child of the program may keep its pipes for as
                // long as it likes.
                status = child.wait() => {
                    let _ = tokio::time::timeout(LAST_WORDS_WITHIN, talk).await;
                    status
                }
                // Cancel-safe: it ends only once. One that talks on is not listened to.
                _ = &mut talk => match tokio::time::timeout(LAST_WORDS_WITHIN, child.wait()).await {
                    Ok(status) => status,
                    Err(_) => return Err("it does not end after it has answered".to_owned()),
                }
            }
        };
        let status = status.map_err(|error| error.to_string())?;
        match status.success() {
            true if answer.len() > ANSWER_BYTES_MAX => Err("its answer is too long".to_owned()),
            true => Ok(answer),
            false => Err(format!("it ended with {status}: {}", String::from_utf8_lossy(&complaint).trim())),
        }
    }
}

/// Ends a program with all that it has started.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0.and_then(|id| i32::try_from(id).ok()) {
            // All may have ended by themselves.
            let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
        }
    }
}

/// So much of what a program writes; then the pipe is closed, which ends one that talks on.
async fn beginning(from: impl AsyncRead + Unpin, text: &mut Vec<u8>, bytes_max: usize) -> io::Result<usize> {
    from.take(bytes_max as u64).read_to_end(text).await
}

/// So much of what a program writes; the rest is read and forgotten. A program may complain at
/// length and know the answer all the same.
async fn beginning_of_all(mut from: impl AsyncRead + Unpin, text: &mut Vec<u8>, bytes_max: usize) -> io::Result<u64> {
    beginning(&mut from, text, bytes_max).await?;
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    api_version: &'a str,
    kind: &'static str,
    image: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    cache_key_type: CacheKeyType,
    cache_duration: Option<GoDuration>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Entry>>,
}

/// For which images an answer holds.
#[derive(Deserialize, Clone, Copy)]
enum CacheKeyType {
    Image,
    Registry,
    Global,
}

/// All configured programs and what they answered.
pub struct Providers {
    list: Vec<Provider>,
    shared: Arc<Shared>,
    /// A burst of pods with the same image asks once.
    running: Mutex<Vec<Running>>,
}

struct Shared {
    programs: Arc<dyn Programs>,
    clock: Clock,
    cache: Mutex<BTreeMap<CacheKey, Cached>>,
    /// Programs at once. Who waits may find the answer when its turn comes.
    turns: Semaphore,
}

type Entries = Arc<Vec<(String, Entry)>>;
/// What a program says of one image, or nothing if it fails.
type Asked = futures::future::Shared<BoxFuture<'static, Option<Entries>>>;

/// A program on its way. Once all who wait for it are gone, so is the program.
struct Running {
    provider: String,
    repository: String,
    asked: WeakShared<BoxFuture<'static, Option<Entries>>>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum CacheKey {
    Image(String, String),
    Registry(String, String),
    Global(String),
}

struct Cached {
    until: Instant,
    entries: Entries,
}

impl Providers {
    pub fn new(list: Vec<Provider>, programs: Arc<dyn Programs>, clock: Clock) -> Self {
        let shared = Shared { programs, clock, cache: Mutex::default(), turns: Semaphore::new(PROGRAMS_MAX) };
        Providers { list, shared: Arc::new(shared), running: Mutex::default() }
    }

    /// The servers and credentials that the programs responsible for the image name.
    pub async fn entries(&self, image: &Reference) -> Vec<(String, Entry)> {
        let repository = image.repository();
        let responsible = |provider: &&Provider| {
            provider.match_images.iter().any(|pattern| Place::of_pattern(pattern).holds(&repository))
        };
        let mut all = Vec::new();
        for provider in self.list.iter().filter(responsible) {
            let entries = self.asked(provider, image, &repository).await;
            all.extend(entries.iter().flat_map(|entries| entries.iter().cloned()));
        }
        all
    }

    fn asked(&self, provider: &Provider, image: &Reference, repository: &str) -> Asked {
        let mut running = self.running.lock().expect("nothing that holds the list of programs can panic");
        running.retain(|run| run.asked.upgrade().is_some_and(|asked| asked.peek().is_none()));
        let equal = running.iter().find(|run| run.provider == provider.name && run.repository == repository);
        if let Some(asked) = equal.and_then(|run| run.asked.upgrade()) {
            return asked;
        }
        let (shared, domain) = (self.shared.clone(), image.domain.clone());
        let asked = shared.ask(provider.clone(), domain, repository.to_owned()).boxed().shared();
        let weak = asked.downgrade().expect("a future that was not polled has not ended");
        running.push(Running { provider: provider.name.clone(), repository: repository.to_owned(), asked: weak });
        asked
    }
}

impl Shared {
    /// Borrows nothing: it outlives the pod that asked first.
    async fn ask(self: Arc<Self>, provider: Provider, domain: String, repository: String) -> Option<Entries> {
        let name = || provider.name.clone();
        let keys =
            [CacheKey::Image(name(), repository.clone()), CacheKey::Registry(name(), domain), CacheKey::Global(name())];
        if let Some(entries) = self.kept(&keys) {
            return Some(entries);
        }
        let _turn = self.turns.acquire().await.expect("the semaphore is never closed");
        if let Some(entries) = self.kept(&keys) {
            return Some(entries);
        }
        debug!(provider = provider.name, image = repository, "asking credential provider");
        let answer = match self.run(&provider, &repository).await {
            Ok(answer) => answer,
            Err(why) => {
                warn!(provider = provider.name, image = repository, why, "credential provider gives no answer");
                return None;
            }
        };
        let entries: Entries = Arc::new(answer.auth.unwrap_or_default().into_iter().collect());
        let [of_image, of_registry, global] = keys;
        let key = match answer.cache_key_type {
            CacheKeyType::Image => of_image,
            CacheKeyType::Registry => of_registry,
            CacheKeyType::Global => global,
        };
        let keep = answer.cache_duration.map_or(Some(provider.default_cache), GoDuration::to_std);
        if let Some(keep) = keep.filter(|keep| !keep.is_zero()) {
            let now = self.clock.now();
            let mut cache = self.cache();
            cache.retain(|_, cached| cached.until > now);
            if cache.len() >= CACHED_MAX {
                cache.clear();
            }
            cache.insert(key, Cached { until: now + keep, entries: entries.clone() });
        }
        Some(entries)
    }

    async fn run(&self, provider: &Provider, repository: &str) -> Result<Answer, String> {
        let request =
            Request { api_version: &provider.api_version, kind: "CredentialProviderRequest", image: repository };
        let request = serde_json::to_vec(&request).expect("texts serialize");
        let answer = tokio::time::timeout(RUN_WITHIN, self.programs.run(provider, &request)).await;
        let answer = answer.map_err(|_| format!("no answer within {RUN_WITHIN:?}"))??;
        // The place only: an error that quotes the text might quote a password.
        let unreadable =
            |error: serde_json::Error| format!("unreadable answer, at line {} column {}", error.line(), error.column());
        let answer: Answer = serde_json::from_slice(&answer).map_err(unreadable)?;
        if answer.api_version != provider.api_version || answer.kind != "CredentialProviderResponse" {
            return Err(format!("its answer is no CredentialProviderResponse of {}", provider.api_version));
        }
        Ok(answer)
    }

    fn kept(&self, keys: &[CacheKey]) -> Option<Entries> {
        let (now, cache) = (self.clock.now(), self.cache());
        let cached = keys.iter().find_map(|key| cache.get(key).filter(|cached| cached.until > now))?;
        Some(cached.entries.clone())
    }

    fn cache(&self) -> MutexGuard<'_, BTreeMap<CacheKey, Cached>> {
        self.cache.lock().expect("nothing that holds the answers can panic")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const V1: &str = "credentialprovider.kubelet.k8s.io/v1";

    /// A program that answers as it is told, and remembers what it was asked.
    #[derive(Default)]
    struct Told {
        answer: Mutex<String>,
        asked: Mutex<Vec<String>>,
    }

    #[async_trait]
    impl Programs for Told {
        async fn run(&self, _: &Provider, input: &[u8]) -> Result<Vec<u8>, String> {
            self.asked.lock().unwrap().push(String::from_utf8(input.to_vec()).unwrap());
            tokio::time::sleep(Duration::from_secs(1)).await;
            match self.answer.lock().unwrap().as_str() {
                "" => Err("it is broken".into()),
                answer => Ok(answer.as_bytes().to_vec()),
            }
        }
    }

    impl Told {
        fn answers(&self, key: &str, keep: Option<&str>) {
            let auth = json!({ "*.reg.io": { "username": "me", "password": "secret" } });
            let answer = json!({ "apiVersion": V1, "kind": "CredentialProviderResponse",
                "cacheKeyType": key, "cacheDuration": keep, "auth": auth });
            *self.answer.lock().unwrap() = answer.to_string();
        }

        fn count(&self) -> usize {
            self.asked.lock().unwrap().len()
        }
    }

    fn program(path: &Path) {
        std::fs::write(path, "").expect("written");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("made executable");
    }

    /// A directory with the programs `a` and `ask`, and a configuration beside it.
    fn config(providers: &str) -> Result<Vec<Provider>, String> {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let path = dir.path().join("c.yaml");
        let text =
            format!("{{kind: CredentialProviderConfig, apiVersion: kubelet.config.k8s.io/v1, providers: {providers}}}");
        std::fs::write(&path, text).expect("written");
        ["a", "ask"].iter().for_each(|name| program(&dir.path().join(name)));
        std::fs::write(dir.path().join("notes"), "").expect("written");
        read_config(&path, dir.path()).map_err(|error| error.to_string())
    }

    fn one() -> Vec<Provider> {
        config(&format!("[{{name: ask, matchImages: ['*.reg.io'], defaultCacheDuration: 1m, apiVersion: {V1}}}]"))
            .expect("a valid configuration")
    }

    fn scene() -> (Arc<Told>, Providers) {
        let told = Arc::new(Told::default());
        let providers = Providers::new(one(), told.clone(), Clock::system());
        (told, providers)
    }

    async fn users(providers: &Providers, image: &str) -> usize {
        providers.entries(&Reference::parse(image).expect("a valid name")).await.len()
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_responsible_program_is_asked_and_with_the_name_of_the_repository() {
        let (told, providers) = scene();
        told.answers("Image", Some("0s"));
        assert_eq!(users(&providers, "other.io/app:1").await, 0);
        assert_eq!(told.count(), 0);
        assert_eq!(users(&providers, "eu.reg.io/team/app:1").await, 1);
        let asked = told.asked.lock().unwrap()[0].clone();
        let expected = json!({ "apiVersion": V1, "kind": "CredentialProviderRequest", "image": "eu.reg.io/team/app" });
        assert_eq!(serde_json::from_str::<serde_json::Value>(&asked).unwrap(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_kept_as_long_and_for_what_it_says() {
        let check = async |key: &str, keep: Option<&str>, image: &str, after: u64, expected: usize| {
            let (told, providers) = scene();
            told.answers(key, keep);
            users(&providers, "a.reg.io/one").await;
            tokio::time::sleep(Duration::from_secs(after)).await;
            users(&providers, image).await;
            assert_eq!(told.count(), expected, "{key} {keep:?} {image} after {after} s");
        };
        check("Image", Some("10s"), "a.reg.io/one", 9, 1).await;
        check("Image", Some("10s"), "a.reg.io/one:tag", 9, 1).await;
        check("Image", Some("10s"), "a.reg.io/one", 11, 2).await;
        check("Image", Some("10s"), "a.reg.io/two", 0, 2).await;
        check("Registry", Some("10s"), "a.reg.io/two", 0, 1).await;
        check("Registry", Some("10s"), "b.reg.io/two", 0, 2).await;
        check("Global", Some("10s"), "b.reg.io/two", 0, 1).await;
        check("Global", Some("0s"), "a.reg.io/one", 0, 2).await;
        check("Global", None, "a.reg.io/one", 59, 1).await;
        check("Global", None, "a.reg.io/one", 61, 2).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_of_pods_asks_once() {
        let (told, providers) = scene();
        told.answers("Image", Some("0s"));
        let all = futures::future::join_all((0..100).map(|_| users(&providers, "a.reg.io/one"))).await;
        assert_eq!((all, told.count()), (vec![1; 100], 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_fails_or_talks_nonsense_is_passed_over() {
        let (told, providers) = scene();
        assert_eq!(users(&providers, "a.reg.io/one").await, 0);
        *told.answer.lock().unwrap() = "not JSON".into();
        assert_eq!(users(&providers, "a.reg.io/one").await, 0);
        *told.answer.lock().unwrap() =
            json!({ "apiVersion": "v9", "kind": "CredentialProviderResponse", "cacheKeyType": "Global" }).to_string();
        assert_eq!(users(&providers, "a.reg.io/one").await, 0);
        told.answers("Global", None);
        assert_eq!(users(&providers, "a.reg.io/one").await, 1, "failures are not kept");
    }

    #[test]
    fn what_is_wrong_in_a_configuration_is_named() {
        let check = |entry: &str, expected: &str| {
            let error = config(&format!("[{{{entry}}}]")).expect_err(entry);
            assert!(error.contains(expected), "{entry}: {error}");
        };
        let rest = format!("matchImages: [a.io], defaultCacheDuration: 1m, apiVersion: {V1}");
        check(&format!("name: ../up, {rest}"), "providers[0].name");
        check(&format!("name: a, defaultCacheDuration: 1m, apiVersion: {V1}"), "providers[0].matchImages");
        check(&format!("name: a, matchImages: [a.io], apiVersion: {V1}"), "providers[0].defaultCacheDuration");
        check("name: a, matchImages: [a.io], defaultCacheDuration: 1m, apiVersion: v9", "providers[0].apiVersion");
        check(&format!("name: a, tokenAttributes: {{}}, {rest}"), "providers[0].tokenAttributes");
        check(&format!("name: a, {rest}}}, {{name: a, {rest}"), "configured twice");
        assert!(config("[]").expect_err("empty").contains("no provider"));
        check(&format!("name: absent, {rest}"), "/absent: No such file");
        check(&format!("name: notes, {rest}"), "/notes: not an executable file");
        check(&format!("name: a, args: null, colour: red, {rest}"), "colour");
        assert!(one()[0].program.ends_with("ask"));
    }

    #[test]
    fn a_directory_of_configurations_is_read_by_name() {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
        for name in ["one", "two"] {
            program(&dir.path().join(name));
        }
        let config = |name: &str| {
            format!(
                "kind: CredentialProviderConfig\napiVersion: kubelet.config.k8s.io/v1\nproviders:\n\
                 - {{name: {name}, matchImages: [a.io], defaultCacheDuration: 1m, apiVersion: {V1}}}\n"
            )
        };
        write("2.yaml", &config("two"));
        write("1.yml", &config("one"));
        write("notes.txt", "not ours");
        let read = read_config(dir.path(), dir.path()).expect("valid");
        assert_eq!(read.iter().map(|provider| provider.name.as_str()).collect::<Vec<_>>(), ["one", "two"]);
        write("3.yaml", &config("one"));
        assert!(
            read_config(dir.path(), dir.path()).expect_err("twice").to_string().contains("3.yaml: providers[0].name")
        );
    }

    /// Runs a shell script as the program.
    async fn run(script: &str, input: &[u8]) -> Result<String, String> {
        let mut provider = one().remove(0);
        provider.program = "/bin/sh".into();
        provider.args = vec!["-c".into(), script.into(), "sh".into(), "first".into()];
        provider.env = vec![("WHO".into(), "me".into())];
        Processes.run(&provider, input).await.map(|answer| String::from_utf8_lossy(&answer).into_owned())
    }

    #[tokio::test]
    async fn a_real_program_gets_its_arguments_environment_and_request() {
        assert_eq!(run("read -r line; echo \"$1 $WHO $line\"", b"{}\n").await, Ok("first me {}\n".into()));
        let error = run("echo why >&2; exit 3", b"{}\n").await.expect_err("it failed");
        assert!(error.contains("why") && error.contains('3'), "{error}");
    }

    #[tokio::test]
    async fn a_program_may_complain_at_length_before_it_answers() {
        assert_eq!(run("head -c 100000 /dev/zero >&2 && echo fine", b"").await, Ok("fine\n".into()));
        let error = run("head -c 100000 /dev/zero | tr '\\0' a >&2; exit 3", b"").await.expect_err("it failed");
        assert!(error.contains('3') && error.len() < 2 * COMPLAINT_BYTES_MAX, "{} bytes: {error}", error.len());
    }

    #[tokio::test]
    async fn a_program_that_behaves_badly_is_neither_waited_for_nor_left_behind() {
        assert_eq!(run("echo fine", &[b' '; 1 << 20]).await, Ok("fine\n".into()), "it does not listen");
        let began = Instant::now();
        let children = "sleep 600 & echo $!; sleep 600 >&- 2>&- &";
        let child = run(children, b"").await.expect("it has answered, whatever its children do");
        let children: Vec<i32> = child.lines().map(|pid| pid.parse().expect("a number")).collect();
        let endless = run("exec yes", b"").await.expect_err("it never stops");
        assert!(endless.contains("signal") || endless.contains("too long"), "{endless}");
        let silent = run("exec sleep 600 >&- 2>&-", b"").await.expect_err("it says nothing more");
        assert!(silent.contains("does not end"), "{silent}");
        assert!(began.elapsed() < Duration::from_secs(30));
        for child in children {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            assert!(stat.is_empty() || stat.contains(" Z "), "{stat}");
        }
    }
}
