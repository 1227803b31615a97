//! From the API's handlers to calls.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, ContainerPort, ExecAction, GRPCAction, HTTPGetAction, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Call;
use crate::net::{HttpGet, Scheme, wire_path};
use crate::pod::expansion::{Budget, expand_text};

/// Where a handler's call goes unless it says otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Its ports are known by name.
    pub ports: &'a [ContainerPort],
    /// The pod's address, once it has one.
    pub ip: Option<IpAddr>,
}

/// Why a handler cannot be called at all; nothing that its container does can change it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("invalid port number: {0}")]
    Port(i32),
    #[error("couldn't find port {0:?} among the container's ports")]
    NamedPort(String),
    #[error("the pod has no address yet")]
    NoAddress,
}

/// The command with those variables filled in whose value stands in the spec.
pub fn exec_command(action: &ExecAction, container: &Container) -> Call {
    let lookup = |name: &str| {
        let found = container.env.iter().flatten().rev().find(|variable| variable.name == name)?;
        // One that comes from elsewhere is known to be there, but not what it holds.
        Some(found.value.as_deref().unwrap_or_default().as_bytes())
    };
    let mut budget = Budget::default();
    // A word that would grow without bounds stays as it is written; its call fails by itself.
    let mut filled_in = |word: &String| expand_text(word, &mut budget, lookup).unwrap_or_else(|_| word.clone());
    Call::Exec { command: action.command.iter().flatten().map(&mut filled_in).collect() }
}

/// A GET with the headers asked for, and the two that every client has. An empty value
/// takes one of those out.
pub fn http_get(action: &HTTPGetAction, place: Place<'_>, user_agent: &str) -> Result<HttpGet, ResolveError> {
    let host = host(action.host.as_deref(), place)?;
    let port = port(&action.port, place)?;
    let scheme = match action.scheme.as_deref() {
        Some(scheme) if scheme.eq_ignore_ascii_case("https") => Scheme::Https,
        _ => Scheme::Http,
    };
    let asked = action.http_headers.iter().flatten();
    let mut headers: Vec<(String, String)> = asked.map(|header| (header.name.clone(), header.value.clone())).collect();
    for (name, value) in [("User-Agent", user_agent), ("Accept", "*/*")] {
        match headers.iter().find(|(asked, _)| asked.eq_ignore_ascii_case(name)) {
            Some((_, value)) if value.is_empty() => headers.retain(|(asked, _)| !asked.eq_ignore_ascii_case(name)),
            Some(_) => {}
            None => headers.push((name.to_owned(), value.to_owned())),
        }
    }
    Ok(HttpGet { scheme, host, port, path: wire_path(action.path.as_deref().unwrap_or_default()), headers })
}

pub fn tcp(action: &TCPSocketAction, place: Place<'_>) -> Result<Call, ResolveError> {
    Ok(Call::Tcp { host: host(action.host.as_deref(), place)?, port: port(&action.port, place)? })
}

pub fn grpc(action: &GRPCAction, place: Place<'_>) -> Result<Call, ResolveError> {
    let port = number(action.port)?;
    Ok(Call::Grpc { host: host(None, place)?, port, service: action.service.clone().unwrap_or_default() })
}

fn host(named: Option<&str>, place: Place<'_>) -> Result<String, ResolveError> {
    match named.filter(|host| !host.is_empty()) {
        Some(host) => Ok(host.trim_start_matches('[').trim_end_matches(']').to_owned()),
        None => place.ip.map(|ip| ip.to_string()).ok_or(ResolveError::NoAddress),
    }
}

/// A name is looked up among the container's ports; one that is a number in quotes is taken
/// at its word if no port has it.
fn port(port: &IntOrString, place: Place<'_>) -> Result<u16, ResolveError> {
    match port {
        IntOrString::Int(port) => number(*port),
        IntOrString::String(name) => {
            let named = place.ports.iter().find(|port| port.name.as_ref() == Some(name));
            match named.map(|port| port.container_port).or_else(|| name.parse().ok()) {
                Some(port) => number(port),
                None => Err(ResolveError::NamedPort(name.clone())),
            }
        }
    }
}

fn number(port: i32) -> Result<u16, ResolveError> {
    u16::try_from(port).ok().filter(|port| *port > 0).ok_or(ResolveError::Port(port))
}
