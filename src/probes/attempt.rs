//! One run of a probe: the call, and what its answer means.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Probe};

use super::settings::Settings;
use crate::cri::{ContainerId, CriError, Executed};
use crate::handlers::{self, Answer, Call, CallError, Caller, Place, ResolveError};
use crate::net::{BODY_BYTES_MAX, GrpcFailure, HttpAnswer, NetError, ServingStatus};

/// What could not be asked is asked so often within one run.
const ATTEMPTS: usize = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Success,
    /// Passed, but somebody should know.
    Warning(String),
    Failure(String),
    /// Nothing was learnt.
    Error(String),
}

/// The subject of one run.
pub struct Subject<'a> {
    pub id: &'a ContainerId,
    pub container: &'a Container,
    pub probe: &'a Probe,
    pub settings: &'a Settings,
    pub ip: Option<IpAddr>,
}

pub async fn run(caller: &Caller, subject: &Subject<'_>, user_agent: &str) -> Verdict {
    let call = match call(subject, user_agent) {
        Ok(call) => call,
        Err(text) => return Verdict::Error(text),
    };
    for _ in 1..ATTEMPTS {
        match attempt(caller, subject, &call, user_agent).await {
            Verdict::Error(_) => {}
            verdict => return verdict,
        }
    }
    attempt(caller, subject, &call, user_agent).await
}

fn call(subject: &Subject<'_>, user_agent: &str) -> Result<Call, String> {
    let Subject { container, probe, ip, .. } = subject;
    let place = Place { ports: container.ports.as_deref().unwrap_or_default(), ip: *ip };
    let resolved = if let Some(exec) = &probe.exec {
        Ok(handlers::exec_command(exec, container))
    } else if let Some(get) = &probe.http_get {
        handlers::http_get(get, place, user_agent).map(Call::Http)
    } else if let Some(socket) = &probe.tcp_socket {
        handlers::tcp(socket, place)
    } else if let Some(grpc) = &probe.grpc {
        handlers::grpc(grpc, place)
    } else {
        return Err("the probe has no handler".to_owned());
    };
    resolved.map_err(|error: ResolveError| error.to_string())
}

async fn attempt(caller: &Caller, subject: &Subject<'_>, call: &Call, user_agent: &str) -> Verdict {
    let timeout = subject.settings.timeout;
    let answer = caller.call(call, subject.id, Some(timeout), user_agent);
    // Of a command the runtime keeps the time, because it has to end it as well.
    let answer = match call {
        Call::Exec { .. } => answer.await,
        _ => match tokio::time::timeout(timeout, answer).await {
            Ok(answer) => answer,
            Err(_) => return Verdict::Failure(late(call, subject)),
        },
    };
    match answer {
        Ok(answer) => judge(answer, call, subject),
        Err(error) => judge_error(error, call, subject),
    }
}

fn judge(answer: Answer, call: &Call, subject: &Subject<'_>) -> Verdict {
    match answer {
        Answer::Executed(Executed::Exited { code: 0, .. }) | Answer::Connected => Verdict::Success,
        Answer::Executed(Executed::Exited { output, .. }) => Verdict::Failure(text(&output)),
        Answer::Executed(Executed::TimedOut) => Verdict::Failure(late(call, subject)),
        Answer::Http(answer) => judge_http(&answer),
        Answer::Health(ServingStatus::Serving) => Verdict::Success,
        Answer::Health(status) => Verdict::Failure(format!("service unhealthy (responded with {:?})", status.as_str())),
    }
}

fn judge_http(answer: &HttpAnswer) -> Verdict {
    match answer.status {
        200..300 => Verdict::Success,
        // A redirect that was not followed, because it leads away from the pod.
        300..400 => Verdict::Warning(format!("Probe terminated redirects, Response body: {}", text(&answer.body))),
        status => Verdict::Failure(format!("HTTP probe failed with statuscode: {status}")),
    }
}

/// What the container did not answer is its failure; what the runtime did not do is nobody's.
fn judge_error(error: CallError, call: &Call, subject: &Subject<'_>) -> Verdict {
    match (error, call) {
        // As upstream: a command that never comes back has failed, whoever lost it.
        (CallError::Runtime(CriError::Timeout { .. }), _) => Verdict::Failure(late(call, subject)),
        (CallError::Runtime(error), _) => Verdict::Error(error.own_words()),
        (CallError::Net(NetError::Request(text)), _) => Verdict::Error(text),
        (CallError::Net(NetError::Grpc(failure @ GrpcFailure::Deadline(_))), _) => {
            Verdict::Failure(format!("timeout: {failure}"))
        }
        (CallError::Net(error), Call::Grpc { host, port, .. }) => Verdict::Failure(match error {
            NetError::Connect { .. } => {
                let address = crate::net::authority(host, *port);
                format!("error: failed to connect service at {address:?}: {error}")
            }
            error => format!("error: {error}"),
        }),
        (error, Call::Http(request)) => Verdict::Failure(format!("Get {:?}: {error}", request.to_string())),
        (error, _) => Verdict::Failure(error.to_string()),
    }
}

fn late(call: &Call, subject: &Subject<'_>) -> String {
    let seconds = subject.settings.timeout.as_secs();
    match call {
        Call::Exec { command } => {
            format!("command timed out: {:?} timed out after {seconds}s", command.join(" "))
        }
        Call::Http(request) => format!(
            "Get {:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
            request.to_string()
        ),
        Call::Tcp { host, port } => format!("dial tcp {}: i/o timeout", crate::net::authority(host, *port)),
        Call::Grpc { .. } => format!("timeout: health rpc did not complete within {seconds}s"),
    }
}

/// The beginning of what was said, as text.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(BODY_BYTES_MAX)]).into_owned()
}
