//! Why statistics cannot be told. Those who asked at once share an error.

use std::sync::Arc;

use crate::host::HostError;

#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    #[error("failed to read the machine")]
    Machine(#[from] Arc<HostError>),
    #[error("failed to write the summary as JSON")]
    Json(#[source] serde_json::Error),
    #[error("failed to write the page")]
    Render(#[source] tokio::task::JoinError),
}
