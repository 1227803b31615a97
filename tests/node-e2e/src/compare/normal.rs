//! What two nodes may differ in, taken out: ids, addresses, times, amounts of time.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};

/// Texts of this pod on this node that stand for something without a name of its own.
pub struct Names {
    replacements: Vec<(String, String)>,
    first_user: Option<u64>,
    containers: Vec<String>,
}

impl Names {
    pub fn of_pod(pod: &Pod) -> Names {
        let mut replacements = Vec::new();
        if let Some(uid) = &pod.metadata.uid {
            replacements.push((uid.clone(), "<uid>".to_owned()));
        }
        Names { replacements, first_user: None, containers: Vec::new() }
    }

    /// The range of ids that the pod's users have on this node.
    pub fn users(&mut self, sandbox: &Value) {
        let namespaces = &sandbox["asked"]["linux"]["security_context"]["namespace_options"];
        let Some(first) = namespaces["userns_options"]["uids"][0]["host_id"].as_u64() else { return };
        self.first_user = Some(first);
        // Options of mounts.
        for kind in ["uid", "gid"] {
            self.replacements.push((format!("{kind}={first}"), format!("{kind}=<users>")));
        }
    }

    pub fn container(&mut self, name: &str) {
        self.containers.push(name.to_owned());
    }

    pub fn forget(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (from, to) in &self.replacements {
            text = text.replace(from, to);
        }
        // The file of a termination message has a random name below the container's directory.
        for container in &self.containers {
            text = after(&text, &format!("/containers/{container}/"), |rest| {
                rest.find(|letter: char| !letter.is_ascii_hexdigit()).unwrap_or(rest.len())
            });
        }
        text = after(&text, "kube-api-access-", |rest| {
            rest.find(|letter: char| !letter.is_ascii_alphanumeric()).unwrap_or(rest.len())
        });
        text = after(&text, "/ferrolet-stack-", number);
        text = after(&text, "/proc/", number);
        // The network namespace, named at random.
        text = after(&text, "/netns/cni-", |rest| rest.find(['"', ' ']).unwrap_or(rest.len()));
        for (from, to) in [("198.19.", "<pods>"), ("198.18.", "<node>")] {
            text = after(&text, from, |rest| {
                rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(rest.len())
            })
            .replace(&format!("{from}<>"), to);
        }
        // The own end of a connection.
        text = after(&text, "read udp <node>:", number);
        ids(&text)
    }

    /// In all texts and keys of a value.
    pub fn forget_in(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.forget(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.forget_in(item)),
            Value::Object(fields) => {
                let old = std::mem::take(fields);
                for (name, mut value) in old {
                    let is_user = matches!(name.as_str(), "host_id" | "hostID") && value.as_u64() == self.first_user;
                    if is_user {
                        value = "<users>".into();
                    }
                    self.forget_in(&mut value);
                    fields.insert(self.forget(&name), value);
                }
            }
            _ => {}
        }
    }
}

/// Replaces by `<>` what follows each `mark`, as long as `length` says it is.
fn after(text: &str, mark: &str, length: impl Fn(&str) -> usize) -> String {
    let mut pieces = text.split(mark);
    let mut result = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let length = length(piece);
        result += mark;
        if length > 0 {
            result += "<>";
        }
        result += &piece[length..];
    }
    result
}

fn number(rest: &str) -> usize {
    rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len())
}

/// Ids of containers are 64 hexadecimal digits; those of images are too, but tell something.
fn ids(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let run = rest.find(|letter: char| !letter.is_ascii_hexdigit()).unwrap_or(rest.len());
        match run {
            64 if !result.ends_with("sha256:") => result += "<id>",
            _ => result += &rest[..run],
        }
        let next = rest[run..].find(|letter: char| letter.is_ascii_hexdigit()).map_or(rest.len(), |at| run + at);
        result += &rest[run..next];
        rest = &rest[next..];
    }
    result
}

/// A message for people: amounts of time in it are not part of what it says.
pub fn message(text: &str) -> String {
    let text = without_call(text.strip_prefix("(combined from similar events): ").unwrap_or(text));
    let mut words = Vec::new();
    for word in text.split(' ') {
        let bare = word.trim_matches(|letter: char| "(),.;:".contains(letter));
        words.push(match is_duration(bare) {
            true => word.replace(bare, "<time>"),
            false => word.to_owned(),
        });
    }
    words.join(" ")
}

