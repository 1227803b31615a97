//! What users, the scheduler and controllers do in the API.

use std::collections::BTreeMap;

use ferrolet::kube::Change;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{MAP_KEY, SimCluster, key};

impl SimCluster {
    /// A user writes a ConfigMap of one key, or deletes it.
    pub fn user_sets_config_map(&self, name: &str, text: Option<String>) {
        let mut state = self.state();
        self.world.log(|| format!("user sets config map {name} to {text:?}"));
        state.version += 1;
        match text {
            Some(text) => {
                let mut map =
                    ConfigMap { data: Some(BTreeMap::from([(MAP_KEY.to_owned(), text)])), ..ConfigMap::default() };
                map.metadata.name = Some(name.to_owned());
                map.metadata.uid = Some(format!("map-{name}"));
                map.metadata.resource_version = Some(state.version.to_string());
                state.config_maps.insert(name.to_owned(), map);
            }
            None => {
                state.config_maps.remove(name);
            }
        }
        if state.down_until.is_none() {
            self.show_maps(&mut state, |watched| watched == name);
        }
    }

    /// A user creates a pod that the scheduler has bound here.
    pub fn user_creates(&self, mut pod: Pod) {
        let mut state = self.state();
        self.world.log(|| format!("user creates pod {}", pod.metadata.name.clone().unwrap_or_default()));
        pod.status = Some(PodStatus { phase: Some("Pending".into()), ..PodStatus::default() });
        pod.metadata.creation_timestamp = Some(Time(self.world.clock.wall()));
        state.known.extend(pod.metadata.uid.clone());
        self.put(&mut state, pod);
    }

    /// A user puts back a static pod that was removed.
    pub fn user_puts_back(&self, name: &str) {
        let mut state = self.state();
        if state.down_until.is_some() {
            state.put_back.insert(name.to_owned());
        }
    }

    /// A user deletes a pod gracefully: it gets its deletion timestamp and stays.
    pub fn user_deletes(&self, namespace: &str, name: &str, grace_seconds: i64) {
        let mut state = self.state();
        let Some(mut pod) = state.pods.get(&key(namespace, name)).cloned() else { return };
        self.world.log(|| format!("user deletes pod {name} with grace {grace_seconds}"));
        if grace_seconds == 0 {
            self.remove(&mut state, namespace, name);
            return;
        }
        let shorter = pod.metadata.deletion_grace_period_seconds.is_none_or(|before| grace_seconds < before);
        if shorter {
            let end = self.world.clock.wall() + SignedDuration::from_secs(grace_seconds);
            pod.metadata.deletion_timestamp = Some(Time(end));
            pod.metadata.deletion_grace_period_seconds = Some(grace_seconds);
            self.put(&mut state, pod);
        }
    }

    pub fn user_edits(&self, namespace: &str, name: &str, edit: impl FnOnce(&mut Pod)) {
        let mut state = self.state();
        let Some(mut pod) = state.pods.get(&key(namespace, name)).cloned() else { return };
        edit(&mut pod);
        self.put(&mut state, pod);
    }

    /// Somebody writes a condition on a pod that is for others to write, or takes it away.
    pub fn user_sets_condition(&self, namespace: &str, name: &str, kind: &str, status: Option<&str>) {
        self.world.log(|| format!("somebody sets condition {kind} of pod {name} to {status:?}"));
        let now = Time(self.world.clock.wall());
        self.user_edits(namespace, name, |pod| {
            let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
            conditions.retain(|condition| condition.type_ != kind);
            conditions.extend(status.map(|status| PodCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                last_transition_time: Some(now),
                ..PodCondition::default()
            }));
        });
    }

    pub fn user_deletes_node(&self) {
        let mut state = self.state();
        self.world.log(|| "user deletes the node".into());
        if let Some(node) = state.node.take() {
            self.tell_node(&mut state, Change::Deleted(Box::new(node)));
        }
        state.lease = None;
    }
}
