//! Images: pull policies and what goes wrong with them.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use serde_json::{Value, json};

use crate::harness::{Case, Lab, Node, PodBuilder, pod};
use crate::stack::{PRIVATE_IMAGE, REGISTRY, REGISTRY_PASSWORD, REGISTRY_USER};
use crate::{own, shared};

pub const CASES: &[Case] = &[
    shared!(an_image_that_is_there_is_not_pulled).in_subset(),
    shared!(never_says_that_the_image_is_absent),
    shared!(an_image_that_cannot_be_pulled_backs_off).in_subset(),
    shared!(a_name_that_is_none_is_refused),
    shared!(the_other_container_does_not_wait_for_a_pull),
    own!(a_private_image_is_for_those_who_have_its_secret),
    own!(whose_image_it_is_outlives_the_agent),
    own!(a_credential_provider_is_asked),
    own!(a_credential_provider_is_told_the_service_account),
    own!(a_registry_that_is_mended_ends_the_back_off),
    own!(whatever_a_registry_says_is_told_and_holds_up_nobody),
    own!(a_registry_that_says_nothing_holds_up_no_other).beyond_upstream("it waits for as long as its runtime does"),
];

async fn an_image_that_is_there_is_not_pulled(node: Node) -> Result<()> {
    let pod = node.run(pod("present")).await?;
    pod.expect().ready().await?;
    let message = pod.expect_event("Pulled").await?;
    ensure!(message.contains("already present on machine"), "{message}");
    Ok(())
}

async fn never_says_that_the_image_is_absent(node: Node) -> Result<()> {
    let image = json!({ "image": "ferrolet.test/absent:1", "imagePullPolicy": "Never" });
    let pod = node.run(pod("absent").container(image)).await?;
    pod.expect().waiting("ErrImageNeverPull").phase("Pending").await?;
    pod.expect_event("ErrImageNeverPull").await?;
    Ok(())
}

async fn an_image_that_cannot_be_pulled_backs_off(node: Node) -> Result<()> {
    let image = json!({ "image": "ferrolet.test/absent:1" });
    let pod = node.run(pod("unpullable").container(image)).await?;
    pod.expect().waiting("ErrImagePull").await?;
    pod.expect().waiting("ImagePullBackOff").phase("Pending").await?;
    let message = pod.expect_event("BackOff").await?;
    ensure!(message.contains("ferrolet.test/absent:1"), "{message}");
    Ok(())
}

async fn a_name_that_is_none_is_refused(node: Node) -> Result<()> {
    let pod = node.run(pod("misnamed").container(json!({ "image": "Not//An:Image:Name" }))).await?;
    pod.expect().waiting("InvalidImageName").await?;
    pod.expect_event("InspectFailed").await?;
    Ok(())
}

async fn the_other_container_does_not_wait_for_a_pull(node: Node) -> Result<()> {
    let pod = pod("half").and_container("absent", "true", json!({ "image": "ferrolet.test/absent:1" }));
    let pod = node.run(pod).await?;
    pod.expect().running().container("absent").waiting("ImagePullBackOff").await?;
    Ok(())
}

/// A pod of the private image, with nothing to pull it with.
fn private(name: &str, policy: &str) -> PodBuilder {
    pod(name).container(json!({ "image": PRIVATE_IMAGE, "imagePullPolicy": policy }))
}

/// What `docker login` writes for the registry.
fn login() -> String {
    json!({ "auths": { REGISTRY: { "username": REGISTRY_USER, "password": REGISTRY_PASSWORD } } }).to_string()
}

/// A node with a registry that asks for a password, and a secret that holds it.
async fn node_with_registry(lab: &Lab) -> Result<Node> {
    let node = lab.node(|stack| stack).await?;
    node.stack().registry().start().await?;
    let secret = json!({
        "metadata": { "name": "login" },
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": { ".dockerconfigjson": login() },
    });
    node.create::<Secret>(secret).await?;
    Ok(node)
}

/// A pod that may pull the private image.
fn entitled(name: &str, policy: &str) -> PodBuilder {
    private(name, policy).spec(json!({ "imagePullSecrets": [{ "name": "login" }] }))
}

