//! A number of pods as people write it in manifests: so many, or a share of `spec.replicas`.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of pods (`2`), or a percentage of `spec.replicas` (`"25%"`, at most 100). Never negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodCount {
    /// So many.
    Number(i32),
    /// So many percent.
    Percent(i32),
}

impl PodCount {
    /// Of `replicas` pods, a percentage rounded up.
    pub fn rounded_up(self, replicas: i32) -> i32 {
        self.of(replicas, 99)
    }

    /// Of `replicas` pods, a percentage rounded down.
    pub fn rounded_down(self, replicas: i32) -> i32 {
        self.of(replicas, 0)
    }

    fn of(self, replicas: i32, rounding: i64) -> i32 {
        match self {
            Self::Number(number) => number.max(0),
            Self::Percent(percent) => {
                let pods = (i64::from(replicas.max(0)) * i64::from(percent.max(0)) + rounding) / 100;
                i32::try_from(pods).unwrap_or(i32::MAX)
            }
        }
    }

    fn of_text(text: &str) -> Option<Self> {
        let digits = text.strip_suffix('%')?;
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let percent: i32 = digits.parse().ok().filter(|_| plain)?;
        (percent <= 100).then_some(Self::Percent(percent))
    }
}

impl fmt::Display for PodCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Serialize for PodCount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) => serializer.serialize_i32(*number),
            Self::Percent(_) => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for PodCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = PodCount;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of pods (2), or a percentage in quotes (\"25%\")")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<PodCount, E> {
                i32::try_from(number)
                    .map(PodCount::Number)
                    .map_err(|_| E::custom(format!("{number} pods are too many")))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<PodCount, E> {
                let number = u64::try_from(number).map_err(|_| E::custom("a number of pods is never negative"))?;
                self.visit_u64(number)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<PodCount, E> {
                let refuse =
                    || E::custom(format!("\"{text}\": write a number of pods (2) or a percentage (25%), at most 100%"));
                PodCount::of_text(text).ok_or_else(refuse)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for PodCount {
    fn schema_name() -> Cow<'static, str> {
        "PodCount".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "maxLength": 8,
            "x-kubernetes-validations": [{
                "rule": "type(self) == int ? self >= 0 && self <= 2147483647 : self.matches(r'^(100|[0-9]{1,2})%$')",
                "message": "write a number of pods (2) or a percentage (25%), at most 100%"
            }]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_people_write() {
        for (written, of_ten, of_three) in
            [(json!(2), (2, 2), (2, 2)), (json!("25%"), (3, 2), (1, 0)), (json!("0%"), (0, 0), (0, 0))]
        {
            let count: PodCount = serde_json::from_value(written.clone()).unwrap();
            assert_eq!((count.rounded_up(10), count.rounded_down(10)), of_ten, "{written}");
            assert_eq!((count.rounded_up(3), count.rounded_down(3)), of_three, "{written}");
            assert_eq!(serde_json::to_value(count).unwrap(), written);
        }
        for wrong in [
            json!(-1),
            json!("5"),
            json!("101%"),
            json!("-5%"),
            json!("+5%"),
            json!("%"),
            json!("1.5%"),
            json!(1.5),
            json!(3_000_000_000_i64),
        ] {
            assert!(serde_json::from_value::<PodCount>(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
