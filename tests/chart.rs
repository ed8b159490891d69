//! The Helm chart, as `helm` renders it: what it lets the operator do, how its pods are locked down, and what a
//! mistaken value gets.
//!
//! Needs `helm`: on the PATH, or named by the variable HELM. `make test` provides it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail loudly")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser;
use serde_json::{Value, json};
use sluice::cli::{crds, probe};
use sluice::controllers::OperatorArgs;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs helm. The error is what it printed.
fn helm(arguments: &[&str]) -> Result<String, String> {
    let program = std::env::var_os("HELM").unwrap_or_else(|| "helm".into());
    // Neither a cluster nor the user's own plugins and settings have a say.
    let home = tempfile::tempdir().unwrap();
    let output = Command::new(&program)
        .args(arguments)
        .env("HELM_CONFIG_HOME", home.path())
        .env("HELM_CACHE_HOME", home.path())
        .env("HELM_DATA_HOME", home.path())
        .env("KUBECONFIG", home.path().join("none"))
        .output()
        .unwrap_or_else(|error| {
            panic!(
                "{} cannot be run ({error}): these tests need helm 3.14 or later; put it on the PATH, name it in the \
                 variable HELM, or run `make test`, which builds it",
                program.display()
            )
        });
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn template(sets: &[&str]) -> Result<Vec<Value>, String> {
    let chart = root("charts/sluice");
    let mut arguments = vec!["template", "sluice", chart.to_str().unwrap(), "--namespace", "sluice-system"];
    for set in sets {
        arguments.extend(["--set-json", set]);
    }
    let text = helm(&arguments)?;
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    Ok(objects.into_iter().filter(|object| !object.is_null()).collect())
}

fn render(sets: &[&str]) -> Vec<Value> {
    template(sets).unwrap_or_else(|error| panic!("{sets:?}: {error}"))
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

fn only<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found = of_kind(objects, kind);
    assert_eq!(found.len(), 1, "{kind}");
    found[0]
}

const SYNC: &str = "sync.enabled=true";
const NAMESPACES: &str = r#"watchNamespaces=["shop","team-b"]"#;

#[test]
fn rights_are_those_of_the_golden_file() {
    let mut text = String::new();
    for (title, sets) in [
        ("as installed by default", vec!["crds.install=false"]),
        ("with sync", vec!["crds.install=false", SYNC, "rbac.aggregate=false"]),
        ("in two namespaces, with sync", vec!["crds.install=false", SYNC, NAMESPACES, "rbac.aggregate=false"]),
    ] {
        text.push_str(&format!("# {title}\n"));
        for mut object in render(&sets) {
            if ["ServiceAccount", "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"]
                .contains(&object["kind"].as_str().unwrap())
            {
                // Only those that say where a role goes; the others change with each release.
                if let Some(labels) = object["metadata"]["labels"].as_object_mut() {
                    labels.retain(|key, _| key.starts_with("rbac."));
                }
                text.push_str("---\n");
                text.push_str(&serde_saphyr::to_string(&object).unwrap());
            }
        }
    }
    let golden = root("tests/golden/rbac.yaml");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(golden.parent().unwrap()).unwrap();
        fs::write(&golden, &text).unwrap();
    }
    let expected = fs::read_to_string(&golden).unwrap_or_default();
    assert!(
        text == expected,
        "the chart's rights have changed. If each of them is needed: UPDATE_GOLDEN=1 cargo test --test chart, and say \
         why in the commit"
    );
}

/// Every rule of every role, with the verbs.
fn rules(objects: &[Value]) -> Vec<(String, Value)> {
    let roles = objects.iter().filter(|object| object["kind"] == "Role" || object["kind"] == "ClusterRole");
    roles
        .flat_map(|role| {
            let name = role["metadata"]["name"].as_str().unwrap().to_owned();
            role["rules"].as_array().unwrap().iter().map(move |rule| (name.clone(), rule.clone()))
        })
        .collect()
}

