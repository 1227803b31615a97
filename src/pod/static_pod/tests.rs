use super::*;
use crate::pod::testing::yaml;

fn origin(place: &str) -> Origin<'_> {
    let seen = "2026-01-02T03:04:05.678901234Z".parse().expect("a test time parses");
    Origin { source: Source::File, place, node_name: "Node-1", may_need_api: false, seen }
}

fn decoded(manifest: &str) -> Manifest {
    decode(manifest.as_bytes(), &origin("/m/web.yaml")).unwrap_or_else(|error| panic!("{error}\n{manifest}"))
}

const SMALLEST: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  containers:
  - name: web
    image: busybox:1.36
";

#[test]
fn a_manifest_becomes_the_pod_the_api_server_would_have_made_of_it() {
    let Manifest { pod, warnings } = decoded(SMALLEST);
    assert_eq!(warnings, [""; 0]);
    let uid = pod.metadata.uid.clone().expect("a static pod has a UID");
    let expected: Pod = yaml(&format!(
        "
        apiVersion: v1
        kind: Pod
        metadata:
          name: web-node-1
          namespace: default
          uid: {uid}
          annotations:
            kubernetes.io/config.hash: {uid}
            kubernetes.io/config.source: file
            kubernetes.io/config.seen: '2026-01-02T03:04:05.678901234Z'
        spec:
          nodeName: Node-1
          containers:
          - name: web
            image: busybox:1.36
            imagePullPolicy: IfNotPresent
            terminationMessagePath: /dev/termination-log
            terminationMessagePolicy: File
          dnsPolicy: ClusterFirst
          enableServiceLinks: true
          restartPolicy: Always
          schedulerName: default-scheduler
          securityContext: {{}}
          terminationGracePeriodSeconds: 30
          tolerations: [{{operator: Exists, effect: NoExecute}}]
        status: {{phase: Pending}}
        "
    ));
    assert_eq!(pod, expected);
}

#[test]
fn everything_with_a_default_gets_it() {
    let Manifest { pod, .. } = decoded(
        "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: kube-system, uid: my-own}
spec:
  hostNetwork: true
  initContainers: [{name: setup, image: a:1, ports: [{containerPort: 90}]}]
  containers:
  - name: web
    image: registry:5000/busybox
    ports: [{containerPort: 80}]
    resources: {limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 500m}}
    livenessProbe: {httpGet: {port: http}, periodSeconds: 0}
    readinessProbe: {tcpSocket: {port: 80}, failureThreshold: 7}
    startupProbe: {grpc: {port: 80}}
    lifecycle: {preStop: {httpGet: {port: 80}}}
    env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
  resources: {limits: {cpu: 2, memory: 2Gi}}
  volumes:
  - name: nothing
  - {name: host, hostPath: {path: /x}}
  - {name: down, downwardAPI: {items: [{path: a, fieldRef: {fieldPath: metadata.name}}], defaultMode: 0400}}
  - {name: all, projected: {sources: [{downwardAPI: {items: [{path: a, fieldRef: {fieldPath: metadata.name}}]}}]}}
",
    );
    let expected: Pod = yaml(
        "
        spec:
          nodeName: Node-1
          hostNetwork: true
          initContainers:
          - name: setup
            image: a:1
            imagePullPolicy: IfNotPresent
            terminationMessagePath: /dev/termination-log
            terminationMessagePolicy: File
            ports: [{containerPort: 90, hostPort: 90, protocol: TCP}]
          containers:
          - name: web
            image: registry:5000/busybox
            imagePullPolicy: Always
            terminationMessagePath: /dev/termination-log
            terminationMessagePolicy: File
            ports: [{containerPort: 80, hostPort: 80, protocol: TCP}]
            resources: {limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 500m, memory: 1Gi}}
            livenessProbe:
              httpGet: {port: http, path: /, scheme: HTTP}
              timeoutSeconds: 1
              periodSeconds: 10
              successThreshold: 1
              failureThreshold: 3
            readinessProbe:
              tcpSocket: {port: 80}
              timeoutSeconds: 1
              periodSeconds: 10
              successThreshold: 1
              failureThreshold: 7
            startupProbe:
              grpc: {port: 80, service: ''}
              timeoutSeconds: 1
              periodSeconds: 10
              successThreshold: 1
              failureThreshold: 3
            lifecycle: {preStop: {httpGet: {port: 80, path: /, scheme: HTTP}}}
            env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP, apiVersion: v1}}}]
          resources: {limits: {cpu: 2, memory: 2Gi}, requests: {cpu: 500m, memory: 1Gi}}
          volumes:
          - {name: nothing, emptyDir: {}}
          - {name: host, hostPath: {path: /x, type: ''}}
          - {name: down, downwardAPI: {items: [{path: a, fieldRef: {fieldPath: metadata.name, apiVersion: v1}}], defaultMode: 256}}
          - name: all
            projected:
              sources: [{downwardAPI: {items: [{path: a, fieldRef: {fieldPath: metadata.name, apiVersion: v1}}]}}]
              defaultMode: 420
          dnsPolicy: ClusterFirst
          enableServiceLinks: true
          restartPolicy: Always
          schedulerName: default-scheduler
          securityContext: {}
          terminationGracePeriodSeconds: 30
          tolerations: [{operator: Exists, effect: NoExecute}]
        ",
    );
    assert_eq!(pod.spec, expected.spec);
    assert_eq!(pod.metadata.uid.as_deref(), Some("my-own"));
    assert_eq!(pod.metadata.namespace.as_deref(), Some("kube-system"));
}

