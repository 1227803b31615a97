//! Why a server cannot be opened. Each names the field that an operator would look at.

use std::io;
use std::net::SocketAddr;

use super::reload::LoadError;

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("failed to listen on {address} ({fields})")]
    Bind {
        address: SocketAddr,
        fields: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{field}")]
    Files {
        field: &'static str,
        #[source]
        source: LoadError,
    },
    #[error("failed to make a serving certificate in --cert-dir")]
    SelfMade(#[source] LoadError),
    #[error("{field}: none of what it names is offered here: {named}")]
    NothingOffered { field: &'static str, named: String },
    #[error("failed to set up TLS")]
    Tls(#[from] rustls::Error),
}
