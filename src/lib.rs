//! Sluice: progressive delivery for Kubernetes that git can audit.
