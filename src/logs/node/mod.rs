//! What the machine itself has logged: the files below /var/log, and by query what services said.
//!
//! A path is answered by `files.rs`, a query (`query.rs`, as `kubectl get --raw
//! …/proxy/logs/?query=kubelet` asks) by journalctl (`journal.rs`) or, for services that do not log
//! there, by the file that is called like them.
//!
//! Tasks: one for each query that is being answered. A journalctl lives as long as the answer it
//! writes, and thirty seconds at most, whoever reads.
//! In: path and query. Out: bytes.
//!
//! Always true: nothing outside of the directory is ever opened, whatever links lie in it; an answer
//! costs one piece of memory; few are given at the same time; dropping one ends all that was done for it.

mod files;
mod gzip;
mod journal;
mod query;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use hyper::body::Bytes;
use nix::errno::Errno;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

pub use files::Body;

use super::disk::Disk;
use super::places::{Place, Places};
use files::Found;
use journal::Journal;
use query::{BadQuery, Narrowing, NodeQuery, What};

/// Answers that are given at the same time.
const ANSWERS_MAX: usize = 32;
/// Those for which a journalctl runs, which reads all the journal for some of what it is asked.
const QUERIES_MAX: usize = 4;
const QUERY_DEADLINE: Duration = Duration::from_secs(30);
const QUERY_TYPE: &str = "text/plain;charset=UTF-8";

/// An answer.
pub enum NodeLog {
    Content {
        content_type: &'static str,
        /// It is compressed, which `Content-Encoding` must tell.
        is_gzip: bool,
        body: Body,
    },
    /// To be moved permanently (301), relative to what was asked for.
    Elsewhere(String),
}

#[derive(Debug, thiserror::Error)]
pub enum NodeLogError {
    #[error(transparent)]
    BadQuery(#[from] BadQuery),
    #[error("path not allowed in query mode")]
    PathInQuery,
    #[error("query: Invalid value: {path:?}: {source}")]
    FileOfQuery {
        path: String,
        #[source]
        source: io::Error,
    },
    /// The text is that of upstream's file server.
    #[error("{}", text_of(.0))]
    File(#[source] io::Error),
    #[error("too many logs of this node are being read")]
    TooMany,
}

impl NodeLogError {
    /// The HTTP status that tells of it.
    pub fn status(&self) -> u16 {
        match self {
            NodeLogError::BadQuery(BadQuery::Undecodable(_)) => 400,
            NodeLogError::BadQuery(BadQuery::Invalid(_)) => 406,
            NodeLogError::PathInQuery | NodeLogError::FileOfQuery { .. } => 406,
            NodeLogError::File(error) => status_of(error),
            NodeLogError::TooMany => 429,
        }
    }
}

/// The same by a task, which ends by then also if nobody reads, and with whoever does.
fn told_by(deadline: Instant, mut body: Body, permit: OwnedSemaphorePermit) -> Body {
    let (sender, receiver) = mpsc::channel(1);
    let telling = async move {
        let _held = permit;
        let all = async {
            while let Some(piece) = body.next().await {
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
        };
        let _ = timeout_at(deadline, all).await;
    };
    let task = AbortOnDropHandle::new(tokio::spawn(telling));
    let next = async |(mut receiver, task): (mpsc::Receiver<_>, AbortOnDropHandle<()>)| {
        let piece = receiver.recv().await?;
        Some((piece, (receiver, task)))
    };
    stream::unfold((receiver, task), next).boxed()
}

fn status_of(error: &io::Error) -> u16 {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => 404,
        io::ErrorKind::PermissionDenied => 403,
        // On old kernels, where no link is followed.
        _ if error.raw_os_error() == Some(Errno::ELOOP as i32) => 403,
        _ => 500,
    }
}

fn text_of(error: &io::Error) -> &'static str {
    match status_of(error) {
        404 => "404 page not found",
        403 => "403 Forbidden",
        _ => "500 Internal Server Error",
    }
}

/// Clones share the bounds.
#[derive(Clone)]
pub struct NodeLogs {
    root: PathBuf,
    disk: Disk,
    journal: Journal,
    queries_enabled: bool,
    answers: Places,
    queries: Arc<Semaphore>,
}

impl NodeLogs {
    /// `root` is /var/log, `queries_enabled` is `enableSystemLogQuery` with its feature gate.
    pub fn new(root: PathBuf, disk: Disk, queries_enabled: bool) -> Self {
        Self::with_journal(root, disk, queries_enabled, "journalctl".into())
    }

