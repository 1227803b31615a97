//! The task that keeps the client certificate: looks, asks `plan`, does the next step.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{error, info, warn};

use super::certificate::{BadBundle, Bundle, Certificate};
use super::kubeconfig::{BadKubeconfig, Parsed, Part};
use super::plan::{Held, InUse, Kubeconfig, Step, Stored, View, With, next};
use super::request::{Key, RequestError, client_request, first_client_request};
use super::signing::{SigningError, obtain};
use super::store::{KeyError, PEM_BYTES_MAX, Store};
use super::{Access, Backoff, Failure, IdentityConfig, LOOK_AGAIN, Role, SIGNED_WITHIN, rest, unix_seconds};
use crate::causes::chain;
use crate::clock::Clock;
use crate::clock::build::built;
use crate::host::{Durability, Host, HostError};
use crate::kube::LoadError;
use crate::metrics;

/// As upstream: whoever approves the first request may be a person.
const FIRST_SIGNED_WITHIN: Duration = Duration::from_secs(60 * 60);
const SECRET_MODE: u32 = 0o600;

pub struct ClientIdentity {
    config: IdentityConfig,
    host: Arc<dyn Host>,
    access: Arc<dyn Access>,
    clock: Clock,
    store: Store,
    /// What connections were last made with.
    taken_up: Option<(InUse, Option<[u8; 32]>)>,
    backoff: Backoff,
    /// What waits for time or a person has been told.
    told: Option<String>,
    /// A certificate was got since there was last nothing to do.
    has_obtained: bool,
}