#[test]
fn resources_of_the_pod_follow_from_its_containers() {
    let check = |pod_level: &str, container: &str, expected: &str| {
        let pod = decoded(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: web}}, spec: {{resources: {{{pod_level}}}, \
             containers: [{{name: web, image: a, resources: {{{container}}}}}]}}}}"
        ))
        .pod;
        let expected: k8s_openapi::api::core::v1::ResourceRequirements = yaml(&format!("{{{expected}}}"));
        let resources = pod.spec.expect("a static pod has a spec").resources;
        assert_eq!(resources, Some(expected), "{pod_level} over {container}");
    };
    check("", "limits: {cpu: 1}", "");
    check("limits: {cpu: 2}", "", "limits: {cpu: 2}, requests: {cpu: 2}");
    check("limits: {cpu: 2}", "requests: {cpu: 1, memory: 1Mi}", "limits: {cpu: 2}, requests: {cpu: 1, memory: 1Mi}");
    check("requests: {cpu: 2}", "limits: {memory: 1Mi}", "requests: {cpu: 2}");
    check(
        "requests: {cpu: 2}",
        "limits: {hugepages-2Mi: 4Mi}",
        "limits: {hugepages-2Mi: 4Mi}, requests: {cpu: 2, hugepages-2Mi: 4Mi}",
    );
}

#[test]
fn json_reads_like_yaml() {
    let json = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Pod\",\n\t\"metadata\": {\"name\": \"web\"},\n\t\"spec\": \
                {\"containers\": [{\"name\": \"web\", \"image\": \"busybox:1.36\"}]}\n}\n";
    assert_eq!(decoded(json), decoded(SMALLEST));
}

#[test]
fn the_uid_follows_content_and_place() {
    let uid = |manifest: &str, origin: &Origin| {
        let manifest = decode(manifest.as_bytes(), origin).expect("the manifest is valid");
        manifest.pod.metadata.uid.expect("a static pod has a UID")
    };
    let uid_of = |manifest: &str| uid(manifest, &origin("/m/web.yaml"));
    assert_eq!(uid_of(SMALLEST), uid_of(&format!("# a comment\n---\n{SMALLEST}")));
    assert_ne!(uid_of(SMALLEST), uid_of(&SMALLEST.replace("1.36", "1.37")));
    assert_ne!(uid_of(SMALLEST), uid(SMALLEST, &origin("/m/other.yaml")));
    assert_ne!(uid_of(SMALLEST), uid(SMALLEST, &Origin { node_name: "node-2", ..origin("/m/web.yaml") }));
    let later = Origin { seen: "2027-01-01T00:00:00Z".parse().expect("a test time parses"), ..origin("/m/web.yaml") };
    assert_eq!(uid_of(SMALLEST), uid(SMALLEST, &later));
}

