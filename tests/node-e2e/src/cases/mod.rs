//! The stories, by theme. To add one: write an `async fn(Node) -> Result<()>` in the file of
//! its theme and name it in that file's `CASES`.

mod admission;
mod allocatable;
mod api;
mod api_faults;
mod cpus;
mod dead_containers;
mod desk;
mod environment;
mod extremes;
mod hooks;
mod identity;
mod images;
mod killed_clients;
mod lifecycle;
mod logs;
mod metrics;
mod network;
mod node;
mod probes;
mod reading_logs;
mod resize;
mod resources;
mod restart;
mod restart_rules;
mod runtime_faults;
mod security;
mod sidecars;
mod standalone;
mod static_pods;
mod stats;
mod stats_shape;
mod status;
mod streaming;
mod terminals;
mod user_namespaces;
mod volumes;
mod wrong_settings;

use crate::harness::Case;

pub fn all() -> Vec<Case> {
    [
        node::CASES,
        api::CASES,
        metrics::CASES,
        desk::CASES,
        probes::CASES,
        lifecycle::CASES,
        status::CASES,
        hooks::CASES,
        images::CASES,
        logs::CASES,
        reading_logs::CASES,
        environment::CASES,
        extremes::CASES,
        volumes::CASES,
        network::CASES,
        security::CASES,
        user_namespaces::CASES,
        dead_containers::CASES,
        admission::CASES,
        sidecars::CASES,
        restart_rules::CASES,
        resources::CASES,
        allocatable::CASES,
        resize::CASES,
        cpus::CASES,
        static_pods::CASES,
        stats::CASES,
        stats_shape::CASES,
        standalone::CASES,
        wrong_settings::CASES,
        restart::CASES,
        streaming::CASES,
        terminals::CASES,
        killed_clients::CASES,
        runtime_faults::CASES,
        api_faults::CASES,
        identity::CASES,
    ]
    .concat()
}
