//! What all loops have in common.

mod canaries;
