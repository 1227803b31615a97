//! TLS to an agent, whose certificate is its own.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use kube::client::ConfigExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::ServerName;

use super::CONNECTS_WITHIN;
use crate::harness::{Caller, node_config};
use crate::stack::Stack;

pub const HTTP1: &[u8] = b"http/1.1";
pub const HTTP2: &[u8] = b"h2";

/// How somebody connects to a node's own API: as some caller.
#[derive(Clone)]
pub struct Door {
    pub address: SocketAddr,
    connector: TlsConnector,
}

impl Door {
    pub async fn new(stack: &Stack, caller: Caller<'_>, protocol: &[u8]) -> Result<Door> {
        let mut config = node_config(stack, caller).await?.rustls_client_config()?;
        config.alpn_protocols = vec![protocol.to_vec()];
        // A new connection is to cost what it costs the first time.
        config.resumption = Resumption::disabled();
        let address = SocketAddr::from((stack.node_address(), 10250));
        Ok(Door { address, connector: TlsConnector::from(Arc::new(config)) })
    }

    pub async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let connection = async {
            let stream = TcpStream::connect(self.address).await?;
            stream.set_nodelay(true)?;
            self.connector.connect(ServerName::from(self.address.ip()), stream).await
        };
        let connected = timeout(CONNECTS_WITHIN, connection).await.context("no connection in time")?;
        connected.with_context(|| format!("connect to {}", self.address))
    }
}
