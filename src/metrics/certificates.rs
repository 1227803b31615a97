//! Certificates that this agent keeps valid, where it is to do so.

use std::sync::Mutex;

use super::text::{Kind, Page};
use super::{Counter, Histogram, Instrument};

static CLIENT_RENEW_ERRORS: Counter<0> = Counter::new(
    "kubelet_certificate_manager_client_expiration_renew_errors",
    "Attempts to renew the client certificate that failed.",
    [],
);
static SERVER_RENEW_ERRORS: Counter<0> = Counter::new(
    "kubelet_server_expiration_renew_errors",
    "Attempts to renew the serving certificate that failed.",
    [],
);
static SERVER_ROTATION: Histogram<0> = Histogram::new(
    "kubelet_certificate_manager_server_rotation_seconds",
    "How long serving certificates were in use before others took their place.",
    [],
    &[60.0, 3600.0, 14400.0, 86400.0, 604800.0, 2592000.0, 7776000.0, 15552000.0, 31104000.0, 124416000.0],
);

/// When a certificate expires, in seconds since 1970.
struct Kept(Mutex<Standing>);

#[derive(Clone, Copy)]
enum Standing {
    /// It is not for this agent to keep one.
    Unmanaged,
    Absent,
    Until(f64),
}

static CLIENT: Kept = Kept(Mutex::new(Standing::Unmanaged));
static SERVER: Kept = Kept(Mutex::new(Standing::Unmanaged));

impl Kept {
    fn note(&self, standing: Standing) {
        *self.0.lock().expect("nothing that holds it can panic") = standing;
    }

    fn standing(&self) -> Standing {
        *self.0.lock().expect("nothing that holds it can panic")
    }
}

/// The client certificate in use expires then, if there is one.
pub fn client_expires(unix_seconds: Option<f64>) {
    CLIENT.note(unix_seconds.map_or(Standing::Absent, Standing::Until));
}

pub fn client_not_renewed() {
    CLIENT_RENEW_ERRORS.add([]);
}

/// The same of the serving certificate.
pub fn server_expires(unix_seconds: Option<f64>) {
    SERVER.note(unix_seconds.map_or(Standing::Absent, Standing::Until));
}

pub fn server_not_renewed() {
    SERVER_RENEW_ERRORS.add([]);
}

pub fn server_rotated(age_seconds: f64) {
    SERVER_ROTATION.observe([], age_seconds);
}

/// What there is to tell at this time.
pub fn write(page: &mut Page, unix_seconds: f64) {
    if let Some(left) = left(CLIENT.standing(), unix_seconds) {
        const HELP: &str = "Until the client certificate expires; negative once it has, +Inf without one.";
        page.family("kubelet_certificate_manager_client_ttl_seconds", Kind::Gauge, HELP).sample(&[], left);
        CLIENT_RENEW_ERRORS.write(page);
    }
    if let Some(left) = left(SERVER.standing(), unix_seconds) {
        const HELP: &str = "Until the serving certificate expires; negative once it has, +Inf without one.";
        page.family("kubelet_certificate_manager_server_ttl_seconds", Kind::Gauge, HELP).sample(&[], left);
        SERVER_RENEW_ERRORS.write(page);
        SERVER_ROTATION.write(page);
    }
}

fn left(standing: Standing, now: f64) -> Option<f64> {
    match standing {
        Standing::Unmanaged => None,
        Standing::Absent => Some(f64::INFINITY),
        Standing::Until(end) => Some((end - now).trunc()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_told_of_by_who_keeps_it() {
        assert_eq!(left(Standing::Unmanaged, 10.0), None);
        assert_eq!(left(Standing::Absent, 10.0), Some(f64::INFINITY));
        assert_eq!(left(Standing::Until(12.5), 10.0), Some(2.0));
        assert_eq!(left(Standing::Until(7.0), 10.0), Some(-3.0));
    }
}
