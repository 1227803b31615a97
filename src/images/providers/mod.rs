//! Kubelet credential providers: programs that know the password of a registry.
//!
//! `config.rs` reads upstream's CredentialProviderConfig; [`Providers`] runs a program
//! (`process.rs`) whose patterns fit an image, with a request on its standard input, and keeps
//! its answer for as long as the answer says. One that is configured to know on whose behalf
//! it is asked is told the pod's service account and a token of it (`accounts.rs`); its answer
//! is that account's alone. A program that fails is passed over: the image is tried with
//! other credentials.

mod accounts;
mod config;
mod process;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::{BoxFuture, WeakShared};
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{debug, warn};

pub use accounts::Accounts;
use accounts::{Account, AccountKey};
pub use config::{Provider, ProviderConfigError, read_config};
pub use process::Processes;

use super::credentials::{Entry, Owner, Place};
use super::reference::Reference;
use crate::clock::Clock;
use crate::config::GoDuration;
use crate::metrics;

/// How long a program may take.
const RUN_WITHIN: Duration = Duration::from_secs(60);
/// Answers kept; beyond it all are asked for again.
const CACHED_MAX: usize = 1000;
/// Programs that run at the same time.
const PROGRAMS_MAX: usize = 5;

/// Runs programs: the one thing here that reaches outside.
#[async_trait]
pub trait Programs: Send + Sync + 'static {
    /// What the program wrote to its standard output, or why it did not come to that.
    async fn run(&self, provider: &Provider, input: &[u8]) -> Result<Vec<u8>, String>;
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    api_version: &'a str,
    kind: &'static str,
    image: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    service_account_token: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    service_account_annotations: &'a BTreeMap<String, String>,
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
    accounts: Accounts,
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
    question: Question,
    asked: WeakShared<BoxFuture<'static, Option<Entries>>>,
}

/// What a program is asked.
#[derive(Clone, PartialEq, Eq)]
struct Question {
    provider: String,
    /// Host and port of the registry.
    domain: String,
    repository: String,
    account: Option<Account>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct CacheKey {
    provider: String,
    holds_for: Reach,
    account: Option<AccountKey>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Image(String),
    Registry(String),
    Global,
}

impl Question {
    /// Under which an answer with this word would be kept.
    fn key(&self, provider: &Provider, key_type: CacheKeyType) -> CacheKey {
        let holds_for = match key_type {
            CacheKeyType::Image => Reach::Image(self.repository.clone()),
            CacheKeyType::Registry => Reach::Registry(self.domain.clone()),
            CacheKeyType::Global => Reach::Global,
        };
        let attributes = provider.token_attributes.as_ref();
        let account = self.account.as_ref().zip(attributes).map(|(account, attributes)| account.key(attributes));
        CacheKey { provider: self.provider.clone(), holds_for, account }
    }
}

struct Cached {
    until: Instant,
    entries: Entries,
}

impl Providers {
    pub fn new(list: Vec<Provider>, programs: Arc<dyn Programs>, accounts: Accounts, clock: Clock) -> Self {
        let shared = Shared { programs, clock, cache: Mutex::default(), turns: Semaphore::new(PROGRAMS_MAX) };
        Providers { list, accounts, shared: Arc::new(shared), running: Mutex::default() }
    }

    /// The servers and credentials that the programs responsible for the image name, and whose
    /// they are.
    pub async fn entries(&self, image: &Reference, pod: &Pod) -> Vec<(Owner, Vec<(String, Entry)>)> {
        let repository = image.repository();
        let responsible = |provider: &&Provider| {
            provider.match_images.iter().any(|pattern| Place::of_pattern(pattern).holds(&repository))
        };
        let mut all = Vec::new();
        for provider in self.list.iter().filter(responsible) {
            let account = match &provider.token_attributes {
                None => None,
                Some(attributes) => match self.accounts.of_pod(pod, attributes).await {
                    Ok(account) => account,
                    Err(why) => {
                        why.tell(&provider.name, &repository, pod);
                        continue;
                    }
                },
            };
            let owner = account.as_ref().map_or(Owner::Node, |account| Owner::Account(account.reference.clone()));
            let (provider_name, domain) = (provider.name.clone(), image.domain.clone());
            let question = Question { provider: provider_name, domain, repository: repository.clone(), account };
            if let Some(entries) = self.asked(provider, question).await {
                all.push((owner, entries.to_vec()));
            }
        }
        all
    }

    fn asked(&self, provider: &Provider, question: Question) -> Asked {
        let mut running = self.running.lock().expect("nothing that holds the list of programs can panic");
        running.retain(|run| run.asked.upgrade().is_some_and(|asked| asked.peek().is_none()));
        let equal = running.iter().find(|run| run.question == question);
        if let Some(asked) = equal.and_then(|run| run.asked.upgrade()) {
            return asked;
        }
        let asked = self.shared.clone().ask(provider.clone(), question.clone()).boxed().shared();
        let weak = asked.downgrade().expect("a future that was not polled has not ended");
        running.push(Running { question, asked: weak });
        asked
    }
}

impl Shared {
    /// Borrows nothing: it outlives the pod that asked first.
    async fn ask(self: Arc<Self>, provider: Provider, question: Question) -> Option<Entries> {
        let keys = [CacheKeyType::Image, CacheKeyType::Registry, CacheKeyType::Global]
            .map(|key_type| question.key(&provider, key_type));
        if let Some(entries) = self.kept(&keys) {
            return Some(entries);
        }
        let _turn = self.turns.acquire().await.expect("the semaphore is never closed");
        if let Some(entries) = self.kept(&keys) {
            return Some(entries);
        }
        let repository = &question.repository;
        debug!(provider = provider.name, image = repository, "asking credential provider");
        let began = self.clock.now();
        let answer = self.run(&provider, &question).await;
        metrics::images::provider_asked(&provider.name, self.clock.now() - began, answer.is_ok());
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => {
                warn!(provider = provider.name, image = repository, why, "credential provider gives no answer");
                return None;
            }
        };
        let entries: Entries = Arc::new(answer.auth.unwrap_or_default().into_iter().collect());
        let keep = answer.cache_duration.map_or(Some(provider.default_cache), GoDuration::to_std);
        if let Some(keep) = keep.filter(|keep| !keep.is_zero()) {
            let now = self.clock.now();
            let mut cache = self.cache();
            cache.retain(|_, cached| cached.until > now);
            if cache.len() >= CACHED_MAX {
                cache.clear();
            }
            let key = question.key(&provider, answer.cache_key_type);
            cache.insert(key, Cached { until: now + keep, entries: entries.clone() });
        }
        Some(entries)
    }

    async fn run(&self, provider: &Provider, question: &Question) -> Result<Answer, String> {
        let nothing = BTreeMap::new();
        let account = question.account.as_ref();
        let request = Request {
            api_version: &provider.api_version,
            kind: "CredentialProviderRequest",
            image: &question.repository,
            service_account_token: account.map_or("", |account| &account.token),
            service_account_annotations: account.map_or(&nothing, |account| &account.annotations),
        };
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
        if let (Some(account), Some(attributes)) = (account, &provider.token_attributes)
            && !attributes.is_cached_by_token()
            && answer.auth.iter().flatten().any(|(_, entry)| entry.has_password(&account.token))
        {
            // The answer would be kept, and given out, for longer than the token is good.
            return Err("it gives the token back as the password, which needs cacheType Token".to_owned());
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
