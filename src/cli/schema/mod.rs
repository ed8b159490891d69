//! What an API server would refuse, by the custom resource definitions themselves. Pure: objects in, flaws out.
//!
//! It reads the schemas that [`crate::cli::crds`] makes, so that a field is described once. Only as much of OpenAPI
//! is understood as these schemas use.

mod rules;

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;
use serde_json::{Map, Value, json};

use super::crds::{self, CrdError};
use crate::api::names;

/// The most letters of a name, and of a label's name or value.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// The schemas of all our kinds, by kind.
pub struct Schemas(BTreeMap<String, Value>);

/// Something an API server would refuse, or would drop without a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// The path of the field, from the object's root.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
    /// It may be right after all: in a pod template a field can be newer than our schema.
    pub doubtful: bool,
}

impl Schemas {
    /// All of them.
    ///
    /// # Errors
    /// When a definition cannot be made, which is a fault of this program.
    pub fn load() -> Result<Self, CrdError> {
        let mut kinds = BTreeMap::new();
        for definition in crds::definitions()? {
            let kind = definition.object.pointer("/spec/names/kind").and_then(Value::as_str).unwrap_or_default();
            let schema = definition.object.pointer("/spec/versions/0/schema/openAPIV3Schema");
            kinds.insert(kind.to_owned(), schema.cloned().unwrap_or_default());
        }
        // A definition leaves out what every object has; a pod template's metadata is that of any object.
        let template = kinds.get("Rollout").and_then(|schema| schema.pointer("/properties/spec/properties/template"));
        let metadata = template.and_then(|template| template.pointer("/properties/metadata")).cloned();
        let metadata = metadata.unwrap_or_default();
        for schema in kinds.values_mut() {
            let text = json!({"type": "string"});
            for (name, known) in [("apiVersion", &text), ("kind", &text), ("metadata", &metadata)] {
                schema["properties"][name] = known.clone();
            }
        }
        Ok(Self(kinds))
    }

    /// The kind that was perhaps meant by another word.
    pub fn near(&self, kind: &str) -> Option<&str> {
        near(kind, self.0.keys().map(String::as_str))
    }

    /// All flaws of an object of a kind, in the order of its fields; `None` when the kind is none of ours. Its
    /// status is not looked at: in a file it means nothing.
    pub fn check(&self, kind: &str, object: &Value) -> Option<Vec<Flaw>> {
        let schema = self.0.get(kind)?;
        let mut object = object.clone();
        object.as_object_mut()?.remove("status");
        let mut flaws = Flaws::default();
        flaws.value(schema, &object, "");
        flaws.name(&object);
        for path in ["metadata.labels", "spec.template.metadata.labels"] {
            flaws.labels(&object, path);
        }
        Some(flaws.0)
    }
}

#[derive(Default)]
struct Flaws(Vec<Flaw>);

impl Flaws {
    fn add(&mut self, field: &str, message: impl Into<String>) {
        self.0.push(Flaw { field: field.to_owned(), message: message.into(), doubtful: false });
    }

    fn value(&mut self, schema: &Value, value: &Value, path: &str) {
        let before = self.0.len();
        if schema.get("x-kubernetes-int-or-string").is_some() {
            if !(value.is_string() || value.is_i64() || value.is_u64()) {
                self.add(path, format!("must be a whole number or a text, and is {}", named(value)));
            }
        } else if let Some(expected) = schema.get("type").and_then(Value::as_str) {
            match (expected, value) {
                ("object", Value::Object(fields)) => self.fields(schema, fields, path),
                ("array", Value::Array(items)) => self.items(schema, items, path),
                ("string", Value::String(text)) => self.text(schema, text, path),
                ("integer", Value::Number(number)) if !number.is_f64() => self.number(schema, value, path),
                ("number", Value::Number(_)) => self.number(schema, value, path),
                ("boolean", Value::Bool(_)) => {}
                _ => {
                    let quotes = if expected == "string" && is_scalar(value) { "; put it in quotes" } else { "" };
                    self.add(path, format!("must be {}, and is {}{quotes}", of_type(expected), named(value)));
                }
            }
        } else if !is_quantity(value) {
            // In these schemas only a quantity has no type: it is written as a text or as any number.
            self.add(path, format!("{} is no quantity, such as 500m, 2 or 1Gi", named(value)));
        }
        // As on an API server: rules see only what has the right form.
        if self.0.len() == before {
            self.rules(schema, value, path);
        }
    }

