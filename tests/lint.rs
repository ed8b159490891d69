//! `sluice lint` as a person or a pipeline runs it: what it prints, how it ends, and what a program reads.
//!
//! The files in `tests/data/lint` are written as people write theirs: rendered by charts, brought along from other
//! tools, with what an editor leaves behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail loudly")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/lint").join(name)
}

fn lint(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .arg("lint")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A program that does not read its input has closed it; that is for the test to judge by the output.
    let _ = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The lines on standard output, and the code.
fn linted(arguments: &[&str], input: &[u8]) -> (Vec<String>, i32) {
    let output = lint(arguments, input);
    (text(&output.stdout).lines().map(str::to_owned).collect(), output.status.code().unwrap())
}

fn linted_text(input: &str) -> Vec<String> {
    linted(&["-f", "-"], input.as_bytes()).0
}

const ERRORS: [&str; 14] = [
    "document 3 (Rollout shop/cart): spec.strategy.canary.steps[1]: holds exactly one of setWeight, setCanaryScale, setHeaderRoute, pause and analysis",
    "document 3 (Rollout shop/cart): spec.strategy.canary.steps[2]: holds exactly one of setWeight, setCanaryScale, setHeaderRoute, pause and analysis",
    "document 3 (Rollout shop/cart): spec.strategy.canary.steps[1].setWieght: there is no such field; did you mean setWeight?",
    "document 3 (Rollout shop/cart): spec.strategy.canary.steps[2].setWeight: 150 is above 100",
    "document 17 (Rollout shop/web): spec.strategy.canary.steps[2].setWeight: 140 is above 100",
    "document 17 (Rollout shop/web): spec.strategy.canary.steps[3].pause.duration: \"5 minutes\" is not a duration: write seconds (30) or units (90s, 10m, 1h30m, 250ms)",
    "document 18 (AnalysisTemplate shop/latency): spec.metrics[0].provider.prometheus.query: {{args.ap}} is not an argument of this template; it knows app, canaryService, namespace, revision, rollout, stableRevision, stableService",
    "document 23: line 458, column 9: while scanning a plain scalar, found a tab",
    "document 24: line 467, column 3: duplicate mapping key `name` is not allowed here",
    "document 29 (DeployRepo shop/deploy): spec.forge.type: \"github\" is not one of gitHub, gitLab, gitea; did you mean gitHub?",
    "document 29 (DeployRepo shop/deploy): spec.intervall: there is no such field; did you mean interval?",
    "document 31 (Rollout shop/mail): spec.template.metadata.labels.build: must be a text, and is the number 7; put it in quotes",
    "document 31 (Rollout shop/mail): spec.template.spec.containers[0].resources.limits.cpu: the text \"nill\" is no quantity, such as 500m, 2 or 1Gi",
    "document 40 (Rolout shop/last): kind: there is no kind Rolout in sluice.dev/v1alpha1; did you mean Rollout?",
];

/// Forty documents as a chart renders them. What is sound among them, such as the Rollout `orders` with Windows line
/// ends and the Services in a List, is not mentioned.
#[test]
fn a_rendered_chart_has_one_line_for_each_fault_and_none_for_what_is_sound() {
    let stream = fs::read(data("release.yaml")).unwrap();
    let (lines, code) = linted(&["-f", "-"], &stream);
    assert_eq!(code, 1);
    let (warnings, errors): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line.starts_with("warning: "));
    assert_eq!(errors, ERRORS.iter().collect::<Vec<_>>());
    assert_eq!(
        warnings,
        [
            "warning: document 25 (Rollout shop/billing): spec.strategy.canary.canaryService: Service \
             shop/billing-canary is not in the files; taken to exist and to fit",
            "warning: document 25 (Rollout shop/billing): \
             spec.strategy.canary.trafficRouting.gatewayAPI.httpRoutes[0].name: HTTPRoute shop/billing is not in the \
             files; taken to exist and to fit",
            "warning: document 28 (AnalysisTemplate shop/success-rate): apiVersion: argoproj.io/v1alpha1 is another \
             project's AnalysisTemplate and is not read by Sluice; write it as AnalysisTemplate of sluice.dev/v1alpha1",
        ]
    );
    // The same from a file, and with Windows line ends from beginning to end.
    let file = data("release.yaml").to_string_lossy().into_owned();
    assert_eq!(linted(&["-f", &file], b""), (lines.clone(), 1));
    let windows = text(&stream).replace("\r\n", "\n").replace('\n', "\r\n");
    assert_eq!(linted(&["-f", "-"], windows.as_bytes()), (lines, 1));
    let summary = text(&lint(&["-f", &file], b"").stderr);
    assert_eq!(summary, "35 objects, 10 of Sluice's kinds: 14 errors, 3 warnings\n");
}

