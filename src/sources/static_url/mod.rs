//! The static-pod URL: a document with one pod or a list of them, asked for again and again.
//!
//! One task. What it reads goes through `manifests.rs`, each item of a list as a manifest of
//! its own, known by its name. While nothing has come yet it asks more often than the period
//! says, so that a node whose network or server is late does not wait for a whole one.
//!
//! In: answers of the server, through the edge `Net`. Out: `SourceEvent::Listed` when a pod
//! changed.
//!
//! Always true: only a whole answer that is understood says which pods there are. Of a server
//! that is away, errs, hangs or talks nonsense nothing is concluded: running pods stay, and a
//! source that has never had a good answer has not spoken. Until it has, no pod that nobody
//! else knows is ended, since it may be one of this URL's: an agent that restarts while the
//! server is down must not end what it started before. An answer that is empty, on the other
//! hand, says that there are no pods; upstream takes it so.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::SourceEvent;
use super::manifests::{Found, MANIFEST_BYTES_MAX, Manifests, Missing, Place, tell};
use crate::clock::Clock;
use crate::net::{HttpGet, Net, NetError, basic_authorization, without_userinfo};
use crate::pod::Source;
use crate::pod::static_pod::{Item, ManifestError, items};

/// From the first byte sent to the last one read, redirects included.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// As with Go's client, a GET is sent so often at most, the first time included.
const REQUESTS_MAX: usize = 10;
/// Between the first attempts, until one succeeds.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// They say who asks, which is nobody else's business than the configured server's.
const SECRET_HEADERS: [&str; 4] = ["authorization", "cookie", "cookie2", "www-authenticate"];

/// Whom to ask, how, and how its answers become pods of this node.
#[derive(Clone, Debug)]
pub struct StaticUrl {
    pub url: String,
    /// By name; each may have several values.
    pub headers: BTreeMap<String, Vec<String>>,
    pub user_agent: String,
    pub node_name: String,
    pub may_need_api: bool,
    pub period: Duration,
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("not an HTTP URL")]
    Url,
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("no answer within {ANSWER_WITHIN:?}")]
    Slow,
    #[error("stopped after {REQUESTS_MAX} redirects")]
    TooManyRedirects,
    #[error("the server answers with status {0}")]
    Status(u16),
    #[error("the answer is larger than {} MiB", MANIFEST_BYTES_MAX >> 20)]
    TooLong,
    #[error(transparent)]
    Document(#[from] ManifestError),
    #[error("the parser failed on it")]
    Parser,
}

/// Runs until the dispatcher is gone.
pub async fn run(config: StaticUrl, net: Arc<dyn Net>, clock: Clock, events: mpsc::Sender<SourceEvent>) {
    // Without a password, for the log.
    let url = without_userinfo(&config.url);
    let manifests = Some(Manifests::new(Place::Url(config.url.clone()), &config.node_name, config.may_need_api));
    let mut task = Task { config, net, clock, manifests, etag: None, fingerprint: None };
    let mut listed: Option<Vec<Arc<Pod>>> = None;
    let mut last_error: Option<String> = None;
    let mut retry = RETRY_FIRST.min(task.config.period);
    loop {
        let failure = match task.look().await {
            Ok(None) => None,
            Ok(Some(pods)) => {
                if listed.as_ref() != Some(&pods) {
                    info!(pods = pods.len(), url, "static pods changed");
                    listed = Some(pods.clone());
                    if events.send(SourceEvent::Listed { source: Source::Http, pods }).await.is_err() {
                        return;
                    }
                }
                None
            }
            Err(error) => Some(error.to_string()),
        };
        match &failure {
            // Said once, and again only when it changes: the server may be away for days.
            Some(error) if last_error.as_ref() != Some(error) => {
                error!(url, error, "static pods cannot be read from their URL, those that run stay as they are");
            }
            None if last_error.is_some() => info!(url, "static pods can be read from their URL again"),
            _ => {}
        }
        last_error = failure;
        let pause = if listed.is_none() { retry } else { task.config.period };
        retry = (retry * 2).min(task.config.period);
        tokio::select! {
            biased;
            // Nobody listens any more. Cancel-safe: it only waits.
            () = events.closed() => return,
            // Cancel-safe: a sleep.
            () = sleep(pause) => {}
        }
    }
}

/// An answer with status 200.
struct Document {
    text: Vec<u8>,
    etag: Option<String>,
}

