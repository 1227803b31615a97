//! Kubeconfigs as far as they are about certificates: what one leads to, and the one that is
//! written at the end of a bootstrap.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::config::{AuthInfo, Cluster, Kubeconfig as File};
use serde_json::json;

#[derive(Debug, thiserror::Error)]
pub enum BadKubeconfig {
    #[error("failed to understand kubeconfig {}: {why}", path.display())]
    Unreadable { path: PathBuf, why: String },
    #[error("kubeconfig {} does not say which {what} to use", path.display())]
    Incomplete { path: PathBuf, what: &'static str },
    #[error("kubeconfig {} holds {what} that is no base64", path.display())]
    BadData { path: PathBuf, what: &'static str },
}

/// Something that a kubeconfig holds or names.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    Absent,
    Inline(Vec<u8>),
    File(PathBuf),
}

/// A kubeconfig that could be read.
pub struct Parsed {
    path: PathBuf,
    cluster: Cluster,
    user: AuthInfo,
}

impl Parsed {
    pub fn parse(path: &Path, text: &[u8]) -> Result<Parsed, BadKubeconfig> {
        let unreadable = |why: String| BadKubeconfig::Unreadable { path: path.to_owned(), why };
        let text = std::str::from_utf8(text).map_err(|error| unreadable(error.to_string()))?;
        let file = File::from_yaml(text).map_err(|error| unreadable(error.to_string()))?;
        let incomplete = |what| BadKubeconfig::Incomplete { path: path.to_owned(), what };
        let context = file.contexts.iter().find(|named| Some(&named.name) == file.current_context.as_ref());
        let context = context.and_then(|named| named.context.as_ref()).ok_or_else(|| incomplete("context"))?;
        let cluster = file.clusters.iter().find(|named| named.name == context.cluster);
        let cluster = cluster.and_then(|named| named.cluster.clone()).ok_or_else(|| incomplete("cluster"))?;
        let user = file.auth_infos.iter().find(|named| Some(&named.name) == context.user.as_ref());
        let user = user.and_then(|named| named.auth_info.clone()).unwrap_or_default();
        Ok(Parsed { path: path.to_owned(), cluster, user })
    }

    pub fn certificate(&self) -> Result<Part, BadKubeconfig> {
        self.part(&self.user.client_certificate_data, &self.user.client_certificate, "a certificate")
    }

    /// Certificate and key in one text, if it holds both itself.
    pub fn bundle(&self) -> Option<String> {
        // kube keeps it in a type of its own, which it writes all the same.
        let user = serde_json::to_value(&self.user).ok()?;
        let key = user["client-key-data"].as_str().map(str::to_owned);
        let parts = [self.certificate(), self.part(&key, &self.user.client_key, "a key")];
        let [Ok(Part::Inline(certificate)), Ok(Part::Inline(key))] = parts else { return None };
        let (certificate, key) = (String::from_utf8(certificate).ok()?, String::from_utf8(key).ok()?);
        Some(format!("{}\n{key}", certificate.trim_end()))
    }

    pub fn authority(&self) -> Result<Part, BadKubeconfig> {
        self.part(&self.cluster.certificate_authority_data, &self.cluster.certificate_authority, "an authority")
    }

    fn part(&self, data: &Option<String>, file: &Option<String>, what: &'static str) -> Result<Part, BadKubeconfig> {
        match (data.as_deref().unwrap_or_default(), file.as_deref().unwrap_or_default()) {
            ("", "") => Ok(Part::Absent),
            ("", file) => Ok(Part::File(self.absolute(file))),
            (data, _) => match STANDARD.decode(data.trim()) {
                Ok(data) => Ok(Part::Inline(data)),
                Err(_) => Err(BadKubeconfig::BadData { path: self.path.clone(), what }),
            },
        }
    }

    /// Paths in a kubeconfig count from its own directory.
    fn absolute(&self, file: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("/")).join(file)
    }

    /// A kubeconfig for the same cluster whose user is who this certificate says. Names are
    /// upstream's, for the tools that look for them.
    pub fn leading_to(&self, certificate: &Path) -> Result<String, BadKubeconfig> {
        let mut cluster = self.cluster.clone();
        cluster.certificate_authority =
            cluster.certificate_authority.map(|file| self.absolute(&file).to_string_lossy().into_owned());
        let certificate = certificate.to_string_lossy();
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "default-cluster", "cluster": cluster }],
            "contexts": [{
                "name": "default-context",
                "context": { "cluster": "default-cluster", "namespace": "default", "user": "default-auth" },
            }],
            "current-context": "default-context",
            "users": [{
                "name": "default-auth",
                "user": { "client-certificate": certificate, "client-key": certificate },
            }],
        });
        serde_saphyr::to_string(&kubeconfig)
            .map_err(|error| BadKubeconfig::Unreadable { path: self.path.clone(), why: error.to_string() })
    }
}
