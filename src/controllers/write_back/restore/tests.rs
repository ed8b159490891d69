//! Files as people write them, one fault at a time; and random ones.

use serde_json::json;

use super::*;

const WEB: Wanted<'static> = Wanted { namespace: "shop", name: "web", default_namespace: "shop" };

fn declared(path: &str, text: &str) -> Declaration {
    find([(path, text)], WEB).unwrap_or_else(|| panic!("no Rollout in {text}"))
}

fn put_back(tip: &str, good: &str) -> Result<Restored, NotLiteral> {
    restore(&declared("web.yaml", tip), Good::Declaration(&declared("web.yaml", good)), WEB)
}

/// `good` and `bad` differ in what the bad commit changed; the tip is `bad`, and must become `good` again.
fn round_trip(good: &str, bad: &str, fields: &[&str]) {
    let restored = put_back(bad, good).unwrap_or_else(|refused| panic!("{refused}\n{bad}"));
    assert_eq!(restored.text, good, "from\n{bad}");
    let fields: Vec<String> = fields.iter().map(|field| format!("spec.template{field}")).collect();
    assert_eq!(restored.fields, fields);
}

/// A manifest with this under `template:`, four spaces deep.
fn web(template: &str) -> String {
    format!(
        "# the shop's front\napiVersion: sluice.dev/v1alpha1\nkind: Rollout\nmetadata: {{name: web, namespace: shop}}\n\
         spec:\n  replicas: 4 # as in May\n  template:\n{template}  strategy:\n    canary: {{}}\n"
    )
}

const PLAIN: &str = "    metadata:\n      labels: {app: web}\n    spec:\n      containers:\n      - name: web # main\n        \
                     image: web:1   # pinned\n        env:\n        # of the shop\n        - name: A\n          value: \"1\"\n\n        \
                     # of the bank\n        - name: B\n          value: '2'\n        ports:\n        - containerPort: 80\n";

#[test]
fn one_value_changes_and_no_other_byte() {
    let good = web(PLAIN);
    let image = &[".spec.containers[web].image"];
    round_trip(&good, &good.replace("web:1", "web:2"), image);
    round_trip(&good, &good.replace("web:1 ", "'web:2' "), image);
    round_trip(&good, &good.replace("web:1   #", "\"web:\\\n          2\"   #"), image);
    round_trip(&good, &good.replace("image: web:1   # pinned", "image: web:2   # pinned"), image);
    let several = good.replace("web:1", "web:2").replace("'2'", "'3'").replace("{app: web}", "{app: web2}");
    round_trip(
        &good,
        &several,
        &[".metadata.labels.app", ".spec.containers[web].image", ".spec.containers[web].env[B].value"],
    );
}

#[test]
fn line_ends_the_byte_order_mark_and_a_missing_last_line_end_stay() {
    let good = web(PLAIN);
    let image = &[".spec.containers[web].image"];
    let crlf = good.replace('\n', "\r\n");
    round_trip(&crlf, &crlf.replace("web:1", "web:2"), image);
    let mixed = good.replacen('\n', "\r\n", 9);
    round_trip(&mixed, &mixed.replace("web:1", "web:2"), image);
    let marked = format!("\u{feff}{good}");
    round_trip(&marked, &marked.replace("web:1", "web:2"), image);
    let last = "apiVersion: sluice.dev/v1alpha1\nkind: Rollout\nmetadata:\n  name: web\nspec:\n  template:\n    spec:\n      \
                containers:\n      - name: web\n        image: web:1";
    round_trip(last, &last.replace("web:1", "web:2"), image);
    round_trip(last, &format!("{last}\n        tty: true"), &[".spec.containers[web].tty"]);
    let more = format!("{last}\n        tty: true");
    round_trip(&more, last, &[".spec.containers[web].tty"]);
}

