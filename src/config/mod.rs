//! Configuration: from flags, a file and drop-ins to the values the agent works with.
//!
//! Two stages. *Given* is what the operator wrote: [`flags::GivenFlags`] and one
//! [`document::Document`] per file. *Effective* is [`Settings`]: defaults applied, units
//! parsed, everything checked. Only the second travels inside.
//!
//! Between the two lies the [`tree::Tree`], the document under construction, in which every
//! value knows who gave it. Layers go on in upstream's order: defaults, the main file, the
//! defaults again, the drop-ins one by one, the flags. `fields.rs` is the table of all fields
//! that every step reads; it also says which fields Ferrolet acts on yet.
//!
//! In: the parsed command line, and the files it names. Out: `Settings`, or every reason
//! against it at once. No task runs here and nothing is read again later.
//!
//! Always true: what upstream tolerates is tolerated, but never silently; an error names the
//! file and line or the flag, the path of the field, and the reason.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use self::defaults::Era;
use self::document::{Document, DocumentError};
use self::field::Syntax;
use self::fields::FIELDS;
use self::flags::GivenFlags;
use self::kind::Findings;
use self::options::OptionError;
use self::path::FieldPath;
use self::reader::Reader;
use self::tree::Tree;
use crate::net::without_userinfo;

mod cpu_set;
mod defaults;
pub mod document;
mod duration;
pub mod field;
pub mod fields;
pub mod flags;
mod gates;
mod kind;
mod kubelet;
mod labels;
pub mod nearest;
pub mod options;
mod path;
pub mod quantity;
mod reader;
pub mod render;
mod sysctls;
mod taints;
mod thresholds;
mod tls;
mod tree;
mod validate;
mod warning;
mod words;

#[cfg(test)]
pub mod tests;

pub use self::cpu_set::CpuSet;
pub use self::duration::GoDuration;
pub use self::gates::{FeatureGates, Gate, GateError, Stage};
pub use self::kubelet::{
    Authentication, Authorization, KubeletConfiguration, LogStreams, Logging, NumaMemory, ShutdownBand, Tls, Tracing,
    VModule,
};
pub use self::labels::is_dns_subdomain;
pub use self::options::{NodeIp, Options};
pub use self::quantity::Quantity;
pub use self::thresholds::{Limit, Signal, Thresholds};
pub use self::tls::{CIPHER_SUITES, CURVES, is_cipher_suite_offered, is_curve_offered};
pub use self::tree::Origin;
pub use self::warning::Warning;
pub use self::words::{
    AuthorizationMode, CgroupDriver, ChangeDetection, CpuManagerPolicy, Enforcement, HairpinMode, LogFormat,
    MemoryManagerPolicy, MemoryReservationPolicy, PullCredentialsPolicy, SwapBehavior, TlsVersion,
    TopologyManagerPolicy, TopologyManagerScope,
};

/// The version this agent reports: upstream's release it stands for, then its own.
pub const VERSION: &str = concat!("v1.36.2+ferrolet.", env!("CARGO_PKG_VERSION"));

/// Everything the operator decides.
#[derive(Clone, Debug)]
pub struct Settings {
    pub flags: Options,
    pub kubelet: KubeletConfiguration,
    pub gates: FeatureGates,
    /// For the log, one line each.
    pub warnings: Vec<Warning>,
    /// Each flag with the value it was given, or its default; what may be secret is left out.
    pub flag_values: BTreeMap<String, String>,
    tree: Tree,
}

/// Why the agent cannot start with its configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error("{origin}: {path}: {reason}")]
    Field { origin: Origin, path: FieldPath, reason: String },
    #[error(transparent)]
    Option(#[from] OptionError),
}

