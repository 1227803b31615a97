//! Debian's docker-registry in a stack: on its loopback, with TLS and a password.
//!
//! What it holds is written in its own layout before it starts, from an archive of the test
//! images; so nothing here has to know how to push.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Stack;
use super::part::Part;
use crate::poll::{self, Look};
use crate::provision;

/// Who may pull.
pub const USER: &str = "puller";
pub const PASSWORD: &str = "open-sesame";
/// As bcrypt has it, which is all that the registry reads.
const PASSWORD_HASH: &str = "$2b$04$azH2W9T9J0QZH4zzrz2xeeeMxg8u9w2/4rAyrD.c20uxbEmYoYDui";

/// Server, as images are named after it.
pub const SERVER: &str = "127.0.0.1:5443";
/// The one image it has, which is no other name of one that nodes have from the start.
pub const IMAGE: &str = "127.0.0.1:5443/private/nonroot:1";

const CONFIG: &str = "/etc/registry/config.json";
const USERS: &str = "/etc/registry/htpasswd";
const KEY: &str = "/etc/registry/tls.key";
const CERTIFICATE: &str = "/etc/registry/tls.crt";
const STORAGE: &str = "/var/lib/registry";
/// Where containerd reads whom to trust, by server.
const TRUSTED: &str = "/etc/containerd/certs.d/127.0.0.1:5443/hosts.toml";
/// The server's address in /proc/net/tcp, with nobody at the other end.
const LISTENING: &str = "0100007F:1543 00000000:0000 0A";
const SERVES_WITHIN: Duration = Duration::from_secs(30);

pub(super) async fn start(part: Part<'_>) -> Result<()> {
    let stack = part.stack;
    if !stack.on_node(CERTIFICATE).exists() {
        prepare(stack).await?;
    }
    part.start_program(provision::registry()?, vec!["serve".into(), CONFIG.into()]).await?;
    poll::until("the registry serves", SERVES_WITHIN, async || {
        // The loopback is the stack's own, so it is looked at from outside.
        let sockets = stack.read("/proc/1/net/tcp")?;
        Ok(match sockets.contains(LISTENING) {
            true => Look::Done(()),
            false => Look::NotYet("nobody listens".to_owned()),
        })
    })
    .await
}

async fn prepare(stack: &Stack) -> Result<()> {
    let config = json!({
        "version": "0.1",
        "log": { "level": "info" },
        "storage": { "filesystem": { "rootdirectory": STORAGE } },
        "http": { "addr": SERVER, "tls": { "certificate": CERTIFICATE, "key": KEY } },
        "auth": { "htpasswd": { "realm": "stack", "path": USERS } },
    });
    stack.write(CONFIG, config.to_string())?;
    stack.write(USERS, format!("{USER}:{PASSWORD_HASH}\n"))?;
    stack.write(
        TRUSTED,
        format!("server = \"https://{SERVER}\"\n[host.\"https://{SERVER}\"]\nca = \"{CERTIFICATE}\"\n"),
    )?;
    let subject = ["-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1"];
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", KEY];
    let certificate = ["-x509", "-days", "3650", "-out", CERTIFICATE];
    stack.run(&[&["openssl", "req"], &key[..], &certificate, &subject].concat()).await?;

    let archive = provision::image_archive("nonroot")?;
    let unpacked = format!("{STORAGE}/import");
    fs::create_dir_all(stack.on_node(&unpacked))?;
    stack.run(&["tar", "-C", &unpacked, "-xf", &archive.to_string_lossy()]).await?;
    lay_out(&stack.on_node(&unpacked), &stack.on_node(STORAGE).join("docker/registry/v2"))
}

/// Puts an unpacked OCI archive where a registry has its images.
fn lay_out(archive: &Path, root: &Path) -> Result<()> {
    let repository = root.join("repositories/private/nonroot");
    let blob = |digest: &str| -> Result<Vec<u8>> {
        let path = archive.join("blobs/sha256").join(hex(digest)?);
        fs::read(&path).with_context(|| format!("read {}", path.display()))
    };
    let link = |place: String, digest: &str| write(&repository.join(place), digest.as_bytes());
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a digest is a text");

    let index: Value = serde_json::from_slice(&fs::read(archive.join("index.json"))?)?;
    let manifest_digest = text(&index["manifests"][0]["digest"])?;
    let manifest: Value = serde_json::from_slice(&blob(&manifest_digest)?)?;
    let layers = manifest["layers"].as_array().context("a manifest has layers")?;
    let mut parts = vec![text(&manifest["config"]["digest"])?];
    for layer in layers {
        parts.push(text(&layer["digest"])?);
    }
    for digest in &parts {
        link(format!("_layers/sha256/{}/link", hex(digest)?), digest)?;
    }
    for digest in parts.iter().chain([&manifest_digest]) {
        let hex = hex(digest)?;
        write(&root.join(format!("blobs/sha256/{}/{hex}/data", &hex[..2])), &blob(digest)?)?;
    }
    let hex = hex(&manifest_digest)?;
    link(format!("_manifests/revisions/sha256/{hex}/link"), &manifest_digest)?;
    link(format!("_manifests/tags/1/index/sha256/{hex}/link"), &manifest_digest)?;
    link("_manifests/tags/1/current/link".to_owned(), &manifest_digest)
}

fn hex(digest: &str) -> Result<&str> {
    digest.strip_prefix("sha256:").with_context(|| format!("digest {digest}"))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    let parent = path.parent().context("a file has a directory")?;
    fs::create_dir_all(parent)?;
    fs::write(path, content).with_context(|| format!("write {}", path.display()))
}
