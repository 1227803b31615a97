//! The stories, by theme. The longest comes first, for the sake of the last machine to be done; what
//! leaves most behind comes last.

mod cgroups;
mod joining;
mod package;
mod resources;
mod running;
mod service;
mod swap;

use super::Case;

pub fn all() -> Vec<Case> {
    [swap::CASES, resources::CASES, cgroups::CASES, service::CASES, running::CASES, joining::CASES, package::CASES]
        .concat()
}