#[test]
fn entries_come_and_go_with_what_belongs_to_them() {
    let good = web(PLAIN);
    let env = ".spec.containers[web].env";
    let without = |text: &str| {
        assert!(good.contains(text), "{text}");
        good.replace(text, "")
    };
    let b = "\n        # of the bank\n        - name: B\n          value: '2'\n";
    round_trip(&good, &without(b), &[&format!("{env}[B]")]);
    round_trip(&without(b), &good, &[&format!("{env}[B]")]);
    let a = "        # of the shop\n        - name: A\n          value: \"1\"\n\n";
    round_trip(&good, &without(a), &[&format!("{env}[A]")]);
    round_trip(&without(a), &good, &[&format!("{env}[A]")]);
    let ports = "        ports:\n        - containerPort: 80\n";
    round_trip(&good, &without(ports), &[".spec.containers[web].ports"]);
    round_trip(&without(ports), &good, &[".spec.containers[web].ports"]);
    let second = "      - name: log\n        image: log:1\n";
    round_trip(&good, &good.replace("  strategy:", &format!("{second}  strategy:")), &[".spec.containers[log]"]);
    round_trip(
        &good,
        &good.replace("      - name: web", &format!("{second}      - name: web")),
        &[".spec.containers[log]"],
    );
    round_trip(
        &good,
        &good.replace("- containerPort: 80", "- containerPort: 80\n        - containerPort: 81"),
        &[".spec.containers[web].ports[1]"],
    );
    round_trip(
        &good,
        &good.replace("      containers:", "      hostNetwork: true\n      containers:"),
        &[".spec.hostNetwork"],
    );
}

#[test]
fn comments_and_edits_of_others_stay() {
    let good = web(PLAIN);
    let bad = good.replace("web:1", "web:2").replace("        - name: B\n          value: '2'\n", "");
    let edits = |text: &str| {
        text.replace("# main", "# the main one")
            .replace("replicas: 4 # as in May", "replicas: 9 # since June")
            .replace("# the shop's front", "# front\n# of the shop")
            .replace("  strategy:\n", "  strategy: # new\n")
            + "---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: other\n"
    };
    let restored = put_back(&edits(&bad), &good).unwrap();
    assert_eq!(restored.text, edits(&good));
}

#[test]
fn a_whole_value_changes_where_its_kind_does() {
    let good = web(PLAIN);
    let flow = good.replace("labels: {app: web}", "labels:\n        app: web\n        tier: front");
    round_trip(&good, &flow, &[".metadata.labels"]);
    round_trip(&flow, &good, &[".metadata.labels"]);
    let command = |text: &str| good.replace("        ports:", &format!("        command: {text}\n        ports:"));
    let field = &[".spec.containers[web].command"];
    round_trip(&command("[a, b]"), &command("\n        - a\n        - c"), field);
    round_trip(&command("\n        - a # first\n        - c"), &command("[a, b]"), field);
    round_trip(&command("[]"), &command("[a]"), field);
    let flow_item = &[".spec.containers[web].command[1]"];
    round_trip(&command("[a, b, c]"), &command("[a, x, c]"), flow_item);
    round_trip(&command("[a, b, c]"), &command("[a, c]"), flow_item);
    round_trip(&command("[a, c]"), &command("[a, b, c]"), flow_item);
    round_trip(&command("[a, c ] # x"), &command("[a, c, d ] # x"), &[".spec.containers[web].command[2]"]);
}

#[test]
fn block_scalars_change_as_a_whole() {
    let script =
        |text: &str| web(PLAIN).replace("        ports:", &format!("        args:\n        - {text}\n        ports:"));
    let good = script(
        "|\n          set -e # not a comment\n\n          run \"$@\"\n        - >-\n          folded\n          text",
    );
    let field = &[".spec.containers[web].args[0]"];
    round_trip(&good, &good.replace("run", "walk"), field);
    round_trip(&good, &good.replace("set -e", "set -ex"), field);
    round_trip(&good, &good.replace("- |\n", "- |-\n"), field);
    round_trip(&good, &good.replace("- |\n", "- |2\n  "), field);
    round_trip(&good, &good.replace("folded", "other"), &[".spec.containers[web].args[1]"]);
    let single = script("one\n        - >-\n          folded\n          text");
    round_trip(&good, &single, field);
    round_trip(&single, &good, field);
}