#[test]
fn what_is_passed_over_is_told() {
    let check = |manifest: &str, expected: &[&str]| assert_eq!(decoded(manifest).warnings, expected);
    check(
        &SMALLEST.replace("image:", "imagePullpolicy: Never\n    image:"),
        &["unknown field spec.containers[0].imagePullpolicy is ignored"],
    );
    check(&SMALLEST.replace("spec:", "status: null\nextra: {a: 1}\nspec:"), &["unknown field extra is ignored"]);
    check(
        &format!("{SMALLEST}---\nkind: Other\n---\n# nothing\n"),
        &["only the first of 2 documents is read, a manifest holds one pod"],
    );
    check(&format!("---\n{SMALLEST}---\n"), &[]);
}

fn check_error(manifest: &str, expected: &str) {
    let error = decode(manifest.as_bytes(), &origin("/m/web.yaml")).expect_err(manifest);
    assert_eq!(error.to_string(), expected, "{manifest}");
}

#[test]
fn what_is_no_pod_is_refused() {
    check_error("", "manifest is empty");
    check_error("\n# nothing here\n---\n", "manifest is empty");
    check_error(
        "a: b: c",
        "manifest is neither YAML nor JSON: mapping values are not allowed in this context at line 1, column 5",
    );
    check_error(
        "apiVersion: apps/v1\nkind: Deployment\n",
        "expected a Pod of apiVersion v1, found kind \"Deployment\" of apiVersion \"apps/v1\"",
    );
    check_error("metadata: {name: a}", "expected a Pod of apiVersion v1, found kind \"\" of apiVersion \"\"");
    check_error(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: [",
        "manifest is neither YAML nor JSON: unclosed bracket '[' at line 4, column 7",
    );
    let error = decode(b"\xff\xfe", &origin("/m/web.yaml")).expect_err("this is not UTF-8");
    assert_eq!(error, ManifestError::NotText);
}

#[test]
fn a_field_of_the_wrong_type_is_named() {
    check_error(
        &SMALLEST.replace("image:", "ports: [{containerPort: 80}, {containerPort: http}]\n    image:"),
        "spec.containers[0].ports[1].containerPort: invalid i32 at line 8, column 50",
    );
    check_error(
        &SMALLEST.replace("spec:", "spec:\n  hostNetwork: maybe"),
        "spec.hostNetwork: invalid boolean at line 6, column 16",
    );
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    check_error(
        "
apiVersion: v1
kind: Pod
metadata: {namespace: Bad, labels: {a b: c}}
spec:
  serviceAccountName: robot
  containers:
  - name: web
    volumeMounts: [{name: gone, mountPath: /a}]
  - {name: web, image: a}
",
        "invalid pod: metadata.name: is required; \
         metadata.namespace: must consist of lower case letters, digits or '-', and start and end with a letter or digit; \
         metadata.labels[a b]: name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character; \
         spec.containers[0].image: is required; \
         spec.containers[0].volumeMounts[0].name: the pod has no volume \"gone\"; \
         spec.containers[1].name: another container is called \"web\" too; \
         spec.serviceAccountName: static pods may not reference serviceaccounts",
    );
}

/// A pod with one container, one thing wrong with it.
fn check_problem(spec: &str, container: &str, expected: &str) {
    let manifest = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: web}}, \
         spec: {{{spec} containers: [{{name: web, image: a, {container}}}]}}}}"
    );
    check_error(&manifest, &format!("invalid pod: {expected}"));
}

#[test]
fn a_uid_is_a_plain_name() {
    for uid in ["a/b", "../../etc", &"u".repeat(64)] {
        check_error(
            &SMALLEST.replace("  name: web\nspec", &format!("  name: web\n  uid: {uid}\nspec")),
            &format!("invalid pod: metadata.uid: {uid:?} is not up to 63 letters, digits, '-' and '_'"),
        );
    }
}

