//! What openssl makes when nobody tells it otherwise, and what Go makes of that, case by case.

use rustls::pki_types::pem::PemObject;

use super::*;

/// Of an authority that is valid from 2026 to 2126, and of one that was for a year.
const AUTHORITY: &[u8] = include_bytes!("testdata/ca.pem");
const OLD_AUTHORITY: &[u8] = include_bytes!("testdata/old-ca.pem");

fn pem(text: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>().expect("certificates")
}

#[track_caller]
fn check(authority: &[u8], own: &[u8], at: &str, expected: bool) {
    let authorities = Authorities::of(&pem(authority)).expect("an authority");
    let vouched = authorities.vouch_for(&pem(own), at.parse().expect("a time"));
    assert_eq!(vouched.is_ok(), expected, "{vouched:?}");
}

const NOW: &str = "2030-01-01T00:00:00Z";

#[test]
fn what_go_takes_for_a_clients_certificate_is_taken() {
    check(AUTHORITY, include_bytes!("testdata/v1.pem"), NOW, true);
    check(AUTHORITY, include_bytes!("testdata/authority-itself.pem"), NOW, true);
    check(AUTHORITY, include_bytes!("testdata/v3.pem"), NOW, true);
    check(AUTHORITY, AUTHORITY, NOW, true);
}

#[test]
fn what_go_refuses_is_refused() {
    check(AUTHORITY, include_bytes!("testdata/server.pem"), NOW, false);
    check(AUTHORITY, include_bytes!("testdata/odd.pem"), NOW, false);
    check(AUTHORITY, include_bytes!("testdata/odd-authority.pem"), NOW, false);
    check(AUTHORITY, include_bytes!("testdata/server-authority.pem"), NOW, false);
    // Of another authority, though it has the same name.
    check(OLD_AUTHORITY, include_bytes!("testdata/v1.pem"), "2026-06-01T00:00:00Z", false);
    check(OLD_AUTHORITY, include_bytes!("testdata/v3.pem"), "2026-06-01T00:00:00Z", false);
    // Before and after its time.
    check(AUTHORITY, include_bytes!("testdata/v1.pem"), "2025-12-31T23:59:59Z", false);
    check(AUTHORITY, include_bytes!("testdata/v1.pem"), "2127-01-01T00:00:00Z", false);
}

#[test]
fn a_signature_that_was_changed_is_none() {
    let authorities = Authorities::of(&pem(AUTHORITY)).expect("an authority");
    let own = pem(include_bytes!("testdata/v1.pem")).remove(0);
    for place in [own.len() - 1, own.len() / 3] {
        let mut bytes = own.to_vec();
        bytes[place] ^= 1;
        assert!(authorities.vouch_for(&[bytes.into()], NOW.parse().expect("a time")).is_err(), "{place}");
    }
}

#[test]
fn an_authority_that_has_expired_vouches_for_nobody() {
    for own in [&include_bytes!("testdata/old-v3.pem")[..], include_bytes!("testdata/old-v1.pem")] {
        check(OLD_AUTHORITY, own, "2026-06-01T00:00:00Z", true);
        check(OLD_AUTHORITY, own, "2028-01-01T00:00:00Z", false);
        let authorities = Authorities::of(&pem(OLD_AUTHORITY)).expect("an authority");
        assert!(authorities.have_signed(&pem(own), "2028-01-01T00:00:00Z".parse().expect("a time")));
    }
}
