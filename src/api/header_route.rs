//! Which requests go to the canary whatever its weight.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::names;

/// Requests that carry every one of these headers go to the canary; from this step on, until a step of the same name
/// says otherwise or the release ends. Without `match` the header route ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderRoute {
    /// Its name; rules of the route are named after it.
    #[schemars(length(min = 1, max = 40), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The headers.
    #[serde(default, rename = "match", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub matches: Vec<HeaderMatch>,
}

impl HeaderRoute {
    /// Tells it from every other, also of the same name: its name, and a digest of what it matches.
    pub fn id(&self) -> String {
        let mut digest = Sha256::new();
        for header in &self.matches {
            let (kind, value) = header.header_value.parts();
            for part in [header.header_name.as_str(), kind, value] {
                // The length keeps one field from running into the next.
                digest.update(part.len().to_be_bytes());
                digest.update(part.as_bytes());
            }
        }
        let mut digest = names::hex(&digest.finalize());
        digest.truncate(8);
        format!("{}-{digest}", self.name)
    }
}

/// One header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderMatch {
    /// Its name, in any case.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_|~-]+$"))]
    pub header_name: String,
    /// Its value.
    pub header_value: StringMatch,
}

/// What a text must be: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("[has(self.exact), has(self.prefix), has(self.regex)].filter(given, given).size() == 1", "give exactly one of exact, prefix and regex"),
)]
pub struct StringMatch {
    /// This very text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub exact: Option<String>,
    /// A text that begins so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub prefix: Option<String>,
    /// A regular expression, in the dialect of the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub regex: Option<String>,
}

impl StringMatch {
    /// The field that is given, and its text; of several the first.
    pub fn parts(&self) -> (&'static str, &str) {
        let fields = [("exact", &self.exact), ("prefix", &self.prefix), ("regex", &self.regex)];
        let given = fields.into_iter().find_map(|(field, text)| Some((field, text.as_deref()?)));
        given.unwrap_or(("exact", ""))
    }

    /// Whether exactly one field is given.
    pub fn is_one(&self) -> bool {
        [&self.exact, &self.prefix, &self.regex].into_iter().flatten().count() == 1
    }
}