#[test]
fn pods_that_cannot_run_are_refused() {
    check_error(
        &SMALLEST.replace("  name: web\nspec", &format!("  name: {}\nspec", "a".repeat(250))),
        "invalid pod: metadata.name: with the node's name \"Node-1\" behind it, it must be no more than 253 characters",
    );
    check_error(
        "{apiVersion: v1, kind: Pod, metadata: {name: a}}",
        "invalid pod: spec.containers: at least one container is required",
    );
    check_problem(
        "restartPolicy: Sometimes,",
        "",
        "spec.restartPolicy: \"Sometimes\" is not one of Always, OnFailure, Never",
    );
    check_problem(
        "dnsPolicy: Mine,",
        "",
        "spec.dnsPolicy: \"Mine\" is not one of ClusterFirst, ClusterFirstWithHostNet, Default, None",
    );
    check_problem("terminationGracePeriodSeconds: -1,", "", "spec.terminationGracePeriodSeconds: must not be negative");
    check_problem("activeDeadlineSeconds: 0,", "", "spec.activeDeadlineSeconds: must be at least 1");
    check_problem(
        "hostPID: true, shareProcessNamespace: true,",
        "",
        "spec.shareProcessNamespace: must not be set together with hostPID",
    );
    check_problem(
        "ephemeralContainers: [{name: e, image: a}],",
        "",
        "spec.ephemeralContainers: a pod cannot be created with ephemeral containers",
    );
    check_problem(
        "initContainers: [{name: web, image: a}],",
        "",
        "spec.containers[0].name: another container is called \"web\" too",
    );
    check_problem(
        "initContainers: [{name: i, image: a, livenessProbe: {tcpSocket: {port: 1}}}],",
        "",
        "spec.initContainers[0].livenessProbe: must not be set on an init container without restartPolicy Always",
    );
    check_problem(
        "",
        "imagePullPolicy: Maybe",
        "spec.containers[0].imagePullPolicy: \"Maybe\" is not one of Always, IfNotPresent, Never",
    );
    check_problem(
        "",
        "terminationMessagePolicy: X",
        "spec.containers[0].terminationMessagePolicy: \"X\" is not one of File, FallbackToLogsOnError",
    );
    check_problem(
        "",
        "env: [{name: a=b}]",
        "spec.containers[0].env[0].name: must consist of printable ASCII characters other than '='",
    );
    check_problem(
        "",
        "env: [{name: A, value: x, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]",
        "spec.containers[0].env[0].valueFrom: must not be set together with value",
    );
    check_problem(
        "",
        "ports: [{containerPort: 0}]",
        "spec.containers[0].ports[0].containerPort: must be between 1 and 65535",
    );
    check_problem(
        "",
        "ports: [{containerPort: 1, hostPort: 70000}]",
        "spec.containers[0].ports[0].hostPort: must be between 1 and 65535",
    );
    check_problem(
        "",
        "ports: [{containerPort: 1, protocol: IP}]",
        "spec.containers[0].ports[0].protocol: \"IP\" is not one of TCP, UDP, SCTP",
    );
    check_problem(
        "",
        "ports: [{containerPort: 1, hostPort: 80}, {containerPort: 2, hostPort: 80}]",
        "spec.containers[0].ports[1].hostPort: port 80 is taken twice",
    );
    check_problem(
        "hostNetwork: true,",
        "ports: [{containerPort: 1, hostPort: 80}]",
        "spec.containers[0].ports[0].hostPort: must be the containerPort on the host's network",
    );
    check_problem(
        "",
        "resources: {limits: {cpu: lots}}",
        "spec.containers[0].resources.limits[cpu]: expected a quantity such as 100Mi, 250m or 1.5, found \"lots\"; \
         spec.containers[0].resources.requests[cpu]: expected a quantity such as 100Mi, 250m or 1.5, found \"lots\"",
    );
    check_problem(
        "",
        "resources: {requests: {cpu: -1}}",
        "spec.containers[0].resources.requests[cpu]: must not be negative",
    );
    check_problem(
        "",
        "resources: {requests: {cpu: 2}, limits: {cpu: 1}}",
        "spec.containers[0].resources.requests[cpu]: must not be more than the limit",
    );
    check_problem(
        "resources: {requests: {memory: 1Mi}},",
        "resources: {requests: {memory: 2Mi}}",
        "spec.resources.requests[memory]: must not be less than the 2Mi that the containers ask for",
    );
    check_problem(
        "",
        "livenessProbe: {}",
        "spec.containers[0].livenessProbe: must have exactly one of exec, grpc, httpGet, tcpSocket",
    );
}

