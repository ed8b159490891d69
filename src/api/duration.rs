//! A length of time as people write it in manifests.

use std::{borrow::Cow, fmt, str::FromStr, time};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time: whole seconds as a number (`30`, `"30"`), or numbers with units (`90s`, `1h30m`,
/// `250ms`; units d, h, m, s, ms). Never negative, at most 366 days, so that no sum can overflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(time::Duration);

const LONGEST: time::Duration = time::Duration::from_secs(366 * 24 * 3600);

impl Duration {
    /// From whole seconds, cut at the longest allowed length.
    pub fn from_secs(seconds: u64) -> Self {
        Self(time::Duration::from_secs(seconds).min(LONGEST))
    }

    /// As the standard library's type.
    pub fn std(self) -> time::Duration {
        self.0
    }

    /// As chrono's type, for arithmetic with stamps.
    pub fn delta(self) -> chrono::TimeDelta {
        chrono::TimeDelta::from_std(self.0).unwrap_or(chrono::TimeDelta::MAX)
    }

    /// Whether no time at all.
    pub fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("\"{text}\" is not a duration: write seconds (30) or units (90s, 10m, 1h30m, 250ms)");
        if text.is_empty() {
            return Err(refuse());
        }
        if text.bytes().all(|b| b.is_ascii_digit()) {
            let seconds: u64 = text.parse().map_err(|_| refuse())?;
            return bounded(time::Duration::from_secs(seconds), text);
        }
        let mut total = time::Duration::ZERO;
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = rest[..digits].parse().map_err(|_| refuse())?;
            rest = &rest[digits..];
            let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
            let millis = match &rest[..letters] {
                "ms" => 1,
                "s" => 1_000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return Err(refuse()),
            };
            rest = &rest[letters..];
            total = total.saturating_add(time::Duration::from_millis(number.saturating_mul(millis)));
        }
        bounded(total, text)
    }
}

fn bounded(length: time::Duration, text: &str) -> Result<Duration, String> {
    if length > LONGEST { Err(format!("\"{text}\" is longer than 366 days")) } else { Ok(Duration(length)) }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.subsec_millis();
        let seconds = self.0.as_secs();
        let parts = [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s"), (u64::from(millis), "ms")];
        let mut written = false;
        for (number, unit) in parts {
            if number > 0 {
                write!(f, "{number}{unit}")?;
                written = true;
            }
        }
        if written { Ok(()) } else { f.write_str("0s") }
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Duration;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration: seconds (30) or units (90s, 10m, 1h30m, 250ms)")
            }
            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Duration, E> {
                bounded(time::Duration::from_secs(seconds), &seconds.to_string()).map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Duration, E> {
                let seconds = u64::try_from(seconds).map_err(|_| E::custom("a duration is never negative"))?;
                self.visit_u64(seconds)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // An int-or-string has no types of its own, and a pattern's own message is for programs.
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "maxLength": 32,
            "x-kubernetes-validations": [{
                "rule": "type(self) == int ? self >= 0 && self <= 31622400 : self.matches(r'^([0-9]{1,8}|([0-9]{1,8}(ms|s|m|h|d))+)$')",
                "message": "write seconds (30) or units (90s, 10m, 1h30m, 250ms), at most 366 days"
            }]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Duration;

    #[test]
    fn reads_what_people_write() {
        for (text, seconds) in [("30", 30), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("1d", 86400), ("0", 0)] {
            assert_eq!(text.parse::<Duration>(), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!("250ms".parse::<Duration>().unwrap().std().as_millis(), 250);
        for text in ["", "5 minutes", "2 m", "-3s", "m", "1y", "99999999999999999999", "400d"] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
        assert_eq!(serde_json::from_str::<Duration>("45").unwrap().to_string(), "45s");
        assert_eq!(serde_json::from_str::<Duration>("\"1h30m\"").unwrap().to_string(), "1h30m");
        assert!(serde_json::from_str::<Duration>("-1").is_err());
    }
}
