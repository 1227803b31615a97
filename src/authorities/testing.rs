//! An authority for tests. What is signed with it, the tests that need it say.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

pub struct Authority(pub CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("ring makes keys");
        Authority(CertifiedIssuer::self_signed(params, key).expect("the parameters are valid"))
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }
}
