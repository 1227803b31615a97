//! A cluster that signs, or does not, and a machine whose files are real.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::stream::{self, BoxStream, StreamExt};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
};
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, KeyPair, date_time_ymd,
};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::watch;

pub use crate::authorities::testing::Authority;
use crate::clock::Clock;
use crate::clock::build::built;
use crate::host::{LinuxHost, Roots};
use crate::identity::client::{IdentityError, Pause};
use crate::identity::{Access, ClientIdentity, IdentityConfig};
use crate::kube::{ApiError, CertificateRequests, LoadError, ObjectState, Result};

pub const NODE: &str = "edge-7";
pub const USER: &str = "system:node:edge-7";
pub const HOUR: SignedDuration = SignedDuration::from_hours(1);

impl Authority {
    /// A certificate and its key in one file, valid for `life` from `from` on.
    pub fn bundle(&self, user: &str, from: Timestamp, life: SignedDuration) -> String {
        let key = KeyPair::generate().expect("ring makes keys");
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, user);
        date(&mut params, from, life);
        let certificate = params.signed_by(&key, &self.0).expect("the authority may sign");
        format!("{}{}", certificate.pem(), key.serialize_pem())
    }

    fn sign(&self, request: &[u8], from: Timestamp, life: SignedDuration) -> String {
        let pem = std::str::from_utf8(request).expect("a request is text");
        let mut request = CertificateSigningRequestParams::from_pem(pem).expect("the request is signed by its key");
        date(&mut request.params, from, life);
        request.signed_by(&self.0).expect("the authority may sign").pem()
    }
}

fn date(params: &mut CertificateParams, from: Timestamp, life: SignedDuration) {
    let time = |time: Timestamp| {
        let seconds = u64::try_from(time.as_second()).expect("it is after 1970");
        date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
    };
    (params.not_before, params.not_after) = (time(from), time(from + life));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
}

/// What becomes of a request.
#[derive(Clone)]
pub enum Answer {
    Sign(SignedDuration),
    /// When this file is there no more.
    SignAfter(PathBuf, SignedDuration),
    /// By a clock that is hours behind ours.
    SignLate,
    /// A certificate for a key that nobody has.
    SignAnother,
    Deny,
    Fail,
    Never,
    /// The request is not taken at all.
    Refuse,
    /// It goes before it is signed.
    Delete,
}

#[derive(Default)]
struct State {
    answers: VecDeque<Answer>,
    requests: BTreeMap<String, (CertificateSigningRequest, Answer)>,
    told: Vec<String>,
}

/// The cluster and the machine of one test.
pub struct World {
    pub clock: Clock,
    pub authority: Arc<Authority>,
    pub dir: TempDir,
    /// Counts up when the connections have found the kubeconfig changed.
    pub reloads: watch::Sender<u64>,
    state: Arc<Mutex<State>>,
}

/// The API server with some credentials.
#[derive(Clone)]
struct Api {
    who: &'static str,
    state: Arc<Mutex<State>>,
    authority: Arc<Authority>,
    clock: Clock,
}

struct FakeAccess {
    own: Api,
    reloads: watch::Receiver<u64>,
}

impl World {
    pub fn new() -> World {
        World {
            clock: Clock::simulated(built() + HOUR, 7),
            authority: Arc::new(Authority::new("cluster")),
            dir: tempfile::tempdir().expect("the temporary directory is writable"),
            reloads: watch::Sender::new(0),
            state: Arc::default(),
        }
    }

    /// A machine as kubeadm leaves it: a bootstrap kubeconfig and nothing else.
    pub fn fresh() -> World {
        let world = World::new();
        world.give_bootstrap_kubeconfig();
        world
    }