async fn a_private_image_is_for_those_who_have_its_secret(lab: Lab) -> Result<()> {
    let node = node_with_registry(&lab).await?;
    let stranger = node.run(private("stranger", "IfNotPresent")).await?;
    let told = stranger.expect().waiting("ImagePullBackOff").await?;
    let told = serde_json::to_string(&told.status)?;
    ensure!(told.contains("no basic auth credentials") || told.contains("401"), "{told}");

    let owner = node.run(entitled("owner", "IfNotPresent")).await?;
    owner.expect().ready().await?;
    ensure!(owner.expect_event("Pulled").await?.contains("Successfully pulled"));

    // It is on the node now, and still not everybody's.
    let thief = node.run(private("thief", "IfNotPresent")).await?;
    thief.expect().waiting("ImagePullBackOff").await?;
    let guest = node.run(private("guest", "Never")).await?;
    guest.expect().waiting("ErrImageNeverPull").await?;

    // The service account brings its secrets along.
    node.create::<ServiceAccount>(json!({
        "metadata": { "name": "trusted" },
        "imagePullSecrets": [{ "name": "login" }],
    }))
    .await?;
    let trusted = node.run(private("trusted", "Never").spec(json!({ "serviceAccountName": "trusted" }))).await?;
    trusted.expect().ready().await?;
    let message = trusted.expect_event("Pulled").await?;
    ensure!(message.ends_with("already present on machine and can be accessed by the pod"), "{message}");
    Ok(())
}

async fn whose_image_it_is_outlives_the_agent(lab: Lab) -> Result<()> {
    let node = node_with_registry(&lab).await?;
    node.run(entitled("owner", "IfNotPresent")).await?.expect().ready().await?;
    // One that is refused, over and over, when the agent dies.
    node.run(private("thief", "IfNotPresent")).await?.expect().waiting("ErrImagePull").await?;
    node.stack().agent().kill().await?;
    node.stack().agent().start().await?;
    node.run(entitled("heir", "Never")).await?.expect().ready().await?;
    node.run(private("guest", "Never")).await?.expect().waiting("ErrImageNeverPull").await?;
    Ok(())
}

/// What the provider of the stories below was asked.
const ASKED: &str = "/var/lib/credentials/asked";

/// A node with a registry, and with a program that knows its password.
async fn node_with_provider(lab: &Lab, token_attributes: Value) -> Result<Node> {
    const CONFIG: &str = "/var/lib/credentials/config.yaml";
    const PROGRAM: &str = "/var/lib/credentials/bin/ask";
    let node = lab
        .node(|stack| {
            stack
                .flag(&format!("--image-credential-provider-config={CONFIG}"))
                .flag("--image-credential-provider-bin-dir=/var/lib/credentials/bin")
                .without_agent()
        })
        .await?;
    let api_version = "credentialprovider.kubelet.k8s.io/v1";
    let provider = json!({
        "name": "ask",
        "apiVersion": api_version,
        "matchImages": [REGISTRY],
        "defaultCacheDuration": "1m",
        "args": ["well"],
        "env": [{ "name": "WHO", "value": REGISTRY_USER }],
        "tokenAttributes": token_attributes,
    });
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1",
        "kind": "CredentialProviderConfig",
        "providers": [provider],
    });
    let answer = json!({
        "apiVersion": api_version,
        "kind": "CredentialProviderResponse",
        "cacheKeyType": "Registry",
        "auth": { REGISTRY: { "username": "'$WHO'", "password": REGISTRY_PASSWORD } },
    });
    let script = format!("#!/bin/sh\nread -r request\necho \"$1 $request\" >> {ASKED}\necho '{answer}'\n");
    node.stack().write(CONFIG, config.to_string())?;
    node.stack().write(PROGRAM, script)?;
    node.stack().run(&["chmod", "755", PROGRAM]).await?;
    node.stack().registry().start().await?;
    node.stack().agent().start().await?;
    Ok(node)
}

async fn a_credential_provider_is_asked(lab: Lab) -> Result<()> {
    let node = node_with_provider(&lab, Value::Null).await?;
    let pod = node.run(private("owner", "IfNotPresent")).await?;
    pod.expect().ready().await?;
    let asked = node.stack().read(ASKED)?;
    ensure!(asked.starts_with("well {") && asked.contains("CredentialProviderRequest"), "{asked}");
    ensure!(asked.contains(PRIVATE_IMAGE.trim_end_matches(":1")), "{asked}");
    ensure!(!asked.contains("serviceAccountToken"), "{asked}");
    Ok(())
}

