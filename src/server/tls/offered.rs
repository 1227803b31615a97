//! Which versions, cipher suites and key exchanges are offered: what the configuration allows,
//! as far as our library has it.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, SupportedKxGroup, ring};
use rustls::{SupportedCipherSuite, SupportedProtocolVersion, version};

use super::super::ServerError;
use super::super::config::{Result, TlsConfig};
use crate::config::TlsVersion;

pub struct Offered {
    provider: Arc<CryptoProvider>,
    versions: Vec<&'static SupportedProtocolVersion>,
}

impl Offered {
    pub fn of(config: &TlsConfig) -> Result<Self> {
        let mut provider = ring::default_provider();
        // The list is about versions up to 1.2; suites of 1.3 cannot be chosen, as upstream.
        if !config.cipher_suites.is_empty() {
            let wanted: Vec<_> = config.cipher_suites.iter().filter_map(|name| suite(name)).collect();
            provider.cipher_suites.retain(|suite| suite.tls13().is_some() || wanted.contains(suite));
        }
        if !config.curves.is_empty() {
            let wanted: Vec<_> = config.curves.iter().filter_map(|number| group(*number)).collect();
            provider.kx_groups.retain(|group| wanted.iter().any(|wanted| wanted.name() == group.name()));
        }
        if provider.kx_groups.is_empty() {
            let named = config.curves.iter().map(i32::to_string).collect::<Vec<_>>().join(", ");
            return Err(ServerError::NothingOffered { field: "tlsCurvePreferences", named });
        }
        let has_tls12 = provider.cipher_suites.iter().any(|suite| suite.tls13().is_none());
        let versions = match config.min_version {
            TlsVersion::Tls13 => vec![&version::TLS13],
            _ if has_tls12 => vec![&version::TLS13, &version::TLS12],
            // Only those of 1.3 were named, so 1.2 has none left.
            _ if config.cipher_suites.iter().any(|name| is_of_tls13(name)) => vec![&version::TLS13],
            _ => {
                let named = config.cipher_suites.join(", ");
                return Err(ServerError::NothingOffered { field: "tlsCipherSuites", named });
            }
        };
        Ok(Offered { provider: Arc::new(provider), versions })
    }

    pub fn provider(&self) -> &Arc<CryptoProvider> {
        &self.provider
    }

    pub fn versions(&self) -> &[&'static SupportedProtocolVersion] {
        &self.versions
    }
}

fn is_of_tls13(name: &str) -> bool {
    ["TLS_AES_", "TLS_CHACHA20_"].iter().any(|prefix| name.starts_with(prefix))
}

/// The suite that Go calls so, of those up to 1.2.
fn suite(name: &str) -> Option<SupportedCipherSuite> {
    use ring::cipher_suite as suites;
    Some(match name {
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256" => suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384" => suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305" | "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256" => {
            suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        }
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256" => suites::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384" => suites::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" | "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256" => {
            suites::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
        }
        _ => return None,
    })
}

fn group(number: i32) -> Option<&'static dyn SupportedKxGroup> {
    Some(match number {
        23 => ring::kx_group::SECP256R1,
        24 => ring::kx_group::SECP384R1,
        29 => ring::kx_group::X25519,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{is_cipher_suite_offered, is_curve_offered};
    use crate::server::config::CertificateSource;

    fn config(suites: &[&str], curves: &[i32], min_version: TlsVersion) -> TlsConfig {
        TlsConfig {
            certificate: CertificateSource::SelfMade { dir: "/".into(), host_name: "node".into() },
            cipher_suites: suites.iter().map(|&name| name.to_owned()).collect(),
            curves: curves.to_vec(),
            min_version,
            client_ca: None,
        }
    }

    /// What is offered below 1.3, and how many versions.
    #[track_caller]
    fn check(suites: &[&str], curves: &[i32], min_version: TlsVersion, expected: Option<(usize, usize, usize)>) {
        let offered = Offered::of(&config(suites, curves, min_version)).ok().map(|offered| {
            let old = offered.provider.cipher_suites.iter().filter(|suite| suite.tls13().is_none()).count();
            (old, offered.provider.kx_groups.len(), offered.versions.len())
        });
        assert_eq!(offered, expected, "{suites:?} {curves:?}");
    }

    #[test]
    fn what_is_allowed_and_there_is_offered() {
        const CBC: &str = "TLS_RSA_WITH_AES_128_CBC_SHA";
        const GCM: &str = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
        check(&[], &[], TlsVersion::Unset, Some((6, 3, 2)));
        check(&[], &[], TlsVersion::Tls10, Some((6, 3, 2)));
        check(&[], &[], TlsVersion::Tls13, Some((6, 3, 1)));
        check(&[GCM, CBC], &[23, 25], TlsVersion::Tls12, Some((1, 1, 2)));
        check(&["TLS_AES_128_GCM_SHA256"], &[], TlsVersion::Unset, Some((0, 3, 1)));
        check(&[CBC], &[], TlsVersion::Unset, None);
        check(&[CBC], &[], TlsVersion::Tls13, Some((0, 3, 1)));
        check(&[], &[25], TlsVersion::Unset, None);
    }

    #[test]
    fn the_configuration_knows_what_is_offered() {
        for name in crate::config::CIPHER_SUITES {
            let offered = suite(name).is_some() || is_of_tls13(name);
            assert_eq!(is_cipher_suite_offered(name), offered, "{name}");
        }
        for number in crate::config::CURVES {
            assert_eq!(is_curve_offered(*number), group(*number).is_some(), "{number}");
        }
    }
}
