//! What is done to a pod while it runs.

use serde_json::{Value, json};

use super::{Draft, Role};
use crate::compare::report;
use crate::harness::merge;
use crate::provision::{BUSYBOX, NONROOT};

/// A change of a pod, as a strategic merge patch of it or of one of its subresources.
#[derive(Debug, PartialEq)]
pub struct Act {
    pub subresource: Option<&'static str>,
    pub patch: Value,
}

impl Draft {
    pub(super) fn acts(&mut self, pod: &Value) -> Vec<Act> {
        let count = self.of(&[0, 0, 0, 1, 1, 2]);
        (0..count).map(|number| self.act(pod, number)).collect()
    }

    fn act(&mut self, pod: &Value, number: usize) -> Act {
        match self.random.u32(0..8) {
            0..3 => Act { subresource: Some("ephemeralcontainers"), patch: self.for_debugging(pod, number) },
            3 | 4 => Act { subresource: Some("resize"), patch: self.other_resources() },
            5 => Act { subresource: Some("resize"), patch: self.other_resources_of_all() },
            6 => {
                let image = self.of(&[BUSYBOX, NONROOT, "ferrolet.test/absent:2"]);
                Act {
                    subresource: None,
                    patch: json!({ "spec": { "containers": [{ "name": "main-0", "image": image }] } }),
                }
            }
            7 => Act { subresource: None, patch: json!({ "spec": { "activeDeadlineSeconds": 1 } }) },
            _ => unreachable!("all numbers below the bound are there"),
        }
    }

    /// Ephemeral containers that were there before must be there still.
    fn for_debugging(&mut self, pod: &Value, number: usize) -> Value {
        let script = report::script(self.ending(Role::Init));
        let lasting = report::script("exec sleep 1000000");
        let mut container = json!({
            "name": format!("debug-{number}"),
            "image": self.of(&[BUSYBOX, BUSYBOX, NONROOT, "ferrolet.test/absent:3"]),
            "imagePullPolicy": self.of(&["IfNotPresent", "Never"]),
            "command": ["sh", "-c", self.of(&[script, lasting]), "sh"],
        });
        // Whether one that ends again and again is there when it is looked for is chance.
        let first = &pod["spec"]["containers"][0];
        let lasts = first["command"].to_string().contains("exec sleep") && first["restartPolicyRules"].is_null();
        if lasts && self.one_in(2) {
            container["targetContainerName"] = "main-0".into();
        }
        let mounts: Vec<Value> = self.mounts().into_iter().filter(may_be_mounted).collect();
        if !mounts.is_empty() && pod["spec"]["volumes"].is_array() {
            container["volumeMounts"] = mounts.into();
        }
        if self.one_in(3) {
            container["env"] = self.env();
        }
        let more = self.of(&[
            json!({}),
            json!({ "stdin": true, "tty": true }),
            json!({ "securityContext": { "privileged": true } }),
            json!({ "securityContext": { "runAsUser": 1234, "capabilities": { "add": ["SYS_PTRACE"] } } }),
            json!({ "terminationMessagePolicy": "FallbackToLogsOnError" }),
        ]);
        merge(&mut container, more);
        json!({ "spec": { "ephemeralContainers": [container] } })
    }

    fn other_resources(&mut self) -> Value {
        let resources = self.of(&[
            json!({ "requests": { "cpu": "20m" } }),
            json!({ "limits": { "cpu": "300m" } }),
            json!({ "requests": { "cpu": "30m", "memory": "20Mi" }, "limits": { "cpu": "200m", "memory": "96Mi" } }),
            json!({ "limits": { "memory": "80Mi" } }),
            // More than any machine has.
            json!({ "requests": { "cpu": "9999" } }),
        ]);
        json!({ "spec": { "containers": [{ "name": "main-0", "resources": resources }] } })
    }

    fn other_resources_of_all(&mut self) -> Value {
        let resources = self.of(&[
            json!({ "requests": { "cpu": "60m", "memory": "100Mi" }, "limits": { "cpu": "600m", "memory": "200Mi" } }),
            json!({ "limits": { "cpu": "300m" } }),
        ]);
        json!({ "spec": { "resources": resources } })
    }
}

/// The API server allows ephemeral containers no parts of volumes.
fn may_be_mounted(mount: &Value) -> bool {
    mount["subPath"].is_null() && mount["subPathExpr"].is_null()
}
