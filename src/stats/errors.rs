//! Why statistics cannot be told.

use crate::host::HostError;

#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    #[error("failed to read the machine")]
    Machine(#[from] HostError),
    #[error("failed to write the summary as JSON")]
    Json(#[source] serde_json::Error),
    #[error("failed to write the page")]
    Render(#[source] tokio::task::JoinError),
}
