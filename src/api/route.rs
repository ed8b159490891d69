//! Which routes a Rollout may steer, and what tells one from another.

use std::fmt;

/// The API group of every route.
pub const ROUTE_GROUP: &str = "gateway.networking.k8s.io";

/// A kind of route of the Gateway API whose rules weigh backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    /// HTTPRoute.
    Http,
    /// GRPCRoute.
    Grpc,
    /// TLSRoute.
    Tls,
    /// TCPRoute.
    Tcp,
}

impl RouteKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Http, Self::Grpc, Self::Tls, Self::Tcp];

    /// The name of the kind.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
            Self::Tls => "TLSRoute",
            Self::Tcp => "TCPRoute",
        }
    }

    /// Its name in paths of the API server.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Http => "httproutes",
            Self::Grpc => "grpcroutes",
            Self::Tls => "tlsroutes",
            Self::Tcp => "tcproutes",
        }
    }

    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether its rules match headers, so that it can hold a header route.
    pub fn matches_headers(self) -> bool {
        matches!(self, Self::Http | Self::Grpc)
    }

    /// The list in `trafficRouting.gatewayAPI` that names routes of this kind.
    pub fn field(self) -> &'static str {
        match self {
            Self::Http => "httpRoutes",
            Self::Grpc => "grpcRoutes",
            Self::Tls => "tlsRoutes",
            Self::Tcp => "tcpRoutes",
        }
    }
}

/// What tells a route from every other of its namespace. Reads as `GRPCRoute web`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    /// The kind.
    pub kind: RouteKind,
    /// The name.
    pub name: String,
}

impl RouteKey {
    /// From its two parts.
    pub fn new(kind: RouteKind, name: impl Into<String>) -> Self {
        Self { kind, name: name.into() }
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.name)
    }
}
