//! The stories, by theme, in the order that needs the fewest joins, and kube-proxy late.

mod cgroups;
mod joining;
mod package;
mod running;
mod service;
mod swap;

use super::Case;

pub fn all() -> Vec<Case> {
    [swap::CASES, cgroups::CASES, service::CASES, running::CASES, joining::CASES, package::CASES].concat()
}
