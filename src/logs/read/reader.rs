//! One who reads a log, to its end or on and on.
//!
//! ```text
//!   read ─▶ show ─▶ … ─▶ all read ─▶ wait for inotify, the container's end, or the slow look ─▶ read …
//!                           ├─▶ renamed, and another file follows ─▶ go on with that
//!                           └─▶ container ended ─▶ end
//! ```
//!
//! A file is left only when its writer has closed it: a runtime that is told to open a new log
//! writes to the old one for a moment more. Where nobody sees that, a second must do. What is known
//! of closed files and of the container's end is asked for before the last look at a file, so that
//! all it tells of is in there.

use std::io;
use std::sync::Arc;

use hyper::body::Bytes;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::decoder::Decoder;
use super::options::LogOptions;
use super::parts::{Log, Next, Stand};
use super::source::{Pass, Source};
use super::watch::Watch;
use super::{Paces, tail};
use crate::logs::disk::Disk;
use crate::logs::endings::Ending;

pub struct Reader {
    disk: Disk,
    log: Log,
    /// Away only while the blocking pool has it.
    source: Option<Source>,
    decoder: Decoder,
    follow: Option<Follow>,
    has_warned: bool,
}

/// What those have who follow a log.
pub struct Follow {
    /// Without it there are slow looks, not quite as slow.
    pub watch: Option<Watch>,
    pub ending: Ending,
    /// Asks again now and then, should nobody have told of the end.
    pub still_runs: Arc<dyn Fn() -> bool + Send + Sync>,
    pub has_ended: bool,
    pub paces: Paces,
    /// Until then the file is not left, though all of it was read and something follows.
    pub lingers_until: Option<Instant>,
}

impl Reader {
    /// Opens a log and goes to where its reader wants to begin.
    pub async fn open(disk: Disk, log: Log, options: &LogOptions, follow: Option<Follow>) -> io::Result<Reader> {
        let path = log.path();
        let opened = log.clone();
        let work = move || {
            let source = opened.open()?;
            let file = source.file()?;
            Ok((source, file))
        };
        let (mut source, file) = disk.run("open log", &path, work).await?;
        if let Some((file, end)) = file {
            let start = match options.tail_lines {
                None => 0,
                Some(0) if follow.is_none() => end,
                Some(lines) => tail::start(&disk, &path, Arc::new(file), end, lines).await?,
            };
            // Who does not follow must come to an end, however fast the container writes.
            source.between(start, follow.is_none().then_some(end));
        }
        let decoder = Decoder::new(options);
        Ok(Reader { disk, log, source: Some(source), decoder, follow, has_warned: false })
    }

    /// What the reader sees next; `None` if nothing more will come.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut out = Vec::new();
        while out.is_empty() && !self.decoder.is_over() {
            // Before the look: what they tell of is then to be found by it.
            let known = self.follow.as_ref().map(Follow::known);
            match self.pass().await? {
                Pass::Bytes(bytes) => {
                    out.reserve(bytes.len());
                    self.decoder.feed(&bytes, &mut out);
                    self.warn_of_broken();
                    if let Some(follow) = &mut self.follow {
                        follow.lingers_until = None;
                    }
                }
                Pass::Anew => self.decoder.cut(&mut out),
                Pass::End(stand) => match (stand, known) {
                    (Some(stand), Some(known)) => {
                        if self.stand(stand, &known, &mut out).await? {
                            break;
                        }
                    }
                    _ => break,
                },
            }
        }
        Ok((!out.is_empty()).then(|| Bytes::from(out)))
    }

    async fn pass(&mut self) -> io::Result<Pass> {
        let mut source = self.source.take().expect("it is put back by each look that came back");
        let (log, follows) = (self.log.clone(), self.follow.is_some());
        let work = move || {
            let pass = source.pass(&log, follows)?;
            Ok((source, pass))
        };
        let (source, pass) = self.disk.run("read log", &self.log.path(), work).await?;
        self.source = Some(source);
        Ok(pass)
    }

    /// All of a file was read: goes on to the next, or waits. True if this is the end.
    async fn stand(&mut self, stand: Stand, known: &Known, out: &mut Vec<u8>) -> io::Result<bool> {
        let Some(follow) = &mut self.follow else { return Ok(true) };
        match stand {
            Stand::Last { name } if known.has_ended && follow.may_leave(&name, known) => Ok(true),
            Stand::Followed { name, by, is_fresh }
                if !is_fresh || known.has_ended || follow.may_leave(&name, known) =>
            {
                follow.lingers_until = None;
                self.go_on(&name, by, out).await?;
                Ok(false)
            }
            Stand::Last { .. } | Stand::Followed { .. } => {
                follow.wait(known.has_ended).await;
                Ok(false)
            }
        }
    }

    async fn go_on(&mut self, left: &str, next: Next, out: &mut Vec<u8>) -> io::Result<()> {
        let log = self.log.clone();
        let opened = self.disk.run("open log", &self.log.path(), move || log.open_next(&next)).await?;
        // If that was renamed meanwhile, the next look finds what has its name.
        if let Some(source) = opened {
            self.decoder.cut(out);
            self.source = Some(source);
            if let Some(watch) = self.follow.as_ref().and_then(|follow| follow.watch.as_ref()) {
                watch.forget_closed(left);
            }
        }
        Ok(())
    }

    fn warn_of_broken(&mut self) {
        if self.decoder.broken() > 0 && !self.has_warned {
            self.has_warned = true;
            warn!(log = %self.log.path().display(), "log has records that are broken, they are left out");
        }
    }
}

/// What was known before a look.
struct Known {
    has_ended: bool,
    closed: Vec<String>,
}

impl Follow {
    fn known(&self) -> Known {
        let closed = self.watch.as_ref().map(Watch::closed).unwrap_or_default();
        Known { has_ended: self.has_ended || *self.ending.borrow(), closed }
    }

    /// Nothing will be written any more to the file of this name, as far as can be told.
    fn may_leave(&mut self, name: &str, known: &Known) -> bool {
        let now = Instant::now();
        let until = *self.lingers_until.get_or_insert(now + self.paces.linger);
        known.closed.iter().any(|closed| closed == name) || now >= until
    }

    async fn wait(&mut self, has_ended: bool) {
        let pace = if self.watch.is_some() { self.paces.slow_look } else { self.paces.look };
        let until = self.lingers_until.unwrap_or_else(|| Instant::now() + pace);
        let watch = &self.watch;
        let changed = async {
            match watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Cancel-safe: a permit that is not taken stays.
            () = changed => {}
            // Cancel-safe: the watch keeps its value. A sender that is gone will not tell.
            _ = self.ending.wait_for(|ended| *ended), if !has_ended => self.has_ended = true,
            // Cancel-safe: a timer.
            () = sleep_until(until) => self.has_ended = self.has_ended || !(self.still_runs)(),
        }
    }
}