    fn fields(&mut self, schema: &Value, fields: &Map<String, Value>, path: &str) {
        let none = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
        let others = schema.get("additionalProperties").filter(|others| others.is_object());
        let open = schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
        for (name, value) in fields {
            let field = below(path, name);
            match properties.get(name).or(others) {
                // The API server drops a null, or takes it for an absent field.
                Some(_) if value.is_null() => {}
                Some(schema) => self.value(schema, value, &field),
                None if value.is_null() => {}
                None => {
                    // One that is there already is no misspelling of another.
                    let free = properties.keys().map(String::as_str).filter(|known| !fields.contains_key(*known));
                    let hint = near(name, free).map(|known| format!("; did you mean {known}?"));
                    if !open || hint.is_some() {
                        let message = format!("there is no such field{}", hint.unwrap_or_default());
                        self.0.push(Flaw { field, message, doubtful: open });
                    }
                }
            }
        }
        for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            if fields.get(name).is_none_or(Value::is_null) {
                self.add(&below(path, name), "is required");
            }
        }
        self.size(schema, fields.len(), ["minProperties", "maxProperties"], path);
    }

    fn items(&mut self, schema: &Value, items: &[Value], path: &str) {
        if let Some(schema) = schema.get("items") {
            for (number, item) in items.iter().enumerate() {
                self.value(schema, item, &format!("{path}[{number}]"));
            }
        }
        self.size(schema, items.len(), ["minItems", "maxItems"], path);
        let keys: Vec<&str> = match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("set") => Vec::new(),
            Some("map") => {
                let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
                keys.into_iter().flatten().filter_map(Value::as_str).collect()
            }
            _ => return,
        };
        let mut seen = BTreeSet::new();
        for (number, item) in items.iter().enumerate() {
            let identity = if keys.is_empty() { item.to_string() } else { identity(schema, item, &keys) };
            if !seen.insert(identity.clone()) {
                self.add(&format!("{path}[{number}]"), format!("{identity} is there already"));
            }
        }
    }

    fn text(&mut self, schema: &Value, text: &str, path: &str) {
        let choices = schema.get("enum").and_then(Value::as_array);
        if let Some(choices) = choices
            && !choices.iter().any(|choice| choice == text)
        {
            let known: Vec<&str> = choices.iter().filter_map(Value::as_str).collect();
            let hint = near(text, known.iter().copied()).map(|known| format!("; did you mean {known}?"));
            let message = format!("\"{}\" is not one of {}", shortened(text), known.join(", "));
            self.add(path, message + &hint.unwrap_or_default());
        }
        let letters = text.chars().count();
        let limit = |name: &str| schema.get(name).and_then(Value::as_u64).and_then(|limit| usize::try_from(limit).ok());
        if limit("minLength").is_some_and(|least| letters < least) {
            self.add(path, "must not be empty");
        }
        if let Some(most) = limit("maxLength").filter(|most| letters > *most) {
            self.add(path, format!("has {letters} letters, and may have {most}"));
        }
        if let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
            && Regex::new(pattern).is_ok_and(|pattern| !pattern.is_match(text))
        {
            self.add(path, format!("\"{}\" does not match {pattern}", shortened(text)));
        }
    }

    fn number(&mut self, schema: &Value, value: &Value, path: &str) {
        let number = value.as_f64().unwrap_or_default();
        let limit = |name: &str| schema.get(name).and_then(Value::as_f64);
        let (lowest, highest) = match schema.get("format").and_then(Value::as_str) {
            Some("int32") => (f64::from(i32::MIN), f64::from(i32::MAX)),
            _ => (f64::NEG_INFINITY, f64::INFINITY),
        };
        let (least, most) = (limit("minimum").unwrap_or(lowest), limit("maximum").unwrap_or(highest));
        if number < least {
            self.add(path, format!("{value} is below {least}"));
        } else if number > most {
            self.add(path, format!("{value} is above {most}"));
        }
    }

    fn size(&mut self, schema: &Value, count: usize, [least, most]: [&str; 2], path: &str) {
        let limit = |name: &str| schema.get(name).and_then(Value::as_u64).and_then(|limit| usize::try_from(limit).ok());
        if limit(least).is_some_and(|least| count < least) {
            self.add(path, "must not be empty");
        }
        if let Some(most) = limit(most).filter(|most| count > *most) {
            self.add(path, format!("holds {count}, and may hold {most}"));
        }
    }

    /// What an API server asks of every name, beside all schemas.
    fn name(&mut self, object: &Value) {
        let Some(name) = object.pointer("/metadata/name").and_then(Value::as_str) else { return };
        if name.len() > MAX_NAME || !name.split('.').all(|part| is_made_of(part, u8::is_ascii_lowercase, b"-")) {
            let rule = "small letters, digits, - and . only, a letter or digit at both ends";
            self.add("metadata.name", format!("\"{}\" is no name: {rule}", shortened(name)));
        }
    }

    /// What an API server asks of every label, beside all schemas.
    fn labels(&mut self, object: &Value, path: &str) {
        let labels = object.pointer(&format!("/{}", path.replace('.', "/"))).and_then(Value::as_object);
        for (key, value) in labels.into_iter().flatten() {
            let rule = "letters, digits, -, _ and . only, a letter or digit at both ends, at most 63";
            let fits = |text: &str| text.len() <= MAX_LABEL && is_made_of(text, u8::is_ascii_alphabetic, b"-_.");
            let (prefix, name) = key.rsplit_once('/').unwrap_or(("", key));
            let prefix_fits =
                prefix.is_empty() || prefix.split('.').all(|part| is_made_of(part, u8::is_ascii_lowercase, b"-"));
            if !fits(name) || !prefix_fits {
                self.add(&below(path, key), format!("\"{}\" is no name of a label: {rule}", shortened(key)));
            }
            if let Some(value) = value.as_str().filter(|value| !value.is_empty() && !fits(value)) {
                self.add(&below(path, key), format!("\"{}\" is no value of a label: {rule}", shortened(value)));
            }
        }
    }

    fn rules(&mut self, schema: &Value, value: &Value, path: &str) {
        for rule in schema.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
            let text = |name: &str| rule.get(name).and_then(Value::as_str).unwrap_or_default();
            if rules::holds(text("rule"), value) != Some(false) {
                continue;
            }
            let (field, message) = (format!("{path}{}", text("fieldPath")), text("message"));
            match message.split_once(": ") {
                // A rule of the whole object names the field in its message.
                Some((field, message)) if path.is_empty() => self.add(field, message),
                _ => self.add(field.trim_start_matches('.'), message),
            }
        }
    }
}

