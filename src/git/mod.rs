//! The only room that runs git: the bare cache, reading sources, writing ledgers.
