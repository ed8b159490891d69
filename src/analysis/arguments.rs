//! Filling `{{args.name}}` into queries and conditions, without letting a value say more than a value.
//!
//! Templates are written by one team and arguments by another, so a value must not be able to change what is
//! asked: inside a string of PromQL it cannot end the string, outside of one it is a single word or number,
//! and in a condition it is a number. What does not fit is refused; nothing is escaped, because an escaped
//! value would silently be another value.

use std::collections::BTreeMap;

/// Why a text could not be filled in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// The template uses an argument that nobody declares.
    #[error("{{{{args.{name}}}}} is not an argument of this template; it knows {known}")]
    Unknown {
        /// The name.
        name: String,
        /// The names there are.
        known: String,
    },
    /// Something in double braces that is not `{{args.name}}`.
    #[error("\"{text}\" is not {{{{args.NAME}}}}; is it left over from a chart?")]
    LeftOver {
        /// What is there.
        text: String,
    },
    /// The value does not fit where it is used.
    #[error("argument \"{name}\" is \"{value}\", {rule}")]
    Value {
        /// The argument.
        name: String,
        /// The value, shortened.
        value: String,
        /// What it must be there.
        rule: &'static str,
    },
}

/// Fills the arguments into PromQL.
pub fn fill_query(text: &str, values: &BTreeMap<String, String>) -> Result<String, ArgumentError> {
    let mut quoting = Quoting::default();
    fill(text, values, |name, value, before| {
        quoting.pass(before);
        let fits = match quoting.inside {
            Some(_) => !value.chars().any(|c| c.is_control() || matches!(c, '"' | '\'' | '`' | '\\' | '{' | '}')),
            None => is_word(value),
        };
        let rule = match quoting.inside {
            Some(_) => "but inside quotes it may not contain quotes, backslashes, braces or line breaks",
            None => "but outside quotes it must be one number, duration or name (letters, digits, \"_\", \":\", \".\")",
        };
        if fits { Ok(()) } else { Err(refuse(name, value, rule)) }
    })
}

/// Fills the arguments into a condition: numbers only, so that no value can add an `|| true`.
pub fn fill_condition(text: &str, values: &BTreeMap<String, String>) -> Result<String, ArgumentError> {
    fill(text, values, |name, value, _| {
        let number = value.len() <= 64 && value.parse::<f64>().is_ok_and(f64::is_finite);
        if number { Ok(()) } else { Err(refuse(name, value, "but in a condition it must be a number")) }
    })
}

fn refuse(name: &str, value: &str, rule: &'static str) -> ArgumentError {
    ArgumentError::Value { name: name.into(), value: value.chars().take(64).collect(), rule }
}

/// One name, number or duration, perhaps with a sign: nothing that PromQL reads as more than one word.
fn is_word(value: &str) -> bool {
    let word = value.strip_prefix(['-', '+']).unwrap_or(value);
    !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.'))
}

/// Replaces each placeholder after `check(name, value, text before it)`. Values are never looked at again.
fn fill(
    text: &str,
    values: &BTreeMap<String, String>,
    mut check: impl FnMut(&str, &str, &str) -> Result<(), ArgumentError>,
) -> Result<String, ArgumentError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("{{") {
        let (before, placeholder) = rest.split_at(start);
        no_closing(before)?;
        let Some(end) = placeholder.find("}}") else { return Err(left_over(placeholder)) };
        let inside = placeholder[2..end].trim();
        let name = inside.strip_prefix("args.").filter(|name| is_name(name));
        let Some(name) = name else { return Err(left_over(&placeholder[..end + 2])) };
        let Some(value) = values.get(name) else {
            let known: Vec<&str> = values.keys().map(String::as_str).collect();
            return Err(ArgumentError::Unknown { name: name.into(), known: known.join(", ") });
        };
        check(name, value, before)?;
        out.push_str(before);
        out.push_str(value);
        rest = &placeholder[end + 2..];
    }
    no_closing(rest)?;
    out.push_str(rest);
    Ok(out)
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

fn no_closing(text: &str) -> Result<(), ArgumentError> {
    match text.find("}}") {
        Some(at) => Err(left_over(&text[at..])),
        None => Ok(()),
    }
}