#[test]
fn what_a_rollout_names_and_the_files_do_not_hold_is_an_error_when_strict() {
    let file = data("release.yaml").to_string_lossy().into_owned();
    let (lines, code) = linted(&["-f", &file, "--strict"], b"");
    assert_eq!(code, 1);
    // In the words of the operator's condition.
    let absent = "document 25 (Rollout shop/billing): spec.strategy.canary.canaryService: Service shop/billing-canary \
                  does not exist; create it, or mend the name";
    assert!(lines.iter().any(|line| line == absent), "{lines:#?}");

    let sound = fs::read_to_string(data("sound/orders.yaml")).unwrap();
    let (lines, code) = linted(&["-f", "-"], sound.as_bytes());
    assert_eq!(
        (lines, code),
        (
            vec![
                "warning: document 1 (Rollout shop/orders): spec.strategy.canary.analysis.templates[0].templateName: \
                 AnalysisTemplate shop/error-rate is not in the files; taken to exist and to fit"
                    .to_owned()
            ],
            0
        )
    );
    assert_eq!(linted(&["-f", "-", "--strict"], sound.as_bytes()).1, 1);
}

#[test]
fn sound_files_are_passed_in_silence_even_when_strict() {
    let directory = data("sound").to_string_lossy().into_owned();
    for arguments in [&["-f", &directory][..], &["-f", &directory, "--strict"]] {
        let output = lint(arguments, b"");
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), ""));
        assert_eq!(text(&output.stderr), "8 objects, 5 of Sluice's kinds: 0 errors, 0 warnings\n");
    }
    // The examples that people copy from.
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").to_string_lossy().into_owned();
    assert_eq!(linted(&["-f", &examples], b""), (Vec::new(), 0));
}

#[test]
fn in_a_directory_each_line_names_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    write(
        "a/web.yaml",
        b"# a comment\n---\napiVersion: sluice.dev/v1alpha1\nkind: Intervention\nmetadata: {name: x}\nspec: {}\n",
    );
    write("a/kustomization.yaml", b"resources: [web.yaml]\n");
    write("latin.yaml", b"a: \xff\n");
    write("notes.txt", b"not: [a manifest");
    let (lines, code) = linted(&["-f", &directory.path().to_string_lossy()], b"");
    assert_eq!(
        lines,
        [
            "a/kustomization.yaml: a kustomization is not rendered; commit the rendered manifests, or set spec.path to \
             a folder of them",
            "a/web.yaml, document 1 (Intervention default/x): spec.action: is required",
            "a/web.yaml, document 1 (Intervention default/x): spec.actor: is required",
            "a/web.yaml, document 1 (Intervention default/x): spec.revision: is required",
            "a/web.yaml, document 1 (Intervention default/x): spec.rollout: is required",
            "latin.yaml: is not UTF-8 text",
        ]
    );
    assert_eq!(code, 1);
}

#[test]
fn what_is_brought_along_from_other_tools_is_told_field_by_field() {
    let file = data("leftovers.yaml").to_string_lossy().into_owned();
    let (lines, code) = linted(&["-f", &file], b"");
    let fields: Vec<&str> = lines.iter().map(|line| line.split("): ").nth(1).unwrap()).collect();
    assert_eq!(
        fields,
        [
            "spec.strategy.canary.steps[1].analysis.templates: is required",
            "spec.strategy.canary.steps[2]: a step holds exactly one of setWeight, setCanaryScale, setHeaderRoute, pause and analysis",
            "spec.strategy.canary.steps[3].pause.duration: write seconds (30) or units (90s, 10m, 1h30m, 250ms), at most 366 days",
            "spec.strategy.canary.steps[4].setWeight: must be a whole number, and is the text \"25\"",
            "spec.strategy.canary.steps[5]: a step holds exactly one of setWeight, setCanaryScale, setHeaderRoute, pause and analysis",
            "spec.strategy.type: there is no such field",
            "spec.template.spec.containers[0].readinesProbe: there is no such field; did you mean readinessProbe?",
            "spec.args[0].value: invalid type: floating point `0.95`, expected a string",
            "spec.metrics[0].failureLimit: must be a whole number, and is the text \"3\"",
            "spec.metrics[0].provider.prometheus.address: there is no such field",
            "spec.metrics[0].provider.prometheus.name: is required",
            "metadata.namespace: ClusterMetricProvider is cluster-scoped and has no namespace; remove the field",
            "spec.prometheus.address: must be http:// or https://, without user, password, query or fragment",
        ]
    );
    // A field of the template may be newer than the schema: it is only a warning, unless one is strict.
    let probe = lines.iter().find(|line| line.contains("readinesProbe")).unwrap();
    assert!(probe.starts_with("warning: "));
    assert_eq!(code, 1);
    let strict = linted(&["-f", &file, "--strict"], b"").0;
    assert!(strict.iter().any(|line| line.starts_with("document 1 ") && line.contains("readinesProbe")));
}

