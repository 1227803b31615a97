//! Volumes of all kinds that need nothing beyond the node, and how containers mount them.

use serde_json::{Value, json};

use super::{CONFIG_MAP, Draft, SECRET, Volume};
use crate::provision::BUSYBOX;

impl Draft {
    pub(super) fn volume(&mut self, number: usize) -> Value {
        let name = format!("v{number}");
        const KEYS: &[&str] = &["plain", "dir", "dir/deep", "missing"];
        const NOTHING: &[&str] = &["made", "made/deep"];
        let (mut source, inside) = match self.random.u32(0..17) {
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
            13 => (json!({ "emptyDir": { "sizeLimit": "30Mi" } }), NOTHING),
            14 => (
                json!({ "image": { "reference": "ferrolet.test/absent:1", "pullPolicy": "Never" } }),
                &["etc", "no/such"] as &[_],
            ),
            15 => (
                json!({ "projected": { "sources": [
                { "secret": { "name": SECRET } },
                { "configMap": { "name": CONFIG_MAP, "items": [{ "key": "plain", "path": "dir/deep" }] } },
                { "downwardAPI": { "items": [
                    { "path": "cpu", "resourceFieldRef": {
                        "containerName": "main-0", "resource": "requests.cpu", "divisor": "1m" } },
                    { "path": "none", "fieldRef": { "fieldPath": "metadata.annotations['missing']" } },
                ] } },
            ] } }),
                KEYS,
            ),
            16 => (
                json!({ "projected": { "sources": [
                { "serviceAccountToken": { "path": "token" } },
                { "configMap": { "name": self.of(&["missing", CONFIG_MAP]) } },
            ] } }),
                KEYS,
            ),
            _ => unreachable!("all numbers below the bound are there"),
        };
        source["name"] = name.as_str().into();
        self.volumes.push(Volume { name, inside });
        source
    }

    pub(super) fn mounts(&mut self) -> Vec<Value> {
        let mut mounts = Vec::new();
        for index in 0..self.volumes.len() {
            if self.one_in(5) {
                continue;
            }
            let (name, inside) = (self.volumes[index].name.clone(), self.volumes[index].inside);
            let mut mount = json!({ "name": name, "mountPath": format!("/v/{name}") });
            match self.random.u32(0..10) {
                0 => mount["readOnly"] = true.into(),
                1 => mount["subPath"] = self.of(inside).into(),
                2 => mount["subPathExpr"] = self.of(&["$(POD)/logs", "$(UNKNOWN)", "plain", "$(UP)/etc"]).into(),
                3 => mount["mountPropagation"] = self.of(&["HostToContainer", "Bidirectional", "None"]).into(),
                4 => {
                    mount["readOnly"] = true.into();
                    mount["recursiveReadOnly"] = self.of(&["Enabled", "IfPossible", "Disabled"]).into();
                }
                5 if index > 0 => {
                    let outer = self.random.usize(0..index);
                    let below = self.of(&["inner", "dir", "made"]);
                    mount["mountPath"] = format!("/v/{}/{below}", self.volumes[outer].name).into();
                }
                _ => {}
            }
            mounts.push(mount);
        }
        mounts
    }
}
