//! What can go wrong with a forge, told apart by what a person would do about it. Never in the forge's words.

use std::time::Duration;

use crate::egress::{ClientError, Failure};

/// Why a forge did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForgeError {
    /// A field of the declaration or a key of its Secret cannot be used.
    #[error("{field} {reason}")]
    Declaration {
        /// The field or key.
        field: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It is not there, or the credentials may not see it: forges do not tell these apart.
    #[error("{doing}: the forge does not know the repository or what is asked for, or the token may not see it")]
    NotFound {
        /// What was being done.
        doing: &'static str,
    },
    /// The credentials are not accepted, or may not do this.
    #[error("{doing}: the forge refuses the token, or its permissions do not suffice")]
    Denied {
        /// What was being done.
        doing: &'static str,
    },
    /// Too many requests for now.
    #[error("{doing}: the forge takes no more requests for {} s", retry_after.as_secs())]
    RateLimited {
        /// What was being done.
        doing: &'static str,
        /// How long to wait.
        retry_after: Duration,
    },
    /// It understood, and does not do it.
    #[error("{doing}: the forge refuses it with HTTP status {code}")]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// The HTTP status.
        code: u16,
    },
    /// It sends us elsewhere. The token is bound to the address given, so it does not follow.
    #[error("{doing}: the forge answers with a redirect: give the present address of the repository and its API")]
    Moved {
        /// What was being done.
        doing: &'static str,
    },
    /// It cannot be reached, does not answer in time, or has trouble of its own. What was asked may have happened.
    #[error("{doing}: {why}")]
    Unreachable {
        /// What was being done.
        doing: &'static str,
        /// The class of the failure.
        why: &'static str,
    },
    /// Its answer is not one of this kind of forge.
    #[error("{doing}: the answer is not one of this forge's API: {what}")]
    Unexpected {
        /// What was being done.
        doing: &'static str,
        /// What is not as it should be.
        what: &'static str,
    },
}

impl ForgeError {
    /// Whether it may go away by itself. What is not transient waits for a person.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::RateLimited { .. } | Self::Unreachable { .. })
    }

    /// One word, for a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Declaration { .. } => "InvalidForge",
            Self::NotFound { .. } => "ForgeNotFound",
            Self::Denied { .. } => "ForgeAccessDenied",
            Self::RateLimited { .. } => "ForgeRateLimited",
            Self::Refused { .. } => "ForgeRefused",
            Self::Moved { .. } => "ForgeMoved",
            Self::Unreachable { .. } => "ForgeUnreachable",
            Self::Unexpected { .. } => "ForgeAnswerUnexpected",
        }
    }

    pub(super) fn failed(doing: &'static str, failure: Failure) -> Self {
        match failure {
            Failure::Timeout => Self::Unreachable { doing, why: "the forge does not answer in time" },
            Failure::Unreachable(why) => Self::Unreachable { doing, why },
            Failure::TooLarge => Self::Unexpected { doing, what: "it is larger than any that is read" },
        }
    }
}

impl From<ClientError> for ForgeError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Authorities => {
                Self::Declaration { field: "ca.crt", reason: "holds no certificate in PEM format" }
            }
            ClientError::Tls => {
                Self::Declaration { field: "ca.crt", reason: "is missing, and so are those of the system" }
            }
        }
    }
}
