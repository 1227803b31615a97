//! A server on the loopback, an authority that signs for it, and clients of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::client::WantsClientCert;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub use crate::authorities::testing::Authority;
use crate::clock::Clock;
use crate::config::{FeatureGates, TlsVersion};
use crate::host::{CgroupVersion, LinuxHost, Roots};
use crate::kube::Reviews;
use crate::kube::fake::FakeCluster;
use crate::logs::read::LogReads;
use crate::logs::{Disk, Endings};
use crate::objects::Objects;
use crate::objects::tokens::Tokens;
use crate::pleg::Pleg;
use crate::pod::Source;
use crate::server::{
    About, AuthnConfig, AuthzConfig, CertificateSource, Doors, Exhibits, Health, ServerConfig, Switches, TlsConfig,
    Verbosity,
};
use crate::stats::{Stats, StatsConfig};
use crate::sync::Roster;
use crate::sync::mirror::Mirrors;
use crate::sync::testing::FakeRuntime;
use crate::volumes::Volumes;

/// What a client shows.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Self {
        Identity { chain, key }
    }

    /// Of the certificate, in hexadecimal digits.
    pub fn digest(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.chain[0]);
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whatever the certificate, which we would not show if it were for us to say.
    fn key(&self) -> Arc<CertifiedKey> {
        let key = default_provider().key_provider.load_private_key(self.key.clone_key()).expect("a key");
        Arc::new(CertifiedKey::new(self.chain.clone(), key))
    }
}

impl Authority {
    /// Certificate and key of a server on the loopback.
    pub fn server(&self) -> (String, String) {
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("the name is valid");
        let key = KeyPair::generate().expect("ring makes keys");
        (params.signed_by(&key, &self.0).expect("the authority may sign").pem(), key.serialize_pem())
    }

    /// The same, up to the beginning of this year.
    pub fn server_until(&self, year: i32) -> (String, String) {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("the name is valid");
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("ring makes keys");
        (params.signed_by(&key, &self.0).expect("the authority may sign").pem(), key.serialize_pem())
    }

    /// The same of a server of this name, for a while.
    pub fn server_named(&self, name: &str, life: Duration) -> (String, String) {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("the name is valid");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        expire_in(&mut params, life);
        let key = KeyPair::generate().expect("ring makes keys");
        (params.signed_by(&key, &self.0).expect("the authority may sign").pem(), key.serialize_pem())
    }

    pub fn client(&self, user: &str, groups: &[&str], last_year: i32) -> Identity {
        let mut params = CertificateParams::default();
        params.not_after = rcgen::date_time_ymd(last_year, 1, 1);
        self.client_of(user, groups, params)
    }

    /// One that expires soon.
    pub fn client_for(&self, user: &str, life: Duration) -> Identity {
        let mut params = CertificateParams::default();
        expire_in(&mut params, life);
        self.client_of(user, &[], params)
    }

    fn client_of(&self, user: &str, groups: &[&str], mut params: CertificateParams) -> Identity {
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, user);
        for group in groups {
            name.push(DnType::OrganizationName, *group);
        }
        params.distinguished_name = name;
        let key = KeyPair::generate().expect("ring makes keys");
        let certificate = params.signed_by(&key, &self.0).expect("the authority may sign");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("rcgen writes PKCS#8");
        Identity { chain: vec![certificate.into()], key }
    }
}

pub struct House {
    pub dir: TempDir,
    pub authority: Authority,
    pub cluster: FakeCluster,
    pub runtime: Arc<FakeRuntime>,
    pub address: SocketAddr,
    pub read_only: SocketAddr,
    server: JoinHandle<()>,
}

pub const NODE: &str = "node-1";
pub const NEVER: i32 = 4000;

