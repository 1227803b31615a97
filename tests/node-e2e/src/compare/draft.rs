//! Pods drawn by a seed, over all fields of a pod that mean something to a node.
//!
//! What is drawn need not make sense, and the API server may refuse it: both of them refuse the
//! same. But what becomes of it must not depend on time or on other pods, or the two agents
//! would differ without a fault of theirs.

use fastrand::Rng;
use serde_json::{Map, Value, json};

use super::report;
use crate::harness::merge;
use crate::provision::{BUSYBOX, NONROOT};

/// What drawn pods refer to, beside what is missing on purpose.
pub const CONFIG_MAP: &str = "settings";
pub const SECRET: &str = "secrets";
pub const SERVICE: &str = "some-service";

/// First of the host ports; each pod has its own.
const HOST_PORTS: u64 = 20_000;

/// The pod of this seed, bound to `node`.
pub fn pod(seed: u64, node: &str) -> Value {
    let mut draft = Draft { random: Rng::with_seed(seed), seed, volumes: Vec::new() };
    draft.pod(node)
}

struct Draft {
    random: Rng,
    seed: u64,
    /// Drawn before the containers, which mount some of them.
    volumes: Vec<Volume>,
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
        let mut metadata = json!({ "name": format!("drawn-{}", self.seed) });
        if self.one_in(2) {
            metadata["labels"] = json!({ "app": "drawn", "example.com/tier": "a" });
            metadata["annotations"] = json!({ "example.com/note": "two\nlines \"quoted\" \\ ü" });
        }
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })
    }

    fn pod_field(&mut self) -> Value {
        match self.random.u32(0..27) {
            0 => json!({ "activeDeadlineSeconds": 4 }),
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
            17 => json!({ "runtimeClassName": "missing-class" }),
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
            ]) }),
            _ => unreachable!("all numbers below the bound are there"),
        }
    }

    fn volume(&mut self, number: usize) -> Value {
        let name = format!("v{number}");
        const KEYS: &[&str] = &["plain", "dir", "dir/deep", "missing"];
        const NOTHING: &[&str] = &["made", "made/deep"];
        let (mut source, inside) = match self.random.u32(0..13) {
            0 => (json!({ "emptyDir": {} }), NOTHING),
            1 => (json!({ "emptyDir": { "medium": "Memory" } }), NOTHING),
            2 => (json!({ "emptyDir": { "medium": "Memory", "sizeLimit": "4Mi" } }), NOTHING),
            3 => (json!({ "configMap": { "name": CONFIG_MAP } }), KEYS),
            4 => (
                json!({ "configMap": { "name": CONFIG_MAP, "defaultMode": 0o440, "items": [
                { "key": "plain", "path": "dir/deep" }, { "key": "multi.line", "path": "plain", "mode": 0o604 },
            ] } }),
                KEYS,
            ),
            5 => (json!({ "secret": { "secretName": SECRET, "defaultMode": 0o400 } }), KEYS),
            6 => {
                (json!({ "secret": { "secretName": SECRET, "items": [{ "key": "plain", "path": "dir/deep" }] } }), KEYS)
            }
            7 => (
                json!({ "downwardAPI": { "items": [
                { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
                { "path": "plain", "fieldRef": { "fieldPath": "metadata.annotations" } },
                { "path": "dir/one", "mode": 0o400, "fieldRef": { "fieldPath": "metadata.labels['app']" } },
                { "path": "name", "fieldRef": { "fieldPath": "metadata.namespace" } },
                { "path": "limit", "resourceFieldRef": {
                    "containerName": "main-0", "resource": "limits.memory", "divisor": "1Mi" } },
            ] } }),
                KEYS,
            ),
            8 => (
                json!({ "projected": { "defaultMode": 0o640, "sources": [
                { "configMap": { "name": CONFIG_MAP, "items": [{ "key": "plain", "path": "plain" }] } },
                { "secret": { "name": SECRET, "items": [{ "key": "plain", "path": "dir/deep", "mode": 0o600 }] } },
                { "serviceAccountToken": { "path": "token", "expirationSeconds": 3600, "audience": "someone" } },
                { "downwardAPI": { "items": [{ "path": "uid-of", "fieldRef": { "fieldPath": "metadata.name" } }] } },
                { "configMap": { "name": "missing", "optional": true } },
            ] } }),
                KEYS,
            ),
            9 => {
                let (path, kind) = self.of(&[
                    ("/etc/services", "File"),
                    ("/etc/services", "Directory"),
                    ("/usr/share/common-licenses", "Directory"),
                    ("/usr/share/common-licenses", ""),
                    ("/var/lib/drawn", "DirectoryOrCreate"),
                    ("/var/lib/drawn-file", "FileOrCreate"),
                    ("/var/lib/absent", "Socket"),
                    ("/dev/null", "CharDevice"),
                ]);
                (json!({ "hostPath": { "path": path, "type": kind } }), NOTHING)
            }
            10 => (json!({ "configMap": { "name": "missing", "optional": self.random.bool() } }), KEYS),
            11 => (json!({ "image": { "reference": BUSYBOX, "pullPolicy": "IfNotPresent" } }), &["etc", "bin"] as &[_]),
            12 => (
                json!({ "secret": { "secretName": SECRET, "optional": self.random.bool(), "items": [
                { "key": "no-such-key", "path": "plain" },
            ] } }),
                KEYS,
            ),
            _ => unreachable!("all numbers below the bound are there"),
        };
        source["name"] = name.as_str().into();
        self.volumes.push(Volume { name, inside });
        source
    }

    fn container(&mut self, role: Role, number: usize) -> Value {
        let name = match role {
            Role::Main => format!("main-{number}"),
            Role::Init => format!("init-{number}"),
            Role::Sidecar => format!("sidecar-{number}"),
        };
        let mut container = json!({ "name": name, "image": self.of(&[BUSYBOX, BUSYBOX, BUSYBOX, NONROOT]) });
        container["command"] = json!(["sh", "-c", report::script(self.ending(role)), "sh"]);
        if role == Role::Sidecar {
            container["restartPolicy"] = "Always".into();
        }
        let mounts = self.mounts();
        if !mounts.is_empty() {
            container["volumeMounts"] = mounts.into();
        }
        if self.one_in(2) {
            container["env"] = self.env();
        }
        if self.one_in(2) {
            container["resources"] = self.resources();
        }
        for _ in 0..self.random.usize(0..4) {
            let fields = self.container_field(role);
            merge(&mut container, fields);
        }
        container
    }

    /// What the script does in the end.
    fn ending(&mut self, role: Role) -> &'static str {
        const SLEEP: &str = "exec sleep 1000000";
        const FAILURE: &str = "exit 3";
        const MESSAGE: &str = "echo the last word > /dev/termination-log; exit 5";
        const LOG: &str = "echo the last line; exit 7";
        match role {
            Role::Sidecar => self.of(&[SLEEP, SLEEP, "trap 'exit 0' TERM; while :; do sleep 0.1; done", FAILURE]),
            Role::Init => self.of(&["exit 0", "exit 0", "exit 0", FAILURE, MESSAGE]),
            Role::Main => self.of(&[SLEEP, SLEEP, SLEEP, SLEEP, "exit 0", FAILURE, MESSAGE, LOG]),
        }
    }

    fn mounts(&mut self) -> Vec<Value> {
        let mut mounts = Vec::new();
        for index in 0..self.volumes.len() {
            if self.one_in(5) {
                continue;
            }
            let (name, inside) = (self.volumes[index].name.clone(), self.volumes[index].inside);
            let mut mount = json!({ "name": name, "mountPath": format!("/v/{name}") });
            match self.random.u32(0..9) {
                0 => mount["readOnly"] = true.into(),
                1 => mount["subPath"] = self.of(inside).into(),
                2 => mount["subPathExpr"] = self.of(&["$(POD)/logs", "$(UNKNOWN)", "plain", "$(UP)/etc"]).into(),
                3 => mount["mountPropagation"] = self.of(&["HostToContainer", "Bidirectional", "None"]).into(),
                4 => {
                    mount["readOnly"] = true.into();
                    mount["recursiveReadOnly"] = self.of(&["Enabled", "IfPossible", "Disabled"]).into();
                }
                _ => {}
            }
            mounts.push(mount);
        }
        mounts
    }

    fn env(&mut self) -> Value {
        let mut env = vec![
            json!({ "name": "POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }),
            json!({ "name": "UP", "value": ".." }),
        ];
        for number in 0..self.random.usize(0..5) {
            let mut variable = match self.random.u32(0..10) {
                0 => json!({ "value": "plain $(POD) $$(POD) $(UNKNOWN) $(SOME_SERVICE_PORT) $" }),
                1 | 2 => {
                    let path = self.of(&[
                        "metadata.namespace",
                        "metadata.labels['app']",
                        "metadata.annotations['example.com/note']",
                        "metadata.annotations['missing']",
                        "spec.nodeName",
                        "spec.serviceAccountName",
                        "status.hostIP",
                        "status.hostIPs",
                        "status.podIP",
                        "status.podIPs",
                        "metadata.uid",
                    ]);
                    json!({ "valueFrom": { "fieldRef": { "fieldPath": path } } })
                }
                3 | 4 => {
                    let resource = self.of(&[
                        "limits.cpu",
                        "limits.memory",
                        "limits.ephemeral-storage",
                        "requests.cpu",
                        "requests.memory",
                        "requests.ephemeral-storage",
                    ]);
                    let divisor = match resource.ends_with("cpu") {
                        true => self.of(&["1", "1m", "0"]),
                        false => self.of(&["1", "1Mi", "1k", "0"]),
                    };
                    json!({ "valueFrom": { "resourceFieldRef": { "resource": resource, "divisor": divisor } } })
                }
                5 => json!({ "valueFrom": { "configMapKeyRef": { "name": CONFIG_MAP, "key": "plain" } } }),
                6 => json!({ "valueFrom": { "secretKeyRef": { "name": SECRET, "key": "multi.line" } } }),
                7 => json!({ "valueFrom": { "configMapKeyRef": {
                    "name": self.of(&["missing", CONFIG_MAP]), "key": "no-such-key", "optional": true } } }),
                8 => json!({ "value": "" }),
                9 => match self.one_in(3) {
                    true => {
                        json!({ "valueFrom": { "secretKeyRef": { "name": self.of(&["missing", SECRET]), "key": "no-such-key" } } })
                    }
                    false => json!({ "value": "with $(V0) and $(V1)" }),
                },
                _ => unreachable!("all numbers below the bound are there"),
            };
            variable["name"] = format!("V{number}").into();
            env.push(variable);
        }
        if self.one_in(6) {
            env.push(json!({ "name": "SOME_SERVICE_PORT", "value": "mine" }));
        }
        env.into()
    }

    fn resources(&mut self) -> Value {
        self.of(&[
            json!({ "requests": { "cpu": "10m" } }),
            json!({ "requests": { "memory": "10Mi" }, "limits": { "memory": "64Mi" } }),
            json!({ "requests": { "cpu": "25m", "memory": "12Mi" }, "limits": { "cpu": "250m", "memory": "64Mi" } }),
            json!({ "limits": { "cpu": "150m", "memory": "64Mi" } }),
            json!({ "limits": { "cpu": "1m", "memory": "32Mi" } }),
            json!({ "limits": { "cpu": "0.3" } }),
            json!({ "requests": { "ephemeral-storage": "10Mi" }, "limits": { "ephemeral-storage": "500Mi" } }),
            json!({ "requests": { "cpu": "4m", "memory": "1.5Mi" } }),
        ])
    }

    fn container_field(&mut self, role: Role) -> Value {
        match self.random.u32(0..23) {
            0 => json!({ "args": ["one", "$(POD)", "$$(POD)", "", "with blank", "$(UNKNOWN)"] }),
            1 => {
                let mut from = vec![
                    json!({ "prefix": "CFG_", "configMapRef": { "name": CONFIG_MAP } }),
                    json!({ "secretRef": { "name": SECRET } }),
                    json!({ "configMapRef": { "name": "missing", "optional": true } }),
                ];
                if self.one_in(4) {
                    from.push(json!({ "secretRef": { "name": "missing" } }));
                }
                json!({ "envFrom": from })
            }
            2 => json!({ "workingDir": self.of(&["/tmp", "/etc", "/made/for/it"]) }),
            3 => json!({ "ports": [
                { "containerPort": 8080, "name": "http" },
                { "containerPort": 53, "protocol": "UDP" },
            ] }),
            4 => json!({ "ports": [
                { "containerPort": 8080, "hostPort": HOST_PORTS + self.seed % 10_000, "protocol": self.of(&["TCP", "UDP"]) },
            ] }),
            5 => json!({ "terminationMessagePolicy": "FallbackToLogsOnError" }),
            6 => json!({ "terminationMessagePath": self.of(&["/tmp/last", "/dev/termination-log"]) }),
            7 => json!({ "imagePullPolicy": self.of(&["Never", "Always", "IfNotPresent"]) }),
            8 => json!({ "image": self.of(&["ferrolet.test/absent:1", "ferrolet.test/busybox:absent"]),
                "imagePullPolicy": self.of(&["Never", "IfNotPresent"]) }),
            9 => {
                json!({ "command": self.of(&[json!(["/no/such/program"]), json!(["/etc/passwd"]), json!(["false"]), json!(["sh", "-c", "kill -TERM $$$$; sleep 5"])]) })
            }
            10 => json!({ "stdin": true, "stdinOnce": self.random.bool() }),
            11 => json!({ "tty": true, "stdin": true }),
            12 => json!({ "securityContext": { "capabilities": self.of(&[
                json!({ "add": ["NET_ADMIN", "SYS_TIME"] }),
                json!({ "drop": ["ALL"] }),
                json!({ "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] }),
                json!({ "drop": ["CHOWN", "KILL"] }),
            ]) } }),
            13 => json!({ "securityContext": { "privileged": true } }),
            14 => json!({ "securityContext": { "readOnlyRootFilesystem": true } }),
            15 => json!({ "securityContext": { "allowPrivilegeEscalation": false } }),
            16 => {
                json!({ "securityContext": { "runAsUser": self.of(&[0, 1000, 999]), "runAsGroup": self.of(&[0, 2000]) } })
            }
            17 => json!({ "securityContext": { "runAsNonRoot": self.random.bool() } }),
            18 => {
                json!({ "securityContext": { "seccompProfile": { "type": self.of(&["RuntimeDefault", "Unconfined"]) } } })
            }
            19 | 20 if role != Role::Init => self.probe(),
            21 if role != Role::Init => self.hook(),
            22 if role == Role::Main => self.own_restarts(),
            _ => Value::Object(Map::new()),
        }
    }

    fn probe(&mut self) -> Value {
        let handler = self.of(&[
            json!({ "exec": { "command": ["true"] } }),
            json!({ "exec": { "command": ["true"] } }),
            json!({ "exec": { "command": ["sh", "-c", "echo not well; exit 4"] } }),
            json!({ "exec": { "command": ["/no/such/program"] } }),
            json!({ "tcpSocket": { "port": 9 } }),
            json!({ "httpGet": { "port": "nobody", "path": "/" } }),
            json!({ "httpGet": { "port": 9, "path": "/path?query" } }),
            json!({ "grpc": { "port": 9 } }),
        ]);
        let which = self.of(&["readinessProbe", "readinessProbe", "livenessProbe", "startupProbe"]);
        let mut probe = handler;
        merge(&mut probe, json!({ "periodSeconds": 1, "failureThreshold": 2, "timeoutSeconds": 2 }));
        json!({ which: probe })
    }

    fn hook(&mut self) -> Value {
        let handler = self.of(&[
            json!({ "exec": { "command": ["true"] } }),
            json!({ "exec": { "command": ["sh", "-c", "echo no; exit 6"] } }),
            json!({ "sleep": { "seconds": 1 } }),
            json!({ "httpGet": { "port": 9, "path": "/" } }),
        ]);
        let which = self.of(&["postStart", "preStop"]);
        json!({ "lifecycle": { which: handler } })
    }

    fn own_restarts(&mut self) -> Value {
        self.of(&[
            json!({ "restartPolicy": "Never" }),
            json!({ "restartPolicy": "OnFailure" }),
            json!({ "restartPolicy": "Never", "restartPolicyRules": [
                { "action": "Restart", "exitCodes": { "operator": "In", "values": [3, 5] } },
            ] }),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_pod_and_all_are_pods() {
        for seed in 0..500 {
            let drawn = pod(seed, "node");
            assert_eq!(drawn, pod(seed, "node"));
            serde_json::from_value::<k8s_openapi::api::core::v1::Pod>(drawn).expect("it is a pod");
        }
    }
}
