//! Requests, and the certificates that come of them.

use base64::Engine;
use jiff::{SignedDuration, Timestamp};
use rcgen::CertificateSigningRequestParams;

use super::world::{Authority, NODE, USER};
use crate::identity::certificate::{BadBundle, Bundle, Certificate};
use crate::identity::request::{Alternatives, Key, client_request, first_client_request, serving_request};

fn start() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().expect("it is a time")
}

#[test]
fn the_name_of_a_first_request_follows_from_key_and_node() {
    let name = |node: &str, key: &Key| {
        let request = first_client_request(node, key).expect("a request can be made");
        request.metadata.name.expect("a first request has a name")
    };
    let (key, other) = (Key::generate().expect("keys can be made"), Key::generate().expect("keys can be made"));
    let kept = Key::parse(key.pem().as_bytes()).expect("it reads what it writes");
    assert_eq!(name(NODE, &key), name(NODE, &kept), "after a restart too");
    assert_ne!(name(NODE, &key), name(NODE, &other));
    assert_ne!(name(NODE, &key), name("edge-8", &key));
    let digest = name(NODE, &key);
    let digest = digest.strip_prefix("node-csr-").expect("it begins like upstream's");
    let digest = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(digest).expect("it is base64url");
    assert_eq!(digest.len(), 32);
}

#[test]
fn a_request_says_what_the_signers_want_to_read() {
    let key = Key::generate().expect("keys can be made");
    let alternatives = Alternatives {
        names: ["edge-7".to_owned(), "edge-7.example.com".to_owned()].into(),
        addresses: ["10.0.0.7".parse().expect("an address"), "fd00::7".parse().expect("an address")].into(),
    };
    let request = serving_request(NODE, &key, &alternatives).expect("a request can be made");
    assert_eq!(request.spec.signer_name, "kubernetes.io/kubelet-serving");
    assert_eq!(
        request.spec.usages.as_deref(),
        Some(["digital signature".to_owned(), "server auth".to_owned()].as_slice())
    );
    let pem = String::from_utf8(request.spec.request.0).expect("PEM is text");
    let read = CertificateSigningRequestParams::from_pem(&pem).expect("it is signed by its own key").params;
    let subject: Vec<String> = read.distinguished_name.iter().map(|(_, value)| format!("{value:?}")).collect();
    assert_eq!(subject.len(), 2);
    assert!(subject[0].contains("system:nodes") && subject[1].contains(USER), "{subject:?}");
    assert_eq!(read.subject_alt_names.len(), 4);

    let request = client_request(NODE, &key).expect("a request can be made");
    let pem = String::from_utf8(request.spec.request.0).expect("PEM is text");
    let read = CertificateSigningRequestParams::from_pem(&pem).expect("it is signed by its own key").params;
    assert!(read.subject_alt_names.is_empty(), "the signer of client certificates refuses them");
}

#[test]
fn what_is_no_certificate_with_its_key_is_told_apart() {
    let authority = Authority::new("cluster");
    let [one, other] = [(); 2].map(|()| authority.bundle(USER, start(), SignedDuration::from_hours(1)));
    let split = |pem: &str| {
        let (certificate, key) = pem.split_at(pem.find("-----BEGIN PRIVATE").expect("there is a key"));
        (certificate.to_owned(), key.to_owned())
    };
    let ((certificate, key), (_, wrong_key)) = (split(&one), split(&other));
    let check = |pem: &str, expected: BadBundle| {
        assert_eq!(Bundle::parse(pem.as_bytes()).expect_err("it is unusable"), expected, "{pem}");
    };
    check("", BadBundle::Empty);
    check(" \n", BadBundle::Empty);
    check("hello", BadBundle::NoCertificate);
    check(&key, BadBundle::NoCertificate);
    check(&certificate, BadBundle::NoKey);
    check(&format!("{certificate}{wrong_key}"), BadBundle::WrongKey);
    check(&one[..one.len() / 3], BadBundle::Unreadable);
    check("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", BadBundle::Unreadable);
    // The key may come first, and a chain may follow.
    let chained = format!("{key}{certificate}{}", authority.pem());
    assert_eq!(Bundle::parse(chained.as_bytes()).expect("it is whole").key.cert.len(), 2);
}

#[test]
fn issuers_are_told_by_their_signature_and_not_by_their_name() {
    let (ours, twin) = (Authority::new("cluster"), Authority::new("cluster"));
    let pem = ours.bundle(USER, start(), SignedDuration::from_hours(1));
    let bundle = Bundle::parse(pem.as_bytes()).expect("it is whole");
    assert!(bundle.is_issued_by(ours.pem().as_bytes()));
    assert!(bundle.is_issued_by(format!("{}{}", twin.pem(), ours.pem()).as_bytes()));
    assert!(!bundle.is_issued_by(twin.pem().as_bytes()));
    assert!(!bundle.is_issued_by(b""));
}

#[test]
fn renewal_comes_between_70_and_90_percent_and_for_each_certificate_at_its_own_time() {
    let life = SignedDuration::from_hours(1000);
    let authority = Authority::new("cluster");
    let mut times = Vec::new();
    for _ in 0..20 {
        let pem = authority.bundle(USER, start(), life);
        let certificate = Certificate::from_pem(pem.as_bytes()).expect("it is whole");
        assert_eq!((certificate.not_before, certificate.not_after), (start(), start() + life));
        let after = certificate.renew_at().duration_since(start()).as_hours();
        assert!((700..=900).contains(&after), "{after}");
        assert_eq!(certificate.renew_at(), Certificate::from_pem(pem.as_bytes()).expect("it is whole").renew_at());
        times.push(after);
    }
    times.dedup();
    assert!(times.len() > 10, "{times:?}");
}

#[test]
fn a_certificate_without_end_ends_when_our_clock_does() {
    // 9999-12-31T23:59:59Z, as RFC 5280 has it.
    let mut params = rcgen::CertificateParams::default();
    params.not_after = rcgen::date_time_ymd(9999, 12, 31) + std::time::Duration::from_secs(24 * 3600 - 1);
    let key = rcgen::KeyPair::generate().expect("ring makes keys");
    let pem = params.self_signed(&key).expect("the parameters are valid").pem();
    let leaf = Certificate::from_pem(pem.as_bytes()).expect("it can be read");
    assert_eq!(leaf.not_after.as_second(), jiff::Timestamp::MAX.as_second());
}
