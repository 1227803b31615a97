//! What files a volume of API content has: a pure function of its spec and the objects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, Volume, VolumeProjection};

use crate::host::PayloadFile;
use crate::pod::plugins::Plugin;

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
        Owners {
            user: agreed.and_then(|id| u32::try_from(id).ok()),
            group: group.and_then(|id| u32::try_from(id).ok()),
        }
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

    fn config_map_files(
        &self,
        source: &ObjectSource,
        map: Option<&ConfigMap>,
    ) -> Result<Vec<PayloadFile>, PayloadError> {
        let Some(map) = map else {
            return missing("configmap", source);
        };
        let mut data: BTreeMap<&str, &[u8]> =
            map.data.iter().flatten().map(|(key, text)| (key.as_str(), text.as_bytes())).collect();
        for (key, bytes) in map.binary_data.iter().flatten() {
            data.entry(key).or_insert(&bytes.0);
        }
        self.object_files(source, &data, PayloadError::NoConfigKey)
    }

    fn secret_files(&self, source: &ObjectSource, secret: Option<&Secret>) -> Result<Vec<PayloadFile>, PayloadError> {
        let Some(secret) = secret else {
            return missing("secret", source);
        };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::{pod_yaml, yaml};

    const MAP: &str = "{data: {a: one, b: two}, binaryData: {c: AAE=, a: AAAA}}";
    const SECRET: &str = "{data: {user: cm9vdA==, key: AAE=}}";

    /// Reads the objects of a test by name; `gone` is not there.
    fn contents(spec: &PayloadSpec) -> Vec<Content> {
        let content = |source: &Source| match source {
            Source::ConfigMap(object) => Content::ConfigMap((object.name != "gone").then(|| Arc::new(yaml(MAP)))),
            Source::Secret(object) => Content::Secret((object.name != "gone").then(|| Arc::new(yaml(SECRET)))),
            Source::Token { audience, expiration_seconds, .. } => {
                let audience = audience.as_deref().unwrap_or("the API");
                Content::Token(format!("token for {audience}, {expiration_seconds} s").into())
            }
            _ => Content::OfPod,
        };
        spec.sources.iter().map(content).collect()
    }

    fn files(volume: &str, owners: Owners) -> Result<Vec<PayloadFile>, String> {
        let spec = PayloadSpec::of(&yaml(volume)).expect("the test's volume has API content");
        let downward = |item: &DownwardAPIVolumeFile| match &item.field_ref {
            Some(field) if field.field_path == "bad" => Err("unsupported fieldPath: bad".to_owned()),
            Some(field) => Ok(format!("<{}>", field.field_path)),
            None => Ok("7".to_owned()),
        };
        spec.files(&contents(&spec), owners, &downward).map_err(|error| error.to_string())
    }

    /// Each file as `path mode content`.
    fn check(volume: &str, expected: &[&str]) {
        let files = files(volume, Owners::default()).unwrap_or_else(|error| panic!("{volume}: {error}"));
        let shown: Vec<_> = files
            .iter()
            .map(|file| format!("{} {:o} {}", file.path, file.mode, String::from_utf8_lossy(&file.data).escape_debug()))
            .collect();
        assert_eq!(shown, expected, "{volume}");
    }

    fn check_error(volume: &str, expected: &str) {
        assert_eq!(files(volume, Owners::default()).unwrap_err(), expected, "{volume}");
    }

    #[test]
    fn all_keys_become_files_data_before_binary_data() {
        check("{name: v, configMap: {name: m}}", &["a 644 one", "b 644 two", "c 644 \\0\\u{1}"]);
        check("{name: v, configMap: {name: m, defaultMode: 256}}", &["a 400 one", "b 400 two", "c 400 \\0\\u{1}"]);
        check("{name: v, secret: {secretName: s}}", &["key 644 \\0\\u{1}", "user 644 root"]);
    }

    #[test]
    fn items_choose_keys_paths_and_modes() {
        check(
            "{name: v, configMap: {name: m, defaultMode: 0o400, items: [{key: b, path: d/e, mode: 0o755}, {key: a, path: x}]}}",
            &["d/e 755 two", "x 400 one"],
        );
        check("{name: v, secret: {secretName: s, items: [{key: user, path: me}]}}", &["me 644 root"]);
    }

    #[test]
    fn what_is_missing_fails_unless_it_is_optional() {
        check_error("{name: v, configMap: {name: gone}}", "configmap \"gone\" not found");
        check_error("{name: v, secret: {secretName: gone}}", "secret \"gone\" not found");
        check("{name: v, configMap: {name: gone, optional: true}}", &[]);
        check("{name: v, secret: {secretName: gone, optional: true}}", &[]);

        let items = "items: [{key: k, path: p}, {key: a, path: q}]";
        check_error(
            &format!("{{name: v, configMap: {{name: m, {items}}}}}"),
            "configmap references non-existent config key: k",
        );
        check(&format!("{{name: v, configMap: {{name: m, optional: true, {items}}}}}"), &["q 644 one"]);
        check_error(
            "{name: v, secret: {secretName: s, items: [{key: k, path: p}]}}",
            "references non-existent secret key: k",
        );
    }

    #[test]
    fn the_downward_api_reads_fields_and_figures() {
        check(
            "{name: v, downwardAPI: {items: [
                {path: labels, fieldRef: {fieldPath: metadata.labels}},
                {path: cpu, mode: 0o600, resourceFieldRef: {containerName: c, resource: limits.cpu}}]}}",
            &["cpu 600 7", "labels 644 <metadata.labels>"],
        );
        check_error(
            "{name: v, downwardAPI: {items: [{path: x, fieldRef: {fieldPath: bad}}]}}",
            "unsupported fieldPath: bad",
        );
    }

    #[test]
    fn later_projected_sources_override_earlier_ones() {
        check(
            "{name: v, projected: {defaultMode: 0o440, sources: [
                {serviceAccountToken: {path: token}},
                {configMap: {name: kube-root-ca.crt, items: [{key: a, path: ca.crt}]}},
                {downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}},
                {secret: {name: s, items: [{key: user, path: ca.crt, mode: 0o444}]}}]}}",
            &["ca.crt 444 root", "namespace 440 <metadata.namespace>", "token 440 token for the API, 3600 s"],
        );
        check(
            "{name: v, projected: {sources: [{serviceAccountToken: {path: t, audience: vault, expirationSeconds: 600}}]}}",
            &["t 644 token for vault, 600 s"],
        );
    }

    #[test]
    fn one_failing_source_fails_the_volume_and_all_are_told() {
        check_error(
            "{name: v, projected: {sources: [{configMap: {name: gone}}, {secret: {name: s}}, {secret: {name: gone}}]}}",
            "[configmap \"gone\" not found, secret \"gone\" not found]",
        );
        check_error(
            "{name: v, projected: {sources: [{clusterTrustBundle: {path: p, name: b}}]}}",
            "clusterTrustBundle in a projected volume is not supported yet",
        );
    }

    #[test]
    fn a_token_is_private_as_soon_as_its_reader_is_known() {
        let volume = "{name: v, projected: {sources: [{serviceAccountToken: {path: t}}, {configMap: {name: m, items: [{key: a, path: a}]}}]}}";
        for (owners, mode, uid) in [
            (Owners { user: None, group: None }, 0o644, None),
            (Owners { user: Some(1000), group: None }, 0o600, Some(1000)),
            (Owners { user: None, group: Some(2000) }, 0o600, None),
        ] {
            let files = files(volume, owners).unwrap();
            assert_eq!((files[1].mode, files[1].uid), (mode, uid), "{owners:?}");
            assert_eq!((files[0].mode, files[0].uid), (0o644, None), "only the token");
        }
    }

    #[test]
    fn the_user_counts_only_if_all_containers_agree() {
        let check = |spec: &str, user, group| assert_eq!(Owners::of(&pod_yaml(spec)), Owners { user, group }, "{spec}");
        check("spec: {containers: [{name: a}]}", None, None);
        check(
            "spec: {securityContext: {runAsUser: 7, fsGroup: 8}, containers: [{name: a}, {name: b}]}",
            Some(7),
            Some(8),
        );
        check("spec: {containers: [{name: a, securityContext: {runAsUser: 7}}, {name: b}]}", None, None);
        check(
            "spec: {securityContext: {runAsUser: 7}, containers: [{name: a, securityContext: {runAsUser: 0}}]}",
            Some(0),
            None,
        );
        check(
            "spec: {securityContext: {runAsUser: 7}, containers: [{name: a}], initContainers: [{name: i, securityContext: {runAsUser: 9}}]}",
            None,
            None,
        );
    }
}
