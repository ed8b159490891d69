//! The only room with a Kubernetes client: watches, projections, writes, the lease and events.
