//! Puts a Rollout's pod template in a manifest back to a good one. Pure.
//!
//! The template is what makes a revision, so nothing else is touched: a strategy or a number of pods that changed on
//! the way stays. Every byte outside the values that differ stays too. What comes out is read again by the same code
//! that applies manifests, and compared by value with what was meant; where it is not exactly that, nothing is done.

use serde_json::Value;

use super::positions::{self, Document, Kind, Node};
use super::splice::{Side, Splice, member, names};
use crate::controllers::manifests::{self, Manifest, group_of};

/// The one field that is put back.
const FIELD: &str = "spec.template";

/// Which Rollout.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// Its namespace.
    pub(super) namespace: &'a str,
    /// Its name.
    pub(super) name: &'a str,
    /// The namespace of manifests that give none.
    pub(super) default_namespace: &'a str,
}

/// A file that declares the Rollout.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Declaration {
    /// Its path from the root of the repository.
    pub(super) path: String,
    /// All that is in it.
    pub(super) text: String,
    /// The Rollout's pod template in it.
    pub(super) template: Value,
}

/// Where good values come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Good<'a> {
    /// The file as it was when the declaration was the good one.
    Declaration(&'a Declaration),
    /// That commit is not to be had; this is the template, in the tip's words.
    Template(&'a Value),
}

/// The file as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Restored {
    /// All that is in it.
    pub(super) text: String,
    /// The fields that were put back.
    pub(super) fields: Vec<String>,
}

/// A field whose value cannot be put back by changing its own bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {why}")]
pub(super) struct NotLiteral {
    /// The field.
    pub(super) field: String,
    /// Why.
    pub(super) why: String,
}

impl NotLiteral {
    pub(super) fn new(field: &str, why: &str) -> Self {
        Self { field: field.to_owned(), why: why.to_owned() }
    }
}

impl Wanted<'_> {
    fn is(&self, kind: &str, api_version: &str, namespace: &str, name: &str) -> bool {
        let namespace = if namespace.is_empty() { self.default_namespace } else { namespace };
        kind == "Rollout" && group_of(api_version) == "sluice.dev" && name == self.name && namespace == self.namespace
    }

    fn is_manifest(&self, manifest: &Manifest) -> bool {
        self.is(&manifest.kind, &manifest.api_version, &manifest.namespace, &manifest.name)
    }
}

/// The file that declares a Rollout, if one does. Files that cannot be read declare nothing.
pub(super) fn find<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>, wanted: Wanted<'_>) -> Option<Declaration> {
    files.into_iter().filter(|(_, text)| text.contains(wanted.name)).find_map(|(path, text)| {
        let manifests = manifests::parse([(path, text.as_bytes())]).ok()?;
        let template = template_of(&manifests, wanted)?.clone();
        Some(Declaration { path: path.to_owned(), text: text.to_owned(), template })
    })
}

fn template_of<'a>(manifests: &'a [Manifest], wanted: Wanted<'_>) -> Option<&'a Value> {
    manifests.iter().find(|manifest| wanted.is_manifest(manifest))?.object.pointer("/spec/template")
}

/// The tip's file with the good template.
///
/// # Errors
/// When a value that differs is not written where it is read, or the text cannot be changed without changing more.
pub(super) fn restore(tip: &Declaration, good: Good<'_>, wanted: Wanted<'_>) -> Result<Restored, NotLiteral> {
    let refuse = |why: &str| NotLiteral::new(FIELD, why);
    let read = |text: &str| positions::documents(text).map_err(|why| refuse(&format!("stands in a file that {why}")));
    let tip_documents = read(&tip.text)?;
    let (document, spec) =
        spec_in(&tip_documents, wanted).ok_or_else(|| refuse("is not written as one literal field"))?;
    let good_documents = match good {
        Good::Declaration(good) => read(&good.text)?,
        Good::Template(_) => Vec::new(),
    };
    let (side, good_spec, template) = match good {
        Good::Template(template) => (None, None, template),
        Good::Declaration(good) => {
            let spec = spec_in(&good_documents, wanted).map(|(_, spec)| spec);
            let spec = spec.ok_or_else(|| refuse("was not written as one literal field"))?;
            (Some(Side { text: &good.text, json: is_json(&good.path) }), Some(spec), &good.template)
        }
    };
    let tip_side = Side { text: &tip.text, json: is_json(&tip.path) };
    let splice = Splice::new(tip_side, side, &document.aliased);
    let (text, fields) = splice.entry(spec, good_spec, "template", (&tip.template, template), FIELD)?;
    if !is_meant(tip, &text, template, wanted) {
        return Err(refuse("cannot be put back without changing more than its own fields"));
    }
    Ok(Restored { text, fields })
}

fn is_json(path: &str) -> bool {
    path.ends_with(".json")
}

/// The `spec` of the Rollout, where it is written.
fn spec_in<'a>(documents: &'a [Document], wanted: Wanted<'_>) -> Option<(&'a Document, &'a Node)> {
    let mut found = documents.iter().filter_map(|document| Some((document, rollout_in(&document.root, wanted)?)));
    let (document, rollout) = found.next()?;
    let spec = rollout.get("spec")?;
    let literal = spec.anchor == 0 || !document.aliased.contains(&spec.anchor);
    spec.get("template").filter(|_| literal)?;
    // Twice would be a fault of the repository, and a guess here.
    if found.next().is_some() { None } else { Some((document, spec)) }
}

