//! Seeds that once failed, each with the name of its bug. They are run before all others.
//!
//! A seed stands for its story only as long as the simulation draws the same from it; after
//! a change to the drawing it is a seed like any other, and costs as little.

pub const REGRESSIONS: [(u64, &str); 0] = [];
