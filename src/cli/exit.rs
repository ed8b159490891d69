//! What a script learns from how a command ended.
//!
//! The table is a contract. Every code but 0 means "not reached", so that a script written for
//! `kubectl rollout status`, which only knows 0 and 1, stays right.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// What was asked for is so.
    Reached,
    /// Wrong usage, an object that does not exist, bad input, or the API server did not answer.
    Error,
    /// The release was aborted, or cannot go on; or a ledger does not hold what it should.
    Failed,
    /// The time given ran out first.
    TimedOut,
    /// The release waits for a person.
    NeedsPerson,
    /// A newer revision took the place of the one that was watched.
    Superseded,
}

impl Exit {
    /// The code as a number.
    pub fn code(self) -> u8 {
        match self {
            Self::Reached => 0,
            Self::Error => 1,
            Self::Failed => 2,
            Self::TimedOut => 3,
            Self::NeedsPerson => 4,
            Self::Superseded => 5,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// What clap has to say: help and version go to standard output and are no error, wrong usage is code 1 and
/// not clap's own 2, which means "aborted" here.
pub fn usage(error: &clap::Error) -> Exit {
    // A closed pipe must not turn a help text into a failure.
    let _ = error.print();
    if error.use_stderr() { Exit::Error } else { Exit::Reached }
}

#[cfg(test)]
mod tests {
    use super::Exit;

    #[test]
    fn the_codes_are_a_contract() {
        let table = [
            (Exit::Reached, 0),
            (Exit::Error, 1),
            (Exit::Failed, 2),
            (Exit::TimedOut, 3),
            (Exit::NeedsPerson, 4),
            (Exit::Superseded, 5),
        ];
        for (exit, code) in table {
            assert_eq!(exit.code(), code, "{exit:?}");
        }
    }
}