#[test]
fn objects_of_other_projects_are_named_and_never_misread() {
    let file = data("foreign.yaml").to_string_lossy().into_owned();
    let (lines, code) = linted(&["-f", &file, "--strict"], b"");
    let known = [
        "document 1 (Rollout shop/search)",
        "document 2 (AnalysisTemplate shop/success-rate)",
        "document 3 (Canary shop/cart)",
    ];
    assert_eq!((lines.len(), code), (known.len(), 0), "{lines:#?}");
    for (line, place) in lines.iter().zip(known) {
        assert!(line.starts_with(&format!("warning: {place}: apiVersion: ")), "{line}");
        assert!(line.contains("is not read by Sluice"), "{line}");
    }
}

const ROLLOUT: &str = r#"
apiVersion: sluice.dev/v1alpha1
kind: Rollout
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "web:1"}]}
  strategy:
    canary:
      stableService: web
      canaryService: web-canary
      trafficRouting: {gatewayAPI: {httpRoutes: [{name: web}]}}
      steps: [{setWeight: 20}, {pause: {duration: 5m}}]
"#;

#[test]
fn metadata_of_a_wrong_form_hides_nothing() {
    let wrong = ROLLOUT
        .replace(
            "name: web, namespace: shop",
            "name: web, namespace: shop, labels: {build: 7}, annotations: {port: 8080}",
        )
        .replace("setWeight: 20", "setWeight: 120");
    let (lines, code) = linted(&["-f", "-"], wrong.as_bytes());
    let errors: Vec<&str> = lines.iter().filter(|line| !line.starts_with("warning")).map(String::as_str).collect();
    assert_eq!(
        (errors, code),
        (
            vec![
                "document 1 (Rollout shop/web): spec.strategy.canary.steps[0].setWeight: 120 is above 100",
                "document 1 (Rollout shop/web): metadata.annotations.port: must be a text, and is the number 8080; put it in quotes",
                "document 1 (Rollout shop/web): metadata.labels.build: must be a text, and is the number 7; put it in quotes",
            ],
            1
        )
    );
    let empty = "apiVersion: sluice.dev/v1alpha1\nkind: Rollout\nmetadata: {name: web}\n";
    assert_eq!(linted_text(empty), ["document 1 (Rollout default/web): spec: is required"]);
}

#[test]
fn one_broken_item_of_a_list_hides_none_of_the_others() {
    let item = |name: &str| format!("- apiVersion: v1\n  kind: ConfigMap\n  metadata: {{name: {name}}}\n");
    let list = format!("apiVersion: v1\nkind: List\nitems:\n{}{}{}", item("7"), item("fine"), item("''"));
    assert_eq!(
        linted_text(&list),
        [
            "document 1: items[0].metadata.name: must be a text; put it in quotes",
            "document 1: items[2].metadata.name: is missing",
        ]
    );
}

#[test]
fn each_kind_of_fault_has_its_own_words() {
    for (from, to, expected) in [
        (
            "app: web}}\n    spec",
            "app: api}}\n    spec",
            "spec.template.metadata.labels: must carry app: web, which spec.selector asks for",
        ),
        (
            "canaryService: web-canary",
            "canaryService: web",
            "spec.strategy.canary.canaryService: must differ from stableService",
        ),
        (
            "name: web, namespace",
            &format!("name: {}, namespace", "w".repeat(47)),
            "metadata.name: at most 46 letters, so that the names of ReplicaSets and pods fit; create it again under a shorter name",
        ),
        ("v1alpha1", "v1", "apiVersion: sluice.dev/v1 is not served; write sluice.dev/v1alpha1"),
        (
            "image: \"web:1\"",
            "image: \"web:1\", imagePullPolicy: always",
            "spec.template.spec.containers[0].imagePullPolicy: \"always\" is not one of Always, IfNotPresent, Never; did you mean Always?",
        ),
        (
            "spec:\n  selector",
            "spec:\n  replicas: '3'\n  selector",
            "spec.replicas: invalid type: string \"3\", expected i32",
        ),
        ("spec:\n  selector", "spec:\n  replicas: -1\n  selector", "spec.replicas: must not be negative"),
        (
            "[{name: web}]",
            "[{name: web, namespace: other}]",
            "spec.strategy.canary.trafficRouting.gatewayAPI.httpRoutes[0].namespace: there is no such field",
        ),
        (
            "    canary:",
            "    blueGreen: {activeService: a}\n    canary:",
            "spec.strategy: name exactly one of canary and blueGreen",
        ),
        (
            "duration: 5m",
            "duration: 5m, approvals: 2",
            "spec.strategy.canary.steps[1].pause: give duration or approvals, not both",
        ),
    ] {
        let wrong = ROLLOUT.replacen(from, to, 1);
        assert_ne!(wrong, ROLLOUT, "{from}");
        let (lines, code) = linted(&["-f", "-"], wrong.as_bytes());
        let errors: Vec<&str> = lines.iter().filter(|line| !line.starts_with("warning")).map(String::as_str).collect();
        let told = errors.iter().map(|line| line.split_once("): ").unwrap().1).collect::<Vec<_>>();
        assert_eq!((told, code), (vec![expected], 1), "{to}");
    }
    let twice = linted_text(&format!("{ROLLOUT}---{ROLLOUT}"));
    assert!(twice.contains(&"document 2 (Rollout shop/web): is declared a second time".to_owned()), "{twice:#?}");
}