impl House {
    /// Opens one as configured by default, but for what `change` does.
    pub async fn open(change: impl FnOnce(&mut ServerConfig)) -> Self {
        let (dir, authority) = (tempfile::tempdir().expect("a temporary directory"), Authority::new("ours"));
        let (certificate, key) = authority.server();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("the temporary directory is writable");
            path
        };
        let loopback = "127.0.0.1:0".parse().expect("an address");
        let mut config = ServerConfig {
            main: Some(loopback),
            read_only: Some(loopback),
            tls: TlsConfig {
                certificate: CertificateSource::Files {
                    certificate: file("tls.crt", &certificate),
                    key: file("tls.key", &key),
                },
                cipher_suites: Vec::new(),
                curves: Vec::new(),
                min_version: TlsVersion::Unset,
                client_ca: Some(file("ca.crt", &authority.pem())),
            },
            authn: AuthnConfig { tokens: Some(Duration::from_secs(120)), anonymous: false },
            authz: AuthzConfig::Webhook {
                node_name: NODE.into(),
                keep_allowed: Duration::from_secs(300),
                keep_refused: Duration::from_secs(30),
            },
            switches: Switches { debugging: true, system_logs: true, profiling: true, debug_flags: true },
            log_queries: false,
            split_streams: true,
            stream_idle: Duration::from_secs(4 * 60 * 60),
            configz: r#"{"kubeletconfig":{}}"#.into(),
            checkpoints: Some(dir.path().join("checkpoints")),
            flagz: true,
            statusz: true,
            flags: [("config".to_owned(), "/etc/config.yaml".to_owned())].into(),
            verbosity: Verbosity::new(|_| {}),
        };
        change(&mut config);

        let clock = Clock::system();
        let doors = Doors::open(config, host(&dir), clock.clone()).await.expect("the server opens");
        let (cluster, runtime) = (FakeCluster::default(), Arc::new(FakeRuntime::default()));
        let (disk, pleg) =
            (Disk::new(Duration::from_secs(10)), Pleg::new(runtime.clone(), host(&dir), Arc::new(|_: &_| {})));
        let exhibits = Exhibits {
            health: Health::new(),
            roster: Roster::with(vec![(pod("web", "a"), Source::Api), (pod("static", "b"), Source::File)]),
            runtime: runtime.clone(),
            log_reads: LogReads::new(Arc::new(pleg.clone()), Endings::default(), disk.clone()),
            disk,
            stats: Stats::new(stats(&dir), runtime.clone(), pleg.clone(), host(&dir), Clock::system()),
            pleg,
            mirrors: Mirrors::default(),
            volumes: volumes(&dir, &clock),
            about: About {
                node_name: NODE.to_owned(),
                version: "v1.36.0".to_owned(),
                cgroup_version: CgroupVersion::V2,
                gates: FeatureGates::default(),
            },
        };
        let unused = ([127, 0, 0, 1], 0).into();
        let (address, read_only) = (doors.address().unwrap_or(unused), doors.read_only_address().unwrap_or(unused));
        let reviews: Arc<dyn Reviews> = Arc::new(cluster.clone());
        let server = tokio::spawn(doors.serve(exhibits, Some(reviews)));
        House { dir, authority, cluster, runtime, address, read_only, server }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A client of the house's own authority who may do everything that is a `get`.
    pub fn admin(&self) -> Identity {
        for subresource in ["pods", "proxy", "healthz", "configz", "log", "stats", "metrics"] {
            self.cluster.grant("admin", "get", subresource);
        }
        self.authority.client("admin", &["system:masters"], NEVER)
    }

    /// Makes this token somebody's.
    pub fn issue(&self, token: &str, user: &str) {
        let owner = UserInfo { username: Some(user.to_owned()), ..UserInfo::default() };
        self.cluster.set_token_owner(token, Some(owner));
    }