fn texts(value: &Value) -> BTreeSet<String> {
    value.as_array().into_iter().flatten().map(|item| item.as_str().unwrap().to_owned()).collect()
}

#[test]
fn nobody_gets_more_than_is_named() {
    for sets in [vec![], vec![SYNC], vec![SYNC, NAMESPACES]] {
        let objects = render(&sets);
        let mut secrets = 0;
        for (role, rule) in rules(&objects) {
            let (resources, verbs) = (texts(&rule["resources"]), texts(&rule["verbs"]));
            for list in [&resources, &verbs, &texts(&rule["apiGroups"])] {
                assert!(!list.contains("*"), "{role}: {rule}");
            }
            for verb in ["escalate", "bind", "impersonate"] {
                assert!(!verbs.contains(verb), "{role}: {rule}");
            }
            assert!(!resources.iter().any(|name| name.contains("role")), "{role}: {rule}");
            if resources.contains("secrets") {
                secrets += 1;
                assert_eq!(verbs, ["get".to_owned()].into(), "{role}");
                assert_eq!(resources.len(), 1, "{role}");
            }
            if resources.contains("interventions") {
                let record: BTreeSet<_> = ["get", "list", "watch", "create"].map(str::to_owned).into();
                assert!(verbs.is_subset(&record), "an Intervention is a record; {role}: {rule}");
            }
        }
        assert!(secrets > 0);
    }
    // Named Secrets only, when they are named.
    let objects = render(&[r#"rbac.secretNames=["deploy-git"]"#]);
    let secrets: Vec<_> =
        rules(&objects).into_iter().filter(|(_, rule)| rule["resources"] == json!(["secrets"])).collect();
    assert_eq!(secrets.len(), 1);
    assert_eq!(secrets[0].1["resourceNames"], json!(["deploy-git"]));
}

#[test]
fn in_listed_namespaces_nothing_reaches_beyond_them() {
    let objects = render(&[SYNC, NAMESPACES, "rbac.aggregate=false"]);
    for role in of_kind(&objects, "ClusterRole") {
        for rule in role["rules"].as_array().unwrap() {
            for resource in texts(&rule["resources"]) {
                assert!(resource.starts_with("cluster"), "{resource} of {}", role["metadata"]["name"]);
            }
        }
    }
    let namespaces: BTreeSet<_> = of_kind(&objects, "RoleBinding")
        .iter()
        .map(|binding| binding["metadata"]["namespace"].as_str().unwrap())
        .collect();
    assert_eq!(namespaces, ["shop", "sluice-system", "team-b"].into());
    assert!(arguments(&objects).contains(&"--watch-namespaces=shop,team-b,sluice-system".to_owned()));
}

fn pod_specs(objects: &[Value]) -> Vec<(&str, &Value)> {
    let mut specs = vec![("Deployment", &only(objects, "Deployment")["spec"]["template"]["spec"])];
    specs.push(("Pod", &only(objects, "Pod")["spec"]));
    specs.push(("Job", &only(objects, "Job")["spec"]["template"]["spec"]));
    specs
}

#[test]
fn pods_are_restricted() {
    let objects = render(&[]);
    for (kind, spec) in pod_specs(&objects) {
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{kind}");
        assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{kind}");
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(spec.get(field).is_none(), "{kind} {field}");
        }
        let containers = spec["containers"].as_array().unwrap();
        assert_eq!(containers.len(), 1, "{kind}");
        for container in containers {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false, "{kind}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{kind}");
            assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}), "{kind}");
            assert!(context.get("privileged").is_none(), "{kind}");
            assert!(container["resources"]["requests"]["memory"].is_string(), "{kind}");
            assert!(container["resources"]["limits"]["memory"].is_string(), "{kind}");
        }
        for volume in spec["volumes"].as_array().into_iter().flatten() {
            assert!(volume.get("emptyDir").is_some(), "{kind}: {volume}");
        }
    }
    // The image has a read-only root: git needs a place to cache, and a place for short-lived files.
    let deployment = only(&objects, "Deployment");
    let mounts = deployment.pointer("/spec/template/spec/containers/0/volumeMounts").unwrap();
    let paths: Vec<_> = mounts.as_array().unwrap().iter().map(|mount| mount["mountPath"].as_str().unwrap()).collect();
    assert_eq!(paths, [operator(&objects).cache_dir.to_str().unwrap(), "/tmp"]);
    // Only the operator talks to the API server.
    assert_eq!(only(&objects, "ServiceAccount")["automountServiceAccountToken"], false);
    assert_eq!(only(&objects, "Pod")["spec"]["automountServiceAccountToken"], false);
}