#[test]
fn another_indentation_is_kept() {
    let good = web(PLAIN);
    let deep = web(
        "    metadata:\n      labels: {app: web}\n    spec:\n      containers:\n          - name: web # main\n            \
         image: web:2   # pinned\n            env:\n              - name: A\n                value: \"1\"\n            ports:\n            - \
         containerPort: 80\n",
    );
    let restored = put_back(&deep, &good).unwrap();
    let expected = deep.replace("web:2", "web:1").replace(
        "                value: \"1\"\n",
        "                value: \"1\"\n\n              # of the bank\n              - name: B\n                value: '2'\n",
    );
    assert_eq!(restored.text, expected);
    let crlf = put_back(&deep.replace('\n', "\r\n"), &good).unwrap();
    assert_eq!(crlf.text, expected.replace('\n', "\r\n"));
}

#[test]
fn json_stays_json() {
    let good = "{\n\t\"apiVersion\": \"sluice.dev/v1alpha1\", \"kind\": \"Rollout\",\r\n\t\"metadata\": {\"name\": \"web\"},\n\t\"spec\": {\n\t\t\
                \"template\": {\"spec\": {\n\t\t\t\"a\": 1,\n\t\t\t\"containers\": [ {\"name\": \"web\", \"image\": \"w\\u0065b:1\"} ],\n\t\t\t\"z\": [1, 2]\n\t\t}}\n\t}\n}";
    let restored =
        |tip: &str, good: &Declaration| restore(&declared("d/w.json", tip), Good::Declaration(good), WEB).unwrap().text;
    let good_file = declared("d/w.json", good);
    for bad in [
        good.replace("w\\u0065b:1", "web:2"),
        good.replace("\t\t\t\"a\": 1,\n", ""),
        good.replace(",\n\t\t\t\"z\": [1, 2]", ""),
        good.replace("[1, 2]", "[1, 2, 3]"),
        good.replace("[1, 2]", "[2]"),
        good.replace("\"a\": 1,", "\"a\": {\"b\": [true]},"),
        good.replace("\"a\": 1,", "\"a\": 1, \"b\": null,"),
    ] {
        assert_eq!(restored(&bad, &good_file), good, "from {bad}");
    }
    // It was YAML when it was good.
    let yaml = declared("w.yaml", &good.replace("\"w\\u0065b:1\"", "web:1").replace("\"a\": 1,", "# old\n a: 1,"));
    let bad = good.replace("w\\u0065b:1", "web:2");
    assert_eq!(restored(&bad, &yaml), good.replace("w\\u0065b:1", "web:1"));
    let block = declared(
        "w.yaml",
        &web(
            "    spec:\n      a: 1\n      containers:\n      - {name: web, image: web:1}\n      z:\n      - 1\n      - 2\n",
        ),
    );
    assert_eq!(restored(&bad, &block), good.replace("w\\u0065b:1", "web:1"));
}

#[test]
fn other_documents_and_other_rollouts_stay() {
    let good = web(PLAIN);
    let other = good.replace("name: web, ", "name: shop, ").replace("web:1", "web:2");
    let elsewhere = good.replace("namespace: shop", "namespace: bank").replace("web:1", "web:2");
    let around = |web: &str| format!("---\n# first\n{other}---\n{web}--- # third\n{elsewhere}...\n---\n# nothing\n");
    round_trip(&around(&good), &around(&good.replace("web:1", "web:2")), &[".spec.containers[web].image"]);
    let list = |image: &str| {
        format!(
            "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: ConfigMap\n  metadata: {{name: x}}\n- apiVersion: \
             sluice.dev/v1alpha1\n  kind: Rollout\n  metadata:\n    name: web\n  spec:\n    template:\n      image: {image}\n"
        )
    };
    round_trip(&list("web:1"), &list("web:2"), &[".image"]);
}

