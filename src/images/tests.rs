//! The image manager over a runtime with prepared answers, on a paused clock.

use std::collections::{BTreeMap, VecDeque};

use async_trait::async_trait;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::*;
use crate::config::PullCredentialsPolicy;
use crate::cri::{Auth, CriError, FilesystemUsage, Image, Result};
use crate::events::Recorded;
use crate::host::{LinuxHost, Roots};

fn config() -> ImagesConfig {
    ImagesConfig {
        serialize_image_pulls: true,
        max_parallel_image_pulls: None,
        registry_pull_qps: 0,
        registry_burst: 0,
        node_status_max_images: 50,
        credential_files: Vec::new(),
        providers: Vec::new(),
        access: AccessConfig {
            dir: PathBuf::new(),
            policy: PullCredentialsPolicy::NeverVerifyPreloadedImages,
            allowlist: Vec::new(),
        },
    }
}

/// A runtime that holds images and pulls as it is told.
#[derive(Default)]
struct FakeRuntime {
    state: Mutex<FakeState>,
}

#[derive(Default)]
struct FakeState {
    /// By every name they can be asked for.
    present: BTreeMap<String, Image>,
    /// Taken by one pull after the other; once empty, pulls take a second.
    answers: VecDeque<Answer>,
    inspect_error: Option<CriError>,
    /// Image and user of every pull begun.
    begun: Vec<(String, String)>,
    running: usize,
    running_max: usize,
    cancelled: usize,
    lists: usize,
}

enum Answer {
    Takes(u64),
    Fails(CriError),
}

fn failed(message: &str) -> CriError {
    CriError::Failed { call: "PullImage", message: message.to_owned() }
}

impl FakeRuntime {
    fn state(&self) -> std::sync::MutexGuard<'_, FakeState> {
        self.state.lock().unwrap()
    }

    fn hold(&self, name: &str, uid: Option<i64>) {
        let image = Image { id: format!("id of {name}"), size_bytes: 42, uid, ..Image::default() };
        self.state().present.insert(image.id.clone(), image.clone());
        self.state().present.insert(name.to_owned(), image);
    }

    fn begun(&self) -> Vec<String> {
        self.state().begun.iter().map(|(image, _)| image.clone()).collect()
    }
}

/// Counts a pull as running, and as cancelled unless it is told otherwise.
struct RunningPull<'a> {
    runtime: &'a FakeRuntime,
    ended: bool,
}

impl Drop for RunningPull<'_> {
    fn drop(&mut self) {
        let mut state = self.runtime.state();
        state.running -= 1;
        state.cancelled += usize::from(!self.ended);
    }
}

fn unused<T>() -> T {
    unreachable!("the image manager does not call this")
}

#[async_trait]
impl ImageService for FakeRuntime {
    async fn image_status(&self, image: &ImageSpec) -> Result<Option<Image>> {
        let state = self.state();
        match &state.inspect_error {
            Some(error) => Err(error.clone()),
            None => Ok(state.present.get(&image.image).cloned()),
        }
    }

    async fn pull_image(&self, image: &ImageSpec, auth: Option<&Auth>, _: Option<&SandboxConfig>) -> Result<String> {
        let (answer, mut pull) = {
            let mut state = self.state();
            let user = auth.map(|auth| auth.username.clone()).unwrap_or_default();
            state.begun.push((image.image.clone(), user));
            state.running += 1;
            state.running_max = state.running_max.max(state.running);
            let answer = state.answers.pop_front().unwrap_or(Answer::Takes(1));
            (answer, RunningPull { runtime: self, ended: false })
        };
        let result = match answer {
            Answer::Takes(seconds) => {
                sleep(Duration::from_secs(seconds)).await;
                self.hold(&image.image, Some(7));
                Ok(format!("id of {}", image.image))
            }
            Answer::Fails(error) => Err(error),
        };
        pull.ended = true;
        result
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        let mut state = self.state();
        state.lists += 1;
        Ok(vec![Image { size_bytes: state.lists as u64, ..Image::default() }])
    }

