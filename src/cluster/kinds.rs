//! The kinds the operator watches, and where the API server serves them.

use kube::core::ApiResource;

use crate::api::{GROUP, ROUTE_GROUP, RouteKind, VERSION, names};

/// A kind the operator watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `sluice.dev` Rollout.
    Rollout,
    /// `apps` ReplicaSet, ours only.
    ReplicaSet,
    /// Core Pod, of our ReplicaSets only.
    Pod,
    /// `apps` Deployment.
    Deployment,
    /// Core Service.
    Service,
    /// `discovery.k8s.io` EndpointSlice.
    EndpointSlice,
    /// A Gateway API route.
    Route(RouteKind),
    /// `sluice.dev` AnalysisRun.
    AnalysisRun,
    /// `sluice.dev` AnalysisTemplate.
    AnalysisTemplate,
    /// `sluice.dev` ClusterAnalysisTemplate.
    ClusterAnalysisTemplate,
    /// `sluice.dev` MetricProvider.
    MetricProvider,
    /// `sluice.dev` ClusterMetricProvider.
    ClusterMetricProvider,
    /// `sluice.dev` Intervention.
    Intervention,
    /// `sluice.dev` DeployRepo.
    DeployRepo,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Rollout,
        Self::ReplicaSet,
        Self::Pod,
        Self::Deployment,
        Self::Service,
        Self::EndpointSlice,
        Self::Route(RouteKind::Http),
        Self::Route(RouteKind::Grpc),
        Self::Route(RouteKind::Tls),
        Self::Route(RouteKind::Tcp),
        Self::AnalysisRun,
        Self::AnalysisTemplate,
        Self::ClusterAnalysisTemplate,
        Self::MetricProvider,
        Self::ClusterMetricProvider,
        Self::Intervention,
        Self::DeployRepo,
    ];

    /// The name of the kind.
    pub fn name(self) -> &'static str {
        self.parts().2
    }

    /// Not in a namespace.
    pub fn is_cluster_scoped(self) -> bool {
        matches!(self, Self::ClusterAnalysisTemplate | Self::ClusterMetricProvider)
    }

    /// A cluster may do without it, and the operator with it.
    pub fn is_optional(self) -> bool {
        matches!(self, Self::Route(_))
    }

    /// What to ask the API server for, so that foreign objects never reach our memory.
    pub fn label_selector(self) -> Option<&'static str> {
        match self {
            Self::ReplicaSet => Some(names::ROLLOUT),
            Self::Pod => Some(names::REVISION),
            _ => None,
        }
    }

    /// Where it is served, in its newest version.
    pub fn resource(self) -> ApiResource {
        let (group, version, kind, plural) = self.parts();
        ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") },
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        }
    }

    /// Where a cluster may serve it, newest version first.
    pub fn resources(self) -> Vec<ApiResource> {
        let newest = self.resource();
        let older = match self {
            // Stable since Gateway API 1.6; a cluster with an older one, or with its experimental channel, has these.
            Self::Route(RouteKind::Tls | RouteKind::Tcp) => &["v1alpha3", "v1alpha2"][..],
            _ => &[],
        };
        let at = |version: &&str| ApiResource {
            version: (*version).to_owned(),
            api_version: format!("{}/{version}", newest.group),
            ..newest.clone()
        };
        let older: Vec<ApiResource> = older.iter().map(at).collect();
        std::iter::once(newest).chain(older).collect()
    }

    fn parts(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Self::Rollout => (GROUP, VERSION, "Rollout", "rollouts"),
            Self::ReplicaSet => ("apps", "v1", "ReplicaSet", "replicasets"),
            Self::Pod => ("", "v1", "Pod", "pods"),
            Self::Deployment => ("apps", "v1", "Deployment", "deployments"),
            Self::Service => ("", "v1", "Service", "services"),
            Self::EndpointSlice => ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
            Self::Route(kind) => (ROUTE_GROUP, "v1", kind.name(), kind.plural()),
            Self::AnalysisRun => (GROUP, VERSION, "AnalysisRun", "analysisruns"),
            Self::AnalysisTemplate => (GROUP, VERSION, "AnalysisTemplate", "analysistemplates"),
            Self::ClusterAnalysisTemplate => (GROUP, VERSION, "ClusterAnalysisTemplate", "clusteranalysistemplates"),
            Self::MetricProvider => (GROUP, VERSION, "MetricProvider", "metricproviders"),
            Self::ClusterMetricProvider => (GROUP, VERSION, "ClusterMetricProvider", "clustermetricproviders"),
            Self::Intervention => (GROUP, VERSION, "Intervention", "interventions"),
            Self::DeployRepo => (GROUP, VERSION, "DeployRepo", "deployrepos"),
        }
    }
}