#[derive(Parser)]
struct Operator {
    #[command(flatten)]
    arguments: OperatorArgs,
}

#[derive(Parser)]
struct Probe {
    #[command(flatten)]
    arguments: probe::Arguments,
}

fn arguments(objects: &[Value]) -> Vec<String> {
    let arguments = only(objects, "Deployment").pointer("/spec/template/spec/containers/0/args").unwrap();
    arguments.as_array().unwrap().iter().map(|argument| argument.as_str().unwrap().to_owned()).collect()
}

/// The operator's arguments, as the program itself understands them.
fn operator(objects: &[Value]) -> OperatorArgs {
    Operator::try_parse_from(arguments(objects)).unwrap_or_else(|error| panic!("{error}")).arguments
}

#[test]
fn the_program_understands_its_arguments_and_environment() {
    let objects = render(&["clusterName=\"prod-eu\"", "concurrency=3", NAMESPACES]);
    assert_eq!(arguments(&objects)[0], "operator");
    let parsed = operator(&objects);
    assert_eq!(parsed.cluster_name, "prod-eu");
    assert_eq!(parsed.concurrency, 3);
    assert_eq!(parsed.watch_namespaces, ["shop", "team-b", "sluice-system"]);
    let container = only(&objects, "Deployment").pointer("/spec/template/spec/containers/0").unwrap();
    let names: BTreeSet<_> =
        container["env"].as_array().unwrap().iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["POD_NAME", "POD_NAMESPACE", "SLUICE_LOG"].into());
    // Each port of the pod is one that the program listens on.
    let ports = container["ports"].as_array().unwrap().iter();
    let ports: BTreeSet<_> = ports.map(|port| port["containerPort"].as_u64().unwrap()).collect();
    let listened = [parsed.metrics_address, parsed.probe_address, parsed.webhook_address];
    assert_eq!(ports.len(), 3);
    for address in listened {
        assert!(ports.contains(&u64::from(address.port())), "{address}");
    }
    assert_eq!(container["readinessProbe"]["httpGet"], json!({"path": "/readyz", "port": "probes"}));
    assert_eq!(container["livenessProbe"]["httpGet"], json!({"path": "/healthz", "port": "probes"}));
}

#[test]
fn before_it_is_uninstalled_a_job_hands_back_what_rollouts_steer() {
    let objects = render(&[NAMESPACES, "fullnameOverride=\"gate\"", "extraEnv=[{\"name\":\"A\",\"value\":\"b\"}]"]);
    let job = only(&objects, "Job");
    let annotations = &job["metadata"]["annotations"];
    assert_eq!(annotations["helm.sh/hook"], "pre-delete");
    assert!(job["spec"]["activeDeadlineSeconds"].as_i64().unwrap() < 300, "helm waits five minutes");
    let container = &job["spec"]["template"]["spec"]["containers"][0];
    let own: Vec<String> = serde_json::from_value(container["args"].clone()).unwrap();
    let deployment = only(&objects, "Deployment");
    let parsed = Operator::try_parse_from(&own).unwrap().arguments;
    assert_eq!(parsed.hand_back.as_deref(), deployment["metadata"]["name"].as_str());
    assert_eq!(operator(&objects).hand_back, None, "only the Job does");
    // Otherwise it is the operator: it watches the same namespaces, with the same account and environment.
    let mut rest = own.clone();
    rest.retain(|argument| !argument.starts_with("--hand-back"));
    assert_eq!(rest, arguments(&objects));
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(container["env"], pod["containers"][0]["env"]);
    assert_eq!(job["spec"]["template"]["spec"]["serviceAccountName"], pod["serviceAccountName"]);
    // It may stop that Deployment, and no other; and is there only while it is needed.
    let roles = of_kind(&objects, "Role");
    let role = roles.iter().find(|role| role["metadata"]["name"] == "gate-hand-back").unwrap();
    assert_eq!(
        role["rules"],
        json!([{"apiGroups": ["apps"], "resources": ["deployments/scale"], "resourceNames": ["gate"], "verbs": ["patch"]}])
    );
    assert_eq!(role["metadata"]["annotations"]["helm.sh/hook"], "pre-delete");
    let without = render(&["handBack.enabled=false"]);
    assert!(of_kind(&without, "Job").is_empty());
}

