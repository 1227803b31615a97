//! One connection to systemd: its own socket, or else the system's bus.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use serde::Serialize;
use tokio::net::UnixStream;
use tokio::time::timeout;
use zbus::connection::Builder;
use zbus::message::{Message, Type};
use zbus::{Connection, DBusError, DynamicType, MatchRule, MessageStream, OwnedObjectPath};

/// To be reached, and again to do what it is asked: a systemd that hangs must not hold threads for good.
const WORD_MAX: Duration = Duration::from_secs(10);

const SYSTEMD: &str = "org.freedesktop.systemd1";
const SYSTEMD_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// It has a number, the job, its unit and the result.
const JOB_REMOVED: &str = "JobRemoved";
/// Of those the unit, counted from 0.
const UNIT: u8 = 2;

#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error("no connection through {}", path.display())]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("nothing to run a connection on")]
    Runtime(#[source] io::Error),
    #[error("connection to systemd broke")]
    Io(#[source] Arc<io::Error>),
    #[error("systemd does not speak as it should")]
    Protocol(#[source] zbus::Error),
    #[error("no answer within {} seconds", WORD_MAX.as_secs())]
    Late,
    #[error("{name}: {text}")]
    Refused { name: String, text: String },
    #[error("job ended with {0:?}")]
    Job(String),
}

pub type BusResult<T> = Result<T, BusError>;

impl BusError {
    pub fn is(&self, name: &str) -> bool {
        matches!(self, BusError::Refused { name: refused, .. } if refused == name)
    }
}

impl From<zbus::Error> for BusError {
    fn from(error: zbus::Error) -> Self {
        match error {
            zbus::Error::InputOutput(source) => BusError::Io(source),
            zbus::Error::MethodError(name, text, _) => {
                BusError::Refused { name: name.to_string(), text: text.unwrap_or_default() }
            }
            // A name that D-Bus itself has.
            zbus::Error::FDO(error) => BusError::Refused {
                name: error.name().to_string(),
                text: error.description().unwrap_or_default().to_owned(),
            },
            error => BusError::Protocol(error),
        }
    }
}

pub struct Bus(Connection);

impl Bus {
    pub async fn connect(run: &Path) -> BusResult<Self> {
        let own = run.join("systemd/private");
        match open(&own).await {
            // There nobody else is on the line, so that there are no names.
            Ok(stream) => Ok(Bus(Builder::unix_stream(stream).p2p().build().await?)),
            Err(_) => {
                let shared = run.join("dbus/system_bus_socket");
                let opened = open(&shared).await;
                let stream = opened.map_err(|source| BusError::Connect { path: shared, source })?;
                Ok(Bus(Builder::unix_stream(stream).build().await?))
            }
        }
    }

    /// Calls a method of systemd's manager.
    pub async fn call(&self, member: &str, body: &(impl Serialize + DynamicType)) -> BusResult<Message> {
        self.ask(MANAGER, member, body).await
    }

    pub async fn ping(&self) -> BusResult<()> {
        self.ask("org.freedesktop.DBus.Peer", "Ping", &()).await.map(drop)
    }

    /// Calls a method that begins a job for that unit, and waits until it has ended.
    pub async fn run_job(&self, member: &str, unit: &str, body: &(impl Serialize + DynamicType)) -> BusResult<()> {
        // Before the job begins: it may have ended when its name is known.
        let mut ended = self.ended_jobs(unit).await?;
        if self.0.is_bus() {
            // There systemd tells those who asked; on its own socket it tells everybody.
            self.call("Subscribe", &()).await?;
        }
        let job: OwnedObjectPath = self.call(member, body).await?.body().deserialize()?;
        loop {
            let message = ended.next().await.ok_or(zbus::Error::InvalidReply)??;
            let (_, of, _, result): (u32, OwnedObjectPath, String, String) = message.body().deserialize()?;
            if of == job {
                return if result == "done" { Ok(()) } else { Err(BusError::Job(result)) };
            }
        }
    }

    async fn ended_jobs(&self, unit: &str) -> zbus::Result<MessageStream> {
        let rule = MatchRule::builder().msg_type(Type::Signal).sender(SYSTEMD).interface(MANAGER).member(JOB_REMOVED);
        MessageStream::for_match_rule(rule.arg(UNIT, unit).build()?, &self.0, None).await
    }

    async fn ask(&self, interface: &str, member: &str, body: &(impl Serialize + DynamicType)) -> BusResult<Message> {
        Ok(self.0.call_method(Some(SYSTEMD), SYSTEMD_PATH, Some(interface), member, body).await?)
    }
}

async fn open(path: &Path) -> io::Result<std::os::unix::net::UnixStream> {
    UnixStream::connect(path).await?.into_std()
}

/// The word, or that it came to no end.
pub async fn within<T>(word: impl Future<Output = BusResult<T>>) -> BusResult<T> {
    timeout(WORD_MAX, word).await.unwrap_or(Err(BusError::Late))
}