/// All reasons at once.
#[derive(Debug)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl Settings {
    /// Reads the files the flags name and brings everything together.
    pub fn load(given: &GivenFlags) -> Result<Settings, ConfigErrors> {
        let (flags, option_errors) = Options::of(given);
        let mut loader = Loader::default();
        loader.errors.extend(option_errors.into_iter().map(ConfigError::from));
        loader.read_files(&flags);
        loader.take_flags(given);
        loader.finish(flags, given)
    }

    /// Whether there is no API server to talk to.
    pub fn is_standalone(&self) -> bool {
        self.flags.kubeconfig.is_none()
    }

    /// Whether pods without a seccomp profile get the runtime's.
    pub fn seccomp_default(&self) -> bool {
        self.kubelet.seccomp_default || self.flags.seccomp_default
    }

    /// Whether to refuse a host with cgroup v1. The field is true by default, as upstream has
    /// it, but only somebody who set it gets the refusal: many edge devices will run cgroup v1
    /// for years, and Ferrolet works there.
    pub fn refuses_cgroup_v1(&self) -> bool {
        self.kubelet.fail_cgroup_v1 && self.is_given("failCgroupV1")
    }

    /// Whether somebody set this field, rather than its default holding.
    pub fn is_given(&self, field: &str) -> bool {
        self.origin(field) != Origin::Default
    }

    pub fn origin(&self, field: &str) -> Origin {
        self.tree.origin(&FieldPath::of_field(field))
    }

    /// The effective document in the form of KubeletConfiguration v1beta1.
    pub fn document(&self) -> Value {
        let mut root = self.tree.root().clone();
        root.insert("apiVersion".to_owned(), document::API_VERSION.into());
        root.insert("kind".to_owned(), document::KIND.into());
        Value::Object(root)
    }

    /// The same for others to see, without what may be a credential, as [`flags::values`].
    pub fn shown_document(&self) -> Value {
        let mut document = self.document();
        if let Some(Value::String(url)) = document.get_mut("staticPodURL") {
            *url = without_userinfo(url);
        }
        if let Some(Value::Object(headers)) = document.get_mut("staticPodURLHeader") {
            headers.values_mut().for_each(|values| *values = Value::from(vec![flags::SECRET]));
        }
        document
    }
}

/// One file, checked.
struct Layer {
    document: Document,
    accepted: Value,
}

/// Settings on the way from given to effective.
#[derive(Default)]
struct Loader {
    main: Option<Layer>,
    drop_ins: Vec<Layer>,
    /// Values the flags set, with the flag's name.
    flags: Vec<(FieldPath, Value, &'static str)>,
    errors: Vec<ConfigError>,
    warnings: Vec<Warning>,
}

impl Loader {
    fn read_files(&mut self, flags: &Options) {
        if let Some(file) = &flags.config {
            self.main = self.read_file(file);
        }
        let Some(directory) = &flags.config_dir else {
            return;
        };
        match document::drop_ins(directory) {
            Ok(files) => {
                for file in files {
                    let layer = self.read_file(&file);
                    self.drop_ins.extend(layer);
                }
            }
            Err(error) => self.errors.push(error.into()),
        }
    }

    fn read_file(&mut self, file: &Path) -> Option<Layer> {
        match Document::read(file) {
            Ok(document) => Some(self.check_file(document)),
            Err(error) => {
                self.errors.push(error.into());
                None
            }
        }
    }

    fn check_file(&mut self, document: Document) -> Layer {
        let mut findings = Findings::default();
        // Upstream resolves relative paths in the main file only, and takes them from
        // wherever it was started in a drop-in.
        let file = std::path::absolute(&document.file).unwrap_or_else(|_| document.file.clone());
        let directory = file.parent().map(Path::to_owned).unwrap_or_default();
        let accepted = kind::accept_document(&document.root, &directory, &mut findings);
        let origin = |path: &FieldPath, line: Option<u32>| Origin::File {
            file: PathBuf::clone(&document.file).into(),
            line: line.or_else(|| document.line(path)),
        };
        if document.second.is_some() {
            let origin = origin(&FieldPath::default(), document.second);
            self.warnings.push(Warning::FurtherDocument { origin });
        }
        for (path, line) in &document.duplicates {
            let origin = origin(path, Some(*line));
            self.warnings.push(Warning::DuplicateField { origin, path: path.clone() });
        }
        for (path, nearest) in findings.unknown {
            let origin = origin(&path, None);
            self.warnings.push(Warning::UnknownField { origin, path, nearest });
        }
        for (path, reason) in findings.wrong {
            let origin = origin(&path, None);
            self.errors.push(ConfigError::Field { origin, path, reason });
        }
        Layer { document, accepted }
    }