#[test]
fn what_is_written_elsewhere_is_refused_by_name() {
    let refused = |tip: &str, good: &str| {
        let refusal = put_back(tip, good).unwrap_err();
        (refusal.field.trim_start_matches("spec.template").to_owned(), refusal.why)
    };
    let anchored = |image: &str| {
        web(&format!(
            "    metadata:\n      annotations: {{image: &image {image}}}\n    spec:\n      containers:\n      - name: web\n        image: *image\n"
        ))
    };
    let (field, why) = refused(&anchored("web:2"), &anchored("web:1"));
    assert_eq!((field.as_str(), why.as_str()), (".metadata.annotations.image", "has an anchor that other values use"));
    let literal = anchored("web:1").replace("*image", "web:1");
    let (field, why) = refused(
        &literal
            .replace("&image web:1", "&image web:1 ")
            .replace("image: web:1\n", "image: *image\n")
            .replace("web:1", "web:2"),
        &literal,
    );
    assert!(field.ends_with("annotations.image") && why.contains("anchor"), "{field} {why}");
    let merged = |image: &str| {
        format!("x-base: &base\n  image: {image}\n")
            + &web("    spec:\n      containers:\n      - name: web\n        <<: *base\n")
    };
    let (field, why) = refused(&merged("web:2"), &merged("web:1"));
    assert_eq!(field, ".spec.containers[web].image");
    assert!(why.contains("alias or a merge key"), "{why}");
    let unused = |image: &str| web(&format!("    spec:\n      image: &unused {image}\n"));
    round_trip(&unused("web:1"), &unused("web:2"), &[".spec.image"]);
    let alias_in_good = web("    spec:\n      a: &a x\n      b: *a\n");
    let restored = put_back(&web("    spec:\n      a: &a x\n      b: y\n"), &alias_in_good).unwrap();
    assert_eq!(restored.text, web("    spec:\n      a: &a x\n      b: \"x\"\n").replace("\"x\"", "x"));
}

#[test]
fn without_the_good_commit_single_values_are_put_back() {
    let tip = web(PLAIN).replace("web:1", "web:2");
    let tip = declared("web.yaml", &tip);
    let stored = |image: &str, value: &str| {
        json!({
            "metadata": {"labels": {"app": "web"}, "creationTimestamp": null},
            "spec": {"containers": [{"name": "web", "image": image, "env": [
                {"name": "A", "value": "1"}, {"name": "B", "value": value}],
                "ports": [{"containerPort": 80, "protocol": "TCP"}]}]}
        })
    };
    let bad = stored("web:2", "2");
    assert_eq!(undeclared(&tip.template, &bad), None);
    let wanted = in_words_of(&tip.template, &bad, &stored("web:1", "it's")).unwrap();
    let restored = restore(&tip, Good::Template(&wanted), WEB).unwrap();
    assert_eq!(restored.text, web(PLAIN).replace("'2'", "'it''s'"));
    let odd = in_words_of(&tip.template, &bad, &stored("yes", "2")).unwrap();
    let restored = restore(&tip, Good::Template(&odd), WEB).unwrap();
    assert_eq!(restored.text, web(PLAIN).replace("web:1", "\"yes\""));
    let more = json!({"metadata": bad["metadata"], "spec": {"containers": []}});
    assert_eq!(in_words_of(&tip.template, &bad, &more).unwrap_err().field, "spec.template.spec.containers");
    let other = stored("web:3", "2");
    assert_eq!(undeclared(&tip.template, &other).as_deref(), Some("spec.template.spec.containers[web].image"));
    assert!(in_words_of(&tip.template, &other, &stored("web:1", "2")).unwrap_err().why.contains("another value"));
}

#[test]
fn a_rollout_is_found_where_it_is_and_nowhere_else() {
    let here = web(PLAIN);
    let files = [
        ("broken.yaml", "web: ["),
        ("kustomization.yaml", "resources: [web]"),
        ("other.yaml", &*here.replace("namespace: shop", "namespace: bank")),
        ("a \"b\"/ü.yml", &*here),
    ];
    assert_eq!(find(files, WEB).unwrap().path, "a \"b\"/ü.yml");
    assert_eq!(find(files.into_iter().take(3), WEB), None);
    let implied = here.replace(", namespace: shop", "");
    assert!(find([("x.yaml", &*implied)], WEB).is_some());
    assert!(find([("x.yaml", &*implied)], Wanted { default_namespace: "ops", ..WEB }).is_none());
    let twice = format!("{here}---\n{here}");
    let refused = put_back(&twice.replace("web:1", "web:2"), &here).unwrap_err();
    assert_eq!(refused.field, "spec.template");
}

mod random;
