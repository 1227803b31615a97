//! `/flagz` and `/statusz`: what the agent was started with, and since when it runs; as text for
//! people, or as JSON or YAML for those who ask for a version of it (`accept.rs`).

mod accept;

use std::collections::BTreeMap;
use std::fmt::Write;

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use self::accept::{Form, GROUP, Language, Version, choose};
use super::body::{self, Body};
use super::routes;
use crate::clock::Clock;

/// The names that upstream's agent has for itself here.
const COMPONENT: &str = "kubelet";

pub struct ZPages {
    pub clock: Clock,
    pub started: Timestamp,
    pub binary_version: String,
    /// By name, what is secret left out.
    pub flags: BTreeMap<String, String>,
}

impl ZPages {
    pub fn flagz(&self, headers: &HeaderMap) -> Response<Body> {
        let text = || {
            let mut page = head("flagz");
            for (name, value) in &self.flags {
                let _ = writeln!(page, "{name}={value}");
            }
            page
        };
        respond(headers, "Flagz", text, || json!({ "flags": self.flags }))
    }

    pub fn statusz(&self, headers: &HeaderMap) -> Response<Body> {
        let up = self.clock.wall().duration_since(self.started).as_secs().max(0);
        let emulated = minor(&self.binary_version);
        let paths = routes::first_segments();
        let text = || {
            let mut page = head("statusz");
            let _ = write!(
                page,
                "\nStarted: {}\nUp: {} hr {:02} min {:02} sec\nGo version: \nBinary version: {}\nEmulation version: {emulated}\nPaths: {}\n",
                self.started.strftime("%a %b %e %H:%M:%S UTC %Y"),
                up / 3600,
                up / 60 % 60,
                up % 60,
                self.binary_version,
                paths.join(" "),
            );
            page
        };
        let structured = || {
            json!({
                "startTime": self.started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                "uptimeSeconds": up,
                // There is none, and readers that parse one know the empty text as that.
                "goVersion": "",
                "binaryVersion": self.binary_version,
                "emulationVersion": emulated,
                "paths": paths,
            })
        };
        respond(headers, "Statusz", text, structured)
    }
}

fn head(page: &str) -> String {
    format!(
        "\n{COMPONENT} {page}\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.\n"
    )
}

/// `1.36` of `1.36.2`.
fn minor(version: &str) -> String {
    version.split('.').take(2).collect::<Vec<_>>().join(".")
}

fn respond(headers: &HeaderMap, kind: &str, text: impl Fn() -> String, fields: impl Fn() -> Value) -> Response<Body> {
    let accept = headers.get(header::ACCEPT).map_or("", |accept| accept.to_str().unwrap_or("unreadable"));
    match choose(accept, kind) {
        Some(Form::Text) => body::text(StatusCode::OK, text()),
        Some(Form::Structured { language, version }) => structured(kind, language, version, fields()),
        None => not_acceptable(),
    }
}

fn structured(kind: &str, language: Language, version: Version, fields: Value) -> Response<Body> {
    let mut object = json!({
        "kind": kind,
        "apiVersion": format!("{GROUP}/{}", version.name()),
        "metadata": { "name": COMPONENT },
    });
    if let (Some(object), Value::Object(fields)) = (object.as_object_mut(), fields) {
        object.extend(fields);
    }
    let written = match language {
        Language::Json => object.to_string(),
        Language::Yaml => serde_saphyr::to_string(&object).expect("what is JSON can be written as YAML"),
    };
    let mut response = Response::new(body::full(written));
    let media_type = format!("{};g={GROUP};v={};as={kind}", language.media_type(), version.name());
    let media_type = HeaderValue::from_str(&media_type).expect("it is made of plain words");
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    if version == Version::V1Alpha1 {
        let page = kind.to_ascii_lowercase();
        let warning =
            format!(r#"299 - "This version of the {page} endpoint is deprecated. Please use a newer version.""#);
        let warning = HeaderValue::from_str(&warning).expect("it is made of plain words");
        response.headers_mut().insert(header::WARNING, warning);
    }
    response
}

/// A Status, as the API server's own endpoints answer.
fn not_acceptable() -> Response<Body> {
    let status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "only the following media types are accepted: application/json, application/yaml, text/plain",
        "reason": "NotAcceptable",
        "code": 406,
    });
    let mut response = body::json(body::full(status.to_string()));
    *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
    response
}
