//! config
pub mod quantity;