fn left_over(text: &str) -> ArgumentError {
    ArgumentError::LeftOver { text: text.chars().take(40).collect() }
}

/// Whether a place in PromQL is inside a string.
#[derive(Default)]
struct Quoting {
    inside: Option<char>,
    escaped: bool,
    comment: bool,
}

impl Quoting {
    fn pass(&mut self, text: &str) {
        for c in text.chars() {
            match self.inside {
                _ if self.comment => self.comment = c != '\n',
                Some(_) if self.escaped => self.escaped = false,
                Some(quote) if c == '\\' && quote != '`' => self.escaped = true,
                Some(quote) if c == quote => self.inside = None,
                Some(_) => {}
                None if c == '#' => self.comment = true,
                None if matches!(c, '"' | '\'' | '`') => self.inside = Some(c),
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::{fill_condition, fill_query};

    fn values(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn fills_both_spellings_inside_and_outside_strings() {
        let values = values(&[("ingress", "shop web"), ("window", "90s"), ("limit", "-0.5")]);
        let query = "sum(rate(edge{ingress=\"{{args.ingress}}\",status!~'5.*'}[{{ args.window }}])) # {{args.window}}\n > {{args.limit}}";
        assert_eq!(
            fill_query(query, &values).unwrap(),
            "sum(rate(edge{ingress=\"shop web\",status!~'5.*'}[90s])) # 90s\n > -0.5"
        );
        assert_eq!(fill_condition("result >= {{args.limit}}", &values).unwrap(), "result >= -0.5");
    }

    #[test]
    fn a_value_cannot_change_the_question() {
        let quoted = "up{job=\"{{args.a}}\"}";
        for value in ["x\"} or vector(0) #", "x'", "x`", "x\\", "x\ny", "x{y", "x}y", "\u{7}"] {
            let error = fill_query(quoted, &values(&[("a", value)])).unwrap_err().to_string();
            assert!(error.starts_with("argument \"a\" is"), "{value}: {error}");
        }
        for value in ["5m]) or vector(0)", "5m 5m", "", "a,b", "1)", "a#", "--1", "a-b", "(1)"] {
            assert!(fill_query("rate(up[{{args.a}}])", &values(&[("a", value)])).is_err(), "{value}");
        }
        for value in ["0 || true", "NaN", "inf", "", "1)", "true"] {
            assert!(fill_condition("result < {{args.a}}", &values(&[("a", value)])).is_err(), "{value}");
        }
        assert!(
            fill_query("x == 1 or \"\\\"{{args.a}}\"", &values(&[("a", "b c")])).is_ok(),
            "still inside the string"
        );
        assert!(fill_query("a{b=`\\`} + {{args.a}}", &values(&[("a", "b c")])).is_err(), "raw strings end at once");
    }

    #[test]
    fn unknown_and_left_over_braces_are_named() {
        let values = values(&[("pod", "web")]);
        let error = |text: &str| fill_query(text, &values).unwrap_err().to_string();
        assert_eq!(error("up{a=\"{{args.job}}\"}"), "{{args.job}} is not an argument of this template; it knows pod");
        let chart = error("up{pod=~\"{{ \"{{\" }}args.pod{{ \"}}\" }}-.*\"}");
        assert!(chart.contains("is it left over from a chart?"), "{chart}");
        for text in ["{{args.}}", "{{ .Values.x }}", "{{args.pod", "up }}", "{{args.pod}}}}", "{{inputs.pod}}"] {
            assert!(error(text).contains("is it left over from a chart?"), "{text}");
        }
        assert_eq!(fill_query("up{a=~\"x{2}\"}", &values).unwrap(), "up{a=~\"x{2}\"}", "single braces are PromQL's");
    }

    proptest! {
        /// Whatever a value is: when it is accepted inside quotes, the text around it stays what it was.
        #[test]
        fn accepted_values_stay_inside_their_quotes(value in any::<String>()) {
            let values = values(&[("a", &value)]);
            if let Ok(filled) = fill_query("f(\"{{args.a}}\") > 1", &values) {
                let inner = filled.strip_prefix("f(\"").and_then(|rest| rest.strip_suffix("\") > 1"));
                prop_assert_eq!(inner, Some(value.as_str()));
                prop_assert!(!value.contains(['"', '\\', '\n']));
            }
        }
    }
}
