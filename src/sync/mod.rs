//! sync
pub mod launch;
