//! Which config maps and secrets a pod mentions.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVar, Pod, PodSpec, Volume};

use super::spec;

/// Names, all of the pod's own namespace.
#[derive(Default, Clone, PartialEq, Eq, Debug)]
pub struct References {
    pub config_maps: BTreeSet<String>,
    pub secrets: BTreeSet<String>,
}

impl References {
    /// All that the pod mentions.
    pub fn of(pod: &Pod) -> Self {
        let mut references = References::default();
        references.add_spec(spec(pod));
        references.without_empty()
    }

    /// What the environment of one container mentions.
    pub fn of_env(container: &Container) -> Self {
        let mut references = References::default();
        references.add_env(&container.env, &container.env_from);
        references.without_empty()
    }

    /// An empty name is allowed for compatibility and means nothing.
    fn without_empty(mut self) -> Self {
        self.config_maps.remove("");
        self.secrets.remove("");
        self
    }

    fn add_spec(&mut self, spec: &PodSpec) {
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            self.add_env(&container.env, &container.env_from);
        }
        for container in spec.ephemeral_containers.iter().flatten() {
            self.add_env(&container.env, &container.env_from);
        }
        for volume in spec.volumes.iter().flatten() {
            self.add_volume(volume);
        }
        self.secrets.extend(spec.image_pull_secrets.iter().flatten().map(|secret| secret.name.clone()));
    }

    fn add_env(&mut self, env: &Option<Vec<EnvVar>>, env_from: &Option<Vec<EnvFromSource>>) {
        for source in env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
            self.config_maps.extend(source.config_map_key_ref.as_ref().map(|key| key.name.clone()));
            self.secrets.extend(source.secret_key_ref.as_ref().map(|key| key.name.clone()));
        }
        for source in env_from.iter().flatten() {
            self.config_maps.extend(source.config_map_ref.as_ref().map(|object| object.name.clone()));
            self.secrets.extend(source.secret_ref.as_ref().map(|object| object.name.clone()));
        }
    }

    fn add_volume(&mut self, volume: &Volume) {
        self.config_maps.extend(volume.config_map.as_ref().map(|source| source.name.clone()));
        self.secrets.extend(volume.secret.as_ref().and_then(|source| source.secret_name.clone()));
        let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        for source in projected {
            self.config_maps.extend(source.config_map.as_ref().map(|object| object.name.clone()));
            self.secrets.extend(source.secret.as_ref().map(|object| object.name.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(spec: Value, config_maps: &[&str], secrets: &[&str]) {
        let pod: Pod = serde_json::from_value(json!({ "spec": spec })).expect("the test's pod is valid");
        let found = References::of(&pod);
        assert_eq!(found.config_maps.iter().map(String::as_str).collect::<Vec<_>>(), config_maps);
        assert_eq!(found.secrets.iter().map(String::as_str).collect::<Vec<_>>(), secrets);
    }

    fn env(name: &str) -> Value {
        json!([
            { "name": "A", "valueFrom": { "configMapKeyRef": { "name": format!("map-{name}"), "key": "a" } } },
            { "name": "B", "valueFrom": { "secretKeyRef": { "name": format!("secret-{name}"), "key": "b" } } },
            { "name": "C", "value": "plain" },
        ])
    }

    #[test]
    fn env_of_every_kind_of_container_counts() {
        check(
            json!({
                "initContainers": [{ "name": "i", "env": env("i") }],
                "containers": [{ "name": "c", "env": env("c") }],
                "ephemeralContainers": [{ "name": "e", "env": env("e") }],
            }),
            &["map-c", "map-e", "map-i"],
            &["secret-c", "secret-e", "secret-i"],
        );
    }

    #[test]
    fn env_from_counts() {
        check(
            json!({ "containers": [{ "name": "c", "envFrom": [
                { "configMapRef": { "name": "m" } }, { "secretRef": { "name": "s" } },
            ] }] }),
            &["m"],
            &["s"],
        );
    }

    #[test]
    fn volumes_and_their_projections_count() {
        check(
            json!({ "containers": [], "volumes": [
                { "name": "a", "configMap": { "name": "m" } },
                { "name": "b", "secret": { "secretName": "s" } },
                { "name": "c", "projected": { "sources": [
                    { "configMap": { "name": "kube-root-ca.crt" } },
                    { "secret": { "name": "t" } },
                    { "serviceAccountToken": { "path": "token" } },
                ] } },
                { "name": "d", "emptyDir": {} },
            ] }),
            &["kube-root-ca.crt", "m"],
            &["s", "t"],
        );
    }

    #[test]
    fn pull_secrets_count_and_empty_names_do_not() {
        check(json!({ "containers": [], "imagePullSecrets": [{ "name": "pull" }, {}] }), &[], &["pull"]);
    }
}
