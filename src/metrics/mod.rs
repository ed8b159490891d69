//! Metric providers, one file each: ask, and return samples.
//!
//! What a foreign server says is never repeated: an error is a class in our own words, and of an answer only
//! numbers and times are kept. Otherwise a status would show a tenant what an address answers that only the
//! operator can reach.

pub mod prometheus;
mod sources;

use chrono::{DateTime, TimeDelta, Utc};

pub use sources::Sources;

/// What a source answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// One sample a series, in the order of the answer. Empty when the query selects nothing.
    pub samples: Vec<Sample>,
    /// How many warnings came with it. With any, the samples may be only a part of the truth.
    pub warnings: usize,
    /// How old a sample may be to count.
    pub max_age: TimeDelta,
}

/// One sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// The time it is for, by the source's clock.
    pub at: DateTime<Utc>,
    /// The value, which may be NaN or infinite.
    pub value: f64,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetricError {
    /// The provider is declared in a way that cannot be used.
    #[error("{field}: {message}")]
    Declaration {
        /// The field of the provider.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// Nothing, or not everything, came in time.
    #[error("no complete answer within {seconds} s")]
    Timeout {
        /// The time it was given.
        seconds: u64,
    },
    /// No connection.
    #[error("not reachable: {why}")]
    Unreachable {
        /// The class of the failure.
        why: &'static str,
    },
    /// An HTTP status that is not a success.
    #[error("HTTP status {code}{hint}")]
    Status {
        /// The status.
        code: u16,
        /// What it usually means.
        hint: &'static str,
    },
    /// The source says that the query failed.
    #[error("the source could not answer the query: {why}")]
    Query {
        /// The class of the failure.
        why: &'static str,
    },
    /// The answer is longer than any answer to a sensible query.
    #[error("the answer is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// More series than anybody can judge.
    #[error("the answer has more than {limit} series: aggregate the query")]
    TooManySeries {
        /// The limit.
        limit: usize,
    },
    /// Not an answer of this kind of source.
    #[error("the answer is not one of a Prometheus: {what}")]
    Malformed {
        /// What is not as it should be.
        what: &'static str,
    },
    /// An answer that has no single value a series.
    #[error("the query gives {found}; it must give a number, or one number a series")]
    Shape {
        /// What it gives.
        found: &'static str,
    },
    /// So many queries wait for this provider that this one had no turn.
    #[error("no turn within {seconds} s: too many queries wait for this provider")]
    Busy {
        /// How long it waited.
        seconds: u64,
    },
}
