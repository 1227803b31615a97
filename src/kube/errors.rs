//! What goes wrong between us and the API server, in words an operator can act on.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use kube::client::AuthError::{self, AuthExecParse, AuthExecRun, AuthExecStart};
use kube::core::Status;
use rustls::CertificateError;

use super::ApiError;
use super::credentials::ANSWER_WITHIN;

/// How `timeout` ends where it had to end the program.
const ENDED_BY_TIMEOUT: i32 = 124;

/// A kubeconfig that no client can be made from.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("failed to read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to read kubeconfig {} within {within:?}", path.display())]
    TooSlow { path: PathBuf, within: Duration },
    #[error("failed to understand kubeconfig {}", path.display())]
    Invalid {
        path: PathBuf,
        #[source]
        source: kube::config::KubeconfigError,
    },
    #[error("failed to use the certificates in kubeconfig {}", path.display())]
    Credentials {
        path: PathBuf,
        #[source]
        source: kube::Error,
    },
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("certificate of {server} is not signed by the CA in {}", kubeconfig.display())]
    UnknownIssuer { server: String, kubeconfig: PathBuf },
    #[error("certificate of {server} has expired, unless this machine's clock is wrong, which shows {now}")]
    Expired { server: String, now: Timestamp },
    #[error("certificate of {server} is not valid yet, unless this machine's clock is wrong, which shows {now}")]
    NotYetValid { server: String, now: Timestamp },
    #[error("certificate of {server} is issued for another name")]
    WrongName { server: String },
    #[error("{server} refuses the client certificate in {}: {alert}", kubeconfig.display())]
    ClientCertificate { server: String, kubeconfig: PathBuf, alert: String },
    /// Whoever gets them tells why they are not there.
    #[error("there are no credentials yet for the API server in {}", kubeconfig.display())]
    NoCredentials { kubeconfig: PathBuf },
    #[error("{server} did not answer within {within:?}")]
    NoAnswer { server: String, within: Duration },
    /// The request waited for a connection that someone else was opening, or had open. What
    /// went wrong with it is told by the other one.
    #[error("connection to {server} was lost")]
    Lost { server: String },
    #[error("failed to connect to {server}: {cause}")]
    Other { server: String, cause: String },
}

/// A program that was asked for credentials gave none. kube's own text shows the environment
/// that the program was given, which may be secret.
#[derive(Debug, thiserror::Error)]
#[error("credential plugin {command}: {cause}")]
pub(super) struct PluginError {
    command: String,
    cause: String,
}

/// So much of what a program wrote to its standard error is told.
const PLUGIN_TEXT_CHARS: usize = 300;

impl PluginError {
    pub(super) fn explain(command: &str, error: kube::Error) -> Self {
        let cause = match &error {
            kube::Error::Auth(error) => auth_cause(error),
            other => chain(other).last().unwrap_or(other).to_string(),
        };
        PluginError { command: command.to_owned(), cause }
    }

    /// One that was asked again within a request.
    pub(super) fn within_request(command: &str, error: &(dyn Error + 'static)) -> Self {
        let of_credentials = chain(error).find_map(|cause| cause.downcast_ref::<AuthError>()).map(auth_cause);
        let cause = of_credentials.unwrap_or_else(|| chain(error).last().unwrap_or(error).to_string());
        PluginError { command: command.to_owned(), cause }
    }

    pub(super) fn silent(command: &str) -> Self {
        PluginError { command: command.to_owned(), cause: "no answer yet".to_owned() }
    }
}

/// What is wrong with credentials; not the whole call of a program, whose environment has secrets.
fn auth_cause(error: &AuthError) -> String {
    match error {
        AuthExecStart(error) => format!("failed to start: {error}"),
        AuthExecRun { out, .. } if out.status.code() == Some(ENDED_BY_TIMEOUT) => {
            format!("no answer within {ANSWER_WITHIN:?}")
        }
        AuthExecRun { out, .. } => {
            let told: String = String::from_utf8_lossy(&out.stderr).trim().chars().take(PLUGIN_TEXT_CHARS).collect();
            format!("ended with {}: {told}", out.status)
        }
        AuthExecParse(_) => "its answer makes no sense".to_owned(),
        other => chain(other).last().unwrap_or(other).to_string(),
    }
}

impl ConnectError {
    /// Finds the cause in an error of the HTTP client, whose own text is only its outside.
    pub(super) fn explain(error: &(dyn Error + 'static), server: &str, kubeconfig: &Path, now: Timestamp) -> Self {
        let (server, kubeconfig) = (server.to_owned(), kubeconfig.to_owned());
        let Some(tls) = chain(error).find_map(as_tls) else {
            if chain(error).any(is_loss) {
                return ConnectError::Lost { server };
            }
            // kube renews some credentials within a request.
            let of_credentials = chain(error).find_map(|cause| cause.downcast_ref::<AuthError>()).map(auth_cause);
            let cause = of_credentials.unwrap_or_else(|| chain(error).last().unwrap_or(error).to_string());
            return ConnectError::Other { server, cause };
        };
        use rustls::Error::{AlertReceived, InvalidCertificate};
        match tls {
            InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                ConnectError::UnknownIssuer { server, kubeconfig }
            }
            InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
                ConnectError::Expired { server, now }
            }
            InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
                ConnectError::NotYetValid { server, now }
            }
            InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
                ConnectError::WrongName { server }
            }
            AlertReceived(alert) => ConnectError::ClientCertificate { server, kubeconfig, alert: format!("{alert:?}") },
            other => ConnectError::Other { server, cause: other.to_string() },
        }
    }
}

/// Whether an `E` is among the causes.
pub(super) fn caused_by<E: Error + 'static>(error: &(dyn Error + 'static)) -> bool {
    chain(error).any(|cause| cause.is::<E>())
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        // An io::Error hides what it wraps from `source`, and the TLS error sits inside one.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        wrapped.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source())
    })
}

fn is_loss(error: &(dyn Error + 'static)) -> bool {
    let canceled = error.downcast_ref().is_some_and(hyper::Error::is_canceled);
    // The error of hyper-util's pool has a text and no public type.
    canceled || error.to_string() == "request was canceled"
}

fn as_tls<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    error.downcast_ref()
}

/// Sorts a failure by what its caller does about it. `what` is the act and its object, as
/// `patch status of pod ns/name`.
pub(super) fn classify(what: &str, error: &kube::Error) -> ApiError {
    let what = what.to_owned();
    match error {
        kube::Error::Api(status) => classify_status(what, status),
        kube::Error::SerdeError(error) => {
            ApiError::Unavailable { what, message: format!("answer makes no sense: {error}") }
        }
        kube::Error::BuildRequest(error) => ApiError::Invalid { what, message: error.to_string() },
        other => {
            let message = chain(other).find_map(|error| Some(error.downcast_ref::<ConnectError>()?.to_string()));
            let message = message.unwrap_or_else(|| chain(other).last().unwrap_or(other).to_string());
            ApiError::Unavailable { what, message }
        }
    }
}

fn classify_status(what: String, status: &Status) -> ApiError {
    let message = if status.message.is_empty() {
        format!("answered {} {}", status.code, status.reason)
    } else {
        status.message.clone()
    };
    match (status.code, status.reason.as_str()) {
        (404, _) => ApiError::NotFound { what },
        (409, "AlreadyExists") => ApiError::AlreadyExists { what },
        (409, _) => ApiError::Conflict { what, message },
        (401 | 403, _) => ApiError::Refused { what, message },
        (400 | 405 | 406 | 413 | 415 | 422, _) => ApiError::Invalid { what, message },
        _ => ApiError::Unavailable { what, message },
    }
}