#[test]
fn helm_test_asks_through_the_service() {
    let objects = render(&[]);
    let pod = only(&objects, "Pod");
    assert_eq!(pod["metadata"]["annotations"]["helm.sh/hook"], "test");
    let arguments = pod.pointer("/spec/containers/0/args").unwrap().as_array().unwrap();
    let arguments: Vec<_> = arguments.iter().map(|argument| argument.as_str().unwrap()).collect();
    assert_eq!(arguments[0], "probe");
    Probe::try_parse_from(&arguments).unwrap_or_else(|error| panic!("{error}"));
    let service = of_kind(&objects, "Service")
        .into_iter()
        .find(|service| service["metadata"]["name"] == "sluice-metrics")
        .expect("a Service for metrics");
    assert_eq!(service["spec"]["ports"][0]["port"], 8080);
    assert!(arguments.last().unwrap().contains("//sluice-metrics.sluice-system.svc:8080/"));
}

#[test]
fn two_replicas_that_do_not_fall_together() {
    let objects = render(&[]);
    let spec = &only(&objects, "Deployment")["spec"];
    assert_eq!(spec["replicas"], 2);
    let spread = spec["template"]["spec"]["topologySpreadConstraints"].as_array().unwrap();
    assert_eq!(spread[0]["topologyKey"], "kubernetes.io/hostname");
    let selector = &spec["selector"];
    let labels = spec["template"]["metadata"]["labels"].as_object().unwrap();
    for (key, value) in selector["matchLabels"].as_object().unwrap() {
        assert_eq!(labels.get(key), Some(value));
    }
    for (name, found) in [
        ("budget", &only(&objects, "PodDisruptionBudget")["spec"]["selector"]),
        ("policy", &only(&objects, "NetworkPolicy")["spec"]["podSelector"]),
        ("spread", &spread[0]["labelSelector"]),
    ] {
        assert_eq!(found, selector, "{name}");
    }
    for service in of_kind(&objects, "Service") {
        assert_eq!(service["spec"]["selector"], selector["matchLabels"]);
    }
    // The pod of `helm test` is none of the operator's.
    let test = only(&objects, "Pod")["metadata"]["labels"].as_object().unwrap();
    assert!(selector["matchLabels"].as_object().unwrap().iter().any(|(key, value)| test.get(key) != Some(value)));
}