    pub fn give_bootstrap_kubeconfig(&self) {
        let authority = STANDARD.encode(self.authority.pem());
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "k", "cluster": { "server": "https://api:6443", "certificate-authority-data": authority } }],
            "contexts": [{ "name": "c", "context": { "cluster": "k", "user": "u" } }],
            "users": [{ "name": "u", "user": { "token": "abcdef.0123456789abcdef" } }],
        });
        self.write("bootstrap.conf", &kubeconfig.to_string());
    }

    /// A kubeconfig that leads to our certificate.
    pub fn give_kubeconfig(&self) {
        let current = self.path("pki/kubelet-client-current.pem");
        self.give_kubeconfig_of(json!({ "client-certificate": current, "client-key": current }));
    }

    pub fn give_kubeconfig_of(&self, user: serde_json::Value) {
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "k", "cluster": { "server": "https://api:6443" } }],
            "contexts": [{ "name": "c", "context": { "cluster": "k", "user": "u" } }],
            "users": [{ "name": "u", "user": user }],
        });
        self.write("kubelet.conf", &kubeconfig.to_string());
    }

    /// A certificate in use, valid from `ago` before now.
    pub fn give_certificate(&self, ago: SignedDuration, life: SignedDuration) {
        let from = self.clock.wall() - ago;
        self.give_current("kubelet-client-2020-01-01-00-00-00.pem", &self.authority.bundle(USER, from, life));
    }

    pub fn give_current(&self, name: &str, pem: &str) {
        self.write(&format!("pki/{name}"), pem);
        let link = self.path("pki/kubelet-client-current.pem");
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(self.path(&format!("pki/{name}")), link).expect("a link can be made");
    }

    pub fn identity(&self, rotates: bool) -> ClientIdentity {
        let config = IdentityConfig {
            node_name: NODE.to_owned(),
            kubeconfig: self.path("kubelet.conf"),
            bootstrap_kubeconfig: Some(self.path("bootstrap.conf")),
            cert_dir: self.path("pki"),
            rotates,
        };
        ClientIdentity::new(config, self.host(), self.access(), self.clock.clone())
    }

    pub fn host(&self) -> Arc<LinuxHost> {
        let roots = Roots::machine(self.dir.path().to_owned());
        Arc::new(LinuxHost::new(roots, Duration::from_secs(30), Clock::system()))
    }

    pub fn access(&self) -> Arc<dyn Access> {
        let (state, authority, clock) = (self.state.clone(), self.authority.clone(), self.clock.clone());
        Arc::new(FakeAccess { own: Api { who: "node", state, authority, clock }, reloads: self.reloads.subscribe() })
    }

    /// What the next requests come to, in order; after them they are left unanswered.
    pub fn answer(&self, answers: impl IntoIterator<Item = Answer>) {
        self.state().answers.extend(answers);
    }

    /// The requests that nobody has answered are answered now.
    pub fn sign_all(&self, life: SignedDuration) {
        self.state().requests.values_mut().for_each(|(_, answer)| *answer = Answer::Sign(life));
    }

    /// What was asked and taken up since the last time, in order.
    pub fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.state().told)
    }

    pub fn requests(&self) -> Vec<CertificateSigningRequest> {
        self.state().requests.values().map(|(request, _)| request.clone()).collect()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("it is in the test's directory")).expect("directories can be made");
        fs::write(path, content).expect("the temporary directory is writable");
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    pub fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).expect("the file is there").mode() & 0o7777
    }

    /// Names in the certificate directory, in order.
    pub fn files(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path("pki")) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The dated file in use.
    pub fn in_use(&self) -> String {
        let target = fs::read_link(self.path("pki/kubelet-client-current.pem")).expect("there is a current one");
        assert!(target.is_absolute(), "{}", target.display());
        target.file_name().expect("it leads to a file").to_string_lossy().into_owned()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with the lock")
    }
}

/// Turns until there is something to wait for.
pub async fn settle(identity: &mut ClientIdentity) -> std::result::Result<Pause, IdentityError> {
    for _ in 0..10 {
        match identity.turn().await? {
            Pause::None => {}
            pause => return Ok(pause),
        }
    }
    panic!("it never comes to rest");
}

#[async_trait]
impl Access for FakeAccess {
    fn own(&self) -> &dyn CertificateRequests {
        &self.own
    }

