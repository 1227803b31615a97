//! One request for a certificate, from the question to the answer.

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use tokio::time::{Instant, timeout_at};
use tracing::info;

use super::certificate::{BadBundle, Bundle};
use super::request::Key;
use crate::kube::{ApiError, CertificateRequests, ObjectState};

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    #[error("failed to ask for a certificate")]
    Api(#[from] ApiError),
    #[error("request {name} was denied: {why}")]
    Denied { name: String, why: String },
    #[error("the signer failed on request {name}: {why}")]
    Failed { name: String, why: String },
    #[error("request {name} was not signed within {within:?}; is it approved (kubectl certificate approve {name})?")]
    Unsigned { name: String, within: Duration },
    #[error("request {name} was deleted before it was signed")]
    Gone { name: String },
    #[error("what the signer made of request {name} cannot be used: {why}")]
    Unusable { name: String, why: BadBundle },
}

impl SigningError {
    /// Whether the same request may still be answered, so that its key is worth keeping.
    pub fn may_be_answered_yet(&self) -> bool {
        matches!(self, SigningError::Api(_) | SigningError::Gone { .. })
    }
}

/// A certificate that was just signed: the file's content, and what is in it.
#[derive(Debug)]
pub struct Signed {
    pub pem: String,
    pub bundle: Bundle,
}

/// Asks for a certificate and waits for it.
pub async fn obtain(
    api: &dyn CertificateRequests,
    request: &CertificateSigningRequest,
    key: &Key,
    within: Duration,
) -> Result<Signed, SigningError> {
    let deadline = Instant::now() + within;
    let name = match api.create_certificate_request(request).await {
        Ok(created) => created.metadata.name.unwrap_or_default(),
        // From before a crash, with the same key: the name tells.
        Err(ApiError::AlreadyExists { .. }) => request.metadata.name.clone().unwrap_or_default(),
        Err(error) => return Err(error.into()),
    };
    info!(request = name, signer = request.spec.signer_name, "asked for a certificate, waiting for its signature");
    let mut states = api.watch_certificate_request(&name);
    loop {
        let Ok(Some(state)) = timeout_at(deadline, states.next()).await else {
            return Err(SigningError::Unsigned { name, within });
        };
        let request = match state {
            ObjectState::Present(request) => request,
            ObjectState::Absent => return Err(SigningError::Gone { name }),
            ObjectState::Refused(message) => {
                let what = format!("watch certificate signing request {name}");
                return Err(ApiError::Refused { what, message }.into());
            }
        };
        match verdict(&request) {
            Verdict::Pending => {}
            Verdict::Denied(why) => return Err(SigningError::Denied { name, why }),
            Verdict::Failed(why) => return Err(SigningError::Failed { name, why }),
            Verdict::Signed(chain) => {
                let pem = format!("{}\n{}", String::from_utf8_lossy(chain).trim_end(), key.pem());
                return match Bundle::parse(pem.as_bytes()) {
                    Ok(bundle) => Ok(Signed { pem, bundle }),
                    Err(why) => Err(SigningError::Unusable { name, why }),
                };
            }
        }
    }
}

enum Verdict<'a> {
    Pending,
    Denied(String),
    Failed(String),
    Signed(&'a [u8]),
}

/// Approved is not enough: it is signed by somebody else, a moment later.
fn verdict(request: &CertificateSigningRequest) -> Verdict<'_> {
    let Some(status) = &request.status else { return Verdict::Pending };
    for condition in status.conditions.iter().flatten() {
        let word = |text: &Option<String>| text.clone().unwrap_or_default();
        let why = format!("{} {}", word(&condition.reason), word(&condition.message)).trim().to_owned();
        let why = if why.is_empty() { "no reason is given".to_owned() } else { why };
        match condition.type_.as_str() {
            "Denied" => return Verdict::Denied(why),
            "Failed" => return Verdict::Failed(why),
            _ => {}
        }
    }
    match &status.certificate {
        Some(chain) if !chain.0.is_empty() => Verdict::Signed(&chain.0),
        _ => Verdict::Pending,
    }
}
