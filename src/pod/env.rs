//! The environment of a container, from services, ConfigMaps, Secrets and the pod itself.
//!
//! Later sources win: service variables, then `envFrom` in its order, then `env` in its
//! order. The result has that order too (a variable stands where it was last set), so that
//! the same pod always gets the same environment; upstream's order is random.
//!
//! Values are bytes: a Secret may hold a key store, and the runtime takes it as it is.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapKeySelector, Container, EnvFromSource, EnvVarSource, FileKeySelector, Pod, Secret,
    SecretKeySelector,
};

use super::PodRef;
use super::env_file;
use super::expansion::{Budget, TextError, TooLong, expand, expand_text};
use super::fields::{self, FieldContext, FieldError};
use super::resources::Amounts;
use super::services::{Service, ServicePort, Services};
use super::spec;

/// Bytes of files that are looked through for variables: files may be large, and asked for often.
const SCANNED_BYTES_MAX: usize = 64 << 20;

/// What the environment is made from besides the pod.
#[derive(Clone, Copy)]
pub struct EnvSources<'a> {
    /// All services of the cluster; `None` until they were listed once. A static pod does
    /// not wait for them: its caller passes what is known, nothing if need be.
    pub services: Option<&'a Services>,
    /// The ConfigMaps of the pod's namespace that it mentions and that exist, by name.
    pub config_maps: &'a BTreeMap<String, Arc<ConfigMap>>,
    /// The same for Secrets.
    pub secrets: &'a BTreeMap<String, Arc<Secret>>,
    pub host_ips: &'a [IpAddr],
    pub pod_ips: &'a [IpAddr],
    pub node_allocatable: &'a Amounts,
    /// The files that `fileKeyRef`s of the container mean, by volume and path in it.
    pub files: &'a BTreeMap<FilePlace, EnvFile>,
}

/// A volume and a path in it.
pub type FilePlace = (String, String);

/// A file of variables in a volume.
#[derive(Clone, Debug)]
pub struct EnvFile {
    pub path: PathBuf,
    /// Or why it cannot be read.
    pub data: Result<Vec<u8>, String>,
}

/// The value of a variable.
pub type EnvValue = Vec<u8>;

