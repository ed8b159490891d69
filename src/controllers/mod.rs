//! The loops. Each is *observe, decide, act*, and short.

pub mod queue;
