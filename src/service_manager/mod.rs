//! What the service manager is told of the agent: that it is up, that it lives, that it stops.
//!
//! systemd names a datagram socket in `NOTIFY_SOCKET`, as a path or, after an `@`, as an abstract
//! name, and in `WATCHDOG_USEC` after how much silence it takes the agent for dead. Started by
//! nothing of the kind, the agent tells nobody.
//!
//! Task: the watchdog, which the composition root starts.
//! In: the two variables, and whether the agent is well. Out: datagrams.
//!
//! Always true: a word to the service manager never blocks and never ends the agent; the watchdog
//! is fed only while the agent is well.

#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::causes::chain;

/// Half of the watchdog's interval has to be longer than this: a busy machine would miss what is shorter.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// How often a word that did not get through is said again before the next is due.
const ATTEMPTS: u32 = 4;

#[derive(Debug, thiserror::Error)]
pub enum ServiceManagerError {
    #[error("NOTIFY_SOCKET {0:?} is neither an absolute path nor an abstract name")]
    Address(OsString),
    #[error("cannot reach NOTIFY_SOCKET {socket:?}")]
    Socket { socket: OsString, source: io::Error },
    #[error("WATCHDOG_USEC {0:?} is not a number of microseconds")]
    Interval(OsString),
}

/// The one who started the agent, if it wants to hear of it.
#[derive(Clone, Debug, Default)]
pub struct ServiceManager {
    socket: Option<Arc<UnixDatagram>>,
    watchdog: Option<Duration>,
}

/// What it set in the environment.
#[derive(Clone, Debug, Default)]
pub struct Given {
    pub notify_socket: Option<OsString>,
    pub watchdog_usec: Option<OsString>,
    /// Whom the watchdog is for; anybody without it.
    pub watchdog_pid: Option<OsString>,
}

impl Given {
    pub fn from_environment() -> Given {
        let read = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Given {
            notify_socket: read("NOTIFY_SOCKET"),
            watchdog_usec: read("WATCHDOG_USEC"),
            watchdog_pid: read("WATCHDOG_PID"),
        }
    }
}

impl ServiceManager {
    pub fn of(given: Given) -> Result<ServiceManager, ServiceManagerError> {
        let Some(name) = given.notify_socket else {
            return Ok(ServiceManager::default());
        };
        let connected = address(&name)?.and_then(|address| connect(&address));
        let socket = connected.map_err(|source| ServiceManagerError::Socket { socket: name, source })?;
        let own = std::process::id().to_string();
        let is_ours = given.watchdog_pid.is_none_or(|pid| pid == own.as_str());
        // That we are up is to be told all the same: a unit that waits for it would start for ever.
        let unusable = |error: &ServiceManagerError| warn!(error = chain(error), "the watchdog will not be fed");
        let watchdog = given.watchdog_usec.filter(|_| is_ours).map(interval);
        let watchdog = watchdog.and_then(|interval| interval.inspect_err(unusable).ok());
        Ok(ServiceManager { socket: Some(Arc::new(socket)), watchdog })
    }

    /// The agent does its work from here on.
    pub fn ready(&self) {
        self.tell_once("READY=1");
    }

    /// It was asked to end, and does.
    pub fn stopping(&self) {
        self.tell_once("STOPPING=1");
    }

    /// Feeds the watchdog at half of its interval while `check` finds nothing wrong. Ends at once
    /// without one.
    pub async fn feed_watchdog(self, check: impl Fn() -> Result<(), String>) {
        let Some(half) = self.watchdog.map(|interval| interval / 2) else {
            return;
        };
        let mut turns = tokio::time::interval(half);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            match check() {
                Ok(()) => self.feed(half).await,
                Err(reason) => warn!(reason, "not healthy: the watchdog is not fed"),
            }
        }
    }

    async fn feed(&self, half: Duration) {
        for attempt in 1..=ATTEMPTS {
            let Err(error) = self.tell("WATCHDOG=1") else { return };
            warn!(%error, attempt, "the watchdog was not fed");
            tokio::time::sleep(half / (2 * ATTEMPTS)).await;
        }
    }

    fn tell_once(&self, word: &'static str) {
        match self.tell(word) {
            Ok(true) => info!(word, "told the service manager"),
            Ok(false) => {}
            Err(error) => warn!(word, %error, "the service manager was not told"),
        }
    }

    /// Whether there was somebody to tell.
    fn tell(&self, word: &str) -> io::Result<bool> {
        match &self.socket {
            Some(socket) => socket.send(word.as_bytes()).map(|_| true),
            None => Ok(false),
        }
    }
}

fn address(name: &OsStr) -> Result<io::Result<SocketAddr>, ServiceManagerError> {
    match name.as_bytes() {
        [b'/', ..] => Ok(SocketAddr::from_pathname(name)),
        [b'@', rest @ ..] if !rest.is_empty() => Ok(SocketAddr::from_abstract_name(rest)),
        _ => Err(ServiceManagerError::Address(name.to_owned())),
    }
}

/// Connected once: later the path may be hidden from us, and the one behind it is the same.
fn connect(address: &SocketAddr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(address)?;
    // Who does not read must not hold the agent up.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn interval(text: OsString) -> Result<Duration, ServiceManagerError> {
    // Half of less is no time at all.
    let microseconds = text.to_str().and_then(|text| text.parse().ok()).filter(|number| *number > 1);
    let interval = microseconds.map(Duration::from_micros).ok_or(ServiceManagerError::Interval(text))?;
    if interval / 2 <= SHORTEST_INTERVAL {
        // It is fed all the same: to be killed over and over is worse.
        warn!(?interval, "WatchdogSec is too short for a machine that is busy");
    }
    Ok(interval)
}