#[test]
fn volumes_that_cannot_be_mounted_are_refused() {
    let mounts = |mounts: &str| format!("volumeMounts: [{mounts}]");
    check_problem("volumes: [{name: v}, {name: v}],", "", "spec.volumes[1].name: another volume is called \"v\" too");
    check_problem(
        "volumes: [{name: v, emptyDir: {}, hostPath: {path: /x}}],",
        "",
        "spec.volumes[0]: has more than one source: emptyDir, hostPath",
    );
    check_problem("volumes: [{name: v, hostPath: {path: ''}}],", "", "spec.volumes[0].hostPath.path: is required");
    check_problem(
        "volumes: [{name: v, hostPath: {path: /a/../b}}],",
        "",
        "spec.volumes[0].hostPath.path: must not contain \"..\"",
    );
    check_problem(
        "volumes: [{name: v}],",
        &mounts("{name: v, mountPath: ''}"),
        "spec.containers[0].volumeMounts[0].mountPath: is required",
    );
    check_problem(
        "volumes: [{name: v}],",
        &mounts("{name: v, mountPath: /a}, {name: v, mountPath: /a}"),
        "spec.containers[0].volumeMounts[1].mountPath: \"/a\" is mounted twice",
    );
    check_problem(
        "volumes: [{name: v}],",
        &mounts("{name: v, mountPath: /a, subPath: ../x}"),
        "spec.containers[0].volumeMounts[0].subPath: must be a relative path without \"..\"",
    );
}

#[test]
fn what_needs_an_api_server_is_refused() {
    let check_volume = |source: &str, expected: &str| {
        check_problem(&format!("volumes: [{{name: v, {source}}}],"), "", &format!("spec.volumes[0].{expected}"));
    };
    check_volume("configMap: {name: c}", "configMap: static pods may not reference configmaps (via configmap volumes)");
    check_volume("secret: {secretName: s}", "secret: static pods may not reference secrets (via secret volumes)");
    check_volume("csi: {driver: d}", "csi: static pods may not reference csidrivers (via CSI volumes)");
    check_volume(
        "persistentVolumeClaim: {claimName: c}",
        "persistentVolumeClaim: static pods may not reference persistentvolumeclaims",
    );
    check_volume(
        "projected: {sources: [{serviceAccountToken: {path: t}}]}",
        "projected: static pods may not reference serviceaccounts (via projected volumes)",
    );
    check_problem(
        "serviceAccount: robot,",
        "",
        "spec.serviceAccountName: static pods may not reference serviceaccounts",
    );
    check_problem("imagePullSecrets: [{name: s}],", "", "spec.imagePullSecrets: static pods may not reference secrets");
    check_problem(
        "resourceClaims: [{name: r}],",
        "",
        "spec.resourceClaims: static pods may not reference resourceclaims",
    );
    check_problem(
        "",
        "envFrom: [{configMapRef: {name: c}}]",
        "spec.containers[0]: static pods may not reference configmaps",
    );
    check_problem(
        "",
        "env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]",
        "spec.containers[0]: static pods may not reference secrets",
    );
}

#[test]
fn what_needs_an_api_server_may_be_allowed() {
    let needing = |fields: &str| {
        let manifest = SMALLEST.replace("spec:\n", &format!("spec:\n  {fields}\n"));
        decode(manifest.as_bytes(), &Origin { may_need_api: true, ..origin("/m/web.yaml") })
    };
    for allowed in
        ["volumes: [{name: v, secret: {secretName: s}}]", "serviceAccountName: robot", "imagePullSecrets: [{name: s}]"]
    {
        assert!(needing(allowed).is_ok(), "{allowed}: {:?}", needing(allowed));
    }
    let bundle = "{clusterTrustBundle: {name: b, path: p}}";
    for refused in
        ["resourceClaims: [{name: r}]", &format!("volumes: [{{name: v, projected: {{sources: [{bundle}]}}}}]")]
    {
        assert!(needing(refused).is_err(), "{refused}");
    }
}

#[test]
fn a_bomb_of_aliases_is_refused() {
    let mut manifest = "a0: &a0 [x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let inner = vec![format!("*a{}", level - 1); 8].join(", ");
        manifest.push_str(&format!("a{level}: &a{level} [{inner}]\n"));
    }
    let error = decode(format!("{manifest}{SMALLEST}").as_bytes(), &origin("/m/web.yaml")).expect_err("a bomb");
    assert!(error.to_string().contains("budget"), "{error}");
}