/// Without what a client of the runtime puts before its words, and upstream shows here and there.
fn without_call(text: &str) -> String {
    let Some((before, rest)) = text.split_once("rpc error: code = ") else { return text.to_owned() };
    match rest.split_once(" desc = ") {
        Some((code, words)) if !code.contains(' ') => format!("{before}{words}"),
        _ => text.to_owned(),
    }
}

fn is_duration(word: &str) -> bool {
    word.starts_with(|letter: char| letter.is_ascii_digit())
        && word.ends_with('s')
        && word.chars().all(|letter| letter.is_ascii_digit() || ".mµnhs".contains(letter))
}

/// A PodStatus without times; of a crash loop it only tells that it is one, and of what.
pub fn status(mut status: Value) -> Value {
    without(&mut status, &|name, _| {
        matches!(name, "startTime" | "startedAt" | "finishedAt" | "lastTransitionTime" | "lastProbeTime")
    });
    let has_ended = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
    for list in CONTAINERS {
        let Some(statuses) = status[list].as_array_mut() else { continue };
        for one in statuses.iter_mut() {
            let waiting = &one["state"]["waiting"];
            if waiting["reason"] == "ErrImagePull" {
                // The two take turns.
                let message =
                    format!("Back-off pulling image {}: ErrImagePull: {}", one["image"], text(&waiting["message"]));
                one["state"] = json!({ "waiting": { "message": message, "reason": "ImagePullBackOff" } });
            }
        }
        for one in statuses.iter_mut().filter(|one| one["restartCount"].as_i64().is_some_and(|count| count > 0)) {
            one["restartCount"] = "some".into();
            let waiting = one["state"]["waiting"]["reason"].as_str().map(str::to_owned);
            if waiting.as_deref() == Some("CrashLoopBackOff") {
                one["lastState"] = json!({ "again and again": one["lastState"]["terminated"] });
            } else if !has_ended
                && (one["state"]["terminated"].is_object() || waiting.as_deref() == Some("RunContainerError"))
            {
                // Upstream may say so until it next looks at the pod.
                let state = if waiting.is_some() { "lastState" } else { "state" };
                let ended = one[state]["terminated"].take();
                let what = json!({
                    "message": format!("back-off <time> restarting failed container={} pod=<pod>", text(&one["name"])),
                    "reason": "CrashLoopBackOff",
                });
                one["state"] = json!({ "waiting": what });
                one["lastState"] = json!({ "again and again": ended });
            }
        }
        status[list] = by(status[list].as_array().map_or(&[], Vec::as_slice), "name");
    }
    if let Some(conditions) = status["conditions"].as_array() {
        status["conditions"] = by(conditions, "type");
    }
    texts(&mut status, &|name, text| match name {
        "message" => log_tail(&restarting(&message(text))).to_owned(),
        _ => text.to_owned(),
    });
    status
}

/// How upstream and we name the lists of statuses in a PodStatus.
pub const CONTAINERS: [&str; 3] = ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"];

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Without the pod's name and UID at the end.
fn restarting(message: &str) -> String {
    match (message.starts_with("back-off <time> restarting failed"), message.split_once(" pod=")) {
        (true, Some((message, _))) => format!("{message} pod=<pod>"),
        _ => message.to_owned(),
    }
}

/// Of a message from the log what comes after the container's report, which is compared by itself.
fn log_tail(message: &str) -> &str {
    message.rsplit_once("[end]\n").map_or(message, |(_, tail)| tail)
}