async fn a_credential_provider_is_told_the_service_account(lab: Lab) -> Result<()> {
    let attributes = json!({
        "serviceAccountTokenAudience": "registry",
        "cacheType": "ServiceAccount",
        "requireServiceAccount": true,
        "requiredServiceAccountAnnotationKeys": ["example.com/role"],
    });
    let node = node_with_provider(&lab, attributes).await?;
    // Nodes ask for tokens of any audience only where somebody lets them.
    let allowed = json!({
        "metadata": { "name": "tokens" },
        "rules": [{ "apiGroups": [""], "resources": ["registry"], "verbs": ["request-serviceaccounts-token-audience"] }],
    });
    node.create::<Role>(allowed).await?;
    node.create::<RoleBinding>(json!({
        "metadata": { "name": "tokens" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "tokens" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes" }],
    }))
    .await?;
    let robot = json!({ "metadata": { "name": "robot", "annotations": { "example.com/role": "puller" } } });
    node.create::<ServiceAccount>(robot).await?;
    let of_robot = |name: &str, policy: &str| private(name, policy).spec(json!({ "serviceAccountName": "robot" }));

    // Its account has no such annotation, so nobody is asked for it.
    node.run(private("stranger", "IfNotPresent")).await?.expect().waiting("ImagePullBackOff").await?;
    ensure!(node.stack().read(ASKED).is_err(), "asked for an account that is not meant");
    node.run(of_robot("owner", "IfNotPresent")).await?.expect().ready().await?;
    let asked = node.stack().read(ASKED)?;
    let request: Value = serde_json::from_str(asked.trim_start_matches("well ").lines().next().unwrap_or_default())?;
    ensure!(request["serviceAccountAnnotations"] == json!({ "example.com/role": "puller" }), "{request}");
    ensure!(request["serviceAccountToken"].as_str().is_some_and(|token| token.split('.').count() == 3), "{request}");

    // Its image is for those of the account.
    node.run(of_robot("heir", "Never")).await?.expect().ready().await?;
    node.run(private("guest", "Never")).await?.expect().waiting("ErrImageNeverPull").await?;
    Ok(())
}

async fn a_registry_that_is_mended_ends_the_back_off(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    node.stack().write("/var/lib/kubelet/config.json", login())?;
    let pod = node.run(private("early", "IfNotPresent")).await?;
    pod.expect().waiting("ImagePullBackOff").await?;
    node.stack().registry().start().await?;
    pod.expect().ready().await?;
    Ok(())
}

/// Answers as the first part of a repository's name says. containerd talks HTTP to it because
/// it is on the loopback.
pub(super) fn bad_registry(name: &str, port: u16) -> PodBuilder {
    pod(name).script(&BAD_REGISTRY.replace("PORT", &port.to_string())).spec(json!({ "hostNetwork": true }))
}

const BAD_REGISTRY: &str = r#"cat > /tmp/answer <<'END'
#!/bin/sh
read -r method path version
case $path in
/v2/e*/*) code=${path#/v2/e}; printf 'HTTP/1.1 %s No\r\nContent-Length: 0\r\n\r\n' "${code%%/*}" ;;
/v2/garbage/*) echo gibberish ;;
/v2/silence/*) sleep 1000 ;;
*) printf 'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n' ;;
esac
END
chmod 755 /tmp/answer
exec nc -ll -p PORT -e /tmp/answer"#;

async fn whatever_a_registry_says_is_told_and_holds_up_nobody(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack.config("serializeImagePulls", false)).await?;
    node.run(bad_registry("registry", 5480)).await?.expect().ready().await?;
    let wanted = |kind: &str| {
        let image = format!("127.0.0.1:5480/{kind}/app:1");
        node.run(pod(&format!("wants-{kind}")).container(json!({ "image": image })))
    };
    let silence = wanted("silence").await?;
    let said =
        [("e401", "401"), ("e404", "not found"), ("e429", "429"), ("e500", "500"), ("garbage", "malformed HTTP")];
    for (kind, text) in said {
        let pod = wanted(kind).await?;
        pod.expect()
            .status(format!("waiting, with {text:?}"), move |status| {
                let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
                let reason = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
                let message = waiting.and_then(|waiting| waiting.message.as_deref()).unwrap_or_default();
                ["ErrImagePull", "ImagePullBackOff"].contains(&reason) && message.contains(text)
            })
            .await?;
        let event = pod.expect_event("Failed").await?;
        ensure!(event.contains(kind), "{event}");
    }
    silence.expect().waiting("ContainerCreating").await?;
    node.run(pod("untouched")).await?.expect().ready().await?;
    Ok(())
}

async fn a_registry_that_says_nothing_holds_up_no_other(lab: Lab) -> Result<()> {
    // Images are pulled one at a time, as nobody says otherwise.
    let node = lab.node(|stack| stack).await?;
    for (name, port) in [("silent", 5480), ("other", 5481)] {
        node.run(bad_registry(name, port)).await?.expect().ready().await?;
    }
    let wanted = |name: &str, image: &str| node.run(pod(name).container(json!({ "image": image })));
    let silence = wanted("wants-silence", "127.0.0.1:5480/silence/app:1").await?;
    silence.expect_event("Pulling").await?;
    let other = wanted("wants-other", "127.0.0.1:5481/e404/app:1").await?;
    let message = other.expect_event("Failed").await?;
    ensure!(message.contains("not found"), "{message}");
    silence.expect().waiting("ContainerCreating").await?;
    Ok(())
}
