//! Where metrics come from. Written by administrators; Rollouts only name one, so that a tenant cannot point
//! the operator at an address of their own (argo-rollouts #4707).

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Condition, Duration};

/// A source of metrics for the Rollouts of one namespace.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "MetricProvider",
    namespaced,
    status = "MetricProviderStatus"
)]
#[kube(printcolumn(name = "Address", type_ = "string", json_path = ".spec.prometheus.address"))]
#[kube(printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"))]
#[serde(rename_all = "camelCase")]
pub struct MetricProviderSpec {
    /// A Prometheus, or anything that answers its HTTP API.
    pub prometheus: PrometheusServer,
}

/// A source of metrics for every namespace.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "sluice.dev", version = "v1alpha1", kind = "ClusterMetricProvider", status = "MetricProviderStatus")]
#[kube(printcolumn(name = "Address", type_ = "string", json_path = ".spec.prometheus.address"))]
#[kube(printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"))]
#[serde(rename_all = "camelCase")]
pub struct ClusterMetricProviderSpec {
    /// A Prometheus, or anything that answers its HTTP API.
    pub prometheus: PrometheusServer,
}

/// How to reach a Prometheus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PrometheusServer {
    /// Its base address, `http://` or `https://`, without user or password.
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = (r"self.matches(r'^https?://[^/@?#\s]+(/[^?#\s]*)?$')", "must be http:// or https://, without user, password, query or fragment"))]
    pub address: String,
    /// The token for `Authorization: Bearer`, from a Secret (in this namespace, or in the operator's for a
    /// cluster-wide provider).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer_token: Option<SecretKey>,
    /// Headers sent with each query, such as `X-Scope-OrgID`.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub headers: std::collections::BTreeMap<String, String>,
    /// How long one query may take; 10 seconds when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// How old a sample may be before it counts as no data; 2 minutes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_sample_age: Option<Duration>,
}

/// One key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// The Secret's name.
    pub name: String,
    /// The key in it.
    pub key: String,
}

/// What the operator knows of a provider.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetricProviderStatus {
    /// Conditions, by type.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}
