//! What the node task reads from outside, and the one thing it tells the runtime.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::ContainerImage;

use crate::cri::{self, CriError, Runtime, RuntimeVersion};
use crate::host::{self, Host, MachineFacts};
use crate::images::Images;

/// The outside as the node task needs it.
#[async_trait]
pub trait Survey: Send + Sync + 'static {
    async fn machine(&self) -> host::Result<MachineFacts>;
    async fn runtime_version(&self) -> cri::Result<RuntimeVersion>;
    async fn images(&self) -> cri::Result<Arc<Vec<ContainerImage>>>;
    /// What a name resolves to; empty if it does not.
    async fn resolve(&self, name: &str) -> Vec<IpAddr>;
    async fn set_pod_cidr(&self, cidr: &str) -> cri::Result<()>;
}

/// The machine and runtime this agent runs on.
pub struct MachineSurvey {
    pub host: Arc<dyn Host>,
    pub runtime: Arc<dyn Runtime>,
    pub images: Images,
}

#[async_trait]
impl Survey for MachineSurvey {
    async fn machine(&self) -> host::Result<MachineFacts> {
        self.host.facts().await
    }

    async fn runtime_version(&self) -> cri::Result<RuntimeVersion> {
        self.runtime.version().await
    }

    async fn images(&self) -> cri::Result<Arc<Vec<ContainerImage>>> {
        self.images.list().await
    }

    async fn resolve(&self, name: &str) -> Vec<IpAddr> {
        self.host.resolve(name).await
    }

    async fn set_pod_cidr(&self, cidr: &str) -> cri::Result<()> {
        match self.runtime.update_pod_cidr(cidr).await {
            // Such a runtime has its pod addresses from somewhere else.
            Err(CriError::Unimplemented { .. }) => Ok(()),
            other => other,
        }
    }
}
