//! Pulls on their way: who may pull when, and one pull for all who wait for the same.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::time::sleep;
use tracing::{info, warn};

use super::lane::Lane;
use super::{ImagesConfig, Reason};
use crate::clock::Clock;
use crate::cri::{Auth, CriError, Image, ImageService, ImageSpec, SandboxConfig};
use crate::kube::limit::{Rate, Throttle};
use crate::metrics;

/// An image that is present is pulled (policy `Always`) to ask whether its name has moved,
/// which rarely moves more than a manifest. Such pulls do not queue behind downloads; this
/// bounds them in case many names did move at once.
const REFRESHES_MAX: usize = 5;

/// A pull that takes longer is told of in the log, and holds up no other registry's any more.
const TELL_FIRST_AFTER: Duration = Duration::from_secs(30);
const TELL_EVERY_MAX: Duration = Duration::from_secs(600);

/// Gives each pull its turn.
pub(super) struct Pulls {
    runtime: Arc<dyn ImageService>,
    clock: Clock,
    downloads: Lane,
    refreshes: Lane,
    throttle: Arc<Throttle>,
    running: Mutex<Vec<Running>>,
}

/// A pull that others may join. Once all who wait for it are gone, so is the pull.
struct Running {
    image: String,
    auths: Vec<Auth>,
    outcome: WeakShared<BoxFuture<'static, Outcome>>,
}

pub(super) type Outcome = Result<Pulled, PullFailure>;

#[derive(Clone, Debug)]
pub(super) struct Pulled {
    /// What the runtime says it resolved to.
    pub image_ref: String,
    pub image: Arc<Image>,
    /// Without the wait for a turn.
    pub took: Duration,
    /// What the registry was told; none if it asked for none.
    pub auth: Option<Auth>,
}

#[derive(Clone, Debug)]
pub(super) struct PullFailure {
    pub reason: Reason,
    pub message: String,
    /// The image did not come, nor will it later.
    pub is_certain: bool,
}

/// One pull, and what decides its turn.
pub(super) struct PullRequest {
    /// The full name, under which equal pulls find each other.
    pub image: String,
    /// Where it comes from.
    pub registry: String,
    pub spec: ImageSpec,
    /// Tried in order, then none at all.
    pub auths: Vec<Auth>,
    pub sandbox: SandboxConfig,
    pub is_present: bool,
    pub priority: i32,
}

impl Pulls {
    pub fn new(runtime: Arc<dyn ImageService>, clock: Clock, config: &ImagesConfig) -> Self {
        let downloads = match (config.serialize_image_pulls, config.max_parallel_image_pulls) {
            (true, _) => 1,
            (false, limit) => limit.unwrap_or(usize::MAX),
        };
        let rate = Rate { per_second: f64::from(config.registry_pull_qps), burst: config.registry_burst.max(1) };
        Pulls {
            runtime,
            clock,
            downloads: Lane::new(downloads),
            refreshes: Lane::new(downloads.max(REFRESHES_MAX)),
            throttle: Arc::new(Throttle::new((config.registry_pull_qps > 0).then_some(rate))),
            running: Mutex::default(),
        }
    }

    /// Pulls, or waits for an equal pull to end. Dropping the future cancels the pull unless
    /// someone else waits for it too. A pod of higher priority that joins does not speed it up.
    pub async fn pull(&self, request: PullRequest) -> Outcome {
        self.joined(request).await
    }

    fn joined(&self, request: PullRequest) -> Shared<BoxFuture<'static, Outcome>> {
        let mut running = self.lock();
        // A finished pull is nobody's to join: its answer is already old.
        running.retain(|pull| pull.outcome.upgrade().is_some_and(|outcome| outcome.peek().is_none()));
        let equal = running.iter().find(|pull| pull.image == request.image && pull.auths == request.auths);
        if let Some(outcome) = equal.and_then(|pull| pull.outcome.upgrade()) {
            return outcome;
        }
        let (image, auths) = (request.image.clone(), request.auths.clone());
        let outcome = self.turn(request).boxed().shared();
        let weak = outcome.downgrade().expect("a future that was not polled has not ended");
        running.push(Running { image, auths, outcome: weak });
        outcome
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Running>> {
        self.running.lock().expect("nothing that holds the list of pulls can panic")
    }