struct Task {
    config: StaticUrl,
    net: Arc<dyn Net>,
    clock: Clock,
    /// Away only while they are read.
    manifests: Option<Manifests>,
    /// What the server calls the document that was last understood.
    etag: Option<String>,
    /// Of that document.
    fingerprint: Option<u64>,
}

impl Task {
    /// The pods that the URL describes; `None` where it says what it said before.
    async fn look(&mut self) -> Result<Option<Vec<Arc<Pod>>>, FetchError> {
        let fetched = timeout(ANSWER_WITHIN, self.fetch()).await.map_err(|_| FetchError::Slow)??;
        let Some(Document { text, etag }) = fetched else { return Ok(None) };
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let fingerprint = Some(hasher.finish());
        if self.fingerprint == fingerprint {
            self.etag = etag;
            return Ok(None);
        }
        let (mut manifests, seen) =
            (self.manifests.take().expect("a look gives the manifests back"), self.clock.wall());
        // Ten megabytes of YAML are nothing for the shared executor.
        let reading = tokio::task::spawn_blocking(move || {
            let notes = understand(&text).map(|(found, missing)| manifests.update(found, missing, seen));
            (manifests, notes)
        });
        let (manifests, notes) = reading.await.expect("reading manifests does not panic");
        let manifests = self.manifests.insert(manifests);
        notes?.iter().for_each(tell);
        (self.etag, self.fingerprint) = (etag, fingerprint);
        Ok(Some(manifests.pods()))
    }

    /// The document; `None` if the server says that it is as before.
    async fn fetch(&self) -> Result<Option<Document>, FetchError> {
        let mut request = self.request().ok_or(FetchError::Url)?;
        for _ in 0..REQUESTS_MAX {
            let answer = self.net.fetch(&request, MANIFEST_BYTES_MAX as usize + 1).await?;
            match answer.status {
                200 if answer.body.len() as u64 > MANIFEST_BYTES_MAX => return Err(FetchError::TooLong),
                200 => return Ok(Some(Document { text: answer.body, etag: answer.etag })),
                304 if self.etag.is_some() => return Ok(None),
                301 | 302 | 303 | 307 | 308 => {}
                status => return Err(FetchError::Status(status)),
            }
            let location = answer.location.filter(|location| !location.is_empty());
            let next = location.and_then(|location| request.redirected(&location));
            let (mut next, _) = next.ok_or(FetchError::Status(answer.status))?;
            if !next.host.eq_ignore_ascii_case(&request.host) {
                next.headers.retain(|(name, _)| !SECRET_HEADERS.contains(&name.to_ascii_lowercase().as_str()));
            }
            request = next;
        }
        Err(FetchError::TooManyRedirects)
    }

    fn request(&self) -> Option<HttpGet> {
        let mut request = HttpGet::of_url(&self.config.url)?;
        let configured = self.config.headers.iter();
        request.headers = configured
            // Upstream's client does not send this one either.
            .filter(|(name, _)| !name.eq_ignore_ascii_case("host"))
            .flat_map(|(name, values)| values.iter().map(|value| (name.clone(), value.clone())))
            .collect();
        let user = basic_authorization(&self.config.url);
        let own = [
            ("User-Agent", Some(&self.config.user_agent)),
            ("If-None-Match", self.etag.as_ref()),
            ("Authorization", user.as_ref()),
        ];
        for (name, value) in own {
            if let Some(value) = value
                && !request.headers.iter().any(|(configured, _)| configured.eq_ignore_ascii_case(name))
            {
                request.headers.push((name.to_owned(), value.clone()));
            }
        }
        Some(request)
    }
}

/// The manifests in an answer, and what that means for those that are not in it.
fn understand(text: &[u8]) -> Result<(Found, Missing), FetchError> {
    if text.is_empty() {
        warn!("the static-pod URL answers with nothing: there are no static pods of it");
        return Ok((Found::new(), Missing::AreGone));
    }
    // A bug of the parser must not stop the task.
    let items = catch_unwind(|| items(text)).map_err(|_| FetchError::Parser)??;
    // An item without a name is broken, and nobody can tell which pod it was meant to be.
    let missing = match items.iter().all(|item| item.name.is_some()) {
        true => Missing::AreGone,
        false => Missing::MayBeThere,
    };
    let mut found = Found::new();
    for (index, Item { name, text }) in items.into_iter().enumerate() {
        let mut path = PathBuf::from(name.unwrap_or_else(|| format!("items[{index}]")));
        if found.contains_key(&path) {
            // It loses against the first, and is told of.
            path.as_mut_os_string().push(format!(" (items[{index}])"));
        }
        found.insert(path, Ok(text));
    }
    Ok((found, missing))
}