#[test]
fn only_three_ports_can_be_reached() {
    let objects = render(&[r#"networkPolicy.metrics.from=[{"podSelector":{}}]"#]);
    let spec = &only(&objects, "NetworkPolicy")["spec"];
    assert_eq!(spec["policyTypes"], json!(["Ingress"]));
    let ports: Vec<_> = spec["ingress"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| (rule["ports"][0]["port"].as_str().unwrap(), rule.get("from").is_some()))
        .collect();
    assert_eq!(ports, [("probes", false), ("metrics", true), ("webhook", false)]);
    let objects = render(&[r#"networkPolicy.egress=[{"ports":[{"port":443}]}]"#]);
    let spec = &only(&objects, "NetworkPolicy")["spec"];
    assert_eq!(spec["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(spec["egress"], json!([{"ports": [{"port": 443}]}]));
}

#[test]
fn definitions_come_with_the_release_and_outlive_it() {
    let objects = render(&[]);
    let mut found = of_kind(&objects, "CustomResourceDefinition");
    found.sort_by_key(|crd| crd["metadata"]["name"].as_str().unwrap().to_owned());
    let mut expected = crds::definitions().unwrap();
    expected.sort_by_key(|definition| definition.object["metadata"]["name"].as_str().unwrap().to_owned());
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found["metadata"]["annotations"], json!({"helm.sh/resource-policy": "keep"}));
        assert_eq!(found["metadata"]["name"], expected.object["metadata"]["name"]);
        assert_eq!(whole(&found["spec"]), whole(&expected.object["spec"]), "{}", expected.plural);
    }
    let objects = render(&["crds.keep=false"]);
    assert!(of_kind(&objects, "CustomResourceDefinition")[0]["metadata"].get("annotations").is_none());
    assert!(of_kind(&render(&["crds.install=false"]), "CustomResourceDefinition").is_empty());
}

/// With 100.0 and 100 the same number, as they are to an API server.
fn whole(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::Array(items) => items.iter().map(whole).collect(),
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), whole(value))).collect(),
        other => other.clone(),
    }
}