    pub async fn connect(&self, identity: Option<&Identity>, protocol: &[u8]) -> TlsStream<TcpStream> {
        let builder = trusting(&self.authority, rustls::DEFAULT_VERSIONS);
        let mut config = match identity {
            Some(identity) => builder
                .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::clone(&identity.key())))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        self.handshake(config).await.expect("a handshake")
    }

    /// Speaking this version only.
    pub async fn connect_with(
        &self,
        version: &'static SupportedProtocolVersion,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.handshake(trusting(&self.authority, &[version]).with_no_client_auth()).await
    }

    async fn handshake(&self, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        let stream = TcpStream::connect(self.address).await?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// One GET over a connection of its own.
    pub async fn get(&self, identity: Option<&Identity>, token: Option<&str>, path: &str) -> (u16, String) {
        self.ask(Method::GET, identity, token, path).await
    }

    pub async fn ask(
        &self,
        method: Method,
        identity: Option<&Identity>,
        token: Option<&str>,
        path: &str,
    ) -> (u16, String) {
        let stream = self.connect(identity, b"http/1.1").await;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP begins");
        tokio::spawn(connection);
        read(sender.send_request(request(method, token, path)).await.expect("an answer")).await
    }

    /// What the port for everybody says.
    pub async fn get_plain(&self, path: &str) -> (u16, String) {
        let stream = TcpStream::connect(self.read_only).await.expect("a connection");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP begins");
        tokio::spawn(connection);
        read(sender.send_request(request(Method::GET, None, path)).await.expect("an answer")).await
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn trusting(
    authority: &Authority,
    versions: &[&'static SupportedProtocolVersion],
) -> rustls::ConfigBuilder<ClientConfig, WantsClientCert> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.0.der().clone()).expect("a certificate");
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
        .expect("the provider supports them")
        .with_root_certificates(roots)
}

pub fn host(dir: &TempDir) -> Arc<LinuxHost> {
    Arc::new(LinuxHost::new(Roots::machine(dir.path().to_owned()), Duration::from_secs(10), Clock::system()))
}

fn volumes(dir: &TempDir, clock: &Clock) -> Volumes {
    let (objects, tokens) = (Objects::new(None, Arc::new(|_| {})), Tokens::new(None, clock.clone()));
    Volumes::new(host(dir), objects, tokens, Arc::new(BTreeMap::new), dir.path().to_owned())
}

/// Of a machine whose files the tests write.
fn stats(dir: &TempDir) -> StatsConfig {
    let root = |name: &str| dir.path().join(name);
    let [proc, sys, cgroup, etc, var_lib] = ["proc", "sys", "cgroup", "etc", "lib"].map(root);
    StatsConfig {
        node_name: NODE.into(),
        roots: Roots { proc, sys, cgroup, run: root("run"), etc, var_lib, root_dir: root("kubelet") },
        pod_logs_dir: root("logs"),
        cgroup_root: "/".into(),
        cgroups_per_qos: true,
        kubelet_cgroups: String::new(),
        runtime_cgroups: String::new(),
        system_cgroups: String::new(),
        volume_period: None,
    }
}

pub fn request(method: Method, token: Option<&str>, path: &str) -> Request<Empty<Bytes>> {
    let request = Request::builder().method(method).uri(path).header("host", "node");
    let request = match token {
        Some(token) => request.header("authorization", format!("Bearer {token}")),
        None => request,
    };
    request.body(Empty::new()).expect("a request")
}

pub async fn read(response: Response<Incoming>) -> (u16, String) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("a whole answer").to_bytes();
    (status, String::from_utf8(body.to_vec()).expect("text"))
}

fn pod(name: &str, uid: &str) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.name = Some(name.to_owned());
    pod.metadata.namespace = Some("shop".to_owned());
    pod.metadata.uid = Some(uid.to_owned());
    let main = Container { name: "main".to_owned(), ..Container::default() };
    pod.spec = Some(PodSpec { containers: vec![main], ..PodSpec::default() });
    pod
}

fn expire_in(params: &mut CertificateParams, life: Duration) {
    let now = u64::try_from(Clock::system().wall().as_second()).expect("it is after 1970");
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now) + life;
}
