//! A simulated network between the agent and its pods.
//!
//! It refuses connections, breaks them under a request, and lets requests wait for ever; what
//! gets through is answered by whichever container of the pod listens there.

use std::net::IpAddr;

use async_trait::async_trait;
use ferrolet::net::{GrpcFailure, HttpAnswer, HttpGet, Net, NetError, Result, ServingStatus};

use crate::faults::Fate;
use crate::runtime::{BROKEN_AFTER, SimRuntime};
use crate::world::World;

#[derive(Clone)]
pub struct SimNet {
    world: World,
    runtime: SimRuntime,
}

impl SimNet {
    pub fn new(world: World, runtime: SimRuntime) -> Self {
        SimNet { world, runtime }
    }

    /// Whether whoever listens there is well, as far as the network lets it say so.
    async fn ask(&self, host: &str, port: u16) -> Result<bool> {
        let refused =
            || NetError::Connect { address: format!("{host}:{port}"), message: "connect: connection refused".into() };
        let asked = host.parse().ok().and_then(|ip: IpAddr| self.runtime.reach(ip, port));
        let fate = self.world.fate().await;
        let Some(mut asked) = asked else { return Err(refused()) };
        match fate {
            Fate::Good => asked.answer().await.ok_or_else(refused),
            Fate::Refused => {
                asked.fail();
                Err(refused())
            }
            Fate::Lost => {
                asked.fail();
                Err(NetError::Exchange("connection reset by peer".into()))
            }
            // Who asks for a probe gives up in time; who calls a hook is told in the end.
            Fate::Hangs { .. } if asked.is_hook() => {
                tokio::time::sleep(BROKEN_AFTER).await;
                asked.fail();
                Err(NetError::Exchange("connection timed out".into()))
            }
            Fate::Hangs { .. } => std::future::pending().await,
        }
    }
}

#[async_trait]
impl Net for SimNet {
    async fn http_get(&self, request: &HttpGet) -> Result<HttpAnswer> {
        let is_well = self.ask(&request.host, request.port).await?;
        Ok(HttpAnswer { status: if is_well { 200 } else { 503 }, ..HttpAnswer::default() })
    }

    /// There are no servers but those of the pods.
    async fn fetch(&self, request: &HttpGet, _: usize) -> Result<HttpAnswer> {
        self.http_get(request).await
    }

    async fn tcp_connect(&self, host: &str, port: u16) -> Result<()> {
        match self.ask(host, port).await {
            Ok(true) => Ok(()),
            // A connection says nothing: whoever is not well takes none.
            Ok(false) => {
                let message = "connect: connection refused".into();
                Err(NetError::Connect { address: format!("{host}:{port}"), message })
            }
            Err(error) => Err(error),
        }
    }

    async fn grpc_check(&self, host: &str, port: u16, _service: &str, _: &str) -> Result<ServingStatus> {
        match self.ask(host, port).await {
            Ok(true) => Ok(ServingStatus::Serving),
            Ok(false) => Ok(ServingStatus::NotServing),
            Err(NetError::Exchange(text)) => Err(NetError::Grpc(GrpcFailure::Other(text))),
            Err(error) => Err(error),
        }
    }
}