    async fn remove_image(&self, _: &ImageSpec) -> Result<()> {
        unused()
    }
    async fn image_filesystem(&self) -> Result<Option<FilesystemUsage>> {
        unused()
    }
}

struct Node {
    runtime: Arc<FakeRuntime>,
    images: Images,
    recorded: Recorded,
    dir: TempDir,
}

impl Node {
    fn new(config: ImagesConfig) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        Node::in_dir(dir, Arc::default(), config)
    }

    fn in_dir(dir: TempDir, runtime: Arc<FakeRuntime>, mut config: ImagesConfig) -> Self {
        let (recorder, recorded) = Recorder::for_tests();
        let host = LinuxHost::new(Roots::machine(dir.path().to_owned()), seconds(10), Clock::system());
        config.access.dir = dir.path().join("image_manager");
        let images = Images::new(runtime.clone(), Arc::new(host), None, Clock::system(), recorder, config);
        Node { runtime, images, recorded, dir }
    }

    /// Another life of the agent on the same machine.
    fn again(self) -> Self {
        Node::in_dir(self.dir, self.runtime, config())
    }

    async fn ensure(&self, want: Want<'_>) -> std::result::Result<ReadyImage, ImageError> {
        let annotations = want.source.map(|source| [("kubernetes.io/config.source".to_owned(), source.into())].into());
        let pod = Pod {
            metadata: ObjectMeta { uid: Some(want.pod.into()), annotations, ..ObjectMeta::default() },
            spec: Some(PodSpec::default()),
            ..Pod::default()
        };
        let request = ImageRequest {
            pod: &pod,
            field_path: Some("spec.containers{main}"),
            image: want.image,
            pull_policy: want.policy,
            secrets: &want.secrets,
            sandbox: &SandboxConfig::default(),
        };
        self.images.ensure(&request).await
    }

    /// Reasons and messages of all events so far.
    fn events(&self) -> Vec<String> {
        self.recorded.list().into_iter().map(|event| format!("{} {}", event.reason, event.message)).collect()
    }
}

#[derive(Default)]
struct Want<'a> {
    pod: &'a str,
    source: Option<&'a str>,
    image: &'a str,
    policy: Option<&'a str>,
    secrets: Vec<Secret>,
}

fn want(pod: &'static str, image: &'static str) -> Want<'static> {
    Want { pod, image, ..Want::default() }
}

