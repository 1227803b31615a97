//! Pods drawn by a seed, over all fields of a pod that mean something to a node.
//!
//! What is drawn need not make sense, and the API server may refuse it: both of them refuse the
//! same. But what becomes of it must not depend on time or on other pods, or the two agents
//! would differ without a fault of theirs.

mod acts;
mod container;
mod volumes;

use fastrand::Rng;
use serde_json::{Value, json};

pub use self::acts::Act;
use crate::harness::merge;
use crate::stack::MAPPING_HANDLER;

/// What drawn pods refer to, beside what is missing on purpose.
pub const CONFIG_MAP: &str = "settings";
pub const SECRET: &str = "secrets";
pub const SERVICE: &str = "some-service";

pub const ACCOUNT: &str = "builder";
/// Keeps the object of a deleted pod until its end has been looked at.
pub const FINALIZER: &str = "ferrolet.test/to-be-compared";

/// First of the host ports; each pod has its own.
const HOST_PORTS: u64 = 20_000;

/// A pod, and what is done to it once it has come to rest.
#[derive(Debug, PartialEq)]
pub struct Drawn {
    pub pod: Value,
    pub acts: Vec<Act>,
}

/// What this seed draws, bound to `node`.
pub fn draw(seed: u64, node: &str) -> Drawn {
    let mut draft = Draft { random: Rng::with_seed(seed), seed, volumes: Vec::new(), own_users: false };
    let pod = draft.pod(node);
    let acts = draft.acts(&pod);
    Drawn { pod, acts }
}

/// The classes that pods name: of a runtime, of one that maps users, and of none.
pub fn runtime_classes() -> [Value; 3] {
    let class = |name: &str, handler: &str| {
        json!({
            "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
            "metadata": { "name": name }, "handler": handler,
        })
    };
    let mut costly = class("costly", "runc");
    costly["overhead"] = json!({ "podFixed": { "cpu": "7m", "memory": "9Mi" } });
    [costly, class("mapping", MAPPING_HANDLER), class("nowhere", "no-such-handler")]
}

struct Draft {
    random: Rng,
    seed: u64,
    /// Drawn before the containers, which mount some of them.
    volumes: Vec<Volume>,
    /// Its users are not the node's.
    own_users: bool,
}

struct Volume {
    name: String,
    /// Files or directories to be found in it, for subPath.
    inside: &'static [&'static str],
}

#[derive(Clone, Copy, PartialEq)]
enum Role {
    Main,
    Init,
    Sidecar,
}

