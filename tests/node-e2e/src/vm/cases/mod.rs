//! The stories, by theme, in the order that needs the fewest joins.

mod cgroups;
mod joining;
mod package;
mod running;
mod service;
mod swap;

use super::Case;

pub fn all() -> Vec<Case> {
    [joining::CASES, running::CASES, cgroups::CASES, service::CASES, swap::CASES, package::CASES].concat()
}