/// Why an environment cannot be made. The texts are upstream's: they end up in the waiting
/// message of the container, where people and their tools know them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    #[error("services have not yet been read at least once, cannot construct envvars")]
    ServicesUnknown,
    #[error("{kind} {name:?} not found")]
    NotFound { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey { kind: &'static str, key: String, namespace: String, name: String },
    #[error("cannot find the volume {volume:?} referenced by FileKeyRef")]
    NoVolume { volume: String },
    /// Upstream leaves the reason to its log.
    #[error("couldn't parse env file: {why}")]
    File { why: String },
    #[error("environment variable key {key:?} not found in file {file:?}")]
    NotInFile { key: String, file: PathBuf },
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error(transparent)]
    TooLong(#[from] TooLong),
}

/// The environment of `container`, in the order it is handed to the runtime.
pub fn environment(
    pod: &Pod,
    container: &Container,
    sources: &EnvSources<'_>,
) -> Result<Vec<(String, EnvValue)>, EnvError> {
    let services = sources.services.ok_or(EnvError::ServicesUnknown)?;
    let mut variables = Variables { services: service_variables(pod, services), ..Variables::default() };
    for from in container.env_from.iter().flatten() {
        for (name, value) in values_from(from, sources)? {
            variables.set(name, value);
        }
    }
    let mut budget = Budget::default();
    let mut scans = Budget::of(SCANNED_BYTES_MAX);
    for variable in container.env.iter().flatten() {
        let literal = variable.value.as_deref().unwrap_or_default();
        let value = match &variable.value_from {
            Some(source) if literal.is_empty() => {
                let value = value_of(pod, container, source, sources, &mut scans)?;
                budget.take(value.as_ref().map_or(0, Vec::len))?;
                value
            }
            _ => Some(expand(literal, &mut budget, |name| variables.get(name))?),
        };
        // An optional reference that leads nowhere leaves the variable as it was.
        if let Some(value) = value {
            variables.set(variable.name.clone(), value);
        }
    }
    Ok(variables.into_list())
}

/// Command and arguments of a container with its variables filled in.
pub fn expand_command(words: Option<&[String]>, env: &[(String, EnvValue)]) -> Result<Vec<String>, TextError> {
    let by_name: BTreeMap<&str, &[u8]> = env.iter().map(|(name, value)| (name.as_str(), &value[..])).collect();
    let lookup = |name: &str| by_name.get(name).copied();
    let mut budget = Budget::default();
    words.unwrap_or_default().iter().map(|word| expand_text(word, &mut budget, lookup)).collect()
}

/// Variables set so far.
#[derive(Default)]
struct Variables {
    /// In the order of their services.
    services: Vec<(String, EnvValue)>,
    /// Names in the order they were set; one that was set twice is in here twice.
    order: Vec<String>,
    values: BTreeMap<String, EnvValue>,
}

impl Variables {
    fn set(&mut self, name: String, value: EnvValue) {
        self.order.push(name.clone());
        self.values.insert(name, value);
    }

    fn get(&self, name: &str) -> Option<&[u8]> {
        let of_service = || self.services.iter().find(|(service, _)| service == name).map(|(_, value)| value);
        self.values.get(name).or_else(of_service).map(Vec::as_slice)
    }

    fn into_list(mut self) -> Vec<(String, EnvValue)> {
        self.services.retain(|(name, _)| !self.values.contains_key(name));
        let last_first = self.order.into_iter().rev();
        let mut set: Vec<_> = last_first.filter_map(|name| self.values.remove_entry(&name)).collect();
        set.reverse();
        self.services.append(&mut set);
        self.services
    }
}

fn values_from(from: &EnvFromSource, sources: &EnvSources<'_>) -> Result<Vec<(String, EnvValue)>, EnvError> {
    let prefix = from.prefix.as_deref().unwrap_or_default();
    let named = |key: &String| format!("{prefix}{key}");
    if let Some(reference) = &from.config_map_ref {
        let map = find(sources.config_maps, CONFIG_MAP, &reference.name, reference.optional)?;
        let data = map.and_then(|map| map.data.as_ref()).into_iter().flatten();
        return Ok(data.map(|(key, value)| (named(key), value.clone().into_bytes())).collect());
    }
    if let Some(reference) = &from.secret_ref {
        let secret = find(sources.secrets, SECRET, &reference.name, reference.optional)?;
        let data = secret.and_then(|secret| secret.data.as_ref()).into_iter().flatten();
        return Ok(data.map(|(key, value)| (named(key), value.0.clone())).collect());
    }
    Ok(Vec::new())
}

/// The value of a variable that has no literal one; `None` if it is optional and missing.
fn value_of(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    sources: &EnvSources<'_>,
    scans: &mut Budget,
) -> Result<Option<EnvValue>, EnvError> {
    if let Some(reference) = &source.field_ref {
        let context = FieldContext { host_ips: sources.host_ips, pod_ips: sources.pod_ips };
        return Ok(Some(fields::field_ref(pod, &reference.field_path, &context)?.into_bytes()));
    }
    if let Some(selector) = &source.resource_field_ref {
        let value = fields::resource_ref(pod, Some(container), selector, sources.node_allocatable)?;
        return Ok(Some(value.into_bytes()));
    }
    if let Some(reference) = &source.config_map_key_ref {
        return config_map_value(pod, reference, sources);
    }
    if let Some(reference) = &source.secret_key_ref {
        return secret_value(pod, reference, sources);
    }
    if let Some(selector) = &source.file_key_ref {
        return file_value(selector, sources, scans);
    }
    Ok(Some(EnvValue::new()))
}

/// A file that is missing is an error whatever `optional` says, as upstream has it: whoever
/// writes it may not have come to it yet.
fn file_value(
    selector: &FileKeySelector,
    sources: &EnvSources<'_>,
    scans: &mut Budget,
) -> Result<Option<EnvValue>, EnvError> {
    let place = (selector.volume_name.clone(), selector.path.clone());
    let no_volume = || EnvError::NoVolume { volume: selector.volume_name.clone() };
    let file = sources.files.get(&place).ok_or_else(no_volume)?;
    let broken = |why: String| EnvError::File { why };
    let data = file.data.as_ref().map_err(|why| broken(why.clone()))?;
    scans.take(data.len())?;
    let text = std::str::from_utf8(data).map_err(|_| broken("it is not UTF-8 text".to_owned()))?;
    let value = env_file::value(text, &selector.key).map_err(|error| broken(error.to_string()))?;
    match value.is_empty() {
        false => Ok(Some(value.into_bytes())),
        true if selector.optional == Some(true) => Ok(None),
        true => Err(EnvError::NotInFile { key: selector.key.clone(), file: file.path.clone() }),
    }
}

fn config_map_value(
    pod: &Pod,
    reference: &ConfigMapKeySelector,
    sources: &EnvSources<'_>,
) -> Result<Option<EnvValue>, EnvError> {
    let Some(map) = find(sources.config_maps, CONFIG_MAP, &reference.name, reference.optional)? else {
        return Ok(None);
    };
    match map.data.as_ref().and_then(|data| data.get(&reference.key)) {
        Some(value) => Ok(Some(value.clone().into_bytes())),
        None if reference.optional == Some(true) => Ok(None),
        None => Err(no_key(pod, "ConfigMap", &reference.name, &reference.key)),
    }
}

fn secret_value(
    pod: &Pod,
    reference: &SecretKeySelector,
    sources: &EnvSources<'_>,
) -> Result<Option<EnvValue>, EnvError> {
    let Some(secret) = find(sources.secrets, SECRET, &reference.name, reference.optional)? else {
        return Ok(None);
    };
    match secret.data.as_ref().and_then(|data| data.get(&reference.key)) {
        Some(value) => Ok(Some(value.0.clone())),
        None if reference.optional == Some(true) => Ok(None),
        None => Err(no_key(pod, "Secret", &reference.name, &reference.key)),
    }
}

/// Names of the kinds as the API server's own errors spell them.
const CONFIG_MAP: &str = "configmap";
const SECRET: &str = "secret";

fn find<'a, T>(
    objects: &'a BTreeMap<String, Arc<T>>,
    kind: &'static str,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<&'a T>, EnvError> {
    match objects.get(name) {
        Some(object) => Ok(Some(object)),
        None if optional == Some(true) => Ok(None),
        None => Err(EnvError::NotFound { kind, name: name.to_owned() }),
    }
}

fn no_key(pod: &Pod, kind: &'static str, name: &str, key: &str) -> EnvError {
    let namespace = PodRef::of(pod).namespace;
    EnvError::NoKey { kind, key: key.to_owned(), namespace, name: name.to_owned() }
}

/// What every pod is told of the services in its namespace, and of the API server's.
fn service_variables(pod: &Pod, services: &Services) -> Vec<(String, EnvValue)> {
    // A service called `kubernetes` in the pod's own namespace hides the API server's.
    let mut told: BTreeMap<&str, &Service> = BTreeMap::new();
    told.extend(services.get("default", "kubernetes").map(|service| ("kubernetes", service)));
    let namespace = PodRef::of(pod).namespace;
    if spec(pod).enable_service_links != Some(false) {
        told.extend(services.in_namespace(&namespace).map(|service| (service.name.as_str(), service)));
    }
    let variables = told.values().flat_map(|service| variables_of_service(service));
    variables.map(|(name, value)| (name, value.into_bytes())).collect()
}

fn variables_of_service(service: &Service) -> Vec<(String, String)> {
    let name = variable_name(&service.name);
    let ip = &service.cluster_ip;
    let mut variables = vec![(format!("{name}_SERVICE_HOST"), ip.clone())];
    let Some(first) = service.ports.first() else {
        return variables;
    };
    variables.push((format!("{name}_SERVICE_PORT"), first.port.to_string()));
    for port in &service.ports {
        if let Some(port_name) = &port.name {
            variables.push((format!("{name}_SERVICE_PORT_{}", variable_name(port_name)), port.port.to_string()));
        }
    }
    variables.push((format!("{name}_PORT"), url(ip, first)));
    for port in &service.ports {
        let prefix = format!("{name}_PORT_{}_{}", port.port, port.protocol.to_uppercase());
        variables.push((prefix.clone(), url(ip, port)));
        variables.push((format!("{prefix}_PROTO"), port.protocol.to_lowercase()));
        variables.push((format!("{prefix}_PORT"), port.port.to_string()));
        variables.push((format!("{prefix}_ADDR"), ip.clone()));
    }
    variables
}

fn variable_name(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

fn url(ip: &str, port: &ServicePort) -> String {
    let scheme = port.protocol.to_lowercase();
    match ip.contains(':') {
        true => format!("{scheme}://[{ip}]:{}", port.port),
        false => format!("{scheme}://{ip}:{}", port.port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::{pod_yaml, yaml};

    fn services_of(text: &str) -> Services {
        yaml::<Vec<k8s_openapi::api::core::v1::Service>>(text).into_iter().collect()
    }

    /// The environment of a container in namespace `shop`, one `NAME=value` a line.
    fn environment_of(container: &str, services: Option<&str>) -> Result<String, String> {
        let pod = pod_yaml(&format!("spec: {{containers: [{{name: web, image: a, {container}}}]}}"));
        let services = services.map(services_of);
        let config: ConfigMap = yaml("{metadata: {name: config}, data: {B: from-map, A: '1', 'odd key': x}}");
        let secret: Secret = yaml("{metadata: {name: login}, data: {user: cm9vdA==, binary: /w==}}");
        let file = |name: &str, data: Result<&str, &str>| {
            let data = data.map(|text| text.as_bytes().to_vec()).map_err(str::to_owned);
            (("notes".to_owned(), name.to_owned()), EnvFile { path: PathBuf::from("/notes").join(name), data })
        };
        let files = BTreeMap::from([
            file("vars", Ok("A='from file'\nEMPTY=''")),
            file("odd", Ok("A=1")),
            file("large", Ok(&format!("A='{}'", "x".repeat(1 << 20)))),
            file("gone", Err("it is not there")),
        ]);
        let sources = EnvSources {
            services: services.as_ref(),
            config_maps: &BTreeMap::from([("config".to_owned(), Arc::new(config))]),
            secrets: &BTreeMap::from([("login".to_owned(), Arc::new(secret))]),
            host_ips: &["10.0.0.1".parse().expect("a test address parses")],
            pod_ips: &["10.1.0.7".parse().expect("a test address parses")],
            node_allocatable: &Amounts::new(),
            files: &files,
        };
        let env = environment(&pod, &pod.spec.as_ref().expect("the test pod has a spec").containers[0], &sources);
        let line = |(name, value): &(String, EnvValue)| format!("{name}={}", value.escape_ascii());
        env.map(|env| env.iter().map(line).collect::<Vec<_>>().join("\n")).map_err(|error| error.to_string())
    }

    fn check(container: &str, expected: Result<&str, &str>) {
        let got = environment_of(container, Some("[]"));
        assert_eq!(got.as_deref().map_err(String::as_str), expected, "{container}");
    }

    #[test]
    fn literal_values_are_expanded_with_what_was_set_before() {
        check(
            "env: [{name: A, value: '1'}, {name: B, value: $(A)-$(C)-$$(A)}, {name: C, value: x}]",
            Ok("A=1\nB=1-$(C)-$(A)\nC=x"),
        );
        check("env: [{name: A, value: '1'}, {name: B}, {name: A, value: $(A)2}]", Ok("B=\nA=12"));
    }

    #[test]
    fn what_files_hold_is_bounded_however_often_it_is_asked_for() {
        let large = |count: usize, key: &str| {
            let from = format!("{{fileKeyRef: {{volumeName: notes, path: large, key: {key}, optional: true}}}}");
            let variables: Vec<_> = (0..count).map(|at| format!("{{name: V{at}, valueFrom: {from}}}")).collect();
            environment_of(&format!("env: [{}]", variables.join(", ")), Some("[]"))
        };
        assert!(large(2, "A").is_ok());
        assert!(large(8, "A").is_err());
        assert!(large(60, "NONE").is_ok());
        assert!(large(70, "NONE").is_err(), "it is looked through each time");
    }

    #[test]
    fn whole_maps_come_first_and_are_overridden() {
        check("envFrom: [{configMapRef: {name: config}}]", Ok("A=1\nB=from-map\nodd key=x"));
        check("envFrom: [{prefix: P_, secretRef: {name: login}}]", Ok("P_binary=\\xff\nP_user=root"));
        check(
            "envFrom: [{prefix: P_, configMapRef: {name: config}}], env: [{name: P_A, value: $(P_B)!}]",
            Ok("P_B=from-map\nP_odd key=x\nP_A=from-map!"),
        );
        check("envFrom: [{configMapRef: {name: gone}}]", Err("configmap \"gone\" not found"));
        check("envFrom: [{secretRef: {name: gone}}]", Err("secret \"gone\" not found"));
        check(
            "envFrom: [{configMapRef: {name: gone, optional: true}}, {secretRef: {name: gone, optional: true}}]",
            Ok(""),
        );
    }

    #[test]
    fn single_keys_are_looked_up() {
        let from = |source: &str| format!("env: [{{name: V, valueFrom: {{{source}}}}}]");
        let check_from = |source: &str, expected| check(&from(source), expected);
        check_from("configMapKeyRef: {name: config, key: A}", Ok("V=1"));
        check_from("configMapKeyRef: {name: config, key: Z}", Err("couldn't find key Z in ConfigMap shop/config"));
        check_from("configMapKeyRef: {name: config, key: Z, optional: true}", Ok(""));
        check_from("configMapKeyRef: {name: gone, key: A}", Err("configmap \"gone\" not found"));
        check_from("configMapKeyRef: {name: gone, key: A, optional: true}", Ok(""));
        check_from("secretKeyRef: {name: login, key: user}", Ok("V=root"));
        check_from("secretKeyRef: {name: login, key: binary}", Ok("V=\\xff"));
        check_from("secretKeyRef: {name: login, key: z}", Err("couldn't find key z in Secret shop/login"));
        check_from("secretKeyRef: {name: login, key: z, optional: true}", Ok(""));
        check_from("secretKeyRef: {name: gone, key: z}", Err("secret \"gone\" not found"));
        check_from("fieldRef: {fieldPath: status.podIP}", Ok("V=10.1.0.7"));
        check_from("fieldRef: {fieldPath: status.hostIP}", Ok("V=10.0.0.1"));
        check_from("fieldRef: {fieldPath: spec.unknown}", Err("unsupported fieldPath: spec.unknown"));
        check_from("resourceFieldRef: {resource: requests.cpu}", Ok("V=0"));
    }

    #[test]
    fn keys_are_looked_up_in_files_of_volumes() {
        let check = |volume: &str, path: &str, more: &str, expected| {
            let source = format!("fileKeyRef: {{volumeName: {volume}, path: {path}, {more}}}");
            check(&format!("env: [{{name: V, valueFrom: {{{source}}}}}, {{name: W, value: $(V)}}]"), expected);
        };
        check("notes", "vars", "key: A", Ok("V=from file\nW=from file"));
        check("notes", "vars", "key: Z", Err("environment variable key \"Z\" not found in file \"/notes/vars\""));
        check("notes", "vars", "key: EMPTY, optional: true", Ok("W=$(V)"));
        check("notes", "vars", "key: Z, optional: true", Ok("W=$(V)"));
        check("notes", "odd", "key: A", Err("couldn't parse env file: line 1: the value is not in single quotes"));
        check("notes", "gone", "key: A, optional: true", Err("couldn't parse env file: it is not there"));
        check("other", "vars", "key: A", Err("cannot find the volume \"other\" referenced by FileKeyRef"));
    }

    const SERVICES: &str = "
        - metadata: {name: kubernetes, namespace: default}
          spec: {clusterIP: 10.96.0.1, ports: [{name: https, port: 443, protocol: TCP}]}
        - metadata: {name: my-db, namespace: shop}
          spec: {clusterIP: 'fd00::5', ports: [{port: 53, protocol: UDP}, {name: sql-tls, port: 5432}]}
        - metadata: {name: headless, namespace: shop}
          spec: {clusterIP: None, ports: [{port: 80}]}
        - metadata: {name: external, namespace: shop}
          spec: {externalName: example.com}
        - metadata: {name: other, namespace: elsewhere}
          spec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}
        ";

    #[test]
    fn services_of_the_namespace_and_the_api_server_are_told() {
        let expected = "\
KUBERNETES_SERVICE_HOST=10.96.0.1
KUBERNETES_SERVICE_PORT=443
KUBERNETES_SERVICE_PORT_HTTPS=443
KUBERNETES_PORT=tcp://10.96.0.1:443
KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443
KUBERNETES_PORT_443_TCP_PROTO=tcp
KUBERNETES_PORT_443_TCP_PORT=443
KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1
MY_DB_SERVICE_HOST=fd00::5
MY_DB_SERVICE_PORT=53
MY_DB_SERVICE_PORT_SQL_TLS=5432
MY_DB_PORT=udp://[fd00::5]:53
MY_DB_PORT_53_UDP=udp://[fd00::5]:53
MY_DB_PORT_53_UDP_PROTO=udp
MY_DB_PORT_53_UDP_PORT=53
MY_DB_PORT_53_UDP_ADDR=fd00::5
MY_DB_PORT_5432_TCP=tcp://[fd00::5]:5432
MY_DB_PORT_5432_TCP_PROTO=tcp
MY_DB_PORT_5432_TCP_PORT=5432
MY_DB_PORT_5432_TCP_ADDR=fd00::5
URL=https://10.96.0.1:443
MY_DB_SERVICE_PORT=1";
        let container = "env: [{name: URL, value: 'https://$(KUBERNETES_SERVICE_HOST):$(KUBERNETES_SERVICE_PORT)'}, {name: MY_DB_SERVICE_PORT, value: '1'}]";
        let expected = expected.replacen("MY_DB_SERVICE_PORT=53\n", "", 1);
        assert_eq!(environment_of(container, Some(SERVICES)), Ok(expected));
    }

    #[test]
    fn without_service_links_only_the_api_server_is_told() {
        let pod = pod_yaml("spec: {enableServiceLinks: false, containers: []}");
        let names: Vec<String> =
            service_variables(&pod, &services_of(SERVICES)).into_iter().map(|(name, _)| name).collect();
        assert!(names.iter().all(|name| name.starts_with("KUBERNETES_")), "{names:?}");
        assert_eq!(names.len(), 8);
    }

    #[test]
    fn a_pod_waits_until_services_were_listed() {
        let expected = "services have not yet been read at least once, cannot construct envvars";
        assert_eq!(environment_of("env: []", None), Err(expected.to_owned()));
    }

    #[test]
    fn commands_are_expanded_with_the_final_environment() {
        let env = [("A", &b"1"[..]), ("B", b"two words"), ("KEY", b"\xff")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_vec()));
        let words = ["run", "--a=$(A)", "$(B)", "$(C)", "$$(A)"].map(str::to_owned);
        assert_eq!(expand_command(Some(&words), &env).expect("short"), ["run", "--a=1", "two words", "$(C)", "$(A)"]);
        assert_eq!(expand_command(None, &env).expect("short"), [""; 0]);
        let error = expand_command(Some(&["--key=$(KEY)".to_owned()]), &env).expect_err("not text");
        assert_eq!(error.to_string(), "\"--key=$(KEY)\" refers to a variable whose value is not UTF-8 text");
    }
}