    /// Waits for its turn and pulls. Borrows nothing: it outlives the pod that asked first.
    fn turn(&self, request: PullRequest) -> impl Future<Output = Outcome> + Send + 'static {
        let lane = if request.is_present { &self.refreshes } else { &self.downloads }.clone();
        let (runtime, clock, throttle) = (self.runtime.clone(), self.clock.clone(), self.throttle.clone());
        async move {
            let ticket = lane.ticket(&request.registry, request.priority).await;
            // Where upstream fails the pull with "pull QPS exceeded", we wait.
            throttle.turn().await;
            let began = clock.now();
            let tell = |elapsed| {
                info!(image = request.image, ?elapsed, "image is still being pulled");
                ticket.lasts_long();
            };
            let outcome = followed(try_each(&*runtime, &request), &clock, tell).await;
            let took = clock.now() - began;
            let (image_ref, auth) = outcome.inspect_err(|failure| {
                warn!(image = request.image, ?took, error = failure.message, "image is not pulled");
            })?;
            let image = look_up(&*runtime, &request.spec, &image_ref).await?;
            info!(image = request.image, ?took, size_bytes = image.size_bytes, "image is pulled");
            metrics::images::pulled(image.size_bytes, took);
            Ok(Pulled { image_ref, image: Arc::new(image), took, auth })
        }
    }
}

/// Tells of a pull that takes long, and again ever more rarely. How far it has come the runtime
/// does not say.
async fn followed<T>(pull: impl Future<Output = T>, clock: &Clock, mut tell: impl FnMut(Duration)) -> T {
    let began = clock.now();
    let mut pull = pin!(pull);
    let mut pause = TELL_FIRST_AFTER;
    loop {
        tokio::select! {
            biased;
            // Cancel-safe: it ends only once, and goes on after the other arm.
            outcome = &mut pull => return outcome,
            // Cancel-safe: a sleep.
            () = sleep(pause) => tell(clock.now() - began),
        }
        pause = (pause * 2).min(TELL_EVERY_MAX);
    }
}

/// Pulls with one credential after the other. The last try goes without any, so that a stale
/// secret does not bar the way to a public image.
async fn try_each(runtime: &dyn ImageService, request: &PullRequest) -> Result<(String, Option<Auth>), PullFailure> {
    let mut errors: Vec<CriError> = Vec::new();
    for auth in request.auths.iter().map(Some).chain([None]) {
        match runtime.pull_image(&request.spec, auth, Some(&request.sandbox)).await {
            Ok(image_ref) => return Ok((image_ref, auth.cloned())),
            // Nobody was asked; other credentials will not help.
            Err(error @ CriError::Unavailable { .. }) => return Err(failure(&[error])),
            Err(error) => errors.push(error),
        }
    }
    Err(failure(&errors))
}

/// CRI runtimes put these two names before the text of an error they mean something by.
fn failure(errors: &[CriError]) -> PullFailure {
    let mut texts: Vec<String> = Vec::new();
    for text in errors.iter().map(CriError::own_words) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    let starts_with = |name: &str| texts.iter().any(|text| text.starts_with(name));
    let reason = match () {
        () if starts_with("RegistryUnavailable") => Reason::RegistryUnavailable,
        () if starts_with("SignatureValidationFailed") => Reason::SignatureValidationFailed,
        () => Reason::ErrImagePull,
    };
    let message = match texts.as_slice() {
        [text] => text.clone(),
        texts => format!("[{}]", texts.join(", ")),
    };
    let is_certain = errors.iter().all(|error| matches!(error, CriError::NotFound { .. } | CriError::Failed { .. }));
    PullFailure { reason, message, is_certain }
}

/// What was pulled: its size, and the user it asks for.
async fn look_up(runtime: &dyn ImageService, spec: &ImageSpec, image_ref: &str) -> Result<Image, PullFailure> {
    let pulled = ImageSpec { image: image_ref.to_owned(), ..spec.clone() };
    let message = match runtime.image_status(&pulled).await {
        Ok(Some(image)) => return Ok(image),
        Ok(None) => format!("image {image_ref} is gone right after it was pulled"),
        Err(error) => error.own_words(),
    };
    Err(PullFailure { reason: Reason::ImageInspectError, message, is_certain: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_long_pull_is_told_of_ever_more_rarely() {
        let check = async |takes: u64, expected: &[u64]| {
            let mut told = Vec::new();
            let pull = async {
                sleep(Duration::from_secs(takes)).await;
                "done"
            };
            let outcome = followed(pull, &Clock::system(), |elapsed| told.push(elapsed.as_secs())).await;
            assert_eq!((outcome, told.as_slice()), ("done", expected), "{takes} s");
        };
        check(29, &[]).await;
        check(100, &[30, 90]).await;
        check(3000, &[30, 90, 210, 450, 930, 1530, 2130, 2730]).await;
    }
}
