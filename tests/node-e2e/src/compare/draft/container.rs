//! Containers: what they run, what they are given, and what is asked of them.

use serde_json::{Map, Value, json};

use super::{CONFIG_MAP, Draft, HOST_PORTS, Role, SECRET};
use crate::compare::report;
use crate::harness::merge;
use crate::provision::{BUSYBOX, NONROOT};

impl Draft {
    pub(super) fn container(&mut self, role: Role, number: usize) -> Value {
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
        if self.own_users && self.one_in(3) {
            container["securityContext"] = json!({ "procMount": "Unmasked" });
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
    pub(super) fn ending(&mut self, role: Role) -> &'static str {
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

    pub(super) fn env(&mut self) -> Value {
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
        if self.one_in(8) {
            env.push(json!({ "name": "UP", "value": "again $(UP)" }));
            env.push(json!({ "name": "1.odd name", "value": "$(1.odd name)" }));
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
        match self.random.u32(0..29) {
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
            22 if role != Role::Sidecar => self.own_restarts(),
            23 => json!({ "resizePolicy": [
                { "resourceName": "memory", "restartPolicy": "RestartContainer" },
                { "resourceName": "cpu", "restartPolicy": self.of(&["NotRequired", "RestartContainer"]) },
            ] }),
            24 => json!({ "securityContext": { "appArmorProfile": { "type": "Unconfined" } } }),
            25 => json!({ "securityContext": { "seLinuxOptions": { "level": "s0:c3" } } }),
            26 if role != Role::Init => {
                json!({ "lifecycle": { "stopSignal": self.of(&["SIGINT", "SIGKILL", "SIGTERM"]) } })
            }
            27 => json!({ "resources": { "limits": { "example.com/unheard-of": "1" } } }),
            28 => json!({ "ports": [{ "containerPort": 9090, "hostPort": HOST_PORTS + 10_000 + self.seed % 10_000,
                "hostIP": "127.0.0.1" }] }),
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
            json!({ "httpGet": { "port": 9, "scheme": "HTTPS", "httpHeaders": [{ "name": "Accept", "value": "" }] } }),
        ]);
        let which = self.of(&["readinessProbe", "readinessProbe", "livenessProbe", "startupProbe"]);
        let mut probe = handler;
        merge(&mut probe, json!({ "periodSeconds": 1, "failureThreshold": 2, "timeoutSeconds": 2 }));
        if which != "readinessProbe" && self.one_in(3) {
            probe["terminationGracePeriodSeconds"] = 1.into();
        }
        if which == "readinessProbe" && self.one_in(4) {
            merge(&mut probe, json!({ "successThreshold": 2, "initialDelaySeconds": 1 }));
        }
        json!({ which: probe })
    }

    fn hook(&mut self) -> Value {
        let handler = self.of(&[
            json!({ "exec": { "command": ["true"] } }),
            json!({ "exec": { "command": ["sh", "-c", "echo no; exit 6"] } }),
            json!({ "sleep": { "seconds": 1 } }),
            json!({ "httpGet": { "port": 9, "path": "/" } }),
            json!({ "tcpSocket": { "port": 9 } }),
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
            json!({ "restartPolicy": "Always", "restartPolicyRules": [
                { "action": "Restart", "exitCodes": { "operator": "NotIn", "values": [0, 7] } },
            ] }),
        ])
    }
}
