//! Requests for certificates: the key, the PKCS#10 request, the object for the API server.

use std::collections::BTreeSet;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    string::Ia5String,
};
use ring::digest::{Context, SHA512_256};

const GROUP: &str = "system:nodes";
const SIGN: &str = "digital signature";

#[derive(Debug, thiserror::Error)]
#[error("failed to make a request for a certificate")]
pub struct RequestError(#[from] rcgen::Error);

/// ECDSA on P-256, which every signer of a cluster takes.
pub struct Key(KeyPair);

impl Key {
    pub fn generate() -> Result<Key, RequestError> {
        Ok(Key(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    /// One that was written by [`Key::pem`]; `None` if it is anything else.
    pub fn parse(pem: &[u8]) -> Option<Key> {
        let key = KeyPair::from_pem(std::str::from_utf8(pem).ok()?).ok()?;
        key.is_compatible(&PKCS_ECDSA_P256_SHA256).then_some(Key(key))
    }

    pub fn pem(&self) -> String {
        self.0.serialize_pem()
    }
}

/// The user that a node is.
pub fn user(node_name: &str) -> String {
    format!("system:node:{node_name}")
}

/// What a serving certificate is to be valid for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alternatives {
    pub names: BTreeSet<String>,
    pub addresses: BTreeSet<IpAddr>,
}

/// The first request of a node. Its name follows from the key, as upstream's does: who
/// asks again with the same key, after a crash, finds what was asked before.
pub fn first_client_request(node_name: &str, key: &Key) -> Result<CertificateSigningRequest, RequestError> {
    let mut request = client_request(node_name, key)?;
    request.metadata = ObjectMeta { name: Some(name(node_name, key, &request.spec)), ..ObjectMeta::default() };
    Ok(request)
}

pub fn client_request(node_name: &str, key: &Key) -> Result<CertificateSigningRequest, RequestError> {
    request(node_name, key, &Alternatives::default(), "kubernetes.io/kube-apiserver-client-kubelet", "client auth")
}

pub fn serving_request(
    node_name: &str,
    key: &Key,
    alternatives: &Alternatives,
) -> Result<CertificateSigningRequest, RequestError> {
    request(node_name, key, alternatives, "kubernetes.io/kubelet-serving", "server auth")
}

fn request(
    node_name: &str,
    key: &Key,
    alternatives: &Alternatives,
    signer: &str,
    usage: &str,
) -> Result<CertificateSigningRequest, RequestError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, GROUP);
    params.distinguished_name.push(DnType::CommonName, user(node_name));
    for name in &alternatives.names {
        params.subject_alt_names.push(SanType::DnsName(Ia5String::try_from(name.as_str())?));
    }
    params.subject_alt_names.extend(alternatives.addresses.iter().copied().map(SanType::IpAddress));
    let pem = params.serialize_request(&key.0)?.pem()?;
    Ok(CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("csr-".to_owned()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: signer.to_owned(),
            usages: Some(vec![SIGN.to_owned(), usage.to_owned()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    })
}

/// `node-csr-` and a digest of key, subject and usages, each followed by a sign that their
/// encoding does not have.
fn name(node_name: &str, key: &Key, spec: &CertificateSigningRequestSpec) -> String {
    let mut digest = Context::new(&SHA512_256);
    let mut add = |part: &[u8]| {
        digest.update(URL_SAFE_NO_PAD.encode(part).as_bytes());
        digest.update(b"|");
    };
    add(&key.0.subject_public_key_info());
    add(user(node_name).as_bytes());
    add(GROUP.as_bytes());
    for usage in spec.usages.iter().flatten() {
        add(usage.as_bytes());
    }
    format!("node-csr-{}", URL_SAFE_NO_PAD.encode(digest.finish()))
}