/// Whether a text has only such letters, digits and signs, and no sign at its ends.
fn is_made_of(text: &str, is_letter: impl Fn(&u8) -> bool, signs: &[u8]) -> bool {
    let plain = |byte: &u8| is_letter(byte) || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.iter().all(|byte| plain(byte) || signs.contains(byte))
        && bytes.first().is_some_and(plain)
        && bytes.last().is_some_and(plain)
}

fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// What makes an item of a list one and the same, absent keys by their defaults.
fn identity(list: &Value, item: &Value, keys: &[&str]) -> String {
    let value = |key: &str| {
        let default = || list.pointer(&format!("/items/properties/{key}/default"));
        item.get(key).filter(|value| !value.is_null()).or_else(default).cloned().unwrap_or_default()
    };
    keys.iter().map(|key| format!("{key} {}", value(key))).collect::<Vec<_>>().join(", ")
}

/// The one of `known` that `name` is a misspelling of, if there is one.
fn near<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let reach = if name.chars().count() < 5 { 1 } else { 2 };
    let distance = |known: &str| strsim::osa_distance(&name.to_lowercase(), &known.to_lowercase());
    known.map(|known| (distance(known), known)).filter(|(distance, _)| *distance <= reach).min().map(|(_, known)| known)
}

fn of_type(schema_type: &str) -> &'static str {
    match schema_type {
        "object" => "a mapping",
        "array" => "a list",
        "string" => "a text",
        "integer" => "a whole number",
        "number" => "a number",
        _ => "true or false",
    }
}