impl Draft {
    fn one_in(&mut self, times: u32) -> bool {
        self.random.u32(0..times) == 0
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.random.usize(0..choices.len())].clone()
    }

    fn pod(&mut self, node: &str) -> Value {
        let mut spec = json!({ "nodeName": node, "terminationGracePeriodSeconds": self.of(&[0, 1, 2]) });
        let restart = self.of(&["Always", "Always", "OnFailure", "Never"]);
        spec["restartPolicy"] = restart.into();
        self.own_users = self.one_in(12);
        if self.own_users {
            merge(&mut spec, json!({ "hostUsers": false, "runtimeClassName": "mapping" }));
        }
        let volumes: Vec<Value> = (0..self.random.usize(0..4)).map(|number| self.volume(number)).collect();
        if !volumes.is_empty() {
            spec["volumes"] = volumes.into();
        }
        let containers = self.of(&[1, 1, 1, 2]);
        spec["containers"] = (0..containers).map(|number| self.container(Role::Main, number)).collect();
        if self.one_in(4) {
            let inits = self.of(&[1, 2]);
            let mut list = Vec::new();
            for number in 0..inits {
                let role = self.of(&[Role::Init, Role::Sidecar]);
                list.push(self.container(role, number));
            }
            spec["initContainers"] = list.into();
        }
        for _ in 0..self.random.usize(0..4) {
            let fields = self.pod_field();
            merge(&mut spec, fields);
        }
        if self.one_in(10) {
            self.restart_all(&mut spec);
        }
        // The API server takes stop signals only of pods that name their system.
        if spec["os"].is_null() && spec.to_string().contains("stopSignal") {
            spec["os"] = json!({ "name": "linux" });
        }
        let mut metadata = json!({ "name": format!("drawn-{}", self.seed), "finalizers": [FINALIZER] });
        if self.one_in(2) {
            metadata["labels"] = json!({ "app": "drawn", "example.com/tier": "a" });
            metadata["annotations"] = json!({ "example.com/note": "two\nlines \"quoted\" \\ ü" });
        }
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })
    }

    /// Makes the last container one that restarts all of them, once.
    fn restart_all(&mut self, spec: &mut Value) {
        let notes = json!({ "name": "notes", "emptyDir": {} });
        match spec["volumes"].as_array_mut() {
            Some(volumes) => volumes.push(notes),
            None => spec["volumes"] = json!([notes]),
        }
        let policy = self.of(&["Always", "OnFailure", "Never"]);
        let containers = spec["containers"].as_array_mut().expect("it was drawn as a list");
        let container = containers.last_mut().expect("there is one at least");
        let once = "[ -e /notes/been-here ] || { : > /notes/been-here; sleep 2; exit 88; }; exec sleep 1000000";
        container["command"] = json!(["sh", "-c", once]);
        container["restartPolicy"] = policy.into();
        container["restartPolicyRules"] =
            json!([{ "action": "RestartAllContainers", "exitCodes": { "operator": "In", "values": [88] } }]);
        let mount = json!({ "name": "notes", "mountPath": "/notes" });
        match container["volumeMounts"].as_array_mut() {
            Some(mounts) => mounts.push(mount),
            None => container["volumeMounts"] = json!([mount]),
        }
    }

    fn pod_field(&mut self) -> Value {
        match self.random.u32(0..34) {
            // Late enough for what is to happen before, even on a busy machine.
            0 => json!({ "activeDeadlineSeconds": 9 }),
            1 => json!({ "dnsPolicy": self.of(&["ClusterFirst", "ClusterFirstWithHostNet", "Default"]) }),
            2 => json!({ "dnsPolicy": "None", "dnsConfig": { "nameservers": ["10.96.0.99"] } }),
            3 => json!({ "dnsConfig": {
                "nameservers": ["10.96.0.98"],
                "searches": ["example.com", "svc.cluster.local"],
                "options": [{ "name": "ndots", "value": "2" }, { "name": "edns0" }],
            } }),
            4 => json!({ "hostAliases": [
                { "ip": "10.1.2.3", "hostnames": ["alias.example.com", "alias"] },
                { "ip": "fd00::1", "hostnames": ["six"] },
            ] }),
            5 => json!({ "hostname": "given-name" }),
            6 => json!({ "hostname": "given-name", "subdomain": "sub" }),
            7 => json!({ "subdomain": "sub", "setHostnameAsFQDN": true }),
            8 => json!({ "hostNetwork": true }),
            9 => json!({ "hostPID": true }),
            10 => json!({ "hostIPC": true }),
            11 => json!({ "shareProcessNamespace": true }),
            12 => json!({ "enableServiceLinks": false }),
            13 => json!({ "automountServiceAccountToken": false }),
            14 => self.of(&[
                json!({ "nodeSelector": { "example.com/nowhere": "at-all" } }),
                json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{ "matchExpressions": [
                        { "key": "kubernetes.io/os", "operator": "NotIn", "values": ["linux"] },
                    ] }],
                } } } }),
                json!({ "nodeSelector": { "kubernetes.io/os": "linux" } }),
            ]),
            15 => json!({ "readinessGates": [{ "conditionType": "example.com/gate" }] }),
            16 => json!({ "priorityClassName": self.of(&["system-node-critical", "system-cluster-critical"]) }),
            17 => json!({ "runtimeClassName": self.of(&["costly", "costly", "mapping", "nowhere"]) }),
            18 => json!({ "os": { "name": self.of(&["linux", "linux", "windows"]) } }),
            19 => json!({ "securityContext": { "sysctls": [self.of(&[
                json!({ "name": "net.ipv4.ip_unprivileged_port_start", "value": "80" }),
                json!({ "name": "net.ipv4.tcp_syncookies", "value": "0" }),
                json!({ "name": "kernel.msgmax", "value": "9000" }),
                json!({ "name": "net.ipv4.no_such_thing", "value": "1" }),
            ])] } }),
            20 => json!({ "securityContext": {
                "fsGroup": 3000,
                "fsGroupChangePolicy": self.of(&["Always", "OnRootMismatch"]),
            } }),
            21 => json!({ "securityContext": {
                "supplementalGroups": [4000, 4001],
                "supplementalGroupsPolicy": self.of(&["Merge", "Strict"]),
            } }),
            22 => json!({ "securityContext": { "runAsUser": self.of(&[0, 1000, 4242]) } }),
            23 => json!({ "securityContext": { "runAsUser": 1000, "runAsGroup": 2000, "runAsNonRoot": true } }),
            24 => json!({ "securityContext": { "runAsNonRoot": true } }),
            25 => json!({ "securityContext": { "seccompProfile": self.of(&[
                json!({ "type": "RuntimeDefault" }),
                json!({ "type": "Unconfined" }),
                json!({ "type": "Localhost", "localhostProfile": "missing.json" }),
            ]) } }),
            26 => json!({ "resources": self.of(&[
                json!({ "requests": { "cpu": "40m", "memory": "80Mi" }, "limits": { "cpu": "400m", "memory": "160Mi" } }),
                json!({ "limits": { "cpu": "400m", "memory": "160Mi" } }),
                json!({ "requests": { "memory": "90Mi" } }),
                json!({ "requests": { "cpu": "50m" }, "limits": { "cpu": "500m" } }),
            ]) }),
            27 => json!({ "hostnameOverride": self.of(&["overridden", "overridden.example.com"]) }),
            28 => {
                json!({ "imagePullSecrets": self.of(&[json!([{ "name": "missing" }]), json!([{ "name": SECRET }])]) })
            }
            29 => json!({ "serviceAccountName": ACCOUNT }),
            30 => {
                json!({ "securityContext": { "appArmorProfile": { "type": self.of(&["RuntimeDefault", "Unconfined"]) } } })
            }
            31 => json!({ "securityContext": { "seLinuxOptions": { "level": "s0:c1,c2", "type": "some_t" } } }),
            32 => json!({ "os": { "name": "linux" } }),
            33 => json!({ "securityContext": { "runAsUser": 1000, "fsGroup": 3000, "supplementalGroups": [4000] } }),
            _ => unreachable!("all numbers below the bound are there"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_pod_and_all_are_pods() {
        for seed in 0..500 {
            let drawn = draw(seed, "node");
            assert_eq!(drawn, draw(seed, "node"));
            serde_json::from_value::<k8s_openapi::api::core::v1::Pod>(drawn.pod).expect("it is a pod");
        }
    }
}
