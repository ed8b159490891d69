//! The cluster harness and the stories that run on it.
fn main() {}