fn rollout_in<'a>(node: &'a Node, wanted: Wanted<'_>) -> Option<&'a Node> {
    let text = |node: &'a Node, key: &str| node.get(key).and_then(Node::text).unwrap_or_default();
    if let Some(metadata) = node.get("metadata")
        && wanted.is(text(node, "kind"), text(node, "apiVersion"), text(metadata, "namespace"), text(metadata, "name"))
    {
        return Some(node);
    }
    match node.get("items").map(|items| &items.kind) {
        Some(Kind::Sequence { items, .. }) => items.iter().find_map(|item| rollout_in(item, wanted)),
        _ => None,
    }
}

/// Whether a text declares the same as the tip, but for the template.
fn is_meant(tip: &Declaration, text: &str, template: &Value, wanted: Wanted<'_>) -> bool {
    let parse = |text: &str| manifests::parse([(tip.path.as_str(), text.as_bytes())]);
    let (Ok(mut before), Ok(after)) = (parse(&tip.text), parse(text)) else { return false };
    for manifest in before.iter_mut().filter(|manifest| wanted.is_manifest(manifest)) {
        match manifest.object.pointer_mut("/spec/template") {
            Some(slot) => *slot = template.clone(),
            None => return false,
        }
    }
    let same = before.iter().zip(&after).all(|(before, after)| {
        before.object == after.object && before.namespace == after.namespace && before.name == after.name
    });
    same && before.len() == after.len() && template_of(&after, wanted) == Some(template)
}

/// The first field that a manifest declares and the cluster has otherwise. What the cluster has besides is what it
/// adds by itself.
pub(super) fn undeclared(declared: &Value, stored: &Value) -> Option<String> {
    beside(declared, stored, FIELD)
}

fn beside(declared: &Value, stored: &Value, path: &str) -> Option<String> {
    match (declared, stored) {
        (Value::Object(declared), Value::Object(stored)) => declared.iter().find_map(|(key, value)| {
            let path = member(path, key);
            match stored.get(key) {
                Some(stored) => beside(value, stored, &path),
                None if is_nothing(value) => None,
                None => Some(path),
            }
        }),
        (Value::Array(declared), Value::Array(stored)) => match (names(declared), names(stored)) {
            (Some(wanted), Some(known)) => declared.iter().zip(wanted).find_map(|(value, name)| {
                let path = format!("{path}[{name}]");
                match known.iter().position(|known| *known == name).and_then(|index| stored.get(index)) {
                    Some(stored) => beside(value, stored, &path),
                    None => Some(path),
                }
            }),
            _ if declared.len() == stored.len() => declared
                .iter()
                .zip(stored)
                .enumerate()
                .find_map(|(index, (declared, stored))| beside(declared, stored, &format!("{path}[{index}]"))),
            _ => Some(path.to_owned()),
        },
        _ if declared == stored || is_nothing(declared) && is_nothing(stored) => None,
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => None,
        _ => Some(path.to_owned()),
    }
}

/// What the API server does not tell from an absent field.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.values().all(is_nothing),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// The tip's template with the good values, where only the templates that the cluster had are known: each value that
/// differs between them must be one value in the tip, and the bad one.
///
/// # Errors
/// When more than single values differ, or the tip has another value.
pub(super) fn in_words_of(tip: &Value, bad: &Value, good: &Value) -> Result<Value, NotLiteral> {
    let mut template = tip.clone();
    put(&mut template, bad, good, FIELD)?;
    Ok(template)
}

fn put(slot: &mut Value, bad: &Value, good: &Value, path: &str) -> Result<(), NotLiteral> {
    match (bad, good) {
        _ if bad == good => Ok(()),
        (Value::Object(bad), Value::Object(good))
            if bad.len() == good.len() && bad.keys().all(|key| good.contains_key(key)) =>
        {
            for (key, value) in bad {
                let path = member(path, key);
                let other = good.get(key).unwrap_or(value);
                if other == value {
                    continue;
                }
                let slot = slot.get_mut(key).ok_or_else(|| NotLiteral::new(&path, "is not in the manifest"))?;
                put(slot, value, other, &path)?;
            }
            Ok(())
        }
        (Value::Array(bad), Value::Array(good)) if bad.len() == good.len() => {
            let slots = slot.as_array_mut().filter(|slots| slots.len() == bad.len());
            let slots = slots.ok_or_else(|| NotLiteral::new(path, "is not the same list in the manifest"))?;
            let labels = names(bad).unwrap_or_else(|| (0..bad.len()).map(|index| index.to_string()).collect());
            for (((slot, bad), good), label) in slots.iter_mut().zip(bad).zip(good).zip(labels) {
                put(slot, bad, good, &format!("{path}[{label}]"))?;
            }
            Ok(())
        }
        _ if bad.is_object() || bad.is_array() || good.is_object() || good.is_array() => {
            Err(NotLiteral::new(path, super::splice::NOT_SINGLE))
        }
        _ if slot == bad => {
            *slot = good.clone();
            Ok(())
        }
        _ => Err(NotLiteral::new(path, "has another value in the manifest than in the cluster")),
    }
}

#[cfg(test)]
mod tests;