/// Why a step did not succeed. It is tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum IdentityError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Signing(#[from] SigningError),
    #[error("failed to connect with the node's credentials")]
    TakeUp(#[source] LoadError),
    #[error("failed to use the bootstrap kubeconfig")]
    Bootstrap(#[source] LoadError),
    #[error(transparent)]
    BadKubeconfig(#[from] BadKubeconfig),
    #[error("bootstrap kubeconfig {} is gone", path.display())]
    BootstrapGone { path: PathBuf },
    #[error("the kubeconfig has changed meanwhile")]
    Changed,
    #[error("failed to use the certificate in kubeconfig {}: {why}", path.display())]
    Embedded { path: PathBuf, why: BadBundle },
    #[error("the certificate that was signed last is of no use here: it is due again already, or another's")]
    NoHelp,
}

impl Failure for IdentityError {
    fn is_refusal(&self) -> bool {
        match self {
            IdentityError::Signing(error) => !error.may_be_answered_yet(),
            error => matches!(error, IdentityError::NoHelp),
        }
    }
}

/// What the task waits for between two looks.
#[derive(Debug, PartialEq)]
pub(super) enum Pause {
    None,
    Until(Option<jiff::Timestamp>),
    For(Duration),
}

impl ClientIdentity {
    pub fn new(config: IdentityConfig, host: Arc<dyn Host>, access: Arc<dyn Access>, clock: Clock) -> Self {
        let store = Store::client(host.clone(), &config.cert_dir);
        ClientIdentity {
            config,
            host,
            access,
            clock,
            store,
            taken_up: None,
            backoff: Backoff::default(),
            told: None,
            has_obtained: false,
        }
    }

    /// Connects with what is there. Fails where nothing is there and nothing will come.
    pub async fn begin(&mut self) -> Result<(), LoadError> {
        let Ok(view) = self.look().await else {
            return self.access.take_up(None).await;
        };
        if view.in_use() != InUse::Nothing {
            // What is wrong with a certificate is told by the task, and may be mended.
            let _ = self.take_up(&view).await;
            return Ok(());
        }
        match (&view.kubeconfig, &view.bootstrap) {
            (Kubeconfig::Absent { .. } | Kubeconfig::Broken(_), Err(_)) => self.access.take_up(None).await,
            _ => Ok(()),
        }
    }

    /// Keeps the certificate valid, for ever.
    pub async fn run(mut self) {
        let mut reloads = self.access.reloads();
        loop {
            let pause = match self.turn().await {
                Ok(pause) => {
                    if !matches!(pause, Pause::None) {
                        self.backoff = Backoff::default();
                    }
                    pause
                }
                Err(error) => Pause::For(self.note_failure(&error)),
            };
            match pause {
                Pause::None => {}
                Pause::Until(until) => tokio::select! {
                    // Cancel-safe, both: they only wait.
                    () = rest(&self.clock, until) => {}
                    // What it names may be better than what is in use instead.
                    Ok(()) = reloads.changed() => {}
                },
                Pause::For(pause) => sleep(pause).await,
            }
        }
    }

    pub(super) fn note_failure(&mut self, error: &IdentityError) -> Duration {
        self.backoff.note(&self.clock, Role::Client, error)
    }

    /// One look, and the step that follows from it.
    pub(super) async fn turn(&mut self) -> Result<Pause, IdentityError> {
        let view = self.look().await?;
        if self.config.rotates {
            let expires = view.leaf_in_use().map(|leaf| unix_seconds(leaf.not_after));
            metrics::certificates::client_expires(expires);
        }
        let taken_up = self.take_up(&view).await;
        let step = next(&view);
        if !matches!(step, Step::AwaitClock(_) | Step::Stuck(_)) {
            self.told = None;
        }
        match step {
            Step::AwaitClock(doubt) => {
                if self.is_news(doubt.to_string()) {
                    warn!("{doubt}");
                }
                return Ok(Pause::For(LOOK_AGAIN));
            }
            Step::Stuck(stuck) => {
                if self.is_news(stuck.to_string()) {
                    error!("{stuck}");
                }
                return Ok(Pause::For(LOOK_AGAIN));
            }
            Step::Rest { until } => {
                taken_up.map_err(IdentityError::TakeUp)?;
                // Left by an end after everything else was done.
                self.store.forget_unfinished_key().await?;
                self.has_obtained = false;
                return Ok(Pause::Until(until));
            }
            Step::Adopt { path } => {
                info!(certificate = %path.display(), "a finished certificate goes into use");
                self.store.adopt(&path).await?;
            }
            Step::Extract => {
                info!(kubeconfig = %self.config.kubeconfig.display(), "keeping the certificate of the kubeconfig as ours");
                self.extract().await?;
            }
            Step::WriteKubeconfig => self.put_kubeconfig(&self.new_kubeconfig().await?).await?,
            // Another one would be as bad: a clock or a signer is wrong, and each costs all connections.
            Step::Obtain { .. } if std::mem::take(&mut self.has_obtained) => return Err(IdentityError::NoHelp),
            Step::Obtain { with: With::Bootstrap, why } => {
                info!(why, "getting a client certificate with the bootstrap kubeconfig");
                self.bootstrap().await?;
                self.has_obtained = true;
            }
            Step::Obtain { with: With::Own, why } => {
                info!(why, "renewing the client certificate");
                self.renew().await?;
                self.has_obtained = true;
            }
        }
        Ok(Pause::None)
    }

    fn is_news(&mut self, text: String) -> bool {
        // The clock's own reading is in the text and moves on; that is no news.
        let kind: String = text.chars().filter(|sign| !sign.is_ascii_digit()).collect();
        self.told.replace(kind.clone()) != Some(kind)
    }

    /// A disk that does not answer is no reason to conclude anything.
    async fn look(&self) -> Result<View, HostError> {
        let (kubeconfig, is_embedded, own_authorities) = self.look_at_kubeconfig().await?;
        let (bootstrap, authorities) = self.look_at_bootstrap().await;
        let authorities = match own_authorities {
            Some(own) => Some(own),
            None => authorities?,
        };
        let authorities = authorities.as_deref();
        Ok(View {
            now: self.clock.wall(),
            built: built(),
            node_name: self.config.node_name.clone(),
            kubeconfig,
            is_embedded,
            current: self.store.current(authorities).await?,
            finished: self.store.finished(authorities).await?,
            bootstrap,
            rotates: self.config.rotates,
        })
    }

    /// What it says, whether it holds a certificate with its key, and the authorities of its cluster.
    async fn look_at_kubeconfig(&self) -> Result<(Kubeconfig, bool, Option<Vec<u8>>), HostError> {
        let path = &self.config.kubeconfig;
        let Some(text) = self.host.read_file(path, PEM_BYTES_MAX).await? else {
            return Ok((Kubeconfig::Absent { path: path.clone() }, false, None));
        };
        let (parsed, part) = match Parsed::parse(path, &text).and_then(|parsed| Ok((parsed.certificate()?, parsed))) {
            Ok((part, parsed)) => (parsed, part),
            Err(error) => return Ok((Kubeconfig::Broken(error.to_string()), false, None)),
        };
        let is_embedded = parsed.bundle().is_some();
        let kubeconfig = match part {
            Part::Absent => Kubeconfig::OtherCredentials,
            Part::File(file) if file == self.store.current_path() => Kubeconfig::Current,
            Part::File(file) => Kubeconfig::Own(match self.host.read_file(&file, PEM_BYTES_MAX).await {
                Ok(Some(pem)) => held(file, &pem),
                Ok(None) => Held::Absent { path: file },
                Err(error) if error.is_silence() => return Err(error),
                Err(error) => Held::Broken { path: file, why: chain(&error) },
            }),
            Part::Inline(pem) => Kubeconfig::Own(held(path.clone(), &pem)),
        };
        Ok((kubeconfig, is_embedded, self.authorities(parsed.authority()).await?))
    }

    async fn authorities(&self, named: Result<Part, BadKubeconfig>) -> Result<Option<Vec<u8>>, HostError> {
        match named {
            Ok(Part::Inline(pem)) => Ok(Some(pem)),
            Ok(Part::File(file)) => self.host.read_file(&file, PEM_BYTES_MAX).await,
            Ok(Part::Absent) | Err(_) => Ok(None),
        }
    }

    /// Whether there is one that can be read, and the authorities of its cluster. A node that has
    /// an identity does without it.
    async fn look_at_bootstrap(&self) -> (Result<(), String>, Result<Option<Vec<u8>>, HostError>) {
        let Some(path) = &self.config.bootstrap_kubeconfig else {
            return (Err("no --bootstrap-kubeconfig is given".to_owned()), Ok(None));
        };
        let authority = match self.read_bootstrap(path).await {
            Ok(parsed) => parsed.authority(),
            Err(error) => return (Err(chain(&error)), Ok(None)),
        };
        (Ok(()), self.authorities(authority).await)
    }

    async fn read_bootstrap(&self, path: &Path) -> Result<Parsed, IdentityError> {
        match self.host.read_file(path, PEM_BYTES_MAX).await? {
            Some(text) => Ok(Parsed::parse(path, &text)?),
            None => Err(IdentityError::BootstrapGone { path: path.to_owned() }),
        }
    }

    /// Lets connections be made with what is in use now, if that is something else than before.
    async fn take_up(&mut self, view: &View) -> Result<(), LoadError> {
        let in_use = view.in_use();
        if in_use == InUse::Nothing {
            return Ok(());
        }
        let digest = view.leaf_in_use().map(|leaf| leaf.digest);
        if self.taken_up == Some((in_use, digest)) {
            return Ok(());
        }
        let current = self.store.current_path();
        self.access.take_up((in_use == InUse::Current).then_some(&*current)).await?;
        if self.taken_up.replace((in_use, digest)).is_some() {
            info!("connecting anew with the new client certificate");
        }
        Ok(())
    }

    async fn extract(&self) -> Result<(), IdentityError> {
        let path = &self.config.kubeconfig;
        let text = self.host.read_file(path, PEM_BYTES_MAX).await?.unwrap_or_default();
        let pem = Parsed::parse(path, &text)?.bundle().ok_or(IdentityError::Changed)?;
        if let Err(why) = Bundle::parse(pem.as_bytes()) {
            return Err(IdentityError::Embedded { path: path.clone(), why });
        }
        Ok(self.store.put(&pem, self.clock.wall()).await?)
    }

    async fn bootstrap(&self) -> Result<(), IdentityError> {
        let path = self.config.bootstrap_kubeconfig.clone().unwrap_or_default();
        // kubeadm takes its file away when nobody has signed for some minutes; somebody may later.
        let kubeconfig = self.new_kubeconfig().await?;
        let key = self.store.unfinished_key().await?;
        let request = first_client_request(&self.config.node_name, &key)?;
        let api = self.access.bootstrap(&path).await.map_err(IdentityError::Bootstrap)?;
        let signed = match obtain(&*api, &request, &key, FIRST_SIGNED_WITHIN).await {
            Ok(signed) => signed,
            Err(error) => {
                if !error.may_be_answered_yet() {
                    self.store.forget_unfinished_key().await?;
                }
                return Err(error.into());
            }
        };
        self.store.put(&signed.pem, self.clock.wall()).await?;
        self.put_kubeconfig(&kubeconfig).await?;
        self.store.forget_unfinished_key().await?;
        info!(valid_until = %signed.bundle.leaf.not_after, "this node has a client certificate");
        Ok(())
    }

    /// That of the bootstrap, with the node's own certificate in it.
    async fn new_kubeconfig(&self) -> Result<String, IdentityError> {
        let bootstrap = self.config.bootstrap_kubeconfig.clone().unwrap_or_default();
        Ok(self.read_bootstrap(&bootstrap).await?.leading_to(&self.store.current_path())?)
    }

    async fn put_kubeconfig(&self, kubeconfig: &str) -> Result<(), IdentityError> {
        let path = &self.config.kubeconfig;
        if let Some(directory) = path.parent() {
            self.host.make_dir(directory, 0o755).await?;
        }
        Ok(self.host.write_file(path, kubeconfig.as_bytes(), SECRET_MODE, Durability::ThroughPowerCut).await?)
    }

    async fn renew(&self) -> Result<(), IdentityError> {
        let key = Key::generate()?;
        let request = client_request(&self.config.node_name, &key)?;
        let signed = obtain(self.access.own(), &request, &key, SIGNED_WITHIN).await?;
        self.store.put(&signed.pem, self.clock.wall()).await?;
        info!(valid_until = %signed.bundle.leaf.not_after, "client certificate is renewed");
        Ok(())
    }
}

/// A certificate whose key is elsewhere, with whoever wrote the kubeconfig.
fn held(path: PathBuf, pem: &[u8]) -> Held {
    match Certificate::from_pem(pem) {
        Ok(leaf) => Held::Good(Stored { path, leaf, is_of_cluster: false }),
        Err(why) => Held::Broken { path, why: why.to_string() },
    }
}
