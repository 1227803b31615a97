//! Upstream's CredentialProviderConfig: a file, or a directory of them.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::config::GoDuration;
use crate::host::open_regular;
use crate::pod::names;

const CONFIG_KIND: &str = "CredentialProviderConfig";
const CONFIG_VERSIONS: [&str; 3] =
    ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"];
const CONFIG_EXTENSIONS: [&str; 3] = ["json", "yaml", "yml"];
const CONFIG_BYTES_MAX: u64 = 4 << 20;
const REQUEST_VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];

/// One program, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    pub name: String,
    pub program: PathBuf,
    pub(super) match_images: Vec<String>,
    pub(super) default_cache: Duration,
    pub(super) api_version: String,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) token_attributes: Option<TokenAttributes>,
}

/// What a program is told of the service account of the pod that it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenAttributes {
    pub(super) audience: String,
    pub(super) cache: TokenCache,
    /// Whether it is not asked for pods without an account.
    pub(super) requires_account: bool,
    /// Annotations of the account. Without one of the required it is not asked.
    pub(super) required_annotations: BTreeSet<String>,
    pub(super) optional_annotations: BTreeSet<String>,
}

/// How far an answer that was given for a token goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum TokenCache {
    ServiceAccount,
    Token,
}

impl TokenAttributes {
    pub(super) fn is_cached_by_token(&self) -> bool {
        self.cache == TokenCache::Token
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ProviderConfigError {
    #[error("{file}: not a readable {CONFIG_KIND}: {why}")]
    Unreadable { file: String, why: String },
    #[error("{file}: expected kind {CONFIG_KIND} of kubelet.config.k8s.io/v1, found {found}")]
    OtherKind { file: String, found: String },
    #[error("{file}: no provider is configured")]
    Empty { file: String },
    #[error("{file}: providers[{index}].name: no program {program}: {source}")]
    NoProgram { file: String, index: usize, program: String, source: io::Error },
    #[error("cannot read {file}: {source}")]
    Read { file: String, source: io::Error },
    #[error("{file}: providers[{index}].{field}: {why}")]
    Field { file: String, index: usize, field: &'static str, why: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ConfigFile {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    providers: Vec<ProviderEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ProviderEntry {
    #[serde(default)]
    name: String,
    #[serde(default)]
    match_images: Vec<String>,
    default_cache_duration: Option<GoDuration>,
    #[serde(default)]
    api_version: String,
    args: Option<Vec<String>>,
    env: Option<Vec<Variable>>,
    token_attributes: Option<TokenEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TokenEntry {
    #[serde(default)]
    service_account_token_audience: String,
    cache_type: Option<TokenCache>,
    require_service_account: Option<bool>,
    required_service_account_annotation_keys: Option<Vec<String>>,
    optional_service_account_annotation_keys: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    #[serde(default)]
    value: String,
}

/// Reads the configuration, a file or a directory of them. With its gate off,
/// `tokenAttributes` are refused.
pub fn read_config(path: &Path, bin_dir: &Path, gives_tokens: bool) -> Result<Vec<Provider>, ProviderConfigError> {
    let failed = |path: &Path| {
        let file = path.display().to_string();
        move |source| ProviderConfigError::Read { file, source }
    };
    let mut paths = BTreeSet::from([path.to_owned()]);
    if path.is_dir() {
        let found = std::fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(failed(path))?;
        let is_ours = |path: &PathBuf| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            extension.is_some_and(|extension| CONFIG_EXTENSIONS.contains(&extension))
        };
        paths = found.iter().map(std::fs::DirEntry::path).filter(is_ours).collect();
        if paths.is_empty() {
            return Err(ProviderConfigError::Empty { file: path.display().to_string() });
        }
    }
    let read = |path: PathBuf| {
        let mut text = String::new();
        let read = open_regular(&path).and_then(|file| file.take(CONFIG_BYTES_MAX).read_to_string(&mut text));
        if read.map_err(failed(&path))? as u64 == CONFIG_BYTES_MAX {
            return Err(failed(&path)(io::ErrorKind::FileTooLarge.into()));
        }
        Ok((path.display().to_string(), text))
    };
    let files = paths.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
    parse_config(&files, bin_dir, gives_tokens)
}

/// Reads the files of a configuration, each with its name, in the order they count.
fn parse_config(
    files: &[(String, String)],
    bin_dir: &Path,
    gives_tokens: bool,
) -> Result<Vec<Provider>, ProviderConfigError> {
    let mut providers = Vec::new();
    let mut names = BTreeSet::new();
    for (file, text) in files {
        let unreadable = |why: String| ProviderConfigError::Unreadable { file: file.clone(), why };
        let config: ConfigFile = serde_saphyr::from_str(text).map_err(|error| unreadable(error.to_string()))?;
        if config.kind != CONFIG_KIND || !CONFIG_VERSIONS.contains(&config.api_version.as_str()) {
            let found = format!("{} of {}", config.kind, config.api_version);
            return Err(ProviderConfigError::OtherKind { file: file.clone(), found });
        }
        if config.providers.is_empty() {
            return Err(ProviderConfigError::Empty { file: file.clone() });
        }
        for (index, entry) in config.providers.into_iter().enumerate() {
            let provider = entry.check(bin_dir, gives_tokens).map_err(|(field, why)| {
                let file = file.clone();
                ProviderConfigError::Field { file, index, field, why }
            })?;
            if !names.insert(provider.name.clone()) {
                let why = format!("{:?} is configured twice", provider.name);
                return Err(ProviderConfigError::Field { file: file.clone(), index, field: "name", why });
            }
            if let Err(source) = is_program(&provider.program) {
                let program = provider.program.display().to_string();
                return Err(ProviderConfigError::NoProgram { file: file.clone(), index, program, source });
            }
            providers.push(provider);
        }
    }
    Ok(providers)
}

fn is_program(path: &Path) -> io::Result<()> {
    let metadata = std::fs::metadata(path)?;
    match metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not an executable file")),
    }
}

impl ProviderEntry {
    fn check(self, bin_dir: &Path, gives_tokens: bool) -> Result<Provider, (&'static str, String)> {
        let name = self.name;
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', ' ']) {
            return Err(("name", format!("{name:?} is not the name of a program")));
        }
        if self.match_images.is_empty() {
            return Err(("matchImages", "at least one pattern is needed".to_owned()));
        }
        let default_cache = self.default_cache_duration.ok_or(("defaultCacheDuration", "is missing".to_owned()))?;
        let default_cache =
            default_cache.to_std().ok_or(("defaultCacheDuration", "must not be negative".to_owned()))?;
        if !REQUEST_VERSIONS.contains(&self.api_version.as_str()) {
            return Err(("apiVersion", format!("known are {REQUEST_VERSIONS:?}, found {:?}", self.api_version)));
        }
        let token_attributes = match self.token_attributes {
            None => None,
            Some(_) if !gives_tokens => {
                let why = "the feature gate KubeletServiceAccountTokenForCredentialProviders is off".to_owned();
                return Err(("tokenAttributes", why));
            }
            Some(_) if self.api_version != REQUEST_VERSIONS[0] => {
                return Err(("tokenAttributes", format!("need apiVersion {}", REQUEST_VERSIONS[0])));
            }
            Some(entry) => Some(entry.check()?),
        };
        Ok(Provider {
            program: bin_dir.join(&name),
            name,
            match_images: self.match_images,
            default_cache,
            api_version: self.api_version,
            args: self.args.unwrap_or_default(),
            env: self.env.into_iter().flatten().map(|variable| (variable.name, variable.value)).collect(),
            token_attributes,
        })
    }
}

impl TokenEntry {
    fn check(self) -> Result<TokenAttributes, (&'static str, String)> {
        if self.service_account_token_audience.is_empty() {
            return Err(("tokenAttributes.serviceAccountTokenAudience", "is missing".to_owned()));
        }
        let cache =
            self.cache_type.ok_or(("tokenAttributes.cacheType", "is missing: ServiceAccount or Token".to_owned()))?;
        let requires_account =
            self.require_service_account.ok_or(("tokenAttributes.requireServiceAccount", "is missing".to_owned()))?;
        let required = "tokenAttributes.requiredServiceAccountAnnotationKeys";
        let required_annotations = annotation_keys(required, self.required_service_account_annotation_keys)?;
        if !requires_account && !required_annotations.is_empty() {
            return Err((required, "must not be set with requireServiceAccount false".to_owned()));
        }
        let optional = "tokenAttributes.optionalServiceAccountAnnotationKeys";
        let optional_annotations = annotation_keys(optional, self.optional_service_account_annotation_keys)?;
        if let Some(both) = required_annotations.intersection(&optional_annotations).next() {
            return Err((optional, format!("{both:?} is required already")));
        }
        Ok(TokenAttributes {
            audience: self.service_account_token_audience,
            cache,
            requires_account,
            required_annotations,
            optional_annotations,
        })
    }
}

fn annotation_keys(field: &'static str, keys: Option<Vec<String>>) -> Result<BTreeSet<String>, (&'static str, String)> {
    let mut all = BTreeSet::new();
    for key in keys.into_iter().flatten() {
        // Their case does not matter.
        names::qualified_name(&key.to_ascii_lowercase()).map_err(|why| (field, format!("{key:?}: {why}")))?;
        if let Some(twice) = all.replace(key) {
            return Err((field, format!("{twice:?} is there twice")));
        }
    }
    Ok(all)
}