    fn with_journal(root: PathBuf, disk: Disk, queries_enabled: bool, program: PathBuf) -> Self {
        let (answers, queries) = (Places::new(ANSWERS_MAX), Arc::new(Semaphore::new(QUERIES_MAX)));
        NodeLogs { root, disk, journal: Journal::new(program), queries_enabled, answers, queries }
    }

    /// Answers what comes after `/logs/`, decoded. `may_gzip`: `Accept-Encoding` is exactly `gzip`.
    pub async fn answer(
        &self,
        path: &str,
        query: &[(String, String)],
        may_gzip: bool,
    ) -> Result<NodeLog, NodeLogError> {
        let query = if self.queries_enabled { query::parse(query)? } else { None };
        let Some(NodeQuery { what, options }) = query else {
            return self.file(path, self.place()?).await.map_err(NodeLogError::File);
        };
        if !path.trim_matches('/').is_empty() {
            return Err(NodeLogError::PathInQuery);
        }
        match what {
            What::Services(services) => self.services(services, options, may_gzip).await,
            What::File(path) => {
                let place = self.place()?;
                self.file(&path, place).await.map_err(|source| NodeLogError::FileOfQuery { path, source })
            }
        }
    }

    fn place(&self) -> Result<Place, NodeLogError> {
        self.answers.take().ok_or(NodeLogError::TooMany)
    }

    async fn file(&self, path: &str, place: Place) -> io::Result<NodeLog> {
        let at = self.root.join(path.trim_matches('/'));
        Ok(match self.find(path).await? {
            Found::Elsewhere(other) => NodeLog::Elsewhere(other),
            Found::Listing(page) => NodeLog::Content { content_type: files::HTML, is_gzip: false, body: said(page) },
            Found::File { content_type, file, bytes } => {
                let body = place.hold(files::content(self.disk.clone(), at, file, bytes)).boxed();
                NodeLog::Content { content_type, is_gzip: false, body }
            }
        })
    }

    async fn find(&self, path: &str) -> io::Result<Found> {
        let (root, owned) = (self.root.clone(), path.to_owned());
        let lane = self.root.join(path.trim_matches('/'));
        self.disk.run("open", &lane, move || files::find(&root, &owned)).await
    }

    async fn services(
        &self,
        services: Vec<String>,
        options: Narrowing,
        may_gzip: bool,
    ) -> Result<NodeLog, NodeLogError> {
        let permit = self.queries.clone().try_acquire_owned().map_err(|_| NodeLogError::TooMany)?;
        let deadline = Instant::now() + QUERY_DEADLINE;
        // Without its list we do not know of a journal, and look for files.
        let units = timeout_at(deadline, self.journal.units()).await.unwrap_or_default();
        let logs_there = |service: &String| {
            units.iter().any(|unit| unit == service || unit.strip_suffix(".service") == Some(service))
        };
        let (native, others): (Vec<String>, Vec<String>) = services.into_iter().partition(logs_there);
        let mut bodies = Vec::new();
        if !native.is_empty() {
            bodies.push(self.journal.lines(&native, &options));
        }
        if !others.is_empty() && options != Narrowing::default() {
            let names = others.join(" ");
            bodies.push(said(format!(
                "\noptions present and query resolved to log files for [{names}]\ntry without specifying options\n"
            )));
        } else {
            for service in others {
                bodies.push(self.file_of(&service).await);
            }
        }
        let body = told_by(deadline, stream::iter(bodies).flatten().boxed(), permit);
        let body = if may_gzip { gzip::gzip(body.boxed()) } else { body.boxed() };
        Ok(NodeLog::Content { content_type: QUERY_TYPE, is_gzip: may_gzip, body })
    }

    /// The first file that is called like a service.
    async fn file_of(&self, service: &str) -> Body {
        for name in [service.to_owned(), format!("{service}.log"), format!("{service}/{service}.log")] {
            match self.find(&name).await {
                Ok(Found::File { file, bytes, .. }) => {
                    return match self.place() {
                        Ok(place) => {
                            place.hold(files::content(self.disk.clone(), self.root.join(name), file, bytes)).boxed()
                        }
                        Err(error) => said(format!("\nerror getting log for {service}: {error}\n")),
                    };
                }
                // A directory may have it, which is the last of the names.
                Ok(Found::Listing(_) | Found::Elsewhere(_)) => {}
                Err(error) if status_of(&error) == 404 => {}
                Err(error) => return said(format!("\nerror getting log for {service}: {error}\n")),
            }
        }
        said(format!("\nlog not found for {service}\n"))
    }
}

fn said(text: String) -> Body {
    stream::iter([Ok(Bytes::from(text))]).boxed()
}