    fn take_flags(&mut self, given: &GivenFlags) {
        for field in FIELDS {
            let Some(flag) = &field.flag else { continue };
            let uses: Vec<&str> = given.values(flag.name).collect();
            if uses.is_empty() {
                continue;
            }
            let path = FieldPath::of_field(field.path);
            match flags::value_of(field, flag.syntax, &uses) {
                Ok(Value::Object(gates)) if flag.syntax == Syntax::Gates => {
                    // Gates of the flag override those of the files one by one; every other
                    // map flag takes the place of the whole map.
                    let gates = gates.into_iter();
                    self.flags.extend(gates.map(|(gate, on)| (path.child(gate), on, flag.name)));
                }
                Ok(value) => self.flags.push((path, value, flag.name)),
                Err(reason) => {
                    let origin = Origin::Flag(flag.name);
                    self.errors.push(ConfigError::Field { origin, path, reason });
                }
            }
        }
    }

    fn finish(mut self, flags: Options, given: &GivenFlags) -> Result<Settings, ConfigErrors> {
        // What follows would complain a second time about values that were left out.
        if !self.errors.is_empty() {
            return Err(ConfigErrors(self.errors));
        }
        let gates = self.resolve_gates();
        let era = match flags.config {
            Some(_) => Era::V1beta1,
            None => Era::Legacy,
        };
        let tree = self.assemble(|tree| defaults::fill(tree, era, &gates));
        let mut reader = Reader::new(&tree);
        let kubelet = KubeletConfiguration::read(&mut reader);
        let mut wrong = reader.wrong;
        wrong.extend(validate::check_rules(&tree));
        if wrong.is_empty() {
            wrong = validate::check(&kubelet, &tree, &gates);
        }
        self.errors.extend(wrong.into_iter().map(|(path, reason)| {
            let origin = tree.origin(&path);
            ConfigError::Field { origin, path, reason }
        }));
        self.warnings.extend(warning::idle(&tree, era, &gates, given));
        self.warnings.extend(warning::taken_otherwise(&tree));
        match self.errors.is_empty() {
            true => {
                let flag_values = flags::values(given);
                Ok(Settings { flags, kubelet, gates, warnings: self.warnings, flag_values, tree })
            }
            false => Err(ConfigErrors(self.errors)),
        }
    }

    /// Puts the layers on top of each other; `fill` adds the defaults, before the drop-ins and
    /// once more after them.
    fn assemble(&self, fill: impl Fn(&mut Tree)) -> Tree {
        let mut tree = Tree::default();
        if let Some(main) = &self.main {
            tree.merge(&main.accepted, &main.document);
        }
        fill(&mut tree);
        for drop_in in &self.drop_ins {
            tree.merge(&drop_in.accepted, &drop_in.document);
        }
        fill(&mut tree);
        for (path, value, flag) in &self.flags {
            tree.set(path, value.clone(), &Origin::Flag(flag));
        }
        tree
    }

    /// Gates decide some defaults, so they are looked at before the rest.
    fn resolve_gates(&mut self) -> FeatureGates {
        let given = self.assemble(|_| {});
        let path = FieldPath::of_field("featureGates");
        let mut reader = Reader::new(&given);
        let resolved = FeatureGates::resolve(&reader.gates("featureGates"));
        for (name, error) in resolved.errors {
            let path = path.child(name);
            let origin = given.origin(&path);
            self.errors.push(ConfigError::Field { origin, path, reason: error.to_string() });
        }
        if !resolved.unheeded.is_empty() {
            self.warnings.push(Warning::IdleGates(resolved.unheeded));
        }
        resolved.gates
    }
}

impl fmt::Display for ConfigErrors {
    /// One line per reason, each with its causes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, error) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
            let mut cause = std::error::Error::source(error);
            while let Some(error) = cause {
                write!(f, ": {error}")?;
                cause = error.source();
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
