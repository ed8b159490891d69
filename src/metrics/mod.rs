//! Metric providers, one file each: ask, and return samples. The only room that asks foreign HTTP servers.