    async fn bootstrap(&self, _: &Path) -> std::result::Result<Box<dyn CertificateRequests>, LoadError> {
        Ok(Box::new(Api { who: "bootstrap", ..self.own.clone() }))
    }

    async fn take_up(&self, certificate: Option<&Path>) -> std::result::Result<(), LoadError> {
        let what = if certificate.is_some() { "take up current" } else { "take up kubeconfig" };
        self.own.state.lock().expect("no test panics with the lock").told.push(what.to_owned());
        Ok(())
    }

    fn reloads(&self) -> watch::Receiver<u64> {
        self.reloads.clone()
    }
}

#[async_trait]
impl CertificateRequests for Api {
    async fn create_certificate_request(
        &self,
        request: &CertificateSigningRequest,
    ) -> Result<CertificateSigningRequest> {
        let what = || "create certificate signing request".to_owned();
        let mut state = self.state.lock().expect("no test panics with the lock");
        let number = state.requests.len();
        let name = request.metadata.name.clone().unwrap_or_else(|| format!("csr-{number}"));
        state.told.push(format!("{} asks", self.who));
        if state.requests.contains_key(&name) {
            return Err(ApiError::AlreadyExists { what: what() });
        }
        let answer = state.answers.pop_front().unwrap_or(Answer::Never);
        if let Answer::Refuse = answer {
            return Err(ApiError::Refused { what: what(), message: "Unauthorized".to_owned() });
        }
        let mut created = request.clone();
        created.metadata.name = Some(name.clone());
        state.requests.insert(name, (created.clone(), answer));
        Ok(created)
    }

    fn watch_certificate_request(&self, name: &str) -> BoxStream<'static, ObjectState<CertificateSigningRequest>> {
        let state = self.state.lock().expect("no test panics with the lock");
        let Some((request, answer)) = state.requests.get(name).cloned() else {
            return stream::iter([ObjectState::Absent]).chain(stream::pending()).boxed();
        };
        let pending = ObjectState::Present(Box::new(request.clone()));
        let answered = match answer {
            Answer::Delete => Some(ObjectState::Absent),
            Answer::Never | Answer::Refuse => None,
            answer => Some(ObjectState::Present(Box::new(self.answered(request, answer)))),
        };
        stream::iter([pending]).chain(stream::iter(answered)).chain(stream::pending()).boxed()
    }
}

impl Api {
    fn answered(&self, mut request: CertificateSigningRequest, answer: Answer) -> CertificateSigningRequest {
        let mut status = CertificateSigningRequestStatus::default();
        let now = self.clock.wall();
        let condition = |type_: &str| CertificateSigningRequestCondition {
            type_: type_.to_owned(),
            reason: Some("Test".to_owned()),
            message: Some("not today".to_owned()),
            ..CertificateSigningRequestCondition::default()
        };
        match answer {
            Answer::Sign(life) => {
                let pem = self.authority.sign(&request.spec.request.0, now, life);
                status.certificate = Some(ByteString(pem.into_bytes()));
            }
            Answer::SignAfter(file, life) => {
                fs::remove_file(file).expect("it was there");
                let pem = self.authority.sign(&request.spec.request.0, now, life);
                status.certificate = Some(ByteString(pem.into_bytes()));
            }
            Answer::SignLate => {
                let minute = SignedDuration::from_mins(1);
                let pem = self.authority.sign(&request.spec.request.0, now - HOUR * 10, HOUR * 10 + minute);
                status.certificate = Some(ByteString(pem.into_bytes()));
            }
            Answer::SignAnother => {
                let pem = self.authority.bundle(USER, now, HOUR);
                let certificate = pem.split_inclusive("-----END CERTIFICATE-----").next().expect("it begins with it");
                status.certificate = Some(ByteString(certificate.as_bytes().to_vec()));
            }
            Answer::Deny => status.conditions = Some(vec![condition("Denied")]),
            Answer::Fail => status.conditions = Some(vec![condition("Failed")]),
            Answer::Never | Answer::Refuse | Answer::Delete => {}
        }
        request.status = Some(status);
        request
    }
}
