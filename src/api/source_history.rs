//! What a branch was moved from, when its history does not lead from there to where it is.

use std::fmt;
use std::str::FromStr;

/// How a branch came to a commit, when not simply forward. As text it is the value of an annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceHistory {
    /// The commit that the branch was at before.
    pub from: String,
    /// That commit is certainly no ancestor of the new one; else it could not be found out.
    pub rewritten: bool,
}

impl SourceHistory {
    /// One sentence for people about the move to `commit`.
    pub fn sentence(&self, commit: &str) -> String {
        let Self { from, rewritten } = self;
        if *rewritten {
            format!("history rewritten: {commit} took the place of {from}, which is not an ancestor of it")
        } else {
            format!(
                "ancestry unknown: {commit} took the place of {from}, and whether that is an ancestor of it is not known"
            )
        }
    }
}

const REWRITTEN: &str = "rewritten-from:";
const UNKNOWN: &str = "unknown-from:";

impl fmt::Display for SourceHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.rewritten { REWRITTEN } else { UNKNOWN }, self.from)
    }
}

/// It is not the value of such an annotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is neither {REWRITTEN}<commit> nor {UNKNOWN}<commit>")]
pub struct InvalidSourceHistory;

impl FromStr for SourceHistory {
    type Err = InvalidSourceHistory;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (from, rewritten) = match (text.strip_prefix(REWRITTEN), text.strip_prefix(UNKNOWN)) {
            (Some(from), _) => (from, true),
            (None, Some(from)) => (from, false),
            (None, None) => return Err(InvalidSourceHistory),
        };
        // It stands in messages: nothing but a commit's name may.
        let is_name = matches!(from.len(), 40 | 64) && from.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_name { Ok(Self { from: from.to_owned(), rewritten }) } else { Err(InvalidSourceHistory) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written_and_nothing_else_is() {
        for rewritten in [true, false] {
            let history = SourceHistory { from: "5".repeat(40), rewritten };
            assert_eq!(history.to_string().parse(), Ok(history));
        }
        for text in ["", "rewritten-from:", "rewritten-from:main", &format!("from:{}", "5".repeat(40))] {
            assert_eq!(text.parse::<SourceHistory>(), Err(InvalidSourceHistory), "{text}");
        }
    }
}
