//! One file a router: read weights and acceptance from an object, write the smallest patch. Pure.
//!
//! Objects are JSON, not types of our own: a field newer than our bindings must survive a write, and every
//! byte that is not a weight is somebody else's.

pub mod gateway_api;
pub mod header_route;

use crate::engine::Problem;

/// Why a route cannot be steered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteProblem {
    /// No rule holds both Services.
    #[error("{route} has no rule with both \"{stable}\" and \"{canary}\" as backends: {detail}")]
    NoPair {
        /// The route, as `GRPCRoute "web"`.
        route: String,
        /// The stable Service.
        stable: String,
        /// The canary Service.
        canary: String,
        /// What is there instead, and the nearest miss.
        detail: String,
    },
    /// A rule names one of the two more than once, so that it is unclear which weight is meant.
    #[error("{route}, {rule} names \"{service}\" {times} times: name it once in a rule")]
    Twice {
        /// The route, as `GRPCRoute "web"`.
        route: String,
        /// The rule, as people count.
        rule: String,
        /// The Service.
        service: String,
        /// How often.
        times: usize,
    },
    /// A weight that is not a whole number from 0 to 1,000,000.
    #[error("{route}, {rule} gives \"{service}\" a weight that is not a whole number from 0 to 1000000")]
    Weight {
        /// The route, as `GRPCRoute "web"`.
        route: String,
        /// The rule, as people count.
        rule: String,
        /// The Service.
        service: String,
    },
    /// A rule asks for a header that a header route asks for too: of two the gateway looks at one.
    #[error("{route}, {rule} matches header \"{header}\" itself: a header route cannot ask for it too")]
    Header {
        /// The route.
        route: String,
        /// The rule, as people count.
        rule: String,
        /// The header.
        header: String,
    },
    /// Stable and canary are one Service.
    #[error("stable and canary are both Service \"{service}\": traffic cannot be split")]
    OneService {
        /// The Service.
        service: String,
    },
    /// Without a version there is no precondition, and without a precondition no write.
    #[error("{route} has no metadata.resourceVersion: it was not read from an API server")]
    NoVersion {
        /// The route, as `GRPCRoute "web"`.
        route: String,
    },
}

impl From<RouteProblem> for Problem {
    fn from(problem: RouteProblem) -> Self {
        Self { reason: "RouteNotSteerable".into(), field: None, message: problem.to_string() }
    }
}