#[test]
fn nobody_speaks_in_another_name() {
    let objects = render(&[]);
    let policies = of_kind(&objects, "ValidatingAdmissionPolicy");
    let policy = policies
        .iter()
        .find(|policy| {
            policy.pointer("/spec/matchConstraints/resourceRules/0/resources") == Some(&json!(["interventions"]))
        })
        .expect("a policy on interventions");
    assert_eq!(policy["spec"]["failurePolicy"], "Fail");
    assert_eq!(policy["spec"]["validations"][0]["expression"], "object.spec.actor == request.userInfo.username");
    let bound: BTreeSet<_> = of_kind(&objects, "ValidatingAdmissionPolicyBinding")
        .iter()
        .map(|binding| {
            assert_eq!(binding["spec"]["validationActions"], json!(["Deny"]));
            binding["spec"]["policyName"].as_str().unwrap().to_owned()
        })
        .collect();
    let named: BTreeSet<_> =
        policies.iter().map(|policy| policy["metadata"]["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(bound, named);
    assert!(of_kind(&render(&["admissionPolicy.enabled=false"]), "ValidatingAdmissionPolicy").is_empty());
}

#[test]
fn the_image_is_named_by_tag_or_by_digest() {
    let image = |sets: &[&str]| {
        let objects = render(sets);
        let images: BTreeSet<_> = pod_specs(&objects)
            .iter()
            .map(|(_, spec)| spec["containers"][0]["image"].as_str().unwrap().to_owned())
            .collect();
        images.into_iter().collect::<Vec<_>>().join(" and ")
    };
    assert_eq!(image(&[]), format!("sluice:{}", env!("CARGO_PKG_VERSION")));
    assert_eq!(image(&[r#"image={"repository":"example.test/sluice","tag":"v2"}"#]), "example.test/sluice:v2");
    let digest = format!("sha256:{}", "0f".repeat(32));
    assert_eq!(image(&[&format!(r#"image={{"digest":"{digest}","tag":"v2"}}"#)]), format!("sluice@{digest}"));
}

#[test]
fn a_mistaken_value_is_named() {
    for (set, named) in [
        ("replicas=\"two\"", "replicas"),
        ("replicas=-1", "replicas"),
        ("replicaCount=3", "replicaCount"),
        ("clusterName=\"Prod EU\"", "clusterName"),
        ("clusterName=\"\"", "clusterName"),
        ("concurrency=0", "concurrency"),
        ("watchNamespaces=\"shop\"", "watchNamespaces"),
        ("watchNamespaces=[\"Shop\"]", "watchNamespaces"),
        ("watchNamespaces=[\"shop\",\"shop\"]", "watchNamespaces"),
        ("image={\"digest\":\"latest\"}", "digest"),
        ("image={\"pullPolicy\":\"Sometimes\"}", "pullPolicy"),
        ("image={\"repository\":\"sluice@sha256:00\"}", "repository"),
        ("sync={\"enabled\":\"yes\"}", "sync"),
        ("sync={\"rules\":[{\"apiGroups\":[\"apps\"],\"resources\":[\"*\"]}]}", "sync"),
        ("sync={\"rules\":[{\"apiGroups\":[\"apps\"],\"resources\":[\"deployments\"],\"verbs\":[\"*\"]}]}", "verbs"),
        ("crds={\"instal\":true}", "instal"),
        ("cache={\"sizeLimit\":\"plenty\"}", "sizeLimit"),
        ("extraEnv=[{\"value\":\"x\"}]", "extraEnv"),
        ("metrics={\"serviceMonitor\":{\"interval\":\"half a minute\"}}", "interval"),
    ] {
        let error = template(&[set]).expect_err(set);
        assert!(error.contains(named), "{set}: {error}");
    }
}

#[test]
fn helm_finds_nothing_to_complain_of() {
    let chart = root("charts/sluice");
    helm(&["lint", "--strict", chart.to_str().unwrap()]).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn every_value_is_described_by_the_schema() {
    let values: Value =
        serde_saphyr::from_str(&fs::read_to_string(root("charts/sluice/values.yaml")).unwrap()).unwrap();
    let schema: Value =
        serde_json::from_str(&fs::read_to_string(root("charts/sluice/values.schema.json")).unwrap()).unwrap();
    fn check(path: &str, value: &Value, schema: &Value) {
        let Some(fields) = value.as_object() else { return };
        let Some(properties) = schema["properties"].as_object() else { return };
        for (key, value) in fields {
            let known = properties.get(key).unwrap_or_else(|| panic!("{path}{key} is not in the schema"));
            check(&format!("{path}{key}."), value, known);
        }
    }
    check("", &values, &schema);
}

#[test]
fn a_service_monitor_finds_the_metrics() {
    assert!(of_kind(&render(&[]), "ServiceMonitor").is_empty());
    let objects = render(&["metrics={\"serviceMonitor\":{\"enabled\":true}}"]);
    let monitor = only(&objects, "ServiceMonitor");
    let wanted = monitor["spec"]["selector"]["matchLabels"].as_object().unwrap();
    let found: Vec<_> = of_kind(&objects, "Service")
        .into_iter()
        .filter(|service| {
            let labels = service["metadata"]["labels"].as_object().unwrap();
            wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
        })
        .collect();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["spec"]["ports"][0]["name"], monitor["spec"]["endpoints"][0]["port"]);
}

#[test]
fn notes_say_the_next_command() {
    let chart = root("charts/sluice");
    let text = helm(&[
        "install",
        "sluice",
        chart.to_str().unwrap(),
        "--namespace",
        "sluice-system",
        "--dry-run=client",
        "--set",
        "clusterName=prod",
    ])
    .unwrap_or_else(|error| panic!("{error}"));
    let notes = text.split("NOTES:").nth(1).expect("notes");
    for said in [
        "rollout-log/prod",
        "kubectl -n sluice-system rollout status deployment/sluice",
        "helm -n sluice-system test sluice",
        "kind: DeployRepo",
        "sync.enabled=true",
        "kubectl rollout-status",
    ] {
        assert!(notes.contains(said), "{said} is not in {notes}");
    }
    // What it tells people to apply can be pasted, and is what the operator understands.
    let manifests = notes.split("<<EOF\n").nth(1).and_then(|rest| rest.split("\nEOF\n").next()).expect("manifests");
    let objects: Vec<Value> = serde_saphyr::from_multiple(manifests).unwrap();
    assert_eq!(objects.len(), 2);
    serde_json::from_value::<sluice::api::DeployRepo>(objects[0].clone()).unwrap();
    serde_json::from_value::<sluice::api::ClusterMetricProvider>(objects[1].clone()).unwrap();
}
