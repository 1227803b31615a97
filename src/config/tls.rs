//! The names Go gives to cipher suites and the numbers TLS gives to key exchange groups.

/// What `tlsCipherSuites` may name; the weak ones are accepted, as upstream does.
pub const CIPHER_SUITES: &[&str] = &[
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    // Twice each: with and without the hash, from before and after RFC 7905.
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_RSA_WITH_RC4_128_SHA",
];

/// P-256, P-384, P-521, X25519, and the three hybrids with ML-KEM.
pub const CURVES: &[i32] = &[23, 24, 25, 29, 4587, 4588, 4589];

/// Whether the TLS library offers this suite, by either of its names. Suites without forward
/// secrecy or with CBC it has none; those of TLS 1.3 are always offered.
pub fn is_cipher_suite_offered(name: &str) -> bool {
    let kind = name
        .strip_prefix("TLS_")
        .map(|name| name.trim_start_matches("ECDHE_ECDSA_WITH_").trim_start_matches("ECDHE_RSA_WITH_"));
    let forward_secret = !name.starts_with("TLS_RSA_");
    let authenticated = kind.is_some_and(|kind| {
        ["AES_128_GCM_", "AES_256_GCM_", "CHACHA20_POLY1305"].iter().any(|cipher| kind.starts_with(cipher))
    });
    forward_secret && authenticated
}

pub fn is_curve_offered(number: i32) -> bool {
    [23, 24, 29].contains(&number)
}