#[test]
fn a_program_reads_the_same_findings() {
    let stream = fs::read(data("release.yaml")).unwrap();
    let output = lint(&["-f", "-", "-o", "json"], &stream);
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(1), ""));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["apiVersion"], "sluice.dev/v1alpha1");
    assert_eq!(document["kind"], "LintReport");
    assert_eq!((&document["objects"], &document["own"]), (&json!(35), &json!(10)));
    assert_eq!((&document["errors"], &document["warnings"]), (&json!(14), &json!(3)));
    let items = document["items"].as_array().unwrap();
    let errors: Vec<&str> =
        items.iter().filter(|item| item["severity"] == "Error").map(|item| item["text"].as_str().unwrap()).collect();
    assert_eq!(errors, ERRORS);
    let of = |document: u64| items.iter().find(|item| item["document"] == document).unwrap();
    assert_eq!(
        of(17),
        &json!({
            "severity": "Error", "file": "standard input", "document": 17, "line": 284,
            "object": {"kind": "Rollout", "namespace": "shop", "name": "web"},
            "field": "spec.strategy.canary.steps[2].setWeight", "message": "140 is above 100",
            "text": "document 17 (Rollout shop/web): spec.strategy.canary.steps[2].setWeight: 140 is above 100"
        })
    );
    // The line of the fault itself where it is known.
    assert_eq!((&of(24)["line"], of(24).get("object"), of(24).get("field")), (&json!(467), None, None));

    let sound: Value =
        serde_json::from_slice(&lint(&["-f", &data("sound").to_string_lossy(), "-o", "json"], b"").stdout).unwrap();
    assert_eq!((&sound["errors"], &sound["items"]), (&json!(0), &json!([])));
}

#[test]
fn nothing_to_read_is_an_error_and_nothing_of_ours_is_none() {
    let missing = lint(&["-f", "/nonexistent/web.yaml"], b"");
    assert_eq!((missing.status.code(), missing.stdout.len()), (Some(1), 0));
    assert!(text(&missing.stderr).starts_with("error: /nonexistent/web.yaml: "));
    assert_eq!(lint(&[], b"").status.code(), Some(1));
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n";
    for input in ["", "# nothing\n---\n--- \n", service] {
        let output = lint(&["-f", "-"], input.as_bytes());
        assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "{input}");
    }
}

/// The page is run: its manifest is linted by its commands.
#[test]
fn the_page_shows_what_is_so() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/lint.md")).unwrap();
    let block = |start: &str| page.split(start).nth(1).unwrap().split("```").next().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("web.yaml");
    fs::write(&file, block("```yaml\n")).unwrap();
    let file = file.to_string_lossy().into_owned();

    let shown = block("$ sluice lint -f web.yaml\n");
    let output = lint(&["-f", &file], b"");
    assert_eq!(text(&output.stdout) + &text(&output.stderr), shown);

    let output = text(&lint(&["-f", &file, "-o", "json"], b"").stdout);
    let mut rest = output.as_str();
    for part in block("$ sluice lint -f web.yaml -o json\n").split("…\n") {
        let at = rest.find(part).unwrap_or_else(|| panic!("the page shows\n{part}\nand it is\n{output}"));
        rest = &rest[at + part.len()..];
    }
}

#[test]
fn help_and_completion_know_it() {
    let program = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_sluice")).args(arguments).output().unwrap();
        assert!(output.status.success());
        text(&output.stdout)
    };
    assert!(program(&["--help"]).contains("\n  lint "));
    assert!(program(&["lint", "--help"]).contains("--strict"));
    for shell in ["bash", "zsh", "fish"] {
        let script = program(&["completion", shell]);
        assert!(script.contains("lint") && script.contains("strict"), "{shell}");
    }
}