/// The last step, over everything: lists whose order means nothing become maps.
pub fn whole(mut all: Value) -> Value {
    if let Some(made) = all["made"].as_object_mut() {
        for one in made.values_mut() {
            let env = one["asked"]["envs"].as_array().cloned().unwrap_or_default();
            one["asked"]["envs"] = by(&env, "key");
            for list in [&["asked", "mounts"][..], &["spec", "mounts"]] {
                let place = list.iter().fold(&mut *one, |value, name| &mut value[*name]);
                let mounts = place.as_array().cloned().unwrap_or_default();
                let key = if list[0] == "asked" { "container_path" } else { "destination" };
                *place = by(&mounts, key);
            }
            if let Some(env) = one["spec"]["process"]["env"].as_array_mut() {
                env.sort_by_key(Value::to_string);
            }
            // Upstream's come in an order that changes from pod to pod.
            if let Some(options) = one["asked"]["dns_config"]["options"].as_array_mut() {
                options.sort_by_key(Value::to_string);
            }
            asked(&mut one["asked"]);
        }
    }
    for said in all["seen"].as_object_mut().into_iter().flat_map(Map::values_mut) {
        for line in said["resolv.conf"].as_array_mut().into_iter().flatten() {
            let mut words: Vec<&str> = text(line).split(' ').collect();
            if words[0] == "options" {
                words.sort_unstable_by_key(|&word| (word != "options", word));
                *line = words.join(" ").into();
            }
        }
    }
    all
}

/// How often a container was started, and the fields of what is JSON in an annotation.
fn asked(asked: &mut Value) {
    let attempt = asked["metadata"]["attempt"].as_u64().unwrap_or_default();
    if attempt > 0 {
        asked["metadata"]["attempt"] = "some".into();
        asked["log_path"] = text(&asked["log_path"]).replace(&format!("/{attempt}.log"), "/<>.log").into();
    }
    for (name, value) in asked.get_mut("annotations").and_then(Value::as_object_mut).into_iter().flatten() {
        if name.ends_with("restartCount") && text(value) != "0" {
            *value = "some".into();
        } else if let Ok(parsed @ (Value::Object(_) | Value::Array(_))) = serde_json::from_str::<Value>(text(value)) {
            *value = parsed;
        }
    }
}

fn by(list: &[Value], key: &str) -> Value {
    let mut map = Map::new();
    for (number, item) in list.iter().enumerate() {
        let name = item[key].as_str().map_or_else(|| number.to_string(), str::to_owned);
        // One that is there twice must not hide the other.
        let name = if map.contains_key(&name) { format!("{name} again") } else { name };
        map.insert(name, item.clone());
    }
    map.into()
}

fn without(value: &mut Value, unwanted: &impl Fn(&str, &Value) -> bool) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, value| !unwanted(name, value));
            fields.values_mut().for_each(|value| without(value, unwanted));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| without(item, unwanted)),
        _ => {}
    }
}

fn texts(value: &mut Value, change: &impl Fn(&str, &str) -> String) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) => *text = change(name, text),
                    other => texts(other, change),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| texts(item, change)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let pod = serde_json::from_value(json!({ "metadata": { "uid": "0a-1b" }, "spec": { "containers": [] } }));
        let mut names = Names::of_pod(&pod.expect("it is a pod"));
        names.container("main");
        names
    }

    #[test]
    fn what_is_of_the_moment_or_the_node_is_forgotten() {
        let id = "0123456789abcdef".repeat(4);
        for (text, rest) in [
            ("/pods/0a-1b/volumes/kube-api-access-x7b2q/token", "/pods/<uid>/volumes/kube-api-access-<>/token"),
            ("/pods/0a-1b/containers/main/0fc94bb4", "/pods/<uid>/containers/main/<>"),
            ("dial tcp 198.19.3.17:9: refused", "dial tcp <pods>:9: refused"),
            ("/proc/771/ns/net", "/proc/<>/ns/net"),
            ("/proc/self/x", "/proc/self/x"),
            (&format!("task {id} is gone"), "task <id> is gone"),
            (&format!("sha256:{id}"), &format!("sha256:{id}")),
        ] {
            assert_eq!(names().forget(text), rest);
        }
    }

    #[test]
    fn amounts_of_time_are_not_part_of_a_message() {
        assert_eq!(message("back-off 10s restarting (1.5ms, 2 times)"), "back-off <time> restarting (<time>, 2 times)");
        assert_eq!(message("it has 3 cats"), "it has 3 cats");
        let combined = "(combined from similar events): Failed: rpc error: code = Unknown desc = no runtime";
        assert_eq!(message(combined), "Failed: no runtime");
    }
}