/// A pull secret for any host of `reg.io`.
fn secret(user: &str) -> Secret {
    let config = serde_json::json!({"auths": {"reg.io": {"username": user, "password": "p"}}});
    let data = [(".dockerconfigjson".to_owned(), ByteString(config.to_string().into_bytes()))];
    Secret { data: Some(data.into()), ..Secret::default() }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Begins so many milliseconds later, so that the order is certain.
async fn after<T>(milliseconds: u64, future: impl Future<Output = T>) -> T {
    sleep(Duration::from_millis(milliseconds)).await;
    future.await
}

#[test]
fn the_policy_and_the_tag_decide_whether_to_pull() {
    let check = |policy, is_latest, absent, present| {
        let steps = (step(policy, is_latest, false), step(policy, is_latest, true));
        assert_eq!(steps, (absent, present), "{policy:?} latest: {is_latest}");
    };
    for is_latest in [true, false] {
        check(Some("Always"), is_latest, Step::Pull, Step::Pull);
        check(Some("IfNotPresent"), is_latest, Step::Pull, Step::Use);
        check(Some("Never"), is_latest, Step::Refuse, Step::Use);
    }
    check(None, true, Step::Pull, Step::Pull);
    check(None, false, Step::Pull, Step::Use);
}

#[tokio::test(start_paused = true)]
async fn a_present_image_is_used_as_it_is() {
    let node = Node::new(config());
    node.runtime.hold("busybox:1", Some(1000));
    let ready = node.ensure(want("a", "busybox:1")).await;
    let expected = ReadyImage { image_ref: "id of busybox:1".into(), uid: Some(1000), username: "".into() };
    assert_eq!(ready, Ok(expected));
    assert_eq!(node.runtime.begun(), [""; 0]);
    let expected = r#"Pulled Container image "busybox:1" already present on machine and can be accessed by the pod"#;
    assert_eq!(node.events(), [expected]);
}

#[tokio::test(start_paused = true)]
async fn of_access_nothing_is_said_where_nobody_looks_at_it() {
    let mut config = config();
    config.access.policy = PullCredentialsPolicy::Unset;
    let node = Node::new(config);
    node.runtime.hold("busybox:1", None);
    node.ensure(want("a", "busybox:1")).await.expect("it is there");
    assert_eq!(node.events(), [r#"Pulled Container image "busybox:1" already present on machine"#]);
}

#[tokio::test(start_paused = true)]
async fn an_absent_image_is_pulled_and_its_time_told_with_and_without_waiting() {
    let node = Node::new(config());
    node.runtime.state().answers.extend([Answer::Takes(3), Answer::Takes(2)]);
    let (first, second) = tokio::join!(node.ensure(want("a", "one")), after(1, node.ensure(want("b", "two"))));
    assert_eq!(first.map(|ready| ready.image_ref), Ok("id of one:latest".into()));
    assert_eq!(second.map(|ready| ready.uid), Ok(Some(7)));
    assert_eq!(
        node.events(),
        [
            r#"Pulling Pulling image "one""#,
            r#"Pulling Pulling image "two""#,
            r#"Pulled Successfully pulled image "one" in 3s (3s including waiting). Image size: 42 bytes."#,
            r#"Pulled Successfully pulled image "two" in 2s (4.999s including waiting). Image size: 42 bytes."#,
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_failed_pull_is_held_back_for_longer_each_time() {
    let node = Node::new(config());
    let began = Instant::now();
    node.runtime.state().answers.push_back(Answer::Fails(failed("no such tag")));
    node.runtime.state().answers.push_back(Answer::Fails(failed("still none")));

    let error = node.ensure(want("a", "app:1")).await.expect_err("the first pull fails");
    assert_eq!((error.reason, error.message.as_str()), (Reason::ErrImagePull, "no such tag"));
    assert_eq!(error.retry_at, Some(began + seconds(10)));

    let error = node.ensure(want("a", "app:1")).await.expect_err("the second is held back");
    assert_eq!(error.reason, Reason::ImagePullBackOff);
    assert_eq!(error.message, r#"Back-off pulling image "app:1": ErrImagePull: no such tag"#);
    assert_eq!(error.retry_at, Some(began + seconds(10)));

    sleep(seconds(10)).await;
    let error = node.ensure(want("a", "app:1")).await.expect_err("the third is tried and fails");
    assert_eq!((error.reason, error.retry_at), (Reason::ErrImagePull, Some(began + seconds(30))));

    sleep(seconds(20)).await;
    assert!(node.ensure(want("a", "app:1")).await.is_ok());
    assert_eq!(node.runtime.begun().len(), 3);
    assert_eq!(
        node.events()[..3],
        [
            r#"Pulling Pulling image "app:1""#,
            r#"Failed Failed to pull image "app:1": no such tag"#,
            r#"BackOff Back-off pulling image "app:1""#,
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn one_pods_back_off_is_no_other_pods() {
    let node = Node::new(config());
    node.runtime.state().answers.push_back(Answer::Fails(failed("no")));
    assert!(node.ensure(want("a", "app")).await.is_err());
    assert!(node.ensure(want("b", "app")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_pulled_says_why() {
    let node = Node::new(config());
    let never = node.ensure(Want { policy: Some("Never"), ..want("a", "app") }).await;
    let message = r#"Container image "app" is not present with pull policy of Never"#;
    assert_eq!(never, Err(ImageError { reason: Reason::ErrImageNeverPull, message: message.into(), retry_at: None }));

    let invalid = node.ensure(want("a", "Not Valid")).await.expect_err("the name is invalid");
    assert_eq!(invalid.reason, Reason::InvalidImageName);
    assert!(invalid.message.starts_with(r#"Failed to inspect image "Not Valid": invalid reference format"#));

    node.runtime.state().inspect_error = Some(failed("store is broken"));
    let inspect = node.ensure(want("a", "app")).await.expect_err("the runtime cannot tell");
    assert_eq!(inspect.reason, Reason::ImageInspectError);
    assert_eq!(inspect.message, r#"Failed to inspect image "app": store is broken"#);

    assert_eq!(node.recorded.reasons(), ["ErrImageNeverPull", "InspectFailed", "InspectFailed"]);
    assert_eq!(node.runtime.begun(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn errors_the_runtime_has_names_for_keep_them() {
    let check = async |message: &str, reason: Reason| {
        let node = Node::new(config());
        node.runtime.state().answers.push_back(Answer::Fails(failed(message)));
        let error = node.ensure(want("a", "app")).await.expect_err("the pull fails");
        assert_eq!((error.reason, error.message.as_str()), (reason, message));
    };
    check("RegistryUnavailable: reg.io is down", Reason::RegistryUnavailable).await;
    check("SignatureValidationFailed: unknown key", Reason::SignatureValidationFailed).await;
    check("something else", Reason::ErrImagePull).await;
}

#[tokio::test(start_paused = true)]
async fn no_more_pulls_run_at_once_than_allowed() {
    let check = async |serialize_image_pulls, max_parallel_image_pulls, expected| {
        let node = Node::new(ImagesConfig { serialize_image_pulls, max_parallel_image_pulls, ..config() });
        let images = ["one", "two", "three", "four"];
        futures::future::join_all(images.map(|image| node.ensure(want("a", image)))).await;
        let state = node.runtime.state();
        assert_eq!((state.begun.len(), state.running_max), (4, expected));
    };
    check(true, None, 1).await;
    check(false, Some(2), 2).await;
    check(false, None, 4).await;
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_says_nothing_holds_up_others_for_half_a_minute_only() {
    let node = Node::new(config());
    node.runtime.state().answers.push_back(Answer::Takes(3600));
    let began = Instant::now();
    let pulled = async |after_millis, pod, image| {
        assert!(after(after_millis, node.ensure(want(pod, image))).await.is_ok());
        began.elapsed().as_secs()
    };
    let all = tokio::join!(
        pulled(0, "a", "silent.io/one"),
        pulled(1, "b", "silent.io/two"),
        pulled(2, "c", "quick.io/one"),
        pulled(3, "d", "quick.io/two"),
    );
    assert_eq!(all, (3600, 3601, 31, 32), "and still one after the other of each");
}

#[tokio::test(start_paused = true)]
async fn pulls_keep_to_the_registrys_rate() {
    let node =
        Node::new(ImagesConfig { serialize_image_pulls: false, registry_pull_qps: 1, registry_burst: 2, ..config() });
    let began = Instant::now();
    let images = ["one", "two", "three", "four"];
    let ready = futures::future::join_all(images.map(|image| node.ensure(want("a", image)))).await;
    assert!(ready.iter().all(std::result::Result::is_ok));
    // Two at once, then one each second, the last of which takes a second.
    assert_eq!(began.elapsed().as_secs(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_present_image_does_not_queue_behind_a_download() {
    let node = Node::new(config());
    node.runtime.hold("small:1", None);
    node.runtime.state().answers.push_back(Answer::Takes(3600));
    let small = async {
        sleep(seconds(1)).await;
        let began = Instant::now();
        let small = node.ensure(Want { policy: Some("Always"), ..want("b", "small:1") }).await;
        assert!(small.is_ok());
        assert_eq!(began.elapsed(), seconds(1));
    };
    let (big, ()) = tokio::join!(node.ensure(want("a", "big")), small);
    assert!(big.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_static_pods_image_is_pulled_before_those_that_wait() {
    let node = Node::new(config());
    let static_pod = Want { source: Some("file"), ..want("s", "static") };
    let (..) = tokio::join!(
        node.ensure(want("a", "first")),
        after(1, node.ensure(want("b", "second"))),
        after(2, node.ensure(static_pod))
    );
    assert_eq!(node.runtime.begun(), ["first:latest", "static:latest", "second:latest"]);
}

#[tokio::test(start_paused = true)]
async fn pods_that_wait_for_the_same_share_one_pull() {
    let node = Node::new(config());
    let private = |pod, user: &str| Want { secrets: vec![secret(user)], ..want(pod, "reg.io/app") };
    let (a, b, c, d) = tokio::join!(
        node.ensure(want("a", "reg.io/app")),
        node.ensure(want("b", "reg.io/app:latest")),
        node.ensure(private("c", "me")),
        node.ensure(private("d", "me"))
    );
    assert!(a.is_ok() && b.is_ok() && c.is_ok() && d.is_ok());
    let image = "reg.io/app:latest".to_owned();
    // One without credentials and one with: what `me` may read says nothing about others.
    assert_eq!(node.runtime.state().begun, [(image.clone(), "".to_owned()), (image, "me".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_pull_ends_with_the_last_pod_that_waits_for_it() {
    let node = Node::new(config());
    let half = Duration::from_millis(500);
    let first = timeout(half, node.ensure(want("a", "app")));
    let (first, second) = tokio::join!(first, node.ensure(want("b", "app")));
    assert!(first.is_err() && second.is_ok());
    assert_eq!(node.runtime.state().cancelled, 0);

    assert!(timeout(half, node.ensure(want("c", "other"))).await.is_err());
    assert_eq!(node.runtime.state().cancelled, 1);
    assert!(node.ensure(want("d", "other")).await.is_ok(), "its turn went to the next");
}

#[tokio::test(start_paused = true)]
async fn credentials_are_tried_in_turn_and_then_none() {
    let node = Node::new(config());
    let denied = |who: &str| Answer::Fails(failed(&format!("{who} denied")));
    node.runtime.state().answers.extend([denied("me"), denied("you")]);
    let with_secrets = || Want { secrets: vec![secret("me"), secret("you")], ..want("a", "reg.io/app") };
    assert!(node.ensure(with_secrets()).await.is_ok());
    let users: Vec<_> = node.runtime.state().begun.iter().map(|(_, user)| user.clone()).collect();
    assert_eq!(users, ["me", "you", ""]);

    node.runtime.state().answers.extend([denied("me"), denied("nobody"), denied("nobody")]);
    let error = node.ensure(with_secrets()).await.expect_err("all are denied");
    assert_eq!(error.message, "[me denied, nobody denied]");
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_secret_is_named_when_the_pull_fails() {
    let node = Node::new(config());
    node.runtime.state().answers.push_back(Answer::Fails(failed("denied")));
    let metadata = ObjectMeta { name: Some("broken".into()), ..ObjectMeta::default() };
    let secrets = vec![Secret { metadata, ..Secret::default() }];
    let error = node.ensure(Want { secrets, ..want("a", "app") }).await.expect_err("the pull fails");
    assert_eq!(error.message, "denied (unreadable image pull secrets: broken)");
}

fn with_secret(pod: &'static str, user: &str) -> Want<'static> {
    Want { secrets: vec![secret(user)], ..want(pod, "reg.io/app:1") }
}

fn anonymous(pod: &'static str) -> Want<'static> {
    Want { policy: Some("IfNotPresent"), ..want(pod, "reg.io/app:1") }
}

#[tokio::test(start_paused = true)]
async fn what_was_pulled_with_a_secret_is_for_those_who_have_it() {
    let mut node = Node::new(config());
    node.ensure(with_secret("a", "me")).await.expect("pulled");
    // The record is read back from the disk in the second life.
    for life in [1, 2] {
        node.runtime.state().begun.clear();
        node.ensure(with_secret("b", "me")).await.expect("the same credentials");
        assert_eq!(node.runtime.begun(), [""; 0], "life {life}");

        node.runtime.state().answers.push_back(Answer::Fails(failed("who are you?")));
        let error = node.ensure(anonymous(if life == 1 { "c" } else { "d" })).await.expect_err("no credentials");
        assert_eq!((error.reason, error.message.as_str()), (Reason::ErrImagePull, "who are you?"));

        let error = node.ensure(Want { policy: Some("Never"), ..anonymous("e") }).await.expect_err("no credentials");
        assert_eq!(error.reason, Reason::ErrImageNeverPull);
        // Not a word of its being there for somebody else.
        assert_eq!(error.message, r#"Container image "reg.io/app:1" is not present with pull policy of Never"#);
        node = node.again();
    }
    // Once it was had without any, it is everybody's.
    node.ensure(anonymous("f")).await.expect("the registry has become public");
    node.runtime.state().begun.clear();
    node.ensure(Want { policy: Some("Never"), ..anonymous("e") }).await.expect("public");
    assert_eq!(node.runtime.begun(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn an_image_whose_pull_was_cut_off_is_nobodys() {
    let node = Node::new(config());
    node.runtime.state().answers.push_back(Answer::Takes(100));
    assert!(timeout(seconds(10), node.ensure(with_secret("a", "me"))).await.is_err());
    // The runtime went on by itself.
    node.runtime.hold("reg.io/app:1", None);
    let node = node.again();
    // A stranger's pull that fails takes nothing of that back.
    for name in ["reg.io/app:1", "reg.io/app:2"] {
        let image = node.runtime.state().present["reg.io/app:1"].clone();
        node.runtime.state().present.insert(name.to_owned(), image);
        for policy in ["IfNotPresent", "Never"] {
            node.runtime.state().answers.push_back(Answer::Fails(failed("who are you?")));
            node.ensure(Want { policy: Some(policy), ..want("b", name) }).await.expect_err("it is nobody's");
        }
        node.runtime.state().answers.clear();
    }
    node.runtime.state().begun.clear();
    node.ensure(anonymous("c")).await.expect("the registry gives it to anybody");
    assert_eq!(node.runtime.begun(), ["reg.io/app:1"], "it was asked");
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_was_cut_off_and_changed_nothing_takes_no_image_away() {
    let mut node = Node::new(config());
    node.runtime.hold("reg.io/app:1", None);
    node.runtime.state().answers.push_back(Answer::Takes(100));
    let always = Want { policy: Some("Always"), ..want("a", "reg.io/app:1") };
    assert!(timeout(seconds(10), node.ensure(always)).await.is_err());
    // What came of it is looked at in a task of its own.
    sleep(seconds(1)).await;
    for life in [1, 2] {
        let never = Want { policy: Some("Never"), ..want("b", "reg.io/app:1") };
        node.ensure(never).await.unwrap_or_else(|error| panic!("life {life}: {error}"));
        node = node.again();
    }
}

#[tokio::test(start_paused = true)]
async fn what_does_not_belong_among_the_records_stops_nobody() {
    let node = Node::new(config());
    node.runtime.hold("busybox:1", None);
    let records = node.dir.path().join("image_manager/pulled");
    std::fs::create_dir_all(records.join("sha256-directory")).expect("writable");
    std::fs::write(records.join("notes"), "mine").expect("writable");
    std::fs::write(records.join("sha256-large"), vec![b' '; (1 << 20) + 1]).expect("writable");
    node.ensure(want("a", "busybox:1")).await.expect("preloaded");
    node.ensure(want("b", "app:1")).await.expect("pulled");
}

#[tokio::test(start_paused = true)]
async fn an_image_that_was_brought_by_hand_after_a_failed_pull_is_everybodys() {
    let node = Node::new(config());
    node.runtime.state().answers.push_back(Answer::Fails(failed("no such tag")));
    node.ensure(anonymous("a")).await.expect_err("not there");
    node.runtime.hold("reg.io/app:1", None);
    node.runtime.state().begun.clear();
    node.ensure(anonymous("a")).await.expect("there");
    assert_eq!(node.runtime.begun(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_broken_record_allows_nobody_and_is_mended_by_the_next_pull() {
    let node = Node::new(config());
    node.ensure(anonymous("a")).await.expect("pulled");
    let records = node.dir.path().join("image_manager/pulled");
    for entry in std::fs::read_dir(&records).expect("there") {
        std::fs::write(entry.expect("listed").path(), "{").expect("writable");
    }
    let node = node.again();
    node.runtime.state().begun.clear();
    node.ensure(anonymous("a")).await.expect("pulled again");
    node.ensure(anonymous("b")).await.expect("recorded again");
    assert_eq!(node.runtime.begun(), ["reg.io/app:1"]);
}

#[tokio::test(start_paused = true)]
async fn the_nodes_own_credentials_come_from_the_first_file_that_is_there() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let path = |name: &str| dir.path().join(name);
    let login = |user: &str| serde_json::json!({"reg.io": {"username": user, "password": "p"}});
    std::fs::write(path("config.json"), serde_json::json!({"auths": login("new")}).to_string()).expect("writable");
    std::fs::write(path(".dockercfg"), login("old").to_string()).expect("writable");
    let users = async |files: &[&str]| {
        let credential_files = files.iter().map(|name| path(name)).collect();
        let node = Node::new(ImagesConfig { credential_files, ..config() });
        node.ensure(want("a", "reg.io/app:1")).await.expect("pulled");
        let users: Vec<_> = node.runtime.state().begun.iter().map(|(_, user)| user.clone()).collect();
        users
    };
    assert_eq!(users(&["absent", "config.json", ".dockercfg"]).await, ["new"]);
    assert_eq!(users(&[".dockercfg", "config.json"]).await, ["old"]);
    std::fs::write(path("config.json"), "not JSON").expect("writable");
    assert_eq!(users(&["config.json", ".dockercfg"]).await, ["old"], "one that is broken is passed over");
}

#[tokio::test(start_paused = true)]
async fn the_nodes_list_is_read_again_after_half_a_minute_or_a_pull() {
    let node = Node::new(config());
    let size = async || node.images.list().await.unwrap()[0].size_bytes.unwrap();
    assert_eq!((size().await, size().await), (1, 1));
    sleep(seconds(30)).await;
    assert_eq!((size().await, size().await), (2, 2));
    node.ensure(want("a", "app")).await.unwrap();
    assert_eq!(size().await, 3);
}

#[test]
fn an_image_that_names_no_user_runs_as_root() {
    let check = |uid, username: &str, expected| {
        let image = Image { uid, username: username.into(), ..Image::default() };
        let ready = ReadyImage::new("ref".into(), &image);
        assert_eq!((ready.uid, ready.username.as_str()), (expected, username));
    };
    check(None, "", Some(0));
    check(None, "nobody", None);
    check(Some(1000), "", Some(1000));
}

#[test]
fn durations_are_told_to_the_millisecond() {
    let check = |micros, expected: &str| assert_eq!(go_duration(Duration::from_micros(micros)).to_string(), expected);
    check(999, "0s");
    check(1_500_999, "1.5s");
    check(61_020_000, "1m1.02s");
}
