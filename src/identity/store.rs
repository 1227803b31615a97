//! Certificates on disk, in the layout that upstream and its tools know.
//!
//! `<role>-<date>.pem` holds a certificate and its key and is never changed;
//! `<role>-current.pem` is a link to the one in use. A file is whole and on the disk before
//! the link leads to it, and the link changes in one step, so a crash leaves at worst a
//! finished certificate that nothing leads to: the next start finds it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::certificate::Bundle;
use super::plan::{Held, Stored};
use super::request::Key;
use crate::causes::chain;
use crate::host::{Durability, Host, HostError};

/// A chain and a key have a few kilobytes.
pub const PEM_BYTES_MAX: usize = 256 * 1024;
/// Certificates kept beside the one in use; upstream keeps all there ever were.
const OLD_KEPT: usize = 2;
const DIR_MODE: u32 = 0o755;
const SECRET_MODE: u32 = 0o600;
/// The key of a first request that is not answered yet.
const UNFINISHED_KEY: &str = "kubelet-client.key.tmp";

#[derive(Clone)]
pub struct Store {
    host: Arc<dyn Host>,
    dir: PathBuf,
    role: &'static str,
}

impl Store {
    pub fn client(host: Arc<dyn Host>, dir: &Path) -> Store {
        Store { host, dir: dir.to_owned(), role: "kubelet-client" }
    }

    pub fn serving(host: Arc<dyn Host>, dir: &Path) -> Store {
        Store { host, dir: dir.to_owned(), role: "kubelet-server" }
    }

    pub fn current_path(&self) -> PathBuf {
        self.dir.join(format!("{}-current.pem", self.role))
    }

    /// The certificate that the link leads to, and whether `authorities` issued it. As with the
    /// others, it is an error if the disk does not answer: it may well be good.
    pub async fn current(&self, authorities: Option<&[u8]>) -> Result<Held, HostError> {
        Ok(self.look_at(self.current_path(), authorities).await?.0)
    }

    /// The same with its key, if it can be used.
    pub async fn current_bundle(&self) -> Result<Option<Bundle>, HostError> {
        Ok(self.look_at(self.current_path(), None).await?.1)
    }

    /// Every finished certificate of this role that can be used.
    pub async fn finished(&self, authorities: Option<&[u8]>) -> Result<Vec<Stored>, HostError> {
        let mut finished = Vec::new();
        for name in self.dated().await?.into_iter().rev().take(OLD_KEPT + 2) {
            if let Held::Good(stored) = self.look_at(self.dir.join(name), authorities).await?.0 {
                finished.push(stored);
            }
        }
        Ok(finished)
    }

    async fn look_at(&self, path: PathBuf, authorities: Option<&[u8]>) -> Result<(Held, Option<Bundle>), HostError> {
        let pem = match self.host.read_file(&path, PEM_BYTES_MAX).await {
            Ok(Some(pem)) => pem,
            Ok(None) => return Ok((Held::Absent { path }, None)),
            Err(error) if error.is_silence() => return Err(error),
            // A block that is broken stays so, and the next certificate takes its place.
            Err(error) => return Ok((Held::Broken { path, why: chain(&error) }, None)),
        };
        Ok(match Bundle::parse(&pem) {
            Ok(bundle) => {
                let is_of_cluster = authorities.is_some_and(|pem| bundle.is_issued_by(pem));
                let leaf = bundle.leaf.clone();
                (Held::Good(Stored { path, leaf, is_of_cluster }), Some(bundle))
            }
            Err(why) => (Held::Broken { path, why: why.to_string() }, None),
        })
    }

    /// Names of files such as `kubelet-client-2026-11-22-10-30-00.pem`, oldest first.
    async fn dated(&self) -> Result<Vec<String>, HostError> {
        let mut names = self.host.list_dir(&self.dir).await?;
        names.retain(|name| {
            let date = name.strip_prefix(self.role).and_then(|rest| rest.strip_prefix('-')?.strip_suffix(".pem"));
            date.is_some_and(|date| date.starts_with(|first: char| first.is_ascii_digit()))
        });
        Ok(names)
    }

    /// Takes a new certificate into use. What was in use stays so until this one is on disk.
    pub async fn put(&self, pem: &str, now: Timestamp) -> Result<(), HostError> {
        self.host.make_dir(&self.dir, DIR_MODE).await?;
        let date = now.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d-%H-%M-%S").to_string();
        let name = format!("{}-{date}.pem", self.role);
        let path = self.dir.join(&name);
        self.host.write_file(&path, pem.as_bytes(), SECRET_MODE, Durability::ThroughPowerCut).await?;
        self.adopt(&path).await?;
        let others = self.dated().await?.into_iter().filter(|other| *other != name);
        for old in others.rev().skip(OLD_KEPT) {
            self.host.remove_file(&self.dir.join(old)).await?;
        }
        Ok(())
    }

    /// Points the link at a finished certificate.
    pub async fn adopt(&self, path: &Path) -> Result<(), HostError> {
        self.host.symlink(path, &self.current_path()).await
    }

    /// The key of a request that may have been sent, or a new one that is on disk before
    /// anybody is asked.
    pub async fn unfinished_key(&self) -> Result<Key, KeyError> {
        let path = self.dir.join(UNFINISHED_KEY);
        let kept = self.host.read_file(&path, PEM_BYTES_MAX).await?;
        if let Some(key) = kept.as_deref().and_then(Key::parse) {
            return Ok(key);
        }
        let key = Key::generate()?;
        self.host.make_dir(&self.dir, DIR_MODE).await?;
        self.host.write_file(&path, key.pem().as_bytes(), SECRET_MODE, Durability::ThroughPowerCut).await?;
        Ok(key)
    }

    pub async fn forget_unfinished_key(&self) -> Result<(), HostError> {
        self.host.remove_file(&self.dir.join(UNFINISHED_KEY)).await
    }
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Request(#[from] super::request::RequestError),
}
