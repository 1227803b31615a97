//! agent

/// Runs the agent until it is told to stop.
pub async fn run(settings: crate::config::Settings) -> anyhow::Result<()> {
    tracing::info!(version = settings.flags.version, "agent started");
    Ok(())
}