fn is_scalar(value: &Value) -> bool {
    matches!(value, Value::Bool(_) | Value::Number(_))
}

fn named(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => value.to_string(),
        Value::Number(_) => format!("the number {value}"),
        Value::String(text) => format!("the text \"{}\"", shortened(text)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(names::MAX_ROLLOUT_NAME).collect()
}

fn is_quantity(value: &Value) -> bool {
    let Value::String(text) = value else { return value.is_number() };
    let number = text.strip_prefix(['+', '-']).unwrap_or(text);
    let digits = number.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(number.len());
    let (number, unit) = number.split_at(digits);
    let exponent = unit.strip_prefix(['e', 'E']).map(|power| power.strip_prefix(['+', '-']).unwrap_or(power));
    let is_power = exponent.is_some_and(|power| !power.is_empty() && power.bytes().all(|byte| byte.is_ascii_digit()));
    let units = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    number.bytes().any(|byte| byte.is_ascii_digit())
        && number.matches('.').count() <= 1
        && (is_power || units.contains(&unit))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use serde_json::{Value, json};

    use super::{Schemas, is_quantity, near};

    fn objects(directory: &str) -> Vec<(PathBuf, String, Vec<Value>)> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(directory);
        let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let mut read: Vec<_> = files
            .map(|path| {
                let text = fs::read_to_string(&path).unwrap();
                let objects = serde_saphyr::from_multiple(&text).unwrap();
                (path, text, objects)
            })
            .collect();
        read.sort_by(|a, b| a.0.cmp(&b.0));
        read
    }

    fn flaws(schemas: &Schemas, object: &Value) -> Vec<String> {
        let found = schemas.check(object["kind"].as_str().unwrap(), object).unwrap();
        found.iter().map(|flaw| format!("{}: {}", flaw.field, flaw.message)).collect()
    }

    #[test]
    fn what_an_api_server_takes_has_no_flaw() {
        let schemas = Schemas::load().unwrap();
        for (path, _, objects) in objects("accepted") {
            for object in objects {
                assert_eq!(flaws(&schemas, &object), Vec::<String>::new(), "{}", path.display());
            }
        }
    }

    /// The same files are given to a real API server by the stories.
    #[test]
    fn what_an_api_server_refuses_has_the_same_field_and_where_it_is_ours_the_same_word() {
        let schemas = Schemas::load().unwrap();
        // The API server's own words for what we say in ours.
        let foreign = ["Duplicate", "Unsupported", "Required", "Invalid", "should", "must be of type"];
        let mut count = 0;
        for (path, text, objects) in objects("refused") {
            // Two documents: an object, and an edit of it.
            let [object] = &objects[..] else { continue };
            let expected = text.lines().next().unwrap().strip_prefix("# expect: ").unwrap();
            let expected = expected.trim_start_matches("unknown field \"").trim_end_matches('"');
            let (field, message) = expected.split_once(": ").unwrap_or((expected, ""));
            let found = flaws(&schemas, object);
            let message = if foreign.iter().any(|word| message.starts_with(word)) { "" } else { message };
            let same = format!("{field}: {message}");
            assert!(found.iter().any(|flaw| flaw.starts_with(&same)), "{}: {found:?}", path.display());
            count += 1;
        }
        assert!(count > 40);
    }

    fn rollout(container: &Value, strategy: &Value) -> Value {
        json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout", "metadata": {"name": "web"},
            "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container]}},
                "strategy": strategy
            }
        })
    }

    #[test]
    fn every_flaw_has_its_field() {
        let schemas = Schemas::load().unwrap();
        let container = json!({
            "name": "web", "image": 7, "imagePullPolicy": "ifNotPresent", "readinesProbe": {}, "newerThanUs": {"a": [1]},
            "resources": {"limits": {"cpu": "nill", "memory": "1Gi"}},
            "ports": [{"containerPort": 80}, {"containerPort": 80, "protocol": "TCP"}]
        });
        let strategy = json!({"canary": {"steps": [{"setWeight": 140}, {"setWeight": 1.5}, {"pause": {"duraton": "5m"}}],
            "analysis": {"templates": []}}});
        let mut object = rollout(&container, &strategy);
        object["metadata"]["name"] = json!("Web_1");
        object["metadata"]["labels"] =
            json!({"build": 7, "app.kubernetes.io/part": "of the shop", "-x": "", "a/b/c": "d"});
        object["sepc"] = json!({});
        object["status"] = json!("anything");
        let mut found = flaws(&schemas, &object);
        found.sort();
        assert_eq!(
            found,
            [
                "metadata.labels.-x: \"-x\" is no name of a label: letters, digits, -, _ and . only, a letter or digit at both \
                 ends, at most 63",
                "metadata.labels.a/b/c: \"a/b/c\" is no name of a label: letters, digits, -, _ and . only, a letter or \
                 digit at both ends, at most 63",
                "metadata.labels.app.kubernetes.io/part: \"of the shop\" is no value of a label: letters, digits, -, _ and \
                 . only, a letter or digit at both ends, at most 63",
                "metadata.labels.build: must be a text, and is the number 7; put it in quotes",
                "metadata.name: \"Web_1\" is no name: small letters, digits, - and . only, a letter or digit at both ends",
                "sepc: there is no such field",
                "spec.strategy.canary.analysis.templates: must not be empty",
                "spec.strategy.canary.steps[0].setWeight: 140 is above 100",
                "spec.strategy.canary.steps[1].setWeight: must be a whole number, and is the number 1.5",
                "spec.strategy.canary.steps[2].pause.duraton: there is no such field; did you mean duration?",
                "spec.template.spec.containers[0].image: must be a text, and is the number 7; put it in quotes",
                "spec.template.spec.containers[0].imagePullPolicy: \"ifNotPresent\" is not one of Always, IfNotPresent, \
                 Never; did you mean IfNotPresent?",
                "spec.template.spec.containers[0].ports[1]: containerPort 80, protocol \"TCP\" is there already",
                "spec.template.spec.containers[0].readinesProbe: there is no such field; did you mean readinessProbe?",
                "spec.template.spec.containers[0].resources.limits.cpu: the text \"nill\" is no quantity, such as 500m, \
                 2 or 1Gi",
            ]
        );
    }

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for good in
            [json!("1"), json!("0.5"), json!(".5"), json!("100m"), json!("1Gi"), json!("-2e3"), json!("1E"), json!(2.5)]
        {
            assert!(is_quantity(&good), "{good}");
        }
        for bad in
            [json!(""), json!("nill"), json!("1gb"), json!("1.2.3"), json!("1e"), json!("Mi"), json!(true), json!([])]
        {
            assert!(!is_quantity(&bad), "{bad}");
        }
    }

    #[test]
    fn a_hint_is_given_for_a_misspelling_only() {
        let known = ["setWeight", "pause", "analysis", "max"];
        assert_eq!(near("setWieght", known.into_iter()), Some("setWeight"));
        assert_eq!(near("setweight", known.into_iter()), Some("setWeight"));
        assert_eq!(near("mxa", known.into_iter()), Some("max"));
        assert_eq!(near("setCanaryScale", known.into_iter()), None);
        assert_eq!(near("min", known.into_iter()), None);
    }
}
