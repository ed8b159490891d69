//! Health, metrics and the webhook receiver.
