use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec, TokenRequestStatus};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::process::COMPLAINT_BYTES_MAX;
use super::*;
use crate::kube::fake::FakeCluster;
use crate::pod::testing::yaml;

const V1: &str = "credentialprovider.kubelet.k8s.io/v1";

/// A program that answers as it is told, and remembers what it was asked.
#[derive(Default)]
struct Told {
    answer: Mutex<String>,
    asked: Mutex<Vec<String>>,
}

#[async_trait]
impl Programs for Told {
    async fn run(&self, _: &Provider, input: &[u8]) -> Result<Vec<u8>, String> {
        self.asked.lock().unwrap().push(String::from_utf8(input.to_vec()).unwrap());
        tokio::time::sleep(Duration::from_secs(1)).await;
        match self.answer.lock().unwrap().as_str() {
            "" => Err("it is broken".into()),
            answer => Ok(answer.as_bytes().to_vec()),
        }
    }
}

impl Told {
    fn answers(&self, key: &str, keep: Option<&str>) {
        let auth = json!({ "*.reg.io": { "username": "me", "password": "secret" } });
        let answer = json!({ "apiVersion": V1, "kind": "CredentialProviderResponse",
            "cacheKeyType": key, "cacheDuration": keep, "auth": auth });
        *self.answer.lock().unwrap() = answer.to_string();
    }

    fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn program(path: &Path) {
    std::fs::write(path, "").expect("written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("made executable");
}

/// A directory with the programs `a` and `ask`, and a configuration beside it.
fn config(providers: &str) -> Result<Vec<Provider>, String> {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let path = dir.path().join("c.yaml");
    let text =
        format!("{{kind: CredentialProviderConfig, apiVersion: kubelet.config.k8s.io/v1, providers: {providers}}}");
    std::fs::write(&path, text).expect("written");
    ["a", "ask"].iter().for_each(|name| program(&dir.path().join(name)));
    std::fs::write(dir.path().join("notes"), "").expect("written");
    read_config(&path, dir.path(), true).map_err(|error| error.to_string())
}

fn one() -> Vec<Provider> {
    config(&format!("[{{name: ask, matchImages: ['*.reg.io'], defaultCacheDuration: 1m, apiVersion: {V1}}}]"))
        .expect("a valid configuration")
}

fn scene() -> (Arc<Told>, Providers) {
    let told = Arc::new(Told::default());
    let providers = Providers::new(one(), told.clone(), Accounts::new(None, Clock::system()), Clock::system());
    (told, providers)
}

async fn asked(providers: &Providers, image: &str, pod: &Pod) -> Vec<(Owner, Vec<(String, Entry)>)> {
    providers.entries(&Reference::parse(image).expect("a valid name"), pod).await
}

async fn users(providers: &Providers, image: &str) -> usize {
    asked(providers, image, &Pod::default()).await.iter().map(|(_, entries)| entries.len()).sum()
}

#[tokio::test(start_paused = true)]
async fn only_a_responsible_program_is_asked_and_with_the_name_of_the_repository() {
    let (told, providers) = scene();
    told.answers("Image", Some("0s"));
    assert_eq!(users(&providers, "other.io/app:1").await, 0);
    assert_eq!(told.count(), 0);
    assert_eq!(users(&providers, "eu.reg.io/team/app:1").await, 1);
    let asked = told.asked.lock().unwrap()[0].clone();
    let expected = json!({ "apiVersion": V1, "kind": "CredentialProviderRequest", "image": "eu.reg.io/team/app" });
    assert_eq!(serde_json::from_str::<serde_json::Value>(&asked).unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_kept_as_long_and_for_what_it_says() {
    let check = async |key: &str, keep: Option<&str>, image: &str, after: u64, expected: usize| {
        let (told, providers) = scene();
        told.answers(key, keep);
        users(&providers, "a.reg.io/one").await;
        tokio::time::sleep(Duration::from_secs(after)).await;
        users(&providers, image).await;
        assert_eq!(told.count(), expected, "{key} {keep:?} {image} after {after} s");
    };
    check("Image", Some("10s"), "a.reg.io/one", 9, 1).await;
    check("Image", Some("10s"), "a.reg.io/one:tag", 9, 1).await;
    check("Image", Some("10s"), "a.reg.io/one", 11, 2).await;
    check("Image", Some("10s"), "a.reg.io/two", 0, 2).await;
    check("Registry", Some("10s"), "a.reg.io/two", 0, 1).await;
    check("Registry", Some("10s"), "b.reg.io/two", 0, 2).await;
    check("Global", Some("10s"), "b.reg.io/two", 0, 1).await;
    check("Global", Some("0s"), "a.reg.io/one", 0, 2).await;
    check("Global", None, "a.reg.io/one", 59, 1).await;
    check("Global", None, "a.reg.io/one", 61, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_pods_asks_once() {
    let (told, providers) = scene();
    told.answers("Image", Some("0s"));
    let all = futures::future::join_all((0..100).map(|_| users(&providers, "a.reg.io/one"))).await;
    assert_eq!((all, told.count()), (vec![1; 100], 1));
}

#[tokio::test(start_paused = true)]
async fn a_program_that_fails_or_talks_nonsense_is_passed_over() {
    let (told, providers) = scene();
    assert_eq!(users(&providers, "a.reg.io/one").await, 0);
    *told.answer.lock().unwrap() = "not JSON".into();
    assert_eq!(users(&providers, "a.reg.io/one").await, 0);
    *told.answer.lock().unwrap() =
        json!({ "apiVersion": "v9", "kind": "CredentialProviderResponse", "cacheKeyType": "Global" }).to_string();
    assert_eq!(users(&providers, "a.reg.io/one").await, 0);
    told.answers("Global", None);
    assert_eq!(users(&providers, "a.reg.io/one").await, 1, "failures are not kept");
}

#[test]
fn what_is_wrong_in_a_configuration_is_named() {
    let check = |entry: &str, expected: &str| {
        let error = config(&format!("[{{{entry}}}]")).expect_err(entry);
        assert!(error.contains(expected), "{entry}: {error}");
    };
    let rest = format!("matchImages: [a.io], defaultCacheDuration: 1m, apiVersion: {V1}");
    check(&format!("name: ../up, {rest}"), "providers[0].name");
    check(&format!("name: a, defaultCacheDuration: 1m, apiVersion: {V1}"), "providers[0].matchImages");
    check(&format!("name: a, matchImages: [a.io], apiVersion: {V1}"), "providers[0].defaultCacheDuration");
    check("name: a, matchImages: [a.io], defaultCacheDuration: 1m, apiVersion: v9", "providers[0].apiVersion");
    check(&format!("name: a, {rest}}}, {{name: a, {rest}"), "configured twice");
    assert!(config("[]").expect_err("empty").contains("no provider"));
    check(&format!("name: absent, {rest}"), "/absent: No such file");
    check(&format!("name: notes, {rest}"), "/notes: not an executable file");
    check(&format!("name: a, args: null, colour: red, {rest}"), "colour");
    assert!(one()[0].program.ends_with("ask"));
}

#[test]
fn what_is_wrong_with_token_attributes_is_named() {
    let entry = |attributes: &str, version: &str| {
        format!(
            "[{{name: a, matchImages: [a.io], defaultCacheDuration: 1m, apiVersion: {version}, \
             tokenAttributes: {{{attributes}}}}}]"
        )
    };
    let check = |attributes: &str, expected: &str| {
        let error = config(&entry(attributes, V1)).expect_err(attributes);
        assert!(error.contains(&format!("providers[0].tokenAttributes{expected}")), "{attributes}: {error}");
    };
    check("", ".serviceAccountTokenAudience: is missing");
    check("serviceAccountTokenAudience: a", ".cacheType: is missing");
    check("serviceAccountTokenAudience: a, cacheType: Token", ".requireServiceAccount: is missing");
    let rest = "serviceAccountTokenAudience: a, cacheType: Token";
    let required = ".requiredServiceAccountAnnotationKeys: ";
    check(&format!("{rest}, requireServiceAccount: false, requiredServiceAccountAnnotationKeys: [k]"), required);
    let rest = format!("{rest}, requireServiceAccount: true");
    check(&format!("{rest}, requiredServiceAccountAnnotationKeys: ['a b']"), required);
    check(&format!("{rest}, requiredServiceAccountAnnotationKeys: [k, k]"), required);
    let both = "requiredServiceAccountAnnotationKeys: [k], optionalServiceAccountAnnotationKeys: [k]";
    check(&format!("{rest}, {both}"), ".optionalServiceAccountAnnotationKeys: \"k\" is required already");
    let old = config(&entry(&rest, "credentialprovider.kubelet.k8s.io/v1beta1")).expect_err("an old API");
    assert!(old.contains("providers[0].tokenAttributes: need apiVersion"), "{old}");
    let cache = config(&entry("serviceAccountTokenAudience: a, cacheType: Pod", V1)).expect_err("no such type");
    assert!(cache.contains("Pod"), "{cache}");
    config(&entry(&format!("{rest}, requiredServiceAccountAnnotationKeys: [example.com/Role]"), V1)).expect("valid");
}

#[test]
fn token_attributes_need_their_gate() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let text = with_account("Token", true).1;
    std::fs::write(dir.path().join("c.yaml"), text).expect("written");
    program(&dir.path().join("ask"));
    let error = read_config(&dir.path().join("c.yaml"), dir.path(), false).expect_err("the gate is off");
    assert!(error.to_string().contains("KubeletServiceAccountTokenForCredentialProviders"), "{error}");
}

/// A provider that is told of service accounts, and its configuration.
fn with_account(cache: &str, is_required: bool) -> (Vec<Provider>, String) {
    let (required, optional) = if is_required { ("[role]", "[region]") } else { ("[]", "[role, region]") };
    let list = format!(
        "[{{name: ask, matchImages: ['*.reg.io'], defaultCacheDuration: 1m, apiVersion: {V1}, tokenAttributes: {{\
         serviceAccountTokenAudience: vault, cacheType: {cache}, requireServiceAccount: {is_required}, \
         requiredServiceAccountAnnotationKeys: {required}, optionalServiceAccountAnnotationKeys: {optional}}}}}]"
    );
    let text = format!("{{kind: CredentialProviderConfig, apiVersion: kubelet.config.k8s.io/v1, providers: {list}}}");
    (config(&list).expect("a valid configuration"), text)
}

struct Accounted {
    told: Arc<Told>,
    cluster: Arc<FakeCluster>,
    providers: Providers,
}

impl Accounted {
    fn new(cache: &str, is_required: bool) -> Self {
        let (told, cluster) = (Arc::new(Told::default()), Arc::new(FakeCluster::default()));
        told.answers("Global", Some("1h"));
        let accounts = Accounts::new(Some(cluster.clone()), Clock::system());
        let providers = Providers::new(with_account(cache, is_required).0, told.clone(), accounts, Clock::system());
        Accounted { told, cluster, providers }
    }

    fn account(&self, name: &str, uid: &str, annotations: &str) {
        let account =
            format!("{{metadata: {{name: {name}, namespace: shop, uid: {uid}, annotations: {annotations}}}}}");
        self.cluster.put_service_account(yaml::<ServiceAccount>(&account));
    }

    /// What the next pod without a token is granted.
    fn grant(&self, token: &str) {
        self.cluster.grant_token(TokenRequest {
            spec: TokenRequestSpec { expiration_seconds: Some(3600), ..TokenRequestSpec::default() }.into(),
            status: Some(TokenRequestStatus {
                token: Some(token.to_owned()),
                expiration_timestamp: Some(Time("2030-01-01T00:00:00Z".parse().expect("a test time parses"))),
            }),
            ..TokenRequest::default()
        });
    }

    async fn ask(&self, pod: &str, account: &str) -> Vec<(Owner, Vec<(String, Entry)>)> {
        let pod: Pod = yaml(&format!(
            "{{metadata: {{name: {pod}, namespace: shop, uid: {pod}}}, spec: {{serviceAccountName: '{account}', \
             containers: []}}}}"
        ));
        asked(&self.providers, "eu.reg.io/team/app:1", &pod).await
    }

    fn requests(&self) -> Vec<Value> {
        let asked = self.told.asked.lock().expect("not poisoned");
        asked.iter().map(|asked| serde_json::from_str(asked).expect("JSON")).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_program_is_told_the_service_account_and_its_answer_is_the_accounts() {
    let scene = Accounted::new("ServiceAccount", true);
    scene.account("robot", "u1", "{role: puller, region: eu, other: x}");
    scene.grant("t1");
    let found = scene.ask("a", "robot").await;
    let [(Owner::Account(account), entries)] = found.as_slice() else { panic!("{} answers", found.len()) };
    assert_eq!((account.name.as_str(), account.uid.as_str(), entries.len()), ("robot", "u1", 1));
    let expected = json!({ "apiVersion": V1, "kind": "CredentialProviderRequest", "image": "eu.reg.io/team/app",
        "serviceAccountToken": "t1", "serviceAccountAnnotations": { "role": "puller", "region": "eu" } });
    assert_eq!(scene.requests(), [expected]);
    let calls = scene.cluster.calls();
    let requests: Vec<_> = calls.iter().filter(|(name, _)| name == "request token shop/robot").collect();
    let [(_, request)] = requests.as_slice() else { panic!("{calls:?}") };
    assert_eq!(request["metadata"]["uid"], "u1");
    assert_eq!(request["spec"]["audiences"], json!(["vault"]));
    assert_eq!(request["spec"]["boundObjectRef"]["name"], "a");
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_kept_for_the_account_or_for_the_token() {
    for (cache, expected) in [("ServiceAccount", 1), ("Token", 2)] {
        let scene = Accounted::new(cache, true);
        scene.account("robot", "u1", "{role: puller}");
        scene.grant("t1");
        scene.grant("t2");
        for pod in ["a", "a", "b", "a"] {
            assert_eq!(scene.ask(pod, "robot").await.len(), 1);
        }
        assert_eq!(scene.told.count(), expected, "{cache}");
        // Others are asked for anew: another account, the same with other annotations or another UID.
        scene.account("other", "u2", "{role: puller}");
        scene.grant("t3");
        scene.ask("c", "other").await;
        scene.account("robot", "u1", "{role: pusher}");
        scene.ask("a", "robot").await;
        scene.account("robot", "u3", "{role: puller}");
        scene.grant("t4");
        scene.ask("a", "robot").await;
        assert_eq!(scene.told.count(), expected + 3, "{cache}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_program_is_not_asked_for_accounts_that_are_not_for_it() {
    let scene = Accounted::new("ServiceAccount", true);
    scene.account("plain", "u1", "{}");
    for account in ["", "plain", "absent"] {
        assert_eq!(scene.ask("a", account).await.len(), 0, "{account:?}");
    }
    scene.account("refused", "u2", "{role: puller}");
    assert_eq!(scene.ask("a", "refused").await.len(), 0, "no token is granted");
    assert_eq!(scene.told.count(), 0);

    let scene = Accounted::new("ServiceAccount", false);
    let found = scene.ask("static", "").await;
    assert!(matches!(found.as_slice(), [(Owner::Node, _)]), "{} answers", found.len());
    let expected = json!({ "apiVersion": V1, "kind": "CredentialProviderRequest", "image": "eu.reg.io/team/app" });
    assert_eq!(scene.requests(), [expected]);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_comes_back_as_the_password_is_not_kept_for_others() {
    for (cache, expected) in [("ServiceAccount", 0), ("Token", 1)] {
        let scene = Accounted::new(cache, true);
        scene.account("robot", "u1", "{role: puller}");
        scene.grant("secret");
        assert_eq!(scene.ask("a", "robot").await.len(), expected, "{cache}");
    }
}

#[test]
fn a_directory_of_configurations_is_read_by_name() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
    for name in ["one", "two"] {
        program(&dir.path().join(name));
    }
    let config = |name: &str| {
        format!(
            "kind: CredentialProviderConfig\napiVersion: kubelet.config.k8s.io/v1\nproviders:\n\
             - {{name: {name}, matchImages: [a.io], defaultCacheDuration: 1m, apiVersion: {V1}}}\n"
        )
    };
    write("2.yaml", &config("two"));
    write("1.yml", &config("one"));
    write("notes.txt", "not ours");
    let read = read_config(dir.path(), dir.path(), true).expect("valid");
    assert_eq!(read.iter().map(|provider| provider.name.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    write("3.yaml", &config("one"));
    assert!(
        read_config(dir.path(), dir.path(), true).expect_err("twice").to_string().contains("3.yaml: providers[0].name")
    );
}

/// Runs a shell script as the program.
async fn run(script: &str, input: &[u8]) -> Result<String, String> {
    let mut provider = one().remove(0);
    provider.program = "/bin/sh".into();
    provider.args = vec!["-c".into(), script.into(), "sh".into(), "first".into()];
    provider.env = vec![("WHO".into(), "me".into())];
    Processes.run(&provider, input).await.map(|answer| String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn a_real_program_gets_its_arguments_environment_and_request() {
    assert_eq!(run("read -r line; echo \"$1 $WHO $line\"", b"{}\n").await, Ok("first me {}\n".into()));
    let error = run("echo why >&2; exit 3", b"{}\n").await.expect_err("it failed");
    assert!(error.contains("why") && error.contains('3'), "{error}");
}

#[tokio::test]
async fn a_program_may_complain_at_length_before_it_answers() {
    assert_eq!(run("head -c 100000 /dev/zero >&2 && echo fine", b"").await, Ok("fine\n".into()));
    let error = run("head -c 100000 /dev/zero | tr '\\0' a >&2; exit 3", b"").await.expect_err("it failed");
    assert!(error.contains('3') && error.len() < 2 * COMPLAINT_BYTES_MAX, "{} bytes: {error}", error.len());
}

#[tokio::test]
async fn a_program_that_behaves_badly_is_neither_waited_for_nor_left_behind() {
    assert_eq!(run("echo fine", &[b' '; 1 << 20]).await, Ok("fine\n".into()), "it does not listen");
    let began = Instant::now();
    let children = "sleep 600 & echo $!; sleep 600 >&- 2>&- &";
    let child = run(children, b"").await.expect("it has answered, whatever its children do");
    let children: Vec<i32> = child.lines().map(|pid| pid.parse().expect("a number")).collect();
    let endless = run("exec yes", b"").await.expect_err("it never stops");
    assert!(endless.contains("signal") || endless.contains("too long"), "{endless}");
    let silent = run("exec sleep 600 >&- 2>&-", b"").await.expect_err("it says nothing more");
    assert!(silent.contains("does not end"), "{silent}");
    assert!(began.elapsed() < Duration::from_secs(30));
    for child in children {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(" Z "), "{stat}");
    }
}
