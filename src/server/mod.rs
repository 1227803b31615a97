//! The agent's own HTTP servers: the node's API over HTTPS (10250), as much of it as everybody
//! may see in plain text (10255), and `/healthz` on the loopback (10248).
//!
//! `doors.rs` binds the ports before anything else starts and takes connections; `guests.rs` bounds
//! them; `tls/` begins them and `connection.rs` speaks HTTP on them. `flow.rs` carries answers and
//! gives up those that nobody takes; `turns.rs` shares out what only few can have at once. Each
//! request goes through `front.rs`: `authn/` says who calls, `authz/` whether they may (both keep what
//! the API server said in `answers/`), `routes.rs` is the table of what is served: `pods.rs`,
//! `logs.rs`, `stats.rs`, `metrics/` (whose pages `page.rs` sends), `checkpoints.rs`, `zpages/` and
//! `verbosity.rs` answer by themselves, `streaming/` talks with what runs in pods. `reload.rs` reads
//! certificates again when they have changed. `healthz.rs` serves the loopback by itself, with a
//! `room.rs` for those who connect, and must go on whatever becomes of the rest. It asks a [`Health`]
//! registry of named checks, which the composition root fills with closures that look at what the
//! loops publish; nothing here knows the loops.
//!
//! Tasks: one for both ports, one for the loopback, one for each connection, and one for each
//! request of HTTP/2 and each stream.
//! In: the roster of pods, what the runtime holds, the effective configuration, reviews by the
//! API server. Out: answers.
//!
//! Always true: a client that says little or nothing, or takes nothing, costs a bounded place and
//! loses it to the next; nobody who asks once waits behind all that another asks; nobody is let
//! through because the API server does not answer, and nobody waits for it longer than some
//! seconds; a credential is never kept, only its digest. An answer of the loopback never waits for
//! another part of the agent, and its port, when taken, is tried again.

mod answers;
mod authn;
mod authz;
mod body;
mod checkpoints;
mod config;
mod connection;
mod doors;
mod errors;
mod flow;
mod front;
mod guests;
mod health;
mod healthz;
mod logs;
mod metrics;
mod page;
mod pods;
mod query;
mod reload;
mod room;
mod routes;
mod stats;
mod streaming;
#[cfg(test)]
mod tests;
mod tls;
mod turns;
mod verbosity;
mod websocket;
mod zpages;

pub use config::{AuthnConfig, AuthzConfig, CertificateSource, ServerConfig, Switches, TlsConfig};
pub use doors::Doors;
pub use errors::ServerError;
pub use front::Exhibits;
pub use guests::Guest;
pub use health::{Check, Health, Progress};
pub use healthz::{respond, run};
pub use metrics::About;
pub use verbosity::Verbosity;
