//! Whether the serving certificate is in its time, and that an operator hears of it when not.
//!
//! It is served all the same, as upstream does: what clients make of it is theirs to say, and the
//! clock that is wrong may be ours.

use std::fmt;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use rustls::sign::CertifiedKey;
use tracing::warn;
use x509_parser::parse_x509_certificate;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Validity {
    /// Also what cannot be read.
    Good,
    NotYet {
        from: Timestamp,
    },
    Over {
        since: Timestamp,
    },
}

impl Validity {
    pub fn of(served: &CertifiedKey, now: Timestamp) -> Self {
        let Some(Ok((_, parsed))) = served.cert.first().map(|own| parse_x509_certificate(own)) else {
            return Validity::Good;
        };
        let bounds = [parsed.validity().not_before, parsed.validity().not_after];
        match bounds.map(|bound| Timestamp::from_second(bound.timestamp())) {
            [Ok(from), _] if now < from => Validity::NotYet { from },
            [_, Ok(since)] if now > since => Validity::Over { since },
            _ => Validity::Good,
        }
    }
}

impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Validity::Good => write!(f, "valid"),
            Validity::NotYet { from } => write!(f, "valid from {from} on only"),
            Validity::Over { since } => write!(f, "valid until {since} only"),
        }
    }
}

/// Tells of each certificate once that it is not valid yet, and once that it is no more.
#[derive(Default)]
pub struct Notice(Mutex<Option<Told>>);

struct Told {
    of: Arc<CertifiedKey>,
    validity: Validity,
}

impl Notice {
    pub fn look(&self, served: &Arc<CertifiedKey>, now: Timestamp) {
        if let Some(validity) = self.news(served, now) {
            warn!(%validity, clock = %now, "serving certificate is out of its time, or the clock is wrong; it is served all the same");
        }
    }

    fn news(&self, served: &Arc<CertifiedKey>, now: Timestamp) -> Option<Validity> {
        let validity = Validity::of(served, now);
        let mut told = self.0.lock().expect("nothing that holds the notice can panic");
        let is_told = told.as_ref().is_some_and(|told| Arc::ptr_eq(&told.of, served) && told.validity == validity);
        *told = Some(Told { of: served.clone(), validity });
        (!is_told && validity != Validity::Good).then_some(validity)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rustls::crypto::ring::default_provider;
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    /// In the year 2026, of the first of the month to that of another.
    fn certificate(from: u8, to: u8) -> Arc<CertifiedKey> {
        let mut params = CertificateParams::new(["node-1".to_owned()]).expect("the name is valid");
        params.not_before = rcgen::date_time_ymd(2026, from, 1);
        params.not_after = rcgen::date_time_ymd(2026, to, 1);
        let key = KeyPair::generate().expect("ring makes keys");
        let certificate = params.self_signed(&key).expect("it can be signed").der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("rcgen writes PKCS#8");
        Arc::new(CertifiedKey::from_der(vec![certificate], key, &default_provider()).expect("they fit"))
    }

    fn day(month: u8) -> Timestamp {
        format!("2026-{month:02}-01T00:00:00Z").parse().expect("a time")
    }

    #[test]
    fn a_certificate_out_of_its_time_is_told_of_once_each_way() {
        let (served, notice) = (certificate(3, 6), Notice::default());
        let early = Validity::NotYet { from: day(3) };
        let late = Validity::Over { since: day(6) };
        for (month, expected) in
            [(2, Some(early)), (2, None), (3, None), (6, None), (7, Some(late)), (8, None), (5, None), (7, Some(late))]
        {
            assert_eq!(notice.news(&served, day(month)), expected, "{month}");
        }
        // And another one anew.
        assert_eq!(notice.news(&certificate(3, 6), day(7)), Some(late));
        assert_eq!(late.to_string(), "valid until 2026-06-01T00:00:00Z only");
    }
}
