//! What files a volume of API content has: a pure function of its spec and the objects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, Volume, VolumeProjection};

use super::layout::Plugin;
use crate::host::{DirMedium, PayloadFile};

const MODE_DEFAULT: i32 = 0o644;
/// Of what only the container's own user may read.
const MODE_PRIVATE: u32 = 0o600;
const TOKEN_SECONDS_DEFAULT: i64 = 3600;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    #[error("{kind} {name:?} not found")]
    NotFound { kind: &'static str, name: String },
    #[error("configmap references non-existent config key: {0}")]
    NoConfigKey(String),
    #[error("references non-existent secret key: {0}")]
    NoSecretKey(String),
    #[error("{0} in a projected volume is not supported yet")]
    Unsupported(&'static str),
    /// From elsewhere, as it is to be shown.
    #[error("{0}")]
    Other(String),
    #[error("[{}]", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Several(Vec<PayloadError>),
}

impl PayloadError {
    /// All of them, or everything that went wrong: one failing source fails the volume.
    pub fn all<T>(results: Vec<Result<T, PayloadError>>) -> Result<Vec<T>, PayloadError> {
        let (mut good, mut errors) = (Vec::new(), Vec::new());
        for result in results {
            match result {
                Ok(value) => good.push(value),
                Err(error) => errors.push(error),
            }
        }
        match errors.len() {
            0 => Ok(good),
            1 => Err(errors.remove(0)),
            _ => Err(PayloadError::Several(errors)),
        }
    }
}

/// A volume whose files come from the API.
#[derive(Clone, Debug, PartialEq)]
pub struct PayloadSpec {
    pub plugin: Plugin,
    pub sources: Vec<Source>,
    /// Of files that do not say.
    mode: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    ConfigMap(ObjectSource),
    Secret(ObjectSource),
    DownwardApi(Vec<DownwardAPIVolumeFile>),
    Token { path: String, audience: Option<String>, expiration_seconds: i64 },
    Unsupported(&'static str),
}

#[derive(Clone, Debug, PartialEq)]
pub struct ObjectSource {
    pub name: String,
    /// The keys wanted and where to put them; all of them under their names if empty.
    items: Vec<KeyToPath>,
    optional: bool,
}

impl ObjectSource {
    fn new(name: Option<&String>, items: Option<&Vec<KeyToPath>>, optional: Option<bool>) -> Self {
        ObjectSource {
            name: name.cloned().unwrap_or_default(),
            items: items.cloned().unwrap_or_default(),
            optional: optional == Some(true),
        }
    }
}

/// What was found for one source. Not for printing: it holds secrets.
#[derive(Clone)]
pub enum Content {
    ConfigMap(Option<Arc<ConfigMap>>),
    Secret(Option<Arc<Secret>>),
    Token(Arc<str>),
    /// The source needs nothing but the pod itself.
    OfPod,
}

/// Whose files they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// The user that all containers run as, if they agree.
    pub user: Option<u32>,
    pub group: Option<u32>,
}

impl Owners {
    pub fn of(pod: &Pod) -> Self {
        let spec = crate::pod::spec(pod);
        let security = spec.security_context.as_ref();
        let pod_user = security.and_then(|security| security.run_as_user);
        let own_user = |security: Option<&k8s_openapi::api::core::v1::SecurityContext>| {
            security.and_then(|security| security.run_as_user).or(pod_user)
        };
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let ephemeral = spec.ephemeral_containers.iter().flatten();
        let users: BTreeSet<Option<i64>> = containers
            .map(|container| own_user(container.security_context.as_ref()))
            .chain(ephemeral.map(|container| own_user(container.security_context.as_ref())))
            .collect();
        let agreed = if users.len() == 1 { users.into_iter().next().flatten() } else { None };
        let group = security.and_then(|security| security.fs_group);
        Owners { user: agreed.and_then(|id| u32::try_from(id).ok()), group: group.and_then(|id| u32::try_from(id).ok()) }
    }
}

impl PayloadSpec {
    /// `None` if the volume is of another kind.
    pub fn of(volume: &Volume) -> Option<Self> {
        let (plugin, mode, sources) = if let Some(secret) = &volume.secret {
            let source = ObjectSource::new(secret.secret_name.as_ref(), secret.items.as_ref(), secret.optional);
            (Plugin::Secret, secret.default_mode, vec![Source::Secret(source)])
        } else if let Some(map) = &volume.config_map {
            let source = ObjectSource::new(Some(&map.name), map.items.as_ref(), map.optional);
            (Plugin::ConfigMap, map.default_mode, vec![Source::ConfigMap(source)])
        } else if let Some(downward) = &volume.downward_api {
            let items = downward.items.clone().unwrap_or_default();
            (Plugin::DownwardApi, downward.default_mode, vec![Source::DownwardApi(items)])
        } else if let Some(projected) = &volume.projected {
            let sources = projected.sources.iter().flatten().flat_map(projections).collect();
            (Plugin::Projected, projected.default_mode, sources)
        } else {
            return None;
        };
        Some(PayloadSpec { plugin, sources, mode: mode_bits(mode.unwrap_or(MODE_DEFAULT)) })
    }

    /// Config maps are no secrets, so they do not cost memory.
    pub fn medium(&self) -> DirMedium {
        match self.plugin {
            Plugin::ConfigMap => DirMedium::Disk,
            _ => DirMedium::Memory { size_bytes: None },
        }
    }

    /// The files, sorted by path. `contents` has an entry for each source, in their order;
    /// a later source overrides an equal path of an earlier one. `downward` reads a field
    /// of the pod.
    pub fn files(
        &self,
        contents: &[Content],
        owners: Owners,
        downward: &dyn Fn(&DownwardAPIVolumeFile) -> Result<String, String>,
    ) -> Result<Vec<PayloadFile>, PayloadError> {
        let pairs = self.sources.iter().zip(contents);
        let each = pairs.map(|(source, content)| self.source_files(source, content, owners, downward)).collect();
        let files = PayloadError::all(each)?.into_iter().flatten();
        Ok(files.map(|file| (file.path.clone(), file)).collect::<BTreeMap<_, _>>().into_values().collect())
    }

    fn source_files(
        &self,
        source: &Source,
        content: &Content,
        owners: Owners,
        downward: &dyn Fn(&DownwardAPIVolumeFile) -> Result<String, String>,
    ) -> Result<Vec<PayloadFile>, PayloadError> {
        match (source, content) {
            (Source::ConfigMap(source), Content::ConfigMap(map)) => self.config_map_files(source, map.as_deref()),
            (Source::Secret(source), Content::Secret(secret)) => self.secret_files(source, secret.as_deref()),
            (Source::DownwardApi(items), _) => items.iter().map(|item| self.downward_file(item, downward)).collect(),
            (Source::Token { path, .. }, Content::Token(token)) => Ok(vec![self.token_file(path, token, owners)]),
            (Source::Unsupported(what), _) => Err(PayloadError::Unsupported(what)),
            (_, _) => Err(PayloadError::Other("no content was read for this source".to_owned())),
        }
    }

    fn config_map_files(&self, source: &ObjectSource, map: Option<&ConfigMap>) -> Result<Vec<PayloadFile>, PayloadError> {
        let Some(map) = map else { return missing("configmap", source) };
        let mut data: BTreeMap<&str, &[u8]> =
            map.data.iter().flatten().map(|(key, text)| (key.as_str(), text.as_bytes())).collect();
        for (key, bytes) in map.binary_data.iter().flatten() {
            data.entry(key).or_insert(&bytes.0);
        }
        self.object_files(source, &data, PayloadError::NoConfigKey)
    }

    fn secret_files(&self, source: &ObjectSource, secret: Option<&Secret>) -> Result<Vec<PayloadFile>, PayloadError> {
        let Some(secret) = secret else { return missing("secret", source) };
        let data = secret.data.iter().flatten().map(|(key, bytes)| (key.as_str(), bytes.0.as_slice())).collect();
        self.object_files(source, &data, PayloadError::NoSecretKey)
    }

    fn object_files(
        &self,
        source: &ObjectSource,
        data: &BTreeMap<&str, &[u8]>,
        no_key: fn(String) -> PayloadError,
    ) -> Result<Vec<PayloadFile>, PayloadError> {
        if source.items.is_empty() {
            return Ok(data.iter().map(|(key, bytes)| self.file(key, bytes, None)).collect());
        }
        let mut files = Vec::new();
        for item in &source.items {
            match data.get(item.key.as_str()) {
                Some(bytes) => files.push(self.file(&item.path, bytes, item.mode)),
                None if source.optional => {}
                None => return Err(no_key(item.key.clone())),
            }
        }
        Ok(files)
    }

    fn downward_file(
        &self,
        item: &DownwardAPIVolumeFile,
        downward: &dyn Fn(&DownwardAPIVolumeFile) -> Result<String, String>,
    ) -> Result<PayloadFile, PayloadError> {
        let text = downward(item).map_err(PayloadError::Other)?;
        Ok(self.file(&item.path, text.as_bytes(), item.mode))
    }

    /// A token opens the API, so it is for the container's user alone as soon as that user
    /// can be told apart.
    fn token_file(&self, path: &str, token: &str, owners: Owners) -> PayloadFile {
        let is_owned = owners.user.is_some() || owners.group.is_some();
        PayloadFile {
            path: path.to_owned(),
            data: token.as_bytes().to_owned(),
            mode: if is_owned { MODE_PRIVATE } else { self.mode },
            uid: owners.user,
        }
    }

    fn file(&self, path: &str, data: &[u8], mode: Option<i32>) -> PayloadFile {
        PayloadFile { path: path.to_owned(), data: data.to_owned(), mode: mode.map_or(self.mode, mode_bits), uid: None }
    }
}

fn projections(projection: &VolumeProjection) -> Vec<Source> {
    let mut sources = Vec::new();
    if let Some(secret) = &projection.secret {
        sources.push(Source::Secret(ObjectSource::new(Some(&secret.name), secret.items.as_ref(), secret.optional)));
    }
    if let Some(map) = &projection.config_map {
        sources.push(Source::ConfigMap(ObjectSource::new(Some(&map.name), map.items.as_ref(), map.optional)));
    }
    if let Some(downward) = &projection.downward_api {
        sources.push(Source::DownwardApi(downward.items.clone().unwrap_or_default()));
    }
    if let Some(token) = &projection.service_account_token {
        sources.push(Source::Token {
            path: token.path.clone(),
            audience: token.audience.clone(),
            expiration_seconds: token.expiration_seconds.unwrap_or(TOKEN_SECONDS_DEFAULT),
        });
    }
    if projection.cluster_trust_bundle.is_some() {
        sources.push(Source::Unsupported("clusterTrustBundle"));
    }
    if projection.pod_certificate.is_some() {
        sources.push(Source::Unsupported("podCertificate"));
    }
    sources
}

fn missing(kind: &'static str, source: &ObjectSource) -> Result<Vec<PayloadFile>, PayloadError> {
    if source.optional { Ok(Vec::new()) } else { Err(PayloadError::NotFound { kind, name: source.name.clone() }) }
}

/// The API allows nine bits; more in a static pod would be setuid and the like.
fn mode_bits(mode: i32) -> u32 {
    mode.unsigned_abs() & 0o777
}
