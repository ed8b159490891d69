//! What can go wrong when somebody is told, by what a person would do about it. Never in the other side's words.

use std::time::Duration;

use crate::egress::{ClientError, Failure};
use crate::forge::ForgeError;

/// Why it is not certain that somebody was told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeliveryError {
    /// A key of the Secret cannot be used.
    #[error("{field} {reason}")]
    Declaration {
        /// The key.
        field: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The receiver does not take us for somebody who may speak.
    #[error("the receiver refuses who asks, with HTTP status {code}")]
    Denied {
        /// The HTTP status.
        code: u16,
    },
    /// Nobody listens at this address.
    #[error("nobody takes messages at this address: HTTP status {code}")]
    NotFound {
        /// The HTTP status.
        code: u16,
    },
    /// Too many messages for now.
    #[error("the receiver takes no more messages for {} s", retry_after.as_secs())]
    RateLimited {
        /// How long to wait.
        retry_after: Duration,
    },
    /// It understood, and does not take this message.
    #[error("the receiver refuses the message with HTTP status {code}")]
    Refused {
        /// The HTTP status.
        code: u16,
    },
    /// It sends us elsewhere. Addresses and tokens are for one place, so nothing follows.
    #[error("the receiver answers with a redirect: give its present address")]
    Moved,
    /// It has trouble of its own. It may have taken the message.
    #[error("the receiver has trouble of its own: HTTP status {code}")]
    Trouble {
        /// The HTTP status.
        code: u16,
    },
    /// It cannot be reached, or does not answer. It may have taken the message.
    #[error("the receiver: {0}")]
    Unreachable(#[from] Failure),
    /// The forge.
    #[error(transparent)]
    Forge(#[from] ForgeError),
}

impl DeliveryError {
    /// The other side has said how long to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } | Self::Forge(ForgeError::RateLimited { retry_after, .. }) => {
                Some(*retry_after)
            }
            _ => None,
        }
    }

    /// It may lie in this one message: the next one may be taken. A forge that does not know a commit says the same as
    /// one that does not know the repository.
    pub fn is_about_the_message(&self) -> bool {
        matches!(
            self,
            Self::Refused { code: 400 | 413 | 422 }
                | Self::Forge(ForgeError::Refused { .. } | ForgeError::NotFound { .. })
        )
    }

    /// One word, for metrics and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Declaration { .. } => "InvalidProjection",
            Self::Denied { .. } => "ReceiverAccessDenied",
            Self::NotFound { .. } => "ReceiverNotFound",
            Self::RateLimited { .. } => "ReceiverRateLimited",
            Self::Refused { .. } => "ReceiverRefused",
            Self::Moved => "ReceiverMoved",
            Self::Trouble { .. } | Self::Unreachable(_) => "ReceiverUnreachable",
            Self::Forge(error) => error.reason(),
        }
    }
}

impl From<ClientError> for DeliveryError {
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
